//! RabbitMQ as far as a farm's key plane sees it: one broker, or a cluster of two that may be split.
//!
//! Queues are exclusive: they live on the broker that their connection is on, are seen from the whole cluster while it is
//! whole, and go with their connection.

use std::collections::{HashSet, VecDeque};

use bytes::Bytes;
use resumed::bus::{LeaseAnswer, Route};
use resumed::daemon::key_plane::Waiting;
use resumed::daemon::sealing::Sealing;
use resumed::farm::Via;

pub type LinkId = usize;

/// The brokers and the leader's queue. Inboxes are a part of their links.
#[derive(Default)]
pub struct Cluster {
    /// Which brokers run. A farm with one broker has it at 0.
    pub up: Vec<bool>,
    /// The two brokers do not see each other.
    pub split: bool,
    /// Each connection is accepted and closed.
    pub drops: bool,
    /// A memory alarm: nothing is taken from publishers.
    pub blocked: bool,
    /// The leader's queue; one on each side after a split.
    pub leases: Vec<LeaseQueue>,
    /// A bug: the next lease queue that loses its connection stays, locked.
    pub will_stick: bool,
    /// A bug of clusters: who once had the leader's queue takes the present one along when its connection ends, for
    /// queues are deleted by name.
    pub deletes_by_name: bool,
    /// The links that have had the leader's queue.
    pub former: HashSet<LinkId>,
}

pub struct LeaseQueue {
    /// `None`: locked, and nobody is behind it. A broker bug.
    pub owner: Option<LinkId>,
    pub broker: usize,
    /// Takes messages and delivers none. A broker bug.
    pub silent: bool,
}

impl Cluster {
    /// Whether a queue on broker `to` is seen from broker `from`.
    pub fn sees(&self, from: usize, to: usize) -> bool {
        self.up[to] && (from == to || !self.split)
    }

    pub fn lease(&self, from: usize) -> Option<&LeaseQueue> {
        self.leases.iter().find(|queue| self.sees(from, queue.broker))
    }

    pub fn try_lease(&mut self, link: LinkId, broker: usize) -> LeaseAnswer {
        match self.lease(broker) {
            Some(queue) if queue.owner != Some(link) => LeaseAnswer::Held,
            Some(_) => LeaseAnswer::Granted,
            None => {
                self.former.insert(link);
                self.leases.push(LeaseQueue { owner: Some(link), broker, silent: false });
                LeaseAnswer::Granted
            }
        }
    }

    pub fn release(&mut self, link: LinkId) {
        self.leases.retain(|queue| queue.owner != Some(link));
    }

    /// The link's connection to `broker` is gone, and its queues with it.
    pub fn closed(&mut self, link: LinkId, broker: usize) {
        if self.former.remove(&link) && self.deletes_by_name {
            let (up, split) = (self.up.clone(), self.split);
            let sees = |queue: &LeaseQueue| up[queue.broker] && (queue.broker == broker || !split);
            self.leases.retain(|queue| queue.owner == Some(link) || !sees(queue));
        }
        if self.will_stick
            && let Some(queue) = self.leases.iter_mut().find(|queue| queue.owner == Some(link))
        {
            queue.owner = None;
            self.will_stick = false;
        }
        self.release(link);
    }

    /// The broker is gone, and all queues on it.
    pub fn stopped(&mut self, broker: usize) {
        self.up[broker] = false;
        self.leases.retain(|queue| queue.broker != broker);
    }
}

/// One sealed message, as it stands in a queue.
#[derive(Clone)]
pub struct Envelope {
    /// The exchange, or the queue, that it was published to.
    pub route: String,
    pub body: Bytes,
    /// Which of all envelopes ever sealed it is, or was made of.
    pub id: u64,
    pub origin: Origin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Its first journey.
    Sender,
    /// Sent again, unaltered and on its own route.
    Replay,
    /// Altered, or on another route.
    Forged,
}

/// From a node to its broker, in order.
pub enum Upstream {
    Publish { to: Route, envelope: Envelope },
    TryLease,
    ReleaseLease,
    Close,
}

/// From a broker to a node; in order within each lane.
pub enum Downstream {
    Message { via: Via, envelope: Envelope },
    Published { to: Route, unroutable: bool },
    Lease(Option<LeaseAnswer>),
    LeaseLost,
    Closed,
}

impl Downstream {
    pub fn lane(&self) -> usize {
        match self {
            Self::Message { via: Via::Inbox | Via::Far, .. } => 0,
            Self::Message { via: Via::Lease, .. } | Self::LeaseLost => 1,
            Self::Published { .. } => 2,
            Self::Lease(_) => 3,
            Self::Closed => LANES,
        }
    }
}

pub const LANES: usize = 4;

/// A node's connection. It is over when neither side holds it open.
pub struct Link {
    pub host: usize,
    pub broker: usize,
    pub inbox: String,
    pub node_open: bool,
    pub broker_open: bool,
    /// The inbox takes messages and delivers none. A broker bug.
    pub silent: bool,
    /// What the key plane has not written out.
    pub waiting: Waiting,
    pub sealing: Sealing,
    /// No earlier than this arrives what is sent next.
    pub up_at: u64,
    pub down_at: [u64; LANES],
    /// What waits in the network's buffers while it is cut.
    pub stalled_up: VecDeque<Upstream>,
    pub stalled_down: VecDeque<Downstream>,
    /// What the broker does not read while it blocks publishers.
    pub unread: VecDeque<Upstream>,
}
