//! Epoch keys: what makes recorded traffic useless to somebody who steals the farm secret later.
//!
//! A leader draws an [`EpochKey`]; everything but a few kinds that carry nothing secret ([`is_sealed_without_epoch`]) is sealed under
//! farm secret and epoch key together. A node that lacks the key draws a [`JoinKey`] and sends its public half in a
//! `Join`; the leader answers with an `EpochGrant` ([`seal_grant`]), which only the holder of that key opens
//! ([`JoinKey::open_grant`]). Both halves of the exchange are erased soon after, so that nothing on any disk, and soon
//! nothing in any memory, opens the grant again.
//!
//! A grant is AES-256-GCM over the 32 bytes of the epoch key, with a nonce of zeros, no associated data, and
//!
//! - **key**: 32 bytes of HKDF-SHA256 (RFC 5869) over the X25519 shared secret (RFC 7748; all zero is refused), with an
//!   empty salt and the info `resumed/1 grant|` farm `|` epoch id, the asker's boot id, its public key, and the grant's
//!   public key. The leader draws a key pair for each grant, so the derived key is used once.
//!
//! The farm secret authenticates both messages: they travel in ordinary envelopes.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use openssl::derive::Deriver;
use openssl::error::ErrorStack;
use openssl::pkey::{Id, PKey, Private};
use openssl::symm::{Cipher, decrypt_aead, encrypt_aead};
use zeroize::Zeroizing;

use super::wire::TAG_BYTES;
use crate::clock::{Now, millis};
use crate::hex::hex;
use crate::hkdf::hkdf_sha256;
use crate::proto::{self, payload::Kind};
use crate::reason::Reason;

/// Tells epoch keys apart without revealing them: the first 8 bytes of HKDF-SHA256 (RFC 5869) of the key, with an empty
/// salt and the info "resumed/1 epoch". Never all zero, which stands for no epoch key.
pub type EpochId = [u8; 8];

/// How many epoch keys a node holds at a time.
const MOST_HELD: usize = 4;

/// The kinds that are sealed under the farm secret alone, because a node needs them before it holds an epoch key, or may
/// stop before it does. They say who is there, and nothing that could open a ticket, a session or another message.
/// A kind that this list does not name is never opened outside an epoch.
#[must_use]
pub fn is_sealed_without_epoch(kind: &Kind) -> bool {
    matches!(kind, Kind::Join(_) | Kind::EpochGrant(_) | Kind::Farewell(_))
}

/// An epoch key: 32 random bytes that live in memory only. Erased when dropped; `Debug` shows only its id.
pub struct EpochKey {
    // Boxed, so that moving the key leaves no copy behind.
    bytes: Box<Zeroizing<[u8; 32]>>,
    id: EpochId,
}

impl EpochKey {
    /// The key that consists of `bytes`, which must be random.
    ///
    /// # Errors
    /// If OpenSSL cannot derive its id.
    pub fn from_random(bytes: &[u8; 32]) -> Result<Self, ErrorStack> {
        let bytes = Box::new(Zeroizing::new(*bytes));
        let mut id = [0; 8];
        hkdf_sha256(&bytes[..], b"", &[b"resumed/1 epoch"], &mut id)?;
        if id == [0; 8] {
            id[7] = 1;
        }
        Ok(Self { bytes, id })
    }

    /// The key's id.
    #[must_use]
    pub fn id(&self) -> EpochId {
        self.id
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.bytes
    }
}

impl fmt::Debug for EpochKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EpochKey").field("id", &epoch_name(self.id)).finish_non_exhaustive()
    }
}

/// An epoch's id as logs show it: 16 hex digits.
#[must_use]
pub(crate) fn epoch_name(id: EpochId) -> String {
    hex(&id)
}

/// The epoch keys that a node holds, at most four: all open, and one seals. Cloning copies no key.
///
/// They stand in the order in which the node began to follow them; the last one is the *current*: the leader's, as far as
/// the node knows.
#[derive(Clone, Debug)]
pub struct Epochs {
    held: Vec<EpochEntry>,
    /// Milliseconds.
    settle: u64,
}

#[derive(Clone, Debug)]
struct EpochEntry {
    key: Arc<EpochKey>,
    /// Monotonic milliseconds: when this node got it.
    since: u64,
    /// Monotonic milliseconds: when another became the current one.
    superseded: Option<u64>,
}

impl Epochs {
    /// None yet. A key that comes beside an older one seals what goes to many after `settle`.
    #[must_use]
    pub fn new(settle: Duration) -> Self {
        Self { held: Vec::new(), settle: millis(settle) }
    }

    /// Takes a key as the current one. Returns false if it is held already, and changes nothing then.
    pub fn lead_to(&mut self, key: EpochKey, now: Now) -> bool {
        let at = self.held.len();
        if !self.insert(at, key, now) {
            return false;
        }
        self.supersede(now);
        true
    }

    /// Takes a key that opens and is not to seal, beside the current one. Without any, it becomes the current one.
    pub(crate) fn open_too(&mut self, key: EpochKey, now: Now) -> bool {
        let at = self.held.len().saturating_sub(1);
        if !self.insert(at, key, now) {
            return false;
        }
        self.supersede(now);
        true
    }

    /// Makes a key that is held the current one; whether it is held.
    pub(crate) fn follow(&mut self, id: EpochId, now: Now) -> bool {
        let Some(at) = self.held.iter().position(|held| held.key.id == id) else { return false };
        let held = self.held.remove(at);
        self.held.push(held);
        self.supersede(now);
        true
    }

    /// A leader at another broker still seals with this key: it counts as superseded just now, unless it is the current
    /// one. Whether it is held.
    pub(crate) fn still_used(&mut self, id: EpochId, now: Now) -> bool {
        let Some(held) = self.held.iter_mut().find(|held| held.key.id == id) else { return false };
        held.superseded = held.superseded.map(|_| now.mono);
        true
    }

    /// Erases keys that were superseded more than `after_ms` ago; whether there were any.
    pub(crate) fn expire(&mut self, after_ms: u64, now: Now) -> bool {
        let before = self.held.len();
        self.held.retain(|held| held.superseded.is_none_or(|at| now.mono.saturating_sub(at) <= after_ms));
        self.held.len() != before
    }

    /// Whether the node holds none.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// The ids of all keys held.
    pub fn ids(&self) -> impl Iterator<Item = EpochId> + '_ {
        self.held.iter().map(|held| held.key.id)
    }

    /// The key with this id, to open with.
    #[must_use]
    pub fn get(&self, id: EpochId) -> Option<&EpochKey> {
        self.held.iter().find(|held| held.key.id == id).map(|held| &*held.key)
    }

    /// The leader's key, as far as this node knows; at a leader its own.
    #[must_use]
    pub fn current(&self) -> Option<&EpochKey> {
        self.held.last().map(|held| &*held.key)
    }

    /// Since when the node has had the current key, monotonic milliseconds.
    #[must_use]
    pub(crate) fn current_since(&self) -> Option<u64> {
        self.held.last().map(|held| held.since)
    }

    /// The newest key that the node has held for `settle`, so that its peers have it too; if none was held that long, the
    /// one that came first.
    #[must_use]
    pub(crate) fn settled(&self, now: Now) -> Option<&EpochKey> {
        let is_settled = |held: &&EpochEntry| now.mono.saturating_sub(held.since) >= self.settle;
        let settled = self.held.iter().rev().find(is_settled);
        settled.or_else(|| self.held.iter().min_by_key(|held| held.since)).map(|held| &*held.key)
    }

    /// The key that seals `kind` now: what goes to the leader is sealed under the leader's, all else under the one that
    /// all have. `None` for kinds that travel open, and if the node holds no key: then it may not be sent.
    #[must_use]
    pub fn sealing(&self, kind: &Kind, now: Now) -> Option<&EpochKey> {
        match kind {
            kind if is_sealed_without_epoch(kind) => None,
            Kind::Report(_) | Kind::Request(_) => self.current(),
            _ => self.settled(now),
        }
    }

    fn insert(&mut self, at: usize, key: EpochKey, now: Now) -> bool {
        if self.get(key.id).is_some() {
            return false;
        }
        self.held.insert(at, EpochEntry { key: Arc::new(key), since: now.mono, superseded: None });
        if self.held.len() > MOST_HELD {
            self.held.remove(0);
        }
        true
    }

    /// All but the last are superseded.
    fn supersede(&mut self, now: Now) {
        let Some((current, others)) = self.held.split_last_mut() else { return };
        current.superseded = None;
        for held in others {
            held.superseded.get_or_insert(now.mono);
        }
    }
}

/// A key pair of X25519 for one request for epoch keys. The private half lives in OpenSSL, which erases it.
pub struct JoinKey {
    private: PKey<Private>,
    public: [u8; 32],
}

impl JoinKey {
    /// The pair whose private half is `bytes`, which must be random.
    ///
    /// # Errors
    /// If OpenSSL has no X25519.
    pub fn from_random(bytes: &[u8; 32]) -> Result<Self, ErrorStack> {
        let private = PKey::private_key_from_raw_bytes(bytes, Id::X25519)?;
        let mut public = [0; 32];
        public.copy_from_slice(&private.raw_public_key()?);
        Ok(Self { private, public })
    }

    /// The public half, to be sent.
    #[must_use]
    pub fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// The epoch key in `grant`, which this pair asked for as the node that `boot_id` names.
    ///
    /// # Errors
    /// It was made for another pair, node or farm, or is no grant at all.
    pub fn open_grant(
        &self,
        farm: &str,
        boot_id: &[u8; 16],
        grant: &proto::EpochGrant,
    ) -> Result<EpochKey, GrantFault> {
        let public = grant.public_key.as_slice().try_into().map_err(|_| GrantFault::PublicKey)?;
        let epoch: EpochId = grant.epoch.as_slice().try_into().map_err(|_| GrantFault::Sealed)?;
        if grant.sealed.len() != 32 + TAG_BYTES {
            return Err(GrantFault::Sealed);
        }
        let shared = self.shared_with(&public)?;
        let key = grant_key(&shared, farm, epoch, boot_id, &self.public, &public)?;
        let (text, tag) = grant.sealed.split_at(32);
        let opened = decrypt_aead(Cipher::aes_256_gcm(), &key[..], Some(&[0; 12]), b"", text, tag);
        let opened = Zeroizing::new(opened.map_err(|_| GrantFault::Sealed)?);
        let bytes = Zeroizing::new(<[u8; 32]>::try_from(&opened[..]).map_err(|_| GrantFault::Sealed)?);
        let key = EpochKey::from_random(&bytes)?;
        if key.id == epoch { Ok(key) } else { Err(GrantFault::Sealed) }
    }

    /// RFC 7748 section 6.1, with the check for a peer that contributes nothing.
    fn shared_with(&self, public: &[u8; 32]) -> Result<Zeroizing<Vec<u8>>, GrantFault> {
        let peer = PKey::public_key_from_raw_bytes(public, Id::X25519)?;
        let mut deriver = Deriver::new(&self.private)?;
        deriver.set_peer(&peer)?;
        // OpenSSL itself fails here if the result is all zero.
        let shared = Zeroizing::new(deriver.derive_to_vec().map_err(|_| GrantFault::PublicKey)?);
        if shared.len() != 32 || openssl::memcmp::eq(&shared, &[0; 32]) {
            return Err(GrantFault::PublicKey);
        }
        Ok(shared)
    }
}

impl fmt::Debug for JoinKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinKey").finish_non_exhaustive()
    }
}

/// Seals `key` for the node of `boot_id` that sent `public_key`. `random` becomes the private half of the grant's own key
/// pair and must never be used twice.
///
/// # Errors
/// [`GrantFault::PublicKey`] if nothing can be sealed to `public_key`.
pub(crate) fn seal_grant(
    key: &EpochKey,
    farm: &str,
    boot_id: &[u8; 16],
    public_key: &[u8],
    random: &[u8; 32],
) -> Result<proto::EpochGrant, GrantFault> {
    let asker = public_key.try_into().map_err(|_| GrantFault::PublicKey)?;
    let own = JoinKey::from_random(random)?;
    let shared = own.shared_with(&asker)?;
    let sealing = grant_key(&shared, farm, key.id, boot_id, &asker, &own.public)?;
    let mut tag = [0; TAG_BYTES];
    let mut sealed = encrypt_aead(Cipher::aes_256_gcm(), &sealing[..], Some(&[0; 12]), b"", &key.bytes[..], &mut tag)?;
    sealed.extend_from_slice(&tag);
    Ok(proto::EpochGrant { epoch: key.id.to_vec(), public_key: own.public.to_vec(), sealed, asker: Vec::new() })
}

fn grant_key(
    shared: &[u8],
    farm: &str,
    epoch: EpochId,
    boot_id: &[u8; 16],
    asker: &[u8; 32],
    granter: &[u8; 32],
) -> Result<Zeroizing<[u8; 32]>, ErrorStack> {
    let mut key = Zeroizing::new([0; 32]);
    // A farm's name has no "|", and what follows has one length.
    let info: [&[u8]; 7] = [b"resumed/1 grant|", farm.as_bytes(), b"|", &epoch, boot_id, asker, granter];
    hkdf_sha256(shared, b"", &info, &mut key[..])?;
    Ok(key)
}

/// Why an epoch key could not be granted, or a grant not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantFault {
    /// The public key does not have 32 bytes, or is one with which every shared secret is zero.
    #[error("the public key is unusable")]
    PublicKey,
    /// The grant was made for another request, or altered.
    #[error("the grant does not open")]
    Sealed,
    /// OpenSSL failed.
    #[error("OpenSSL failed: {0}")]
    Library(
        /// What it said.
        String,
    ),
}

impl GrantFault {
    /// The counted reason.
    #[must_use]
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::PublicKey => Reason::BadPublicKey,
            Self::Sealed => Reason::BadGrant,
            Self::Library(_) => Reason::Library,
        }
    }
}

impl From<ErrorStack> for GrantFault {
    fn from(error: ErrorStack) -> Self {
        Self::Library(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hex::unhex;

    const BOOT: [u8; 16] = [5; 16];

    fn key(byte: u8) -> EpochKey {
        EpochKey::from_random(&[byte; 32]).unwrap()
    }

    fn pair(byte: u8) -> JoinKey {
        JoinKey::from_random(&[byte; 32]).unwrap()
    }

    fn at(mono: u64) -> Now {
        Now { wall: 1_800_000_000_000 + mono, mono }
    }

    #[test]
    fn x25519_gives_the_answers_of_rfc_7748() {
        // Section 6.1: Bob's pair and Alice's public key.
        let bytes = |text: &str| <[u8; 32]>::try_from(unhex(text)).unwrap();
        let bob = JoinKey::from_random(&bytes("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"));
        let bob = bob.unwrap();
        assert_eq!(bob.public(), &bytes("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"));
        let alice = bytes("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a");
        let shared = bob.shared_with(&alice).unwrap();
        assert_eq!(shared[..], bytes("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"));
    }

    #[test]
    fn a_grant_opens_for_the_one_that_asked_and_nobody_else() {
        let asker = pair(1);
        let grant = seal_grant(&key(7), "prod", &BOOT, asker.public(), &[2; 32]).unwrap();
        assert_eq!(asker.open_grant("prod", &BOOT, &grant).unwrap().bytes(), key(7).bytes());

        let fault = |result: Result<EpochKey, GrantFault>| result.err();
        assert_eq!(fault(pair(3).open_grant("prod", &BOOT, &grant)), Some(GrantFault::Sealed));
        assert_eq!(fault(asker.open_grant("prod-2", &BOOT, &grant)), Some(GrantFault::Sealed));
        assert_eq!(fault(asker.open_grant("prod", &[6; 16], &grant)), Some(GrantFault::Sealed));
        let other = seal_grant(&key(8), "prod", &BOOT, asker.public(), &[2; 32]).unwrap();
        let swapped = proto::EpochGrant { epoch: other.epoch, ..grant.clone() };
        assert_eq!(fault(asker.open_grant("prod", &BOOT, &swapped)), Some(GrantFault::Sealed));
        for length in 0..48 {
            let cut = proto::EpochGrant { sealed: grant.sealed[..length].to_vec(), ..grant.clone() };
            assert_eq!(fault(asker.open_grant("prod", &BOOT, &cut)), Some(GrantFault::Sealed));
        }
        for bit in 0..48 * 8 {
            let mut altered = grant.clone();
            altered.sealed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(fault(asker.open_grant("prod", &BOOT, &altered)), Some(GrantFault::Sealed));
        }
    }

    #[test]
    fn public_keys_that_contribute_nothing_are_refused_on_both_sides() {
        // Points of small order: 0, 1, and p - 1, little endian (RFC 7748 section 7).
        let mut one = [0; 32];
        one[0] = 1;
        let mut most = [0xff; 32];
        (most[0], most[31]) = (0xec, 0x7f);
        for public in [[0; 32], one, most] {
            let sealed = seal_grant(&key(7), "prod", &BOOT, &public, &[2; 32]);
            assert_eq!(sealed, Err(GrantFault::PublicKey));
            let mut grant = seal_grant(&key(7), "prod", &BOOT, pair(1).public(), &[2; 32]).unwrap();
            grant.public_key = public.to_vec();
            assert_eq!(pair(1).open_grant("prod", &BOOT, &grant).err(), Some(GrantFault::PublicKey));
        }
        for length in [0, 31, 33] {
            let sealed = seal_grant(&key(7), "prod", &BOOT, &vec![9; length], &[2; 32]);
            assert_eq!(sealed, Err(GrantFault::PublicKey));
        }
    }

    #[test]
    fn the_first_key_seals_at_once_and_a_later_one_once_it_is_settled() {
        let mut epochs = Epochs::new(Duration::from_millis(100));
        assert!(epochs.settled(at(0)).is_none() && epochs.current().is_none());
        assert!(epochs.lead_to(key(1), at(0)));
        assert_eq!(epochs.settled(at(0)).unwrap().id(), key(1).id());
        assert!(epochs.lead_to(key(2), at(50)));
        assert!(!epochs.lead_to(key(1), at(60)), "it is held");
        assert_eq!(epochs.current().unwrap().id(), key(2).id());
        // None was held for long: the first.
        assert_eq!(epochs.settled(at(60)).unwrap().id(), key(1).id());
        assert_eq!(epochs.settled(at(149)).unwrap().id(), key(1).id());
        assert_eq!(epochs.settled(at(150)).unwrap().id(), key(2).id());
        // Back to the first, as after a leader that led for a moment.
        assert!(epochs.follow(key(1).id(), at(200)));
        assert_eq!(epochs.settled(at(200)).unwrap().id(), key(1).id());
        assert!(!epochs.follow(key(3).id(), at(200)));
    }

    #[test]
    fn what_goes_to_the_leader_is_sealed_under_its_key_and_all_else_under_the_settled_one() {
        let mut epochs = Epochs::new(Duration::from_millis(100));
        epochs.lead_to(key(1), at(0));
        epochs.lead_to(key(2), at(500));
        let sealing = |kind: Kind| epochs.sealing(&kind, at(510)).map(EpochKey::id);
        assert_eq!(sealing(Kind::Report(Default::default())), Some(key(2).id()));
        assert_eq!(sealing(Kind::Request(Default::default())), Some(key(2).id()));
        assert_eq!(sealing(Kind::Announcement(Default::default())), Some(key(1).id()));
        assert_eq!(sealing(Kind::Sessions(Default::default())), Some(key(1).id()));
        assert_eq!(sealing(Kind::Answer(Default::default())), Some(key(1).id()));
        for kind in
            [Kind::Join(Default::default()), Kind::EpochGrant(Default::default()), Kind::Farewell(Default::default())]
        {
            assert_eq!(sealing(kind), None);
        }
    }

    #[test]
    fn a_key_that_opens_beside_the_current_one_never_takes_its_place() {
        let mut epochs = Epochs::new(Duration::ZERO);
        assert!(epochs.open_too(key(1), at(0)));
        assert_eq!(epochs.current().unwrap().id(), key(1).id());
        assert!(epochs.open_too(key(2), at(1)));
        assert_eq!(epochs.current().unwrap().id(), key(1).id());
        assert!(epochs.get(key(2).id()).is_some());
    }

    #[test]
    fn four_keys_are_held_and_superseded_ones_erased_in_time() {
        let mut epochs = Epochs::new(Duration::ZERO);
        for byte in 1..=6 {
            epochs.lead_to(key(byte), at(u64::from(byte)));
        }
        assert_eq!(epochs.ids().collect::<Vec<_>>(), [key(3).id(), key(4).id(), key(5).id(), key(6).id()]);
        // Key 3 was superseded at 4, key 5 at 6.
        assert!(!epochs.expire(100, at(104)));
        assert!(epochs.expire(100, at(105)));
        assert_eq!(epochs.ids().collect::<Vec<_>>(), [key(4).id(), key(5).id(), key(6).id()]);
        assert!(epochs.expire(100, at(1_000_000)));
        assert_eq!(epochs.ids().collect::<Vec<_>>(), [key(6).id()], "the current one stays");
    }

    #[test]
    fn debug_shows_ids_only() {
        let shown = format!("{:?} {:?} {:?}", key(0xa5), pair(0xa5), {
            let mut epochs = Epochs::new(Duration::ZERO);
            epochs.lead_to(key(0xa5), at(0));
            epochs
        });
        assert!(shown.contains(&epoch_name(key(0xa5).id())), "{shown}");
        assert!(!shown.contains("165") && !shown.contains("a5a5"), "{shown}");
    }
}
