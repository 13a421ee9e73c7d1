//! The ticket keys that a proxy may use, with every time decided beforehand.
//!
//! A proxy that holds a timetable activates and drops keys itself, with its node or without. The rule by which a key
//! is chosen to seal stands here and nowhere else. The ATS plugin compiles this very file, so it uses nothing but
//! `std` and `zeroize`.

use std::fmt;

use zeroize::Zeroize;

/// A ticket key (RFC 5077 section 4) as a proxy uses it. The secrets are wiped when it is dropped.
#[derive(Clone)]
pub struct ProxyKey {
    /// What a ticket begins with, 16 bytes. Public.
    pub name: [u8; 16],
    /// The HMAC-SHA256 secret, 32 bytes.
    pub hmac: [u8; 32],
    /// The AES-256 key, 32 bytes.
    pub aes: [u8; 32],
    /// Seals from here on, UTC milliseconds.
    pub seal_from: u64,
    /// From here on the node has held the key for `settle`, UTC milliseconds; 0 if it had when the timetable was made.
    pub settled_at: u64,
    /// The last instant at which it may seal, UTC milliseconds.
    pub seal_until: u64,
    /// The last instant at which it opens tickets, UTC milliseconds.
    pub open_until: u64,
}

impl ProxyKey {
    /// Its four times.
    #[must_use]
    pub fn times(&self) -> Times {
        Times {
            seal_from: self.seal_from,
            settled_at: self.settled_at,
            seal_until: self.seal_until,
            open_until: self.open_until,
        }
    }
}

impl Drop for ProxyKey {
    fn drop(&mut self) {
        self.hmac.zeroize();
        self.aes.zeroize();
    }
}

impl fmt::Debug for ProxyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyKey").field("name", &self.name).field("times", &self.times()).finish_non_exhaustive()
    }
}

/// When a key does what, UTC milliseconds; see [`ProxyKey`] for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Seals from here on.
    pub seal_from: u64,
    /// Settled from here on.
    pub settled_at: u64,
    /// The last instant at which it may seal.
    pub seal_until: u64,
    /// The last instant at which it opens.
    pub open_until: u64,
}

impl Times {
    /// Whether tickets of the key open at `wall`.
    #[must_use]
    pub(crate) fn opens_at(&self, wall: u64) -> bool {
        wall <= self.open_until
    }

    /// Whether the key's own times allow it to seal at `wall`. A key whose tickets do not open never seals.
    #[must_use]
    pub(crate) fn may_seal_at(&self, wall: u64) -> bool {
        self.seal_from <= wall && wall <= self.seal_until && self.opens_at(wall)
    }

    /// The first instant after `wall` at which one of these times changes what the key may do.
    #[must_use]
    pub fn next_change(&self, wall: u64) -> Option<u64> {
        let after = |last: u64| last.saturating_add(1);
        [self.seal_from, self.settled_at, after(self.seal_until), after(self.open_until)]
            .into_iter()
            .filter(|&at| at > wall && at < u64::MAX)
            .min()
    }
}

/// Which of `keys`, highest in order first, seals at `wall`: its index.
///
/// The highest that may seal and has settled; else the highest that may seal; else, if no key that still opens has
/// begun, the one that begins first (a settled one before others); else none, and the proxy needs a random key of its
/// own. So a key never seals on arrival while an older one still can. A key that no longer opens counts for nothing,
/// as if it had been erased already.
pub(super) fn sealing(keys: impl Iterator<Item = Times> + Clone, wall: u64) -> Option<usize> {
    let open = keys.enumerate().filter(|(_, key)| key.opens_at(wall));
    let may_seal = open.clone().filter(|(_, key)| key.may_seal_at(wall));
    let settled = may_seal.clone().find(|(_, key)| key.settled_at <= wall);
    let chosen = settled.or_else(|| may_seal.clone().next()).or_else(|| {
        let none_begun = open.clone().all(|(_, key)| key.seal_from > wall);
        none_begun.then(|| open.min_by_key(|(_, key)| (key.settled_at > wall, key.seal_from)))?
    });
    chosen.map(|(index, _)| index)
}

/// The keys of one proxy, highest in order first.
#[derive(Clone, Debug, Default)]
pub struct Timetable {
    entries: Vec<ProxyKey>,
    floor: u64,
    sessions_from: u64,
    alone: bool,
}

/// What a proxy does at one instant.
#[derive(Clone, Debug)]
pub struct KeySet<'a> {
    /// The key that seals new tickets. `None`: the proxy needs a random key of its own.
    pub seal: Option<&'a ProxyKey>,
    /// The keys that open tickets: the sealing one first, the others highest in order first.
    pub open: Vec<&'a ProxyKey>,
}

impl Timetable {
    /// A timetable of `entries`, which stand highest in order first.
    #[must_use]
    pub fn new(entries: Vec<ProxyKey>) -> Self {
        Self { entries, ..Self::default() }
    }

    /// The same with what a revocation says beyond the ring's keys, UTC milliseconds, 0 for nothing: see
    /// [`Timetable::floor`] and [`Timetable::sessions_from`].
    #[must_use]
    pub fn with_floors(self, floor: u64, sessions_from: u64) -> Self {
        Self { floor, sessions_from, ..self }
    }

    /// The same, saying whether the node stands alone with these keys: see [`Timetable::is_alone`].
    #[must_use]
    pub fn with_alone(self, alone: bool) -> Self {
        Self { alone, ..self }
    }

    /// Whether the node minted all of these keys for itself, and has met no other node since it started: as far as it knows,
    /// their tickets open here and nowhere else.
    #[must_use]
    pub(crate) fn is_alone(&self) -> bool {
        self.alone
    }

    /// Whether this is what a node holds that knows no ring: no key, and no revocation either.
    #[must_use]
    pub fn says_nothing(&self) -> bool {
        self.entries.is_empty() && self.floor == 0 && self.sessions_from == 0
    }

    /// When the last revocation was: a proxy's own keys from before it open no longer. (The ring's floor, a generation, is
    /// that time or a little more.)
    #[must_use]
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// Session-ID sessions created before it are flushed.
    #[must_use]
    pub fn sessions_from(&self) -> u64 {
        self.sessions_from
    }

    /// The keys, highest in order first.
    #[must_use]
    pub fn entries(&self) -> &[ProxyKey] {
        &self.entries
    }

    /// The keys to use at `wall`, UTC milliseconds.
    #[must_use]
    pub fn at(&self, wall: u64) -> KeySet<'_> {
        let seal = self.seal_at(wall);
        let is_seal = |entry: &&ProxyKey| seal.is_some_and(|seal| std::ptr::eq(seal, *entry));
        let others = self.entries.iter().filter(|entry| entry.times().opens_at(wall) && !is_seal(entry));
        KeySet { seal, open: seal.into_iter().chain(others).collect() }
    }

    /// The key that seals at `wall`, UTC milliseconds; `None` if none may.
    #[must_use]
    pub fn seal_at(&self, wall: u64) -> Option<&ProxyKey> {
        sealing(self.entries.iter().map(ProxyKey::times), wall).map(|index| &self.entries[index])
    }

    /// The key called `name`, if its tickets open at `wall`, UTC milliseconds.
    #[must_use]
    pub fn open_at(&self, name: &[u8; 16], wall: u64) -> Option<&ProxyKey> {
        self.entries.iter().find(|entry| entry.name == *name && entry.times().opens_at(wall))
    }

    /// The first instant after `wall` at which [`Timetable::at`] may answer differently, UTC milliseconds.
    #[must_use]
    pub fn next_change(&self, wall: u64) -> Option<u64> {
        self.entries.iter().filter_map(|entry| entry.times().next_change(wall)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: u8, seal_from: u64, settled_at: u64, seal_until: u64, open_until: u64) -> ProxyKey {
        ProxyKey { name: [name; 16], hmac: [name; 32], aes: [name; 32], seal_from, settled_at, seal_until, open_until }
    }

    fn sealer(table: &Timetable, wall: u64) -> Option<u8> {
        table.at(wall).seal.map(|entry| entry.name[0])
    }

    fn openers(table: &Timetable, wall: u64) -> Vec<u8> {
        table.at(wall).open.iter().map(|entry| entry.name[0]).collect()
    }

    #[test]
    fn the_highest_settled_key_that_has_begun_seals() {
        let table = Timetable::new(vec![
            entry(3, 300, 0, 900, 1200),
            entry(2, 200, 250, 800, 1100),
            entry(1, 100, 0, 700, 1000),
        ]);
        assert_eq!(sealer(&table, 199), Some(1));
        assert_eq!(sealer(&table, 249), Some(1), "2 has begun and is not settled, 1 still can");
        assert_eq!(sealer(&table, 250), Some(2));
        assert_eq!(sealer(&table, 300), Some(3));
    }

    #[test]
    fn an_unsettled_key_seals_when_nothing_older_can() {
        let table = Timetable::new(vec![entry(2, 200, 950, 900, 1200), entry(1, 100, 0, 300, 1000)]);
        assert_eq!(sealer(&table, 300), Some(1));
        assert_eq!(sealer(&table, 301), Some(2));
    }

    #[test]
    fn before_any_key_has_begun_the_earliest_settled_one_seals() {
        let table =
            Timetable::new(vec![entry(3, 300, 60, 900, 999), entry(2, 500, 0, 900, 999), entry(1, 400, 0, 900, 999)]);
        assert_eq!(sealer(&table, 50), Some(1));
        assert_eq!(sealer(&table, 60), Some(3));
        let unsettled = Timetable::new(vec![entry(2, 500, 60, 900, 999), entry(1, 400, 60, 900, 999)]);
        assert_eq!(sealer(&unsettled, 50), Some(1));
    }

    #[test]
    fn a_waiting_key_does_not_replace_one_that_may_seal_no_longer() {
        let table = Timetable::new(vec![entry(2, 500, 0, 900, 999), entry(1, 100, 0, 300, 800)]);
        assert_eq!(sealer(&table, 301), None);
        assert_eq!(openers(&table, 301), [2, 1]);
        assert_eq!(sealer(&table, 500), Some(2));
    }

    #[test]
    fn a_key_that_no_longer_opens_counts_for_nothing() {
        let table = Timetable::new(vec![entry(2, 500, 0, 900, 999), entry(1, 100, 0, 300, 200)]);
        assert_eq!(sealer(&table, 200), Some(1));
        assert_eq!(sealer(&table, 201), Some(2), "as on a ring that only holds 2");
        assert_eq!(openers(&table, 201), [2]);
    }

    #[test]
    fn the_sealing_key_opens_first_and_a_closed_one_not_at_all() {
        let table =
            Timetable::new(vec![entry(3, 300, 0, 900, 1200), entry(2, 200, 0, 800, 1100), entry(1, 100, 0, 700, 210)]);
        assert_eq!(openers(&table, 205), [2, 3, 1]);
        assert_eq!(openers(&table, 211), [2, 3]);
        assert!(table.open_at(&[1; 16], 210).is_some());
        assert!(table.open_at(&[1; 16], 211).is_none());
        assert!(table.open_at(&[9; 16], 205).is_none());
    }

    #[test]
    fn an_empty_timetable_seals_and_opens_nothing() {
        let table = Timetable::default();
        assert_eq!(sealer(&table, 5), None);
        assert!(openers(&table, 5).is_empty());
        assert_eq!(table.next_change(5), None);
    }

    #[test]
    fn keys_and_floors_say_something() {
        assert!(Timetable::default().says_nothing());
        assert!(Timetable::default().with_alone(true).says_nothing());
        assert!(!Timetable::new(vec![entry(1, 0, 0, 1, 2)]).says_nothing());
        assert!(!Timetable::default().with_floors(1, 0).says_nothing());
        assert!(!Timetable::default().with_floors(0, 1).says_nothing());
    }

    #[test]
    fn next_change_is_the_first_instant_that_differs() {
        let table = Timetable::new(vec![entry(1, 100, 150, 300, u64::MAX)]);
        let changes: Vec<_> = std::iter::successors(table.next_change(0), |&wall| table.next_change(wall)).collect();
        assert_eq!(changes, [100, 150, 301], "and never for a key that never closes");
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown = format!("{:?}", Timetable::new(vec![entry(0xab, 1, 2, 3, 4)]));
        assert_eq!(shown.matches("171").count(), 16, "the name and no more: {shown}");
    }
}
