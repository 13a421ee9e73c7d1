//! What a broker says when something fails, and what that is to a link.

use std::fmt;

use lapin::ErrorKind;

use crate::bus::refusals::{NO_CHANNEL, remedy, with_remedy};
use crate::bus::{BusError, LinkSpec};

/// How the broker's words begin when another connection holds an exclusive queue.
pub(super) const RESOURCE_LOCKED: &str = "405 ";

/// lapin's error in the broker's words where it has any.
pub(super) fn words(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(said) => format!("{} {}", said.get_id(), said.get_message()),
        ErrorKind::IOError(error) => error.to_string(),
        ErrorKind::ChannelsLimitReached => NO_CHANNEL.to_owned(),
        ErrorKind::MissingHeartbeatError => "no heartbeat from the broker".to_owned(),
        _ => error.to_string(),
    }
}

/// What was refused while a link opened or was open, and what to do about it.
pub(super) fn advised(said: &str, spec: &LinkSpec) -> String {
    with_remedy(said, remedy(said, &spec.names))
}

/// A refused operation is the broker's answer, or that of its limits; everything else means that the connection does not
/// work.
pub(super) fn failed(operation: impl Into<String>, error: &lapin::Error) -> BusError {
    match error.is_amqp_soft_error() || matches!(error.kind(), ErrorKind::ChannelsLimitReached) {
        true => BusError::Refused { operation: operation.into(), reason: words(error) },
        false => BusError::Closed(words(error)),
    }
}

/// A refusal that no error of lapin's says.
pub(super) fn refused(operation: &str, reason: &dyn fmt::Display) -> BusError {
    BusError::Refused { operation: operation.to_owned(), reason: reason.to_string() }
}
