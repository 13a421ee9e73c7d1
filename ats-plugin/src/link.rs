//! The connection to the daemon: made again for ever, one thread that reads and one that writes.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::api::{Level, say};
use crate::daemon_socket;
use crate::farm_keys::FarmKeys;
use crate::from_daemon::FromDaemon;
use crate::incoming::{self, Incoming};
use crate::log_limiter::LogLimiter;
use crate::plugin::{self, Plugin};
use crate::proto::{self, from_proxy};
use crate::sender::frame;
use crate::session::SessionId;
use crate::settings::Shown;

const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Talks to the daemon until ATS stops.
pub(crate) fn run(plugin: &'static Plugin) {
    plugin.api.thread_init();
    let mut backoff = BACKOFF.0;
    let path = plugin.socket.display();
    let mut connects = LogLimiter::default();
    let mut keys = FarmKeys::default();
    let mut absences = LogLimiter::default();
    let mut losses = LogLimiter::default();
    while !plugin.stops() {
        match daemon_socket::connect(&plugin.socket) {
            Ok(stream) => {
                let talked = talk(plugin, stream, &mut connects, &mut keys);
                if plugin.connected.swap(false, Ordering::Relaxed) {
                    backoff = BACKOFF.0;
                }
                if let Err(error) = talked
                    && !plugin.stops()
                    && let Some(times) = losses.pass(Instant::now())
                {
                    plugin.say(Level::Warning, &format!("lost the daemon at {path}: {error}; ATS serves on{times}"));
                }
            }
            Err(error) => {
                if let Some(times) = absences.pass(Instant::now()) {
                    plugin.say(Level::Warning, &format!("no daemon at {path}: {error}; ATS serves on{times}"));
                }
            }
        }
        thread::sleep(backoff);
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}

/// One connection, until it fails. Always ends in an error that says why.
fn talk(
    plugin: &'static Plugin,
    mut stream: UnixStream,
    connects: &mut LogLimiter,
    keys: &mut FarmKeys,
) -> io::Result<()> {
    // Here and not where it is sent: this thread alone may call ATS, and it is one for all connections.
    let Some((hello, told)) = hello(plugin)? else { return Ok(()) };
    let over = AtomicBool::new(false);
    let to_daemon = stream.try_clone()?;
    let ends = Ends { over: &over, stream: stream.try_clone()?, plugin };
    thread::scope(|scope| {
        let writer = thread::Builder::new().name("[RESUMED_OUT]".into()).spawn_scoped(scope, || {
            let goes_on = || !over.load(Ordering::Acquire) && !plugin.stops();
            let result = write_all(plugin, &to_daemon, (&hello, told), goes_on);
            plugin.outgoing.close();
            // Whichever side fails, both end.
            let _ = to_daemon.shutdown(Shutdown::Both);
            result
        })?;
        let ends = ends;
        let read = read_all(plugin, &mut stream, connects, keys);
        drop(ends);
        let written = writer.join().unwrap_or_else(|_| Err(io::Error::other("the writing thread panicked")));
        match (read, written) {
            // Nobody to write to is no news beside nobody to read from.
            (Err(read), Err(write)) if ended(&read) && !ended(&write) => Err(write),
            (Err(read), _) if ended(&read) => Err(io::Error::new(read.kind(), "it closed the connection")),
            (read, _) => read,
        }
    })
}

/// Ends the writing thread when the reading one is through, also by a panic, which would otherwise wait for the writer.
struct Ends<'a> {
    over: &'a AtomicBool,
    stream: UnixStream,
    plugin: &'static Plugin,
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        let _ = self.stream.shutdown(Shutdown::Both);
        self.plugin.outgoing.wake();
    }
}

/// Whether this only says that the other end has gone.
fn ended(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// The plugin's introduction, and the number of the settings in it; none once ATS is stopping.
fn hello(plugin: &Plugin) -> io::Result<Option<(Vec<u8>, u64)>> {
    let Some(_running) = plugin.shutdown.enter() else { return Ok(None) };
    let (shown, number) = plugin.shown();
    let hello = proto::Hello {
        kind: "ats".to_owned(),
        proxy_version: plugin.api.version().to_owned(),
        plugin_version: env!("CARGO_PKG_VERSION").to_owned(),
        process_id: std::process::id(),
        certificate_digest: digest(&shown),
        warnings: shown.warnings,
        sessions: plugin.api.has_sessions(),
        keeps_keys: true,
    };
    Ok(Some((frame(from_proxy::Kind::Hello(hello))?, number)))
}

fn digest(shown: &Shown) -> Vec<u8> {
    shown.certificate_digest.map(Vec::from).unwrap_or_default()
}

/// What the daemon is told now and then: the counters, and settings of another number than `told`.
fn news(plugin: &Plugin, told: &mut u64) -> Vec<from_proxy::Kind> {
    let mut news = vec![from_proxy::Kind::Counters(plugin.count())];
    let (shown, number) = plugin.shown();
    if number != *told {
        *told = number;
        news.push(from_proxy::Kind::Settings(proto::Settings {
            certificate_digest: digest(&shown),
            warnings: shown.warnings,
        }));
    }
    news
}

/// Introduces the plugin, opens the hook's way, and sends what waits. On a thread that ends with its connection: it must call nothing
/// of ATS, which would keep a megabyte for each such thread, and nothing of OpenSSL.
fn write_all(
    plugin: &'static Plugin,
    mut stream: &UnixStream,
    (hello, mut told): (&[u8], u64),
    goes_on: impl Fn() -> bool,
) -> io::Result<()> {
    stream.write_all(hello)?;
    plugin.outgoing.open(stream.try_clone()?);
    plugin.outgoing.send_all(goes_on, || news(plugin, &mut told))
}

fn read_all(
    plugin: &'static Plugin,
    stream: &mut UnixStream,
    connects: &mut LogLimiter,
    keys: &mut FarmKeys,
) -> io::Result<()> {
    let mut incoming = Incoming::default();
    while incoming.next(stream, |message| hear(plugin, message, connects, keys))?? {}
    Ok(())
}

/// Does what the daemon says. Returns whether to go on.
fn hear(
    plugin: &'static Plugin,
    message: Result<FromDaemon, String>,
    connects: &mut LogLimiter,
    keys: &mut FarmKeys,
) -> io::Result<bool> {
    let message = message.map_err(|what| {
        plugin.counters.apply_errors.fetch_add(1, Ordering::Relaxed);
        io::Error::new(io::ErrorKind::InvalidData, format!("the daemon sent {what}"))
    })?;
    // ATS is stopping: from here on nothing touches it or OpenSSL.
    let Some(_running) = plugin.shutdown.enter() else { return Ok(false) };
    match message {
        FromDaemon::Welcome(welcome) => {
            plugin.welcome(&welcome);
            keys.greeted(&welcome.farm);
            if let Some(times) = connects.pass(Instant::now()) {
                let proto::Welcome { node, farm, version, .. } = welcome;
                say(Level::Note, &format!("connected to node {node} of farm {farm} (resumed {version}){times}"));
            }
        }
        FromDaemon::Timetable(timetable) => {
            let kept_before = keys.kept();
            let timetable = keys.hear(&timetable, plugin::wall_ms());
            if keys.kept() > 0 && kept_before == 0 {
                say(Level::Note, &format!("the daemon came without its ring: {} keys from before stay", keys.kept()));
            }
            plugin.flush_sessions(timetable.sessions_from());
            plugin.mailbox.bring(timetable);
        }
        FromDaemon::Sessions(entries) => {
            let forget = |id: &SessionId| plugin.silently(|| plugin.api.remove_session(id));
            let refused = incoming::keep(&plugin.replica, entries, plugin::wall_ms() / 1000, forget);
            plugin.counters.too_large_for_proxy.fetch_add(refused.too_large, Ordering::Relaxed);
            plugin.counters.apply_errors.fetch_add(refused.faulty, Ordering::Relaxed);
        }
        FromDaemon::Unknown => {}
    }
    Ok(true)
}
