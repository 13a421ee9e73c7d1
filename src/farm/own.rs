//! What a node tells of itself, in its reports and in member tables.

use super::audit::AuditTrail;
use super::report::{MOST_IDS, MOST_PROXIES};
use super::settings::{FarmSettings, LocalState};
use super::standing::Standing;
use crate::clock::Now;
use crate::keys::HeldRing;
use crate::proto;

/// All of it, borrowed from where it is kept.
pub(super) struct Own<'a> {
    pub(super) settings: &'a FarmSettings,
    pub(super) local: &'a LocalState,
    pub(super) held: &'a HeldRing,
    pub(super) audit: &'a AuditTrail,
}

impl Own<'_> {
    /// As a member table shows it.
    pub(super) fn member(&self) -> proto::Member {
        let ring = self.held.ring();
        proto::Member {
            name: self.settings.node.clone(),
            boot_id: self.settings.boot_id.to_vec(),
            pod: self.settings.pod.clone(),
            version: self.settings.version.clone(),
            last_report_ms: 0,
            in_step: true,
            clock_offset_ms: 0,
            sessions: self.local.sessions,
            proxies: self.local.proxies.clone(),
            secret_ids: self.local.secret_ids.clone(),
            highest_generation: ring.highest_generation(),
            floor: ring.floor(),
            sessions_from: ring.sessions_from(),
            operators: Some(self.trail()),
        }
    }

    /// As a report from `inbox` to the node that is followed. Its ring is in it where it differs from what that node
    /// announced; not in a leader's to itself.
    pub(super) fn report(&self, inbox: String, standing: &Standing, now: Now) -> proto::Report {
        let (ring, last) = (self.held.ring(), standing.announcements.last());
        let as_of = last.map_or(0, |last| last.as_of);
        let fingerprint = ring.fingerprint(if as_of == 0 { now.wall } else { as_of });
        let differs = last.is_none_or(|last| last.fingerprint != fingerprint);
        proto::Report {
            pod: self.settings.pod.clone(),
            version: self.settings.version.clone(),
            inbox,
            as_of,
            fingerprint: fingerprint.to_vec(),
            highest_generation: ring.highest_generation(),
            ring: (differs && !standing.lease.is_held()).then(|| self.held.to_proto(now)),
            secret_ids: self.local.secret_ids.iter().take(MOST_IDS).cloned().collect(),
            sessions: self.local.sessions,
            proxies: self.local.proxies.iter().take(MOST_PROXIES).cloned().collect(),
            first: standing.link.is_first(),
            floor: ring.floor(),
            sessions_from: ring.sessions_from(),
            operators: Some(self.trail()),
        }
    }

    fn trail(&self) -> Box<proto::OperatorTrail> {
        let reload = Some(self.local.reload.clone());
        Box::new(proto::OperatorTrail { reload, audit: self.audit.to_proto() })
    }
}
