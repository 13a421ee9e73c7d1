//! Ticket keys: what they are, how rings of them merge, and when each one seals and opens.
//!
//! Pure: no clock is read, nothing is drawn at random, no socket or file is touched.
//!
//! A [`TicketKey`] lives in a [`Ring`], the set that all nodes of a farm come to agree on. A [`HeldRing`] is what one
//! node holds, with since when, and decides what happens next. A [`Timetable`] is what a proxy gets.

mod floors;
mod held;
mod key;
mod ring;
pub(crate) mod saved;
mod settings;
mod timetable;
#[cfg(test)]
mod two_nodes;

pub use held::{HeldRing, KeyState};
pub use key::{KeyMaterial, TicketKey};
pub use ring::Ring;
pub(crate) use ring::RingFaults;
pub use settings::KeySettings;
pub use timetable::{ProxyKey, Timetable};
