//! The generated types of `local.proto`, and the session that it shares with the farm's messages (`session.proto`).
#![allow(missing_docs, dead_code, reason = "generated; the comments stand in the .proto files")]

use std::fmt;

pub use local::*;

include!(concat!(env!("OUT_DIR"), "/resumed.v1.rs"));

mod local {
    include!(concat!(env!("OUT_DIR"), "/resumed.v1.local.rs"));
}

impl fmt::Debug for TimetableKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TimetableKey").field("seal_from", &self.seal_from).finish_non_exhaustive()
    }
}

impl fmt::Debug for SessionEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionEntry").field("bytes", &self.session.len()).finish_non_exhaustive()
    }
}
