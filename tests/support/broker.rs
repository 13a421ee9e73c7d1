//! Private RabbitMQ brokers for tests: own directory, own loopback ports, own epmd, gone with the test.
//!
//! They are of the RabbitMQ that [`RabbitMq::chosen`] says: Debian's package on this machine, or what RABBITMQ names.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::namespaces::NetHost;
use crate::rabbitmq::RabbitMq;
use crate::version::Version;
use crate::watcher::{Folder, Process};

/// A first start takes about six seconds on an idle machine.
const START_WITHIN: Duration = Duration::from_secs(120);
/// What it prints when it is up, after "Starting broker..." and whatever comes between.
const STARTED: &str = " completed with ";

/// Files for a TLS listener; clients must then show a certificate of the same authority.
#[derive(Clone, Debug)]
pub struct BrokerTls {
    /// The authority that client certificates are checked against.
    pub ca_file: PathBuf,
    /// The broker's certificate.
    pub cert_file: PathBuf,
    /// The key of that certificate.
    pub key_file: PathBuf,
}

/// What a broker has beside the plain listener.
#[derive(Clone, Debug, Default)]
pub struct BrokerOptions {
    /// A second listener, with TLS and with EXTERNAL authentication (the user is the certificate's common name).
    pub tls: Option<BrokerTls>,
    /// More lines for `rabbitmq.conf`.
    pub conf: String,
    /// Plugins that it starts with.
    pub plugins: Vec<&'static str>,
    /// Where its folder is made, as `broker`. Otherwise it is a temporary one.
    pub within: Option<PathBuf>,
    /// The host that it runs on, if not here.
    pub place: Option<Place>,
    /// The RabbitMQ that it is of, if not the chosen one.
    pub rabbitmq: Option<RabbitMq>,
    /// Where it keeps its metadata.
    pub store: Store,
    /// Another [`TICK_TIME`] for the brokers of a cluster, in seconds.
    pub tick_time: Option<u32>,
}

/// Where a broker keeps its metadata: which queues, exchanges and users there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Store {
    /// Where its version does, if it is not told: Mnesia up to 4.1, Khepri from 4.2 on.
    #[default]
    Default,
    /// Mnesia, up to 4.2.
    Mnesia,
    /// Khepri, from 4.0 on.
    Khepri,
}

/// Where a broker of a cluster runs: on a host with two networks, one for clients and one for the cluster.
#[derive(Clone, Debug)]
pub struct Place {
    holder: Pid,
    clients: Ipv4Addr,
    cluster: Ipv4Addr,
}

impl Place {
    /// On `host`, whose first network is for clients, and the second for the cluster.
    pub fn on(host: &NetHost) -> Self {
        Self { holder: host.pid(), clients: host.address(0), cluster: host.address(1) }
    }
}

/// Silence between the brokers of a cluster for so long, and a quarter more, is a partition (`net_ticktime`, in seconds).
/// Erlang's default is 60.
pub const TICK_TIME: u32 = 5;

/// A running broker. Dropping it stops it and its epmd and removes its files, also while a test panics; should the
/// whole test process be killed, the watcher does that.
pub struct Broker {
    // In the order in which they go: the files last.
    server: Mutex<Option<Process>>,
    epmd: Process,
    dir: Folder,
    rabbitmq: RabbitMq,
    store: Store,
    port: u16,
    tls_port: u16,
    dist_port: u16,
    epmd_port: u16,
    ctl_port: u16,
    place: Option<Place>,
    tick_time: u32,
}

fn last_line(text: &str) -> &str {
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default()
}

/// In the environment, where brokers keep their metadata in tests that ask: `mnesia` or `khepri`.
const STORE: &str = "RABBITMQ_STORE";

impl Store {
    /// As RABBITMQ_STORE in the environment says; where the broker's version does, if that is empty or not set.
    pub fn chosen() -> Self {
        match std::env::var(STORE).unwrap_or_default().as_str() {
            "" => Self::Default,
            "mnesia" => Self::Mnesia,
            "khepri" => Self::Khepri,
            other => panic!("{STORE}={other}: it is mnesia or khepri"),
        }
    }
}

impl Broker {
    /// The broker that the tests of one binary share, each with farm names of its own. It runs until the process ends;
    /// the watcher then stops it.
    pub fn shared() -> Arc<Self> {
        static SHARED: OnceLock<Arc<Broker>> = OnceLock::new();
        Arc::clone(SHARED.get_or_init(|| Arc::new(Self::start())))
    }

    /// A broker of the caller's own.
    pub fn start() -> Self {
        Self::start_with(&BrokerOptions::default())
    }

    /// A cluster with one broker on each of `hosts`, all started at once. Links between them can be cut without touching
    /// those of clients. `conf` is put into each `rabbitmq.conf`.
    pub fn cluster(hosts: &[NetHost], conf: &str) -> Vec<Self> {
        Self::cluster_with(hosts, &BrokerOptions { conf: conf.to_owned(), ..BrokerOptions::default() })
    }

    /// The same, each with `options`; their place is on the host.
    pub fn cluster_with(hosts: &[NetHost], options: &BrokerOptions) -> Vec<Self> {
        let conf = &options.conf;
        let mut conf =
            format!("loopback_users = none\ncluster_formation.peer_discovery_backend = classic_config\n{conf}\n");
        for (index, host) in hosts.iter().enumerate() {
            let node = node_name(&Place::on(host));
            conf.push_str(&format!("cluster_formation.classic_config.nodes.{} = {node}\n", index + 1));
        }
        let start = |host| {
            let (conf, place) = (conf.clone(), Some(Place::on(host)));
            move || Self::start_with(&BrokerOptions { conf, place, ..options.clone() })
        };
        let brokers: Vec<Self> = thread::scope(|scope| {
            let starting: Vec<_> = hosts.iter().map(|host| scope.spawn(start(host))).collect();
            starting.into_iter().map(|broker| broker.join().expect("a broker")).collect()
        });
        let deadline = Instant::now() + START_WITHIN;
        while brokers[0].running() != hosts.len() {
            assert!(Instant::now() < deadline, "of {} brokers {} are one cluster", hosts.len(), brokers[0].running());
            thread::sleep(Duration::from_millis(500));
        }
        brokers.iter().for_each(Self::settle_on_store);
        brokers
    }

    /// A broker of the caller's own, with `options`. Returns when it takes connections; panics with its output if it
    /// does not come up.
    pub fn start_with(options: &BrokerOptions) -> Self {
        // Somebody may take a port between finding it free and using it, so try again with others.
        let mut faults = String::new();
        for _ in 0..3 {
            match Self::try_start(options) {
                Ok(broker) => return broker,
                Err(fault) => faults.push_str(&fault),
            }
        }
        panic!("no private RabbitMQ came up:\n{faults}");
    }

    fn try_start(options: &BrokerOptions) -> Result<Self, String> {
        let dir = match &options.within {
            Some(parent) => Folder::within(parent, "broker"),
            None => Folder::temporary("resumed-broker-"),
        };
        let [port, tls_port, dist_port, epmd_port, ctl_port] = match options.place {
            None => crate::ports::free_ports(12_000..22_000),
            // A host of its own has all ports free, and the brokers of a cluster must agree on that of epmd.
            Some(_) => [5672, 5671, 25_672, 4369, 35_672],
        };
        let root = dir.path();
        for sub in ["mnesia", "log"] {
            fs::create_dir(root.join(sub)).expect("a fresh directory");
        }
        let place = options.place.clone();
        let address = place.as_ref().map_or(Ipv4Addr::LOCALHOST, |place| place.clients);
        let mut conf = format!("listeners.tcp.default = {address}:{port}\n");
        let mut plugins = options.plugins.clone();
        if let Some(tls) = &options.tls {
            conf.push_str(&format!(
                "listeners.ssl.default = 127.0.0.1:{tls_port}\n\
                 ssl_options.cacertfile = {}\nssl_options.certfile = {}\nssl_options.keyfile = {}\n\
                 ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true\n\
                 auth_mechanisms.1 = PLAIN\nauth_mechanisms.2 = EXTERNAL\nssl_cert_login_from = common_name\n",
                tls.ca_file.display(),
                tls.cert_file.display(),
                tls.key_file.display(),
            ));
            plugins.push("rabbitmq_auth_mechanism_ssl");
        }
        conf.push_str(&options.conf);
        fs::write(root.join("rabbitmq.conf"), conf).expect("rabbitmq.conf");
        fs::write(root.join("enabled_plugins"), format!("[{}].", plugins.join(","))).expect("enabled_plugins");

        if place.is_some() {
            // What lets brokers of one cluster talk; Erlang makes one of its own for each broker otherwise.
            let cookie = root.join(".erlang.cookie");
            fs::write(&cookie, "cluster-of-a-test").expect("a cookie");
            fs::set_permissions(&cookie, fs::Permissions::from_mode(0o400)).expect("permissions");
        }

        let distribution = place.as_ref().map_or(Ipv4Addr::LOCALHOST, |place| place.cluster);
        let rabbitmq = options.rabbitmq.as_ref().unwrap_or_else(|| RabbitMq::chosen()).clone();
        let mut epmd = rabbitmq.epmd(place.as_ref().map(|place| place.holder));
        epmd.args(["-port", &epmd_port.to_string(), "-address", &distribution.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let epmd = Process::spawn(&mut epmd).expect("epmd, which comes with Erlang, starts");
        let mut broker = Self {
            server: Mutex::default(),
            epmd,
            dir,
            rabbitmq,
            store: options.store,
            port,
            tls_port,
            dist_port,
            epmd_port,
            ctl_port,
            place,
            tick_time: options.tick_time.unwrap_or(TICK_TIME),
        };
        let deadline = Instant::now() + START_WITHIN;
        while TcpStream::connect((distribution, epmd_port)).is_err() {
            if let Some(status) = broker.epmd.try_wait().expect("epmd is our child") {
                return Err(format!("epmd on port {epmd_port} ended: {status}\n"));
            }
            assert!(Instant::now() < deadline, "epmd does not listen on port {epmd_port}");
            thread::sleep(Duration::from_millis(10));
        }
        broker.launch()?;
        // The brokers of a cluster are moved together, once all are there.
        if broker.place.is_none() {
            broker.settle_on_store();
        }
        Ok(broker)
    }

    /// Before 4.2, a broker that is to keep its metadata in Khepri begins in Mnesia and is moved.
    fn settle_on_store(&self) {
        if self.store == Store::Default {
            return;
        }
        let version = self.version();
        if self.store == Store::Khepri && version.at_least(4, 0) && self.store() == Store::Mnesia {
            self.ctl(&["enable_feature_flag", "--experimental", "khepri_db"]);
        }
        assert_eq!(self.store(), self.store, "the store of RabbitMQ {version}");
    }

    /// Where it keeps its metadata: never [`Store::Default`].
    pub fn store(&self) -> Store {
        if !self.version().at_least(4, 0) {
            return Store::Mnesia;
        }
        let answer = self.ctl(&["eval", "rabbit_khepri:is_enabled()."]);
        if answer.trim() == "true" { Store::Khepri } else { Store::Mnesia }
    }

    /// The version of RabbitMQ that it is of.
    pub fn version(&self) -> Version {
        self.rabbitmq.version()
    }

    /// That version and that of the Erlang beneath, as "RabbitMQ 4.0.5 on Erlang 27.3.4.1".
    pub fn versions(&self) -> String {
        let log = self.log();
        let after = |word: &str| log.lines().find_map(|line| line.split_once(word)).map(|(_, rest)| rest.trim());
        let erlang = after("  Erlang:").and_then(|text| text.split_whitespace().next());
        format!("RabbitMQ {} on Erlang {}", self.version(), erlang.unwrap_or("of a version that it does not tell"))
    }

    /// How many brokers of its cluster run, as it sees them; none while it does not run itself, or is paused.
    pub fn running(&self) -> usize {
        let Ok(status) = self.try_ctl(&["cluster_status", "--formatter", "json"]) else { return 0 };
        let status: serde_json::Value = serde_json::from_str(&status).expect("rabbitmqctl prints JSON");
        status["running_nodes"].as_array().map_or(0, Vec::len)
    }

    /// How many brokers its database is split from, as it sees it, though it may reach them; all others while it does not run.
    pub fn split_from(&self) -> usize {
        let Ok(status) = self.try_ctl(&["cluster_status", "--formatter", "json"]) else { return usize::MAX };
        let status: serde_json::Value = serde_json::from_str(&status).expect("rabbitmqctl prints JSON");
        let split = status["partitions"].as_object().into_iter().flatten();
        split.map(|(_, others)| others.as_array().map_or(1, Vec::len)).sum()
    }

    /// The URI of the plain listener, as the default user.
    pub fn uri(&self) -> String {
        self.uri_as("guest", "guest", "/")
    }

    /// The URI of the plain listener for that user and virtual host.
    pub fn uri_as(&self, user: &str, password: &str, vhost: &str) -> String {
        let address = self.place.as_ref().map_or(Ipv4Addr::LOCALHOST, |place| place.clients);
        format!("amqp://{user}:{password}@{address}:{}/{}", self.port, vhost.replace('/', "%2f"))
    }

    /// The port of the plain listener.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port of the TLS listener; nothing listens there without [`BrokerOptions::tls`].
    pub fn tls_port(&self) -> u16 {
        self.tls_port
    }

    /// The process id of the Erlang machine that is the broker.
    pub fn pid(&self) -> Option<u32> {
        self.server().as_ref().map(|server| server.id())
    }

    /// Kills the broker with SIGKILL. Its files and ports stay for [`Broker::revive`].
    pub fn kill(&self) {
        drop(self.server().take());
    }

    /// Stops the broker in order, as its unit does (SIGTERM), and waits until it has ended. Its files and ports stay for
    /// [`Broker::revive`].
    pub fn stop(&self) {
        self.signal(Signal::SIGTERM);
        let deadline = Instant::now() + START_WITHIN;
        while self.server().as_mut().is_some_and(|server| server.try_wait().expect("our child").is_none()) {
            assert!(Instant::now() < deadline, "the broker does not stop:\n{}", self.log());
            thread::sleep(Duration::from_millis(50));
        }
        self.kill();
    }

    /// The broker's own name in its cluster.
    pub fn name(&self) -> String {
        self.node()
    }

    /// Starts a killed broker again, with its files and ports. Returns when it takes connections.
    pub fn revive(&self) {
        assert!(self.pid().is_none(), "the broker still runs");
        self.launch().unwrap_or_else(|fault| panic!("the broker did not come back: {fault}"));
    }

    /// The same as a service manager does it, which starts a broker again that fails: one of RabbitMQ 4.0 with Khepri may, while
    /// the others of its cluster start as well.
    pub fn revive_in_a_few_attempts(&self) {
        assert!(self.pid().is_none(), "the broker still runs");
        for _ in 0..4 {
            match self.launch() {
                Ok(()) => return,
                Err(fault) => eprintln!("the broker failed to start, and is started again: {}", last_line(&fault)),
            }
            self.kill();
        }
        self.revive();
    }

    /// Kills the broker with SIGKILL and starts it again. Returns when it takes connections.
    pub fn restart(&self) {
        self.kill();
        self.revive();
    }

    /// Stops the broker's process in its tracks (SIGSTOP): connections stay open and nothing answers.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets a frozen broker go on (SIGCONT).
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Runs `rabbitmqctl` with `arguments` and returns what it printed. Takes a second or two: it starts a machine of its own.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        self.try_ctl(arguments).unwrap_or_else(|fault| panic!("{fault}"))
    }

    /// The same, for what may fail.
    pub fn try_ctl(&self, arguments: &[&str]) -> Result<String, String> {
        let output = self
            .command("rabbitmqctl")
            .args(["--quiet", "--node", &self.node()])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("rabbitmqctl starts");
        if !output.status.success() {
            return Err(format!(
                "rabbitmqctl {arguments:?}: {}\n{}{}",
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            ));
        }
        Ok(String::from_utf8(output.stdout).expect("rabbitmqctl prints UTF-8"))
    }

    /// Writes a program to `file` that is this broker's `rabbitmqctl`, for what calls it by that name.
    pub fn write_ctl(&self, file: &Path) {
        let mut command = self.command("rabbitmqctl");
        command.args(["--node", &self.node()]);
        let quoted = |word: &OsStr| format!("'{}'", word.to_str().expect("UTF-8").replace('\'', r"'\''"));
        let mut script = format!("#!/bin/sh\nset -e\ncd {}\n", quoted(self.dir.path().as_os_str()));
        for (name, value) in command.get_envs() {
            let name = name.to_str().expect("UTF-8");
            script +=
                &value.map_or_else(|| format!("unset {name}\n"), |value| format!("export {name}={}\n", quoted(value)));
        }
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        script += &format!("exec {} \"$@\"\n", words.map(quoted).collect::<Vec<_>>().join(" "));
        fs::write(file, script).expect("a script");
        fs::set_permissions(file, fs::Permissions::from_mode(0o755)).expect("its mode");
    }

    /// The broker's own log and output so far, for the message of a failing test.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// What it wrote to its log folder: what it thinks of the others in its cluster, for one.
    pub fn history(&self) -> String {
        let files = fs::read_dir(self.dir.path().join("log")).into_iter().flatten().flatten();
        files.map(|file| fs::read_to_string(file.path()).unwrap_or_default()).collect()
    }

    /// Where that is.
    pub fn log_file(&self) -> PathBuf {
        self.dir.path().join("out.log")
    }

    fn node(&self) -> String {
        match &self.place {
            None => format!("rmq-{}@localhost", self.port),
            Some(place) => node_name(place),
        }
    }

    fn server(&self) -> MutexGuard<'_, Option<Process>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self, signal: Signal) {
        let pid = self.pid().expect("the broker runs");
        kill(Pid::from_raw(pid.cast_signed()), signal).expect("the broker is our child");
    }

    fn launch(&self) -> Result<(), String> {
        let log = fs::File::create(self.log_file()).expect("a log file");
        let mut command = self.command("rabbitmq-server");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a second handle")).stderr(log);
        *self.server() = Some(Process::spawn(&mut command).expect("rabbitmq-server starts"));
        let deadline = Instant::now() + START_WITHIN;
        loop {
            let mut text = String::new();
            fs::File::open(self.log_file()).and_then(|mut file| file.read_to_string(&mut text)).expect("the log file");
            if text.contains(STARTED) {
                self.say_what_it_is();
                return Ok(());
            }
            let ended = self.server().as_mut().expect("just started").try_wait().expect("our child");
            if let Some(status) = ended {
                return Err(format!("rabbitmq-server ended: {status}\n{text}\n"));
            }
            if Instant::now() > deadline {
                return Err(format!("rabbitmq-server said no \"{STARTED}\" within {START_WITHIN:?}\n{text}\n"));
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Once for each version in a test's process, past what the test runner withholds of a test that passes.
    fn say_what_it_is(&self) {
        static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
        let versions = self.versions();
        let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
        if !said.contains(&versions) {
            let _told = writeln!(io::stderr(), "broker: {versions}");
            said.insert(versions);
        }
    }

    fn command(&self, program: &str) -> Command {
        let root = self.dir.path();
        let place = self.place.as_ref();
        let mut command = self.rabbitmq.command(place.map(|place| place.holder), program);
        let distribution = place.map_or(Ipv4Addr::LOCALHOST, |place| place.cluster);
        let address = distribution.to_string().replace('.', ",");
        let mut kernel = format!("-kernel inet_dist_use_interface {{{address}}}");
        if place.is_some() {
            kernel.push_str(&format!(" -kernel net_ticktime {}", self.tick_time));
            // Host names that are addresses.
            command.env("RABBITMQ_USE_LONGNAME", "true");
        }
        command
            .current_dir(root)
            .env_remove("NOTIFY_SOCKET")
            // Makes the script exec the Erlang machine instead of guarding it, so that the process id is the broker's.
            .env("RUNNING_UNDER_SYSTEMD", "true")
            // Erlang keeps its cookie in $HOME, and reads no configuration of the system's own broker.
            .env("HOME", root)
            .env("RABBITMQ_CONF_ENV_FILE", root.join("rabbitmq-env.conf"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", root.join("advanced.config"))
            .env("RABBITMQ_CONFIG_FILE", root.join("rabbitmq"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", root.join("enabled_plugins"))
            .env("RABBITMQ_MNESIA_BASE", root.join("mnesia"))
            .env("RABBITMQ_LOG_BASE", root.join("log"))
            .env("RABBITMQ_PID_FILE", root.join("pid"))
            .env("RABBITMQ_NODENAME", self.node())
            .env("RABBITMQ_DIST_PORT", self.dist_port.to_string())
            .env("RABBITMQ_CTL_DIST_PORT_MIN", self.ctl_port.to_string())
            .env("RABBITMQ_CTL_DIST_PORT_MAX", self.ctl_port.to_string())
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", &kernel)
            .env("RABBITMQ_CTL_ERL_ARGS", &kernel)
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("ERL_EPMD_ADDRESS", distribution.to_string())
            .env("ERL_CRASH_DUMP", root.join("erl_crash.dump"));
        if self.store == Store::Mnesia && self.version().at_least(4, 2) {
            command.env("RABBITMQ_FEATURE_FLAGS", "-khepri_db");
        }
        command
    }
}

fn node_name(place: &Place) -> String {
    format!("rmq@{}", place.cluster)
}
