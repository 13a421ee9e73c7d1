//! Sessions between a node's proxies and its pod: checked, kept, handed on.
//!
//! A proxy's new session goes through [`Store::local`] and, if that says so, into the [`Outbox`], from which the
//! publisher takes batches. A batch from the pod goes through [`Store::remote`], which says what to hand to the proxies.
//! [`warmup`] decides who hands its sessions on to a node that lacks them; they are read with [`Store::donate`] and
//! taken in with [`Store::warm`].
//!
//! # Who counts what
//! | metric | counted by |
//! | --- | --- |
//! | `resumed_sessions_published_total` | the publisher: entries of batches handed to the bus |
//! | `resumed_sessions_received_total` | the receiver: entries of batches handed to [`Store::remote`], and sessions handed to [`Store::warm`] |
//! | `resumed_sessions_inserted_total` | [`Store::remote`]: sessions from the pod that were taken |
//! | `resumed_sessions_removed_total` | [`Store::remote`]: removals from the pod that were taken |
//! | `resumed_sessions_dropped_total{reason}` | [`Store::local`] and [`Store::remote`]: every [`SessionFault`], once; whoever calls [`Outbox::push_all`]: what did not fit as `outbox_full` |
//! | `resumed_cache_entries`, `resumed_cache_bytes`, `resumed_tombstones` | the store, after every change |
//! | `resumed_cache_evicted_total`, `resumed_tombstones_dropped_total` | the store: what went before its time to make room |
//! | `resumed_replication_delay_seconds` | the receiver, from `SessionEntry.at` |
//!
//! So what a node received is what it inserted, removed and dropped, save the drops that its own proxies caused.

mod arrivals;
mod cache;
mod encoded;
mod id;
mod outbox;
#[cfg(test)]
mod samples;
mod session;
mod store;
mod tombstones;
pub mod warmup;

pub use cache::{Cache, ENTRY_OVERHEAD};
pub use id::SessionId;
pub use outbox::Outbox;
pub use session::{MAX_AHEAD_SECONDS, Session, SessionFault, validate};
pub use store::{Applied, Change, Refill, Removals, Store, StoreSettings};
pub use tombstones::MAX_TOMBSTONES;
pub use warmup::donation::{Donation, Position};

/// The most entries that a batch may have; those behind are dropped, one by one. A megabyte of removals has 22,000.
pub const MAX_BATCH_ENTRIES: usize = 32_768;
