//! The bus that carries sealed messages between nodes: RabbitMQ, or channels within one process.
//!
//! A bus moves opaque bytes. It knows exchanges, queues and the lease, and nothing of keys, sessions or envelopes.
//! Whoever publishes seals immediately before, see [`Link::writable`].

mod address;
pub(crate) mod backoff;
mod ending;
pub(crate) mod in_process;
pub(crate) mod rabbitmq;
pub(crate) mod refusals;
mod uri;

pub use uri::{BrokerUri, UriFault, redact};

use std::future::Future;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::routes::{Names, Published, Route, Seat, Via};
use crate::settings::SettingsError;

/// What a node needs of a connection to the farm.
#[derive(Clone, Debug)]
pub struct LinkSpec {
    /// The names of the farm's exchanges and queues.
    pub names: Names,
    /// The node's name.
    pub node: String,
    /// Whether to open a session feed as well.
    pub sessions: bool,
    /// Not at this broker, as [`Link::peer`] calls it: a link there works, and another one is wanted.
    pub elsewhere_than: Option<String>,
}

/// A way to reach the other nodes of the farm.
pub trait Bus: Send + Sync + 'static {
    /// An open connection.
    type Link: Link;

    /// Connects once, declares what [`LinkSpec`] asks for, and delivers to `events` until the link closes.
    /// For RabbitMQ "once" is one pass over the configured URIs; it ends by itself, also when nobody answers. Dropping
    /// the future abandons the attempt.
    ///
    /// # Errors
    /// [`BusError::Unreachable`] with a sentence for each URI, [`BusError::File`] for a file that cannot be used.
    fn connect(&self, spec: &LinkSpec, events: LinkEvents)
    -> impl Future<Output = Result<Self::Link, BusError>> + Send;
}

/// The largest message that a node opens, in bytes. Of a larger one a link hands on a byte more than that.
pub(crate) const MOST_BODY_BYTES: usize = 1024 * 1024;

/// Where a link delivers. A full channel holds back the queues that feed it, and what waits longer waits at the broker,
/// where the oldest goes first: so a node that is slow at sessions still hears of keys at once.
#[derive(Clone, Debug)]
pub struct LinkEvents {
    /// Takes what comes from [`Via::Inbox`], [`Via::Federated`] and [`Via::Lease`], [`LinkEvent::LeaseLost`], and last of all, once,
    /// [`LinkEvent::Closed`].
    pub keys: mpsc::Sender<LinkEvent>,
    /// Takes what comes from [`Via::Feed`] and nothing else.
    pub feed: mpsc::Sender<LinkEvent>,
}

/// An open connection to the farm: an inbox bound to the farm's keys exchange and, if asked for, a session feed.
/// Dropping it closes it, which frees the lease and deletes its queues.
pub trait Link: Send + Sync + 'static {
    /// The queue that reaches this node directly.
    fn inbox(&self) -> &str;

    /// The queue that this node's session feed is, if the link has one: for [`Link::publish_to_feed`] of others.
    fn feed(&self) -> Option<&str>;

    /// What this link is connected to, with passwords as `***`.
    fn peer(&self) -> &str;

    /// Returns when the broker takes messages again (at once unless it said `connection.blocked`).
    fn writable(&self) -> impl Future<Output = ()> + Send;

    /// Whether the broker has said `connection.blocked`.
    fn is_blocked(&self) -> bool;

    /// Publishes on the key plane: mandatory, with publisher confirms. Returns when the broker has answered, which it
    /// does not while it blocks publishers. Messages of one caller that awaits each keep their order.
    fn publish(&self, to: &Route, body: Bytes) -> impl Future<Output = Result<Published, BusError>> + Send;

    /// Publishes on the session plane, to the pod's fanout exchange: transient, no confirms. Returns when the message
    /// is written out, so that awaiting one after the other keeps the caller at the pace of the network.
    ///
    /// # Errors
    /// [`BusError::Blocked`] instead of waiting for [`Link::writable`]: the message counts as dropped.
    fn publish_sessions(&self, body: Bytes) -> impl Future<Output = Result<(), BusError>> + Send;

    /// The same straight to one node's session feed, through the default exchange. It keeps its order with what this
    /// link publishes otherwise on the session plane. A feed that is gone takes nothing, and nobody is told.
    ///
    /// # Errors
    /// As [`Link::publish_sessions`].
    fn publish_to_feed(&self, feed: &str, body: Bytes) -> impl Future<Output = Result<(), BusError>> + Send;

    /// Tries to take the lease of a seat: to declare the leader's queue and to consume from it, on a connection of its own,
    /// which is there while the lease is held. A link that holds the lease makes sure of it, and is [`LeaseAnswer::Granted`]
    /// it again, also if the broker had lost the queue.
    ///
    /// # Errors
    /// [`BusError::Unanswered`] after some seconds: a broker that is cut off from the majority of its cluster cannot
    /// declare. Nothing is held then that was not held before.
    fn try_lease(&self, seat: Seat) -> impl Future<Output = Result<LeaseAnswer, BusError>> + Send;

    /// Gives the lease of a seat up, so that another node can take it at once. No-op if this link does not hold it.
    fn release_lease(&self, seat: Seat) -> impl Future<Output = Result<(), BusError>> + Send;

    /// Whether the broker can still declare a queue, asked on a connection of its own.
    ///
    /// # Errors
    /// [`BusError::Unanswered`] as with [`Link::try_lease`]; others if it says something else.
    fn check(&self) -> impl Future<Output = Result<(), BusError>> + Send;

    /// Closes the link in an orderly way: what was published before is flushed, the lease is free and the queues are
    /// gone when it returns. Takes at most about a second, also if the broker has stopped answering.
    fn close(&self) -> impl Future<Output = ()> + Send;
}

/// What a link tells its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// A message arrived.
    Delivered {
        /// The queue it came out of.
        from: Via,
        /// The exact exchange it was published to, or the queue if it was published through the default exchange.
        route: String,
        /// The sealed message.
        body: Bytes,
        /// Of [`Via::Federated`] alone: what the broker says of the cluster it came from. Nothing that is sealed says so.
        site: Option<String>,
    },
    /// The leader's queue of a seat is no longer ours although the link lives: it was deleted, its consumer cancelled, or
    /// its connection is gone.
    LeaseLost {
        /// Which one.
        seat: Seat,
    },
    /// The link is gone, and with it the lease and the queues. No event follows.
    Closed {
        /// What the broker or the network said; "closed by this node" after [`Link::close`] or a drop.
        reason: String,
    },
}

/// The broker's answer to an attempt to take the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseAnswer {
    /// This link holds the lease.
    Granted,
    /// Another connection does (AMQP 405 RESOURCE_LOCKED).
    Taken,
}

/// Why a bus operation failed.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// No broker could be reached; one sentence for each URI that was tried, passwords as `***`.
    #[error("no broker reached: {0}")]
    Unreachable(String),
    /// The link is closed or broke during the operation.
    #[error("broker connection lost: {0}")]
    Closed(String),
    /// The broker did not answer in time.
    #[error("the broker did not answer within {within:?}: {operation}")]
    Unanswered {
        /// The AMQP method and its object.
        operation: String,
        /// For how long it was waited for.
        within: std::time::Duration,
    },
    /// The broker takes no messages at the moment ([`Link::is_blocked`]); this one was not kept.
    #[error("broker blocks publishers")]
    Blocked,
    /// The broker refused an operation.
    #[error("broker refused {operation}: {reason}")]
    Refused {
        /// The AMQP method and its object, such as "declare queue resumed.default.leader".
        operation: String,
        /// The broker's words.
        reason: String,
    },
    /// The settings cannot work.
    #[error("broker settings: {0}")]
    Settings(#[from] SettingsError),
    /// A file that the settings name cannot be used.
    #[error("broker settings: {0}")]
    File(#[from] rabbitmq::BadFile),
    /// This process cannot even begin to ask a broker: the system's randomness or OpenSSL fails, or a name is too long.
    #[error("broker settings: {0}")]
    Unprepared(String),
}
