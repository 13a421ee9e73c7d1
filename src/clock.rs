//! Time as the decision logic sees it: always handed in, never read.

use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// One instant on both of a host's clocks.
///
/// Wall time orders events between hosts and can jump; monotonic time measures spans on this host and cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// UTC milliseconds since the Unix epoch.
    pub wall: u64,
    /// Milliseconds since an arbitrary start on this host; never goes backwards.
    pub mono: u64,
}

impl Now {
    /// The instant `span` later on both clocks.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        let span = millis(span);
        Self { wall: self.wall.saturating_add(span), mono: self.mono.saturating_add(span) }
    }
}

/// `span` in whole milliseconds, saturating.
#[must_use]
pub fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// `theirs` minus `ours` in milliseconds, saturating: how far another clock is from this host's.
#[must_use]
pub(crate) fn offset_ms(theirs: u64, ours: u64) -> i64 {
    let distance = i64::try_from(theirs.abs_diff(ours)).unwrap_or(i64::MAX);
    if theirs >= ours { distance } else { -distance }
}

/// Reads the clocks of this host. No room that decides reads another one (`scripts/check-rooms.py` looks); limits of time for
/// sockets, and those of commands, are `Instant`s of their own.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock whose monotonic part starts one day in, so that a span can always be subtracted from it.
    #[must_use]
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// This instant.
    #[must_use]
    pub fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { wall: millis(wall), mono: MONO_START + millis(self.start.elapsed()) }
    }

    /// The `Instant` at which the monotonic clock reads `mono` milliseconds.
    #[must_use]
    pub(crate) fn instant(&self, mono: u64) -> Instant {
        self.start + Duration::from_millis(mono.saturating_sub(MONO_START))
    }
}

/// One instant in nanoseconds, as fine as this host's clocks are. It tells one draw of random bytes from another
/// ([`crate::random`]); nothing is decided by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Nanoseconds {
    /// UTC, since the Unix epoch.
    pub wall: u128,
    /// Since this process first asked; never goes backwards.
    pub mono: u128,
}

impl Nanoseconds {
    /// This instant.
    #[must_use]
    pub(crate) fn now() -> Self {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { wall: wall.as_nanos(), mono: START.elapsed().as_nanos() }
    }
}

const MONO_START: u64 = 24 * 60 * 60 * 1000;
