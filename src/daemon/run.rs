//! `resumed run`: one node with its Unix sockets, its metrics and the system's signals.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::sync::watch::error::RecvError;
use tracing::{info, warn};

use super::http::HttpError;
use super::reload::{ReloadCall, Reloader};
use super::servers::{Servers, Sockets};
use super::service::Notifier;
use super::settings::Settings;
use crate::bus::in_process::{Hub, InProcess};
use crate::bus::rabbitmq::RabbitMq;
use crate::bus::{Bus, BusError};
use crate::clock::SystemClock;
use crate::envelope::{FarmSecret, Secrets};
use crate::memory;
use crate::metrics::{self, MetricsError};
use crate::node::Node;
use crate::secret_files::farm_secret::{self, SecretFileError};
use crate::secret_files::warnings;
use crate::settings::SettingsError;
use crate::unix_socket::SocketError;

/// From the signal to the end of the process.
const STOP_WITHIN: Duration = Duration::from_millis(1_800);

/// Why the daemon ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A farm secret cannot be used.
    #[error(transparent)]
    Secret(#[from] SecretFileError),
    /// The settings cannot work.
    #[error(transparent)]
    Settings(#[from] SettingsError),
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

/// Runs a node until SIGTERM or SIGINT. SIGHUP, and a request on the control socket, read the farm secrets again, from the
/// files that `secret_files` then names; its error says why they cannot be known. They also look up the ids of `ats.users`
/// again. Nothing else of the settings changes.
///
/// # Errors
/// What keeps the node from starting, or a socket that fails later.
pub async fn run(settings: Settings, secret_files: impl Fn() -> Result<Vec<PathBuf>, String>) -> Result<(), RunError> {
    settings.validate()?;
    for weakness in memory::keep() {
        warn!("{weakness}");
    }
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
    let clock = SystemClock::start();
    let recorder = metrics::install()?;
    let mut signals = Signals::listen().map_err(RunError::Signals)?;
    let mut notifier = Notifier::from_environment().map_err(RunError::Notify)?;
    let sockets = Sockets::open(&settings).await?;
    let users_changed = sockets.users_changed();

    let (secret_sender, secret_receiver) = watch::channel(Arc::new(secrets));
    let node = Node::start(settings.node.clone(), secret_receiver, bus, clock)?;
    info!(node = settings.node.name, farm = settings.node.farm, pod = settings.node.pod, "resumed is running");
    let (mut servers, mut reloads) = Servers::start(sockets, &node, recorder, clock);
    let had_files = !settings.secret_files.is_empty();
    let files_to_read = move || {
        let files = secret_files();
        warn_of_readers(&settings, files.as_deref().unwrap_or_default());
        files
    };
    let reloader = Reloader::new(files_to_read, had_files, secret_sender, node.reloads.clone());

    let (mut broken, mut health) = (node.broken.clone(), node.health.clone());
    let outcome = loop {
        tokio::select! {
            _ = signals.terminate.recv() => break Ok(()),
            _ = signals.interrupt.recv() => break Ok(()),
            _ = signals.hangup.recv() => {
                users_changed.notify_one();
                let reload = || reloader.reload("SIGHUP", clock.now().wall);
                let _logged_and_shown = notifier.around_reload(&node.view, reload).await;
            }
            Some(ReloadCall { user, verdict }) = reloads.recv() => {
                users_changed.notify_one();
                let reload = || reloader.reload(&user, clock.now().wall);
                let _gone = verdict.send(notifier.around_reload(&node.view, reload).await);
            }
            () = notifier.follow(&mut health, &node.view, clock) => {}
            error = servers.failed() => break Err(error),
            Ok(Some(what)) = panicked(&mut broken) => break Err(RunError::Panicked(what)),
        }
    };
    info!("stopping");
    servers.stop();
    notifier.stopping().await;
    let end = async {
        node.stop().await;
        servers.ended().await;
    };
    if tokio::time::timeout(STOP_WITHIN, end).await.is_err() {
        warn!("did not stop in time; ending anyway");
    }
    outcome
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
}
