//! What a node tells of itself, in its reports and in member tables.

use super::audit::AuditTrail;
use super::members::Seen;
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
        let FarmSettings { node, boot_id, .. } = self.settings;
        let seen = Seen { name: node.clone(), boot_id: *boot_id, last_report_ms: 0, in_step: true, clock_offset_ms: 0 };
        seen.telling(self.told())
    }

    /// As a report from `inbox` to the node that is followed. Its ring is in it where it differs from what that node
    /// announced; not in a leader's to itself.
    pub(super) fn report(&self, inbox: String, standing: &Standing, now: Now) -> proto::Report {
        let (ring, last) = (self.held.ring(), standing.announcements.last());
        let as_of = last.map_or(0, |last| last.as_of);
        let fingerprint = ring.fingerprint(if as_of == 0 { now.wall } else { as_of });
        let differs = last.is_none_or(|last| last.fingerprint != fingerprint);
        let mut report = proto::Report {
            inbox,
            as_of,
            fingerprint: fingerprint.to_vec(),
            ring: (differs && !standing.lease.is_held()).then(|| self.held.to_proto(now)),
            first: standing.link.is_first(),
            ..self.told()
        };
        report.secret_ids.truncate(MOST_IDS);
        report.proxies.truncate(MOST_PROXIES);
        report
    }

    /// What it tells in either, as a report without what changes from one to the next.
    fn told(&self) -> proto::Report {
        let ring = self.held.ring();
        proto::Report {
            pod: self.settings.pod.clone(),
            version: self.settings.version.clone(),
            highest_generation: ring.highest_generation(),
            secret_ids: self.local.secret_ids.clone(),
            sessions: self.local.sessions,
            proxies: self.local.proxies.clone(),
            floor: ring.floor(),
            sessions_from: ring.sessions_from(),
            operators: Some(self.trail()),
            ..proto::Report::default()
        }
    }

    fn trail(&self) -> Box<proto::OperatorTrail> {
        let reload = Some(self.local.reload.clone());
        Box::new(proto::OperatorTrail { reload, audit: self.audit.to_proto() })
    }
}
