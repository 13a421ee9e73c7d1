//! A set of ticket keys that merges with others into one, whatever the order of arrival.

use std::time::Duration;

use openssl::sha::Sha256;

use super::key::{KeyFault, TicketKey, is_far_ahead};
use super::settings::KeySettings;
use crate::clock::{Now, millis};
use crate::proto;
use crate::reason::KeyReason;

/// Ticket keys, and the generation below which none is valid.
///
/// Merging is a join: idempotent, commutative and associative. Order and floor agree on what is old, and of two keys of
/// one name the one kept is never the lower in order; so neither the cap nor the floor can bring back in one order of
/// merges what they drop in another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ring {
    floor: u64,
    /// UTC milliseconds, 0 for none: sessions created before it are flushed.
    sessions_from: u64,
    /// Highest in order first, names unique, at most [`Ring::CAP`], none below the floor.
    keys: Vec<TicketKey>,
}

/// What a merge did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Merge {
    /// Whether the ring is another one now.
    pub changed: bool,
    /// Keys that had the name of one here and were not the same.
    pub conflicts: u32,
}

/// A part of a ring that is skipped. The rest of the ring stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RingFault {
    /// A key is at fault.
    #[error("ticket key of generation {generation}: {fault}")]
    Key {
        /// The generation that the key claims.
        generation: u64,
        /// What is wrong with it.
        fault: KeyFault,
    },
    /// The floor is beyond now + `max_clock_offset`.
    #[error("floor {0} lies ahead of the clock by more than max_clock_offset")]
    FloorFarAhead(u64),
    /// The session floor is beyond now + `max_clock_offset`.
    #[error("session floor {0} lies ahead of the clock by more than max_clock_offset")]
    SessionsFarAhead(u64),
}

impl RingFault {
    /// The counted reason.
    #[must_use]
    pub(crate) fn reason(&self) -> KeyReason {
        match self {
            Self::Key { fault, .. } => fault.reason(),
            Self::FloorFarAhead(_) => KeyReason::FloorFarAhead,
            Self::SessionsFarAhead(_) => KeyReason::SessionsFromFarAhead,
        }
    }
}

/// The faults of one ring by reason, however many there are: the first of each, and how often it was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RingFaults(Vec<(RingFault, u64)>);

impl RingFaults {
    fn add(&mut self, fault: RingFault) {
        // A handful of reasons.
        match self.0.iter_mut().find(|(first, _)| first.reason() == fault.reason()) {
            Some((_, count)) => *count += 1,
            None => self.0.push((fault, 1)),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are in all.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().map(|(_, count)| count).sum()
    }

    /// The first fault of each reason, with the number of those of its reason.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&RingFault, u64)> {
        self.0.iter().map(|(fault, count)| (fault, *count))
    }
}

impl Ring {
    /// The most keys that a ring holds: of more, the highest in order.
    pub const CAP: usize = 64;

    /// Takes a ring from a message. Bad keys and a bad floor are skipped, counted by reason; the rest is taken.
    #[must_use]
    pub fn read(message: &proto::Ring, now: Now, settings: &KeySettings) -> (Self, RingFaults) {
        let mut faults = RingFaults::default();
        let mut ring = Self::default();
        if is_far_ahead(message.floor, now, settings) {
            faults.add(RingFault::FloorFarAhead(message.floor));
        } else {
            ring.floor = message.floor;
        }
        if is_far_ahead(message.sessions_from, now, settings) {
            faults.add(RingFault::SessionsFarAhead(message.sessions_from));
        } else {
            ring.sessions_from = message.sessions_from;
        }
        for key in &message.keys {
            match TicketKey::read(key, now, settings) {
                Ok(key) => drop(ring.add(key)),
                Err(fault) => faults.add(RingFault::Key { generation: key.generation, fault }),
            }
        }
        (ring, faults)
    }

    /// The ring as a message sent (or saved) at `wall`, UTC milliseconds: without the keys that open no longer then.
    #[must_use]
    pub fn to_proto(&self, wall: u64) -> proto::Ring {
        let keys = self.open_at(wall).map(TicketKey::to_proto).collect();
        proto::Ring { floor: self.floor, keys, sessions_from: self.sessions_from }
    }

    /// The generation below which no key is valid.
    #[must_use]
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// The session floor: session-ID sessions created before it are flushed, wherever the ring comes. UTC milliseconds, 0
    /// for none.
    #[must_use]
    pub fn sessions_from(&self) -> u64 {
        self.sessions_from
    }

    /// The keys, highest in order first.
    #[must_use]
    pub fn keys(&self) -> &[TicketKey] {
        &self.keys
    }

    /// The key called `name`.
    #[must_use]
    pub fn key(&self, name: &[u8; 16]) -> Option<&TicketKey> {
        self.keys.iter().find(|key| key.name == *name)
    }

    /// The highest generation held, or 0.
    #[must_use]
    pub fn highest_generation(&self) -> u64 {
        self.keys.first().map_or(0, |key| key.generation)
    }

    /// Joins `other` into this ring.
    pub fn merge(&mut self, other: &Self) -> Merge {
        let before = self.clone();
        self.raise_floor(other.floor);
        self.flush_sessions(other.sessions_from);
        let conflicts = other.keys.iter().filter(|key| self.add((*key).clone())).count();
        Merge { changed: *self != before, conflicts: u32::try_from(conflicts).unwrap_or(u32::MAX) }
    }

    /// Adds one key, as a merge would. Returns whether another key of its name was here.
    pub(super) fn add(&mut self, key: TicketKey) -> bool {
        if key.generation < self.floor {
            return false;
        }
        let rival = self.keys.iter().position(|held| held.name == key.name);
        if let Some(rival) = rival {
            let held = &self.keys[rival];
            if *held == key {
                return false;
            }
            if held.rank() > key.rank() {
                return true;
            }
            self.keys.remove(rival);
        }
        let place = self.keys.partition_point(|held| held.order() > key.order());
        self.keys.insert(place, key);
        self.keys.truncate(Self::CAP);
        rival.is_some()
    }

    /// Raises the floor to `generation` if that is higher, and drops the keys below.
    pub(super) fn raise_floor(&mut self, generation: u64) {
        self.floor = self.floor.max(generation);
        self.keys.retain(|key| key.generation >= self.floor);
    }

    /// Raises the session floor to `from`, UTC milliseconds, if that is higher.
    pub(super) fn flush_sessions(&mut self, from: u64) {
        self.sessions_from = self.sessions_from.max(from);
    }

    /// Drops what [`Ring::read`] would skip now. It heals a ring that was made while the clock was ahead.
    pub(crate) fn drop_faulty(&mut self, now: Now, settings: &KeySettings) -> RingFaults {
        let mut faults = RingFaults::default();
        if is_far_ahead(self.floor, now, settings) {
            faults.add(RingFault::FloorFarAhead(self.floor));
            self.floor = 0;
        }
        if is_far_ahead(self.sessions_from, now, settings) {
            faults.add(RingFault::SessionsFarAhead(self.sessions_from));
            self.sessions_from = 0;
        }
        self.keys.retain(|key| {
            let check = key.check(now, settings);
            if let Err(fault) = check {
                faults.add(RingFault::Key { generation: key.generation, fault });
            }
            check.is_ok()
        });
        faults
    }

    /// When the key called `name` opens its last ticket, UTC milliseconds, as far as is known now: a key that is still
    /// to come may make it sooner, never later. `None` if there is no such key.
    #[must_use]
    pub(crate) fn open_until(&self, name: &[u8; 16]) -> Option<u64> {
        let place = self.keys.iter().position(|key| key.name == *name)?;
        self.closings().nth(place)
    }

    /// `open_until` of each key: `open_for` after the earliest `seal_from` among the keys higher in order, or after its
    /// own `seal_until` if that is sooner.
    ///
    /// But never later than any higher key's. Keys of one `open_for` close in that order anyway. Where `keep` or
    /// `interval` was lowered, it makes the keys that are erased the lowest ones always: if a successor went first, its
    /// predecessors would forget that they were superseded, and open again.
    pub(super) fn closings(&self) -> impl Iterator<Item = u64> {
        self.keys.iter().scan((u64::MAX, u64::MAX), |(superseded, newer_closes), key| {
            let closes = key.seal_until.min(*superseded).saturating_add(key.open_for);
            *superseded = key.seal_from.min(*superseded);
            *newer_closes = closes.min(*newer_closes);
            Some(*newer_closes)
        })
    }

    /// The keys that may open tickets at `wall`, UTC milliseconds, highest in order first.
    pub fn open_at(&self, wall: u64) -> impl Iterator<Item = &TicketKey> {
        self.keys.iter().zip(self.closings()).filter(move |(_, until)| wall <= *until).map(|(key, _)| key)
    }

    /// Eight bytes that two rings share if their floors and the keys that may open at `wall`, UTC milliseconds, are the
    /// same: the first of SHA-256 over the floor and those keys, highest first, each as name, generation, `seal_from`,
    /// `seal_until`, `open_for`, HMAC secret and AES key, and the session floor if there is one. Numbers are 64-bit big
    /// endian. The whole key, for of two that share a name everybody must come to hold the same one; 64 random bytes are
    /// not found by what they hash to.
    #[must_use]
    pub fn fingerprint(&self, wall: u64) -> [u8; 8] {
        let mut hash = Sha256::new();
        hash.update(&self.floor.to_be_bytes());
        for key in self.open_at(wall) {
            hash.update(&key.name);
            for number in [key.generation, key.seal_from, key.seal_until, key.open_for] {
                hash.update(&number.to_be_bytes());
            }
            hash.update(key.hmac());
            hash.update(key.aes());
        }
        if self.sessions_from > 0 {
            hash.update(&self.sessions_from.to_be_bytes());
        }
        let mut fingerprint = [0; 8];
        fingerprint.copy_from_slice(&hash.finish()[..8]);
        fingerprint
    }

    /// Erases the keys that have opened nothing for more than `max_clock_offset` at `wall`, UTC milliseconds. Until
    /// then another node's clock may say that they still open. Returns how many went.
    pub(crate) fn erase_expired(&mut self, wall: u64, max_clock_offset: Duration) -> usize {
        let offset = millis(max_clock_offset);
        let kept = self.closings().take_while(|until| wall <= until.saturating_add(offset)).count();
        let erased = self.keys.len() - kept;
        self.keys.truncate(kept);
        erased
    }
}

#[cfg(test)]
pub(super) mod testing {
    use proptest::prelude::*;

    use super::*;

    pub(crate) const NOW: Now = Now { wall: 1_000_000_000, mono: 0 };

    pub(crate) fn key(name: u8, generation: u64, seal_from: u64, seal_until: u64, open_for: u64) -> TicketKey {
        let message = message(name, name, generation, seal_from, seal_until, open_for);
        TicketKey::read(&message, Now { wall: u64::MAX, mono: 0 }, &KeySettings::default()).unwrap()
    }

    pub(crate) fn message(
        name: u8,
        secret: u8,
        generation: u64,
        seal_from: u64,
        seal_until: u64,
        open_for: u64,
    ) -> proto::TicketKey {
        let (name, hmac, aes) = (vec![name; 16], vec![secret; 32], vec![secret; 32]);
        proto::TicketKey { name, hmac, aes, generation, seal_from, seal_until, open_for }
    }

    pub(crate) fn ring(floor: u64, keys: &[TicketKey]) -> Ring {
        let mut ring = Ring { floor, ..Ring::default() };
        for key in keys {
            ring.add(key.clone());
        }
        ring
    }

    /// Any key as it may come over the wire, good or bad, with names and generations that often collide.
    pub(crate) fn any_message() -> impl Strategy<Value = proto::TicketKey> {
        let ahead = NOW.wall + 300_000;
        let generation = prop_oneof![8 => 0..200_u64, 1 => ahead - 1..ahead + 2];
        let seal_from = prop_oneof![8 => 0..50_u64, 1 => Just(u64::MAX)];
        let lifetime = prop_oneof![8 => 0..50_i64, 1 => Just(-1)];
        (0..120_u8, 0..3_u8, generation, seal_from, lifetime, 0..50_u64, 0..12_u8).prop_map(
            |(name, secret, generation, seal_from, lifetime, open_for, cut)| {
                let seal_until = seal_from.saturating_add_signed(lifetime);
                let mut key = message(name, secret, generation, seal_from, seal_until, open_for);
                if cut == 0 {
                    key.aes.pop();
                }
                key
            },
        )
    }

    /// Any ring as it may come over the wire. Large ones pass the cap.
    pub(crate) fn any_ring() -> impl Strategy<Value = proto::Ring> {
        let floor = prop_oneof![6 => 0..60_u64, 1 => Just(u64::MAX)];
        let size = prop_oneof![0..8_usize, 60..110_usize];
        let sessions_from = prop_oneof![2 => Just(0), 3 => 0..60_u64, 1 => Just(NOW.wall + 300_001)];
        (floor, size.prop_flat_map(|size| prop::collection::vec(any_message(), size)), sessions_from)
            .prop_map(|(floor, keys, sessions_from)| proto::Ring { floor, keys, sessions_from })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::testing::*;
    use super::*;

    fn read(message: &proto::Ring) -> Ring {
        Ring::read(message, NOW, &KeySettings::default()).0
    }

    /// Instants near now, at the ends of what settings allow, and anywhere.
    fn any_time() -> impl Strategy<Value = u64> {
        let year = 365 * 86_400_000;
        prop_oneof![NOW.wall - 50..NOW.wall + 50, NOW.wall + year - 2..NOW.wall + year + 3, any::<u64>()]
    }

    fn joined(a: &Ring, b: &Ring) -> Ring {
        let mut ring = a.clone();
        let merge = ring.merge(b);
        assert_eq!(merge.changed, ring != *a);
        ring
    }

    /// What the join of messages must be, from the definition: no step at a time.
    fn expected(messages: &[&proto::Ring]) -> Ring {
        let limit = NOW.wall + 300_000;
        let highest = |floors: Vec<u64>| floors.into_iter().filter(|&floor| floor <= limit).max().unwrap_or(0);
        let floor = highest(messages.iter().map(|m| m.floor).collect());
        let sessions_from = highest(messages.iter().map(|m| m.sessions_from).collect());
        let all = messages.iter().flat_map(|m| &m.keys);
        let good = all.filter_map(|key| TicketKey::read(key, NOW, &KeySettings::default()).ok());
        let mut keys: Vec<_> = good.filter(|key| key.generation >= floor).collect();
        keys.sort_by(|a, b| (a.name, b.rank()).cmp(&(b.name, a.rank())));
        keys.dedup_by_key(|key| key.name);
        keys.sort_by_key(|key| std::cmp::Reverse(key.order()));
        keys.truncate(64);
        Ring { floor, keys, sessions_from }
    }

    proptest! {
        #[test]
        fn merge_is_the_join_that_its_definition_says(a in any_ring(), b in any_ring(), c in any_ring()) {
            let (ra, rb, rc) = (read(&a), read(&b), read(&c));
            prop_assert_eq!(joined(&joined(&ra, &rb), &rc), expected(&[&a, &b, &c]));
        }

        #[test]
        fn merge_is_idempotent_commutative_and_associative(a in any_ring(), b in any_ring(), c in any_ring()) {
            let (a, b, c) = (read(&a), read(&b), read(&c));
            let ab = joined(&a, &b);
            prop_assert_eq!(joined(&a, &a), a.clone());
            prop_assert_eq!(joined(&ab, &b), ab.clone());
            prop_assert_eq!(&ab, &joined(&b, &a));
            prop_assert_eq!(joined(&ab, &c), joined(&a, &joined(&b, &c)));
        }

        #[test]
        fn no_key_of_any_ring_outlives_what_settings_allow(
            times in prop::collection::vec((any_time(), any_time(), any_time()), 0..20),
        ) {
            let key = |(n, (from, until, open_for))| message(n, n, u64::from(n), from, until, open_for);
            let ring = read(&proto::Ring { keys: (0..).zip(times).map(key).collect(), ..proto::Ring::default() });
            let day = 86_400_000;
            for (key, closes) in ring.keys().iter().zip(ring.closings()) {
                prop_assert!(key.seal_until <= key.seal_from + 365 * day);
                prop_assert!(closes <= NOW.wall + (8 + 365 + 32 * 7) * day);
            }
        }

        #[test]
        fn a_ring_comes_back_from_its_message(a in any_ring()) {
            let ring = read(&a);
            prop_assert_eq!(Ring::read(&ring.to_proto(0), NOW, &KeySettings::default()), (ring, RingFaults::default()));
        }

        #[test]
        fn a_ring_keeps_its_promises(a in any_ring(), b in any_ring()) {
            let ring = joined(&read(&a), &read(&b));
            prop_assert!(ring.keys.len() <= Ring::CAP);
            prop_assert!(ring.keys.is_sorted_by(|a, b| a.order() > b.order()));
            prop_assert!(ring.keys.iter().all(|key| key.generation >= ring.floor));
            prop_assert!(ring.closings().collect::<Vec<_>>().is_sorted_by(|newer, older| newer >= older));
        }

        #[test]
        fn erasing_never_lets_a_key_open_longer(a in any_ring(), wall in 0..150_u64, offset in 0..20_u64) {
            let full = read(&a);
            let mut erased = full.clone();
            erased.erase_expired(wall, Duration::from_millis(offset));
            for key in &full.keys {
                let until = full.open_until(&key.name).unwrap();
                let expected = (wall <= until + offset).then_some(until);
                prop_assert_eq!(erased.open_until(&key.name), expected);
            }
        }

        #[test]
        fn erasing_changes_no_fingerprint_within_the_clock_offset(
            a in any_ring(),
            wall in 20..150_u64,
            behind in 0..20_u64,
        ) {
            let full = read(&a);
            let mut erased = full.clone();
            erased.erase_expired(wall, Duration::from_millis(20));
            prop_assert_eq!(erased.fingerprint(wall - behind), full.fingerprint(wall - behind));
        }
    }

    #[test]
    fn skipped_keys_are_named_and_the_rest_is_taken() {
        let mut short = message(2, 2, 11, 0, 5, 5);
        short.hmac.pop();
        let keys = vec![
            message(1, 1, 10, 0, 5, 5),
            short,
            message(3, 3, 12, 5, 4, 5),
            message(4, 4, 13, NOW.wall + 9 * 86_400_000, u64::MAX, 5),
            message(5, 5, NOW.wall + 300_001, 0, 5, 5),
        ];
        let message = proto::Ring { floor: NOW.wall + 300_001, keys, sessions_from: NOW.wall + 300_002 };
        let (ring, faults) = Ring::read(&message, NOW, &KeySettings::default());
        assert_eq!(ring, super::testing::ring(0, &[key(1, 10, 0, 5, 5)]));
        let reasons: Vec<_> = faults.iter().map(|(fault, _)| fault.reason().as_str()).collect();
        let expected = [
            "floor_far_ahead",
            "sessions_from_far_ahead",
            "wrong_length",
            "seals_backwards",
            "seal_from_far_ahead",
            "generation_far_ahead",
        ];
        assert_eq!(reasons, expected);
        let (third, count) = faults.iter().nth(2).unwrap();
        assert!(third.to_string().starts_with("ticket key of generation 11: ") && count == 1);
    }

    #[test]
    fn faults_of_one_reason_are_one_with_their_number() {
        let keys = vec![proto::TicketKey::default(); 100_000];
        let (ring, faults) = Ring::read(&proto::Ring { keys, ..proto::Ring::default() }, NOW, &KeySettings::default());
        assert!(ring.keys().is_empty());
        let fault = RingFault::Key { generation: 0, fault: KeyFault::WrongLength };
        assert_eq!(faults.iter().collect::<Vec<_>>(), [(&fault, 100_000)]);
        assert_eq!(faults.count(), 100_000);
    }

    #[test]
    fn of_two_keys_of_one_name_the_larger_stays_and_it_is_counted() {
        let held = ring(0, &[key(1, 10, 0, 5, 5)]);
        let rival = ring(0, &[key(1, 10, 0, 6, 5)]);
        let mut merged = held.clone();
        assert_eq!(merged.merge(&rival), Merge { changed: true, conflicts: 1 });
        assert_eq!(merged, rival);
        assert_eq!(merged.merge(&held), Merge { changed: false, conflicts: 1 });
        assert_eq!(merged.merge(&rival), Merge { changed: false, conflicts: 0 });
    }

    #[test]
    fn a_floor_drops_what_is_below_it_and_keeps_it_out() {
        let mut merged = ring(0, &[key(1, 10, 0, 5, 5), key(2, 20, 0, 5, 5)]);
        assert!(merged.merge(&ring(20, &[])).changed);
        assert_eq!(merged, ring(20, &[key(2, 20, 0, 5, 5)]));
        assert!(!merged.merge(&ring(0, &[key(1, 10, 0, 5, 5)])).changed);
    }

    #[test]
    fn a_session_floor_only_rises_until_the_clock_says_that_it_cannot_be() {
        let mut merged = Ring { sessions_from: 30, ..ring(0, &[]) };
        assert!(!merged.merge(&Ring { sessions_from: 20, ..ring(0, &[]) }).changed);
        assert!(merged.merge(&Ring { sessions_from: NOW.wall + 300_000, ..ring(0, &[]) }).changed);
        assert!(merged.drop_faulty(NOW, &KeySettings::default()).is_empty());
        assert_eq!(merged.sessions_from(), NOW.wall + 300_000);
        let set_back = Now { wall: NOW.wall - 1, mono: 0 };
        let fault = RingFault::SessionsFarAhead(NOW.wall + 300_000);
        assert_eq!(merged.drop_faulty(set_back, &KeySettings::default()), RingFaults(vec![(fault, 1)]));
        assert_eq!(merged, ring(0, &[]));
    }

    #[test]
    fn a_key_closes_open_for_after_the_earliest_that_supersedes_it() {
        let scheduled = ring(0, &[key(1, 1, 100, 400, 300), key(2, 2, 200, 500, 300), key(3, 3, 150, 450, 300)]);
        assert_eq!(scheduled.open_until(&[1; 16]), Some(450), "3 was a rotation that displaced 2");
        assert_eq!(scheduled.open_until(&[2; 16]), Some(450));
        assert_eq!(scheduled.open_until(&[3; 16]), Some(750), "seal_until + open_for");
        assert_eq!(scheduled.open_until(&[4; 16]), None);
        let late = ring(0, &[key(1, 1, 100, 400, 300), key(2, 2, 900, 999, 300)]);
        assert_eq!(late.open_until(&[1; 16]), Some(700), "it sealed nothing after 400");
    }

    #[test]
    fn no_key_outlives_a_newer_one_that_opens_for_less() {
        let keep_was_lowered = ring(0, &[key(1, 1, 0, 300, 3200), key(2, 2, 100, 400, 100), key(3, 3, 200, 500, 100)]);
        assert_eq!(keep_was_lowered.closings().collect::<Vec<_>>(), [600, 300, 300]);
    }

    #[test]
    fn a_clock_set_back_is_healed_in_the_own_ring_too() {
        let settings = KeySettings::default();
        let year_ahead = NOW.wall + 365 * 86_400_000;
        let mut own = ring(5, &[key(1, 10, 0, 5, 5), key(2, year_ahead, year_ahead, year_ahead, 5)]);
        let faults = own.drop_faulty(NOW, &settings);
        assert_eq!(
            faults.iter().map(|(fault, _)| fault.reason().as_str()).collect::<Vec<_>>(),
            ["seal_from_far_ahead"]
        );
        assert_eq!(own, ring(5, &[key(1, 10, 0, 5, 5)]));
        let mut revoked = ring(year_ahead, &[]);
        assert_eq!(revoked.drop_faulty(NOW, &settings).0, [(RingFault::FloorFarAhead(year_ahead), 1)]);
        assert_eq!(revoked, Ring::default());
    }

    #[test]
    fn a_message_carries_no_key_that_opens_no_longer() {
        let ring = ring(0, &[key(1, 1, 0, 100, 50), key(2, 2, 60, 500, 50)]);
        assert_eq!(ring.to_proto(110).keys.len(), 2);
        assert_eq!(ring.to_proto(111).keys.len(), 1);
    }

    #[test]
    fn the_fingerprint_is_over_the_floor_and_all_of_the_keys_that_may_open() {
        let ring = ring(9, &[key(1, 10, 0, 100, 50), key(2, 20, 60, 500, 50)]);
        let bytes = |name: u8, numbers: [u64; 4]| {
            let numbers = numbers.map(u64::to_be_bytes).concat();
            [&[name; 16][..], &numbers, &[name; 32], &[name; 32]].concat()
        };
        let floor = 9_u64.to_be_bytes();
        let both = [&floor[..], &bytes(2, [20, 60, 500, 50]), &bytes(1, [10, 0, 100, 50])].concat();
        assert_eq!(ring.fingerprint(110), openssl::sha::sha256(&both)[..8]);
        assert_eq!(ring.fingerprint(111), openssl::sha::sha256(&both[..8 + 112])[..8]);
        assert_ne!(ring.fingerprint(111), Ring { floor: 8, ..ring.clone() }.fingerprint(111));
        let flushed = Ring { sessions_from: 9, ..ring.clone() };
        let with_sessions = [&both[..], &9_u64.to_be_bytes()].concat();
        assert_eq!(flushed.fingerprint(110), openssl::sha::sha256(&with_sessions)[..8], "only where there is one");
    }
}
