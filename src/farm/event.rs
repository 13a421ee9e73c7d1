//! What happens to a node, what it has done about it, and what it notices.

use std::fmt;

use super::requests::{Ask, Reply};
#[cfg(doc)]
use super::{Farm, audit::is_user};
use crate::envelope::{EpochId, epoch_name};
use crate::proto::{self, payload::Kind};
use crate::reason::{KeyReason, Reason};
use crate::routes::{Published, Route, Seat, Via};

/// Something that happened to the node.
#[derive(Debug)]
pub enum Event {
    /// Nothing but time: see [`Farm::next_wake`].
    Wake,
    /// A link to the broker is up, with this inbox.
    Connected {
        /// The queue that reaches this node.
        inbox: String,
    },
    /// The link is gone, and the lease with it.
    Disconnected,
    /// The lease of this seat is ours.
    LeaseGranted(Seat),
    /// Somebody else holds the lease of this seat.
    LeaseTaken(Seat),
    /// The attempt at the lease failed otherwise.
    LeaseFailed,
    /// The broker did not answer an attempt at the lease.
    LeaseUnanswered,
    /// The lease of this seat was taken from us although the link lives.
    LeaseLost(Seat),
    /// The broker's answer to a message for the leader at this seat.
    Told {
        /// Which seat.
        seat: Seat,
        /// What became of the message.
        answer: Published,
    },
    /// The answer to [`Action::CheckBroker`]: whether the broker can still declare.
    Checked(bool),
    /// The answer to [`Action::MoveLink`], if the link stays.
    NotMoved,
    /// An authentic message, in time, from any node including this one.
    Message {
        /// The opened message.
        payload: Box<proto::Payload>,
        /// The queue that it came out of.
        via: Via,
    },
    /// An authentic message whose stamp is more than `max_clock_offset` from our clock.
    Skewed {
        /// The sender's name.
        node: String,
        /// The sender's boot id.
        boot_id: [u8; 16],
        /// Its clock minus ours.
        offset_ms: i64,
        /// The queue that it came out of.
        via: Via,
    },
    /// An envelope came that is sealed under an epoch key that this node does not hold. Nothing shows that it came from
    /// the farm; so the node asks for the key at most once a beat, however many come.
    UnknownEpoch {
        /// The queue that it came out of; for the session feed, the inbox.
        via: Via,
    },
    /// An operator asks something through this node.
    Ask {
        /// Chosen by the driver, for the reply.
        id: u64,
        /// What is asked.
        ask: Ask,
        /// Who asks: see [`is_user`].
        user: String,
    },
    /// The node is stopping.
    Stop,
}

/// What the driver has to do.
#[derive(Debug)]
pub enum Action {
    /// Seal and publish.
    Send {
        /// Where to.
        to: Route,
        /// What.
        kind: Kind,
    },
    /// Try to take the lease of this seat, and answer with `LeaseGranted`, `LeaseTaken`, `LeaseFailed` or `LeaseUnanswered`.
    TryLease(Seat),
    /// Give the lease of this seat up.
    ReleaseLease(Seat),
    /// Close the link and open another.
    RenewLink,
    /// Ask the broker to declare a queue, beside the link, and answer with [`Event::Checked`].
    CheckBroker,
    /// Open a link to another broker, and close this one once it is there, with `Disconnected` and `Connected`. If no other
    /// broker can be reached, the link stays: [`Event::NotMoved`].
    MoveLink {
        /// The link stays as well if its broker, asked once more, declares a queue: one whose cluster elected for a while
        /// is cut off no longer.
        unless_it_declares: bool,
    },
    /// The ring is another one now: save it, and give the proxies their keys.
    RingChanged,
    /// The node holds other epoch keys now: hand [`Farm::epochs`] to all that seals and opens, before the actions after
    /// this one are carried out.
    EpochsChanged,
    /// The answer to an [`Event::Ask`].
    Reply {
        /// The driver's id.
        id: u64,
        /// The answer.
        reply: Reply,
    },
    /// Something worth a log line or a counter.
    Note(Note),
}

/// What the machine noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// This node leads from now on.
    Leads,
    /// This node leads no longer, and why.
    StepsDown(StepDown),
    /// This node announces without the lease: no leader was heard for long.
    ActsAlone,
    /// Another node is followed from now on.
    Follows(String),
    /// A key was minted here.
    Minted {
        /// Its generation.
        generation: u64,
        /// Why.
        reason: MintReason,
    },
    /// All keys but a new one were put out of use here, on an operator's request.
    Revoked {
        /// The new key's generation, and the ring's floor.
        generation: u64,
        /// Whether the session-ID sessions are flushed, too.
        flush_sessions: bool,
    },
    /// An operator's request was taken here, or came to its end: as it is kept.
    Audited(proto::AuditEntry),
    /// This node drew an epoch key, or was granted one.
    Epoch {
        /// The key's id.
        id: EpochId,
        /// Who granted it; this node itself if it drew it.
        from: String,
    },
    /// Keys, or a floor, of a node were not taken over.
    BadKey {
        /// Who sent them; this node itself for keys that went bad in its own ring.
        node: String,
        /// The counted reason.
        reason: KeyReason,
        /// How many of its ring were bad for this reason.
        count: u64,
    },
    /// A message was not acted on although it is authentic and in time.
    Refused {
        /// The sender.
        node: String,
        /// The counted reason.
        reason: Reason,
    },
    /// Two keys of one name differed.
    KeyConflict {
        /// Who sent the other one.
        node: String,
        /// How many of its ring did.
        count: u64,
    },
    /// A message of a kind that this release does not know, or that has no business in the queue.
    UnknownKind {
        /// The sender.
        node: String,
    },
    /// A node's clock is too far off: its messages are not acted on.
    Skewed {
        /// The node.
        node: String,
        /// Its clock minus ours.
        offset_ms: i64,
    },
    /// Not even this node's own message arrived in its inbox: a new one is declared on a new connection.
    InboxSilent,
    /// The inbox works, and no node announces.
    NoLeaderHeard,
    /// The broker takes this leader's reports and does not deliver them.
    BrokerKeepsReports,
    /// The broker does not answer a declaration, as one does that is cut off from the majority of its cluster.
    BrokerCutOff,
}

/// Why a ticket key was minted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MintReason {
    /// It was time.
    Scheduled,
    /// The farm had none.
    First,
    /// An operator asked for it.
    Requested,
    /// No leader's key may seal any more: this one is of use on this host alone.
    Alone,
}

impl fmt::Display for MintReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scheduled => "scheduled",
            Self::First => "first",
            Self::Requested => "requested",
            Self::Alone => "alone",
        })
    }
}

/// Why a node leads no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepDown {
    /// The link is gone, and the lease with it.
    Disconnected,
    /// An attempt at its own lease found it taken.
    LeaseTaken,
    /// The broker says that the lease is gone.
    LeaseLost,
    /// Another node leads at a seat before its own.
    Outranked,
    /// It led without the lease, and another node announces that it yields to.
    Yields,
    /// Not even its own messages arrive in its inbox.
    InboxSilent,
    /// Its own reports do not come back through the lease's queue.
    NoEcho,
    /// Most of the farm disagrees with its clock.
    ClockDoubted,
}

impl fmt::Display for StepDown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disconnected => "the connection to the broker is gone",
            Self::LeaseTaken => "another node has the lease",
            Self::LeaseLost => "the broker took the lease away",
            Self::Outranked => "another node leads at a seat before its own",
            Self::Yields => "another node announces",
            Self::InboxSilent => "its inbox is silent",
            Self::NoEcho => "its own reports do not come back",
            Self::ClockDoubted => "most of the farm disagrees with its clock",
        })
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leads => write!(f, "this node holds the lease and leads"),
            Self::StepsDown(reason) => write!(f, "this node leads no longer: {reason}"),
            Self::ActsAlone => write!(f, "no leader was heard for long: announcing without the lease"),
            Self::Follows(leader) => write!(f, "following {leader}"),
            Self::Minted { generation, reason } => write!(f, "minted ticket key {generation} ({reason})"),
            Self::Revoked { generation, flush_sessions } => {
                let sessions = if *flush_sessions { " and flushed the sessions" } else { "" };
                write!(f, "revoked every ticket key below {generation}{sessions}")
            }
            Self::Audited(entry) => {
                let user = if entry.user.is_empty() { "a user who is not said" } else { &entry.user };
                write!(f, "{user} asked through {}: {:?}, {:?}", entry.node, entry.action(), entry.outcome())
            }
            Self::Epoch { id, from } => write!(f, "epoch key {} from {from}", epoch_name(*id)),
            Self::BadKey { node, reason, count: 1 } => write!(f, "skipped a ticket key of {node}: {reason}"),
            Self::BadKey { node, reason, count } => write!(f, "skipped {count} ticket keys of {node}: {reason}"),
            Self::Refused { node, reason } => write!(f, "refused a message of {node}: {reason}"),
            Self::KeyConflict { node, .. } => write!(f, "{node} sent another key under a known name; kept the higher"),
            Self::UnknownKind { node } => write!(f, "ignored a message of unknown kind from {node}"),
            Self::Skewed { node, offset_ms } => {
                write!(f, "the clock of {node} differs from ours by {offset_ms} ms: its messages are not acted on")
            }
            Self::InboxSilent => {
                write!(f, "this node's own message does not arrive in its inbox: opening a new connection")
            }
            Self::NoLeaderHeard => write!(f, "no node announces; the connection works and stays"),
            Self::BrokerKeepsReports => {
                write!(f, "the broker takes this leader's reports and does not deliver them; looking for another")
            }
            Self::BrokerCutOff => write!(
                f,
                "the broker does not answer a declaration: it may be cut off from most of its cluster; looking for another"
            ),
        }
    }
}

/// Who sent a message.
pub(super) struct Sender {
    pub(super) node: String,
    pub(super) boot_id: [u8; 16],
    /// Its clock minus ours.
    pub(super) offset_ms: i64,
}
