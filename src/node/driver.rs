//! Drives a node's core: turns what sockets, timers and operators say into inputs, and performs its effects. All decisions are
//! the core's.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::channels::{DriverEnds, OperatorQuestion};
use super::connection::{Attempt, Connected, Connection, FromConnection, LinkParts, dial};
use super::core::{Effect, Input, Line, NodeCore};
use super::health::Health;
use super::record::{count_up, log, log_note, refused};
use super::refused::Refused;
use super::ring_file::RingFile;
use super::sites::tell_of_sites;
use super::view::NodeView;
use super::view_metrics::{self, Connections};
use crate::bus::{Bus, LinkSpec};
use crate::clock::{Now, SystemClock};
use crate::envelope::Secrets;
use crate::farm::Reply;
use crate::random::Randomness;

/// The driver runs at least this often, so that `/healthz` can tell that it is alive.
const LONGEST_SLEEP_MS: u64 = 1_000;

/// Farewell and what was queued before it must be out by then.
const FAREWELL_WITHIN: Duration = Duration::from_millis(1_000);

/// Everything that the driver needs; it owns all of it.
pub(crate) struct Driver<B: Bus> {
    /// What decides.
    pub core: NodeCore,
    /// The way to the other nodes.
    pub bus: Arc<B>,
    /// What every link declares.
    pub spec: LinkSpec,
    /// What every link is given.
    pub parts: LinkParts,
    /// The farm secrets, replaced on a reload.
    pub secrets: watch::Receiver<Arc<Secrets>>,
    /// What the broker refuses this node.
    pub refused: Refused,
    /// Its ends of the channels to the rest of the node.
    pub ends: DriverEnds,
    /// This host's clocks.
    pub clock: SystemClock,
    /// Where the ring is kept across restarts, if anywhere.
    pub ring_file: Option<RingFile>,
    /// Who waits for which answer.
    pub replies: HashMap<u64, oneshot::Sender<Reply>>,
    /// Where the names of requests come from.
    pub random: Randomness,
    /// Counts this node's connections.
    pub connections: Connections,
    /// Ends the driver, with a farewell.
    pub stop: CancellationToken,
}

impl<B: Bus> Driver<B> {
    /// Runs until `stop` is cancelled, then says farewell and closes the link.
    pub(crate) async fn run(mut self) {
        self.connections.show(false);
        self.ends.local.mark_changed();
        let now = self.clock.now();
        let mut connection = Connection::Down { dial_at: Instant::now() };
        let effects = self.core.start(now);
        self.perform(effects, &mut connection);
        let mut due = self.due(now);
        let stop = self.stop.clone();
        while let Some(input) = stop.run_until_cancelled(self.next_input(&mut connection, due)).await {
            self.core.set_blocked(connection.is_blocked());
            let now = self.clock.now();
            let effects = self.core.step(now, input);
            if effects.iter().any(|effect| matches!(effect, Effect::Show)) {
                due = self.due(now);
            }
            self.perform(effects, &mut connection);
        }
        self.stop(connection).await;
    }

    /// When the driver must turn again if nothing happens, given that it did at `now`. Monotonic milliseconds.
    fn due(&self, now: Now) -> u64 {
        self.core.next_wake(now).min(now.mono + LONGEST_SLEEP_MS)
    }

    /// What comes from this host goes first: it is little, and what comes from the broker may be a flood.
    async fn next_input(&mut self, connection: &mut Connection<B::Link>, due: u64) -> Input {
        let wake = Instant::from_std(self.clock.instant(due));
        tokio::select! {
            biased;
            Some(question) = self.ends.questions.recv() => self.asked(question),
            Ok(()) = self.secrets.changed() => Input::Secrets(Arc::clone(&self.secrets.borrow_and_update())),
            Ok(()) = self.ends.local.changed() => Input::Local(self.ends.local.borrow_and_update().clone()),
            from = connection.next() => self.on_connection(from, connection),
            () = self.ends.unknown_epoch.notified() => Input::UnknownEpoch,
            () = tokio::time::sleep_until(wake) => Input::Wake,
        }
    }

    fn asked(&mut self, OperatorQuestion { ask, user, reply }: OperatorQuestion) -> Input {
        // Random, so that it names one request among those of all nodes.
        let mut id = [0; 8];
        (self.random)(&mut id);
        let id = u64::from_le_bytes(id);
        self.replies.insert(id, reply);
        Input::Ask { id, ask, user }
    }

    /// Moves the connection on to its next state.
    fn on_connection(&mut self, from: FromConnection<B::Link>, connection: &mut Connection<B::Link>) -> Input {
        match from {
            FromConnection::Input(input) => input,
            FromConnection::DialNow => {
                *connection = Connection::Dialling(self.dial(None));
                Input::Wake
            }
            FromConnection::Connected(connected) => self.go_up(connected, connection),
            FromConnection::Moved(connected) => {
                self.leave(connection);
                self.go_up(connected, connection)
            }
        }
    }

    /// Tries once to connect, in the background; not to the broker that is called so.
    fn dial(&self, elsewhere_than: Option<String>) -> Attempt<B::Link> {
        dial(Arc::clone(&self.bus), LinkSpec { elsewhere_than, ..self.spec.clone() })
    }

    /// A link that still works is left for one to another broker.
    fn leave(&mut self, connection: &mut Connection<B::Link>) {
        if let Some(open) = connection.open_link() {
            info!(broker = open.peer(), "leaving this broker for another");
        }
        connection.close();
        let effects = self.core.step(self.clock.now(), Input::Left);
        self.perform(effects, connection);
    }

    fn go_up(&mut self, connected: Connected<B::Link>, connection: &mut Connection<B::Link>) -> Input {
        let open = self.parts.start(connected);
        info!(broker = open.peer(), "connected to the broker");
        self.connections.show(true);
        let inbox = open.inbox().to_owned();
        *connection = Connection::Up(open);
        Input::Linked { inbox }
    }

    fn perform(&mut self, effects: Vec<Effect>, connection: &mut Connection<B::Link>) {
        for effect in effects {
            match effect {
                Effect::DialAt(at) => {
                    self.connections.show(false);
                    *connection = Connection::Down { dial_at: Instant::from_std(self.clock.instant(at)) };
                }
                Effect::CloseLink => connection.close(),
                Effect::Keys { timetable, sessions_from } => {
                    self.ends.timetable.send_replace(Arc::new(timetable));
                    let replace = |last: &mut u64| std::mem::replace(last, sessions_from) != sessions_from;
                    self.ends.sessions_from.send_if_modified(replace);
                }
                Effect::SaveRing(contents) => self.save_ring(&contents),
                Effect::Epochs(epochs) => drop(self.ends.epochs.send_replace(epochs)),
                Effect::Reply { id, reply } => {
                    if let Some(waiting) = self.replies.remove(&id) {
                        // The asker may have gone away.
                        let _gone = waiting.send(reply);
                    }
                }
                Effect::Count(count) => count_up(count),
                Effect::Note { note, logged } => {
                    if let Some(held_back) = logged {
                        log_note(&note, held_back);
                    }
                }
                Effect::Refused { route, refusal, counted, logged } => refused(&route, &refusal, counted, logged),
                Effect::Log(line) => log(&line),
                Effect::Show => self.show(connection),
                effect => self.tell_broker(effect, connection),
            }
        }
    }

    /// Does what needs a link. If it has just ended, no node can be told, and there is no lease.
    fn tell_broker(&self, effect: Effect, connection: &mut Connection<B::Link>) {
        let Some(open) = connection.open_link() else { return };
        match effect {
            Effect::Send { to, kind } => open.send(to, kind),
            Effect::TryLease(seat) => open.try_lease(seat),
            // A broker that does not answer must not hold up the driver.
            Effect::ReleaseLease(seat) => drop(open.release_lease(seat)),
            Effect::CheckBroker => open.check(),
            Effect::MoveLink { unless_it_declares } => {
                let there = self.dial(Some(open.peer().to_owned()));
                open.leave_for(there, unless_it_declares);
            }
            _ => {}
        }
    }

    fn save_ring(&mut self, contents: &[u8]) {
        let Some(file) = &self.ring_file else { return };
        // Where keys may not lie the file has the floors alone, and the ring is not saved.
        let keeps_keys = file.keeps_keys();
        let saved = file.save(contents);
        view_metrics::ring_saved(saved.as_ref().map(|()| keeps_keys).ok());
        let line = self.core.on_ring_saved(saved.map_err(|error| error.to_string()), self.clock.now());
        if let Some(line) = line.filter(|line| keeps_keys || !matches!(line, Line::RingSavedAgain)) {
            log(&line);
        }
    }

    fn show(&self, connection: &Connection<B::Link>) {
        let now = self.clock.now();
        let (secrets_seen, refused) = (self.core.secrets_seen().clone(), self.refused.sentences(now));
        let view = NodeView { secrets_seen, refused, ..NodeView::of(self.core.farm(), connection.status(), now) };
        view_metrics::show(&view, self.ends.view.borrow().active_generation(), now);
        tell_of_sites(&self.ends.view.borrow(), &view);
        self.ends.health.send_replace(Health::turned(view.active_generation().is_some(), now));
        self.ends.view.send_replace(view);
    }

    async fn stop(mut self, mut connection: Connection<B::Link>) {
        let (releases, rest): (Vec<_>, Vec<_>) = self
            .core
            .step(self.clock.now(), Input::Stop)
            .into_iter()
            .partition(|effect| matches!(effect, Effect::ReleaseLease(_)));
        let farewell = async {
            // The lease is free before any node hears that it is.
            for effect in releases {
                if let (Effect::ReleaseLease(seat), Some(open)) = (effect, connection.open_link()) {
                    open.release_lease(seat).await;
                }
            }
            self.perform(rest, &mut connection);
            connection.finish().await;
        };
        if tokio::time::timeout(FAREWELL_WITHIN, farewell).await.is_err() {
            warn!("the broker did not take the farewell in time");
        }
    }
}

#[cfg(test)]
mod tests;
