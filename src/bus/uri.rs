//! Broker URIs: read once, by one rule, for `resumed check` and for the connection. Their passwords show as `***` wherever
//! they are printed.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::str::FromStr;

use lapin::uri::{AMQPScheme, AMQPUri};
use zeroize::Zeroize;

use super::address::Authority;

/// The parameters that the AMQP library understands in a URI's query; it ignores all others without a word.
const PARAMETERS: [&str; 5] = ["frame_max", "channel_max", "heartbeat", "connection_timeout", "auth_mechanism"];

/// The longest name of a virtual host, in bytes: a short string of AMQP.
const LONGEST_VHOST: usize = 255;

/// A URI as the AMQP library takes it. Its password is erased when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Login(AMQPUri);

impl Deref for Login {
    type Target = AMQPUri;

    fn deref(&self) -> &AMQPUri {
        &self.0
    }
}

impl DerefMut for Login {
    fn deref_mut(&mut self) -> &mut AMQPUri {
        &mut self.0
    }
}

impl Drop for Login {
    fn drop(&mut self) {
        self.0.authority.userinfo.password.zeroize();
    }
}

/// What is wrong with a URI, without any of its text: that may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UriFault(String);

impl<T: Into<String>> From<T> for UriFault {
    fn from(fault: T) -> Self {
        Self(fault.into())
    }
}

/// A checked `amqp://` or `amqps://` URI. `Display` and `Debug` show its password as `***`; it is erased when the URI is
/// dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct BrokerUri {
    login: Login,
    shown: String,
    names_user: bool,
    password: bool,
}

impl FromStr for BrokerUri {
    type Err = UriFault;

    fn from_str(text: &str) -> Result<Self, UriFault> {
        let Some((_, rest)) = text.split_once("://").filter(|(scheme, _)| is_amqp(scheme)) else {
            return Err("is not an AMQP URI (a comma within one is written %2C)".into());
        };
        let authority = Authority::of(text)?;
        // The library quotes what it does not understand behind a colon.
        let readable = authority.readable.parse();
        let read: AMQPUri =
            readable.map_err(|reason: String| reason.split(':').next().unwrap_or_default().to_owned())?;
        let mut login = Login(read);
        if let Some(address) = authority.address {
            login.authority.host = address;
        }
        if text.contains('#') {
            return Err("has a # (within a password it is written %23)".into());
        }
        check_parameters(rest.split_once('?').map_or("", |(_, query)| query))?;
        if login.vhost.len() > LONGEST_VHOST {
            return Err(format!("names a virtual host that is longer than {LONGEST_VHOST} bytes").into());
        }
        let userinfo = authority.userinfo.unwrap_or_default();
        let names_user = !userinfo.is_empty() && !userinfo.starts_with(':');
        Ok(Self { login, shown: redact(text), names_user, password: userinfo.contains(':') })
    }
}

fn check_parameters(query: &str) -> Result<(), UriFault> {
    let name = |part: &str| part.split('=').next().unwrap_or_default().to_owned();
    match query.split('&').filter(|part| !part.is_empty()).all(|part| PARAMETERS.contains(&name(part).as_str())) {
        true => Ok(()),
        false => Err(format!("has a parameter other than {}", PARAMETERS.join(", ")).into()),
    }
}

impl BrokerUri {
    /// Checks `text`. The error says what is wrong without repeating any of it: it may hold a password.
    pub fn parse(text: &str) -> Result<Self, UriFault> {
        text.parse()
    }

    /// What the AMQP library takes. A URI that names no user logs in as `guest`, one without a password with `guest`.
    pub(super) fn login(&self) -> Login {
        self.login.clone()
    }

    /// Whether it is `amqps://`.
    #[must_use]
    pub(crate) fn is_tls(&self) -> bool {
        self.login.scheme == AMQPScheme::AMQPS
    }

    /// Whether it names the virtual host with the empty name, as `amqp://host/` does (AMQP URI specification). Where none
    /// is named, as in `amqp://host`, it is `/`.
    #[must_use]
    #[cfg(feature = "daemon")]
    pub(crate) fn has_nameless_vhost(&self) -> bool {
        self.login.vhost.is_empty()
    }

    /// Whether it names a user.
    #[must_use]
    pub(crate) fn names_user(&self) -> bool {
        self.names_user
    }

    /// Whether it carries a password.
    #[must_use]
    pub fn has_password(&self) -> bool {
        self.password
    }
}

impl fmt::Display for BrokerUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for BrokerUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BrokerUri({self})")
    }
}

fn is_amqp(scheme: &str) -> bool {
    scheme.eq_ignore_ascii_case("amqp") || scheme.eq_ignore_ascii_case("amqps")
}

/// `uri` with everything that is or may be a password as `***`, for broken URIs too: there, rather too much goes
/// than too little.
#[must_use]
pub fn redact(uri: &str) -> String {
    let Some((scheme, rest)) = uri.split_once("://") else {
        // Perhaps one half of a URI that was cut in two.
        return "***".into();
    };
    let scheme = if scheme.contains(['@', ':']) { "***" } else { scheme };
    // The last @, wherever it stands: a raw / or # in a password moves the host behind what a parser takes for it.
    let (user, rest) = match rest.rsplit_once('@') {
        Some((userinfo, rest)) => match userinfo.split_once(':') {
            Some((user, _)) => (format!("{user}:***@"), rest),
            None => (format!("{userinfo}@"), rest),
        },
        None => (String::new(), rest),
    };
    let (rest, query) = match rest.split_once('?') {
        Some((rest, query)) => (rest, Some(query)),
        None => (rest, None),
    };
    let query = query.map(|query| {
        let parts: Vec<String> = query
            .split('&')
            .map(|part| match part.split_once('=') {
                Some((name, _)) if !PARAMETERS.contains(&name) => format!("{name}=***"),
                Some(_) => part.into(),
                None => "***".into(),
            })
            .collect();
        format!("?{}", parts.join("&"))
    });
    format!("{scheme}://{user}{}{}", redact_port(rest), query.unwrap_or_default())
}

/// `host:port/…` with the port as `***` unless it is one: `user:password` looks the same.
fn redact_port(rest: &str) -> String {
    let host_end = if rest.starts_with('[') { rest.find(']').unwrap_or(0) } else { 0 };
    let Some(colon) = rest[host_end..].find(':').map(|at| host_end + at) else { return rest.into() };
    let (port, path) = match rest[colon + 1..].split_once('/') {
        Some((port, path)) => (port, Some(path)),
        None => (&rest[colon + 1..], None),
    };
    if port.bytes().all(|digit| digit.is_ascii_digit()) && port.len() <= 5 {
        return rest.into();
    }
    // What follows a slash may still be password: "user:pass/word".
    format!("{}:***{}", &rest[..colon], if path.is_some() { "/***" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_shows_as_stars() {
        for (uri, shown) in [
            ("amqp://resumed:hunter2@mq1:5672/vh", "amqp://resumed:***@mq1:5672/vh"),
            ("amqps://resumed:hunt%2Cer2@mq1/", "amqps://resumed:***@mq1/"),
            ("amqp://mq1", "amqp://mq1"),
            ("amqp://mq1:5672/%2f?heartbeat=9", "amqp://mq1:5672/%2f?heartbeat=9"),
            ("amqp://resumed@mq1:5672", "amqp://resumed@mq1:5672"),
            ("amqp://:hunter2@mq1", "amqp://:***@mq1"),
            ("amqp://resumed:hunter2@[::1]:5672/%2f", "amqp://resumed:***@[::1]:5672/%2f"),
            ("amqps://resumed@[2001:db8::5]/vh", "amqps://resumed@[2001:db8::5]/vh"),
            ("amqps://[fe80::1%25eth0]:5671/vh", "amqps://[fe80::1%25eth0]:5671/vh"),
        ] {
            let parsed = BrokerUri::parse(uri).unwrap();
            assert_eq!(parsed.to_string(), shown);
            assert_eq!(format!("{parsed:?}"), format!("BrokerUri({shown})"));
            assert_eq!(parsed.has_password(), uri.contains("hunt"), "{shown}");
            assert_eq!(parsed.is_tls(), uri.starts_with("amqps"));
        }
    }

    #[test]
    fn nothing_of_a_password_shows_in_a_broken_uri_or_its_error() {
        for uri in [
            "amqp://resumed:hunter2/x@mq1",
            "amqp://resumed:hunter2#x@mq1",
            "amqp://resumed:hunter2?x@mq1",
            "amqp://resumed:hunter2@x@[::1",
            "amqp://resumed:hunter2",
            "amqp://resumed:x/hunter2",
            "hunter2@mq1",
            "hunter2",
            "resumed:hunter2@mq1/vh",
            "resumed:hunter2://mq1/vh",
            "http://resumed:hunter2@mq1/vh",
            "amqp://resumed:hunter2@mq1:port/vh",
            "amqps://resumed:x@mq1/vh?password=hunter2",
            "amqps://resumed:x@mq1/vh?hunter2",
            "amqp://resumed:%ffhunter2@mq1",
            "amqp://mq1/vh?auth_mechanism=plain:hunter2@mq1",
        ] {
            let shown = redact(uri);
            assert!(!shown.contains("hunter"), "{uri} shows as {shown}");
            let reason = BrokerUri::parse(uri).expect_err(uri).to_string();
            assert!(!reason.contains("hunter"), "{uri}: {reason}");
        }
    }

    #[test]
    fn a_slash_with_nothing_behind_it_names_the_virtual_host_without_a_name() {
        for (uri, nameless) in [
            ("amqp://mq1", false),
            ("amqp://mq1/", true),
            ("amqp://mq1:5672/?heartbeat=5", true),
            ("amqp://mq1?heartbeat=5", false),
            ("amqp://mq1/%2f", false),
            ("amqp://mq1/%2F?heartbeat=5", false),
            ("amqps://u:p@[::1]/", true),
            ("amqps://u:p@[::1]:5671", false),
        ] {
            assert_eq!(BrokerUri::parse(uri).unwrap().has_nameless_vhost(), nameless, "{uri}");
        }
    }

    #[test]
    fn what_the_library_would_take_for_localhost_is_refused() {
        for (uri, reason) in [
            ("amqp://", "names no host"),
            ("amqp:///vh", "names no host"),
            ("amqp://u:p@/vh", "names no host"),
            ("amqp://[::1:5672", "has a [ without a ]"),
            ("amqp://[fe80::1]", "has a link-local address without its interface: write [fe80::1%25eth0]"),
            ("amqp://mq1#vh", "has a # (within a password it is written %23)"),
            (
                "amqp://mq1?verify=x",
                "has a parameter other than frame_max, channel_max, heartbeat, connection_timeout, auth_mechanism",
            ),
            ("amqp://mq1:99999", "invalid port number"),
            ("http://mq1", "is not an AMQP URI (a comma within one is written %2C)"),
            ("amqp:user:password@mq1", "is not an AMQP URI (a comma within one is written %2C)"),
            ("mq1:5672", "is not an AMQP URI (a comma within one is written %2C)"),
        ] {
            assert_eq!(BrokerUri::parse(uri).expect_err(uri).to_string(), reason, "{uri}");
        }
    }

    #[test]
    fn a_virtual_host_has_at_most_255_bytes() {
        let named = |length: usize| BrokerUri::parse(&format!("amqp://mq1/{}", "v".repeat(length)));
        assert!(named(255).is_ok());
        let fault = named(256).unwrap_err();
        assert_eq!(fault.to_string(), "names a virtual host that is longer than 255 bytes");
    }

    #[test]
    fn what_the_connection_takes_is_what_was_written() {
        let login = BrokerUri::parse("amqps://edge:hun%74er2@[2001:db8::5]:5999/vh").unwrap().login();
        assert_eq!(
            (login.authority.host.as_str(), login.authority.port, login.vhost.as_str()),
            ("2001:db8::5", 5999, "vh")
        );
        let user = &login.authority.userinfo;
        assert_eq!((user.username.as_str(), user.password.as_str()), ("edge", "hunter2"));
        for (uri, names_user) in
            [("amqp://mq1", false), ("amqp://:p@mq1", false), ("amqp://u@mq1", true), ("amqp://u:p@mq1", true)]
        {
            assert_eq!(BrokerUri::parse(uri).unwrap().names_user(), names_user, "{uri}");
        }
    }
}
