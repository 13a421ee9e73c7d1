//! The pauses before a broker is dialled again. Those of the plugin before its daemon are in `ats-plugin/src/link.rs`.

use std::time::Duration;

use crate::clock::millis;

/// The first pause after a link that was steady is at most this long, the first one after a failure about as long.
pub(crate) const FIRST: Duration = Duration::from_millis(100);

/// No pause is longer. Below the five seconds within which a node has to be back after its broker, so that connecting
/// still fits.
pub(crate) const LONGEST: Duration = Duration::from_millis(4_500);

/// A link that lasted so long was a good one. One that ended sooner counts as a failed attempt: a broker that
/// accepts and drops is dialled no more often than one that refuses. Longer than [`LONGEST`], so that a link lost again and
/// again is dialled more slowly the sooner it ends.
pub(crate) const STEADY: Duration = Duration::from_secs(10);

/// The pauses between attempts to reach a broker, over the whole life of a node.
///
/// They double from [`FIRST`] to [`LONGEST`] with each attempt that fails and each link that ends before it was
/// [`STEADY`], each pause shortened by up to a half at random. A steady link that ends is dialled again within [`FIRST`]. All
/// of that is random, so that a farm does not knock on a restarted broker in step.
///
/// It decides alone: its driver says what happened, hands in monotonic milliseconds and a random number, all equally
/// likely, and dials when it says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Redial {
    /// Attempts and short links in a row.
    failures: u32,
    /// Since when there has been a link, if there is one.
    linked_at: Option<u64>,
}

impl Redial {
    /// The attempt brought a link.
    pub(crate) fn linked(&mut self, now: u64) {
        self.linked_at = Some(now);
    }

    /// The attempt failed, or the link ended, whichever side ended it. Returns when to dial again.
    pub(crate) fn again_at(&mut self, now: u64, random: u32) -> u64 {
        let steady = self.linked_at.take().is_some_and(|since| now.saturating_sub(since) >= millis(STEADY));
        let part = f64::from(random) / f64::from(u32::MAX);
        let pause = if steady {
            self.failures = 0;
            FIRST.mul_f64(1.0 - part)
        } else {
            self.failed(part)
        };
        now.saturating_add(millis(pause))
    }

    /// The pause after one more failure, shortened by `part` of a half.
    fn failed(&mut self, part: f64) -> Duration {
        let full = FIRST.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        full - (full / 2).mul_f64(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEADY_MS: u64 = 10_000;

    /// The pauses of `count` attempts that fail at once.
    fn pauses(redial: &mut Redial, count: usize, random: u32) -> Vec<u64> {
        (0..count).map(|_| redial.again_at(1_000, random) - 1_000).collect()
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_stay_there() {
        let pauses = pauses(&mut Redial::default(), 70, 0);
        assert_eq!(pauses[..8], [100, 200, 400, 800, 1_600, 3_200, 4_500, 4_500]);
        assert!(pauses[8..].iter().all(|pause| *pause == 4_500), "{pauses:?}");
    }

    #[test]
    fn jitter_only_shortens_and_by_at_most_a_half() {
        for random in [0, 1, u32::MAX / 3, u32::MAX / 2, u32::MAX] {
            let mut full = 100;
            for pause in pauses(&mut Redial::default(), 12, random) {
                assert!(pause >= full / 2 && pause <= full, "{pause} for {full} and {random}");
                full = (full * 2).min(4_500);
            }
        }
        assert_ne!(pauses(&mut Redial::default(), 1, 0), pauses(&mut Redial::default(), 1, u32::MAX));
    }

    #[test]
    fn a_broker_that_accepts_and_drops_is_dialled_as_seldom_as_one_that_refuses() {
        for lasts in [0, 200, STEADY_MS - 1] {
            let mut redial = Redial::default();
            let (mut now, mut pauses) = (5_000, Vec::new());
            for _ in 0..8 {
                redial.linked(now);
                now += lasts;
                let at = redial.again_at(now, 0);
                pauses.push(at - now);
                now = at;
            }
            assert_eq!(pauses, [100, 200, 400, 800, 1_600, 3_200, 4_500, 4_500], "links of {lasts} ms");
        }
    }

    #[test]
    fn a_steady_link_that_ends_is_dialled_again_within_the_first_pause_whatever_was_before() {
        for (random, pause) in [(0, 100), (u32::MAX / 2, 50), (u32::MAX, 0)] {
            let mut redial = Redial::default();
            pauses(&mut redial, 9, 7);
            redial.linked(20_000);
            assert_eq!(redial.again_at(20_000 + STEADY_MS, random), 20_000 + STEADY_MS + pause);
            assert_eq!(pauses(&mut redial, 2, 0), [100, 200], "and what fails then begins anew");
        }
    }

    #[test]
    fn a_link_counts_once() {
        let mut redial = Redial::default();
        redial.linked(0);
        redial.again_at(STEADY_MS, 0);
        assert_eq!(redial.again_at(STEADY_MS + 50, 0), STEADY_MS + 50 + 100, "the attempt after it failed");
        assert_eq!(redial.again_at(STEADY_MS + 50, 0), STEADY_MS + 50 + 200);
    }
}
