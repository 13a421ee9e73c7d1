//! What a node shows of itself: to `status`, to `/healthz`, and to tests.

use super::secret_history::SecretHistory;
use super::sites::site_status;
use crate::clock::Now;
use crate::farm::Farm;
use crate::hex::hex;
use crate::proto;
use crate::proto::{AuditAction, AuditOutcome};
use crate::status::{
    AuditStatus, BrokerStatus, KeyStatus, NodeStatus, ProxyStatus, ReloadState, ReloadStatus, RingStatus, SiteStatus,
};

/// One node at one instant.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeView {
    /// The node that is followed, or this one if it leads.
    pub leader: Option<String>,
    /// Whether this node leads.
    pub leads: bool,
    /// Members that the leader counts.
    pub members: u32,
    /// Of these, in step.
    pub members_in_step: u32,
    /// Whether this node leads, or hears whoever leads and holds its ring.
    pub in_step: bool,
    /// The leader's clock minus this node's.
    pub clock_offset_ms: i64,
    /// The ring, without secrets.
    pub ring: RingStatus,
    /// The connection to the broker.
    pub broker: BrokerStatus,
    /// This node as a member table would show it.
    pub own: NodeStatus,
    /// Nodes whose clock is too far off to be listened to, each with its clock minus this node's in milliseconds.
    pub skewed: Vec<(String, i64)>,
    /// This node's farm secrets since its start.
    pub secret_history: SecretHistory,
    /// What the broker refuses this node, in sentences.
    pub refused: Vec<String>,
    /// The other sites of the farm, as this node hears them if it leads, or else as its leader said last.
    pub sites: Vec<SiteStatus>,
    /// The last requests of operators that this node knows of.
    pub audit: Vec<proto::AuditEntry>,
}

impl NodeView {
    /// What `farm` shows now.
    #[must_use]
    pub fn of(farm: &Farm, broker: BrokerStatus, now: Now) -> Self {
        let (members, members_in_step) = farm.member_counts();
        let mut own = farm.own_member();
        let audit = own.operators.as_mut().map(|trail| std::mem::take(&mut trail.audit)).unwrap_or_default();
        Self {
            leader: farm.leader(now).map(str::to_owned),
            leads: farm.leads(),
            members,
            members_in_step,
            in_step: farm.is_in_step(now),
            clock_offset_ms: farm.clock_offset_ms(),
            ring: ring_status(farm, now),
            broker,
            own: node_status(own),
            skewed: farm.skewed_nodes().map(|(name, offset)| (name.to_owned(), offset)).collect(),
            secret_history: SecretHistory::default(),
            refused: Vec::new(),
            sites: farm.sites(now).into_iter().map(site_status).collect(),
            audit,
        }
    }

    /// Generation of the key that seals now.
    #[must_use]
    pub fn active_generation(&self) -> Option<u64> {
        self.ring.active().map(|key| key.generation)
    }
}

/// A member of the table that the leader sent.
#[must_use]
pub fn node_status(member: proto::Member) -> NodeStatus {
    let proxy = |proxy: proto::Proxy| ProxyStatus {
        kind: proxy.kind,
        version: proxy.version,
        certificate_digest: hex(&proxy.certificate_digest),
        warnings: proxy.warnings,
    };
    NodeStatus {
        name: member.name,
        boot_id: hex(&member.boot_id),
        pod: member.pod,
        version: member.version,
        last_report_ms: member.last_report_ms,
        in_step: member.in_step,
        clock_offset_ms: member.clock_offset_ms,
        sessions: member.sessions,
        proxies: member.proxies.into_iter().map(proxy).collect(),
        secret_ids: member.secret_ids.iter().map(|id| hex(id)).collect(),
        reload: member.operators.and_then(|trail| trail.reload).map(reload_status).unwrap_or_default(),
    }
}

fn reload_status(reload: proto::LastReload) -> ReloadStatus {
    let state = match (reload.at, reload.refused.is_empty()) {
        (0, _) => ReloadState::None,
        (_, true) => ReloadState::Taken,
        (_, false) => ReloadState::Refused,
    };
    let reason = (state == ReloadState::Refused).then_some(reload.refused);
    ReloadStatus { state, at: reload.at, reason }
}

/// A request of an operator, in the words of `status --json` and of the log.
#[must_use]
pub fn audit_status(entry: &proto::AuditEntry) -> AuditStatus {
    let action = match entry.action() {
        AuditAction::Rotate => "rotate",
        AuditAction::Revoke => "revoke",
        AuditAction::RevokeLocal => "revoke_local",
        AuditAction::Unspecified => "unknown",
    };
    let outcome = match entry.outcome() {
        AuditOutcome::Done => "done",
        AuditOutcome::Pending => "pending",
        AuditOutcome::Refused => "refused",
        AuditOutcome::NoLeader => "no_leader",
        AuditOutcome::Unspecified => "unknown",
    };
    AuditStatus {
        at: entry.at,
        action: action.to_owned(),
        flush_sessions: entry.flush_sessions,
        node: entry.node.clone(),
        user: Some(entry.user.clone()).filter(|user| !user.is_empty()),
        outcome: outcome.to_owned(),
        generation: entry.generation,
    }
}

fn ring_status(farm: &Farm, now: Now) -> RingStatus {
    let held = farm.held();
    let ring = held.ring();
    let keys = ring.keys().iter().map(|key| KeyStatus {
        name_prefix: hex(&key.name[..4]),
        generation: key.generation,
        state: held.state_of(key, now),
        seal_from: key.seal_from,
        seal_until: key.seal_until,
        open_until: ring.open_until(&key.name).unwrap_or(key.seal_until),
    });
    RingStatus {
        fingerprint: hex(&ring.fingerprint(now.wall)),
        floor: ring.floor(),
        sessions_from: ring.sessions_from(),
        keys: keys.collect(),
    }
}
