//! What an operator asks of the farm through any node, and the answers.

use crate::proto;

/// An operator's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Mint a key that seals `settle` from now.
    Rotate,
    /// Mint a key that seals at once, and put every older one out of use.
    Revoke {
        /// Also flush the session-ID sessions created until now.
        flush_sessions: bool,
    },
    /// The same in this node's own ring, without a leader: for a host that is cut off. It spreads with the ring.
    RevokeLocal {
        /// Also flush the session-ID sessions created until now.
        flush_sessions: bool,
    },
    /// The member table.
    Status,
}

impl Ask {
    /// As a request to the leader; `None` for what needs none.
    pub(super) fn to_proto(self) -> Option<proto::request::Kind> {
        match self {
            Self::Rotate => Some(proto::request::Kind::Rotate(proto::Rotate {})),
            Self::Revoke { flush_sessions } => Some(proto::request::Kind::Revoke(proto::Revoke { flush_sessions })),
            Self::RevokeLocal { .. } => None,
            Self::Status => Some(proto::request::Kind::Status(proto::StatusRequest {})),
        }
    }

    pub(super) fn of(kind: &proto::request::Kind) -> Self {
        match kind {
            proto::request::Kind::Rotate(_) => Self::Rotate,
            proto::request::Kind::Revoke(revoke) => Self::Revoke { flush_sessions: revoke.flush_sessions },
            proto::request::Kind::Status(_) => Self::Status,
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
    /// Every key below the floor is out of use, at whoever did it.
    Revoked {
        /// The floor: the generation of the one key that is left.
        floor: u64,
        /// Sessions created before it are flushed, UTC milliseconds; 0: none are.
        sessions_from: u64,
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
    /// The highest generation when it was asked, or when the leader last said that it was stale. Not that of now: what
    /// an earlier try did must not make a later one look like another request.
    pub(super) known: u64,
    /// Monotonic milliseconds.
    pub(super) give_up_at: u64,
    /// When to ask again: the first request may have met no leader.
    pub(super) retry_at: u64,
}
