//! What a node knows of its pod's sessions, and what follows from a change.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use prost::Message;

use super::{
    MAX_BATCH_ENTRIES, MAX_TOMBSTONES, Session, SessionFault, SessionId, SessionSettings,
    arrivals::Arrivals,
    cache::Cache,
    session::made_at_of,
    tombstones::{TombstoneHash, Tombstones},
    validate,
};
use crate::{
    clock::Now,
    proto::{SessionBatch, SessionEntry, SessionFormat, Tombstone, Warmup},
    reason::DropReason,
};

/// How many slots of the cache are looked at, or entries applied, before the lock is given up for a moment.
pub(super) const SLOTS_AT_A_TIME: usize = 4096;
const ENTRIES_AT_A_TIME: usize = 256;
/// The same where each session's DER is read: two microseconds each.
const FLUSHED_AT_A_TIME: usize = 512;

/// What becomes of removals (`sessions.removals`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removals {
    /// A session that one proxy removes is removed everywhere.
    Replicate,
    /// Removals are ignored, those from this node's proxies and those from the pod: sessions stay until they expire,
    /// and more of them resume. RFC 5246 section 7.2.2 wants a session forgotten after a fatal alert.
    Keep,
}

/// A session or a removal that passed every check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// A session was made.
    New(Session),
    /// A session was removed.
    Removed(SessionId),
}

impl Change {
    /// Reads what a message says about the session `id`: its DER, or no bytes for its removal.
    ///
    /// # Errors
    /// As [`validate`]; for a removal only [`SessionFault::BadId`].
    pub(crate) fn read(id: &[u8], der: &[u8], now: Now, max_bytes: usize) -> Result<Self, SessionFault> {
        if der.is_empty() {
            return SessionId::try_from(id).map(Self::Removed);
        }
        validate(id, der, now.wall, max_bytes).map(Self::New)
    }
}

/// What [`Store::remote`] did with a batch.
#[derive(Debug, Default)]
pub struct Applied {
    /// What to hand to this node's proxies: sessions that were inserted and removals, in the batch's order. The
    /// bytes are slices of the batch.
    pub for_proxies: Vec<SessionEntry>,
    /// How many of these are sessions.
    pub sessions: u64,
    /// How many of these are removals.
    pub removals: u64,
    /// How many entries were not taken, by [`SessionFault::reason`].
    pub dropped: BTreeMap<DropReason, u64>,
    /// What had to make room.
    pub evicted: Evictions,
}

/// What left before its time, to make room for others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evictions {
    /// The sessions that arrived first.
    pub sessions: usize,
    /// The oldest tombstones.
    pub tombstones: usize,
}

/// What a store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Occupancy {
    /// Sessions, those included that expired since the last sweep.
    pub sessions: usize,
    /// What these are counted for, in bytes: never more than `max_bytes`.
    pub bytes: u64,
    /// Tombstones, those included whose time ended since the last sweep.
    pub tombstones: usize,
}

/// The sessions of this node's proxies and of its pod, and the tombstones of those removed lately. Thread-safe; no call
/// waits for anything but other calls' short work on the cache.
///
/// A tombstone is stronger than any insertion, also from the node's own proxy: servers draw IDs at random and use none
/// twice, so a session that appears after its removal was overtaken by it, or is replayed.
pub struct Store {
    settings: SessionSettings,
    state: Mutex<StoreState>,
}

pub(super) struct StoreState {
    pub cache: Cache,
    pub tombstones: Tombstones,
    /// When sessions arrived: see [`Arrivals`].
    pub arrivals: Arrivals,
    /// Tombstones came of which it is not known whether their sessions are held.
    pub pending_tombstones: bool,
    /// Sessions created before it are flushed, UTC milliseconds.
    sessions_from: u64,
}

impl StoreState {
    /// Whether one of this node's proxies may say so. OpenSSL has a proxy remove whatever ID a client named: a removal of what is not
    /// held here is not the pod's business, and would only take the place of tombstones that are. One that the farm removed has its
    /// tombstone, and is an echo.
    fn judge_local(&mut self, change: &Change, mono: u64) -> Result<(), SessionFault> {
        match change {
            Change::Removed(id)
                if self.cache.get(id).is_none() && !self.tombstones.holds(&TombstoneHash::of(id), mono) =>
            {
                Err(SessionFault::RemovalUnknown)
            }
            _ => Ok(()),
        }
    }

    /// Applies a change, or says why not: a tombstone, or nothing new. `der` is a new session's.
    pub(crate) fn apply(
        &mut self,
        change: &Change,
        der: &[u8],
        mono: u64,
        evicted: &mut Evictions,
    ) -> Result<(), SessionFault> {
        match change {
            Change::New(session) => {
                // A session made in the second in which the floor lies may be older: it goes.
                if session.made_at < self.sessions_from {
                    return Err(SessionFault::Flushed);
                }
                // Hashing every ID would cost as much as keeping the session, and removals are rare.
                if !self.tombstones.is_empty() && self.tombstones.holds(&TombstoneHash::of(&session.id), mono) {
                    return Err(SessionFault::Tombstone);
                }
                evicted.sessions += self.cache.insert(session, der).ok_or(SessionFault::Duplicate)?;
            }
            Change::Removed(id) => {
                let dropped = self.tombstones.insert(TombstoneHash::of(id), mono).ok_or(SessionFault::Duplicate)?;
                evicted.tombstones += dropped;
                self.tombstones.name(*id, mono);
                self.cache.remove(id);
            }
        }
        Ok(())
    }
}

/// What [`Store::local`] made of a proxy's report.
#[derive(Debug, Default)]
pub(crate) struct Reported {
    /// What to publish, in the report's order. The bytes are slices of the report.
    pub news: Vec<SessionEntry>,
    /// Why others were refused, as far as it is worth a line in the log: echoes and removals without effect are not.
    pub faults: Vec<SessionFault>,
    /// How many entries were not taken, by [`SessionFault::reason`]: those of `faults`, and the others.
    pub dropped: BTreeMap<DropReason, u64>,
    /// What had to make room.
    pub evicted: Evictions,
}

impl Store {
    /// An empty store. Every session counts for `max_bytes` with its ID, its DER and [`super::ENTRY_OVERHEAD`]. A removed
    /// session cannot come back for `tombstone_for`, on the monotonic clock: 2 × `node.max_clock_offset`.
    #[must_use]
    pub fn new(settings: SessionSettings, tombstone_for: Duration) -> Self {
        let state = StoreState {
            cache: Cache::new(settings.max_bytes),
            tombstones: Tombstones::new(tombstone_for, MAX_TOMBSTONES),
            arrivals: Arrivals::default(),
            pending_tombstones: false,
            sessions_from: 0,
        };
        Self { settings, state: Mutex::new(state) }
    }

    /// Takes what one of this node's proxies reports, in its order, and returns what to publish, if anything. Every entry is
    /// judged alone: a bad one costs only itself.
    ///
    /// There is nothing to publish where removals are kept, and for what is known already: a proxy may report a
    /// session that the farm gave to it, or remove one that the farm removed. Such echoes are recognised as long as
    /// the session is in the cache, or its tombstone stands. Nor is there for the removal of a session that is not held here:
    /// see [`SessionFault::RemovalUnknown`].
    #[must_use]
    pub(crate) fn local(&self, entries: Vec<SessionEntry>, now: Now) -> Reported {
        let mut reported = Reported { news: Vec::with_capacity(entries.len()), ..Reported::default() };
        self.in_turns(
            entries,
            |entry| self.read(&entry.id, &entry.session, now),
            |state, entry, change| match change.and_then(|change| {
                state.judge_local(&change, now.mono)?;
                state.apply(&change, &entry.session, now.mono, &mut reported.evicted)
            }) {
                Ok(()) => {
                    let at = if entry.at == 0 { now.wall } else { entry.at };
                    reported.news.push(SessionEntry { at, ..entry });
                }
                Err(fault) => reported.refuse(fault),
            },
        );
        reported
    }

    /// Looks at entries without the lock and takes them in under it, some hundred at a time, in their order.
    pub(super) fn in_turns<E, C>(
        &self,
        entries: impl IntoIterator<Item = E>,
        check: impl Fn(&E) -> C,
        mut take: impl FnMut(&mut StoreState, E, C),
    ) {
        let mut entries = entries.into_iter();
        loop {
            let checked: Vec<_> =
                entries.by_ref().take(ENTRIES_AT_A_TIME).map(|entry| (check(&entry), entry)).collect();
            if checked.is_empty() {
                return;
            }
            let mut state = self.lock();
            for (checked, entry) in checked {
                take(&mut state, entry, checked);
            }
        }
    }

    /// Takes a batch from another node of the pod. Every entry is judged alone: a bad one costs only itself.
    ///
    /// What is left for the caller: to hand on [`Applied::for_proxies`], and to count.
    #[must_use]
    pub fn remote(&self, batch: SessionBatch, now: Now) -> Applied {
        let mut applied = Applied::default();
        if batch.format != i32::from(SessionFormat::OpensslDer) {
            let fault = SessionFault::UnknownFormat { format: batch.format };
            applied.drop_entries(fault, batch.entries.len());
        } else {
            applied.drop_entries(SessionFault::OverLimit, batch.entries.len().saturating_sub(MAX_BATCH_ENTRIES));
            self.in_turns(
                batch.entries.into_iter().take(MAX_BATCH_ENTRIES),
                |entry| self.read(&entry.id, &entry.session, now),
                |state, entry, change| {
                    let outcome = change.and_then(|change| {
                        state.apply(&change, &entry.session, now.mono, &mut applied.evicted)?;
                        Ok(change)
                    });
                    match outcome {
                        Ok(change) => applied.take_entry(entry, &change),
                        Err(fault) => applied.drop_entries(fault, 1),
                    }
                },
            );
        }
        applied
    }

    /// Takes a chunk of a warm-up in. Every session is checked as one of [`Store::remote`]; but what this node holds under
    /// an ID already stays, because the live feed brought it.
    ///
    /// What is left for the caller: as for [`Store::remote`], and to call [`Store::apply_tombstones`] behind the last tombstones.
    #[must_use]
    pub fn warm(&self, chunk: Warmup, now: Now) -> Applied {
        let mut applied = Applied::default();
        self.insert_tombstones(chunk.tombstones, now, &mut applied);
        if chunk.format == i32::from(SessionFormat::OpensslDer) {
            applied.drop_entries(SessionFault::OverLimit, chunk.entries.len().saturating_sub(MAX_BATCH_ENTRIES));
            self.in_turns(
                chunk.entries.into_iter().take(MAX_BATCH_ENTRIES),
                |entry| validate(&entry.id, &entry.session, now.wall, self.max_session_bytes()),
                |state, entry, session| {
                    let outcome = session.and_then(|session| {
                        if state.cache.get(&session.id).is_some() {
                            return Err(SessionFault::Duplicate);
                        }
                        let change = Change::New(session);
                        state.apply(&change, &entry.session, now.mono, &mut applied.evicted)?;
                        Ok(change)
                    });
                    match outcome {
                        Ok(change) => applied.take_entry(entry, &change),
                        Err(fault) => applied.drop_entries(fault, 1),
                    }
                },
            );
        } else {
            applied.drop_entries(SessionFault::UnknownFormat { format: chunk.format }, chunk.entries.len());
        }
        applied
    }

    fn insert_tombstones(&self, tombstones: Vec<Tombstone>, now: Now, applied: &mut Applied) {
        if self.settings.removals == Removals::Keep {
            applied.drop_entries(SessionFault::RemovalKept, tombstones.len());
            return;
        }
        applied.drop_entries(SessionFault::OverLimit, tombstones.len().saturating_sub(MAX_BATCH_ENTRIES));
        let mut state = self.lock();
        for tombstone in tombstones.into_iter().take(MAX_BATCH_ENTRIES) {
            match TombstoneHash::read(&tombstone.hash) {
                Some(hash) => {
                    if let Some(dropped) = state.tombstones.insert_for(hash, tombstone.remaining_ms, now.mono) {
                        applied.evicted.tombstones += dropped;
                        state.pending_tombstones = true;
                    }
                }
                None => applied.drop_entries(SessionFault::BadTombstone { length: tombstone.hash.len() }, 1),
            }
        }
    }

    /// Whether [`Self::apply_tombstones`] has something to look for.
    #[must_use]
    pub(crate) fn has_pending_tombstones(&self) -> bool {
        self.lock().pending_tombstones
    }

    /// Forgets the sessions whose removal a warm-up told of, and returns the removals for this node's proxies. A tombstone
    /// names its session by a hash, so this looks at every session that is held: about 0.3 s for a million, a little at
    /// a time.
    #[must_use]
    pub fn apply_tombstones(&self, now: Now) -> Applied {
        let mut applied = Applied::default();
        if !std::mem::take(&mut self.lock().pending_tombstones) {
            return applied;
        }
        let mut from = Some(0);
        while let Some(arrival) = from {
            let mut state = self.lock();
            state.tombstones.expire(now.mono);
            let StoreState { cache, tombstones, .. } = &mut *state;
            let goes = |id: &[u8]| id.try_into().is_ok_and(|id| tombstones.stands(&TombstoneHash::of(&id)));
            let mut gone = Vec::new();
            from = cache.remove_where(arrival, SLOTS_AT_A_TIME, goes, |id| gone.extend(SessionId::try_from(id)));
            applied.removals += gone.len() as u64;
            for id in gone {
                tombstones.name(id, now.mono);
                applied.for_proxies.push(SessionEntry::removal(id.as_bytes()));
            }
        }
        applied
    }

    /// Forgets sessions and tombstones whose time is over; returns how many sessions went. To be called every few
    /// seconds: an expired session is handed to nobody, but takes up room until then.
    pub fn sweep(&self, now: Now) -> usize {
        let mut swept = 0;
        let mut from = Some(0);
        while let Some(arrival) = from {
            let (count, next) = self.lock().cache.sweep(arrival, SLOTS_AT_A_TIME, now.wall);
            swept += count;
            from = next;
        }
        let mut state = self.lock();
        state.tombstones.expire(now.mono);
        let next = state.cache.next_arrival();
        state.arrivals.mark(next, now.mono);
        swept
    }

    /// Takes the farm's session floor: from now on no session created before `sessions_from` (UTC milliseconds; 0: no floor)
    /// is taken or handed out. Those that are held go, and `removals` gets them, some ten thousand at a time, for the proxies.
    /// Returns how many went.
    ///
    /// A session knows the second in which it was created, and no more: those of the floor's own second go, too.
    pub(crate) fn flush(&self, sessions_from: u64, mut removals: impl FnMut(Vec<SessionEntry>)) -> usize {
        let before = std::mem::replace(&mut self.lock().sessions_from, sessions_from);
        if sessions_from <= before {
            return 0;
        }
        let mut flushed = 0;
        let mut gone = Vec::new();
        let mut from = Some(0);
        while let Some(arrival) = from {
            let (count, next) = self.lock().cache.drop_where(arrival, FLUSHED_AT_A_TIME, |session| {
                let goes = made_at_of(session.der) < sessions_from;
                if goes {
                    gone.push(SessionEntry::removal(session.id));
                }
                goes
            });
            flushed += count;
            from = next;
            if gone.len() >= MAX_BATCH_ENTRIES || from.is_none() && !gone.is_empty() {
                removals(std::mem::take(&mut gone));
            }
        }
        flushed
    }

    /// Begins to read what a proxy must hear that has just connected, or missed something: first the removals of late, as many
    /// as are known by their IDs and not only by a hash, then all sessions that are held now; in chunks of at most
    /// `chunk_bytes` encoded (but at least one entry each), oldest first, so that a proxy with less room ends up
    /// with the newest.
    ///
    /// The reader holds no lock between chunks. It leaves out sessions that are removed or replaced before their
    /// chunk is taken, and those that arrive after this call: so whoever also forwards what [`Self::remote`] returns
    /// must listen for that before this call, and send each chunk before what arrived after the chunk was taken.
    #[must_use]
    pub(crate) fn refill(&self, chunk_bytes: usize, now: Now) -> Refill<'_> {
        let mut state = self.lock();
        let removed = state.tombstones.named(now.mono).collect::<Vec<_>>().into_iter();
        Refill { store: self, chunk_bytes, removed, next: Some(0), until: state.cache.next_arrival() }
    }

    /// How many sessions are held, those included that expired since the last sweep.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().cache.len()
    }

    /// Whether no session is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the sessions are counted for, in bytes: never more than `max_bytes`.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.lock().cache.bytes()
    }

    /// How many tombstones stand, those included whose time ended since the last sweep.
    #[must_use]
    pub fn tombstones(&self) -> usize {
        self.lock().tombstones.len()
    }

    /// All that [`Self::len`], [`Self::bytes`] and [`Self::tombstones`] say, at one moment.
    #[must_use]
    pub(crate) fn occupancy(&self) -> Occupancy {
        let state = self.lock();
        Occupancy { sessions: state.cache.len(), bytes: state.cache.bytes(), tombstones: state.tombstones.len() }
    }

    fn max_session_bytes(&self) -> usize {
        usize::try_from(self.settings.max_session_bytes).unwrap_or(usize::MAX)
    }

    fn read(&self, id: &[u8], der: &[u8], now: Now) -> Result<Change, SessionFault> {
        let change = Change::read(id, der, now, self.max_session_bytes())?;
        if matches!(change, Change::Removed(_)) && self.settings.removals == Removals::Keep {
            return Err(SessionFault::RemovalKept);
        }
        Ok(change)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, StoreState> {
        // A panic while it was held would be a broken invariant of the cache: better to go on and show it again.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Applied {
    pub(super) fn take_entry(&mut self, entry: SessionEntry, change: &Change) {
        match change {
            Change::New(_) => self.sessions += 1,
            Change::Removed(_) => self.removals += 1,
        }
        self.for_proxies.push(entry.for_proxy());
    }

    pub(super) fn drop_entries(&mut self, fault: SessionFault, count: usize) {
        if count > 0 {
            *self.dropped.entry(fault.reason()).or_default() += count as u64;
        }
    }
}

impl Reported {
    fn refuse(&mut self, fault: SessionFault) {
        let fault = if fault == SessionFault::Duplicate { SessionFault::Echo } else { fault };
        *self.dropped.entry(fault.reason()).or_default() += 1;
        if !matches!(fault, SessionFault::Echo | SessionFault::RemovalKept | SessionFault::RemovalUnknown) {
            self.faults.push(fault);
        }
    }
}

/// What a removal takes in a message, in bytes: an ID of 32 bytes, and a tag and a length for it and for the entry.
const LARGEST_REMOVAL: usize = SessionId::MAX + 4;

/// Reads a store's removals, and its sessions from the oldest to the newest: see [`Store::refill`].
#[derive(Debug)]
pub(crate) struct Refill<'a> {
    store: &'a Store,
    chunk_bytes: usize,
    /// The removals that are still to be told.
    removed: std::vec::IntoIter<SessionId>,
    next: Option<u64>,
    until: u64,
}

impl Refill<'_> {
    /// The next removals or sessions, those left out that have expired by `now`; `None` after the last.
    pub(crate) fn next_chunk(&mut self, now: Now) -> Option<Vec<SessionEntry>> {
        let at_most = (self.chunk_bytes / LARGEST_REMOVAL).max(1);
        let removals: Vec<_> =
            self.removed.by_ref().take(at_most).map(|id| SessionEntry::removal(id.as_bytes())).collect();
        if removals.is_empty() { self.next_sessions(now) } else { Some(removals) }
    }

    fn next_sessions(&mut self, now: Now) -> Option<Vec<SessionEntry>> {
        let mut chunk = Vec::new();
        let mut encoded = 0;
        let mut full = false;
        while let Some(from) = self.next
            && !full
        {
            let state = self.store.lock();
            self.next = state.cache.scan(from, self.until, SLOTS_AT_A_TIME, |session| {
                if u64::from(session.expires_at) <= now.wall / 1000 {
                    return true;
                }
                // A tag and at most three bytes of length for the ID, the session, and both together.
                let length = session.id.len() + session.der.len() + 12;
                if !chunk.is_empty() && encoded + length > self.chunk_bytes {
                    full = true;
                    return false;
                }
                encoded += length;
                let (id, session) = (Bytes::copy_from_slice(session.id), Bytes::copy_from_slice(session.der));
                let session = SessionEntry { id, session, at: 0 };
                debug_assert!(session.encoded_len() + 4 <= length);
                chunk.push(session);
                true
            });
        }
        (!chunk.is_empty()).then_some(chunk)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, sync::Arc, thread};

    use proptest::prelude::*;

    use super::{super::samples::plain, *};

    const START: Now = Now { wall: 1_700_000_000_000, mono: 86_400_000 };
    const TIMEOUT: u64 = 300;
    const TOMBSTONE: Duration = Duration::from_secs(600);

    fn store() -> Store {
        store_of(Removals::Replicate, 64 << 20)
    }

    fn store_of(removals: Removals, max_bytes: u64) -> Store {
        Store::new(SessionSettings { max_bytes, removals, ..SessionSettings::default() }, TOMBSTONE)
    }

    fn id(number: u64) -> Bytes {
        [&number.to_be_bytes()[..], &[0xa5; 24]].concat().into()
    }

    /// A session made at `START`, for five minutes.
    fn made(number: u64) -> SessionEntry {
        SessionEntry { id: id(number), session: plain(&id(number), START.wall / 1000, TIMEOUT, 1), at: 77 }
    }

    fn removed(number: u64) -> SessionEntry {
        SessionEntry { id: id(number), session: Bytes::new(), at: 78 }
    }

    fn batch(entries: impl IntoIterator<Item = SessionEntry>) -> SessionBatch {
        SessionBatch { entries: entries.into_iter().collect(), format: SessionFormat::OpensslDer.into() }
    }

    /// The numbers of sessions, the removals' as negative ones.
    fn numbers<'a>(entries: impl IntoIterator<Item = &'a SessionEntry>) -> Vec<i64> {
        let number = |entry: &SessionEntry| {
            let number = i64::from_be_bytes(entry.id[..8].try_into().unwrap());
            if entry.session.is_empty() { -number } else { number }
        };
        entries.into_iter().map(number).collect()
    }

    fn refilled(store: &Store, chunk_bytes: usize, now: Now) -> Vec<SessionEntry> {
        let mut refill = store.refill(chunk_bytes, now);
        let all = std::iter::from_fn(|| refill.next_chunk(now)).flatten();
        all.skip_while(|entry| entry.session.is_empty()).collect()
    }

    /// Reports one entry: what is to be published of it.
    fn local(store: &Store, entry: &SessionEntry, now: Now) -> Result<Option<SessionEntry>, SessionFault> {
        let Reported { mut news, faults, .. } = store.local(vec![entry.clone()], now);
        faults.first().map_or_else(|| Ok(news.pop()), |fault| Err(*fault))
    }

    fn later(seconds: u64) -> Now {
        START.after(Duration::from_secs(seconds))
    }

    #[test]
    fn a_flush_takes_every_older_session_and_keeps_it_out() {
        let store = store();
        let made_at = |number: u64, second: u64| {
            let session = plain(&id(number), START.wall / 1000 + second, TIMEOUT, 1);
            SessionEntry { session, ..made(number) }
        };
        for (number, second) in [(1, 0), (2, 1), (3, 2)] {
            local(&store, &made_at(number, second), START).unwrap();
        }
        // In the second in which session 2 was created: it may be from before, and goes.
        let floor = START.wall + 1_001;
        let mut gone = Vec::new();
        assert_eq!(store.flush(floor, |removals| gone.extend(removals)), 2);
        let removal = |number| SessionEntry { at: 0, ..removed(number) };
        assert_eq!(gone, [removal(1), removal(2)]);
        let chunk = store.refill(1 << 20, START).next_chunk(START).unwrap();
        assert_eq!(chunk.iter().map(|session| session.id.clone()).collect::<Vec<_>>(), [id(3)]);

        assert_eq!(local(&store, &made_at(4, 1), START), Err(SessionFault::Flushed));
        let applied = store.remote(batch([made_at(1, 0), made_at(5, 1), made_at(6, 2)]), START);
        assert_eq!((applied.sessions, applied.dropped), (1, BTreeMap::from([(DropReason::Flushed, 2)])));

        assert_eq!(store.flush(floor - 500, |_| panic!("a lower floor flushes nothing")), 0);
        store.flush(0, |_| panic!("nor does none"));
        local(&store, &made_at(4, 1), START).expect("a floor that was impossible is gone");
    }

    #[test]
    fn a_flush_of_many_sessions_hands_all_of_them_out_in_parts() {
        let store = store();
        for number in 0..40_000 {
            local(&store, &made(number), START).unwrap();
        }
        let mut parts = Vec::new();
        assert_eq!(store.flush(START.wall + 1_000, |removals| parts.push(removals.len())), 40_000);
        assert_eq!(parts.iter().sum::<usize>(), 40_000);
        assert!(parts.len() > 1 && parts.iter().all(|part| *part < 2 * MAX_BATCH_ENTRIES), "{parts:?}");
        assert!(store.is_empty() && store.bytes() == 0);
    }

    #[test]
    fn a_session_of_the_own_proxy_is_kept_and_published_as_it_came() {
        let store = store();
        let published = local(&store, &made(1), START).unwrap().unwrap();
        assert_eq!((&published.id, &published.session, published.at), (&made(1).id, &made(1).session, 77));
        assert_eq!(numbers(&refilled(&store, 1, START)), [1]);
        let published = local(&store, &SessionEntry { at: 0, ..made(2) }, START).unwrap().unwrap();
        assert_eq!(published.at, START.wall, "a session that says no time is reported now");
    }

    #[test]
    fn a_session_from_the_pod_is_handed_on_once_and_never_published_again() {
        let store = store();
        let applied = store.remote(batch([made(1), made(2), made(1)]), START);
        assert_eq!(numbers(&applied.for_proxies), [1, 2]);
        assert_eq!(applied.for_proxies[0].session, made(1).session);
        assert_eq!((applied.sessions, applied.removals, applied.for_proxies[0].at), (2, 0, 0));
        assert_eq!(applied.dropped, BTreeMap::from([(DropReason::Duplicate, 1)]));
        assert_eq!(local(&store, &made(1), START), Ok(None), "an echo");
        let again = store.remote(batch([made(2)]), later(1));
        assert!(again.for_proxies.is_empty());
    }

    #[test]
    fn a_session_that_changed_under_its_id_is_new() {
        let store = store();
        assert!(store.remote(batch([made(1)]), START).for_proxies.len() == 1);
        let other = SessionEntry { session: plain(&id(1), START.wall / 1000, TIMEOUT, 2), ..made(1) };
        assert_eq!(numbers(&store.remote(batch([other.clone()]), START).for_proxies), [1]);
        assert_eq!(local(&store, &other, START), Ok(None));
        assert!(local(&store, &made(1), START).unwrap().is_some());
        assert_eq!(store.len(), 1);
    }

    #[test]
    fn a_removal_is_published_once_and_outlives_late_insertions() {
        let store = store();
        local(&store, &made(1), START).unwrap();
        let published = local(&store, &removed(1), START).unwrap().unwrap();
        assert_eq!((published.id, published.session.len(), published.at), (id(1), 0, 78));
        assert_eq!(store.len(), 0);
        assert_eq!(local(&store, &removed(1), START), Ok(None));
        let applied = store.remote(batch([made(1), removed(1)]), START);
        assert!(applied.for_proxies.is_empty());
        assert_eq!(applied.dropped, BTreeMap::from([(DropReason::Duplicate, 1), (DropReason::Tombstone, 1)]));
        assert_eq!(local(&store, &made(1), START), Err(SessionFault::Tombstone), "no server uses an ID twice");
    }

    #[test]
    fn a_proxy_removes_nothing_that_this_node_does_not_hold() {
        let store = store();
        let Reported { news, faults, .. } = store.local((1..=1000).map(removed).collect(), START);
        assert!(news.is_empty() && faults.is_empty(), "{} to publish, {} complaints", news.len(), faults.len());
        assert_eq!(store.tombstones(), 0);
        assert_eq!(store.remote(batch([made(1)]), START).sessions, 1, "nothing keeps the session out");
        // Made and removed in one report: the removal is of a session that is held by then.
        let both = store.local(vec![made(2), removed(2), removed(1)], START);
        let published: Vec<_> = both.news.iter().map(|entry| (&entry.id, entry.session.is_empty())).collect();
        assert_eq!(published, [(&id(2), false), (&id(2), true), (&id(1), true)]);
        assert_eq!((store.len(), store.tombstones()), (0, 2));
        // Removed and made is the wrong order, which no proxy reports; the session stays.
        let _ = store.local(vec![removed(3), made(3)], START);
        assert_eq!((store.len(), store.tombstones()), (1, 2));
    }

    #[test]
    fn a_removal_from_the_pod_reaches_the_proxies_also_for_a_session_that_was_never_here() {
        let store = store();
        local(&store, &made(1), START).unwrap();
        let applied = store.remote(batch([removed(1), removed(2), made(2), made(3)]), START);
        assert_eq!(numbers(&applied.for_proxies), [-1, -2, 3]);
        assert_eq!((applied.sessions, applied.removals), (1, 2));
        assert_eq!(applied.dropped, BTreeMap::from([(DropReason::Tombstone, 1)]));
        assert_eq!(local(&store, &removed(1), START), Ok(None), "the proxy does as the farm said: an echo");
        assert_eq!((store.len(), store.tombstones()), (1, 2));
    }

    #[test]
    fn a_tombstone_stands_on_the_monotonic_clock() {
        let store = store();
        local(&store, &made(1), START).unwrap();
        local(&store, &removed(1), START).unwrap();
        let jumped = Now { wall: START.wall + 200_000, mono: START.mono + 599_999 };
        assert_eq!(store.remote(batch([made(1)]), jumped).dropped, BTreeMap::from([(DropReason::Tombstone, 1)]));
        let over = Now { mono: START.mono + 600_000, ..jumped };
        assert_eq!(numbers(&store.remote(batch([made(1)]), over).for_proxies), [1]);
    }

    #[test]
    fn where_removals_are_kept_they_change_nothing() {
        let store = store_of(Removals::Keep, 64 << 20);
        local(&store, &made(1), START).unwrap();
        assert_eq!(local(&store, &removed(1), START), Ok(None));
        let applied = store.remote(batch([removed(1), made(2)]), START);
        assert_eq!(numbers(&applied.for_proxies), [2]);
        assert_eq!(applied.dropped, BTreeMap::from([(DropReason::RemovalKept, 1)]));
        assert_eq!((store.len(), store.tombstones()), (2, 0));
        assert_eq!(
            local(&store, &SessionEntry { id: Bytes::new(), ..removed(1) }, START).unwrap_err().reason(),
            DropReason::BadId
        );
    }

    #[test]
    fn a_bad_entry_costs_only_itself_and_is_counted_by_reason() {
        let store = store();
        let good = made(1);
        let bad = [
            SessionEntry { session: good.session.slice(..100), ..made(2) },
            SessionEntry { session: Bytes::from_static(b"garbage"), ..made(3) },
            SessionEntry { session: good.session.clone(), ..made(4) },
            SessionEntry { session: plain(&id(5), START.wall / 1000 - TIMEOUT, TIMEOUT, 1), ..made(5) },
            SessionEntry { session: plain(&id(6), START.wall / 1000 + 3_601, TIMEOUT, 1), ..made(6) },
            SessionEntry { session: vec![0x30; (16 << 10) + 1].into(), ..made(7) },
            SessionEntry { id: Bytes::new(), ..made(8) },
            SessionEntry { id: vec![1; 33].into(), session: Bytes::new(), at: 0 },
        ];
        let applied = store.remote(batch([&bad[..], &[good]].concat()), START);
        assert_eq!(numbers(&applied.for_proxies), [1]);
        let expected = [
            (DropReason::BadId, 2),
            (DropReason::BrokenDer, 2),
            (DropReason::Expired, 1),
            (DropReason::FromTheFuture, 1),
            (DropReason::TooLarge, 1),
            (DropReason::WrongId, 1),
        ];
        assert_eq!(applied.dropped, BTreeMap::from(expected));
        for entry in &bad {
            let reason = local(&store, entry, START).unwrap_err().reason();
            assert!(applied.dropped.contains_key(&reason), "{reason}");
        }
        assert_eq!(store.len(), 1);
    }

    #[test]
    fn a_batch_in_an_unknown_format_is_dropped_entry_by_entry() {
        let store = store();
        for format in [0, 2, -1] {
            let applied = store.remote(SessionBatch { format, ..batch([made(1), removed(2)]) }, START);
            assert!(applied.for_proxies.is_empty());
            assert_eq!(applied.dropped, BTreeMap::from([(DropReason::UnknownFormat, 2)]), "format {format}");
        }
        assert_eq!((store.len(), store.tombstones()), (0, 0));
    }

    #[test]
    fn entries_behind_the_limit_are_dropped_and_counted() {
        let store = store();
        let count = MAX_BATCH_ENTRIES as u64 + 3;
        let applied = store.remote(batch((0..count).map(removed)), START);
        assert_eq!(applied.removals, MAX_BATCH_ENTRIES as u64);
        assert_eq!(applied.dropped, BTreeMap::from([(DropReason::OverLimit, 3)]));
    }

    #[test]
    fn a_refill_gives_the_unexpired_oldest_first_in_chunks() {
        let store = store();
        for number in 1..=300 {
            let timeout = if number % 3 == 0 { 10 } else { TIMEOUT };
            let session = plain(&id(number), START.wall / 1000, timeout, 1);
            local(&store, &SessionEntry { session, ..made(number) }, START).unwrap();
        }
        let now = later(10);
        let expected: Vec<i64> = (1..=300).filter(|number| number % 3 != 0).collect();
        let mut refill = store.refill(2_000, now);
        let chunks: Vec<_> = std::iter::from_fn(|| refill.next_chunk(now)).collect();
        for chunk in &chunks {
            let encoded = crate::proto::local::Sessions { entries: chunk.clone() }.encoded_len();
            assert!(encoded <= 2_000, "{encoded} bytes");
        }
        assert!(chunks.len() < 40, "{} chunks, so they are not filled", chunks.len());
        assert_eq!(numbers(chunks.iter().flatten()), expected);
        assert_eq!(refill.next_chunk(now), None);
        assert_eq!(chunks[0][0].session, made(1).session, "byte for byte");
        assert_eq!(numbers(&refilled(&store, 0, now)), expected, "one session a chunk where none fits");
        assert_eq!(store.len(), 300, "nothing is taken out");
        assert_eq!(store.sweep(now), 100);
        assert_eq!(store.len(), 200);
        assert_eq!(numbers(&refilled(&store, 1 << 20, now)), expected);
        assert_eq!(store.sweep(later(TIMEOUT)), 200);
        assert_eq!((store.len(), store.bytes()), (0, 0));
    }

    #[test]
    fn a_refill_begins_with_the_removals_whose_tombstones_stand() {
        let store = store();
        let _ = store.remote(batch((1..=5).map(made).chain([removed(2)])), START);
        local(&store, &removed(3), later(1)).unwrap();
        // Of one that was never held, and of one that was: a warm-up names both by their hashes.
        let tombstones = [9, 5].map(|number| Tombstone {
            hash: TombstoneHash::of(&SessionId::try_from(&id(number)[..]).unwrap()).as_bytes().to_vec().into(),
            remaining_ms: 600_000,
        });
        let _ = store.warm(Warmup { tombstones: tombstones.into(), format: 1, ..Warmup::default() }, later(2));
        let _ = store.apply_tombstones(later(2));
        let told = |chunk_bytes, now| {
            let mut refill = store.refill(chunk_bytes, now);
            std::iter::from_fn(|| refill.next_chunk(now)).map(|chunk| numbers(&chunk)).collect::<Vec<_>>()
        };
        assert_eq!(told(1 << 20, later(2)), [vec![-2, -3, -5], vec![1, 4]]);
        assert_eq!(told(80, later(2)), [vec![-2, -3], vec![-5], vec![1], vec![4]], "within the bytes of a chunk");
        assert_eq!(told(1 << 20, later(600))[0], [-3, -5], "those whose time is over are left out");
    }

    #[test]
    fn a_refill_reads_on_past_long_runs_of_expired_sessions() {
        let store = store();
        let short = |number| plain(&id(number), START.wall / 1000, 10, 1);
        for number in 1..=SLOTS_AT_A_TIME as u64 * 2 + 10 {
            local(&store, &SessionEntry { session: short(number), ..made(number) }, START).unwrap();
        }
        local(&store, &made(100_000), START).unwrap();
        assert_eq!(numbers(&refilled(&store, 1_000, later(10))), [100_000]);
        assert_eq!(store.sweep(later(10)), SLOTS_AT_A_TIME * 2 + 10);
    }

    #[test]
    fn a_refill_leaves_out_what_went_or_came_while_it_ran() {
        let store = store();
        for number in 1..=10 {
            local(&store, &made(number), START).unwrap();
        }
        let mut refill = store.refill(0, START);
        assert_eq!(numbers(&refill.next_chunk(START).unwrap()), [1]);
        local(&store, &removed(1), START).unwrap();
        assert_eq!(store.remote(batch([removed(5), made(11)]), START).for_proxies.len(), 2);
        let rest: Vec<_> = std::iter::from_fn(|| refill.next_chunk(START)).flatten().collect();
        assert_eq!(numbers(&rest), [2, 3, 4, 6, 7, 8, 9, 10]);
    }

    #[test]
    fn the_cache_stays_within_its_bytes_and_keeps_the_newest() {
        let each = 32 + made(1).session.len() as u64 + super::super::ENTRY_OVERHEAD;
        let store = store_of(Removals::Replicate, 10 * each);
        for number in 1..=100 {
            assert!(local(&store, &made(number), START).unwrap().is_some());
            assert!(store.bytes() <= 10 * each);
        }
        assert_eq!(numbers(&refilled(&store, 1 << 20, START)), (91..=100).collect::<Vec<i64>>());
    }

    #[test]
    fn what_made_room_and_what_was_refused_is_said() {
        let each = 32 + made(1).session.len() as u64 + super::super::ENTRY_OVERHEAD;
        let store = store_of(Removals::Replicate, 3 * each);
        let applied = store.remote(batch([made(1), made(2), made(2), removed(1), made(1)]), START);
        assert_eq!((applied.sessions, applied.removals, applied.evicted), (2, 1, Evictions::default()));
        assert_eq!(applied.dropped, BTreeMap::from([(DropReason::Duplicate, 1), (DropReason::Tombstone, 1)]));
        let wrong = SessionEntry { session: made(1).session, ..made(3) };
        let reported =
            store.local([2, 1].map(made).into_iter().chain([wrong]).chain((4..=6).map(made)).collect(), START);
        assert_eq!(
            reported.dropped,
            BTreeMap::from([(DropReason::Echo, 1), (DropReason::Tombstone, 1), (DropReason::WrongId, 1)])
        );
        assert_eq!(reported.evicted, Evictions { sessions: 1, tombstones: 0 });
        assert_eq!(store.occupancy(), Occupancy { sessions: 3, bytes: 3 * each, tombstones: 1 });
        let applied = store.warm(Warmup { entries: vec![made(7)], format: 1, ..Warmup::default() }, START);
        assert_eq!((applied.sessions, applied.evicted.sessions), (1, 1));
    }

    #[test]
    fn threads_that_insert_remove_sweep_and_read_at_once_leave_what_should_be_left() {
        const THREADS: u64 = 4;
        const EACH: u64 = 2_000;
        let store = Arc::new(store());
        let mut workers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let store = store.clone();
                thread::spawn(move || {
                    for number in thread * EACH..(thread + 1) * EACH {
                        // Half of the threads stand for proxies, half for the pod. Every third session goes again.
                        if thread % 2 == 0 {
                            assert!(local(&store, &made(number), START).unwrap().is_some());
                        } else {
                            assert_eq!(store.remote(batch([made(number)]), START).sessions, 1);
                        }
                        if number % 3 == 0 {
                            assert_eq!(store.remote(batch([removed(number)]), START).removals, 1);
                            assert_eq!(store.remote(batch([made(number)]), START).sessions, 0);
                        }
                    }
                })
            })
            .collect();
        let reader = store.clone();
        workers.push(thread::spawn(move || {
            for _ in 0..20 {
                let read = numbers(&refilled(&reader, 10_000, START));
                let mut once = read.clone();
                once.sort_unstable();
                once.dedup();
                assert_eq!(once.len(), read.len(), "a session was read twice");
                for thread in 0..THREADS as i64 {
                    let own = read.iter().filter(|number| **number / EACH as i64 == thread);
                    assert!(own.is_sorted(), "out of order");
                }
                assert_eq!(reader.sweep(START), 0);
            }
        }));
        for worker in workers {
            worker.join().unwrap();
        }
        let mut left = numbers(&refilled(&store, 10_000, START));
        left.sort_unstable();
        let expected: Vec<i64> = (0..(THREADS * EACH) as i64).filter(|number| number % 3 != 0).collect();
        assert!(left == expected, "{} sessions instead of {}", left.len(), expected.len());
        assert_eq!(store.tombstones() as u64, (THREADS * EACH).div_ceil(3));
    }

    /// The rules in their plainest form: no bounds, no order in memory, no laziness.
    #[derive(Default)]
    struct Model {
        held: HashMap<u64, (Bytes, u64)>,
        order: Vec<u64>,
        tombstones: HashMap<u64, u64>,
    }

    impl Model {
        fn apply(&mut self, number: u64, entry: &SessionEntry, keep: bool, now: Now) -> Result<(), DropReason> {
            self.tombstones.retain(|_, until| *until > now.mono);
            if entry.session.is_empty() {
                if keep {
                    return Err(DropReason::RemovalKept);
                }
                if self.tombstones.contains_key(&number) {
                    return Err(DropReason::Duplicate);
                }
                self.tombstones.insert(number, now.mono + 600_000);
                self.held.remove(&number);
                self.order.retain(|held| *held != number);
                return Ok(());
            }
            let expires_at = validate(&entry.id, &entry.session, now.wall, 16 << 10).map_err(|f| f.reason())?;
            if self.tombstones.contains_key(&number) {
                return Err(DropReason::Tombstone);
            }
            if self.held.get(&number).is_some_and(|(der, _)| *der == entry.session) {
                return Err(DropReason::Duplicate);
            }
            self.held.insert(number, (entry.session.clone(), expires_at.expires_at));
            self.order.retain(|held| *held != number);
            self.order.push(number);
            Ok(())
        }

        fn unexpired(&self, now: Now) -> Vec<i64> {
            let live = self.order.iter().filter(|number| self.held[number].1 > now.wall);
            live.map(|number| *number as i64).collect()
        }

        fn sweep(&mut self, now: Now) -> usize {
            let before = self.held.len();
            self.held.retain(|_, (_, expires_at)| *expires_at > now.wall);
            self.order.retain(|number| self.held.contains_key(number));
            before - self.held.len()
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Local(Event),
        Remote(Vec<Event>),
        Pass { wall: u64, mono: u64 },
        Sweep,
    }

    /// A removal, or a session made `age` seconds ago for `timeout`.
    #[derive(Clone, Debug)]
    struct Event {
        number: u64,
        made: Option<(u64, u64, u8)>,
    }

    impl Event {
        fn entry(&self, now: Now) -> SessionEntry {
            let session = self.made.map_or_else(Bytes::new, |(age, timeout, secret)| {
                // To the ten seconds, so that the same session comes more than once.
                plain(&id(self.number), (now.wall / 10_000) * 10 - age, timeout, secret)
            });
            SessionEntry { id: id(self.number), session, at: 1 }
        }
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let made = prop::option::weighted(0.75, (prop::sample::select(vec![0, 0, 50]), 20..120u64, 1..3u8));
        let event = (1..8u64, made).prop_map(|(number, made)| Event { number, made });
        let step = prop_oneof![
            4 => event.clone().prop_map(Step::Local),
            4 => prop::collection::vec(event, 1..6).prop_map(Step::Remote),
            2 => (0..60_000u64, 0..300_000u64).prop_map(|(wall, mono)| Step::Pass { wall, mono }),
            1 => Just(Step::Sweep),
        ];
        prop::collection::vec(step, 1..60)
    }

    proptest! {
        #[test]
        fn the_store_does_what_the_plain_rules_say(steps in steps(), keep in prop::bool::weighted(0.2)) {
            let store = store_of(if keep { Removals::Keep } else { Removals::Replicate }, 64 << 20);
            let mut model = Model::default();
            let mut now = START;
            for step in steps {
                match step {
                    Step::Local(event) => {
                        let entry = event.entry(now);
                        model.tombstones.retain(|_, until| *until > now.mono);
                        let known = model.held.contains_key(&event.number) || model.tombstones.contains_key(&event.number);
                        let judged = if entry.session.is_empty() && !known {
                            Err(DropReason::RemovalUnknown)
                        } else {
                            model.apply(event.number, &entry, keep, now)
                        };
                        let expected = match judged {
                            Ok(()) => Ok(true),
                            Err(DropReason::Duplicate | DropReason::RemovalKept | DropReason::RemovalUnknown) => Ok(false),
                            Err(reason) => Err(reason),
                        };
                        let published = local(&store, &entry, now).map_err(|fault| fault.reason());
                        prop_assert_eq!(published.as_ref().map(Option::is_some).map_err(|reason| *reason), expected);
                        if let Ok(Some(published)) = published {
                            prop_assert_eq!(published.session, entry.session);
                        }
                    }
                    Step::Remote(events) => {
                        let entries: Vec<_> = events.iter().map(|event| event.entry(now)).collect();
                        let mut handed = Vec::new();
                        let mut dropped = BTreeMap::new();
                        for (event, entry) in events.iter().zip(&entries) {
                            match model.apply(event.number, entry, keep, now) {
                                Ok(()) => handed.push((entry.id.clone(), entry.session.clone())),
                                Err(reason) => *dropped.entry(reason).or_default() += 1,
                            }
                        }
                        let applied = store.remote(batch(entries), now);
                        let inserted = applied.for_proxies.into_iter().map(|entry| (entry.id, entry.session));
                        prop_assert_eq!(inserted.collect::<Vec<_>>(), handed);
                        prop_assert_eq!(applied.dropped, dropped);
                    }
                    Step::Pass { wall, mono } => {
                        now = Now { wall: now.wall + wall, mono: now.mono + mono };
                    }
                    Step::Sweep => prop_assert_eq!(store.sweep(now), model.sweep(now)),
                }
                prop_assert_eq!(store.len(), model.held.len());
                prop_assert_eq!(numbers(&refilled(&store, 500, now)), model.unexpired(now));
            }
        }
    }
}
