//! The link to the broker, as far as it has come: what is started with it, what comes from it, and its end.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::info;

use super::core::{Input, Stays};
use super::key_plane::{KeyPlane, KeyPlaneEvent};
use super::lease::{LeaseAsker, LeaseTried};
use super::refused::Refused;
use super::sealing::{Identity, Sealing};
use super::session_plane::{LinkedSessions, SessionPlane};
use crate::bus::{Bus, BusError, Link, LinkEvent, LinkEvents, LinkSpec, MOST_BODY_BYTES};
use crate::clock::SystemClock;
use crate::envelope::{Epochs, MAX_ENVELOPE_BYTES, Secrets};
use crate::proto::payload::Kind;
use crate::random::Randomness;
use crate::routes::{Names, Route, Seat};
use crate::status::BrokerStatus;

/// Key-plane deliveries between link and driver: 32 MiB at most, whatever is written to the node's queues.
const KEY_EVENTS: usize = 32;
// What the bus hands on of a message is one byte more than a node opens.
const _: () = assert!(MOST_BODY_BYTES == MAX_ENVELOPE_BYTES && KEY_EVENTS * MOST_BODY_BYTES <= 32 << 20);

/// Session batches between link and feed: times `batch_bytes`, this bounds the memory.
const FEED_EVENTS: usize = 16;

/// The link to the broker, as far as it has come.
pub(super) enum Connection<L: Link> {
    /// The pause before the next attempt.
    Down {
        /// When that is due.
        dial_at: Instant,
    },
    /// An attempt is under way.
    Dialling(Attempt<L>),
    /// There is a link.
    Up(OpenLink<L>),
}

/// An attempt to connect, in the background.
pub(super) type Attempt<L> = JoinHandle<Result<Connected<L>, BusError>>;

/// A link that has just come up. Nothing is started on it yet.
pub(super) struct Connected<L: Link> {
    link: Arc<L>,
    events: mpsc::Receiver<LinkEvent>,
    feed: mpsc::Receiver<LinkEvent>,
}

/// What comes from a connection.
pub(super) enum FromConnection<L: Link> {
    /// The next attempt is due.
    DialNow,
    /// The attempt brought this link.
    Connected(Connected<L>),
    /// The link to another broker, which is to take this one's place, is there.
    Moved(Connected<L>),
    /// What the core is told as it is.
    Input(Input),
}

/// Tries once to connect, in the background.
pub(super) fn dial<B: Bus>(bus: Arc<B>, spec: LinkSpec) -> Attempt<B::Link> {
    tokio::spawn(async move {
        let (keys, events) = mpsc::channel(KEY_EVENTS);
        let (feed_sender, feed) = mpsc::channel(FEED_EVENTS);
        let link = bus.connect(&spec, LinkEvents { keys, feed: feed_sender }).await?;
        Ok(Connected { link: Arc::new(link), events, feed })
    })
}

/// What each link of a node is given.
pub(super) struct LinkParts {
    /// Who seals.
    pub identity: Identity,
    /// The farm secrets.
    pub secrets: watch::Receiver<Arc<Secrets>>,
    /// The epoch keys.
    pub epochs: watch::Receiver<Arc<Epochs>>,
    /// The farm's exchanges and queues.
    pub names: Names,
    /// What the broker refuses this node.
    pub refused: Refused,
    /// See [`super::key_plane::confirm_within`].
    pub confirm_within: Duration,
    /// Starts the session plane of each link.
    pub sessions: Arc<SessionPlane>,
    /// Where the salts of each plane come from.
    pub random: fn() -> Randomness,
    /// This host's clocks.
    pub clock: SystemClock,
}

impl LinkParts {
    /// Starts all that is started with a link.
    pub(super) fn start<L: Link>(&self, connected: Connected<L>) -> OpenLink<L> {
        let Connected { link, events, feed } = connected;
        let (plane_sender, plane_events) = mpsc::channel(16);
        let (answers, lease_answers) = mpsc::channel(1);
        let timing = (self.clock, self.confirm_within);
        let (names, refused) = (self.names.clone(), self.refused.clone());
        OpenLink {
            plane: KeyPlane::start(Arc::clone(&link), names, self.sealing(), timing, refused, plane_sender),
            plane_events,
            _sessions: self.sessions.start(Arc::clone(&link), self.sealing(), feed),
            lease: LeaseAsker::start(
                Arc::clone(&link),
                (self.names.clone(), self.refused.clone()),
                self.clock,
                answers,
            ),
            lease_answers,
            link,
            events,
            check: None,
            next: None,
        }
    }

    /// Every plane of every link has salts of its own.
    fn sealing(&self) -> Sealing {
        let (identity, secrets) = (self.identity.clone(), self.secrets.clone());
        Sealing::new(identity, secrets, self.epochs.clone(), (self.random)(), self.clock.now())
    }
}

/// A link with all that was started on it. What is dropped with it ends, but for the link itself: see [`Connection::close`].
pub(super) struct OpenLink<L: Link> {
    link: Arc<L>,
    events: mpsc::Receiver<LinkEvent>,
    plane: KeyPlane,
    plane_events: mpsc::Receiver<KeyPlaneEvent>,
    _sessions: LinkedSessions,
    lease: LeaseAsker,
    lease_answers: mpsc::Receiver<LeaseTried>,
    check: Option<AbortOnDropHandle<Result<(), BusError>>>,
    /// A link to another broker that is to take this one's place.
    next: Option<AbortOnDropHandle<Result<Connected<L>, Stays>>>,
}

impl<L: Link> OpenLink<L> {
    /// The queue that reaches this node.
    pub(super) fn inbox(&self) -> &str {
        self.link.inbox()
    }

    /// The broker, as people are shown it.
    pub(super) fn peer(&self) -> &str {
        self.link.peer()
    }

    /// Has a message sealed and published.
    pub(super) fn send(&self, to: Route, kind: Kind) {
        self.plane.send(to, kind);
    }

    /// Has the lease of a seat tried.
    pub(super) fn try_lease(&self, seat: Seat) {
        self.lease.try_take(seat);
    }

    /// Gives the lease of a seat up: at once, whether or not what is returned is waited for. It ends when the broker has
    /// answered or the link has ended.
    pub(super) fn release_lease(&self, seat: Seat) -> impl Future<Output = ()> + use<L> {
        let released = self.lease.release(seat);
        // An error says that the link has ended, and the lease with it.
        async move { released.await.unwrap_or_default() }
    }

    /// Asks the broker, beside the link, whether it declares.
    pub(super) fn check(&mut self) {
        let link = Arc::clone(&self.link);
        self.check = Some(AbortOnDropHandle::new(tokio::spawn(async move { link.check().await })));
    }

    /// Has the link left for the one that `there` brings. It stays if none comes, and also if its broker, where it
    /// `may_stay` then, declares.
    pub(super) fn leave_for(&mut self, there: Attempt<L>, may_stay: bool) {
        let here = may_stay.then(|| Arc::clone(&self.link));
        self.next = Some(AbortOnDropHandle::new(tokio::spawn(move_to(AbortOnDropHandle::new(there), here))));
    }

    /// Writes out what waits, and closes the link.
    pub(super) async fn finish(self) {
        self.plane.finish().await;
        self.link.close().await;
    }

    async fn next(&mut self) -> FromConnection<L> {
        let input = tokio::select! {
            event = self.events.recv() => input_of(event),
            event = self.plane_events.recv() => match event {
                Some(KeyPlaneEvent::Told(seat, answer)) => Input::Told { seat, answer },
                None => Input::Closed { reason: "the writer of key messages ended".to_owned() },
            },
            Some((seat, answer)) = self.lease_answers.recv() => Input::LeaseTried(seat, answer),
            ended = ended(&mut self.check) => Input::Checked(joined(ended)),
            ended = ended(&mut self.next) => match joined(ended) {
                Ok(connected) => return FromConnection::Moved(connected),
                Err(why) => Input::NotMoved(why),
            },
        };
        FromConnection::Input(input)
    }
}

impl<L: Link> Connection<L> {
    /// Waits for what comes next. Nothing is lost if it is not waited for to the end.
    pub(super) async fn next(&mut self) -> FromConnection<L> {
        match self {
            Self::Down { dial_at } => {
                tokio::time::sleep_until(*dial_at).await;
                FromConnection::DialNow
            }
            Self::Dialling(attempt) => match joined(attempt.await) {
                Ok(connected) => FromConnection::Connected(connected),
                Err(error) => FromConnection::Input(Input::NotLinked(error)),
            },
            Self::Up(open) => open.next().await,
        }
    }

    /// The link, if there is one.
    pub(super) fn open_link(&mut self) -> Option<&mut OpenLink<L>> {
        match self {
            Self::Up(open) => Some(open),
            Self::Down { .. } | Self::Dialling(_) => None,
        }
    }

    /// Whether there is a link whose broker takes no messages at present.
    pub(super) fn is_blocked(&self) -> bool {
        matches!(self, Self::Up(open) if open.link.is_blocked())
    }

    /// What an operator is shown of it.
    pub(super) fn status(&self) -> BrokerStatus {
        match self {
            Self::Up(open) => BrokerStatus { connected: true, uri: open.peer().to_owned() },
            Self::Down { .. } | Self::Dialling(_) => BrokerStatus::default(),
        }
    }

    /// Lets go of the link, and closes it in the background.
    pub(super) fn close(&mut self) {
        let down = Self::Down { dial_at: Instant::now() };
        // What was started on it ends here and now, not when it is closed.
        if let Self::Up(OpenLink { link, .. }) = std::mem::replace(self, down) {
            tokio::spawn(async move { link.close().await });
        }
    }

    /// Writes out what waits, and closes the link, if there is one.
    pub(super) async fn finish(self) {
        match self {
            Self::Down { .. } => {}
            Self::Dialling(attempt) => attempt.abort(),
            Self::Up(open) => {
                open.finish().await;
                info!("said farewell");
            }
        }
    }
}

/// What a link's event is to the core. No event at all says that the link has ended.
fn input_of(event: Option<LinkEvent>) -> Input {
    match event {
        Some(LinkEvent::Closed { reason }) => Input::Closed { reason },
        Some(LinkEvent::LeaseLost { seat }) => Input::LeaseLost(seat),
        Some(LinkEvent::Delivered { from, route, body, site }) => Input::Delivered { from, route, body, site },
        None => Input::Closed { reason: "the link ended".to_owned() },
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
