//! How many sessions a second one node can share with three.

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use resumed::SystemClock;

use crate::micro::BATCH_SESSIONS;
use crate::report::Report;
use crate::samples::{SESSION_BYTES, Sample};
use crate::{proxy, raw_amqp};
use testkit::broker::Broker;
use testkit::farm::{Farm, FarmSetup, PATIENCE, Proxies};

const SESSIONS: u64 = 1_000_000;
/// Sessions in one message of the proxy: what its plugin has collected while the socket was busy.
const REPORTED_AT_ONCE: u64 = 130;
/// How far the proxy may be ahead of the slowest node, in sessions: less than its node's outbox holds.
const AHEAD: u64 = 60_000;
const RAW_MESSAGES: usize = 200_000;
const RAW_BYTES: usize = 256;
const RECEIVERS: usize = 3;
const ROUNDS: usize = 5;

/// One round: both rates, and the CPU that a session took.
struct Round {
    raw: f64,
    sessions: f64,
    cpu_seconds: [f64; 3],
}

impl Round {
    fn ratio(&self) -> f64 {
        self.sessions / self.raw
    }
}

/// Sessions of [`SESSION_BYTES`] from one node until they are in the caches of three, right after raw AMQP; and again. The round
/// in the middle counts: a machine that others use, too, may do more for one half of a round than for the other.
pub fn run(broker: &Broker, report: &mut Report) {
    let round = |_| {
        let raw = raw_amqp::rate(&broker.uri(), RAW_MESSAGES, RAW_BYTES, RECEIVERS);
        let (sessions, cpu_seconds) = sessions(broker);
        let round = Round { raw, sessions, cpu_seconds };
        eprintln!("  {:.0} messages, {:.0} sessions a second: {:.1} times", raw, sessions, round.ratio());
        round
    };
    let mut rounds: Vec<Round> = (0..ROUNDS).map(round).collect();
    rounds.sort_by(|one, other| one.ratio().total_cmp(&other.ratio()));
    let middle = &rounds[ROUNDS / 2];
    report.add("raw_amqp_messages_per_second", middle.raw);
    report.add("session_throughput_per_second", middle.sessions);
    report.add("session_throughput_ratio", middle.ratio());
    report.add("session_throughput_least_ratio", rounds[0].ratio());
    report.add("session_throughput_most_ratio", rounds[ROUNDS - 1].ratio());
    for (name, seconds) in ["sender", "receiver", "broker"].iter().zip(middle.cpu_seconds) {
        report.add(&format!("session_{name}_cpu_microseconds"), seconds / SESSIONS as f64 * 1e6);
    }
    report.add("session_bytes", SESSION_BYTES as f64);
    let rate = middle.sessions;
    if let Some(nanoseconds) = report.get("micro_aes_256_gcm_of_a_batch_nanoseconds") {
        report.add("session_aes_256_gcm_core_percent", rate / BATCH_SESSIONS as f64 * nanoseconds / 1e7);
    }
    if let Some(nanoseconds) = report.get("micro_copy_of_64_mebibytes_nanoseconds") {
        let bytes = rate * (SESSION_BYTES + 32) as f64;
        report.add("session_copying_core_percent", bytes / f64::from(64 << 20) * nanoseconds / 1e7);
    }
}

/// Sessions a second, and the CPU that all of them took: of the sender, of a receiver, of the broker.
fn sessions(broker: &Broker) -> (f64, [f64; 3]) {
    let mut setup = FarmSetup::new(1 + RECEIVERS, &broker.uri());
    setup.proxies = Proxies::None;
    setup.log = "info".to_owned();
    setup.sessions = "max_bytes = \"1GiB\"".to_owned();
    let farm = Farm::start_in_step(&setup);
    let wall = SystemClock::start().now().wall;
    let sample = Sample::make();
    let reports: Vec<Vec<u8>> = (0..SESSIONS)
        .step_by(usize::try_from(REPORTED_AT_ONCE).expect("a small number"))
        .map(|from| {
            let numbers = from..(from + REPORTED_AT_ONCE).min(SESSIONS);
            proxy::report(numbers.map(|number| sample.session(number, wall)).collect())
        })
        .collect();
    let mut stream = proxy::connect(&farm.hosts[0].daemon.home().join("ats.sock"), false);
    let slowest = || {
        let held = farm.hosts[1..].iter().map(|host| host.daemon.metric("resumed_cache_entries") as u64);
        held.min().unwrap_or(0)
    };
    let before = cpu_seconds(&farm, broker);
    let start = Instant::now();
    let (mut sent, mut held) = (0, 0);
    for message in &reports {
        while sent > held + AHEAD {
            held = slowest();
            thread::sleep(Duration::from_millis(20));
        }
        stream.write_all(message).expect("the daemon reads");
        sent += REPORTED_AT_ONCE;
    }
    while held < SESSIONS {
        held = slowest();
        assert!(start.elapsed() < 2 * PATIENCE, "{held} of {SESSIONS} sessions are in every cache");
        thread::sleep(Duration::from_millis(5));
    }
    let took = start.elapsed().as_secs_f64();
    let after = cpu_seconds(&farm, broker);
    let used = [0, 1, 2].map(|place| after[place] - before[place]);
    (SESSIONS as f64 / took, used)
}

/// CPU that was used so far: by the sending node, by the receiving ones on average, by the broker.
fn cpu_seconds(farm: &Farm, broker: &Broker) -> [f64; 3] {
    let of = |index: usize| crate::memory::cpu_seconds(farm.hosts[index].daemon.pid().as_raw().cast_unsigned());
    let receivers = (1..=RECEIVERS).map(of).sum::<f64>() / RECEIVERS as f64;
    [of(0), receivers, crate::memory::tree_cpu_seconds(broker.pid().expect("it runs"))]
}
