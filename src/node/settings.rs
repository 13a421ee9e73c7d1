//! The settings of a node.
//!
//! Each room has its own: this puts them together and says what has to fit across rooms. `config` reads them from the
//! configuration; a server that embeds a node fills [`NodeSettings`] in by hand.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use crate::keys::KeySettings;
use crate::sessions::SessionSettings;
use crate::settings::{Fault, Faults, SettingsError, refuse};

/// How a node behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSettings {
    /// Its name: 1 to 128 printable ASCII characters without spaces.
    pub name: String,
    /// The farm, `[a-z0-9-]{1,63}`: all nodes that share ticket keys and a farm secret.
    pub farm: String,
    /// The pod, `[a-z0-9-]{1,63}`: the nodes that share sessions.
    pub pod: String,
    /// The life of a key, and how far another node's clock may be off.
    pub keys: KeySettings,
    /// The beat, how often a node reports to the leader.
    pub report_every: Duration,
    /// How long a node with neither ring nor leader waits before it mints a key for itself.
    pub start_alone_after: Duration,
    /// Whether this node may lead and mint keys for the farm.
    pub can_lead: bool,
    /// Directory in which the ring outlives a restart; none: it does not.
    pub ring_directory: Option<PathBuf>,
    /// Whether that may be on a disk, or on memory that can be swapped to one.
    pub allow_disk: bool,
    /// Session-ID sessions.
    pub sessions: SessionSettings,
}

impl NodeSettings {
    /// How long a beat may be.
    pub const REPORT_EVERY: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(5 * 60);
    /// How long a node may wait before it starts alone.
    pub(crate) const START_ALONE_AFTER: RangeInclusive<Duration> =
        Duration::from_millis(100)..=Duration::from_secs(60 * 60);

    /// The node `name` of a farm, with every setting at its default but one: the ring is saved nowhere.
    #[must_use]
    pub fn new(name: &str, farm: &str, pod: &str) -> Self {
        Self {
            name: name.to_owned(),
            farm: farm.to_owned(),
            pod: pod.to_owned(),
            keys: KeySettings::default(),
            report_every: Duration::from_secs(2),
            start_alone_after: Duration::from_secs(10),
            can_lead: true,
            ring_directory: None,
            allow_disk: false,
            sessions: SessionSettings::default(),
        }
    }

    /// Checks the limits.
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
        faults.text("node.name", &self.name, node_name(&self.name), NODE_NAME);
        faults.text("node.farm", &self.farm, group_name(&self.farm), GROUP_NAME);
        faults.text("node.pod", &self.pod, group_name(&self.pod), GROUP_NAME);
        faults.span("node.start_alone_after", self.start_alone_after, &Self::START_ALONE_AFTER);
        faults.span("broker.report_every", self.report_every, &Self::REPORT_EVERY);
        faults.append(self.keys.faults());
        faults.append(self.sessions.faults());
        faults.found()
    }
}

/// What a node may be called, in words.
pub(crate) const NODE_NAME: &str = "1 to 128 printable ASCII characters without spaces";

/// What a farm or a pod may be called, in words.
pub(crate) const GROUP_NAME: &str = "1 to 63 of a-z, 0-9 and -";

/// Checks the name of a node.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn node_name(text: &str) -> Result<(), String> {
    name(text, 128, |c| c.is_ascii_graphic())
}

/// Checks the name of a farm or pod.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn group_name(text: &str) -> Result<(), String> {
    name(text, 63, |c| matches!(c, 'a'..='z' | '0'..='9' | '-'))
}

fn name(text: &str, longest: usize, fits: impl Fn(char) -> bool) -> Result<(), String> {
    if text.is_empty() {
        return Err("is empty".into());
    }
    if text.len() > longest {
        return Err(format!("is {} bytes long", text.len()));
    }
    match text.chars().find(|c| !fits(*c)) {
        Some(c) => Err(format!("has the character {c:?}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_of_a_node_are_within_the_limits() {
        assert_eq!(NodeSettings::new("edge-1", "default", "default").validate(), Ok(()));
    }

    #[test]
    fn a_name_that_the_settings_take_is_one_that_other_nodes_take() {
        let names = (0..=127_u8).map(|byte| format!("a{}", char::from(byte)));
        for name in names.chain(["".into(), "a".repeat(128), "a".repeat(129), "é".into()]) {
            assert_eq!(node_name(&name).is_ok(), crate::envelope::is_node_name(&name), "{name:?}");
        }
    }

    #[test]
    fn every_fault_of_a_node_is_told_at_once() {
        let mut settings = NodeSettings::new("edge 1", "Prod", "");
        settings.report_every = Duration::ZERO;
        settings.keys.keep = 0;
        settings.sessions.batch_bytes = 0;
        let error = settings.validate().unwrap_err();
        let keys: Vec<_> = error.faults().iter().map(|fault| fault.key).collect();
        assert_eq!(
            keys,
            ["node.name", "node.farm", "node.pod", "broker.report_every", "keys.keep", "sessions.batch_bytes"]
        );
        assert!(error.to_string().starts_with("node.name = \"edge 1\": has the character ' '; accepted: 1 to 128 "));
    }
}
