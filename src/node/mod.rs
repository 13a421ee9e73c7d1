//! One node of the farm, without Unix sockets: the driver, the session plane, and what proxies need of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::channels::{NodeEnds, ends};
use self::connection::LinkParts;
use self::core::{NodeCore, Saving};
use self::driver::Driver;
use self::key_plane::confirm_within;
use self::refused::Refused;
use self::ring_file::{RingFile, RingFileError};
use self::sealing::Identity;
use self::session_plane::{SessionParts, SessionPlane, flush, sweep};
use self::tasks::NodeTasks;
use self::warmup::Warmups;
use crate::bus::{Bus, LinkSpec};
use crate::clock::SystemClock;
use crate::envelope::{KeyAgreements, MissingAlgorithm, Opener, Secrets, openssl_of_this_host};
use crate::farm::{Farm, FarmSettings, LocalState};
use crate::keys::{HeldRing, Timetable};
use crate::proto;
#[cfg(feature = "rustls")]
use crate::proxies::rustls::FarmTicketer;
use crate::proxies::{ProxyInfo, ProxyPlane, Registered, Registry, SharedOutbox};
use crate::random;
use crate::routes::Names;
use crate::sessions::{Removals, Store};
use crate::settings::SettingsError;

mod channels;
mod connection;
pub(crate) mod core;
mod driver;
mod health;
pub(crate) mod key_plane;
mod last_reload;
mod lease;
mod record;
mod refused;
mod ring_file;
pub(crate) mod sealing;
mod secrets_seen;
mod session_plane;
mod session_publisher;
mod settings;
mod sites;
mod tasks;
mod view;
mod view_metrics;
mod warmup;

pub(crate) use channels::OperatorQuestion;
pub use health::Health;
pub use last_reload::LastReload;
pub(crate) use secrets_seen::SecretsSeen;
pub use settings::NodeSettings;
#[cfg(feature = "daemon")]
pub(crate) use settings::{GROUP_NAME, NODE_NAME, group_name, node_name};
pub use view::NodeView;

/// Batches from the farm that a slow proxy may be behind; what it misses beyond is counted.
const FROM_FARM: usize = 256;

/// How often reports look at the cache and the proxies.
const LOCAL_STATE_EVERY: Duration = Duration::from_secs(1);

/// A running node. Dropping it does not stop it: call [`Node::stop`].
pub struct Node {
    /// What the adapters of this project need, in this crate and beside it.
    #[doc(hidden)]
    pub proxies: Arc<ProxyPlane>,
    /// What the node shows of itself.
    pub view: watch::Receiver<NodeView>,
    /// Takes what an operator asks of the farm.
    pub(crate) questions: mpsc::Sender<OperatorQuestion>,
    /// How it behaves.
    pub settings: NodeSettings,
    /// What became of the last attempt to read the farm secrets again: their reader says it here.
    pub reloads: watch::Sender<LastReload>,
    /// Whether it is fit to serve, for `/healthz`.
    pub health: watch::Receiver<Health>,
    /// Which of its tasks has ended in a panic, once one has. The node is good for nothing then.
    pub broken: watch::Receiver<Option<&'static str>>,
    stop_sessions: CancellationToken,
    publisher: NodeTasks,
    stop: CancellationToken,
    tasks: NodeTasks,
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its settings cannot work.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// Its host cannot do what a node does.
    #[error(transparent)]
    Host(#[from] MissingAlgorithm),
}

impl Node {
    /// Starts a node on `bus`. Its tasks run until [`Node::stop`].
    ///
    /// # Errors
    /// If the settings cannot work: everything that [`NodeSettings::validate`] finds. If the host's OpenSSL lacks what a node cannot
    /// be without. Nothing has started then.
    pub fn start<B: Bus>(
        settings: NodeSettings,
        secrets: watch::Receiver<Arc<Secrets>>,
        bus: Arc<B>,
        clock: SystemClock,
    ) -> Result<Self, StartError> {
        settings.validate()?;
        let agreements = openssl_of_this_host()?;
        if let Some(lacking) = agreements.lacking() {
            warn!("OpenSSL on this host {lacking}");
        }
        let running = Running::new();
        let Assembled { driver, sessions, proxies, ends } =
            assemble(&settings, &secrets, bus, clock, (&running, agreements));
        let Running { tasks, publisher, broken, stop, stop_sessions } = running;
        publisher.spawn("the sessions without a link", Arc::clone(&sessions).drop_without_link());
        tasks.spawn("the driver", driver.run());
        tasks.spawn("the opener's keys", sessions.follow_keys());
        tasks.spawn("the flush", flush(Arc::clone(&proxies), ends.sessions_from, stop.clone()));
        tasks.spawn("the sweep", sweep(Arc::clone(&proxies), clock, stop.clone()));
        let reloads = watch::Sender::new(LastReload::default());
        let look = watch_local(Arc::clone(&proxies), (secrets, reloads.subscribe()), ends.local, stop.clone());
        tasks.spawn("the look at the proxies", look);
        let NodeEnds { view, questions, health, .. } = ends;
        Ok(Self { proxies, view, questions, settings, reloads, health, broken, stop_sessions, publisher, stop, tasks })
    }

    /// Has reports, and so `resumed status`, name `proxy` beside this node until what this returns is dropped. A server that embeds a node
    /// is a proxy itself.
    #[must_use]
    pub fn register(&self, proxy: ProxyInfo) -> Registered {
        self.proxies.registry.register(proxy)
    }

    /// What seals and opens the tickets of a rustls server in this process, for
    /// [`ServerConfig::ticketer`](rustls::ServerConfig::ticketer). Any number may be had; they follow the node's keys while it
    /// runs, and the times of its last keys afterwards.
    #[cfg(feature = "rustls")]
    #[must_use]
    pub fn ticketer(&self) -> FarmTicketer {
        FarmTicketer::new(self.proxies.timetable.clone(), self.proxies.clock)
    }

    /// Sends what the outbox holds, says farewell, so that the lease moves at once, and ends every task.
    pub async fn stop(self) {
        self.stop_sessions.cancel();
        self.publisher.ended().await;
        self.stop.cancel();
        self.tasks.ended().await;
    }
}

/// What a node's tasks run in, and what ends them: first what publishes sessions, then all else.
struct Running {
    tasks: NodeTasks,
    publisher: NodeTasks,
    broken: watch::Receiver<Option<&'static str>>,
    stop: CancellationToken,
    stop_sessions: CancellationToken,
}

impl Running {
    fn new() -> Self {
        let (broken_sender, broken) = watch::channel(None);
        let (tasks, publisher) = (NodeTasks::new(broken_sender.clone()), NodeTasks::new(broken_sender));
        Self { tasks, publisher, broken, stop: CancellationToken::new(), stop_sessions: CancellationToken::new() }
    }
}

/// A node before anything of it runs.
struct Assembled<B: Bus> {
    driver: Driver<B>,
    sessions: Arc<SessionPlane>,
    proxies: Arc<ProxyPlane>,
    ends: NodeEnds,
}

/// Puts a node together as `settings` say: they are good.
fn assemble<B: Bus>(
    settings: &NodeSettings,
    secrets: &watch::Receiver<Arc<Secrets>>,
    bus: Arc<B>,
    clock: SystemClock,
    (running, agreements): (&Running, KeyAgreements),
) -> Assembled<B> {
    let identity = Identity { farm: settings.farm.clone(), node: settings.name.clone(), boot_id: random::random() };
    let names = Names::new(&settings.farm, &settings.pod);
    let (ring_file, held) = saved_ring(settings, clock);
    view_metrics::settings(&settings.keys);
    view_metrics::show_ring_saved(ring_file.as_ref().is_some_and(RingFile::keeps_keys));
    let farm = Farm::new(farm_settings(settings, identity.boot_id, &names), held, random::system(), clock.now())
        .with_agreements(agreements);
    let (driver_ends, ends) = ends(&farm, clock);
    let proxies = Arc::new(proxy_plane(settings, ends.timetable.clone(), clock));
    let refused = Refused::default();
    let parts = SessionParts {
        proxies: Arc::clone(&proxies),
        secrets: secrets.clone(),
        epochs: ends.epochs.clone(),
        unknown_epoch: Arc::clone(&ends.unknown_epoch),
        names: names.clone(),
        boot_id: identity.boot_id,
        batch_bytes: as_size(settings.sessions.batch_bytes),
        refused: refused.clone(),
        clock,
        tasks: running.tasks.clone(),
        publisher: running.publisher.clone(),
        stop: running.stop_sessions.clone(),
    };
    let warmups = Warmups::new(settings.sessions.replicate, random::system());
    let sessions = Arc::new(SessionPlane::new(parts, opener(settings, secrets), warmups));
    let parts = LinkParts {
        identity: identity.clone(),
        secrets: secrets.clone(),
        epochs: ends.epochs.clone(),
        names: names.clone(),
        refused: refused.clone(),
        confirm_within: confirm_within(settings.report_every),
        sessions: Arc::clone(&sessions),
        random: random::system,
        clock,
    };
    let driver = Driver {
        core: core(settings, farm, secrets, identity, ring_file.is_some()),
        bus,
        spec: link_spec(settings, names),
        parts,
        secrets: secrets.clone(),
        refused,
        ends: driver_ends,
        clock,
        ring_file,
        replies: HashMap::new(),
        random: random::system(),
        connections: view_metrics::Connections::default(),
        stop: running.stop.clone(),
    };
    Assembled { driver, sessions, proxies, ends }
}

/// The ring of the node's last run. Without one, or if it cannot be used, the node starts with none and says why.
fn saved_ring(settings: &NodeSettings, clock: SystemClock) -> (Option<RingFile>, HeldRing) {
    let empty = || HeldRing::new(settings.keys);
    let Some(directory) = &settings.ring_directory else { return (None, empty()) };
    let file = match RingFile::open(directory, &settings.farm, settings.allow_disk) {
        Ok(file) => file,
        Err(error) => {
            warn!(%error, "the ring is not saved: a restart of this daemon would forget it");
            if !matches!(error, RingFileError::Unsafe { .. }) {
                return (None, empty());
            }
            RingFile::for_floors(directory, &settings.farm)
        }
    };
    let held = match file.load(settings.keys, clock.now()) {
        Ok(Some(restored)) => {
            info!(keys = restored.held.ring().keys().len(), "took up the ring of the last run");
            for (fault, count) in restored.faults.iter() {
                crate::metrics::KEYS_SKIPPED.add(fault.reason(), count);
                warn!(%fault, count, "left a part of the saved ring out");
            }
            restored.held
        }
        Ok(None) => empty(),
        Err(error) => {
            warn!(%error, "starting without the ring of the last run");
            empty()
        }
    };
    (Some(file), held)
}

/// What opens the envelopes of this farm. Key plane and session plane have one each: their windows against replays are apart.
fn opener(settings: &NodeSettings, secrets: &watch::Receiver<Arc<Secrets>>) -> Opener {
    Opener::new(Arc::clone(&secrets.borrow()), &settings.farm, settings.keys.max_clock_offset)
}

fn core(
    settings: &NodeSettings,
    farm: Farm,
    secrets: &watch::Receiver<Arc<Secrets>>,
    identity: Identity,
    saves: bool,
) -> NodeCore {
    let saving = if saves { Saving::On } else { Saving::Off };
    let initial = Arc::clone(&secrets.borrow());
    NodeCore::new(farm, (opener(settings, secrets), &initial), identity, saving, random::system())
}

fn link_spec(settings: &NodeSettings, names: Names) -> LinkSpec {
    LinkSpec { names, node: settings.name.clone(), sessions: settings.sessions.replicate, elsewhere_than: None }
}

/// What the adapters of proxies share, without a proxy so far.
fn proxy_plane(settings: &NodeSettings, timetable: watch::Receiver<Arc<Timetable>>, clock: SystemClock) -> ProxyPlane {
    ProxyPlane {
        timetable,
        from_farm: broadcast::channel(FROM_FARM).0,
        outbox: Arc::new(SharedOutbox::new(outbox_bytes(settings))),
        store: Arc::new(Store::new(settings.sessions.clone(), 2 * settings.keys.max_clock_offset)),
        registry: Arc::new(Registry::default()),
        clock,
        welcome: proto::local::Welcome {
            node: settings.name.clone(),
            farm: settings.farm.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            replicate: settings.sessions.replicate,
            removals: settings.sessions.replicate && settings.sessions.removals == Removals::Replicate,
        },
    }
}

fn farm_settings(settings: &NodeSettings, boot_id: [u8; 16], names: &Names) -> FarmSettings {
    FarmSettings {
        node: settings.name.clone(),
        boot_id,
        pod: settings.pod.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        names: names.clone(),
        keys: settings.keys,
        report_every: settings.report_every,
        start_alone_after: settings.start_alone_after,
        can_lead: settings.can_lead,
    }
}

/// A quarter of the cache: sessions wait there only while the broker is slow.
fn outbox_bytes(settings: &NodeSettings) -> usize {
    as_size(settings.sessions.max_bytes / 4).max(2 * as_size(settings.sessions.batch_bytes))
}

fn as_size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Keeps what reports say of this host up to date.
async fn watch_local(
    proxies: Arc<ProxyPlane>,
    (mut secrets, mut reloads): (watch::Receiver<Arc<Secrets>>, watch::Receiver<LastReload>),
    local: watch::Sender<LocalState>,
    stop: CancellationToken,
) {
    let mut every = tokio::time::interval(LOCAL_STATE_EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => {}
            Ok(()) = secrets.changed() => {}
            Ok(()) = reloads.changed() => {}
        }
        let state = LocalState {
            sessions: u64::try_from(proxies.store.len()).unwrap_or(u64::MAX),
            proxies: proxies.registry.list(),
            secret_ids: secrets.borrow_and_update().ids().map(|id| id.to_vec()).collect(),
            reload: reloads.borrow_and_update().to_proto(),
        };
        local.send_if_modified(|last| {
            let changed = *last != state;
            *last = state;
            changed
        });
    }
}

#[cfg(test)]
mod tests;
