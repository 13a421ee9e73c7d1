//! How long to wait between attempts to reach a broker.

use std::time::Duration;

/// The first wait is about this long.
pub const FIRST: Duration = Duration::from_millis(100);

/// No wait is longer. Below the five seconds within which a node has to be back after its broker, so that connecting
/// still fits.
pub const LONGEST: Duration = Duration::from_millis(4_500);

/// Waits that double from [`FIRST`] to [`LONGEST`], each shortened by up to a half at random, so that a farm does not
/// knock on a restarted broker in step.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// How long to wait after one more failure; `random` is any value, all equally likely.
    pub fn failed(&mut self, random: u32) -> Duration {
        let full = FIRST.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        let cut = full / 2;
        full - cut.mul_f64(f64::from(random) / f64::from(u32::MAX))
    }

    /// The next wait is a first one again. For after a connection that worked for a while: resetting on every
    /// connection would hammer a broker that accepts and drops.
    pub fn worked(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_stay_there() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..70).map(|_| backoff.failed(0)).collect();
        let expected = [100, 200, 400, 800, 1_600, 3_200, 4_500, 4_500].map(Duration::from_millis);
        assert_eq!(waits[..8], expected);
        assert!(waits[8..].iter().all(|wait| *wait == LONGEST), "{waits:?}");
    }

    #[test]
    fn jitter_only_shortens_and_by_at_most_a_half() {
        for random in [0, 1, u32::MAX / 3, u32::MAX / 2, u32::MAX] {
            let mut backoff = Backoff::default();
            let mut full = FIRST;
            for _ in 0..12 {
                let wait = backoff.failed(random);
                assert!(wait >= full / 2 && wait <= full, "{wait:?} for {full:?} and {random}");
                full = (full * 2).min(LONGEST);
            }
        }
        assert_ne!(Backoff::default().failed(0), Backoff::default().failed(u32::MAX));
    }

    #[test]
    fn after_a_success_the_first_wait_is_short_again() {
        let mut backoff = Backoff::default();
        for _ in 0..9 {
            backoff.failed(7);
        }
        backoff.worked();
        assert_eq!(backoff.failed(0), FIRST);
    }
}
