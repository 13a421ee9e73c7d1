//! The socket: who may connect, and how many.

use std::fmt::{self, Display};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::Backlog;
use nix::unistd::{User, geteuid};
use tokio::net::UnixStream;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::connection::PluginConnections;
use super::refusal::ProxyRefusal;
use super::{AtsSettings, MAX_PROXIES};
use crate::proxies::ProxyPlane;
use crate::proxies::allowed_users::{AllowedUsers, Answers};
use crate::token_bucket::TokenBucket;
use crate::unix_socket::{FreshSocket, SocketError, SocketOptions, bind_fresh};

/// Any local user may connect: the proxy runs as a user of its own, and shares no group with the daemon. Who it is says the
/// kernel, and [`AllowedUsers`] decides before anything else is done.
const SOCKET_MODE: u32 = 0o666;
/// How many connections wait to be taken: the proxies of a host at once. Behind strangers each waits as long as these take.
const BACKLOG: i32 = 64;
/// How many connections are refused in a row, and how often one more: a hundredth of a core or so.
const REFUSALS: (u32, Duration) = (32, Duration::from_millis(1));
/// How long the first connection waits for what the user database says.
const USERS_WITHIN: Duration = Duration::from_secs(5);
/// After an `accept` that failed for want of file descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// The socket, bound: proxies can connect, and are answered once it is served.
#[derive(Debug)]
pub struct Socket {
    socket: FreshSocket,
    users: Vec<String>,
    users_changed: Arc<Notify>,
}

impl Socket {
    /// Makes the socket. A stale one is replaced, one that another process serves is not. Must be called within a tokio
    /// runtime.
    ///
    /// # Errors
    /// When the settings cannot work, another process listens there, something else lies there, or the system refuses.
    pub fn bind(settings: AtsSettings) -> Result<Self, SocketError> {
        settings.validate()?;
        let AtsSettings { socket: path, users } = settings;
        let backlog = Backlog::new(BACKLOG).unwrap_or(Backlog::MAXCONN);
        let socket =
            bind_fresh(&path, SocketOptions { mode: SOCKET_MODE, group: None, backlog, makes_directory: false })?;
        Ok(Self { socket, users, users_changed: Arc::default() })
    }

    /// What to notify when the ids of `ats.users` are to be looked up again, as on a reload.
    #[must_use]
    pub fn users_changed(&self) -> Arc<Notify> {
        Arc::clone(&self.users_changed)
    }

    /// Serves proxies until `stop`, then removes the socket. The first waits until the ids of `ats.users` are known, but 5 s at
    /// most.
    pub async fn serve(self, plane: Arc<ProxyPlane>, stop: CancellationToken) {
        let Self { socket, users, users_changed } = self;
        let acceptor = Arc::new(PluginConnections::new(plane));
        let mut users = Users::new(users, users_changed, Arc::clone(&acceptor));
        if users.is_asking() {
            stop.run_until_cancelled(timeout(USERS_WITHIN, users.turn())).await;
        }
        let mut connections = JoinSet::new();
        let mut refusals = TokenBucket::new(REFUSALS.0, REFUSALS.1);
        loop {
            let rest = refusals.empty_for(acceptor.now());
            let stream = tokio::select! {
                () = stop.cancelled() => break,
                Some(_) = connections.join_next() => continue,
                () = users.turn() => continue,
                () = sleep(rest), if !rest.is_zero() => continue,
                accepted = socket.listener().accept(), if rest.is_zero() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        acceptor.complain("connection", "accept", &error);
                        sleep(ACCEPT_AGAIN).await;
                        continue;
                    }
                },
            };
            match users.admit(&stream, &mut connections) {
                Ok(who) => {
                    let acceptor = Arc::clone(&acceptor);
                    connections.spawn(async move { acceptor.serve(stream, &who.to_string()).await });
                }
                Err((refusal, who)) => {
                    acceptor.refuse(&refusal, &who);
                    refusals.take(acceptor.now());
                }
            }
        }
        connections.shutdown().await;
    }
}

/// A process that connects, as the kernel names it.
#[derive(Clone, Copy, Debug)]
enum Who {
    Known { pid: i32, uid: u32 },
    Unknown,
}

impl Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known { pid, uid } => write!(f, "process {pid} of user {uid}"),
            Self::Unknown => f.write_str("an unknown process"),
        }
    }
}

/// Asks the user database, on a thread of its own, for what [`AllowedUsers`] wants to know.
struct Users {
    allowed: AllowedUsers,
    changed: Arc<Notify>,
    /// The answer to the question under way.
    answers: Option<oneshot::Receiver<Answers<Errno>>>,
    acceptor: Arc<PluginConnections>,
}

impl Users {
    fn new(names: Vec<String>, changed: Arc<Notify>, acceptor: Arc<PluginConnections>) -> Self {
        let mut users =
            Self { allowed: AllowedUsers::new(geteuid().as_raw(), names), changed, answers: None, acceptor };
        users.ask();
        users
    }

    /// Whether a question is under way.
    fn is_asking(&self) -> bool {
        self.answers.is_some()
    }

    /// Decides about one connection: before it is counted, and without waiting.
    fn admit(&mut self, stream: &UnixStream, connections: &mut JoinSet<()>) -> Result<Who, (ProxyRefusal, Who)> {
        let peer = stream.peer_cred().map_err(|error| (ProxyRefusal::Io(error), Who::Unknown))?;
        let (uid, who) = (peer.uid(), Who::Known { pid: peer.pid().unwrap_or_default(), uid: peer.uid() });
        let allowed = self.allowed.admit(uid, self.acceptor.now());
        self.ask();
        if !allowed {
            return Err((ProxyRefusal::Peer { uid }, who));
        }
        // Those that have ended hold no place.
        while connections.try_join_next().is_some() {}
        if connections.len() >= MAX_PROXIES { Err((ProxyRefusal::TooMany, who)) } else { Ok(who) }
    }

    /// Takes an answer or a change in. Nothing is lost if it is not waited for to its end.
    async fn turn(&mut self) {
        let Some(answers) = &mut self.answers else {
            self.changed.notified().await;
            self.allowed.ask_again();
            return self.ask();
        };
        // No answer at all: the thread died.
        let answers = answers.await.unwrap_or_default();
        self.answers = None;
        self.allowed.take(&answers);
        self.acceptor.tell_of(&answers);
        self.ask();
    }

    /// Begins to ask if there is something to ask. The thread may hang for as long as the user database does, also beyond the
    /// end of the daemon.
    fn ask(&mut self) {
        let Some(names) = self.allowed.begin_asking(self.acceptor.now()) else { return };
        let (sender, receiver) = oneshot::channel();
        let ask = || {
            let answers = names.into_iter().map(answer_for).collect();
            // None is waited for if the socket is no longer served.
            let _gone = sender.send(answers);
        };
        if let Err(error) = thread::Builder::new().name("users".into()).spawn(ask) {
            self.acceptor.complain("users", "thread", &error);
        }
        self.answers = Some(receiver);
    }
}

/// The user's number. Looks into the system's user database, which may be far away.
fn answer_for(name: String) -> (String, Result<Option<u32>, Errno>) {
    let found = User::from_name(&name).map(|found| found.map(|user| user.uid.as_raw()));
    (name, found)
}
