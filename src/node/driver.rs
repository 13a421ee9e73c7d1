//! Drives the farm's state machine: turns what sockets, timers and operators say into events, and carries its actions
//! out. All decisions are the machine's.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use super::gauges;
use super::health::Health;
use super::key_plane::{KeyPlane, KeyPlaneEvent};
use super::lease::{Answer, Lease};
use super::refused::Refused;
use super::ring_file::RingFile;
use super::sealing::{Identity, Sealing};
use super::secret_history::SecretHistory;
use super::session_plane::{LinkedSessions, SessionPlane};
use super::sites::tell_of_sites;
use super::view::{NodeView, audit_status};
use crate::bus::backoff::Redial;
use crate::bus::{Bus, BusError, LeaseAnswer, Link, LinkEvent, LinkEvents, LinkSpec, Published, Seat, Source};
use crate::clock::{Now, SystemClock};
use crate::envelope::{Epochs, Opener, Refusal, Secrets};
use crate::farm::{Action, Ask, Event, Farm, LocalState, Note, Reply, Via};
use crate::hex::hex;
use crate::keys::Timetable;
use crate::metrics::{self, Plane};
use crate::proto::{AuditEntry, AuditOutcome};
use crate::quiet::Quiet;
use crate::random;
use crate::reason::Reason;
use crate::status::{AuditStatus, BrokerStatus};

/// Key-plane deliveries between link and driver.
const KEY_EVENTS: usize = 256;

/// Session batches between link and feed: times `batch_bytes`, this bounds the memory.
const FEED_EVENTS: usize = 16;

/// The driver runs at least this often, so that `/healthz` can tell that it is alive.
const LONGEST_SLEEP_MS: u64 = 1_000;

/// Longer than that without a turn, and the node is taken for dead.
pub(super) const ALIVE_FOR_MS: u64 = 10_000;

/// A ring that could not be saved is tried again after this long: it may not change for hours, and a restart would
/// forget it.
const SAVE_AGAIN_MS: u64 = 5_000;

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

/// Everything that the driver needs; it owns all of it.
pub struct Driver<B: Bus> {
    /// The farm's state machine.
    pub farm: Farm,
    /// The way to the other nodes.
    pub bus: Arc<B>,
    /// What every link declares.
    pub spec: LinkSpec,
    /// When to dial the broker again.
    pub redial: Redial,
    /// Who seals.
    pub identity: Identity,
    /// The farm secrets, replaced on a reload.
    pub secrets: watch::Receiver<Arc<Secrets>>,
    /// Which farm secrets this node has had.
    pub secret_history: SecretHistory,
    /// What the broker refuses this node.
    pub refused: Refused,
    /// See [`super::key_plane::confirm_within`].
    pub confirm_within: Duration,
    /// Opens what arrives on the key plane.
    pub opener: Opener,
    /// The epoch keys, for all who seal and open.
    pub epochs: watch::Sender<Arc<Epochs>>,
    /// Says that a session batch of an unknown epoch arrived.
    pub unknown_epoch: Arc<Notify>,
    /// This host's clocks.
    pub clock: SystemClock,
    /// Where the ring is kept across restarts, if anywhere.
    pub ring_file: Option<RingFile>,
    /// When a ring that could not be saved is tried again, in monotonic milliseconds.
    pub save_again_at: Option<u64>,
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
    /// Starts the session plane of each link.
    pub sessions: Arc<SessionPlane<B::Link>>,
    /// The ring's session floor, UTC milliseconds.
    pub sessions_from: watch::Sender<u64>,
    /// Keeps bad messages from flooding the log.
    pub quiet: Quiet,
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
    Time,
    Stop,
    Local,
    Secrets,
    UnknownEpoch,
    Question(Question),
    DialNow,
    Connected(Connected<L>),
    NotConnected(BusError),
    Link(LinkEvent),
    Told(Seat, Published),
    Lease(Answer),
    Checked(Result<(), BusError>),
    Moved(Connected<L>),
    NotMoved(Stays),
}

impl<B: Bus> Driver<B> {
    /// Runs until `stop` is cancelled, then says farewell and closes the link.
    pub async fn run(mut self) {
        gauges::connected(false);
        let mut connection = self.dial();
        let mut replies: HashMap<u64, oneshot::Sender<Reply>> = HashMap::new();
        let mut next_ask = u64::from_le_bytes(random::random());
        self.local.mark_changed();
        self.secret_history.note(self.secrets.borrow().ids().map(|id| hex(&id)).collect());
        self.publish_timetable();
        let mut due = self.due(self.clock.now());
        loop {
            let event = match self.wait(&mut connection, due).await {
                Happened::Stop => break,
                Happened::Time => Event::Wake,
                Happened::Local => {
                    let local = self.local.borrow_and_update().clone();
                    self.farm.set_local(local);
                    Event::Wake
                }
                Happened::Secrets => {
                    let secrets = Arc::clone(&self.secrets.borrow_and_update());
                    self.secret_history.note(secrets.ids().map(|id| hex(&id)).collect());
                    self.opener.set_secrets(secrets);
                    Event::Wake
                }
                Happened::UnknownEpoch => Event::UnknownEpoch { via: Via::Inbox },
                Happened::Question(question) => {
                    next_ask = next_ask.wrapping_add(1);
                    replies.insert(next_ask, question.reply);
                    Event::Ask { id: next_ask, ask: question.ask, user: question.user }
                }
                Happened::DialNow => {
                    connection = self.dial();
                    Event::Wake
                }
                Happened::NotConnected(error) => {
                    let dial_at = self.dial_at();
                    let pause = dial_at.saturating_duration_since(Instant::now());
                    warn!(%error, retry_in_ms = crate::clock::millis(pause), "not connected to the broker");
                    connection = Connection::Down { dial_at };
                    Event::Wake
                }
                Happened::Connected(connected) => {
                    self.redial.linked(self.clock.now().mono);
                    let inbox = connected.link.inbox().to_owned();
                    connection = Connection::Up(self.go_up(connected));
                    Event::Connected { inbox }
                }
                Happened::Link(LinkEvent::Closed { reason }) => {
                    warn!(%reason, "disconnected from the broker");
                    connection = self.disconnect();
                    Event::Disconnected
                }
                Happened::Link(LinkEvent::LeaseLost { seat }) => Event::LeaseLost(seat),
                Happened::Link(LinkEvent::Delivered { from, route, body, site }) => {
                    match self.open(from, &route, body, site) {
                        Some(event) => event,
                        // A flood of bad messages does not keep the node from what is due.
                        None if self.clock.now().mono >= due => Event::Wake,
                        None => continue,
                    }
                }
                Happened::Told(seat, answer) => Event::Told { seat, answer },
                Happened::Lease(answer) => {
                    let now = self.clock.now();
                    let is_told = self.refused.note_lease(&answer.1, &self.spec.names, now);
                    lease_event(answer, |what| if is_told { None } else { self.quiet.pass("lease", what, now) })
                }
                Happened::Checked(answer) => check_event(answer),
                Happened::Moved(connected) => {
                    self.leave(&mut connection, &mut replies);
                    self.redial.linked(self.clock.now().mono);
                    let inbox = connected.link.inbox().to_owned();
                    connection = Connection::Up(self.go_up(connected));
                    Event::Connected { inbox }
                }
                Happened::NotMoved(why) => {
                    match why {
                        Stays::NoOther(error) => warn!(%error, "no other broker is to be had: the connection stays"),
                        Stays::Declares => info!("the broker answers again: the connection stays"),
                    }
                    Event::NotMoved
                }
            };
            self.farm.set_blocked(matches!(&connection, Connection::Up(up) if up.link.is_blocked()));
            let now = self.clock.now();
            let actions = self.farm.handle(now, event);
            due = self.due(now);
            self.carry_out(actions, &mut connection, &mut replies);
            if self.save_again_at.is_some_and(|at| now.mono >= at) {
                self.save_ring();
            }
            self.show(&connection);
        }
        self.stop(connection, replies).await;
    }

    /// When the driver must turn again if nothing happens, given that it did at `now`. Monotonic milliseconds.
    fn due(&self, now: Now) -> u64 {
        self.farm.next_wake(now).min(now.mono + LONGEST_SLEEP_MS)
    }

    /// What comes from this host goes first: it is little, and what comes from the broker may be a flood.
    async fn wait(&mut self, connection: &mut Connection<B::Link>, due: u64) -> Happened<B::Link> {
        let wake = Instant::from_std(self.clock.instant(due));
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Happened::Stop,
            Some(question) = self.questions.recv() => Happened::Question(question),
            Ok(()) = self.secrets.changed() => Happened::Secrets,
            Ok(()) = self.local.changed() => Happened::Local,
            happened = from_connection(connection) => happened,
            () = self.unknown_epoch.notified() => Happened::UnknownEpoch,
            () = tokio::time::sleep_until(wake) => Happened::Time,
        }
    }

    /// Tries once to connect, in the background.
    fn dial(&self) -> Connection<B::Link> {
        Connection::Dialling(self.connect(None))
    }

    /// The same, but not to the broker that is called so.
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
    fn leave(&mut self, connection: &mut Connection<B::Link>, replies: &mut HashMap<u64, oneshot::Sender<Reply>>) {
        if let Connection::Up(up) = connection {
            let link = Arc::clone(&up.link);
            info!(broker = link.peer(), "leaving this broker for another");
            tokio::spawn(async move { link.close().await });
        }
        *connection = self.disconnect();
        let actions = self.farm.handle(self.clock.now(), Event::Disconnected);
        self.carry_out(actions, connection, replies);
    }

    /// There is no link any more, and there is a pause before the next attempt.
    fn disconnect(&mut self) -> Connection<B::Link> {
        gauges::connected(false);
        Connection::Down { dial_at: self.dial_at() }
    }

    /// When the next attempt is due, after one that failed or a link that ended now.
    fn dial_at(&mut self) -> Instant {
        let at = self.redial.again_at(self.clock.now().mono, u32::from_le_bytes(random::random()));
        Instant::from_std(self.clock.instant(at))
    }

    fn go_up(&self, connected: Connected<B::Link>) -> Up<B::Link> {
        let Connected { link, events, feed } = connected;
        // Every connection has salts of its own.
        let sealing = || {
            let (identity, secrets) = (self.identity.clone(), self.secrets.clone());
            Sealing::new(identity, secrets, self.epochs.subscribe(), random::system(), self.clock.now())
        };
        let (plane_sender, plane_events) = mpsc::channel(16);
        let (names, timing) = (self.spec.names.clone(), (self.clock, self.confirm_within));
        let plane = KeyPlane::start(Arc::clone(&link), names, sealing(), timing, self.refused.clone(), plane_sender);
        info!(broker = link.peer(), "connected to the broker");
        gauges::connected(true);
        let sessions = self.sessions.start(Arc::clone(&link), sealing(), feed);
        let (answers, lease_answers) = mpsc::channel(1);
        let lease = Lease::start(Arc::clone(&link), answers);
        Up { link, events, plane, plane_events, _sessions: sessions, lease, lease_answers, check: None, next: None }
    }

    /// Opens a sealed message; what is refused is counted by reason and goes no further.
    fn open(&mut self, from: Source, route: &str, body: Bytes, site: Option<String>) -> Option<Event> {
        let via = match from {
            Source::Inbox => Via::Inbox,
            Source::Far => Via::Federated,
            Source::Lease => Via::Lease,
            // The feed has a channel of its own.
            Source::Feed => return None,
        };
        let now = self.clock.now();
        metrics::received(Plane::Keys);
        if !self.farm.hears(via) {
            return None;
        }
        match self.opener.open(route, body, now) {
            Ok(opened) => {
                metrics::missed(opened.missed);
                if let Some(site) = site {
                    self.farm.comes_from(&site, &opened.payload, now);
                }
                Some(Event::Message { payload: Box::new(opened.payload), via })
            }
            // Ordinary for a node that has just started, until it has joined.
            Err(Refusal::UnknownEpoch) if !self.opener.has_epochs() => Some(Event::UnknownEpoch { via }),
            Err(refusal) => {
                metrics::refused(refusal.reason().as_str());
                if let Some(held_back) = self.quiet.pass("message", refusal.reason().as_str(), now) {
                    // Whoever may write to the broker chooses the route: it is quoted.
                    warn!(held_back, ?route, "refused a message ({}): {refusal}", refusal.reason());
                }
                match refusal {
                    Refusal::Clock { node, boot_id, offset_ms } => {
                        Some(Event::Skewed { node, boot_id, offset_ms, via })
                    }
                    Refusal::UnknownEpoch => Some(Event::UnknownEpoch { via }),
                    _ => None,
                }
            }
        }
    }

    fn carry_out(
        &mut self,
        actions: Vec<Action>,
        connection: &mut Connection<B::Link>,
        replies: &mut HashMap<u64, oneshot::Sender<Reply>>,
    ) {
        let mut ring_changed = false;
        for action in actions {
            match (action, &mut *connection) {
                (Action::Send { to, kind }, Connection::Up(up)) => up.plane.send(to, kind),
                (Action::TryLease(seat), Connection::Up(up)) => up.lease.try_take(seat),
                // A broker that does not answer must not hold up the driver.
                (Action::ReleaseLease(seat), Connection::Up(up)) => drop(up.lease.release(seat)),
                (Action::RenewLink, Connection::Up(_)) => {
                    if let Connection::Up(up) = std::mem::replace(connection, self.disconnect()) {
                        tokio::spawn(async move { up.link.close().await });
                    }
                }
                (Action::CheckBroker, Connection::Up(up)) => {
                    let link = Arc::clone(&up.link);
                    up.check = Some(AbortOnDropHandle::new(tokio::spawn(async move { link.check().await })));
                }
                (Action::MoveLink { unless_it_declares }, Connection::Up(up)) => {
                    let there = AbortOnDropHandle::new(self.connect(Some(up.link.peer().to_owned())));
                    let here = unless_it_declares.then(|| Arc::clone(&up.link));
                    up.next = Some(AbortOnDropHandle::new(tokio::spawn(move_to(there, here))));
                }
                // Without a link there is nobody to tell, and no lease.
                (
                    Action::Send { .. }
                    | Action::TryLease(_)
                    | Action::ReleaseLease(_)
                    | Action::RenewLink
                    | Action::CheckBroker
                    | Action::MoveLink { .. },
                    Connection::Down { .. } | Connection::Dialling(_),
                ) => {}
                (Action::RingChanged, _) => ring_changed = true,
                (Action::EpochsChanged, _) => {
                    let epochs = Arc::new(self.farm.epochs().clone());
                    self.opener.set_epochs(Arc::clone(&epochs));
                    self.epochs.send_replace(epochs);
                }
                (Action::Reply { id, reply }, _) => {
                    if let Some(waiting) = replies.remove(&id) {
                        // The asker may have gone away.
                        let _gone = waiting.send(reply);
                    }
                }
                (Action::Note(note), _) => self.record(&note),
            }
        }
        if ring_changed {
            self.publish_timetable();
            self.save_ring();
        }
    }

    /// Counts and logs what the machine noticed. Others can cause some of it as often as they like.
    fn record(&mut self, note: &Note) {
        let (what, reason) = match note {
            Note::Revoked { .. } => {
                warn!("{note}");
                return;
            }
            Note::Audited(entry) => return self.audit(entry),
            Note::Minted { .. }
            | Note::Leads
            | Note::StepsDown(_)
            | Note::ActsAlone
            | Note::Follows(_)
            | Note::Epoch { .. } => {
                info!("{note}");
                return;
            }
            // Counted and logged when it was refused.
            Note::Skewed { .. } => return,
            Note::BadKey { reason, count, .. } => {
                metrics::keys_skipped(*reason, *count);
                ("key", reason.as_str())
            }
            Note::Refused { reason, .. } => {
                metrics::refused(reason.as_str());
                ("message", reason.as_str())
            }
            Note::KeyConflict { count, .. } => {
                metrics::key_conflicts(*count);
                ("key", "conflict")
            }
            Note::UnknownKind { .. } => {
                metrics::refused(Reason::UnknownKind.as_str());
                ("message", Reason::UnknownKind.as_str())
            }
            Note::InboxSilent => ("inbox", "silent"),
            Note::NoLeaderHeard => ("inbox", "no_leader"),
            Note::BrokerCutOff => ("broker", "cut_off"),
            Note::BrokerKeepsReports => ("broker", "keeps_reports"),
        };
        if let Some(held_back) = self.quiet.pass(what, reason, self.clock.now()) {
            warn!(held_back, "{note}");
        }
    }

    /// One line for each request of an operator. Other nodes may ask in vain as often as they like: of those one a
    /// minute is logged, and how many were held back.
    fn audit(&mut self, entry: &AuditEntry) {
        let AuditStatus { action, flush_sessions, node, user, outcome, generation, .. } = audit_status(entry);
        let done_here = node == self.identity.node || entry.outcome() == AuditOutcome::Done;
        let passed = if done_here { Some(0) } else { self.quiet.pass("request", "in vain", self.clock.now()) };
        if let Some(held_back) = passed {
            let user = user.as_deref().unwrap_or("not said");
            info!(action, flush_sessions, node, user, outcome, generation, held_back, "request of an operator");
        }
    }

    fn publish_timetable(&self) {
        let held = self.farm.held();
        let timetable = held.timetable(self.clock.now()).with_alone(self.farm.is_on_its_own());
        self.timetable.send_replace(Arc::new(timetable));
        let sessions_from = held.ring().sessions_from();
        self.sessions_from.send_if_modified(|last| std::mem::replace(last, sessions_from) != sessions_from);
    }

    fn save_ring(&mut self) {
        let Some(file) = &self.ring_file else { return };
        let now = self.clock.now();
        match file.save(self.farm.held(), now) {
            Ok(()) => {
                gauges::ring_saved(true);
                if self.save_again_at.take().is_some() {
                    info!("the ring is saved again");
                }
            }
            Err(error) => {
                self.save_again_at = Some(now.mono + SAVE_AGAIN_MS);
                gauges::ring_not_saved();
                if let Some(held_back) = self.quiet.pass("ring", "not_saved", now) {
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
        let (secret_history, refused) = (self.secret_history.clone(), self.refused.sentences(now));
        let view = NodeView { secret_history, refused, ..NodeView::of(&self.farm, broker, now) };
        gauges::show(&view, self.view.borrow().active_generation(), now);
        tell_of_sites(&self.view.borrow(), &view);
        let alive_until = now.mono + ALIVE_FOR_MS;
        self.health.send_replace(Health { ring: view.active_generation().is_some(), alive_until });
        self.view.send_replace(view);
    }

    async fn stop(mut self, mut connection: Connection<B::Link>, mut replies: HashMap<u64, oneshot::Sender<Reply>>) {
        self.save_ring();
        let farewell = async {
            let (release, rest): (Vec<_>, Vec<_>) = self
                .farm
                .handle(self.clock.now(), Event::Stop)
                .into_iter()
                .partition(|action| matches!(action, Action::ReleaseLease(_)));
            // The lease is free before anybody hears that it is.
            for action in release {
                if let (Action::ReleaseLease(seat), Connection::Up(up)) = (action, &connection) {
                    let _link_ended = up.lease.release(seat).await;
                }
            }
            self.carry_out(rest, &mut connection, &mut replies);
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
            event = up.events.recv() => {
                let closed = || LinkEvent::Closed { reason: "the link ended".to_owned() };
                Happened::Link(event.unwrap_or_else(closed))
            }
            event = up.plane_events.recv() => match event {
                Some(KeyPlaneEvent::Told(seat, answer)) => Happened::Told(seat, answer),
                None => Happened::Link(LinkEvent::Closed { reason: "the writer of key messages ended".to_owned() }),
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

/// `quiet` says whether a failure of that kind is logged now, and how many were not.
fn lease_event((seat, answer): Answer, mut quiet: impl FnMut(&'static str) -> Option<u64>) -> Event {
    match answer {
        Ok(LeaseAnswer::Granted) => Event::LeaseGranted(seat),
        Ok(LeaseAnswer::Held) => Event::LeaseHeld(seat),
        Err(error) => {
            let unanswered = matches!(error, BusError::Unanswered { .. });
            if let Some(held_back) = quiet(if unanswered { "unanswered" } else { "failed" }) {
                warn!(held_back, %error, "could not try the lease");
            }
            if unanswered { Event::LeaseUnanswered } else { Event::LeaseFailed }
        }
    }
}

/// Only silence says that the broker is cut off. A refusal is an answer, and a broker that is gone ends its link by itself.
fn check_event(answer: Result<(), BusError>) -> Event {
    if let Err(error) = &answer {
        warn!(%error, "asked whether it can declare a queue, the broker does not say yes");
    }
    Event::Checked(!matches!(answer, Err(BusError::Unanswered { .. })))
}
