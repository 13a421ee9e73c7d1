//! How long one session takes on its way to another host.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use resumed::internals::proto::SessionEntry;
use resumed::{FarmSecret, Node, NodeSettings, RabbitMq, RabbitMqSettings, Secrets, SystemClock};
use resumed_ats::from_daemon::FromDaemon;
use resumed_ats::incoming::{Incoming, Refused, keep};
use resumed_ats::outgoing::Outgoing;
use resumed_ats::replica::Replica;
use resumed_ats::report::Report as SessionReport;
use resumed_ats::session::SessionId;
use tokio::runtime::Builder;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::report::{Percentiles, Report};
use crate::samples::Sample;
use crate::{proxy, raw_amqp};
use testkit::broker::Broker;
use testkit::farm::{Farm, FarmSetup, Proxies};

/// The rate at which latency is asked for. A plugin collects reports then.
const PER_SECOND: u32 = 1_000;
/// A rate at which every report of a plugin goes by itself: below what makes it end collecting, for a stall makes a burst.
const FEW_PER_SECOND: u32 = 80;
/// What one session comes to in an envelope of its own, nearly.
const RAW_BYTES: usize = 400;
const WAIT: Duration = Duration::from_secs(120);

/// From outbox to cache, and from one plugin's hook to the other's replica, each in turn with raw AMQP.
pub fn run(broker: &Broker, report: &mut Report) {
    let nodes = Nodes::start(broker);
    let raw = |hops, per_second, lasting| raw_amqp::latency(&broker.uri(), per_second, RAW_BYTES, lasting, hops);
    let names = ["raw_amqp_latency", "outbox_to_cache", "latency"];
    let lasting = Duration::from_secs(2);
    compare(report, names, 5, || (raw(false, PER_SECOND, lasting), nodes.measure(lasting)));
    nodes.stop();
    let plugins = Plugins::start(broker);
    let names = ["raw_amqp_and_two_sockets_few", "hook_to_replica_few", "hook_to_replica_few"];
    let lasting = Duration::from_secs(4);
    compare(report, names, 3, || (raw(true, FEW_PER_SECOND, lasting), plugins.measure(FEW_PER_SECOND, lasting)));
    let names = ["raw_amqp_and_two_sockets", "hook_to_replica", "hook_to_replica"];
    let lasting = Duration::from_secs(3);
    compare(report, names, 3, || (raw(true, PER_SECOND, lasting), plugins.measure(PER_SECOND, lasting)));
    plugins.stop();
}

/// Several rounds of raw AMQP and ours. What the report is given is each percentile's median over the rounds, and that of the ratios:
/// a machine that others use, too, is slow in one round and fast in the next.
fn compare(
    report: &mut Report,
    [raw, ours, ratio]: [&str; 3],
    rounds: usize,
    mut round: impl FnMut() -> (Percentiles, Percentiles),
) {
    let rounds: Vec<_> = (0..rounds).map(|_| round()).collect();
    let sorted = |of: &dyn Fn(&(Percentiles, Percentiles)) -> f64| {
        let mut all: Vec<f64> = rounds.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all
    };
    let median = |of: &dyn Fn(&(Percentiles, Percentiles)) -> f64| sorted(of)[rounds.len() / 2];
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    for (percentile, of) in [("p50", (|all| all.p50) as fn(&Percentiles) -> Duration), ("p99", |all| all.p99)] {
        report.add(&format!("{raw}_{percentile}_microseconds"), median(&|round| micros(of(&round.0))));
        report.add(&format!("{ours}_{percentile}_microseconds"), median(&|round| micros(of(&round.1))));
        let ratios = sorted(&|round| of(&round.1).as_secs_f64() / of(&round.0).as_secs_f64());
        report.add(&format!("{ratio}_{percentile}_ratio"), ratios[rounds.len() / 2]);
        report.add(&format!("{ratio}_{percentile}_least_ratio"), ratios[0]);
        report.add(&format!("{ratio}_{percentile}_most_ratio"), ratios[rounds.len() - 1]);
    }
}

/// How nodes of this benchmark that live in its process are set up.
pub fn node_settings(name: &str, farm: &str) -> NodeSettings {
    let mut settings = NodeSettings::new(name, farm, "pod");
    settings.keys.interval = Duration::from_secs(3600);
    settings.keys.max_seal_age = Duration::from_secs(3 * 3600);
    settings
}

/// A farm secret for nodes in this process.
pub fn secrets() -> watch::Receiver<Arc<Secrets>> {
    let secrets = Secrets::new(vec![FarmSecret::generate().expect("randomness")]).expect("one secret");
    // The receivers keep what was sent.
    watch::channel(Arc::new(secrets)).1
}

/// A bus to `broker`.
pub fn bus(broker: &Broker) -> Arc<RabbitMq> {
    let uris = vec![broker.uri().parse().expect("a URI")];
    let settings = RabbitMqSettings { uris, ..RabbitMqSettings::default() };
    Arc::new(RabbitMq::new(settings).expect("settings of a bus"))
}

/// Two nodes with a thread each, as a daemon has.
struct Nodes {
    rounds: UnboundedSender<usize>,
    delays: Receiver<Duration>,
    over: CancellationToken,
    threads: [JoinHandle<()>; 2],
}

impl Nodes {
    fn start(broker: &Broker) -> Self {
        let (secrets, origin, clock) = (secrets(), Instant::now(), SystemClock::start());
        let (rounds, begun) = unbounded_channel();
        let (arrived, delays) = mpsc::channel();
        let (started, is_started) = mpsc::channel();
        let over = CancellationToken::new();
        let receiver = {
            let (secrets, bus, started, over) = (secrets.clone(), bus(broker), started.clone(), over.clone());
            on_a_thread(async move || {
                let node =
                    Node::start(node_settings("receiver", "latency"), secrets, bus, clock).expect("settings of a node");
                let mut from_farm = node.proxies.from_farm.subscribe();
                in_step(&node).await;
                started.send(()).expect("the benchmark waits");
                while let Some(sessions) = over.run_until_cancelled(from_farm.recv()).await {
                    let now = origin.elapsed();
                    for session in sessions.expect("what comes from the farm").iter() {
                        let sent = Duration::from_nanos(Sample::number(&session.id));
                        arrived.send(now.saturating_sub(sent)).expect("the benchmark waits");
                    }
                }
                node.stop().await;
            })
        };
        let sender = {
            let (bus, over) = (bus(broker), over.clone());
            on_a_thread(async move || {
                let node =
                    Node::start(node_settings("sender", "latency"), secrets, bus, clock).expect("settings of a node");
                in_step(&node).await;
                started.send(()).expect("the benchmark waits");
                offer(&node, begun, &over, origin, clock).await;
                node.stop().await;
            })
        };
        for _ in 0..2 {
            is_started.recv_timeout(WAIT).expect("both nodes are in step");
        }
        Self { rounds, delays, over, threads: [receiver, sender] }
    }

    fn measure(&self, lasting: Duration) -> Percentiles {
        let [lead, count] = counts(PER_SECOND, lasting);
        self.rounds.send(lead + count).expect("the sender runs");
        all(&self.delays, lead, count)
    }

    fn stop(self) {
        self.over.cancel();
        for thread in self.threads {
            thread.join().expect("a node");
        }
    }
}

/// Puts as many sessions as each round has into the node's outbox, a millisecond apart.
async fn offer(
    node: &Node,
    mut rounds: UnboundedReceiver<usize>,
    over: &CancellationToken,
    origin: Instant,
    clock: SystemClock,
) {
    let sample = Sample::make();
    while let Some(Some(count)) = over.run_until_cancelled(rounds.recv()).await {
        let mut pace = tokio::time::interval(Duration::from_secs(1) / PER_SECOND);
        for _ in 0..count {
            pace.tick().await;
            let number = u64::try_from(origin.elapsed().as_nanos()).expect("a short run");
            let entry = SessionEntry {
                id: Bytes::copy_from_slice(&Sample::id(number)),
                session: Bytes::from(sample.der(number)),
                at: clock.now().wall,
            };
            assert_eq!(node.proxies.outbox.push_all(&[entry]), 0, "an outbox with room");
        }
    }
}

async fn in_step(node: &Node) {
    let mut view = node.view.clone();
    let together = view.wait_for(|view| view.in_step && view.broker.connected);
    tokio::time::timeout(WAIT, together).await.expect("in step").expect("the node runs");
}

fn on_a_thread(work: impl AsyncFnOnce() + Send + 'static) -> JoinHandle<()> {
    thread::spawn(|| Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work()))
}

/// How many sessions come at this rate before the round counts, and in the round.
fn counts(per_second: u32, lasting: Duration) -> [usize; 2] {
    [raw_amqp::LEAD, lasting].map(|time| (time.as_secs_f64() * f64::from(per_second)) as usize)
}

/// So many delays as they come, after so many that do not count.
fn all(delays: &Receiver<Duration>, lead: usize, count: usize) -> Percentiles {
    let next = || delays.recv_timeout(WAIT).expect("every session arrives");
    for _ in 0..lead {
        next();
    }
    Percentiles::of((0..count).map(|_| next()).collect())
}

/// Two daemons, each with what its plugin runs beside ATS: the hook's part of one, the replica of the other.
struct Plugins {
    outgoing: Arc<Outgoing>,
    over: Arc<AtomicBool>,
    delays: Receiver<Duration>,
    origin: Instant,
    writing: JoinHandle<()>,
    // The last to go: reading ends with it.
    _farm: Farm,
}

impl Plugins {
    fn start(broker: &Broker) -> Self {
        let mut setup = FarmSetup::new(2, &broker.uri());
        setup.proxies = Proxies::None;
        setup.log = "info".to_owned();
        let farm = Farm::start_in_step(&setup);
        let (arrived, delays) = mpsc::channel();
        let connect = |host: usize, takes_sessions| {
            let daemon = &farm.hosts[host].daemon;
            let stream = proxy::connect(&daemon.home().join("ats.sock"), takes_sessions);
            daemon.wait_for_metric("resumed_proxies_connected", |proxies| proxies == 1.0);
            stream
        };
        let (from_daemon, to_daemon) = (connect(1, true), connect(0, false));
        let origin = Instant::now();
        thread::spawn(move || keep_all(from_daemon, origin, &arrived));
        let (outgoing, over) = (Arc::new(Outgoing::default()), Arc::new(AtomicBool::new(false)));
        outgoing.open(to_daemon);
        let writing = thread::spawn({
            let (outgoing, over) = (Arc::clone(&outgoing), Arc::clone(&over));
            move || {
                let goes_on = || !over.load(Ordering::Acquire);
                outgoing.send_all(goes_on, Vec::new).expect("the daemon reads");
            }
        });
        Self { outgoing, over, delays, origin, writing, _farm: farm }
    }

    /// Reports at this rate, as the hook does.
    fn measure(&self, per_second: u32, lasting: Duration) -> Percentiles {
        let (sample, clock) = (Sample::make(), SystemClock::start());
        let [lead, count] = counts(per_second, lasting);
        let start = Instant::now();
        for due in 1..=u32::try_from(lead + count).expect("a short run") {
            thread::sleep((Duration::from_secs(1) / per_second * due).saturating_sub(start.elapsed()));
            let number = u64::try_from(self.origin.elapsed().as_nanos()).expect("a short run");
            let (id, der) = (session_id(number), sample.der(number));
            let copy = |room: &mut [u8]| {
                room[..der.len()].copy_from_slice(&der);
                der.len()
            };
            let report = SessionReport::new(&id, clock.now().wall, copy).expect("a session of usual size");
            self.outgoing.report(&report, Instant::now());
        }
        all(&self.delays, lead, count)
    }

    fn stop(self) {
        self.over.store(true, Ordering::Release);
        self.outgoing.wake();
        self.writing.join().expect("the writing thread");
        assert_eq!(self.outgoing.lost(), 0, "a queue with room");
    }
}

fn session_id(number: u64) -> SessionId {
    SessionId::new(&Sample::id(number)).expect("an ID of 32 bytes")
}

/// Keeps what the daemon tells in a replica, until it ends, and says of each session how long it took.
fn keep_all(mut from_daemon: UnixStream, origin: Instant, arrived: &Sender<Duration>) {
    let (replica, mut incoming, clock) = (Replica::new(64 << 20), Incoming::default(), SystemClock::start());
    let take = |message: Result<FromDaemon, String>| {
        let FromDaemon::Sessions(sessions) = message.expect("a message") else { return };
        let numbers: Vec<_> = sessions.iter().map(|session| Sample::number(&session.id)).collect();
        let refused = keep(&replica, sessions, clock.now().wall / 1_000, |_| {});
        let now = origin.elapsed();
        assert_eq!(refused, Refused::default());
        for number in numbers {
            // Nobody waits any more once the benchmark is at its end.
            let _sent = arrived.send(now.saturating_sub(Duration::from_nanos(number)));
        }
    };
    while incoming.next(&mut from_daemon, take).is_ok() {}
}
