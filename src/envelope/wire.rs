//! The envelope's bytes: header, associated data, and what a payload must say about its sender.

use bytes::{BufMut, Bytes};
use prost::Message;

use super::secret::SecretId;
use crate::proto;
use crate::proto::limits::decode_within;

/// The most bytes of one envelope on the broker, header and tag included.
pub(crate) const MAX_ENVELOPE_BYTES: usize = 1024 * 1024;

/// The version of the format that this release writes and reads.
pub(super) const VERSION: u32 = 1;
/// No epoch key: the farm secret alone.
pub(super) const NO_EPOCH: [u8; 8] = [0; 8];
/// AES-GCM's tag, in bytes.
pub(super) const TAG_BYTES: usize = 16;

/// Protobuf's key of the `ciphertext` field: number 6, length-delimited.
const CIPHERTEXT_KEY: u8 = (6 << 3) | 2;

/// Whether `name` can be a node's name: 1 to 128 bytes of printable ASCII without blanks, as the settings take it. It ends up in queue names, logs, terminals and
/// metrics of other hosts, so nothing that could act there is let through.
#[must_use]
pub fn is_node_name(name: &str) -> bool {
    (1..=128).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The field of `payload` that says something impossible about its sender, if any.
pub(super) fn payload_fault(payload: &proto::Payload) -> Option<&'static str> {
    if !is_node_name(&payload.node) {
        return Some("node");
    }
    (payload.boot_id.len() != 16).then_some("boot_id")
}

/// What an envelope says in the clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub secret_id: SecretId,
    pub epoch: [u8; 8],
    pub salt: [u8; 16],
    pub sequence: u64,
}

impl Header {
    /// The associated data: every field in order, preceded by its length. Its layout is part of the format.
    pub(crate) fn associated_data(&self) -> [u8; 64] {
        let mut data = [0; 64];
        let mut rest = &mut data[..];
        let version = VERSION.to_be_bytes();
        let sequence = self.sequence.to_be_bytes();
        for field in [&version[..], &self.secret_id, &self.epoch, &self.salt, &sequence] {
            rest.put_u32(u32::try_from(field.len()).expect("header fields are at most 16 bytes"));
            rest.put_slice(field);
        }
        debug_assert!(rest.is_empty());
        data
    }

    /// The sequence as AES-GCM's nonce: 96 bits, big endian.
    pub(crate) fn nonce(&self) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&self.sequence.to_be_bytes());
        nonce
    }

    /// Everything that precedes a ciphertext of `ciphertext_bytes` (tag included) in the canonical encoding.
    pub(crate) fn encode(&self, ciphertext_bytes: usize) -> Vec<u8> {
        let header = proto::Envelope {
            version: VERSION,
            secret_id: Bytes::copy_from_slice(&self.secret_id),
            epoch: Bytes::copy_from_slice(&self.epoch),
            salt: Bytes::copy_from_slice(&self.salt),
            sequence: self.sequence,
            ciphertext: Bytes::new(),
        };
        let mut out = Vec::with_capacity(64);
        header.encode(&mut out).expect("a Vec grows");
        out.put_u8(CIPHERTEXT_KEY);
        prost::encode_length_delimiter(ciphertext_bytes, &mut out).expect("a Vec grows");
        out
    }

    /// Takes an envelope apart: its header and where the ciphertext begins; it reaches to the end of `body`.
    ///
    /// The error names the field at fault.
    pub(crate) fn decode(body: &Bytes) -> Result<(Self, usize), &'static str> {
        let envelope: proto::Envelope = decode_within(body.clone(), &proto::ENVELOPE).map_err(|_| "encoding")?;
        if envelope.version != VERSION {
            return Err("version");
        }
        let header = Self {
            secret_id: exactly(&envelope.secret_id).ok_or("secret_id")?,
            epoch: exactly(&envelope.epoch).ok_or("epoch")?,
            salt: exactly(&envelope.salt).ok_or("salt")?,
            sequence: envelope.sequence,
        };
        let ciphertext_bytes = envelope.ciphertext.len();
        if ciphertext_bytes < TAG_BYTES {
            return Err("ciphertext");
        }
        // Bytes that no check covers would let anybody make a second envelope out of one.
        let start = body.len() - ciphertext_bytes;
        if body[..start] != header.encode(ciphertext_bytes) {
            return Err("encoding");
        }
        Ok((header, start))
    }
}

fn exactly<const N: usize>(field: &Bytes) -> Option<[u8; N]> {
    field.as_ref().try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header =
        Header { secret_id: [1; 8], epoch: NO_EPOCH, salt: [2; 16], sequence: 0x0102_0304_0506_0708 };

    fn envelope() -> proto::Envelope {
        proto::Envelope {
            version: 1,
            secret_id: Bytes::from_static(&[1; 8]),
            epoch: Bytes::from_static(&[0; 8]),
            salt: Bytes::from_static(&[2; 16]),
            sequence: HEADER.sequence,
            ciphertext: Bytes::from_static(&[3; 20]),
        }
    }

    fn decode(envelope: &proto::Envelope) -> Result<(Header, usize), &'static str> {
        Header::decode(&Bytes::from(envelope.encode_to_vec()))
    }

    #[test]
    fn the_associated_data_is_every_field_behind_its_length() {
        let mut expected = vec![0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 8];
        expected.extend([1; 8]);
        expected.extend([0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16]);
        expected.extend([2; 16]);
        expected.extend([0, 0, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(HEADER.associated_data()[..], expected[..]);
    }

    #[test]
    fn the_nonce_is_the_sequence_as_96_bits() {
        assert_eq!(HEADER.nonce(), [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn a_header_encodes_as_protobuf_does() {
        for sequence in [0, 1, 300, u64::MAX] {
            let header = Header { sequence, ..HEADER };
            let body = Bytes::from(proto::Envelope { sequence, ..envelope() }.encode_to_vec());
            let (decoded, start) = Header::decode(&body).unwrap();
            assert_eq!(decoded, header);
            assert_eq!(header.encode(20), &body[..start]);
            assert_eq!(body[start..], [3; 20]);
        }
    }

    #[test]
    fn every_field_has_its_exact_length() {
        let short = || Bytes::from_static(&[0; 7]);
        let long = || Bytes::from_static(&[0; 17]);
        let cases = [
            ("version", proto::Envelope { version: 0, ..envelope() }),
            ("version", proto::Envelope { version: 2, ..envelope() }),
            ("secret_id", proto::Envelope { secret_id: Bytes::new(), ..envelope() }),
            ("secret_id", proto::Envelope { secret_id: short(), ..envelope() }),
            ("secret_id", proto::Envelope { secret_id: long(), ..envelope() }),
            ("epoch", proto::Envelope { epoch: Bytes::new(), ..envelope() }),
            ("epoch", proto::Envelope { epoch: short(), ..envelope() }),
            ("epoch", proto::Envelope { epoch: long(), ..envelope() }),
            ("salt", proto::Envelope { salt: Bytes::new(), ..envelope() }),
            ("salt", proto::Envelope { salt: long(), ..envelope() }),
            ("ciphertext", proto::Envelope { ciphertext: Bytes::new(), ..envelope() }),
            ("ciphertext", proto::Envelope { ciphertext: Bytes::from_static(&[3; 15]), ..envelope() }),
        ];
        for (field, envelope) in cases {
            assert_eq!(decode(&envelope), Err(field), "{envelope:?}");
        }
    }

    #[test]
    fn only_the_canonical_encoding_is_read() {
        let body = envelope().encode_to_vec();
        assert!(Header::decode(&Bytes::from(body.clone())).is_ok());

        let unknown_field_behind = [&body[..], &[7 << 3, 1]].concat();
        let unknown_field_before = [&[7 << 3, 1], &body[..]].concat();
        let version_twice = [&[1 << 3, 1], &body[..]].concat();
        let long_varint = [&[1 << 3, 0x81, 0], &body[2..]].concat();
        let truncated = body[..body.len() - 1].to_vec();
        let explicit_zero = {
            let zero = proto::Envelope { sequence: 0, ..envelope() }.encode_to_vec();
            let ciphertext = zero.len() - 22;
            [&zero[..ciphertext], &[5 << 3, 0], &zero[ciphertext..]].concat()
        };
        for (what, altered) in [
            ("unknown field behind", unknown_field_behind),
            ("unknown field before", unknown_field_before),
            ("version twice", version_twice),
            ("long varint", long_varint),
            ("truncated", truncated),
            ("explicit zero", explicit_zero),
            ("not protobuf", b"not protobuf at all".to_vec()),
        ] {
            assert_eq!(Header::decode(&Bytes::from(altered)), Err("encoding"), "{what}");
        }
        assert_eq!(Header::decode(&Bytes::new()), Err("version"), "empty");
    }

    #[test]
    fn a_node_name_is_short_and_printable() {
        for good in ["a", "edge-1.example.net", "rack!~7", &"n".repeat(128)] {
            assert!(is_node_name(good), "{good:?}");
        }
        for bad in ["", "rack 7", "a\n", "\u{1b}[31m", "z\u{fc}rich", "\u{202e}evil", "a\u{7f}", &"n".repeat(129)] {
            assert!(!is_node_name(bad), "{bad:?}");
        }
    }
}
