//! The connection to the daemon: made again for ever, one thread that reads and one that writes.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use zeroize::Zeroize;

use crate::api::{Level, say};
use crate::from_daemon::{self, FromDaemon};
use crate::lane::{MAX_FRAME_BYTES, frame};
use crate::pace::Next;
use crate::plugin::{self, Plugin};
use crate::proto::{self, Session, from_proxy};
use crate::quiet::Quiet;
use crate::session::{LARGEST_FOR_ATS, SessionId, expiry};
use crate::settings;

/// What one message carries under load.
const BATCH_BYTES: usize = 64 * 1024;
const COUNT_EVERY: Duration = Duration::from_secs(2);
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Talks to the daemon until ATS stops.
pub fn run(plugin: &'static Plugin) {
    plugin.api.thread_init();
    let mut backoff = BACKOFF.0;
    let path = plugin.socket.display();
    let mut connects = Quiet::default();
    let mut absences = Quiet::default();
    let mut losses = Quiet::default();
    while !plugin.stops() {
        match UnixStream::connect(&plugin.socket) {
            Ok(stream) => {
                let talked = talk(plugin, stream, &mut connects);
                if plugin.connected.swap(false, Ordering::Relaxed) {
                    backoff = BACKOFF.0;
                }
                if let Err(error) = talked
                    && !plugin.stops()
                    && let Some(times) = losses.pass(Instant::now())
                {
                    say(Level::Warning, &format!("lost the daemon at {path}: {error}; ATS serves on{times}"));
                }
            }
            Err(error) => {
                if let Some(times) = absences.pass(Instant::now()) {
                    say(Level::Warning, &format!("no daemon at {path}: {error}; ATS serves on{times}"));
                }
            }
        }
        thread::sleep(backoff);
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}

/// One connection, until it fails. Always ends in an error that says why.
fn talk(plugin: &'static Plugin, mut stream: UnixStream, connects: &mut Quiet) -> io::Result<()> {
    let over = AtomicBool::new(false);
    let to_daemon = stream.try_clone()?;
    thread::scope(|scope| {
        let writer = thread::Builder::new().name("[RESUMED_OUT]".into()).spawn_scoped(scope, || {
            let result = hello(plugin, &to_daemon).and_then(|()| write_all(plugin, &over));
            plugin.lane.close();
            // Whichever side fails, both end.
            let _ = to_daemon.shutdown(Shutdown::Both);
            result
        })?;
        let read = read_all(plugin, &mut stream, connects);
        over.store(true, Ordering::Release);
        let _ = stream.shutdown(Shutdown::Both);
        plugin.queue.wake();
        let written = writer.join().unwrap_or_else(|_| Err(io::Error::other("the writing thread panicked")));
        match (read, written) {
            // Nobody to write to is no news beside nobody to read from.
            (Err(read), Err(write)) if ended(&read) && !ended(&write) => Err(write),
            (Err(read), _) if ended(&read) => Err(io::Error::new(read.kind(), "it closed the connection")),
            (read, _) => read,
        }
    })
}

/// Whether this only says that the other end has gone.
fn ended(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// Introduces the plugin, and opens the lane to the hook.
fn hello(plugin: &Plugin, mut stream: &UnixStream) -> io::Result<()> {
    let multicert = settings::multicert(&plugin.api, plugin.api.config_dir().as_deref());
    let digest = multicert.map(|text| settings::certificate_digest(&plugin.api, &text).to_vec());
    let hello = proto::Hello {
        kind: "ats".to_owned(),
        proxy_version: plugin.api.version().to_owned(),
        plugin_version: env!("CARGO_PKG_VERSION").to_owned(),
        process_id: std::process::id(),
        certificate_digest: digest.unwrap_or_default(),
        warnings: plugin.warnings.clone(),
        sessions: plugin.api.has_sessions(),
    };
    stream.write_all(&frame(from_proxy::Kind::Hello(hello))?)?;
    plugin.lane.open(stream.try_clone()?);
    Ok(())
}

/// Sends what the hook queues, and the counters now and then.
fn write_all(plugin: &Plugin, over: &AtomicBool) -> io::Result<()> {
    plugin.api.thread_init();
    let mut counted: Option<Instant> = None;
    let mut more = false;
    while !over.load(Ordering::Acquire) && !plugin.stops() {
        match plugin.pace.next(more) {
            Next::Send => {}
            Next::Collect(time) => thread::sleep(time),
            Next::Wait => {
                plugin.queue.wait(COUNT_EVERY);
            }
        }
        let mut lane = plugin.lane.lock();
        let Some(sender) = lane.as_mut() else { return Ok(()) };
        sender.finish()?;
        let entries = plugin.queue.take(BATCH_BYTES);
        more = !plugin.queue.is_empty();
        plugin.pace.collected(entries.len() as u64, Instant::now());
        if !entries.is_empty() {
            let count = entries.len() as u64;
            let kept = entries.clone();
            if let Err(error) = sender.send(from_proxy::Kind::Sessions(proto::Sessions { entries })) {
                let lost = plugin.queue.put_back(kept);
                plugin.counters.dropped_full.fetch_add(lost, Ordering::Relaxed);
                return Err(error);
            }
            plugin.counters.queued.fetch_add(count, Ordering::Relaxed);
        }
        if counted.is_none_or(|at| at.elapsed() >= COUNT_EVERY) {
            sender.send(from_proxy::Kind::Counters(plugin.count()))?;
            counted = Some(Instant::now());
        }
    }
    Ok(())
}

fn read_all(plugin: &'static Plugin, stream: &mut UnixStream, connects: &mut Quiet) -> io::Result<()> {
    let mut frame = BytesMut::new();
    loop {
        let mut length = [0; 4];
        wait_for_news(stream)?;
        stream.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        if length > MAX_FRAME_BYTES {
            return Err(refused(plugin, format!("a message of {length} bytes: at most {MAX_FRAME_BYTES} are allowed")));
        }
        frame.resize(length, 0);
        stream.read_exact(&mut frame)?;
        let bytes = frame.freeze();
        let message = match from_daemon::decode(bytes.clone()) {
            Ok(message) => message,
            Err(error) => {
                wiped(bytes);
                return Err(refused(plugin, error));
            }
        };
        // ATS is stopping: from here on nothing touches it or OpenSSL.
        let Some(_running) = plugin.gate.enter() else { return Ok(()) };
        match message {
            FromDaemon::Welcome(welcome) => {
                plugin.welcome(&welcome);
                if let Some(times) = connects.pass(Instant::now()) {
                    let proto::Welcome { node, farm, version, .. } = welcome;
                    say(Level::Note, &format!("connected to node {node} of farm {farm} (resumed {version}){times}"));
                }
            }
            FromDaemon::Timetable(timetable) => {
                plugin.flush_sessions(timetable.sessions_from());
                plugin.mailbox.bring(timetable);
            }
            FromDaemon::Sessions(entries) => take(plugin, entries),
            FromDaemon::Unknown => {}
        }
        frame = wiped(bytes);
        if frame.capacity() > 4 * BATCH_BYTES {
            frame = BytesMut::new();
        }
    }
}

/// Waits until there is something to read. A reader that waits in recv(2) is woken whenever the daemon reads, too: on a Unix socket
/// both kinds of waiting are one, and poll(2) alone tells them apart.
fn wait_for_news(stream: &UnixStream) -> io::Result<()> {
    let mut socket = libc::pollfd { fd: stream.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, alive during the call, of a descriptor that is open as long as `stream` is borrowed.
    while unsafe { libc::poll(&raw mut socket, 1, -1) } < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(())
}

/// The buffer of a message, for the next one. Ticket keys and sessions have been in it.
fn wiped(frame: Bytes) -> BytesMut {
    let mut buffer = frame.try_into_mut().unwrap_or_default();
    buffer.as_mut().zeroize();
    buffer
}

fn refused(plugin: &Plugin, what: String) -> io::Error {
    plugin.counters.apply_errors.fetch_add(1, Ordering::Relaxed);
    io::Error::new(io::ErrorKind::InvalidData, format!("the daemon sent {what}"))
}

/// Sessions and removals from the farm, in order.
fn take(plugin: &Plugin, entries: Vec<Session>) {
    let now = plugin::wall_ms() / 1000;
    for Session { id, session, .. } in entries {
        let Some(id) = SessionId::new(&id) else {
            plugin.counters.apply_errors.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        if session.is_empty() {
            plugin.replica.remove(&id);
            plugin.silently(|| plugin.api.remove_session(&id));
        } else {
            keep(plugin, &id, &session, now);
        }
    }
}

fn keep(plugin: &Plugin, id: &SessionId, der: &Bytes, now: u64) {
    if der.len() > LARGEST_FOR_ATS {
        plugin.counters.too_large_for_proxy.fetch_add(1, Ordering::Relaxed);
        return;
    }
    match expiry(der, id) {
        Some(expires) if expires > now => plugin.replica.insert(id, der, expires),
        Some(_) => {}
        None => {
            plugin.counters.apply_errors.fetch_add(1, Ordering::Relaxed);
        }
    }
}
