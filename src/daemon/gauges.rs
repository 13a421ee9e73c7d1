//! Shows a node as metrics.

use std::sync::atomic::{AtomicBool, Ordering};

use metrics::{counter, gauge};

use super::view::NodeView;
use crate::clock::Now;
use crate::metrics::{
    ACTIVE_KEY_AGE, BROKER_CONNECTED, BROKER_RECONNECTS, CLOCK_OFFSET, KEY_STATES, LEADER, MEMBERS, MEMBERS_IN_STEP,
    RING_SAVE_ERRORS, ROTATIONS, ring_keys,
};

/// Shows whether the broker is connected; every connection after the process's first counts as a reconnect.
pub fn connected(connected: bool) {
    static BEFORE: AtomicBool = AtomicBool::new(false);
    gauge!(BROKER_CONNECTED).set(if connected { 1.0 } else { 0.0 });
    if connected && BEFORE.swap(true, Ordering::Relaxed) {
        counter!(BROKER_RECONNECTS).increment(1);
    }
}

/// Counts a ring that could not be saved.
pub fn ring_not_saved() {
    counter!(RING_SAVE_ERRORS).increment(1);
}

/// Shows everything else. `sealed_before` is the generation that sealed when this was last called.
pub fn show(view: &NodeView, sealed_before: Option<u64>, now: Now) {
    gauge!(LEADER).set(if view.leads { 1.0 } else { 0.0 });
    gauge!(MEMBERS).set(view.members);
    gauge!(MEMBERS_IN_STEP).set(view.members_in_step);
    let offset = i32::try_from(view.clock_offset_ms).map_or(f64::from(i32::MAX), f64::from);
    gauge!(CLOCK_OFFSET).set(offset / 1e3);
    ring_keys(KEY_STATES.map(|state| view.ring.keys.iter().filter(|key| key.state == state).count()));
    if let Some(active) = view.ring.keys.iter().find(|key| key.state == "active") {
        let age = std::time::Duration::from_millis(now.wall.saturating_sub(active.seal_from));
        gauge!(ACTIVE_KEY_AGE).set(age.as_secs_f64());
        if sealed_before.is_some_and(|generation| generation != active.generation) {
            counter!(ROTATIONS).increment(1);
        }
    }
}
