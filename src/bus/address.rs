//! Where a broker's URI points to: the one rule for `resumed check` and for the connection.
//!
//! The AMQP library reads URIs too, and takes every address in brackets for localhost. So it is given the URI without
//! the address, and what stands in brackets is read here.

use std::borrow::Cow;
use std::net::Ipv6Addr;

/// Longest name of a network interface (Linux, IFNAMSIZ without its NUL).
const LONGEST_ZONE: usize = 15;

/// The parts of a URI that tell where it points to (RFC 3986, section 3.2; zones: RFC 6874).
pub(super) struct Authority<'a> {
    /// What stands before the `@`, if one does: user name and password as they are written.
    pub(super) userinfo: Option<&'a str>,
    /// The IPv6 address in brackets, if one stands there, as the resolver takes it: `::1`, `fe80::1%eth0`.
    pub(super) address: Option<String>,
    /// The URI as the AMQP library can read it: with `localhost` where the brackets stood.
    pub(super) readable: Cow<'a, str>,
}

impl<'a> Authority<'a> {
    /// Reads the authority of `uri`. The error says what is wrong without repeating any of it: it may hold a password.
    pub(super) fn of(uri: &'a str) -> Result<Self, &'static str> {
        let start = uri.find("://").map_or(0, |at| at + 3);
        let authority = uri[start..].split(['/', '?', '#']).next().unwrap_or_default();
        let (userinfo, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
        if host.parse::<Ipv6Addr>().is_ok() {
            return Err("has an IPv6 address without brackets: write [2001:db8::5]:5672");
        }
        if host.is_empty() || host.starts_with(':') {
            return Err("names no host");
        }
        let Some(bracketed) = host.strip_prefix('[') else {
            return Ok(Self { userinfo, address: None, readable: Cow::Borrowed(uri) });
        };
        let (written, port) = bracketed.split_once(']').ok_or("has a [ without a ]")?;
        if !(port.is_empty() || port.starts_with(':')) {
            return Err("has something other than a port behind the ]");
        }
        let host_at = start + authority.len() - host.len();
        let port_at = host_at + host.len() - port.len();
        let readable = Cow::Owned(format!("{}localhost{}", &uri[..host_at], &uri[port_at..]));
        Ok(Self { userinfo, address: Some(address(written)?), readable })
    }
}

/// What stands in brackets, as the resolver takes it.
fn address(written: &str) -> Result<String, &'static str> {
    let (text, zone) = match written.split_once('%') {
        Some((text, zone)) => (text, Some(zone.strip_prefix("25").ok_or(ZONE_FORM)?)),
        None => (written, None),
    };
    let address: Ipv6Addr = text.parse().map_err(|_| "has brackets with no IPv6 address in them")?;
    match zone {
        None if address.is_unicast_link_local() => {
            Err("has a link-local address without its interface: write [fe80::1%25eth0]")
        }
        None => Ok(text.to_owned()),
        Some(_) if !address.is_unicast_link_local() => {
            Err("names an interface for an address that is not link-local (fe80::/10): leave it out")
        }
        Some(zone) if is_zone(zone) => Ok(format!("{text}%{zone}")),
        Some(_) => Err(ZONE_FORM),
    }
}

const ZONE_FORM: &str = "names no interface that there can be behind the %: it is written [fe80::1%25eth0]";

fn is_zone(zone: &str) -> bool {
    let usual = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=LONGEST_ZONE).contains(&zone.len()) && zone.bytes().all(usual)
}

/// The name that a broker's certificate has to hold for `host`: an address without its zone, which means something on
/// this host alone (RFC 4007, section 6).
#[must_use]
pub(super) fn certified(host: &str) -> &str {
    match host.split_once('%') {
        Some((address, _)) if address.contains(':') => address,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_in_brackets_is_taken_out() {
        for (uri, address, readable) in [
            ("amqp://[::1]", "::1", "amqp://localhost"),
            (
                "amqp://u:p%2f@[2001:db8::5]:5672/%2f?heartbeat=5",
                "2001:db8::5",
                "amqp://u:p%2f@localhost:5672/%2f?heartbeat=5",
            ),
            ("amqps://u@[::ffff:10.0.0.1]:5671/v", "::ffff:10.0.0.1", "amqps://u@localhost:5671/v"),
            ("amqps://[fe80::1%25eth0]/v", "fe80::1%eth0", "amqps://localhost/v"),
            ("amqps://[fe80::1%252]:1/v", "fe80::1%2", "amqps://localhost:1/v"),
        ] {
            let read = Authority::of(uri).unwrap();
            assert_eq!(read.address.as_deref(), Some(address), "{uri}");
            assert_eq!(read.readable, readable, "{uri}");
        }
    }

    #[test]
    fn a_name_stays_where_it_is() {
        for uri in ["amqp://mq1", "amqp://u:[x]@mq1:5672/v", "amqp://10.0.0.1:5672/[v]", "mq1:5672"] {
            let read = Authority::of(uri).unwrap();
            assert_eq!((read.address, read.readable), (None, Cow::Borrowed(uri)));
        }
    }

    #[test]
    fn what_leads_nowhere_is_refused() {
        for (uri, reason) in [
            ("amqp://", "no host"),
            ("amqp://u:p@:5672/v", "no host"),
            ("amqp://[::1:5672/v", "[ without a ]"),
            ("amqp://[::1]5672/v", "other than a port"),
            ("amqp://[]:5672/v", "no IPv6 address"),
            ("amqp://[mq1]/v", "no IPv6 address"),
            ("amqp://[10.0.0.1]/v", "no IPv6 address"),
            ("amqp://::1/v", "without brackets"),
            ("amqp://fd00::1:5672/v", "without brackets"),
            ("amqp://[fe80::1]/v", "link-local address without its interface"),
            ("amqp://[fe80::1%eth0]/v", "it is written [fe80::1%25eth0]"),
            ("amqp://[fe80::1%25]/v", "it is written [fe80::1%25eth0]"),
            ("amqp://[fe80::1%25a%20b]/v", "it is written [fe80::1%25eth0]"),
            ("amqp://[fe80::1%25sixteen-letters-]/v", "it is written [fe80::1%25eth0]"),
            ("amqp://[fd00::1%25eth0]/v", "not link-local"),
        ] {
            let said = Authority::of(uri).err().unwrap_or_else(|| panic!("{uri} is taken"));
            assert!(said.contains(reason), "{uri}: {said}");
        }
    }

    #[test]
    fn a_certificate_knows_no_zone() {
        for (host, name) in [("fe80::1%eth0", "fe80::1"), ("::1", "::1"), ("mq1", "mq1"), ("m%q", "m%q")] {
            assert_eq!(certified(host), name);
        }
    }
}
