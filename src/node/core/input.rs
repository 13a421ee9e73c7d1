//! What a core is told.

use std::sync::Arc;

use bytes::Bytes;

#[cfg(doc)]
use super::{Effect, NodeCore};
use crate::bus::{BusError, LeaseAnswer};
use crate::envelope::Secrets;
use crate::farm::{Ask, LocalState};
use crate::routes::{Published, Seat, Via};

/// What happened to a node.
#[derive(Debug)]
pub enum Input {
    /// Nothing but time: see [`NodeCore::next_wake`].
    Wake,
    /// What reports say of this host is another now.
    Local(LocalState),
    /// The farm secrets were read again.
    Secrets(Arc<Secrets>),
    /// A session batch came that is sealed under an epoch key that the node lacks.
    UnknownEpoch,
    /// An operator asks something.
    Ask {
        /// Chosen by the driver, for [`Effect::Reply`].
        id: u64,
        /// What is asked.
        ask: Ask,
        /// Who asks: at most 64 bytes of printable ASCII; empty: not said.
        user: String,
    },
    /// A link to the broker is up.
    Linked {
        /// The queue that reaches this node.
        inbox: String,
    },
    /// The attempt that [`Effect::DialAt`] asked for brought no link.
    NotLinked(BusError),
    /// The link is gone.
    Closed {
        /// What the broker or the network said.
        reason: String,
    },
    /// The link is closed, for the one to another broker that [`Effect::MoveLink`] asked for: [`Input::Linked`] follows.
    Left,
    /// A message came.
    Delivered {
        /// The queue that it came out of.
        from: Via,
        /// The exchange or queue that it was published to.
        route: String,
        /// The envelope.
        body: Bytes,
        /// The broker's site that it came from, if from another.
        site: Option<String>,
    },
    /// The broker's answer to a message for the leader at this seat.
    Told {
        /// Which seat.
        seat: Seat,
        /// What became of the message.
        answer: Published,
    },
    /// What an attempt at the lease of this seat came to.
    LeaseTried(Seat, Result<LeaseAnswer, BusError>),
    /// The lease of this seat was taken from us although the link lives.
    LeaseLost(Seat),
    /// The answer to [`Effect::CheckBroker`].
    Checked(Result<(), BusError>),
    /// The answer to [`Effect::MoveLink`], if the link stays.
    NotMoved(Stays),
    /// The node is stopping.
    Stop,
}

/// Why a link stays that was to be left for another.
#[derive(Debug)]
pub enum Stays {
    /// No other broker is to be had.
    NoOther(BusError),
    /// Its own broker declares again.
    Declares,
}

impl From<BusError> for Stays {
    fn from(error: BusError) -> Self {
        Self::NoOther(error)
    }
}
