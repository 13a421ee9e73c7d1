//! The session ID that a TLS server chose.

use std::fmt;

use super::SessionFault;
use crate::hex::hex;

/// A session ID (RFC 5246 section 7.4.1.2): 1 to 32 bytes, kept inline.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionId {
    // Bytes past `length` are zero, so that the derived comparisons are right.
    bytes: [u8; SessionId::MAX],
    length: u8,
}

impl SessionId {
    /// The longest session ID, in bytes.
    pub(crate) const MAX: usize = 32;

    /// The ID's 1 to 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl TryFrom<&[u8]> for SessionId {
    type Error = SessionFault;

    /// # Errors
    /// [`SessionFault::BadId`] unless `id` has 1 to 32 bytes.
    fn try_from(id: &[u8]) -> Result<Self, SessionFault> {
        let bad = SessionFault::BadId { length: id.len() };
        let length = u8::try_from(id.len()).map_err(|_| bad)?;
        if id.is_empty() || id.len() > Self::MAX {
            return Err(bad);
        }
        let mut bytes = [0; Self::MAX];
        bytes[..id.len()].copy_from_slice(id);
        Ok(Self { bytes, length })
    }
}

/// The first four bytes only: enough to follow one session through a log, too little to look it up with.
impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shown, rest) = self.as_bytes().split_at(self.as_bytes().len().min(4));
        write!(f, "SessionId({}{})", hex(shown), if rest.is_empty() { "" } else { "…" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_1_to_32_bytes() {
        for length in [1, 4, 31, 32] {
            let bytes = vec![7; length];
            assert_eq!(SessionId::try_from(&bytes[..]).unwrap().as_bytes(), bytes);
        }
        for length in [0, 33, 256, 257] {
            assert_eq!(
                SessionId::try_from(&vec![7; length][..]).unwrap_err(),
                SessionFault::BadId { length },
                "{length} bytes"
            );
        }
    }

    #[test]
    fn ids_that_differ_only_by_trailing_zeros_differ() {
        let short = SessionId::try_from(&[1, 2][..]).unwrap();
        let long = SessionId::try_from(&[1, 2, 0][..]).unwrap();
        assert_ne!(short, long);
    }

    #[test]
    fn debug_shows_a_prefix_only() {
        let id = SessionId::try_from(&[0xab; 32][..]).unwrap();
        assert_eq!(format!("{id:?}"), "SessionId(abababab…)");
        assert_eq!(format!("{:?}", SessionId::try_from(&[1][..]).unwrap()), "SessionId(01)");
    }
}
