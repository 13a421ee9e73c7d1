//! Publishes what this host's proxies report of sessions: outbox → batch → envelope → fanout.
//!
//! The outbox is the node's, and outlives links. One task at a time empties it: the writer of the link, which begins and ends
//! with it, or, while there is no link, a task that drops what comes, counted. Handshakes and memory never wait for a broker.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex as AsyncMutex, watch};
use tracing::debug;

use super::session_plane::{SessionLink, SessionPlane};
use crate::bus::Link;
use crate::envelope::SealError;
use crate::metrics::{self, Plane};
use crate::proto::SessionBatch;
use crate::proto::payload::Kind;
use crate::reason::DropReason;

/// How long the outbox may take to empty when the node stops.
const DRAIN_WITHIN: Duration = Duration::from_millis(300);

/// The way out of the outbox, whichever link it leads over.
pub(super) struct Outlet {
    /// Whether there is a link.
    linked: watch::Sender<bool>,
    /// Whose turn it is empties the outbox, in the order in which they come.
    turn: AsyncMutex<Turn>,
}

#[derive(Default)]
struct Turn {
    /// A batch that met a link before the node had its first epoch key. It waits for that, over another link if need be, and
    /// what comes after it waits in the outbox, which has a bound.
    waiting: Option<SessionBatch>,
    /// The node stops, and the outbox was emptied for the last time.
    over: bool,
}

impl Outlet {
    /// One without a link so far.
    pub(super) fn new() -> Self {
        Self { linked: watch::Sender::new(false), turn: AsyncMutex::default() }
    }

    /// Says whether there is a link. Before one comes up, the one before has ended.
    pub(super) fn set_linked(&self, linked: bool) {
        let before = self.linked.send_replace(linked);
        debug_assert_ne!(before, linked, "one link at a time");
    }

    /// Whether there is a link.
    pub(super) fn is_linked(&self) -> bool {
        *self.linked.borrow()
    }
}

impl SessionPlane {
    /// Publishes over `link` what the proxies report, until it ends. When the node stops, what is queued still goes out.
    pub(super) async fn write_out<L: Link>(self: Arc<Self>, link: Arc<SessionLink<L>>) {
        let (stop, mut epochs) = (&self.node.stop, self.node.epochs.clone());
        let mut turn = self.outlet.turn.lock().await;
        loop {
            let has_epoch = !epochs.borrow_and_update().is_empty();
            tokio::select! {
                biased;
                () = stop.cancelled() => return self.drain(&mut turn, &link).await,
                () = link.ended.cancelled() => return,
                Ok(()) = epochs.changed(), if !has_epoch => {}
                // A node that has just started is granted its first epoch key within a beat.
                batch = self.next_batch(&mut turn), if has_epoch || turn.waiting.is_none() => match self.has_epoch() {
                    true => self.publish_batch(batch, &link).await,
                    false => turn.waiting = Some(batch),
                },
            }
        }
    }

    /// Drops, counted, what the proxies report while there is no link, until the node stops.
    pub(crate) async fn drop_without_link(self: Arc<Self>) {
        let (stop, mut linked) = (&self.node.stop, self.outlet.linked.subscribe());
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = linked.wait_for(|linked| !linked) => {}
            }
            let mut turn = self.outlet.turn.lock().await;
            self.drop_until_linked(&mut turn).await;
        }
        // Where there is a link, its writer empties the outbox.
        if !self.outlet.is_linked() {
            let mut turn = self.outlet.turn.lock().await;
            self.drop_rest(&mut turn);
        }
    }

    /// Until the node stops, too.
    async fn drop_until_linked(&self, turn: &mut Turn) {
        let (mut linked, mut epochs) = (self.outlet.linked.subscribe(), self.node.epochs.clone());
        loop {
            let waits = turn.waiting.is_some();
            tokio::select! {
                biased;
                () = self.node.stop.cancelled() => return,
                _ = linked.wait_for(|linked| *linked) => return,
                Ok(_) = epochs.wait_for(|epochs| !epochs.is_empty()), if waits => {
                    turn.waiting.take().iter().for_each(|batch| dropped(batch, DropReason::BrokerAway));
                }
                batch = self.next_batch(turn), if !waits => dropped(&batch, DropReason::BrokerAway),
            }
        }
    }

    fn has_epoch(&self) -> bool {
        !self.node.epochs.borrow().is_empty()
    }

    /// The batch that goes next. Nothing is taken from the outbox if this is not waited for to the end.
    async fn next_batch(&self, turn: &mut Turn) -> SessionBatch {
        match turn.waiting.take() {
            Some(batch) => batch,
            None => self.node.proxies.outbox.next_batch(self.node.batch_bytes).await,
        }
    }

    /// Publishes what is left when the node stops, as far as that takes no time.
    async fn drain<L: Link>(&self, turn: &mut Turn, link: &SessionLink<L>) {
        if std::mem::replace(&mut turn.over, true) {
            return;
        }
        let outbox = &self.node.proxies.outbox;
        let drain = async {
            while let Some(batch) = turn.waiting.take().or_else(|| outbox.take(self.node.batch_bytes)) {
                self.publish_batch(batch, link).await;
            }
        };
        if tokio::time::timeout(DRAIN_WITHIN, drain).await.is_err() {
            let left = u64::try_from(outbox.len()).unwrap_or(u64::MAX);
            metrics::SESSIONS_DROPPED.add(DropReason::Stopping, left);
        }
    }

    /// The same without a link, which takes no time.
    fn drop_rest(&self, turn: &mut Turn) {
        if std::mem::replace(&mut turn.over, true) {
            return;
        }
        let reason = if self.has_epoch() { DropReason::BrokerAway } else { DropReason::NoEpoch };
        turn.waiting.take().iter().for_each(|batch| dropped(batch, reason));
        while let Some(batch) = self.node.proxies.outbox.take(self.node.batch_bytes) {
            dropped(&batch, DropReason::BrokerAway);
        }
    }

    /// Publishes, or drops, counted: a link that has ended and a broker that blocks are not waited for.
    async fn publish_batch<L: Link>(&self, batch: SessionBatch, link: &SessionLink<L>) {
        let entries = entries(&batch);
        match self.try_publish(batch, link).await {
            Ok(()) => {
                metrics::MESSAGES_SENT.add(Plane::Sessions, 1);
                metrics::SESSIONS_PUBLISHED.add(entries);
            }
            Err(reason) => metrics::SESSIONS_DROPPED.add(reason, entries),
        }
    }

    async fn try_publish<L: Link>(&self, batch: SessionBatch, link: &SessionLink<L>) -> Result<(), DropReason> {
        if link.ended.is_cancelled() {
            return Err(DropReason::BrokerAway);
        }
        if !self.has_epoch() {
            return Err(DropReason::NoEpoch);
        }
        if link.link.is_blocked() {
            return Err(DropReason::BrokerBlocked);
        }
        let (route, now) = (&self.node.names.sessions, self.node.clock.now());
        let sealed = link.sealing.lock().await.seal(route, Kind::Sessions(batch), now);
        let sent = match sealed {
            Err(SealError::NoEpoch) => return Err(DropReason::NoEpoch),
            Ok(sealed) => self.noted(link.link.publish_sessions(sealed).await),
            Err(error) => Err(error.to_string()),
        };
        sent.map_err(|error| {
            debug!(error, "could not publish a session batch");
            DropReason::NotSent
        })
    }
}

fn entries(batch: &SessionBatch) -> u64 {
    u64::try_from(batch.entries.len()).unwrap_or(u64::MAX)
}

fn dropped(batch: &SessionBatch, reason: DropReason) {
    metrics::SESSIONS_DROPPED.add(reason, entries(batch));
}
