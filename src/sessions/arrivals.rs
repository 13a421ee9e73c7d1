//! When sessions arrived, as far as it matters.

use std::collections::VecDeque;

/// How often it is noted which session was the newest.
const MARK_EVERY_MS: u64 = 10_000;
/// How many such notes are kept: those of 5 hours 41 minutes.
const MAX_MARKS: usize = 2048;

/// Which session was the newest at some times past: so the cache itself need not remember when each arrived.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    /// Monotonic time, and the arrival number that the next session would get.
    marks: VecDeque<(u64, u64)>,
}

impl Arrivals {
    /// Notes that at `mono` the next session gets the number `next`, unless that was noted lately.
    pub(crate) fn mark(&mut self, next: u64, mono: u64) {
        if self.marks.back().is_some_and(|(marked, _)| mono.saturating_sub(*marked) < MARK_EVERY_MS) {
            return;
        }
        if self.marks.len() == MAX_MARKS {
            self.marks.pop_front();
        }
        self.marks.push_back((mono, next));
    }

    /// The arrival number from which on sessions arrived after `mono`, and some before.
    pub(crate) fn after(&self, mono: u64) -> u64 {
        let later = self.marks.partition_point(|(marked, _)| *marked <= mono);
        later.checked_sub(1).map_or(0, |at| self.marks[at].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_after_an_instant_begins_at_the_last_mark_before_it() {
        let mut arrivals = Arrivals::default();
        assert_eq!(arrivals.after(5_000), 0, "nothing is known: all of them");
        for (next, mono) in [(10, 0), (15, MARK_EVERY_MS - 1), (20, MARK_EVERY_MS), (30, 3 * MARK_EVERY_MS)] {
            arrivals.mark(next, mono);
        }
        assert_eq!(arrivals.after(MARK_EVERY_MS - 1), 10);
        assert_eq!(arrivals.after(2 * MARK_EVERY_MS), 20);
        assert_eq!(arrivals.after(u64::MAX), 30);
    }

    #[test]
    fn the_oldest_marks_go() {
        let mut arrivals = Arrivals::default();
        for mark in 0..=MAX_MARKS as u64 {
            arrivals.mark(mark, mark * MARK_EVERY_MS);
        }
        assert_eq!(arrivals.marks.len(), MAX_MARKS);
        assert_eq!(arrivals.after(0), 0, "too old to be known: all of them");
    }
}
