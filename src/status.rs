//! The farm's state as `status --json` prints it, and as the page for people shows it. Never key material.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::keys::KeyState;

mod from_proto;

/// What the page for people shows, and `/farm.json` says: the farm's state and the last minutes of the node that was asked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PageStatus {
    /// The farm's state. Nodes that are out of step come first; of a very large farm not all are in it, see `counts`.
    #[serde(flatten)]
    pub status: FarmStatus,
    /// When this was put together, UTC milliseconds by the asked node's clock.
    pub now: u64,
    /// The farm's state in one sentence.
    pub verdict: Verdict,
    /// How many nodes there are.
    pub counts: NodeCounts,
    /// Where a change of the farm secret stands, if one is under way.
    pub secret_step: Option<String>,
    /// What the asked node counted lately.
    pub history: HistoryStatus,
    /// After so many milliseconds there will be something new to ask for.
    pub refresh_ms: u64,
}

/// A farm's state in one sentence.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// How bad it is.
    pub level: Level,
    /// The sentence.
    pub text: String,
}

/// How much a state asks of an operator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// All is well.
    #[default]
    Good,
    /// The farm works; something in it should be looked at.
    Look,
    /// Hosts are, or soon will be, unable to resume each other's sessions.
    Bad,
}

/// How many nodes a farm has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeCounts {
    /// All that the leader knows.
    pub total: usize,
    /// Of these, in step.
    pub in_step: usize,
    /// Of these, listed.
    pub listed: usize,
}

/// What one node counted over the last minutes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryStatus {
    /// How many milliseconds the steps reach back at most.
    pub window_ms: u64,
    /// Oldest first, without a gap.
    pub steps: Vec<HistoryStep>,
}

/// What one node counted in some seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryStep {
    /// How many milliseconds before now it ended.
    pub ended_ms_ago: u64,
    /// How many milliseconds it lasted.
    pub ms: u64,
    /// Sessions of this node's proxies sent to the pod.
    pub published: u64,
    /// Sessions that came from the pod.
    pub received: u64,
    /// Of these, taken into the cache.
    pub inserted: u64,
    /// Sessions of the pod that clients brought back to a proxy here.
    pub brought_back: u64,
    /// Messages that never came, by the gaps in senders' sequences.
    pub missed: u64,
    /// Sessions that were neither sent nor kept, by reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dropped: BTreeMap<String, u64>,
    /// Messages that were not acted on, by reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub refused: BTreeMap<String, u64>,
}

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
    /// The last requests of operators, oldest first: at most sixteen.
    #[serde(default)]
    pub audit: Vec<AuditStatus>,
    /// The other sites of the farm, whose brokers are federated with this one, by name: as the leader hears them.
    #[serde(default)]
    pub sites: Vec<SiteStatus>,
    /// What an operator should look at, in sentences.
    pub warnings: Vec<String>,
}

/// Another site of the farm, with a broker and a leader of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteStatus {
    /// What its broker calls its cluster (`rabbitmqctl cluster_status`).
    pub name: String,
    /// The node that led there when it was last heard.
    pub leader: String,
    /// Whether three of its beats have passed since then.
    pub silent: bool,
    /// Milliseconds since the leader here heard it, by what that said last.
    pub silent_ms: u64,
    /// Its beat in milliseconds.
    pub report_every_ms: u64,
}

/// One request of an operator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditStatus {
    /// When it was, UTC milliseconds by the clock of the node that keeps it.
    pub at: u64,
    /// What was asked for.
    pub action: AuditAction,
    /// Whether sessions were to be flushed as well.
    pub flush_sessions: bool,
    /// The node that was asked.
    pub node: String,
    /// Who asked there: a name, or a number; `None` if that node, of an older release, does not say.
    pub user: Option<String>,
    /// What became of it.
    pub outcome: AuditOutcome,
    /// The ticket key that came of it, 0: none.
    pub generation: u64,
}

/// What an operator asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditAction {
    /// A new ticket key.
    Rotate,
    /// The end of every older ticket key.
    Revoke,
    /// The same, without a leader, in the asked node's own ring.
    RevokeLocal,
    /// What this release does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

impl AuditAction {
    /// Its word in `status --json` and in the log.
    #[must_use]
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Rotate => "rotate",
            Self::Revoke => "revoke",
            Self::RevokeLocal => "revoke_local",
            Self::Unknown => "unknown",
        }
    }
}

/// What became of a request of an operator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditOutcome {
    /// It was done.
    Done,
    /// A rotation was under way already.
    Pending,
    /// The leader could not do it.
    Refused,
    /// No leader answered; one may still have taken it.
    NoLeader,
    /// What this release does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

impl AuditOutcome {
    /// Its word in `status --json` and in the log.
    #[must_use]
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Pending => "pending",
            Self::Refused => "refused",
            Self::NoLeader => "no_leader",
            Self::Unknown => "unknown",
        }
    }
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
    /// What became of its last attempt to read them again.
    #[serde(default)]
    pub reload: ReloadStatus,
}

/// What became of a node's last attempt to read its farm secrets again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadStatus {
    /// What became of it.
    pub state: ReloadState,
    /// When it was, UTC milliseconds by the node's clock; 0: there was none.
    pub at: u64,
    /// Why it was refused.
    pub reason: Option<String>,
}

/// How an attempt to read the farm secrets again ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReloadState {
    /// The node, or the leader that tells of it, is of a release that does not say.
    #[default]
    NotSaid,
    /// There was none since the node started.
    None,
    /// What it read is in use.
    Taken,
    /// It goes on with the secrets of before.
    Refused,
}

/// One proxy beside a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProxyStatus {
    /// What kind of server it is, as it says: `ats` is Traffic Server with the plugin, and a server that embeds a node says what
    /// it registers, as `rustls` in `examples/embedded_node.rs`. Never more than 64 characters from a plugin. The servers of
    /// `resumed demo` do not report themselves.
    pub kind: String,
    /// The proxy's release.
    pub version: String,
    /// A digest of its certificate names as configured, 16 hex digits; empty if unknown.
    pub certificate_digest: String,
    /// Settings of the proxy that break resumption across the farm, in sentences; none from a node, or by a leader, of an older
    /// release. Of all proxies of a node 16 at most.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// The farm secrets in use, and the next step of their rotation. `[old]` → `[old, new]` → `[new, old]` → `[new]` in
/// `secret.files`, each on every node, with a reload, before the next.
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

impl SecretsStatus {
    /// Where the rotation of the farm secret stands and when its next step is safe, if one is under way. Names of nodes
    /// stand in it as they came.
    #[must_use]
    pub fn in_words(&self) -> Option<String> {
        let Self { sealing, next_step, other, safe, waiting_for } = self;
        let other = other.as_deref()?;
        let next = match next_step {
            SecretStep::Unknown => return None,
            SecretStep::Add => format!("the end of {other}"),
            SecretStep::SealFirst => format!("put {other} first in secret.files"),
            SecretStep::Remove => format!("remove {other} from secret.files"),
            SecretStep::SealFirstOrRemove => {
                format!("put {other} first in secret.files if it is the new one, or remove it if it is the old one")
            }
        };
        let when = match (safe, waiting_for.len()) {
            (true, _) => "safe now, on every node, each with a reload".to_owned(),
            (false, 0) => "not safe yet".to_owned(),
            (false, _) => format!("NOT SAFE yet, waiting for {}", waiting_for.join(", ")),
        };
        let sealing = sealing.join(" and ");
        Some(format!("Rotating the farm secret: nodes seal with {sealing}. Next: {next}; {when}."))
    }
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

impl RingStatus {
    /// The key that seals, if one does.
    #[must_use]
    pub fn active(&self) -> Option<&KeyStatus> {
        self.keys.iter().find(|key| key.state == KeyState::Active)
    }
}

/// One ticket key, without its secrets. Times are UTC milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeyStatus {
    /// The first four bytes of its name, 8 hex digits.
    pub name_prefix: String,
    /// Its generation.
    pub generation: u64,
    /// What it does at the node.
    pub state: KeyState,
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
    /// The URI in use, its password as `***`; [`Self::IN_PROCESS`] without a broker.
    pub uri: String,
}

impl BrokerStatus {
    /// What stands in place of a URI if there is no broker, and the bus is within the process.
    pub const IN_PROCESS: &str = "in-process";

    /// Whether there is no broker.
    #[must_use]
    pub fn is_in_process(&self) -> bool {
        self.uri == Self::IN_PROCESS
    }
}

#[cfg(test)]
mod tests;
