//! What one node hands on to another that lacks it: read from the donor's store, taken into the joiner's.
//!
//! Tombstones come first, so that nothing is handed on that is gone, then sessions from the oldest to the newest, as in
//! [`Store::refill`]: so a joiner with less room ends up with the newest.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;

use crate::{
    clock::{Now, millis},
    proto::{SessionEntry, SessionFormat, Tombstone, Warmup},
    sessions::{Store, store::SLOTS_AT_A_TIME, tombstones::Deadline},
};

/// A node that was away takes some time to notice that it is, two heartbeats of its connection to the broker (10 s by
/// default); so what arrived this much earlier is handed on as well.
pub(crate) const AWAY_SLACK: Duration = Duration::from_secs(30);

/// What a donor hands on: everything that it held when it began, or what is new since the joiner went away.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Donation {
    /// Tombstones laid within so many milliseconds; all without.
    within: Option<u64>,
    /// Sessions up to this arrival number.
    until: u64,
    begin: u64,
    /// Where to begin.
    pub start: Position,
    /// About how many tombstones and sessions there are, not fewer.
    pub entries: u64,
}

/// How far a donor has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position(At);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Tombstones(Option<Deadline>),
    Sessions(u64),
    End,
}

impl Store {
    /// What this node can hand on to one that was away for as long as that, or that has nothing at all.
    #[must_use]
    pub(crate) fn donation(&self, away: Option<Duration>, now: Now) -> Donation {
        let state = self.lock();
        let within = away.map(|away| millis(away.saturating_add(AWAY_SLACK)));
        let begin = within.map_or(0, |within| state.arrivals.after(now.mono.saturating_sub(within)));
        let tombstones = state.tombstones.behind(None, within, now.mono).count();
        let entries = tombstones as u64 + state.cache.arrived_from(begin) as u64;
        let until = state.cache.next_arrival();
        Donation { within, until, begin, start: Position(At::Tombstones(None)), entries }
    }

    /// The next chunk of `donation`, of about `chunk_bytes` encoded but at least one entry, and where to go on; `last` is
    /// set in the last one, which may be empty. Sessions that have expired by `now`, were removed or replaced meanwhile
    /// are left out.
    #[must_use]
    pub(crate) fn donate(
        &self,
        donation: &Donation,
        from: Position,
        chunk_bytes: usize,
        now: Now,
    ) -> (Warmup, Position) {
        let mut chunk = Warmup { format: SessionFormat::OpensslDer.into(), ..Warmup::default() };
        let mut left = chunk_bytes;
        let mut at = from.0;
        if let At::Tombstones(mut after) = at {
            let state = self.lock();
            let mut behind = state.tombstones.behind(after, donation.within, now.mono);
            at = loop {
                let Some(standing) = behind.next() else { break At::Sessions(donation.begin) };
                let hash = Bytes::copy_from_slice(standing.hash.as_bytes());
                let tombstone = Tombstone { hash, remaining_ms: standing.until - now.mono };
                // A tag and a length, and the tombstone.
                let length = 2 + tombstone.encoded_len();
                if length > left && !chunk.tombstones.is_empty() {
                    break At::Tombstones(after);
                }
                left = left.saturating_sub(length);
                after = Some(*standing);
                chunk.tombstones.push(tombstone);
            };
        }
        while let At::Sessions(arrival) = at {
            let mut full = false;
            let state = self.lock();
            let next = state.cache.scan(arrival, donation.until, SLOTS_AT_A_TIME, |session| {
                if u64::from(session.expires_at) <= now.wall / 1000 {
                    return true;
                }
                // Tags and at most three bytes of length each, for the ID, the session, and both together.
                let length = session.id.len() + session.der.len() + 12;
                if length > left && !(chunk.entries.is_empty() && chunk.tombstones.is_empty()) {
                    full = true;
                    return false;
                }
                left = left.saturating_sub(length);
                let (id, session) = (Bytes::copy_from_slice(session.id), Bytes::copy_from_slice(session.der));
                chunk.entries.push(SessionEntry { id, session, at: 0 });
                true
            });
            at = next.map_or(At::End, At::Sessions);
            if full {
                break;
            }
        }
        chunk.last = at == At::End;
        (chunk, Position(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::SessionBatch;
    use crate::sessions::tombstones::TombstoneHash;
    use crate::sessions::{Applied, MAX_BATCH_ENTRIES, Removals, SessionId, SessionSettings, samples::plain};

    const START: Now = Now { wall: 1_700_000_000_000, mono: 86_400_000 };
    const CHUNK: usize = 8 << 10;

    fn store_of(removals: Removals, max_bytes: u64) -> Store {
        let settings = SessionSettings { max_bytes, removals, ..SessionSettings::default() };
        Store::new(settings, Duration::from_secs(600))
    }

    fn store() -> Store {
        store_of(Removals::Replicate, 64 << 20)
    }

    fn later(seconds: u64) -> Now {
        Now { wall: START.wall + seconds * 1_000, mono: START.mono + seconds * 1_000 }
    }

    fn id(number: u64) -> SessionId {
        SessionId::try_from(&[&number.to_be_bytes()[..], &[0x3c; 24]].concat()[..]).unwrap()
    }

    fn entry(number: u64, timeout: u64, secret: u8) -> SessionEntry {
        let id = id(number);
        let session = plain(id.as_bytes(), START.wall / 1000, timeout, secret);
        SessionEntry { id: Bytes::copy_from_slice(id.as_bytes()), session, at: 5 }
    }

    fn removal(number: u64) -> SessionEntry {
        SessionEntry { session: Bytes::new(), ..entry(number, 300, 1) }
    }

    fn sessions_of(store: &Store) -> Vec<SessionEntry> {
        let mut refill = store.refill(1 << 20, START);
        let all = std::iter::from_fn(|| refill.next_chunk(START)).flatten();
        all.filter(|entry| !entry.session.is_empty()).collect()
    }

    fn put(store: &Store, entries: impl IntoIterator<Item = SessionEntry>, now: Now) -> Applied {
        let format = SessionFormat::OpensslDer.into();
        store.remote(SessionBatch { entries: entries.into_iter().collect(), format }, now)
    }

    fn tombstone(number: u64, remaining_ms: u64) -> Tombstone {
        Tombstone { hash: Bytes::copy_from_slice(TombstoneHash::of(&id(number)).as_bytes()), remaining_ms }
    }

    fn chunk(tombstones: Vec<Tombstone>, entries: Vec<SessionEntry>) -> Warmup {
        Warmup { tombstones, entries, format: SessionFormat::OpensslDer.into(), ..Default::default() }
    }

    fn all(store: &Store, away: Option<Duration>, now: Now) -> Vec<Warmup> {
        let donation = store.donation(away, now);
        let (mut chunks, mut at) = (Vec::new(), donation.start);
        loop {
            let (chunk, next) = store.donate(&donation, at, CHUNK, now);
            let last = chunk.last;
            chunks.push(chunk);
            if last {
                return chunks;
            }
            assert_ne!(at, next, "no progress");
            at = next;
        }
    }

    fn dropped(applied: &Applied) -> Vec<(&'static str, u64)> {
        let mut dropped: Vec<_> = applied.dropped.iter().map(|(reason, count)| (reason.as_str(), *count)).collect();
        dropped.sort_unstable();
        dropped
    }

    #[test]
    fn chunks_hold_tombstones_first_then_sessions_oldest_first_and_keep_to_their_size() {
        let donor = store();
        put(&donor, (0..500).map(|number| entry(number, 300, 1)), START);
        put(&donor, (0..100).chain(1_000..1_400).map(removal), START);
        put(&donor, [entry(600, 10, 1)], START);
        let chunks = all(&donor, None, later(20));
        assert!(chunks.iter().all(|chunk| chunk.encoded_len() <= CHUNK + 16), "a chunk is too large");
        assert!(chunks.len() < 15, "{} chunks", chunks.len());
        assert_eq!(chunks.iter().map(|chunk| chunk.tombstones.len()).sum::<usize>(), 500);
        assert!(chunks.iter().flat_map(|chunk| &chunk.tombstones).all(|stone| stone.remaining_ms == 580_000));
        let sessions = chunks.iter().flat_map(|chunk| &chunk.entries);
        let numbers: Vec<_> = sessions.map(|entry| u64::from_be_bytes(entry.id[..8].try_into().unwrap())).collect();
        assert_eq!(numbers, (100..500).collect::<Vec<_>>(), "in order, and without the one that has expired");
        let seen: Vec<_> = chunks.iter().map(|chunk| !chunk.entries.is_empty()).collect();
        assert!(seen.is_sorted(), "sessions before tombstones");
        // From anywhere again: the same.
        let joiner = store();
        for chunk in &chunks {
            let _applied = joiner.warm(chunk.clone(), later(20));
        }
        assert_eq!((joiner.len(), joiner.tombstones()), (400, 500));
        let again: u64 = chunks.iter().map(|chunk| joiner.warm(chunk.clone(), later(20)).sessions).sum();
        assert_eq!(again, 0);
        assert_eq!(all(&store(), None, START).len(), 1, "one empty last chunk of nothing");
    }

    #[test]
    fn what_the_live_feed_brought_stays_and_a_tombstone_is_stronger() {
        let joiner = store();
        put(&joiner, [entry(1, 300, 1), removal(2)], START);
        let applied = joiner.warm(chunk(vec![], vec![entry(1, 300, 9), entry(2, 300, 1), entry(3, 300, 1)]), START);
        assert_eq!(dropped(&applied), [("duplicate", 1), ("tombstone", 1)]);
        assert_eq!((applied.sessions, joiner.len()), (1, 2));
        let held = sessions_of(&joiner);
        assert_eq!(held[0].session, entry(1, 300, 1).session, "the live one was overwritten");
        // One that a warm-up removes goes, from the proxies too, and does not come back.
        let _applied = joiner.warm(chunk(vec![tombstone(1, 5_000), tombstone(8, 5_000)], vec![]), START);
        assert!(joiner.has_pending_tombstones());
        let applied = joiner.apply_tombstones(START);
        assert_eq!(applied.for_proxies.iter().map(|gone| &gone.id[..]).collect::<Vec<_>>(), [id(1).as_bytes()]);
        assert!(applied.for_proxies[0].session.is_empty() && !joiner.has_pending_tombstones());
        assert!(joiner.apply_tombstones(START).for_proxies.is_empty());
        assert_eq!(dropped(&put(&joiner, [entry(1, 300, 1), entry(8, 300, 1)], later(4))), [("tombstone", 2)]);
        // For as long as it had left, not longer.
        assert_eq!(put(&joiner, [entry(8, 300, 1)], later(5)).sessions, 1);
    }

    #[test]
    fn bad_entries_cost_only_themselves() {
        let joiner = store();
        let short = Tombstone { hash: Bytes::from_static(&[1; 15]), remaining_ms: 1_000 };
        let mut entries = vec![entry(1, 300, 1), removal(2), entry(3, 300, 1), entry(4, 300, 1)];
        entries[2].id = entry(5, 300, 1).id;
        let applied = joiner.warm(chunk(vec![short, tombstone(7, 1_000)], entries), START);
        assert_eq!(dropped(&applied), [("bad_tombstone", 1), ("broken_der", 1), ("wrong_id", 1)]);
        assert_eq!((joiner.len(), joiner.tombstones()), (2, 1));
        assert_eq!(dropped(&joiner.warm(chunk(vec![], vec![entry(6, 10, 1)]), later(10))), [("expired", 1)]);
        let unknown = Warmup { format: 7, ..chunk(vec![], vec![entry(6, 300, 1)]) };
        assert_eq!(dropped(&joiner.warm(unknown, START)), [("unknown_format", 1)]);
        let many = vec![tombstone(9, 1_000); MAX_BATCH_ENTRIES + 2];
        assert_eq!(dropped(&joiner.warm(chunk(many, vec![]), START)), [("over_limit", 2)]);
    }

    #[test]
    fn where_removals_are_kept_tombstones_are_neither_sent_nor_taken() {
        let keeps = store_of(Removals::Keep, 64 << 20);
        put(&keeps, [entry(1, 300, 1), removal(1)], START);
        assert!(all(&keeps, None, START).iter().all(|chunk| chunk.tombstones.is_empty()));
        assert_eq!(dropped(&keeps.warm(chunk(vec![tombstone(1, 1_000)], vec![]), START)), [("removal_kept", 1)]);
        assert!(!keeps.has_pending_tombstones() && keeps.len() == 1);
    }

    #[test]
    fn a_joiner_with_less_room_ends_up_with_the_newest() {
        let donor = store();
        put(&donor, (0..1_000).map(|number| entry(number, 300, 1)), START);
        let joiner = store_of(Removals::Replicate, donor.bytes() / 4);
        for chunk in all(&donor, None, START) {
            let _applied = joiner.warm(chunk, START);
        }
        let held = sessions_of(&joiner);
        let numbers: Vec<_> = held.iter().map(|held| u64::from_be_bytes(held.id[..8].try_into().unwrap())).collect();
        assert_eq!(numbers, (750..1_000).collect::<Vec<_>>());
    }

    #[test]
    fn one_that_was_away_is_sent_what_is_new_since_then_and_a_little_more() {
        let donor = store();
        for second in 0..600 {
            put(&donor, [entry(second, 7_200, 1)], later(second));
            if second % 10 == 0 {
                put(&donor, [removal(10_000 + second)], later(second));
                let _swept = donor.sweep(later(second));
            }
        }
        let now = later(600);
        let donation = donor.donation(Some(Duration::from_secs(60)), now);
        let chunks = all(&donor, Some(Duration::from_secs(60)), now);
        let sessions: Vec<_> = chunks.iter().flat_map(|chunk| &chunk.entries).collect();
        let oldest = u64::from_be_bytes(sessions[0].id[..8].try_into().unwrap());
        // 60 s, the slack of 30 s, and at most one mark of 10 s before that.
        assert!((499..=511).contains(&oldest), "from second {oldest} on");
        assert_eq!(sessions.len() as u64, 600 - oldest);
        let tombstones: usize = chunks.iter().map(|chunk| chunk.tombstones.len()).sum();
        assert!((9..=10).contains(&tombstones), "{tombstones} tombstones");
        assert_eq!(donation.entries, (sessions.len() + tombstones) as u64);
    }
}
