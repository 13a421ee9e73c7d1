//! Carries sessions: outbox → batch → envelope → fanout, and feed → open → validate → cache → proxies.
//!
//! A [`SessionPlane`] is what outlives links. [`SessionPlane::start`] starts the tasks of one link, which end with it: one takes
//! in what its feed delivers, one joins and donates. Two tasks last as long as the node. The publisher drops, counted, while
//! there is no link: handshakes and memory never wait for one. The other has the opener follow secrets and epochs, also while
//! nothing is to be opened: a key that is out of use stays nowhere.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Mutex as AsyncMutex, Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::refused::Refused;
use super::sealing::Sealing;
use super::tasks::NodeTasks;
use super::warmup::{WarmupMessage, Warmups};
use crate::bus::{BusError, Link, LinkEvent, Names};
use crate::clock::{Now, SystemClock};
use crate::envelope::{Epochs, Opener, Refusal, SealError, Secrets};
use crate::log_limiter::LogLimiter;
use crate::metrics::{self, Plane};
use crate::proto::SessionBatch;
use crate::proto::payload::Kind;
use crate::proxies::ProxyPlane;
use crate::reason::{DropReason, Reason};
use crate::sessions::Applied;
use crate::sessions::warmup::Peer;

/// How long the outbox may take to empty when the node stops.
const DRAIN_WITHIN: Duration = Duration::from_millis(300);

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
    /// Runs the tasks of each link.
    pub tasks: NodeTasks,
    /// Ends everything.
    pub stop: CancellationToken,
}

/// A node's sessions on their way, whatever link they take.
pub(crate) struct SessionPlane<L: Link> {
    pub(super) node: SessionParts,
    /// Who warms up whom.
    pub(super) warmups: Warmups,
    link: Mutex<Option<Arc<SessionLink<L>>>>,
    receiving: Mutex<Receiving>,
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
struct Receiving {
    opener: Opener,
    log_limiter: LogLimiter,
    secrets: watch::Receiver<Arc<Secrets>>,
    epochs: watch::Receiver<Arc<Epochs>>,
}

impl Receiving {
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
pub(crate) struct LinkedSessions<L: Link> {
    plane: Arc<SessionPlane<L>>,
    link: Arc<SessionLink<L>>,
}

impl<L: Link> Drop for LinkedSessions<L> {
    fn drop(&mut self) {
        self.link.ended.cancel();
        self.plane.end(&self.link);
    }
}

impl<L: Link> SessionPlane<L> {
    /// The plane of a node that shares sessions if it `replicates`, without a link so far. `opener` opens what feeds deliver.
    #[must_use]
    pub(crate) fn new(node: SessionParts, opener: Opener, replicates: bool) -> Self {
        let (mut secrets, mut epochs) = (node.secrets.clone(), node.epochs.clone());
        secrets.mark_changed();
        epochs.mark_changed();
        let mut receiving = Receiving { opener, log_limiter: LogLimiter::default(), secrets, epochs };
        receiving.refresh();
        Self {
            node,
            warmups: Warmups::new(replicates),
            link: Mutex::new(None),
            receiving: Mutex::new(receiving),
            turns: AsyncMutex::new(()),
        }
    }

    /// Starts the tasks of a link that has just come up, whose feed delivers to `feed`.
    #[must_use]
    pub(crate) fn start(
        self: &Arc<Self>,
        link: Arc<L>,
        sealing: Sealing,
        feed: mpsc::Receiver<LinkEvent>,
    ) -> LinkedSessions<L> {
        self.warmups.link_up(link.feed(), self.node.clock.now());
        let link = Arc::new(SessionLink { link, sealing: AsyncMutex::new(sealing), ended: CancellationToken::new() });
        *self.link() = Some(Arc::clone(&link));
        let tasks = &self.node.tasks;
        tasks.spawn("the consumer of sessions", Arc::clone(self).consume(feed, link.ended.clone()));
        tasks.spawn("the warm-up", Arc::clone(self).warm_up(Arc::clone(&link)));
        LinkedSessions { plane: Arc::clone(self), link }
    }

    /// The link has ended; unless another has taken its place, there is none.
    fn end(&self, ended: &Arc<SessionLink<L>>) {
        let mut link = self.link();
        if link.as_ref().is_some_and(|link| Arc::ptr_eq(link, ended)) {
            *link = None;
            drop(link);
            if !self.node.stop.is_cancelled() {
                self.warmups.link_down(self.node.clock.now());
            }
        }
    }

    fn link(&self) -> MutexGuard<'_, Option<Arc<SessionLink<L>>>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn receiving(&self) -> MutexGuard<'_, Receiving> {
        // A panic under the lock ends the daemon.
        self.receiving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes what the proxies report until `stop`. A blocked or absent broker makes it drop, counted: handshakes and
    /// memory never wait for it.
    pub(crate) async fn publish(self: Arc<Self>) {
        let (outbox, batch_bytes) = (&self.node.proxies.outbox, self.node.batch_bytes);
        while let Some(batch) = self.node.stop.run_until_cancelled(outbox.next_batch(batch_bytes)).await {
            self.publish_batch(batch).await;
        }
        // What is queued still goes out, as far as it takes no time.
        let drain = async {
            while let Some(batch) = outbox.take(batch_bytes) {
                self.publish_batch(batch).await;
            }
        };
        if tokio::time::timeout(DRAIN_WITHIN, drain).await.is_err() {
            let left = u64::try_from(outbox.len()).unwrap_or(u64::MAX);
            metrics::SESSIONS_DROPPED.add(DropReason::Stopping, left);
        }
    }

    async fn publish_batch(&self, batch: SessionBatch) {
        let entries = u64::try_from(batch.entries.len()).unwrap_or(u64::MAX);
        // A node that has just started is granted its first epoch key within a beat. Until then this batch waits, and
        // what comes after it waits in the outbox, which has a bound.
        let has_link = self.link().is_some();
        if has_link && !self.has_epoch().await {
            metrics::SESSIONS_DROPPED.add(DropReason::NoEpoch, entries);
            return;
        }
        let link = self.link().clone();
        let Some(link) = link else {
            metrics::SESSIONS_DROPPED.add(DropReason::BrokerAway, entries);
            return;
        };
        if link.link.is_blocked() {
            metrics::SESSIONS_DROPPED.add(DropReason::BrokerBlocked, entries);
            return;
        }
        let (route, now) = (&self.node.names.sessions, self.node.clock.now());
        let sealed = link.sealing.lock().await.seal(route, Kind::Sessions(batch), now);
        let sent = match sealed {
            Err(SealError::NoEpoch) => {
                metrics::SESSIONS_DROPPED.add(DropReason::NoEpoch, entries);
                return;
            }
            Ok(sealed) => self.noted(link.link.publish_sessions(sealed).await),
            Err(error) => Err(error.to_string()),
        };
        match sent {
            Ok(()) => {
                metrics::MESSAGES_SENT.add(Plane::Sessions, 1);
                metrics::SESSIONS_PUBLISHED.add(entries);
            }
            Err(error) => {
                metrics::SESSIONS_DROPPED.add(DropReason::NotSent, entries);
                debug!(error, "could not publish a session batch");
            }
        }
    }

    /// What became of a publish, in words; an operator hears of what the broker refuses.
    pub(super) fn noted(&self, result: Result<(), BusError>) -> Result<(), String> {
        self.node.refused.note_sessions(&result, &self.node.names, self.node.clock.now());
        result.map_err(|error| error.to_string())
    }

    /// Waits for an epoch key until `stop`; whether there is one.
    async fn has_epoch(&self) -> bool {
        let mut epochs = self.node.epochs.clone();
        let held = self.node.stop.run_until_cancelled(epochs.wait_for(|epochs| !epochs.is_empty())).await;
        matches!(held, Some(Ok(_))) || !self.node.epochs.borrow().is_empty()
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
        let Receiving { opener, log_limiter, .. } = &mut *receiving;
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
        let warmup = |node, message| self.take_in_warmup(Peer { node, boot_id }, message, now);
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
mod tests {
    use std::time::Duration;

    use tokio::sync::broadcast;

    use super::super::sealing::Identity;
    use super::*;
    use crate::bus::in_process::{Hub, InProcess};
    use crate::bus::{Bus, LinkEvents, LinkSpec, Source};
    use crate::envelope::{EpochKey, FarmSecret};
    use crate::keys::Timetable;
    use crate::proto::{SessionEntry, SessionFormat};
    use crate::proxies::{Registry, SharedOutbox};
    use crate::random::{random, system};
    use crate::sessions::{SessionSettings, Store};

    const OFFSET: Duration = Duration::from_secs(300);

    fn plane(clock: SystemClock) -> Arc<ProxyPlane> {
        let settings = SessionSettings { max_bytes: 1 << 20, ..SessionSettings::default() };
        Arc::new(ProxyPlane {
            timetable: watch::channel(Arc::new(Timetable::default())).1,
            from_farm: broadcast::channel(16).0,
            outbox: Arc::new(SharedOutbox::new(1 << 20)),
            store: Arc::new(Store::new(settings, 2 * OFFSET)),
            registry: Arc::new(Registry::default()),
            clock,
            welcome: Default::default(),
        })
    }

    type Keys<'a> = (&'a watch::Receiver<Arc<Secrets>>, &'a watch::Receiver<Arc<Epochs>>);

    fn sessions(
        proxies: &Arc<ProxyPlane>,
        names: &Names,
        (secrets, epochs): Keys<'_>,
    ) -> Arc<SessionPlane<<InProcess as Bus>::Link>> {
        let parts = SessionParts {
            proxies: Arc::clone(proxies),
            secrets: secrets.clone(),
            epochs: epochs.clone(),
            unknown_epoch: Arc::default(),
            names: names.clone(),
            boot_id: random(),
            batch_bytes: 1 << 15,
            refused: Refused::default(),
            clock: proxies.clock,
            tasks: NodeTasks::new(watch::Sender::new(None)),
            stop: CancellationToken::new(),
        };
        let opener = Opener::new(Arc::clone(&secrets.borrow()), "f", OFFSET);
        Arc::new(SessionPlane::new(parts, opener, true))
    }

    #[tokio::test]
    async fn what_a_link_delivered_before_it_broke_is_taken_in() {
        const BATCHES: u8 = 12;
        for _ in 0..20 {
            let clock = SystemClock::start();
            let names = Names::new("f", "p");
            let (_secrets, secrets) =
                watch::channel(Arc::new(Secrets::new(vec![FarmSecret::generate().unwrap()]).unwrap()));
            let mut held = Epochs::new(Duration::ZERO);
            held.lead_to(EpochKey::from_random(&random()).unwrap(), clock.now());
            let (_epochs, epochs) = watch::channel(Arc::new(held));
            let sealing = |node: &str| {
                let identity = Identity { farm: "f".to_owned(), node: node.to_owned(), boot_id: random() };
                Sealing::new(identity, secrets.clone(), epochs.clone(), system(), clock.now())
            };
            let bus = InProcess::new(Arc::new(Hub::default()));
            let spec = LinkSpec { names: names.clone(), node: "a".to_owned(), sessions: false, elsewhere_than: None };
            let (feed_sender, feed) = mpsc::channel(usize::from(BATCHES));
            let events = LinkEvents { keys: mpsc::channel(16).0, feed: feed_sender.clone() };
            let link = Arc::new(bus.connect(&spec, events).await.unwrap());

            let proxies = plane(clock);
            let sessions = sessions(&proxies, &names, (&secrets, &epochs));
            let linked = sessions.start(link, sealing("a"), feed);
            tokio::task::yield_now().await;

            // Delivered and lost in one moment, as when the broker is killed under load.
            let mut other = sealing("b");
            for number in 0..BATCHES {
                let removal = SessionEntry { id: vec![number; 32].into(), at: clock.now().wall, ..Default::default() };
                let batch = SessionBatch { entries: vec![removal], format: SessionFormat::OpensslDer.into() };
                let body = other.seal(&names.sessions, Kind::Sessions(batch), clock.now()).unwrap();
                let event =
                    LinkEvent::Delivered { from: Source::Feed, route: names.sessions.clone(), body, site: None };
                feed_sender.try_send(event).unwrap();
            }
            drop(linked);
            assert!(sessions.link().is_none(), "the link is still in use");
            // Its tasks end with it, the feed's when all of it is taken in.
            sessions.node.tasks.ended().await;
            assert_eq!(proxies.store.tombstones(), usize::from(BATCHES));
        }
    }

    #[tokio::test]
    async fn keys_that_are_out_of_use_are_let_go_also_without_a_link() {
        let clock = SystemClock::start();
        let new_secrets = || Arc::new(Secrets::new(vec![FarmSecret::generate().unwrap()]).unwrap());
        let (secrets_sender, secrets) = watch::channel(new_secrets());
        let (epochs_sender, epochs) = watch::channel(Arc::new(Epochs::new(Duration::ZERO)));
        let sessions = sessions(&plane(clock), &Names::new("f", "p"), (&secrets, &epochs));
        let following = tokio::spawn(Arc::clone(&sessions).follow_keys());
        let old = (Arc::downgrade(&secrets.borrow()), Arc::downgrade(&epochs.borrow()));
        secrets_sender.send_replace(new_secrets());
        epochs_sender.send_replace(Arc::new(Epochs::new(Duration::ZERO)));
        let gone = async {
            while old.0.upgrade().is_some() || old.1.upgrade().is_some() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), gone).await.expect("the opener keeps keys of before");
        sessions.node.stop.cancel();
        following.await.unwrap();
    }
}
