//! `resumed run`: one node with its Unix sockets, its metrics and the system's signals.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch::error::RecvError;
use tokio::sync::{Notify, mpsc, watch};
use tracing::{info, warn};

use super::http::HttpError;
use super::reload::{ReloadCall, ReloadError, Reloader};
use super::servers::{Servers, Sockets};
use super::service::Notifier;
use super::settings::Settings;
use crate::bus::in_process::{Hub, InProcess};
use crate::bus::rabbitmq::RabbitMq;
use crate::bus::{Bus, BusError};
use crate::clock::SystemClock;
use crate::envelope::{FarmSecret, MissingAlgorithm, Secrets, openssl_of_this_host};
use crate::memory;
use crate::metrics::{self, MetricsError};
use crate::node::{Node, NodeSettings, StartError};
use crate::secret_files::farm_secret::{self, SecretFileError};
use crate::secret_files::warnings;
use crate::settings::SettingsError;
use crate::unix_socket::SocketError;

/// From the signal to the end of the process.
const STOP_WITHIN: Duration = Duration::from_millis(1_800);

/// Why the daemon ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// A farm secret cannot be used.
    #[error(transparent)]
    Secret(#[from] SecretFileError),
    /// The settings cannot work.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// This host cannot do what a node does.
    #[error(transparent)]
    Host(#[from] MissingAlgorithm),
    /// The broker settings cannot work.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The control socket cannot be opened.
    #[error("control.socket = {0}")]
    Control(#[source] SocketError),
    /// The plugin's socket cannot be opened.
    #[error("ats.socket = {0}")]
    Ats(#[source] SocketError),
    /// The metrics cannot be served.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The metrics cannot be recorded.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// A task of the daemon panicked: it can do no good any more, and a service manager starts it again.
    #[error("{0} ended in a panic, which is a defect: please report it with the lines of the log before this one")]
    Panicked(&'static str),
    /// The system does not deliver signals.
    #[error("cannot listen for signals: {0}")]
    Signals(#[source] std::io::Error),
    /// The service manager cannot be told anything.
    #[error("NOTIFY_SOCKET in the environment: {0}")]
    Notify(#[source] std::io::Error),
}

impl From<StartError> for RunError {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Settings(error) => Self::Settings(error),
            StartError::Host(error) => Self::Host(error),
        }
    }
}

/// Runs a node until SIGTERM or SIGINT. SIGHUP, and a request on the control socket, read the farm secrets again, from the
/// files that `secret_files` then names; its error says why they cannot be known. They also look up the ids of `ats.users`
/// again. Nothing else of the settings changes.
///
/// # Errors
/// What keeps the node from starting, or a socket that fails later.
pub(crate) async fn run(
    settings: Settings,
    secret_files: impl Fn() -> Result<Vec<PathBuf>, String>,
) -> Result<(), RunError> {
    settings.validate()?;
    for weakness in memory::keep() {
        warn!("{weakness}");
    }
    // Before the first secret is read: what is wrong then is not its file.
    openssl_of_this_host().map_err(StartError::from)?;
    let secrets = read_secrets(&settings)?;
    warn_of_readers(&settings, &settings.secret_files);
    if settings.broker.uris.is_empty() {
        warn!("no broker.uris: this node runs alone and shares nothing");
        return run_on(Arc::new(InProcess::new(Arc::new(Hub::default()))), settings, secrets, secret_files).await;
    }
    let bus = Arc::new(RabbitMq::new(settings.broker.clone())?);
    run_on(bus, settings, secrets, secret_files).await
}

async fn run_on<B: Bus>(
    bus: Arc<B>,
    settings: Settings,
    secrets: Secrets,
    secret_files: impl Fn() -> Result<Vec<PathBuf>, String>,
) -> Result<(), RunError> {
    let recorder = metrics::install()?;
    let mut signals = Signals::listen().map_err(RunError::Signals)?;
    let notifier = Notifier::from_environment().map_err(RunError::Notify)?;
    let sockets = Sockets::open(&settings).await?;
    let files_to_read = || {
        let files = secret_files();
        warn_of_readers(&settings, files.as_deref().unwrap_or_default());
        files
    };
    let daemon = Daemon::start(bus, &settings, sockets, secrets, files_to_read, recorder)?;
    daemon.run(async || signals.next().await, notifier).await
}

/// What the system tells the daemon to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// To end: SIGTERM or SIGINT.
    Stop,
    /// To read the farm secrets again: SIGHUP.
    ReadSecrets,
}

/// A node with the servers around it. They run from its start on; [`Daemon::run`] does what it is told meanwhile.
pub(super) struct Daemon<F> {
    pub(super) node: Node,
    pub(super) servers: Servers,
    reload_calls: mpsc::Receiver<ReloadCall>,
    reloader: Reloader<F>,
    users_changed: Arc<Notify>,
    clock: SystemClock,
}

impl<F: Fn() -> Result<Vec<PathBuf>, String>> Daemon<F> {
    /// Starts a node on `bus`, and serves `sockets` for it. `files_to_read` names the files of the farm secrets whenever they
    /// are read again.
    ///
    /// # Errors
    /// If the settings of the node cannot work. Nothing has started then, and the sockets are gone.
    pub(super) fn start<B: Bus>(
        bus: Arc<B>,
        settings: &Settings,
        sockets: Sockets,
        secrets: Secrets,
        files_to_read: F,
        recorder: PrometheusHandle,
    ) -> Result<Self, RunError> {
        let clock = SystemClock::start();
        let users_changed = sockets.users_changed();
        let (secret_sender, secret_receiver) = watch::channel(Arc::new(secrets));
        let node = Node::start(settings.node.clone(), secret_receiver, bus, clock)?;
        let NodeSettings { name, farm, pod, .. } = &settings.node;
        info!(node = name, farm, pod, "resumed is running");
        let (servers, reload_calls) = Servers::start(sockets, &node, recorder, clock);
        let had_files = !settings.secret_files.is_empty();
        let reloader = Reloader::new(files_to_read, had_files, secret_sender, node.reloads.clone());
        Ok(Self { node, servers, reload_calls, reloader, users_changed, clock })
    }

    /// Does what `orders` say, one after the other, until one of them is to stop, and ends the node and its servers then.
    ///
    /// # Errors
    /// What failed, where the daemon ends for that.
    pub(super) async fn run(
        mut self,
        orders: impl AsyncFnMut() -> Order,
        mut notifier: Notifier,
    ) -> Result<(), RunError> {
        let outcome = self.follow(orders, &mut notifier).await;
        info!("stopping");
        self.stop(&mut notifier).await;
        outcome
    }

    async fn follow(
        &mut self,
        mut orders: impl AsyncFnMut() -> Order,
        notifier: &mut Notifier,
    ) -> Result<(), RunError> {
        let (mut broken, mut health) = (self.node.broken.clone(), self.node.health.clone());
        loop {
            tokio::select! {
                order = orders() => match order {
                    Order::Stop => return Ok(()),
                    Order::ReadSecrets => {
                        let _logged_and_shown = self.read_secrets("SIGHUP", notifier).await;
                    }
                },
                Some(ReloadCall { user, verdict }) = self.reload_calls.recv() => {
                    let _gone = verdict.send(self.read_secrets(&user, notifier).await);
                }
                () = notifier.follow(&mut health, &self.node.view, self.clock) => {}
                error = self.servers.failed() => return Err(error),
                Ok(Some(what)) = panicked(&mut broken) => return Err(RunError::Panicked(what)),
            }
        }
    }

    /// Reads the farm secrets again for `user`, and has the ids of `ats.users` looked up again.
    async fn read_secrets(&self, user: &str, notifier: &mut Notifier) -> Result<Vec<String>, ReloadError> {
        self.users_changed.notify_one();
        let reload = || self.reloader.reload(user, self.clock.now().wall);
        notifier.around_reload(&self.node.view, reload).await
    }

    /// Ends the node and its servers. What does not end within [`STOP_WITHIN`] is left.
    pub(super) async fn stop(self, notifier: &mut Notifier) {
        self.servers.stop();
        notifier.stopping().await;
        let end = async {
            self.node.stop().await;
            self.servers.ended().await;
        };
        if tokio::time::timeout(STOP_WITHIN, end).await.is_err() {
            warn!("did not stop in time; ending anyway");
        }
    }
}

/// Which of the node's tasks panicked, as soon as one has.
async fn panicked(broken: &mut watch::Receiver<Option<&'static str>>) -> Result<Option<&'static str>, RecvError> {
    Ok(*broken.wait_for(Option::is_some).await?)
}

/// Without a broker nothing leaves the process, and a secret of the moment will do.
fn read_secrets(settings: &Settings) -> Result<Secrets, SecretFileError> {
    if settings.secret_files.is_empty() {
        return Ok(Secrets::new(vec![FarmSecret::generate()?])?);
    }
    farm_secret::read_all(&settings.secret_files)
}

/// Says which secrets others may read: the broker's, and `farm_secrets`. On a thread of its own: the user database, which is
/// asked for groups and their members, may be slow.
fn warn_of_readers(settings: &Settings, farm_secrets: &[PathBuf]) {
    let (settings, farm_secrets) = (settings.clone(), farm_secrets.to_owned());
    let look = move || {
        let of_broker = settings.broker_secrets();
        for warning in warnings(&of_broker, &farm_secrets, settings.control.group.as_deref()) {
            warn!("{warning}");
        }
    };
    if let Err(error) = std::thread::Builder::new().name("secret-readers".to_owned()).spawn(look) {
        warn!(%error, "cannot look who may read the secret files");
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next order. None is lost if it is not waited for to its end.
    async fn next(&mut self) -> Order {
        tokio::select! {
            _ = self.terminate.recv() => Order::Stop,
            _ = self.interrupt.recv() => Order::Stop,
            _ = self.hangup.recv() => Order::ReadSecrets,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::settings;
    use super::*;

    #[test]
    fn without_secret_files_a_secret_of_the_moment_serves_and_with_them_those_in_the_files() {
        let folder = crate::temporary::Folder::new();
        let mut settings = settings(folder.path());
        let ids = |settings: &Settings| read_secrets(settings).map(|secrets| secrets.ids().collect::<Vec<_>>());
        assert_ne!(ids(&settings).unwrap(), ids(&settings).unwrap(), "each start has one of its own");
        let [one, other] = ["one", "other"].map(|name| folder.path().join(name));
        for file in [&one, &other] {
            farm_secret::write_new(&FarmSecret::generate().unwrap(), file).unwrap();
        }
        settings.secret_files = vec![other.clone(), one.clone()];
        let id = |file| farm_secret::read(file).unwrap().id();
        assert_eq!(ids(&settings).unwrap(), [id(&other), id(&one)], "the first seals");
        settings.secret_files.push(folder.path().join("gone"));
        let refused = ids(&settings).unwrap_err().to_string();
        assert!(refused.contains("gone"), "{refused}");
    }
}
