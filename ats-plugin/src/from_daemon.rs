//! What the daemon sends, decoded.

use bytes::Bytes;

use crate::limits::{FLAT, Limit, Limits, decode_within};
use crate::proto::{SessionEntry, TimetableKey, ToProxy, Welcome, to_proxy};
use crate::tickets;
use crate::timetable::Timetable;

/// One message of the daemon.
pub enum FromDaemon {
    /// Its reply to the introduction.
    Welcome(Welcome),
    /// The ticket keys from now on.
    Timetable(Timetable),
    /// Sessions and removals of the farm, in order. Their IDs and DER are still to be checked.
    Sessions(Vec<SessionEntry>),
    /// A kind that a later release knows.
    Unknown,
}

/// What a message may hold: four times the keys of a full ring, and far more sessions than a daemon sends at once.
static TO_PROXY: Limits = Limits(&[
    Limit::once(1, "welcome", &FLAT),
    Limit::once(2, "timetable", &Limits(&[Limit::repeated(1, "keys", 256, size_of::<TimetableKey>(), &FLAT)])),
    Limit::once(3, "sessions", &Limits(&[Limit::repeated(1, "entries", 65_536, size_of::<SessionEntry>(), &FLAT)])),
]);

/// Decodes a frame, its length left out. Sessions are slices of it.
///
/// # Errors
/// What is wrong with it, and nothing of its content.
pub fn decode(frame: Bytes) -> Result<FromDaemon, String> {
    let message: ToProxy =
        decode_within(frame, &TO_PROXY).map_err(|error| format!("a message that is none: {error}"))?;
    Ok(match message.kind {
        Some(to_proxy::Kind::Welcome(welcome)) => FromDaemon::Welcome(welcome),
        Some(to_proxy::Kind::Timetable(timetable)) => FromDaemon::Timetable(tickets::read(timetable)?),
        Some(to_proxy::Kind::Sessions(sessions)) => FromDaemon::Sessions(sessions.entries),
        None => FromDaemon::Unknown,
    })
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::proto::{Sessions, Timetable as Keys};

    fn taken(kind: to_proxy::Kind) -> Result<(), String> {
        decode(ToProxy { kind: Some(kind) }.encode_to_vec().into()).map(|_| ())
    }

    #[test]
    fn more_sessions_or_keys_than_a_daemon_sends_are_refused_before_they_are_decoded() {
        let sessions = |count| to_proxy::Kind::Sessions(Sessions { entries: vec![SessionEntry::default(); count] });
        assert_eq!(taken(sessions(65_536)), Ok(()));
        assert!(taken(sessions(65_537)).is_err_and(|why| why.contains("more entries than are ever sent")));
        let key = TimetableKey { name: vec![1; 16], hmac: vec![2; 32], aes: vec![3; 32], ..TimetableKey::default() };
        let keys = |count| to_proxy::Kind::Timetable(Keys { keys: vec![key.clone(); count], ..Keys::default() });
        assert_eq!(taken(keys(256)), Ok(()));
        assert!(taken(keys(257)).is_err_and(|why| why.contains("more keys than are ever sent")));
    }
}
