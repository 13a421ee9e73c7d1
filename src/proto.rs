//! The generated protobuf types: `proto/resumed/v1/farm.proto` here, `local.proto` in [`local`].
//!
//! Types that carry key material or sessions have a `Debug` written by hand that omits it.
#![allow(missing_docs, reason = "generated; the comments stand in the .proto files")]

use std::fmt;

include!(concat!(env!("OUT_DIR"), "/resumed.v1.rs"));

/// The node's own Unix sockets: plugin and control.
pub mod local {
    use std::fmt;

    include!(concat!(env!("OUT_DIR"), "/resumed.v1.local.rs"));

    impl fmt::Debug for TimetableKey {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("TimetableKey").field("seal_from", &self.seal_from).finish_non_exhaustive()
        }
    }

    impl fmt::Debug for Session {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Session").field("bytes", &self.session.len()).finish_non_exhaustive()
        }
    }
}

impl fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketKey").field("generation", &self.generation).finish_non_exhaustive()
    }
}

impl fmt::Debug for SessionEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionEntry").field("bytes", &self.session.len()).finish_non_exhaustive()
    }
}
