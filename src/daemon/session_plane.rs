//! Carries sessions: outbox → batch → envelope → fanout, and feed → open → validate → cache → proxies.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Mutex, Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::refused::Refused;
use super::sealing::Sealing;
use super::warmup::{Message, Warmups};
use crate::bus::{BusError, Link, LinkEvent, Names};
use crate::clock::{Now, SystemClock};
use crate::envelope::{Epochs, Opener, Refusal, SealError, Secrets};
use crate::metrics::{self, Plane};
use crate::proto::SessionBatch;
use crate::proto::payload::Kind;
use crate::proxies::ProxyPlane;
use crate::quiet::Quiet;
use crate::sessions::Applied;
use crate::sessions::warmup::Peer;

/// How long the outbox may take to empty when the node stops.
const DRAIN_WITHIN: std::time::Duration = std::time::Duration::from_millis(300);

/// Entries of a batch that are dropped for these reasons are nobody's fault, and not worth a line.
const ORDINARY: [&str; 4] = ["duplicate", "tombstone", "removal_kept", "flushed"];

/// What the session plane uses of a link. Clones share it; the newest one wins.
pub struct SessionLink<L: Link> {
    link: Arc<L>,
    sealing: Arc<Mutex<Sealing>>,
    feed: Arc<Mutex<mpsc::Receiver<LinkEvent>>>,
}

impl<L: Link> SessionLink<L> {
    /// A link that has just come up.
    #[must_use]
    pub fn new(link: Arc<L>, sealing: Sealing, feed: mpsc::Receiver<LinkEvent>) -> Self {
        Self { link, sealing: Arc::new(Mutex::new(sealing)), feed: Arc::new(Mutex::new(feed)) }
    }

    pub(super) fn link(&self) -> &L {
        &self.link
    }

    pub(super) fn sealing(&self) -> &Mutex<Sealing> {
        &self.sealing
    }
}

impl<L: Link> Clone for SessionLink<L> {
    fn clone(&self) -> Self {
        Self { link: Arc::clone(&self.link), sealing: Arc::clone(&self.sealing), feed: Arc::clone(&self.feed) }
    }
}

/// What both directions share.
pub struct SessionPlane<L: Link> {
    /// The proxies' side: outbox, cache, and the way to the replicas.
    pub proxies: Arc<ProxyPlane>,
    /// The current link, if any.
    pub link: watch::Receiver<Option<SessionLink<L>>>,
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
    /// Who warms up whom.
    pub warmups: Warmups,
    /// This host's clocks.
    pub clock: SystemClock,
    /// Ends both directions.
    pub stop: CancellationToken,
}

impl<L: Link> SessionPlane<L> {
    /// Publishes what the proxies report until `stop`. A blocked or absent broker makes it drop, counted: handshakes and
    /// memory never wait for it.
    pub async fn publish(self: Arc<Self>) {
        while let Some(batch) = self.stop.run_until_cancelled(self.proxies.outbox.next_batch(self.batch_bytes)).await {
            self.publish_batch(batch).await;
        }
        // What is queued still goes out, as far as it takes no time.
        let drain = async {
            while let Some(batch) = self.proxies.outbox.take(self.batch_bytes) {
                self.publish_batch(batch).await;
            }
        };
        if tokio::time::timeout(DRAIN_WITHIN, drain).await.is_err() {
            let left = u64::try_from(self.proxies.outbox.len()).unwrap_or(u64::MAX);
            metrics::dropped("stopping", left);
        }
    }

    async fn publish_batch(&self, batch: SessionBatch) {
        let entries = u64::try_from(batch.entries.len()).unwrap_or(u64::MAX);
        // A node that has just started is granted its first epoch key within a beat. Until then this batch waits, and
        // what comes after it waits in the outbox, which has a bound.
        if self.link.borrow().is_some() {
            let mut epochs = self.epochs.clone();
            let held = self.stop.run_until_cancelled(epochs.wait_for(|epochs| !epochs.is_empty())).await;
            if !matches!(held, Some(Ok(_))) && self.epochs.borrow().is_empty() {
                metrics::dropped("no_epoch", entries);
                return;
            }
        }
        let link = self.link.borrow().clone();
        let Some(link) = link else {
            metrics::dropped("broker_away", entries);
            return;
        };
        if link.link.is_blocked() {
            metrics::dropped("broker_blocked", entries);
            return;
        }
        let sealed = link.sealing.lock().await.seal(&self.names.sessions, Kind::Sessions(batch), self.clock.now());
        let sent = match sealed {
            Err(SealError::NoEpoch) => {
                metrics::dropped("no_epoch", entries);
                return;
            }
            Ok(sealed) => self.noted(link.link.publish_sessions(sealed).await),
            Err(error) => Err(error.to_string()),
        };
        match sent {
            Ok(()) => {
                metrics::sent(Plane::Sessions);
                metrics::published(entries);
            }
            Err(error) => {
                metrics::dropped("not_sent", entries);
                debug!(error, "could not publish a session batch");
            }
        }
    }

    /// What became of a publish, in words; an operator hears of what the broker refuses.
    pub(super) fn noted(&self, result: Result<(), BusError>) -> Result<(), String> {
        self.refused.note_sessions(&result, &self.names, self.clock.now());
        result.map_err(|error| error.to_string())
    }

    /// Takes in what other nodes of the pod publish, until `stop`.
    pub async fn consume(self: Arc<Self>, mut opener: Opener) {
        let mut link = self.link.clone();
        let (mut secrets, mut epochs) = (self.secrets.clone(), self.epochs.clone());
        opener.set_epochs(Arc::clone(&epochs.borrow_and_update()));
        let mut quiet = Quiet::default();
        let mut current = link.borrow_and_update().clone();
        loop {
            let next = async {
                match &current {
                    Some(current) => current.feed.lock().await.recv().await,
                    None => std::future::pending().await,
                }
            };
            // What a link delivered before it broke is acknowledged and will not come again: it is taken in before the
            // next link is looked at.
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                Ok(()) = secrets.changed() => opener.set_secrets(Arc::clone(&secrets.borrow_and_update())),
                Ok(()) = epochs.changed() => opener.set_epochs(Arc::clone(&epochs.borrow_and_update())),
                event = next => match event {
                    Some(LinkEvent::Delivered { route, body, .. }) => self.take_in(&mut opener, &mut quiet, &route, body),
                    Some(LinkEvent::LeaseLost { .. } | LinkEvent::Closed { .. }) => {}
                    // This feed ended; the driver will bring another link.
                    None => tokio::select! {
                        () = self.stop.cancelled() => return,
                        changed = link.changed() => match changed {
                            Ok(()) => current = link.borrow_and_update().clone(),
                            Err(_) => return,
                        },
                    },
                },
                changed = link.changed() => match changed {
                    Ok(()) => current = link.borrow_and_update().clone(),
                    Err(_) => return,
                },
            }
        }
    }

    fn take_in(&self, opener: &mut Opener, quiet: &mut Quiet, route: &str, body: Bytes) {
        let now = self.clock.now();
        let opened = match opener.open(route, body, now) {
            Ok(opened) => opened,
            Err(refusal) => {
                metrics::received(Plane::Sessions);
                if refusal == Refusal::UnknownEpoch {
                    self.unknown_epoch.notify_one();
                    // Ordinary for a node that has just started, until it has joined.
                    if !opener.has_epochs() {
                        return;
                    }
                }
                metrics::refused(refusal.reason().as_str());
                if let Some(held_back) = quiet.pass("message", refusal.reason().as_str(), now) {
                    // Whoever may write to the broker chooses the route: it is quoted.
                    warn!(held_back, ?route, "refused a session batch ({}): {refusal}", refusal.reason());
                }
                return;
            }
        };
        if opened.payload.boot_id == self.boot_id {
            return;
        }
        let plane = match opened.payload.kind {
            Some(Kind::WarmupCall(_) | Kind::WarmupOffer(_) | Kind::WarmupRequest(_) | Kind::Warmup(_)) => {
                Plane::Warmups
            }
            _ => Plane::Sessions,
        };
        metrics::received(plane);
        metrics::missed(opened.missed);
        let node = opened.payload.node;
        // The opener has checked that it has 16 bytes.
        let boot_id = opened.payload.boot_id.try_into().unwrap_or_default();
        let warmup = |node, message| self.take_in_warmup(Peer { node, boot_id }, message, now);
        let batch = match opened.payload.kind {
            Some(Kind::Sessions(batch)) => batch,
            Some(Kind::WarmupCall(call)) => return warmup(node, Message::Call(call)),
            Some(Kind::WarmupOffer(offer)) => return warmup(node, Message::Offer(offer)),
            Some(Kind::WarmupRequest(request)) => return warmup(node, Message::Request(request)),
            Some(Kind::Warmup(chunk)) => return warmup(node, Message::Chunk(chunk)),
            _ => {
                metrics::refused("unknown_kind");
                if let Some(held_back) = quiet.pass("message", "unknown_kind", now) {
                    warn!(held_back, "ignored a message of unknown kind from {node} among the sessions");
                }
                return;
            }
        };
        metrics::taken_in(u64::try_from(batch.entries.len()).unwrap_or(u64::MAX));
        for together in batch.entries.chunk_by(|one, next| one.at == next.at) {
            metrics::replicated(together[0].at, now.wall, together.len());
        }
        let applied = self.proxies.store.remote(batch, now);
        self.hand_on(applied, &node, quiet, now);
    }

    /// Counts a change, logs what was skipped, and hands the rest to this node's proxies.
    pub(super) fn hand_on(&self, applied: Applied, node: &str, quiet: &mut Quiet, now: Now) {
        metrics::sessions::applied(&applied, &self.proxies.store);
        for (reason, sessions) in applied.dropped.iter().filter(|(reason, _)| !ORDINARY.contains(reason)) {
            if let Some(held_back) = quiet.pass("session", reason, now) {
                warn!(held_back, "skipped {sessions} sessions of {node}: {reason}");
            }
        }
        if !applied.for_proxies.is_empty() {
            // Without a proxy connected nobody listens: the cache refills it when it comes.
            let _listeners = self.proxies.from_farm.send(Arc::new(applied.for_proxies));
        }
    }
}

/// Follows the ring's session floor until `stop`: when it rises, the older sessions leave the cache, and the proxies are told to
/// forget them.
pub async fn flush(proxies: Arc<ProxyPlane>, mut floor: watch::Receiver<u64>, stop: CancellationToken) {
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
pub async fn sweep(proxies: Arc<ProxyPlane>, clock: SystemClock, stop: CancellationToken) {
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
    use crate::sessions::{Removals, Store, StoreSettings};

    const OFFSET: Duration = Duration::from_secs(300);

    fn plane(clock: SystemClock) -> Arc<ProxyPlane> {
        let store = StoreSettings {
            max_bytes: 1 << 20,
            max_session_bytes: 16 << 10,
            removals: Removals::Replicate,
            tombstone_for: 2 * OFFSET,
        };
        Arc::new(ProxyPlane {
            timetable: watch::channel(Arc::new(Timetable::default())).1,
            from_farm: broadcast::channel(16).0,
            outbox: Arc::new(SharedOutbox::new(1 << 20)),
            store: Arc::new(Store::new(store)),
            registry: Arc::new(Registry::default()),
            clock,
            welcome: Default::default(),
        })
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
            let (links, link_receiver) = watch::channel(Some(SessionLink::new(link, sealing("a"), feed)));
            let consumer = Arc::new(SessionPlane {
                proxies: Arc::clone(&proxies),
                link: link_receiver,
                secrets: secrets.clone(),
                epochs: epochs.clone(),
                unknown_epoch: Arc::default(),
                names: names.clone(),
                boot_id: random(),
                batch_bytes: 1 << 15,
                refused: Refused::default(),
                warmups: Warmups::new(true),
                clock,
                stop: CancellationToken::new(),
            });
            let opener = Opener::new(Arc::clone(&secrets.borrow()), "f", OFFSET);
            let consuming = tokio::spawn(consumer.consume(opener));
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
            links.send_replace(None);
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            assert_eq!(proxies.store.tombstones(), usize::from(BATCHES));
            drop(links);
            consuming.await.unwrap();
        }
    }
}
