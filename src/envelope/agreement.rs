//! How two nodes agree on a secret while others listen: X25519 (RFC 7748), or ECDH on P-256 (NIST SP 800-56A), by OpenSSL.
//!
//! Hosts in FIPS mode often have no X25519: so a node offers both, and what both sides have is used. Which of them the
//! OpenSSL of a host has is found out once, when the node starts ([`openssl_of_this_host`]), and handed in from there on.

use std::fmt;

use openssl::bn::{BigNum, BigNumContext};
use openssl::derive::Deriver;
use openssl::ec::{EcGroup, EcKey, EcPoint, PointConversionForm};
use openssl::error::ErrorStack;
use openssl::memcmp;
use openssl::nid::Nid;
use openssl::pkey::{Id, PKey, Private, Public};
use openssl::symm::{Cipher, encrypt_aead};
use zeroize::Zeroizing;

use crate::hkdf::hkdf_sha256;

/// The bytes of a shared secret, of either agreement.
const SHARED_BYTES: usize = 32;

/// A public key on P-256: the point in its uncompressed form (SEC 1 section 2.3.3).
const P256_PUBLIC_BYTES: usize = 65;

/// As often are bytes drawn for a private key on P-256, of which one draw in 2^32 is none.
const MOST_DRAWS: usize = 8;

/// The ways to agree on a secret that a node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyAgreements {
    /// X25519. Release 0.1.0 has no other.
    pub x25519: bool,
    /// ECDH on P-256.
    pub p256: bool,
}

impl KeyAgreements {
    /// What most hosts have.
    pub const BOTH: Self = Self { x25519: true, p256: true };

    /// Who is kept out where this is all that a host has, as a clause; `None` if it has both.
    #[must_use]
    pub(crate) fn lacking(self) -> Option<&'static str> {
        match self {
            Self::BOTH => None,
            Self { p256: true, .. } => Some(
                "has no X25519, as in FIPS mode: this node and one of release 0.1.0 cannot give each other epoch keys",
            ),
            Self { .. } => Some(
                "has no P-256: this node and one without X25519, as in FIPS mode, cannot give each other epoch keys",
            ),
        }
    }

    pub(super) fn has(self, agreement: Agreement) -> bool {
        match agreement {
            Agreement::X25519 => self.x25519,
            Agreement::P256 => self.p256,
        }
    }
}

impl fmt::Display for KeyAgreements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.x25519, self.p256) {
            (true, true) => "X25519, P-256",
            (true, false) => "X25519",
            (false, true) => "P-256",
            (false, false) => "none",
        })
    }
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Agreement {
    X25519,
    P256,
}

impl Agreement {
    /// All of them, the one first that is used where both sides have it.
    pub(super) const ALL: [Self; 2] = [Self::X25519, Self::P256];
}

/// Why nothing was agreed on.
#[derive(Debug)]
pub(super) enum NotAgreed {
    /// The other side's public key is none, or one with which every shared secret is the same.
    PublicKey,
    /// OpenSSL failed.
    Library(ErrorStack),
}

impl From<ErrorStack> for NotAgreed {
    fn from(error: ErrorStack) -> Self {
        Self::Library(error)
    }
}

/// A key pair for one exchange. The private half lives in OpenSSL, which erases it.
pub(super) struct KeyPair {
    agreement: Agreement,
    private: PKey<Private>,
    public: Vec<u8>,
}

impl KeyPair {
    /// A pair whose private half is made of what `draw` gives: random bytes, never the same ones twice.
    ///
    /// # Errors
    /// If OpenSSL does not have `agreement`.
    pub(super) fn draw(
        agreement: Agreement,
        draw: &mut dyn FnMut() -> Zeroizing<[u8; 32]>,
    ) -> Result<Self, ErrorStack> {
        let (private, public) = match agreement {
            Agreement::X25519 => x25519_pair(&draw())?,
            Agreement::P256 => p256_pair(draw)?,
        };
        Ok(Self { agreement, private, public })
    }

    /// The agreement that it is for.
    pub(super) fn agreement(&self) -> Agreement {
        self.agreement
    }

    /// The public half: 32 bytes of X25519, 65 of P-256.
    pub(super) fn public(&self) -> &[u8] {
        &self.public
    }

    /// The secret that this pair and the holder of `public`'s private half share.
    pub(super) fn shared_with(&self, public: &[u8]) -> Result<Zeroizing<Vec<u8>>, NotAgreed> {
        let peer = match self.agreement {
            Agreement::X25519 => x25519_public(public)?,
            Agreement::P256 => p256_public(public)?,
        };
        let mut deriver = Deriver::new(&self.private)?;
        deriver.set_peer(&peer)?;
        // OpenSSL itself fails here if X25519 gives all zero (RFC 7748 section 6.1).
        let shared = Zeroizing::new(deriver.derive_to_vec().map_err(|_| NotAgreed::PublicKey)?);
        if shared.len() != SHARED_BYTES || memcmp::eq(&shared, &[0; SHARED_BYTES]) {
            return Err(NotAgreed::PublicKey);
        }
        Ok(shared)
    }
}

fn x25519_pair(random: &[u8; 32]) -> Result<(PKey<Private>, Vec<u8>), ErrorStack> {
    let private = PKey::private_key_from_raw_bytes(random, Id::X25519)?;
    let public = private.raw_public_key()?;
    Ok((private, public))
}

fn x25519_public(public: &[u8]) -> Result<PKey<Public>, NotAgreed> {
    if public.len() != 32 {
        return Err(NotAgreed::PublicKey);
    }
    Ok(PKey::public_key_from_raw_bytes(public, Id::X25519)?)
}

fn p256() -> Result<EcGroup, ErrorStack> {
    EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)
}

fn p256_pair(draw: &mut dyn FnMut() -> Zeroizing<[u8; 32]>) -> Result<(PKey<Private>, Vec<u8>), ErrorStack> {
    let (group, mut context) = (p256()?, BigNumContext::new()?);
    let mut scalar = p256_private(&group, &mut context, draw)?;
    let mut point = EcPoint::new(&group)?;
    let multiplied = point.mul_generator2(&group, &scalar, &mut context);
    let key = multiplied.and_then(|()| EcKey::from_private_components(&group, &scalar, &point));
    scalar.clear();
    let key = key?;
    // Both halves belong together and are right: what a FIPS module asks of a pair that was made outside of it.
    key.check_key()?;
    let public = point.to_bytes(&group, PointConversionForm::UNCOMPRESSED, &mut context)?;
    Ok((PKey::from_ec_key(key)?, public))
}

/// A private key by testing candidates, FIPS 186-5 appendix A.2.2: 32 random bytes as a number `c`, drawn again if it is more
/// than the order less two; the key is `c` + 1.
fn p256_private(
    group: &EcGroup,
    context: &mut BigNumContext,
    draw: &mut dyn FnMut() -> Zeroizing<[u8; 32]>,
) -> Result<BigNum, ErrorStack> {
    let mut most = BigNum::new()?;
    group.order(&mut most, context)?;
    most.sub_word(2)?;
    for _ in 0..MOST_DRAWS {
        let mut candidate = BigNum::new_secure()?;
        candidate.copy_from_slice(&draw()[..])?;
        candidate.set_const_time();
        if candidate <= most {
            candidate.add_word(1)?;
            return Ok(candidate);
        }
    }
    // A source that gives this is broken; OpenSSL has nothing to say of it.
    Err(ErrorStack::get())
}

fn p256_public(public: &[u8]) -> Result<PKey<Public>, NotAgreed> {
    const UNCOMPRESSED: u8 = 4;
    if public.len() != P256_PUBLIC_BYTES || public[0] != UNCOMPRESSED {
        return Err(NotAgreed::PublicKey);
    }
    let (group, mut context) = (p256()?, BigNumContext::new()?);
    let point = EcPoint::from_bytes(&group, public, &mut context).map_err(|_| NotAgreed::PublicKey)?;
    let key = EcKey::from_public_key(&group, &point)?;
    // On the curve, and in the group of the right order (NIST SP 800-56A section 5.6.2.3.3).
    key.check_key().map_err(|_| NotAgreed::PublicKey)?;
    Ok(PKey::from_ec_key(key)?)
}

/// What a node cannot be without, and this host's OpenSSL does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MissingAlgorithm {
    /// Keys of messages, and random bytes, are made with it.
    #[error("OpenSSL on this host has no HKDF-SHA256, without which no message can be sealed: {0}")]
    Hkdf(
        /// What it said.
        String,
    ),
    /// Messages are sealed with it.
    #[error("OpenSSL on this host has no AES-256-GCM, without which no message can be sealed: {0}")]
    AesGcm(
        /// What it said.
        String,
    ),
    /// Epoch keys come by it.
    #[error(
        "OpenSSL on this host has neither X25519 nor P-256, and no node takes part in a farm without one of them: {0}"
    )]
    Agreement(
        /// What it said of P-256.
        String,
    ),
}

/// Which agreements the OpenSSL of this process has, by its version, its providers and its configuration. Tries each.
///
/// # Errors
/// If it lacks what a node cannot be without.
pub(crate) fn openssl_of_this_host() -> Result<KeyAgreements, MissingAlgorithm> {
    hkdf_sha256(&[1; 32], b"", &[b"trial"], &mut [0; 32]).map_err(|error| MissingAlgorithm::Hkdf(said(&error)))?;
    let sealed = encrypt_aead(Cipher::aes_256_gcm(), &[1; 32], Some(&[0; 12]), b"", b"trial", &mut [0; 16]);
    sealed.map_err(|error| MissingAlgorithm::AesGcm(said(&error)))?;
    let (x25519, p256) = (trial(Agreement::X25519), trial(Agreement::P256));
    match p256 {
        Err(error) if x25519.is_err() => Err(MissingAlgorithm::Agreement(said(&error))),
        p256 => Ok(KeyAgreements { x25519: x25519.is_ok(), p256: p256.is_ok() }),
    }
}

/// Two pairs that agree. Their bytes are no secret.
fn trial(agreement: Agreement) -> Result<(), ErrorStack> {
    let pair = |byte| KeyPair::draw(agreement, &mut || Zeroizing::new([byte; 32]));
    let (one, other) = (pair(1)?, pair(2)?);
    match one.shared_with(other.public()) {
        Ok(_) => Ok(()),
        Err(NotAgreed::Library(error)) => Err(error),
        Err(NotAgreed::PublicKey) => Err(ErrorStack::get()),
    }
}

/// The reasons in `error`, in one line.
fn said(error: &ErrorStack) -> String {
    let reasons: Vec<_> = error.errors().iter().filter_map(openssl::error::Error::reason).collect();
    if reasons.is_empty() { "it does not say why".to_owned() } else { reasons.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hex::{hex, unhex};

    fn pair(agreement: Agreement, private: [u8; 32]) -> KeyPair {
        KeyPair::draw(agreement, &mut || Zeroizing::new(private)).unwrap()
    }

    fn bytes(text: &str) -> [u8; 32] {
        unhex(text).try_into().unwrap()
    }

    #[test]
    fn x25519_gives_the_answers_of_rfc_7748() {
        // Section 6.1: Bob's pair and Alice's public key.
        let bob = pair(Agreement::X25519, bytes("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"));
        assert_eq!(hex(bob.public()), "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f");
        let alice = bytes("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a");
        let shared = bob.shared_with(&alice).unwrap();
        assert_eq!(hex(&shared), "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
    }

    /// `number` less one: the candidate that becomes the private key `number`. None of them ends in a zero byte.
    fn candidate(number: &str) -> [u8; 32] {
        let mut candidate = bytes(number);
        candidate[31] -= 1;
        candidate
    }

    #[test]
    fn p256_gives_the_answers_of_rfc_5903() {
        // Section 8.1: the initiator's and the responder's private and public keys, and what they share.
        let initiator = candidate("c88f01f510d9ac3f70a292daa2316de544e9aab8afe84049c62a9c57862d1433");
        let responder = candidate("c6ef9c5d78ae012a011164acb397ce2088685d8f06bf9be0b283ab46476bee53");
        let (initiator, responder) = (pair(Agreement::P256, initiator), pair(Agreement::P256, responder));
        let points = [
            "04dad0b65394221cf9b051e1feca5787d098dfe637fc90b9ef945d0c37725811805271a0461cdb8252d61f1c456fa3e59ab1f45b33ac\
             cf5f58389e0577b8990bb3",
            "04d12dfb5289c8d4f81208b70270398c342296970a0bccb74c736fc7554494bf6356fbf3ca366cc23e8157854c13c58d6aac23f046ad\
             a30f8353e74f33039872ab",
        ];
        assert_eq!([hex(initiator.public()), hex(responder.public())], points);
        for (own, other) in [(&initiator, &responder), (&responder, &initiator)] {
            let shared = own.shared_with(other.public()).unwrap();
            assert_eq!(hex(&shared), "d6840f6b42f6edafd13116e0e12565202fef8e9ece7dce03812464d04b9442de");
        }
    }

    /// The order of P-256, plus `more`.
    fn order_and(more: i8) -> [u8; 32] {
        let mut order = bytes("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551");
        order[31] = order[31].wrapping_add_signed(more);
        order
    }

    #[test]
    fn private_keys_on_p256_are_those_below_the_order_and_others_are_drawn_again() {
        for (candidates, draws, last) in [
            (vec![[0; 32]], 1, true),
            (vec![order_and(-2)], 1, true),
            (vec![order_and(-1), [7; 32]], 2, true),
            (vec![order_and(0), [0xff; 32], [7; 32]], 3, true),
            (vec![[0xff; 32]; MOST_DRAWS], MOST_DRAWS, false),
        ] {
            let mut drawn = 0;
            let pair = KeyPair::draw(Agreement::P256, &mut || {
                drawn += 1;
                Zeroizing::new(candidates[drawn - 1])
            });
            assert_eq!((drawn, pair.is_ok()), (draws, last));
        }
    }

    #[test]
    fn both_sides_share_a_secret_and_a_third_has_another() {
        for agreement in Agreement::ALL {
            let [one, other, third] = [1, 2, 3].map(|byte| pair(agreement, [byte; 32]));
            let shared = one.shared_with(other.public()).unwrap();
            assert_eq!(other.shared_with(one.public()).unwrap(), shared, "{agreement:?}");
            assert_ne!(third.shared_with(one.public()).unwrap(), shared, "{agreement:?}");
        }
    }

    #[test]
    fn public_keys_that_are_none_are_refused() {
        let refused = |agreement, public: &[u8]| {
            matches!(pair(agreement, [1; 32]).shared_with(public), Err(NotAgreed::PublicKey))
        };
        for length in [0, 1, 31, 33, 64, 65, 66] {
            assert!(refused(Agreement::P256, &vec![4; length]), "{length}");
            assert!(refused(Agreement::X25519, &vec![0; length]), "{length}");
        }
        assert!(refused(Agreement::X25519, &[0; 32]), "every secret shared with it is zero");
        let point = pair(Agreement::P256, [2; 32]).public().to_vec();
        for at in 1..P256_PUBLIC_BYTES {
            let mut beside = point.clone();
            beside[at] ^= 1;
            assert!(refused(Agreement::P256, &beside), "a point that is not on the curve, by byte {at}");
        }
        for form in [2, 3, 6, 7] {
            let mut other = point.clone();
            other[0] = form;
            assert!(refused(Agreement::P256, &other) && refused(Agreement::P256, &other[..33]), "form {form}");
        }
    }

    #[test]
    fn this_host_has_both() {
        assert_eq!(openssl_of_this_host(), Ok(KeyAgreements::BOTH));
    }
}
