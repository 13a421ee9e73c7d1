//! The floors that a node has known: none falls for good because a clock was wrong for a while.

use super::key::is_far_ahead;
use super::settings::KeySettings;
use crate::clock::Now;

/// As many are remembered, and as many doubted. A revocation makes one.
const MOST: usize = 8;

/// The floors of one kind, key floors or session floors, as one node has come to know them. Bounded.
///
/// A floor that lies too far ahead of the clock is not in force: either it was made by a clock that was ahead, or this
/// node's clock has been set back. Which of the two it was shows later. If the clock is set forward again by so much that
/// the floor would not have been doubted, it had been the second, and the floor is in force again. That time goes by shows
/// nothing: a floor from a clock that was a year ahead does not put the keys of that year out of use when it is over.
#[derive(Clone, Debug, Default)]
pub(super) struct KnownFloors {
    /// Lowest first; the last one is in force.
    believed: Vec<u64>,
    doubted: Vec<Doubted>,
}

#[derive(Clone, Debug)]
struct Doubted {
    floor: u64,
    /// When it came to be doubted, monotonic milliseconds.
    since: u64,
}

impl KnownFloors {
    /// The floor in force, or 0.
    pub(super) fn in_force(&self) -> u64 {
        self.believed.last().copied().unwrap_or(0)
    }

    /// Takes in that the floor is at least `floor` now.
    pub(super) fn know(&mut self, floor: u64) {
        if floor > self.in_force() {
            self.believed.push(floor);
            drop_first(&mut self.believed);
        }
    }

    /// Doubts what lies too far ahead of the clock, and believes again what would not have been doubted by it.
    pub(super) fn judge(&mut self, now: Now, settings: &KeySettings) {
        let far_ahead = |floor: u64, wall| is_far_ahead(floor, Now { wall, ..now }, settings);
        let first = self.believed.partition_point(|floor| !far_ahead(*floor, now.wall));
        self.doubted.extend(self.believed.drain(first..).map(|floor| Doubted { floor, since: now.mono }));
        drop_first(&mut self.doubted);
        // What this clock says now of the moment at which the floor was doubted.
        let then = |since| now.wall.saturating_sub(now.mono.saturating_sub(since));
        let rightly = |doubted: &mut Doubted| !far_ahead(doubted.floor, then(doubted.since));
        let again: Vec<_> = self.doubted.extract_if(.., rightly).map(|doubted| doubted.floor).collect();
        if !again.is_empty() {
            self.believed.extend(again);
            self.believed.sort_unstable();
            drop_first(&mut self.believed);
        }
    }
}

/// Keeps the last [`MOST`].
fn drop_first<T>(list: &mut Vec<T>) {
    list.drain(..list.len().saturating_sub(MOST));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: u64 = 1_700_000_000_000;
    const YEAR: u64 = 365 * 86_400_000;

    fn at(wall: u64, mono: u64) -> Now {
        Now { wall, mono }
    }

    /// What is in force at `now`, once it was judged.
    fn judged(floors: &mut KnownFloors, now: Now) -> u64 {
        floors.judge(now, &KeySettings::default());
        floors.in_force()
    }

    #[test]
    fn a_clock_set_back_for_a_while_takes_no_floor_away_for_good() {
        let mut floors = KnownFloors::default();
        floors.know(START);
        assert_eq!(judged(&mut floors, at(START, 0)), START);
        assert_eq!(judged(&mut floors, at(START - 300_000, 10)), START, "max_clock_offset");
        assert_eq!(judged(&mut floors, at(START - 300_001, 20)), 0);
        // Time alone does not bring it back, a clock that is set right does.
        assert_eq!(judged(&mut floors, at(START + 500_000, 800_021)), 0);
        assert_eq!(judged(&mut floors, at(START + 800_022, 800_022)), START);
    }

    #[test]
    fn a_floor_from_a_clock_a_year_ahead_gives_way_to_the_one_before_and_stays_away() {
        let mut floors = KnownFloors::default();
        floors.know(START);
        floors.know(START + YEAR);
        assert_eq!(judged(&mut floors, at(START + YEAR, 0)), START + YEAR);
        assert_eq!(judged(&mut floors, at(START + 60_000, 60_000)), START);
        for day in 0..800 {
            let now = at(START + 60_000 + day * 86_400_000, 60_000 + day * 86_400_000);
            assert_eq!(judged(&mut floors, now), START, "day {day}");
        }
        floors.know(START + 10);
        assert_eq!(floors.in_force(), START + 10);
    }

    #[test]
    fn a_clock_a_year_behind_at_the_start_takes_no_floor_away() {
        let mut floors = KnownFloors::default();
        floors.know(START);
        assert_eq!(judged(&mut floors, at(START - YEAR, 5)), 0);
        assert_eq!(judged(&mut floors, at(START + 3_000, 3_005)), START, "its time has come from the network");
    }

    proptest! {
        #[test]
        fn what_is_in_force_is_never_far_ahead_nor_unknown_and_lists_are_bounded(
            steps in prop::collection::vec((0..40_u64, 0..40_u64, any::<bool>()), 0..60),
        ) {
            let settings = KeySettings::default();
            let (mut floors, mut known, mut mono) = (KnownFloors::default(), vec![0], 0);
            for (floor, wall, makes_one) in steps {
                mono += 1_000;
                let now = at(START + wall * 100_000, mono);
                if makes_one {
                    floors.know(START + floor * 100_000);
                    known.push(START + floor * 100_000);
                }
                let in_force = judged(&mut floors, now);
                prop_assert!(!is_far_ahead(in_force, now, &settings));
                prop_assert!(known.contains(&in_force));
                prop_assert!(floors.believed.is_sorted() && floors.believed.len() <= MOST);
                prop_assert!(floors.doubted.len() <= MOST);
            }
        }
    }
}
