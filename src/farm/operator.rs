//! What an operator asks of the farm through any node, and the answers.

use crate::proto;

/// An operator's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Mint a key that seals `settle` from now.
    Rotate,
    /// The member table.
    Status,
}

impl Ask {
    pub(super) fn to_proto(self) -> proto::request::Kind {
        match self {
            Self::Rotate => proto::request::Kind::Rotate(proto::Rotate {}),
            Self::Status => proto::request::Kind::Status(proto::StatusRequest {}),
        }
    }
}

/// What became of an [`Ask`].
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// The leader minted this generation; `pending`: an earlier rotation had, and is not over.
    Rotating {
        /// The generation of the key that will seal next.
        generation: u64,
        /// Whether the key is that of an earlier request.
        pending: bool,
    },
    /// The member table, with the leader's name.
    Members {
        /// Who leads.
        leader: String,
        /// Every node that the leader knows.
        members: Vec<proto::Member>,
    },
    /// The leader cannot do this.
    Refused {
        /// Who refused.
        leader: String,
    },
    /// Nobody leads, or the leader did not answer in time.
    NoLeader,
}

/// An [`Ask`] that waits for the leader's answer.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) ask: Ask,
    /// Monotonic milliseconds.
    pub(super) give_up_at: u64,
    /// When to ask again: the first request may have met no leader.
    pub(super) retry_at: u64,
}
