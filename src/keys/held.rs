//! What one node holds, since when, and what it does next.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::floors::KnownFloors;
use super::key::{KeyMaterial, TicketKey};
use super::ring::{Merge, Ring, RingFaults};
use super::settings::KeySettings;
use super::timetable::{ProxyKey, Times, Timetable, sealing};
use crate::clock::{Now, millis};
use crate::proto;

/// A ring as one node holds it.
///
/// Times between hosts are wall time. How long a key has been held is monotonic time: no step of the clock makes a key
/// settle or unsettle.
#[derive(Clone, Debug)]
pub struct HeldRing {
    ring: Ring,
    /// For each key of the ring, by name: the monotonic milliseconds at which it came.
    held_since: HashMap<[u8; 16], u64>,
    /// The ring's floors so far.
    floors: KnownFloors,
    /// Its session floors so far.
    session_floors: KnownFloors,
    settings: KeySettings,
}

/// What a key is doing at a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyState {
    /// Opens tickets, and is to seal them after the active one.
    Next,
    /// Seals tickets.
    Active,
    /// Opens tickets, and seals none while the active one can.
    Previous,
    /// Opens tickets no longer, and is not yet erased.
    Expired,
}

impl KeyState {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Next, Self::Active, Self::Previous, Self::Expired];

    /// The words of all of them, in that order.
    #[cfg(test)]
    pub(crate) const WORDS: [&str; Self::ALL.len()] =
        [Self::Next.as_str(), Self::Active.as_str(), Self::Previous.as_str(), Self::Expired.as_str()];

    /// The state as a metric label, and as `status` shows it.
    #[must_use]
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Next => "next",
            Self::Active => "active",
            Self::Previous => "previous",
            Self::Expired => "expired",
        }
    }
}

impl HeldRing {
    /// Holds nothing yet. `settings` have passed [`KeySettings::validate`].
    #[must_use]
    pub fn new(settings: KeySettings) -> Self {
        Self::holding(Ring::default(), HashMap::new(), settings)
    }

    /// Holds `ring` again after a restart, each key as long as `held_for` says; one that it does not name since now.
    #[must_use]
    pub fn restore(ring: Ring, held_for: &HashMap<[u8; 16], Duration>, settings: KeySettings, now: Now) -> Self {
        let since = |name| now.mono.saturating_sub(held_for.get(name).map_or(0, |span| millis(*span)));
        let held_since = ring.keys().iter().map(|key| (key.name, since(&key.name))).collect();
        let mut held = Self::holding(ring, held_since, settings);
        held.know_floors();
        held
    }

    fn holding(ring: Ring, held_since: HashMap<[u8; 16], u64>, settings: KeySettings) -> Self {
        Self { ring, held_since, floors: KnownFloors::default(), session_floors: KnownFloors::default(), settings }
    }

    /// Takes in the floors of a saved ring, which count once the clock allows them: it may be set right after the start only.
    pub(super) fn know_saved_floors(&mut self, floor: u64, sessions_from: u64, now: Now) {
        self.floors.know(floor);
        self.session_floors.know(sessions_from);
        self.judge_floors(now);
    }

    /// The ring.
    #[must_use]
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// The settings that it follows.
    #[must_use]
    pub fn settings(&self) -> &KeySettings {
        &self.settings
    }

    /// For how long the key called `name` has been held.
    #[must_use]
    pub fn held_for(&self, name: &[u8; 16], now: Now) -> Option<Duration> {
        self.held_since.get(name).map(|since| Duration::from_millis(now.mono.saturating_sub(*since)))
    }

    /// Whether no key opens any ticket now: such a ring is as good as none.
    #[must_use]
    pub(crate) fn is_empty(&self, now: Now) -> bool {
        self.ring.open_at(now.wall).next().is_none()
    }

    /// Joins `other`, read from a message with [`Ring::read`]. What would be erased by this node's clock does not come
    /// back with it.
    pub fn merge(&mut self, other: &Ring, now: Now) -> Merge {
        let (before, offset) = (self.ring.clone(), self.settings.max_clock_offset);
        let merge = self.change(now, |ring| {
            let merge = ring.merge(other);
            ring.erase_expired(now.wall, offset);
            merge
        });
        Merge { changed: self.ring != before, ..merge }
    }

    /// The ring as a message to other nodes: every key that is not due to be erased. One that opens no longer still says
    /// when those below it close, and without it another node would keep those open.
    #[must_use]
    pub(crate) fn to_proto(&self, now: Now) -> proto::Ring {
        self.ring.to_proto(now.wall.saturating_sub(self.settings.max_clock_offset_ms()))
    }

    /// Drops what is impossible by this node's own clock: call it at every beat. It heals a ring that was made while
    /// the clock was ahead. In place of a floor that is dropped comes the one of before; and it counts again if it turns out
    /// that the clock had been set back wrongly.
    pub(crate) fn drop_faulty(&mut self, now: Now) -> RingFaults {
        let settings = self.settings;
        let faults = self.change(now, |ring| ring.drop_faulty(now, &settings));
        self.judge_floors(now);
        faults
    }

    fn judge_floors(&mut self, now: Now) {
        self.floors.judge(now, &self.settings);
        self.session_floors.judge(now, &self.settings);
        let (floor, sessions_from) = (self.floors.in_force(), self.session_floors.in_force());
        if floor > self.ring.floor() || sessions_from > self.ring.sessions_from() {
            self.change(now, |ring| {
                ring.raise_floor(floor);
                ring.flush_sessions(sessions_from);
            });
        }
    }

    fn know_floors(&mut self) {
        self.floors.know(self.ring.floor());
        self.session_floors.know(self.ring.sessions_from());
    }

    /// Erases the keys that opened their last ticket more than `max_clock_offset` ago. Returns whether any went.
    pub fn expire(&mut self, now: Now) -> bool {
        let offset = self.settings.max_clock_offset;
        self.change(now, |ring| ring.erase_expired(now.wall, offset)) > 0
    }

    /// Makes a key of `material` that seals from `seal_from` (UTC milliseconds) on and is higher than any held. On a
    /// ring without a key that can seal it seals at once.
    pub fn mint(&mut self, seal_from: u64, material: KeyMaterial, now: Now) -> &TicketKey {
        let key = TicketKey::mint(material, self.next_generation(now), seal_from, &self.settings);
        self.change(now, |ring| ring.add(key));
        &self.ring.keys()[0]
    }

    /// Makes a key that seals at once, and puts every other one out of use, here now and everywhere on arrival: also those
    /// of the generation `known` and below, which another node says that it holds. That counts as far as a generation
    /// can be right, now + `max_clock_offset`.
    pub fn revoke(&mut self, material: KeyMaterial, known: u64, now: Now) -> &TicketKey {
        let latest = now.wall.saturating_add(self.settings.max_clock_offset_ms());
        let generation = self.next_generation(now).max(known.saturating_add(1).min(latest));
        let key = TicketKey::mint(material, generation, now.wall, &self.settings);
        self.change(now, |ring| {
            ring.raise_floor(generation);
            ring.add(key);
        });
        &self.ring.keys()[0]
    }

    /// Flushes the session-ID sessions created before now, wherever the ring comes. Returns the session floor.
    pub(crate) fn flush_sessions(&mut self, now: Now) -> u64 {
        self.change(now, |ring| ring.flush_sessions(now.wall));
        self.ring.sessions_from()
    }

    /// A hybrid clock: minted later means higher, to within the offset between two clocks.
    fn next_generation(&self, now: Now) -> u64 {
        let seen = self.ring.highest_generation().max(self.ring.floor());
        now.wall.max(seen.saturating_add(1))
    }

    /// Changes the ring, and notes what has been held since when. A key that comes in place of another of its name has
    /// not been held before.
    fn change<T>(&mut self, now: Now, change: impl FnOnce(&mut Ring) -> T) -> T {
        let before = self.ring.clone();
        let result = change(&mut self.ring);
        let since = |key: &TicketKey| match before.key(&key.name) {
            Some(old) if old == key => self.held_since.get(&key.name).copied().unwrap_or(now.mono),
            _ => now.mono,
        };
        self.held_since = self.ring.keys().iter().map(|key| (key.name, since(key))).collect();
        self.know_floors();
        result
    }

    /// The key that seals now: see [`sealing`] for the rule. `None`: no key may, and a proxy needs one of its own.
    #[must_use]
    pub fn active(&self, now: Now) -> Option<&TicketKey> {
        let times = self.times(now);
        sealing(times.into_iter(), now.wall).map(|place| &self.ring.keys()[place])
    }

    /// What `key` is doing now. One that is not held has expired.
    #[must_use]
    pub(crate) fn state_of(&self, key: &TicketKey, now: Now) -> KeyState {
        let times = self.times(now);
        let place = self.ring.keys().iter().position(|held| held.name == key.name);
        let Some(place) = place.filter(|&place| times[place].opens_at(now.wall)) else {
            return KeyState::Expired;
        };
        let can_come = now.wall <= times[place].seal_until;
        match sealing(times.iter().copied(), now.wall) {
            Some(active) if active == place => KeyState::Active,
            Some(active) if place < active && can_come => KeyState::Next,
            None if can_come => KeyState::Next,
            _ => KeyState::Previous,
        }
    }

    /// If a leader is to mint the next key now: the `seal_from` to give it, never sooner than now + `settle`.
    ///
    /// There is always to be a key above the active one that begins at most one `interval` after it. `None` on a ring
    /// without a key that opens: an empty farm's first key is not a successor, and seals at once. See also
    /// [`HeldRing::stranded`], which comes first.
    #[must_use]
    pub(crate) fn mint_due(&self, now: Now) -> Option<u64> {
        if self.is_empty(now) {
            return None;
        }
        let soonest = now.wall.saturating_add(self.settings.settle_ms());
        let times = self.times(now);
        let active = sealing(times.iter().copied(), now.wall);
        let due = active.map_or(soonest, |place| times[place].seal_from.saturating_add(self.settings.interval_ms()));
        // A key minted late begins after it was due; while it settles it is the next one all the same.
        let latest = due.max(soonest);
        let above = &times[..active.unwrap_or(times.len())];
        let has_next = above.iter().any(|key| can_come_at(key, now.wall) && key.seal_from <= latest);
        (!has_next).then_some(latest)
    }

    /// Whether this node has keys but none of them may seal, nor begins within `settle`: nobody minted a successor in
    /// time. It then mints one for itself that begins now, leader or not: forward secrecy before resumption.
    #[must_use]
    pub(crate) fn stranded(&self, now: Now) -> bool {
        let soon = now.wall.saturating_add(self.settings.settle_ms());
        let times = self.times(now);
        let begins_soon = times.iter().any(|key| can_come_at(key, now.wall) && key.seal_from <= soon);
        !self.is_empty(now) && sealing(times.into_iter(), now.wall).is_none() && !begins_soon
    }

    /// The generation of the key that takes over within `settle`, if one does: a rotation asked for now is that one.
    #[must_use]
    pub(crate) fn rotation_pending(&self, now: Now) -> Option<u64> {
        let soon = now.wall.saturating_add(self.settings.settle_ms());
        let times = self.times(now);
        let active = sealing(times.iter().copied(), now.wall).unwrap_or(times.len());
        let pending = |key: &Times| now.wall < key.seal_from && key.seal_from <= soon && can_come_at(key, now.wall);
        times[..active].iter().position(pending).map(|place| self.ring.keys()[place].generation)
    }

    /// The first instant after now, UTC milliseconds, at which [`active`](Self::active), what opens, a state,
    /// [`mint_due`](Self::mint_due), [`stranded`](Self::stranded) or [`expire`](Self::expire) may have something new to
    /// say, if nothing arrives and no clock is set before then. `None`: never.
    #[must_use]
    pub fn next_change(&self, now: Now) -> Option<u64> {
        let offset = self.settings.max_clock_offset_ms();
        let erasures = self.ring.closings().map(|until| until.saturating_add(offset).saturating_add(1));
        let erasures = erasures.filter(|&at| at > now.wall && at < u64::MAX);
        self.times(now).iter().filter_map(|key| key.next_change(now.wall)).chain(erasures).min()
    }

    /// What the proxies get: every key that opens now, with its times.
    #[must_use]
    pub fn timetable(&self, now: Now) -> Timetable {
        let keys = self.ring.keys().iter().zip(self.times(now));
        let open = keys.filter(|(_, times)| times.opens_at(now.wall));
        let mut entries = Vec::with_capacity(Ring::CAP);
        entries.extend(open.map(|(key, times)| ProxyKey {
            name: key.name,
            hmac: *key.hmac(),
            aes: *key.aes(),
            seal_from: times.seal_from,
            settled_at: times.settled_at,
            seal_until: times.seal_until,
            open_until: times.open_until,
        }));
        Timetable::new(entries).with_floors(self.ring.floor(), self.ring.sessions_from())
    }

    /// The times of every key, highest in order first.
    fn times(&self, now: Now) -> Vec<Times> {
        let keys = self.ring.keys().iter().zip(self.ring.closings());
        keys.map(|(key, open_until)| Times {
            seal_from: key.seal_from,
            settled_at: self.settled_at(&key.name, now),
            seal_until: key.seal_until,
            open_until,
        })
        .collect()
    }

    /// The wall time at which the key will have been held for `settle`; 0 if it has been.
    fn settled_at(&self, name: &[u8; 16], now: Now) -> u64 {
        let held = now.mono.saturating_sub(self.held_since.get(name).copied().unwrap_or(now.mono));
        match self.settings.settle_ms().saturating_sub(held) {
            0 => 0,
            missing => now.wall.saturating_add(missing),
        }
    }
}

/// Whether the key may seal at `wall` or later.
fn can_come_at(key: &Times, wall: u64) -> bool {
    key.opens_at(wall) && wall <= key.seal_until
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zeroize::Zeroizing;

    use super::super::ring::testing::{any_message, key, ring};
    use super::*;
    use crate::keys::ring::RingFault;

    const HOUR: u64 = 3_600_000;
    /// `settle` of the rings in this module's properties.
    const SETTLE: u64 = 20;

    fn at(wall: u64) -> Now {
        Now { wall, mono: 1_000_000 + wall }
    }

    fn material(name: u8) -> KeyMaterial {
        KeyMaterial::from_random(&Zeroizing::new([name; 80]))
    }

    /// A farm of the default settings whose first key, 1, was minted at hour 100 and settled long ago, and whose next
    /// key, 2, begins at hour 108.
    fn two_keys() -> HeldRing {
        let mut held = HeldRing::new(KeySettings::default());
        held.mint(100 * HOUR, material(1), at(100 * HOUR));
        let due = held.mint_due(at(100 * HOUR)).unwrap();
        held.mint(due, material(2), at(100 * HOUR));
        held
    }

    fn active(held: &HeldRing, now: Now) -> Option<u8> {
        held.active(now).map(|key| key.name[0])
    }

    fn states(held: &HeldRing, now: Now) -> Vec<KeyState> {
        held.ring.keys().iter().map(|key| held.state_of(key, now)).collect()
    }

    /// A node's ring with keys that came one after the other, all before the monotonic clock reads 100.
    fn any_held() -> impl Strategy<Value = HeldRing> {
        let settings = KeySettings {
            interval: Duration::from_millis(30),
            settle: Duration::from_millis(SETTLE),
            max_clock_offset: Duration::from_millis(10),
            ..KeySettings::default()
        };
        prop::collection::vec((any_message(), 0..100_u64), 0..8).prop_map(move |mut arrivals| {
            arrivals.sort_by_key(|(_, mono)| *mono);
            let mut held = HeldRing::new(settings);
            for (key, mono) in arrivals {
                let now = Now { wall: 1000, mono };
                let (ring, _) =
                    Ring::read(&proto::Ring { floor: 0, keys: vec![key], ..Default::default() }, now, &settings);
                held.merge(&ring, now);
            }
            held
        })
    }

    /// An instant after all of `any_held`'s keys came, on a wall clock that has nothing to do with it.
    fn any_now() -> impl Strategy<Value = Now> {
        (0..160_u64, 100..130_u64).prop_map(|(wall, mono)| Now { wall, mono })
    }

    /// The active key by the rule that stands above [`sealing`], worked out a second time: with sets instead of one pass.
    fn active_by_definition(held: &HeldRing, now: Now) -> Option<[u8; 16]> {
        let opens = |key: &&TicketKey| now.wall <= held.ring.open_until(&key.name).unwrap();
        let keys: Vec<_> = held.ring.keys().iter().filter(opens).collect();
        let settled = |key: &&&TicketKey| held.held_for(&key.name, now).unwrap() >= held.settings.settle;
        let able: Vec<_> = keys.iter().filter(|key| (key.seal_from..=key.seal_until).contains(&now.wall)).collect();
        let highest = |keys: Vec<&TicketKey>| keys.into_iter().max_by_key(|key| key.order()).map(|key| key.name);
        let able_and_settled = able.iter().copied().filter(settled).copied().collect::<Vec<_>>();
        if !able_and_settled.is_empty() {
            return highest(able_and_settled);
        }
        if !able.is_empty() {
            return highest(able.into_iter().copied().collect());
        }
        if keys.iter().any(|key| key.seal_from <= now.wall) {
            return None;
        }
        let some_settled = keys.iter().any(|key| settled(&key));
        let waiting: Vec<_> = keys.iter().filter(|key| !some_settled || settled(key)).copied().collect();
        let first = waiting.iter().map(|key| key.seal_from).min()?;
        highest(waiting.into_iter().filter(|key| key.seal_from == first).collect())
    }

    fn names<'a>(keys: impl Iterator<Item = &'a TicketKey>) -> Vec<[u8; 16]> {
        let mut names: Vec<_> = keys.map(|key| key.name).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn a_key_that_opens_no_longer_is_told_until_it_is_erased_and_does_not_come_back() {
        let settings = KeySettings { max_clock_offset: Duration::from_millis(50), ..KeySettings::default() };
        let ring = ring(0, &[key(2, 20, 100, 900, 0), key(1, 10, 0, 80, 100)]);
        let since = HashMap::new();
        let held = HeldRing::restore(ring.clone(), &since, settings, at(0));
        let told = |wall| held.to_proto(at(wall)).keys.len();
        // 1 closes at 180, 2 at 900: what is below closes no later than what is above.
        assert_eq!((told(180), told(230), told(231)), (2, 2, 1));
        let mut other = HeldRing::restore(ring.clone(), &since, settings, at(0));
        other.expire(at(231));
        assert_eq!(other.ring().keys().len(), 1);
        assert_eq!(
            other.merge(&ring, at(231)),
            Merge { changed: false, conflicts: 0 },
            "a slower clock still tells it"
        );
        assert_eq!(other.ring().keys().len(), 1);
    }

    proptest! {
        #[test]
        fn active_is_the_key_that_the_rule_of_the_timetable_names(held in any_held(), now in any_now()) {
            prop_assert_eq!(held.active(now).map(|key| key.name), active_by_definition(&held, now));
        }

        #[test]
        fn a_key_held_for_less_than_settle_never_seals_while_an_older_one_can(held in any_held(), now in any_now()) {
            let long_held = |key: &TicketKey| held.held_for(&key.name, now).unwrap() >= held.settings.settle;
            let Some(active) = held.active(now) else { return Ok(()) };
            let another_can = held.ring.open_at(now.wall).any(|key| {
                long_held(key) && (key.seal_from..=key.seal_until).contains(&now.wall)
            });
            prop_assert!(long_held(active) || !another_can);
        }

        #[test]
        fn no_key_seals_outside_its_times_once_one_has_begun(held in any_held(), now in any_now()) {
            let Some(active) = held.active(now) else { return Ok(()) };
            let any_begun = held.ring.open_at(now.wall).any(|key| key.seal_from <= now.wall);
            prop_assert!(!any_begun || active.seal_from <= now.wall);
            prop_assert!(now.wall <= active.seal_until);
            prop_assert!(now.wall <= held.ring.open_until(&active.name).unwrap());
        }

        #[test]
        fn a_timetable_agrees_with_the_ring_at_every_later_instant(held in any_held(), now in any_now()) {
            let table = held.timetable(now);
            for later in 0..200 {
                let then = now.after(Duration::from_millis(later));
                let set = table.at(then.wall);
                prop_assert_eq!(set.seal.map(|entry| entry.name), held.active(then).map(|key| key.name));
                prop_assert_eq!(set.open.first().map(|e| e.name), set.seal.or(set.open.first().copied()).map(|e| e.name));
                let mut open: Vec<_> = set.open.iter().map(|entry| entry.name).collect();
                open.sort_unstable();
                prop_assert_eq!(open, names(held.ring.open_at(then.wall)));
            }
        }

        #[test]
        fn nothing_changes_before_next_change(held in any_held(), now in any_now()) {
            let until = held.next_change(now).unwrap_or(now.wall + 300);
            prop_assert!(until > now.wall);
            let due = (held.mint_due(now).is_some(), held.stranded(now));
            for wait in 1..until.min(now.wall + 300) - now.wall {
                let then = now.after(Duration::from_millis(wait));
                prop_assert_eq!(held.active(then), held.active(now), "after {} ms", wait);
                prop_assert_eq!(states(&held, then), states(&held, now), "after {} ms", wait);
                prop_assert_eq!(held.timetable(then).next_change(then.wall), held.timetable(now).next_change(now.wall));
                prop_assert!(due.0 || held.mint_due(then).is_none(), "a mint became due after {} ms", wait);
                prop_assert!(due.1 || !held.stranded(then), "stranded after {} ms", wait);
                let mut kept = held.clone();
                kept.expire(now);
                prop_assert!(!kept.expire(then), "a key expired after {} ms", wait);
            }
        }

        #[test]
        fn a_minted_key_is_the_next_or_the_active_one_and_is_not_minted_twice(held in any_held(), now in any_now()) {
            let Some(seal_from) = held.mint_due(now) else { return Ok(()) };
            let mut held = held;
            prop_assert!(seal_from >= now.wall + SETTLE);
            let highest = held.ring.highest_generation();
            prop_assert!(held.mint(seal_from, material(200), now).generation > highest);
            let before = held.active(now).map(|key| key.name);
            for wait in 0..seal_from - now.wall {
                let then = now.after(Duration::from_millis(wait));
                let same = held.active(then).map(|key| key.name) == before && !held.stranded(then);
                prop_assert!(!same || held.mint_due(then).is_none(), "after {} ms", wait);
            }
        }

        #[test]
        fn a_ring_is_restored_as_it_was_held(held in any_held(), now in any_now(), down in 0..30_u64) {
            let spans = held.ring.keys().iter().map(|key| (key.name, held.held_for(&key.name, now).unwrap())).collect();
            let other_boot = Now { wall: now.wall, mono: 500_000 };
            let restored = HeldRing::restore(held.ring.clone(), &spans, held.settings, other_boot);
            let later = |now: Now| now.after(Duration::from_millis(down));
            prop_assert_eq!(restored.active(later(other_boot)), held.active(later(now)));
            prop_assert_eq!(restored.next_change(other_boot), held.next_change(now));
        }
    }

    #[test]
    fn the_first_key_of_a_farm_seals_at_once() {
        let mut held = HeldRing::new(KeySettings::default());
        let now = at(100 * HOUR);
        assert!(held.is_empty(now) && held.active(now).is_none());
        assert_eq!((held.mint_due(now), held.stranded(now), held.next_change(now)), (None, false, None));
        let key = held.mint(now.wall, material(1), now);
        assert_eq!(key.generation, now.wall);
        assert_eq!(active(&held, now), Some(1));
    }

    #[test]
    fn the_leader_keeps_one_key_ahead() {
        let mut held = two_keys();
        assert_eq!(held.ring.keys()[0].seal_from, 108 * HOUR);
        assert_eq!(states(&held, at(107 * HOUR)), [KeyState::Next, KeyState::Active]);
        assert_eq!(held.mint_due(at(108 * HOUR - 1)), None);
        assert_eq!(held.next_change(at(101 * HOUR)), Some(108 * HOUR));
        let now = at(108 * HOUR);
        assert_eq!(held.mint_due(now), Some(116 * HOUR));
        held.mint(116 * HOUR, material(3), now);
        assert_eq!(states(&held, now), [KeyState::Next, KeyState::Active, KeyState::Previous]);
        assert_eq!(held.mint_due(now), None);
    }

    #[test]
    fn after_a_long_outage_the_next_key_begins_settle_from_now_and_is_minted_once() {
        let mut held = two_keys();
        let now = at(131 * HOUR);
        assert_eq!(active(&held, now), Some(2));
        assert_eq!(held.mint_due(now), Some(131 * HOUR + 2000));
        held.mint(131 * HOUR + 2000, material(3), now);
        for wait in [0, 1, 1999] {
            assert_eq!(held.mint_due(at(now.wall + wait)), None, "{wait} ms later");
        }
        let later = at(now.wall + 2000);
        assert_eq!(active(&held, later), Some(3));
        assert_eq!(held.mint_due(later), Some(139 * HOUR + 2000));
    }

    #[test]
    fn past_its_last_key_a_node_is_stranded_until_it_mints_for_itself() {
        let mut held = two_keys();
        let last = at(132 * HOUR);
        assert_eq!((active(&held, last), held.stranded(last)), (Some(2), false));
        assert_eq!(held.next_change(last), Some(132 * HOUR + 1));
        let now = at(132 * HOUR + 1);
        assert_eq!((active(&held, now), held.stranded(now)), (None, true));
        assert_eq!(states(&held, now), [KeyState::Previous, KeyState::Expired]);
        held.mint(now.wall, material(3), now);
        assert_eq!((active(&held, now), held.stranded(now)), (Some(3), false));
        assert_eq!(held.mint_due(now), Some(140 * HOUR + 1));
    }

    #[test]
    fn a_key_about_to_begin_keeps_a_node_from_minting_for_itself() {
        let mut held = two_keys();
        let now = at(132 * HOUR + 1);
        held.mint(now.wall + 2000, material(3), now);
        assert_eq!((active(&held, now), held.stranded(now), held.mint_due(now)), (None, false, None));
        assert_eq!(states(&held, now)[0], KeyState::Next);
    }

    #[test]
    fn a_rotation_displaces_the_waiting_key() {
        let mut held = two_keys();
        let now = at(103 * HOUR);
        assert_eq!(held.rotation_pending(now), None, "the next key is hours away");
        let seal_from = now.wall + 2000;
        let generation = held.mint(seal_from, material(3), now).generation;
        assert_eq!(held.rotation_pending(now), Some(generation));
        assert_eq!(held.rotation_pending(at(seal_from)), None);
        assert_eq!(active(&held, at(seal_from - 1)), Some(1));
        assert_eq!(active(&held, at(seal_from)), Some(3));
        assert_eq!(states(&held, at(seal_from)), [KeyState::Active, KeyState::Previous, KeyState::Previous]);
        assert_eq!(active(&held, at(109 * HOUR)), Some(3), "2 never seals");
        assert_eq!(held.mint_due(at(seal_from)), Some(seal_from + 8 * HOUR));
        assert_eq!(held.ring.open_until(&[1; 16]), Some(seal_from + 24 * HOUR));
    }

    #[test]
    fn a_scheduled_key_about_to_begin_is_a_pending_rotation() {
        let held = two_keys();
        assert_eq!(held.rotation_pending(at(108 * HOUR - 2001)), None);
        assert_eq!(held.rotation_pending(at(108 * HOUR - 2000)), Some(100 * HOUR + 1));
    }

    #[test]
    fn a_revocation_leaves_one_key_that_seals_at_once() {
        let mut held = two_keys();
        let mut other = held.clone();
        let now = at(101 * HOUR);
        let generation = held.revoke(material(3), 0, now).generation;
        assert_eq!((held.ring.floor(), held.ring.keys().len()), (generation, 1));
        assert_eq!(active(&held, now), Some(3));
        other.merge(held.ring(), now);
        assert_eq!(active(&other, now), Some(3));
        assert!(other.timetable(now).open_at(&[1; 16], now.wall).is_none());
        assert_eq!(held.mint(now.wall, material(4), now).generation, generation + 1, "above the floor");
        assert_eq!((held.timetable(now).floor(), held.timetable(now).sessions_from()), (generation, 0));
        assert_eq!(held.flush_sessions(now), now.wall);
        assert_eq!(held.timetable(now).sessions_from(), now.wall);
    }

    #[test]
    fn a_revocation_puts_out_of_use_what_the_asker_holds_as_far_as_it_can_be_right() {
        let now = at(101 * HOUR);
        let ahead = now.wall + 300_000;
        for (known, generation) in [(0, now.wall), (now.wall + 7, now.wall + 8), (ahead, ahead), (u64::MAX, ahead)] {
            assert_eq!(two_keys().revoke(material(3), known, now).generation, generation);
        }
    }

    #[test]
    fn a_revocation_wins_over_what_the_other_side_of_a_partition_minted_before_it() {
        let (mut ours, mut theirs) = (two_keys(), two_keys());
        theirs.mint(102 * HOUR, material(3), at(101 * HOUR));
        ours.revoke(material(4), 0, at(101 * HOUR + 1));
        theirs.mint(110 * HOUR, material(5), at(102 * HOUR));
        let healed = at(103 * HOUR);
        let before = ours.ring().clone();
        ours.merge(theirs.ring(), healed);
        theirs.merge(&before, healed);
        assert_eq!(ours.ring(), theirs.ring());
        let left: Vec<u8> = ours.ring().keys().iter().map(|key| key.name[0]).collect();
        assert_eq!(left, [5, 4], "what was minted after the revocation stays");
    }

    #[test]
    fn a_key_that_arrives_after_it_began_waits_for_settle() {
        let mut held = two_keys();
        let now = at(105 * HOUR);
        let late = key(3, 105 * HOUR, 104 * HOUR, 130 * HOUR, HOUR);
        assert!(held.merge(&ring(0, &[late]), now).changed);
        assert_eq!(active(&held, at(now.wall + 1999)), Some(1));
        assert_eq!(held.next_change(now), Some(now.wall + 2000));
        assert_eq!(active(&held, at(now.wall + 2000)), Some(3));
    }

    #[test]
    fn merging_again_what_is_held_unsettles_nothing() {
        let mut held = two_keys();
        let again = held.ring.clone();
        let now = at(108 * HOUR);
        assert!(!held.merge(&again, now).changed);
        assert_eq!(held.held_for(&[1; 16], now), Some(Duration::from_millis(8 * HOUR)));
        assert_eq!(active(&held, now), Some(2));
    }

    #[test]
    fn a_key_that_replaces_another_of_its_name_has_to_settle() {
        let mut held = two_keys();
        let now = at(108 * HOUR);
        let rival = key(2, 100 * HOUR + 2, 108 * HOUR, 132 * HOUR, 24 * HOUR);
        assert_eq!(held.merge(&ring(0, &[rival]), now), Merge { changed: true, conflicts: 1 });
        assert_eq!(held.held_for(&[2; 16], now), Some(Duration::ZERO));
        assert_eq!(active(&held, now), Some(1));
    }

    #[test]
    fn of_two_keys_of_one_generation_all_nodes_choose_the_same() {
        let (now, later) = (at(100 * HOUR), at(101 * HOUR));
        let rivals = [1, 2].map(|name| key(name, 5, 100 * HOUR, 120 * HOUR, HOUR));
        for (first, second) in [(0, 1), (1, 0)] {
            let mut held = HeldRing::new(KeySettings::default());
            held.merge(&ring(0, &rivals[first..=first]), now);
            held.merge(&ring(0, &rivals[second..=second]), now);
            assert_eq!(active(&held, later), Some(2));
        }
    }

    #[test]
    fn a_clock_set_back_unsettles_nothing_and_an_unstarted_key_still_seals() {
        let held = two_keys();
        let now = at(109 * HOUR);
        let set_back = Now { wall: 99 * HOUR, mono: now.mono };
        assert_eq!(active(&held, set_back), Some(1), "none has begun: the one that begins first");
        let table = held.timetable(now);
        assert_eq!(table.seal_at(99 * HOUR).unwrap().name, [1; 16], "at the proxy too");
        assert_eq!(table.seal_at(108 * HOUR).unwrap().name, [2; 16]);
    }

    #[test]
    fn a_clock_set_back_far_leaves_an_empty_ring_and_a_floor_of_nothing() {
        let mut held = two_keys();
        let generation = held.revoke(material(3), 0, at(101 * HOUR)).generation;
        let set_back = Now { wall: 50 * HOUR, mono: 0 };
        let faults = held.drop_faulty(set_back);
        assert_eq!(faults.iter().next(), Some((&RingFault::FloorFarAhead(generation), 1)));
        assert_eq!(faults.count(), 2);
        assert!(held.is_empty(set_back));
        assert_eq!(held.mint(set_back.wall, material(4), set_back).generation, set_back.wall);
    }

    #[test]
    fn a_clock_set_back_and_right_again_takes_no_floor_away() {
        let mut held = two_keys();
        let revoked = held.revoke(material(3), 0, at(101 * HOUR)).generation;
        let flushed = held.flush_sessions(at(101 * HOUR));
        let mono = at(101 * HOUR).mono;
        let set_back = Now { wall: 50 * HOUR, mono };
        held.drop_faulty(set_back);
        held.mint(set_back.wall, material(4), set_back);
        assert_eq!((held.ring.floor(), held.ring.sessions_from()), (0, 0));

        let right_again = Now { wall: 101 * HOUR + 60_000, mono: mono + 60_000 };
        assert!(held.drop_faulty(right_again).is_empty());
        assert_eq!((held.ring.floor(), held.ring.sessions_from()), (revoked, flushed));
        assert!(held.is_empty(right_again), "what was minted meanwhile is below the floor, as on every other node");
        // A host that missed the revocation brings nothing back.
        let late = two_keys();
        assert!(!held.merge(late.ring(), right_again).changed);
    }

    #[test]
    fn a_floor_that_a_wrong_clock_made_gives_way_to_the_one_before() {
        let mut held = two_keys();
        let revoked = held.revoke(material(3), 0, at(101 * HOUR)).generation;
        let year_ahead = Now { wall: at(101 * HOUR).wall + 365 * 24 * HOUR, mono: at(101 * HOUR).mono };
        held.revoke(material(4), 0, year_ahead);
        held.flush_sessions(year_ahead);
        let healed = at(102 * HOUR);
        held.drop_faulty(healed);
        assert_eq!((held.ring.floor(), held.ring.sessions_from()), (revoked, 0));
        held.mint(healed.wall, material(5), healed);
        for day in 0..400 {
            let now = at(102 * HOUR + day * 24 * HOUR);
            held.drop_faulty(now);
            assert_eq!((held.ring.floor(), held.ring.sessions_from()), (revoked, 0), "day {day}");
        }
    }

    #[test]
    fn a_key_is_erased_max_clock_offset_after_it_opened_last() {
        let mut held = two_keys();
        let closes = 132 * HOUR;
        assert_eq!(held.ring.open_until(&[1; 16]), Some(closes));
        assert!(!held.expire(at(closes + 300_000)));
        assert_eq!(held.timetable(at(closes + 1)).entries().len(), 1, "no proxy gets it any more");
        let now = at(closes + 300_001);
        assert_eq!(held.next_change(at(closes + 1)), Some(now.wall));
        assert!(held.expire(now));
        assert!(held.ring.key(&[1; 16]).is_none() && held.held_for(&[1; 16], now).is_none());
        assert!(!held.expire(now));
    }

    #[test]
    fn a_ring_of_expired_keys_is_as_good_as_none() {
        let held = two_keys();
        let now = at(156 * HOUR + 1);
        assert!(held.is_empty(now));
        assert_eq!((held.mint_due(now), held.stranded(now), active(&held, now)), (None, false, None));
    }
}
