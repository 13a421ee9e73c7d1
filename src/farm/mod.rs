//! The farm as one node sees it: who is there, who leads, which ring all share.
//!
//! [`Farm`] is a pure state machine: events and the time go in, actions come out. It reads no clock, opens no socket
//! and draws no randomness but from the source that it was given, so that one test can drive a thousand farms through
//! partitions. `node::driver` carries its actions out.
//!
//! `machine` hands each event to those whom it concerns. Each concern is a file with a struct that owns its state, and is
//! lent a `context`: settings, the beat, the table of deadlines (`timers`), randomness, and a list for its actions. No
//! concern knows the machine. `standing` is what link, lease, announcements, reports and members decide together.
//!
//! Names tell what a method does: `on_…` takes in what happened, `advance_…` does what time brings, `send_…` sends, `is_…` and
//! nouns are questions.

mod announce;
mod assessment;
mod audit;
mod context;
mod event;
mod join;
mod lease;
mod link;
mod machine;
mod members;
mod mint;
mod own;
mod report;
mod requests;
mod settings;
mod sites;
mod standing;
mod table_parts;
#[cfg(test)]
mod testing;
mod timers;
mod walk;

#[cfg(feature = "daemon")]
pub(crate) use audit::is_user;
pub use event::{Action, Event, MintReason, Note};
pub use machine::Farm;

pub use requests::{Ask, Reply};
pub use settings::{FarmSettings, LocalState};
pub(crate) use sites::Site;
