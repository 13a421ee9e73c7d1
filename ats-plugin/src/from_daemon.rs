//! What the daemon sends, decoded.

use bytes::Bytes;
use prost::Message;

use crate::proto::{Session, ToProxy, Welcome, to_proxy};
use crate::tickets;
use crate::timetable::Timetable;

/// One message of the daemon.
pub enum FromDaemon {
    /// Its reply to the introduction.
    Welcome(Welcome),
    /// The ticket keys from now on.
    Timetable(Timetable),
    /// Sessions and removals of the farm, in order. Their IDs and DER are still to be checked.
    Sessions(Vec<Session>),
    /// A kind that a later release knows.
    Unknown,
}

/// Decodes a frame, its length left out. Sessions are slices of it.
///
/// # Errors
/// What is wrong with it, and nothing of its content.
pub fn decode(frame: Bytes) -> Result<FromDaemon, String> {
    let message = ToProxy::decode(frame).map_err(|error| format!("a message that is none: {error}"))?;
    Ok(match message.kind {
        Some(to_proxy::Kind::Welcome(welcome)) => FromDaemon::Welcome(welcome),
        Some(to_proxy::Kind::Timetable(timetable)) => FromDaemon::Timetable(tickets::read(timetable)?),
        Some(to_proxy::Kind::Sessions(sessions)) => FromDaemon::Sessions(sessions.entries),
        None => FromDaemon::Unknown,
    })
}
