//! The farm at a glance: what `/farm.json` says and the page shows, put together from `status` and the node's own history.

use std::time::Duration;

use crate::clock::{Now, millis};
use crate::status::{FarmStatus, HistoryStatus, Level, NodeCounts, PageStatus, Verdict};
use crate::words::listed;

/// So many nodes are listed at most: those that are out of step first. A browser shows them, and the answer stays below a megabyte.
const MOST_LISTED: usize = 1_000;

/// So many names stand in the verdict at most.
const MOST_NAMED: usize = 3;

/// How often the farm is asked at most while somebody looks, and how much longer that takes for each node: the leader's answer
/// lists them all.
const REFRESH: Duration = Duration::from_secs(2);
const REFRESH_PER_NODE: Duration = Duration::from_millis(20);

/// Puts the parts together at `now`.
#[must_use]
pub(crate) fn page_status(mut status: FarmStatus, history: HistoryStatus, now: Now) -> PageStatus {
    let verdict = verdict(&status);
    let total = status.nodes.len();
    let in_step = status.nodes.iter().filter(|node| node.in_step).count();
    status.nodes.sort_by(|a, b| (a.in_step, &a.name).cmp(&(b.in_step, &b.name)));
    status.nodes.truncate(MOST_LISTED);
    let counts = NodeCounts { total, in_step, listed: status.nodes.len() };
    let secret_step = status.secrets.in_words();
    let refresh_ms = millis(refresh_after(total));
    PageStatus { status, now: now.wall, verdict, counts, secret_step, history, refresh_ms }
}

/// For how long the state of a farm of `nodes` nodes is not asked for again.
#[must_use]
pub(crate) fn refresh_after(nodes: usize) -> Duration {
    REFRESH.max(REFRESH_PER_NODE * u32::try_from(nodes).unwrap_or(u32::MAX))
}

fn verdict(status: &FarmStatus) -> Verdict {
    let bad = |text| Verdict { level: Level::Bad, text };
    let asked = &status.asked;
    let Some(leader) = &status.leader else {
        return bad(match status.broker.connected {
            true => format!("No leader answers. Only {asked} is shown."),
            false => format!("{asked} is cut off from the broker. Only {asked} is shown."),
        });
    };
    let mut late: Vec<&str> = status.nodes.iter().filter(|node| !node.in_step).map(|node| node.name.as_str()).collect();
    late.sort_unstable();
    match (late.as_slice(), status.nodes.len()) {
        ([], 0) => return bad(format!("The leader, {leader}, knows no node yet.")),
        ([], _) => {}
        ([name], 1) => return bad(format!("{name}, the only node, is not in step.")),
        ([name], all) => return bad(format!("{name} is not in step; the other {} of {all} nodes are.", all - 1)),
        (names, all) => {
            return bad(format!(
                "{} of {all} nodes are not in step: {}.",
                names.len(),
                listed(names, MOST_NAMED, "more")
            ));
        }
    }
    let well = match status.nodes.len() {
        1 if status.broker.is_in_process() => format!("{asked} runs alone, without a broker"),
        1 => format!("The only node, {leader}, is in step and leads"),
        2 => format!("Both nodes are in step, led by {leader}"),
        all => format!("All {all} nodes are in step, led by {leader}"),
    };
    match status.warnings.len() {
        0 => Verdict { level: Level::Good, text: format!("{well}.") },
        1 => Verdict { level: Level::Look, text: format!("{well}. There is a warning.") },
        more => Verdict { level: Level::Look, text: format!("{well}. There are {more} warnings.") },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{BrokerStatus, NodeStatus};

    const NOW: Now = Now { wall: 1_700_000_000_000, mono: 5 };

    fn farm(nodes: &[(&str, bool)]) -> FarmStatus {
        let nodes = nodes.iter().map(|(name, in_step)| NodeStatus {
            name: (*name).to_owned(),
            in_step: *in_step,
            ..NodeStatus::default()
        });
        FarmStatus {
            asked: "a".into(),
            leader: Some("a".into()),
            nodes: nodes.collect(),
            broker: BrokerStatus { connected: true, uri: "amqp://mq1".into() },
            ..FarmStatus::default()
        }
    }

    fn says(status: &FarmStatus) -> (Level, String) {
        let Verdict { level, text } = verdict(status);
        (level, text)
    }

    #[test]
    fn a_farm_in_step_is_said_to_be_and_by_whom_it_is_led() {
        let all = [("a", true), ("b", true), ("c", true)];
        assert_eq!(says(&farm(&all)), (Level::Good, "All 3 nodes are in step, led by a.".into()));
        assert_eq!(says(&farm(&all[..2])), (Level::Good, "Both nodes are in step, led by a.".into()));
        assert_eq!(says(&farm(&all[..1])), (Level::Good, "The only node, a, is in step and leads.".into()));
        let broker = BrokerStatus { connected: true, uri: BrokerStatus::IN_PROCESS.into() };
        let alone = FarmStatus { broker, ..farm(&all[..1]) };
        assert_eq!(says(&alone), (Level::Good, "a runs alone, without a broker.".into()));
    }

    #[test]
    fn who_is_out_of_step_is_named_and_many_are_counted() {
        let one = farm(&[("a", true), ("b", false), ("c", true)]);
        assert_eq!(says(&one), (Level::Bad, "b is not in step; the other 2 of 3 nodes are.".into()));
        let two = farm(&[("c", false), ("a", true), ("b", false)]);
        assert_eq!(says(&two).1, "2 of 3 nodes are not in step: b and c.");
        let three = farm(&[("c", false), ("a", false), ("b", false)]);
        assert_eq!(says(&three).1, "3 of 3 nodes are not in step: a, b and c.");
        let many: Vec<String> = (10..30).map(|n| format!("n{n}")).collect();
        let many = farm(&many.iter().map(|name| (name.as_str(), false)).collect::<Vec<_>>());
        assert_eq!(says(&many).1, "20 of 20 nodes are not in step: n10, n11, n12 and 17 more.");
        assert_eq!(says(&farm(&[("a", false)])).1, "a, the only node, is not in step.");
        assert_eq!(says(&farm(&[])).1, "The leader, a, knows no node yet.");
    }

    #[test]
    fn without_a_leader_it_is_said_that_one_node_alone_is_shown() {
        let mut status = FarmStatus { leader: None, ..farm(&[("a", false)]) };
        assert_eq!(says(&status), (Level::Bad, "No leader answers. Only a is shown.".into()));
        status.broker.connected = false;
        assert_eq!(says(&status), (Level::Bad, "a is cut off from the broker. Only a is shown.".into()));
    }

    #[test]
    fn warnings_of_a_farm_in_step_are_counted() {
        let mut status = farm(&[("a", true), ("b", true)]);
        status.warnings.push("something".into());
        assert_eq!(says(&status), (Level::Look, "Both nodes are in step, led by a. There is a warning.".into()));
        status.warnings.push("something else".into());
        assert_eq!(says(&status).1, "Both nodes are in step, led by a. There are 2 warnings.");
    }

    #[test]
    fn of_a_farm_of_thousands_those_out_of_step_are_listed_first_and_it_is_asked_less_often() {
        let names: Vec<String> = (0..3_000).map(|n| format!("n{n:04}")).collect();
        let nodes: Vec<(&str, bool)> = names.iter().map(|name| (name.as_str(), name != "n2999")).collect();
        let page_status = page_status(farm(&nodes), HistoryStatus::default(), NOW);
        assert_eq!(page_status.counts, NodeCounts { total: 3_000, in_step: 2_999, listed: 1_000 });
        assert_eq!(page_status.status.nodes.len(), 1_000);
        assert_eq!(
            (page_status.status.nodes[0].name.as_str(), page_status.status.nodes[1].name.as_str()),
            ("n2999", "n0000")
        );
        assert_eq!((page_status.refresh_ms, page_status.now), (60_000, NOW.wall));
        assert_eq!(refresh_after(3), Duration::from_secs(2));
    }

    #[test]
    fn the_document_holds_what_status_prints() {
        let status = farm(&[("a", true), ("b", false)]);
        let page_status = page_status(status.clone(), HistoryStatus::default(), NOW);
        let json = serde_json::to_string(&page_status).unwrap();
        let read: FarmStatus = serde_json::from_str(&json).unwrap();
        assert_eq!(read, FarmStatus { nodes: vec![status.nodes[1].clone(), status.nodes[0].clone()], ..status });
        assert_eq!(serde_json::from_str::<PageStatus>(&json).unwrap(), page_status);
    }
}
