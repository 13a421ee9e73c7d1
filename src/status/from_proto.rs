//! What nodes tell each other, as `status` shows it.

use super::{AuditAction, AuditOutcome, AuditStatus, NodeStatus, ProxyStatus, ReloadState, ReloadStatus};
use crate::hex::hex;
use crate::proto;

impl From<proto::Member> for NodeStatus {
    fn from(member: proto::Member) -> Self {
        Self {
            name: member.name,
            boot_id: hex(&member.boot_id),
            pod: member.pod,
            version: member.version,
            last_report_ms: member.last_report_ms,
            in_step: member.in_step,
            clock_offset_ms: member.clock_offset_ms,
            sessions: member.sessions,
            proxies: member.proxies.into_iter().map(Into::into).collect(),
            secret_ids: member.secret_ids.iter().map(|id| hex(id)).collect(),
            reload: member.operators.and_then(|trail| trail.reload).map(Into::into).unwrap_or_default(),
        }
    }
}

impl From<proto::Proxy> for ProxyStatus {
    fn from(proxy: proto::Proxy) -> Self {
        let proto::Proxy { kind, version, certificate_digest, warnings } = proxy;
        Self { kind, version, certificate_digest: hex(&certificate_digest), warnings }
    }
}

impl From<proto::LastReload> for ReloadStatus {
    fn from(reload: proto::LastReload) -> Self {
        let state = match (reload.at, reload.refused.is_empty()) {
            (0, _) => ReloadState::None,
            (_, true) => ReloadState::Taken,
            (_, false) => ReloadState::Refused,
        };
        let reason = (state == ReloadState::Refused).then_some(reload.refused);
        Self { state, at: reload.at, reason }
    }
}

impl From<&proto::AuditEntry> for AuditStatus {
    fn from(entry: &proto::AuditEntry) -> Self {
        Self {
            at: entry.at,
            action: entry.action().into(),
            flush_sessions: entry.flush_sessions,
            node: entry.node.clone(),
            user: Some(entry.user.clone()).filter(|user| !user.is_empty()),
            outcome: entry.outcome().into(),
            generation: entry.generation,
        }
    }
}

impl From<proto::AuditAction> for AuditAction {
    fn from(action: proto::AuditAction) -> Self {
        match action {
            proto::AuditAction::Rotate => Self::Rotate,
            proto::AuditAction::Revoke => Self::Revoke,
            proto::AuditAction::RevokeLocal => Self::RevokeLocal,
            proto::AuditAction::Unspecified => Self::Unknown,
        }
    }
}

impl From<proto::AuditOutcome> for AuditOutcome {
    fn from(outcome: proto::AuditOutcome) -> Self {
        match outcome {
            proto::AuditOutcome::Done => Self::Done,
            proto::AuditOutcome::Pending => Self::Pending,
            proto::AuditOutcome::Refused => Self::Refused,
            proto::AuditOutcome::NoLeader => Self::NoLeader,
            proto::AuditOutcome::Unspecified => Self::Unknown,
        }
    }
}
