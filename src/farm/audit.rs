//! What operators asked for lately: the last few requests, with who asked and what became of them.
//!
//! The node that was asked keeps an entry, and so does the leader that took the request from another node. Reports and
//! member tables carry them, so that any node can show them all.

use std::collections::VecDeque;

use super::requests::Ask;
use crate::envelope::is_node_name;
use crate::proto::{self, AuditAction, AuditOutcome};

/// A node keeps and tells so many entries at most: the last ones.
pub(crate) const MOST_AUDITED: usize = 8;

/// Bytes in the name of a user.
const LONGEST_USER: usize = 64;

/// Whether `user` can stand for the user who asked: at most 64 bytes of printable ASCII, blanks too. Empty: not said.
#[must_use]
pub(crate) fn is_user(user: &str) -> bool {
    user.len() <= LONGEST_USER && user.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

/// Whether an entry of another node can be kept and shown.
pub(super) fn is_entry(entry: &proto::AuditEntry) -> bool {
    is_node_name(&entry.node) && is_user(&entry.user)
}

/// Who asked for what.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) id: u64,
    pub(super) ask: Ask,
    /// The node that was asked.
    pub(super) node: String,
    /// Who asked there; empty: not said.
    pub(super) user: String,
}

impl Asked {
    /// What became of it at `at`, UTC milliseconds; `None` for what changes nothing and is not kept.
    fn entry(self, outcome: AuditOutcome, generation: u64, at: u64) -> Option<proto::AuditEntry> {
        let (action, flush_sessions) = match self.ask {
            Ask::Rotate => (AuditAction::Rotate, false),
            Ask::Revoke { flush_sessions } => (AuditAction::Revoke, flush_sessions),
            Ask::RevokeLocal { flush_sessions } => (AuditAction::RevokeLocal, flush_sessions),
            Ask::Status => return None,
        };
        Some(proto::AuditEntry {
            id: self.id,
            at,
            action: action.into(),
            flush_sessions,
            node: self.node,
            user: self.user,
            outcome: outcome.into(),
            generation,
        })
    }
}

/// Whether `later` says what `earlier` said, of a request that changed nothing.
fn is_repeated_by(earlier: &proto::AuditEntry, later: &proto::AuditEntry) -> bool {
    let said = |entry: &proto::AuditEntry| (entry.action, entry.flush_sessions, entry.outcome);
    earlier.outcome() != AuditOutcome::Done
        && said(earlier) == said(later)
        && earlier.node == later.node
        && earlier.user == later.user
}

fn is_revocation(entry: &proto::AuditEntry) -> bool {
    entry.outcome() == AuditOutcome::Done && entry.action() != AuditAction::Rotate
}

/// The last requests, oldest first.
#[derive(Debug, Default)]
pub(super) struct AuditTrail(VecDeque<proto::AuditEntry>);

impl AuditTrail {
    /// Keeps what became of a request, once: a leader hears one again whose answer was lost. Returns the entry if it is
    /// new. The same request in vain again, by the same user at the same node, takes the place of the one before, and a
    /// revocation that was done stays longer than anything else: so that it cannot be pushed out by asking.
    pub(super) fn note(
        &mut self,
        asked: Asked,
        outcome: AuditOutcome,
        generation: u64,
        at: u64,
    ) -> Option<proto::AuditEntry> {
        let entry = asked.entry(outcome, generation, at)?;
        if self.0.iter().any(|known| known.id == entry.id && known.node == entry.node) {
            return None;
        }
        if let Some(place) = self.0.iter().position(|known| is_repeated_by(known, &entry)) {
            self.0.remove(place);
        } else if self.0.len() == MOST_AUDITED {
            let place = self.0.iter().position(|known| !is_revocation(known)).unwrap_or(0);
            self.0.remove(place);
        }
        self.0.push_back(entry.clone());
        Some(entry)
    }

    pub(super) fn to_proto(&self) -> Vec<proto::AuditEntry> {
        self.0.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(id: u64, ask: Ask) -> Asked {
        Asked { id, ask, node: "a".into(), user: "alice".into() }
    }

    #[test]
    fn the_last_requests_are_kept_each_once_and_looking_is_none() {
        let mut trail = AuditTrail::default();
        assert_eq!(trail.note(asked(0, Ask::Status), AuditOutcome::Done, 0, 1), None);
        for id in 1..=10 {
            let entry = trail.note(asked(id, Ask::Revoke { flush_sessions: true }), AuditOutcome::Done, 7, id);
            assert!(entry.is_some_and(|entry| entry.flush_sessions && entry.user == "alice" && entry.generation == 7));
        }
        assert_eq!(trail.note(asked(10, Ask::Revoke { flush_sessions: true }), AuditOutcome::Done, 7, 11), None);
        let kept: Vec<u64> = trail.to_proto().iter().map(|entry| entry.id).collect();
        assert_eq!(kept, (3..=10).collect::<Vec<_>>());
    }

    #[test]
    fn users_are_short_printable_names_or_not_said() {
        for good in ["", "root", "1000", "svc-deploy@example.net", &"u".repeat(64)] {
            assert!(is_user(good), "{good:?}");
        }
        for bad in ["a\nb", "\u{202e}root", "é", &"u".repeat(65)] {
            assert!(!is_user(bad), "{bad:?}");
        }
    }

    #[test]
    fn no_number_of_rotations_pushes_a_revocation_out() {
        let mut trail = AuditTrail::default();
        let asked = |id, ask| Asked { id, ask, node: "a".to_owned(), user: "eve".to_owned() };
        let flush = Ask::Revoke { flush_sessions: true };
        assert!(trail.note(asked(1, flush), AuditOutcome::Done, 7, 1).is_some());
        for id in 2..50 {
            let outcome = if id % 2 == 0 { AuditOutcome::Pending } else { AuditOutcome::Done };
            assert!(trail.note(asked(id, Ask::Rotate), outcome, 8, id).is_some(), "each is logged");
        }
        let kept: Vec<_> = trail.to_proto().iter().map(|entry| (entry.id, entry.outcome())).collect();
        assert_eq!((kept.len(), kept[0]), (MOST_AUDITED, (1, AuditOutcome::Done)), "{kept:?}");
        let pending = |entry: &&(u64, AuditOutcome)| entry.1 == AuditOutcome::Pending;
        assert_eq!(kept.iter().filter(pending).collect::<Vec<_>>(), [&(48, AuditOutcome::Pending)]);
        // More revocations than there are places: the oldest goes.
        for id in 50..60 {
            assert!(trail.note(asked(id, flush), AuditOutcome::Done, id, id).is_some());
        }
        assert_eq!(trail.to_proto().iter().map(|entry| entry.id).collect::<Vec<_>>(), (52..60).collect::<Vec<_>>());
    }
}
