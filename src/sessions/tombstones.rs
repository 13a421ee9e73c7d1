//! Which sessions were removed lately, so that a late or repeated insertion does not bring them back.

use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    ops::Bound,
    time::Duration,
};

use openssl::sha::sha256;

use super::SessionId;
use crate::clock::millis;

/// The most tombstones that a node keeps, about 20 MB of them. A pod that removes more than 430 sessions a second
/// forgets the oldest before their time.
pub(crate) const MAX_TOMBSTONES: usize = 1 << 18;

/// For how many of the latest removals the session ID is kept too, 3 MB of them: what a proxy that missed them is told. At the
/// most removals that tombstones stand for, these are two and a half minutes, and a proxy that does not read loses its connection
/// after ten seconds.
const MOST_NAMED: usize = MAX_TOMBSTONES / 4;

/// The first 16 bytes of SHA-256 over a session ID: enough to know it again, and no use to anybody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct TombstoneHash([u8; 16]);

impl TombstoneHash {
    /// Its bytes, as another node sent them; none unless there are 16.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Its bytes.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn of(id: &SessionId) -> Self {
        let mut hash = [0; 16];
        hash.copy_from_slice(&sha256(id.as_bytes())[..16]);
        Self(hash)
    }
}

/// Tombstones in the order in which they go. Those that this node makes go in the order in which they were made; those
/// that a warm-up brought have the time that they have left. Another node's tombstone is a hash; what was removed here, or was
/// held when its hash came, has an ID besides: [`Self::named`].
pub(super) struct Tombstones {
    lasting: u64,
    max: usize,
    /// With the monotonic time until which each stands.
    standing: BTreeSet<Deadline>,
    known: HashSet<TombstoneHash>,
    /// The IDs that were removed last, in that order, each with the monotonic time until which it is kept.
    named: VecDeque<(u64, SessionId)>,
}

/// A tombstone and the monotonic time until which it stands: the order in which they go, and are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Deadline {
    pub until: u64,
    pub hash: TombstoneHash,
}

impl Tombstones {
    /// At most `max` tombstones that stand for `lasting` each.
    pub(crate) fn new(lasting: Duration, max: usize) -> Self {
        Self { lasting: millis(lasting), max, standing: BTreeSet::new(), known: HashSet::new(), named: VecDeque::new() }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.standing.len()
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.standing.is_empty()
    }

    /// Whether a tombstone stands at the monotonic time `mono`.
    pub(crate) fn holds(&mut self, hash: &TombstoneHash, mono: u64) -> bool {
        self.expire(mono);
        self.stands(hash)
    }

    /// Whether a tombstone stood when [`Self::expire`] was last called.
    pub(crate) fn stands(&self, hash: &TombstoneHash) -> bool {
        self.known.contains(hash)
    }

    /// Keeps the ID of a removed session for as long as a tombstone that is made now stands, if no [`MOST_NAMED`] follow.
    pub(crate) fn name(&mut self, id: SessionId, mono: u64) {
        if self.named.len() >= MOST_NAMED {
            self.named.pop_front();
        }
        self.named.push_back((mono.saturating_add(self.lasting), id));
    }

    /// The IDs of sessions that were removed lately, in the order in which they were.
    pub(crate) fn named(&mut self, mono: u64) -> impl Iterator<Item = SessionId> {
        self.expire(mono);
        self.named.iter().map(|(_, id)| *id)
    }

    /// Adds a tombstone. A second one for the same session changes nothing and gives `None`; otherwise the number of
    /// tombstones that had to go before their time is returned: one if there were too many, else none.
    pub(crate) fn insert(&mut self, hash: TombstoneHash, mono: u64) -> Option<usize> {
        self.insert_for(hash, self.lasting, mono)
    }

    /// The same for one that another node made and that has `remaining` milliseconds left; never more than one of this
    /// node's own would have.
    pub(crate) fn insert_for(&mut self, hash: TombstoneHash, remaining: u64, mono: u64) -> Option<usize> {
        self.expire(mono);
        let until = mono.saturating_add(remaining.min(self.lasting));
        if until <= mono || !self.known.insert(hash) {
            return None;
        }
        self.standing.insert(Deadline { until, hash });
        let mut dropped = 0;
        while self.standing.len() > self.max {
            self.drop_first();
            dropped += 1;
        }
        Some(dropped)
    }

    /// The tombstones behind `after` in the order in which they go, those of the last `within` milliseconds if that is
    /// given.
    pub(crate) fn behind(
        &self,
        after: Option<Deadline>,
        within: Option<u64>,
        mono: u64,
    ) -> impl Iterator<Item = &Deadline> {
        // One made `within` ago stands until then.
        let since = within.map(|within| mono.saturating_add(self.lasting).saturating_sub(within));
        let first = Deadline { until: since.unwrap_or(0).max(mono + 1), hash: TombstoneHash([0; 16]) };
        let from = match after {
            Some(after) if after >= first => Bound::Excluded(after),
            _ => Bound::Included(first),
        };
        self.standing.range((from, Bound::Unbounded))
    }

    /// Takes away those whose time is over.
    pub(crate) fn expire(&mut self, mono: u64) {
        while self.standing.first().is_some_and(|standing| standing.until <= mono) {
            self.drop_first();
        }
        while self.named.front().is_some_and(|(until, _)| *until <= mono) {
            self.named.pop_front();
        }
        if self.named.capacity() > self.named.len() * 4 + 1024 {
            self.named.shrink_to(self.named.len() * 2);
        }
        if self.known.capacity() > self.known.len() * 4 + 1024 {
            self.known.shrink_to(self.known.len() * 2);
        }
    }

    fn drop_first(&mut self) {
        if let Some(Deadline { hash, .. }) = self.standing.pop_first() {
            self.known.remove(&hash);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash_of(number: u8) -> TombstoneHash {
        TombstoneHash::of(&SessionId::try_from(&[number; 32][..]).unwrap())
    }

    #[test]
    fn a_tombstone_is_the_first_half_of_sha_256_over_the_id() {
        // SHA-256 of "abc" (FIPS 180-2, appendix B.1).
        let id = SessionId::try_from(&b"abc"[..]).unwrap();
        let expected = [0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea, 0x41, 0x41, 0x40, 0xde, 0x5d, 0xae, 0x22, 0x23];
        assert_eq!(TombstoneHash::of(&id), TombstoneHash(expected));
    }

    #[test]
    fn a_tombstone_stands_for_its_time_to_the_millisecond() {
        let mut stones = Tombstones::new(Duration::from_secs(600), 10);
        assert_eq!(stones.insert(hash_of(1), 1_000), Some(0));
        assert!(stones.holds(&hash_of(1), 600_999));
        assert!(!stones.holds(&hash_of(2), 600_999));
        assert!(!stones.holds(&hash_of(1), 601_000));
        assert_eq!(stones.len(), 0);
        assert_eq!(stones.insert(hash_of(1), 700_000), Some(0), "and can be added again");
    }

    #[test]
    fn a_second_one_changes_nothing() {
        let mut stones = Tombstones::new(Duration::from_secs(1), 10);
        assert_eq!(stones.insert(hash_of(1), 0), Some(0));
        assert_eq!(stones.insert(hash_of(1), 900), None);
        assert_eq!(stones.len(), 1);
        assert!(!stones.holds(&hash_of(1), 1_000));
    }

    #[test]
    fn one_of_another_node_stands_for_what_it_has_left_and_no_longer_than_our_own() {
        let mut stones = Tombstones::new(Duration::from_secs(10), 10);
        assert_eq!(stones.insert_for(hash_of(1), 4_000, 1_000), Some(0));
        assert_eq!(stones.insert(hash_of(2), 1_000), Some(0));
        assert_eq!(stones.insert_for(hash_of(3), u64::MAX, 1_000), Some(0));
        assert_eq!(stones.insert_for(hash_of(4), 0, 1_000), None, "its time is over");
        assert_eq!(stones.insert_for(hash_of(2), 1, 1_000), None, "the one that stands stays");
        assert!(stones.holds(&hash_of(1), 4_999) && !stones.holds(&hash_of(1), 5_000));
        assert!(stones.holds(&hash_of(2), 10_999) && stones.holds(&hash_of(3), 10_999));
        assert!(!stones.holds(&hash_of(3), 11_000));
        assert_eq!(stones.len(), 0);
    }

    #[test]
    fn a_reader_sees_each_once_in_the_order_in_which_they_go() {
        let mut stones = Tombstones::new(Duration::from_secs(600), 100);
        for number in 0..50 {
            stones.insert(hash_of(number), 1_000 + u64::from(number / 10));
        }
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page: Vec<_> = stones.behind(after, None, 2_000).take(7).copied().collect();
            let Some(last) = page.last() else { break };
            after = Some(*last);
            seen.extend(page);
        }
        assert_eq!(seen.len(), 50);
        assert!(seen.is_sorted());
        // Added at 1,003 and 1,004.
        assert_eq!(stones.behind(None, Some(997), 2_000).count(), 20);
        assert_eq!(stones.behind(after, Some(997), 2_000).count(), 0);
        assert_eq!(stones.behind(None, None, 601_003).count(), 10, "those whose time is over are left out");
    }

    #[test]
    fn the_ids_removed_last_are_known_for_as_long_as_tombstones_stand_and_within_their_bound() {
        let id = |number: usize| SessionId::try_from(&number.to_be_bytes()[..]).unwrap();
        let mut stones = Tombstones::new(Duration::from_secs(600), 10);
        stones.name(id(0), 1_000);
        stones.name(id(1), 2_000);
        assert!(stones.named(600_999).eq([id(0), id(1)]));
        assert!(stones.named(601_000).eq([id(1)]));
        for number in 0..MOST_NAMED + 2 {
            stones.name(id(number), 3_000);
        }
        assert!(stones.named(3_000).eq((2..MOST_NAMED + 2).map(id)), "the oldest went");
        assert_eq!(stones.named(603_000).count(), 0);
        assert!(stones.named.capacity() <= 1024, "and gave their memory back");
    }

    #[test]
    fn the_oldest_goes_when_there_are_too_many_and_is_counted() {
        let mut stones = Tombstones::new(Duration::from_secs(600), 3);
        let dropped: Vec<_> = (1..=5).map(|number| stones.insert(hash_of(number), u64::from(number))).collect();
        assert_eq!(dropped, [Some(0), Some(0), Some(0), Some(1), Some(1)]);
        let standing: Vec<_> = (1..=5).filter(|number| stones.holds(&hash_of(*number), 5)).collect();
        assert_eq!(standing, [3, 4, 5]);
    }
}
