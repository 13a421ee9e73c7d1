//! Sessions
pub mod id;
#[cfg(test)]
mod samples;
pub mod session;
pub use id::SessionId;
pub use session::{MAX_AHEAD_SECONDS, Session, SessionFault, validate};
