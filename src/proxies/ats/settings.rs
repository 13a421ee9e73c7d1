//! The settings of the plugins' socket, and their limits.

use std::path::PathBuf;

use crate::settings::{Fault, Faults, SettingsError, account_name, refuse};
use crate::unix_socket::{SOCKET_PATH, socket_path};

/// Where plugins meet their node, and which may: section `ats` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtsSettings {
    /// Where the socket is made: an absolute path of at most 107 bytes.
    pub socket: PathBuf,
    /// The users that may connect besides root and the daemon's own. One that does not exist is looked up again later.
    pub users: Vec<String>,
}

impl Default for AtsSettings {
    fn default() -> Self {
        Self { socket: "/run/resumed/ats.sock".into(), users: vec!["trafficserver".to_owned()] }
    }
}

impl AtsSettings {
    /// What [`AtsSettings::users`] may be, in words.
    pub(crate) const USERS: &str = "user names";

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
        faults.text("ats.socket", &self.socket.to_string_lossy(), socket_path(&self.socket), SOCKET_PATH);
        for user in &self.users {
            faults.text("ats.users", user, account_name(user), Self::USERS);
        }
        faults.found()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Socket;
    use super::*;
    use crate::unix_socket::SocketError;

    #[test]
    fn the_defaults_are_within_the_limits() {
        assert_eq!(AtsSettings::default().validate(), Ok(()));
    }

    #[test]
    fn the_limits_hold_at_both_ends() {
        let keys = |settings: AtsSettings| settings.faults().iter().map(|fault| fault.key).collect::<Vec<_>>();
        let at = |socket: &str| keys(AtsSettings { socket: socket.into(), ..AtsSettings::default() });
        assert_eq!(at(&format!("/{}", "s".repeat(106))), [""; 0]);
        assert_eq!(at(&format!("/{}", "s".repeat(107))), ["ats.socket"]);
        assert_eq!(at("ats.sock"), ["ats.socket"]);
        let of = |users: &[&str]| {
            let users = users.iter().map(ToString::to_string).collect();
            keys(AtsSettings { users, ..AtsSettings::default() })
        };
        assert_eq!(of(&[]), [""; 0]);
        assert_eq!(of(&["ats", "", "a b", "trafficserver"]), ["ats.users"; 2]);
    }

    #[test]
    fn no_socket_is_made_of_settings_that_cannot_work() {
        let settings = AtsSettings { socket: "ats.sock".into(), users: vec!["a:b".to_owned()] };
        let error = Socket::bind(settings.clone()).unwrap_err();
        assert!(
            matches!(&error, SocketError::Settings(said) if Err(said) == settings.validate().as_ref()),
            "{error:?}"
        );
        assert_eq!(
            error.to_string(),
            "ats.socket = \"ats.sock\": is not an absolute path; accepted: an absolute path of at most 107 bytes; \
             ats.users = \"a:b\": has the character ':'; accepted: user names"
        );
    }
}
