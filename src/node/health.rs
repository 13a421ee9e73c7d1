//! How a node is, for `/livez`, `/readyz`, `/healthz` and the service manager.

use crate::clock::Now;

/// Longer than that without a turn, and the node is taken for dead.
const ALIVE_FOR_MS: u64 = 10_000;

/// How a node is, as its main loop last said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether a ticket key may seal at it now.
    pub ring: bool,
    /// Until when, on the monotonic clock in milliseconds, the loop is to be believed alive: each turn moves this on
    /// by a few beats.
    pub alive_until: u64,
}

impl Health {
    /// That of a node that turned at `now`, and has a key in its `ring` that may seal, or none.
    #[must_use]
    pub(super) fn turned(ring: bool, now: Now) -> Self {
        Self { ring, alive_until: now.mono + ALIVE_FOR_MS }
    }

    /// Whether the node is well at `now`, or in one line why not.
    ///
    /// # Errors
    /// The reason, in words for an operator.
    pub fn verdict(&self, now: Now) -> Result<(), String> {
        self.lacking(now).into_iter().next().map_or(Ok(()), Err)
    }

    /// Whether the node turns at `now`, whatever it has; or in one line that it does not.
    ///
    /// # Errors
    /// The reason, in words for an operator.
    pub fn liveness(&self, now: Now) -> Result<(), String> {
        match now.mono.saturating_sub(self.alive_until) {
            0 => Ok(()),
            late => Err(format!("not live: the node has not turned for {late} ms longer than it should")),
        }
    }

    /// All that the node lacks at `now` to be of use to a proxy, a line each: nothing, if it is well.
    #[must_use]
    pub fn lacking(&self, now: Now) -> Vec<String> {
        let ring = (!self.ring).then(|| "no ring yet: neither a leader's nor one of its own".to_owned());
        self.liveness(now).err().into_iter().chain(ring).collect()
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
        let neither = Health { ring: false, alive_until: 5_000 };
        assert_eq!(neither.liveness(Now { wall: 0, mono: 5_000 }), Ok(()), "it turns, and has no key");
        assert_eq!(neither.lacking(Now { wall: 0, mono: 5_000 }).len(), 1);
        assert_eq!(neither.lacking(Now { wall: 0, mono: 5_001 }).len(), 2);
    }
}
