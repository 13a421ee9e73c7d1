//! Where the plugin's library is.

use std::path::PathBuf;

use crate::farm::built;

/// `libresumed_ats.so` of the build that this test is of.
pub fn library() -> PathBuf {
    built("libresumed_ats.so")
}
