//! How long the session hook keeps a handshake, counted by size: what an operator asks first when handshakes are slow.
//!
//! Two looks at the clock and one addition a call, so it is always on.

use std::ffi::CStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Calls that took at most so many nanoseconds, as Prometheus counts them: each holds those of the one before, too. The last
/// holds every call.
pub(crate) const BOUNDS: [(u64, &CStr); 16] = [
    (250, c"plugin.resumed.hook_ns.250"),
    (500, c"plugin.resumed.hook_ns.500"),
    (1_000, c"plugin.resumed.hook_ns.1000"),
    (1_500, c"plugin.resumed.hook_ns.1500"),
    (2_000, c"plugin.resumed.hook_ns.2000"),
    (3_000, c"plugin.resumed.hook_ns.3000"),
    (4_000, c"plugin.resumed.hook_ns.4000"),
    (5_000, c"plugin.resumed.hook_ns.5000"),
    (7_500, c"plugin.resumed.hook_ns.7500"),
    (10_000, c"plugin.resumed.hook_ns.10000"),
    (20_000, c"plugin.resumed.hook_ns.20000"),
    (50_000, c"plugin.resumed.hook_ns.50000"),
    (100_000, c"plugin.resumed.hook_ns.100000"),
    (1_000_000, c"plugin.resumed.hook_ns.1000000"),
    (10_000_000, c"plugin.resumed.hook_ns.10000000"),
    (u64::MAX, c"plugin.resumed.hook_ns.inf"),
];

/// The counts since the start of ATS.
#[derive(Default)]
pub(crate) struct HookTimes([AtomicU64; BOUNDS.len()]);

/// A call of the hook; it is over when this is dropped.
pub(crate) struct Call<'a> {
    times: &'a HookTimes,
    since: Instant,
}

impl HookTimes {
    /// A call begins.
    pub(crate) fn call(&self) -> Call<'_> {
        Call { times: self, since: Instant::now() }
    }

    fn count(&self, nanoseconds: u64) {
        let at = BOUNDS.iter().position(|(bound, _)| nanoseconds <= *bound);
        if let Some(count) = at.and_then(|at| self.0.get(at)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many calls took at most as long as each of [`BOUNDS`].
    pub(crate) fn up_to(&self) -> [u64; BOUNDS.len()] {
        let mut sum = 0;
        self.0.each_ref().map(|count| {
            sum += count.load(Ordering::Relaxed);
            sum
        })
    }
}

impl Call<'_> {
    /// When it began.
    pub(crate) fn since(&self) -> Instant {
        self.since
    }
}

impl Drop for Call<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        self.times.count(u64::try_from(self.since.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_count_holds_the_shorter_calls_too() {
        let times = HookTimes::default();
        for nanoseconds in [0, 250, 251, 5_000, 5_001, u64::MAX] {
            times.count(nanoseconds);
        }
        let counted: Vec<_> = BOUNDS.iter().map(|(bound, _)| *bound).zip(times.up_to()).collect();
        for (bound, calls) in [(250, 2), (500, 3), (4_000, 3), (5_000, 4), (7_500, 5), (10_000_000, 5), (u64::MAX, 6)] {
            assert!(counted.contains(&(bound, calls)), "{bound}: {calls} in {counted:?}");
        }
    }

    #[test]
    fn a_call_is_counted_when_it_is_over() {
        let times = HookTimes::default();
        let call = times.call();
        assert_eq!(times.up_to().last(), Some(&0));
        drop(call);
        assert_eq!(times.up_to().last(), Some(&1));
    }

    #[test]
    fn statistics_are_named_after_their_bounds() {
        for (bound, name) in BOUNDS {
            let wanted = if bound == u64::MAX { "inf".to_owned() } else { bound.to_string() };
            assert_eq!(name.to_str().unwrap(), format!("plugin.resumed.hook_ns.{wanted}"));
        }
    }
}
