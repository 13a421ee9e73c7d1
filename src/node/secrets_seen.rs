//! Which farm secrets a node has had since its start.

use std::collections::BTreeSet;

/// What one node has seen of its own secrets since its start. Of two secrets that every node opens, nothing else tells
/// which is the new one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SecretsSeen {
    pub(crate) now: Vec<String>,
    /// Those that were not there at first, or not always.
    came: BTreeSet<String>,
    /// Those that have sealed.
    sealed: BTreeSet<String>,
}

impl SecretsSeen {
    /// Takes the ids that the node opens from now on, the one that seals first. The first call is the start.
    pub(crate) fn note(&mut self, ids: Vec<String>) {
        if !self.now.is_empty() {
            self.came.extend(ids.iter().filter(|id| !self.now.contains(id)).cloned());
        }
        self.sealed.extend(ids.first().cloned());
        self.now = ids;
    }

    /// It sealed here once and does no longer.
    pub(crate) fn is_old(&self, id: &str) -> bool {
        self.sealed.contains(id) && self.now.first().is_none_or(|first| first != id)
    }

    /// It came while the node ran, and is not on its way out.
    pub(crate) fn is_new(&self, id: &str) -> bool {
        self.came.contains(id) && !self.is_old(id)
    }
}
