//! What the settings of all rooms have in common: how one that cannot work is told, and how values are written.
//!
//! Each room has a settings type of its own, which knows its defaults and its limits. `config` reads it from the
//! configuration; a server that embeds a node fills it in by hand. Both ask the same `faults`.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

/// One setting that cannot work, by itself or beside others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The setting, as `section.key` of the configuration.
    pub key: &'static str,
    /// Its value as it is written in the configuration. Never a password.
    pub value: String,
    /// What is wrong with it.
    pub reason: String,
    /// What would be accepted.
    pub accepted: String,
    /// The settings that it was compared with. With one of them at fault it says nothing.
    pub beside: &'static [&'static str],
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, value, reason, accepted, .. } = self;
        write!(f, "{key} = {value}: {reason}; accepted: {accepted}")
    }
}

/// Settings that cannot work: everything that is wrong with them, at least one fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingsError(Vec<Fault>);

impl SettingsError {
    /// Every fault.
    #[must_use]
    pub fn faults(&self) -> &[Fault] {
        &self.0
    }
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, fault) in self.0.iter().enumerate() {
            if place > 0 {
                f.write_str("; ")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for SettingsError {}

/// Whether there are no `faults`.
///
/// # Errors
/// All of them, if there are any.
pub(crate) fn refuse(faults: Vec<Fault>) -> Result<(), SettingsError> {
    if faults.is_empty() { Ok(()) } else { Err(SettingsError(faults)) }
}

/// What is wrong with `value` if it lies outside of `range`: "is too small", "is too large".
pub(crate) fn outside<T: PartialOrd>(value: &T, range: &RangeInclusive<T>) -> Option<&'static str> {
    match value {
        value if value < range.start() => Some("is too small"),
        value if value > range.end() => Some("is too large"),
        _ => None,
    }
}

/// Checks a path, of which the system may make what it likes.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn absolute_path(path: &Path) -> Result<(), String> {
    if path.as_os_str().as_encoded_bytes().contains(&0) {
        return Err("has a zero byte".into());
    }
    if path.is_absolute() { Ok(()) } else { Err("is not an absolute path".into()) }
}

/// Checks the name of a user or of a group, as far as no system has one with these characters.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn account_name(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("is empty".into());
    }
    match text.chars().find(|c| c.is_whitespace() || c.is_control() || matches!(c, ':' | '/' | ',')) {
        Some(c) => Err(format!("has the character {c:?}")),
        None => Ok(()),
    }
}

/// Collects faults, one setting after the other.
#[derive(Debug, Default)]
pub(crate) struct Faults(Vec<Fault>);

impl Faults {
    /// Expects a duration within `range`.
    pub(crate) fn span(&mut self, key: &'static str, value: Duration, range: &RangeInclusive<Duration>) {
        self.range(key, &value, range, |value| span(*value));
    }

    /// Expects a number of bytes within `range`.
    pub(crate) fn bytes(&mut self, key: &'static str, value: u64, range: &RangeInclusive<u64>) {
        self.range(key, &value, range, |value| bytes(*value));
    }

    /// Expects a value within `range`, which `show` writes.
    pub(crate) fn range<T: PartialOrd>(
        &mut self,
        key: &'static str,
        value: &T,
        range: &RangeInclusive<T>,
        show: impl Fn(&T) -> String,
    ) {
        if let Some(reason) = outside(value, range) {
            let accepted = format!("from {} to {}", show(range.start()), show(range.end()));
            let (value, reason) = (show(value), reason.to_owned());
            self.0.push(Fault { key, value, reason, accepted, beside: &[] });
        }
    }

    /// Expects what `checked` says to be nothing: it is what is wrong with `value`.
    pub(crate) fn text(&mut self, key: &'static str, value: &str, checked: Result<(), String>, accepted: &str) {
        if let Err(reason) = checked {
            let (value, accepted) = (format!("{value:?}"), accepted.to_owned());
            self.0.push(Fault { key, value, reason, accepted, beside: &[] });
        }
    }

    /// Notes a fault that a comparison found, unless one of what was compared is at fault already.
    pub(crate) fn compared(&mut self, fault: Fault) {
        let at_fault = |key: &&str| self.0.iter().any(|known| known.key == *key);
        if !at_fault(&fault.key) && !fault.beside.iter().any(at_fault) {
            self.0.push(fault);
        }
    }

    /// Takes the faults of another room.
    pub(crate) fn append(&mut self, mut others: Vec<Fault>) {
        self.0.append(&mut others);
    }

    /// All that were found.
    pub(crate) fn found(self) -> Vec<Fault> {
        self.0
    }
}

/// `value` as it is written in the configuration: `1h 30m`.
#[must_use]
pub(crate) fn span(value: Duration) -> String {
    humantime::format_duration(value).to_string()
}

/// `value` bytes as they are written in the configuration, in the largest unit that divides them: `256MiB`.
#[must_use]
pub(crate) fn bytes(value: u64) -> String {
    for (unit, name) in [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
        if value >= unit && value.is_multiple_of(unit) {
            return format!("{}{name}", value / unit);
        }
    }
    format!("{value}B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_names_the_setting_its_value_what_is_wrong_and_what_would_be_accepted() {
        let mut faults = Faults::default();
        faults.span("keys.interval", Duration::from_millis(10), &(Duration::from_secs(1)..=Duration::from_secs(90)));
        faults.bytes("sessions.max_bytes", 3 << 30, &(0..=1 << 30));
        faults.text("node.farm", "A", Err("has the character 'A'".to_owned()), "a-z");
        faults.text("node.pod", "a", Ok(()), "a-z");
        let error = refuse(faults.found()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "keys.interval = 10ms: is too small; accepted: from 1s to 1m 30s; sessions.max_bytes = 3GiB: is too large; \
             accepted: from 0B to 1GiB; node.farm = \"A\": has the character 'A'; accepted: a-z"
        );
        assert_eq!(refuse(Vec::new()), Ok(()));
    }

    #[test]
    fn a_users_name_has_nothing_that_no_system_takes() {
        for name in ["trafficserver", "_ats", "svc-ats.1", "ats$", "DOMAIN\\ats", "ätz"] {
            assert_eq!(account_name(name), Ok(()), "{name}");
        }
        assert_eq!(account_name(""), Err("is empty".to_owned()));
        for c in [' ', '\t', '\0', ':', '/', ','] {
            assert_eq!(account_name(&format!("a{c}b")), Err(format!("has the character {c:?}")));
        }
    }

    #[test]
    fn nothing_is_compared_with_what_is_at_fault_itself() {
        let compared = |key, beside| Fault {
            key,
            value: "1".to_owned(),
            reason: "is more".to_owned(),
            accepted: "less".to_owned(),
            beside,
        };
        let mut faults = Faults::default();
        faults.bytes("a", 5, &(0..=1));
        faults.compared(compared("b", &["a"]));
        faults.compared(compared("a", &["c"]));
        faults.compared(compared("c", &["b"]));
        let keys: Vec<_> = faults.found().iter().map(|fault| fault.key).collect();
        assert_eq!(keys, ["a", "c"]);
    }
}
