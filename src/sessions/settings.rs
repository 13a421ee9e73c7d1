//! The settings of session-ID sessions, and their limits.

use std::ops::RangeInclusive;

use super::Removals;
use crate::settings::{Fault, Faults, SettingsError, bytes, refuse};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// How sessions are shared: section `sessions` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionSettings {
    /// Whether session-ID sessions are shared at all.
    pub replicate: bool,
    /// What becomes of a session that a proxy removes.
    pub removals: Removals,
    /// The cache's bound, in bytes.
    pub max_bytes: u64,
    /// The largest session taken in, in bytes: up to `batch_bytes`.
    pub max_session_bytes: u64,
    /// How many bytes of sessions travel in one message at most.
    pub batch_bytes: u64,
}

impl Default for SessionSettings {
    fn default() -> Self {
        Self {
            replicate: true,
            removals: Removals::Replicate,
            max_bytes: 256 * MIB,
            max_session_bytes: 16 * KIB,
            batch_bytes: 96 * KIB,
        }
    }
}

impl SessionSettings {
    /// How large the cache may be.
    pub(crate) const MAX_BYTES: RangeInclusive<u64> = MIB..=MIB * MIB;
    /// How large the largest session may be.
    pub(crate) const MAX_SESSION_BYTES: RangeInclusive<u64> = 256..=512 * KIB;
    /// How large a batch may be: with its headers it stays below an envelope's 1 MiB.
    pub(crate) const BATCH_BYTES: RangeInclusive<u64> = KIB..=512 * KIB;

    /// Checks the limits.
    ///
    /// # Errors
    /// Every setting that is outside of its limits or does not fit the others.
    pub fn validate(&self) -> Result<(), SettingsError> {
        refuse(self.faults())
    }

    /// Every setting that is outside of its limits or does not fit the others.
    #[must_use]
    pub(crate) fn faults(&self) -> Vec<Fault> {
        let mut faults = Faults::default();
        faults.bytes("sessions.max_bytes", self.max_bytes, &Self::MAX_BYTES);
        faults.bytes("sessions.max_session_bytes", self.max_session_bytes, &Self::MAX_SESSION_BYTES);
        faults.bytes("sessions.batch_bytes", self.batch_bytes, &Self::BATCH_BYTES);
        if self.max_session_bytes > self.batch_bytes {
            let batch = bytes(self.batch_bytes);
            faults.compared(Fault {
                key: "sessions.max_session_bytes",
                value: bytes(self.max_session_bytes),
                reason: format!("is more than sessions.batch_bytes, which is {batch}"),
                accepted: format!("at most {batch}"),
                beside: &["sessions.batch_bytes"],
            });
        }
        faults.found()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_hold_at_both_ends() {
        let base = SessionSettings::default();
        let keys = |settings: SessionSettings| settings.faults().iter().map(|fault| fault.key).collect::<Vec<_>>();
        assert_eq!(keys(base.clone()), [""; 0]);
        assert_eq!(keys(SessionSettings { max_bytes: MIB - 1, ..base.clone() }), ["sessions.max_bytes"]);
        assert_eq!(keys(SessionSettings { max_session_bytes: 255, ..base.clone() }), ["sessions.max_session_bytes"]);
        assert_eq!(keys(SessionSettings { batch_bytes: 512 * KIB + 1, ..base.clone() }), ["sessions.batch_bytes"]);
        let error = SessionSettings { batch_bytes: 8 * KIB, ..base }.validate().unwrap_err();
        assert_eq!(
            error.to_string(),
            "sessions.max_session_bytes = 16KiB: is more than sessions.batch_bytes, which is 8KiB; accepted: at most 8KiB"
        );
    }
}
