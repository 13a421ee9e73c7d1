//! Counts and logs what a core wants counted and logged.

use tracing::{info, warn};

use super::core::{Count, Line, Stays};
use crate::envelope::Refusal;
use crate::farm::Note;
use crate::metrics::{self, Plane};
use crate::proto::AuditEntry;
use crate::status::AuditStatus;

/// Counts one thing.
pub(super) fn count_up(count: Count) {
    match count {
        Count::Received => metrics::MESSAGES_RECEIVED.add(Plane::Keys, 1),
        Count::Missed(messages) => metrics::MESSAGES_MISSED.add(messages),
        Count::Refused(reason) => metrics::MESSAGES_REFUSED.add(reason, 1),
        Count::KeysSkipped(reason, keys) => metrics::KEYS_SKIPPED.add(reason, keys),
        Count::KeyConflicts(keys) => metrics::KEY_CONFLICTS.add(keys),
    }
}

/// Counts and logs a message that did not open, if it is to be.
pub(super) fn refused(route: &str, refusal: &Refusal, counted: bool, logged: Option<u64>) {
    if counted {
        metrics::MESSAGES_REFUSED.add(refusal.reason(), 1);
    }
    if let Some(held_back) = logged {
        // Any client that may write to the broker chooses the route: it is quoted.
        warn!(held_back, ?route, "refused a message ({}): {refusal}", refusal.reason());
    }
}

/// Logs what the farm's machine noticed, after so many lines like it were held back.
pub(super) fn log_note(note: &Note, held_back: u64) {
    match note {
        Note::Audited(entry) => audit(entry, held_back),
        Note::Minted { .. }
        | Note::Leads
        | Note::StepsDown(_)
        | Note::ActsAlone
        | Note::Follows(_)
        | Note::Epoch { .. } => info!("{note}"),
        Note::Revoked { .. } => warn!("{note}"),
        _ => warn!(held_back, "{note}"),
    }
}

/// One line for a request of an operator.
fn audit(entry: &AuditEntry, held_back: u64) {
    let AuditStatus { action, flush_sessions, node, user, outcome, generation, .. } = entry.into();
    let user = user.as_deref().unwrap_or("not said");
    let (action, outcome) = (action.as_str(), outcome.as_str());
    info!(action, flush_sessions, node, user, outcome, generation, held_back, "request of an operator");
}

/// Logs one line.
pub(super) fn log(line: &Line) {
    match line {
        Line::NotConnected { error, retry_in_ms } => warn!(%error, retry_in_ms, "not connected to the broker"),
        Line::Disconnected { reason } => warn!(reason, "disconnected from the broker"),
        Line::LeaseNotTried { error, held_back } => warn!(held_back, %error, "could not try the lease"),
        Line::DoesNotDeclare(error) => {
            warn!(%error, "asked whether it can declare a queue, the broker does not say yes");
        }
        Line::Stays(Stays::NoOther(error)) => {
            warn!(%error, "no other broker is to be had: the connection stays");
        }
        Line::Stays(Stays::Declares) => info!("the broker answers again: the connection stays"),
        Line::RingNotSaved { error, held_back } => {
            warn!(held_back, %error, "the ring is not saved: a restart of this daemon would forget it");
        }
        Line::RingSavedAgain => info!("the ring is saved again"),
    }
}
