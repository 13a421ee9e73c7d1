//! What operators ask of a node: the state of the whole farm, a rotation, a revocation.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use self::secret_steps::secrets_status;
use crate::clock::{SystemClock, millis};
use crate::farm::{Ask, Reply};
use crate::node::{Node, NodeView, OperatorQuestion};
use crate::proto::{self, AuditEntry, AuditOutcome};
use crate::status::{AuditStatus, FarmStatus, NodeStatus, ReloadState, SecretsStatus};

#[cfg(feature = "daemon")]
pub(crate) mod history;
#[cfg(feature = "daemon")]
pub(crate) mod page_status;
mod secret_steps;
mod warnings;

/// How often a rotation or a revocation looks who has confirmed it.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// So many requests of operators are shown at most, of all that the nodes keep: the last ones.
const MOST_SHOWN: usize = 16;

/// Asks the farm through one node. Clones share the node.
#[derive(Clone, Debug)]
pub struct Operator {
    /// Who asks; empty: not said.
    user: String,
    farm: String,
    pod: String,
    max_clock_offset: Duration,
    questions: mpsc::Sender<OperatorQuestion>,
    view: watch::Receiver<NodeView>,
    clock: SystemClock,
}

/// Why a rotation or a revocation did not happen.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// The node that was asked is stopping.
    #[error("this node is stopping: ask it again when it runs, or another one")]
    Stopping,
    /// No node leads, or the leader did not answer.
    #[error("no leader answered: is the broker reachable, and may any node lead (keys.can_lead)?")]
    NoLeader,
    /// The same for a revocation, which can be had without a leader.
    #[error(
        "no leader answered, and nothing was revoked that is known here; `resumed revoke --local` revokes on this host alone, and the rest follows when it is reached"
    )]
    NothingRevoked,
    /// The leader is of another release.
    #[error("the leader {0} cannot do this: is it of an older release?")]
    Refused(String),
    /// What came for an answer is nothing that a leader sends.
    #[error("{0} answered what no leader does, and it was not acted on: is that host in other hands?")]
    BadAnswer(String),
}

/// How far a rotation or a revocation has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RotationProgress {
    /// The generation of the new key.
    pub generation: u64,
    /// Whether another rotation was under way already; its key is the new one.
    pub pending: bool,
    /// Nodes that have confirmed it.
    pub have: BTreeSet<String>,
    /// Nodes that have not, yet.
    pub missing: BTreeSet<String>,
}

/// What a node must report to have confirmed a change.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    /// The key of this generation, or a later one.
    Key(u64),
    /// This floor and this session floor, or higher ones.
    Floors(u64, u64),
}

impl Wanted {
    fn is_confirmed_by(self, member: &proto::Member) -> bool {
        match self {
            Self::Key(generation) => member.highest_generation >= generation,
            Self::Floors(floor, sessions_from) => member.floor >= floor && member.sessions_from >= sessions_from,
        }
    }
}

impl Operator {
    /// One that asks through `node`.
    #[must_use]
    pub fn of(node: &Node) -> Self {
        let settings = &node.settings;
        Self {
            user: String::new(),
            farm: settings.farm.clone(),
            pod: settings.pod.clone(),
            max_clock_offset: settings.keys.max_clock_offset,
            questions: node.questions.clone(),
            view: node.view.clone(),
            clock: node.proxies.clock,
        }
    }

    /// The same for `user`, who is named where requests are kept: at most 64 bytes of printable ASCII, or the leader takes no request.
    #[must_use]
    pub fn for_user(self, user: String) -> Self {
        Self { user, ..self }
    }

    /// Fails if the node is stopping.
    async fn ask(&self, ask: Ask) -> Result<Reply, OperatorError> {
        let (reply, answer) = oneshot::channel();
        let user = self.user.clone();
        self.questions.send(OperatorQuestion { ask, user, reply }).await.map_err(|_| OperatorError::Stopping)?;
        answer.await.map_err(|_| OperatorError::Stopping)
    }

    /// The whole farm's state, from its leader; without one, what this node knows.
    pub async fn status(&self) -> FarmStatus {
        let reply = self.ask(Ask::Status).await.unwrap_or(Reply::NoLeader);
        let view = self.view.borrow().clone();
        let mut requests = view.audit.clone();
        let bad_answer = match &reply {
            Reply::BadAnswer { from } => Some(OperatorError::BadAnswer(from.clone()).to_string()),
            _ => None,
        };
        let (leader, nodes) = match reply {
            Reply::Members { leader, mut members } => {
                let trails = members.iter_mut().filter_map(|member| member.operators.as_mut());
                requests.extend(trails.flat_map(|trail| std::mem::take(&mut trail.audit)));
                (Some(leader), members.into_iter().map(|member| told_or_own(member.into(), &view.own)).collect())
            }
            _ => (None, vec![NodeStatus { in_step: false, ..view.own.clone() }]),
        };
        let mut status = FarmStatus {
            farm: self.farm.clone(),
            pod: self.pod.clone(),
            asked: view.own.name.clone(),
            leader,
            nodes,
            secrets: SecretsStatus::default(),
            ring: view.ring.clone(),
            broker: view.broker.clone(),
            audit: last_requests(requests),
            sites: view.sites.clone(),
            warnings: Vec::new(),
        };
        // One node's view of its own secrets says nothing of the others'.
        if status.leader.is_some() {
            status.secrets = secrets_status(&status.nodes, &view.secrets_seen);
        }
        status.warnings.extend(bad_answer);
        status.warnings.extend(warnings::of(&status, &view, self.max_clock_offset, self.clock.now()));
        status
    }

    /// Rotates through the leader and waits until every node has the key, or `wait` is over. `progress` sees every
    /// change on the way.
    ///
    /// # Errors
    /// If no leader took the request.
    pub async fn rotate(
        &self,
        wait: Duration,
        progress: impl FnMut(&RotationProgress) + Send,
    ) -> Result<RotationProgress, OperatorError> {
        let give_up = Instant::now() + wait;
        match self.ask(Ask::Rotate).await? {
            Reply::Rotating { generation, pending } => {
                Ok(self.follow((generation, pending), Wanted::Key(generation), give_up, progress).await)
            }
            Reply::Refused { leader } => Err(OperatorError::Refused(leader)),
            Reply::BadAnswer { from } => Err(OperatorError::BadAnswer(from)),
            Reply::Revoked { .. } | Reply::Members { .. } | Reply::NoLeader => Err(OperatorError::NoLeader),
        }
    }

    /// Puts every ticket key but a new one out of use through the leader, flushes the sessions if that is asked, and waits
    /// until every node has confirmed it, or `wait` is over. `progress` sees every change on the way.
    ///
    /// # Errors
    /// If no leader took the request.
    pub async fn revoke(
        &self,
        flush_sessions: bool,
        wait: Duration,
        progress: impl FnMut(&RotationProgress) + Send,
    ) -> Result<RotationProgress, OperatorError> {
        let give_up = Instant::now() + wait;
        match self.ask(Ask::Revoke { flush_sessions }).await? {
            Reply::Revoked { floor, sessions_from } => {
                Ok(self.follow((floor, false), Wanted::Floors(floor, sessions_from), give_up, progress).await)
            }
            Reply::Refused { leader } => Err(OperatorError::Refused(leader)),
            Reply::BadAnswer { from } => Err(OperatorError::BadAnswer(from)),
            Reply::Rotating { .. } | Reply::Members { .. } | Reply::NoLeader => Err(OperatorError::NothingRevoked),
        }
    }

    /// The same in this node's own ring, without a leader. Other nodes follow when the ring reaches them.
    ///
    /// # Errors
    /// If the node is stopping.
    pub async fn revoke_local(&self, flush_sessions: bool) -> Result<RotationProgress, OperatorError> {
        match self.ask(Ask::RevokeLocal { flush_sessions }).await? {
            Reply::Revoked { floor, .. } => {
                let have = BTreeSet::from([self.view.borrow().own.name.clone()]);
                Ok(RotationProgress { generation: floor, pending: false, have, missing: BTreeSet::new() })
            }
            _ => Err(OperatorError::NoLeader),
        }
    }

    /// Watches the member table until every node confirms, or the time is over.
    async fn follow(
        &self,
        (generation, pending): (u64, bool),
        wanted: Wanted,
        give_up: Instant,
        mut progress: impl FnMut(&RotationProgress) + Send,
    ) -> RotationProgress {
        let own = self.view.borrow().own.name.clone();
        let missing = BTreeSet::from([own]);
        let mut rotation = RotationProgress { generation, pending, have: BTreeSet::new(), missing };
        loop {
            if let Ok(Reply::Members { members, .. }) = self.ask(Ask::Status).await {
                let (have, missing) = holders(&members, wanted);
                if (&have, &missing) != (&rotation.have, &rotation.missing) {
                    (rotation.have, rotation.missing) = (have, missing);
                    progress(&rotation);
                }
            }
            if rotation.missing.is_empty() || Instant::now() >= give_up {
                return rotation;
            }
            // The table of a large farm is a long one.
            let nodes = rotation.have.len() + rotation.missing.len();
            tokio::time::sleep(LOOK_EVERY * u32::try_from(1 + nodes / 1_000).unwrap_or(u32::MAX)).await;
        }
    }
}

/// A node as the leader tells of it; what a leader of an older release leaves out, the asked node knows of itself.
fn told_or_own(node: NodeStatus, own: &NodeStatus) -> NodeStatus {
    if node.boot_id == own.boot_id && node.reload.state == ReloadState::NotSaid {
        return NodeStatus { reload: own.reload.clone(), proxies: own.proxies.clone(), ..node };
    }
    node
}

/// The last of `requests`, oldest first, each once: the node that was asked keeps one, and so does the leader that took it.
/// If the asker has heard of no leader, the leader knows better.
fn last_requests(requests: Vec<AuditEntry>) -> Vec<AuditStatus> {
    let mut known = BTreeMap::<(String, u64), AuditEntry>::new();
    for request in requests {
        let key = (request.node.clone(), request.id);
        let kept = known.entry(key).or_insert_with(|| request.clone());
        if kept.outcome() == AuditOutcome::NoLeader {
            *kept = request;
        }
    }
    let mut last: Vec<AuditEntry> = known.into_values().collect();
    last.sort_by_key(|request| (request.at, request.id));
    last.iter().skip(last.len().saturating_sub(MOST_SHOWN)).map(Into::into).collect()
}

fn holders(members: &[proto::Member], wanted: Wanted) -> (BTreeSet<String>, BTreeSet<String>) {
    let (have, missing): (Vec<_>, Vec<_>) = members.iter().partition(|member| wanted.is_confirmed_by(member));
    let names = |members: Vec<&proto::Member>| members.into_iter().map(|member| member.name.clone()).collect();
    (names(have), names(missing))
}

/// How long `rotate` and `revoke` wait: as the request says, or ten seconds.
#[must_use]
pub fn wait_of(wait_ms: u64) -> Duration {
    Duration::from_millis(if wait_ms == 0 { millis(Duration::from_secs(10)) } else { wait_ms })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::in_process::{Hub, InProcess};
    use crate::envelope::{FarmSecret, Secrets};
    use crate::node::NodeSettings;

    #[tokio::test]
    async fn a_node_that_is_stopping_says_so_and_blames_no_broker() {
        let secrets = Secrets::new(vec![FarmSecret::generate().unwrap()]).unwrap();
        let (_keep, secrets) = watch::channel(std::sync::Arc::new(secrets));
        let bus = std::sync::Arc::new(InProcess::new(std::sync::Arc::new(Hub::default())));
        let settings = NodeSettings::new("edge-1", "prod", "default");
        let node = Node::start(settings, secrets, bus, SystemClock::start()).unwrap();
        let operator = Operator::of(&node);
        node.stop().await;
        let rotated = operator.rotate(Duration::ZERO, |_| {}).await.unwrap_err();
        for refused in [operator.revoke_local(true).await.unwrap_err(), rotated] {
            assert_eq!(refused.to_string(), "this node is stopping: ask it again when it runs, or another one");
        }
        assert_eq!(operator.status().await.asked, "edge-1", "what it knew last is shown");
    }
    use super::warnings::tests::node;
    use crate::status::{self, ReloadStatus};

    #[test]
    fn what_an_older_leader_leaves_out_the_asked_node_says_of_its_own_proxies() {
        let mut own = node("a", "01");
        own.proxies[0].warnings.push("tickets are off".into());
        own.reload.state = ReloadState::Taken;
        let told = told_or_own(node("a", "01"), &own);
        assert_eq!((told.proxies, told.reload), (own.proxies.clone(), own.reload.clone()));
        let other = NodeStatus { boot_id: "01".into(), ..node("b", "01") };
        assert_eq!(told_or_own(other.clone(), &own), other);
    }

    #[test]
    fn who_lacks_a_generation_is_missing() {
        let member = |name: &str, highest_generation| proto::Member {
            name: name.into(),
            highest_generation,
            ..proto::Member::default()
        };
        let (have, missing) = holders(&[member("a", 7), member("b", 8), member("c", 6)], Wanted::Key(7));
        assert_eq!((have.len(), missing), (2, BTreeSet::from(["c".to_owned()])));
    }

    #[test]
    fn a_revocation_is_confirmed_by_floors_and_not_by_a_newer_key() {
        let member = |name: &str, floor, sessions_from| proto::Member {
            name: name.into(),
            highest_generation: 99,
            floor,
            sessions_from,
            ..proto::Member::default()
        };
        let members = [member("a", 7, 5), member("b", 8, 6), member("c", 0, 9), member("d", 7, 4)];
        let (_, missing) = holders(&members, Wanted::Floors(7, 5));
        assert_eq!(missing, BTreeSet::from(["c".to_owned(), "d".to_owned()]));
        let (_, missing) = holders(&members, Wanted::Floors(7, 0));
        assert_eq!(missing, BTreeSet::from(["c".to_owned()]), "where no sessions were to be flushed");
    }

    #[test]
    fn what_an_old_leader_does_not_say_of_the_asked_node_it_says_itself() {
        let taken = ReloadStatus { state: ReloadState::Taken, at: 5, reason: None };
        let mut own = node("a", "");
        (own.boot_id, own.reload) = ("01".into(), taken.clone());
        let told = NodeStatus { boot_id: "01".into(), in_step: false, ..node("a", "") };
        let shown = told_or_own(told, &own);
        assert_eq!((shown.reload, shown.in_step), (taken, false));
        assert_eq!(told_or_own(node("b", ""), &own).reload.state, ReloadState::NotSaid);
    }

    #[test]
    fn the_last_requests_are_shown_in_order_and_each_once() {
        let entry = |node: &str, id, at, outcome: AuditOutcome| AuditEntry {
            id,
            at,
            node: node.into(),
            outcome: outcome.into(),
            ..AuditEntry::default()
        };
        // The asker gave up; the leader had taken it. Two nodes may choose one id.
        let both = vec![
            entry("a", 1, 10, AuditOutcome::NoLeader),
            entry("a", 1, 12, AuditOutcome::Done),
            entry("b", 1, 11, AuditOutcome::Pending),
        ];
        let shown: Vec<_> = last_requests(both).into_iter().map(|request| (request.node, request.outcome)).collect();
        assert_eq!(
            shown,
            [("b".to_owned(), status::AuditOutcome::Pending), ("a".to_owned(), status::AuditOutcome::Done)]
        );
        let many = (0..40).map(|id| entry("a", id, 40 - id, AuditOutcome::Done)).collect();
        let shown: Vec<u64> = last_requests(many).iter().map(|request| request.at).collect();
        assert_eq!(shown, (25..=40).collect::<Vec<_>>());
    }
}
