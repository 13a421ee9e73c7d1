//! What operators ask of a node: the state of the whole farm, a rotation, a revocation.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::driver::Question;
use super::secret_steps::{refusals, secrets_status};
use super::view::{NodeView, audit_status, node_status};
use crate::clock::{SystemClock, millis};
use crate::farm::{Ask, Reply};
use crate::proto::{self, AuditEntry, AuditOutcome};
use crate::status::{AuditStatus, FarmStatus, NodeStatus, ReloadState, SecretsStatus, SiteStatus};

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
    questions: mpsc::Sender<Question>,
    view: watch::Receiver<NodeView>,
}

/// Why a rotation or a revocation did not happen.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// Nobody leads, or the leader did not answer.
    #[error("no leader answered: is the broker reachable, and may any node lead (keys.can_lead)?")]
    NoLeader,
    /// The same for a revocation, which can be had without a leader.
    #[error(
        "no leader answered, and nothing was revoked that is known here; `resumed revoke --local` revokes on this host alone, and the rest follows when it is reached"
    )]
    NobodyToRevoke,
    /// The leader is of another release.
    #[error("the leader {0} cannot do this: is it of an older release?")]
    Refused(String),
    /// What came for an answer is nothing that a leader sends.
    #[error("{0} answered what no leader does, and it was not acted on: is that host in other hands?")]
    BadAnswer(String),
}

/// How far a rotation or a revocation has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
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
    pub(super) fn new(
        (farm, pod): (String, String),
        max_clock_offset: Duration,
        questions: mpsc::Sender<Question>,
        view: watch::Receiver<NodeView>,
    ) -> Self {
        Self { user: String::new(), farm, pod, max_clock_offset, questions, view }
    }

    /// The same for `user`, who is named where requests are kept: see [`is_user`](crate::farm::is_user).
    #[must_use]
    pub fn for_user(self, user: String) -> Self {
        Self { user, ..self }
    }

    async fn ask(&self, ask: Ask) -> Reply {
        let (reply, answer) = oneshot::channel();
        let user = self.user.clone();
        if self.questions.send(Question { ask, user, reply }).await.is_err() {
            return Reply::NoLeader; // the node is stopping
        }
        answer.await.unwrap_or(Reply::NoLeader)
    }

    /// The whole farm's state, from its leader; without one, what this node knows.
    pub async fn status(&self) -> FarmStatus {
        let reply = self.ask(Ask::Status).await;
        let view = self.view.borrow().clone();
        let mut requests = view.audit.clone();
        let bad_answer = match &reply {
            Reply::BadAnswer { from } => Some(RotateError::BadAnswer(from.clone()).to_string()),
            _ => None,
        };
        let (leader, nodes) = match reply {
            Reply::Members { leader, mut members } => {
                let trails = members.iter_mut().filter_map(|member| member.operators.as_mut());
                requests.extend(trails.flat_map(|trail| std::mem::take(&mut trail.audit)));
                (Some(leader), members.into_iter().map(|member| told_or_own(node_status(member), &view.own)).collect())
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
            ring: view.ring,
            broker: view.broker,
            audit: last_requests(requests),
            sites: view.sites,
            warnings: Vec::new(),
        };
        // One node's view of its own secrets says nothing of the others'.
        if status.leader.is_some() {
            status.secrets = secrets_status(&status.nodes, &view.secret_history);
        }
        status.warnings.extend(bad_answer);
        status.warnings.extend(view.refused.iter().map(|refused| format!("{}: {refused}", status.asked)));
        status.warnings.extend(warnings(&status, SystemClock::start().now().wall));
        status.warnings.extend(wrong_clocks(&status, &view.skewed, millis(self.max_clock_offset)));
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
        progress: impl FnMut(&Rotation) + Send,
    ) -> Result<Rotation, RotateError> {
        let give_up = Instant::now() + wait;
        match self.ask(Ask::Rotate).await {
            Reply::Rotating { generation, pending } => {
                Ok(self.follow((generation, pending), Wanted::Key(generation), give_up, progress).await)
            }
            Reply::Refused { leader } => Err(RotateError::Refused(leader)),
            Reply::BadAnswer { from } => Err(RotateError::BadAnswer(from)),
            Reply::Revoked { .. } | Reply::Members { .. } | Reply::NoLeader => Err(RotateError::NoLeader),
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
        progress: impl FnMut(&Rotation) + Send,
    ) -> Result<Rotation, RotateError> {
        let give_up = Instant::now() + wait;
        match self.ask(Ask::Revoke { flush_sessions }).await {
            Reply::Revoked { floor, sessions_from } => {
                Ok(self.follow((floor, false), Wanted::Floors(floor, sessions_from), give_up, progress).await)
            }
            Reply::Refused { leader } => Err(RotateError::Refused(leader)),
            Reply::BadAnswer { from } => Err(RotateError::BadAnswer(from)),
            Reply::Rotating { .. } | Reply::Members { .. } | Reply::NoLeader => Err(RotateError::NobodyToRevoke),
        }
    }

    /// The same in this node's own ring, without a leader. Other nodes follow when the ring reaches them.
    ///
    /// # Errors
    /// If the node is stopping.
    pub async fn revoke_local(&self, flush_sessions: bool) -> Result<Rotation, RotateError> {
        match self.ask(Ask::RevokeLocal { flush_sessions }).await {
            Reply::Revoked { floor, .. } => {
                let have = BTreeSet::from([self.view.borrow().own.name.clone()]);
                Ok(Rotation { generation: floor, pending: false, have, missing: BTreeSet::new() })
            }
            _ => Err(RotateError::NoLeader),
        }
    }

    /// Watches the member table until every node confirms, or the time is over.
    async fn follow(
        &self,
        (generation, pending): (u64, bool),
        wanted: Wanted,
        give_up: Instant,
        mut progress: impl FnMut(&Rotation) + Send,
    ) -> Rotation {
        let own = self.view.borrow().own.name.clone();
        let missing = BTreeSet::from([own]);
        let mut rotation = Rotation { generation, pending, have: BTreeSet::new(), missing };
        loop {
            if let Reply::Members { members, .. } = self.ask(Ask::Status).await {
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
    last.iter().skip(last.len().saturating_sub(MOST_SHOWN)).map(audit_status).collect()
}

fn holders(members: &[proto::Member], wanted: Wanted) -> (BTreeSet<String>, BTreeSet<String>) {
    let (have, missing): (Vec<_>, Vec<_>) = members.iter().partition(|member| wanted.is_confirmed_by(member));
    let names = |members: Vec<&proto::Member>| members.into_iter().map(|member| member.name.clone()).collect();
    (names(have), names(missing))
}

/// What in `status` an operator should look at, at the wall time `now` in UTC milliseconds.
fn warnings(status: &FarmStatus, now: u64) -> Vec<String> {
    let mut warnings = Vec::new();
    if !status.broker.connected {
        warnings.push("this node is not connected to the broker".to_owned());
    }
    if status.leader.is_none() {
        warnings.push("no leader answered: only this node is shown, and no new key is minted for the farm".to_owned());
        warnings.push(without_a_leader(status, now));
    }
    for node in status.nodes.iter().filter(|node| !node.in_step) {
        warnings.push(format!("{} is not in step: last report {} ago", node.name, span(node.last_report_ms)));
    }
    warnings.extend(silent_sites(status));
    warnings.extend(refused_reloads(&status.nodes, now));
    warnings.extend(refusals(&status.nodes));
    warnings.extend(same_names(status));
    warnings.extend(different_certificates(status));
    warnings.extend(proxies_warnings(status));
    warnings
}

/// Other sites that the leader hears no longer, while nodes here are all in step.
fn silent_sites(status: &FarmStatus) -> Vec<String> {
    let silent = status.sites.iter().filter(|site| site.silent);
    let sentence = |site: &SiteStatus| {
        format!(
            "the site {} was last heard {} ago (its leader was {}): no keys come from there, and tickets made there may not \
             open here. Look at the link between the brokers",
            site.name,
            span(site.silent_ms),
            site.leader
        )
    };
    silent.map(sentence).collect()
}

/// Nodes that did not take the farm secrets that they were given last: the old ones may be known to somebody.
fn refused_reloads(nodes: &[NodeStatus], now: u64) -> Vec<String> {
    let refused = nodes.iter().filter(|node| node.reload.state == ReloadState::Refused);
    let sentence = |node: &NodeStatus| {
        let (ago, why) = (span(now.saturating_sub(node.reload.at)), node.reload.reason.as_deref().unwrap_or_default());
        format!("{} refused its farm secrets {ago} ago and goes on with those of before: {why}", node.name)
    };
    refused.map(sentence).collect()
}

/// What becomes of the ticket keys if nobody leads for long (`keys.max_seal_age`).
fn without_a_leader(status: &FarmStatus, now: u64) -> String {
    let last = status.ring.keys.iter().filter(|key| key.state != "expired").map(|key| key.seal_until).max();
    match last.and_then(|last| last.checked_sub(now)).filter(|left| *left > 0) {
        Some(left) => format!(
            "the last ticket key of {} seals for {} more at most (keys.max_seal_age); without a leader until then, every \
             node seals with a key of its own, and tickets resume only where they were made",
            status.asked,
            span(left)
        ),
        None => format!("no ticket key of {} may seal", status.asked),
    }
}

/// Nodes whose clock is too far from the leader's, or else from the asked node's, to be listened to.
fn wrong_clocks(status: &FarmStatus, skewed: &[(String, i64)], limit_ms: u64) -> Vec<String> {
    let clock = |name: &str, offset_ms: i64, whose: &str| {
        let (size, side) = (span(offset_ms.unsigned_abs()), if offset_ms > 0 { "ahead of" } else { "behind" });
        format!(
            "the clock of {name} is {size} {side} {whose}: neither acts on what the other sends (node.max_clock_offset)"
        )
    };
    let from_leader = status.nodes.iter().filter(|node| node.clock_offset_ms.unsigned_abs() > limit_ms);
    let whose = format!("that of the leader, {}", status.leader.as_deref().unwrap_or_default());
    let mut warnings: Vec<_> = from_leader.map(|node| clock(&node.name, node.clock_offset_ms, &whose)).collect();
    if status.leader.is_none() {
        let whose = format!("that of {}, which is asked", status.asked);
        warnings.extend(skewed.iter().map(|(name, offset_ms)| clock(name, *offset_ms, &whose)));
    }
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

/// What proxies say of their own settings: each sentence once, with the nodes beside which it is said.
fn proxies_warnings(status: &FarmStatus) -> Vec<String> {
    let mut said = BTreeMap::<(&str, &str, &str), BTreeSet<&str>>::new();
    for node in &status.nodes {
        for proxy in &node.proxies {
            for warning in &proxy.warnings {
                said.entry((&proxy.kind, &proxy.version, warning)).or_default().insert(&node.name);
            }
        }
    }
    let sentence = |((kind, version, warning), nodes): ((&str, &str, &str), BTreeSet<&str>)| {
        format!("{} ({kind} {version}): {warning}", Vec::from_iter(nodes).join(", "))
    };
    said.into_iter().map(sentence).collect()
}

fn span(ms: u64) -> String {
    let ms = match ms {
        600_000.. => ms - ms % 60_000,
        10_001.. => ms - ms % 1000,
        _ => ms,
    };
    humantime::format_duration(Duration::from_millis(ms)).to_string()
}

/// A rotation or a revocation as the control socket reports it.
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

/// How long `rotate` and `revoke` wait: as the request says, or ten seconds.
#[must_use]
pub fn wait_of(wait_ms: u64) -> Duration {
    Duration::from_millis(if wait_ms == 0 { millis(Duration::from_secs(10)) } else { wait_ms })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{ProxyStatus, ReloadStatus};

    fn node(name: &str, digest: &str) -> NodeStatus {
        let proxy = ProxyStatus {
            kind: "ats".into(),
            version: "9".into(),
            certificate_digest: digest.into(),
            ..ProxyStatus::default()
        };
        NodeStatus { name: name.into(), pod: "p".into(), in_step: true, proxies: vec![proxy], ..NodeStatus::default() }
    }

    fn farm(nodes: Vec<NodeStatus>) -> FarmStatus {
        let broker = crate::status::BrokerStatus { connected: true, uri: "in-process".into() };
        FarmStatus { leader: Some("a".into()), nodes, broker, ..FarmStatus::default() }
    }

    #[test]
    fn a_healthy_farm_has_no_warnings() {
        assert_eq!(warnings(&farm(vec![node("a", "01"), node("b", "01")]), 0), Vec::<String>::new());
    }

    #[test]
    fn hosts_whose_certificates_differ_are_named() {
        let found = warnings(&farm(vec![node("a", "01"), node("b", "02"), node("c", "01"), node("d", "")]), 0);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("a, c (01); b (02)"), "{}", found[0]);
    }

    #[test]
    fn a_proxys_warning_names_the_nodes_beside_which_it_is_said() {
        let mut nodes = vec![node("b", "01"), node("a", "01"), node("c", "01")];
        for (node, warning) in [(0, "tickets are off"), (1, "tickets are off"), (1, "no session cache")] {
            nodes[node].proxies[0].warnings.push(warning.into());
        }
        let found = warnings(&farm(nodes), 0);
        assert_eq!(found, ["a (ats 9): no session cache", "a, b (ats 9): tickets are off"]);
    }

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
    fn a_name_used_twice_is_named_once() {
        let found = warnings(&farm(vec![node("a", "01"), node("a", "01"), node("a", "01")]), 0);
        assert_eq!(found, ["two running nodes call themselves a: set node.name"]);
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
    fn a_node_that_refused_its_farm_secrets_is_named_with_the_reason() {
        let mut status = farm(vec![node("a", ""), node("b", "")]);
        let reason = Some("farm secret /x: has mode 0644".to_owned());
        status.nodes[1].reload = ReloadStatus { state: ReloadState::Refused, at: 5_000, reason };
        assert_eq!(
            warnings(&status, 8_000),
            ["b refused its farm secrets 3s ago and goes on with those of before: farm secret /x: has mode 0644"]
        );
        status.nodes[1].reload.state = ReloadState::Taken;
        assert_eq!(warnings(&status, 8_000), Vec::<String>::new());
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
        assert_eq!(shown, [("b".to_owned(), "pending".to_owned()), ("a".to_owned(), "done".to_owned())]);
        let many = (0..40).map(|id| entry("a", id, 40 - id, AuditOutcome::Done)).collect();
        let shown: Vec<u64> = last_requests(many).iter().map(|request| request.at).collect();
        assert_eq!(shown, (25..=40).collect::<Vec<_>>());
    }

    #[test]
    fn a_wrong_clock_is_named_with_what_it_is_wrong_by() {
        let mut status = farm(vec![node("a", ""), node("b", ""), node("c", ""), node("d", "")]);
        (status.nodes[1].clock_offset_ms, status.nodes[2].clock_offset_ms) = (-3_600_400, 400_000);
        status.nodes[3].clock_offset_ms = 300_000;
        let skewed = [("e".to_owned(), 360_000)];
        let found = wrong_clocks(&status, &skewed, 300_000);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("the clock of b is 1h behind that of the leader, a: "), "{}", found[0]);
        assert!(found[1].starts_with("the clock of c is 6m 40s ahead of that of the leader, a: "), "{}", found[1]);
        // The one with the wrong clock hears no leader, and sees that everybody else's differs from its own.
        let alone = FarmStatus { leader: None, asked: "b".into(), nodes: vec![node("b", "")], ..status };
        let found = wrong_clocks(&alone, &skewed, 300_000);
        assert!(found[0].starts_with("the clock of e is 6m ahead of that of b, which is asked: "), "{found:?}");
    }

    #[test]
    fn without_a_leader_it_is_said_how_long_the_keys_last() {
        let key = |state: &str, seal_until| crate::status::KeyStatus {
            state: state.into(),
            seal_until,
            ..crate::status::KeyStatus::default()
        };
        let mut status = FarmStatus { leader: None, asked: "b".into(), ..farm(vec![node("b", "")]) };
        status.ring.keys = vec![key("next", 8_400_000), key("active", 5_000_000), key("expired", 90_000_000)];
        let found = warnings(&status, 1_200_000);
        assert!(found[1].starts_with("the last ticket key of b seals for 2h more at most"), "{found:?}");
        assert_eq!(warnings(&status, 8_400_000)[1], "no ticket key of b may seal");
        status.leader = Some("a".into());
        assert_eq!(warnings(&status, 1_200_000), Vec::<String>::new());
    }
}
