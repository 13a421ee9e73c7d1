//! The Unix socket on which Traffic Server's plugin meets its node.
//!
//! One task a connection reads, one writes. The writer of one proxy never waits for another, and a proxy that stops
//! reading loses its connection. Messages travel in frames: `proto::frame`.
//!
//! The socket's mode is 0666, so every process of the host can connect. Who it is says the kernel (`SO_PEERCRED`), and a
//! stranger is turned away before it is counted or a task begins: it costs one accept, one getsockopt and one close. After a
//! number of them the daemon takes no connection for a moment, and they wait in a short queue. Mode 0660 with the
//! proxy's group would keep them from connecting, but a daemon that is not root may give its socket only to a group that it is
//! in, and a member of the proxy's group can read the proxy's private keys on many hosts. Also, refusals would no
//! longer be counted and logged, which is how a user that is missing in `ats.users` is found.

mod settings;

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use futures_util::StreamExt;
use nix::errno::Errno;
use nix::sys::socket::Backlog;
use nix::unistd::{User, geteuid};
use prost::Message;
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use zeroize::{Zeroize, Zeroizing};

use super::allowed_users::{AllowedUsers, Answers};
use super::{ProxyInfo, ProxyPlane, Registered};
use crate::clock::Now;
use crate::keys::Timetable;
use crate::log_limiter::LogLimiter;
use crate::metrics::{
    APPLY_ERRORS, PROXIES_REFUSED, PROXY_OWN_KEYS, PROXY_SESSIONS_INSERTED, PROXY_SESSIONS_REPORTED, SESSIONS_DROPPED,
};
use crate::proto::SessionEntry;
use crate::proto::frame::{self, MOST_PLUGIN_BYTES};
use crate::proto::limits::{Undecodable, decode_within};
use crate::proto::local::{self, FROM_PROXY, FromProxy, ToProxy, from_proxy, to_proxy};
use crate::reason::{DropReason, ProxyReason};
use crate::sessions::SessionFault;
use crate::token_bucket::TokenBucket;
use crate::unix_socket::{FreshSocket, SocketError, SocketOptions, bind_fresh};
pub use settings::AtsSettings;

/// Any local user may connect: the proxy runs as a user of its own, and shares no group with the daemon. Who it is says the
/// kernel, and [`AllowedUsers`] decides before anything else is done.
const SOCKET_MODE: u32 = 0o666;
/// How many proxies may be connected at once.
pub const MAX_PROXIES: usize = 64;
/// How long a new connection may take to introduce itself.
pub(crate) const HELLO_WITHIN: Duration = Duration::from_secs(5);
/// How long a proxy may leave a message unread before it loses its connection.
pub const READS_WITHIN: Duration = Duration::from_secs(10);

/// What one message of sessions carries at most, in bytes of payload.
const CHUNK_BYTES: usize = 64 * 1024;
/// How many connections wait to be taken: the proxies of a host at once. Behind strangers each waits as long as these take.
const BACKLOG: i32 = 64;
/// How many connections are refused in a row, and how often one more: a hundredth of a core or so.
const REFUSALS: (u32, Duration) = (32, Duration::from_millis(1));
/// How long the first connection waits for what the user database says.
const USERS_WITHIN: Duration = Duration::from_secs(5);
/// After an `accept` that failed for want of file descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// What is taken from a proxy's introduction: characters of a name or release, which go into reports to the leader, and
/// of a warning, and how many warnings.
const LONGEST_NAME: usize = 64;
const LONGEST_WARNING: usize = 512;
const MOST_WARNINGS: usize = 64;

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
        let acceptor = Arc::new(Acceptor { plane, log_limiter: Mutex::default(), last: Mutex::default() });
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
    acceptor: Arc<Acceptor>,
}

impl Users {
    fn new(names: Vec<String>, changed: Arc<Notify>, acceptor: Arc<Acceptor>) -> Self {
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

/// Talks to one proxy over `stream` until either side ends it. Which user that is has been checked, or does not matter.
///
/// # Errors
/// The counted reason for which this side ended it.
pub async fn converse(stream: UnixStream, plane: Arc<ProxyPlane>) -> Result<(), ProxyReason> {
    let acceptor = Acceptor { plane, log_limiter: Mutex::default(), last: Mutex::default() };
    acceptor.talk(stream, "a proxy").await.map_err(|refusal| refusal.reason())
}

/// Why a connection is refused or ended: one counted reason each.
#[derive(Debug, Error)]
enum ProxyRefusal {
    #[error("more than {MAX_PROXIES} connections")]
    TooMany,
    #[error("user {uid} is neither root, nor the daemon's own, nor one of ats.users")]
    Peer { uid: u32 },
    #[error("no introduction within {HELLO_WITHIN:?}")]
    Silent,
    #[error("the first message is no introduction")]
    NoHello,
    #[error("a second introduction")]
    SecondHello,
    #[error("a message of more than {MOST_PLUGIN_BYTES} bytes")]
    TooLarge,
    #[error("the connection ended in the middle of a message")]
    Truncated,
    #[error("a message that is none: {0}")]
    Garbage(Undecodable),
    #[error("it left a message unread for {READS_WITHIN:?}")]
    StoppedReading,
    #[error("{0}")]
    Io(io::Error),
}

impl ProxyRefusal {
    /// The counted reason.
    fn reason(&self) -> ProxyReason {
        match self {
            Self::TooMany => ProxyReason::TooMany,
            Self::Peer { .. } => ProxyReason::Peer,
            Self::Silent => ProxyReason::Silent,
            Self::NoHello | Self::SecondHello => ProxyReason::NoHello,
            Self::TooLarge => ProxyReason::TooLarge,
            Self::Truncated => ProxyReason::Truncated,
            Self::Garbage(_) => ProxyReason::Garbage,
            Self::StoppedReading => ProxyReason::StoppedReading,
            Self::Io(_) => ProxyReason::Io,
        }
    }
}

/// What all connections share.
struct Acceptor {
    plane: Arc<ProxyPlane>,
    /// Strangers can cause most of what goes wrong here.
    log_limiter: Mutex<LogLimiter>,
    /// The last counters of each proxy process, so that a new connection of the same process counts nothing twice.
    last: Mutex<BTreeMap<u32, local::Counters>>,
}

/// The messages of one proxy.
type Messages = FramedRead<OwnedReadHalf, LengthDelimitedCodec>;

impl Acceptor {
    fn now(&self) -> Now {
        self.plane.clock.now()
    }

    fn refuse(&self, refusal: &ProxyRefusal, who: &dyn Display) {
        PROXIES_REFUSED.add(refusal.reason(), 1);
        self.complain("connection", refusal.reason().as_str(), &format_args!("{who}: {refusal}"));
    }

    fn complain(&self, what: &'static str, reason: &'static str, text: &dyn Display) {
        let passed =
            self.log_limiter.lock().unwrap_or_else(PoisonError::into_inner).pass(what, reason, self.plane.clock.now());
        if let Some(held_back) = passed {
            warn!(held_back, "ATS socket: {text}");
        }
    }

    /// Says which of `ats.users` cannot connect, as far as the user database says.
    fn tell_of(&self, answers: &Answers<Errno>) {
        let unknown = answers.iter().filter(|(_, answer)| *answer == Ok(None)).map(|(user, _)| user.as_str());
        let unknown: Vec<&str> = unknown.collect();
        if !unknown.is_empty() {
            let users = unknown.join(", ");
            let text = "who do not exist here, yet: looked up again when another user connects, and on a reload";
            self.complain("users", "unknown", &format_args!("ats.users names {users}, {text}"));
        }
        for (user, answer) in answers {
            if let Err(error) = answer {
                self.complain("users", "no_answer", &format_args!("cannot look up {user} of ats.users: {error}"));
            }
        }
    }

    async fn serve(&self, stream: UnixStream, who: &str) {
        if let Err(refusal) = self.talk(stream, who).await {
            self.refuse(&refusal, &who);
        }
    }

    async fn talk(&self, stream: UnixStream, who: &str) -> Result<(), ProxyRefusal> {
        let (reader, writer) = stream.into_split();
        let codec = LengthDelimitedCodec::builder().max_frame_length(MOST_PLUGIN_BYTES).new_codec();
        let mut messages = FramedRead::new(reader, codec);
        let first = timeout(HELLO_WITHIN, next_message(&mut messages)).await.map_err(|_| ProxyRefusal::Silent)??;
        // It looked whether anybody is here, as a starting daemon does.
        let Some(first) = first else { return Ok(()) };
        let Some(from_proxy::Kind::Hello(hello)) = first.kind else { return Err(ProxyRefusal::NoHello) };
        let keeps_keys = hello.keeps_keys;
        let info = introduced(hello);
        let (pid, sessions) = (info.process_id, info.sessions);
        info!(kind = info.kind, version = info.version, plugin = info.plugin_version, pid, "proxy connected: {who}");
        log_warnings(pid, &info.warnings);
        let registered = self.plane.registry.register(info);
        let ended = tokio::select! {
            ended = self.listen(&mut messages, pid, who, &registered) => ended,
            ended = self.speak(writer, sessions, keeps_keys) => ended,
        };
        drop(registered);
        info!(pid, "proxy disconnected");
        ended
    }

    async fn listen(
        &self,
        messages: &mut Messages,
        pid: u32,
        who: &str,
        registered: &Registered,
    ) -> Result<(), ProxyRefusal> {
        while let Some(message) = next_message(messages).await? {
            match message.kind {
                Some(from_proxy::Kind::Hello(_)) => return Err(ProxyRefusal::SecondHello),
                Some(from_proxy::Kind::Sessions(sessions)) => self.take(sessions.entries, who),
                Some(from_proxy::Kind::Counters(counters)) => self.count(pid, counters),
                Some(from_proxy::Kind::Settings(local::Settings { certificate_digest, warnings })) => {
                    let warnings = cut_warnings(warnings);
                    info!(pid, "proxy: it has new settings");
                    log_warnings(pid, &warnings);
                    registered.update(cut_digest(certificate_digest), warnings);
                }
                // A kind that a later release of the plugin knows.
                None => {}
            }
        }
        Ok(())
    }

    /// Sessions and removals at the proxy, in order.
    fn take(&self, entries: Vec<SessionEntry>, who: &str) {
        let plane = &self.plane;
        if !plane.welcome.replicate {
            return;
        }
        let reported = plane.store.local(entries, plane.clock.now());
        crate::metrics::sessions::reported(&reported, &plane.store);
        for fault in reported.faults {
            // A removal or a flush overtook it: nobody's fault.
            if !matches!(fault, SessionFault::Tombstone | SessionFault::Flushed) {
                self.complain("session", fault.reason().as_str(), &format_args!("{who} reported {fault}"));
            }
        }
        if reported.news.is_empty() {
            return;
        }
        let full = plane.outbox.push_all(&reported.news);
        if full > 0 {
            SESSIONS_DROPPED.add(DropReason::OutboxFull, full as u64);
        }
        // Another proxy beside this node hears of it without the farm. Its own copy does this one no harm.
        if plane.registry.len() > 1 {
            // No receiver is no fault: no other proxy takes sessions.
            let _ = plane.from_farm.send(Arc::new(reported.news.into_iter().map(SessionEntry::for_proxy).collect()));
        }
    }

    /// The plugin counts from its own start; metrics go on from where they are.
    fn count(&self, pid: u32, now: local::Counters) {
        let before = {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.len() >= 2 * MAX_PROXIES && !last.contains_key(&pid) {
                last.pop_first();
            }
            last.insert(pid, now).unwrap_or_default()
        };
        // A number that fell is a new process with an old id.
        let since = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
        PROXY_SESSIONS_REPORTED.add(since(now.queued, before.queued));
        PROXY_SESSIONS_INSERTED.add(since(now.inserted, before.inserted));
        PROXY_OWN_KEYS.add(since(now.own_keys, before.own_keys));
        APPLY_ERRORS.add(since(now.apply_errors, before.apply_errors));
        SESSIONS_DROPPED.add(DropReason::PluginQueueFull, since(now.dropped_full, before.dropped_full));
        SESSIONS_DROPPED.add(DropReason::TooLargeForProxy, since(now.too_large_for_proxy, before.too_large_for_proxy));
    }

    /// Greets, then sends keys, all sessions of the store, and what the farm makes from now on.
    async fn speak(&self, mut writer: OwnedWriteHalf, sessions: bool, keeps_keys: bool) -> Result<(), ProxyRefusal> {
        let plane = &self.plane;
        let mut timetable = plane.timetable.clone();
        // Before the first look into the store: what the farm makes meanwhile is sent after it.
        let mut live = plane.from_farm.subscribe();
        send(&mut writer, to_proxy::Kind::Welcome(plane.welcome.clone())).await?;
        let first = timetable.borrow_and_update().clone();
        // A node that knows no ring yet has nothing to say of keys: the proxy may have some from an earlier daemon.
        if !first.says_nothing() && helps(&first, keeps_keys) {
            send(&mut writer, to_proxy::Kind::Timetable(message_of(&first))).await?;
        }
        let takes_sessions = sessions && plane.welcome.replicate;
        let mut refill = takes_sessions.then(|| plane.store.refill(CHUNK_BYTES));
        loop {
            // Keys first, then what is new; what is old fills the rest of the time. A removal overtakes nothing: a chunk
            // is read from the store and sent in one step.
            tokio::select! {
                biased;
                changed = timetable.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let timetable = timetable.borrow_and_update().clone();
                    if helps(&timetable, keeps_keys) {
                        send(&mut writer, to_proxy::Kind::Timetable(message_of(&timetable))).await?;
                    }
                }
                news = live.recv(), if takes_sessions => match news {
                    Ok(news) => send_sessions(&mut writer, &news).await?,
                    Err(RecvError::Lagged(batches)) => {
                        SESSIONS_DROPPED.add(DropReason::ProxySlow, batches);
                        self.complain("proxy", "slow", &format_args!("a proxy fell {batches} batches behind; refilling it"));
                        refill = Some(plane.store.refill(CHUNK_BYTES));
                    }
                    Err(RecvError::Closed) => return Ok(()),
                },
                () = std::future::ready(()), if refill.is_some() => {
                    match refill.as_mut().and_then(|refill| refill.next_chunk(plane.clock.now())) {
                        Some(chunk) => send_sessions(&mut writer, &chunk).await?,
                        None => refill = None,
                    }
                }
            }
        }
    }
}

fn log_warnings(pid: u32, warnings: &[String]) {
    for warning in warnings {
        warn!(pid, "proxy: {warning}");
    }
}

fn cut(text: &str, to: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(to).collect()
}

fn cut_warnings(warnings: Vec<String>) -> Vec<String> {
    warnings.into_iter().take(MOST_WARNINGS).map(|text| cut(&text, LONGEST_WARNING)).collect()
}

fn cut_digest(digest: Vec<u8>) -> Vec<u8> {
    if digest.len() == 8 { digest } else { Vec::new() }
}

/// Cuts down what a proxy says of itself.
fn introduced(hello: local::Hello) -> ProxyInfo {
    let short = |text: String| cut(&text, LONGEST_NAME);
    ProxyInfo {
        kind: short(hello.kind),
        version: short(hello.proxy_version),
        plugin_version: short(hello.plugin_version),
        process_id: hello.process_id,
        certificate_digest: cut_digest(hello.certificate_digest),
        warnings: cut_warnings(hello.warnings),
        sessions: hello.sessions,
    }
}

/// The next message; none at an orderly end.
async fn next_message(messages: &mut Messages) -> Result<Option<FromProxy>, ProxyRefusal> {
    let Some(frame) = messages.next().await else { return Ok(None) };
    let frame = frame.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => ProxyRefusal::TooLarge,
        // The codec's word for an end in the middle of a message.
        io::ErrorKind::Other | io::ErrorKind::UnexpectedEof => ProxyRefusal::Truncated,
        _ => ProxyRefusal::Io(error),
    })?;
    decode_within(frame.freeze(), &FROM_PROXY).map(Some).map_err(ProxyRefusal::Garbage)
}

/// Whether a proxy is better off with `timetable`. A plugin of release 0.1.0 does not keep the farm's keys beside those that
/// this node minted for itself; it had better not hear of these, which open nowhere else, unless they follow a revocation.
fn helps(timetable: &Timetable, keeps_keys: bool) -> bool {
    keeps_keys || !timetable.is_alone() || timetable.floor() > 0 || timetable.sessions_from() > 0
}

/// `timetable` as the plugin reads it.
fn message_of(timetable: &Timetable) -> local::Timetable {
    let key = |entry: &crate::keys::Entry| local::TimetableKey {
        name: entry.name.to_vec(),
        hmac: entry.hmac.to_vec(),
        aes: entry.aes.to_vec(),
        seal_from: entry.seal_from,
        settled_at: entry.settled_at,
        seal_until: entry.seal_until,
        open_until: entry.open_until,
    };
    local::Timetable {
        keys: timetable.entries().iter().map(key).collect(),
        floor: timetable.floor(),
        sessions_from: timetable.sessions_from(),
        alone: timetable.is_alone(),
    }
}

/// Sends sessions in messages of about [`CHUNK_BYTES`].
async fn send_sessions(writer: &mut OwnedWriteHalf, sessions: &[SessionEntry]) -> Result<(), ProxyRefusal> {
    let mut rest = sessions;
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = |session: &&SessionEntry| {
            bytes += session.encoded_len() + 8;
            bytes <= CHUNK_BYTES
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (chunk, after) = rest.split_at(count);
        send(writer, to_proxy::Kind::Sessions(local::Sessions { entries: chunk.to_vec() })).await?;
        rest = after;
    }
    Ok(())
}

async fn send(writer: &mut OwnedWriteHalf, kind: to_proxy::Kind) -> Result<(), ProxyRefusal> {
    let mut message = ToProxy { kind: Some(kind) };
    let frame = Zeroizing::new(frame::encode(&message, MOST_PLUGIN_BYTES).map_err(ProxyRefusal::Io)?);
    if let Some(to_proxy::Kind::Timetable(timetable)) = &mut message.kind {
        for key in &mut timetable.keys {
            key.hmac.zeroize();
            key.aes.zeroize();
        }
    }
    match timeout(READS_WITHIN, writer.write_all(&frame)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Ok(Err(error)) => Err(ProxyRefusal::Io(error)),
        Err(_) => Err(ProxyRefusal::StoppedReading),
    }
}
