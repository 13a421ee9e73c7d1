//! The settings of the daemon around a node.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::bus::rabbitmq::RabbitMqSettings;
use crate::node::NodeSettings;
use crate::proxies::ats::AtsSettings;
use crate::settings::{Fault, Faults};

/// `[control]`: the socket for `status`, `rotate`, `revoke` and `reload`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlSettings {
    /// The Unix socket, at most [`crate::unix_socket::LONGEST_PATH`] bytes.
    pub socket: PathBuf,
    /// The group that may use it; none: root and the daemon's own user only. It should read no secret.
    pub group: Option<String>,
}

/// `[metrics]`: the HTTP server for `/metrics`, `/healthz` and the page for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricsSettings {
    /// Where it listens; none: nowhere.
    pub listen: Option<SocketAddr>,
    /// Whether it also serves the farm at a glance: `/` and `/farm.json`.
    pub page: bool,
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
