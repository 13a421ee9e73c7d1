//! Log lines that may recur: the first at once, then at most one a minute that says how many were held back.

use std::time::Instant;

use crate::log_line::RepeatedLine;

/// Decides whether a line may pass.
pub(crate) struct LogLimiter {
    /// What times are told from.
    start: Instant,
    line: RepeatedLine,
}

impl Default for LogLimiter {
    fn default() -> Self {
        Self { start: Instant::now(), line: RepeatedLine::default() }
    }
}

impl LogLimiter {
    /// What to append to the line, if it may pass at `now`.
    pub(crate) fn pass(&mut self, now: Instant) -> Option<String> {
        let held_back = self.line.pass(now.saturating_duration_since(self.start))?;
        Some(if held_back == 0 { String::new() } else { format!(" (and {held_back} times before)") })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_line_says_how_many_it_stands_for() {
        let minute = Duration::from_secs(60);
        let mut limiter = LogLimiter::default();
        let start = Instant::now();
        assert_eq!(limiter.pass(start).as_deref(), Some(""));
        assert_eq!(limiter.pass(start + minute / 2), None);
        assert_eq!(limiter.pass(start + minute / 2), None);
        assert_eq!(limiter.pass(start + minute).as_deref(), Some(" (and 2 times before)"));
        assert_eq!(limiter.pass(start + minute * 2).as_deref(), Some(""));
    }
}
