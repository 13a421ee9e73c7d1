//! What a node counted over the last minutes, for the page. Bounded, and handed the time.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::clock::{Now, millis};
use crate::metrics::PageCounts;
use crate::status::{HistoryStatus, HistoryStep};

/// How often totals are to be noted.
pub(crate) const STEP: Duration = Duration::from_secs(5);

/// How far back the history reaches.
const WINDOW: Duration = Duration::from_secs(600);

/// One more than there are steps in the window: the first one is where they begin.
const MOST: usize = 121;

/// Totals of the last minutes.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// Monotonic milliseconds and what had been counted until then; oldest first.
    noted: VecDeque<(u64, PageCounts)>,
}

impl History {
    /// Notes what has been counted until `now`.
    pub(crate) fn note(&mut self, page_counts: PageCounts, now: Now) {
        self.noted.push_back((now.mono, page_counts));
        self.noted.drain(..self.noted.len().saturating_sub(MOST));
    }

    /// The last minutes, seen from `now`. Nothing, until totals were noted twice.
    #[must_use]
    pub(crate) fn seen_from(&self, now: Now) -> HistoryStatus {
        let window_ms = millis(WINDOW);
        let steps = self.noted.iter().zip(self.noted.iter().skip(1));
        let steps = steps.map(|((from, before), (until, after))| {
            step(before, after, until.saturating_sub(*from), now.mono.saturating_sub(*until))
        });
        HistoryStatus { window_ms, steps: steps.filter(|step| step.ended_ms_ago < window_ms).collect() }
    }
}

fn step(before: &PageCounts, after: &PageCounts, ms: u64, ended_ms_ago: u64) -> HistoryStep {
    HistoryStep {
        ended_ms_ago,
        ms,
        published: after.published.saturating_sub(before.published),
        received: after.received.saturating_sub(before.received),
        inserted: after.inserted.saturating_sub(before.inserted),
        brought_back: after.brought_back.saturating_sub(before.brought_back),
        missed: after.missed.saturating_sub(before.missed),
        dropped: growth(&before.dropped, &after.dropped),
        refused: growth(&before.refused, &after.refused),
    }
}

/// By how much each count grew, where it did.
fn growth(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let by = |reason: &str, count: u64| count.saturating_sub(before.get(reason).copied().unwrap_or(0));
    let grown = after.iter().map(|(reason, count)| (reason.clone(), by(reason, *count)));
    grown.filter(|(_, by)| *by > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Now {
        Now { wall: 7, mono: 1_000_000 + 1_000 * seconds }
    }

    fn page_counts(published: u64, replays: u64) -> PageCounts {
        let refused = if replays == 0 { BTreeMap::new() } else { BTreeMap::from([("replay".to_owned(), replays)]) };
        PageCounts { published, refused, ..PageCounts::default() }
    }

    #[test]
    fn a_step_is_what_came_between_two_notes() {
        let mut history = History::default();
        assert_eq!(history.seen_from(at(0)).steps, []);
        history.note(page_counts(100, 0), at(0));
        assert_eq!(
            history.seen_from(at(1)).steps,
            [],
            "what was counted before the first note is not the last minutes'"
        );
        history.note(page_counts(103, 0), at(5));
        history.note(page_counts(103, 2), at(11));
        let seen = history.seen_from(at(12));
        let refused = BTreeMap::from([("replay".to_owned(), 2)]);
        let steps = [
            HistoryStep { ended_ms_ago: 7_000, ms: 5_000, published: 3, ..HistoryStep::default() },
            HistoryStep { ended_ms_ago: 1_000, ms: 6_000, refused, ..HistoryStep::default() },
        ];
        assert_eq!((seen.window_ms, seen.steps.as_slice()), (600_000, steps.as_slice()));
    }

    #[test]
    fn a_reason_that_was_counted_before_counts_by_its_growth() {
        let mut history = History::default();
        for (seconds, replays) in [(0, 4), (5, 4), (10, 9)] {
            history.note(page_counts(0, replays), at(seconds));
        }
        let refused: Vec<_> = history.seen_from(at(10)).steps.into_iter().map(|step| step.refused).collect();
        assert_eq!(refused, [BTreeMap::new(), BTreeMap::from([("replay".to_owned(), 5)])]);
    }

    #[test]
    fn ten_minutes_are_kept_however_long_the_node_runs() {
        let mut history = History::default();
        for step in 0..10_000 {
            history.note(page_counts(step, 0), at(5 * step));
        }
        let seen = history.seen_from(at(5 * 9_999));
        assert_eq!(seen.steps.len(), 120);
        assert_eq!(seen.steps.iter().map(|step| step.published).sum::<u64>(), 120);
        assert_eq!((seen.steps[0].ended_ms_ago, seen.steps[119].ended_ms_ago), (595_000, 0));
    }

    #[test]
    fn after_a_freeze_nothing_older_than_the_window_is_shown() {
        let mut history = History::default();
        history.note(page_counts(0, 0), at(0));
        history.note(page_counts(1, 0), at(5));
        history.note(page_counts(9, 0), at(1_000));
        let steps = history.seen_from(at(1_001)).steps;
        assert_eq!(steps, [HistoryStep { ended_ms_ago: 1_000, ms: 995_000, published: 8, ..HistoryStep::default() }]);
    }
}
