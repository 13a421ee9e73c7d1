//! What became of the last attempt to read the farm secrets again, as reports tell it.

use crate::proto;

/// What became of the last attempt to read the farm secrets again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastReload {
    /// When it was, UTC milliseconds; 0: there was none since the start.
    pub at: u64,
    /// Why the secrets of before stay in use, within 256 bytes; `None` if those that were read do.
    pub refused: Option<String>,
}

impl LastReload {
    /// As reports tell it.
    #[must_use]
    pub(crate) fn to_proto(&self) -> proto::LastReload {
        proto::LastReload { at: self.at, refused: self.refused.clone().unwrap_or_default() }
    }
}
