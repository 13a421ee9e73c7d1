//! A connection: what one proxy says, and what it is told.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::timeout;
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};
use tracing::{info, warn};

use super::codec::{CHUNK_BYTES, Messages, message_of, next_message, send, send_sessions};
use super::refusal::ProxyRefusal;
use super::{HELLO_WITHIN, MAX_PROXIES};
use crate::clock::Now;
use crate::keys::Timetable;
use crate::log_limiter::LogLimiter;
use crate::metrics::{
    APPLY_ERRORS, PROXIES_REFUSED, PROXY_OWN_KEYS, PROXY_SESSIONS_INSERTED, PROXY_SESSIONS_REPORTED, SESSIONS_DROPPED,
};
use crate::proto::SessionEntry;
use crate::proto::frame::MOST_PLUGIN_BYTES;
use crate::proto::local::{self, from_proxy, to_proxy};
use crate::proxies::allowed_users::Answers;
use crate::proxies::{ProxyInfo, ProxyPlane, Registered};
use crate::reason::DropReason;
use crate::sessions::SessionFault;

/// What is taken from a proxy's introduction: characters of a name or release, which go into reports to the leader, and
/// of a warning, and how many warnings.
const LONGEST_NAME: usize = 64;
const LONGEST_WARNING: usize = 512;
const MOST_WARNINGS: usize = 64;

/// What all connections share.
pub(super) struct PluginConnections {
    plane: Arc<ProxyPlane>,
    /// Strangers can cause most of what goes wrong here.
    log_limiter: Mutex<LogLimiter>,
    /// The last counters of each proxy process, so that a new connection of the same process counts nothing twice.
    last: Mutex<BTreeMap<u32, local::Counters>>,
}

impl PluginConnections {
    pub(super) fn new(plane: Arc<ProxyPlane>) -> Self {
        Self { plane, log_limiter: Mutex::default(), last: Mutex::default() }
    }

    pub(super) fn now(&self) -> Now {
        self.plane.clock.now()
    }

    pub(super) fn refuse(&self, refusal: &ProxyRefusal, who: &dyn Display) {
        PROXIES_REFUSED.add(refusal.reason(), 1);
        self.complain("connection", refusal.reason().as_str(), &format_args!("{who}: {refusal}"));
    }

    pub(super) fn complain(&self, what: &'static str, reason: &'static str, text: &dyn Display) {
        let passed =
            self.log_limiter.lock().unwrap_or_else(PoisonError::into_inner).pass(what, reason, self.plane.clock.now());
        if let Some(held_back) = passed {
            warn!(held_back, "ATS socket: {text}");
        }
    }

    /// Says which of `ats.users` cannot connect, as far as the user database says.
    pub(super) fn tell_of(&self, answers: &Answers<Errno>) {
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

    pub(super) async fn serve(&self, stream: UnixStream, who: &str) {
        if let Err(refusal) = self.talk(stream, who).await {
            self.refuse(&refusal, &who);
        }
    }

    pub(super) async fn talk(&self, stream: UnixStream, who: &str) -> Result<(), ProxyRefusal> {
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
            // A removal or a flush overtook it, which is no fault.
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

    /// Greets, then sends keys, the removals of late and all sessions of the store, and what the farm makes from now on.
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
        let mut refill = takes_sessions.then(|| plane.store.refill(CHUNK_BYTES, plane.clock.now()));
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
                        refill = Some(plane.store.refill(CHUNK_BYTES, plane.clock.now()));
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

/// Whether a proxy is better off with `timetable`. A plugin of release 0.1.0 does not keep the farm's keys beside those that
/// this node minted for itself; it had better not hear of these, which open nowhere else, unless they follow a revocation.
fn helps(timetable: &Timetable, keeps_keys: bool) -> bool {
    keeps_keys || !timetable.is_alone() || timetable.floor() > 0 || timetable.sessions_from() > 0
}
