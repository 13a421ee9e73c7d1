//! What an operator should look at: the warnings of `resumed status`.
//!
//! A warning is a sentence that names the node and says what to look at or to set. One for a new kind of trouble is a function
//! here, called by [`warnings`]; what the node that is asked knows alone is looked at in [`of`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::secret_steps::refusals;
use crate::clock::{Now, millis};
use crate::keys::KeyState;
use crate::node::NodeView;
use crate::status::{FarmStatus, NodeStatus, ReloadState, SiteStatus};
use crate::words::rounded;

/// Everything that is wrong in `status` at `now`, as the node that shows `view` sees it. Clocks may be `max_clock_offset` apart.
pub(super) fn of(status: &FarmStatus, view: &NodeView, max_clock_offset: Duration, now: Now) -> Vec<String> {
    let refused = view.refused.iter().map(|refused| format!("{}: {refused}", status.asked));
    let found = warnings(status, now.wall);
    refused.chain(found).chain(wrong_clocks(status, &view.skewed, millis(max_clock_offset))).collect()
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
        warnings.push(format!("{} is not in step: last report {} ago", node.name, rounded(node.last_report_ms)));
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
            rounded(site.silent_ms),
            site.leader
        )
    };
    silent.map(sentence).collect()
}

/// Nodes that did not take the farm secrets that they were given last: the old ones may be known to somebody.
fn refused_reloads(nodes: &[NodeStatus], now: u64) -> Vec<String> {
    let refused = nodes.iter().filter(|node| node.reload.state == ReloadState::Refused);
    let sentence = |node: &NodeStatus| {
        let (ago, why) =
            (rounded(now.saturating_sub(node.reload.at)), node.reload.reason.as_deref().unwrap_or_default());
        format!("{} refused its farm secrets {ago} ago and goes on with those of before: {why}", node.name)
    };
    refused.map(sentence).collect()
}

/// What becomes of the ticket keys if no node leads for long (`keys.max_seal_age`).
fn without_a_leader(status: &FarmStatus, now: u64) -> String {
    let last = status.ring.keys.iter().filter(|key| key.state != KeyState::Expired).map(|key| key.seal_until).max();
    match last.and_then(|last| last.checked_sub(now)).filter(|left| *left > 0) {
        Some(left) => format!(
            "the last ticket key of {} seals for {} more at most (keys.max_seal_age); without a leader until then, every \
             node seals with a key of its own, and tickets resume only where they were made",
            status.asked,
            rounded(left)
        ),
        None => format!("no ticket key of {} may seal", status.asked),
    }
}

/// Nodes whose clock is too far from the leader's, or else from the asked node's, to be listened to.
fn wrong_clocks(status: &FarmStatus, skewed: &[(String, i64)], limit_ms: u64) -> Vec<String> {
    let clock = |name: &str, offset_ms: i64, whose: &str| {
        let (size, side) = (rounded(offset_ms.unsigned_abs()), if offset_ms > 0 { "ahead of" } else { "behind" });
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
    let mut pods = BTreeMap::<&str, BTreeMap<&str, Vec<&str>>>::new();
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::status::{ProxyStatus, ReloadStatus};

    pub(in crate::operator) fn node(name: &str, digest: &str) -> NodeStatus {
        let proxy = ProxyStatus {
            kind: "ats".into(),
            version: "9".into(),
            certificate_digest: digest.into(),
            ..ProxyStatus::default()
        };
        NodeStatus { name: name.into(), pod: "p".into(), in_step: true, proxies: vec![proxy], ..NodeStatus::default() }
    }

    fn farm(nodes: Vec<NodeStatus>) -> FarmStatus {
        let broker =
            crate::status::BrokerStatus { connected: true, uri: crate::status::BrokerStatus::IN_PROCESS.into() };
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
    fn a_name_used_twice_is_named_once() {
        let found = warnings(&farm(vec![node("a", "01"), node("a", "01"), node("a", "01")]), 0);
        assert_eq!(found, ["two running nodes call themselves a: set node.name"]);
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
        let key = |state, seal_until| crate::status::KeyStatus {
            name_prefix: "01020304".into(),
            generation: 1,
            state,
            seal_from: 0,
            seal_until,
            open_until: 2 * seal_until,
        };
        let mut status = FarmStatus { leader: None, asked: "b".into(), ..farm(vec![node("b", "")]) };
        status.ring.keys =
            vec![key(KeyState::Next, 8_400_000), key(KeyState::Active, 5_000_000), key(KeyState::Expired, 90_000_000)];
        let found = warnings(&status, 1_200_000);
        assert!(found[1].starts_with("the last ticket key of b seals for 2h more at most"), "{found:?}");
        assert_eq!(warnings(&status, 8_400_000)[1], "no ticket key of b may seal");
        status.leader = Some("a".into());
        assert_eq!(warnings(&status, 1_200_000), Vec::<String>::new());
    }
}
