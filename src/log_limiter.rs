//! Log lines that others can cause: of each reason the first at once, then at most one a minute.

mod line;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::Now;
use line::RepeatedLine;

/// Decides which lines may be written. Counters count everything; this is for people who read logs.
#[derive(Clone, Debug, Default)]
pub(crate) struct LogLimiter {
    /// One entry for each reason ever seen: reasons are words of the program, so these are few.
    lines: BTreeMap<(&'static str, &'static str), RepeatedLine>,
}

impl LogLimiter {
    /// Whether a line may be written at `now` about something, such as a `message`, and what is wrong with it; if so, how
    /// many were held back since the last one.
    pub(crate) fn pass(&mut self, what: &'static str, reason: &'static str, now: Now) -> Option<u64> {
        self.lines.entry((what, reason)).or_default().pass(Duration::from_millis(now.mono))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(mono: u64) -> Now {
        // The wall clock may jump: it must not matter.
        Now { wall: 1_000_000 - mono, mono: 86_400_000 + mono }
    }

    #[test]
    fn a_minute_is_one_of_the_monotonic_clock() {
        let mut log_limiter = LogLimiter::default();
        assert_eq!(log_limiter.pass("message", "replay", at(0)), Some(0));
        for ms in [0, 1, 59_999] {
            assert_eq!(log_limiter.pass("message", "replay", at(ms)), None, "after {ms} ms");
        }
        assert_eq!(log_limiter.pass("message", "replay", at(60_000)), Some(3));
    }

    #[test]
    fn a_flood_for_one_reason_hides_no_other() {
        let mut log_limiter = LogLimiter::default();
        for ms in 0..10_000 {
            let _written_or_not = log_limiter.pass("message", "malformed", at(ms));
        }
        assert_eq!(log_limiter.pass("message", "bad_tag", at(10_000)), Some(0));
        assert_eq!(log_limiter.pass("session", "malformed", at(10_000)), Some(0));
    }
}
