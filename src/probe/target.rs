//! A host to probe: what the user wrote, and the one address that stands for it.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

/// Why a `HOST:PORT` cannot be probed.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum TargetFault {
    /// It is not of the form `HOST`, `HOST:PORT`, `ADDRESS` or `[ADDRESS]:PORT`.
    #[error("{input:?} is not HOST:PORT: {why}")]
    Malformed {
        /// As written.
        input: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The name has no address.
    #[error("cannot find the address of {host:?}: {why}")]
    Unresolved {
        /// The name.
        host: String,
        /// The resolver's reason.
        why: String,
    },
}

/// One host to probe. It stands for one address: a name with several is pinned to the first that takes a connection, or
/// each handshake might meet another machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    label: String,
    host: String,
    addr: SocketAddr,
}

impl Target {
    /// The port that stands for none.
    pub(crate) const DEFAULT_PORT: u16 = 443;

    /// Reads `HOST`, `HOST:PORT`, an IPv4 or IPv6 address, or `[IPV6]:PORT`, and resolves names. `timeout` limits each
    /// connection made to choose between several addresses of a name.
    ///
    /// # Errors
    /// If `input` is none of these, or the name has no address.
    pub(crate) fn resolve(input: &str, timeout: Duration) -> Result<Self, TargetFault> {
        let (host, port) = split(input).map_err(|why| TargetFault::Malformed { input: input.to_owned(), why })?;
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(Self::from(SocketAddr::new(ip, port)));
        }
        let unresolved = |why: String| TargetFault::Unresolved { host: host.to_owned(), why };
        let found = (host, port).to_socket_addrs().map_err(|error| unresolved(error.to_string()))?;
        let addrs: Vec<_> = found.collect();
        let first = *addrs.first().ok_or_else(|| unresolved("the resolver knows no address".into()))?;
        let answers = |addr: &&SocketAddr| TcpStream::connect_timeout(addr, timeout).is_ok();
        // If none answers, the handshake with the first will say why.
        let addr = if addrs.len() == 1 { first } else { addrs.iter().find(answers).copied().unwrap_or(first) };
        Ok(Self { label: format!("{host}:{port}"), host: host.to_owned(), addr })
    }

    /// Whether `input` has the form that [`Target::resolve`] reads, without asking a resolver.
    ///
    /// # Errors
    /// [`TargetFault::Malformed`].
    pub(crate) fn check(input: &str) -> Result<(), TargetFault> {
        split(input).map(|_| ()).map_err(|why| TargetFault::Malformed { input: input.to_owned(), why })
    }

    /// `HOST:PORT` as it was given, with the port.
    #[must_use]
    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    /// The name or address without the port, and without brackets.
    #[must_use]
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// The host name; `None` if the host was given by address.
    #[must_use]
    pub(crate) fn name(&self) -> Option<&str> {
        self.host.parse::<IpAddr>().is_err().then_some(self.host.as_str()).filter(|host| !host.contains('%'))
    }

    /// The address that is connected to.
    #[must_use]
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl From<SocketAddr> for Target {
    fn from(addr: SocketAddr) -> Self {
        Self { label: addr.to_string(), host: addr.ip().to_string(), addr }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)
    }
}

fn split(input: &str) -> Result<(&str, u16), &'static str> {
    if input.contains("://") || input.contains('/') {
        return Err("a URL is not wanted, only the host and its port");
    }
    let (host, port) = if let Some(rest) = input.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or("the closing ] is missing")?;
        let address = host.split('%').next().unwrap_or(host);
        address.parse::<Ipv6Addr>().map_err(|_| "between [ and ] must stand an IPv6 address")?;
        match rest.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if rest.is_empty() => (host, None),
            None => return Err("after ] only :PORT may stand"),
        }
    } else if input.bytes().filter(|&b| b == b':').count() > 1 {
        let address = input.split('%').next().unwrap_or(input);
        address.parse::<Ipv6Addr>().map_err(|_| "more than one colon, and no IPv6 address")?;
        (input, None)
    } else {
        match input.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (input, None),
        }
    };
    if host.is_empty() {
        return Err("the host is missing");
    }
    if host.len() > 255 || !host.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("a host has 1 to 255 ASCII characters without blanks (write other names in their xn-- form)");
    }
    let port = match port {
        None => Target::DEFAULT_PORT,
        Some(port) => {
            let digits = Some(port).filter(|port| port.bytes().all(|b| b.is_ascii_digit()));
            let number = digits.and_then(|port| port.parse().ok()).filter(|&port: &u16| port != 0);
            number.ok_or("the port must be a number from 1 to 65535")?
        }
    };
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_with_and_without_port_in_both_families() {
        for (input, host, port) in [
            ("edge.example", "edge.example", 443),
            ("edge.example:8443", "edge.example", 8443),
            ("192.0.2.1", "192.0.2.1", 443),
            ("192.0.2.1:1", "192.0.2.1", 1),
            ("::1", "::1", 443),
            ("2001:db8::7", "2001:db8::7", 443),
            ("[::1]", "::1", 443),
            ("[2001:db8::7]:65535", "2001:db8::7", 65535),
            ("[fe80::1%eth0]:44", "fe80::1%eth0", 44),
        ] {
            assert_eq!(split(input), Ok((host, port)), "{input}");
        }
    }

    #[test]
    fn what_is_no_host_is_refused_with_the_reason() {
        for (input, why) in [
            ("", "the host is missing"),
            (":443", "the host is missing"),
            ("host:", "1 to 65535"),
            ("host:0", "1 to 65535"),
            ("host:65536", "1 to 65535"),
            ("host:+1", "1 to 65535"),
            ("host:https", "1 to 65535"),
            ("https://host", "URL"),
            ("host/path", "URL"),
            ("[::1", "closing ]"),
            ("[::1]443", ":PORT"),
            ("[host]:443", "IPv6"),
            ("a:b:c", "colon"),
            ("two words", "blanks"),
        ] {
            let fault = Target::check(input).expect_err(input).to_string();
            assert!(fault.contains(why) && fault.contains(&format!("{input:?}")), "{input}: {fault}");
        }
    }

    #[test]
    fn labels_carry_the_port_and_brackets_and_names_only_names() {
        let second = Duration::from_secs(1);
        let target = Target::resolve("::1", second).unwrap();
        assert_eq!((target.label(), target.host(), target.name()), ("[::1]:443", "::1", None));
        let target = Target::resolve("localhost:9", second).unwrap();
        assert_eq!((target.label(), target.name()), ("localhost:9", Some("localhost")));
        assert!(target.addr().ip().is_loopback());
    }

    #[test]
    fn a_name_with_two_addresses_is_pinned_to_the_one_that_answers() {
        // Whichever family localhost names first, a listener on 127.0.0.1 alone is found.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let target = Target::resolve(&format!("localhost:{port}"), Duration::from_secs(1)).unwrap();
        assert_eq!(target.addr(), listener.local_addr().unwrap());
    }

    #[test]
    fn a_name_without_address_is_named_in_the_error() {
        let fault = Target::resolve("no-such-host.invalid", Duration::from_secs(1)).unwrap_err();
        assert!(fault.to_string().contains("\"no-such-host.invalid\""), "{fault}");
    }
}
