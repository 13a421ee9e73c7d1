//! The settings that decide a ticket key's life, and their limits.

use std::time::Duration;

use humantime::format_duration;

use crate::clock::millis;

/// What decides how ticket keys live. Every node of a farm should have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeySettings {
    /// How long a key seals before the next one takes over: 1 s to 7 d.
    pub interval: Duration,
    /// For how many intervals a superseded key goes on opening: 1 to 32.
    pub keep: u32,
    /// How long a node holds a key before it prefers it to an older one: less than half an interval.
    pub settle: Duration,
    /// The longest that a key may seal if no successor comes: at least two intervals.
    pub max_seal_age: Duration,
    /// By how much the clocks of two nodes may differ.
    pub max_clock_offset: Duration,
}

/// A setting that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} = {value}: must be {accepted}")]
pub struct SettingsError {
    /// The setting, as `section.key`.
    pub key: &'static str,
    /// The value at fault, as written in a configuration file.
    pub value: String,
    /// What would be accepted.
    pub accepted: String,
}

const SECOND: Duration = Duration::from_secs(1);
const LONGEST_INTERVAL: Duration = Duration::from_secs(7 * 24 * 60 * 60);
const MOST_KEPT: u32 = 32;

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
    pub fn open_for(&self) -> Duration {
        self.interval.saturating_mul(self.keep)
    }

    /// Checks the limits.
    ///
    /// # Errors
    /// The first of [`KeySettings::mistakes`].
    pub fn check(&self) -> Result<(), SettingsError> {
        self.mistakes().into_iter().next().map_or(Ok(()), Err)
    }

    /// Every setting outside its limits.
    #[must_use]
    pub fn mistakes(&self) -> Vec<SettingsError> {
        let half = self.interval / 2;
        let oldest = self.interval.saturating_mul(2);
        let mut mistakes = Vec::new();
        let mut expect = |holds: bool, key, value: String, accepted: String| {
            if !holds {
                mistakes.push(SettingsError { key, value, accepted });
            }
        };
        let interval_fits = (SECOND..=LONGEST_INTERVAL).contains(&self.interval);
        expect(interval_fits, "keys.interval", quoted(self.interval), "from 1s to 7days".into());
        let keep_fits = (1..=MOST_KEPT).contains(&self.keep);
        expect(keep_fits, "keys.keep", self.keep.to_string(), format!("from 1 to {MOST_KEPT}"));
        let below_half = format!("less than half of keys.interval, {}", format_duration(half));
        expect(self.settle < half, "keys.settle", quoted(self.settle), below_half);
        let two_intervals = format!("at least twice keys.interval, {}", format_duration(oldest));
        expect(self.max_seal_age >= oldest, "keys.max_seal_age", quoted(self.max_seal_age), two_intervals);
        mistakes
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

fn quoted(span: Duration) -> String {
    format!("\"{}\"", format_duration(span))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn the_defaults_are_within_the_limits() {
        assert_eq!(KeySettings::default().check(), Ok(()));
        assert_eq!(KeySettings::default().open_for(), seconds(24 * 3600));
    }

    #[test]
    fn a_mistake_names_the_setting_its_value_and_what_would_be_accepted() {
        let settings = KeySettings { settle: seconds(3600 * 5), ..KeySettings::default() };
        let error = settings.check().unwrap_err();
        assert_eq!(error.to_string(), "keys.settle = \"5h\": must be less than half of keys.interval, 4h");
    }

    #[test]
    fn the_limits_are_those_of_the_design() {
        let base = KeySettings::default();
        let with_interval =
            |interval| KeySettings { interval, settle: Duration::ZERO, max_seal_age: Duration::MAX, ..base };
        let faults = |settings: KeySettings| settings.mistakes().into_iter().map(|m| m.key).collect::<Vec<_>>();
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
    fn every_mistake_is_found_at_once() {
        let settings = KeySettings {
            interval: Duration::ZERO,
            keep: 99,
            settle: seconds(1),
            max_seal_age: Duration::ZERO,
            max_clock_offset: seconds(300),
        };
        let found: Vec<_> = settings.mistakes().into_iter().map(|m| m.key).collect();
        assert_eq!(found, ["keys.interval", "keys.keep", "keys.settle"], "twice nothing is nothing");
    }
}
