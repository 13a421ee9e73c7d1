//! Who hands its sessions on to a node that lacks them: two state machines, one for each side.
//!
//! ```text
//! joiner ── call, to the pod ──► everybody         who could?
//! joiner ◄── offers ──────────── everybody         ready, busy, or lacking sessions too
//! joiner ── request ───────────► one donor         begin; so many chunks
//! joiner ◄── chunks ──────────── donor             tombstones, then sessions, oldest first
//! joiner ── request ───────────► donor             so many were taken, so many more; or: again, or: done
//! ```
//!
//! The donor itself is the lock: it serves one joiner at a time, independent of the leader, and tells others that it is busy. A
//! request says in absolute numbers what was taken and what may be sent, so a lost or repeated one does no harm. Chunks
//! are taken in order; behind a gap the donor sends again. A donor that falls silent is replaced by another offer, or
//! after another call; what was taken stays.

pub(super) mod donation;
mod donor;
mod joiner;
mod limiter;
#[cfg(test)]
mod tests;

use std::fmt;

use crate::proto::WarmupCall;
use crate::proto::payload::Kind;
use crate::reason::{Reason, labelled};

pub use donor::{Donor, Due};
pub use joiner::Joiner;

/// Chunks that may be under way to a joiner. With chunks of 32 KiB that is 1 MiB: what live sessions may have to wait
/// behind in the feed, some ten milliseconds of work, and at the donor's rate enough for a round trip of 23 ms.
const WINDOW: u64 = 32;

/// Who sent a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNode {
    /// The node's name.
    pub node: String,
    /// Random for each start.
    pub boot_id: [u8; 16],
}

/// What is to be done.
#[allow(clippy::large_enum_variant, reason = "a few at a time, and each is handed on at once")]
#[derive(Debug)]
pub enum WarmupAction {
    /// Publish to the pod's sessions exchange.
    Call(WarmupCall),
    /// Publish straight to a session feed.
    Send {
        /// The queue.
        feed: String,
        /// What.
        kind: Kind,
    },
    /// Something worth a log line or a counter.
    WarmupNote(WarmupNote),
}

/// What the machines noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WarmupNote {
    /// A donor was asked to begin.
    Begins {
        /// The donor.
        donor: String,
        /// What it said that it would send.
        entries: u64,
    },
    /// All that the donor had was taken.
    WarmedUp {
        /// The last donor.
        donor: String,
        /// Sessions that it sent, and those before it.
        sessions: u64,
        /// Tombstones, likewise.
        tombstones: u64,
        /// Milliseconds since the first donor was asked.
        took_ms: u64,
    },
    /// No node of the pod has anything that this node lacks.
    NothingToGet,
    /// A donor fell silent or took another joiner; what it sent stays.
    DonorLost {
        /// The donor.
        donor: String,
        /// Why.
        reason: DonorLoss,
    },
    /// This node warms another one up.
    Donates {
        /// The joiner.
        to: String,
        /// About how many sessions and tombstones.
        entries: u64,
    },
    /// That came to its end.
    Donated {
        /// The joiner.
        to: String,
        /// Sessions sent.
        sessions: u64,
        /// Tombstones sent.
        tombstones: u64,
        /// Why it ended.
        reason: DonationEnd,
    },
    /// A message was not acted on.
    Refused {
        /// The sender.
        node: String,
        /// The counted reason.
        reason: Reason,
    },
}

labelled! {
    /// Why a joiner takes nothing more of its donor, in the words of the log.
    pub DonorLoss {
        /// It serves another joiner, or does not know of this one any more.
        Busy => "it is busy",
        /// No chunk of it has come for 3 s.
        Silent => "it fell silent",
    }
}

labelled! {
    /// Why a donor sends a joiner nothing more, in the words of the log.
    pub DonationEnd {
        /// The joiner has taken everything.
        Done => "done",
        /// The joiner begins from the start.
        AskedAnew => "it asked anew",
        /// The joiner has asked for nothing in 5 s: it is gone.
        JoinerSilent => "it asks for no more",
        /// The donor's own feed is gone, and with it the joiner's way to ask.
        FeedLost => "this node lost the broker",
    }
}

impl fmt::Display for WarmupNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begins { donor, entries } => write!(f, "being warmed up by {donor}: about {entries} entries"),
            Self::WarmedUp { donor, sessions, tombstones, took_ms } => {
                write!(f, "warmed up by {donor}: {sessions} sessions and {tombstones} tombstones in {took_ms} ms")
            }
            Self::NothingToGet => write!(f, "no node of the pod has sessions that this node lacks"),
            Self::DonorLost { donor, reason } => write!(f, "{donor} warms this node up no longer: {reason}"),
            Self::Donates { to, entries } => write!(f, "warming up {to}: about {entries} entries"),
            Self::Donated { to, sessions, tombstones, reason } => {
                write!(f, "sent {to} {sessions} sessions and {tombstones} tombstones: {reason}")
            }
            Self::Refused { node, reason } => write!(f, "refused a message of {node}: {reason}"),
        }
    }
}
