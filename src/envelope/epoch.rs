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
//! - **key**: 32 bytes of HKDF-SHA256 (RFC 5869) over the shared secret of X25519 (RFC 7748; all zero is refused), with an
//!   empty salt and the info `resumed/1 grant|` farm `|` epoch id, the asker's boot id, its public key, and the grant's
//!   public key. The leader draws a key pair for each grant, so the derived key is used once.
//!
//! Where one of the two has no X25519, as a host in FIPS mode, it is the same with ECDH on P-256 (NIST SP 800-56A) and the info
//! `resumed/1 grant p256|` …: a `Join` offers a public key of each that its node has, and the granter takes X25519 if it can.
//!
//! The farm secret authenticates both messages: they travel in ordinary envelopes. Without it neither agreement is
//! talked down to the other.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use openssl::error::ErrorStack;
use openssl::symm::{Cipher, decrypt_aead, encrypt_aead};
use zeroize::Zeroizing;

use super::agreement::{Agreement, KeyAgreements, KeyPair, NotAgreed};
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

/// What one request for epoch keys is answered to: a key pair of each agreement that the node has.
pub struct JoinKey {
    pairs: Vec<KeyPair>,
}

impl JoinKey {
    /// Pairs of all agreements that the node `has`, from what `draw` gives: random bytes, never the same ones twice.
    ///
    /// # Errors
    /// If OpenSSL does not have one of them.
    pub fn draw(has: KeyAgreements, draw: &mut dyn FnMut() -> Zeroizing<[u8; 32]>) -> Result<Self, ErrorStack> {
        let held = Agreement::ALL.into_iter().filter(|agreement| has.has(*agreement));
        let pairs = held.map(|agreement| KeyPair::draw(agreement, draw)).collect::<Result<_, _>>()?;
        Ok(Self { pairs })
    }

    /// `join` with the public halves.
    #[must_use]
    pub fn offer(&self, mut join: proto::Join) -> proto::Join {
        for pair in &self.pairs {
            let field = match pair.agreement() {
                Agreement::X25519 => &mut join.public_key,
                Agreement::P256 => &mut join.public_key_p256,
            };
            *field = pair.public().to_vec();
        }
        join
    }

    /// The epoch key in `grant`, which these pairs asked for as the node that `boot_id` names.
    ///
    /// # Errors
    /// It was made for another pair, node or farm, or is no grant at all.
    pub fn open_grant(
        &self,
        farm: &str,
        boot_id: &[u8; 16],
        grant: &proto::EpochGrant,
    ) -> Result<EpochKey, GrantFault> {
        let (agreement, granter) = match (&grant.public_key[..], &grant.public_key_p256[..]) {
            (granter, []) => (Agreement::X25519, granter),
            ([], granter) => (Agreement::P256, granter),
            _ => return Err(GrantFault::PublicKey),
        };
        let pair = self.pairs.iter().find(|pair| pair.agreement() == agreement).ok_or(GrantFault::PublicKey)?;
        let epoch: EpochId = grant.epoch.as_slice().try_into().map_err(|_| GrantFault::Sealed)?;
        if grant.sealed.len() != 32 + TAG_BYTES {
            return Err(GrantFault::Sealed);
        }
        let exchange = Exchange { agreement, farm, epoch, boot_id, asker: pair.public(), granter };
        let key = exchange.key(&pair.shared_with(granter)?)?;
        let (text, tag) = grant.sealed.split_at(32);
        let opened = decrypt_aead(Cipher::aes_256_gcm(), &key[..], Some(&[0; 12]), b"", text, tag);
        let opened = Zeroizing::new(opened.map_err(|_| GrantFault::Sealed)?);
        let bytes = Zeroizing::new(<[u8; 32]>::try_from(&opened[..]).map_err(|_| GrantFault::Sealed)?);
        let key = EpochKey::from_random(&bytes)?;
        if key.id == epoch { Ok(key) } else { Err(GrantFault::Sealed) }
    }
}

impl fmt::Debug for JoinKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinKey").finish_non_exhaustive()
    }
}

/// Seals `key` for the node of `boot_id` that sent `join`, by an agreement that this node `has`. What `draw` gives becomes the
/// private half of the grant's own key pair and must never be used twice.
///
/// # Errors
/// [`GrantFault::NoAgreement`] if the two have none in common, [`GrantFault::PublicKey`] if nothing can be sealed to what the
/// join offers.
pub(crate) fn seal_grant(
    key: &EpochKey,
    farm: &str,
    boot_id: &[u8; 16],
    join: &proto::Join,
    has: KeyAgreements,
    draw: &mut dyn FnMut() -> Zeroizing<[u8; 32]>,
) -> Result<proto::EpochGrant, GrantFault> {
    let (agreement, asker) = agreed(join, has)?;
    let own = KeyPair::draw(agreement, draw)?;
    let exchange = Exchange { agreement, farm, epoch: key.id, boot_id, asker, granter: own.public() };
    let sealing = exchange.key(&own.shared_with(asker)?)?;
    let mut tag = [0; TAG_BYTES];
    let mut sealed = encrypt_aead(Cipher::aes_256_gcm(), &sealing[..], Some(&[0; 12]), b"", &key.bytes[..], &mut tag)?;
    sealed.extend_from_slice(&tag);
    let grant = proto::EpochGrant { epoch: key.id.to_vec(), sealed, ..proto::EpochGrant::default() };
    let public = own.public().to_vec();
    Ok(match agreement {
        Agreement::X25519 => proto::EpochGrant { public_key: public, ..grant },
        Agreement::P256 => proto::EpochGrant { public_key_p256: public, ..grant },
    })
}

/// The agreement by which a node that `has` some answers `join`, and the asker's public key for it.
fn agreed(join: &proto::Join, has: KeyAgreements) -> Result<(Agreement, &[u8]), GrantFault> {
    let offered = [(Agreement::X25519, &join.public_key[..]), (Agreement::P256, &join.public_key_p256[..])];
    let mut offered = offered.into_iter().filter(|(_, public)| !public.is_empty()).peekable();
    if offered.peek().is_none() {
        return Err(GrantFault::PublicKey);
    }
    offered.find(|(agreement, _)| has.has(*agreement)).ok_or(GrantFault::NoAgreement)
}

/// What a grant's key is bound to.
struct Exchange<'a> {
    agreement: Agreement,
    farm: &'a str,
    epoch: EpochId,
    boot_id: &'a [u8; 16],
    /// The asker's public key.
    asker: &'a [u8],
    /// The grant's public key.
    granter: &'a [u8],
}

impl Exchange<'_> {
    /// The key that seals the grant.
    fn key(&self, shared: &[u8]) -> Result<Zeroizing<[u8; 32]>, ErrorStack> {
        let Self { agreement, farm, epoch, boot_id, asker, granter } = self;
        let label: &[u8] = match agreement {
            Agreement::X25519 => b"resumed/1 grant|",
            Agreement::P256 => b"resumed/1 grant p256|",
        };
        let mut key = Zeroizing::new([0; 32]);
        // A farm's name has no "|", and what follows has one length for each agreement.
        let info: [&[u8]; 7] = [label, farm.as_bytes(), b"|", epoch, *boot_id, asker, granter];
        hkdf_sha256(shared, b"", &info, &mut key[..])?;
        Ok(key)
    }
}

/// Why an epoch key could not be granted, or a grant not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantFault {
    /// The public key is none, or one with which every shared secret is zero, or for an agreement that was not offered.
    #[error("the public key is unusable")]
    PublicKey,
    /// The asker offers no agreement that the granter has.
    #[error("neither X25519 nor P-256 is there on both sides")]
    NoAgreement,
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
            Self::NoAgreement => Reason::NoAgreement,
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

impl From<NotAgreed> for GrantFault {
    fn from(why: NotAgreed) -> Self {
        match why {
            NotAgreed::PublicKey => Self::PublicKey,
            NotAgreed::Library(error) => error.into(),
        }
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

    const X25519: KeyAgreements = KeyAgreements { x25519: true, p256: false };
    const P256: KeyAgreements = KeyAgreements { x25519: false, p256: true };

    fn random(byte: u8) -> impl FnMut() -> Zeroizing<[u8; 32]> {
        move || Zeroizing::new([byte; 32])
    }

    fn pair(byte: u8) -> JoinKey {
        pair_of(KeyAgreements::BOTH, byte)
    }

    fn pair_of(has: KeyAgreements, byte: u8) -> JoinKey {
        JoinKey::draw(has, &mut random(byte)).unwrap()
    }

    /// What the node `BOOT`, which asks with `join`, is granted by one that `has`.
    fn granted(epoch: u8, join: &proto::Join, has: KeyAgreements) -> Result<proto::EpochGrant, GrantFault> {
        seal_grant(&key(epoch), "prod", &BOOT, join, has, &mut random(2))
    }

    fn asks(key: &JoinKey) -> proto::Join {
        key.offer(proto::Join::default())
    }

    fn at(mono: u64) -> Now {
        Now { wall: 1_800_000_000_000 + mono, mono }
    }

    #[test]
    fn a_grant_opens_for_the_one_that_asked_and_for_no_other() {
        for has in [X25519, P256] {
            let asker = pair_of(has, 1);
            let grant = granted(7, &asks(&asker), KeyAgreements::BOTH).unwrap();
            assert_eq!(asker.open_grant("prod", &BOOT, &grant).unwrap().bytes(), key(7).bytes());

            let fault = |result: Result<EpochKey, GrantFault>| result.err();
            assert_eq!(fault(pair(3).open_grant("prod", &BOOT, &grant)), Some(GrantFault::Sealed));
            assert_eq!(fault(asker.open_grant("prod-2", &BOOT, &grant)), Some(GrantFault::Sealed));
            assert_eq!(fault(asker.open_grant("prod", &[6; 16], &grant)), Some(GrantFault::Sealed));
            let other = granted(8, &asks(&asker), has).unwrap();
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
    }

    #[test]
    fn nodes_agree_by_x25519_where_both_have_it_and_else_by_p256() {
        let both = KeyAgreements::BOTH;
        for (asker, granter, expected) in [
            (both, both, Ok(X25519)),
            (both, X25519, Ok(X25519)),
            (X25519, both, Ok(X25519)),
            (both, P256, Ok(P256)),
            (P256, both, Ok(P256)),
            (P256, P256, Ok(P256)),
            (X25519, P256, Err(GrantFault::NoAgreement)),
            (P256, X25519, Err(GrantFault::NoAgreement)),
        ] {
            let own = pair_of(asker, 1);
            let join = asks(&own);
            assert_eq!([join.public_key.len(), join.public_key_p256.len()], lengths(asker));
            let grant = granted(7, &join, granter);
            let by = grant.as_ref().map(|grant| [grant.public_key.len(), grant.public_key_p256.len()]);
            assert_eq!(by, expected.as_ref().map(|by| lengths(*by)), "{asker:?} asks {granter:?}");
            if let Ok(grant) = grant {
                assert_eq!(own.open_grant("prod", &BOOT, &grant).unwrap().bytes(), key(7).bytes());
            }
        }
    }

    /// Of the public keys of a node that has these.
    fn lengths(has: KeyAgreements) -> [usize; 2] {
        [if has.x25519 { 32 } else { 0 }, if has.p256 { 65 } else { 0 }]
    }

    /// Computed apart from this code, by another library: candidates of 32 bytes 1 and 2, an epoch key of 32 bytes 7. Release
    /// 0.1.0 grants by X25519 as this one does.
    #[test]
    fn grants_are_sealed_byte_for_byte_as_documented() {
        let grant = |sealed| proto::EpochGrant {
            epoch: vec![0xc5, 0xdd, 0xd5, 0xaa, 0x24, 0xc3, 0x3d, 0x1e],
            sealed,
            ..Default::default()
        };
        let by_x25519 = proto::EpochGrant {
            public_key: unhex("ce8d3ad1ccb633ec7b70c17814a5c76ecd029685050d344745ba05870e587d59"),
            ..grant(unhex(
                "7b5a10b39ee03c5dcf9c1c8fe843ca62f199542ecb420ab90df1ae38088c5c3f\
                 f7b3fd59a5ac18e7d016ecd60108ab95",
            ))
        };
        let by_p256 = proto::EpochGrant {
            public_key_p256: unhex(
                "04b6792c1c37f1e686c8352641631226cad5b9950c2852a8c003d0af7435016e82\
                 7dc4e2098296b5ed3933de3b390a8b44b056b1b98921d58ba0586a1f10d27b1a",
            ),
            ..grant(unhex(
                "9d4c3dada3762119cdf87a2635c910ba2dde0e868187fe35b026f44cab5fe636\
                 bc9103ffeadf29ca64f931c0d35adb9d",
            ))
        };
        for (has, expected) in [(X25519, by_x25519), (P256, by_p256)] {
            assert_eq!(granted(7, &asks(&pair_of(has, 1)), has), Ok(expected.clone()));
            assert_eq!(pair(1).open_grant("prod", &BOOT, &expected).unwrap().bytes(), key(7).bytes());
        }
    }

    #[test]
    fn public_keys_that_contribute_nothing_are_refused_on_both_sides() {
        // Points of small order: 0, 1, and p - 1, little endian (RFC 7748 section 7).
        let mut one = [0; 32];
        one[0] = 1;
        let mut most = [0xff; 32];
        (most[0], most[31]) = (0xec, 0x7f);
        let asking = |public_key: &[u8]| proto::Join { public_key: public_key.to_vec(), ..proto::Join::default() };
        for public in [[0; 32], one, most] {
            assert_eq!(granted(7, &asking(&public), KeyAgreements::BOTH), Err(GrantFault::PublicKey));
            let mut grant = granted(7, &asks(&pair(1)), KeyAgreements::BOTH).unwrap();
            grant.public_key = public.to_vec();
            assert_eq!(pair(1).open_grant("prod", &BOOT, &grant).err(), Some(GrantFault::PublicKey));
        }
        for length in [0, 31, 33] {
            assert_eq!(granted(7, &asking(&vec![9; length]), KeyAgreements::BOTH), Err(GrantFault::PublicKey));
        }
        for length in [1, 33, 64, 65, 66] {
            let join = proto::Join { public_key_p256: vec![4; length], ..proto::Join::default() };
            assert_eq!(granted(7, &join, KeyAgreements::BOTH), Err(GrantFault::PublicKey));
        }
        let mut grant = granted(7, &asks(&pair_of(P256, 1)), P256).unwrap();
        grant.public_key = vec![9; 32];
        assert_eq!(pair(1).open_grant("prod", &BOOT, &grant).err(), Some(GrantFault::PublicKey), "by both at once");
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
