//! What a process without any rights can have the daemon do by asking as fast as it can: connect to the plugin's socket, or
//! ask for metrics or for the farm's state. The daemon has one thread. Keys and sessions must find it free, and so must
//! Prometheus.
//!
//! Times are compared with those without a flood, less the time for which the daemon or the test was ready to run and had no
//! processor (proc(5), `schedstat`): what is left is how long the daemon itself makes a proxy wait, on a busy machine too. The best
//! of three rounds counts; what is shown here goes wrong by far in each.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use prost::Message;
use resumed::internals::proto::local::{
    ControlRequest, FromProxy, Hello, RotateCommand, ToProxy, control_request, from_proxy, to_proxy,
};
use testkit::farm::{Daemon, Farm, FarmSetup, PATIENCE, Proxies, wait_for};
use testkit::watcher::Process;

/// For how long a flood of strangers is watched.
const WATCHED: Duration = Duration::from_secs(5);
/// What the daemon may spend on a flood, as a part of a core. A build without optimisation takes several times as long.
const SHARE: f64 = if cfg!(debug_assertions) { 0.2 } else { 0.1 };
/// What it may spend on requests that come faster than it answers: a hundred answers a second, and reading what it does not
/// answer.
const ANSWERING: f64 = if cfg!(debug_assertions) { 0.5 } else { 0.25 };
/// A welcome that a proxy does not notice having waited for.
const SOON: Duration = Duration::from_millis(if cfg!(debug_assertions) { 100 } else { 5 });
/// For how long a plugin may wait for its welcome, however many strangers stand before it in the queue.
const WELCOME_WITHIN: Duration = Duration::from_secs(1);
/// How many welcomes make a round, and how long it goes on at most.
const WELCOMES: usize = 200;
const ROUND: Duration = Duration::from_secs(10);
const ROUNDS: usize = 3;

/// One flood at a time, or each measures the other.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The user that the proxy runs as where the test plays one that has no rights of its own, and the one that strangers are.
/// Every Debian has both.
const PROXY_USER: &str = "www-data";
const STRANGER: &str = "nobody";

/// A node by itself, whose socket other users can find. Proxies may run as [`PROXY_USER`].
fn node() -> Farm {
    let keys = "settle = \"200ms\"".to_owned();
    let mut farm = Farm::lay_out(&FarmSetup { keys, proxies: Proxies::None, ..FarmSetup::new(1, "") });
    let config = farm.hosts[0].daemon.config();
    let text = std::fs::read_to_string(&config).expect("a configuration");
    let users = format!("[ats]\nusers = [\"{PROXY_USER}\"]\n");
    std::fs::write(&config, text.replacen("[ats]\n", &users, 1)).expect("a configuration");
    farm.launch();
    farm.wait_in_step();
    for folder in [farm.dir(), farm.hosts[0].daemon.home()] {
        std::fs::set_permissions(folder, PermissionsExt::from_mode(0o755)).expect("permissions");
    }
    farm
}

/// Builds `flood.c` into `folder`.
fn flood_program(folder: &Path) -> PathBuf {
    let program = folder.join("flood");
    let source = testkit::tree().join("tests/farm/flood.c");
    let status = Command::new("cc").args(["-Wall", "-Werror", "-O1", "-o"]).arg(&program).arg(source).status();
    assert!(status.expect("a C compiler, which Rust needs as well").success());
    program
}

/// Starts a flood and returns once it is under way. It ends when dropped.
fn flood(program: &Path, words: &[&str]) -> Process {
    let mut process = Process::spawn(Command::new(program).args(words).stdout(Stdio::piped())).expect("the flood");
    let mut line = String::new();
    BufReader::new(process.stdout.as_mut().expect("piped")).read_line(&mut line).expect("a line");
    assert_eq!(line, "under way\n", "flood {words:?}");
    process
}

/// For how long a process has had a processor, and for how long it has been ready and had none.
fn scheduled(process: &str) -> (Duration, Duration) {
    let stat = std::fs::read_to_string(format!("/proc/{process}/schedstat")).expect("the process runs");
    let mut fields = stat.split_whitespace().map(|nanos| Duration::from_nanos(nanos.parse().expect("a number")));
    let mut next = || fields.next().expect("a field, see proc(5)");
    (next(), next())
}

/// Time on a processor since the daemon's start.
fn processor_time(daemon: &Daemon) -> Duration {
    scheduled(&daemon.pid().to_string()).0
}

/// How long `act` takes, less the time for which the daemon or this thread waited for a processor.
fn timed(daemon: &Daemon, act: impl FnOnce()) -> Duration {
    timed_with(&[daemon.pid()], act)
}

/// How long `act` takes, less the time for which one of `processes` or this thread waited for a processor.
fn timed_with(processes: &[Pid], act: impl FnOnce()) -> Duration {
    let others = || processes.iter().map(|process| scheduled(&process.to_string()).1).sum::<Duration>();
    let waited = || others() + scheduled("thread-self").1;
    let (begun, before) = (Instant::now(), waited());
    act();
    begun.elapsed().saturating_sub(waited() - before)
}

/// What a plugin says first, behind its length.
fn hello() -> Vec<u8> {
    let hello = Hello { kind: "ats".to_owned(), process_id: 1, sessions: true, ..Hello::default() };
    let hello = FromProxy { kind: Some(from_proxy::Kind::Hello(hello)) }.encode_to_vec();
    let length = u32::try_from(hello.len()).expect("a length").to_be_bytes();
    [&length[..], &hello].concat()
}

/// The daemon's next message.
fn hear(stream: &mut impl Read) -> Result<to_proxy::Kind, String> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).map_err(|error| format!("no message: {error}"))?;
    let mut message = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut message).map_err(|error| format!("half a message: {error}"))?;
    ToProxy::decode(&message[..]).ok().and_then(|message| message.kind).ok_or_else(|| "no message".to_owned())
}

fn welcome(answer: to_proxy::Kind) -> Result<(), String> {
    match answer {
        to_proxy::Kind::Welcome(_) => Ok(()),
        other => Err(format!("{other:?} in place of a welcome")),
    }
}

/// A proxy that connects again and again as [`PROXY_USER`], a process of its own: it is let in for its user's id alone.
struct NamedProxy(Process);

impl NamedProxy {
    /// One that was welcomed once.
    fn let_in(program: &Path, socket: &Path) -> Result<Self, String> {
        let mut command = Command::new(program);
        command.arg("proxy").arg(socket).arg(uid_of(PROXY_USER)).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut proxy = Self(Process::spawn(&mut command).expect("the proxy"));
        proxy.welcomed().map(|()| proxy)
    }

    /// Connects and waits for the welcome.
    fn welcomed(&mut self) -> Result<(), String> {
        let input = self.0.stdin.as_mut().expect("piped");
        input.write_all(&hello()).map_err(|error| format!("the proxy is gone: {error}"))?;
        welcome(hear(self.0.stdout.as_mut().expect("piped"))?)
    }
}

fn uid_of(user: &str) -> String {
    nix::unistd::User::from_name(user).expect("users").unwrap_or_else(|| panic!("no user {user}")).uid.to_string()
}

/// A plugin played by the test, which is allowed in: the daemon's own user runs it.
struct Plugin(UnixStream);

impl Plugin {
    /// Connects and waits for the welcome.
    fn welcomed(socket: &Path) -> Result<Self, String> {
        let stream = UnixStream::connect(socket).map_err(|error| format!("connecting: {error}"))?;
        stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
        let mut plugin = Self(stream);
        // What the daemon thinks of it shows in the answer.
        let _refused = plugin.0.write_all(&hello());
        welcome(plugin.hear()?)?;
        Ok(plugin)
    }

    fn hear(&mut self) -> Result<to_proxy::Kind, String> {
        hear(&mut self.0)
    }

    /// Waits for a timetable of more than `count` keys.
    fn hears_more_keys(&mut self, count: usize) {
        loop {
            match self.hear().expect("a timetable") {
                to_proxy::Kind::Timetable(timetable) if timetable.keys.len() > count => return,
                _ => {}
            }
        }
    }
}

/// The time below which ninety-nine of a hundred welcomes stay.
fn slow_welcome(daemon: &Daemon) -> Duration {
    let socket = daemon.home().join("ats.sock");
    let begun = Instant::now();
    let mut times = Vec::new();
    while times.len() < WELCOMES && begun.elapsed() < ROUND {
        times.push(timed(daemon, || drop(Plugin::welcomed(&socket).expect("a welcome"))));
    }
    times.sort_unstable();
    times[times.len() - times.len() / 100 - 1]
}

/// How long it takes from an operator's word until a proxy has the new key.
fn rotation(daemon: &Daemon) -> Duration {
    let mut plugin = Plugin::welcomed(&daemon.home().join("ats.sock")).expect("a welcome");
    let to_proxy::Kind::Timetable(timetable) = plugin.hear().expect("a timetable") else { panic!("no timetable") };
    let mut operator = UnixStream::connect(daemon.home().join("control.sock")).expect("the control socket");
    let rotate = control_request::Kind::Rotate(RotateCommand { wait_ms: 20_000 });
    let rotate = ControlRequest { kind: Some(rotate) }.encode_to_vec();
    let length = u32::try_from(rotate.len()).expect("a length").to_be_bytes();
    timed(daemon, || {
        operator.write_all(&[&length[..], &rotate].concat()).expect("the daemon reads");
        plugin.hears_more_keys(timetable.keys.len());
    })
}

#[test]
fn a_stream_of_strangers_keeps_no_proxy_out_and_costs_the_daemon_little() {
    let _alone = alone();
    assert!(nix::unistd::geteuid().is_root(), "only root can play another user");
    let farm = node();
    let daemon = &farm.hosts[0].daemon;
    let socket = daemon.home().join("ats.sock");
    let stranger = uid_of(STRANGER);
    let program = flood_program(farm.dir());
    // The ids of `ats.users` are looked up as the daemon starts, and it does not wait for them.
    let (mut proxy, _) = wait_for("the proxy's user to be let in", || NamedProxy::let_in(&program, &socket));
    let words = ["strangers", socket.to_str().expect("UTF-8"), &stranger];
    let strangers = [flood(&program, &words), flood(&program, &words)];

    let (begun, spent) = (Instant::now(), processor_time(daemon));
    let mut worst = Duration::ZERO;
    let mut welcomes = 0;
    while begun.elapsed() < WATCHED {
        worst = worst.max(timed_with(&[daemon.pid(), proxy.0.pid()], || {
            proxy.welcomed().unwrap_or_else(|error| panic!("not welcomed after {welcomes} times: {error}"));
        }));
        welcomes += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    let share = (processor_time(daemon) - spent).as_secs_f64() / begun.elapsed().as_secs_f64();
    drop(strangers);
    let refused = daemon.metric("resumed_proxies_refused_total{reason=\"peer\"}");
    println!("{welcomes} welcomes, the slowest after {worst:?}; {refused} refused; {share:.3} of a core");
    assert!(worst < WELCOME_WITHIN, "a welcome took {worst:?}");
    assert!(share < SHARE, "the daemon used {share:.3} of a core");
    assert!(refused >= 100.0, "only {refused} were refused");
    assert_eq!(daemon.metric("resumed_proxies_refused_total{reason=\"too_many\"}"), 0.0);
    let log = daemon.log();
    assert_eq!(log.matches(&format!("user {stranger} is neither root")).count(), 1, "{log}");
}

/// The best of some rounds is as wanted, or it is shown what all of them were.
fn in_one_round_of_three(what: &str, mut round: impl FnMut() -> (bool, String)) {
    let mut seen = Vec::new();
    for _ in 0..ROUNDS {
        let (as_wanted, text) = round();
        println!("{what}: {text}");
        if as_wanted {
            return;
        }
        seen.push(text);
    }
    panic!("{what}, in none of {ROUNDS} rounds: {seen:#?}");
}

/// While a flood of `mode` comes over so many connections: welcomes and a rotation are as quick as before, a scrape is
/// answered, and most of a core is free.
fn holds_up_nothing(mode: &str, connections: &str) {
    let _alone = alone();
    let farm = node();
    let daemon = &farm.hosts[0].daemon;
    let program = flood_program(farm.dir());
    let port = daemon.metrics_address().rsplit_once(':').expect("a port").1.to_owned();
    in_one_round_of_three("welcomes and a rotation under a flood, as without", || {
        let (idle, idle_rotation) = (slow_welcome(daemon), rotation(daemon));
        let flood = flood(&program, &[mode, &port, connections]);
        let (begun, spent) = (Instant::now(), processor_time(daemon));
        let (flooded, flooded_rotation) = (slow_welcome(daemon), rotation(daemon));
        let (_, scrape) = wait_for("a scrape during the flood", || {
            let text = daemon.metrics()?;
            if text.contains("resumed_build_info") { Ok(()) } else { Err(format!("no metrics: {text}")) }
        });
        // A share of less than that says little: the connections come all at once.
        std::thread::sleep(WATCHED.saturating_sub(begun.elapsed()));
        let share = (processor_time(daemon) - spent).as_secs_f64() / begun.elapsed().as_secs_f64();
        drop(flood);
        let as_wanted = flooded < (2 * idle).max(SOON)
            && flooded_rotation < idle_rotation + Duration::from_millis(200)
            && share < ANSWERING;
        let text = format!(
            "welcome (p99) {idle:?}, flooded {flooded:?}; rotation {idle_rotation:?}, flooded {flooded_rotation:?}; \
             a scrape {scrape:?}; {share:.3} of a core"
        );
        (as_wanted, text)
    });
    // Others are served as soon as it is over.
    assert!(daemon.metrics().expect("metrics").contains("resumed_build_info"));
}

#[test]
fn requests_for_metrics_without_end_hold_up_neither_a_proxy_nor_a_rotation() {
    holds_up_nothing("metrics", "64");
}

#[test]
fn requests_for_the_farms_state_without_end_hold_up_neither_a_proxy_nor_a_rotation() {
    holds_up_nothing("farm", "64");
}

#[test]
fn requests_for_metrics_that_never_end_hold_up_neither_a_proxy_nor_a_rotation() {
    holds_up_nothing("bytes", "64");
}
