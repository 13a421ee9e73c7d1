//! Files that hold a secret: a farm secret, the broker's password, the key of a client certificate, a configuration whose
//! URIs carry a password.
//!
//! One rule for all of them says who may read such a file ([`Access`]). A farm secret whose mode or owner breaks it is refused
//! ([`farm_secret::read`]); of everything else `resumed check` and the daemon warn ([`warnings()`]).

mod access;
pub(crate) mod farm_secret;
#[cfg(feature = "daemon")]
mod warnings;

#[cfg(feature = "daemon")]
pub(crate) use access::ACCEPTED_MODES;
#[cfg(all(test, feature = "daemon"))]
pub(crate) use warnings::Exposure;
#[cfg(feature = "daemon")]
pub(crate) use warnings::{Warning, warnings};
