//! Clients that wait for their turn: first come, first served, no more often than a token bucket allows.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::sleep;

use crate::clock::SystemClock;
use crate::token_bucket::TokenBucket;

/// Turns, for any number of tasks.
#[derive(Debug)]
pub(crate) struct Turns {
    /// Tokio's, which serves those who wait in the order in which they came.
    bucket: Mutex<TokenBucket>,
    clock: SystemClock,
}

impl Turns {
    /// `burst` turns at once, and one more `every` so often.
    #[must_use]
    pub(crate) fn new(burst: u32, every: Duration, clock: SystemClock) -> Self {
        Self { bucket: Mutex::new(TokenBucket::new(burst, every)), clock }
    }

    /// Waits for a turn. One that is no longer waited for is not taken.
    pub(crate) async fn next(&self) {
        let mut bucket = self.bucket.lock().await;
        loop {
            let now = self.clock.now();
            let wait = bucket.empty_for(now);
            if wait.is_zero() {
                return bucket.take(now);
            }
            sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn turns_come_in_order_and_no_sooner_than_they_may() {
        const EVERY: Duration = Duration::from_millis(10);
        let turns = Arc::new(Turns::new(2, EVERY, SystemClock::start()));
        let (order, mut came) = tokio::sync::mpsc::unbounded_channel();
        let begun = Instant::now();
        for number in 0..8 {
            let (turns, order) = (Arc::clone(&turns), order.clone());
            tokio::spawn(async move {
                turns.next().await;
                order.send(number).unwrap();
            });
        }
        for number in 0..8 {
            assert_eq!(came.recv().await, Some(number));
        }
        assert!(begun.elapsed() >= 6 * EVERY - Duration::from_millis(1), "took {:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn one_that_goes_away_takes_no_turn() {
        const EVERY: Duration = Duration::from_secs(3600);
        let turns = Turns::new(1, EVERY, SystemClock::start());
        turns.next().await;
        assert!(tokio::time::timeout(Duration::from_millis(1), turns.next()).await.is_err(), "there is none");
        let wait = turns.bucket.lock().await.empty_for(turns.clock.now());
        assert!(wait <= EVERY, "{wait:?}");
    }
}
