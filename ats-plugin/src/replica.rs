//! The sessions that came from the farm, kept until a client brings one back.
//!
//! Entries stand one after the other in chunks of memory, oldest chunk first, with an index of twelve bytes a session, the
//! hash among them, so that a growing index does not look at every session again. A session costs little more than its
//! own bytes, and the oldest go first when the bound is reached. Sixty-four shards, each with a lock of its own, keep
//! ATS's threads and the one that fills the replica out of each other's way.
//!
//! The node's cache (`src/sessions/cache.rs`) lays sessions out alike, but is read in the order in which they came, and keeps a slot
//! a session for that. One piece of code for both was measured: this one would take 1.19 to 1.27 times a session's own bytes where
//! it took 1.15, or else a sweep of a million sessions 0.7 s in place of 0.02 s. So they are two.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hashbrown::HashTable;
use zeroize::Zeroizing;

use crate::session::SessionId;

const SHARDS: usize = 64;
const CHUNK_BYTES: usize = 32 * 1024;
/// Expiry (u32, seconds since the epoch), length of the ID (u8), length of the DER (u16).
const HEADER_BYTES: usize = 7;

/// A bounded map from session ID to DER.
pub struct Replica {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
}

impl Replica {
    /// Holds at most about `max_bytes`, and always at least one chunk of 32 KiB a shard.
    pub fn new(max_bytes: usize) -> Self {
        let max_chunks = (max_bytes / SHARDS / CHUNK_BYTES).max(1);
        Self { shards: (0..SHARDS).map(|_| Mutex::new(Shard::new(max_chunks))).collect(), hasher: RandomState::new() }
    }

    /// Keeps a session until `expires` (seconds since the epoch), in place of an older one of that ID. Sessions of more
    /// than 16 KiB are not kept; whoever calls has refused them before.
    pub fn insert(&self, id: &SessionId, der: &[u8], expires: u64) {
        let hash = hash_of(&self.hasher, id.as_bytes());
        self.shard(hash).insert(hash, id, der, expires, &self.hasher);
    }

    /// Forgets a session.
    pub fn remove(&self, id: &SessionId) {
        let hash = hash_of(&self.hasher, id.as_bytes());
        self.shard(hash).remove(hash, id);
    }

    /// Copies an unexpired session's DER into `into` and returns its length; none if it is not there or does not fit.
    pub fn copy(&self, id: &SessionId, now: u64, into: &mut [u8]) -> Option<usize> {
        let hash = hash_of(&self.hasher, id.as_bytes());
        let shard = self.shard(hash);
        let entry = shard.entry(*shard.find(hash, id)?);
        if u64::from(entry.expires) <= now {
            return None;
        }
        into.get_mut(..entry.der.len())?.copy_from_slice(entry.der);
        Some(entry.der.len())
    }

    /// Frees the chunks in which every session has expired.
    pub fn sweep(&self, now: u64) {
        for shard in &self.shards {
            lock(shard).sweep(now, &self.hasher);
        }
    }

    /// How many sessions there are, and the bytes of memory that they take.
    pub fn size(&self) -> (u64, u64) {
        self.shards.iter().fold((0, 0), |(entries, bytes), shard| {
            let shard = lock(shard);
            // A table uses seven eighths of what it has.
            let index = shard.index.capacity() / 7 * 8 * (size_of::<IndexEntry>() + 1);
            (entries + shard.index.len() as u64, bytes + (shard.allocated * CHUNK_BYTES + index) as u64)
        })
    }

    fn shard(&self, hash: u32) -> MutexGuard<'_, Shard> {
        // The table inside uses the lowest bits, and the highest seven.
        lock(&self.shards[(hash >> 19) as usize % SHARDS])
    }
}

/// Keyed, so that nobody can choose IDs that collide.
fn hash_of(hasher: &RandomState, id: &[u8]) -> u32 {
    hasher.hash_one(id) as u32
}

/// The hash as a table wants it, which uses the lowest bits and the highest ones.
fn spread(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

/// A panic under the lock leaves at worst a session unfound.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct IndexEntry {
    /// Counted over the shard's life, modulo 2³².
    chunk: u32,
    offset: u32,
    hash: u32,
}

struct Chunk {
    bytes: Zeroizing<Vec<u8>>,
    live: u32,
    last_expiry: u32,
}

struct StoredSession<'a> {
    expires: u32,
    id: &'a [u8],
    der: &'a [u8],
}

struct Shard {
    index: HashTable<IndexEntry>,
    /// Oldest first. One that holds nothing any more has no memory and waits to become the oldest.
    chunks: VecDeque<Chunk>,
    /// The number of `chunks[0]`.
    first: u32,
    /// Chunks with memory.
    allocated: usize,
    max_chunks: usize,
}

impl Shard {
    fn new(max_chunks: usize) -> Self {
        Self { index: HashTable::new(), chunks: VecDeque::new(), first: 0, allocated: 0, max_chunks }
    }

    fn insert(&mut self, hash: u32, id: &SessionId, der: &[u8], expires: u64, hasher: &RandomState) {
        let expires = u32::try_from(expires).unwrap_or(u32::MAX);
        let len = HEADER_BYTES + id.as_bytes().len() + der.len();
        let Ok(der_len) = u16::try_from(der.len()) else { return };
        if len > CHUNK_BYTES {
            return;
        }
        if let Some(place) = self.find(hash, id).copied() {
            let held = self.entry(place);
            if held.der == der && held.expires == expires {
                return;
            }
            self.remove(hash, id);
        }
        if self.chunks.back().is_none_or(|chunk| chunk.bytes.len() + len > CHUNK_BYTES) {
            self.start_chunk(hasher);
        }
        let number = self.first.wrapping_add(self.chunks.len() as u32 - 1);
        let Some(chunk) = self.chunks.back_mut() else { return };
        if chunk.bytes.capacity() == 0 {
            // Its sessions were all removed while it was the newest.
            chunk.bytes.reserve_exact(CHUNK_BYTES);
            self.allocated += 1;
        }
        let place = IndexEntry { chunk: number, offset: chunk.bytes.len() as u32, hash };
        chunk.bytes.extend_from_slice(&expires.to_be_bytes());
        chunk.bytes.push(id.as_bytes().len() as u8);
        chunk.bytes.extend_from_slice(&der_len.to_be_bytes());
        chunk.bytes.extend_from_slice(id.as_bytes());
        chunk.bytes.extend_from_slice(der);
        chunk.live += 1;
        chunk.last_expiry = chunk.last_expiry.max(expires);
        self.index.insert_unique(spread(hash), place, |place| spread(place.hash));
    }

    fn remove(&mut self, hash: u32, id: &SessionId) {
        let Self { index, chunks, first, .. } = self;
        let is_it = |place: &IndexEntry| {
            place.hash == hash && entry_at(chunks, *first, place.chunk, place.offset).id == id.as_bytes()
        };
        let Ok(found) = index.find_entry(spread(hash), is_it) else { return };
        let (place, _) = found.remove();
        let at = place.chunk.wrapping_sub(self.first) as usize;
        self.chunks[at].live -= 1;
        if self.chunks[at].live == 0 {
            self.free(at);
        }
    }

    fn find(&self, hash: u32, id: &SessionId) -> Option<&IndexEntry> {
        self.index.find(spread(hash), |place| place.hash == hash && self.entry(*place).id == id.as_bytes())
    }

    fn entry(&self, place: IndexEntry) -> StoredSession<'_> {
        entry_at(&self.chunks, self.first, place.chunk, place.offset)
    }

    fn start_chunk(&mut self, hasher: &RandomState) {
        // Chunks without memory count too, or one long-lived session could keep any number of them behind it.
        while self.allocated >= self.max_chunks || self.chunks.len() >= 2 * self.max_chunks {
            self.evict(0, hasher);
        }
        let bytes = Zeroizing::new(Vec::with_capacity(CHUNK_BYTES));
        self.chunks.push_back(Chunk { bytes, live: 0, last_expiry: 0 });
        self.allocated += 1;
    }

    /// Forgets every session of the chunk at `at`.
    fn evict(&mut self, at: usize, hasher: &RandomState) {
        let number = self.first.wrapping_add(at as u32);
        let mut offset = 0;
        while offset < self.chunks[at].bytes.len() && self.chunks[at].live > 0 {
            let entry = entry_at(&self.chunks, self.first, number, offset as u32);
            let hash = hash_of(hasher, entry.id);
            let place = IndexEntry { chunk: number, offset: offset as u32, hash };
            let len = HEADER_BYTES + entry.id.len() + entry.der.len();
            if let Ok(found) = self.index.find_entry(spread(hash), |held| *held == place) {
                found.remove();
                self.chunks[at].live -= 1;
            }
            offset += len;
        }
        self.free(at);
    }

    /// Gives back the memory of a chunk without live sessions, and drops the oldest chunks that have none.
    fn free(&mut self, at: usize) {
        if self.chunks[at].bytes.capacity() > 0 {
            self.chunks[at].bytes = Zeroizing::new(Vec::new());
            self.chunks[at].last_expiry = 0;
            self.allocated -= 1;
        }
        while self.chunks.front().is_some_and(|chunk| chunk.bytes.capacity() == 0) {
            self.chunks.pop_front();
            self.first = self.first.wrapping_add(1);
        }
    }

    fn sweep(&mut self, now: u64, hasher: &RandomState) {
        let mut at = 0;
        while at < self.chunks.len() {
            let chunk = &self.chunks[at];
            let (before, expired) = (self.first, chunk.live > 0 && u64::from(chunk.last_expiry) <= now);
            if expired {
                self.evict(at, hasher);
            }
            let gone = self.first.wrapping_sub(before) as usize;
            at = (at + 1).saturating_sub(gone);
        }
        if self.index.capacity() > 1024 && self.index.len() < self.index.capacity() / 8 {
            self.index.shrink_to_fit(|place| spread(place.hash));
        }
    }
}

/// The entry that begins at `offset` of the chunk of that number.
fn entry_at(chunks: &VecDeque<Chunk>, first: u32, chunk: u32, offset: u32) -> StoredSession<'_> {
    let bytes = &chunks[chunk.wrapping_sub(first) as usize].bytes[offset as usize..];
    let expires = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let (id_len, der_len) = (usize::from(bytes[4]), usize::from(u16::from_be_bytes([bytes[5], bytes[6]])));
    let (id, rest) = bytes[HEADER_BYTES..].split_at(id_len);
    StoredSession { expires, id, der: &rest[..der_len] }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn id(n: u32) -> SessionId {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        SessionId::new(&bytes).unwrap()
    }

    fn get(replica: &Replica, n: u32, now: u64) -> Option<Vec<u8>> {
        let mut buffer = [0; 256];
        replica.copy(&id(n), now, &mut buffer).map(|len| buffer[..len].to_vec())
    }

    #[test]
    fn a_session_is_found_until_it_expires_or_is_removed() {
        let replica = Replica::new(1 << 20);
        replica.insert(&id(1), b"one", 100);
        replica.insert(&id(2), b"two", 200);
        assert_eq!(get(&replica, 1, 99).as_deref(), Some(&b"one"[..]));
        assert_eq!(get(&replica, 1, 100), None);
        replica.remove(&id(2));
        assert_eq!(get(&replica, 2, 0), None);
        assert_eq!(get(&replica, 3, 0), None);
    }

    #[test]
    fn a_later_session_of_the_same_id_takes_the_place_of_the_first() {
        let replica = Replica::new(1 << 20);
        replica.insert(&id(1), b"one", 100);
        replica.insert(&id(1), b"another", 100);
        assert_eq!(get(&replica, 1, 0).as_deref(), Some(&b"another"[..]));
        assert_eq!(replica.size().0, 1);
    }

    #[test]
    fn a_session_larger_than_the_buffer_is_not_copied_in_part() {
        let replica = Replica::new(1 << 20);
        replica.insert(&id(1), &[1; 257], 100);
        assert_eq!(get(&replica, 1, 0), None);
    }

    #[test]
    fn a_full_replica_forgets_the_oldest_and_keeps_within_its_bound() {
        let bound = 8 << 20;
        let replica = Replica::new(bound);
        for n in 0..100_000 {
            replica.insert(&id(n), &[0; 160], 1000);
        }
        let (entries, bytes) = replica.size();
        assert!((30_000..45_000).contains(&entries), "{entries}");
        assert!(bytes <= bound as u64 + entries * 24, "{bytes}");
        assert!(get(&replica, 99_999, 0).is_some());
        assert!(get(&replica, 0, 0).is_none());
    }

    #[test]
    fn memory_stays_within_a_tenth_of_the_bytes_of_ids_and_der() {
        let replica = Replica::new(256 << 20);
        let count: u64 = 200_000;
        for n in 0..count {
            replica.insert(&id(n as u32), &[0; 200], 1000);
        }
        let (entries, bytes) = replica.size();
        assert_eq!(entries, count);
        let (own, chunks) = (count * 232, 64 * CHUNK_BYTES as u64);
        assert!(bytes <= own * 115 / 100 + chunks, "{bytes} for {own}");
    }

    #[test]
    fn a_sweep_gives_back_what_has_expired_and_nothing_else() {
        let replica = Replica::new(64 << 20);
        for n in 0..50_000 {
            replica.insert(&id(n), &[0; 160], 100);
        }
        for n in 50_000..60_000 {
            replica.insert(&id(n), &[0; 160], 200);
        }
        let (_, full) = replica.size();
        replica.sweep(150);
        let (entries, bytes) = replica.size();
        assert!((10_000..25_000).contains(&entries), "{entries}");
        assert!(bytes < full / 2, "{bytes} of {full}");
        assert!((50_000..60_000).all(|n| get(&replica, n, 150).is_some()));
        replica.sweep(200);
        assert_eq!(replica.size().0, 0);
    }

    #[test]
    fn it_agrees_with_a_plain_map_through_any_mixture_of_changes() {
        let replica = Replica::new(64 << 20);
        let mut plain = HashMap::new();
        let mut state = 1u64;
        for _ in 0..200_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (n, what, fill) = ((state >> 33) as u32 % 500, (state >> 20) % 5, (state >> 12) as u8);
            if what < 2 {
                replica.remove(&id(n));
                plain.remove(&n);
            } else {
                let der = vec![fill; usize::from(fill)];
                replica.insert(&id(n), &der, 100);
                plain.insert(n, der);
            }
        }
        assert_eq!(replica.size().0, plain.len() as u64);
        for n in 0..500 {
            assert_eq!(get(&replica, n, 0), plain.get(&n).cloned(), "session {n}");
        }
        for n in plain.into_keys() {
            replica.remove(&id(n));
        }
        assert_eq!(replica.size().0, 0);
        assert!(replica.shards.iter().all(|shard| lock(shard).allocated == 0), "removed sessions leave memory behind");
    }
}
