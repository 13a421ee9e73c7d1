//! What the plugin costs a real ATS: of its handshakes, of its CPU and of its memory.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use openssl::ssl::{Ssl, SslContext, SslMethod, SslOptions, SslSessionCacheMode, SslStream, SslVerifyMode, SslVersion};
use resumed::SystemClock;

use crate::memory::{cpu_seconds, exact_cpu_seconds, resident_bytes, threads};
use crate::proxy;
use crate::report::Report;
use crate::samples::{SESSION_BYTES, Sample};
use testkit::ats::{Ats, AtsSetup, Certificate};
use testkit::authority::{Authority, VALID};
use testkit::broker::Broker;
use testkit::farm::{Farm, FarmSetup, PATIENCE, Proxies, built};

const SESSIONS: u64 = 1_000_000;
const ID_BYTES: u64 = 32;
const REPORTED_AT_ONCE: u64 = 130;
/// How far the reporting proxy may be ahead of the node beside ATS, in sessions.
const AHEAD: u64 = 60_000;
/// The rate that is asked for, and how many sessions come at it.
const INCOMING_PER_SECOND: u64 = 50_000;
const INCOMING: u64 = 500_000;
const IDLE_FOR: Duration = Duration::from_secs(5);
/// Clients that shake hands one after the other, all at once.
const CLIENTS: usize = 4;
/// How often both servers are started anew, and how many pairs of rounds follow each time.
const PROCESSES: usize = 16;
const PAIRS: usize = 4;
/// Of the handshakes that there can be.
const SHARE_OF_MOST: f64 = 0.75;
const ROUND: Duration = Duration::from_millis(500);
const HOOK_STRETCHES: usize = 5;
const HOOK_STRETCH: Duration = Duration::from_secs(4);
/// Of each round, before anything is counted.
const LEAD: Duration = Duration::from_millis(100);

/// One ATS with the plugin beside a node of a farm of three, and one without.
pub fn run(broker: &Broker, report: &mut Report) {
    let mut host = Host::start(broker);
    handshakes(&mut host, broker, report);
    drop(host);
    let mut host = Host::start(broker);
    replica(&host.farm, &host.with, report);
    warm_up(&host.farm, &mut host.with, report);
}

/// A host of a farm of three, with the proxies that are compared.
struct Host {
    // In the order in which they go: the folder of all is the farm's.
    with: Ats,
    without: Ats,
    farm: Farm,
}

impl Host {
    fn start(broker: &Broker) -> Self {
        let mut setup = FarmSetup::new(3, &broker.uri());
        setup.proxies = Proxies::None;
        setup.log = "info".to_owned();
        setup.sessions = "max_bytes = \"1GiB\"".to_owned();
        let farm = Farm::start_in_step(&setup);
        let certificate = certificate(&farm);
        let socket = farm.hosts[0].daemon.home().join("ats.sock");
        let plugin = format!("{} --socket={}\n", built("libresumed_ats.so").display(), socket.display());
        let with = Ats::start(&farm.dir().join("with"), &setup_of(&certificate, &plugin));
        farm.hosts[0].daemon.wait_for_metric("resumed_proxies_connected", |proxies| proxies == 1.0);
        let without = Ats::start(&farm.dir().join("without"), &setup_of(&certificate, ""));
        Self { with, without, farm }
    }

    /// The first core becomes the host's, for ATS and its daemon: clients, broker and other nodes would be on other machines.
    fn keep_apart(&self, broker: &Broker, cores: &Cores) {
        let daemon = |index: usize| self.farm.hosts[index].daemon.pid().as_raw().cast_unsigned();
        [pid(&self.with), pid(&self.without), daemon(0)].iter().for_each(|process| put(*process, &cores.host));
        let broker = broker.pid().expect("it runs");
        [broker, daemon(1), daemon(2)].iter().for_each(|process| put(*process, &cores.elsewhere));
    }

    /// New processes, in either order.
    fn restart_proxies(&mut self, with_first: bool) {
        let Self { with, without, farm } = self;
        for ats in if with_first { [with, without] } else { [without, with] } {
            ats.restart();
        }
        farm.hosts[0].daemon.wait_for_metric("resumed_proxies_connected", |proxies| proxies == 1.0);
    }
}

/// ECDSA P-256, for its handshakes cost least, with its chain: otherwise OpenSSL looks through the system's authorities for one
/// in every handshake.
fn certificate(farm: &Farm) -> Certificate {
    let issued = Authority::new(farm.dir(), "authority").issue("farm.test", &["farm.test"], VALID);
    let read = |file: &Path| fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let pem = [read(&issued.cert_file), read(&farm.dir().join("authority.pem"))].concat();
    Certificate { pem, key: read(&issued.key_file) }
}

fn setup_of(certificate: &Certificate, plugin: &str) -> AtsSetup {
    let mut setup = AtsSetup::new(certificate, format!("{plugin}stats_over_http.so"));
    setup.manager = false;
    // Otherwise statistics are five seconds old.
    setup.records.push("CONFIG proxy.config.raw_stat_sync_interval_ms INT 500".to_owned());
    // A thread for each core that ATS has, see `Host::keep_apart`: more would take the core from each other in their hooks.
    setup.records.push("CONFIG proxy.config.exec_thread.autoconfig INT 0".to_owned());
    setup.records.push("CONFIG proxy.config.exec_thread.limit INT 1".to_owned());
    setup
}

fn pid(ats: &Ats) -> u32 {
    ats.server_pid().as_raw().cast_unsigned()
}

/// A million sessions from another node's proxy, the first of them at the rate that is asked for.
fn replica(farm: &Farm, ats: &Ats, report: &mut Report) {
    let idle = {
        let (start, before) = (Instant::now(), cpu_seconds(pid(ats)));
        thread::sleep(IDLE_FOR);
        (cpu_seconds(pid(ats)) - before) / start.elapsed().as_secs_f64()
    };
    report.add("ats_idle_cpu_core_percent", idle * 100.0);
    let resident = resident_bytes(ats.server_pid());
    let (start, before) = (Instant::now(), cpu_seconds(pid(ats)));
    let mut reporter = Reporter::beside(farm, 1);
    let took = reporter.report_to(INCOMING, Some(INCOMING_PER_SECOND));
    wait_for_replicas(ats, INCOMING);
    let used = cpu_seconds(pid(ats)) - before - idle * start.elapsed().as_secs_f64();
    let each = used / INCOMING as f64;
    report.add("ats_incoming_offered_per_second", INCOMING as f64 / took.as_secs_f64());
    report.add("ats_incoming_cpu_microseconds", each * 1e6);
    report.add("ats_incoming_core_percent", each * INCOMING_PER_SECOND as f64 * 100.0);

    reporter.report_to(SESSIONS, None);
    wait_for_replicas(ats, SESSIONS);
    let content = (SESSIONS * (ID_BYTES + SESSION_BYTES as u64)) as f64;
    report.add("ats_memory_ratio", (resident_bytes(ats.server_pid()) - resident) / content);
}

/// ATS restarts beside a node that has a million sessions.
fn warm_up(farm: &Farm, ats: &mut Ats, report: &mut Report) {
    ats.stop();
    farm.hosts[0].daemon.wait_for_metric("resumed_proxies_connected", |proxies| proxies == 0.0);
    let start = Instant::now();
    ats.launch();
    ats.wait_until_serving();
    wait_for_replicas(ats, SESSIONS);
    report.add("ats_warm_up_seconds", start.elapsed().as_secs_f64());
}

/// A proxy that reports sessions to its node.
struct Reporter<'a> {
    farm: &'a Farm,
    stream: std::os::unix::net::UnixStream,
    sample: Sample,
    clock: SystemClock,
    sent: u64,
}

impl<'a> Reporter<'a> {
    fn beside(farm: &'a Farm, host: usize) -> Self {
        let stream = proxy::connect(&farm.hosts[host].daemon.home().join("ats.sock"), false);
        Self { farm, stream, sample: Sample::make(), clock: SystemClock::start(), sent: 0 }
    }

    /// Goes on until `count` were sent, as fast as the first host's node takes them, or as `per_second` says. Returns how long
    /// that took.
    fn report_to(&mut self, count: u64, per_second: Option<u64>) -> Duration {
        let (start, first) = (Instant::now(), self.sent);
        while self.sent < count {
            let held = || self.farm.hosts[0].daemon.metric("resumed_cache_entries") as u64;
            // Asked once in a while only: what it costs the node, it costs ATS's machine.
            if self.sent % (AHEAD / 2) < REPORTED_AT_ONCE {
                while self.sent > held() + AHEAD {
                    thread::sleep(Duration::from_millis(20));
                }
            }
            if let Some(per_second) = per_second {
                let due = Duration::from_secs_f64((self.sent - first) as f64 / per_second as f64);
                thread::sleep(due.saturating_sub(start.elapsed()));
            }
            let numbers = self.sent..(self.sent + REPORTED_AT_ONCE).min(count);
            self.sent = numbers.end;
            let wall = self.clock.now().wall;
            let message = proxy::report(numbers.map(|number| self.sample.session(number, wall)).collect());
            self.stream.write_all(&message).expect("the daemon reads");
        }
        start.elapsed()
    }
}

fn wait_for_replicas(ats: &Ats, count: u64) {
    let start = Instant::now();
    loop {
        let replicas = statistics(ats.address()).get("plugin.resumed.replicas").copied().unwrap_or(0);
        if replicas >= count {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{replicas} of {count} sessions are in ATS's replica");
        thread::sleep(Duration::from_millis(100));
    }
}

/// Rounds with and without the plugin in turn, short ones, for whatever else the machine does to hit both; and again with other
/// processes, because one and the same program is a few percent faster or slower by where its memory happens to lie.
fn handshakes(host: &mut Host, broker: &Broker, report: &mut Report) {
    let cores = Cores::of_this_process();
    let mut ratios = Vec::new();
    let mut sums = [(0.0, 0.0); 2];
    let mut pace = None;
    for process in 0..PROCESSES {
        if process > 0 {
            host.restart_proxies(process % 2 == 0);
        }
        host.keep_apart(broker, &cores);
        let both = [&host.with, &host.without];
        // The same rate for both: ATS takes more CPU for a handshake when it has less to do, and beside the farm clients have less.
        let most = both.map(|ats| round(ats, &cores, 5 * LEAD, None).0 / (5 * LEAD).as_secs_f64());
        let rate = *pace.get_or_insert(most[0].min(most[1]) * SHARE_OF_MOST);
        let mut rounds = [Vec::new(), Vec::new()];
        for turn in 0..2 * PAIRS {
            // With, without, without, with: neither always comes first.
            let which = usize::from(matches!(turn % 4, 1 | 2));
            let (made, used) = round(both[which], &cores, ROUND, Some(rate));
            rounds[which].push(made / used);
            sums[which] = (sums[which].0 + made, sums[which].1 + used);
        }
        let mut pairs: Vec<f64> = rounds[0].iter().zip(&rounds[1]).map(|(with, without)| with / without).collect();
        pairs.sort_by(f64::total_cmp);
        ratios.push((pairs[0], median(&pairs), pairs[PAIRS - 1]));
    }
    hook(host, &cores, report);
    put(broker.pid().expect("it runs"), &cores.all);
    report.add("ats_handshakes_per_cpu_second", sums[0].0 / sums[0].1);
    report.add("ats_handshakes_without_per_cpu_second", sums[1].0 / sums[1].1);
    let all = (PROCESSES * PAIRS) as f64 * ROUND.as_secs_f64();
    report.add("ats_handshakes_per_second", sums[0].0 / all);
    report.add("ats_handshakes_load_core_percent", sums[0].1 / all * 100.0);
    let mut medians: Vec<f64> = ratios.iter().map(|(_, median, _)| *median).collect();
    medians.sort_by(f64::total_cmp);
    report.add("ats_handshake_ratio", median(&medians));
    report.add("ats_handshake_pooled_ratio", sums[0].0 / sums[0].1 / (sums[1].0 / sums[1].1));
    report.add("ats_handshake_least_of_processes_ratio", medians[0]);
    report.add("ats_handshake_most_of_processes_ratio", medians[PROCESSES - 1]);
    report.add("ats_handshake_least_ratio", ratios.iter().map(|pair| pair.0).fold(f64::INFINITY, f64::min));
    report.add("ats_handshake_most_ratio", ratios.iter().map(|pair| pair.2).fold(0.0, f64::max));
}

/// The middle of a sorted list, or between the two in the middle.
fn median(sorted: &[f64]) -> f64 {
    (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0
}

/// How long the hook takes for a new session while clients make as many handshakes as they can, in stretches. The one in the middle counts: the machine
/// interrupts the hook more often in one than in another.
fn hook(host: &Host, cores: &Cores, report: &mut Report) {
    let ats = &host.with;
    let published = || host.farm.hosts[0].daemon.metric("resumed_sessions_published_total");
    let look = || {
        thread::sleep(HOOK_STRETCH);
        hook_times(ats)
    };
    let before = published();
    let (looks, made) = under_load(ats, cores, None, |made| {
        let looks: Vec<_> = (0..=HOOK_STRETCHES).map(|_| look()).collect();
        (looks, made.load(Ordering::Relaxed))
    });
    let published = published() - before;
    assert!(published >= 0.95 * made as f64, "of {made} sessions {published} were reported");
    let mut stretches = Vec::new();
    for pair in looks.windows(2) {
        let calls: Vec<_> = pair[1].iter().zip(&pair[0]).map(|(now, before)| (now.0, now.1 - before.1)).collect();
        let count = calls.last().map_or(0, |(_, calls)| *calls);
        assert!(count > 0, "no call of the hook was counted");
        let (p50, p99) = (quantile(&calls, 0.5), quantile(&calls, 0.99));
        eprintln!("  {count} calls of the hook: 99 % took at most {p99:.0} nanoseconds, half of them {p50:.0}");
        stretches.push((p99, p50, count as f64));
    }
    stretches.sort_by(|one, other| one.0.total_cmp(&other.0));
    let (p99, p50, _) = stretches[HOOK_STRETCHES / 2];
    report.add("ats_hook_calls", stretches.iter().map(|(.., calls)| calls).sum());
    report.add("ats_hook_p50_nanoseconds", p50);
    report.add("ats_hook_p99_nanoseconds", p99);
    report.add("ats_hook_p99_least_nanoseconds", stretches[0].0);
    report.add("ats_hook_p99_most_nanoseconds", stretches[HOOK_STRETCHES - 1].0);
}

/// Full handshakes, at `per_second` or as many as there can be, and the seconds of CPU that `traffic_server` used for them.
fn round(ats: &Ats, cores: &Cores, lasting: Duration, per_second: Option<f64>) -> (f64, f64) {
    under_load(ats, cores, per_second, |made| {
        let look = || (made.load(Ordering::Relaxed), exact_cpu_seconds(pid(ats)));
        let before = look();
        thread::sleep(lasting);
        let after = look();
        ((after.0 - before.0) as f64, after.1 - before.1)
    })
}

/// Ends the clients when it goes, also by a panic: whoever waits for them would wait for ever.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Has clients shake hands, at `per_second` or as often as they can, while `measure` runs; it is given the count of handshakes.
fn under_load<R>(ats: &Ats, cores: &Cores, per_second: Option<f64>, measure: impl FnOnce(&AtomicU64) -> R) -> R {
    let (over, made) = (AtomicBool::new(false), AtomicU64::new(0));
    let context = client();
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                sched_setaffinity(Pid::from_raw(0), &cores.elsewhere).expect("cores of this process");
                let start = Instant::now();
                let mut due = Duration::ZERO;
                while !over.load(Ordering::Relaxed) {
                    if let Some(per_second) = per_second {
                        thread::sleep(due.saturating_sub(start.elapsed()));
                        due += Duration::from_secs_f64(CLIENTS as f64 / per_second);
                    }
                    let mut stream = connect(&context, ats.address());
                    assert!(!stream.ssl().session_reused(), "a full handshake");
                    made.fetch_add(1, Ordering::Relaxed);
                    // In good order: an abrupt end would have OpenSSL drop the session.
                    let _closed = stream.shutdown();
                    let _end = stream.read_to_end(&mut Vec::new());
                }
            });
        }
        let _over = Over(&over);
        thread::sleep(LEAD);
        measure(&made)
    })
}

/// The cores of this process: all, the first of them, and the others, if there are any.
struct Cores {
    all: CpuSet,
    host: CpuSet,
    elsewhere: CpuSet,
}

impl Cores {
    fn of_this_process() -> Self {
        let all = sched_getaffinity(Pid::from_raw(0)).expect("the cores of this process");
        let mut ours: Vec<usize> = (0..CpuSet::count()).filter(|core| all.is_set(*core).unwrap_or(false)).collect();
        let first = ours.remove(0);
        let host = set_of(&[first]);
        let elsewhere = if ours.is_empty() { host } else { set_of(&ours) };
        Self { all, host, elsewhere }
    }
}

fn set_of(cores: &[usize]) -> CpuSet {
    let mut set = CpuSet::new();
    for core in cores {
        set.set(*core).expect("the number of a core");
    }
    set
}

/// Puts a process, with all its threads and all below it, onto `cores`.
fn put(pid: u32, cores: &CpuSet) {
    for thread in threads(pid) {
        // It may have ended since.
        let _put = sched_setaffinity(Pid::from_raw(thread), cores);
        let children = fs::read_to_string(format!("/proc/{pid}/task/{thread}/children")).unwrap_or_default();
        children.split_whitespace().filter_map(|child| child.parse().ok()).for_each(|child| put(child, cores));
    }
}

/// A client of TLS 1.2 that never resumes and takes no ticket.
fn client() -> SslContext {
    let mut context = SslContext::builder(SslMethod::tls_client()).expect("a context");
    context.set_max_proto_version(Some(SslVersion::TLS1_2)).expect("a version");
    context.set_options(SslOptions::NO_TICKET);
    context.set_verify(SslVerifyMode::NONE);
    context.set_session_cache_mode(SslSessionCacheMode::OFF);
    context.build()
}

fn connect(context: &SslContext, server: SocketAddr) -> SslStream<TcpStream> {
    let tcp = TcpStream::connect(server).expect("ATS takes connections");
    tcp.set_nodelay(true).expect("a TCP socket");
    let mut ssl = Ssl::new(context).expect("TLS");
    ssl.set_hostname("farm.test").expect("a name");
    ssl.connect(tcp).expect("a handshake")
}

/// The plugin's statistics, as ATS shows them to whoever asks.
fn statistics(server: SocketAddr) -> BTreeMap<String, u64> {
    let mut stream = connect(&client(), server);
    stream.write_all(b"GET /_stats HTTP/1.0\r\nHost: farm.test\r\n\r\n").expect("ATS reads");
    let mut answer = Vec::new();
    let _abrupt_end = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    let values = answer.lines().filter_map(|line| line.trim().trim_end_matches(',').split_once(": "));
    let plugins = values.filter(|(name, _)| name.starts_with("\"plugin.resumed."));
    plugins.filter_map(|(name, value)| Some((unquoted(name), unquoted(value).parse().ok()?))).collect()
}

fn unquoted(text: &str) -> String {
    text.trim_matches('"').to_owned()
}

/// How many calls of the hook took at most so many nanoseconds, shortest first.
fn hook_times(ats: &Ats) -> Vec<(f64, u64)> {
    let look = || {
        let mut times: Vec<_> = statistics(ats.address())
            .into_iter()
            .filter_map(|(name, calls)| {
                let bound = name.strip_prefix("plugin.resumed.hook_ns.")?;
                Some((if bound == "inf" { f64::INFINITY } else { bound.parse().ok()? }, calls))
            })
            .collect();
        times.sort_by(|one, other| one.0.total_cmp(&other.0));
        times
    };
    // The counts are set one after the other, once a second: two looks that agree saw them all set.
    let mut last = look();
    loop {
        thread::sleep(Duration::from_millis(50));
        let times = look();
        if times == last {
            return times;
        }
        last = times;
    }
}

/// As Prometheus reckons: within a bucket the calls lie evenly; what is beyond the last bound is shown as that.
fn quantile(calls: &[(f64, u64)], share: f64) -> f64 {
    let rank = calls.last().map_or(0.0, |(_, all)| *all as f64) * share;
    let mut below = (0.0, 0);
    for (bound, calls) in calls {
        if *calls as f64 >= rank && bound.is_finite() {
            let within = (rank - below.1 as f64) / (calls - below.1).max(1) as f64;
            return below.0 + (bound - below.0) * within;
        }
        if bound.is_finite() {
            below = (*bound, *calls);
        }
    }
    below.0
}
