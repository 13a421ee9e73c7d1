//! Why a connection is refused or ended.

use std::io;

use thiserror::Error;

use super::{HELLO_WITHIN, MAX_PROXIES, READS_WITHIN};
use crate::proto::frame::MOST_PLUGIN_BYTES;
use crate::proto::limits::Undecodable;
use crate::reason::ProxyReason;

/// Why a connection is refused or ended: one counted reason each.
#[derive(Debug, Error)]
pub(super) enum ProxyRefusal {
    #[error("more than {MAX_PROXIES} connections")]
    TooMany,
    #[error("user {uid} is neither root, nor the daemon's own, nor one of ats.users")]
    Peer { uid: u32 },
    #[error("no introduction within {HELLO_WITHIN:?}")]
    Silent,
    #[error("the first message is no introduction")]
    NoHello,
    #[error("a second introduction")]
    SecondHello,
    #[error("a message of more than {MOST_PLUGIN_BYTES} bytes")]
    TooLarge,
    #[error("the connection ended in the middle of a message")]
    Truncated,
    #[error("a message that is none: {0}")]
    Garbage(Undecodable),
    #[error("it left a message unread for {READS_WITHIN:?}")]
    StoppedReading,
    #[error("{0}")]
    Io(io::Error),
}

impl ProxyRefusal {
    /// The counted reason.
    pub(super) fn reason(&self) -> ProxyReason {
        match self {
            Self::TooMany => ProxyReason::TooMany,
            Self::Peer { .. } => ProxyReason::Peer,
            Self::Silent => ProxyReason::Silent,
            Self::NoHello | Self::SecondHello => ProxyReason::NoHello,
            Self::TooLarge => ProxyReason::TooLarge,
            Self::Truncated => ProxyReason::Truncated,
            Self::Garbage(_) => ProxyReason::Garbage,
            Self::StoppedReading => ProxyReason::StoppedReading,
            Self::Io(_) => ProxyReason::Io,
        }
    }
}
