//! The settings: a TOML file, any key of which the environment overrides as `RESUMED__SECTION__KEY`.
//!
//! `etc/resumed.toml` documents every key with its default. In short: durations are texts with a unit (`"8h"`,
//! `"1h 30m"`), sizes are texts (`"256MiB"`) or numbers of bytes, lists in the environment are comma-separated, paths
//! are absolute, and an empty text means "none" where a setting may be absent. A key that is not known is a mistake,
//! and all mistakes are reported together.

mod reader;
mod uri;

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{File as TomlFile, FileFormat, Map, Source, Value};

pub use reader::{Mistake, Origin, Understood};
use reader::{Reader, bytes, shown_text, span};
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
            None => Map::new(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|source| ConfigError::Unreadable { path: path.into(), source })?;
                parse_toml(path, &text)?
            }
        };
        let host = nix::unistd::gethostname().unwrap_or_default();
        let (mut settings, understood, mistakes) = understand(file, std::env::vars_os(), &host);
        let from_file = |of: &Understood| of.key == "broker.uris" && of.origin == Origin::File;
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
        Ok(understand(parse_toml(path, text)?, std::iter::empty(), &host))
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
        understand(Map::new(), std::iter::empty(), &host).0
    }
}

fn parse_toml(path: &Path, text: &str) -> Result<Map<String, Value>, ConfigError> {
    TomlFile::from_str(text, FileFormat::Toml).collect().map_err(|error| {
        let cause = match error {
            config::ConfigError::FileParse { cause, .. } => cause.to_string(),
            other => other.to_string(),
        };
        // The parser draws the line at fault with a bar beside it: it may hold a password.
        let lines = cause.lines().map(str::trim).filter(|line| !line.is_empty() && !line.contains('|'));
        ConfigError::Syntax { path: path.into(), reason: lines.collect::<Vec<_>>().join(": ") }
    })
}

/// The settings, what was understood, and the mistakes; defaults stand where there are mistakes.
fn understand(
    file: Map<String, Value>,
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
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    type Outcome = (Settings, Vec<Understood>, Vec<Mistake>);

    fn with_host(toml: &str, variables: &[(&str, &str)], host: &str) -> Outcome {
        let file = parse_toml(Path::new("test.toml"), toml).expect("valid TOML");
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
        understand(file, variables, OsStr::new(host))
    }

    fn outcome(toml: &str, variables: &[(&str, &str)]) -> Outcome {
        with_host(toml, variables, "host1")
    }

    fn lines(toml: &str, variables: &[(&str, &str)]) -> Vec<String> {
        outcome(toml, variables).2.iter().map(ToString::to_string).collect()
    }

    fn good(toml: &str, variables: &[(&str, &str)]) -> Settings {
        let (settings, _, mistakes) = outcome(toml, variables);
        assert_eq!(mistakes, [], "{}", in_lines(&mistakes));
        settings
    }

    const DOCUMENTED: &str = include_str!("../etc/resumed.toml");

    /// `etc/resumed.toml` with every default that it shows in force.
    fn uncommented() -> String {
        let is_key = |line: &str| line.starts_with('#') && line.as_bytes().get(1).is_some_and(u8::is_ascii_lowercase);
        DOCUMENTED.lines().map(|line| if is_key(line) { &line[1..] } else { line }).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_documented_file_changes_nothing_as_it_is() {
        assert_eq!(good(DOCUMENTED, &[]), good("", &[]));
    }

    #[test]
    fn the_documented_file_shows_every_key_with_its_default() {
        let (settings, understood, mistakes) = outcome(&uncommented(), &[]);
        assert_eq!(mistakes, [], "{}", in_lines(&mistakes));
        assert_eq!(settings, good("", &[]));
        for row in understood {
            assert_eq!(row.origin, Origin::File, "{} is not documented in etc/resumed.toml", row.key);
        }
    }

    #[test]
    fn the_defaults_are_those_that_are_promised() {
        let settings = Settings::default();
        assert!(!settings.node.name.is_empty());
        assert_eq!((settings.node.farm.as_str(), settings.node.pod.as_str()), ("default", "default"));
        assert_eq!(settings.node.max_clock_offset, Duration::from_secs(300));
        assert_eq!(settings.node.start_alone_after, Duration::from_secs(10));
        assert_eq!(settings.broker.uris, []);
        assert_eq!(settings.broker.heartbeat, Duration::from_secs(5));
        assert_eq!(settings.broker.report_every, Duration::from_secs(2));
        assert_eq!(settings.keys.interval, Duration::from_secs(8 * 3600));
        assert_eq!(settings.keys.max_seal_age, Duration::from_secs(24 * 3600));
        assert_eq!((settings.keys.keep, settings.keys.settle), (3, Duration::from_secs(2)));
        assert!(settings.keys.can_lead && !settings.keys.allow_disk);
        assert!(settings.sessions.replicate);
        assert_eq!(settings.sessions.removals, RemovalPolicy::Replicate);
        assert_eq!(settings.sessions.max_bytes, 268_435_456);
        assert_eq!(settings.sessions.max_session_bytes, 16_384);
        assert_eq!(settings.sessions.batch_bytes, 98_304);
        assert_eq!(settings.ats.socket, Path::new("/run/resumed/ats.sock"));
        assert_eq!(settings.ats.users, ["trafficserver"]);
        assert_eq!(settings.control.group.as_deref(), Some("resumed-control"));
        assert_eq!(settings.metrics.listen, Some("127.0.0.1:9464".parse().unwrap()));
        assert!(settings.metrics.page);
    }

    #[test]
    fn the_environment_overrides_the_file_and_each_value_names_its_origin() {
        let toml = "[node]\nfarm = \"one\"\npod = \"fra\"\n[keys]\nkeep = 5\ncan_lead = true\n";
        let variables = [
            ("RESUMED__NODE__FARM", "two"),
            ("RESUMED__KEYS__KEEP", "7"),
            ("RESUMED__KEYS__CAN_LEAD", "false"),
            ("RESUMED__KEYS__INTERVAL", "1h 30m"),
            ("RESUMED__SESSIONS__MAX_BYTES", "1073741824"),
            ("RESUMED__BROKER__URIS", "amqp://a, amqps://b:99/vh ,"),
            ("RESUMED__SECRET__FILES", "/etc/a,/etc/b"),
            ("RESUMED__ATS__USERS", ""),
            ("RESUMED__METRICS__LISTEN", "off"),
            ("RESUMED__METRICS__PAGE", "false"),
            ("RESUMED__CONTROL__GROUP", ""),
            ("RESUMED_LOG", "debug"),
            ("PATH", "/bin"),
        ];
        let (settings, understood, mistakes) = outcome(toml, &variables);
        assert_eq!(mistakes, []);
        assert_eq!((settings.node.farm.as_str(), settings.node.pod.as_str()), ("two", "fra"));
        assert_eq!((settings.keys.keep, settings.keys.can_lead), (7, false));
        assert_eq!(settings.keys.interval, Duration::from_secs(5400));
        assert_eq!(settings.keys.max_seal_age, Duration::from_secs(3 * 5400));
        assert_eq!(settings.sessions.max_bytes, 1 << 30);
        let uris: Vec<&str> = settings.broker.uris.iter().map(BrokerUri::expose).collect();
        assert_eq!(uris, ["amqp://a", "amqps://b:99/vh"]);
        assert_eq!(settings.secret.files, [Path::new("/etc/a"), Path::new("/etc/b")]);
        assert!(settings.ats.users.is_empty());
        assert_eq!((settings.metrics.listen, settings.metrics.page), (None, false));
        assert_eq!(settings.control.group, None);

        let origin = |key| understood.iter().find(|row| row.key == key).unwrap().origin.clone();
        assert_eq!(origin("node.farm"), Origin::Environment("RESUMED__NODE__FARM".into()));
        assert_eq!(origin("node.pod"), Origin::File);
        assert_eq!(origin("node.name"), Origin::Default);
    }

    #[test]
    fn durations_combine_units_and_sizes_may_be_numbers() {
        let settings = good(
            "[keys]\ninterval = \"1h 30m\"\nsettle = \"1s 500ms\"\n[sessions]\nmax_bytes = 2097152\n\
             max_session_bytes = \"1KiB\"\nbatch_bytes = \"20kB\"\n",
            &[],
        );
        assert_eq!(settings.keys.interval, Duration::from_secs(5400));
        assert_eq!(settings.keys.settle, Duration::from_millis(1500));
        assert_eq!(settings.sessions.max_bytes, 2 << 20);
        assert_eq!((settings.sessions.max_session_bytes, settings.sessions.batch_bytes), (1024, 20_000));
    }

    #[test]
    fn every_mistake_is_told_in_full() {
        let long = "n".repeat(129);
        let cases: &[(&str, &str)] = &[
            ("[keys]\nkeep = 33", "keys.keep = 33 (file): is too large; accepted: a whole number from 1 to 32"),
            ("[keys]\nkeep = 0", "keys.keep = 0 (file): is too small; accepted: a whole number from 1 to 32"),
            (
                "[keys]\nkeep = \"3\"",
                "keys.keep = \"3\" (file): is not a whole number; accepted: a whole number from 1 to 32",
            ),
            (
                "[keys]\nkeep = 2.5",
                "keys.keep = 2.5 (file): is not a whole number; accepted: a whole number from 1 to 32",
            ),
            (
                "[keys]\ninterval = 28800",
                "keys.interval = 28800 (file): needs a unit, in quotes; accepted: a duration with its unit, such as \
                 \"1h 30m\", from 1s to 7days",
            ),
            (
                "[keys]\ninterval = \"28800\"",
                "keys.interval = \"28800\" (file): is not a duration: time unit needed, for example 28800sec or \
                 28800ms; accepted: a duration with its unit, such as \"1h 30m\", from 1s to 7days",
            ),
            (
                "[keys]\ninterval = \"8d\"",
                "keys.interval = \"8d\" (file): is too large; accepted: a duration with its unit, such as \"1h 30m\", \
                 from 1s to 7days",
            ),
            (
                "[keys]\ninterval = \"2s 1us\"\nsettle = \"1ms\"",
                "keys.interval = \"2s 1us\" (file): is not in whole milliseconds; accepted: a duration with its unit, \
                 such as \"1h 30m\", from 1s to 7days",
            ),
            (
                "[keys]\ninterval = \"4s\"",
                "keys.settle = 2s (default): is not below half of keys.interval, which is 4s; accepted: a duration \
                 below 2s",
            ),
            (
                "[keys]\nmax_seal_age = \"15h\"",
                "keys.max_seal_age = 15h (file): is less than twice keys.interval, which is 8h; accepted: a duration \
                 of at least 16h",
            ),
            (
                "[keys]\ncan_lead = \"yes\"",
                "keys.can_lead = \"yes\" (file): is neither true nor false; accepted: true or false, without quotes",
            ),
            (
                "[keys]\ndirectory = \"run\"",
                "keys.directory = \"run\" (file): is not an absolute path; accepted: an absolute path",
            ),
            (
                "[broker]\nheartbeat = \"1500ms\"",
                "broker.heartbeat = \"1500ms\" (file): is not in whole seconds; accepted: a duration with its unit, \
                 such as \"1h 30m\", from 1s to 5m",
            ),
            (
                "[broker]\nreport_every = \"1ms\"",
                "broker.report_every = \"1ms\" (file): is too small; accepted: a duration with its unit, such as \
                 \"1h 30m\", from 100ms to 5m",
            ),
            (
                "[broker]\nca_file = 7",
                "broker.ca_file = 7 (file): is not a text in quotes; accepted: an absolute path, or \"\" for none",
            ),
            (
                "[broker]\ncert_file = \"/c\"",
                "broker.cert_file = /c (file): there is no broker.key_file; accepted: both or neither",
            ),
            (
                "[broker]\nkey_file = \"/k\"",
                "broker.key_file = /k (file): there is no broker.cert_file; accepted: both or neither",
            ),
            (
                "[broker]\nuris = [\"amqp://mq1\"]",
                "secret.files = - (default): a broker is configured, and nothing goes there unsealed; accepted: at \
                 least one file made with `resumed secret new FILE`",
            ),
            (
                "[broker]\nuris = [\"amqp://mq1\"]\nca_file = \"/ca\"\n[secret]\nfiles = [\"/s\"]",
                "broker.ca_file = /ca (file): no URI in broker.uris uses TLS; accepted: amqps:// in broker.uris, or \
                 no such file",
            ),
            (
                "[broker]\nuris = [\"amqp://u:p@mq1\"]\npassword_file = \"/p\"\n[secret]\nfiles = [\"/s\"]",
                "broker.password_file = /p (file): every URI in broker.uris carries a password already, so this one \
                 is of no use; accepted: URIs without their password, or no such file",
            ),
            (
                "[broker]\nuris = \"amqp://u:hunter2@mq1\"",
                "broker.uris = \"amqp://u:***@mq1\" (file): is not a list, such as [\"one\", \"two\"]; accepted: URIs \
                 such as \"amqps://user:password@host:5671/vhost\"",
            ),
            (
                "[broker]\nuris = [\"amqp://mq1\", \"http://u:hunter2@mq2\"]",
                "broker.uris = \"http://u:***@mq2\" (file): is not an AMQP URI (a comma within one is written %2C); \
                 accepted: URIs such as \"amqps://user:password@host:5671/vhost\"",
            ),
            (
                "[node]\nfarm = \"Prod\"",
                "node.farm = \"Prod\" (file): has the character 'P'; accepted: 1 to 63 of a-z, 0-9 and -",
            ),
            ("[node]\npod = \"\"", "node.pod = \"\" (file): is empty; accepted: 1 to 63 of a-z, 0-9 and -"),
            (
                "[node]\nname = \"a b\"",
                "node.name = \"a b\" (file): has the character ' '; accepted: 1 to 128 printable ASCII characters \
                 without spaces, or \"\" for the host name",
            ),
            (
                "[node]\nmax_clock_offset = \"0s\"",
                "node.max_clock_offset = \"0s\" (file): is too small; accepted: a duration with its unit, such as \
                 \"1h 30m\", from 1s to 1h",
            ),
            (
                "[sessions]\nremovals = \"drop\"",
                "sessions.removals = \"drop\" (file): is not known; accepted: \"replicate\" or \"keep\"",
            ),
            (
                "[sessions]\nmax_bytes = \"lots\"",
                "sessions.max_bytes = \"lots\" (file): is not a size; accepted: a number of bytes or a size such as \
                 \"64KiB\", from 1MiB to 1TiB",
            ),
            (
                "[sessions]\nmax_bytes = -1",
                "sessions.max_bytes = -1 (file): is negative; accepted: a number of bytes or a size such as \
                 \"64KiB\", from 1MiB to 1TiB",
            ),
            (
                "[sessions]\nbatch_bytes = \"1MiB\"",
                "sessions.batch_bytes = \"1MiB\" (file): is too large; accepted: a number of bytes or a size such as \
                 \"64KiB\", from 1KiB to 512KiB",
            ),
            (
                "[sessions]\nbatch_bytes = \"8KiB\"",
                "sessions.max_session_bytes = 16KiB (default): is more than sessions.batch_bytes, which is 8KiB; \
                 accepted: at most 8KiB",
            ),
            (
                "[ats]\nsocket = \"ats.sock\"",
                "ats.socket = \"ats.sock\" (file): is not an absolute path; accepted: an absolute path of at most 107 \
                 bytes",
            ),
            (
                "[ats]\nusers = [\"ats\", \"a b\"]",
                "ats.users = \"a b\" (file): has the character ' '; accepted: user names",
            ),
            (
                "[ats]\nusers = [\"ats\", 33]",
                "ats.users = [\"ats\", 33] (file): is not a list of texts in quotes; accepted: user names",
            ),
            (
                "[control]\nsocket = \"/run/resumed/ats.sock\"",
                "control.socket = /run/resumed/ats.sock (file): is the same as ats.socket; accepted: a path of its own",
            ),
            (
                "[metrics]\nlisten = \"localhost:9464\"",
                "metrics.listen = \"localhost:9464\" (file): is not an IP address with a port; accepted: an IP \
                 address with a port, such as \"127.0.0.1:9464\" or \"[::1]:9464\"; or \"off\"",
            ),
            (
                "[keys]\nintervall = \"8h\"",
                "keys.intervall (file): unknown key; accepted: perhaps keys.interval is meant",
            ),
            (
                "[node]\ninterval = \"8h\"",
                "node.interval (file): unknown key; accepted: perhaps keys.interval is meant",
            ),
            ("[secret]\nrotation = 1", "secret.rotation (file): unknown key; accepted: the keys of secret: files"),
            (
                "[brokers]\nuris = []",
                "brokers (file): unknown section; accepted: perhaps broker is meant; the sections are node, broker, \
                 secret, keys, sessions, ats, control, metrics",
            ),
            (
                "[haproxy]",
                "haproxy (file): unknown section; accepted: the sections node, broker, secret, keys, sessions, ats, \
                 control, metrics",
            ),
            ("farm = \"x\"", "farm (file): stands outside of any section; accepted: perhaps node.farm is meant"),
            ("node = \"x\"", "node (file): is a section, not a key; accepted: a table [node]"),
            (
                "[broker.tls]\nca = \"/x\"",
                "broker.tls (file): unknown key; accepted: the keys of broker: uris, ca_file, cert_file, key_file, \
                 password_file, heartbeat, report_every",
            ),
        ];
        for (toml, expected) in cases {
            assert_eq!(lines(toml, &[]), [*expected], "for\n{toml}");
        }
        let socket = format!("[ats]\nsocket = \"/{}\"", "s".repeat(107));
        assert!(lines(&socket, &[])[0].contains("is 108 bytes long; accepted: an absolute path of at most 107 bytes"));
        let longest = format!("/{}", "s".repeat(106));
        assert_eq!(good(&format!("[ats]\nsocket = \"{longest}\""), &[]).ats.socket, Path::new(&longest));
        assert!(lines(&format!("[node]\nname = \"{long}\""), &[])[0].contains("is 129 bytes long"));
        assert!(lines(&format!("[node]\nfarm = \"{}\"", "f".repeat(64)), &[])[0].contains("is 64 bytes long"));
    }

    #[test]
    fn a_mistake_in_the_environment_names_the_variable() {
        let cases = [
            (
                ("RESUMED__KEYS__KEEP", "many"),
                "keys.keep = \"many\" (environment RESUMED__KEYS__KEEP): is not a whole number; accepted: a whole \
                 number from 1 to 32",
            ),
            (
                ("RESUMED__KEYS__CAN_LEAD", "1"),
                "keys.can_lead = \"1\" (environment RESUMED__KEYS__CAN_LEAD): is neither true nor false; accepted: \
                 true or false, without quotes",
            ),
            (
                ("RESUMED__KEYS__KEPT", "3"),
                "keys.kept (environment RESUMED__KEYS__KEPT): unknown key; accepted: perhaps keys.keep is meant",
            ),
            (
                ("RESUMED__KEY__KEEP", "3"),
                "key.keep (environment RESUMED__KEY__KEEP): unknown section; accepted: perhaps keys is meant; the \
                 sections are node, broker, secret, keys, sessions, ats, control, metrics",
            ),
            (
                ("RESUMED__NODE", "3"),
                "node (environment RESUMED__NODE): is a section, not a key; accepted: RESUMED__NODE__KEY",
            ),
            (
                ("RESUMED__FARM", "3"),
                "farm (environment RESUMED__FARM): stands outside of any section; accepted: perhaps node.farm is meant",
            ),
        ];
        for (variable, expected) in cases {
            assert_eq!(lines("", &[variable]), [expected], "for {variable:?}");
        }
        let bytes = OsString::from_vec(vec![b'f', 0xff]);
        let variables = [(OsString::from("RESUMED__NODE__FARM"), bytes)].into_iter();
        let (_, _, mistakes) = understand(Map::new(), variables, OsStr::new("host1"));
        assert_eq!(
            in_lines(&mistakes),
            "1 mistake in the configuration:\n  node.farm (environment RESUMED__NODE__FARM): is not UTF-8; accepted: \
             UTF-8 text"
        );
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let directory = crate::temporary::Folder::new();
        let path = directory.path().join("resumed.toml");
        std::fs::write(&path, "[node]\nfarm = \"A\"\npod = 3\n[keys]\nkeep = 99\nnonsense = 1\n[zoo]\nx = 1\n")
            .unwrap();
        let error = Settings::load(Some(&path)).expect_err("five mistakes");
        let ConfigError::Mistakes(mistakes) = &error else { panic!("{error}") };
        let keys: Vec<&str> = mistakes.iter().map(|mistake| mistake.key.as_str()).collect();
        assert_eq!(keys, ["node.farm", "node.pod", "keys.keep", "zoo", "keys.nonsense"]);
        assert!(error.to_string().starts_with("5 mistakes in the configuration:\n  node.farm = \"A\" (file): "));
    }

    #[test]
    fn one_mistake_does_not_bring_others_about() {
        // Neither settle nor max_seal_age is held against an interval that is itself a mistake.
        assert_eq!(lines("[keys]\ninterval = \"1ms\"\nmax_seal_age = \"1s\"", &[]).len(), 1);
        assert_eq!(lines("[broker]\nuris = [\"nonsense\"]", &[]).len(), 1);
    }

    #[test]
    fn secrets_are_in_no_message() {
        let hex = "c0ffee".repeat(10);
        let (settings, understood, mistakes) = outcome(
            "[broker]\nuris = [\"amqps://resumed:hunter2@mq1\"]\npassword_file = \"/etc/p\"\n[secret]\nfiles = [\"/s\"]",
            &[],
        );
        assert!(!format!("{settings:?} {understood:?} {mistakes:?}").contains("hunter2"));
        assert!(understood.iter().any(|row| row.value == "amqps://resumed:***@mq1"));

        for (toml, variable) in [
            (String::new(), Some(("RESUMED__BROKER__URIS", "amqp://resumed:hun,hunter2@mq1"))),
            (String::new(), Some(("RESUMED__BROKER__URIS", "amqp://resumed:a,hunter2,b@mq1"))),
            ("[broker]\nuri = \"amqp://resumed:hunter2@mq1\"".into(), None),
            ("[broker]\nuris = [\"resumed:hunter2@mq1\"]".into(), None),
            ("[broker]\nuris = \"resumed:hunter2@mq1\"".into(), None),
            ("[broker]\nuris = [\"amqp://resumed:hunter2@mq1\", 7]".into(), None),
            ("[broker]\npassword = \"hunter2\"".into(), None),
            ("[broker]\npassword_file = \"hunter2\"".into(), None),
            ("[broker]\npassword_file = [\"hunter2\"]".into(), None),
            ("password = \"hunter2\"".into(), None),
            (format!("[secret]\nfiles = [\"{hex}\"]"), None),
            (format!("[secret]\nfiles = \"{hex}\""), None),
            (format!("[secret]\nkey = \"{hex}\""), None),
        ] {
            let lines = lines(&toml, variable.as_slice()).join("\n");
            assert!(!lines.is_empty(), "{toml} passes");
            assert!(!lines.contains("hunter2") && !lines.contains("c0ffee"), "{lines}");
        }
    }

    #[test]
    fn a_file_whose_uris_carry_a_password_is_a_file_with_a_secret() {
        let directory = crate::temporary::Folder::new();
        let path = directory.path().join("resumed.toml");
        let passwords_in = |toml: &str| {
            std::fs::write(&path, format!("{toml}[secret]\nfiles = [\"/s\"]\n")).unwrap();
            Settings::load(Some(&path)).unwrap().broker.passwords_in
        };
        assert_eq!(passwords_in("[broker]\nuris = [\"amqp://mq1\"]\npassword_file = \"/p\"\n"), None);
        assert_eq!(passwords_in(""), None);
        let found = passwords_in("[broker]\nuris = [\"amqp://mq1\", \"amqp://u:p@mq2\"]\n");
        assert_eq!(found, Some(path.clone()));
    }

    #[test]
    fn a_file_that_is_not_toml_is_told_with_its_line_but_not_its_text() {
        let toml = "[broker]\nuris = [\"amqp://resumed:hunter2@mq1\"\npassword_file = \"x\"\n";
        let error = parse_toml(Path::new("/etc/x.toml"), toml).expect_err("no closing bracket");
        let text = error.to_string();
        assert!(
            text.starts_with("the configuration file /etc/x.toml is not valid TOML: TOML parse error at line "),
            "{text}"
        );
        assert!(!text.contains("hunter2") && !text.contains("amqp"), "{text}");
        for toml in [
            "[broker]\nuris = hunter2",
            "hunter2",
            "[a]\nx = \"hunter2",
            "[a]\nx = 1 hunter2",
            "hunter2 = 1\nhunter2 = 2",
        ] {
            let text = parse_toml(Path::new("x"), toml).expect_err(toml).to_string();
            assert!(text.contains("line "), "{text}");
            assert!(!text.contains("= hunter2") && !text.contains("\"hunter2"), "{text}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = Settings::load(Some(Path::new("/nonexistent/resumed.toml"))).expect_err("no file");
        assert_eq!(
            error.to_string(),
            "cannot read the configuration file /nonexistent/resumed.toml: No such file or directory (os error 2)"
        );
    }

    #[test]
    fn a_host_name_that_cannot_name_a_node_is_a_mistake_unless_there_is_a_name() {
        let (_, _, mistakes) = with_host("", &[], "");
        assert_eq!(
            in_lines(&mistakes),
            "1 mistake in the configuration:\n  node.name = - (default): the host name is empty; accepted: 1 to 128 \
             printable ASCII characters without spaces, or \"\" for the host name"
        );
        assert_eq!(with_host("[node]\nname = \"n1\"", &[], "").2, []);
        assert_eq!(with_host("[node]\nname = \"\"", &[], "h.example.net").0.node.name, "h.example.net");
    }

    #[test]
    fn files_that_are_missing_or_no_files_are_told_with_their_keys() {
        let directory = crate::temporary::Folder::new();
        let there = directory.path().join("there");
        std::fs::write(&there, "x").unwrap();
        let mut settings = Settings::default();
        settings.secret.files = vec![there.clone(), directory.path().join("missing")];
        settings.broker.ca_file = Some(directory.path().into());
        settings.broker.password_file = Some(there);
        let problems: Vec<(&str, String)> =
            settings.problems_on_disk().into_iter().map(|problem| (problem.key, problem.reason)).collect();
        assert_eq!(
            problems,
            [
                ("broker.ca_file", "is not a regular file".to_owned()),
                ("secret.files", "No such file or directory (os error 2)".to_owned()),
            ]
        );
    }
}
