//! How a link ends, on any bus.

use std::sync::{Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

/// Why a link ended that its node closed or dropped.
pub(super) const CLOSED_HERE: &str = "closed by this node";

/// How a link ends: the first reason stays.
#[derive(Debug, Default)]
pub(super) struct Ending {
    /// Set when the link ends.
    pub(super) stop: CancellationToken,
    reason: Mutex<Option<String>>,
}

impl Ending {
    /// Ends the link.
    pub(super) fn because(&self, reason: impl Into<String>) {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| reason.into());
        self.stop.cancel();
    }

    /// Why it ended.
    pub(super) fn reason(&self) -> String {
        let reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        reason.clone().unwrap_or_else(|| CLOSED_HERE.to_owned())
    }
}
