//! One real Apache Traffic Server on a free loopback port, apart from the system's own instance.
//!
//! It is of the Traffic Server that [`TrafficServer::chosen`] says: Debian's package, or what ATS names. Everything lies in
//! one folder; the processes are this test's children and are stopped by their ids, also when the test panics.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use openssl::asn1::Asn1Time;
use openssl::bn::{BigNum, MsbOption};
use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::rsa::Rsa;
use openssl::x509::extension::SubjectAlternativeName;
use openssl::x509::{X509Builder, X509NameBuilder};

use crate::traffic_server::TrafficServer;
use crate::watcher::{Process, runs};

/// How long a start, a stop or a change of state may take before the test fails. Generous: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The certificate and key that every proxy of one farm serves.
#[derive(Clone)]
pub struct Certificate {
    pub pem: Vec<u8>,
    pub key: Vec<u8>,
}

impl Certificate {
    /// A fresh self-signed RSA certificate for `name`.
    pub fn self_signed(name: &str) -> Self {
        let key = PKey::from_rsa(Rsa::generate(2048).expect("an RSA key")).expect("a private key");
        let mut subject = X509NameBuilder::new().expect("a name");
        subject.append_entry_by_text("CN", name).expect("a common name");
        let subject = subject.build();
        let mut serial = BigNum::new().expect("a number");
        serial.rand(120, MsbOption::MAYBE_ZERO, false).expect("a random serial number");
        let mut builder = X509Builder::new().expect("a certificate");
        builder.set_version(2).expect("version 3");
        builder.set_serial_number(&serial.to_asn1_integer().expect("a serial number")).expect("a serial number");
        builder.set_subject_name(&subject).expect("a subject");
        builder.set_issuer_name(&subject).expect("an issuer");
        builder.set_pubkey(&key).expect("a public key");
        builder.set_not_before(&Asn1Time::days_from_now(0).expect("a time")).expect("a start");
        builder.set_not_after(&Asn1Time::days_from_now(30).expect("a time")).expect("an end");
        let names = SubjectAlternativeName::new().dns(name).build(&builder.x509v3_context(None, None));
        builder.append_extension(names.expect("an alternative name")).expect("an extension");
        builder.sign(&key, MessageDigest::sha256()).expect("a signature");
        Self { pem: builder.build().to_pem().expect("PEM"), key: key.private_key_to_pem_pkcs8().expect("PEM") }
    }
}

/// What a private ATS is to be like.
#[derive(Clone)]
pub struct AtsSetup {
    pub certificate: Certificate,
    /// The whole line for `plugin.config`; empty for none.
    pub plugin: String,
    /// `proxy.config.ssl.server.session_ticket.enable`.
    pub tickets: bool,
    /// Start `traffic_manager`, which starts `traffic_server`: then `traffic_ctl` works. Otherwise `traffic_server` bare.
    pub manager: bool,
    /// Further lines for `records.config` (10.x gets them as `records.yaml`), which win over the ones above.
    pub records: Vec<String>,
    /// The content of `ssl_multicert.config`.
    pub multicert: String,
    /// A command before a bare `traffic_server`, as `["valgrind", "--error-exitcode=1"]`.
    pub wrapper: Vec<String>,
    /// How long a start may take.
    pub patience: Duration,
    /// The Traffic Server that it is of, if not the chosen one.
    pub installed: Option<TrafficServer>,
}

impl AtsSetup {
    /// Tickets on, under `traffic_manager`.
    pub fn new(certificate: &Certificate, plugin: impl Into<String>) -> Self {
        Self {
            certificate: certificate.clone(),
            plugin: plugin.into(),
            tickets: true,
            manager: true,
            records: Vec::new(),
            multicert: "ssl_cert_name=farm.pem ssl_key_name=farm.key dest_ip=*\n".to_owned(),
            wrapper: Vec::new(),
            patience: PATIENCE,
            installed: None,
        }
    }
}

/// A running (or stopped) ATS. Stopped when dropped.
pub struct Ats {
    dir: PathBuf,
    port: u16,
    setup: AtsSetup,
    installed: TrafficServer,
    child: Option<Process>,
    log_from: u64,
}

impl Ats {
    /// Lays out an ATS in `dir` (made; at most 70 bytes long, because sockets lie in it), starts it, and waits until it
    /// serves.
    pub fn start(dir: &Path, setup: &AtsSetup) -> Self {
        let mut ats = Self::spawn(dir, setup);
        ats.wait_until_serving();
        ats
    }

    /// Like [`Ats::start`], without waiting.
    pub fn spawn(dir: &Path, setup: &AtsSetup) -> Self {
        let mut ats = Self::lay_out(dir, setup);
        ats.launch();
        ats
    }

    /// Writes the configuration only; [`Ats::launch`] starts it.
    pub fn lay_out(dir: &Path, setup: &AtsSetup) -> Self {
        let port = free_port();
        for folder in ["etc", "var", "run", "log", "cache", "data", "ssl"] {
            fs::create_dir_all(dir.join(folder)).expect("a folder for ATS");
        }
        let installed = setup.installed.as_ref().unwrap_or_else(|| TrafficServer::chosen()).clone();
        let ats = Self { dir: dir.to_owned(), port, setup: setup.clone(), installed, child: None, log_from: 0 };
        ats.write_configuration();
        open_to_all(dir);
        ats
    }

    fn write_configuration(&self) {
        let dir = self.dir.display();
        self.write(
            "runroot.yaml",
            &format!(
                "prefix: {dir}\n{}sysconfdir: {dir}/etc\ndatadir: {dir}/data\nlocalstatedir: {dir}/var\n\
                 runtimedir: {dir}/run\nlogdir: {dir}/log\ncachedir: {dir}/cache\n",
                self.installed.layout()
            ),
        );
        let mut records = format!(
            "CONFIG proxy.config.http.server_ports STRING {}:ip-in=127.0.0.1:ssl\n\
             CONFIG proxy.config.admin.user_id STRING #-1\n\
             CONFIG proxy.config.crash_log_helper STRING NULL\n\
             CONFIG proxy.config.exec_thread.autoconfig INT 0\n\
             CONFIG proxy.config.exec_thread.limit INT 2\n\
             CONFIG proxy.config.ssl.server.cert.path STRING {dir}/ssl\n\
             CONFIG proxy.config.ssl.server.private_key.path STRING {dir}/ssl\n\
             CONFIG proxy.config.ssl.session_cache INT 2\n\
             CONFIG proxy.config.ssl.session_cache.size INT 102400\n\
             CONFIG proxy.config.ssl.session_cache.num_buckets INT 1024\n\
             CONFIG proxy.config.ssl.server.session_ticket.enable INT {}\n\
             CONFIG proxy.config.url_remap.remap_required INT 0\n\
             CONFIG proxy.config.http.cache.http INT 0\n",
            self.port,
            u8::from(self.setup.tickets),
        );
        for line in &self.setup.records {
            records.push_str(line);
            records.push('\n');
        }
        let (file, records) = self.installed.records(&records);
        self.write(&format!("etc/{file}"), &records);
        self.write("etc/ssl_multicert.config", &self.setup.multicert);
        self.write("etc/storage.config", &format!("{dir}/cache 16M\n"));
        self.write("etc/plugin.config", &format!("{}\n", self.setup.plugin));
        self.write(
            "etc/ip_allow.yaml",
            "ip_allow:\n  - apply: in\n    ip_addrs: 0/0\n    action: allow\n    methods: ALL\n",
        );
        self.write("etc/logging.yaml", "logging: {}\n");
        for empty in ["remap", "cache", "hosting", "parent", "socks", "splitdns", "volume"] {
            self.write(&format!("etc/{empty}.config"), "");
        }
        self.write("etc/sni.yaml", "sni: []\n");
        self.write("etc/strategies.yaml", "");
        self.write_certificate(&self.setup.certificate);
    }

    /// Puts another certificate in place; ATS takes it at the next `config reload`.
    pub fn write_certificate(&self, certificate: &Certificate) {
        self.write_certificate_as("farm", certificate);
    }

    /// Writes a certificate and its key as `NAME.pem` and `NAME.key`, for `ssl_multicert.config`.
    pub fn write_certificate_as(&self, name: &str, certificate: &Certificate) {
        let ssl = self.dir.join("ssl");
        fs::write(ssl.join(format!("{name}.pem")), &certificate.pem).expect("the certificate");
        fs::write(ssl.join(format!("{name}.key")), &certificate.key).expect("the private key");
    }

    /// Writes `content` to `name` in the folder of this ATS, as `etc/ssl_multicert.config`.
    pub fn write(&self, name: &str, content: &str) {
        let path = self.dir.join(name);
        fs::write(&path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// Starts a stopped ATS without waiting until it serves.
    pub fn launch(&mut self) {
        assert!(self.child.is_none(), "this ATS runs already");
        self.log_from = fs::metadata(self.dir.join("log/diags.log")).map_or(0, |log| log.len());
        assert!(!self.setup.manager || self.setup.wrapper.is_empty(), "a wrapper needs a bare traffic_server");
        let program = if self.is_managed() { "traffic_manager" } else { "traffic_server" };
        let mut words: Vec<OsString> = self.setup.wrapper.iter().map(OsString::from).collect();
        words.push(self.installed.program(program).into());
        let out = fs::File::options().create(true).append(true).open(self.dir.join("out.log")).expect("out.log");
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .env("TS_RUNROOT", &self.dir)
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("out.log twice"))
            .stderr(out);
        self.installed.find_libraries(&mut command);
        let child = Process::spawn(&mut command).unwrap_or_else(|error| panic!("{}: {error}", words[0].display()));
        self.child = Some(child);
    }

    /// Whether its child is a `traffic_manager`, which has a `traffic_server` for a child of its own.
    fn is_managed(&self) -> bool {
        self.setup.manager && self.installed.has_manager()
    }

    /// Waits until ATS says that it is initialized and takes connections.
    pub fn wait_until_serving(&mut self) {
        let start = Instant::now();
        loop {
            let said = self.diags();
            if said.contains("Traffic Server is fully initialized") && TcpStream::connect(self.address()).is_ok() {
                return;
            }
            let ended = self.child.as_mut().expect("launched").try_wait().expect("the state of a child");
            if ended.is_some() || start.elapsed() > self.setup.patience {
                panic!("ATS in {} did not come up ({ended:?}):\n{}{said}", self.dir.display(), self.output());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Where it serves TLS. The same after a restart.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The process id of `traffic_server` itself.
    pub fn server_pid(&self) -> Pid {
        self.written_pid().unwrap_or_else(|| panic!("no process id in {}/run/server.lock", self.dir.display()))
    }

    /// The same, if it has come so far as to write it down.
    fn written_pid(&self) -> Option<Pid> {
        let text = fs::read_to_string(self.dir.join("run/server.lock")).ok()?;
        text.trim().parse().ok().map(Pid::from_raw)
    }

    /// What ATS wrote to `diags.log` since its last start: its notes, warnings and errors, the plugin's among them.
    pub fn diags(&self) -> String {
        let bytes = fs::read(self.dir.join("log/diags.log")).unwrap_or_default();
        let from = usize::try_from(self.log_from).expect("a short log").min(bytes.len());
        String::from_utf8_lossy(&bytes[from..]).into_owned()
    }

    /// What the processes wrote to their standard output and error since the folder was made.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.join("out.log")).unwrap_or_default()).into_owned()
    }

    /// Waits until `diags` contains `text`.
    pub fn wait_for_note(&self, text: &str) {
        let start = Instant::now();
        while !self.diags().contains(text) {
            assert!(start.elapsed() < PATIENCE, "ATS never said {text:?}; it said:\n{}{}", self.output(), self.diags());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Runs `traffic_ctl` with these words. Needs `manager`.
    pub fn ctl(&self, words: &[&str]) -> Output {
        self.installed
            .command("traffic_ctl")
            .args(words)
            .env("TS_RUNROOT", &self.dir)
            .output()
            .expect("traffic_ctl, which is part of Traffic Server")
    }

    /// `traffic_ctl config reload`, which must succeed.
    pub fn reload(&self) {
        let output = self.ctl(&["config", "reload"]);
        assert!(output.status.success(), "config reload: {output:?}");
    }

    /// One statistic, as `proxy.process.ssl.user_agent_session_hit`; none if ATS does not know it. Needs `manager`;
    /// statistics reach the manager some seconds late.
    pub fn metric(&self, name: &str) -> Option<i64> {
        let output = self.ctl(&["metric", "get", name]);
        String::from_utf8_lossy(&output.stdout).split_whitespace().nth(1).and_then(|value| value.parse().ok())
    }

    /// Asks it to stop as systemd does, and says how long that took. No effect on a stopped one.
    pub fn stop(&mut self) -> Duration {
        let start = Instant::now();
        let Some(mut child) = self.child.take() else { return Duration::ZERO };
        let pid = child.pid();
        // With a manager, the server is a process of its own and may outlive it by a moment.
        let server = if self.is_managed() { self.written_pid() } else { None };
        let _ = kill(pid, Signal::SIGTERM);
        while child.try_wait().expect("the state of a child").is_none()
            || server.is_some_and(|server| runs(server.as_raw().cast_unsigned()))
        {
            if start.elapsed() > PATIENCE {
                let _ = killpg(pid, Signal::SIGKILL);
                let _ = child.wait();
                if !std::thread::panicking() {
                    panic!("ATS in {} did not stop on SIGTERM within {PATIENCE:?}", self.dir.display());
                }
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        start.elapsed()
    }

    /// Kills all its processes at once, as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = killpg(child.pid(), Signal::SIGKILL);
            let _ = child.wait();
        }
    }

    /// Stops it, starts it again on the same port, and waits until it serves.
    pub fn restart(&mut self) {
        self.stop();
        self.launch();
        self.wait_until_serving();
    }
}

impl Drop for Ats {
    fn drop(&mut self) {
        if std::thread::panicking() && !(self.output() + &self.diags()).is_empty() {
            let _ = writeln!(io::stderr(), "ATS in {} said:\n{}{}", self.dir.display(), self.output(), self.diags());
        }
        self.stop();
    }
}

/// A port on 127.0.0.1 that was free a moment ago.
pub fn free_port() -> u16 {
    let [port] = crate::ports::free_ports(22_000..32_000);
    port
}

/// ATS may run as another user than the test.
fn open_to_all(dir: &Path) {
    let mut mode = 0o755;
    if dir.is_file() {
        mode = 0o644;
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(mode)).expect("permissions");
    if dir.is_dir() {
        for entry in fs::read_dir(dir).expect("a folder") {
            open_to_all(&entry.expect("an entry").path());
        }
    }
}
