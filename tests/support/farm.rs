//! A farm of real daemons beside real proxies. Everything lies in one temporary folder and ends with it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use resumed::internals::probe::{self, Client, Mode, Target};
use resumed::status::{FarmStatus, SecretStep};

use crate::ats::{Ats, AtsSetup, Certificate, free_port};
use crate::namespaces::{at, command_at};
use crate::release::Release;
use crate::watcher::{Folder, Process};

/// How long a condition may take to become true before a test fails. Generous: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A program or library of this project, as this build made it, beside the test that runs.
pub fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    let folders = test.ancestors().skip(1).take(2);
    let mut found = folders.map(|folder| folder.join(name)).filter(|path| path.exists());
    found.next().unwrap_or_else(|| {
        panic!("{name} is not built beside {}: run `cargo build` with the same profile", test.display())
    })
}

/// Waits until `look` is content, and says what it saw last if that takes too long. Returns how long it took.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> (T, Duration) {
    let start = Instant::now();
    loop {
        match look() {
            Ok(found) => return (found, start.elapsed()),
            Err(seen) if start.elapsed() > PATIENCE => panic!("{what} did not come true; last seen: {seen}"),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// What a farm is to be like.
#[derive(Clone)]
pub struct FarmSetup {
    /// One pod name for each host.
    pub pods: Vec<String>,
    /// What the hosts' names begin with; a number follows.
    pub host_names: String,
    /// The farm's name; farms of different names share a broker without meeting.
    pub name: String,
    /// The broker's URIs, comma-separated.
    pub uris: String,
    /// Further lines under `[keys]`.
    pub keys: String,
    /// Further lines under `[node]`.
    pub node: String,
    /// Further lines under `[broker]`.
    pub broker: String,
    /// Further lines under `[sessions]`.
    pub sessions: String,
    /// Whether a proxy runs beside each daemon, and with which kind of resumption for TLS 1.2.
    pub proxies: Proxies,
    /// Further arguments of the plugin.
    pub plugin: String,
    /// Under `traffic_manager`, so that `traffic_ctl` works.
    pub manager: bool,
    /// Where its folder is made, as `farm`. Otherwise it is a temporary one.
    pub within: Option<PathBuf>,
    /// Each daemon begins with another of `uris`, and goes on with those that follow it.
    pub uris_in_turn: bool,
    /// The processes that keep the hosts' networks, one for each host; empty: all daemons run here.
    pub networks: Vec<Pid>,
    /// Where each host makes a folder for its ring. Otherwise that lies in the host's own.
    pub rings: Option<PathBuf>,
    /// What the daemons log.
    pub log: String,
    /// The releases of the hosts' daemons; those of hosts that it does not reach to are of this release.
    pub daemons: Vec<Release>,
    /// The same of the proxies' plugins.
    pub plugins: Vec<Release>,
}

/// The proxies of a farm.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Proxies {
    /// Daemons alone.
    None,
    /// ATS with tickets. Clients that ask for none resume by session ID.
    Tickets,
    /// ATS without tickets: sessions resume by ID.
    SessionIds,
}

impl FarmSetup {
    /// `hosts` hosts of one pod on the broker at `uri`, under a name of their own.
    pub fn new(hosts: usize, uri: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self {
            pods: vec!["pod".to_owned(); hosts],
            host_names: "host".to_owned(),
            name: format!("t{}-{number}", std::process::id()),
            uris: uri.to_owned(),
            keys: String::new(),
            node: String::new(),
            broker: String::new(),
            sessions: String::new(),
            proxies: Proxies::Tickets,
            plugin: String::new(),
            manager: false,
            within: None,
            uris_in_turn: false,
            networks: Vec::new(),
            rings: None,
            log: "info,resumed=debug".to_owned(),
            daemons: Vec::new(),
            plugins: Vec::new(),
        }
    }
}

/// A farm. Its processes end when it is dropped.
pub struct Farm {
    /// The hosts, `host0` first.
    pub hosts: Vec<Host>,
    /// The farm's secret, for tests that forge messages.
    pub secret: PathBuf,
    setup: FarmSetup,
    dir: Folder,
}

/// One host: a daemon and, if the farm has any, a proxy.
pub struct Host {
    /// The node's name.
    pub name: String,
    /// The daemon.
    pub daemon: Daemon,
    ats: Option<Ats>,
}

impl Host {
    /// The proxy.
    pub fn ats(&self) -> &Ats {
        self.ats.as_ref().expect("this farm has proxies")
    }

    /// The proxy, to stop or restart it.
    pub fn ats_mut(&mut self) -> &mut Ats {
        self.ats.as_mut().expect("this farm has proxies")
    }

    /// The proxy as a probe sees it.
    pub fn target(&self) -> Target {
        Target::from(self.ats().address())
    }
}

impl Farm {
    /// Starts every daemon and every proxy at the same moment, and waits until the proxies serve.
    pub fn start(setup: &FarmSetup) -> Self {
        let mut farm = Self::lay_out(setup);
        farm.launch();
        farm
    }

    /// Starts every daemon and every proxy of a farm that was laid out, and waits until the proxies serve.
    pub fn launch(&mut self) {
        Self::launch_hosts(&mut self.hosts);
    }

    /// Starts the daemon and the proxy of each of `hosts`, and waits until the proxies serve.
    pub fn launch_hosts(hosts: &mut [Host]) {
        for host in &mut *hosts {
            host.daemon.launch();
            if let Some(ats) = &mut host.ats {
                ats.launch();
            }
        }
        for host in hosts {
            if let Some(ats) = &mut host.ats {
                ats.wait_until_serving();
            }
        }
    }

    /// Like [`Farm::start`], and waits until every node is in step with the leader.
    pub fn start_in_step(setup: &FarmSetup) -> Self {
        let farm = Self::start(setup);
        farm.wait_in_step();
        if setup.proxies != Proxies::None {
            for host in &farm.hosts {
                host.daemon.wait_for_metric("resumed_proxies_connected", |value| value == 1.0);
            }
        }
        farm
    }

    /// Writes the configurations; nothing runs yet.
    pub fn lay_out(setup: &FarmSetup) -> Self {
        // Short: Unix socket paths have at most 107 bytes.
        let dir = match &setup.within {
            Some(parent) => Folder::within(parent, "farm"),
            None => Folder::temporary("rf-"),
        };
        let secret = dir.path().join("farm.secret");
        new_secret(&secret);
        let certificate = Certificate::self_signed("farm.test");
        let hosts = (0..setup.pods.len()).map(|index| host(setup, index, dir.path(), &secret, &certificate)).collect();
        Self { hosts, secret, setup: setup.clone(), dir }
    }

    /// The farm's name.
    pub fn name(&self) -> &str {
        &self.setup.name
    }

    /// Every host as a probe sees it.
    pub fn targets(&self) -> Vec<Target> {
        self.hosts.iter().map(Host::target).collect()
    }

    /// Waits until one node leads and all are in step with it, as the first host's `status` sees it.
    pub fn wait_in_step(&self) -> FarmStatus {
        self.wait_in_step_at(0)
    }

    /// The same, asked at host `index`.
    pub fn wait_in_step_at(&self, index: usize) -> FarmStatus {
        let expected = self.hosts.iter().filter(|host| host.daemon.is_running()).count();
        let (status, _) = wait_for("the farm in step", || {
            let status = self.hosts[index].daemon.try_status()?;
            let in_step = status.nodes.iter().filter(|node| node.in_step).count();
            if status.leader.is_some() && in_step >= expected && !status.ring.keys.is_empty() {
                Ok(status)
            } else {
                Err(format!("{status:?}"))
            }
        });
        status
    }

    /// The index of the host that leads.
    pub fn leader(&self) -> usize {
        let (leader, _) = wait_for("one leader", || {
            let leaders: Vec<usize> = (0..self.hosts.len())
                .filter(|index| self.hosts[*index].daemon.try_metric("resumed_leader") == Some(1.0))
                .collect();
            match leaders[..] {
                [leader] => Ok(leader),
                _ => Err(format!("leaders: {leaders:?}")),
            }
        });
        leader
    }

    /// All hosts but `index`.
    pub fn others(&self, index: usize) -> Vec<usize> {
        (0..self.hosts.len()).filter(|other| *other != index).collect()
    }

    /// Waits until one of `candidates` leads, and returns it with how long that took.
    pub fn another_leads(&self, candidates: &[usize]) -> (usize, Duration) {
        wait_for("another leader", || {
            let leads = |index: &&usize| self.hosts[**index].daemon.try_metric("resumed_leader") == Some(1.0);
            candidates.iter().find(leads).copied().ok_or_else(|| "none of them leads".to_owned())
        })
    }

    /// Probes every pair of hosts in `mode` and panics with the table if any cell failed.
    pub fn assert_all_resume(&self, mode: Mode) {
        let client = Client::new(probe::Options::default()).expect("a client");
        let matrix = probe::matrix(&client, &self.targets(), mode, 1);
        assert!(matrix.passed(), "not every host resumes every other's sessions: {:#?}", matrix.failures());
    }

    /// Puts `files`, which lie where the farm lies, into the configuration of `host` as its secrets, and sends it a SIGHUP.
    pub fn set_secrets(&self, host: usize, files: &[&str]) {
        let daemon = &self.hosts[host].daemon;
        let text = fs::read_to_string(daemon.config()).expect("the configuration");
        let paths: Vec<String> = files.iter().map(|file| format!("\"{}\"", self.dir().join(file).display())).collect();
        let line = format!("files = [{}]", paths.join(", "));
        let (before, after) = text.split_once("[secret]\n").expect("a section");
        let rest = after.split_once('\n').map_or("", |(_, rest)| rest);
        fs::write(daemon.config(), format!("{before}[secret]\n{line}\n{rest}")).expect("the configuration");
        daemon.signal(Signal::SIGHUP);
    }

    /// Waits until the first host's `status` says of the secrets what is wanted.
    pub fn wait_for_secrets(&self, step: SecretStep, safe: bool, waiting_for: &[&str]) -> FarmStatus {
        let (status, _) = wait_for("the secrets' state", || {
            let status = self.hosts[0].daemon.try_status()?;
            let secrets = &status.secrets;
            let as_wanted = secrets.next_step == step && secrets.safe == safe && secrets.waiting_for == waiting_for;
            if as_wanted { Ok(status) } else { Err(format!("{secrets:?}")) }
        });
        status
    }

    /// Where the farm lies.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

/// `resumed secret new`.
pub fn new_secret(file: &Path) {
    let made = Command::new(built("resumed")).args(["secret", "new"]).arg(file).output().expect("resumed runs");
    assert!(made.status.success(), "secret new: {made:?}");
}

/// What the unit sets for the daemon.
fn unit_environment() -> impl Iterator<Item = (&'static str, &'static str)> {
    let unit = include_str!("../../etc/systemd/resumed.service");
    let lines = unit.lines().filter_map(|line| line.strip_prefix("Environment="));
    lines.flat_map(str::split_whitespace).filter_map(|setting| setting.split_once('='))
}

fn host(setup: &FarmSetup, index: usize, dir: &Path, secret: &Path, certificate: &Certificate) -> Host {
    let name = format!("{}{index}", setup.host_names);
    let home = dir.join(&name);
    fs::create_dir(&home).expect("a fresh folder");
    let daemon = Daemon::lay_out(setup, index, &name, &home, secret);
    let ats = (setup.proxies != Proxies::None).then(|| {
        let plugin = setup.plugins.get(index).copied().unwrap_or_default().plugin();
        let socket = home.join("ats.sock");
        let line = format!("{} --socket={} {}", plugin.display(), socket.display(), setup.plugin);
        let mut ats = AtsSetup::new(certificate, line);
        ats.tickets = setup.proxies == Proxies::Tickets;
        ats.manager = setup.manager;
        Ats::lay_out(&home.join("ats"), &ats)
    });
    Host { name, daemon, ats }
}

/// A `resumed run` of its own.
pub struct Daemon {
    name: String,
    home: PathBuf,
    metrics_port: u16,
    network: Option<Pid>,
    log: String,
    release: Release,
    openssl: Option<PathBuf>,
    child: Option<Process>,
}

impl Daemon {
    fn lay_out(setup: &FarmSetup, index: usize, name: &str, home: &Path, secret: &Path) -> Self {
        let metrics_port = free_port();
        let (folder, pod) = (home.display(), &setup.pods[index]);
        let ring = setup.rings.as_ref().map_or_else(|| home.to_owned(), |rings| rings.join(name));
        fs::create_dir_all(&ring).expect("a folder for the ring");
        let ring = ring.display();
        let mut text = format!(
            "[node]\nname = \"{name}\"\nfarm = \"{}\"\npod = \"{pod}\"\n{}\n[keys]\ndirectory = \"{ring}\"\n\
             allow_disk = true\n{}\n[ats]\nsocket = \"{folder}/ats.sock\"\n[control]\nsocket = \"{folder}/control.sock\"\n\
             [metrics]\nlisten = \"127.0.0.1:{metrics_port}\"\n[sessions]\n{}\n",
            setup.name, setup.node, setup.keys, setup.sessions,
        );
        if !setup.uris.is_empty() {
            let mut uris: Vec<String> = setup.uris.split(',').map(|uri| format!("\"{uri}\"")).collect();
            if setup.uris_in_turn {
                let first = index % uris.len();
                uris.rotate_left(first);
            }
            write!(
                text,
                "[broker]\nuris = [{}]\n{}\n[secret]\nfiles = [\"{}\"]\n",
                uris.join(", "),
                setup.broker,
                secret.display()
            )
            .expect("text grows");
        }
        fs::write(home.join("resumed.toml"), text).expect("the configuration");
        Self {
            name: name.to_owned(),
            home: home.to_owned(),
            metrics_port,
            network: setup.networks.get(index).copied(),
            log: setup.log.clone(),
            release: setup.daemons.get(index).copied().unwrap_or_default(),
            openssl: None,
            child: None,
        }
    }

    /// Starts it; its log goes to `daemon.log` in its folder.
    pub fn launch(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = fs::File::options().create(true).append(true).open(self.log_file()).expect("daemon.log");
        let mut command = command_at(self.network, self.release.program());
        command
            .args(["run", "--log", &self.log, "--config"])
            .arg(self.config())
            .envs(unit_environment())
            .envs(self.openssl.iter().map(|conf| ("OPENSSL_CONF", conf)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log twice"))
            .stderr(log);
        self.child = Some(Process::spawn(&mut command).expect("resumed runs"));
    }

    /// From its next launch on its OpenSSL is as `conf` says.
    pub fn use_openssl(&mut self, conf: &Path) {
        self.openssl = Some(conf.to_owned());
    }

    /// Puts another release into its place, which the next launch starts.
    pub fn install(&mut self, release: Release) {
        self.release = release;
    }

    /// The release of the daemon that was started last, or will be started first.
    pub fn release(&self) -> Release {
        self.release
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.home.join("resumed.toml")
    }

    /// Its folder.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Whether it was started and not stopped.
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        self.child.as_ref().unwrap_or_else(|| panic!("{} does not run", self.name)).pid()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("the daemon is our child");
    }

    /// SIGKILL, as a crash.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.wait();
    }

    /// SIGTERM, and how it ended after how long.
    pub fn stop(&mut self) -> (ExitStatus, Duration) {
        let start = Instant::now();
        self.signal(Signal::SIGTERM);
        (self.wait(), start.elapsed())
    }

    fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("it runs");
        let (status, _) = wait_for("the end of a daemon", || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            other => Err(format!("{other:?}")),
        });
        status
    }

    /// Runs a `resumed` command of this release, whichever the daemon is of, with the daemon's configuration.
    pub fn command(&self, words: &[&str]) -> Output {
        self.command_of(Release::Current, words)
    }

    /// The same with a command of `release`.
    pub fn command_of(&self, release: Release, words: &[&str]) -> Output {
        Command::new(release.program()).args(words).arg("--config").arg(self.config()).output().expect("resumed runs")
    }

    /// `status --json`.
    pub fn try_status(&self) -> Result<FarmStatus, String> {
        let output = self.command(&["status", "--json"]);
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
    }

    /// The generations of the keys that it holds.
    pub fn generations(&self) -> BTreeSet<u64> {
        let status = self.try_status().expect("a status");
        status.ring.keys.iter().map(|key| key.generation).collect()
    }

    /// Where its metrics are, without a path.
    pub fn metrics_address(&self) -> String {
        format!("127.0.0.1:{}", self.metrics_port)
    }

    /// Where `/metrics` is.
    pub fn metrics_url(&self) -> String {
        format!("http://127.0.0.1:{}/metrics", self.metrics_port)
    }

    /// Where the page for people is.
    pub fn page_url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.metrics_port)
    }

    /// The text of `/metrics`.
    pub fn metrics(&self) -> Result<String, String> {
        self.get("/metrics")
    }

    /// `GET path` on the metrics listener, with the head.
    pub fn get(&self, path: &str) -> Result<String, String> {
        let connect = || TcpStream::connect(("127.0.0.1", self.metrics_port));
        let mut stream = at(self.network, connect).map_err(|error| error.to_string())?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(|error| error.to_string())?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .map_err(|error| error.to_string())?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map_err(|error| error.to_string())?;
        Ok(text)
    }

    /// The sum over all labels of a metric; none if it is not there.
    pub fn try_metric(&self, name: &str) -> Option<f64> {
        let text = self.metrics().ok()?;
        let mut found = None;
        for line in text.lines() {
            let Some(rest) = line.strip_prefix(name) else { continue };
            if rest.starts_with([' ', '{']) {
                let value: f64 = rest.rsplit(' ').next()?.parse().ok()?;
                found = Some(found.unwrap_or(0.0) + value);
            }
        }
        found
    }

    /// One metric with exactly these labels, such as `resumed_messages_refused_total{reason="replay"}`.
    pub fn metric(&self, series: &str) -> f64 {
        let text = self.metrics().unwrap_or_else(|error| panic!("metrics of {}: {error}", self.name));
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.and_then(|value| value.trim().parse().ok()).unwrap_or(0.0)
    }

    /// Waits until a metric, summed over its labels, is as wanted.
    pub fn wait_for_metric(&self, name: &str, wanted: impl Fn(f64) -> bool) -> f64 {
        let (value, _) = wait_for(name, || match self.try_metric(name) {
            Some(value) if wanted(value) => Ok(value),
            other => Err(format!("{} = {other:?} at {}\n{}", name, self.name, self.log_tail())),
        });
        value
    }

    /// What it logged since its folder was made.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let from = log.lines().count().saturating_sub(20);
        log.lines().skip(from).collect::<Vec<_>>().join("\n")
    }

    /// Its log.
    pub fn log_file(&self) -> PathBuf {
        self.home.join("daemon.log")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.log().is_empty() {
            let _told = writeln!(std::io::stderr(), "{} said last:\n{}", self.name, self.log_tail());
        }
    }
}
