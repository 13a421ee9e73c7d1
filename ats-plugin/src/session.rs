//! Session IDs, and what the plugin reads of a session itself.

use std::fmt;

/// ATS 9 and 10 keep no session of more DER than this (`SSL_MAX_SESSION_SIZE`): they drop it without a word.
pub const LARGEST_FOR_ATS: usize = 256;

/// The length of a TLS 1.2 master secret (RFC 5246 section 8.1).
pub const MASTER_KEY_BYTES: usize = 48;

/// An RFC 5246 session ID of 1 to 32 bytes.
#[derive(Clone, Copy)]
pub struct SessionId {
    len: u8,
    bytes: [u8; 32],
}

impl SessionId {
    /// None if `id` is empty or longer than 32 bytes.
    pub fn new(id: &[u8]) -> Option<Self> {
        if id.is_empty() || id.len() > 32 {
            return None;
        }
        let mut bytes = [0; 32];
        bytes[..id.len()].copy_from_slice(id);
        Some(Self { len: u8::try_from(id.len()).ok()?, bytes })
    }

    /// The ID's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.as_bytes().iter().take(4) {
            write!(f, "{byte:02x}")?;
        }
        f.write_str("…")
    }
}

/// When a session expires, in seconds since the Unix epoch, as far as its DER tells and if its ID is `id`.
///
/// Reads only as far as time and timeout; on the way to ATS OpenSSL decodes the whole session. The layout is that of
/// `i2d_SSL_SESSION`: SEQUENCE { version, SSL version, cipher, session ID, master key, …, [1] time, [2] timeout, … }.
pub fn expiry(der: &[u8], id: &SessionId) -> Option<u64> {
    lifetime(der, id).and_then(|(time, timeout)| time.checked_add(timeout))
}

/// Whether the session was created before `from`, UTC milliseconds. A session knows the second of its creation and no more: one of
/// the second in which `from` lies counts as older, and so does one that cannot be read.
pub fn is_older(der: &[u8], id: &SessionId, from: u64) -> bool {
    lifetime(der, id).is_none_or(|(time, _)| time.saturating_mul(1000) < from)
}

/// The master secret of the session; none unless its ID is `id`.
pub fn master_key<'a>(der: &'a [u8], id: &SessionId) -> Option<&'a [u8]> {
    key_and_rest(der, id).map(|(key, _)| key)
}

/// The master secret, and the fields behind it.
fn key_and_rest<'a>(der: &'a [u8], id: &SessionId) -> Option<(&'a [u8], &'a [u8])> {
    const INTEGER: u8 = 0x02;
    const OCTET_STRING: u8 = 0x04;
    const SEQUENCE: u8 = 0x30;

    let (SEQUENCE, fields, []) = element(der)? else { return None };
    let (INTEGER, _, fields) = element(fields)? else { return None };
    let (INTEGER, _, fields) = element(fields)? else { return None };
    let (OCTET_STRING, _, fields) = element(fields)? else { return None };
    let (OCTET_STRING, own_id, fields) = element(fields)? else { return None };
    let (OCTET_STRING, key, fields) = element(fields)? else { return None };
    (own_id == id.as_bytes()).then_some((key, fields))
}

/// When it was created, in seconds since the Unix epoch, and for how many seconds.
fn lifetime(der: &[u8], id: &SessionId) -> Option<(u64, u64)> {
    const TIME: u8 = 0xa1;
    const TIMEOUT: u8 = 0xa2;

    let (_, mut fields) = key_and_rest(der, id)?;
    let (mut time, mut timeout) = (None, None);
    while time.is_none() || timeout.is_none() {
        let (tag, content, rest) = element(fields)?;
        match tag {
            TIME => time = Some(integer(content)?),
            TIMEOUT => timeout = Some(integer(content)?),
            _ => {}
        }
        fields = rest;
    }
    Some((time?, timeout?))
}

/// The tag, the content and what follows the first DER element of `bytes`. Lengths of up to 64 KiB.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, length], rest) = bytes.split_first_chunk()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(length), rest),
        0x81 => {
            let (&[length], rest) = rest.split_first_chunk()?;
            (usize::from(length), rest)
        }
        0x82 => {
            let (&length, rest) = rest.split_first_chunk()?;
            (usize::from(u16::from_be_bytes(length)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// The non-negative INTEGER that an explicit tag holds.
fn integer(explicit: &[u8]) -> Option<u64> {
    let (0x02, digits, []) = element(explicit)? else { return None };
    if digits.is_empty() || digits.len() > 9 || digits[0] & 0x80 != 0 {
        return None;
    }
    digits.iter().try_fold(0u64, |sum, digit| sum.checked_mul(256)?.checked_add(u64::from(*digit)))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A session as OpenSSL lays it out, with `id`, made at `time`, for `timeout` seconds.
    pub(crate) fn der(id: &[u8], time: u32, timeout: u32) -> Vec<u8> {
        fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
            let mut all = vec![tag];
            if content.len() > 0x7f {
                all.push(0x81);
            }
            all.push(u8::try_from(content.len()).unwrap());
            all.extend_from_slice(content);
            all
        }
        fn number(value: u32) -> Vec<u8> {
            let mut digits = vec![0];
            digits.extend_from_slice(&value.to_be_bytes());
            tlv(0x02, &digits)
        }
        let fields = [
            tlv(0x02, &[1]),
            tlv(0x02, &[3, 3]),
            tlv(0x04, &[0xc0, 0x30]),
            tlv(0x04, id),
            tlv(0x04, &[7; 48]),
            tlv(0xa1, &number(time)),
            tlv(0xa2, &number(timeout)),
            tlv(0xa4, &tlv(0x04, b"context")),
        ];
        tlv(0x30, &fields.concat())
    }

    #[test]
    fn a_session_expires_its_timeout_after_its_time() {
        let id = SessionId::new(&[9; 32]).unwrap();
        assert_eq!(expiry(&der(&[9; 32], 1_700_000_000, 7200), &id), Some(1_700_007_200));
        assert_eq!(expiry(&der(&[9; 32], u32::MAX, u32::MAX), &id), Some(u64::from(u32::MAX) * 2));
    }

    #[test]
    fn the_master_secret_is_that_of_the_id() {
        let id = SessionId::new(&[9; 32]).unwrap();
        assert_eq!(master_key(&der(&[9; 32], 1, 1), &id), Some(&[7; MASTER_KEY_BYTES][..]));
        assert_eq!(master_key(&der(&[8; 32], 1, 1), &id), None);
        assert_eq!(master_key(b"no session", &id), None);
    }

    #[test]
    fn a_session_of_the_second_in_which_the_floor_lies_is_older() {
        let id = SessionId::new(&[9; 32]).unwrap();
        let session = der(&[9; 32], 1_700_000_000, 7200);
        assert!(!is_older(&session, &id, 1_700_000_000_000));
        assert!(is_older(&session, &id, 1_700_000_000_001));
        assert!(is_older(b"no session", &id, 1));
    }

    #[test]
    fn a_session_under_a_foreign_id_is_refused() {
        assert_eq!(expiry(&der(&[9; 32], 1, 1), &SessionId::new(&[8; 32]).unwrap()), None);
    }

    #[test]
    fn a_session_cut_or_prolonged_anywhere_is_refused() {
        let id = SessionId::new(&[9; 32]).unwrap();
        let mut whole = der(&[9; 32], 1_700_000_000, 7200);
        for len in 0..whole.len() {
            assert_eq!(expiry(&whole[..len], &id), None, "cut to {len}");
        }
        whole.push(0);
        assert_eq!(expiry(&whole, &id), None);
    }

    #[test]
    fn an_id_has_1_to_32_bytes() {
        assert!(SessionId::new(&[]).is_none());
        assert!(SessionId::new(&[0; 33]).is_none());
        assert_eq!(SessionId::new(&[1, 2]).unwrap().as_bytes(), [1, 2]);
    }
}
