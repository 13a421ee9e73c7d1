//! Drives a node's core: turns what sockets, timers and operators say into inputs, and performs its effects. All decisions are
//! the core's.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use super::core::{Count, Effect, Input, LeaseTried, NodeCore};
use super::gauges::{self, Connections};
use super::health::Health;
use super::key_plane::{KeyPlane, KeyPlaneEvent};
use super::lease::{Answer, Lease};
use super::refused::Refused;
use super::ring_file::RingFile;
use super::sealing::{Identity, Sealing};
use super::session_plane::{LinkedSessions, SessionPlane};
use super::sites::tell_of_sites;
use super::view::NodeView;
use crate::bus::{Bus, BusError, LeaseAnswer, Link, LinkEvent, LinkEvents, LinkSpec};
use crate::clock::{Now, SystemClock, millis};
use crate::envelope::{Epochs, Refusal, Secrets};
use crate::farm::{Ask, Farm, LocalState, Note, Reply};
use crate::keys::Timetable;
use crate::log_limiter::LogLimiter;
use crate::metrics::{self, Plane};
use crate::proto::AuditEntry;
use crate::random;
use crate::status::{AuditStatus, BrokerStatus};

/// Key-plane deliveries between link and driver.
const KEY_EVENTS: usize = 256;

/// Session batches between link and feed: times `batch_bytes`, this bounds the memory.
const FEED_EVENTS: usize = 16;

/// The driver runs at least this often, so that `/healthz` can tell that it is alive.
const LONGEST_SLEEP_MS: u64 = 1_000;

/// Longer than that without a turn, and the node is taken for dead.
const ALIVE_FOR_MS: u64 = 10_000;

/// Questions of operators that wait for a turn.
const QUESTIONS: usize = 64;

/// Farewell and what was queued before it must be out by then.
const FAREWELL_WITHIN: Duration = Duration::from_millis(1_000);

/// An operator's question, with the way back.
#[derive(Debug)]
pub struct Question {
    /// What is asked.
    pub ask: Ask,
    /// Who asks.
    pub user: String,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Reply>,
}

/// The driver's ends of the channels to the rest of the node.
pub(super) struct DriverEnds {
    /// The epoch keys, for all who seal and open.
    pub epochs: watch::Sender<Arc<Epochs>>,
    /// Says that a session batch of an unknown epoch arrived.
    pub unknown_epoch: Arc<Notify>,
    /// What reports say of this host.
    pub local: watch::Receiver<LocalState>,
    /// Operators' questions.
    pub questions: mpsc::Receiver<Question>,
    /// The proxies' keys.
    pub timetable: watch::Sender<Arc<Timetable>>,
    /// What the node shows of itself.
    pub view: watch::Sender<NodeView>,
    /// Whether it is fit to serve.
    pub health: watch::Sender<Health>,
    /// The ring's session floor, UTC milliseconds.
    pub sessions_from: watch::Sender<u64>,
}

/// The other ends: see [`DriverEnds`].
pub(super) struct NodeEnds {
    pub epochs: watch::Receiver<Arc<Epochs>>,
    pub unknown_epoch: Arc<Notify>,
    pub local: watch::Sender<LocalState>,
    pub questions: mpsc::Sender<Question>,
    pub timetable: watch::Receiver<Arc<Timetable>>,
    pub view: watch::Receiver<NodeView>,
    pub health: watch::Receiver<Health>,
    pub sessions_from: watch::Receiver<u64>,
}

/// Both ends of the channels between the driver of a node with this `farm` and the rest of it.
pub(super) fn ends(farm: &Farm, clock: SystemClock) -> (DriverEnds, NodeEnds) {
    let now = clock.now();
    let (timetable, read_timetable) = watch::channel(Arc::new(farm.held().timetable(now)));
    let (health, read_health) = watch::channel(Health { ring: false, alive_until: now.mono + ALIVE_FOR_MS });
    let (view, read_view) = watch::channel(NodeView::default());
    let (write_local, local) = watch::channel(LocalState::default());
    let (sessions_from, read_sessions_from) = watch::channel(farm.held().ring().sessions_from());
    let (epochs, read_epochs) = watch::channel(Arc::new(farm.epochs().clone()));
    let (ask, questions) = mpsc::channel(QUESTIONS);
    let unknown_epoch = Arc::new(Notify::new());
    let node = NodeEnds {
        epochs: read_epochs,
        unknown_epoch: Arc::clone(&unknown_epoch),
        local: write_local,
        questions: ask,
        timetable: read_timetable,
        view: read_view,
        health: read_health,
        sessions_from: read_sessions_from,
    };
    (DriverEnds { epochs, unknown_epoch, local, questions, timetable, view, health, sessions_from }, node)
}

/// Everything that the driver needs; it owns all of it.
pub(crate) struct Driver<B: Bus> {
    /// What decides.
    pub core: NodeCore,
    /// The way to the other nodes.
    pub bus: Arc<B>,
    /// What every link declares.
    pub spec: LinkSpec,
    /// Who seals.
    pub identity: Identity,
    /// The farm secrets, replaced on a reload.
    pub secrets: watch::Receiver<Arc<Secrets>>,
    /// What the broker refuses this node.
    pub refused: Refused,
    /// See [`super::key_plane::confirm_within`].
    pub confirm_within: Duration,
    /// Its ends of the channels to the rest of the node.
    pub ends: DriverEnds,
    /// This host's clocks.
    pub clock: SystemClock,
    /// Where the ring is kept across restarts, if anywhere.
    pub ring_file: Option<RingFile>,
    /// Why the last attempt to connect failed, until it is known when the next one is due.
    pub not_connected: Option<BusError>,
    /// Who waits for which answer.
    pub replies: HashMap<u64, oneshot::Sender<Reply>>,
    /// Counts this node's connections.
    pub connections: Connections,
    /// Starts the session plane of each link.
    pub sessions: Arc<SessionPlane<B::Link>>,
    /// Keeps errors of this host and its broker from flooding the log.
    pub log_limiter: LogLimiter,
    /// Ends the driver, with a farewell.
    pub stop: CancellationToken,
}

/// The link to the broker, as far as it has come.
enum Connection<L: Link> {
    /// The pause before the next attempt.
    Down {
        dial_at: Instant,
    },
    Dialling(JoinHandle<Result<Connected<L>, BusError>>),
    Up(Up<L>),
}

struct Connected<L: Link> {
    link: Arc<L>,
    events: mpsc::Receiver<LinkEvent>,
    feed: mpsc::Receiver<LinkEvent>,
}

struct Up<L: Link> {
    link: Arc<L>,
    events: mpsc::Receiver<LinkEvent>,
    plane: KeyPlane,
    plane_events: mpsc::Receiver<KeyPlaneEvent>,
    /// Ends with the link.
    _sessions: LinkedSessions<L>,
    lease: Lease,
    lease_answers: mpsc::Receiver<Answer>,
    check: Option<AbortOnDropHandle<Result<(), BusError>>>,
    /// A link to another broker that is to take this one's place.
    next: Option<AbortOnDropHandle<Result<Connected<L>, Stays>>>,
}

/// One thing to react to.
enum Happened<L: Link> {
    Stop,
    DialNow,
    NotConnected(BusError),
    Connected(Connected<L>),
    Closed(String),
    Lease(Answer),
    Checked(Result<(), BusError>),
    Moved(Connected<L>),
    NotMoved(Stays),
    /// What the core is told as it is.
    Input(Input),
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
        loop {
            let happened = self.wait(&mut connection, due).await;
            let Some(input) = self.input_of(happened, &mut connection) else { break };
            self.core.set_blocked(matches!(&connection, Connection::Up(up) if up.link.is_blocked()));
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
    async fn wait(&mut self, connection: &mut Connection<B::Link>, due: u64) -> Happened<B::Link> {
        let wake = Instant::from_std(self.clock.instant(due));
        let input = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Happened::Stop,
            Some(question) = self.ends.questions.recv() => self.asked(question),
            Ok(()) = self.secrets.changed() => Input::Secrets(Arc::clone(&self.secrets.borrow_and_update())),
            Ok(()) = self.ends.local.changed() => Input::Local(self.ends.local.borrow_and_update().clone()),
            happened = from_connection(connection) => return happened,
            () = self.ends.unknown_epoch.notified() => Input::UnknownEpoch,
            () = tokio::time::sleep_until(wake) => Input::Wake,
        };
        Happened::Input(input)
    }

    fn asked(&mut self, Question { ask, user, reply }: Question) -> Input {
        // Random, so that it names one request among those of all nodes.
        let id = u64::from_le_bytes(random::random());
        self.replies.insert(id, reply);
        Input::Ask { id, ask, user }
    }

    /// What the core is told of it; nothing at the end.
    fn input_of(&mut self, happened: Happened<B::Link>, connection: &mut Connection<B::Link>) -> Option<Input> {
        Some(match happened {
            Happened::Stop => return None,
            Happened::Input(input) => input,
            Happened::DialNow => {
                *connection = Connection::Dialling(self.connect(None));
                Input::Wake
            }
            Happened::NotConnected(error) => {
                self.not_connected = Some(error);
                Input::NotLinked
            }
            Happened::Connected(connected) => self.go_up(connected, connection),
            Happened::Closed(reason) => {
                warn!(reason, "disconnected from the broker");
                Input::Closed
            }
            Happened::Lease((seat, answer)) => Input::LeaseTried(seat, self.lease_tried(answer)),
            Happened::Checked(answer) => {
                if let Err(error) = &answer {
                    warn!(%error, "asked whether it can declare a queue, the broker does not say yes");
                }
                // Only silence says that the broker is cut off. A refusal is an answer, and one that is gone ends its link.
                Input::Checked(!matches!(answer, Err(BusError::Unanswered { .. })))
            }
            Happened::Moved(connected) => {
                self.leave(connection);
                self.go_up(connected, connection)
            }
            Happened::NotMoved(why) => {
                match why {
                    Stays::NoOther(error) => warn!(%error, "no other broker is to be had: the connection stays"),
                    Stays::Declares => info!("the broker answers again: the connection stays"),
                }
                Input::NotMoved
            }
        })
    }

    fn lease_tried(&mut self, answer: Result<LeaseAnswer, BusError>) -> LeaseTried {
        let now = self.clock.now();
        let is_told = self.refused.note_lease(&answer, &self.spec.names, now);
        let error = match answer {
            Ok(answer) => return LeaseTried::Answered(answer),
            Err(error) => error,
        };
        let unanswered = matches!(error, BusError::Unanswered { .. });
        let what = if unanswered { "unanswered" } else { "failed" };
        if !is_told && let Some(held_back) = self.log_limiter.pass("lease", what, now) {
            warn!(held_back, %error, "could not try the lease");
        }
        if unanswered { LeaseTried::Unanswered } else { LeaseTried::Failed }
    }

    /// Tries once to connect, in the background; not to the broker that is called so.
    fn connect(&self, elsewhere_than: Option<String>) -> JoinHandle<Result<Connected<B::Link>, BusError>> {
        let (bus, spec) = (Arc::clone(&self.bus), LinkSpec { elsewhere_than, ..self.spec.clone() });
        tokio::spawn(async move {
            let (keys, events) = mpsc::channel(KEY_EVENTS);
            let (feed_sender, feed) = mpsc::channel(FEED_EVENTS);
            let link = bus.connect(&spec, LinkEvents { keys, feed: feed_sender }).await?;
            Ok(Connected { link: Arc::new(link), events, feed })
        })
    }

    /// A link that still works is left for one to another broker.
    fn leave(&mut self, connection: &mut Connection<B::Link>) {
        if let Connection::Up(up) = &*connection {
            info!(broker = up.link.peer(), "leaving this broker for another");
        }
        close(connection);
        let effects = self.core.step(self.clock.now(), Input::Closed);
        self.perform(effects, connection);
    }

    fn go_up(&mut self, connected: Connected<B::Link>, connection: &mut Connection<B::Link>) -> Input {
        let Connected { link, events, feed } = connected;
        // Every connection has salts of its own.
        let sealing = || {
            let (identity, secrets) = (self.identity.clone(), self.secrets.clone());
            Sealing::new(identity, secrets, self.ends.epochs.subscribe(), random::system(), self.clock.now())
        };
        let (plane_sender, plane_events) = mpsc::channel(16);
        let (names, timing) = (self.spec.names.clone(), (self.clock, self.confirm_within));
        let plane = KeyPlane::start(Arc::clone(&link), names, sealing(), timing, self.refused.clone(), plane_sender);
        info!(broker = link.peer(), "connected to the broker");
        self.connections.show(true);
        let sessions = self.sessions.start(Arc::clone(&link), sealing(), feed);
        let (answers, lease_answers) = mpsc::channel(1);
        let lease = Lease::start(Arc::clone(&link), answers);
        let inbox = link.inbox().to_owned();
        let up = Up {
            link,
            events,
            plane,
            plane_events,
            _sessions: sessions,
            lease,
            lease_answers,
            check: None,
            next: None,
        };
        *connection = Connection::Up(up);
        Input::Linked { inbox }
    }

    fn perform(&mut self, effects: Vec<Effect>, connection: &mut Connection<B::Link>) {
        for effect in effects {
            match effect {
                Effect::DialAt(at) => {
                    let dial_at = Instant::from_std(self.clock.instant(at));
                    if let Some(error) = self.not_connected.take() {
                        let pause = dial_at.saturating_duration_since(Instant::now());
                        warn!(%error, retry_in_ms = millis(pause), "not connected to the broker");
                    }
                    self.connections.show(false);
                    *connection = Connection::Down { dial_at };
                }
                Effect::CloseLink => close(connection),
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
                        log(&note, held_back);
                    }
                }
                Effect::Refused { route, refusal, counted, logged } => refused(&route, &refusal, counted, logged),
                Effect::Show => self.show(connection),
                effect => self.tell_broker(effect, connection),
            }
        }
    }

    /// Does what needs a link. If it has just ended, no node can be told, and there is no lease.
    fn tell_broker(&self, effect: Effect, connection: &mut Connection<B::Link>) {
        let Connection::Up(up) = connection else { return };
        match effect {
            Effect::Send { to, kind } => up.plane.send(to, kind),
            Effect::TryLease(seat) => up.lease.try_take(seat),
            // A broker that does not answer must not hold up the driver.
            Effect::ReleaseLease(seat) => drop(up.lease.release(seat)),
            Effect::CheckBroker => {
                let link = Arc::clone(&up.link);
                up.check = Some(AbortOnDropHandle::new(tokio::spawn(async move { link.check().await })));
            }
            Effect::MoveLink { unless_it_declares } => {
                let there = AbortOnDropHandle::new(self.connect(Some(up.link.peer().to_owned())));
                let here = unless_it_declares.then(|| Arc::clone(&up.link));
                up.next = Some(AbortOnDropHandle::new(tokio::spawn(move_to(there, here))));
            }
            _ => {}
        }
    }

    fn save_ring(&mut self, contents: &[u8]) {
        let Some(file) = &self.ring_file else { return };
        let now = self.clock.now();
        match file.save(contents) {
            Ok(()) => {
                gauges::show_ring_saved(true);
                if self.core.on_ring_saved(true, now) {
                    info!("the ring is saved again");
                }
            }
            Err(error) => {
                self.core.on_ring_saved(false, now);
                gauges::ring_not_saved();
                if let Some(held_back) = self.log_limiter.pass("ring", "not_saved", now) {
                    warn!(held_back, %error, "the ring is not saved: a restart of this daemon would forget it");
                }
            }
        }
    }

    fn show(&self, connection: &Connection<B::Link>) {
        let now = self.clock.now();
        let broker = match connection {
            Connection::Up(up) => BrokerStatus { connected: true, uri: up.link.peer().to_owned() },
            Connection::Down { .. } | Connection::Dialling(_) => BrokerStatus::default(),
        };
        let (secret_history, refused) = (self.core.secret_history().clone(), self.refused.sentences(now));
        let view = NodeView { secret_history, refused, ..NodeView::of(self.core.farm(), broker, now) };
        gauges::show(&view, self.ends.view.borrow().active_generation(), now);
        tell_of_sites(&self.ends.view.borrow(), &view);
        let alive_until = now.mono + ALIVE_FOR_MS;
        self.ends.health.send_replace(Health { ring: view.active_generation().is_some(), alive_until });
        self.ends.view.send_replace(view);
    }

    async fn stop(mut self, mut connection: Connection<B::Link>) {
        let (releases, rest): (Vec<_>, Vec<_>) = self
            .core
            .step(self.clock.now(), Input::Stop)
            .into_iter()
            .partition(|effect| matches!(effect, Effect::ReleaseLease(_)));
        let farewell = async {
            // The lease is free before anybody hears that it is.
            for effect in releases {
                if let (Effect::ReleaseLease(seat), Connection::Up(up)) = (effect, &connection) {
                    let _link_ended = up.lease.release(seat).await;
                }
            }
            self.perform(rest, &mut connection);
            match connection {
                Connection::Down { .. } => {}
                Connection::Dialling(task) => task.abort(),
                Connection::Up(up) => {
                    up.plane.finish().await;
                    up.link.close().await;
                    info!("said farewell");
                }
            }
        };
        if tokio::time::timeout(FAREWELL_WITHIN, farewell).await.is_err() {
            warn!("the broker did not take the farewell in time");
        }
    }
}

/// Lets go of the link, and closes it in the background.
fn close<L: Link>(connection: &mut Connection<L>) {
    let down = Connection::Down { dial_at: Instant::now() };
    if let Connection::Up(up) = std::mem::replace(connection, down) {
        tokio::spawn(async move { up.link.close().await });
    }
}

fn count_up(count: Count) {
    match count {
        Count::Received => metrics::MESSAGES_RECEIVED.add(Plane::Keys, 1),
        Count::Missed(messages) => metrics::MESSAGES_MISSED.add(messages),
        Count::Refused(reason) => metrics::MESSAGES_REFUSED.add(reason, 1),
        Count::KeysSkipped(reason, keys) => metrics::KEYS_SKIPPED.add(reason, keys),
        Count::KeyConflicts(keys) => metrics::KEY_CONFLICTS.add(keys),
    }
}

fn refused(route: &str, refusal: &Refusal, counted: bool, logged: Option<u64>) {
    if counted {
        metrics::MESSAGES_REFUSED.add(refusal.reason(), 1);
    }
    if let Some(held_back) = logged {
        // Any client that may write to the broker chooses the route: it is quoted.
        warn!(held_back, ?route, "refused a message ({}): {refusal}", refusal.reason());
    }
}

fn log(note: &Note, held_back: u64) {
    match note {
        Note::Audited(entry) => audit(entry, held_back),
        Note::Minted { .. }
        | Note::Leads
        | Note::StepsDown(_)
        | Note::ActsAlone
        | Note::Follows(_)
        | Note::Epoch { .. } => info!("{note}"),
        Note::Revoked { .. } => warn!("{note}"),
        _ => warn!(held_back, "{note}"),
    }
}

/// One line for a request of an operator.
fn audit(entry: &AuditEntry, held_back: u64) {
    let AuditStatus { action, flush_sessions, node, user, outcome, generation, .. } = entry.into();
    let user = user.as_deref().unwrap_or("not said");
    let (action, outcome) = (action.as_str(), outcome.as_str());
    info!(action, flush_sessions, node, user, outcome, generation, held_back, "request of an operator");
}

async fn from_connection<L: Link>(connection: &mut Connection<L>) -> Happened<L> {
    match connection {
        Connection::Down { dial_at } => {
            tokio::time::sleep_until(*dial_at).await;
            Happened::DialNow
        }
        Connection::Dialling(task) => match task.await {
            Ok(Ok(connected)) => Happened::Connected(connected),
            Ok(Err(error)) => Happened::NotConnected(error),
            Err(error) => Happened::NotConnected(BusError::Closed(format!("connecting ended in a panic: {error}"))),
        },
        Connection::Up(up) => tokio::select! {
            event = up.events.recv() => match event {
                Some(LinkEvent::Closed { reason }) => Happened::Closed(reason),
                Some(LinkEvent::LeaseLost { seat }) => Happened::Input(Input::LeaseLost(seat)),
                Some(LinkEvent::Delivered { from, route, body, site }) => {
                    Happened::Input(Input::Delivered { from, route, body, site })
                }
                None => Happened::Closed("the link ended".to_owned()),
            },
            event = up.plane_events.recv() => match event {
                Some(KeyPlaneEvent::Told(seat, answer)) => Happened::Input(Input::Told { seat, answer }),
                None => Happened::Closed("the writer of key messages ended".to_owned()),
            },
            Some(answer) = up.lease_answers.recv() => Happened::Lease(answer),
            ended = ended(&mut up.check) => Happened::Checked(joined(ended)),
            ended = ended(&mut up.next) => match joined(ended) {
                Ok(connected) => Happened::Moved(connected),
                Err(error) => Happened::NotMoved(error),
            },
        },
    }
}

/// What a task of the link came to, once; never if there is none.
async fn ended<T>(task: &mut Option<AbortOnDropHandle<T>>) -> Result<T, JoinError> {
    let ended = match task {
        Some(task) => task.await,
        None => std::future::pending().await,
    };
    *task = None;
    ended
}

fn joined<T, E: From<BusError>>(ended: Result<Result<T, E>, JoinError>) -> Result<T, E> {
    ended.unwrap_or_else(|error| Err(BusError::Closed(format!("connecting ended in a panic: {error}")).into()))
}

/// Why a link that was to be left stays.
enum Stays {
    NoOther(BusError),
    Declares,
}

impl From<BusError> for Stays {
    fn from(error: BusError) -> Self {
        Self::NoOther(error)
    }
}

/// The link that takes the place of `here` once it is `there`, unless the broker of `here`, if it is asked, declares by then.
async fn move_to<L: Link>(
    there: AbortOnDropHandle<Result<Connected<L>, BusError>>,
    here: Option<Arc<L>>,
) -> Result<Connected<L>, Stays> {
    let declares = async {
        match &here {
            Some(here) => here.check().await.is_ok(),
            None => false,
        }
    };
    let (there, declares) = tokio::join!(there, declares);
    let there = joined(there)?;
    if declares {
        there.link.close().await;
        return Err(Stays::Declares);
    }
    Ok(there)
}
