//! HKDF-SHA256, by OpenSSL: how keys come from secrets, and random bytes from their sources.

use openssl::error::ErrorStack;
use openssl::md::Md;
use openssl::pkey::Id;
use openssl::pkey_ctx::{HkdfMode, PkeyCtx};

/// The most bytes that one call gives: 255 digests (RFC 5869 section 2.3).
pub(crate) const MOST_BYTES: usize = 255 * 32;

/// HKDF-SHA256 (RFC 5869), extract and expand. `info` is the concatenation of its parts.
pub(crate) fn hkdf_sha256(secret: &[u8], salt: &[u8], info: &[&[u8]], out: &mut [u8]) -> Result<(), ErrorStack> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hex::hex;

    /// Input keying material, salt, info, and the output in hex.
    type Case = (Vec<u8>, Vec<u8>, Vec<u8>, &'static str);

    fn bytes(range: std::ops::RangeInclusive<u8>) -> Vec<u8> {
        range.collect()
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
}
