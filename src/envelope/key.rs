//! What is derived from a farm secret: the AES-256-GCM key of each (salt, route), and how it is used.

use openssl::cipher::Cipher;
use openssl::cipher_ctx::CipherCtx;
use openssl::error::ErrorStack;
use openssl::md::Md;
use openssl::pkey::Id;
use openssl::pkey_ctx::{HkdfMode, PkeyCtx};
use zeroize::Zeroizing;

use super::epoch::EpochKey;
use super::secret::FarmSecret;
use super::wire::{Header, TAG_BYTES};

/// HKDF-SHA256 (RFC 5869), extract and expand. `info` is the concatenation of its parts.
pub(super) fn hkdf_sha256(secret: &[u8], salt: &[u8], info: &[&[u8]], out: &mut [u8]) -> Result<(), ErrorStack> {
    let mut hkdf = PkeyCtx::new_id(Id::HKDF)?;
    hkdf.derive_init()?;
    hkdf.set_hkdf_mode(HkdfMode::EXTRACT_THEN_EXPAND)?;
    hkdf.set_hkdf_md(Md::sha256())?;
    hkdf.set_hkdf_key(secret)?;
    hkdf.set_hkdf_salt(salt)?;
    for part in info {
        hkdf.add_hkdf_info(part)?;
    }
    hkdf.derive(Some(out))?;
    Ok(())
}

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
    pub fn derive(source: Source<'_>, route: &str, salt: &[u8; 16]) -> Result<Self, ErrorStack> {
        let key = source.message_key(route, salt)?;
        let mut context = CipherCtx::new()?;
        context.encrypt_init(Some(Cipher::aes_256_gcm()), Some(&key[..]), None)?;
        Ok(Self(context))
    }

    /// Encrypts `text` in place and returns its tag.
    pub fn seal(&mut self, header: &Header, text: &mut [u8]) -> Result<[u8; TAG_BYTES], ErrorStack> {
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
    pub fn derive(source: Source<'_>, route: &str, salt: &[u8; 16]) -> Result<Self, ErrorStack> {
        let key = source.message_key(route, salt)?;
        let mut context = CipherCtx::new()?;
        context.decrypt_init(Some(Cipher::aes_256_gcm()), Some(&key[..]), None)?;
        Ok(Self(context))
    }

    /// Decrypts `text` in place and says whether header, text and tag belong together. If not, `text` is garbage.
    pub fn open(&mut self, header: &Header, text: &mut [u8], tag: &[u8; TAG_BYTES]) -> Result<bool, ErrorStack> {
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

    /// Input keying material, salt, info, and the output in hex.
    type Case = (Vec<u8>, Vec<u8>, Vec<u8>, &'static str);

    fn bytes(range: std::ops::RangeInclusive<u8>) -> Vec<u8> {
        range.collect()
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn hkdf_gives_the_answers_of_rfc_5869() {
        // Appendix A.1 to A.3: basic, long inputs, and neither salt nor info.
        let cases: [Case; 3] = [
            (
                vec![0x0b; 22],
                bytes(0..=0x0c),
                bytes(0xf0..=0xf9),
                "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
            ),
            (
                bytes(0..=0x4f),
                bytes(0x60..=0xaf),
                bytes(0xb0..=0xff),
                "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c\
                 59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9aca3db71\
                 cc30c58179ec3e87c14c01d5c1f3434f1d87",
            ),
            (
                vec![0x0b; 22],
                vec![],
                vec![],
                "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
            ),
        ];
        for (secret, salt, info, expected) in cases {
            let mut out = vec![0; expected.len() / 2];
            let (front, back) = info.split_at(info.len() / 2);
            hkdf_sha256(&secret, &salt, &[front, back], &mut out).unwrap();
            assert_eq!(hex(&out), expected);
        }
    }

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
