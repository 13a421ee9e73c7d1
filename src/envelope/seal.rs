//! Sealing: from payload to envelope.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use openssl::error::ErrorStack;
use prost::Message;
use zeroize::Zeroize;

use super::epoch::{EpochId, EpochKey};
use super::key::{SealingKey, Source};
use super::secret::Secrets;
use super::wire::{Header, MAX_ENVELOPE_BYTES, NO_EPOCH, TAG_BYTES, payload_fault};
use crate::proto;

/// The most routes that one salt seals for. Their sequences must be remembered for as long as the salt is in use.
const MAX_ROUTES: usize = 8192;

/// Seals the messages of one node under one salt.
///
/// It keeps a derived key and the next sequence for each route, so that a steady message costs one encryption.
///
/// # What the caller must do
/// Hand in 16 fresh random bytes as the salt with every new sealer and every [`Sealer::resalt`], and call the latter
/// after any jump between wall and monotonic clock (the machine may have gone back to a snapshot) and after a minute of use. A salt
/// used twice breaks AES-GCM: it reveals plaintext and lets envelopes be forged.
pub struct Sealer {
    secrets: Arc<Secrets>,
    farm: String,
    salt: [u8; 16],
    routes: HashMap<Box<str>, RouteKey>,
    max_routes: usize,
}

struct RouteKey {
    /// Derived on first use, and again after another secret became the first, or for another epoch.
    key: Option<(EpochId, SealingKey)>,
    /// `None` once 2^64 messages were sealed.
    next: Option<u64>,
}

impl Sealer {
    /// Seals with the first of `secrets` for the farm named `farm`. See [`Sealer`] for what `salt` must be.
    #[must_use]
    pub fn new(secrets: Arc<Secrets>, farm: &str, salt: [u8; 16]) -> Self {
        Self { secrets, farm: farm.into(), salt, routes: HashMap::new(), max_routes: MAX_ROUTES }
    }

    /// Goes on with a new salt, sequences starting at 0. Given the salt in use it changes nothing.
    pub(crate) fn resalt(&mut self, salt: [u8; 16]) {
        if salt != self.salt {
            self.salt = salt;
            self.routes.clear();
        }
    }

    /// Seals with the first of `secrets` from now on. Sequences go on: going back to an earlier secret under the same
    /// salt must not repeat one.
    pub(crate) fn set_secrets(&mut self, secrets: Arc<Secrets>) {
        if secrets.sealing().id() != self.secrets.sealing().id() {
            for sealing in self.routes.values_mut() {
                sealing.key = None;
            }
        }
        self.secrets = secrets;
    }

    /// Seals `payload` under the farm secret, and `epoch` if there is one, for `route`: the exact name of the exchange that it will
    /// be published to, or of the queue if it goes through the default exchange. The result is ready to be published, once.
    /// Sequences count on from one epoch to the next.
    ///
    /// The caller stamps the payload's `sent_at` immediately before.
    ///
    /// # Errors
    /// See [`SealError`]. Nothing is sealed then, and the next payload can be.
    pub fn seal(
        &mut self,
        epoch: Option<&EpochKey>,
        route: &str,
        payload: &proto::Payload,
    ) -> Result<Bytes, SealError> {
        if let Some(field) = payload_fault(payload) {
            return Err(SealError::Payload(field));
        }
        self.seal_encoded(epoch, route, payload.encoded_len(), |buffer| {
            payload.encode(buffer).expect("a BytesMut grows");
        })
    }

    /// Seals the `length` bytes that `put` writes.
    pub(super) fn seal_encoded(
        &mut self,
        epoch: Option<&EpochKey>,
        route: &str,
        length: usize,
        put: impl FnOnce(&mut BytesMut),
    ) -> Result<Bytes, SealError> {
        if length > MAX_ENVELOPE_BYTES {
            return Err(SealError::TooLarge { bytes: length });
        }
        let secret = self.secrets.sealing();
        if !self.routes.contains_key(route) {
            if self.routes.len() >= self.max_routes {
                return Err(SealError::SaltSpent);
            }
            self.routes.insert(route.into(), RouteKey { key: None, next: Some(0) });
        }
        let sealing = self.routes.get_mut(route).expect("it is there or was just inserted");

        let sequence = sealing.next.ok_or(SealError::SaltSpent)?;
        let header =
            Header { secret_id: secret.id(), epoch: epoch.map_or(NO_EPOCH, EpochKey::id), salt: self.salt, sequence };
        let front = header.encode(length + TAG_BYTES);
        let bytes = front.len() + length + TAG_BYTES;
        if bytes > MAX_ENVELOPE_BYTES {
            return Err(SealError::TooLarge { bytes });
        }
        let key = match &mut sealing.key {
            Some((of, key)) if *of == header.epoch => key,
            other => {
                let source = Source { secret, epoch, farm: &self.farm };
                &mut other.insert((header.epoch, SealingKey::derive(source, route, &self.salt)?)).1
            }
        };

        // Encrypted where it was encoded: no copy, and no plaintext left in freed memory.
        let mut envelope = BytesMut::with_capacity(bytes);
        envelope.put_slice(&front);
        put(&mut envelope);
        // Used up before anything is encrypted: should OpenSSL fail half way, the nonce is gone, not free.
        sealing.next = sequence.checked_add(1);
        let text = &mut envelope[front.len()..];
        debug_assert_eq!(text.len(), length);
        match key.seal(&header, text) {
            Ok(tag) => envelope.put_slice(&tag),
            Err(error) => {
                text.zeroize();
                return Err(error.into());
            }
        }
        Ok(envelope.freeze())
    }

    /// Goes on at `sequence` on `route`.
    #[cfg(test)]
    pub(super) fn skip_to(&mut self, route: &str, sequence: u64) {
        self.routes.insert(route.into(), RouteKey { key: None, next: Some(sequence) });
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { farm, secrets, routes, .. } = self;
        f.debug_struct("Sealer")
            .field("farm", farm)
            .field("secrets", secrets)
            .field("routes", &routes.len())
            .finish_non_exhaustive()
    }
}

/// Why a payload was not sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The envelope would be larger than [`MAX_ENVELOPE_BYTES`].
    #[error("message too large: {bytes} bytes, at most {MAX_ENVELOPE_BYTES} are allowed")]
    TooLarge {
        /// Its length in bytes.
        bytes: usize,
    },
    /// The payload names no possible sender, so that every node would refuse it: see
    /// [`is_node_name`](super::is_node_name); a boot id is 16 bytes.
    #[error("message has an impossible {0}")]
    Payload(
        /// The field at fault.
        &'static str,
    ),
    /// The node holds no epoch key, and the message is of a kind that never travels without
    /// ([`is_sealed_without_epoch`](super::is_sealed_without_epoch)).
    #[error("no epoch key yet")]
    NoEpoch,
    /// The salt has been used for 2^64 messages on this route, or for 8,192 routes. [`Sealer::resalt`], then seal again.
    #[error("the salt is used up: a new one is needed")]
    SaltSpent,
    /// OpenSSL failed.
    #[error("OpenSSL failed: {0}")]
    Library(#[from] ErrorStack),
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::envelope::secret::FarmSecret;

    fn secrets(bytes: &[u8]) -> Arc<Secrets> {
        Arc::new(
            Secrets::new(bytes.iter().map(|byte| FarmSecret::from_bytes(&[*byte; 32]).unwrap()).collect()).unwrap(),
        )
    }

    fn payload() -> proto::Payload {
        proto::Payload { node: "edge-1".into(), boot_id: vec![1; 16], sent_at: 1, kind: None }
    }

    fn header(envelope: &Bytes) -> Header {
        Header::decode(envelope).unwrap().0
    }

    #[test]
    fn sequences_count_from_zero_for_each_route() {
        let mut sealer = Sealer::new(secrets(&[1]), "f", [9; 16]);
        let sequences: Vec<u64> = ["a", "a", "b", "a", "b"]
            .iter()
            .map(|route| header(&sealer.seal(None, route, &payload()).unwrap()).sequence)
            .collect();
        assert_eq!(sequences, [0, 1, 0, 2, 1]);
    }

    #[test]
    fn no_nonce_repeats_under_a_salt_whatever_becomes_of_the_secrets() {
        let mut sealer = Sealer::new(secrets(&[1]), "f", [9; 16]);
        let mut seen = HashSet::new();
        for order in [&[1][..], &[1, 2], &[2, 1], &[2], &[1], &[1, 2]] {
            sealer.set_secrets(secrets(order));
            for _ in 0..3 {
                let header = header(&sealer.seal(None, "a", &payload()).unwrap());
                assert_eq!(header.secret_id, secrets(order).sealing().id());
                assert!(seen.insert((header.secret_id, header.salt, header.sequence)), "{header:?} again");
            }
        }
    }

    #[test]
    fn no_nonce_repeats_under_a_salt_whatever_becomes_of_the_epochs() {
        let epochs = [1, 2].map(|byte| EpochKey::from_random(&[byte; 32]).unwrap());
        let mut sealer = Sealer::new(secrets(&[1]), "f", [9; 16]);
        for (sequence, turn) in [None, Some(0), Some(0), Some(1), Some(0), None].into_iter().enumerate() {
            let epoch = turn.map(|turn: usize| &epochs[turn]);
            let header = header(&sealer.seal(epoch, "a", &payload()).unwrap());
            assert_eq!(header.sequence, sequence as u64);
            assert_eq!(header.epoch, epoch.map_or(NO_EPOCH, EpochKey::id));
        }
    }

    #[test]
    fn a_new_salt_starts_again_and_the_same_one_goes_on() {
        let mut sealer = Sealer::new(secrets(&[1]), "f", [9; 16]);
        sealer.seal(None, "a", &payload()).unwrap();
        sealer.resalt([9; 16]);
        assert_eq!(header(&sealer.seal(None, "a", &payload()).unwrap()).sequence, 1);
        sealer.resalt([8; 16]);
        let header = header(&sealer.seal(None, "a", &payload()).unwrap());
        assert_eq!((header.salt, header.sequence), ([8; 16], 0));
    }

    #[test]
    fn the_last_sequence_is_sealed_and_none_after_it() {
        let mut sealer = Sealer::new(secrets(&[1]), "f", [9; 16]);
        sealer.skip_to("a", u64::MAX);
        assert_eq!(header(&sealer.seal(None, "a", &payload()).unwrap()).sequence, u64::MAX);
        for _ in 0..2 {
            assert!(matches!(sealer.seal(None, "a", &payload()), Err(SealError::SaltSpent)));
        }
        assert!(sealer.seal(None, "b", &payload()).is_ok(), "other routes have sequences of their own");
        sealer.resalt([8; 16]);
        assert_eq!(header(&sealer.seal(None, "a", &payload()).unwrap()).sequence, 0);
    }

    #[test]
    fn routes_are_bounded_and_never_forgotten_under_a_salt() {
        let mut sealer = Sealer { max_routes: 2, ..Sealer::new(secrets(&[1]), "f", [9; 16]) };
        sealer.seal(None, "a", &payload()).unwrap();
        sealer.seal(None, "b", &payload()).unwrap();
        assert!(matches!(sealer.seal(None, "c", &payload()), Err(SealError::SaltSpent)));
        assert_eq!(header(&sealer.seal(None, "a", &payload()).unwrap()).sequence, 1);
        sealer.resalt([8; 16]);
        assert!(sealer.seal(None, "c", &payload()).is_ok());
    }

    #[test]
    fn a_mebibyte_is_sealed_and_not_a_byte_more() {
        let mut sealer = Sealer::new(secrets(&[1]), "f", [9; 16]);
        let front = Header { secret_id: [0; 8], epoch: NO_EPOCH, salt: [0; 16], sequence: 0 }.encode(1_000_000).len();
        let most = MAX_ENVELOPE_BYTES - front - TAG_BYTES;
        let mut seal = |bytes: usize| sealer.seal_encoded(None, "a", bytes, |buffer| buffer.put_bytes(7, bytes));
        for over in [most + 1, usize::MAX] {
            assert!(matches!(seal(over), Err(SealError::TooLarge { bytes }) if bytes > MAX_ENVELOPE_BYTES));
        }
        let largest = seal(most).unwrap();
        assert_eq!(largest.len(), MAX_ENVELOPE_BYTES);
        assert_eq!(header(&largest).sequence, 0, "a refused payload uses no sequence");
    }

    #[test]
    fn a_payload_that_all_would_refuse_is_not_sealed() {
        let mut sealer = Sealer::new(secrets(&[1]), "f", [9; 16]);
        let cases = [
            ("node", proto::Payload { node: String::new(), ..payload() }),
            ("node", proto::Payload { node: "n".repeat(129), ..payload() }),
            ("boot_id", proto::Payload { boot_id: vec![1; 15], ..payload() }),
        ];
        for (field, payload) in cases {
            assert!(matches!(sealer.seal(None, "a", &payload), Err(SealError::Payload(found)) if found == field));
        }
    }

    #[test]
    fn an_envelope_shows_nothing_of_its_payload() {
        let mut sealer = Sealer::new(secrets(&[1]), "f", [9; 16]);
        let envelope = sealer.seal(None, "a", &payload()).unwrap();
        assert!(!envelope.windows(6).any(|window| window == b"edge-1"));
    }

    #[test]
    fn debug_shows_no_salt_and_no_key() {
        let mut sealer = Sealer::new(secrets(&[1]), "f", [9; 16]);
        sealer.seal(None, "a", &payload()).unwrap();
        let id = format!("{:016x}", u64::from_be_bytes(secrets(&[1]).sealing().id()));
        let expected =
            format!("Sealer {{ farm: \"f\", secrets: Secrets([FarmSecret {{ id: \"{id}\", .. }}]), routes: 1, .. }}");
        assert_eq!(format!("{sealer:?}"), expected);
    }
}
