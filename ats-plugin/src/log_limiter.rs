//! Log lines that may recur: the first at once, then at most one a minute that says how many were held back.

use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_secs(60);

/// Decides whether a line may pass.
#[derive(Default)]
pub(crate) struct LogLimiter {
    last: Option<Instant>,
    held_back: u32,
}

impl LogLimiter {
    /// What to append to the line, if it may pass at `now`.
    pub(crate) fn pass(&mut self, now: Instant) -> Option<String> {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < EVERY) {
            self.held_back += 1;
            return None;
        }
        self.last = Some(now);
        let held_back = std::mem::take(&mut self.held_back);
        Some(if held_back == 0 { String::new() } else { format!(" (and {held_back} times before)") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_minute_says_how_many_it_stands_for() {
        let start = Instant::now();
        let mut limiter = LogLimiter::default();
        assert_eq!(limiter.pass(start).as_deref(), Some(""));
        assert_eq!(limiter.pass(start + EVERY / 2), None);
        assert_eq!(limiter.pass(start + EVERY / 2), None);
        assert_eq!(limiter.pass(start + EVERY).as_deref(), Some(" (and 2 times before)"));
        assert_eq!(limiter.pass(start + EVERY * 2).as_deref(), Some(""));
    }
}
