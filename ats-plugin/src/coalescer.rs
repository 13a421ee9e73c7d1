//! Whether a report of the hook goes to the daemon by itself or with others.
//!
//! A report that goes by itself is there at once, and costs its handshake a system call that wakes the daemon: on a machine with
//! nothing idle the daemon then runs first. Under load the hook only leaves its reports, without waking anybody, and the writing
//! thread comes for them when about [`TOGETHER`] are there, and after [`LONGEST`] at the latest.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a report waits at most under load.
pub(crate) const LONGEST: Duration = Duration::from_millis(20);
const SHORTEST: Duration = Duration::from_millis(2);
/// So many reports at a time make what a wake-up costs small beside their handshakes.
const TOGETHER: u64 = 8;
/// More reports than [`MANY`] within such a time do not go by themselves: 200 a second. A few connections at once are no load.
const RISE: Duration = Duration::from_millis(200);
const MANY: u64 = 40;
/// At most [`FEW`] within such a time go by themselves again: 100 a second. Longer, for load comes in gusts.
const FALL: Duration = Duration::from_millis(400);
const FEW: u64 = 40;

/// What it is to be now.
pub(crate) struct Coalescer {
    start: Instant,
    collects: AtomicBool,
    /// The number of the stretch that is counted. Threads of ATS that meet at its end may count too little, or make collecting
    /// end early: either only moves the moment of a change.
    window: AtomicU64,
    count: AtomicU64,
    /// How long reports are collected now, in microseconds.
    pause: AtomicU64,
}

/// What the writing thread does next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Sends what is there.
    Send,
    /// Lets reports come together for this long.
    Collect(Duration),
    /// Waits until there is something.
    Wait,
}

impl Coalescer {
    /// At first every report goes by itself.
    pub(crate) fn new(start: Instant) -> Self {
        Self {
            start,
            collects: AtomicBool::new(false),
            window: AtomicU64::new(0),
            count: AtomicU64::new(0),
            pause: AtomicU64::new(0),
        }
    }

    /// Whether reports are being collected.
    fn collects(&self) -> bool {
        self.collects.load(Ordering::Relaxed)
    }

    /// The hook has a report: whether it may go by itself.
    pub(crate) fn goes_alone(&self, now: Instant) -> bool {
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
            // The stretch that has begun already does not count as a quiet one.
            self.count.store(FEW + 1, Ordering::Relaxed);
            self.pause.store(micros(LONGEST), Ordering::Relaxed);
            self.collects.store(true, Ordering::Relaxed);
        }
        alone
    }

    /// What to do after reports were taken, of which there are `more`.
    pub(crate) fn next(&self, more: bool) -> Next {
        match (more, self.collects()) {
            (true, _) => Next::Send,
            (false, true) => Next::Collect(Duration::from_micros(self.pause.load(Ordering::Relaxed))),
            (false, false) => Next::Wait,
        }
    }

    /// The writing thread has taken `reports`.
    pub(crate) fn collected(&self, reports: u64, now: Instant) {
        if !self.collects() {
            return;
        }
        let pause = self.pause.load(Ordering::Relaxed).saturating_mul(TOGETHER) / reports.max(1);
        self.pause.store(pause.clamp(micros(SHORTEST), micros(LONGEST)), Ordering::Relaxed);
        let window = self.window_of(now, FALL);
        if self.window.swap(window, Ordering::Relaxed) == window {
            self.count.fetch_add(reports, Ordering::Relaxed);
        } else if self.count.swap(reports, Ordering::Relaxed) <= FEW {
            self.collects.store(false, Ordering::Relaxed);
        }
    }

    /// The number of the stretch of this length that `now` is in.
    fn window_of(&self, now: Instant, length: Duration) -> u64 {
        micros(now.saturating_duration_since(self.start)) / micros(length)
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collecting(start: Instant) -> Coalescer {
        let coalescer = Coalescer::new(start);
        let alone = (0..2 * MANY).filter(|_| coalescer.goes_alone(start)).count();
        assert_eq!((alone as u64, coalescer.collects()), (MANY, true));
        coalescer
    }

    /// Collects at this rate for two seconds; how long the last reports waited at most.
    fn waits_at(per_second: u64) -> Duration {
        let mut now = Instant::now();
        let coalescer = collecting(now);
        let end = now + Duration::from_secs(2);
        let mut left = 0.0;
        loop {
            let Next::Collect(pause) = coalescer.next(false) else {
                panic!("{:?} at {per_second} a second", coalescer.next(false))
            };
            if now >= end {
                return pause;
            }
            now += pause;
            let reports = left + per_second as f64 * pause.as_secs_f64();
            left = reports.fract();
            coalescer.collected(reports as u64, now);
        }
    }

    #[test]
    fn few_reports_go_by_themselves_for_ever() {
        let start = Instant::now();
        let coalescer = Coalescer::new(start);
        assert!((0..10_000).all(|number| coalescer.goes_alone(start + Duration::from_millis(6) * number)));
        assert_eq!(coalescer.next(false), Next::Wait);
    }

    #[test]
    fn connections_at_once_on_a_quiet_host_go_by_themselves() {
        let start = Instant::now();
        let coalescer = Coalescer::new(start);
        assert!((0..100).all(|second| (0..20).all(|_| coalescer.goes_alone(start + Duration::from_secs(second)))));
    }

    #[test]
    fn many_are_collected_until_they_are_few_again() {
        let mut now = Instant::now();
        let coalescer = collecting(now);
        for _ in 0..1_000 {
            now += LONGEST;
            coalescer.collected(10, now);
            assert!(coalescer.collects() && !coalescer.goes_alone(now));
        }
        let mut turns = 0;
        while coalescer.collects() {
            now += LONGEST;
            coalescer.collected(0, now);
            turns += 1;
        }
        assert!((20..=42).contains(&turns), "after {turns} turns without any");
        assert!(coalescer.goes_alone(now));
    }

    #[test]
    fn a_pause_within_load_wakes_nobody() {
        let mut now = Instant::now();
        let coalescer = collecting(now);
        for _ in 0..20 {
            for reports in [20, 20, 20, 0, 0, 0] {
                now += LONGEST;
                coalescer.collected(reports, now);
                assert!(coalescer.collects());
            }
        }
    }

    #[test]
    fn the_more_there_are_the_shorter_they_wait() {
        assert_eq!(waits_at(150), LONGEST);
        let at_1000 = waits_at(1_000);
        assert!((Duration::from_millis(6)..Duration::from_millis(11)).contains(&at_1000), "{at_1000:?}");
        assert_eq!(waits_at(100_000), SHORTEST);
    }

    #[test]
    fn a_backlog_goes_without_pauses() {
        let start = Instant::now();
        assert_eq!(collecting(start).next(true), Next::Send);
        assert_eq!(Coalescer::new(start).next(true), Next::Send);
    }
}
