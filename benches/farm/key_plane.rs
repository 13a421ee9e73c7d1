//! Key planes of many nodes on one broker: how long a key takes to reach them all, what they cost, and who leads next.

use std::collections::BTreeMap;
use std::fs;
use std::process;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use resumed::internals::keys::KeyState;
use resumed::{Node, NodeSettings, NodeView, Operator, Secrets, SystemClock};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::latency::{bus, node_settings, secrets};
use crate::memory::{threads, tree_cpu_seconds, tree_resident_bytes};
use crate::report::Report;
use crate::simulated::REPORT_EVERY;
use simulation::large_farm;
use testkit::broker::Broker;

/// How many nodes.
pub const SIZES: [usize; 4] = [10, 30, 100, 300];
/// Up to here a farm's beat is what it is set to, 2 s.
const SAME_BEAT_UP_TO: usize = 200;
const ROTATIONS: usize = 10;
/// For how long a farm in which nothing happens is looked at: whole beats, of 2 s and of 3 s.
const QUIET_FOR: Duration = Duration::from_secs(12);
/// So many beats after all have joined their reports lie as they go on lying.
const SETTLED_AFTER: f64 = 3.0;
const PATIENCE: Duration = Duration::from_secs(120);

/// Each size in turn.
pub fn run(broker: &Broker, report: &mut Report) {
    // What the nodes of this process count, all together.
    let counted = PrometheusBuilder::new().install_recorder().expect("the only recorder");
    for nodes in SIZES {
        measure(broker, nodes, &counted, report);
    }
    for (what, unit) in [("messages", "per_second"), ("broker_bytes", "per_second"), ("broker_resident", "bytes")] {
        let whole = format!("{what}_{unit}");
        let sizes = SIZES.into_iter().filter(|nodes| *nodes as f64 <= largest_fitted(&whole));
        let points: Vec<_> =
            sizes.map(|nodes| (nodes as f64, report.get(&named(nodes, &whole)).expect("just measured"))).collect();
        let (slope, start) = line(&points);
        report.add(&format!("nodes_{what}_each_{unit}"), slope);
        report.add(&format!("nodes_{what}_at_none_{unit}"), start);
    }
}

/// How many nodes a line can be fitted up to: larger farms have a longer beat, so that a node sends less in them.
pub fn largest_fitted(what: &str) -> f64 {
    let all = SIZES[SIZES.len() - 1];
    (if what == "broker_resident_bytes" { all } else { all.min(SAME_BEAT_UP_TO) }) as f64
}

fn named(nodes: usize, what: &str) -> String {
    format!("nodes_{nodes}_{what}")
}

/// Least squares: the slope, and the value at 0.
pub fn line(points: &[(f64, f64)]) -> (f64, f64) {
    let n = points.len() as f64;
    let (x, y) = points.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0 / n, y + point.1 / n));
    let (above, below) = points.iter().fold((0.0, 0.0), |(above, below), point| {
        (above + (point.0 - x) * (point.1 - y), below + (point.0 - x).powi(2))
    });
    (above / below, y - above / below * x)
}

fn settings(index: usize, farm: &str) -> NodeSettings {
    let mut settings = node_settings(&format!("node{index:03}"), farm);
    settings.sessions.replicate = false;
    settings
}

/// The node that leads first, on a thread of its own beside those of its connections: its CPU can be told apart, and it can be gone
/// from one moment to the next.
struct First {
    thread: JoinHandle<()>,
    die: oneshot::Sender<()>,
    view: watch::Receiver<NodeView>,
    /// Threads of others, which were there before.
    not_its: Vec<i32>,
    /// Its own, once it leads.
    its: Vec<i32>,
}

impl First {
    fn start(broker: &Broker, farm: &str, secrets: watch::Receiver<Arc<Secrets>>) -> Self {
        let (die, dies) = oneshot::channel();
        let (started, starts) = mpsc::channel();
        let not_its = threads(process::id());
        let (bus, settings) = (bus(broker), settings(0, farm));
        let thread = thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let node = Node::start(settings, secrets, bus, SystemClock::start()).expect("settings");
                started.send(node.view.clone()).expect("the benchmark waits");
                let _sender_gone = dies.await;
            });
            // Without a farewell: its tasks and its connections go with the runtime.
            runtime.shutdown_background();
        });
        let view = starts.recv().expect("the first node starts");
        Self { thread, die, view, not_its, its: Vec::new() }
    }

    /// It is connected, and nobody else has begun.
    fn has_begun(&mut self) {
        self.its = threads(process::id()).into_iter().filter(|thread| !self.not_its.contains(thread)).collect();
        assert!(self.its.len() > 1, "the node's own thread and its connections': {:?}", self.its);
    }

    /// CPU that each of its threads has used. One for blocking work may end, and counts no more then.
    fn cpu_seconds(&self) -> BTreeMap<i32, f64> {
        let used = |thread: &i32| {
            let text = fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).ok()?;
            Some((*thread, text.split(' ').next()?.parse::<f64>().ok()? / 1e9))
        };
        self.its.iter().filter_map(used).collect()
    }
}

fn measure(broker: &Broker, nodes: usize, counted: &PrometheusHandle, report: &mut Report) {
    let runtime = Runtime::new().expect("a runtime");
    let (secrets, farm) = (secrets(), format!("nodes{nodes}"));
    let mut first = First::start(broker, &farm, secrets.clone());
    let in_time = |what: &'static str, task: JoinSet<Duration>| {
        runtime.block_on(async {
            let all = tokio::time::timeout(PATIENCE, task.join_all()).await;
            all.unwrap_or_else(|_| panic!("{nodes} nodes: {what} did not happen everywhere within {PATIENCE:?}"))
        })
    };
    runtime.block_on(async {
        let mut view = first.view.clone();
        let leads = tokio::time::timeout(PATIENCE, view.wait_for(|view| view.leads));
        leads.await.expect("the first node leads").expect("it runs");
    });
    first.has_begun();
    let start = Instant::now();
    let others: Vec<Node> = runtime.block_on(async {
        (1..nodes)
            .map(|index| {
                let settings = settings(index, &farm);
                Node::start(settings, secrets.clone(), bus(broker), SystemClock::start()).expect("settings")
            })
            .collect()
    });
    let views: Vec<_> = others.iter().map(|node| node.view.clone()).chain([first.view.clone()]).collect();
    in_time("joining", when(&runtime, &views, start, |view| view.in_step));
    runtime.block_on(async {
        let mut view = first.view.clone();
        let counts = move |view: &NodeView| view.members_in_step as usize == nodes;
        tokio::time::timeout(PATIENCE, view.wait_for(counts)).await.expect("all are counted").expect("it runs");
    });
    report.add(&named(nodes, "join_seconds"), start.elapsed().as_secs_f64());

    thread::sleep(Duration::from_secs_f64(SETTLED_AFTER * large_farm::beat(nodes, REPORT_EVERY)));
    // Each with its moment: asking the broker takes a second or two.
    let broker_pid = broker.pid().expect("the broker runs");
    let looks = || {
        let timed = |value: f64| (value, Instant::now());
        [messages(counted), tree_cpu_seconds(broker_pid), broker_bytes(broker)].map(timed)
    };
    let (leader_start, leader_before) = (Instant::now(), first.cpu_seconds());
    let before = looks();
    thread::sleep(QUIET_FOR);
    let leader_used =
        first.cpu_seconds().iter().filter_map(|(thread, used)| Some(used - leader_before.get(thread)?)).sum::<f64>();
    let leader = leader_used / leader_start.elapsed().as_secs_f64();
    assert!(leader > 0.0, "the leader used no CPU");
    let after = looks();
    let rate = |at: usize| (after[at].0 - before[at].0) / (after[at].1 - before[at].1).as_secs_f64();
    report.add(&named(nodes, "messages_per_second"), rate(0));
    report.add(&named(nodes, "leader_cpu_core_percent"), leader * 100.0);
    report.add(&named(nodes, "broker_cpu_core_percent"), rate(1) * 100.0);
    report.add(&named(nodes, "broker_bytes_per_second"), rate(2));
    report.add(&named(nodes, "broker_resident_bytes"), tree_resident_bytes(broker_pid));

    let mut slowest = Vec::new();
    for _ in 0..ROTATIONS {
        // A key that has not settled yet would be the answer to the next request.
        let mut view = first.view.clone();
        runtime.block_on(async {
            let settled = tokio::time::timeout(PATIENCE, view.wait_for(nothing_settles));
            settled.await.expect("the newest key seals").expect("the first node runs");
        });
        let generation = first.view.borrow().ring.keys.iter().map(|key| key.generation).max().unwrap_or(0);
        let start = Instant::now();
        let held =
            when(&runtime, &views, start, move |view| view.ring.keys.iter().any(|key| key.generation > generation));
        let operator = Operator::of(&others[0]);
        let rotated = runtime.block_on(operator.rotate(PATIENCE, |_| {})).expect("a rotation");
        assert!(rotated.missing.is_empty(), "{} nodes have not confirmed", rotated.missing.len());
        slowest.extend(in_time("the new key", held).into_iter().max());
    }
    slowest.sort_unstable();
    report.add(&named(nodes, "rotate_to_last_p50_seconds"), slowest[ROTATIONS / 2].as_secs_f64());
    report.add(&named(nodes, "rotate_to_last_most_seconds"), slowest[ROTATIONS - 1].as_secs_f64());

    let start = Instant::now();
    let mut leads = JoinSet::new();
    for node in &others {
        let mut view = node.view.clone();
        let leads_now = async move {
            view.wait_for(|view| view.leads).await.expect("the node runs");
            start.elapsed()
        };
        leads.spawn_on(leads_now, runtime.handle());
    }
    first.die.send(()).expect("the first node runs");
    first.thread.join().expect("the first node");
    let next = runtime.block_on(async { tokio::time::timeout(PATIENCE, leads.join_next()).await });
    let next = next.expect("another node leads").expect("nodes").expect("a node");
    report.add(&named(nodes, "failover_seconds"), next.as_secs_f64());
    leads.abort_all();
    runtime.block_on(async {
        let mut stopping = JoinSet::new();
        for node in others {
            stopping.spawn(node.stop());
        }
        stopping.join_all().await;
    });
}

/// Whether no key is about to seal but the one that is due in an interval.
fn nothing_settles(view: &NodeView) -> bool {
    let soon = SystemClock::start().now().wall + 60_000;
    view.ring.keys.iter().all(|key| key.state != KeyState::Next || key.seal_from > soon)
}

/// One task for each view: how long after `start` it became as wanted.
fn when(
    runtime: &Runtime,
    views: &[watch::Receiver<NodeView>],
    start: Instant,
    wanted: impl Fn(&NodeView) -> bool + Copy + Send + Sync + 'static,
) -> JoinSet<Duration> {
    let mut tasks = JoinSet::new();
    for view in views {
        let mut view = view.clone();
        let reached = async move {
            view.wait_for(wanted).await.expect("the node runs");
            start.elapsed()
        };
        tasks.spawn_on(reached, runtime.handle());
    }
    tasks
}

/// Messages that all nodes of this process have sent so far.
fn messages(counted: &PrometheusHandle) -> f64 {
    let text = counted.render();
    let of_all_planes = text.lines().filter(|line| line.starts_with("resumed_messages_sent_total"));
    of_all_planes.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Bytes that the broker has read and written so far, on the connections that are open.
pub fn broker_bytes(broker: &Broker) -> f64 {
    let lines = broker.ctl(&["list_connections", "recv_oct", "send_oct"]);
    lines.split_whitespace().filter_map(|bytes| bytes.parse::<f64>().ok()).sum()
}
