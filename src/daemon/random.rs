//! Randomness for jitter, identifiers, salts and keys, from OpenSSL.

/// `N` random bytes.
///
/// # Panics
/// If the system has no randomness: nothing in this daemon would be safe then.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fill(&mut bytes);
    bytes
}

/// Fills `bytes` with random ones.
///
/// # Panics
/// As [`random`].
pub fn fill(bytes: &mut [u8]) {
    openssl::rand::rand_bytes(bytes).expect("the system's random source works");
}
