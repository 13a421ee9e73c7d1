//! The door to the inner rooms, for this project's own tests, simulator, benchmark, fuzzers and program: they are packages or
//! crates of their own, and reach what is not at the root of the crate here and nowhere else.
//!
//! Nothing here is part of the interface of the library: any of it may change or go with any commit, in a patch release too. A server that
//! embeds a node finds what it needs at the root; what it lacks there belongs there, and is worth an issue.
//!
//! Each module has the name of the room that its items are in. An item is here because something outside the crate names it:
//! one that nothing names any more goes, and the compiler then says what of it is used by nothing. What stands at the root is not
//! repeated here.

pub mod bus {
    pub use crate::bus::in_process::QueueLimits;
    pub use crate::bus::rabbitmq::{FEED_PREFETCH, RabbitMqLink};
    pub use crate::bus::{Bus, LeaseAnswer, Link, LinkEvent, LinkEvents, LinkSpec, redact};
}

#[cfg(feature = "daemon")]
pub mod cli {
    pub use crate::cli::{Cli, main};
}

pub mod clock {
    pub use crate::clock::millis;
}

#[cfg(feature = "daemon")]
pub mod config {
    pub use crate::config::read_explained;
}

#[cfg(feature = "daemon")]
pub mod daemon {
    pub use crate::daemon::control::{ControlCall, IDLE, converse};
}

pub mod envelope {
    pub use crate::envelope::{
        EpochId, EpochKey, Epochs, JoinKey, KeyAgreements, Opener, Refusal, Sealer, is_node_name,
        is_sealed_without_epoch,
    };
}

pub mod farm {
    pub use crate::farm::{Action, Ask, Event, Farm, FarmSettings, LocalState, MintReason, Note, Reply};
}

pub mod hex {
    pub use crate::hex::hex;
}

pub mod keys {
    pub use crate::keys::saved::read_back;
    pub use crate::keys::{HeldRing, KeyMaterial, KeyState, ProxyKey, Ring, TicketKey, Timetable};
}

pub mod metrics {
    pub use crate::metrics::row::Row;
    pub use crate::metrics::table::TABLE;
}

pub mod node {
    pub use crate::node::core::{Effect, Input, NodeCore, Saving, Stays};
    pub use crate::node::key_plane::Waiting;
    pub use crate::node::sealing::{Identity, Sealing};
}

pub mod operator {
    pub use crate::operator::wait_of;
}

#[cfg(feature = "daemon")]
pub mod probe {
    pub use crate::probe::{Client, Mode, Options, Session, Target, matrix};
}

/// All of it: the messages, with `local`, `frame` and `limits`.
pub mod proto {
    pub use crate::proto::*;
}

pub mod proxies {
    pub use crate::proxies::{ProxyPlane, Registry, SharedOutbox};

    pub mod ats {
        pub use crate::proxies::ats::{AtsSettings, MAX_PROXIES, READS_WITHIN, Socket, converse};
    }
}

pub mod random {
    pub use crate::random::{Randomness, random, system};
}

pub mod reason {
    pub use crate::reason::{ProxyReason, Reason};
}

pub mod routes {
    pub use crate::routes::{Names, Published, Route, Seat, Via};
}

pub mod sessions {
    pub use crate::sessions::{Cache, Store, validate};

    pub mod warmup {
        pub use crate::sessions::warmup::{Donor, Due, Joiner, PodNode, WarmupAction};
    }
}

pub mod unix_socket {
    pub use crate::unix_socket::SocketError;
}
