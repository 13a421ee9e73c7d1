//! The farm's state as `status --json` prints it. Never key material.

use serde::{Deserialize, Serialize};

/// The whole farm, as its leader sees it, and the ring and broker of the node that was asked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FarmStatus {
    /// The farm's name.
    pub farm: String,
    /// The pod of the node that was asked.
    pub pod: String,
    /// The node that was asked.
    pub asked: String,
    /// The leader's name, if one answered.
    pub leader: Option<String>,
    /// Every node that the leader knows, by name; only the asked node itself if no leader answered.
    pub nodes: Vec<NodeStatus>,
    /// The farm secrets, and where their rotation stands.
    pub secrets: SecretsStatus,
    /// The asked node's ring.
    pub ring: RingStatus,
    /// The asked node's broker.
    pub broker: BrokerStatus,
    /// What an operator should look at, in sentences.
    pub warnings: Vec<String>,
}

/// One node of the farm.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Its boot id, 32 hex digits.
    pub boot_id: String,
    /// Its pod.
    pub pod: String,
    /// Its release.
    pub version: String,
    /// Milliseconds since the leader heard its last report.
    pub last_report_ms: u64,
    /// Whether it holds the leader's ring and reports in time.
    pub in_step: bool,
    /// Its clock minus the leader's, in milliseconds.
    pub clock_offset_ms: i64,
    /// Entries in its session cache.
    pub sessions: u64,
    /// Proxies connected to it.
    pub proxies: Vec<ProxyStatus>,
    /// The farm secrets that it opens, 16 hex digits each.
    pub secret_ids: Vec<String>,
}

/// One proxy beside a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProxyStatus {
    /// `ats`; servers within the process, such as the demo's, do not report themselves.
    pub kind: String,
    /// The proxy's release.
    pub version: String,
    /// A digest of its certificate names as configured, 16 hex digits; empty if unknown.
    pub certificate_digest: String,
}

/// The farm secrets in use, and the next step of their rotation. `[old]` → `[old, new]` → `[new, old]` → `[new]` in
/// `secret.files`, each on every node, with a SIGHUP, before the next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretsStatus {
    /// What nodes seal with, 16 hex digits each: one, save while the second step is being taken.
    pub sealing: Vec<String>,
    /// What can be done next.
    pub next_step: SecretStep,
    /// The secret that the next step is about, 16 hex digits: the one that is on its way in or out.
    pub other: Option<String>,
    /// Whether the next step may be taken now.
    pub safe: bool,
    /// The nodes that have not confirmed the step before it.
    pub waiting_for: Vec<String>,
}

/// A step in the rotation of the farm secret.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretStep {
    /// No leader was heard, or nodes open more than two secrets.
    #[default]
    Unknown,
    /// No rotation is under way, or its last step: a new secret may be put second.
    Add,
    /// The other secret may be put first.
    SealFirst,
    /// The other secret may be removed.
    Remove,
    /// One of the two: the asked node has not run for long enough to know which secret is the new one.
    SealFirstOrRemove,
}

/// A node's ring.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RingStatus {
    /// 16 hex digits.
    pub fingerprint: String,
    /// Keys of a lower generation are refused.
    pub floor: u64,
    /// Session-ID sessions created before it are flushed, UTC milliseconds; 0: none are.
    pub sessions_from: u64,
    /// Highest in order first.
    pub keys: Vec<KeyStatus>,
}

/// One ticket key, without its secrets. Times are UTC milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KeyStatus {
    /// The first four bytes of its name, 8 hex digits.
    pub name_prefix: String,
    /// Its generation.
    pub generation: u64,
    /// `next`, `active`, `previous` or `expired`.
    pub state: String,
    /// When it begins to seal.
    pub seal_from: u64,
    /// When it stops sealing at the latest.
    pub seal_until: u64,
    /// When it stops opening, as far as is known now.
    pub open_until: u64,
}

/// A node's connection to the broker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BrokerStatus {
    /// Whether it is connected now.
    pub connected: bool,
    /// The URI in use, its password as `***`; `in-process` without a broker.
    pub uri: String,
}
