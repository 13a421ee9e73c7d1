//! The generated types of `local.proto`, and the frames that carry them.
#![allow(missing_docs, dead_code, reason = "generated; the comments stand in local.proto")]

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
