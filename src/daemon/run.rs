//! `resumed run`: one node with its Unix sockets, its metrics and the system's signals.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch::error::RecvError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::control::{ControlCall, ControlSocket};
use super::http::page::Page;
use super::http::{HttpError, HttpServer, Observed};
use super::memory;
use super::reload::{ReloadCall, Reloader};
use super::service::Notifier;
use super::settings::Settings;
use super::users::user_name;
use crate::bus::in_process::{Hub, InProcess};
use crate::bus::rabbitmq::RabbitMq;
use crate::bus::{Bus, BusError};
use crate::clock::SystemClock;
use crate::envelope::{FarmSecret, SecretError, Secrets};
use crate::metrics::{self, MetricsError};
use crate::node::Node;
use crate::operator::{Operator, RotateError, Rotation, rotate_progress, wait_of};
use crate::proto::local::{ControlReply, Reloaded, control_reply, control_request};
use crate::proxies::ats::Socket;
use crate::secret_files;
use crate::settings::SettingsError;
use crate::unix_socket::SocketError;

/// From the signal to the end of the process.
const STOP_WITHIN: Duration = Duration::from_millis(1_800);

/// Why the daemon ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A farm secret cannot be used.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The node's settings cannot work.
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
    let metrics = metrics::install()?;
    let mut signals = Signals::listen().map_err(RunError::Signals)?;
    let mut notifier = Notifier::from_environment().map_err(RunError::Notify)?;
    let control = ControlSocket::open(&settings.control).map_err(RunError::Control)?;
    let http = match settings.metrics.listen {
        Some(address) => Some(HttpServer::bind(address).await?),
        None => None,
    };
    let ats = Socket::bind(settings.ats.clone()).map_err(RunError::Ats)?;
    let users_changed = ats.users_changed();

    let (secret_sender, secret_receiver) = watch::channel(Arc::new(secrets));
    let node = Node::start(settings.node.clone(), secret_receiver, bus, clock)?;
    info!(node = settings.node.name, farm = settings.node.farm, pod = settings.node.pod, "resumed is running");

    let stop = CancellationToken::new();
    let mut servers: JoinSet<Result<(), RunError>> = JoinSet::new();
    let (calls, answers) = mpsc::channel(16);
    servers.spawn(serve_control(control, calls, stop.clone()));
    let (reload_calls, mut reloads) = mpsc::channel(1);
    servers.spawn(answer_calls(answers, Asked { operator: Operator::of(&node), reload_calls }, stop.clone()));
    let had_files = !settings.secret_files.is_empty();
    let watched = settings.clone();
    let files_to_read = move || {
        let files = secret_files();
        warn_of_readers(&watched, files.as_deref().unwrap_or_default());
        files
    };
    let reloader = Reloader::new(files_to_read, had_files, secret_sender, node.reloads.clone());
    let proxies = Arc::clone(&node.proxies);
    let ats_stop = stop.clone();
    servers.spawn(async move {
        ats.serve(proxies, ats_stop).await;
        Ok(())
    });
    servers.spawn({
        let (metrics, stop) = (metrics.clone(), stop.clone());
        async move {
            metrics::upkeep(metrics, stop).await;
            Ok(())
        }
    });
    if let Some(http) = http {
        info!(address = %http.address(), page = settings.metrics.page, "metrics");
        let page = settings.metrics.page.then(|| {
            let operator = Operator::of(&node);
            let ask = move || {
                let operator = operator.clone();
                async move { operator.status().await }
            };
            let (page, task) = Page::new(ask, clock, stop.clone());
            servers.spawn(async move {
                task.await;
                Ok(())
            });
            page
        });
        let observed = Observed { metrics, health: node.health.clone(), page, clock };
        let stop = stop.clone();
        servers.spawn(async move { Ok(http.serve(observed, stop).await?) });
    }

    let mut broken = node.broken.clone();
    let mut health = node.health.clone();
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
            Some(ended) = servers.join_next() => match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => break Err(error),
                Err(error) => {
                    error!(%error, "a server ended in a panic");
                    break Err(RunError::Panicked("a server"));
                }
            },
            Ok(Some(what)) = panicked(&mut broken) => break Err(RunError::Panicked(what)),
        }
    };
    info!("stopping");
    stop.cancel();
    notifier.stopping().await;
    let end = async {
        node.stop().await;
        while let Some(ended) = servers.join_next().await {
            if let Ok(Err(error)) = ended {
                warn!(%error, "while stopping");
            }
        }
    };
    if tokio::time::timeout(STOP_WITHIN, end).await.is_err() {
        warn!("did not stop in time; ending all the same");
    }
    outcome
}

/// Which of the node's tasks panicked, as soon as one has.
async fn panicked(broken: &mut watch::Receiver<Option<&'static str>>) -> Result<Option<&'static str>, RecvError> {
    Ok(*broken.wait_for(Option::is_some).await?)
}

async fn serve_control(
    control: ControlSocket,
    calls: mpsc::Sender<ControlCall>,
    stop: CancellationToken,
) -> Result<(), RunError> {
    control.serve(calls, stop).await;
    Ok(())
}

/// Who answers commands.
#[derive(Clone)]
struct Asked {
    operator: Operator,
    reload_calls: mpsc::Sender<ReloadCall>,
}

async fn answer_calls(
    mut calls: mpsc::Receiver<ControlCall>,
    asked: Asked,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let mut answers = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            Some(call) = calls.recv() => { answers.spawn(answer(call, asked.clone())); }
            Some(ended) = answers.join_next() => if let Err(error) = ended {
                error!(%error, "answering a command ended in a panic");
            },
        }
    }
}

async fn answer(call: ControlCall, Asked { operator, reload_calls }: Asked) {
    let user = call.uid.map(user_name).unwrap_or_default();
    let operator = operator.for_user(user.clone());
    let reply = |kind| ControlReply { kind: Some(kind) };
    // An asker who has gone away, or is slow, does not hold up the change.
    let progress = |rotation: &Rotation| {
        let _gone = call.replies.try_send(reply(control_reply::Kind::Rotate(rotate_progress(rotation, false))));
    };
    let done = |outcome: Result<Rotation, RotateError>| match outcome {
        Ok(rotation) => control_reply::Kind::Rotate(rotate_progress(&rotation, true)),
        Err(error) => control_reply::Kind::Error(error.to_string()),
    };
    let last = match call.request {
        control_request::Kind::Status(_) => match serde_json::to_vec(&operator.status().await) {
            Ok(json) => control_reply::Kind::StatusJson(json),
            Err(error) => control_reply::Kind::Error(error.to_string()),
        },
        control_request::Kind::Rotate(command) => done(operator.rotate(wait_of(command.wait_ms), progress).await),
        control_request::Kind::Revoke(command) if command.local => {
            done(operator.revoke_local(command.flush_sessions).await)
        }
        control_request::Kind::Revoke(command) => {
            done(operator.revoke(command.flush_sessions, wait_of(command.wait_ms), progress).await)
        }
        control_request::Kind::Reload(_) => reloaded(user, may_read_all(call.uid), &reload_calls).await,
    };
    let _gone = call.replies.send(reply(last)).await;
}

/// Whether this user reads the configuration in any case: root, and the daemon's own. Others of the control socket's group
/// may not.
fn may_read_all(uid: Option<u32>) -> bool {
    uid.is_some_and(|uid| uid == 0 || uid == nix::unistd::geteuid().as_raw())
}

/// Has the secrets read again, and says what became of it: in full, or as the whole farm may know it.
async fn reloaded(user: String, in_full: bool, calls: &mpsc::Sender<ReloadCall>) -> control_reply::Kind {
    let (verdict, told) = oneshot::channel();
    let error = |text: String| control_reply::Kind::Error(text);
    if calls.send(ReloadCall { user, verdict }).await.is_err() {
        return error("the daemon is stopping".to_owned());
    }
    match told.await {
        Ok(Ok(secret_ids)) => control_reply::Kind::Reloaded(Reloaded { secret_ids }),
        Ok(Err(refused)) => {
            let why = if in_full { refused.to_string() } else { refused.in_a_line() };
            error(format!("refused, going on with the farm secrets of before: {why}"))
        }
        Err(_) => error("the daemon is stopping".to_owned()),
    }
}

/// Without a broker nothing leaves the process, and a secret of the moment will do.
fn read_secrets(settings: &Settings) -> Result<Secrets, SecretError> {
    if settings.secret_files.is_empty() {
        return Secrets::new(vec![FarmSecret::generate()?]);
    }
    Secrets::read(&settings.secret_files)
}

/// Says which secrets others may read: the broker's, and `farm_secrets`. On a thread of its own: the user database, which is
/// asked for groups and their members, may be slow.
fn warn_of_readers(settings: &Settings, farm_secrets: &[PathBuf]) {
    let (settings, farm_secrets) = (settings.clone(), farm_secrets.to_owned());
    let look = move || {
        let of_broker = settings.broker_secrets();
        for warning in secret_files::warnings(&of_broker, &farm_secrets, settings.control.group.as_deref()) {
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
