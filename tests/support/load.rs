//! A proxy that makes as many sessions as it is told to, and one that does not listen.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use prost::Message;
use resumed::internals::proto::SessionEntry;
use resumed::internals::proto::local::{FromProxy, Hello, Sessions, from_proxy};

use crate::tls;

/// Sessions in one message of the proxy.
const CHUNK: u64 = 100;

/// A connection to a daemon's `ats.sock`, introduced.
pub fn connect(socket: &Path, takes_sessions: bool) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap_or_else(|error| panic!("{}: {error}", socket.display()));
    let hello = Hello {
        kind: "ats".to_owned(),
        proxy_version: "9.2.9".to_owned(),
        process_id: std::process::id(),
        sessions: takes_sessions,
        ..Hello::default()
    };
    say(&mut stream, from_proxy::Kind::Hello(hello)).expect("the daemon reads");
    stream
}

fn say(stream: &mut UnixStream, kind: from_proxy::Kind) -> std::io::Result<()> {
    let message = FromProxy { kind: Some(kind) }.encode_to_vec();
    let mut frame = u32::try_from(message.len()).expect("a length").to_be_bytes().to_vec();
    frame.extend_from_slice(&message);
    stream.write_all(&frame)
}

/// A proxy under load: what it makes are real sessions, each with an ID of its own. Ends when dropped.
pub struct SessionLoad {
    over: Arc<AtomicBool>,
    made: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl SessionLoad {
    /// Makes up to `per_second` sessions at the daemon behind `socket`.
    pub fn start(socket: &Path, per_second: u64) -> Self {
        let (over, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut stream = connect(socket, false);
        let (id, der) = tls::server_session();
        let place = der.windows(id.len()).position(|window| window == id).expect("the ID in the session");
        let (ended, count) = (Arc::clone(&over), Arc::clone(&made));
        let thread = thread::spawn(move || {
            let start = Instant::now();
            let mut number = 0;
            while !ended.load(Ordering::Relaxed) {
                let at = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970").as_millis();
                let at = u64::try_from(at).expect("a time");
                let session = |number: u64| {
                    let (mut id, mut der) = (id.clone(), der.clone());
                    id[..8].copy_from_slice(&number.to_be_bytes());
                    der[place..place + id.len()].copy_from_slice(&id);
                    SessionEntry { id: Bytes::from(id), session: Bytes::from(der), at }
                };
                let entries = (number..number + CHUNK).map(session).collect();
                say(&mut stream, from_proxy::Kind::Sessions(Sessions { entries })).expect("the daemon reads");
                number += CHUNK;
                count.store(number, Ordering::Relaxed);
                // The pace of clients, not a wait for something to happen.
                let due = Duration::from_nanos(1_000_000_000 / per_second * number);
                thread::sleep(due.saturating_sub(start.elapsed()));
            }
        });
        Self { over, made, thread: Some(thread) }
    }

    /// Sessions that the daemon was given so far.
    pub fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    /// Ends the load; all that was made has been handed to the daemon.
    pub fn stop(mut self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        self.thread.take().expect("not stopped before").join().expect("the proxy under load");
        self.made()
    }
}

impl Drop for SessionLoad {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}
