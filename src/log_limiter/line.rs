//! One line of the log that may recur.
//!
//! The plugin compiles this very file in, so it uses nothing but `std`.

use std::time::Duration;

/// How long a line is held back after it was written.
const EVERY: Duration = Duration::from_secs(60);

/// Lets the first line pass at once, then at most one a minute, and counts those that it holds back.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RepeatedLine {
    written_at: Option<Duration>,
    held_back: u64,
}

impl RepeatedLine {
    /// Whether the line may be written at `now`, a monotonic time since any instant that stays the same; if so, how many were
    /// held back since the last one.
    pub(crate) fn pass(&mut self, now: Duration) -> Option<u64> {
        if self.written_at.is_some_and(|at| now.saturating_sub(at) < EVERY) {
            self.held_back += 1;
            return None;
        }
        self.written_at = Some(now);
        Some(std::mem::take(&mut self.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_minute_says_how_many_it_stands_for() {
        let moment = Duration::from_nanos(1);
        for start in [Duration::ZERO, EVERY * 1440] {
            let mut line = RepeatedLine::default();
            assert_eq!(line.pass(start), Some(0));
            for since in [Duration::ZERO, moment, EVERY - moment] {
                assert_eq!(line.pass(start + since), None, "after {since:?}");
            }
            assert_eq!(line.pass(start + EVERY), Some(3));
            assert_eq!(line.pass(start + EVERY + moment), None);
            assert_eq!(line.pass(start + EVERY * 5), Some(1));
            assert_eq!(line.pass(start + EVERY * 6), Some(0));
        }
    }
}
