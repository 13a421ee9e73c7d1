//! A TLS client that resumes: by session ID, by TLS 1.2 ticket, by TLS 1.3 ticket.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use openssl::pkey::PKey;
use openssl::ssl::{
    Ssl, SslContext, SslMethod, SslOptions, SslSession, SslSessionCacheMode, SslStream, SslVerifyMode, SslVersion,
};
use openssl::x509::X509;

use crate::ats::Certificate;

/// How a client resumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// TLS 1.2 by session ID.
    Id,
    /// TLS 1.2 by ticket.
    Ticket12,
    /// TLS 1.3, by ticket.
    Ticket13,
}

/// A client that offers one mode only.
pub struct Client {
    context: SslContext,
    name: String,
    fresh: Arc<Mutex<Option<SslSession>>>,
}

/// One finished connection.
pub struct Visit {
    /// The server resumed the offered session.
    pub resumed: bool,
    /// What to offer next time: a new session, or the offered one if the server gave none.
    pub session: SslSession,
}

impl Client {
    pub fn new(mode: Mode) -> Self {
        let mut context = SslContext::builder(SslMethod::tls_client()).expect("a context");
        let version = if mode == Mode::Ticket13 { SslVersion::TLS1_3 } else { SslVersion::TLS1_2 };
        context.set_min_proto_version(Some(version)).expect("a version");
        context.set_max_proto_version(Some(version)).expect("a version");
        if mode == Mode::Id {
            context.set_options(SslOptions::NO_TICKET);
        }
        context.set_verify(SslVerifyMode::NONE);
        context.set_session_cache_mode(SslSessionCacheMode::CLIENT | SslSessionCacheMode::NO_INTERNAL);
        let fresh = Arc::new(Mutex::new(None));
        let keep = Arc::clone(&fresh);
        context.set_new_session_callback(move |_, session| *keep.lock().expect("no panic") = Some(session));
        Self { context: context.build(), name: "farm.test".to_owned(), fresh }
    }

    /// A client that asks for `name`, and not for farm.test.
    pub fn asking_for(mode: Mode, name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::new(mode) }
    }

    /// Connects, offers `session`, asks for a page and reads to the orderly end.
    pub fn visit(&self, server: SocketAddr, session: Option<&SslSession>) -> Result<Visit, String> {
        let failed = |what: &str, error: &dyn std::fmt::Display| format!("{server}: {what}: {error}");
        *self.fresh.lock().expect("no panic") = None;
        let mut stream = self.connect(server, session)?;
        let resumed = stream.ssl().session_reused();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").map_err(|error| failed("request", &error))?;
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Err(error) if error.kind() != ErrorKind::UnexpectedEof => return Err(failed("answer", &error)),
            _ => {}
        }
        let _ = stream.shutdown();
        let fresh = self.fresh.lock().expect("no panic").take();
        let session = fresh.or_else(|| session.cloned()).or_else(|| stream.ssl().session().map(ToOwned::to_owned));
        Ok(Visit { resumed, session: session.ok_or_else(|| format!("{server}: no session"))? })
    }

    /// Connects, offers `session`, ends its side without a word, and waits until the server has closed the connection too. Returns
    /// whether the server resumed the session.
    pub fn abandon(&self, server: SocketAddr, session: Option<&SslSession>) -> Result<bool, String> {
        let mut stream = self.connect(server, session)?;
        let resumed = stream.ssl().session_reused();
        let tcp = stream.get_mut();
        tcp.shutdown(Shutdown::Write).map_err(|error| format!("{server}: end: {error}"))?;
        // A server that resets the connection has closed it as well.
        while tcp.read(&mut [0; 1024]).is_ok_and(|len| len > 0) {}
        Ok(resumed)
    }

    /// Offers a session whose key the client does not have. A server that takes it sends what the client does not understand: a
    /// fatal alert inside the handshake. Waits until the server has closed the connection, and returns whether it was so.
    pub fn fail(&self, server: SocketAddr, session: &SslSession) -> Result<bool, String> {
        let tcp = TcpStream::connect(server).map_err(|error| format!("{server}: connect: {error}"))?;
        let mut rest = tcp.try_clone().map_err(|error| format!("{server}: {error}"))?;
        let failed = self.shake_hands(tcp, server, Some(session)).is_err();
        let _ = rest.shutdown(Shutdown::Write);
        while rest.read(&mut [0; 1024]).is_ok_and(|len| len > 0) {}
        Ok(failed)
    }

    fn connect(&self, server: SocketAddr, session: Option<&SslSession>) -> Result<SslStream<TcpStream>, String> {
        let tcp = TcpStream::connect(server).map_err(|error| format!("{server}: connect: {error}"))?;
        self.shake_hands(tcp, server, session)
    }

    fn shake_hands(
        &self,
        tcp: TcpStream,
        server: SocketAddr,
        session: Option<&SslSession>,
    ) -> Result<SslStream<TcpStream>, String> {
        let failed = |what: &str, error: &dyn std::fmt::Display| format!("{server}: {what}: {error}");
        tcp.set_nodelay(true).map_err(|error| failed("no delay", &error))?;
        tcp.set_read_timeout(Some(Duration::from_secs(10))).map_err(|error| failed("timeout", &error))?;
        let mut ssl = Ssl::new(&self.context).map_err(|error| failed("TLS", &error))?;
        ssl.set_hostname(&self.name).map_err(|error| failed("SNI", &error))?;
        if let Some(session) = session {
            // A copy: OpenSSL's client marks a TLS 1.3 session that it has used as not to be used again.
            let copy = session.to_der().and_then(|der| SslSession::from_der(&der));
            let copy = copy.map_err(|error| failed("session", &error))?;
            // SAFETY: the session was made by a context with the settings of this one.
            unsafe { ssl.set_session(&copy) }.map_err(|error| failed("session", &error))?;
        }
        ssl.connect(tcp).map_err(|error| failed("handshake", &error))
    }
}

/// The same session under another ID of the same length: what a client offers who has seen that ID on the wire.
pub fn under_the_id(session: &SslSession, id: &[u8]) -> SslSession {
    let mut der = session.to_der().expect("DER");
    let own = session.id();
    assert_eq!(own.len(), id.len(), "the DER's lengths are to stay");
    let at = der.windows(own.len()).position(|bytes| bytes == own).expect("its ID");
    der[at..at + id.len()].copy_from_slice(id);
    SslSession::from_der(&der).expect("a session")
}

/// A TLS 1.2 session as a server keeps it, from one handshake over a socket pair: its ID and its DER.
pub fn server_session() -> (Vec<u8>, Vec<u8>) {
    let certificate = Certificate::self_signed("farm.test");
    let mut server = SslContext::builder(SslMethod::tls_server()).expect("a context");
    server.set_certificate(&X509::from_pem(&certificate.pem).expect("PEM")).expect("a certificate");
    server.set_private_key(&PKey::private_key_from_pem(&certificate.key).expect("PEM")).expect("a key");
    server.set_max_proto_version(Some(SslVersion::TLS1_2)).expect("a version");
    server.set_options(SslOptions::NO_TICKET);
    server.set_session_id_context(b"test").expect("a context");
    let client = Client::new(Mode::Id);
    let (near, far) = UnixStream::pair().expect("a socket pair");
    let connecting = thread::spawn(move || {
        let mut stream = Ssl::new(&client.context).expect("TLS").connect(far).expect("a handshake");
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let mut stream = Ssl::new(&server.build()).expect("TLS").accept(near).expect("a handshake");
    let session = stream.ssl().session().expect("a session").to_owned();
    let _ = stream.shutdown();
    drop(stream);
    connecting.join().expect("the client");
    (session.id().to_vec(), session.to_der().expect("DER"))
}
