//! The bus within one process: what a node without a broker runs on, and several nodes in one process.
//!
//! It keeps the rules that RabbitMQ keeps: fanout, an exclusive lease, unroutable messages, queues that drop their
//! oldest. Only the time to live of messages is missing: nothing here waits while a process is away.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::ending::{CLOSED_HERE, Ending};
use super::{Bus, BusError, LeaseAnswer, Link, LinkEvent, LinkEvents, LinkSpec};
use crate::routes::{Published, Route, Seat, Via};

/// What an in-process hub calls itself where RabbitMQ has a URI.
pub(crate) const PEER: &str = "in-process";

/// How much a queue of the hub holds before its oldest messages go.
#[derive(Clone, Copy, Debug)]
pub struct QueueLimits {
    /// Messages.
    pub messages: usize,
    /// Bytes of all bodies together.
    pub bytes: usize,
}

/// The exchanges and queues that the nodes of one process share.
#[derive(Debug)]
pub struct Hub {
    state: Mutex<State>,
    next_link: AtomicU64,
    /// For inboxes and the leader's queue.
    key_limits: QueueLimits,
    feed_limits: QueueLimits,
}

#[derive(Debug, Default)]
struct State {
    queues: HashMap<String, Queue>,
    bindings: HashMap<String, Vec<String>>,
    links: HashMap<u64, Arc<Ending>>,
}

#[derive(Debug)]
struct Queue {
    owner: u64,
    limits: QueueLimits,
    messages: VecDeque<(String, Bytes)>,
    bytes: usize,
    arrived: Arc<Notify>,
    deleted: CancellationToken,
    given_up: CancellationToken,
}

impl Queue {
    fn push(&mut self, route: &str, body: Bytes) {
        self.bytes += body.len();
        self.messages.push_back((route.to_owned(), body));
        while self.messages.len() > self.limits.messages || self.bytes > self.limits.bytes {
            let Some((_, oldest)) = self.messages.pop_front() else { break };
            self.bytes -= oldest.len();
        }
        self.arrived.notify_one();
    }

    fn pop(&mut self) -> Option<(String, Bytes)> {
        let message = self.messages.pop_front()?;
        self.bytes -= message.1.len();
        Some(message)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for Hub {
    fn default() -> Self {
        Self::new(QueueLimits { messages: 4_096, bytes: 16 << 20 }, QueueLimits { messages: 50_000, bytes: 64 << 20 })
    }
}

impl Hub {
    /// An empty hub; `keys` limits inboxes and the leader's queue, `feed` each session feed.
    #[must_use]
    pub fn new(keys: QueueLimits, feed: QueueLimits) -> Self {
        Self { state: Mutex::default(), next_link: AtomicU64::new(1), key_limits: keys, feed_limits: feed }
    }

    /// Deletes a queue as an operator can. Returns whether it was there.
    pub fn delete_queue(&self, queue: &str) -> bool {
        lock(&self.state).remove(queue)
    }

    /// The queues there are, in no order.
    #[must_use]
    #[cfg(test)]
    pub(crate) fn queues(&self) -> Vec<String> {
        lock(&self.state).queues.keys().cloned().collect()
    }

    /// Declares `queue` for the link `owner`; `None` if another link owns it.
    fn declare(&self, queue: &str, owner: u64, limits: QueueLimits, exchange: Option<&str>) -> Option<QueueSignals> {
        let mut state = lock(&self.state);
        if state.queues.contains_key(queue) {
            return None;
        }
        let signals = QueueSignals::default();
        let QueueSignals { arrived, deleted, given_up } = signals.clone();
        let fresh = Queue { owner, limits, messages: VecDeque::new(), bytes: 0, arrived, deleted, given_up };
        state.queues.insert(queue.to_owned(), fresh);
        if let Some(exchange) = exchange {
            state.bindings.entry(exchange.to_owned()).or_default().push(queue.to_owned());
        }
        Some(signals)
    }

    fn fanout(&self, exchange: &str, body: &Bytes) -> Published {
        let mut state = lock(&self.state);
        let State { queues, bindings, .. } = &mut *state;
        let mut published = Published::Unroutable;
        for queue in bindings.get(exchange).into_iter().flatten() {
            if let Some(queue) = queues.get_mut(queue) {
                queue.push(exchange, body.clone());
                published = Published::Routed;
            }
        }
        published
    }

    fn direct(&self, queue: &str, body: Bytes) -> Published {
        match lock(&self.state).queues.get_mut(queue) {
            Some(found) => {
                found.push(queue, body);
                Published::Routed
            }
            None => Published::Unroutable,
        }
    }

    fn pop(&self, queue: &str) -> Option<(String, Bytes)> {
        lock(&self.state).queues.get_mut(queue)?.pop()
    }

    fn leave(&self, link: u64) {
        let mut state = lock(&self.state);
        state.links.remove(&link);
        let mine = state.queues.iter().filter(|(_, queue)| queue.owner == link);
        for queue in mine.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            state.remove(&queue);
        }
    }
}

impl State {
    fn remove(&mut self, queue: &str) -> bool {
        for bound in self.bindings.values_mut() {
            bound.retain(|name| name != queue);
        }
        self.queues.remove(queue).inspect(|gone| gone.deleted.cancel()).is_some()
    }
}

/// What the task that empties a queue needs of it.
#[derive(Clone, Debug, Default)]
struct QueueSignals {
    arrived: Arc<Notify>,
    deleted: CancellationToken,
    given_up: CancellationToken,
}

/// A [`Bus`] on a shared [`Hub`].
#[derive(Clone, Debug, Default)]
pub struct InProcess {
    hub: Arc<Hub>,
}

impl InProcess {
    /// A bus for one node; nodes that share `hub` reach each other.
    #[must_use]
    pub fn new(hub: Arc<Hub>) -> Self {
        Self { hub }
    }
}

/// A link of [`InProcess`].
#[derive(Debug)]
pub struct InProcessLink {
    hub: Arc<Hub>,
    id: u64,
    spec: LinkSpec,
    inbox: String,
    feed: Option<String>,
    ending: Arc<Ending>,
    events: LinkEvents,
    tasks: TaskTracker,
}

impl Bus for InProcess {
    type Link = InProcessLink;

    async fn connect(&self, spec: &LinkSpec, events: LinkEvents) -> Result<InProcessLink, BusError> {
        if spec.elsewhere_than.is_some() {
            return Err(BusError::Unreachable("there is one hub alone".to_owned()));
        }
        let hub = Arc::clone(&self.hub);
        let id = hub.next_link.fetch_add(1, Ordering::Relaxed);
        let nonce = format!("{id:x}");
        let link = InProcessLink {
            inbox: spec.names.inbox(&spec.node, &nonce),
            feed: spec.sessions.then(|| spec.names.feed(&spec.node, &nonce)),
            spec: spec.clone(),
            ending: Arc::new(Ending::default()),
            tasks: TaskTracker::new(),
            events,
            hub,
            id,
        };
        lock(&link.hub.state).links.insert(id, Arc::clone(&link.ending));
        link.open(link.inbox.clone(), Via::Inbox, Some(&spec.names.keys))?;
        if let Some(feed) = &link.feed {
            link.open(feed.clone(), Via::Feed, Some(&spec.names.sessions))?;
        }
        let (hub, ending, tasks) = (Arc::clone(&link.hub), Arc::clone(&link.ending), link.tasks.clone());
        let keys = link.events.keys.clone();
        tokio::spawn(async move {
            ending.stop.cancelled().await;
            hub.leave(id);
            tasks.close();
            tasks.wait().await;
            // No node listens any more: then none misses it.
            drop(keys.send(LinkEvent::Closed { reason: ending.reason() }).await);
        });
        Ok(link)
    }
}

impl InProcessLink {
    fn open(&self, queue: String, source: Via, exchange: Option<&str>) -> Result<(), BusError> {
        let limits = if source == Via::Feed { self.hub.feed_limits } else { self.hub.key_limits };
        let signals = self.hub.declare(&queue, self.id, limits, exchange).ok_or_else(|| BusError::Refused {
            operation: format!("declare queue {queue}"),
            reason: "it exists already".to_owned(),
        })?;
        self.deliver(queue, source, signals);
        Ok(())
    }

    fn deliver(&self, queue: String, source: Via, signals: QueueSignals) {
        let (hub, ending) = (Arc::clone(&self.hub), Arc::clone(&self.ending));
        let (events, names) = (self.events.clone(), self.spec.names.clone());
        let sink = if source == Via::Feed { events.feed } else { events.keys };
        self.tasks.spawn(async move {
            let deliver = async {
                loop {
                    let Some((route, body)) = hub.pop(&queue) else {
                        signals.arrived.notified().await;
                        continue;
                    };
                    if sink.send(LinkEvent::Delivered { from: source, route, body, site: None }).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                biased;
                () = ending.stop.cancelled() => return,
                () = signals.given_up.cancelled() => return,
                () = signals.deleted.cancelled() => {}
                () = deliver => return,
            }
            match source {
                Via::Lease => {
                    let Some(seat) = names.seat_of(&queue) else { return };
                    tokio::select! {
                        () = ending.stop.cancelled() => {}
                        _ = sink.send(LinkEvent::LeaseLost { seat }) => {}
                    }
                }
                Via::Inbox | Via::Federated | Via::Feed => ending.because(format!("queue {queue} was deleted")),
            }
        });
    }

    fn open_or_closed(&self) -> Result<(), BusError> {
        if self.ending.stop.is_cancelled() { Err(BusError::Closed(self.ending.reason())) } else { Ok(()) }
    }
}

impl Link for InProcessLink {
    fn inbox(&self) -> &str {
        &self.inbox
    }

    fn feed(&self) -> Option<&str> {
        self.feed.as_deref()
    }

    fn peer(&self) -> &str {
        PEER
    }

    async fn writable(&self) {}

    fn is_blocked(&self) -> bool {
        false
    }

    async fn publish(&self, to: &Route, body: Bytes) -> Result<Published, BusError> {
        self.open_or_closed()?;
        Ok(match to {
            Route::Keys => self.hub.fanout(&self.spec.names.keys, &body),
            Route::Leader(_) | Route::Inbox(_) => self.hub.direct(self.spec.names.of(to), body),
        })
    }

    async fn publish_sessions(&self, body: Bytes) -> Result<(), BusError> {
        self.open_or_closed()?;
        self.hub.fanout(&self.spec.names.sessions, &body);
        Ok(())
    }

    async fn publish_to_feed(&self, feed: &str, body: Bytes) -> Result<(), BusError> {
        self.open_or_closed()?;
        self.hub.direct(feed, body);
        Ok(())
    }

    async fn try_lease(&self, seat: Seat) -> Result<LeaseAnswer, BusError> {
        self.open_or_closed()?;
        let queue = self.spec.names.seat(seat);
        match self.hub.declare(queue, self.id, self.hub.key_limits, None) {
            Some(signals) => {
                self.deliver(queue.to_owned(), Via::Lease, signals);
                Ok(LeaseAnswer::Granted)
            }
            None if lock(&self.hub.state).queues.get(queue).is_some_and(|held| held.owner == self.id) => {
                Ok(LeaseAnswer::Granted)
            }
            None => Ok(LeaseAnswer::Taken),
        }
    }

    async fn release_lease(&self, seat: Seat) -> Result<(), BusError> {
        self.open_or_closed()?;
        let mut state = lock(&self.hub.state);
        let queue = self.spec.names.seat(seat);
        if let Some(held) = state.queues.get(queue).filter(|held| held.owner == self.id) {
            held.given_up.cancel();
            state.remove(queue);
        }
        Ok(())
    }

    async fn check(&self) -> Result<(), BusError> {
        self.open_or_closed()
    }

    async fn close(&self) {
        self.ending.because(CLOSED_HERE);
        self.hub.leave(self.id);
    }
}

impl Drop for InProcessLink {
    fn drop(&mut self) {
        self.ending.because(CLOSED_HERE);
        self.hub.leave(self.id);
    }
}
