//! How often something may be done for others: so many times at once, and then one every so often.

use std::time::Duration;

use crate::clock::{Now, millis};

/// A token bucket: full at first, a token taken for each time, one more every so often until it is full again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TokenBucket {
    burst: u64,
    every_ms: u64,
    /// When all tokens will be there again, on the monotonic clock in milliseconds.
    full_at: u64,
}

impl TokenBucket {
    /// `burst` tokens, and one more `every` so often, in whole milliseconds. At least one of each.
    #[must_use]
    pub(crate) fn new(burst: u32, every: Duration) -> Self {
        Self { burst: u64::from(burst.max(1)), every_ms: millis(every).max(1), full_at: 0 }
    }

    /// How long it is from `now` until there is a token: zero if there is one.
    #[must_use]
    pub(crate) fn empty_for(&self, now: Now) -> Duration {
        let tokens_from = self.full_at.saturating_sub((self.burst - 1) * self.every_ms);
        Duration::from_millis(tokens_from.saturating_sub(now.mono))
    }

    /// Whether all tokens are there at `now`, as in a new bucket.
    #[must_use]
    pub(crate) fn is_full(&self, now: Now) -> bool {
        self.full_at <= now.mono
    }

    /// Takes a token. One that is not there is owed.
    pub(crate) fn take(&mut self, now: Now) {
        self.full_at = self.full_at.max(now.mono).saturating_add(self.every_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_millis(10);

    fn at(mono: u64) -> Now {
        // The wall clock may jump: it must not matter.
        Now { wall: 1_000_000 - mono, mono: 86_400_000 + mono }
    }

    /// How many tokens there are to take at `mono`.
    fn taken(bucket: &mut TokenBucket, mono: u64) -> u32 {
        let mut taken = 0;
        while bucket.empty_for(at(mono)).is_zero() {
            bucket.take(at(mono));
            taken += 1;
        }
        taken
    }

    #[test]
    fn a_burst_is_followed_by_one_every_so_often_and_a_pause_brings_the_burst_back() {
        let mut bucket = TokenBucket::new(3, EVERY);
        assert_eq!(taken(&mut bucket, 0), 3);
        assert_eq!(bucket.empty_for(at(0)), EVERY);
        assert!(!bucket.is_full(at(29)) && bucket.is_full(at(30)));
        assert_eq!(bucket.empty_for(at(7)), Duration::from_millis(3));
        assert_eq!((taken(&mut bucket, 9), taken(&mut bucket, 10), taken(&mut bucket, 10)), (0, 1, 0));
        assert_eq!(taken(&mut bucket, 30), 2);
        assert_eq!(taken(&mut bucket, 10_000), 3, "no more than a burst, however long the pause");
    }

    #[test]
    fn a_token_that_was_not_there_is_owed() {
        let mut bucket = TokenBucket::new(1, EVERY);
        for _ in 0..3 {
            bucket.take(at(0));
        }
        assert_eq!(bucket.empty_for(at(0)), 3 * EVERY);
        assert_eq!(taken(&mut bucket, 30), 1);
    }

    #[test]
    fn over_a_long_time_it_gives_as_many_as_it_says() {
        let mut bucket = TokenBucket::new(5, EVERY);
        let all: u32 = (0..=10_000).map(|mono| taken(&mut bucket, mono)).sum();
        assert_eq!(all, 5 + 1_000);
    }
}
