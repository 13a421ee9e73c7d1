//! Sealed messages: what stands on the broker, and who may open it how often.
//!
//! A [`Sealer`] turns a [`Payload`](crate::proto::Payload) into an envelope, an [`Opener`] turns it back or says why not
//! ([`Refusal`]). Both are bound to a farm and share a set of [`Secrets`]. Neither reads a clock or draws a random
//! number. `tests/vectors/envelope.json` holds examples that must never change.
//!
//! # The format, version 1
//!
//! An envelope is the protobuf message `resumed.v1.Envelope` in its canonical encoding: fields in order, each at most
//! once, default values left out, shortest varints, nothing unknown. Any other encoding is refused, so an envelope
//! cannot be altered in any bit and still be opened. It is at most [`MAX_ENVELOPE_BYTES`] long.
//!
//! | field | bytes | value |
//! | --- | --- | --- |
//! | `version` | | 1 |
//! | `secret_id` | 8 | which farm secret: the first 8 bytes of HKDF-SHA256(secret, salt "", info "resumed/1 id") |
//! | `epoch` | 8 | which epoch key besides: the first 8 bytes of HKDF-SHA256(epoch key, salt "", info "resumed/1 epoch"); all zero for none |
//! | `salt` | 16 | random; drawn anew for each broker connection, after a minute of use, and after a clock jump |
//! | `sequence` | | counts 0, 1, 2, … for each (salt, route) |
//! | `ciphertext` | ≥ 16 | the encrypted payload, then the 16-byte tag |
//!
//! The cipher is AES-256-GCM (NIST SP 800-38D) with
//!
//! - **key**: 32 bytes of HKDF-SHA256 (RFC 5869, extract and expand) over the farm secret, followed by the epoch key's 32
//!   bytes if there is one, with the envelope's salt and the info `resumed/1|` farm `|` route. The route is the exact name of the exchange that the envelope is published
//!   to, or of the queue if it is published through the default exchange. So an envelope opens in its own farm and on
//!   its own route only;
//! - **nonce**: the sequence as a 96-bit big-endian number. No salt is drawn twice and no sequence repeats under one, so
//!   no (key, nonce) pair ever does; for virtual machines that go back to a snapshot see below;
//! - **associated data**: the header fields in order, each as its length in bytes (32-bit big endian) and then the
//!   bytes. The version counts as 4 bytes and the sequence as 8, both big endian. Always 64 bytes:
//!
//! ```text
//! 00000004 version   00000008 secret_id   00000008 epoch   00000010 salt   00000008 sequence
//! ```
//!
//! # Nonces after a snapshot
//!
//! A virtual machine may be restored twice from one snapshot, or cloned while it runs. Its runs have all memory in common,
//! and must not seal two messages under one key and nonce. What keeps them apart:
//!
//! - **Salts drawn after the snapshot differ.** Each is made of the kernel's randomness, OpenSSL's, and both clocks in
//!   nanoseconds ([`crate::random`]). The kernel's differs from Linux 5.18 on where the hypervisor offers a VM Generation
//!   ID. Elsewhere it is the time that differs: two runs would have to draw in the same nanosecond.
//! - **A salt drawn before the snapshot** goes on in each run, with the same next sequence. It ends with the link, which a
//!   restored machine finds broken at its next message unless only that one run reaches the broker; at a jump of the wall
//!   clock by a second; and after a minute of use at the latest. So for at most a minute two runs may seal under the same
//!   nonces. Both messages must then have got out to an attacker, who learns the XOR of the two, and can forge under
//!   that one key. A daemon that is stopped for the snapshot, or restarted before the machine is connected, leaves no such
//!   minute.
//!
//! # How often an envelope opens
//!
//! Once on each [`Opener`], within the largest clock offset of its stamp. Checks come in this order, and the first that
//! fails is the refusal: size, encoding and field lengths, secret, epoch, tag, how much the payload holds
//! ([`PAYLOAD`](crate::proto::PAYLOAD)), payload, whether its kind may travel without
//! an epoch key ([`is_sealed_without_epoch`]), clock, replay. Only an envelope
//! that passed all of them leaves a trace in the replay table.
//!
//! What is left: a node that never saw the original accepts a replay of it, for as long as its stamp is fresh. A sender's
//! stamp may lie ahead, so that is up to twice the largest clock offset. The same holds for a node that restarted. What
//! the envelopes carry is made so that this does no harm: rings are joined, requests name the generation that they are
//! about, and session removals leave tombstones.

mod agreement;
mod epoch;
mod key;
mod open;
mod replay;
mod seal;
mod secret;
mod wire;

pub(crate) use agreement::openssl_of_this_host;
pub use agreement::{KeyAgreements, MissingAlgorithm};
pub use epoch::{EpochId, EpochKey, Epochs, JoinKey, is_sealed_without_epoch};
pub(crate) use epoch::{epoch_name, seal_grant};
pub(crate) use open::MOST_TRACKED;
pub use open::{Opener, Refusal};
pub(crate) use seal::SealError;
pub use seal::Sealer;
pub(crate) use secret::SECRET_TEXT_BYTES;
pub use secret::{FarmSecret, SecretError, Secrets};
pub(crate) use wire::MAX_ENVELOPE_BYTES;
pub use wire::is_node_name;

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use bytes::Bytes;
    use prost::Message;
    use serde::Deserialize;

    use super::*;
    use crate::clock::Now;
    use crate::hex::unhex;
    use crate::hkdf::hkdf_sha256;
    use crate::proto;

    #[derive(Deserialize)]
    struct File {
        format: String,
        vectors: Vec<Vector>,
    }

    /// Bytes as hex digits; the sequence in decimal, as not every JSON reader has 64-bit numbers.
    #[derive(Deserialize)]
    struct Vector {
        name: String,
        secret: String,
        farm: String,
        route: String,
        salt: String,
        sequence: String,
        secret_id: String,
        key: String,
        payload: String,
        envelope: String,
        /// None in those that are sealed under the farm secret alone.
        epoch: Option<VectorEpoch>,
    }

    #[derive(Deserialize)]
    struct VectorEpoch {
        key: String,
        id: String,
    }

    fn vectors() -> Vec<Vector> {
        let file: File = serde_json::from_str(include_str!("../../tests/vectors/envelope.json")).unwrap();
        assert_eq!(file.format, "resumed.v1.Envelope, version 1");
        assert!(file.vectors.len() >= 13);
        file.vectors
    }

    fn array<const N: usize>(text: &str) -> [u8; N] {
        unhex(text).try_into().unwrap()
    }

    impl Vector {
        fn secrets(&self) -> Arc<Secrets> {
            Arc::new(Secrets::new(vec![FarmSecret::from_bytes(&array(&self.secret)).unwrap()]).unwrap())
        }

        fn epochs(&self) -> Arc<Epochs> {
            let mut epochs = Epochs::new(Duration::ZERO);
            if let Some(epoch) = &self.epoch {
                epochs.lead_to(EpochKey::from_random(&array(&epoch.key)).unwrap(), Now { wall: 0, mono: 0 });
            }
            Arc::new(epochs)
        }

        fn payload(&self) -> proto::Payload {
            proto::Payload::decode(&unhex(&self.payload)[..]).unwrap()
        }
    }

    #[test]
    fn the_vectors_keys_are_derived_as_documented() {
        for vector in vectors() {
            assert_eq!(vector.secrets().ids().next().unwrap(), array(&vector.secret_id), "{}", vector.name);
            let info = format!("resumed/1|{}|{}", vector.farm, vector.route);
            let mut input = unhex(&vector.secret);
            if let Some(epoch) = &vector.epoch {
                input.extend(unhex(&epoch.key));
                assert_eq!(vector.epochs().current().unwrap().id(), array(&epoch.id), "{}", vector.name);
            }
            let mut key = [0; 32];
            hkdf_sha256(&input, &unhex(&vector.salt), &[info.as_bytes()], &mut key).unwrap();
            assert_eq!(key, array(&vector.key), "{}", vector.name);
        }
    }

    #[test]
    fn the_vectors_are_sealed_byte_for_byte() {
        for vector in vectors() {
            let mut sealer = Sealer::new(vector.secrets(), &vector.farm, array(&vector.salt));
            sealer.skip_to(&vector.route, vector.sequence.parse().unwrap());
            let epochs = vector.epochs();
            let sealed = sealer.seal(epochs.current(), &vector.route, &vector.payload()).unwrap();
            assert_eq!(sealed, unhex(&vector.envelope), "{}", vector.name);
        }
    }

    #[test]
    fn the_vectors_open_byte_for_byte() {
        for vector in vectors() {
            let mut opener = Opener::new(vector.secrets(), &vector.farm, Duration::from_secs(1)).of_anything();
            opener.set_epochs(vector.epochs());
            let payload = vector.payload();
            let now = Now { wall: payload.sent_at, mono: 0 };
            let opened = opener.open(&vector.route, Bytes::from(unhex(&vector.envelope)), now).unwrap();
            assert_eq!(opened.payload, payload, "{}", vector.name);
            assert_eq!(opened.payload.encode_to_vec(), unhex(&vector.payload), "{}", vector.name);
        }
    }
}
