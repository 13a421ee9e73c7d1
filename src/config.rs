//! The settings: a TOML file, any key of which the environment overrides as `RESUMED__SECTION__KEY`.
//!
//! `etc/resumed.toml` documents every key with its default. In short: durations are texts with a unit (`"8h"`,
//! `"1h 30m"`), sizes are texts (`"256MiB"`) or numbers of bytes, lists in the environment are comma-separated, paths
//! are absolute, and an empty text means "none" where a setting may be absent. A key that is not known is a mistake,
//! and all mistakes are reported together.

mod file;
mod mistake;
mod reader;
mod shown;
mod unknown;
mod uri;

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use file::TomlFile;
pub use mistake::{Mistake, Origin, Place, Understood};
use reader::Reader;
use shown::{bytes, shown_text, span};
pub use uri::{BrokerUri, redact};

/// Where the configuration stands unless `--config` says otherwise.
pub const DEFAULT_FILE: &str = "/etc/resumed/resumed.toml";

/// All settings of a node, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// `[node]`
    pub node: NodeSettings,
    /// `[broker]`
    pub broker: BrokerSettings,
    /// `[secret]`
    pub secret: SecretSettings,
    /// `[keys]`
    pub keys: KeysSettings,
    /// `[sessions]`
    pub sessions: SessionsSettings,
    /// `[ats]`
    pub ats: AtsSettings,
    /// `[control]`
    pub control: ControlSettings,
    /// `[metrics]`
    pub metrics: MetricsSettings,
}

/// `[node]`: who this node is.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeSettings {
    /// Its name: 1 to 128 printable ASCII characters without spaces. Default: the host name.
    pub name: String,
    /// The farm, `[a-z0-9-]{1,63}`: all nodes that share ticket keys and a farm secret. Default `default`.
    pub farm: String,
    /// The pod, `[a-z0-9-]{1,63}`: the nodes that share sessions. Default `default`.
    pub pod: String,
    /// How far another node's clock may be off before its messages are refused: 1 s to 1 h. Default 5 min.
    pub max_clock_offset: Duration,
    /// How long a node with neither ring nor leader waits before it mints a key for itself: 100 ms to 1 h.
    /// Default 10 s.
    pub start_alone_after: Duration,
}

/// `[broker]`: the RabbitMQ that connects the farm.
#[derive(Clone, Debug, PartialEq)]
pub struct BrokerSettings {
    /// Brokers, tried in order; empty: this node runs alone. Default empty.
    pub uris: Vec<BrokerUri>,
    /// PEM file of the authorities that a broker's certificate is checked against. Default: those of the system.
    pub ca_file: Option<PathBuf>,
    /// PEM file of the client certificate with its chain; there is one exactly if there is a `key_file`.
    /// Default none.
    pub cert_file: Option<PathBuf>,
    /// PEM file of the client certificate's private key. Default none.
    pub key_file: Option<PathBuf>,
    /// File with the password of every URI that carries none. Default none.
    pub password_file: Option<PathBuf>,
    /// No setting: the configuration file, if `uris` is from there and one of them carries a password.
    pub passwords_in: Option<PathBuf>,
    /// The AMQP heartbeat: 1 s to 5 min, whole seconds. A frozen node's lease is free after two. Default 5 s.
    pub heartbeat: Duration,
    /// The beat, how often a node reports to the leader: 100 ms to 5 min. Default 2 s.
    pub report_every: Duration,
}

/// `[secret]`: the pre-shared keys that seal what goes to the broker.
#[derive(Clone, Debug, PartialEq)]
pub struct SecretSettings {
    /// Files made by `resumed secret new`. The first seals, all open. At least one as soon as there is a broker.
    /// Default empty.
    pub files: Vec<PathBuf>,
}

/// `[keys]`: the life of ticket keys.
#[derive(Clone, Debug, PartialEq)]
pub struct KeysSettings {
    /// How long a key seals before its successor does: 1 s to 7 days. Default 8 h.
    pub interval: Duration,
    /// How many intervals a superseded key still opens tickets: 1 to 32. Default 3.
    pub keep: u32,
    /// How long a key is held before it seals: 1 ms to less than half an interval. Default 2 s.
    pub settle: Duration,
    /// How long a key seals at most, successor or none: two intervals to a year. Default three intervals.
    pub max_seal_age: Duration,
    /// Whether this node may lead and mint keys for the farm. Default true.
    pub can_lead: bool,
    /// Directory in which the ring outlives a restart of the daemon. Default `/run/resumed`.
    pub directory: PathBuf,
    /// Whether `directory` may be on a disk, or on memory that can be swapped to one. Default false.
    pub allow_disk: bool,
}

/// `[sessions]`: session-ID cache entries.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionsSettings {
    /// Whether sessions are shared at all. Default true.
    pub replicate: bool,
    /// What becomes of a session that a proxy removes. Default [`RemovalPolicy::Replicate`].
    pub removals: RemovalPolicy,
    /// The cache's limit in bytes: 1 MiB to 1 TiB. Default 256 MiB.
    pub max_bytes: u64,
    /// The largest session in bytes: 256 B to `batch_bytes`. Default 16 KiB.
    pub max_session_bytes: u64,
    /// How many bytes of sessions travel in one message at most: 1 KiB to 512 KiB, so that with its headers it stays
    /// below an envelope's 1 MiB. Default 96 KiB.
    pub batch_bytes: u64,
}

/// What becomes of a session that a proxy of the pod removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemovalPolicy {
    /// It is removed in the whole pod.
    Replicate,
    /// The others keep it.
    Keep,
}

/// `[ats]`: the Apache Traffic Server beside this node.
#[derive(Clone, Debug, PartialEq)]
pub struct AtsSettings {
    /// The Unix socket for its plugin, at most 107 bytes. Default `/run/resumed/ats.sock`.
    pub socket: PathBuf,
    /// The users that may connect, besides root and the daemon's own. Default `trafficserver`.
    pub users: Vec<String>,
}

/// `[control]`: the socket for `status`, `rotate`, `revoke` and `reload`.
#[derive(Clone, Debug, PartialEq)]
pub struct ControlSettings {
    /// The Unix socket, at most 107 bytes. Default `/run/resumed/control.sock`.
    pub socket: PathBuf,
    /// The group that may use it; none: root and the daemon's own user only. Default
    /// `resumed-control`. It should read no secret.
    pub group: Option<String>,
}

/// `[metrics]`: the HTTP server for `/metrics`, `/healthz` and the page for people.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricsSettings {
    /// Where it listens; none: nowhere. Default `127.0.0.1:9464`.
    pub listen: Option<SocketAddr>,
    /// Whether it also serves the farm at a glance: `/` and `/farm.json`. Default true.
    pub page: bool,
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("the configuration file {} is not valid TOML: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why, without the text around it, which may hold a password.
        reason: String,
    },
    /// The file and the environment hold mistakes: all of them, at least one.
    #[error("{}", in_lines(.0))]
    Mistakes(Vec<Mistake>),
}

fn in_lines(mistakes: &[Mistake]) -> String {
    let mut text = match mistakes.len() {
        1 => "1 mistake in the configuration:".to_owned(),
        n => format!("{n} mistakes in the configuration:"),
    };
    for mistake in mistakes {
        // Writing to a String cannot fail.
        let _ = write!(text, "\n  {mistake}");
    }
    text
}

impl Settings {
    /// Reads the file at `path`, if one is given, and the environment.
    ///
    /// # Errors
    /// The file cannot be read or is not TOML; or every mistake in it and in the environment.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let (settings, _, mistakes) = Self::load_explained(path)?;
        if mistakes.is_empty() { Ok(settings) } else { Err(ConfigError::Mistakes(mistakes)) }
    }

    /// Like [`Settings::load`], with every key, its value as it was understood and where it came from, and with every
    /// mistake; defaults stand where there is one.
    ///
    /// # Errors
    /// The file cannot be read or is not TOML.
    pub fn load_explained(path: Option<&Path>) -> Result<(Self, Vec<Understood>, Vec<Mistake>), ConfigError> {
        let file = match path {
            None => TomlFile::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|source| ConfigError::Unreadable { path: path.into(), source })?;
                TomlFile::parse(path, &text)?
            }
        };
        let host = nix::unistd::gethostname().unwrap_or_default();
        let (mut settings, understood, mistakes) = understand(file, std::env::vars_os(), &host);
        let from_file = |of: &Understood| of.key == "broker.uris" && of.origin.is_file();
        if understood.iter().any(from_file) && settings.broker.uris.iter().any(BrokerUri::has_password) {
            settings.broker.passwords_in = path.map(Path::to_owned);
        }
        Ok((settings, understood, mistakes))
    }

    /// Like [`Settings::load_explained`] for a file at `path` that says `text`, without the environment.
    ///
    /// # Errors
    /// The text is not TOML.
    pub fn read_explained(path: &Path, text: &str) -> Result<(Self, Vec<Understood>, Vec<Mistake>), ConfigError> {
        let host = nix::unistd::gethostname().unwrap_or_default();
        Ok(understand(TomlFile::parse(path, text)?, std::iter::empty(), &host))
    }

    /// What is wrong with the files that the settings name: each must be there and be readable by this process.
    /// What is in them is not looked at.
    #[must_use]
    pub fn problems_on_disk(&self) -> Vec<FileProblem> {
        let broker = &self.broker;
        let one = [
            ("broker.ca_file", &broker.ca_file),
            ("broker.cert_file", &broker.cert_file),
            ("broker.key_file", &broker.key_file),
            ("broker.password_file", &broker.password_file),
        ];
        one.iter()
            .filter_map(|(key, path)| path.as_ref().map(|path| (*key, path)))
            .chain(self.secret.files.iter().map(|path| ("secret.files", path)))
            .filter_map(|(key, path)| {
                let reason = unreadable(path)?;
                Some(FileProblem { key, path: path.clone(), reason, accepted: "a file that this user can read".into() })
            })
            .collect()
    }
}

/// A file that the settings name and that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {}: {reason}", path.display())]
pub struct FileProblem {
    /// `section.key`.
    pub key: &'static str,
    /// The file.
    pub path: PathBuf,
    /// Why it cannot be used.
    pub reason: String,
    /// What could be.
    pub accepted: String,
}

fn unreadable(path: &Path) -> Option<String> {
    match std::fs::metadata(path) {
        // Opening a FIFO would wait for its other end.
        Ok(metadata) if !metadata.is_file() => Some("is not a regular file".into()),
        Ok(_) => File::open(path).err().map(|error| error.to_string()),
        Err(error) => Some(error.to_string()),
    }
}

impl Default for Settings {
    /// Every setting at its default.
    fn default() -> Self {
        let host = nix::unistd::gethostname().unwrap_or_default();
        understand(TomlFile::default(), std::iter::empty(), &host).0
    }
}

/// The settings, what was understood, and the mistakes; defaults stand where there are mistakes.
fn understand(
    file: TomlFile,
    variables: impl Iterator<Item = (OsString, OsString)>,
    host: &OsStr,
) -> (Settings, Vec<Understood>, Vec<Mistake>) {
    // Not config's own `Environment`, which does not say which variable a value comes from, and stops at the first one
    // that is not UTF-8.
    let mut overrides = Vec::new();
    let mut not_utf8 = Vec::new();
    for (name, value) in variables {
        let name = name.to_string_lossy().into_owned();
        let Some(key) = name.strip_prefix("RESUMED__") else { continue };
        let key = key.to_lowercase().replace("__", ".");
        match value.into_string() {
            Ok(value) => overrides.push((key, value, name)),
            Err(_) => not_utf8.push((key, name)),
        }
    }
    // Where two names differ only in case, the same one wins every time.
    overrides.sort_by(|(_, _, a), (_, _, b)| b.cmp(a));

    let mut reader = Reader::new(file, overrides);
    let settings = Settings {
        node: read_node(&mut reader, &host.to_string_lossy()),
        broker: read_broker(&mut reader),
        secret: SecretSettings { files: reader.paths("secret.files") },
        keys: read_keys(&mut reader),
        sessions: read_sessions(&mut reader),
        ats: AtsSettings {
            socket: reader.socket("ats.socket", "/run/resumed/ats.sock"),
            users: reader.texts("ats.users", &["trafficserver"], "user names", account),
        },
        control: ControlSettings {
            socket: reader.socket("control.socket", "/run/resumed/control.sock"),
            group: reader.parsed(
                "control.group",
                Some("resumed-control".to_owned()),
                "a group's name, or \"\" for none",
                |text| if text.is_empty() { Ok(None) } else { account(text).map(|()| Some(text.to_owned())) },
                |group| group.clone().unwrap_or_else(|| "-".into()),
            ),
        },
        metrics: MetricsSettings {
            listen: reader.parsed(
                "metrics.listen",
                Some(SocketAddr::from(([127, 0, 0, 1], 9464))),
                "an IP address with a port, such as \"127.0.0.1:9464\" or \"[::1]:9464\"; or \"off\"",
                listen,
                |listen| listen.map_or("off".into(), |address| address.to_string()),
            ),
            page: reader.flag("metrics.page", true),
        },
    };
    compare(&settings, &mut reader);
    for (key, variable) in not_utf8 {
        reader.not_utf8(key, variable);
    }
    let (understood, mistakes) = reader.finish();
    (settings, understood, mistakes)
}

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn read_node(reader: &mut Reader, host: &str) -> NodeSettings {
    const NAME: &str = "1 to 128 printable ASCII characters without spaces, or \"\" for the host name";
    let node = NodeSettings {
        name: reader.parsed(
            "node.name",
            host.to_owned(),
            NAME,
            |text| if text.is_empty() { Ok(host.to_owned()) } else { node_name(text).map(|()| text.to_owned()) },
            |name| shown_text(name),
        ),
        farm: reader.text("node.farm", "default", GROUP_NAME, group_name),
        pod: reader.text("node.pod", "default", GROUP_NAME, group_name),
        max_clock_offset: reader.duration("node.max_clock_offset", 5 * MINUTE, SECOND..=HOUR, MILLISECOND),
        start_alone_after: reader.duration(
            "node.start_alone_after",
            10 * SECOND,
            100 * MILLISECOND..=HOUR,
            MILLISECOND,
        ),
    };
    if reader.sound(&["node.name"])
        && let Err(reason) = node_name(&node.name)
    {
        reader.object("node.name", format!("the host name {reason}"), NAME);
    }
    node
}

fn read_broker(reader: &mut Reader) -> BrokerSettings {
    BrokerSettings {
        uris: reader.uris("broker.uris"),
        ca_file: reader.optional_path("broker.ca_file"),
        cert_file: reader.optional_path("broker.cert_file"),
        key_file: reader.optional_path("broker.key_file"),
        password_file: reader.optional_path("broker.password_file"),
        passwords_in: None,
        heartbeat: reader.duration("broker.heartbeat", 5 * SECOND, SECOND..=5 * MINUTE, SECOND),
        report_every: reader.duration("broker.report_every", 2 * SECOND, 100 * MILLISECOND..=5 * MINUTE, MILLISECOND),
    }
}

fn read_keys(reader: &mut Reader) -> KeysSettings {
    let interval = reader.duration("keys.interval", 8 * HOUR, SECOND..=7 * DAY, MILLISECOND);
    KeysSettings {
        interval,
        keep: reader.number("keys.keep", 3, 1..=32),
        settle: reader.duration("keys.settle", 2 * SECOND, MILLISECOND..=7 * DAY, MILLISECOND),
        max_seal_age: reader.duration("keys.max_seal_age", 3 * interval, MILLISECOND..=365 * DAY, MILLISECOND),
        can_lead: reader.flag("keys.can_lead", true),
        directory: reader.path("keys.directory", "/run/resumed"),
        allow_disk: reader.flag("keys.allow_disk", false),
    }
}

fn read_sessions(reader: &mut Reader) -> SessionsSettings {
    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    SessionsSettings {
        replicate: reader.flag("sessions.replicate", true),
        removals: reader.parsed(
            "sessions.removals",
            RemovalPolicy::Replicate,
            "\"replicate\" or \"keep\"",
            |text| match text {
                "replicate" => Ok(RemovalPolicy::Replicate),
                "keep" => Ok(RemovalPolicy::Keep),
                _ => Err("is not known".into()),
            },
            |removals| match removals {
                RemovalPolicy::Replicate => "replicate".into(),
                RemovalPolicy::Keep => "keep".into(),
            },
        ),
        max_bytes: reader.size("sessions.max_bytes", 256 * MIB, MIB..=MIB * MIB),
        max_session_bytes: reader.size("sessions.max_session_bytes", 16 * KIB, 256..=512 * KIB),
        batch_bytes: reader.size("sessions.batch_bytes", 96 * KIB, KIB..=512 * KIB),
    }
}

/// Finds the settings that are well by themselves and cannot work together.
fn compare(settings: &Settings, reader: &mut Reader) {
    let Settings { broker, secret, keys, sessions, ats, control, .. } = settings;

    if reader.sound(&["broker.uris"]) && !broker.uris.is_empty() {
        if reader.sound(&["secret.files"]) && secret.files.is_empty() {
            reader.object(
                "secret.files",
                "a broker is configured, and nothing goes there unsealed",
                "at least one file made with `resumed secret new FILE`",
            );
        }
        let no_tls = !broker.uris.iter().any(BrokerUri::is_tls);
        for (key, file) in [("broker.ca_file", &broker.ca_file), ("broker.cert_file", &broker.cert_file)] {
            if no_tls && file.is_some() {
                reader.object(key, "no URI in broker.uris uses TLS", "amqps:// in broker.uris, or no such file");
            }
        }
        if broker.password_file.is_some() && broker.uris.iter().all(BrokerUri::has_password) {
            reader.object(
                "broker.password_file",
                "every URI in broker.uris carries a password already, so this one is of no use",
                "URIs without their password, or no such file",
            );
        }
    }
    if reader.sound(&["broker.cert_file", "broker.key_file"]) {
        if broker.cert_file.is_some() && broker.key_file.is_none() {
            reader.object("broker.cert_file", "there is no broker.key_file", "both or neither");
        }
        if broker.key_file.is_some() && broker.cert_file.is_none() {
            reader.object("broker.key_file", "there is no broker.cert_file", "both or neither");
        }
    }

    let interval = span(keys.interval);
    if reader.sound(&["keys.interval", "keys.settle"]) && keys.settle >= keys.interval / 2 {
        reader.object(
            "keys.settle",
            format!("is not below half of keys.interval, which is {interval}"),
            format!("a duration below {}", span(keys.interval / 2)),
        );
    }
    if reader.sound(&["keys.interval", "keys.max_seal_age"]) && keys.max_seal_age < 2 * keys.interval {
        reader.object(
            "keys.max_seal_age",
            format!("is less than twice keys.interval, which is {interval}"),
            format!("a duration of at least {}", span(2 * keys.interval)),
        );
    }

    if reader.sound(&["sessions.max_session_bytes", "sessions.batch_bytes"])
        && sessions.max_session_bytes > sessions.batch_bytes
    {
        reader.object(
            "sessions.max_session_bytes",
            format!("is more than sessions.batch_bytes, which is {}", bytes(sessions.batch_bytes)),
            format!("at most {}", bytes(sessions.batch_bytes)),
        );
    }

    if reader.sound(&["ats.socket", "control.socket"]) && ats.socket == control.socket {
        reader.object("control.socket", "is the same as ats.socket", "a path of its own");
    }
}

const GROUP_NAME: &str = "1 to 63 of a-z, 0-9 and -";

/// Checks the name of a farm or pod.
fn group_name(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("is empty".into());
    }
    if text.len() > 63 {
        return Err(format!("is {} bytes long", text.len()));
    }
    match text.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
        Some(c) => Err(format!("has the character {c:?}")),
        None => Ok(()),
    }
}

fn node_name(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("is empty".into());
    }
    if text.len() > 128 {
        return Err(format!("is {} bytes long", text.len()));
    }
    match text.chars().find(|c| !c.is_ascii_graphic()) {
        Some(c) => Err(format!("has the character {c:?}")),
        None => Ok(()),
    }
}

/// Checks the name of a user or group as far as no system has one with these characters.
fn account(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("is empty".into());
    }
    match text.chars().find(|c| c.is_whitespace() || c.is_control() || matches!(c, ':' | '/' | ',')) {
        Some(c) => Err(format!("has the character {c:?}")),
        None => Ok(()),
    }
}

fn listen(text: &str) -> Result<Option<SocketAddr>, String> {
    match text {
        "" | "off" => Ok(None),
        text => text.parse().map(Some).map_err(|_| "is not an IP address with a port".into()),
    }
}

#[cfg(test)]
mod tests;
