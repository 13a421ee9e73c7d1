//! The farm's ticket keys over the lives of its daemons: what a daemon that has lost its ring takes away, and what not.
//!
//! A daemon that is gone leaves the proxy its keys. One that comes back without its ring, and finds no broker, knows none
//! of them. It must not do more harm than one that stays away.

use crate::timetable::{ProxyKey, Timetable};

/// Keys of earlier daemons that are kept at most. A ring has no more.
const MOST_FORMER: usize = 64;

/// A floor that is further ahead than that of this host's clock came of a wrong clock: no node takes one
/// (`node.max_clock_offset` is an hour at most). Milliseconds.
const FAR_AHEAD_MS: u64 = 60 * 60 * 1000;

/// What daemons have said of the farm's ticket keys. Decides; is handed the time.
///
/// A daemon's timetable replaces what the same daemon sent before. Keys of the daemons before it stay beside it, by their
/// own times, until
/// - it names one of them: then it has their ring, and its word on the others counts;
/// - it tells of a revocation that was unknown here: a key that it does not name may be one of those revoked;
/// - it is of another farm.
#[derive(Default)]
pub(crate) struct FarmKeys {
    farm: String,
    /// The daemon that speaks has sent no timetable yet.
    first: bool,
    current: Vec<ProxyKey>,
    /// The daemon minted `current` for itself.
    alone: bool,
    /// Names of keys that a daemon minted for itself, as it said at the time. One that has them from its saved ring does not
    /// say it again.
    minted_alone: Vec<[u8; 16]>,
    /// Those of the farm first.
    former: Vec<ProxyKey>,
    floor: u64,
    sessions_from: u64,
}

impl FarmKeys {
    /// A daemon has said welcome. It is one of `farm`.
    pub(crate) fn greeted(&mut self, farm: &str) {
        if self.farm != farm {
            *self = Self { farm: farm.to_owned(), ..Self::default() };
        }
        self.first = true;
    }

    /// How many keys of earlier daemons stay beside those of the present one.
    pub(crate) fn kept(&self) -> usize {
        self.former.len()
    }

    /// Takes in what the daemon says at `wall` (UTC milliseconds), and returns what holds from now on.
    pub(crate) fn hear(&mut self, said: &Timetable, wall: u64) -> Timetable {
        let names_one_of =
            |entries: &[ProxyKey]| entries.iter().any(|ours| said.entries().iter().any(|key| key.name == ours.name));
        // A floor that is below the known one, and not 0, is a revocation too, where a wrong clock set the known one.
        let revoked = said.floor() != 0 && said.floor() != believable(self.floor, wall);
        let has_their_ring = names_one_of(&self.former);
        if std::mem::take(&mut self.first) && !names_one_of(&self.current) {
            self.former = self.farm_first(&self.current, self.alone);
        }
        if revoked || has_their_ring {
            self.former.clear();
        }
        self.former = open_at(&self.former, wall);
        self.current = joined(said.entries(), &[]);
        self.floor = believable(self.floor, wall).max(said.floor());
        self.sessions_from = believable(self.sessions_from, wall).max(said.sessions_from());
        self.alone = self.hear_alone(said);
        let keys = self.farm_first(&self.current, self.alone);
        Timetable::new(keys).with_floors(self.floor, self.sessions_from).with_alone(self.alone)
    }

    /// Whether all that `said` names was minted by daemons for themselves.
    fn hear_alone(&mut self, said: &Timetable) -> bool {
        let names = said.entries().iter().map(|key| key.name);
        if said.is_alone() {
            let new: Vec<_> = names.filter(|name| !self.minted_alone.contains(name)).collect();
            self.minted_alone.extend(new);
            let excess = self.minted_alone.len().saturating_sub(MOST_FORMER);
            self.minted_alone.drain(..excess);
            return true;
        }
        !self.former.is_empty()
            && !said.entries().is_empty()
            && names.into_iter().all(|name| self.minted_alone.contains(&name))
    }

    /// `keys` beside the former ones. What only this host has comes last: it seals when the others no longer may.
    fn farm_first(&self, keys: &[ProxyKey], alone: bool) -> Vec<ProxyKey> {
        if alone { joined(&self.former, keys) } else { joined(keys, &self.former) }
    }
}

/// `floor`, which never falls while the proxy runs, unless it came of a wrong clock.
fn believable(floor: u64, wall: u64) -> u64 {
    if floor > wall.saturating_add(FAR_AHEAD_MS) { 0 } else { floor }
}

/// Copies, in memory that never moves: what is moved leaves its bytes behind.
fn joined(first: &[ProxyKey], second: &[ProxyKey]) -> Vec<ProxyKey> {
    let mut entries = Vec::with_capacity(first.len() + second.len());
    entries.extend(first.iter().chain(second).cloned());
    entries
}

/// Copies of those whose tickets still open, in memory that never moves.
fn open_at(entries: &[ProxyKey], wall: u64) -> Vec<ProxyKey> {
    let mut open = Vec::with_capacity(entries.len());
    open.extend(entries.iter().filter(|key| key.times().opens_at(wall)).take(MOST_FORMER).cloned());
    open
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8, seal_from: u64, seal_until: u64, open_until: u64) -> ProxyKey {
        ProxyKey { name: [n; 16], hmac: [n; 32], aes: [n; 32], seal_from, settled_at: 0, seal_until, open_until }
    }

    /// Open until 1,000 and 2,000; 2 is the next key, and seals from 500 on.
    fn farm() -> Timetable {
        Timetable::new(vec![key(2, 500, 1_500, 2_000), key(1, 0, 900, 1_000)]).with_floors(50, 40)
    }

    fn alone(n: u8) -> Timetable {
        Timetable::new(vec![key(n, 100, 5_000, 6_000)]).with_alone(true)
    }

    /// A proxy that had the farm's keys, and whose daemon has come back just now.
    fn restarted() -> FarmKeys {
        let mut keys = FarmKeys::default();
        keys.greeted("farm");
        keys.hear(&farm(), 100);
        keys.greeted("farm");
        keys
    }

    fn names(timetable: &Timetable) -> Vec<u8> {
        timetable.entries().iter().map(|entry| entry.name[0]).collect()
    }

    fn sealer(timetable: &Timetable, wall: u64) -> Option<u8> {
        timetable.seal_at(wall).map(|entry| entry.name[0])
    }

    #[test]
    fn a_daemons_timetable_replaces_its_own_of_before() {
        let mut keys = FarmKeys::default();
        keys.greeted("farm");
        assert_eq!(names(&keys.hear(&farm(), 100)), [2, 1]);
        assert_eq!(names(&keys.hear(&Timetable::new(vec![key(3, 0, 900, 1_000)]), 100)), [3]);
        assert_eq!(names(&keys.hear(&Timetable::default(), 100)), [], "its clock says that none can be");
        assert_eq!(keys.kept(), 0);
    }

    #[test]
    fn a_daemon_that_knows_no_ring_takes_nothing_away() {
        let mut keys = restarted();
        let kept = keys.hear(&Timetable::default(), 100);
        assert_eq!((names(&kept), keys.kept()), (vec![2, 1], 2));
        assert_eq!((kept.floor(), kept.sessions_from()), (50, 40), "nor a revocation");
        keys.greeted("farm");
        assert_eq!(names(&keys.hear(&Timetable::default(), 1_001)), [2], "and a key ends when it ends");
    }

    #[test]
    fn keys_that_a_daemon_minted_for_itself_seal_when_those_of_the_farm_no_longer_may() {
        let mut keys = restarted();
        keys.hear(&Timetable::default(), 100);
        let kept = keys.hear(&alone(9), 120);
        assert_eq!(names(&kept), [2, 1, 9]);
        assert_eq!([120, 500, 1_500, 1_501].map(|wall| sealer(&kept, wall)), [Some(1), Some(2), Some(2), Some(9)]);
    }

    #[test]
    fn a_ring_that_a_whole_farm_made_anew_seals_and_the_old_keys_still_open() {
        let mut keys = restarted();
        // So does one of a daemon of release 0.1.0, which does not say that it is alone.
        let kept = keys.hear(&alone(9).with_alone(false), 120);
        assert_eq!((names(&kept), sealer(&kept, 120)), (vec![9, 2, 1], Some(9)));
        let next = Timetable::new(vec![key(10, 200, 5_000, 6_000), key(9, 100, 5_000, 6_000)]);
        assert_eq!(names(&keys.hear(&next, 130)), [10, 9, 2, 1], "as long as they may");
    }

    #[test]
    fn a_daemon_that_has_the_ring_replaces_all_also_when_it_gets_it_late() {
        let newer = Timetable::new(vec![key(3, 600, 2_500, 3_000), key(2, 500, 1_500, 2_000)]);
        assert_eq!(names(&restarted().hear(&newer, 100)), [3, 2]);
        let mut keys = restarted();
        keys.hear(&alone(9), 120);
        let merged = Timetable::new(vec![key(9, 100, 5_000, 6_000), key(2, 500, 1_500, 2_000)]);
        assert_eq!((names(&keys.hear(&merged, 130)), keys.kept()), (vec![9, 2], 0));
    }

    #[test]
    fn a_revocation_that_was_unknown_ends_every_key_that_is_not_named() {
        for alone in [false, true] {
            let mut keys = restarted();
            keys.hear(&Timetable::default(), 100);
            let revoked = Timetable::new(vec![key(9, 120, 5_000, 6_000)]).with_floors(120, 0).with_alone(alone);
            let left = keys.hear(&revoked, 120);
            assert_eq!((names(&left), left.floor(), left.sessions_from()), (vec![9], 120, 40));
        }
        assert_eq!(names(&restarted().hear(&Timetable::default().with_floors(51, 0), 100)), [], "with no key, too");
    }

    #[test]
    fn a_revocation_below_a_floor_that_a_wrong_clock_set_ends_every_key_that_is_not_named() {
        let mut keys = restarted();
        keys.hear(&Timetable::default().with_floors(9_000, 0), 100);
        keys.hear(&farm().with_floors(9_000, 0), 100);
        keys.greeted("farm");
        assert_eq!(names(&keys.hear(&Timetable::default().with_floors(200, 0), 210)), []);
    }

    #[test]
    fn a_revocation_that_was_known_ends_nothing() {
        let mut keys = restarted();
        let kept = keys.hear(&Timetable::default().with_floors(50, 0), 100);
        assert_eq!((names(&kept), kept.floor()), (vec![2, 1], 50));
    }

    #[test]
    fn a_daemon_that_comes_without_its_ring_twice_takes_nothing_away() {
        let mut keys = restarted();
        keys.hear(&alone(9), 120);
        keys.greeted("farm");
        assert_eq!(names(&keys.hear(&alone(8), 130)), [2, 1, 9, 8]);
        // With its own keys out of the file that it saved meanwhile it does not know those of the farm, either.
        keys.greeted("farm");
        let saved = keys.hear(&alone(8).with_alone(false), 140);
        assert_eq!((names(&saved), sealer(&saved, 140)), (vec![2, 1, 9, 8], Some(1)));
        // Once it leads, there is a key beside it that others have.
        let led = Timetable::new(vec![key(10, 130, 5_000, 6_000), key(8, 100, 5_000, 6_000)]);
        assert_eq!(sealer(&keys.hear(&led, 150), 150), Some(10));
    }

    #[test]
    fn a_floor_never_falls_but_for_one_far_ahead_of_the_clock() {
        let mut keys = FarmKeys::default();
        keys.greeted("farm");
        let ahead = 100 + FAR_AHEAD_MS;
        assert_eq!(keys.hear(&farm().with_floors(ahead, ahead), 100).floor(), ahead);
        let same = keys.hear(&farm(), 100);
        assert_eq!((same.floor(), same.sessions_from()), (ahead, ahead));
        let healed = keys.hear(&farm(), 99);
        assert_eq!((healed.floor(), healed.sessions_from()), (50, 40), "the clock was set back");
    }

    #[test]
    fn another_farms_daemon_replaces_everything() {
        let mut keys = restarted();
        keys.greeted("another");
        let other = keys.hear(&Timetable::new(vec![key(7, 0, 900, 1_000)]), 100);
        assert_eq!((names(&other), other.floor(), other.sessions_from()), (vec![7], 0, 0));
    }

    #[test]
    fn kept_keys_are_bounded() {
        let mut keys = FarmKeys::default();
        for n in 0..200 {
            keys.greeted("farm");
            keys.hear(&alone(n), 100);
        }
        assert_eq!(keys.kept(), MOST_FORMER);
    }
}
