//! What is derived from a farm secret: the AES-256-GCM key of each (salt, route), and how it is used.

use openssl::cipher::Cipher;
use openssl::cipher_ctx::CipherCtx;
use openssl::error::ErrorStack;
use zeroize::Zeroizing;

use super::epoch::EpochKey;
use super::secret::FarmSecret;
use super::wire::{Header, TAG_BYTES};
use crate::hkdf::hkdf_sha256;

/// What the key of one (salt, route) is derived from.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub secret: &'a FarmSecret,
    pub epoch: Option<&'a EpochKey>,
    pub farm: &'a str,
}

impl Source<'_> {
    fn message_key(&self, route: &str, salt: &[u8; 16]) -> Result<Zeroizing<[u8; 32]>, ErrorStack> {
        let mut joined = Zeroizing::new([0; 64]);
        joined[..32].copy_from_slice(self.secret.bytes());
        let input = match self.epoch {
            Some(epoch) => {
                joined[32..].copy_from_slice(epoch.bytes());
                &joined[..]
            }
            None => &joined[..32],
        };
        let mut key = Zeroizing::new([0; 32]);
        hkdf_sha256(input, salt, &[b"resumed/1|", self.farm.as_bytes(), b"|", route.as_bytes()], &mut key[..])?;
        Ok(key)
    }
}

/// Seals messages of one (secret, epoch, salt, route). The expanded key lives in OpenSSL's context, which erases it when it is
/// dropped; the derived bytes are erased as soon as they are in there.
pub(super) struct SealingKey(CipherCtx);

impl SealingKey {
    pub(crate) fn derive(source: Source<'_>, route: &str, salt: &[u8; 16]) -> Result<Self, ErrorStack> {
        let key = source.message_key(route, salt)?;
        let mut context = CipherCtx::new()?;
        context.encrypt_init(Some(Cipher::aes_256_gcm()), Some(&key[..]), None)?;
        Ok(Self(context))
    }

    /// Encrypts `text` in place and returns its tag.
    pub(crate) fn seal(&mut self, header: &Header, text: &mut [u8]) -> Result<[u8; TAG_BYTES], ErrorStack> {
        let mut tag = [0; TAG_BYTES];
        self.0.encrypt_init(None, None, Some(&header.nonce()))?;
        self.0.cipher_update(&header.associated_data(), None)?;
        let bytes = text.len();
        self.0.cipher_update_inplace(text, bytes)?;
        self.0.cipher_final(&mut [])?;
        self.0.tag(&mut tag)?;
        Ok(tag)
    }
}

/// Opens messages of one (secret, epoch, salt, route); otherwise like [`SealingKey`].
pub(super) struct OpeningKey(CipherCtx);

impl OpeningKey {
    pub(crate) fn derive(source: Source<'_>, route: &str, salt: &[u8; 16]) -> Result<Self, ErrorStack> {
        let key = source.message_key(route, salt)?;
        let mut context = CipherCtx::new()?;
        context.decrypt_init(Some(Cipher::aes_256_gcm()), Some(&key[..]), None)?;
        Ok(Self(context))
    }

    /// Decrypts `text` in place and says whether header, text and tag belong together. If not, `text` is garbage.
    pub(crate) fn open(&mut self, header: &Header, text: &mut [u8], tag: &[u8; TAG_BYTES]) -> Result<bool, ErrorStack> {
        self.0.decrypt_init(None, None, Some(&header.nonce()))?;
        self.0.set_tag(tag)?;
        self.0.cipher_update(&header.associated_data(), None)?;
        let bytes = text.len();
        self.0.cipher_update_inplace(text, bytes)?;
        // For GCM the only thing left to fail here is the tag.
        Ok(self.0.cipher_final(&mut []).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::wire::NO_EPOCH;

    #[test]
    fn a_key_works_on_after_it_met_a_bad_tag() {
        let secret = FarmSecret::from_bytes(&[7; 32]).unwrap();
        let header = Header { secret_id: secret.id(), epoch: NO_EPOCH, salt: [1; 16], sequence: 5 };
        let source = Source { secret: &secret, epoch: None, farm: "f" };
        let mut sealing = SealingKey::derive(source, "r", &header.salt).unwrap();
        let mut opening = OpeningKey::derive(source, "r", &header.salt).unwrap();
        let mut sealed = *b"thirty bytes of some plaintext";
        let tag = sealing.seal(&header, &mut sealed).unwrap();

        let mut forged = tag;
        forged[0] ^= 1;
        assert!(!opening.open(&header, &mut sealed.clone(), &forged).unwrap());
        assert!(opening.open(&header, &mut sealed, &tag).unwrap());
        assert_eq!(&sealed, b"thirty bytes of some plaintext");
    }
}
