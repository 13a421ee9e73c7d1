//! Farm secrets: the pre-shared keys that all envelopes of a farm are sealed under.

use std::fmt;

use openssl::error::ErrorStack;
use zeroize::Zeroizing;

use crate::hex::{digit, hex, value};
use crate::hkdf::hkdf_sha256;
use crate::random::NoRandomness;

/// Tells farm secrets apart without revealing them: the first 8 bytes of HKDF-SHA256 (RFC 5869) of the secret, with an
/// empty salt and the info "resumed/1 id".
pub(crate) type SecretId = [u8; 8];

/// How long a secret's text is: 64 hex digits and a newline.
pub(crate) const SECRET_TEXT_BYTES: usize = 65;

/// A farm secret: 32 random bytes. Erased from memory when dropped; `Debug` shows only its id.
pub struct FarmSecret {
    // Boxed, so that moving the secret leaves no copy behind.
    bytes: Box<Zeroizing<[u8; 32]>>,
    id: SecretId,
}

impl FarmSecret {
    /// The secret that consists of `bytes`.
    ///
    /// # Errors
    /// [`SecretError::Library`] if OpenSSL cannot derive its id.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, SecretError> {
        Self::new(Box::new(Zeroizing::new(*bytes)))
    }

    /// The same, without a copy.
    pub(crate) fn new(bytes: Box<Zeroizing<[u8; 32]>>) -> Result<Self, SecretError> {
        let mut id = [0; 8];
        hkdf_sha256(&bytes[..], b"", &[b"resumed/1 id"], &mut id)?;
        Ok(Self { bytes, id })
    }

    /// The secret whose text is `text`: exactly 64 hex digits of either case and a newline. Of a longer text the first 66
    /// bytes are enough to refuse it.
    ///
    /// # Errors
    /// [`SecretError::Text`] if it is anything else, without any of the text; [`SecretError::Library`] if OpenSSL cannot
    /// derive the secret's id.
    pub fn from_text(text: &[u8]) -> Result<Self, SecretError> {
        Self::new(parse(text).map_err(SecretError::Text)?)
    }

    /// The secret in the form that [`FarmSecret::from_text`] takes, in lower case.
    #[must_use]
    pub fn to_text(&self) -> Box<Zeroizing<[u8; SECRET_TEXT_BYTES]>> {
        let mut text = Box::new(Zeroizing::new([b'\n'; SECRET_TEXT_BYTES]));
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.bytes.iter()) {
            pair.copy_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
        }
        text
    }

    /// The secret's id.
    #[must_use]
    pub fn id(&self) -> SecretId {
        self.id
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.bytes
    }
}

impl fmt::Debug for FarmSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FarmSecret").field("id", &hex(&self.id)).finish_non_exhaustive()
    }
}

/// The bytes of a secret's text, or what is wrong with it.
fn parse(text: &[u8]) -> Result<Box<Zeroizing<[u8; 32]>>, String> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    match &text[digits..] {
        _ if text.is_empty() => return Err("is empty".into()),
        [] | [b'\n'] if digits != SECRET_TEXT_BYTES - 1 => {
            let least = if digits > SECRET_TEXT_BYTES { "at least " } else { "" };
            return Err(format!("has {least}{digits} hex digits"));
        }
        [] => return Err("has 64 hex digits but no newline after them".into()),
        [b'\n'] => {}
        [b'\n', ..] => return Err("goes on after the newline".into()),
        _ => return Err(format!("has something other than a hex digit or the newline at byte {}", digits + 1)),
    }
    let mut bytes = Box::new(Zeroizing::new([0; 32]));
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = (value(pair[0]) << 4) | value(pair[1]);
    }
    Ok(bytes)
}

/// The farm secrets that a node knows: at least one, all different. The first seals, all open.
#[derive(Debug)]
pub struct Secrets(Vec<FarmSecret>);

impl Secrets {
    /// A set of `secrets`; the first one seals.
    ///
    /// # Errors
    /// [`SecretError::NoSecret`] if there is none, [`SecretError::Twice`] if one is in it twice.
    pub fn new(secrets: Vec<FarmSecret>) -> Result<Self, SecretError> {
        if secrets.is_empty() {
            return Err(SecretError::NoSecret);
        }
        for (place, secret) in secrets.iter().enumerate() {
            if secrets[..place].iter().any(|earlier| earlier.id == secret.id) {
                return Err(SecretError::Twice { id: hex(&secret.id) });
            }
        }
        Ok(Self(secrets))
    }

    /// The ids of all secrets in the set, the one that seals first.
    pub fn ids(&self) -> impl Iterator<Item = SecretId> + '_ {
        self.0.iter().map(FarmSecret::id)
    }

    /// The secret that seals.
    pub(super) fn sealing(&self) -> &FarmSecret {
        &self.0[0]
    }

    /// The secret called `id`.
    pub(super) fn get(&self, id: SecretId) -> Option<&FarmSecret> {
        self.0.iter().find(|secret| secret.id == id)
    }
}

/// What is wrong with a farm secret, its text, or a set of them.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// A text is no secret's: what is wrong with it, without any of it.
    #[error(
        "farm secret: its text {0}; it must be exactly 64 hex digits and a newline, as `resumed secret new` writes it"
    )]
    Text(String),
    /// A secret is in a set twice.
    #[error("farm secret {id} is given twice; each may be configured once")]
    Twice {
        /// Its id, 16 hex digits.
        id: String,
    },
    /// A set is empty.
    #[error("no farm secret is given; at least one is needed")]
    NoSecret,
    /// OpenSSL failed.
    #[error("farm secret: OpenSSL failed: {0}")]
    Library(#[from] ErrorStack),
    /// There are no random bytes for a new secret.
    #[error("farm secret: {0}")]
    Randomness(#[from] NoRandomness),
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    #[test]
    fn a_text_is_64_hex_digits_and_a_newline() {
        let expected: Vec<u8> = (0..32).collect();
        for text in [format!("{HEX}\n"), format!("{}\n", HEX.to_uppercase())] {
            let secret = FarmSecret::from_text(text.as_bytes()).unwrap();
            assert_eq!(secret.bytes()[..], expected[..]);
            assert_eq!(secret.to_text()[..], *format!("{HEX}\n").as_bytes());
        }
    }

    #[test]
    fn any_other_text_is_refused_and_not_quoted() {
        let cases = [
            ("", "is empty"),
            ("\n", "has 0 hex digits"),
            (HEX, "has 64 hex digits but no newline after them"),
            (&HEX[1..], "has 63 hex digits"),
            (&format!("{}\n", &HEX[1..]), "has 63 hex digits"),
            (&format!("{HEX}0\n"), "has 65 hex digits"),
            (&format!("{HEX}00"), "has at least 66 hex digits"),
            (&format!("{HEX}\r\n"), "has something other than a hex digit or the newline at byte 65"),
            (&format!("{HEX}\n\n"), "goes on after the newline"),
            (&format!(" {HEX}\n"), "has something other than a hex digit or the newline at byte 1"),
            (&format!("{}g\n", &HEX[1..]), "has something other than a hex digit or the newline at byte 64"),
            (&format!("{HEX} # prod\n"), "has something other than a hex digit or the newline at byte 65"),
        ];
        for (text, found) in cases {
            let error = FarmSecret::from_text(text.as_bytes()).unwrap_err();
            assert!(matches!(&error, SecretError::Text(said) if said == found), "{error} for {text:?}");
        }
    }

    #[test]
    fn debug_shows_the_id_and_nothing_else() {
        let secret = FarmSecret::from_bytes(&[0xa5; 32]).unwrap();
        let expected = format!("FarmSecret {{ id: \"{}\", .. }}", hex(&secret.id()));
        assert_eq!(format!("{secret:?}"), expected);
        assert!(!expected.contains("a5a5") && !expected.contains("165"));
    }

    #[test]
    fn a_set_holds_each_secret_once_and_keeps_their_order() {
        let secret = |byte| FarmSecret::from_bytes(&[byte; 32]).unwrap();
        assert!(matches!(Secrets::new(vec![]), Err(SecretError::NoSecret)));
        assert!(matches!(Secrets::new(vec![secret(1), secret(2), secret(1)]), Err(SecretError::Twice { .. })));
        let secrets = Secrets::new(vec![secret(2), secret(1)]).unwrap();
        assert_eq!(secrets.ids().collect::<Vec<_>>(), [secret(2).id(), secret(1).id()]);
        assert_eq!(secrets.sealing().id(), secret(2).id());
    }
}
