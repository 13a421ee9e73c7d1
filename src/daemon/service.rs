//! Tells the service manager how the node is, in systemd's notification protocol (sd_notify(3)).
//!
//! [`Service`] decides what is to be said, [`Notifier`] says it. Without `NOTIFY_SOCKET` in the environment nobody is told.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram as StdDatagram};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::net::UnixDatagram;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::warn;

use super::reload::ReloadError;
use crate::clock::{Now, SystemClock, millis};
use crate::node::{Health, NodeView};

/// While a node waits for its ring it asks for this much more time to start,
const MORE_TIME: Duration = Duration::from_secs(30);

/// this often. `start_alone_after` may be an hour, which no fixed `TimeoutStartSec` should have to cover.
const ASK_EVERY_MS: u64 = 10_000;

/// The status text changes at most this often, however fast the node turns.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A service manager that takes no message for this long is not waited for when something else has to go on.
const TAKEN_WITHIN: Duration = Duration::from_millis(200);

/// One thing to say to the service manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ServiceMessage {
    /// The node serves.
    Ready,
    /// It reads its secrets again; [`ServiceMessage::Ready`] follows.
    Reloading,
    /// It ends.
    Stopping,
    /// How it is, for people.
    Status(String),
    /// It is alive.
    Watchdog,
    /// It needs so much more time to start, from now on.
    MoreTime(Duration),
}

impl ServiceMessage {
    /// One datagram.
    fn text(&self) -> io::Result<String> {
        Ok(match self {
            Self::Ready => NotifyState::Ready.to_string(),
            Self::Reloading => format!("{}\n{}", NotifyState::Reloading, NotifyState::monotonic_usec_now()?),
            Self::Stopping => NotifyState::Stopping.to_string(),
            // Names come from other nodes: none of them may add a line, and so a message, of its own.
            Self::Status(text) => NotifyState::Status(&text.replace(char::is_control, "?")).to_string(),
            Self::Watchdog => NotifyState::Watchdog.to_string(),
            Self::MoreTime(time) => {
                NotifyState::ExtendTimeoutUsec(u32::try_from(time.as_micros()).unwrap_or(u32::MAX)).to_string()
            }
        })
    }
}

/// What the service manager has been told, and so what it is to be told next.
#[derive(Debug)]
pub(crate) struct Service {
    /// How often it wants to hear that the node is alive, at most, in milliseconds.
    feed_every: Option<u64>,
    fed_at: Option<u64>,
    asked_at: Option<u64>,
    ready: bool,
    status: String,
    /// Why the last reload was refused, if it was.
    refused: Option<String>,
}

impl Service {
    /// A service that has said nothing yet. With `watchdog` it says at half of that time that it is alive.
    #[must_use]
    pub(crate) fn new(watchdog: Option<Duration>) -> Self {
        let feed_every = watchdog.map(|within| (millis(within) / 2).max(1));
        Self { feed_every, fed_at: None, asked_at: None, ready: false, status: String::new(), refused: None }
    }

    /// What to say of a node that shows `view` and `health` at `now`. The sockets listen already. A node that does not
    /// turn is neither ready nor alive nor given more time.
    pub(crate) fn look(&mut self, view: &NodeView, health: Health, now: Now) -> Vec<ServiceMessage> {
        let mut messages = Vec::new();
        let alive = health.alive_until >= now.mono;
        if alive && health.ring && !self.ready {
            self.ready = true;
            messages.push(ServiceMessage::Ready);
        }
        messages.extend(self.new_status(view));
        let due = |last: Option<u64>, every: u64| last.is_none_or(|at| now.mono.saturating_sub(at) >= every);
        if alive && !self.ready && due(self.asked_at, ASK_EVERY_MS) {
            self.asked_at = Some(now.mono);
            messages.push(ServiceMessage::MoreTime(MORE_TIME));
        }
        if alive && self.feed_every.is_some_and(|every| due(self.fed_at, every)) {
            self.fed_at = Some(now.mono);
            messages.push(ServiceMessage::Watchdog);
        }
        messages
    }

    /// How the node is, if that is not what was said last.
    fn new_status(&mut self, view: &NodeView) -> Option<ServiceMessage> {
        let mut status = status(view);
        if let Some(why) = &self.refused {
            status = format!("RELOAD REFUSED, goes on with the farm secrets of before: {why}; {status}");
        }
        (status != self.status).then(|| {
            self.status.clone_from(&status);
            ServiceMessage::Status(status)
        })
    }

    /// When to look again if the node shows nothing new, given that the last look was at `now`. Monotonic milliseconds.
    #[must_use]
    pub(crate) fn due(&self, now: Now) -> u64 {
        let ask_at = (!self.ready).then(|| self.asked_at.unwrap_or(now.mono) + ASK_EVERY_MS);
        let feed_at = self.feed_every.map(|every| self.fed_at.unwrap_or(now.mono) + every);
        // Not earlier than a moment from now: a node that is not alive is not fed, however long that is due.
        ask_at.into_iter().chain(feed_at).min().map_or(u64::MAX, |at| at.max(now.mono + millis(LOOK_EVERY)))
    }

    /// What was said did not arrive: the next look says all of it again.
    pub(crate) fn not_heard(&mut self) {
        *self = Self { feed_every: self.feed_every, refused: self.refused.take(), ..Self::new(None) };
    }

    /// What to say before the secrets are read again. Nothing before the node is ready: with the reload's end it would be
    /// taken to be ready.
    #[must_use]
    pub(crate) fn reloads(&self) -> Option<ServiceMessage> {
        self.ready.then_some(ServiceMessage::Reloading)
    }

    /// What to say after they were, to a service manager that has heard of it: the verdict first, because the reload is over
    /// with the last message. `refused` says why those of before stay in use, if they do; it is told until a reload is taken.
    pub(crate) fn reloaded(&mut self, refused: Option<String>, view: &NodeView) -> Vec<ServiceMessage> {
        self.refused = refused;
        self.new_status(view).into_iter().chain([ServiceMessage::Ready]).collect()
    }
}

/// How the node is, in a line.
#[must_use]
pub(super) fn status(view: &NodeView) -> String {
    let keys = match view.active_generation() {
        Some(generation) => format!("generation {generation}"),
        None => "no ticket key yet".to_owned(),
    };
    if !view.broker.connected {
        return format!("no broker: {keys}");
    }
    let role = match &view.leader {
        _ if view.leads => "leader".to_owned(),
        Some(leader) => format!("follows {leader}"),
        None => return format!("no leader: {keys}"),
    };
    let members = if view.members == 1 { "member" } else { "members" };
    format!("{role}, {keys}, {} {members}, {} in step", view.members, view.members_in_step)
}

/// Says to the service manager what [`Service`] decides.
#[derive(Debug)]
pub(crate) struct Notifier {
    service: Service,
    /// None: there is no service manager.
    socket: Option<SocketAddr>,
    /// Not sent yet: a send that is cancelled loses nothing.
    waiting: VecDeque<ServiceMessage>,
    complained: bool,
}

impl Notifier {
    /// Whoever the environment names, in `NOTIFY_SOCKET` and `WATCHDOG_USEC`.
    ///
    /// # Errors
    /// If `NOTIFY_SOCKET` is no name of a socket: a service manager that expects messages would wait in vain.
    pub(crate) fn from_environment() -> io::Result<Self> {
        let socket = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty());
        Self::to(socket.as_deref(), sd_notify::watchdog_enabled())
    }

    /// The service manager behind `socket`, if there is one, which expects to hear within each `watchdog` that the node is
    /// alive, if it says so.
    ///
    /// # Errors
    /// If that is no name of a socket.
    pub(crate) fn to(socket: Option<&OsStr>, watchdog: Option<Duration>) -> io::Result<Self> {
        let socket = socket.map(address).transpose()?;
        Ok(Self { service: Service::new(watchdog), socket, waiting: VecDeque::new(), complained: false })
    }

    /// Tells how the node is, once the node shows something new or it is time to. Nothing is lost when it is cancelled.
    pub(crate) async fn follow(
        &mut self,
        health: &mut watch::Receiver<Health>,
        view: &watch::Receiver<NodeView>,
        clock: SystemClock,
    ) {
        if self.socket.is_none() {
            return std::future::pending().await;
        }
        self.send_waiting().await;
        let messages = self.service.look(&view.borrow(), *health.borrow_and_update(), clock.now());
        self.waiting.extend(messages);
        self.send_waiting().await;
        let next = Instant::now() + LOOK_EVERY;
        let due = self.service.due(clock.now());
        tokio::select! {
            // Its sender goes when the node ends.
            Ok(()) = health.changed() => sleep_until(next).await,
            () = sleep_until(Instant::from_std(clock.instant(due.min(clock.now().mono + millis(MORE_TIME))))) => {}
        }
    }

    /// Does `reload`, and says before that it is being done, and afterwards what became of it and that it is over. Hands on
    /// what `reload` returns once that is said, so that a command that waits for it ends after the service manager has heard.
    pub(crate) async fn around_reload<T>(
        &mut self,
        view: &watch::Receiver<NodeView>,
        reload: impl FnOnce() -> Result<T, ReloadError>,
    ) -> Result<T, ReloadError> {
        let before = self.service.reloads();
        let is_heard = before.is_some();
        self.say(before).await;
        let done = reload();
        let refused = done.as_ref().err().map(ReloadError::in_a_line);
        let after = self.service.reloaded(refused, &view.borrow());
        // Without a reload that it knows of it would take the end of one for a node that is ready.
        self.say(after.into_iter().filter(|message| is_heard || *message != ServiceMessage::Ready)).await;
        done
    }

    /// Says that the daemon ends.
    pub(crate) async fn stopping(&mut self) {
        self.say([ServiceMessage::Stopping]).await;
    }

    async fn say(&mut self, messages: impl IntoIterator<Item = ServiceMessage>) {
        if self.socket.is_none() {
            return;
        }
        self.waiting.extend(messages);
        if timeout(TAKEN_WITHIN, self.send_waiting()).await.is_err() {
            self.complain("it takes no message");
        }
    }

    async fn send_waiting(&mut self) {
        let Some(socket) = self.socket.clone() else { return };
        while let Some(message) = self.waiting.front() {
            let sent = match message.text() {
                Ok(text) => send(&socket, &text).await,
                Err(error) => Err(error),
            };
            match sent {
                Ok(()) => {
                    self.waiting.pop_front();
                    self.complained = false;
                }
                Err(error) => {
                    self.waiting.clear();
                    self.service.not_heard();
                    self.complain(&error.to_string());
                }
            }
        }
    }

    fn complain(&mut self, why: &str) {
        if !std::mem::replace(&mut self.complained, true) {
            warn!("the service manager is not told how this node is: {why}");
        }
    }
}

/// A name that begins with `@` is one in the abstract namespace.
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(name),
    }
}

/// A socket for each message, as sd_notify(3) does it: the service manager may have made its own anew. Not
/// `sd_notify::notify`, which holds up the daemon's one thread while the service manager is busy.
async fn send(socket: &SocketAddr, text: &str) -> io::Result<()> {
    let datagrams = StdDatagram::unbound()?;
    datagrams.set_nonblocking(true)?;
    datagrams.connect_addr(socket)?;
    UnixDatagram::from_std(datagrams)?.send(text.as_bytes()).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::KeyState;
    use crate::status::{BrokerStatus, KeyStatus};

    fn at(mono: u64) -> Now {
        Now { wall: 1_700_000_000_000 + mono, mono }
    }

    fn health(ring: bool, alive_until: u64) -> Health {
        Health { ring, alive_until }
    }

    fn view(leads: bool, leader: Option<&str>, generation: Option<u64>) -> NodeView {
        let mut view = NodeView {
            leads,
            leader: leader.map(str::to_owned),
            members: 3,
            members_in_step: 2,
            broker: BrokerStatus { connected: true, uri: "amqp://mq".to_owned() },
            ..NodeView::default()
        };
        let active = |generation| KeyStatus {
            name_prefix: "01020304".to_owned(),
            generation,
            state: KeyState::Active,
            seal_from: 0,
            seal_until: 1,
            open_until: 2,
        };
        view.ring.keys = generation.map(active).into_iter().collect();
        view
    }

    #[test]
    fn it_is_ready_once_it_has_a_ring_and_asks_for_time_until_then() {
        let mut service = Service::new(None);
        let (waits, has) = (view(false, None, None), view(false, Some("b"), Some(7)));
        assert_eq!(
            service.look(&waits, health(false, 5_000), at(0)),
            [ServiceMessage::Status("no leader: no ticket key yet".into()), ServiceMessage::MoreTime(MORE_TIME)]
        );
        assert_eq!(service.due(at(0)), 10_000);
        assert_eq!(service.look(&waits, health(false, 15_000), at(9_999)), []);
        assert_eq!(service.look(&waits, health(false, 15_000), at(10_000)), [ServiceMessage::MoreTime(MORE_TIME)]);
        assert_eq!(
            service.look(&has, health(true, 15_000), at(10_001)),
            [ServiceMessage::Ready, ServiceMessage::Status("follows b, generation 7, 3 members, 2 in step".into())]
        );
        assert_eq!(service.look(&has, health(true, 90_000), at(80_000)), [], "ready is said once");
        assert_eq!(service.due(at(80_000)), u64::MAX, "nothing is due without a watchdog");
    }

    #[test]
    fn a_node_that_does_not_turn_is_neither_ready_nor_alive_nor_given_time() {
        let mut service = Service::new(Some(Duration::from_secs(30)));
        let has = view(true, Some("a"), Some(7));
        let said = service.look(&has, health(true, 999), at(1_000));
        assert_eq!(said, [ServiceMessage::Status("leader, generation 7, 3 members, 2 in step".into())]);
        assert_eq!(service.look(&has, health(false, 999), at(60_000)), []);
        assert_eq!(
            service.look(&has, health(true, 60_001), at(60_001)),
            [ServiceMessage::Ready, ServiceMessage::Watchdog]
        );
    }

    #[test]
    fn the_watchdog_is_fed_at_half_its_time_while_the_node_turns() {
        let mut service = Service::new(Some(Duration::from_secs(4)));
        let has = view(true, Some("a"), Some(7));
        let mut fed = Vec::new();
        for mono in (0..=20_000).step_by(100) {
            // The last turn was at 10 s, and is believed for 5 s.
            if service.look(&has, health(true, mono.min(10_000) + 5_000), at(mono)).contains(&ServiceMessage::Watchdog)
            {
                fed.push(mono);
            }
        }
        assert_eq!(fed, [0, 2_000, 4_000, 6_000, 8_000, 10_000, 12_000, 14_000]);
        assert_eq!(service.due(at(14_000)), 16_000);
        assert_eq!(service.due(at(20_000)), 20_200, "overdue, and looked at again all the same");
    }

    #[test]
    fn what_was_not_heard_is_said_again() {
        let mut service = Service::new(Some(Duration::from_secs(30)));
        let has = view(true, Some("a"), Some(7));
        let said = service.look(&has, health(true, 9), at(1));
        assert_eq!(said.len(), 3, "{said:?}");
        assert_eq!(service.look(&has, health(true, 9), at(2)), []);
        service.not_heard();
        assert_eq!(service.look(&has, health(true, 9), at(3)), said);
    }

    #[test]
    fn what_became_of_a_reload_is_said_before_its_end_and_until_one_is_taken() {
        let (mut service, view) = (Service::new(None), view(false, Some("a"), Some(9)));
        let plain = ServiceMessage::Status(status(&view));
        assert_eq!(service.look(&view, health(true, 1_000), at(0)), [ServiceMessage::Ready, plain.clone()]);
        let refused = ServiceMessage::Status(format!(
            "RELOAD REFUSED, goes on with the farm secrets of before: mode 0644; {}",
            status(&view)
        ));
        assert_eq!(service.reloaded(Some("mode 0644".into()), &view), [refused.clone(), ServiceMessage::Ready]);
        assert_eq!(service.look(&view, health(true, 1_000), at(1)), [], "it was said");
        // Also to a service manager that has forgotten everything.
        service.not_heard();
        assert_eq!(service.look(&view, health(true, 1_000), at(2)), [ServiceMessage::Ready, refused]);
        assert_eq!(service.reloaded(None, &view), [plain, ServiceMessage::Ready]);
        assert_eq!(service.reloaded(None, &view), [ServiceMessage::Ready]);
    }

    #[test]
    fn a_reload_is_announced_by_a_node_that_is_ready_alone() {
        let mut service = Service::new(None);
        assert_eq!(service.reloads(), None);
        service.look(&view(true, None, Some(1)), health(true, 1), at(0));
        assert_eq!(service.reloads(), Some(ServiceMessage::Reloading));
        let text = ServiceMessage::Reloading.text().unwrap();
        let time: u64 = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().parse().unwrap();
        assert!(time > 0);
    }

    #[test]
    fn the_status_says_what_an_operator_asks_first() {
        assert_eq!(status(&NodeView::default()), "no broker: no ticket key yet");
        let mut alone = view(false, None, Some(9));
        assert_eq!(status(&alone), "no leader: generation 9");
        alone.broker.connected = false;
        assert_eq!(status(&alone), "no broker: generation 9");
        let one = NodeView { members: 1, members_in_step: 1, ..view(true, Some("a"), Some(9)) };
        assert_eq!(status(&one), "leader, generation 9, 1 member, 1 in step");
    }

    #[test]
    fn a_name_from_the_farm_adds_no_message_of_its_own() {
        let text = ServiceMessage::Status("follows b\nMAINPID=1\0".into()).text().unwrap();
        assert_eq!(text, "STATUS=follows b?MAINPID=1?");
    }

    #[test]
    fn the_other_messages_are_as_sd_notify_has_them() {
        for (message, text) in [
            (ServiceMessage::Ready, "READY=1"),
            (ServiceMessage::Stopping, "STOPPING=1"),
            (ServiceMessage::Watchdog, "WATCHDOG=1"),
            (ServiceMessage::MoreTime(Duration::from_secs(30)), "EXTEND_TIMEOUT_USEC=30000000"),
        ] {
            assert_eq!(message.text().unwrap(), text);
        }
    }
}
