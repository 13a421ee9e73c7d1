//! Where a rotation of the farm secret stands, from the secrets that the nodes say they open.
//!
//! A node's first secret seals and all open. So a farm goes from `[old]` to `[old, new]` to `[new, old]` to `[new]`, one
//! step on every node before the next: then no message is ever sealed with what somebody does not open.

use std::collections::BTreeSet;

use crate::node::SecretsSeen;
use crate::status::{NodeStatus, SecretStep, SecretsStatus};

type Predicate<'a> = Box<dyn Fn(&NodeStatus) -> bool + 'a>;

/// What `nodes`, the whole farm, open and seal with, and what may be done next. `history` is that of the node that is
/// asked.
#[must_use]
pub(crate) fn secrets_status(nodes: &[NodeStatus], history: &SecretsSeen) -> SecretsStatus {
    let sealing: BTreeSet<&String> = nodes.iter().filter_map(|node| node.secret_ids.first()).collect();
    let all: BTreeSet<&String> = nodes.iter().flat_map(|node| &node.secret_ids).collect();
    let (first, last) = (sealing.first().copied(), sealing.last().copied());
    let (next_step, other, is_late): (_, Option<&String>, Predicate<'_>) = match (first.zip(last), all.len()) {
        (Some(_), 1) => (SecretStep::Add, None, Box::new(|_| false)),
        (Some((first, last)), 2) if first == last => {
            let other = all.iter().copied().find(|id| *id != first);
            let (old, new) = other.map_or((false, false), |other| (history.is_old(other), history.is_new(other)));
            let opens = move |node: &NodeStatus| other.is_some_and(|other| node.secret_ids.contains(other));
            match (nodes.iter().all(opens), old, new) {
                (true, true, _) => (SecretStep::Remove, other, Box::new(|_| false)),
                (true, _, true) => (SecretStep::SealFirst, other, Box::new(|_| false)),
                (true, false, false) => (SecretStep::SealFirstOrRemove, other, Box::new(|_| false)),
                // On its way out: some have removed it.
                (false, true, _) => (SecretStep::Add, other, Box::new(opens)),
                // On its way in, or at least not known to be on its way out.
                (false, false, _) => (SecretStep::SealFirst, other, Box::new(move |node| !opens(node))),
            }
        }
        (Some((first, last)), 2) => {
            let own = history.now.first();
            let last_is_new = history.is_old(first) || history.is_new(last) || {
                // Nothing is known: the node that is asked has gone ahead.
                !history.is_old(last) && !history.is_new(first) && own == Some(last)
            };
            let old = if last_is_new { first } else { last };
            let late = move |node: &NodeStatus| node.secret_ids.first() == Some(old) || node.secret_ids.len() < 2;
            (SecretStep::Remove, Some(old), Box::new(late))
        }
        _ => (SecretStep::Unknown, None, Box::new(|_| false)),
    };
    // A node that reports no secrets, its clock being too far off, has not confirmed anything.
    let is_late = |node: &&NodeStatus| node.secret_ids.is_empty() || is_late(node);
    let waiting_for: Vec<String> = nodes.iter().filter(is_late).map(|node| node.name.clone()).collect();
    SecretsStatus {
        sealing: sealing.into_iter().cloned().collect(),
        next_step,
        other: other.cloned(),
        safe: waiting_for.is_empty() && next_step != SecretStep::Unknown,
        waiting_for,
    }
}

/// Who refuses whose messages now, in sentences.
#[must_use]
pub(super) fn refusals(nodes: &[NodeStatus]) -> Vec<String> {
    let reports = |node: &&NodeStatus| !node.secret_ids.is_empty();
    let sealing: BTreeSet<&String> = nodes.iter().filter_map(|node| node.secret_ids.first()).collect();
    let names = |nodes: Vec<&NodeStatus>| nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>().join(", ");
    let mut sentences = Vec::new();
    for id in sealing {
        let deaf: Vec<_> = nodes.iter().filter(reports).filter(|node| !node.secret_ids.contains(id)).collect();
        if !deaf.is_empty() {
            let senders = nodes.iter().filter(|node| node.secret_ids.first() == Some(id)).collect();
            sentences.push(format!(
                "{} seals with the farm secret {id}, which is not opened by {}: messages are refused there",
                names(senders),
                names(deaf)
            ));
        }
    }
    sentences
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(text: &str) -> Vec<String> {
        text.chars().map(String::from).collect()
    }

    /// Nodes n0, n1, …, each with its secrets, of one letter each.
    fn farm(secrets: &[&str]) -> Vec<NodeStatus> {
        let node = |(number, secrets): (usize, &&str)| NodeStatus {
            name: format!("n{number}"),
            secret_ids: ids(secrets),
            ..NodeStatus::default()
        };
        secrets.iter().enumerate().map(node).collect()
    }

    fn history(steps: &[&str]) -> SecretsSeen {
        let mut history = SecretsSeen::default();
        steps.iter().for_each(|step| history.note(ids(step)));
        history
    }

    /// The step, whether it is safe, and who is waited for, as n0 with `steps` behind it sees `secrets`.
    fn seen(secrets: &[&str], steps: &[&str]) -> (SecretStep, bool, String) {
        let status = secrets_status(&farm(secrets), &history(steps));
        (status.next_step, status.safe, status.waiting_for.join(" "))
    }

    #[test]
    fn a_rotation_is_followed_step_by_step() {
        use SecretStep::{Add, Remove, SealFirst};
        let steps: [(&[&str], &[&str], _); 7] = [
            (&["a", "a", "a"], &["a"], (Add, true, "")),
            (&["ab", "a", "ab"], &["a", "ab"], (SealFirst, false, "n1")),
            (&["ab", "ab", "ab"], &["a", "ab"], (SealFirst, true, "")),
            (&["ba", "ab", "ba"], &["a", "ab", "ba"], (Remove, false, "n1")),
            (&["ba", "ba", "ba"], &["a", "ab", "ba"], (Remove, true, "")),
            (&["ba", "ba", "b"], &["a", "ab", "ba"], (Add, false, "n0 n1")),
            (&["b", "b", "b"], &["a", "ab", "ba", "b"], (Add, true, "")),
        ];
        for (secrets, history, (step, safe, late)) in steps {
            assert_eq!(seen(secrets, history), (step, safe, late.to_owned()), "{secrets:?}");
            assert_eq!(refusals(&farm(secrets)), Vec::<String>::new(), "{secrets:?}");
        }
    }

    #[test]
    fn a_node_that_has_not_moved_itself_knows_the_direction_too() {
        assert_eq!(seen(&["ab", "ba"], &["a", "ab"]), (SecretStep::Remove, false, "n0".into()));
        assert_eq!(seen(&["ba", "ab"], &["b", "ba"]), (SecretStep::Remove, false, "n0".into()));
        assert_eq!(seen(&["a", "ab"], &["a"]), (SecretStep::SealFirst, false, "n0".into()));
    }

    #[test]
    fn a_node_that_was_restarted_midway_says_that_it_may_be_either() {
        assert_eq!(seen(&["ab", "ab"], &["ab"]), (SecretStep::SealFirstOrRemove, true, String::new()));
        // It has moved, as far as it can tell.
        assert_eq!(seen(&["ba", "ab"], &["ba"]), (SecretStep::Remove, false, "n1".into()));
        // Removing is as unsafe to go on from as adding.
        assert_eq!(seen(&["ba", "b"], &["ba"]), (SecretStep::SealFirst, false, "n1".into()));
    }

    #[test]
    fn a_step_taken_too_early_names_who_refuses_whom() {
        let farm = farm(&["ba", "a", "ab"]);
        let status = secrets_status(&farm, &history(&["a", "ab", "ba"]));
        assert_eq!(
            (status.next_step, status.safe, &status.waiting_for[..]),
            (SecretStep::Remove, false, &["n1".to_owned(), "n2".to_owned()][..])
        );
        assert_eq!(
            refusals(&farm),
            ["n0 seals with the farm secret b, which is not opened by n1: messages are refused there"]
        );
    }

    #[test]
    fn who_reports_no_secret_is_waited_for_and_three_secrets_are_too_many() {
        assert_eq!(seen(&["a", "", "a"], &["a"]), (SecretStep::Add, false, "n1".into()));
        assert_eq!(seen(&["abc", "ab"], &["ab"]).0, SecretStep::Unknown);
        assert_eq!(seen(&[], &[]), (SecretStep::Unknown, false, String::new()));
    }
}
