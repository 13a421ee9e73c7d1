//! The channels between the driver and the rest of its node.

use std::sync::Arc;

use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::health::Health;
use super::view::NodeView;
use crate::clock::SystemClock;
use crate::envelope::Epochs;
use crate::farm::{Ask, Farm, LocalState, Reply};
use crate::keys::Timetable;

/// Questions of operators that wait for a turn.
const QUESTIONS: usize = 64;

/// An operator's question, with the way back.
#[derive(Debug)]
pub(crate) struct OperatorQuestion {
    /// What is asked.
    pub ask: Ask,
    /// Who asks.
    pub user: String,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Reply>,
}

/// The driver's ends.
pub(super) struct DriverEnds {
    /// The epoch keys, for all who seal and open.
    pub epochs: watch::Sender<Arc<Epochs>>,
    /// Says that a session batch of an unknown epoch arrived.
    pub unknown_epoch: Arc<Notify>,
    /// What reports say of this host.
    pub local: watch::Receiver<LocalState>,
    /// Operators' questions.
    pub questions: mpsc::Receiver<OperatorQuestion>,
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
    pub questions: mpsc::Sender<OperatorQuestion>,
    pub timetable: watch::Receiver<Arc<Timetable>>,
    pub view: watch::Receiver<NodeView>,
    pub health: watch::Receiver<Health>,
    pub sessions_from: watch::Receiver<u64>,
}

/// Both ends of the channels between the driver of a node with this `farm` and the rest of it.
pub(super) fn ends(farm: &Farm, clock: SystemClock) -> (DriverEnds, NodeEnds) {
    let now = clock.now();
    let (timetable, read_timetable) = watch::channel(Arc::new(farm.held().timetable(now)));
    let (health, read_health) = watch::channel(Health::turned(false, now));
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
