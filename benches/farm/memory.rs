//! What a node weighs, empty and with a million sessions, and how fast another one has them.

use std::fs;
use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use resumed::SystemClock;

use crate::proxy;
use crate::report::Report;
use crate::samples::{SESSION_BYTES, Sample};
use testkit::broker::Broker;
use testkit::farm::{Daemon, Farm, FarmSetup, Proxies};

const SESSIONS: u64 = 1_000_000;
const ID_BYTES: u64 = 32;
const REPORTED_AT_ONCE: u64 = 130;
/// How far the proxy may be ahead of what its node has published, in sessions.
const AHEAD: u64 = 60_000;
/// For how long an idle node is looked at.
const IDLE_FOR: Duration = Duration::from_secs(20);
/// A new leader asks often whether its lease holds, and nodes tell each other of themselves: for the first few beats.
const QUIET_AFTER: Duration = Duration::from_secs(10);

/// A million sessions in one node; then a second node joins.
pub fn run(broker: &Broker, report: &mut Report) {
    let mut setup = FarmSetup::new(2, &broker.uri());
    setup.proxies = Proxies::None;
    setup.log = "info".to_owned();
    setup.sessions = "max_bytes = \"1GiB\"".to_owned();
    let mut farm = Farm::lay_out(&setup);
    farm.hosts[0].daemon.launch();
    farm.wait_in_step();
    fill(&farm.hosts[0].daemon);
    let content = (SESSIONS * (ID_BYTES + SESSION_BYTES as u64)) as f64;
    // What waits to be published is memory of another kind, with a bound of its own.
    farm.hosts[0].daemon.wait_for_metric("resumed_sessions_published_total", |sent| sent >= SESSIONS as f64);
    let first = resident_bytes(farm.hosts[0].daemon.pid());
    report.add("memory_content_bytes", content);
    report.add("memory_resident_bytes", first);
    report.add("memory_ratio", first / content);

    let start = Instant::now();
    farm.hosts[1].daemon.launch();
    farm.hosts[1].daemon.wait_for_metric("resumed_cache_entries", |entries| entries >= SESSIONS as f64);
    report.add("warmup_from_start_seconds", start.elapsed().as_secs_f64());
    report.add("warmup_seconds", farm.hosts[1].daemon.wait_for_metric("resumed_warmup_seconds", |took| took > 0.0));
    report.add("memory_joined_ratio", resident_bytes(farm.hosts[1].daemon.pid()) / content);

    // As a proxy that was restarted.
    let start = Instant::now();
    let mut replica = proxy::connect(&farm.hosts[1].daemon.home().join("ats.sock"), true);
    let mut got = 0;
    while got < SESSIONS {
        got += proxy::next_sessions(&mut replica).expect("the daemon tells of them").len() as u64;
    }
    report.add("refill_seconds", start.elapsed().as_secs_f64());
}

fn fill(daemon: &Daemon) {
    let (sample, wall) = (Sample::make(), SystemClock::start().now().wall);
    let mut stream = proxy::connect(&daemon.home().join("ats.sock"), false);
    let mut held = 0;
    let mut sent = 0;
    while sent < SESSIONS {
        while sent > held + AHEAD {
            held = daemon.metric("resumed_sessions_published_total") as u64;
            thread::sleep(Duration::from_millis(20));
        }
        let numbers = sent..(sent + REPORTED_AT_ONCE).min(SESSIONS);
        sent = numbers.end;
        let message = proxy::report(numbers.map(|number| sample.session(number, wall)).collect());
        stream.write_all(&message).expect("the daemon reads");
    }
    daemon.wait_for_metric("resumed_cache_entries", |entries| entries == SESSIONS as f64);
}

/// A node with a broker, a leader and nothing to do.
pub fn run_idle(broker: &Broker, report: &mut Report) {
    let mut setup = FarmSetup::new(3, &broker.uri());
    setup.proxies = Proxies::None;
    setup.log = "info".to_owned();
    let farm = Farm::start_in_step(&setup);
    let leader = farm.leader();
    let nodes = [("idle", farm.others(leader)[0]), ("idle_leader", leader)];
    let daemon = |host: usize| farm.hosts[host].daemon.pid();
    let used = || nodes.map(|(_, host)| exact_cpu_seconds(daemon(host).as_raw().cast_unsigned()));
    thread::sleep(QUIET_AFTER);
    let (start, before) = (Instant::now(), used());
    thread::sleep(IDLE_FOR);
    let (lasting, after) = (start.elapsed().as_secs_f64(), used());
    for (at, (name, host)) in nodes.into_iter().enumerate() {
        report.add(&format!("{name}_cpu_core_percent"), (after[at] - before[at]) / lasting * 100.0);
        report.add(&format!("{name}_resident_bytes"), resident_bytes(daemon(host)));
    }
}

/// What of a process is in memory.
pub fn resident_bytes(pid: Pid) -> f64 {
    resident_bytes_of(pid.as_raw().cast_unsigned()).expect("a process that runs")
}

/// The same; `None` once it is gone.
fn resident_bytes_of(pid: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().trim_end_matches(" kB").trim().parse::<f64>().ok()? * 1024.0)
}

/// The same of a process and all below it.
pub fn tree_resident_bytes(pid: u32) -> f64 {
    let below = children(pid).into_iter().map(tree_resident_bytes).sum::<f64>();
    resident_bytes_of(pid).unwrap_or(0.0) + below
}

fn children(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}

/// CPU that a process has used, in user and system mode; none once it is gone.
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // proc(5): fields 14 and 15, in ticks of 10 ms; the name in field 2 may hold spaces.
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let ticks: f64 = after_name.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
    ticks / 100.0
}

/// CPU that a process has used, to the nanosecond.
pub fn exact_cpu_seconds(pid: u32) -> f64 {
    let clock = clock_getcpuclockid(Pid::from_raw(pid.cast_signed())).expect("a process that runs");
    Duration::from(clock.now().expect("its clock")).as_secs_f64()
}

/// The threads of a process.
pub fn threads(pid: u32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()).collect()
}

/// CPU that a process and all below it have used.
pub fn tree_cpu_seconds(pid: u32) -> f64 {
    cpu_seconds(pid) + children(pid).into_iter().map(tree_cpu_seconds).sum::<f64>()
}
