//! What a core wants done.

use std::sync::Arc;

use zeroize::Zeroizing;

use super::input::Stays;
#[cfg(doc)]
use super::{Input, NodeCore};
use crate::bus::BusError;
use crate::envelope::{Epochs, Refusal};
use crate::farm::{Note, Reply};
use crate::keys::Timetable;
use crate::proto::payload::Kind;
use crate::reason::{KeyReason, Reason};
use crate::routes::{Route, Seat};

/// What is to be done, in this order.
#[derive(Debug)]
pub enum Effect {
    /// Dial the broker at this time, in monotonic milliseconds, and answer with [`Input::Linked`] or [`Input::NotLinked`].
    DialAt(u64),
    /// Close the link. What follows says when to dial again.
    CloseLink,
    /// Seal and publish.
    Send {
        /// Where to.
        to: Route,
        /// What.
        kind: Kind,
    },
    /// Try to take the lease of this seat, and answer with [`Input::LeaseTried`].
    TryLease(Seat),
    /// Give the lease of this seat up.
    ReleaseLease(Seat),
    /// Ask the broker to declare a queue, beside the link, and answer with [`Input::Checked`].
    CheckBroker,
    /// Open a link to another broker, and close this one once it is there, with [`Input::Left`] and [`Input::Linked`]. If no
    /// other broker can be reached, the link stays: [`Input::NotMoved`]. Comes last: another link takes time to open.
    MoveLink {
        /// The link stays as well if its broker, asked once more, declares a queue.
        unless_it_declares: bool,
    },
    /// Give the proxies these keys, and have them forget the sessions from before `sessions_from`, UTC milliseconds.
    Keys {
        /// The keys.
        timetable: Timetable,
        /// The ring's session floor.
        sessions_from: u64,
    },
    /// Save the ring, and say with [`NodeCore::on_ring_saved`] whether that worked.
    SaveRing(Zeroizing<Vec<u8>>),
    /// Seal and open with these epoch keys, before what follows is done.
    Epochs(Arc<Epochs>),
    /// The answer to an [`Input::Ask`].
    Reply {
        /// The driver's id.
        id: u64,
        /// The answer.
        reply: Reply,
    },
    /// Count something.
    Count(Count),
    /// Something worth knowing.
    Note {
        /// What.
        note: Note,
        /// Whether it is logged; if so, how many like it were held back before.
        logged: Option<u64>,
    },
    /// A message did not open.
    Refused {
        /// Where it was published to: the writer's choice, and not to be trusted.
        route: String,
        /// Why.
        refusal: Refusal,
        /// Whether it counts as refused: what a node meets until it has joined does not.
        counted: bool,
        /// Whether it is logged; if so, how many like it were held back before.
        logged: Option<u64>,
    },
    /// Write this line to the log.
    Log(Line),
    /// The farm's machine has turned: what the node shows of itself may be another.
    Show,
}

/// Something to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// A message on the key plane, whatever becomes of it.
    Received,
    /// So many messages of a sender never came.
    Missed(u64),
    /// A message was not acted on although it opened.
    Refused(Reason),
    /// So many keys or floors of a ring were skipped.
    KeysSkipped(KeyReason, u64),
    /// So many keys had the name of another, and other bytes.
    KeyConflicts(u64),
}

/// What an operator reads of the link and of this host. It is written as often as a core asks for it.
#[derive(Debug)]
pub enum Line {
    /// An attempt to connect failed.
    NotConnected {
        /// Why.
        error: BusError,
        /// When the next one is due, in milliseconds from now.
        retry_in_ms: u64,
    },
    /// The link ended.
    Disconnected {
        /// What the broker or the network said.
        reason: String,
    },
    /// An attempt at the lease failed, and nothing else says so.
    LeaseNotTried {
        /// Why.
        error: BusError,
        /// How many lines like it were held back before.
        held_back: u64,
    },
    /// The broker was asked to declare a queue, and did not.
    DoesNotDeclare(BusError),
    /// A link that was to be left stays.
    Stays(Stays),
    /// The ring could not be saved.
    RingNotSaved {
        /// Why, in words.
        error: String,
        /// How many lines like it were held back before.
        held_back: u64,
    },
    /// It is saved, after it could not be.
    RingSavedAgain,
}
