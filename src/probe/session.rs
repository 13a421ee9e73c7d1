//! A client's saved session, and where it arrives.

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use openssl::ssl::SslSession;
use zeroize::Zeroizing;

use super::Mode;

/// A session that can be offered any number of times, at any host, also by several threads at once.
///
/// It holds the session's secrets: wiped on drop, omitted by `Debug`.
#[derive(Clone)]
pub struct Session {
    mode: Mode,
    der: Zeroizing<Vec<u8>>,
    id: Vec<u8>,
    ticket: Vec<u8>,
    server_name: Option<String>,
}

impl Session {
    /// `None` if the server has left nothing to resume by in `mode`.
    pub(super) fn new(mode: Mode, der: Vec<u8>, server_name: Option<&str>) -> Option<Self> {
        let der = Zeroizing::new(der);
        let id = SslSession::from_der(&der).ok()?.id().to_vec();
        let ticket = ticket_of(&der).map(<[u8]>::to_vec).unwrap_or_default();
        let is_offered = match mode {
            Mode::Id => !id.is_empty() && ticket.is_empty(),
            Mode::Ticket12 | Mode::Ticket13 => !ticket.is_empty(),
        };
        is_offered.then(|| Self { mode, der, id, ticket, server_name: server_name.map(str::to_owned) })
    }

    /// How the session is resumed.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The session ID, 1 to 32 bytes. The server's own in [`Mode::Id`], else one that the client made up.
    #[must_use]
    pub fn id(&self) -> &[u8] {
        &self.id
    }

    /// The ticket as the server sealed it; empty in [`Mode::Id`]. Servers that follow RFC 5077 section 4 begin it with
    /// the 16-byte name of the key.
    #[must_use]
    pub fn ticket(&self) -> &[u8] {
        &self.ticket
    }

    /// The name that was sent as SNI when the session was made, and is sent whenever it is offered.
    #[must_use]
    pub(crate) fn server_name(&self) -> Option<&str> {
        self.server_name.as_deref()
    }

    /// The session in OpenSSL's DER (`i2d_SSL_SESSION`), with its master secret.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Whether a server sees no difference between the two.
    pub(super) fn resumes_like(&self, other: &Self) -> bool {
        match self.mode {
            Mode::Id => self.id == other.id,
            Mode::Ticket12 | Mode::Ticket13 => self.ticket == other.ticket,
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("mode", &self.mode).field("bytes", &self.der.len()).finish_non_exhaustive()
    }
}

/// The ticket within OpenSSL's `SSL_SESSION_ASN1`: an OCTET STRING under the explicit tag 10.
#[allow(clippy::result_large_err, reason = "the error is asn1's own, and goes no further")]
fn ticket_of(der: &[u8]) -> Option<&[u8]> {
    let fields = asn1::parse_single::<asn1::Sequence<'_>>(der).ok()?;
    let ticket = fields.parse(|parser| {
        let mut ticket = None;
        while !parser.is_empty() {
            let field: asn1::Tlv<'_> = parser.read_element()?;
            if field.tag() == asn1::explicit_tag(10) {
                ticket = Some(asn1::parse_single::<&[u8]>(field.data())?);
            }
        }
        Ok::<_, asn1::ParseError>(ticket)
    });
    ticket.ok().flatten()
}

/// Where OpenSSL's callback leaves the session of one connection.
#[derive(Default)]
pub(crate) struct OfferedSession {
    has_session: AtomicBool,
    session: Mutex<Option<Vec<u8>>>,
}

impl OfferedSession {
    pub(crate) fn put(&self, der: Vec<u8>) {
        *self.session.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(der);
        self.has_session.store(true, Ordering::Release);
    }

    pub(crate) fn has_session(&self) -> bool {
        self.has_session.load(Ordering::Acquire)
    }

    pub(crate) fn take(&self) -> Option<Vec<u8>> {
        self.has_session.store(false, Ordering::Release);
        self.session.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    }
}

impl fmt::Debug for OfferedSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OfferedSession").field("has_session", &self.has_session()).finish_non_exhaustive()
    }
}
