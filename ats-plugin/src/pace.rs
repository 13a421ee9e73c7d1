//! Whether a report of the hook goes to the daemon by itself or with others.
//!
//! A report that goes by itself is there at once, and costs its handshake a system call that wakes the daemon: on a machine with
//! nothing idle the daemon then runs first. Under load the hook only leaves its reports, without waking anybody, and the writing
//! thread comes for them every [`COLLECT_EVERY`].

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a report waits at most under load.
pub const COLLECT_EVERY: Duration = Duration::from_millis(20);
/// More reports than [`MANY`] within such a time do not go by themselves: 200 a second.
const RISE: Duration = Duration::from_millis(40);
const MANY: u64 = 8;
/// At most [`FEW`] within such a time go by themselves again: 100 a second. Longer, for load comes in gusts.
const FALL: Duration = Duration::from_millis(400);
const FEW: u64 = 40;

/// What it is to be now.
pub struct Pace {
    start: Instant,
    collects: AtomicBool,
    /// The number of the window that is counted. A race of two threads of ATS miscounts by one: nothing depends on it.
    window: AtomicU64,
    count: AtomicU64,
}

impl Pace {
    /// At first every report goes by itself.
    pub fn new(start: Instant) -> Self {
        Self { start, collects: AtomicBool::new(false), window: AtomicU64::new(0), count: AtomicU64::new(0) }
    }

    /// Whether reports are being collected.
    pub fn collects(&self) -> bool {
        self.collects.load(Ordering::Relaxed)
    }

    /// The hook has a report: whether it may go by itself.
    pub fn goes_alone(&self, now: Instant) -> bool {
        if self.collects() {
            return false;
        }
        let window = self.window_of(now, RISE);
        if self.window.swap(window, Ordering::Relaxed) != window {
            self.count.store(0, Ordering::Relaxed);
        }
        let alone = self.count.fetch_add(1, Ordering::Relaxed) < MANY;
        if !alone {
            self.window.store(self.window_of(now, FALL), Ordering::Relaxed);
            // The time that has begun already does not count as a quiet one.
            self.count.store(FEW + 1, Ordering::Relaxed);
            self.collects.store(true, Ordering::Relaxed);
        }
        alone
    }

    /// The writing thread has taken `reports`.
    pub fn collected(&self, reports: u64, now: Instant) {
        if !self.collects() {
            return;
        }
        let window = self.window_of(now, FALL);
        if self.window.swap(window, Ordering::Relaxed) == window {
            self.count.fetch_add(reports, Ordering::Relaxed);
        } else if self.count.swap(reports, Ordering::Relaxed) <= FEW {
            self.collects.store(false, Ordering::Relaxed);
        }
    }

    /// The number of the stretch of this length that `now` is in.
    fn window_of(&self, now: Instant, length: Duration) -> u64 {
        (now.saturating_duration_since(self.start).as_micros() / length.as_micros()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_reports_go_by_themselves_for_ever() {
        let start = Instant::now();
        let pace = Pace::new(start);
        assert!((0..10_000).all(|number| pace.goes_alone(start + Duration::from_millis(6) * number)));
    }

    #[test]
    fn many_are_collected_until_they_are_few_again() {
        let start = Instant::now();
        let pace = Pace::new(start);
        let alone = (0..30).filter(|_| pace.goes_alone(start)).count();
        assert_eq!((alone as u64, pace.collects()), (MANY, true));
        let mut now = start;
        for _ in 0..1_000 {
            now += COLLECT_EVERY;
            pace.collected(10, now);
            assert!(pace.collects() && !pace.goes_alone(now));
        }
        let mut turns = 0;
        while pace.collects() {
            now += COLLECT_EVERY;
            pace.collected(0, now);
            turns += 1;
        }
        assert!((20..=42).contains(&turns), "after {turns} turns without any");
        assert!(pace.goes_alone(now));
    }

    #[test]
    fn a_pause_within_load_wakes_nobody() {
        let start = Instant::now();
        let pace = Pace::new(start);
        while pace.goes_alone(start) {}
        let mut now = start;
        for _ in 0..20 {
            for reports in [20, 20, 20, 0, 0, 0] {
                now += COLLECT_EVERY;
                pace.collected(reports, now);
                assert!(pace.collects());
            }
        }
    }
}
