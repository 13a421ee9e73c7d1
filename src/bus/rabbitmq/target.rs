//! One broker to connect to: its URI, with what the other settings add.

use lapin::uri::{AMQPScheme, SASLMechanism};
use zeroize::Zeroizing;

use super::FRAME_MAX;
use super::settings::RabbitMqSettings;
use crate::bus::BrokerUri;
use crate::bus::uri::Login;

/// See the module.
pub(super) struct BrokerTarget {
    pub(super) uri: Login,
    /// As shown to people.
    pub(super) shown: String,
    password: Zeroizing<String>,
}

impl BrokerTarget {
    /// `uri` with `password` if it has none of its own, and with what `settings` say of heartbeat and certificate.
    pub(super) fn of(uri: &BrokerUri, settings: &RabbitMqSettings, password: Option<&str>) -> Self {
        let mut login = uri.login();
        if !uri.names_user() && settings.cert_file.is_some() && login.scheme == AMQPScheme::AMQPS {
            login.query.auth_mechanism.get_or_insert(SASLMechanism::External);
        }
        if let Some(password) = password.filter(|_| !uri.has_password()) {
            login.authority.userinfo.password = password.to_owned();
        }
        let seconds = settings.heartbeat.as_millis().div_ceil(1_000).max(1);
        login.query.heartbeat = Some(u16::try_from(seconds).unwrap_or(u16::MAX));
        login.query.frame_max = Some(FRAME_MAX);
        let password = Zeroizing::new(login.authority.userinfo.password.clone());
        Self { uri: login, shown: uri.to_string(), password }
    }

    /// `text` without the password, should an error text ever hold it. Not if it equals the user name: that is worth
    /// reading, and such a password is no secret.
    pub(super) fn scrub(&self, text: &str) -> String {
        if self.password.is_empty() || *self.password == self.uri.authority.userinfo.username {
            return text.to_owned();
        }
        text.replace(self.password.as_str(), "***")
    }
}
