//! Sessions between a node's proxies and its pod: checked, kept, handed on.
//!
//! A proxy's new session goes through [`Store::local`] and, if that says so, into an [`Outbox`], from which the
//! publisher takes batches. A batch from the pod goes through [`Store::remote`], which says what to hand to the proxies.
//! [`warmup`] decides who hands its sessions on to a node that lacks them; they are read with [`Store::donate`] and
//! taken in with [`Store::warm`].
//!
//! Nothing here counts: every call says what it did, and the caller counts it (`metrics::sessions`).

mod arrivals;
mod cache;
mod encoded;
mod id;
mod outbox;
#[cfg(test)]
pub(crate) mod samples;
mod session;
mod settings;
mod store;
mod tombstones;
pub(crate) mod warmup;

pub use cache::Cache;
#[cfg(test)]
pub(crate) use cache::ENTRY_OVERHEAD;
pub(crate) use id::SessionId;
pub(crate) use outbox::Outbox;
pub use session::validate;
pub(crate) use session::{Session, SessionFault};
pub use settings::SessionSettings;
pub(crate) use store::{Applied, Evictions, Occupancy, Reported};
pub use store::{Removals, Store};
pub(crate) use tombstones::MAX_TOMBSTONES;

/// The most entries that a batch may have; those behind are dropped, one by one. A megabyte of removals has 22,000.
pub(crate) const MAX_BATCH_ENTRIES: usize = 32_768;
