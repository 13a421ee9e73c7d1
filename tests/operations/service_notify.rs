//! What a service manager hears of the daemon, as systemd would.

use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use testkit::ats::free_port;
use testkit::farm::{PATIENCE, built, new_secret, wait_for};
use testkit::watcher::{Folder, Process};

/// A service manager's socket, and a daemon that knows of it.
struct Managed {
    socket: UnixDatagram,
    daemon: Process,
    metrics_port: u16,
    folder: Folder,
}

impl Managed {
    /// Starts `resumed run` with further lines of configuration. `watchdog` is what `WatchdogSec` would be.
    fn start(watchdog: Duration, more: &str) -> Self {
        let folder = Folder::temporary("rn-");
        let socket = UnixDatagram::bind(folder.path().join("notify")).expect("a socket");
        Self::start_beside(folder, socket, watchdog, more)
    }

    fn start_beside(folder: Folder, socket: UnixDatagram, watchdog: Duration, more: &str) -> Self {
        let at = |name: &str| folder.path().join(name);
        let metrics_port = free_port();
        new_secret(&at("farm.secret"));
        let text = format!(
            "{more}\n[secret]\nfiles = [{:?}]\n[keys]\ndirectory = {:?}\nallow_disk = true\n[ats]\nsocket = {:?}\n\
             [control]\nsocket = {:?}\ngroup = \"\"\n[metrics]\nlisten = \"127.0.0.1:{metrics_port}\"\n",
            at("farm.secret"),
            folder.path(),
            at("ats.sock"),
            at("control.sock"),
        );
        fs::write(at("resumed.toml"), text).expect("the configuration");
        let log = fs::File::create(at("log")).expect("a log");
        let mut command = Command::new(built("resumed"));
        command.arg("run").arg("--config").arg(at("resumed.toml"));
        command.env("NOTIFY_SOCKET", at("notify")).env("WATCHDOG_USEC", watchdog.as_micros().to_string());
        command.env_remove("WATCHDOG_PID").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let daemon = Process::spawn(&mut command).expect("resumed runs");
        Self { socket, daemon, metrics_port, folder }
    }

    /// The next message, if one comes within `within`.
    fn next(&self, within: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(within)).expect("a timeout");
        let mut buffer = [0; 4096];
        match self.socket.recv(&mut buffer) {
            Ok(length) => Some(String::from_utf8(buffer[..length].to_vec()).expect("text")),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => None,
            Err(error) => panic!("no message: {error}"),
        }
    }

    /// All messages up to the first that `wanted` takes, that one last.
    fn until(&self, what: &str, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let start = Instant::now();
        let mut heard = Vec::new();
        while start.elapsed() < PATIENCE {
            let Some(message) = self.next(PATIENCE) else { break };
            let found = wanted(&message);
            heard.push(message);
            if found {
                return heard;
            }
        }
        panic!("{what} was not said; heard: {heard:?}; its log:\n{}", self.log());
    }

    fn signal(&self, signal: Signal) {
        kill(self.daemon.pid(), signal).expect("a signal");
    }

    fn health(&self) -> Result<String, String> {
        let told = |error: io::Error| error.to_string();
        let mut stream = TcpStream::connect(("127.0.0.1", self.metrics_port)).map_err(told)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(told)?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").map_err(told)?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map_err(told)?;
        if text.starts_with("HTTP/1.1 200 ") { Ok(text) } else { Err(text) }
    }

    /// Runs a `resumed` command with this daemon's configuration.
    fn command(&self, words: &[&str]) -> Output {
        let mut command = Command::new(built("resumed"));
        command.args(words).arg("--config").arg(self.at("resumed.toml")).output().expect("resumed runs")
    }

    /// `status --json`, once it says so of the last reload.
    fn status_once_reload_is(&self, state: &str) -> serde_json::Value {
        let (status, _) = wait_for("the state of the reload", || {
            let status: serde_json::Value = serde_json::from_slice(&self.command(&["status", "--json"]).stdout)
                .map_err(|error| error.to_string())?;
            if status["nodes"][0]["reload"]["state"] == state { Ok(status) } else { Err(status.to_string()) }
        });
        status
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.at("log")).unwrap_or_default()
    }

    fn ends_well(mut self) {
        let (status, _) = wait_for("the end of the daemon", || match self.daemon.try_wait() {
            Ok(Some(status)) => Ok(status),
            other => Err(format!("{other:?}")),
        });
        assert!(status.success(), "{status}; its log:\n{}", self.log());
    }
}

fn is_ready(message: &str) -> bool {
    message == "READY=1"
}

#[test]
fn it_is_ready_when_it_serves_and_says_how_it_is_until_it_ends() {
    let managed = Managed::start(Duration::from_secs(2), "");
    managed.until("READY=1", is_ready);
    managed.health().expect("a ring, and metrics");
    for socket in ["ats.sock", "control.sock"] {
        UnixStream::connect(managed.at(socket)).unwrap_or_else(|error| panic!("{socket}: {error}"));
    }
    managed.until("that it leads", |message| {
        message.starts_with("STATUS=leader, generation ") && message.ends_with(", 1 member, 1 in step")
    });
    for _ in 0..3 {
        managed.until("that it is alive", |message| message == "WATCHDOG=1");
    }

    managed.signal(Signal::SIGHUP);
    let heard = managed.until("that it reads its secrets again", |message| message.starts_with("RELOADING=1\n"));
    let time = heard.last().and_then(|message| message.strip_prefix("RELOADING=1\nMONOTONIC_USEC="));
    assert!(time.is_some_and(|time| time.parse::<u64>().is_ok()), "{heard:?}");
    managed.until("READY=1 again", is_ready);
    assert!(managed.log().contains("read the farm secrets again"), "{}", managed.log());

    managed.signal(Signal::SIGTERM);
    managed.until("that it ends", |message| message == "STOPPING=1");
    managed.ends_well();
}

#[test]
fn a_reload_that_is_refused_is_said_with_its_reason_until_one_is_taken() {
    let managed = Managed::start(Duration::from_secs(60), "");
    managed.until("READY=1", is_ready);
    managed.until("that it leads", |message| message.starts_with("STATUS=leader, "));
    fs::set_permissions(managed.at("farm.secret"), Permissions::from_mode(0o644)).expect("a mode");
    managed.signal(Signal::SIGHUP);
    let heard = managed.until("READY=1 again", is_ready);
    let position = |begins: &str| heard.iter().position(|message| message.starts_with(begins));
    let (reloads, says) = (position("RELOADING=1\n"), position("STATUS=RELOAD REFUSED, "));
    assert!(reloads.is_some() && reloads < says, "{heard:?}");
    let verdict = says.map_or("", |at| heard[at].as_str());
    assert!(
        verdict.contains("goes on with the farm secrets of before: ") && verdict.contains("mode 0644"),
        "{verdict}"
    );

    fs::set_permissions(managed.at("farm.secret"), Permissions::from_mode(0o600)).expect("a mode");
    managed.signal(Signal::SIGHUP);
    let heard = managed.until("READY=1 again", is_ready);
    assert!(heard.iter().any(|message| message.starts_with("STATUS=leader, ")), "{heard:?}");
    managed.signal(Signal::SIGTERM);
    managed.ends_well();
}

#[test]
fn the_reload_command_exits_1_with_the_reason_after_the_service_manager_has_heard_it() {
    let managed = Managed::start(Duration::from_secs(60), "");
    managed.until("READY=1", is_ready);
    let taken = managed.command(&["reload"]);
    assert!(taken.status.success(), "{taken:?}");
    // All of it was said before the command ended: the service manager takes it for one reload, and that for over.
    let heard: Vec<String> = std::iter::from_fn(|| managed.next(Duration::from_millis(1))).collect();
    let order: Vec<_> =
        heard.iter().filter(|message| is_ready(message) || message.starts_with("RELOADING=1")).collect();
    assert!(order.len() == 2 && is_ready(order[1]), "{heard:?}");

    fs::set_permissions(managed.at("farm.secret"), Permissions::from_mode(0o644)).expect("a mode");
    let refused = managed.command(&["reload"]);
    let why = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{why}");
    assert!(why.contains("farm.secret") && why.contains("mode 0644"), "{why}");
    let heard: Vec<String> = std::iter::from_fn(|| managed.next(Duration::from_millis(1))).collect();
    assert!(heard.iter().any(|message| message.starts_with("STATUS=RELOAD REFUSED, ")), "{heard:?}");
    assert!(heard.iter().any(|message| is_ready(message)), "{heard:?}");

    // It goes on, and `status` tells what became of the reload.
    managed.health().expect("it serves");
    let status = managed.status_once_reload_is("refused");
    let reload = &status["nodes"][0]["reload"];
    assert!(reload["reason"].as_str().is_some_and(|reason| reason.contains("mode 0644")), "{status}");
    assert!(status["warnings"].to_string().contains("refused its farm secrets"), "{status}");

    // Without a file that can be read there is nothing to compare, and nothing is forgotten.
    fs::remove_file(managed.at("farm.secret")).expect("it was there");
    let gone = managed.command(&["reload"]);
    assert_eq!(gone.status.code(), Some(1), "{gone:?}");
    // A configuration that cannot be used is the daemon's to refuse, too: its state says so, and not the command alone.
    let config = fs::read_to_string(managed.at("resumed.toml")).expect("the configuration");
    fs::write(managed.at("resumed.toml"), format!("nonsense = true\n{config}")).expect("the configuration");
    let broken = managed.command(&["reload"]);
    let why = String::from_utf8_lossy(&broken.stderr);
    assert!(broken.status.code() == Some(1) && why.contains("nonsense"), "{broken:?}");
    fs::write(managed.at("resumed.toml"), config).expect("the configuration");
    new_secret(&managed.at("farm.secret"));
    let taken = managed.command(&["reload"]);
    let said = String::from_utf8_lossy(&taken.stdout);
    assert!(taken.status.success(), "{taken:?}");
    let status = managed.status_once_reload_is("taken");
    let id = status["nodes"][0]["secret_ids"][0].as_str().expect("an id");
    assert!(said.contains(id), "{said} {status}");
    assert!(!status["warnings"].to_string().contains("refused"), "{status}");
}

#[test]
fn without_its_broker_it_asks_for_time_until_it_starts_alone() {
    let broker = "[node]\nstart_alone_after = \"2s\"\n[broker]\nuris = [\"amqp://broker.invalid:5672/%2f\"]\n";
    let managed = Managed::start(Duration::from_secs(60), broker);
    let heard = managed.until("READY=1", is_ready);
    let position = |wanted: &str| heard.iter().position(|message| message.starts_with(wanted));
    assert_eq!(position("STATUS=no broker: no ticket key yet"), Some(0), "{heard:?}");
    assert!(position("EXTEND_TIMEOUT_USEC=30000000").is_some(), "{heard:?}");
    managed.health().expect("a ring of its own");
    managed.until("its own key", |message| message.starts_with("STATUS=no broker: generation "));
    managed.signal(Signal::SIGTERM);
    managed.until("that it ends", |message| message == "STOPPING=1");
    managed.ends_well();
}

#[test]
fn one_that_is_frozen_is_silent() {
    let managed = Managed::start(Duration::from_secs(1), "");
    managed.until("READY=1", is_ready);
    managed.until("that it is alive", |message| message == "WATCHDOG=1");
    managed.signal(Signal::SIGSTOP);
    // What it said before it froze.
    while managed.next(Duration::from_millis(100)).is_some() {}
    assert_eq!(managed.next(Duration::from_secs(3)), None, "three times the watchdog's time");
    managed.signal(Signal::SIGCONT);
    managed.until("that it is alive", |message| message == "WATCHDOG=1");
}

#[test]
fn a_service_manager_that_takes_no_message_holds_nothing_up() {
    let folder = Folder::temporary("rn-");
    let socket = UnixDatagram::bind(folder.path().join("notify")).expect("a socket");
    let filler = UnixDatagram::unbound().expect("a socket");
    filler.connect(folder.path().join("notify")).expect("the socket");
    filler.set_nonblocking(true).expect("a setting");
    while filler.send(b"STATUS=full").is_ok() {}

    let managed = Managed::start_beside(folder, socket, Duration::from_secs(1), "");
    wait_for("a healthy node", || managed.health());
    managed.signal(Signal::SIGHUP);
    wait_for("the secrets read again", || match managed.log() {
        log if log.contains("read the farm secrets again") => Ok(()),
        log => Err(log),
    });
    managed.signal(Signal::SIGTERM);
    managed.ends_well();
}

#[test]
fn a_service_manager_that_is_gone_is_named_in_the_log_once_and_told_everything_when_it_is_back() {
    let folder = Folder::temporary("rn-");
    let socket = UnixDatagram::bind(folder.path().join("elsewhere")).expect("a socket");
    let mut managed = Managed::start_beside(folder, socket, Duration::from_secs(1), "");
    wait_for("a healthy node", || managed.health());
    managed.signal(Signal::SIGHUP);
    wait_for("the secrets read again", || match managed.log() {
        log if log.contains("read the farm secrets again") => Ok(()),
        log => Err(log),
    });
    assert_eq!(managed.log().matches("the service manager is not told").count(), 1, "{}", managed.log());
    managed.socket = UnixDatagram::bind(managed.at("notify")).expect("a socket");
    managed.until("READY=1", is_ready);
    managed.until("that it leads", |message| message.starts_with("STATUS=leader, "));
    managed.signal(Signal::SIGTERM);
    managed.ends_well();
}
