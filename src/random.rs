//! Where every random byte of the daemon comes from: salts, nonces, boot ids, keys, jitter.
//!
//! What decides is handed a [`Randomness`]. In the daemon that is [`system`]; a test hands in a seed's.
//!
//! # What it relies on
//!
//! A virtual machine that is restored from a snapshot, or that is one of several clones of a running one, goes on with
//! what its memory held then: so does the generator of OpenSSL, which starts anew on a new process id, hourly, and after
//! 2^16 draws, but not when a machine is resumed. Two runs of one snapshot would draw the same bytes. So each draw is
//!
//! ```text
//! HKDF-SHA256(getrandom(32) || RAND_bytes(32) || wall clock || monotonic clock || number of the draw)
//! ```
//!
//! with both clocks in nanoseconds. It is as good as the best of its sources: one that an attacker knows, or that
//! repeats, takes nothing from it. Two runs draw the same only if **all** of them repeat.
//!
//! - The kernel's bytes differ where it knows that the machine was restored: Linux 5.18 and later, with a hypervisor that
//!   offers the VM Generation ID (QEMU, Hyper-V, VMware, Firecracker and others do).
//! - Elsewhere they differ once the kernel has taken in new entropy, which may be minutes later. Until then it is the time
//!   that tells the two runs apart: they would have to draw in the same nanosecond of both clocks.

use std::sync::atomic::{AtomicU64, Ordering};

use openssl::error::ErrorStack;
use zeroize::Zeroizing;

use crate::clock::Nanoseconds;
use crate::hkdf::{MOST_BYTES, hkdf_sha256};

/// A source of random bytes, handed to what decides: the host's in the daemon, a seed's in a test.
pub type Randomness = Box<dyn FnMut(&mut [u8]) + Send>;

/// What the sources give for one draw.
const SOURCE_BYTES: usize = 32;

/// What a draw is made of.
pub(crate) trait Sources {
    /// Bytes of the kernel's generator.
    ///
    /// # Errors
    /// If it has none to give.
    fn kernel(&self, bytes: &mut [u8; SOURCE_BYTES]) -> Result<(), NoRandomness>;

    /// Bytes of OpenSSL's generator.
    ///
    /// # Errors
    /// If it has none to give.
    fn openssl(&self, bytes: &mut [u8; SOURCE_BYTES]) -> Result<(), NoRandomness>;

    /// Both clocks.
    fn time(&self) -> Nanoseconds;
}

/// The sources of this host.
pub(crate) struct ThisHost;

impl Sources for ThisHost {
    /// `getrandom(2)`; waits, early at boot, until the kernel has enough entropy.
    fn kernel(&self, bytes: &mut [u8; SOURCE_BYTES]) -> Result<(), NoRandomness> {
        getrandom::fill(bytes).map_err(|error| NoRandomness::Kernel(error.to_string()))
    }

    fn openssl(&self, bytes: &mut [u8; SOURCE_BYTES]) -> Result<(), NoRandomness> {
        openssl::rand::rand_bytes(bytes).map_err(NoRandomness::Library)
    }

    fn time(&self) -> Nanoseconds {
        Nanoseconds::now()
    }
}

/// Why there are no random bytes.
#[derive(Debug, thiserror::Error)]
pub enum NoRandomness {
    /// The kernel gives none.
    #[error("no randomness from the kernel: {0}")]
    Kernel(
        /// What it said.
        String,
    ),
    /// OpenSSL gives none, or cannot mix them.
    #[error("no randomness from OpenSSL: {0}")]
    Library(
        /// What it said.
        #[source]
        ErrorStack,
    ),
}

/// Draws from all of its sources at once.
pub(crate) struct Mixed<S> {
    sources: S,
    drawn: AtomicU64,
}

impl<S: Sources> Mixed<S> {
    /// Draws from `sources`.
    pub(crate) const fn of(sources: S) -> Self {
        Self { sources, drawn: AtomicU64::new(0) }
    }

    /// Fills `bytes` with random ones.
    ///
    /// # Errors
    /// If a source fails. What is in `bytes` then is not random.
    pub(crate) fn try_fill(&self, bytes: &mut [u8]) -> Result<(), NoRandomness> {
        bytes.chunks_mut(MOST_BYTES).try_for_each(|some| self.draw(some))
    }

    fn draw(&self, out: &mut [u8]) -> Result<(), NoRandomness> {
        let (mut kernel, mut openssl) = (Zeroizing::new([0; SOURCE_BYTES]), Zeroizing::new([0; SOURCE_BYTES]));
        self.sources.kernel(&mut kernel)?;
        self.sources.openssl(&mut openssl)?;
        let time = self.sources.time();
        let number = self.drawn.fetch_add(1, Ordering::Relaxed);
        // Each part has a fixed length, so different parts never join to the same whole.
        let mut joined = Zeroizing::new([0; 2 * SOURCE_BYTES + 40]);
        joined[..32].copy_from_slice(&kernel[..]);
        joined[32..64].copy_from_slice(&openssl[..]);
        joined[64..80].copy_from_slice(&time.wall.to_be_bytes());
        joined[80..96].copy_from_slice(&time.mono.to_be_bytes());
        joined[96..].copy_from_slice(&number.to_be_bytes());
        hkdf_sha256(&joined[..], b"", &[b"resumed/1 random"], out).map_err(NoRandomness::Library)
    }
}

static HOST: Mixed<ThisHost> = Mixed::of(ThisHost);

/// Fills `bytes` with random ones of this host.
///
/// # Errors
/// If the kernel or OpenSSL has none to give. What is in `bytes` then is not random.
pub(crate) fn try_fill(bytes: &mut [u8]) -> Result<(), NoRandomness> {
    HOST.try_fill(bytes)
}

/// Fills `bytes` with random ones of this host.
///
/// # Panics
/// If the host has none to give: nothing in this daemon would be safe then.
pub(crate) fn fill(bytes: &mut [u8]) {
    try_fill(bytes).expect("the host's random sources work");
}

/// `N` random bytes of this host.
///
/// # Panics
/// As [`fill`].
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fill(&mut bytes);
    bytes
}

/// The host's randomness, to be handed to what decides. It panics as [`fill`] does.
#[must_use]
pub fn system() -> Randomness {
    Box::new(fill)
}

/// What tests of restored and cloned machines draw from.
#[cfg(test)]
pub(crate) mod twins {
    use std::cell::Cell;

    use super::*;

    /// A generator whose state was in the snapshot: all that begin with one seed give the same bytes.
    struct Repeating(Cell<u64>);

    impl Repeating {
        fn fill(&self, bytes: &mut [u8; SOURCE_BYTES]) {
            for some in bytes.chunks_mut(8) {
                self.0
                    .set(self.0.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407));
                some.copy_from_slice(&self.0.get().to_be_bytes());
            }
        }
    }

    /// One of several runs of the same snapshot.
    pub(crate) struct Twin {
        kernel: Option<Repeating>,
        openssl: Repeating,
        time: Cell<Nanoseconds>,
    }

    /// What the kernel does after the machine was restored.
    #[derive(Clone, Copy)]
    pub(crate) enum Kernel {
        /// It has heard of it, and begins anew.
        Knows,
        /// It goes on where it was.
        Repeats,
    }

    impl Twin {
        /// A run that begins at `wall` (nanoseconds). Each draw takes it 100 ns.
        pub(crate) fn at(wall: u128, kernel: Kernel) -> Self {
            let kernel = match kernel {
                Kernel::Knows => None,
                Kernel::Repeats => Some(Repeating(Cell::new(2))),
            };
            let time = Cell::new(Nanoseconds { wall, mono: 1_000_000_000 });
            Self { kernel, openssl: Repeating(Cell::new(1)), time }
        }
    }

    impl Sources for Twin {
        fn kernel(&self, bytes: &mut [u8; SOURCE_BYTES]) -> Result<(), NoRandomness> {
            match &self.kernel {
                Some(kernel) => kernel.fill(bytes),
                None => ThisHost.kernel(bytes)?,
            }
            Ok(())
        }

        fn openssl(&self, bytes: &mut [u8; SOURCE_BYTES]) -> Result<(), NoRandomness> {
            self.openssl.fill(bytes);
            Ok(())
        }

        fn time(&self) -> Nanoseconds {
            let Nanoseconds { wall, mono } = self.time.get();
            self.time.set(Nanoseconds { wall: wall + 100, mono: mono + 100 });
            self.time.get()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::twins::{Kernel, Twin};
    use super::*;

    const WALL: u128 = 1_800_000_000_000_000_000;
    /// Of each run; in all more than 100,000.
    const DRAWS: usize = 20_000;

    fn drawn(twin: Twin, draws: usize) -> impl Iterator<Item = [u8; 16]> {
        let mixed = Mixed::of(twin);
        (0..draws).map(move |_| {
            let mut bytes = [0; 16];
            mixed.try_fill(&mut bytes).unwrap();
            bytes
        })
    }

    /// How many draws two runs of one snapshot have in common, the second of which begins `later` nanoseconds later.
    fn in_common(later: u128, kernel: Kernel, draws: usize) -> usize {
        let first: HashSet<_> = drawn(Twin::at(WALL, kernel), draws).collect();
        assert_eq!(first.len(), draws, "and none has one twice");
        drawn(Twin::at(WALL + later, kernel), draws).filter(|bytes| first.contains(bytes)).count()
    }

    #[test]
    fn runs_of_one_snapshot_draw_nothing_alike_where_the_kernel_knows_of_it() {
        for later in [0, 1_000_000_000] {
            assert_eq!(in_common(later, Kernel::Knows, DRAWS), 0, "{later} ns later");
        }
    }

    #[test]
    fn runs_of_one_snapshot_draw_nothing_alike_if_the_kernel_repeats_and_the_time_does_not() {
        // Within a millisecond, a step of the clock later, so that wall clocks meet, and a second.
        for later in [1, 100, 999_999, 1_000_000_000] {
            assert_eq!(in_common(later, Kernel::Repeats, DRAWS), 0, "{later} ns later");
        }
    }

    #[test]
    fn what_repeats_as_a_whole_is_drawn_again() {
        assert_eq!(in_common(0, Kernel::Repeats, 100), 100, "so it is the sources alone that tell two runs apart");
    }

    #[test]
    fn one_draw_differs_from_the_next_if_every_source_stands_still() {
        struct Still;
        impl Sources for Still {
            fn kernel(&self, _: &mut [u8; SOURCE_BYTES]) -> Result<(), NoRandomness> {
                Ok(())
            }
            fn openssl(&self, _: &mut [u8; SOURCE_BYTES]) -> Result<(), NoRandomness> {
                Ok(())
            }
            fn time(&self) -> Nanoseconds {
                Nanoseconds { wall: 0, mono: 0 }
            }
        }
        let still = Mixed::of(Still);
        let mut bytes = vec![0; 3 * MOST_BYTES + 1];
        still.try_fill(&mut bytes).unwrap();
        let blocks: HashSet<_> = bytes.chunks_exact(32).collect();
        assert_eq!(blocks.len(), bytes.len() / 32, "also within what one draw cannot fill");
        assert!(bytes[3 * MOST_BYTES - 32..].iter().any(|byte| *byte != 0), "to the end");
    }

    #[test]
    fn a_source_that_fails_is_an_error_and_not_a_draw_without_it() {
        struct Fails(bool);
        impl Sources for Fails {
            fn kernel(&self, bytes: &mut [u8; SOURCE_BYTES]) -> Result<(), NoRandomness> {
                if self.0 { Err(NoRandomness::Kernel("EPERM".into())) } else { ThisHost.kernel(bytes) }
            }
            fn openssl(&self, bytes: &mut [u8; SOURCE_BYTES]) -> Result<(), NoRandomness> {
                if self.0 { ThisHost.openssl(bytes) } else { Err(NoRandomness::Library(ErrorStack::get())) }
            }
            fn time(&self) -> Nanoseconds {
                ThisHost.time()
            }
        }
        let refused = |kernel| Mixed::of(Fails(kernel)).try_fill(&mut [0; 16]).unwrap_err();
        assert!(matches!(refused(true), NoRandomness::Kernel(_)));
        assert!(matches!(refused(false), NoRandomness::Library(_)));
    }

    #[test]
    fn this_host_gives_random_bytes() {
        let mut source = system();
        let (mut one, mut other) = ([0; 32], [0; 32]);
        source(&mut one);
        source(&mut other);
        assert_ne!(one, other);
        assert_ne!(one, random());
        let time = ThisHost.time();
        assert!(time.wall > WALL / 2, "{time:?}");
        assert!(ThisHost.time().mono >= time.mono);
    }
}
