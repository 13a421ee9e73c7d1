//! The configuration, which an operator writes and a template may spoil.

use std::path::Path;

use resumed::BrokerUri;
use resumed::internals::bus::redact;
use resumed::internals::config;

/// The text of a configuration file.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match config::read_explained(Path::new("/etc/resumed/resumed.toml"), text) {
        Ok((_, understood, mistakes)) if !mistakes.is_empty() => {
            assert!(!understood.is_empty());
            assert!(mistakes.iter().all(|mistake| !mistake.to_string().is_empty()));
        }
        Ok((settings, understood, _)) => {
            assert!(!understood.is_empty());
            // What is accepted once is accepted always.
            assert!(settings.node.keys.settle < settings.node.keys.interval / 2);
            assert!(settings.node.keys.max_seal_age >= 2 * settings.node.keys.interval);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

const PASSWORD: &str = "hunter2";

/// A broker URI, and one with a password in the place of its first NUL: nothing of it may show.
pub fn uri(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(uri) = BrokerUri::parse(text) {
        assert!(!uri.has_password() || uri.to_string().contains(":***@"), "{uri}");
    }
    let Some((before, after)) = text.split_once('\0') else { return };
    if text.contains(PASSWORD) {
        return; // as a host's name it may show
    }
    let text = format!("{before}:{PASSWORD}@{after}");
    let shown = redact(&text);
    assert!(!shown.contains(PASSWORD), "{text:?} shows as {shown:?}");
    match BrokerUri::parse(&text) {
        Ok(uri) => assert!(!uri.to_string().contains(PASSWORD), "{text:?} shows as {uri}"),
        Err(reason) => assert!(!reason.to_string().contains(PASSWORD), "{text:?}: {reason}"),
    }
}
