//! The limits of what a donor does for others: how often it answers one node, and how many bytes a second it sends.

use std::collections::HashMap;
use std::time::Duration;

use crate::clock::Now;
use crate::token_bucket::TokenBucket;

/// Calls and first requests of one node that are answered at once, and how much time must pass for each one more. An honest
/// joiner sends two a second at most.
pub(super) const REQUEST_BURST: u32 = 8;
const REQUEST_EVERY: Duration = Duration::from_millis(250);
/// So many nodes are counted one by one; beyond that the farm's own size is the flood.
const MOST_NODES: usize = 4_096;

/// Bytes a second that a donor sends at most: a quarter of a gigabit, which leaves the rest to the live feed, and a
/// million sessions of 200 bytes in about eight seconds.
pub(super) const BYTES_A_SECOND: u64 = 32 << 20;
/// What a donor may send at once after a pause: timers are no finer than a millisecond, in which it may send 32 KiB.
pub(super) const BYTE_BURST: u64 = 256 << 10;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It is answered.
    Granted,
    /// Its node asks too often.
    TooOften,
    /// There is no room to count another node.
    TooManyNodes,
}

/// Counts what each node asks for, known by its boot id.
#[derive(Debug, Default)]
pub(super) struct RequestLimiter {
    nodes: HashMap<[u8; 16], TokenBucket>,
}

impl RequestLimiter {
    /// Whether a request of the node that started as `boot_id` is to be answered. One that is not does not count.
    pub(crate) fn admit(&mut self, boot_id: [u8; 16], now: Now) -> Admission {
        if self.nodes.len() >= MOST_NODES && !self.nodes.contains_key(&boot_id) {
            self.nodes.retain(|_, bucket| !bucket.is_full(now));
            if self.nodes.len() >= MOST_NODES {
                return Admission::TooManyNodes;
            }
        }
        let bucket = self.nodes.entry(boot_id).or_insert_with(|| TokenBucket::new(REQUEST_BURST, REQUEST_EVERY));
        if !bucket.empty_for(now).is_zero() {
            return Admission::TooOften;
        }
        bucket.take(now);
        Admission::Granted
    }
}

/// How many bytes may be sent: [`BYTES_A_SECOND`], and up to [`BYTE_BURST`] at once.
#[derive(Debug)]
pub(super) struct SendRate {
    /// Below zero after a message that was larger than what was left.
    allowance: i64,
    /// Until when it is counted, monotonic milliseconds.
    counted_to: u64,
}

impl Default for SendRate {
    fn default() -> Self {
        Self { allowance: BYTE_BURST as i64, counted_to: 0 }
    }
}

impl SendRate {
    /// How many milliseconds to wait before the next message: 0 if it may be sent now.
    pub(crate) fn wait_ms(&mut self, now: Now) -> u64 {
        let earned = now.mono.saturating_sub(self.counted_to).min(1_000) * BYTES_A_SECOND / 1_000;
        self.allowance = self.allowance.saturating_add_unsigned(earned).min(BYTE_BURST as i64);
        self.counted_to = now.mono;
        if self.allowance > 0 { 0 } else { self.allowance.unsigned_abs() * 1_000 / BYTES_A_SECOND + 1 }
    }

    /// A message of so many bytes goes out.
    pub(crate) fn spend(&mut self, bytes: usize) {
        self.allowance = self.allowance.saturating_sub_unsigned(bytes as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(mono: u64) -> Now {
        Now { wall: 1_700_000_000_000, mono: 86_400_000 + mono }
    }

    fn boot_id(number: usize) -> [u8; 16] {
        (number as u128).to_be_bytes()
    }

    #[test]
    fn a_node_has_its_burst_and_four_a_second_and_costs_no_other_node_anything() {
        let mut limiter = RequestLimiter::default();
        let mut granted = |number, mono, tries: usize| {
            (0..tries).filter(|_| limiter.admit(boot_id(number), at(mono)) == Admission::Granted).count()
        };
        assert_eq!(granted(1, 0, 100), 8);
        assert_eq!(granted(2, 0, 100), 8);
        assert_eq!(granted(1, 999, 100), 3);
        assert_eq!(granted(1, 1_000, 100), 1, "what was refused is not owed");
        assert_eq!(granted(1, 60_000, 100), 8);
    }

    #[test]
    fn more_nodes_than_are_counted_wait_until_one_is_quiet() {
        let mut limiter = RequestLimiter::default();
        for number in 0..MOST_NODES {
            assert_eq!(limiter.admit(boot_id(number), at(0)), Admission::Granted);
        }
        assert_eq!(limiter.admit(boot_id(MOST_NODES), at(0)), Admission::TooManyNodes);
        assert_eq!(limiter.admit(boot_id(3), at(0)), Admission::Granted, "one that is counted goes on");
        // Those that asked once have all of their burst again; the one that asked twice has not.
        assert_eq!(limiter.admit(boot_id(MOST_NODES), at(250)), Admission::Granted);
        assert_eq!(limiter.nodes.len(), 2);
    }

    #[test]
    fn what_is_sent_over_a_second_is_the_rate_and_a_burst() {
        const MESSAGE: usize = 32 << 10;
        let mut rate = SendRate::default();
        let mut sent = 0;
        for mono in 0..1_000 {
            while rate.wait_ms(at(mono)) == 0 {
                rate.spend(MESSAGE);
                sent += MESSAGE as u64;
            }
        }
        let most = BYTES_A_SECOND + BYTE_BURST;
        assert!((most - 3 * MESSAGE as u64..=most + MESSAGE as u64).contains(&sent), "{sent} of {most}");
        rate.spend(BYTES_A_SECOND as usize);
        assert!((900..1_100).contains(&rate.wait_ms(at(1_000))), "a debt is waited for");
    }
}
