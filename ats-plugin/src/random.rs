//! Random bytes for ticket keys of the plugin's own.
//!
//! OpenSSL's generator keeps its state in memory, which two machines that were restored from one snapshot have in common.
//! So, as in the daemon, each draw mixes the kernel's bytes, OpenSSL's, both clocks in nanoseconds and the number of the
//! draw by HKDF-SHA256: it repeats only if all of them do, and is as good as the best of them.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use zeroize::Zeroizing;

use crate::api;

/// What one draw is made of.
struct Drawn {
    kernel: Zeroizing<[u8; 32]>,
    openssl: Zeroizing<[u8; 32]>,
    /// Nanoseconds since the Unix epoch.
    wall: u128,
    /// Nanoseconds since the first draw.
    mono: u128,
    number: u64,
}

impl Drawn {
    fn now() -> Result<Self, &'static str> {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        static DRAWN: AtomicU64 = AtomicU64::new(0);
        let (mut kernel, mut openssl) = (Zeroizing::new([0; 32]), Zeroizing::new([0; 32]));
        if !api::kernel_random(&mut kernel) {
            return Err("the kernel has no random bytes");
        }
        if !api::openssl_random(&mut openssl) {
            return Err("OpenSSL has no random bytes");
        }
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let (mono, number) = (START.elapsed().as_nanos(), DRAWN.fetch_add(1, Ordering::Relaxed));
        Ok(Self { kernel, openssl, wall, mono, number })
    }

    fn mix(&self, out: &mut [u8]) -> Result<(), &'static str> {
        let mut joined = Zeroizing::new([0; 104]);
        joined[..32].copy_from_slice(&self.kernel[..]);
        joined[32..64].copy_from_slice(&self.openssl[..]);
        joined[64..80].copy_from_slice(&self.wall.to_be_bytes());
        joined[80..96].copy_from_slice(&self.mono.to_be_bytes());
        joined[96..].copy_from_slice(&self.number.to_be_bytes());
        if api::hkdf_sha256(&joined[..], b"resumed/1 random", out) { Ok(()) } else { Err("OpenSSL has no HKDF") }
    }
}

/// Fills `bytes`, at most 8,160, with random ones. The error says which source has none; what is in `bytes` then is not
/// random.
pub(crate) fn fill(bytes: &mut [u8]) -> Result<(), &'static str> {
    Drawn::now()?.mix(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn drawn(kernel: u8, openssl: u8, wall: u128, mono: u128, number: u64) -> [u8; 48] {
        let (kernel, openssl) = (Zeroizing::new([kernel; 32]), Zeroizing::new([openssl; 32]));
        let mut out = [0; 48];
        Drawn { kernel, openssl, wall, mono, number }.mix(&mut out).unwrap();
        out
    }

    #[test]
    fn one_source_that_differs_is_enough() {
        let draws = [
            drawn(0, 0, 0, 0, 0),
            drawn(1, 0, 0, 0, 0),
            drawn(0, 1, 0, 0, 0),
            drawn(0, 0, 1, 0, 0),
            drawn(0, 0, 0, 1, 0),
            drawn(0, 0, 0, 0, 1),
        ];
        assert_eq!(HashSet::from(draws).len(), 6);
        assert_eq!(drawn(1, 2, 3, 4, 5), drawn(1, 2, 3, 4, 5), "it is the sources alone that count");
    }

    #[test]
    fn bytes_come_from_the_kernel_and_from_openssl() {
        let (one, other) = (Drawn::now().unwrap(), Drawn::now().unwrap());
        assert_ne!(one.kernel, other.kernel);
        assert_ne!(one.openssl, other.openssl);
        assert!(other.number > one.number && other.mono >= one.mono && one.wall > 1_700_000_000_000_000_000);
        let (mut first, mut second) = ([0; 48], [0; 48]);
        fill(&mut first).unwrap();
        fill(&mut second).unwrap();
        assert_ne!(first, second);
    }

    /// RFC 5869, appendix A.3: neither salt nor info.
    #[test]
    fn hkdf_gives_the_answer_of_rfc_5869() {
        let mut out = [0; 42];
        assert!(api::hkdf_sha256(&[0x0b; 22], b"", &mut out));
        let hex: String = out.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8");
    }
}
