//! What operators ask of a node: the state of the whole farm, and a rotation.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::driver::Question;
use super::view::{NodeView, node_status};
use crate::clock::millis;
use crate::farm::{Ask, Reply};
use crate::proto;
use crate::status::{FarmStatus, NodeStatus};

/// How often a rotation looks who has the key.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Asks the farm through one node. Clones share the node.
#[derive(Clone, Debug)]
pub struct Operator {
    farm: String,
    pod: String,
    questions: mpsc::Sender<Question>,
    view: watch::Receiver<NodeView>,
}

/// Why a rotation did not happen.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// Nobody leads, or the leader did not answer.
    #[error("no leader answered: is the broker reachable, and may any node lead (keys.can_lead)?")]
    NoLeader,
    /// The leader is of another release.
    #[error("the leader {0} cannot do this: is it of an older release?")]
    Refused(String),
}

/// How far a rotation has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// The generation of the new key.
    pub generation: u64,
    /// Whether another rotation was under way already; its key is the new one.
    pub pending: bool,
    /// Nodes that hold the key.
    pub have: BTreeSet<String>,
    /// Nodes that do not, yet.
    pub missing: BTreeSet<String>,
}

impl Operator {
    pub(super) fn new(
        farm: String,
        pod: String,
        questions: mpsc::Sender<Question>,
        view: watch::Receiver<NodeView>,
    ) -> Self {
        Self { farm, pod, questions, view }
    }

    async fn ask(&self, ask: Ask) -> Reply {
        let (reply, answer) = oneshot::channel();
        if self.questions.send(Question { ask, reply }).await.is_err() {
            return Reply::NoLeader; // the node is stopping
        }
        answer.await.unwrap_or(Reply::NoLeader)
    }

    /// The whole farm's state, from its leader; without one, what this node knows.
    pub async fn status(&self) -> FarmStatus {
        let reply = self.ask(Ask::Status).await;
        let view = self.view.borrow().clone();
        let (leader, nodes) = match reply {
            Reply::Members { leader, members } => (Some(leader), members.into_iter().map(node_status).collect()),
            _ => (None, vec![NodeStatus { in_step: false, ..view.own.clone() }]),
        };
        let mut status = FarmStatus {
            farm: self.farm.clone(),
            pod: self.pod.clone(),
            asked: view.own.name.clone(),
            leader,
            nodes,
            ring: view.ring,
            broker: view.broker,
            warnings: Vec::new(),
        };
        status.warnings = warnings(&status);
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
        mut progress: impl FnMut(&Rotation) + Send,
    ) -> Result<Rotation, RotateError> {
        let give_up = Instant::now() + wait;
        let (generation, pending) = match self.ask(Ask::Rotate).await {
            Reply::Rotating { generation, pending } => (generation, pending),
            Reply::Refused { leader } => return Err(RotateError::Refused(leader)),
            Reply::Members { .. } | Reply::NoLeader => return Err(RotateError::NoLeader),
        };
        let own = self.view.borrow().own.name.clone();
        let missing = BTreeSet::from([own]);
        let mut rotation = Rotation { generation, pending, have: BTreeSet::new(), missing };
        loop {
            if let Reply::Members { members, .. } = self.ask(Ask::Status).await {
                let (have, missing) = holders(&members, generation);
                if (&have, &missing) != (&rotation.have, &rotation.missing) {
                    (rotation.have, rotation.missing) = (have, missing);
                    progress(&rotation);
                }
            }
            if rotation.missing.is_empty() || Instant::now() >= give_up {
                return Ok(rotation);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

fn holders(members: &[proto::Member], generation: u64) -> (BTreeSet<String>, BTreeSet<String>) {
    let (have, missing): (Vec<_>, Vec<_>) = members.iter().partition(|member| member.highest_generation >= generation);
    let names = |members: Vec<&proto::Member>| members.into_iter().map(|member| member.name.clone()).collect();
    (names(have), names(missing))
}

/// What in `status` an operator should look at.
fn warnings(status: &FarmStatus) -> Vec<String> {
    let mut warnings = Vec::new();
    if !status.broker.connected {
        warnings.push("this node is not connected to the broker".to_owned());
    }
    if status.leader.is_none() {
        warnings.push("no leader answered: only this node is shown, and no new key is minted for the farm".to_owned());
    }
    for node in status.nodes.iter().filter(|node| !node.in_step) {
        warnings.push(format!("{} is not in step: last report {} ago", node.name, span(node.last_report_ms)));
    }
    warnings.extend(same_names(status));
    warnings.extend(different_certificates(status));
    warnings
}

fn same_names(status: &FarmStatus) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let twice: BTreeSet<&str> =
        status.nodes.iter().map(|node| node.name.as_str()).filter(|name| !seen.insert(*name)).collect();
    twice.into_iter().map(|name| format!("two running nodes call themselves {name}: set node.name")).collect()
}

/// Hosts of one pod whose proxies write their certificates differently never resume each other's sessions.
fn different_certificates(status: &FarmStatus) -> Vec<String> {
    let mut pods = std::collections::BTreeMap::<&str, std::collections::BTreeMap<&str, Vec<&str>>>::new();
    for node in &status.nodes {
        for proxy in node.proxies.iter().filter(|proxy| !proxy.certificate_digest.is_empty()) {
            let digests = pods.entry(&node.pod).or_default();
            digests.entry(&proxy.certificate_digest).or_default().push(&node.name);
        }
    }
    let mut warnings = Vec::new();
    for (pod, digests) in pods.into_iter().filter(|(_, digests)| digests.len() > 1) {
        let groups: Vec<String> =
            digests.iter().map(|(digest, nodes)| format!("{} ({digest})", nodes.join(", "))).collect();
        warnings.push(format!(
            "proxies in pod {pod} name their certificates differently and do not resume each other's sessions: {}",
            groups.join("; ")
        ));
    }
    warnings
}

fn span(ms: u64) -> String {
    humantime::format_duration(Duration::from_millis(if ms > 10_000 { ms - ms % 1000 } else { ms })).to_string()
}

/// A rotation as the control socket reports it.
#[must_use]
pub fn rotate_progress(rotation: &Rotation, done: bool) -> proto::local::RotateProgress {
    proto::local::RotateProgress {
        generation: rotation.generation,
        have: rotation.have.iter().cloned().collect(),
        missing: rotation.missing.iter().cloned().collect(),
        done,
        pending: rotation.pending,
    }
}

/// How long `rotate` waits if the request does not say.
#[must_use]
pub fn rotate_wait(command: &proto::local::RotateCommand) -> Duration {
    Duration::from_millis(if command.wait_ms == 0 { millis(Duration::from_secs(10)) } else { command.wait_ms })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::ProxyStatus;

    fn node(name: &str, digest: &str) -> NodeStatus {
        let proxy = ProxyStatus { kind: "ats".into(), version: "9".into(), certificate_digest: digest.into() };
        NodeStatus { name: name.into(), pod: "p".into(), in_step: true, proxies: vec![proxy], ..NodeStatus::default() }
    }

    fn farm(nodes: Vec<NodeStatus>) -> FarmStatus {
        let broker = crate::status::BrokerStatus { connected: true, uri: "in-process".into() };
        FarmStatus { leader: Some("a".into()), nodes, broker, ..FarmStatus::default() }
    }

    #[test]
    fn a_healthy_farm_has_no_warnings() {
        assert_eq!(warnings(&farm(vec![node("a", "01"), node("b", "01")])), Vec::<String>::new());
    }

    #[test]
    fn hosts_whose_certificates_differ_are_named() {
        let found = warnings(&farm(vec![node("a", "01"), node("b", "02"), node("c", "01"), node("d", "")]));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("a, c (01); b (02)"), "{}", found[0]);
    }

    #[test]
    fn a_name_used_twice_is_named_once() {
        let found = warnings(&farm(vec![node("a", "01"), node("a", "01"), node("a", "01")]));
        assert_eq!(found, ["two running nodes call themselves a: set node.name"]);
    }

    #[test]
    fn who_lacks_a_generation_is_missing() {
        let member = |name: &str, highest_generation| proto::Member {
            name: name.into(),
            highest_generation,
            ..proto::Member::default()
        };
        let (have, missing) = holders(&[member("a", 7), member("b", 8), member("c", 6)], 7);
        assert_eq!((have.len(), missing), (2, BTreeSet::from(["c".to_owned()])));
    }
}
