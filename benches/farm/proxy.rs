//! Proxies played by the benchmark: one that reports sessions, and one that takes what its node tells it.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use prost::Message;
use resumed::internals::proto::SessionEntry;
use resumed::internals::proto::local::{FromProxy, Hello, Sessions, ToProxy, from_proxy, to_proxy};

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
    stream.write_all(&frame(from_proxy::Kind::Hello(hello))).expect("the daemon reads");
    stream
}

/// A report of `entries`, as it goes over the socket.
pub fn report(entries: Vec<SessionEntry>) -> Vec<u8> {
    frame(from_proxy::Kind::Sessions(Sessions { entries }))
}

fn frame(kind: from_proxy::Kind) -> Vec<u8> {
    let message = FromProxy { kind: Some(kind) };
    let length = message.encoded_len();
    let mut frame = Vec::with_capacity(4 + length);
    frame.extend_from_slice(&u32::try_from(length).expect("a length").to_be_bytes());
    message.encode(&mut frame).expect("room for it");
    frame
}

/// The sessions of the next message, none if it is about something else.
pub fn next_sessions(stream: &mut UnixStream) -> io::Result<Vec<SessionEntry>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut message)?;
    let message = ToProxy::decode(&message[..]).map_err(io::Error::other)?;
    Ok(match message.kind {
        Some(to_proxy::Kind::Sessions(sessions)) => sessions.entries,
        _ => Vec::new(),
    })
}
