//! Which sessions were removed lately, so that a late or repeated insertion does not bring them back.

use std::{
    collections::{HashSet, VecDeque},
    time::Duration,
};

use openssl::sha::sha256;

use super::SessionId;
use crate::clock::millis;

/// The most tombstones that a node keeps, about 20 MB of them. A pod that removes more than 430 sessions a second
/// forgets the oldest before their time.
pub const MAX_TOMBSTONES: usize = 1 << 18;

/// The first 16 bytes of SHA-256 over a session ID: enough to know it again, and no use to anybody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Grave([u8; 16]);

impl Grave {
    pub fn of(id: &SessionId) -> Self {
        let mut grave = [0; 16];
        grave.copy_from_slice(&sha256(id.as_bytes())[..16]);
        Self(grave)
    }
}

/// Tombstones in the order in which they were laid, which is also the order in which they go.
pub(super) struct Tombstones {
    lasting: u64,
    max: usize,
    /// With the monotonic time until which each stands.
    queue: VecDeque<(Grave, u64)>,
    known: HashSet<Grave>,
}

impl Tombstones {
    /// At most `max` tombstones that stand for `lasting` each.
    pub fn new(lasting: Duration, max: usize) -> Self {
        Self { lasting: millis(lasting), max, queue: VecDeque::new(), known: HashSet::new() }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether a tombstone stands at the monotonic time `mono`.
    pub fn holds(&mut self, grave: &Grave, mono: u64) -> bool {
        self.expire(mono);
        self.known.contains(grave)
    }

    /// Lays a tombstone. A second one for the same session changes nothing and gives `None`; otherwise the number of
    /// tombstones that had to go before their time is returned: one if there were too many, else none.
    pub fn lay(&mut self, grave: Grave, mono: u64) -> Option<usize> {
        self.expire(mono);
        if !self.known.insert(grave) {
            return None;
        }
        self.queue.push_back((grave, mono.saturating_add(self.lasting)));
        let mut dropped = 0;
        while self.queue.len() > self.max {
            self.drop_oldest();
            dropped += 1;
        }
        Some(dropped)
    }

    /// Takes away those whose time is over.
    pub fn expire(&mut self, mono: u64) {
        while self.queue.front().is_some_and(|(_, until)| *until <= mono) {
            self.drop_oldest();
        }
        if self.queue.capacity() > self.queue.len() * 4 + 1024 {
            self.queue.shrink_to(self.queue.len() * 2);
            self.known.shrink_to(self.queue.len() * 2);
        }
    }

    fn drop_oldest(&mut self) {
        if let Some((grave, _)) = self.queue.pop_front() {
            self.known.remove(&grave);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grave(number: u8) -> Grave {
        Grave::of(&SessionId::try_from(&[number; 32][..]).unwrap())
    }

    #[test]
    fn a_grave_is_the_first_half_of_sha_256_over_the_id() {
        // SHA-256 of "abc" (FIPS 180-2, appendix B.1).
        let id = SessionId::try_from(&b"abc"[..]).unwrap();
        let expected = [0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea, 0x41, 0x41, 0x40, 0xde, 0x5d, 0xae, 0x22, 0x23];
        assert_eq!(Grave::of(&id), Grave(expected));
    }

    #[test]
    fn a_tombstone_stands_for_its_time_to_the_millisecond() {
        let mut stones = Tombstones::new(Duration::from_secs(600), 10);
        assert_eq!(stones.lay(grave(1), 1_000), Some(0));
        assert!(stones.holds(&grave(1), 600_999));
        assert!(!stones.holds(&grave(2), 600_999));
        assert!(!stones.holds(&grave(1), 601_000));
        assert_eq!(stones.len(), 0);
        assert_eq!(stones.lay(grave(1), 700_000), Some(0), "and can be laid again");
    }

    #[test]
    fn a_second_one_changes_nothing() {
        let mut stones = Tombstones::new(Duration::from_secs(1), 10);
        assert_eq!(stones.lay(grave(1), 0), Some(0));
        assert_eq!(stones.lay(grave(1), 900), None);
        assert_eq!(stones.len(), 1);
        assert!(!stones.holds(&grave(1), 1_000));
    }

    #[test]
    fn the_oldest_goes_when_there_are_too_many_and_is_counted() {
        let mut stones = Tombstones::new(Duration::from_secs(600), 3);
        let dropped: Vec<_> = (1..=5).map(|number| stones.lay(grave(number), u64::from(number))).collect();
        assert_eq!(dropped, [Some(0), Some(0), Some(0), Some(1), Some(1)]);
        let standing: Vec<_> = (1..=5).filter(|number| stones.holds(&grave(*number), 5)).collect();
        assert_eq!(standing, [3, 4, 5]);
    }
}
