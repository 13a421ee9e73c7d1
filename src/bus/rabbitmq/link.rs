//! An open link: its connections and what runs on them, until it ends.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use lapin::{Connection, Event};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::consume::hand_on;
use super::declare::{Declared, FEED_PREFETCH, KEY_PREFETCH};
use super::dial::{Wire, Wired};
use super::errors::{advised, words};
use super::leases::{Ends, Leases};
use super::publish::Publisher;
use super::target::BrokerTarget;
use super::{CLOSE_WITHIN, LOOK_EVERY, REPLY_SUCCESS, RabbitMq};
use crate::bus::ending::{CLOSED_HERE, Ending};
use crate::bus::{BusError, LeaseAnswer, Link, LinkEvent, LinkEvents, LinkSpec};
use crate::routes::{Published, Route, Seat, Via};

type EventStream = Pin<Box<dyn Stream<Item = Event> + Send>>;

/// What the parts of a link share.
struct Shared {
    spec: LinkSpec,
    publisher: Publisher,
    consuming: Connection,
    wires: Mutex<Vec<Wire>>,
    leases: Leases,
    ending: Arc<Ending>,
    /// Close says goodbye to the broker, a drop or a fault does not wait for that.
    goodbye: CancellationToken,
    finished: CancellationToken,
    events: LinkEvents,
    tasks: TaskTracker,
}

/// A link of [`RabbitMq`].
pub struct RabbitMqLink {
    shared: Arc<Shared>,
    inbox: String,
    feed: Option<String>,
    peer: String,
}

impl fmt::Debug for RabbitMqLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitMqLink").field("peer", &self.peer).field("inbox", &self.inbox).finish_non_exhaustive()
    }
}

impl RabbitMqLink {
    /// Starts all that runs while the link is open.
    pub(super) fn start(
        bus: &RabbitMq,
        target: &BrokerTarget,
        spec: &LinkSpec,
        publishing: Wired,
        consuming: Wired,
        declared: Declared,
        events: LinkEvents,
    ) -> Self {
        let (ending, goodbye, tasks) = (Arc::<Ending>::default(), CancellationToken::new(), TaskTracker::new());
        let ends = Ends { stop: ending.stop.clone(), goodbye: goodbye.clone(), tasks: tasks.clone() };
        let leases = Leases::new(bus.clone(), target.shown.clone(), spec.clone(), events.keys.clone(), ends);
        let said = [publishing.connection.events_listener().boxed(), consuming.connection.events_listener().boxed()];
        let names = spec.names.clone();
        let publisher = Publisher::new(publishing.connection, declared.sessions, names, Arc::clone(&ending));
        let shared = Arc::new(Shared {
            spec: spec.clone(),
            publisher,
            consuming: consuming.connection,
            wires: Mutex::new(vec![publishing.wire, consuming.wire]),
            leases,
            ending,
            goodbye,
            finished: CancellationToken::new(),
            events,
            tasks,
        });
        let (inbox, consumer) = declared.inbox;
        let keys = shared.events.keys.clone();
        shared.consume(inbox.clone(), hand_on(consumer, Via::Inbox, KEY_PREFETCH, keys));
        let feed = declared.feed.map(|(feed, consumer)| {
            let sink = shared.events.feed.clone();
            shared.consume(feed.clone(), hand_on(consumer, Via::Feed, FEED_PREFETCH, sink));
            feed
        });
        tokio::spawn(Arc::clone(&shared).supervise(said));
        Self { shared, inbox, feed, peer: target.shown.clone() }
    }
}

impl Shared {
    /// Runs the consumer of a queue without which the link is worth nothing.
    fn consume(self: &Arc<Self>, queue: String, consumer: impl Future<Output = Option<String>> + Send + 'static) {
        let shared = Arc::clone(self);
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = shared.ending.stop.cancelled() => {}
                why = consumer => shared.ending.because(match why {
                    Some(why) if !shared.consuming.status().connected() => format!("consuming connection: {why}"),
                    Some(why) => format!("consuming from {queue}: {why}"),
                    None => format!("queue {queue} was deleted"),
                }),
            }
        });
    }

    /// Watches both connections until the link ends, ends it, and says so.
    async fn supervise(self: Arc<Self>, [mut publishing, mut consuming]: [EventStream; 2]) {
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let said = tokio::select! {
                biased;
                () = self.ending.stop.cancelled() => break,
                Some(said) = publishing.next() => Some(said),
                Some(said) = consuming.next() => Some(said),
                _ = look.tick() => None,
            };
            // The consuming connection publishes nothing, so it is never blocked.
            let why = match said {
                Some(Event::ConnectionBlocked(_)) => {
                    self.publisher.blocked.send_replace(true);
                    continue;
                }
                Some(Event::ConnectionUnblocked) => {
                    self.publisher.blocked.send_replace(false);
                    continue;
                }
                Some(Event::Error(error)) => words(&error),
                _ => "closed by the broker".to_owned(),
            };
            // A refused operation closes its channel, is reported as an error too, and is its caller's business.
            if !self.publisher.connection.status().connected() {
                let why = advised(&why, &self.spec);
                self.ending.because(format!("publishing connection: {why}"));
            } else if !self.consuming.status().connected() {
                self.ending.because(format!("consuming connection: {why}"));
            } else if self.publisher.sessions.is_closed() {
                self.sessions_refused(why);
            }
        }
        // A task that waits to write shall find the link closed.
        self.publisher.blocked.send_replace(false);
        if self.goodbye.is_cancelled() {
            let goodbye = async {
                // One may be gone already, and the other shall still be closed.
                let _ = tokio::join!(
                    self.publisher.connection.close(REPLY_SUCCESS, "OK".into()),
                    self.consuming.close(REPLY_SUCCESS, "OK".into())
                );
            };
            // What is not closed in time is cut.
            let _ = timeout(CLOSE_WITHIN, goodbye).await;
        }
        self.cut();
        self.finished.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        let (keys, reason) = (self.events.keys.clone(), self.ending.reason());
        drop(self);
        // No node listens any more: then none misses it.
        drop(keys.send(LinkEvent::Closed { reason }).await);
    }

    /// An exchange that is gone is declared by the next link. All else that is refused on the session plane, a permission
    /// that is missing, say, would be refused there too, and the key plane does not suffer for it.
    fn sessions_refused(&self, why: String) {
        if why.contains("NOT_FOUND") {
            let why = advised(&why, &self.spec);
            self.ending.because(format!("publishing to {}: {why}", self.spec.names.sessions));
        } else {
            self.publisher.sessions.refused(why);
        }
    }

    fn cut(&self) {
        self.wires.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// `operation`, unless the link ends before.
    async fn while_open<T>(&self, operation: impl Future<Output = Result<T, BusError>>) -> Result<T, BusError> {
        tokio::select! {
            biased;
            () = self.ending.stop.cancelled() => Err(BusError::Closed(self.ending.reason())),
            result = operation => result,
        }
    }
}

impl Link for RabbitMqLink {
    fn inbox(&self) -> &str {
        &self.inbox
    }

    fn feed(&self) -> Option<&str> {
        self.feed.as_deref()
    }

    fn peer(&self) -> &str {
        &self.peer
    }

    async fn writable(&self) {
        // Fails only if the sender is gone, which this link holds.
        drop(self.shared.publisher.blocked.subscribe().wait_for(|blocked| !*blocked).await);
    }

    fn is_blocked(&self) -> bool {
        *self.shared.publisher.blocked.borrow()
    }

    async fn publish(&self, to: &Route, body: Bytes) -> Result<Published, BusError> {
        self.shared.while_open(self.shared.publisher.publish(to, &body)).await
    }

    async fn publish_sessions(&self, body: Bytes) -> Result<(), BusError> {
        self.shared.while_open(self.shared.publisher.publish_sessions(&body)).await
    }

    async fn publish_to_feed(&self, feed: &str, body: Bytes) -> Result<(), BusError> {
        self.shared.while_open(self.shared.publisher.publish_to_feed(feed, &body)).await
    }

    async fn try_lease(&self, seat: Seat) -> Result<LeaseAnswer, BusError> {
        self.shared.while_open(self.shared.leases.try_take(seat)).await
    }

    async fn release_lease(&self, seat: Seat) -> Result<(), BusError> {
        let release = async {
            self.shared.leases.release(seat).await;
            Ok(())
        };
        self.shared.while_open(release).await
    }

    async fn check(&self) -> Result<(), BusError> {
        self.shared.while_open(self.shared.leases.check()).await
    }

    async fn close(&self) {
        self.shared.goodbye.cancel();
        self.shared.ending.because(CLOSED_HERE);
        self.shared.finished.cancelled().await;
    }
}

impl Drop for RabbitMqLink {
    fn drop(&mut self) {
        self.shared.ending.because(CLOSED_HERE);
        if !self.shared.goodbye.is_cancelled() {
            self.shared.cut();
        }
    }
}
