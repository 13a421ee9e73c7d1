//! Broker URIs, whose passwords show as `***` wherever they are printed.

use std::fmt;

use lapin::uri::{AMQPScheme, AMQPUri};

use crate::bus::address::Authority;

/// The parameters that the AMQP library understands in a URI's query; it ignores all others without a word.
const PARAMETERS: [&str; 5] = ["frame_max", "channel_max", "heartbeat", "connection_timeout", "auth_mechanism"];

/// A checked `amqp://` or `amqps://` URI. `Display` and `Debug` show its password as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct BrokerUri {
    text: String,
    tls: bool,
    password: bool,
    nameless_vhost: bool,
}

impl BrokerUri {
    /// Checks `text`. The error says what is wrong without repeating any of it: it may hold a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some((_, rest)) = text.split_once("://").filter(|(scheme, _)| is_amqp(scheme)) else {
            return Err("is not an AMQP URI (a comma within one is written %2C)".into());
        };
        let authority = Authority::of(text)?;
        // The library quotes what it does not understand behind a colon.
        let readable = authority.readable.parse();
        let uri: AMQPUri =
            readable.map_err(|reason: String| reason.split(':').next().unwrap_or_default().to_owned())?;
        let userinfo = authority.userinfo.unwrap_or_default();
        if text.contains('#') {
            return Err("has a # (within a password it is written %23)".into());
        }
        let query = rest.split_once('?').map_or("", |(_, query)| query);
        for parameter in query.split('&').filter(|part| !part.is_empty()) {
            let name = parameter.split('=').next().unwrap_or_default();
            if !PARAMETERS.contains(&name) {
                return Err(format!("has a parameter other than {}", PARAMETERS.join(", ")));
            }
        }
        let tls = uri.scheme == AMQPScheme::AMQPS;
        let (password, nameless_vhost) = (userinfo.contains(':'), uri.vhost.is_empty());
        Ok(Self { text: text.into(), tls, password, nameless_vhost })
    }

    /// The whole URI with its password, for the connection only: never to be printed or logged.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// Whether it is `amqps://`.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// Whether it names the virtual host with the empty name, as `amqp://host/` does (AMQP URI specification). Where none
    /// is named, as in `amqp://host`, it is `/`.
    #[must_use]
    pub fn has_nameless_vhost(&self) -> bool {
        self.nameless_vhost
    }

    /// Whether it carries a password.
    #[must_use]
    pub fn has_password(&self) -> bool {
        self.password
    }
}

impl fmt::Display for BrokerUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redact(&self.text))
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
            assert_eq!(parsed.expose(), uri);
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
            let reason = BrokerUri::parse(uri).expect_err(uri);
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
            ("mq1:5672", "is not an AMQP URI (a comma within one is written %2C)"),
        ] {
            assert_eq!(BrokerUri::parse(uri).expect_err(uri), reason, "{uri}");
        }
    }
}
