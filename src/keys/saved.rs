//! A ring as a node keeps it across a restart: bytes, and back. Where they lie is the node's business.

use std::collections::HashMap;
use std::time::Duration;

use openssl::sha::sha256;
use prost::Message;
use zeroize::Zeroizing;

use super::{HeldRing, KeySettings, Ring, RingFaults};
use crate::clock::{Now, millis};
use crate::proto;
use crate::proto::limits::{Limit, Limits, decode_within};

/// What the file begins with; then the SHA-256 of the rest, and a [`Saved`].
pub(crate) const MAGIC: &[u8; 16] = b"resumed ring 1\n\0";
const HEADER: usize = MAGIC.len() + 32;

/// A ring that was read back.
#[derive(Debug)]
pub struct Restored {
    /// The ring, each key held for as long as before, and for the time since.
    pub held: HeldRing,
    /// What was skipped.
    pub faults: RingFaults,
}

/// The file's contents after the header.
#[derive(Clone, PartialEq, Message)]
struct Saved {
    /// A ring of another farm is none of ours.
    #[prost(string, tag = "1")]
    farm: String,
    /// UTC milliseconds.
    #[prost(uint64, tag = "2")]
    saved_at: u64,
    #[prost(message, optional, tag = "3")]
    ring: Option<proto::Ring>,
    /// Milliseconds for which each key had been held, in the ring's order.
    #[prost(uint64, repeated, tag = "4")]
    held_for: Vec<u64>,
}

/// What a saved ring may hold.
static SAVED: Limits =
    Limits(&[Limit::once(3, "ring", &proto::RING), Limit::packed(4, "held_for", proto::MOST_KEYS * LONGEST_NUMBER)]);

/// Bytes of the longest number.
const LONGEST_NUMBER: usize = 10;

/// `held` as a file of a node of `farm` keeps it from `now` on, without the keys that have expired: 48 bytes of header and a
/// message, at most 64 KiB. Never grown in memory, so that no copy is left behind.
#[must_use]
pub(crate) fn encode(held: &HeldRing, farm: &str, now: Now) -> Zeroizing<Vec<u8>> {
    let ring = held.ring();
    let spans = ring.open_at(now.wall).map(|key| millis(held.held_for(&key.name, now).unwrap_or_default()));
    let held_for = spans.collect();
    framed(&Saved { farm: farm.to_owned(), saved_at: now.wall, ring: Some(ring.to_proto(now.wall)), held_for })
}

/// What may lie anywhere of a file's `contents`, as a file of its own: the floors, and no key. The same for the same floors.
///
/// # Errors
/// What is wrong with `contents`.
pub(crate) fn without_keys(contents: &[u8], farm: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    let ring = decode(contents, farm)?.ring.unwrap_or_default();
    let floors = proto::Ring { floor: ring.floor, sessions_from: ring.sessions_from, keys: Vec::new() };
    Ok(framed(&Saved { farm: farm.to_owned(), saved_at: 0, ring: Some(floors), held_for: Vec::new() }))
}

fn framed(saved: &Saved) -> Zeroizing<Vec<u8>> {
    let body = Zeroizing::new(saved.encode_to_vec());
    let mut contents = Zeroizing::new(Vec::with_capacity(HEADER + body.len()));
    contents.extend_from_slice(MAGIC);
    contents.extend_from_slice(&sha256(&body));
    contents.extend_from_slice(&body);
    contents
}

fn decode(contents: &[u8], farm: &str) -> Result<Saved, String> {
    let Some((header, body)) = contents.split_at_checked(HEADER) else {
        return Err(format!("{} bytes are too few", contents.len()));
    };
    let (magic, digest) = header.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err("it does not begin like one".into());
    }
    if digest != sha256(body) {
        return Err("it is damaged or cut short".into());
    }
    let saved: Saved = decode_within(body, &SAVED).map_err(|error| error.to_string())?;
    if saved.farm != farm {
        return Err(format!("it is of farm {:?}, this is {farm:?}", saved.farm));
    }
    Ok(saved)
}

/// Reads back the ring of a node of `farm` from a file's `contents`, without the keys that expired meanwhile.
///
/// # Errors
/// What is wrong with them.
pub fn read_back(contents: &[u8], farm: &str, settings: KeySettings, now: Now) -> Result<Restored, String> {
    decode(contents, farm).map(|saved| restore(&saved, settings, now))
}

/// Time that passed since the file was saved counts as held: it is `settle` later for the other nodes, too.
fn restore(saved: &Saved, settings: KeySettings, now: Now) -> Restored {
    let message = saved.ring.clone().unwrap_or_default();
    let since = now.wall.saturating_sub(saved.saved_at);
    let names = message.keys.iter().map(|key| <[u8; 16]>::try_from(&key.name[..]));
    let spans = saved.held_for.iter().map(|span| Duration::from_millis(span.saturating_add(since)));
    let held_for: HashMap<_, _> = names.zip(spans).filter_map(|(name, span)| Some((name.ok()?, span))).collect();
    let (ring, faults) = Ring::read(&message, now, &settings);
    let mut held = HeldRing::restore(ring, &held_for, settings, now);
    held.know_saved_floors(message.floor, message.sessions_from, now);
    held.expire(now);
    Restored { held, faults }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_short_or_changed_anywhere_is_refused() {
        let now = Now { wall: 360_000_000, mono: 360_000_000 };
        let contents = encode(&HeldRing::new(KeySettings::default()), "test", now);
        assert!(read_back(&contents, "test", KeySettings::default(), now).is_ok());
        for length in 0..contents.len() {
            assert!(decode(&contents[..length], "test").is_err(), "cut to {length} bytes");
            let mut changed = contents.to_vec();
            changed[length] ^= 1;
            assert!(decode(&changed, "test").is_err(), "byte {length} changed");
        }
    }
}
