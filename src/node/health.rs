//! How a node is, for `/healthz` and the service manager.

use crate::clock::Now;

/// Longer than that without a turn, and the node is taken for dead.
const ALIVE_FOR_MS: u64 = 10_000;

/// How a node is, as its main loop last said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether it holds a ring with a key in it.
    pub ring: bool,
    /// Until when, on the monotonic clock in milliseconds, the loop is to be believed alive: each turn moves this on
    /// by a few beats.
    pub alive_until: u64,
}

impl Health {
    /// That of a node that turned at `now`, and holds a `ring` with a key in it or none.
    #[must_use]
    pub(super) fn turned(ring: bool, now: Now) -> Self {
        Self { ring, alive_until: now.mono + ALIVE_FOR_MS }
    }

    /// Whether the node is well at `now`, or in one line why not.
    ///
    /// # Errors
    /// The reason, in words for an operator.
    pub fn verdict(&self, now: Now) -> Result<(), String> {
        let late = now.mono.saturating_sub(self.alive_until);
        if late > 0 {
            return Err(format!("not live: the node has not turned for {late} ms longer than it should"));
        }
        if self.ring { Ok(()) } else { Err("no ring yet: neither a leader's nor one of its own".into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_live_up_to_the_instant_it_promised() {
        let health = Health { ring: true, alive_until: 5_000 };
        assert_eq!(health.verdict(Now { wall: 0, mono: 5_000 }), Ok(()));
        assert_eq!(
            health.verdict(Now { wall: 0, mono: 5_001 }),
            Err("not live: the node has not turned for 1 ms longer than it should".into())
        );
    }
}
