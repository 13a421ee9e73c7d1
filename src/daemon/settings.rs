//! The settings of the daemon around a node.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::bus::rabbitmq::RabbitMqSettings;
use crate::node::NodeSettings;
use crate::proxies::ats::AtsSettings;
use crate::settings::{Fault, Faults, SettingsError, account_name, refuse};
use crate::unix_socket::{SOCKET_PATH, socket_path};

/// `[control]`: the socket for `status`, `rotate`, `revoke` and `reload`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlSettings {
    /// The Unix socket: an absolute path of at most 107 bytes.
    pub socket: PathBuf,
    /// The group that may use it; none: root and the daemon's own user only. It should read no secret.
    pub group: Option<String>,
}

impl Default for ControlSettings {
    fn default() -> Self {
        Self { socket: "/run/resumed/control.sock".into(), group: Some("resumed-control".to_owned()) }
    }
}

impl ControlSettings {
    /// What the group may be, in words.
    pub(crate) const GROUP: &str = "a group's name, or \"\" for none";

    /// Checks the limits.
    ///
    /// # Errors
    /// Every setting that is outside of its limits or does not fit the others.
    pub fn validate(&self) -> Result<(), SettingsError> {
        refuse(self.faults())
    }

    /// Every setting that is outside of its limits.
    #[must_use]
    pub(crate) fn faults(&self) -> Vec<Fault> {
        let mut faults = Faults::default();
        faults.text("control.socket", &self.socket.to_string_lossy(), socket_path(&self.socket), SOCKET_PATH);
        if let Some(group) = &self.group {
            faults.text("control.group", group, account_name(group), Self::GROUP);
        }
        faults.found()
    }
}

/// `[metrics]`: the HTTP server for `/metrics`, `/healthz` and the page for people. No value of it is at fault: whether the
/// host has the address is known when the server starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricsSettings {
    /// Where it listens; none: nowhere.
    pub listen: Option<SocketAddr>,
    /// Whether it also serves the farm at a glance: `/` and `/farm.json`.
    pub page: bool,
}

impl Default for MetricsSettings {
    fn default() -> Self {
        Self { listen: Some(SocketAddr::from(([127, 0, 0, 1], 9464))), page: true }
    }
}

/// All settings of the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `[node]`, `[keys]` and `[sessions]`, and the beat, which stands in `[broker]`.
    pub node: NodeSettings,
    /// `[broker]`. Without a URI this node runs alone.
    pub broker: RabbitMqSettings,
    /// No setting: the configuration file, if `broker.uris` is from there and one of them carries a password.
    pub passwords_in: Option<PathBuf>,
    /// `[secret]`: files made by `resumed secret new`. The first seals, all open. At least one as soon as there is a broker.
    pub secret_files: Vec<PathBuf>,
    /// `[ats]`
    pub ats: AtsSettings,
    /// `[control]`
    pub control: ControlSettings,
    /// `[metrics]`
    pub metrics: MetricsSettings,
}

impl Settings {
    /// Checks the limits of every room, and what has to fit across rooms.
    ///
    /// # Errors
    /// Every setting that is outside of its limits or does not fit the others.
    pub fn validate(&self) -> Result<(), SettingsError> {
        refuse(self.faults())
    }

    /// Every setting that is outside of its limits or does not fit the others.
    #[must_use]
    pub(crate) fn faults(&self) -> Vec<Fault> {
        let mut faults = Faults::default();
        if !self.broker.uris.is_empty() && self.secret_files.is_empty() {
            faults.compared(Fault {
                key: "secret.files",
                value: "-".to_owned(),
                reason: "a broker is configured, and nothing goes there unsealed".to_owned(),
                accepted: "at least one file made with `resumed secret new FILE`".to_owned(),
                beside: &["broker.uris"],
            });
        }
        faults.append(self.broker.faults());
        faults.append(self.node.faults());
        faults.append(self.ats.faults());
        faults.append(self.control.faults());
        if self.ats.socket == self.control.socket {
            faults.compared(Fault {
                key: "control.socket",
                value: self.control.socket.display().to_string(),
                reason: "is the same as ats.socket".to_owned(),
                accepted: "a path of its own".to_owned(),
                beside: &["ats.socket"],
            });
        }
        faults.found()
    }

    /// The files of the broker that hold a secret, each with the setting that names it.
    #[must_use]
    pub(crate) fn broker_secrets(&self) -> Vec<(&'static str, &Path)> {
        let files = [
            ("broker.password_file", &self.broker.password_file),
            ("broker.key_file", &self.broker.key_file),
            // Its own text, where it holds a password.
            ("broker.uris, with a password, in the file", &self.passwords_in),
        ];
        files.into_iter().filter_map(|(key, path)| Some((key, path.as_deref()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::control::ControlSocket;
    use crate::daemon::run::{RunError, run};
    use crate::unix_socket::SocketError;

    fn keys(faults: &[Fault]) -> Vec<&'static str> {
        faults.iter().map(|fault| fault.key).collect()
    }

    #[test]
    fn the_limits_of_the_control_socket_hold_at_both_ends() {
        let base = ControlSettings::default();
        assert_eq!(base.validate(), Ok(()));
        let at = |socket: &str| keys(&ControlSettings { socket: socket.into(), ..base.clone() }.faults());
        assert_eq!(at(&format!("/{}", "s".repeat(106))), [""; 0]);
        assert_eq!(at(&format!("/{}", "s".repeat(107))), ["control.socket"]);
        assert_eq!(at("control.sock"), ["control.socket"]);
        let of =
            |group: Option<&str>| keys(&ControlSettings { group: group.map(str::to_owned), ..base.clone() }.faults());
        assert_eq!(of(None), [""; 0]);
        assert_eq!(of(Some("")), ["control.group"]);
        assert_eq!(of(Some("a,b")), ["control.group"]);
    }

    #[test]
    fn no_control_socket_is_made_of_settings_that_cannot_work() {
        let settings = ControlSettings { socket: "control.sock".into(), group: Some("a b".to_owned()) };
        let error = ControlSocket::open(&settings).unwrap_err();
        assert!(matches!(error, SocketError::Settings(_)), "{error:?}");
        assert_eq!(
            error.to_string(),
            "control.socket = \"control.sock\": is not an absolute path; accepted: an absolute path of at most 107 bytes; \
             control.group = \"a b\": has the character ' '; accepted: a group's name, or \"\" for none"
        );
    }

    #[tokio::test]
    async fn a_daemon_does_not_run_with_settings_that_cannot_work() {
        let mut settings = crate::config::defaults();
        settings.broker.uris = vec![crate::bus::BrokerUri::parse("amqp://broker").unwrap()];
        settings.ats.users = vec!["a b".to_owned()];
        settings.control.socket.clone_from(&settings.ats.socket);
        settings.control.group = Some(String::new());
        let ended = run(settings, || Ok(Vec::new())).await;
        let Err(RunError::Settings(error)) = ended else { panic!("{ended:?}") };
        assert_eq!(keys(error.faults()), ["secret.files", "ats.users", "control.group", "control.socket"]);
    }
}
