//! RabbitMQ as far as a farm's key plane sees it: one broker, or a cluster of which one may be split off.
//!
//! Queues are exclusive: they live on the broker that their connection is on, are seen from the whole cluster while it is
//! whole, and go with their connection. With Khepri ([`Store::Khepri`]) the name of a queue outlives its broker: it stays
//! locked and swallows what it gets until the broker is back, and a broker without a majority declares nothing.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use resumed::BusError;
use resumed::internals::bus::LeaseAnswer;
use resumed::internals::node::{Sealing, Stays, Waiting};
use resumed::internals::proto::payload::Kind;
use resumed::internals::routes::{Published, Route, Seat, Via};

pub type LinkId = usize;

/// Where brokers keep the names of queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Store {
    #[default]
    Mnesia,
    Khepri,
}

/// So long after a split each side takes the other's brokers for gone. Until then nothing that is for them is answered.
pub const NOTICED_AFTER_MS: u64 = 15_000;

/// The brokers and the leader's queues. Inboxes are a part of their links.
#[derive(Default)]
pub struct Cluster {
    pub store: Store,

    /// Which brokers run. A farm with one broker has it at 0.
    pub up: Vec<bool>,
    /// This broker and the others do not see each other.
    pub split: Option<usize>,
    /// Since when, milliseconds.
    pub split_at: u64,
    /// Each connection is accepted and closed.
    pub drops: bool,
    /// A memory alarm: nothing is taken from publishers.
    pub blocked: bool,
    /// The leader's queues; one of each seat on each side after a split.
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
    pub seat: Seat,
    /// `None`: locked, with no link behind it. A broker bug, or a name that outlives its broker.
    pub owner: Option<LinkId>,
    pub broker: usize,
    /// Its broker was stopped: there is a name and no queue.
    pub dead: bool,
    /// Takes messages and delivers none. A broker bug.
    pub silent: bool,
}

impl Cluster {
    /// Whether broker `to` runs, and is on the side of broker `from`.
    pub fn sees(&self, from: usize, to: usize) -> bool {
        self.up[to] && self.one_side(from, to)
    }

    fn one_side(&self, from: usize, to: usize) -> bool {
        from == to || self.split.is_none_or(|alone| alone != from && alone != to)
    }

    /// Whether what is for a broker that is not seen is answered by now.
    pub fn has_noticed(&self, t: u64) -> bool {
        self.split.is_none() || t >= self.split_at + NOTICED_AFTER_MS
    }

    /// Whether a broker can declare and delete.
    pub fn declares(&self, broker: usize) -> bool {
        let seen = (0..self.up.len()).filter(|other| self.sees(broker, *other)).count();
        self.store == Store::Mnesia || 2 * seen > self.up.len()
    }

    /// The queue of that seat whose name broker `from` knows. With Khepri all know all names.
    pub fn lease(&self, from: usize, seat: Seat) -> Option<&LeaseQueue> {
        let known = |queue: &&LeaseQueue| self.sees(from, queue.broker) || self.store == Store::Khepri;
        let mut all = self.leases.iter().filter(|queue| queue.seat == seat).filter(known);
        all.clone().find(|queue| self.sees(from, queue.broker)).or_else(|| all.next())
    }

    /// What becomes of a message to the leader, and who gets it.
    pub fn to_leader(&self, from: usize, seat: Seat) -> (Published, Option<LinkId>) {
        match self.lease(from, seat) {
            None => (Published::Unroutable, None),
            Some(queue) if queue.dead || !self.sees(from, queue.broker) => (Published::Nacked, None),
            Some(queue) => (Published::Routed, queue.owner.filter(|_| !queue.silent)),
        }
    }

    /// `None`: no answer.
    pub fn try_lease(&mut self, link: LinkId, broker: usize, seat: Seat) -> Option<LeaseAnswer> {
        match self.lease(broker, seat) {
            Some(queue) if queue.owner != Some(link) => Some(LeaseAnswer::Taken),
            Some(_) => Some(LeaseAnswer::Granted),
            None if !self.declares(broker) => None,
            None => {
                self.former.insert(link);
                self.leases.push(LeaseQueue { seat, owner: Some(link), broker, silent: false, dead: false });
                Some(LeaseAnswer::Granted)
            }
        }
    }

    pub fn release(&mut self, link: LinkId, seat: Seat) {
        self.forget(|queue| queue.owner == Some(link) && queue.seat == seat);
    }

    /// The link's connection to `broker` is gone, and its queues with it.
    pub fn closed(&mut self, link: LinkId, broker: usize) {
        if self.former.remove(&link) && self.deletes_by_name {
            let seen: Vec<bool> = (0..self.up.len()).map(|other| self.sees(broker, other)).collect();
            self.leases.retain(|queue| queue.owner == Some(link) || !seen[queue.broker]);
        }
        if self.will_stick
            && let Some(queue) = self.leases.iter_mut().find(|queue| queue.owner == Some(link))
        {
            queue.owner = None;
            self.will_stick = false;
        }
        self.forget(|queue| queue.owner == Some(link));
    }

    /// Deletes queues. The names of those whose broker has no majority stay until it has one.
    fn forget(&mut self, gone: impl Fn(&LeaseQueue) -> bool) {
        let declares: Vec<bool> = (0..self.up.len()).map(|broker| self.declares(broker)).collect();
        self.leases.retain_mut(|queue| {
            if !gone(queue) {
                return true;
            }
            queue.owner = None;
            queue.dead = true;
            !declares[queue.broker]
        });
    }

    /// The broker is gone, and all queues on it. With Khepri their names stay.
    pub fn stopped(&mut self, broker: usize) {
        self.up[broker] = false;
        let store = self.store;
        self.leases.retain_mut(|queue| {
            if queue.broker != broker {
                return true;
            }
            (queue.owner, queue.dead) = (None, true);
            store == Store::Khepri
        });
    }

    /// A broker is back, or sees the others again: names without queues go where there is a majority to say so.
    pub fn recovered(&mut self) {
        let declares: Vec<bool> = (0..self.up.len()).map(|broker| self.up[broker] && self.declares(broker)).collect();
        self.leases.retain(|queue| !(queue.dead && declares[queue.broker]));
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
    /// The farm secret that it is sealed with.
    pub secret: u32,
    /// What was sealed in it.
    pub sealed: Arc<Sealed>,
}

/// What its sender sealed in an envelope.
#[derive(Debug)]
pub struct Sealed {
    pub boot_id: [u8; 16],
    pub kind: Kind,
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
    Publish {
        to: Route,
        envelope: Envelope,
    },
    TryLease(Seat),
    ReleaseLease(Seat),
    Check,
    /// Not the broker's affair: the node has tried all others in vain, or this one declares again.
    NotMoved(Stays),
    Close,
}

/// From a broker to a node; in order within each lane.
pub enum Downstream {
    Message { via: Via, envelope: Envelope },
    Published { to: Route, answer: Published },
    Lease(Seat, Result<LeaseAnswer, BusError>),
    LeaseLost(Seat),
    Checked(Result<(), BusError>),
    NotMoved(Stays),
    Closed,
}

impl Downstream {
    pub fn lane(&self) -> usize {
        match self {
            Self::Message { via: Via::Lease, .. } | Self::LeaseLost(_) => 1,
            Self::Message { .. } => 0,
            Self::Published { .. } => 2,
            Self::Lease(..) | Self::Checked(_) | Self::NotMoved(_) => 3,
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
