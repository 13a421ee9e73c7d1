//! The leases that a link holds, each on a connection of its own.
//!
//! A broker that is cut off from the majority of its cluster does not answer a declaration for half a minute, and closes
//! the connection then (Khepri; 541 INTERNAL_ERROR). So what is declared while a link lives has a connection of its own, and
//! an end: the link's inbox and what it publishes go on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use lapin::options::QueueDeleteOptions;
use lapin::{Channel, Connection, Consumer};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::consume::hand_on;
use super::declare::{KEY_PREFETCH, declare, key_queue_arguments, nonce, open_channel, subscribe};
use super::dial::Wired;
use super::errors::{RESOURCE_LOCKED, advised};
use super::{CLOSE_WITHIN, LOOK_EVERY, REPLY_SUCCESS, RabbitMq};
use crate::bus::{BusError, LeaseAnswer, LinkEvent, LinkSpec};
use crate::routes::{Seat, Via};

/// How long a broker that this node is connected to may take for one question. It takes milliseconds, but for a cluster that
/// elects its own leader just then; one that does not answer by then has lost its majority, or stands still.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// How long the connection of a lease that another one has now stays open at most.
const RETIRED_FOR: Duration = Duration::from_secs(60);

/// How the link ends, which ends its leases.
#[derive(Clone, Debug)]
pub(super) struct Ends {
    pub(super) stop: CancellationToken,
    /// Set before `stop` when the link says goodbye to the broker.
    pub(super) goodbye: CancellationToken,
    pub(super) tasks: TaskTracker,
}

/// What became of a lease that was held.
enum LeaseCheck {
    Ours,
    /// Another connection has its queue now.
    Elsewhere,
    Gone,
}

/// A lease that is held. Its connection belongs to the task that consumes.
#[derive(Clone)]
struct HeldLease {
    wired: Weak<Wired>,
    channel: Channel,
    /// Set when the node gives it up: then its end is no news.
    given_up: CancellationToken,
    /// Set when another connection has the queue.
    retired: CancellationToken,
    /// Set when the task is over, and with it the connection.
    over: CancellationToken,
}

/// The leases of one link.
pub(super) struct Leases {
    bus: RabbitMq,
    /// The broker, as [`crate::bus::BrokerUri`] shows it.
    peer: String,
    spec: LinkSpec,
    keys: mpsc::Sender<LinkEvent>,
    ends: Ends,
    held: Arc<Mutex<BTreeMap<Seat, HeldLease>>>,
}

impl Leases {
    pub(super) fn new(bus: RabbitMq, peer: String, spec: LinkSpec, keys: mpsc::Sender<LinkEvent>, ends: Ends) -> Self {
        Self { bus, peer, spec, keys, ends, held: Arc::default() }
    }

    /// As [`crate::bus::Link::try_lease`]. A future that is dropped half way holds nothing new: its connection is cut.
    pub(super) async fn try_take(&self, seat: Seat) -> Result<LeaseAnswer, BusError> {
        if let Some(held) = self.get(seat) {
            match self.look_after(seat, &held).await? {
                LeaseCheck::Ours => return Ok(LeaseAnswer::Granted),
                LeaseCheck::Elsewhere => return Ok(LeaseAnswer::Taken),
                LeaseCheck::Gone => {}
            }
        }
        self.take(seat).await
    }

    /// Looks after a lease that this link holds. A broker of a cluster can lose the queue and leave its consumer where it is:
    /// a queue that has one is ours, and one without is given up here.
    async fn look_after(&self, seat: Seat, held: &HeldLease) -> Result<LeaseCheck, BusError> {
        let Some(wired) = held.wired.upgrade() else { return Ok(LeaseCheck::Gone) };
        let queue = self.spec.names.seat(seat);
        let declared = answered(format!("declare queue {queue}"), async {
            // A refusal closes the channel that asks: the consumer has its own.
            let channel = open_channel(&wired.connection).await?;
            declare(&channel, queue, key_queue_arguments(), false).await
        });
        match declared.await {
            Ok(declared) if declared.consumer_count() > 0 => Ok(LeaseCheck::Ours),
            Err(BusError::Refused { reason, .. }) if reason.starts_with(RESOURCE_LOCKED) => {
                held.retired.cancel();
                held.over.cancelled().await;
                Ok(LeaseCheck::Elsewhere)
            }
            Ok(_) | Err(BusError::Refused { .. }) => {
                held.give_up().await;
                Ok(LeaseCheck::Gone)
            }
            Err(error) => Err(error),
        }
    }

    async fn take(&self, seat: Seat) -> Result<LeaseAnswer, BusError> {
        // What it takes to reach the broker and to log in says nothing of whether it can declare.
        let wired = self.dial("lease").await?;
        let queue = self.spec.names.seat(seat);
        let subscribed = answered(format!("declare queue {queue}"), async {
            let channel = open_channel(&wired.connection).await?;
            let consumer = subscribe(&channel, queue, key_queue_arguments(), false, None, KEY_PREFETCH).await?;
            Ok((channel, consumer))
        });
        match subscribed.await {
            Ok((channel, consumer)) => {
                self.hold(seat, wired, channel, consumer);
                Ok(LeaseAnswer::Granted)
            }
            Err(error) => {
                // Also what was declared before something failed is gone with it.
                self.ends.tasks.spawn(close(Arc::new(wired)));
                match error {
                    BusError::Refused { reason, .. } if reason.starts_with(RESOURCE_LOCKED) => Ok(LeaseAnswer::Taken),
                    error => Err(error),
                }
            }
        }
    }

    /// As [`crate::bus::Link::release_lease`]. It fails in no way: what the broker does not delete goes with its connection.
    pub(super) async fn release(&self, seat: Seat) {
        if let Some(held) = self.get(seat) {
            held.give_up().await;
        }
    }

    /// As [`crate::bus::Link::check`].
    pub(super) async fn check(&self) -> Result<(), BusError> {
        let queue = self.spec.names.inbox(&self.spec.node, &format!("check-{}", nonce()?));
        let wired = self.dial("check").await?;
        let declared = answered(format!("declare queue {queue}"), async {
            let channel = open_channel(&wired.connection).await?;
            declare(&channel, &queue, key_queue_arguments(), true).await
        });
        let declared = declared.await;
        self.ends.tasks.spawn(close(Arc::new(wired)));
        declared.map(|_| ()).map_err(|error| match error {
            BusError::Refused { operation, reason } => {
                BusError::Refused { operation, reason: advised(&reason, &self.spec) }
            }
            other => other,
        })
    }

    /// Another connection to the broker of the link. Files are read again, so that a renewed password counts.
    async fn dial(&self, role: &str) -> Result<Wired, BusError> {
        let target = self.bus.settings.targets()?.into_iter().find(|target| target.shown == self.peer);
        let target = target.ok_or_else(|| BusError::Closed(format!("{} is in the settings no more", self.peer)))?;
        let dialled = self.bus.dial(&target, &self.spec.node, role).await;
        dialled.map_err(|fault| BusError::Unreachable(format!("{}: {}", self.peer, target.scrub(&fault))))
    }

    fn get(&self, seat: Seat) -> Option<HeldLease> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).get(&seat).cloned()
    }

    fn hold(&self, seat: Seat, wired: Wired, channel: Channel, consumer: Consumer) {
        let [given_up, retired, over] = [(); 3].map(|()| CancellationToken::new());
        let wired = Arc::new(wired);
        let held = HeldLease { wired: Arc::downgrade(&wired), channel, given_up, retired, over };
        let lead = Lead {
            seat,
            queue: self.spec.names.seat(seat).to_owned(),
            keys: self.keys.clone(),
            ends: self.ends.clone(),
            held: held.clone(),
            all: Arc::clone(&self.held),
        };
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(seat, held);
        self.ends.tasks.spawn(lead.run(wired, consumer));
    }
}

impl HeldLease {
    /// Ends the lease without a word, and its connection. Takes at most about two seconds.
    async fn give_up(&self) {
        self.given_up.cancel();
        self.over.cancelled().await;
    }
}

/// Consumes from the leader's queue while the lease is held.
struct Lead {
    seat: Seat,
    queue: String,
    keys: mpsc::Sender<LinkEvent>,
    ends: Ends,
    held: HeldLease,
    all: Arc<Mutex<BTreeMap<Seat, HeldLease>>>,
}

impl Lead {
    async fn run(self, wired: Arc<Wired>, consumer: Consumer) {
        let over = self.held.over.clone().drop_guard();
        let lost = tokio::select! {
            biased;
            () = self.ends.stop.cancelled() => false,
            () = self.held.given_up.cancelled() => false,
            () = self.held.retired.cancelled() => return self.retire(wired, over).await,
            _ = hand_on(consumer, Via::Lease, KEY_PREFETCH, self.keys.clone()) => true,
            () = closed(&wired.connection) => true,
        };
        // The queue must not stay behind without a consumer. A link that was dropped has no time for goodbyes.
        if !self.ends.stop.is_cancelled() || self.ends.goodbye.is_cancelled() {
            let delete = self.held.channel.queue_delete(self.queue.as_str().into(), QueueDeleteOptions::default());
            // What is not deleted in time, or not ours to delete any more, is the affair of the connection's end.
            let _ = timeout(CLOSE_WITHIN, delete).await;
            close(wired).await;
        } else {
            drop(wired);
        }
        self.forget();
        drop(over);
        if lost && !self.held.given_up.is_cancelled() {
            tokio::select! {
                biased;
                () = self.ends.stop.cancelled() => {}
                // An error means that no receiver is left.
                _ = self.keys.send(LinkEvent::LeaseLost { seat: self.seat }) => {}
            }
        }
    }
}

impl Lead {
    fn forget(&self) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.seat);
    }

    /// The end of a connection deletes the queue by name (Mnesia), also from under the one that has it now: who leads then
    /// has to take it again. So the connection stays for a while, until the farm has settled.
    async fn retire(self, wired: Arc<Wired>, over: DropGuard) {
        self.forget();
        drop(over);
        tokio::select! {
            () = self.ends.stop.cancelled() => {}
            () = closed(&wired.connection) => {}
            () = tokio::time::sleep(RETIRED_FOR) => {}
        }
        close(wired).await;
    }
}

/// Closes a connection in order, within a second; else it is cut.
async fn close(wired: Arc<Wired>) {
    let _ = timeout(CLOSE_WITHIN, wired.connection.close(REPLY_SUCCESS, "OK".into())).await;
}

/// Returns when the connection is gone, whether or not its consumer was told.
async fn closed(connection: &Connection) {
    let mut look = interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while connection.status().connected() {
        look.tick().await;
    }
}

async fn answered<T>(operation: String, question: impl Future<Output = Result<T, BusError>>) -> Result<T, BusError> {
    timeout(ANSWER_WITHIN, question)
        .await
        .unwrap_or_else(|_| Err(BusError::Unanswered { operation, within: ANSWER_WITHIN }))
}
