//! The commands of `resumed`: their arguments, and what they print.
//!
//! Exit codes: 0 ok, 1 failed, 2 a mistake in the usage or in the configuration. Errors go to standard error as one
//! line that begins with `resumed:`.

mod check;
pub(crate) mod control;
#[cfg(feature = "rustls")]
mod demo;
mod probe;
mod reload;
pub(crate) mod revoke;
pub(crate) mod rotate;
mod run;
mod secret;
pub(crate) mod status;
mod table;

use std::error::Error;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{self, ConfigError, DEFAULT_FILE};
use crate::daemon::Settings;
use crate::envelope::openssl_of_this_host;
use crate::secret_files::{self, farm_secret};

/// The command line.
#[derive(Parser, Clone, Debug)]
#[command(name = "resumed", version, max_term_width = 100)]
#[command(about = "Keeps TLS session resumption working across a farm of proxies")]
#[command(long_about = "\
Keeps TLS session resumption working across a farm of proxies.

One daemon runs beside each proxy. Through RabbitMQ the daemons share the keys that seal session tickets, rotated by an \
elected leader, and the session-ID sessions that each proxy creates. A client that shook hands with one host resumes on \
any other.")]
#[command(after_long_help = "\
Examples:
  Make the farm's secret, once, and copy the file to every node:
    resumed secret new /etc/resumed/farm.secret
  Read the configuration as the daemon would:
    resumed check --config ./resumed.toml
  See the farm, from any node:
    resumed status
  See whether any TLS servers resume each other's sessions, with or without resumed:
    resumed probe 192.0.2.11:443 192.0.2.12:443 --sni www.example.com

Exit codes: 0 ok, 1 failed, 2 a mistake in the usage or in the configuration.")]
pub struct Cli {
    /// The configuration file [default: /etc/resumed/resumed.toml]
    ///
    /// A file that is named must be there. The default one may be absent: then the defaults hold, and what the
    /// environment says as RESUMED__SECTION__KEY.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// What to log to standard error: error, warn, info, debug, trace or off [env: RESUMED_LOG]
    ///
    /// Also by module, separated by commas, as in `warn,resumed::farm=debug`. By default the daemon logs `info`, every
    /// other command `warn`.
    #[arg(long, global = true, value_name = "LEVEL")]
    pub(crate) log: Option<String>,

    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Subcommand, Clone, Debug)]
pub(crate) enum Command {
    /// Run a node of the farm, beside a proxy
    #[command(after_long_help = "\
SIGTERM ends it: it says farewell, so that the lease moves at once. SIGHUP reads the farm secrets again, as `resumed \
reload` does. Without broker.uris it runs alone.

Examples:
  resumed run
  resumed run --config ./resumed.toml --log debug")]
    Run,

    /// See a farm work within this process: no broker, no proxy, no root
    #[command(after_long_help = "\
Starts three nodes on an in-process bus and a TLS server beside each, resumes tickets between all of them, rotates the \
ticket key, and does it again. Exits 1 if any ticket was refused.

Example:
  resumed demo")]
    #[cfg(feature = "rustls")]
    Demo,

    /// Read the configuration and say what it means, or every mistake in it
    #[command(after_long_help = "\
Exits 2 if there is a mistake or a file that cannot be used. Passwords are shown as ***.

Examples:
  resumed check
  RESUMED__KEYS__INTERVAL=4h resumed check --config ./resumed.toml")]
    Check,

    /// Make farm secrets
    #[command(subcommand)]
    Secret(secret::SecretCommand),

    /// Show the whole farm, from any node
    #[command(after_long_help = "\
Asks the daemon on this host, which asks the leader. Never shows key material. A node is in step if it holds the \
leader's ticket keys and reports in time.

JSON keys: farm, pod, asked, leader, nodes[] {name, boot_id, pod, version, last_report_ms, in_step, clock_offset_ms, \
sessions, proxies[] {kind, version, certificate_digest, warnings[]}, secret_ids[], reload {state, at, reason}}, secrets {sealing[], next_step, other, safe, \
waiting_for[]}, ring {fingerprint, floor, sessions_from, keys[] {name_prefix, generation, state, seal_from, seal_until, \
open_until}}, broker {connected, uri}, audit[] {at, action, flush_sessions, node, user, outcome, generation}, warnings[]. \
Times are milliseconds, those of the ring and those called at since 1970 in UTC. next_step of the farm secrets is add, \
seal_first, remove, seal_first_or_remove or unknown. state of a node's last reload is none, taken, refused or not_said (by \
an older release). audit has the last requests of operators: action is rotate, revoke or revoke_local, outcome is done, \
pending, refused or no_leader, user is null where an older release does not say it.

Examples:
  resumed status
  resumed status --wait-in-step 60s && echo 'safe to restart the next node'
  resumed status --json | jq -r '.nodes[] | select(.in_step | not) | .name'")]
    Status(status::StatusArgs),

    /// Put a new ticket key into use everywhere, now
    #[command(after_long_help = "\
Works from any node: the request goes to the leader. Tickets that older keys sealed still open. If a rotation is under \
way already, waits for that one. Exits 1 if a node does not hold the key in time, and names it.

Examples:
  resumed rotate
  resumed rotate --wait 30s")]
    Rotate(rotate::RotateArgs),

    /// Put every ticket key out of use but a new one, everywhere, now: for emergencies
    #[command(after_long_help = "\
Works from any node: the request goes to the leader. Tickets that older keys sealed open nowhere any more, and their \
clients make full handshakes. Nodes that are away drop the older keys when they return. With --flush-sessions no \
session-ID session from before resumes either. Exits 1 if a node has not confirmed in time, and names it.

Where no leader can be reached, --local revokes on this host alone; the farm follows when this host is back.

If a host may be in foreign hands, give the farm a new secret first, without that host; see the README.

Examples:
  resumed revoke
  resumed revoke --flush-sessions --wait 30s
  resumed revoke --local")]
    Revoke(revoke::RevokeArgs),

    /// Have the daemon on this host read the farm secrets again, and say whether it took them
    #[command(after_long_help = "\
The files are those that secret.files names now; nothing else of the configuration is taken up. Exits 1 with the reason if \
one of them cannot be used: the daemon then goes on with the secrets of before, and `resumed status` on any node says so \
until a reload is taken. `systemctl reload resumed` does the same. SIGHUP does it without an answer.

Example:
  resumed reload && resumed status")]
    Reload(reload::ReloadArgs),

    /// See which TLS servers resume each other's sessions
    #[command(after_long_help = probe::LONG_HELP)]
    Probe(probe::ProbeArgs),
}

/// Where the daemon's control socket is.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct SocketArg {
    /// The daemon's control socket [default: control.socket in the configuration]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

impl SocketArg {
    /// The socket: as given, or from the configuration in `config`. Where that is not given, and the default file is one
    /// that this user may not read, from the environment and the defaults.
    ///
    /// # Errors
    /// If it is not given and the configuration cannot be used.
    pub(crate) fn path(&self, config: Option<&Path>) -> Result<PathBuf, Failure> {
        match &self.socket {
            Some(path) => Ok(path.clone()),
            None => match read_settings(config) {
                Ok(settings) => Ok(settings.control.socket),
                // As for the members of control.group, who are not to read what is in the file.
                Err(error) if config.is_none() && is_kept_from_us(&error) => Ok(config::load(None)?.control.socket),
                Err(error @ ConfigError::Unreadable { .. }) => {
                    Err(Failure::Usage(format!("{}; --socket names the control socket without it", in_full(&error))))
                }
                Err(error) => Err(error.into()),
            },
        }
    }
}

/// Whether there is a configuration that this user may not read.
fn is_kept_from_us(error: &ConfigError) -> bool {
    matches!(error, ConfigError::Unreadable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
}

impl SocketArg {
    /// The same from a configuration that may be wrong in other places, or in all: the daemon is to say so itself, and not
    /// this command alone.
    ///
    /// # Errors
    /// If it is not given and the configuration cannot be read.
    pub(crate) fn path_despite_mistakes(&self, config: Option<&Path>) -> Result<PathBuf, Failure> {
        if self.socket.is_some() {
            return self.path(config);
        }
        match config::load_explained(config_file(config)) {
            Ok((settings, ..)) => Ok(settings.control.socket),
            Err(ConfigError::Syntax { .. }) => Ok(config::defaults().control.socket),
            Err(_) => self.path(config),
        }
    }
}

/// Why a command did not do what it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It was tried, and failed: exit code 1.
    Failed(String),
    /// A mistake in the usage or in the configuration: exit code 2.
    Usage(String),
}

impl Failure {
    /// A failure for `error` and all that caused it.
    #[must_use]
    pub(crate) fn of(error: impl Error) -> Self {
        Self::Failed(in_full(&error))
    }

    /// 1 or 2.
    #[must_use]
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Failed(text) | Self::Usage(text)) = self;
        f.write_str(text)
    }
}

impl From<control::ControlError> for Failure {
    fn from(error: control::ControlError) -> Self {
        Self::of(error)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Usage(in_full(&error))
    }
}

impl From<io::Error> for Failure {
    /// The result could not be printed.
    fn from(error: io::Error) -> Self {
        Self::Failed(format!("cannot print the result: {error}"))
    }
}

/// `error` and its causes in one line, each cause once: some errors quote theirs already.
fn in_full(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

/// Runs the command that the arguments of this process name.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.run(&mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("resumed: {failure}");
            ExitCode::from(failure.code())
        }
    }
}

impl Cli {
    /// Runs the command and prints its result to `out`.
    ///
    /// # Errors
    /// If it failed, or was used wrongly.
    pub(crate) fn run(&self, out: &mut impl Write) -> Result<(), Failure> {
        let level = if matches!(self.command, Command::Run) { "info" } else { "warn" };
        start_logging(self.log.as_deref(), level)?;
        let config = self.config.as_deref();
        match &self.command {
            Command::Run => run::run(read_settings(config)?, config),
            #[cfg(feature = "rustls")]
            Command::Demo => run::run_demo(out),
            Command::Check => check(config, out),
            Command::Secret(command) => secret::run(command, out),
            Command::Status(args) => status::run(args, &args.socket.path(config)?, out),
            Command::Rotate(args) => rotate::run(args, &args.socket.path(config)?, out),
            Command::Revoke(args) => revoke::run(args, &args.socket.path(config)?, out),
            Command::Reload(args) => reload::run(&args.socket.path_despite_mistakes(config)?, out),
            Command::Probe(args) => probe::run(args, out),
        }
    }
}

/// The file to read: `config` if it was given, else the default one if it is there.
fn config_file(config: Option<&Path>) -> Option<&Path> {
    config.or_else(|| Some(Path::new(DEFAULT_FILE)).filter(|file| !matches!(file.try_exists(), Ok(false))))
}

/// The settings from the file in `config`, or from the default one if that is there, and from the environment.
///
/// # Errors
/// If the file cannot be read, or there are mistakes.
pub(crate) fn read_settings(config: Option<&Path>) -> Result<Settings, ConfigError> {
    config::load(config_file(config))
}

fn check(config: Option<&Path>, out: &mut impl Write) -> Result<(), Failure> {
    let agreements = openssl_of_this_host().map_err(|missing| Failure::Usage(missing.to_string()))?;
    let file = config_file(config);
    let (settings, understood, mistakes) = config::load_explained(file)?;
    let problems = check::problems(&settings).map_err(|error| Failure::Failed(error.to_string()))?;
    if mistakes.is_empty() {
        write!(out, "{}", check::understood(&understood, file))?;
        write!(out, "{}", check::host(openssl::version::version(), agreements))?;
        write!(out, "{}", check::uri_warnings(&settings.broker.uris))?;
        write!(
            out,
            "{}",
            check::warnings(&secret_files::warnings(
                &settings.broker_secrets(),
                &settings.secret_files,
                settings.control.group.as_deref()
            ))
        )?;
    }
    if !mistakes.is_empty() || !problems.is_empty() {
        return Err(Failure::Usage(check::told(&mistakes, &problems).trim_end().to_owned()));
    }
    // What `run` would refuse, and as it would say it, should the files not be all.
    if !settings.secret_files.is_empty() {
        farm_secret::read_all(&settings.secret_files).map_err(|error| Failure::Usage(error.to_string()))?;
    }
    if !settings.broker.uris.is_empty() {
        settings.broker.check().map_err(|error| Failure::Usage(error.to_string()))?;
    }
    Ok(())
}

/// Logs to standard error from now on, as `log` or else `RESUMED_LOG` or else `default` says.
///
/// # Errors
/// If it says nothing that can be understood, or if something logs already.
pub(crate) fn start_logging(log: Option<&str>, default: &str) -> Result<(), Failure> {
    let from_env = std::env::var("RESUMED_LOG").ok().filter(|text| !text.is_empty());
    let (origin, text) = match (log, &from_env) {
        (Some(text), _) => ("--log", text),
        (None, Some(text)) => ("RESUMED_LOG", text.as_str()),
        (None, None) => ("", default),
    };
    let (filter, passed_over) = log_filter(text).map_err(|why| Failure::Usage(format!("{origin} {text:?}: {why}")))?;
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    tracing_subscriber::registry()
        .with(lines)
        .with(filter)
        .try_init()
        .map_err(|error| Failure::Failed(format!("cannot start logging: {error}")))?;
    for why in passed_over {
        tracing::warn!("{origin}: {why}");
    }
    Ok(())
}

/// Crates that log what they send to the broker and get from it: `lapin` every message that is returned, with its body,
/// and at `trace` the login.
const AMQP_CRATES: [&str; 2] = ["lapin", "amq_protocol"];

/// What passes, and which directives were passed over: release 0.1.0 took them, and a daemon must start after its upgrade.
fn log_filter(text: &str) -> Result<(Targets, Vec<String>), String> {
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    let is_level = |part: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(part));
    // Left alone, the filter would take a misspelt level for the name of a module.
    let is_of_spans = |part: &&str| part.contains(['[', '{', '}', ']']);
    let (of_spans, parts): (Vec<_>, Vec<_>) = text.split(',').map(str::trim).partition(is_of_spans);
    let mut passed_over: Vec<String> =
        of_spans.iter().map(|part| format!("{part:?} is passed over: spans are not filtered any more")).collect();
    if let Some(part) = parts.iter().find(|part| !part.contains('=') && !is_level(part)) {
        return Err(format!("{part:?} is neither a level ({}) nor MODULE=LEVEL", LEVELS.join(", ")));
    }
    let asked: Targets = parts.join(",").parse().map_err(|error| format!("{error}"))?;
    let is_amqp = |target: &str| AMQP_CRATES.iter().any(|name| target.starts_with(name));
    let (of_amqp, others): (Vec<_>, Vec<_>) = asked.iter().partition(|(target, _)| is_amqp(target));
    let too_loud = of_amqp.iter().filter(|(_, level)| *level != LevelFilter::OFF);
    let words = |(target, _): &(&str, LevelFilter)| {
        format!("{target} stays off: it would log the broker's password and messages")
    };
    passed_over.extend(too_loud.map(words));
    let filter = Targets::new().with_targets(others).with_targets(AMQP_CRATES.map(|name| (name, LevelFilter::OFF)));
    Ok((asked.default_level().map_or(filter.clone(), |level| filter.with_default(level)), passed_over))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::secret_files::ACCEPTED_MODES;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_of_the_help_is_read_and_every_command_has_examples() {
        for line in [
            "resumed check --config ./resumed.toml",
            "resumed secret new /etc/resumed/farm.secret",
            "resumed status",
            "resumed --log debug status --wait-in-step 60s --json",
            "resumed rotate --wait 1m --config /x.toml --socket /y.sock",
            "resumed revoke --flush-sessions --local --wait 30s",
            "resumed reload --socket /y.sock",
            "resumed probe 192.0.2.11:443 192.0.2.12:443 --sni www.example.com",
            "resumed probe [2001:db8::11]:8443 --mode ticket12,ticket13 --timeout 500ms --tries 3 --ca ca.pem --json",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        let mut cli = Cli::command();
        assert!(cli.render_long_help().to_string().contains("Examples:"));
        let has_no_commands_below = |command: &&mut clap::Command| !["secret", "help"].contains(&command.get_name());
        for command in cli.get_subcommands_mut().filter(has_no_commands_below) {
            let help = command.render_long_help().to_string();
            assert!(help.contains("Example"), "{}", command.get_name());
        }
    }

    #[test]
    fn wrong_usage_is_refused_with_exit_code_2() {
        for line in [
            "resumed",
            "resumed nonsense",
            "resumed probe",
            "resumed probe host --mode tls14",
            "resumed probe host --tries 0",
            "resumed probe host --timeout soon",
            "resumed status --wait-in-step",
            "resumed secret new",
        ] {
            let error = parse(line).expect_err(line);
            assert!(error.use_stderr() && error.exit_code() == 2, "{line}: {error}");
        }
        assert_eq!(parse("resumed --version").unwrap_err().exit_code(), 0);
    }

    #[test]
    fn levels_are_read_and_misspelt_ones_are_not_taken_for_modules() {
        for good in ["info", "WARN", "off", "warn,resumed::farm=debug", "resumed=trace", "info, lapin=off"] {
            assert!(log_filter(good).is_ok(), "{good}");
        }
        for bad in ["vebose", "info,debgu", "resumed=loud", ""] {
            assert!(log_filter(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_directive_brings_the_messages_of_the_amqp_library_into_the_log() {
        let loud = ["trace,lapin=trace", "lapin::channel=debug", "info,amq_protocol=trace", "lapin::generated=error"];
        for (text, warnings) in loud.map(|text| (text, 1)).into_iter().chain([("trace", 0), ("trace,lapin=off", 0)]) {
            let (filter, passed_over) = log_filter(text).unwrap();
            assert_eq!(passed_over.len(), warnings, "{text}: {passed_over:?}");
            for target in ["lapin", "lapin::channel", "amq_protocol::frame"] {
                assert!(!filter.would_enable(target, &tracing::Level::ERROR), "{text}: {target}");
            }
            let asked = text.starts_with("trace") || text.starts_with("info");
            assert!(filter.would_enable("resumed", &tracing::Level::INFO) == asked, "{text}");
        }
    }

    #[test]
    fn what_the_release_before_took_for_spans_is_passed_over_with_a_warning() {
        let (filter, passed_over) = log_filter("warn,[handshake]=debug,resumed[link{id=3}]=trace").unwrap();
        assert_eq!(passed_over.len(), 2, "{passed_over:?}");
        assert!(passed_over[0].starts_with("\"[handshake]=debug\" is passed over"), "{passed_over:?}");
        assert!(filter.would_enable("resumed", &tracing::Level::WARN));
        assert!(!filter.would_enable("resumed", &tracing::Level::INFO));
    }

    #[test]
    fn the_socket_comes_from_the_argument_or_from_the_configuration() {
        let directory = crate::temporary::Folder::new();
        let file = directory.path().join("resumed.toml");
        std::fs::write(&file, "[control]\nsocket = \"/run/other/control.sock\"\n").unwrap();
        let from_file = SocketArg::default().path(Some(&file)).unwrap();
        assert_eq!(from_file, Path::new("/run/other/control.sock"));
        let given = SocketArg { socket: Some("/x.sock".into()) };
        assert_eq!(given.path(Some(&file)).unwrap(), Path::new("/x.sock"));
        std::fs::write(&file, "nonsense = 1\n[control]\nsocket = \"/run/other/control.sock\"\n").unwrap();
        assert_eq!(SocketArg::default().path(Some(&file)).unwrap_err().code(), 2);
        let despite = |file: &Path| SocketArg::default().path_despite_mistakes(Some(file));
        assert_eq!(despite(&file).unwrap(), Path::new("/run/other/control.sock"));
        std::fs::write(&file, "[control\n").unwrap();
        assert_eq!(despite(&file).unwrap(), Path::new("/run/resumed/control.sock"));
        assert_eq!(despite(&directory.path().join("none.toml")).unwrap_err().code(), 2);
        let missing = SocketArg::default().path(Some(&directory.path().join("none.toml"))).unwrap_err();
        assert!(missing.code() == 2 && missing.to_string().contains("--socket"), "{missing}");
        assert!(missing.to_string().contains("none.toml"), "{missing}");
    }

    #[test]
    fn only_a_configuration_that_is_kept_from_the_user_is_done_without() {
        let unreadable = |kind| ConfigError::Unreadable { path: DEFAULT_FILE.into(), source: io::Error::from(kind) };
        assert!(is_kept_from_us(&unreadable(io::ErrorKind::PermissionDenied)));
        assert!(!is_kept_from_us(&unreadable(io::ErrorKind::NotFound)));
        assert!(!is_kept_from_us(&ConfigError::Mistakes(Vec::new())));
    }

    #[test]
    fn check_prints_what_it_understood_or_every_mistake() {
        let directory = crate::temporary::Folder::new();
        let file = directory.path().join("resumed.toml");
        std::fs::write(&file, "[node]\nfarm = \"edge\"\n").unwrap();
        let mut out = Vec::new();
        check(Some(&file), &mut out).unwrap();
        let out = String::from_utf8(out).unwrap();
        assert!(out.contains("farm") && out.contains("edge"), "{out}");
        std::fs::write(&file, "[node]\nfarm = \"Edge!\"\n[keys]\nkeep = 0\n").unwrap();
        let failure = check(Some(&file), &mut Vec::new()).unwrap_err();
        assert_eq!(failure.code(), 2);
        assert!(failure.to_string().contains("node.farm") && failure.to_string().contains("keys.keep"), "{failure}");
    }

    #[test]
    fn check_takes_a_broker_by_its_ipv6_address_and_reads_it_as_the_connection_does() {
        let directory = crate::temporary::Folder::new();
        let (file, secret) = (directory.path().join("resumed.toml"), directory.path().join("farm.secret"));
        secret::run(&secret::SecretCommand::New { file: secret.clone() }, &mut Vec::new()).unwrap();
        let check = |uri: &str| {
            std::fs::write(&file, format!("[broker]\nuris = [{uri:?}]\n[secret]\nfiles = [{secret:?}]\n")).unwrap();
            let mut out = Vec::new();
            check(Some(&file), &mut out).map(|()| String::from_utf8(out).unwrap())
        };
        let out = check("amqp://resumed:hunter2@[2001:db8::5]:5999/farm").unwrap();
        assert!(out.contains("amqp://resumed:***@[2001:db8::5]:5999/farm"), "{out}");
        let failure = check("amqp://resumed@2001:db8::5/farm").unwrap_err();
        assert!(failure.code() == 2 && failure.to_string().contains("[2001:db8::5]:5672"), "{failure}");
    }

    #[test]
    fn check_warns_of_a_password_that_others_read_and_goes_on() {
        use std::os::unix::fs::PermissionsExt;
        let directory = crate::temporary::Folder::new();
        let file = |name: &str, text: &str, mode| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let secret = file("secret", &format!("{}\n", "0f".repeat(32)), 0o400);
        let password = file("password", "hunter2", 0o644);
        let toml = format!(
            "[broker]\nuris = [\"amqp://resumed@mq1\"]\npassword_file = {password:?}\n[secret]\nfiles = [{secret:?}]\n"
        );
        let mut out = Vec::new();
        check(Some(&file("resumed.toml", &toml, 0o600)), &mut out).unwrap();
        let out = String::from_utf8(out).unwrap();
        let expected = format!(
            "\n1 warning about files with secrets\n\nbroker.password_file = {}\n  warning   has mode 0644, which lets others \
             at it\n  better    give it {ACCEPTED_MODES}\n",
            password.display()
        );
        assert!(out.starts_with(&directory.path().display().to_string()) && out.contains("[broker]"), "{out}");
        assert!(out.contains(&expected) && !out.contains("hunter2"), "{out}");
    }

    #[test]
    fn causes_are_told_in_one_line_and_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot open it")]
        struct Outer(#[source] io::Error);
        #[derive(Debug, thiserror::Error)]
        #[error("cannot open it: {0}")]
        struct Quotes(#[source] io::Error);
        let cause = || io::Error::other("disk on fire");
        assert_eq!(in_full(&Outer(cause())), "cannot open it: disk on fire");
        assert_eq!(in_full(&Quotes(cause())), "cannot open it: disk on fire");
    }
}
