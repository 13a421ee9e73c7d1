//! What one node hands on to another that lacks it: read from the donor's store, taken into the joiner's.
//!
//! Tombstones come first, so that nothing is handed on that is gone, then sessions from the oldest to the newest, as in
//! [`Store::refill`]: so a joiner with less room ends up with the newest.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use prost::Message;

use super::{
    Applied, Change, MAX_BATCH_ENTRIES, Removals, SessionFault, Store,
    store::{Room, SLOTS_AT_A_TIME, show},
    tombstones::{Grave, Standing},
    validate,
};
use crate::{
    clock::{Now, millis},
    proto::{SessionEntry, SessionFormat, Tombstone, Warmup, local},
};

/// How often it is noted which session was the newest.
const MARK_EVERY_MS: u64 = 10_000;
/// How many such notes are kept: those of 5 hours 41 minutes.
const MAX_MARKS: usize = 2048;

/// A node that was away takes some time to notice that it is, two heartbeats of its connection to the broker (10 s by
/// default); so what arrived this much earlier is handed on as well.
pub const AWAY_SLACK: Duration = Duration::from_secs(30);

/// Which session was the newest at some times past: so the cache itself need not remember when each arrived.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    /// Monotonic time, and the arrival number that the next session would get.
    marks: VecDeque<(u64, u64)>,
}

impl Arrivals {
    /// Notes that at `mono` the next session gets the number `next`, unless that was noted lately.
    pub fn mark(&mut self, next: u64, mono: u64) {
        if self.marks.back().is_some_and(|(marked, _)| mono.saturating_sub(*marked) < MARK_EVERY_MS) {
            return;
        }
        if self.marks.len() == MAX_MARKS {
            self.marks.pop_front();
        }
        self.marks.push_back((mono, next));
    }

    /// The arrival number from which on sessions arrived after `mono`, and some before.
    fn after(&self, mono: u64) -> u64 {
        let later = self.marks.partition_point(|(marked, _)| *marked <= mono);
        later.checked_sub(1).map_or(0, |at| self.marks[at].1)
    }
}

/// What a donor hands on: everything that it held when it began, or what is new since the joiner went away.
#[derive(Clone, Copy, Debug)]
pub struct Donation {
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
pub struct Position(At);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Tombstones(Option<Standing>),
    Sessions(u64),
    End,
}

impl Store {
    /// What this node can hand on to one that was away for as long as that, or that has nothing at all.
    #[must_use]
    pub fn donation(&self, away: Option<Duration>, now: Now) -> Donation {
        let held = self.lock();
        let within = away.map(|away| millis(away.saturating_add(AWAY_SLACK)));
        let begin = within.map_or(0, |within| held.arrivals.after(now.mono.saturating_sub(within)));
        let tombstones = held.tombstones.behind(None, within, now.mono).count();
        let entries = tombstones as u64 + held.cache.arrived_from(begin) as u64;
        let until = held.cache.next_arrival();
        Donation { within, until, begin, start: Position(At::Tombstones(None)), entries }
    }

    /// The next chunk of `donation`, of about `chunk_bytes` encoded but at least one entry, and where to go on; `last` is
    /// set in the last one, which may be empty. Sessions that have expired by `now`, were removed or replaced meanwhile
    /// are left out.
    #[must_use]
    pub fn donate(&self, donation: &Donation, from: Position, chunk_bytes: usize, now: Now) -> (Warmup, Position) {
        let mut chunk = Warmup { format: SessionFormat::OpensslDer.into(), ..Warmup::default() };
        let mut left = chunk_bytes;
        let mut at = from.0;
        if let At::Tombstones(mut after) = at {
            let held = self.lock();
            let mut behind = held.tombstones.behind(after, donation.within, now.mono);
            at = loop {
                let Some(standing) = behind.next() else { break At::Sessions(donation.begin) };
                let hash = Bytes::copy_from_slice(standing.grave.as_bytes());
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
            let held = self.lock();
            let next = held.cache.scan(arrival, donation.until, SLOTS_AT_A_TIME, |session| {
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

    /// Takes a chunk of a warm-up in. Every session is checked as one of [`Store::remote`]; but what this node holds under
    /// an ID already stays, because the live feed brought it.
    ///
    /// What is left for the caller: as for [`Store::remote`], and to call [`Store::bury`] behind the last tombstones.
    #[must_use]
    pub fn warm(&self, chunk: Warmup, now: Now) -> Applied {
        let mut applied = Applied::default();
        let mut room = Room::default();
        self.lay_tombstones(chunk.tombstones, now, &mut applied, &mut room);
        if chunk.format == i32::from(SessionFormat::OpensslDer) {
            applied.drop_entries(SessionFault::OverLimit, chunk.entries.len().saturating_sub(MAX_BATCH_ENTRIES));
            let entries = chunk.entries.into_iter().take(MAX_BATCH_ENTRIES);
            // Checked without the lock, applied under it.
            let check = |entry: SessionEntry| {
                let session = validate(&entry.id, entry.session.clone(), now.wall, self.settings.max_session_bytes)?;
                Ok((entry, Grave::of(&session.id), session))
            };
            let checked: Vec<_> = entries.map(check).collect();
            let mut held = self.lock();
            for entry in checked {
                let outcome = entry.and_then(|(entry, grave, session)| {
                    if held.cache.get(&session.id).is_some() {
                        return Err(SessionFault::Duplicate);
                    }
                    let change = Change::New(session);
                    held.apply(&change, grave, now.mono, &mut room)?;
                    Ok((entry, change))
                });
                match outcome {
                    Ok((entry, change)) => applied.take_entry(entry, &change),
                    Err(fault) => applied.drop_entries(fault, 1),
                }
            }
        } else {
            applied.drop_entries(SessionFault::UnknownFormat { format: chunk.format }, chunk.entries.len());
        }
        show(self.lock(), &room);
        applied.count();
        applied
    }

    fn lay_tombstones(&self, tombstones: Vec<Tombstone>, now: Now, applied: &mut Applied, room: &mut Room) {
        if self.settings.removals == Removals::Keep {
            applied.drop_entries(SessionFault::RemovalKept, tombstones.len());
            return;
        }
        applied.drop_entries(SessionFault::OverLimit, tombstones.len().saturating_sub(MAX_BATCH_ENTRIES));
        let mut held = self.lock();
        for tombstone in tombstones.into_iter().take(MAX_BATCH_ENTRIES) {
            match Grave::read(&tombstone.hash) {
                Some(grave) => {
                    if let Some(dropped) = held.tombstones.lay_for(grave, tombstone.remaining_ms, now.mono) {
                        room.tombstones_dropped += dropped;
                        held.unburied = true;
                    }
                }
                None => applied.drop_entries(SessionFault::BadTombstone { length: tombstone.hash.len() }, 1),
            }
        }
    }

    /// Whether [`Self::bury`] has something to look for.
    #[must_use]
    pub fn must_bury(&self) -> bool {
        self.lock().unburied
    }

    /// Forgets the sessions whose removal a warm-up told of, and returns the removals for this node's proxies. A tombstone
    /// names its session by a hash, so this looks at every session that is held: about 0.3 s for a million, a little at
    /// a time.
    #[must_use]
    pub fn bury(&self, now: Now) -> Applied {
        let mut applied = Applied::default();
        if !std::mem::take(&mut self.lock().unburied) {
            return applied;
        }
        let mut from = Some(0);
        while let Some(arrival) = from {
            let mut held = self.lock();
            held.tombstones.expire(now.mono);
            let super::store::Held { cache, tombstones, .. } = &mut *held;
            let goes = |id: &[u8]| id.try_into().is_ok_and(|id| tombstones.stands(&Grave::of(&id)));
            from = cache.remove_where(arrival, SLOTS_AT_A_TIME, goes, |id| {
                applied.removals += 1;
                applied.inserted.push(local::Session { id: Bytes::copy_from_slice(id), ..Default::default() });
            });
        }
        show(self.lock(), &Room::default());
        applied.count();
        applied
    }
}
