//! A safe way to offer a saved TLS session in an OpenSSL handshake.
//!
//! The `openssl` crate marks `SslRef::set_session` as unsafe, because a session that lives in one `SslContext` must not
//! be handed to a connection of another. A session decoded afresh from its DER lives in no context, so it can go to
//! any: that is all this crate does, and all of its unsafe code.

use openssl::error::ErrorStack;
use openssl::ssl::{Ssl, SslContextRef, SslSession};

/// A new connection state of `context` that will offer the session encoded in `der` (`i2d_SSL_SESSION`).
///
/// `der` stays as it was and can be offered any number of times. Whether the server takes the session is known after
/// the handshake, from `SslRef::session_reused`.
///
/// # Errors
/// If OpenSSL cannot decode `der`, or has no memory.
pub fn ssl_offering(context: &SslContextRef, der: &[u8]) -> Result<Ssl, ErrorStack> {
    let session = SslSession::from_der(der)?;
    let mut ssl = Ssl::new(context)?;
    // SAFETY: the session was decoded two lines above, is in no context's cache and carries no context's data, so there
    // is no other context that it could belong to. `ssl` is new: no handshake is under way whose state it would replace.
    // OpenSSL takes a reference of its own, so dropping `session` at the end is right.
    unsafe { ssl.set_session(&session)? };
    Ok(ssl)
}

#[cfg(test)]
mod tests {
    use openssl::ssl::{SslContext, SslMethod};

    use super::*;

    #[test]
    fn bytes_that_are_no_session_are_an_error() {
        let context = SslContext::builder(SslMethod::tls_client()).unwrap().build();
        for der in [&b""[..], b"\x30", b"\x30\x03\x02\x01\x01", &[0xff; 300]] {
            assert!(ssl_offering(&context, der).is_err(), "{der:02x?}");
        }
    }
}
