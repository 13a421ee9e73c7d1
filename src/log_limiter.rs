//! Log lines that others can cause: of each reason the first at once, then at most one a minute.

use std::collections::BTreeMap;

use crate::clock::Now;

const EVERY_MS: u64 = 60_000;

/// Decides which lines may be written. Counters count everything; this is for people who read logs.
#[derive(Clone, Debug, Default)]
pub(crate) struct LogLimiter {
    /// One entry for each reason ever seen: reasons are words of the program, so these are few.
    lines: BTreeMap<(&'static str, &'static str), Line>,
}

#[derive(Clone, Copy, Debug)]
struct Line {
    written_at: u64,
    held_back: u64,
}

impl LogLimiter {
    /// Whether a line may be written at `now` about something, such as a `message`, and what is wrong with it; if so, how
    /// many were held back since the last one.
    pub(crate) fn pass(&mut self, what: &'static str, reason: &'static str, now: Now) -> Option<u64> {
        match self.lines.get_mut(&(what, reason)) {
            Some(line) if now.mono.saturating_sub(line.written_at) < EVERY_MS => {
                line.held_back += 1;
                None
            }
            known => {
                let held_back = known.map_or(0, |line| line.held_back);
                self.lines.insert((what, reason), Line { written_at: now.mono, held_back: 0 });
                Some(held_back)
            }
        }
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
    fn one_line_a_minute_says_how_many_it_stands_for() {
        let mut log_limiter = LogLimiter::default();
        assert_eq!(log_limiter.pass("message", "replay", at(0)), Some(0));
        for ms in [0, 1, EVERY_MS - 1] {
            assert_eq!(log_limiter.pass("message", "replay", at(ms)), None, "after {ms} ms");
        }
        assert_eq!(log_limiter.pass("message", "replay", at(EVERY_MS)), Some(3));
        assert_eq!(log_limiter.pass("message", "replay", at(EVERY_MS + 1)), None);
        assert_eq!(log_limiter.pass("message", "replay", at(5 * EVERY_MS)), Some(1));
        assert_eq!(log_limiter.pass("message", "replay", at(6 * EVERY_MS)), Some(0));
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
