//! What a look at all members tells a leader: who is in step, who is silent, whose clock is wrong.

use std::collections::HashMap;

use super::context::Context;
use super::lease::Lease;
use super::members::{Member, Members};
use crate::clock::{Now, millis};
use crate::keys::Ring;

/// Members are looked at all together no more often than every so many of them a millisecond: at every event in a farm of
/// fewer, and some times a second in one of 10,000.
pub(super) const ASSESSED_IN_A_MS: u64 = 64;

/// What a look at all members told.
#[derive(Debug, Default)]
pub(super) struct Assessment {
    pub(super) members: u32,
    pub(super) in_step: u32,
    /// Nodes whose clock is too far off, each with its clock minus ours in milliseconds.
    pub(super) skewed: Vec<(String, i64)>,
    /// Most clocks differ from this leader's, to one side.
    pub(super) majority_disagrees: bool,
    /// Nodes that report no longer, and said no farewell.
    pub(super) silent: u32,
}

impl Assessment {
    /// Looks at all members.
    pub(super) fn of(members: &Members, ring: &Ring, lease: &Lease, cx: &Context, now: Now) -> Self {
        let limit = millis(cx.settings.keys.max_clock_offset);
        let mut steps = InStep::new(ring, cx, now);
        let mut found = Self {
            majority_disagrees: lease.is_held() && members.majority_disagrees(cx.settings.boot_id, limit),
            ..Self::default()
        };
        for member in members.iter() {
            found.members += 1;
            found.in_step += u32::from(steps.has(member));
            found.silent += u32::from(!cx.is_heard(member.heard_at, now));
            let offset = member.clock_offset_ms();
            if offset.unsigned_abs() > limit {
                found.skewed.push((member.name.clone(), offset));
            }
        }
        // A leader without the lease does not hear its own reports.
        if lease.leads() && !members.iter().any(|member| member.boot_id == cx.settings.boot_id) {
            found.members += 1;
            found.in_step += 1;
        }
        found
    }
}

/// Which members report in time and hold this node's ring.
pub(super) struct InStep<'a> {
    ring: &'a Ring,
    cx: &'a Context,
    now: Now,
    /// Fingerprints of the ring by the time that they are made for: saves hashing it for every member.
    known: HashMap<u64, [u8; 8]>,
}

impl<'a> InStep<'a> {
    pub(super) fn new(ring: &'a Ring, cx: &'a Context, now: Now) -> Self {
        Self { ring, cx, now, known: HashMap::new() }
    }

    pub(super) fn has(&mut self, member: &Member) -> bool {
        if member.boot_id == self.cx.settings.boot_id {
            return true;
        }
        let Some(report) = &member.report else { return false };
        let expected = self.known.entry(report.as_of).or_insert_with(|| self.ring.fingerprint(report.as_of));
        self.cx.is_heard(member.heard_at, self.now) && report.as_of != 0 && report.fingerprint == *expected
    }
}
