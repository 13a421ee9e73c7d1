//! What one session costs a pod as it grows: the broker's CPU and bytes, and the CPU of each node, at two rates.

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use resumed::SystemClock;

use crate::key_plane::{broker_bytes, line};
use crate::memory::{exact_cpu_seconds, tree_cpu_seconds};
use crate::proxy;
use crate::report::Report;
use crate::samples::Sample;
use testkit::broker::Broker;
use testkit::farm::{Farm, FarmSetup, PATIENCE, Proxies};

/// How many hosts the pod has.
pub const HOSTS: [usize; 3] = [2, 4, 8];
/// Sessions a second: so few that nearly each is a message of its own, and so many that they travel in batches.
pub const RATES: [u64; 2] = [1_000, 20_000];
const FOR: Duration = Duration::from_secs(5);
/// The proxy reports this often, as one that handles handshakes all the time.
const EVERY: Duration = Duration::from_millis(1);

/// The broker is given so many messages, and delivers each to every host.
const COSTS: [&str; 5] = [
    "broker_cpu_microseconds",
    "broker_session_bytes",
    "sender_cpu_microseconds",
    "receiver_cpu_microseconds",
    "messages",
];

/// Each size and rate; then the line through the sizes, for what the broker does.
pub fn run(broker: &Broker, report: &mut Report) {
    for hosts in HOSTS {
        measure(broker, hosts, report);
    }
    for rate in RATES {
        for (what, unit) in [("broker_cpu", "microseconds"), ("broker_session", "bytes")] {
            let at = |hosts: usize| report.get(&named(hosts, rate, &format!("{what}_{unit}"))).expect("just measured");
            let (slope, start) = line(&HOSTS.map(|hosts| (hosts as f64, at(hosts))));
            report.add(&format!("pod_at_{rate}_{what}_each_host_{unit}"), slope);
            report.add(&format!("pod_at_{rate}_{what}_at_none_{unit}"), start);
        }
    }
}

/// The name of a figure: what one session costs in a pod of `hosts`, at `rate` sessions a second.
pub fn named(hosts: usize, rate: u64, what: &str) -> String {
    format!("pod_{hosts}_hosts_at_{rate}_{what}")
}

fn measure(broker: &Broker, hosts: usize, report: &mut Report) {
    let mut setup = FarmSetup::new(hosts, &broker.uri());
    setup.proxies = Proxies::None;
    setup.log = "info".to_owned();
    let farm = Farm::start_in_step(&setup);
    let (sample, wall) = (Sample::make(), SystemClock::start().now().wall);
    let mut stream = proxy::connect(&farm.hosts[0].daemon.home().join("ats.sock"), false);
    let costs = || {
        let cpu = |index: usize| exact_cpu_seconds(farm.hosts[index].daemon.pid().as_raw().cast_unsigned()) * 1e6;
        let receivers = (1..hosts).map(cpu).sum::<f64>() / (hosts - 1) as f64;
        let broker_cpu = tree_cpu_seconds(broker.pid().expect("the broker runs")) * 1e6;
        let messages = farm.hosts[0].daemon.metric("resumed_messages_sent_total{plane=\"sessions\"}");
        [broker_cpu, broker_bytes(broker), cpu(0), receivers, messages]
    };
    let mut total = 0;
    for rate in RATES {
        // What they use while nobody shakes hands is not the sessions' cost.
        let (idle_from, idle_start) = (costs(), Instant::now());
        thread::sleep(FOR / 2);
        let (idle_to, idle_for) = (costs(), idle_start.elapsed());

        let before = costs();
        let start = Instant::now();
        let mut sent = 0;
        while start.elapsed() < FOR {
            let due = (rate as f64 * start.elapsed().as_secs_f64()) as u64;
            if due > sent {
                let numbers = total + sent..total + due;
                let message = proxy::report(numbers.map(|number| sample.session(number, wall)).collect());
                stream.write_all(&message).expect("the daemon reads");
                sent = due;
            }
            thread::sleep(EVERY);
        }
        total += sent;
        let held = |index: usize| farm.hosts[index].daemon.metric("resumed_cache_entries") as u64;
        while (0..hosts).map(held).min() < Some(total) {
            assert!(start.elapsed() < FOR + PATIENCE, "{total} sessions are not in every cache");
            thread::sleep(Duration::from_millis(20));
        }
        let (after, took) = (costs(), start.elapsed());
        for (index, what) in COSTS.iter().enumerate() {
            let idle = (idle_to[index] - idle_from[index]) * took.as_secs_f64() / idle_for.as_secs_f64();
            let each = (after[index] - before[index] - idle) / sent as f64;
            report.add(&named(hosts, rate, what), each);
        }
    }
}
