//! The settings that decide a ticket key's life, and their limits.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::clock::millis;
use crate::settings::{Fault, Faults, SettingsError, refuse, span};

/// What decides how ticket keys live. Every node of a farm should have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeySettings {
    /// How long a key seals before the next one takes over: 1 s to 7 d.
    pub interval: Duration,
    /// For how many intervals a superseded key goes on opening: 1 to 32.
    pub keep: u32,
    /// How long a node holds a key before it prefers it to an older one: 1 ms to less than half an interval.
    pub settle: Duration,
    /// The longest that a key may seal if no successor comes: two intervals to a year.
    pub max_seal_age: Duration,
    /// By how much the clocks of two nodes may differ before the one refuses the other's messages: 1 s to 1 h.
    pub max_clock_offset: Duration,
}

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

impl Default for KeySettings {
    /// The defaults of the configuration: 8 h, 3 intervals, 2 s, 24 h, 5 min.
    fn default() -> Self {
        let interval = Duration::from_secs(8 * 60 * 60);
        Self {
            interval,
            keep: 3,
            settle: 2 * SECOND,
            max_seal_age: 3 * interval,
            max_clock_offset: Duration::from_secs(300),
        }
    }
}

impl KeySettings {
    /// How long a key opens after it is superseded or may seal no longer: `keep` × `interval`.
    #[must_use]
    pub(crate) fn open_for(&self) -> Duration {
        self.interval.saturating_mul(self.keep)
    }

    /// How long an interval may be.
    pub(crate) const INTERVAL: RangeInclusive<Duration> = SECOND..=Duration::from_secs(7 * 24 * 60 * 60);
    /// For how many intervals a key may go on opening.
    pub(crate) const KEEP: RangeInclusive<u32> = 1..=32;
    /// How long a key may settle, as long as that is less than half an interval.
    pub(crate) const SETTLE: RangeInclusive<Duration> = MILLISECOND..=Duration::from_secs(7 * 24 * 60 * 60);
    /// How long a key may seal, as long as that is at least two intervals.
    pub const MAX_SEAL_AGE: RangeInclusive<Duration> = MILLISECOND..=Duration::from_secs(365 * 24 * 60 * 60);
    /// The longest [`open_for`](Self::open_for) within these limits: 32 intervals of 7 d.
    pub const LONGEST_OPEN_FOR: Duration = Self::INTERVAL.end().saturating_mul(*Self::KEEP.end());
    /// By how much clocks may be allowed to differ.
    pub(crate) const MAX_CLOCK_OFFSET: RangeInclusive<Duration> = SECOND..=Duration::from_secs(60 * 60);

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
        faults.span("keys.interval", self.interval, &Self::INTERVAL);
        faults.range("keys.keep", &self.keep, &Self::KEEP, u32::to_string);
        faults.span("keys.settle", self.settle, &Self::SETTLE);
        faults.span("keys.max_seal_age", self.max_seal_age, &Self::MAX_SEAL_AGE);
        faults.span("node.max_clock_offset", self.max_clock_offset, &Self::MAX_CLOCK_OFFSET);
        let (half, twice) = (self.interval / 2, self.interval.saturating_mul(2));
        let mut expect = |holds: bool, key, value, reason: &str, accepted| {
            if !holds {
                let reason = format!("{reason} keys.interval, which is {}", span(self.interval));
                faults.compared(Fault { key, value: span(value), reason, accepted, beside: &["keys.interval"] });
            }
        };
        let below = format!("a duration below {}", span(half));
        expect(self.settle < half, "keys.settle", self.settle, "is not below half of", below);
        let at_least = format!("a duration of at least {}", span(twice));
        expect(self.max_seal_age >= twice, "keys.max_seal_age", self.max_seal_age, "is less than twice", at_least);
        faults.found()
    }

    pub(super) fn interval_ms(&self) -> u64 {
        millis(self.interval)
    }

    pub(super) fn settle_ms(&self) -> u64 {
        millis(self.settle)
    }

    pub(super) fn max_clock_offset_ms(&self) -> u64 {
        millis(self.max_clock_offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn the_defaults_are_within_the_limits() {
        assert_eq!(KeySettings::default().validate(), Ok(()));
        assert_eq!(KeySettings::default().open_for(), seconds(24 * 3600));
    }

    #[test]
    fn a_mistake_names_the_setting_its_value_and_what_would_be_accepted() {
        let settings = KeySettings { settle: seconds(3600 * 5), ..KeySettings::default() };
        let error = settings.validate().unwrap_err();
        assert_eq!(
            error.to_string(),
            "keys.settle = 5h: is not below half of keys.interval, which is 8h; accepted: a duration below 4h"
        );
    }

    #[test]
    fn the_limits_are_those_of_the_design() {
        let base = KeySettings::default();
        let with_interval =
            |interval| KeySettings { interval, settle: MILLISECOND, max_seal_age: seconds(365 * 86400), ..base };
        let faults = |settings: KeySettings| settings.faults().into_iter().map(|m| m.key).collect::<Vec<_>>();
        assert_eq!(faults(with_interval(Duration::from_millis(999))), ["keys.interval"]);
        assert!(faults(with_interval(seconds(1))).is_empty());
        assert!(faults(with_interval(seconds(7 * 86400))).is_empty());
        assert_eq!(faults(with_interval(seconds(7 * 86400 + 1))), ["keys.interval"]);
        assert_eq!(faults(KeySettings { keep: 0, ..base }), ["keys.keep"]);
        assert_eq!(faults(KeySettings { keep: 33, ..base }), ["keys.keep"]);
        assert!(faults(KeySettings { keep: 32, ..base }).is_empty());
        assert_eq!(faults(KeySettings { settle: base.interval / 2, ..base }), ["keys.settle"]);
        let just_below = base.interval * 2 - Duration::from_millis(1);
        assert_eq!(faults(KeySettings { max_seal_age: just_below, ..base }), ["keys.max_seal_age"]);
    }

    #[test]
    fn every_mistake_is_found_at_once_and_brings_about_no_other() {
        let settings = KeySettings {
            interval: Duration::ZERO,
            keep: 99,
            settle: seconds(1),
            max_seal_age: Duration::MAX,
            max_clock_offset: Duration::ZERO,
        };
        let found: Vec<_> = settings.faults().into_iter().map(|m| m.key).collect();
        assert_eq!(
            found,
            ["keys.interval", "keys.keep", "keys.max_seal_age", "node.max_clock_offset"],
            "what settles is not compared with an interval that is at fault itself"
        );
    }
}
