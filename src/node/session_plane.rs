//! Carries sessions over the links of a node, and takes in what comes: feed → open → validate → cache → proxies.
//!
//! A [`SessionPlane`] is what outlives links. [`SessionPlane::start`] starts the tasks of one link, which end with it: one
//! publishes ([`super::session_publisher`]), one takes in what its feed delivers, one joins and donates ([`super::warmup`]). Two
//! tasks last as long as the node. One drops, counted, what would be published while there is no link. The other has the opener
//! follow secrets and epochs, also while nothing is to be opened: a key that is out of use stays nowhere.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{Mutex as AsyncMutex, Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::refused::Refused;
use super::sealing::Sealing;
use super::session_publisher::Outlet;
use super::tasks::NodeTasks;
use super::warmup::{WarmupMessage, Warmups};
use crate::bus::{BusError, Link, LinkEvent};
use crate::clock::{Now, SystemClock};
use crate::envelope::{Epochs, Opener, Refusal, Secrets};
use crate::log_limiter::LogLimiter;
use crate::metrics::{self, Plane};
use crate::proto::payload::Kind;
use crate::proxies::ProxyPlane;
use crate::reason::{DropReason, Reason};
use crate::routes::Names;
use crate::sessions::Applied;
use crate::sessions::warmup::PodNode;

/// Entries of a batch that are dropped for these reasons are nobody's fault, and not worth a line.
const ORDINARY: [DropReason; 4] =
    [DropReason::Duplicate, DropReason::Tombstone, DropReason::RemovalKept, DropReason::Flushed];

/// What the session plane has of the node.
pub(crate) struct SessionParts {
    /// The proxies' side: outbox, cache, and the way to the replicas.
    pub proxies: Arc<ProxyPlane>,
    /// The farm secrets.
    pub secrets: watch::Receiver<Arc<Secrets>>,
    /// The epoch keys.
    pub epochs: watch::Receiver<Arc<Epochs>>,
    /// Told of batches that need an epoch key which the node lacks.
    pub unknown_epoch: Arc<Notify>,
    /// The farm's exchanges.
    pub names: Names,
    /// This node's boot id: its own batches come back from the fanout exchange.
    pub boot_id: [u8; 16],
    /// A batch closes at this size.
    pub batch_bytes: usize,
    /// What the broker refuses this node.
    pub refused: Refused,
    /// This host's clocks.
    pub clock: SystemClock,
    /// Runs the tasks of each link but for its publisher.
    pub tasks: NodeTasks,
    /// Runs what empties the outbox: it ends when the node stops and that is done.
    pub publisher: NodeTasks,
    /// Ends everything.
    pub stop: CancellationToken,
}

/// A node's sessions on their way, whatever link they take.
pub(crate) struct SessionPlane {
    pub(super) node: SessionParts,
    /// Who warms up whom.
    pub(super) warmups: Warmups,
    /// The way out of the outbox.
    pub(super) outlet: Outlet,
    receiving: Mutex<BatchOpener>,
    /// One feed at a time is taken in: the last link's to its end, then the next one's.
    turns: AsyncMutex<()>,
}

/// What is sent over.
pub(super) struct SessionLink<L: Link> {
    pub link: Arc<L>,
    pub sealing: AsyncMutex<Sealing>,
    pub ended: CancellationToken,
}

/// What opens batches. Its windows against replays last longer than a link.
struct BatchOpener {
    opener: Opener,
    log_limiter: LogLimiter,
    secrets: watch::Receiver<Arc<Secrets>>,
    epochs: watch::Receiver<Arc<Epochs>>,
}

impl BatchOpener {
    /// Takes the secrets and epochs of now, if they are others.
    fn refresh(&mut self) {
        if self.secrets.has_changed().unwrap_or(false) {
            self.opener.set_secrets(Arc::clone(&self.secrets.borrow_and_update()));
        }
        if self.epochs.has_changed().unwrap_or(false) {
            self.opener.set_epochs(Arc::clone(&self.epochs.borrow_and_update()));
        }
    }
}

/// The session plane of one link, which ends when this is dropped.
pub(crate) struct LinkedSessions {
    plane: Arc<SessionPlane>,
    ended: CancellationToken,
}

impl Drop for LinkedSessions {
    fn drop(&mut self) {
        self.plane.end(&self.ended);
    }
}

impl SessionPlane {
    /// The plane of a node, without a link so far. `opener` opens what feeds deliver.
    #[must_use]
    pub(crate) fn new(node: SessionParts, opener: Opener, warmups: Warmups) -> Self {
        let (mut secrets, mut epochs) = (node.secrets.clone(), node.epochs.clone());
        secrets.mark_changed();
        epochs.mark_changed();
        let mut receiving = BatchOpener { opener, log_limiter: LogLimiter::default(), secrets, epochs };
        receiving.refresh();
        Self { node, warmups, outlet: Outlet::new(), receiving: Mutex::new(receiving), turns: AsyncMutex::new(()) }
    }

    /// Starts the tasks of a link that has just come up, whose feed delivers to `feed`. The link before has ended.
    #[must_use]
    pub(crate) fn start<L: Link>(
        self: &Arc<Self>,
        link: Arc<L>,
        sealing: Sealing,
        feed: mpsc::Receiver<LinkEvent>,
    ) -> LinkedSessions {
        self.warmups.link_up(link.feed(), self.node.clock.now());
        let ended = CancellationToken::new();
        let link = Arc::new(SessionLink { link, sealing: AsyncMutex::new(sealing), ended: ended.clone() });
        self.outlet.set_linked(true);
        let SessionParts { tasks, publisher, .. } = &self.node;
        publisher.spawn("the publisher of sessions", Arc::clone(self).write_out(Arc::clone(&link)));
        tasks.spawn("the consumer of sessions", Arc::clone(self).consume(feed, ended.clone()));
        tasks.spawn("the warm-up", Arc::clone(self).warm_up(link));
        LinkedSessions { plane: Arc::clone(self), ended }
    }

    fn end(&self, ended: &CancellationToken) {
        // First, so that what sees that the link has ended finds none.
        self.outlet.set_linked(false);
        ended.cancel();
        if !self.node.stop.is_cancelled() {
            self.warmups.link_down(self.node.clock.now());
        }
    }

    fn receiving(&self) -> MutexGuard<'_, BatchOpener> {
        // A panic under the lock ends the daemon.
        self.receiving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What became of a publish, in words; an operator hears of what the broker refuses.
    pub(super) fn noted(&self, result: Result<(), BusError>) -> Result<(), String> {
        self.node.refused.note_sessions(&result, &self.node.names, self.node.clock.now());
        result.map_err(|error| error.to_string())
    }

    /// Has the opener follow secrets and epochs until `stop`.
    pub(crate) async fn follow_keys(self: Arc<Self>) {
        let (mut secrets, mut epochs) = (self.node.secrets.clone(), self.node.epochs.clone());
        loop {
            self.receiving().refresh();
            tokio::select! {
                () = self.node.stop.cancelled() => return,
                Ok(()) = secrets.changed() => {}
                Ok(()) = epochs.changed() => {}
            }
        }
    }

    /// Takes in what other nodes of the pod publish and `feed` delivers, to its end. When the link ends it delivers no more; what
    /// it did is acknowledged and will not come again, so it is taken in before the next link's.
    async fn consume(self: Arc<Self>, mut feed: mpsc::Receiver<LinkEvent>, link_ended: CancellationToken) {
        let _turn = self.turns.lock().await;
        loop {
            tokio::select! {
                biased;
                () = self.node.stop.cancelled() => return,
                event = feed.recv() => match event {
                    Some(LinkEvent::Delivered { route, body, .. }) => self.take_in(&route, body),
                    Some(LinkEvent::LeaseLost { .. } | LinkEvent::Closed { .. }) => {}
                    None => return,
                },
                () = link_ended.cancelled(), if !feed.is_closed() => feed.close(),
            }
        }
    }

    fn take_in(&self, route: &str, body: Bytes) {
        let mut receiving = self.receiving();
        receiving.refresh();
        let BatchOpener { opener, log_limiter, .. } = &mut *receiving;
        let now = self.node.clock.now();
        let opened = match opener.open(route, body, now) {
            Ok(opened) => opened,
            Err(refusal) => {
                metrics::MESSAGES_RECEIVED.add(Plane::Sessions, 1);
                if refusal == Refusal::UnknownEpoch {
                    self.node.unknown_epoch.notify_one();
                    // Ordinary for a node that has just started, until it has joined.
                    if !opener.has_epochs() {
                        return;
                    }
                }
                metrics::MESSAGES_REFUSED.add(refusal.reason(), 1);
                if let Some(held_back) = log_limiter.pass("message", refusal.reason().as_str(), now) {
                    // Whoever may write to the broker chooses the route: it is quoted.
                    warn!(held_back, ?route, "refused a session batch ({}): {refusal}", refusal.reason());
                }
                return;
            }
        };
        if opened.payload.boot_id == self.node.boot_id {
            return;
        }
        let plane = match opened.payload.kind {
            Some(Kind::WarmupCall(_) | Kind::WarmupOffer(_) | Kind::WarmupRequest(_) | Kind::Warmup(_)) => {
                Plane::Warmups
            }
            _ => Plane::Sessions,
        };
        metrics::MESSAGES_RECEIVED.add(plane, 1);
        metrics::MESSAGES_MISSED.add(opened.missed);
        let node = opened.payload.node;
        // The opener has checked that it has 16 bytes.
        let boot_id = opened.payload.boot_id.try_into().unwrap_or_default();
        let warmup = |node, message| self.take_in_warmup(PodNode { node, boot_id }, message, now);
        let batch = match opened.payload.kind {
            Some(Kind::Sessions(batch)) => batch,
            Some(Kind::WarmupCall(call)) => return warmup(node, WarmupMessage::Call(call)),
            Some(Kind::WarmupOffer(offer)) => return warmup(node, WarmupMessage::Offer(offer)),
            Some(Kind::WarmupRequest(request)) => return warmup(node, WarmupMessage::Request(request)),
            Some(Kind::Warmup(chunk)) => return warmup(node, WarmupMessage::Chunk(chunk)),
            _ => {
                metrics::MESSAGES_REFUSED.add(Reason::UnknownKind, 1);
                if let Some(held_back) = log_limiter.pass("message", Reason::UnknownKind.as_str(), now) {
                    warn!(held_back, "ignored a message of unknown kind from {node} among the sessions");
                }
                return;
            }
        };
        metrics::SESSIONS_RECEIVED.add(u64::try_from(batch.entries.len()).unwrap_or(u64::MAX));
        for together in batch.entries.chunk_by(|one, next| one.at == next.at) {
            metrics::sessions::replicated(together[0].at, now.wall, together.len());
        }
        let applied = self.node.proxies.store.remote(batch, now);
        self.hand_on(applied, &node, log_limiter, now);
    }

    /// Counts a change, logs what was skipped, and hands the rest to this node's proxies.
    pub(super) fn hand_on(&self, applied: Applied, node: &str, log_limiter: &mut LogLimiter, now: Now) {
        metrics::sessions::applied(&applied, &self.node.proxies.store);
        for (reason, sessions) in applied.dropped.iter().filter(|(reason, _)| !ORDINARY.contains(reason)) {
            if let Some(held_back) = log_limiter.pass("session", reason.as_str(), now) {
                warn!(held_back, "skipped {sessions} sessions of {node}: {reason}");
            }
        }
        if !applied.for_proxies.is_empty() {
            // Without a proxy connected nobody listens: the cache refills it when it comes.
            let _listeners = self.node.proxies.from_farm.send(Arc::new(applied.for_proxies));
        }
    }
}

/// Follows the ring's session floor until `stop`: when it rises, the older sessions leave the cache, and the proxies are told to
/// forget them.
pub(super) async fn flush(proxies: Arc<ProxyPlane>, mut floor: watch::Receiver<u64>, stop: CancellationToken) {
    loop {
        let sessions_from = *floor.borrow_and_update();
        let plane = Arc::clone(&proxies);
        let flushing = tokio::task::spawn_blocking(move || {
            let flushed = plane.store.flush(sessions_from, |removals| {
                // Without a proxy connected nobody listens, and its plugin is told of the floor when it comes.
                let _listeners = plane.from_farm.send(Arc::new(removals));
            });
            metrics::sessions::occupancy(&plane.store);
            flushed
        });
        match flushing.await {
            Ok(0) => {}
            Ok(sessions) => info!(sessions, sessions_from, "flushed the sessions from before the session floor"),
            Err(error) => warn!(%error, "flushing the session cache failed"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = floor.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

/// Sweeps expired sessions and tombstones out, now and then.
pub(super) async fn sweep(proxies: Arc<ProxyPlane>, clock: SystemClock, stop: CancellationToken) {
    let mut every = tokio::time::interval(std::time::Duration::from_secs(10));
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => {
                let store = Arc::clone(&proxies.store);
                let now = clock.now();
                let sweeping = tokio::task::spawn_blocking(move || {
                    store.sweep(now);
                    metrics::sessions::occupancy(&store);
                });
                if let Err(error) = sweeping.await {
                    warn!(%error, "sweeping the session cache failed");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
