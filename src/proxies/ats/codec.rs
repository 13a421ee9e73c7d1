//! Messages between a proxy and its node, as they travel on the socket.

use std::io;

use futures_util::StreamExt;
use prost::Message;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};
use zeroize::{Zeroize, Zeroizing};

use super::READS_WITHIN;
use super::refusal::ProxyRefusal;
use crate::keys::Timetable;
use crate::proto::SessionEntry;
use crate::proto::frame::{self, MOST_PLUGIN_BYTES};
use crate::proto::limits::decode_within;
use crate::proto::local::{self, FROM_PROXY, FromProxy, ToProxy, to_proxy};

/// What one message of sessions carries at most, in bytes of payload.
pub(super) const CHUNK_BYTES: usize = 64 * 1024;

/// The messages of one proxy.
pub(super) type Messages = FramedRead<OwnedReadHalf, LengthDelimitedCodec>;

/// The next message; none at an orderly end.
pub(super) async fn next_message(messages: &mut Messages) -> Result<Option<FromProxy>, ProxyRefusal> {
    let Some(frame) = messages.next().await else { return Ok(None) };
    let frame = frame.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => ProxyRefusal::TooLarge,
        // The codec's word for an end in the middle of a message.
        io::ErrorKind::Other | io::ErrorKind::UnexpectedEof => ProxyRefusal::Truncated,
        _ => ProxyRefusal::Io(error),
    })?;
    decode_within(frame.freeze(), &FROM_PROXY).map(Some).map_err(ProxyRefusal::Garbage)
}

/// `timetable` as the plugin reads it.
pub(super) fn message_of(timetable: &Timetable) -> local::Timetable {
    let key = |entry: &crate::keys::ProxyKey| local::TimetableKey {
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
pub(super) async fn send_sessions(writer: &mut OwnedWriteHalf, sessions: &[SessionEntry]) -> Result<(), ProxyRefusal> {
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

pub(super) async fn send(writer: &mut OwnedWriteHalf, kind: to_proxy::Kind) -> Result<(), ProxyRefusal> {
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
