//! What a node shows of itself: to `status`, to `/healthz`, and to tests.

use super::secrets_seen::SecretsSeen;
use super::sites::site_status;
use crate::clock::Now;
use crate::farm::Farm;
use crate::hex::hex;
use crate::proto;
use crate::status::{BrokerStatus, KeyStatus, NodeStatus, RingStatus, SiteStatus};

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
    pub(crate) secrets_seen: SecretsSeen,
    /// What the broker refuses this node, in sentences.
    pub refused: Vec<String>,
    /// The other sites of the farm, as this node hears them if it leads, or else as its leader said last.
    pub sites: Vec<SiteStatus>,
    /// The last requests of operators that this node knows of.
    pub(crate) audit: Vec<proto::AuditEntry>,
}

impl NodeView {
    /// What `farm` shows now.
    #[must_use]
    pub(crate) fn of(farm: &Farm, broker: BrokerStatus, now: Now) -> Self {
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
            own: own.into(),
            skewed: farm.skewed_nodes().map(|(name, offset)| (name.to_owned(), offset)).collect(),
            secrets_seen: SecretsSeen::default(),
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
