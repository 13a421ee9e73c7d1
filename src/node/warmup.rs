//! Carries warm-ups out: hands the state machines of [`crate::sessions::warmup`] what arrives, sends what they say, and
//! reads and fills the store for them. Chunks go out beside live batches, one at a time on the same channel, and come in
//! through the same feed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::session_plane::{SessionLink, SessionPlane};
use crate::bus::Link;
use crate::clock::Now;
use crate::log_limiter::LogLimiter;
use crate::metrics::{
    MESSAGES_REFUSED, MESSAGES_SENT, Plane, SESSIONS_RECEIVED, WARMUP_LACKING, WARMUP_RESTARTS, WARMUP_SECONDS,
    WARMUP_SESSIONS_RECEIVED, WARMUP_SESSIONS_SENT, WARMUP_TOMBSTONES_RECEIVED, WARMUP_TOMBSTONES_SENT, WARMUPS,
};
use crate::proto::payload::Kind;
use crate::proto::{Warmup, WarmupCall, WarmupOffer, WarmupRequest};
use crate::random::Randomness;
use crate::reason::Reason;
use crate::sessions::warmup::{Donor, Due, Joiner, PodNode, WarmupAction, WarmupNote};

/// The most of a chunk, in bytes; smaller where `sessions.batch_bytes` is.
const CHUNK_BYTES: usize = 32 * 1024;
/// Messages that wait for the broker. All of them are repeated if they matter.
const MAX_PENDING: usize = 1024;

/// Both sides of a node's warm-ups.
pub(crate) struct Warmups {
    machines: Mutex<Machines>,
    stirred: Notify,
}

struct Machines {
    joiner: Joiner,
    donor: Donor,
    pending: VecDeque<WarmupAction>,
    log_limiter: LogLimiter,
    /// A node that shares no sessions has no feed: nobody ever gives it any, and it lacks none.
    replicates: bool,
}

impl Warmups {
    /// Those of a node that has just started: it lacks everything, if it `replicates` sessions at all. `random` gives the
    /// jitter of its calls.
    pub(crate) fn new(replicates: bool, random: Randomness) -> Self {
        let machines = Machines {
            joiner: Joiner::new(random),
            donor: Donor::default(),
            pending: VecDeque::new(),
            log_limiter: LogLimiter::default(),
            replicates,
        };
        machines.show();
        Self { machines: Mutex::new(machines), stirred: Notify::new() }
    }

    /// A link is up, whose session feed has that name; none if it has no feed.
    pub(super) fn link_up(&self, feed: Option<&str>, now: Now) {
        let Some(feed) = feed else { return };
        let mut machines = self.lock();
        machines.donor.feed_up(feed.to_owned());
        machines.joiner.feed_up(feed.to_owned(), now);
        machines.show();
    }

    /// There is no link any more. Another will have another feed: whatever was under way to this one is lost.
    pub(super) fn link_down(&self, now: Now) {
        let mut machines = self.lock();
        let actions = machines.donor.feed_down();
        machines.joiner.feed_down(now);
        machines.pending.clear();
        machines.take(actions, now);
    }

    fn lock(&self) -> MutexGuard<'_, Machines> {
        // Nothing that panics leaves a machine half way.
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Machines {
    /// Notes are for now, messages for the task that sends.
    fn take(&mut self, actions: Vec<WarmupAction>, now: Now) {
        for action in actions {
            match action {
                WarmupAction::WarmupNote(note) => self.record(&note, now),
                message => {
                    if self.pending.len() == MAX_PENDING {
                        self.pending.pop_front();
                    }
                    self.pending.push_back(message);
                }
            }
        }
        self.show();
    }

    fn show(&self) {
        WARMUP_LACKING.set(self.replicates && self.joiner.lacks());
    }

    fn record(&mut self, note: &WarmupNote, now: Now) {
        match note {
            WarmupNote::Refused { reason, .. } => {
                MESSAGES_REFUSED.add(*reason, 1);
                if let Some(held_back) = self.log_limiter.pass("message", reason.as_str(), now) {
                    warn!(held_back, "{note}");
                }
                return;
            }
            WarmupNote::DonorLost { .. } => WARMUP_RESTARTS.add(1),
            WarmupNote::WarmedUp { took_ms, .. } => {
                WARMUPS.add(1);
                WARMUP_SECONDS.set(std::time::Duration::from_millis(*took_ms).as_secs_f64());
            }
            WarmupNote::Begins { .. }
            | WarmupNote::NothingToGet
            | WarmupNote::Donates { .. }
            | WarmupNote::Donated { .. } => {}
        }
        info!("{note}");
    }
}

/// What the sender of a link does next.
#[expect(clippy::large_enum_variant, reason = "one at a time, on its way to be sent")]
enum Next {
    Send(WarmupAction),
    /// Until these monotonic milliseconds, or until something happens.
    Wait(Option<u64>),
}

/// A message of a warm-up.
pub(super) enum WarmupMessage {
    /// To the pod.
    Call(WarmupCall),
    /// To the caller.
    Offer(WarmupOffer),
    /// To a donor.
    Request(WarmupRequest),
    /// To a joiner.
    Chunk(Warmup),
}

impl WarmupMessage {
    /// The session feed that an answer would go to.
    fn feed(&self) -> Option<&str> {
        match self {
            Self::Call(call) => Some(&call.feed),
            Self::Offer(offer) => Some(&offer.feed),
            Self::Request(request) => Some(&request.feed),
            Self::Chunk(_) => None,
        }
    }
}

impl SessionPlane {
    /// Takes in one message of a warm-up.
    pub(super) fn take_in_warmup(&self, peer: PodNode, message: WarmupMessage, now: Now) {
        let store = &self.node.proxies.store;
        let mut machines = self.warmups.lock();
        let Machines { joiner, donor, .. } = &mut *machines;
        let actions = match message {
            message if message.feed().is_some_and(|feed| !self.node.names.is_feed(feed)) => {
                vec![WarmupAction::WarmupNote(WarmupNote::Refused { node: peer.node, reason: Reason::WarmupBadFeed })]
            }
            WarmupMessage::Call(call) => donor.on_call(&peer, &call, joiner, store, now),
            WarmupMessage::Offer(offer) => joiner.on_offer(peer, offer, now),
            WarmupMessage::Request(request) => donor.on_request(peer, request, store, now),
            WarmupMessage::Chunk(chunk) => {
                let (next, mut actions) = joiner.on_chunk(&peer, &chunk, now);
                if next {
                    let (sessions, tombstones) = (chunk.entries.len() as u64, chunk.tombstones.len() as u64);
                    let last = chunk.last;
                    self.take_chunk(chunk, &peer, &mut machines.log_limiter, now);
                    actions.extend(machines.joiner.chunk_taken(sessions, tombstones, last, now));
                }
                actions
            }
        };
        machines.take(actions, now);
        drop(machines);
        self.warmups.stirred.notify_one();
    }

    fn take_chunk(&self, chunk: Warmup, peer: &PodNode, log_limiter: &mut LogLimiter, now: Now) {
        WARMUP_SESSIONS_RECEIVED.add(chunk.entries.len() as u64);
        WARMUP_TOMBSTONES_RECEIVED.add(chunk.tombstones.len() as u64);
        SESSIONS_RECEIVED.add(chunk.entries.len() as u64);
        let tombstones_over = chunk.last || !chunk.entries.is_empty();
        let applied = self.node.proxies.store.warm(chunk, now);
        self.hand_on(applied, &peer.node, log_limiter, now);
        if tombstones_over && self.node.proxies.store.has_pending_tombstones() {
            let proxies = Arc::clone(&self.node.proxies);
            // It looks at every session. Its removals may come late: nothing brings these sessions back.
            tokio::task::spawn_blocking(move || {
                let applied = proxies.store.apply_tombstones(now);
                crate::metrics::sessions::applied(&applied, &proxies.store);
                if !applied.for_proxies.is_empty() {
                    let _listeners = proxies.from_farm.send(Arc::new(applied.for_proxies));
                }
            });
        }
    }

    /// Joins and donates over `link` until it ends.
    pub(super) async fn warm_up<L: Link>(self: Arc<Self>, link: Arc<SessionLink<L>>) {
        let mut epochs = self.node.epochs.clone();
        while !self.node.stop.is_cancelled() && !link.ended.is_cancelled() {
            let due = match self.next_warmup(&link) {
                Next::Send(message) => {
                    self.send_warmup(&link, message).await;
                    continue;
                }
                Next::Wait(due) => due,
            };
            let sleep = async {
                match due {
                    Some(due) => tokio::time::sleep_until(Instant::from_std(self.node.clock.instant(due))).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // First, so that what stirs is left for the next link's task.
                biased;
                () = self.node.stop.cancelled() => {}
                () = link.ended.cancelled() => {}
                Ok(()) = epochs.changed() => {}
                () = self.warmups.stirred.notified() => {}
                () = sleep => {}
            }
        }
    }

    /// What is to be done now.
    fn next_warmup<L: Link>(&self, link: &SessionLink<L>) -> Next {
        // Without an epoch key nothing of this may travel.
        let blocked = self.node.epochs.borrow().is_empty() || link.link.is_blocked();
        let now = self.node.clock.now();
        let mut machines = self.warmups.lock();
        let actions = machines.joiner.wake(blocked, now);
        machines.take(actions, now);
        let (due, actions) = machines.donor.due(blocked, now);
        machines.take(actions, now);
        if let Some(message) = machines.pending.pop_front() {
            return Next::Send(message);
        }
        let donor_due = match due {
            Due::Now => {
                let chunk_bytes = self.node.batch_bytes.min(CHUNK_BYTES);
                match machines.donor.next_chunk(&self.node.proxies.store, chunk_bytes, now) {
                    Some(chunk) => return Next::Send(chunk),
                    None => Some(now.mono),
                }
            }
            Due::At(at) => Some(at),
            Due::Never => None,
        };
        let due = machines.joiner.next_wake().into_iter().chain(donor_due).min();
        Next::Wait(due.map(|at| at.max(now.mono + 1)))
    }

    async fn send_warmup<L: Link>(&self, link: &SessionLink<L>, message: WarmupAction) {
        let (feed, kind) = match message {
            WarmupAction::Call(call) => (None, Kind::WarmupCall(call)),
            WarmupAction::Send { feed, kind } => (Some(feed), kind),
            WarmupAction::WarmupNote(_) => return,
        };
        let (sessions, tombstones) = match &kind {
            Kind::Warmup(chunk) => (chunk.entries.len() as u64, chunk.tombstones.len() as u64),
            _ => (0, 0),
        };
        let route = feed.as_deref().unwrap_or(&self.node.names.sessions);
        let sealed = link.sealing.lock().await.seal(route, kind, self.node.clock.now());
        let sent = match (sealed, &feed) {
            (Ok(sealed), Some(feed)) => self.noted(link.link.publish_to_feed(feed, sealed).await),
            (Ok(sealed), None) => self.noted(link.link.publish_sessions(sealed).await),
            (Err(error), _) => Err(error.to_string()),
        };
        match sent {
            Ok(()) => {
                MESSAGES_SENT.add(Plane::Warmups, 1);
                WARMUP_SESSIONS_SENT.add(sessions);
                WARMUP_TOMBSTONES_SENT.add(tombstones);
            }
            // The joiner asks again for what matters.
            Err(error) => debug!(error, "could not send a message of a warm-up"),
        }
    }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    fn a_node_that_shares_no_sessions_lacks_none() {
        for (replicates, lacking) in [(true, "1"), (false, "0")] {
            let recorder = PrometheusBuilder::new().build_recorder();
            metrics::with_local_recorder(&recorder, || drop(Warmups::new(replicates, crate::random::system())));
            let text = recorder.handle().render();
            let line = format!("resumed_warmup_lacking {lacking}");
            assert!(text.lines().any(|shown| shown == line), "replicates = {replicates}: {text}");
        }
    }
}
