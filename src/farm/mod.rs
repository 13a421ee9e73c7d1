//! The farm as one node sees it: who is there, who leads, which ring all share.
//!
//! [`Farm`] is a pure state machine: events and the time go in, actions come out. It reads no clock, opens no socket
//! and draws no randomness but from the source that it was given, so that one test can drive a thousand farms through
//! partitions. `daemon::driver` carries its actions out.

mod audit;
mod event;
mod machine;
mod members;
mod operator;
mod settings;
mod sites;
mod walk;

pub use audit::{MOST_AUDITED, is_user};
pub use event::{Action, Event, Note, Via};
pub use machine::Farm;
pub use members::{Member, Members};
pub use operator::{Ask, Reply};
pub use settings::{FarmSettings, LocalState};
pub use sites::{Site, Sites};
