//! A TLS client that shakes hands with one host and resumes the session on another.
//!
//! It works against any TLS server and knows nothing of farms. [`Client::handshake`] makes a session at one
//! [`Target`], [`Client::resume`] offers it at another, as often as wanted, and [`matrix`] does both for every pair of
//! hosts. Sockets are blocking, each step has its own time limit, and a [`Client`] can be shared between threads.
//!
//! Certificates are **not** verified unless [`Options::ca_file`] says so: a probe asks many hosts by address whether
//! they share sessions, and sends them nothing worth protecting.
//!
//! Connections end with close_notify. A TLS 1.2 server on OpenSSL drops the session of a connection that just breaks.

mod matrix;
mod session;
mod stream;
mod target;

use std::error::Error as _;
use std::fmt;
use std::io::Write;
use std::net::{IpAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use openssl::error::ErrorStack;
use openssl::ex_data::Index;
use openssl::pkey::PKey;
use openssl::ssl::{
    self, ErrorCode, Ssl, SslContext, SslContextBuilder, SslMethod, SslOptions, SslSessionCacheMode, SslStream,
    SslVerifyMode, SslVersion,
};
use openssl::x509::X509VerifyResult;
use openssl::x509::verify::X509CheckFlags;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

pub use matrix::matrix;
pub(crate) use matrix::{Cell, Matrix, Outcome};
#[cfg(test)]
pub(crate) use matrix::{MatrixRow, Offer};
pub use session::Session;
pub use target::Target;
pub(crate) use target::TargetFault;

use session::OfferedSession;
use stream::Timed;

/// How a session is resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// TLS 1.2 by session ID (RFC 5246 section 7.4.1.2): the state stays with the server. No ticket is asked for.
    Id,
    /// TLS 1.2 by ticket (RFC 5077): the state travels with the client, sealed by the server.
    Ticket12,
    /// TLS 1.3 by a pre-shared key that a NewSessionTicket message brought (RFC 8446 section 4.6.1).
    Ticket13,
}

impl Mode {
    /// Every mode, in the order in which they are shown.
    pub const ALL: [Self; 3] = [Self::Id, Self::Ticket12, Self::Ticket13];

    /// The mode's name on the command line and in JSON: `id`, `ticket12` or `ticket13`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Ticket12 => "ticket12",
            Self::Ticket13 => "ticket13",
        }
    }

    /// The mode in words: `TLS 1.2 by session ID`.
    #[must_use]
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Id => "TLS 1.2 by session ID",
            Self::Ticket12 => "TLS 1.2 by ticket",
            Self::Ticket13 => "TLS 1.3 by ticket",
        }
    }

    fn version(self) -> SslVersion {
        match self {
            Self::Id | Self::Ticket12 => SslVersion::TLS1_2,
            Self::Ticket13 => SslVersion::TLS1_3,
        }
    }

    fn what_is_offered(self) -> &'static str {
        match self {
            Self::Id => "session ID",
            Self::Ticket12 | Self::Ticket13 => "ticket",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a [`Client`] talks to servers.
#[derive(Clone, Debug)]
pub struct Options {
    /// The name sent as SNI (RFC 6066 section 3) to every host. `None`: the name that the session's first host was
    /// given by, also when the session is offered to another host, as a client does that a load balancer moved; no SNI
    /// if that host was given by address.
    pub server_name: Option<String>,
    /// The time limit of each step: connecting, shaking hands, waiting for a TLS 1.3 ticket.
    pub timeout: Duration,
    /// Verify certificates against the authorities in this PEM file, and against the SNI name or else the address.
    pub ca_file: Option<PathBuf>,
    /// What the client shows to servers that ask for a certificate (RFC 8446 section 4.3.2).
    pub certificate: Option<ClientCertificate>,
}

/// A client's certificate and its key, as PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate, and behind it those that lead to an authority.
    pub chain: PathBuf,
    /// The private key, without a passphrase. It may be the same file.
    pub key: PathBuf,
}

impl Default for Options {
    /// SNI from the host's name, 5 s a step, no verification.
    fn default() -> Self {
        Self { server_name: None, timeout: Duration::from_secs(5), ca_file: None, certificate: None }
    }
}

/// Why a handshake or a resumption could not be tried to its end.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ProbeError {
    /// The options cannot be used.
    #[error("{0}")]
    Options(String),
    /// OpenSSL refused to set up a connection, before anything was sent.
    #[error("cannot set up TLS: {0}")]
    Setup(String),
    /// No TCP connection.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// A step took longer than [`Options::timeout`].
    #[error("{step} took longer than {limit:?}")]
    Timeout {
        /// What took too long: `connecting` or `the handshake`.
        step: &'static str,
        /// The limit that was set.
        limit: Duration,
    },
    /// The TLS handshake failed; the text is OpenSSL's, or says that the server closed the connection.
    #[error("the handshake failed: {0}")]
    Handshake(String),
    /// The server's certificate did not pass verification.
    #[error("the certificate is not trusted: {0}")]
    Certificate(String),
    /// The server ended the connection with an alert after its part of the handshake, as one does in TLS 1.3 that wants another
    /// client certificate than it got (RFC 8446 section 4.4.2.4); the text is OpenSSL's.
    #[error("the server broke off: {alert}{}", remedy(alert))]
    BrokenOff {
        /// The alert in words.
        alert: String,
    },
    /// The handshake succeeded, but the server offered nothing to resume by.
    #[error("the server offers no {}", .0.what_is_offered())]
    NotOffered(Mode),
}

/// A full handshake that left a session to resume.
#[derive(Debug)]
pub struct Handshake {
    /// The session, to be offered any number of times.
    pub session: Session,
    /// The protocol version, as OpenSSL names it: `TLSv1.2` or `TLSv1.3`.
    pub protocol: &'static str,
    /// The cipher suite, by its IANA name.
    pub cipher: String,
    /// From the first SYN until the session was there.
    pub took: Duration,
}

/// What became of an offered session.
#[derive(Debug)]
pub struct Resumption {
    /// Whether the server took the session; if not, it made a full handshake instead.
    pub resumed: bool,
    /// The session that the server gave in place of the offered one, if it did and if it was waited for.
    pub renewed: Option<Session>,
    /// From the first SYN until the handshake (and the wait for a new ticket, if asked for) was over.
    pub took: Duration,
}

/// A TLS client that keeps sessions. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    options: Arc<Options>,
    contexts: [SslContext; 3],
    mailbox: Index<Ssl, Arc<OfferedSession>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Client {
    /// A client with `options`.
    ///
    /// # Errors
    /// [`ProbeError::Options`] if the server name is an address or too long, the timeout is zero, or the CA file or the client's
    /// certificate cannot be used; [`ProbeError::Setup`] if OpenSSL cannot do TLS 1.2 or TLS 1.3.
    pub fn new(options: Options) -> Result<Self, ProbeError> {
        if let Some(name) = &options.server_name {
            check_server_name(name)?;
        }
        if options.timeout.is_zero() {
            return Err(ProbeError::Options("a timeout of 0s leaves no time to connect".into()));
        }
        let mailbox = Ssl::new_ex_index().map_err(setup)?;
        let context = |mode| context(mode, &options, mailbox);
        let contexts = [context(Mode::Id)?, context(Mode::Ticket12)?, context(Mode::Ticket13)?];
        Ok(Self { options: Arc::new(options), contexts, mailbox })
    }

    /// Makes a new session at `target`. For [`Mode::Ticket13`] this waits for the first NewSessionTicket; a server that
    /// sends none by itself is asked for a page (`GET /`), as some write tickets with their first answer only.
    ///
    /// # Errors
    /// [`ProbeError::NotOffered`] if the server left nothing to resume by; any other if there was no full handshake.
    pub fn handshake(&self, target: &Target, mode: Mode) -> Result<Handshake, ProbeError> {
        let name = self.options.server_name.as_deref().or(target.name());
        let ssl = Ssl::new(self.context(mode)).map_err(setup)?;
        let mut connection = self.connect(target, ssl, name)?;
        let der = if mode == Mode::Ticket13 {
            self.wait_for_ticket(&mut connection, name.unwrap_or(target.host()))?
        } else {
            connection.current_session()?
        };
        let took = connection.started.elapsed();
        let protocol = connection.stream.ssl().version_str();
        let cipher = connection.cipher();
        connection.close();
        let session = der.and_then(|der| Session::new(mode, der, name)).ok_or(ProbeError::NotOffered(mode))?;
        Ok(Handshake { session, protocol, cipher, took })
    }

    /// Offers `session` at `target`. A TLS 1.3 ticket that replaces it is not waited for.
    ///
    /// # Errors
    /// If the handshake failed, be it with or without the session.
    pub fn resume(&self, target: &Target, session: &Session) -> Result<Resumption, ProbeError> {
        self.offer(target, session, false)
    }

    /// Offers `session` at `target` and waits for the session that replaces it, as a client does that comes back again
    /// and again. Without a new one, [`Resumption::renewed`] is `None` and the old one stays good.
    ///
    /// # Errors
    /// If the handshake failed, be it with or without the session.
    pub fn resume_and_renew(&self, target: &Target, session: &Session) -> Result<Resumption, ProbeError> {
        self.offer(target, session, true)
    }

    fn offer(&self, target: &Target, session: &Session, renew: bool) -> Result<Resumption, ProbeError> {
        let mode = session.mode();
        let name = session.server_name();
        let ssl = session_offer::ssl_offering(self.context(mode), session.der()).map_err(setup)?;
        let mut connection = self.connect(target, ssl, name)?;
        let resumed = connection.stream.ssl().session_reused();
        let der = match mode {
            Mode::Ticket13 if renew => self.wait_for_ticket(&mut connection, name.unwrap_or(target.host()))?,
            // A server that resumes has seen the client's certificate before. One that does not may find only now that it lacks one.
            Mode::Ticket13 if !resumed => self.look_for_ticket(&mut connection)?,
            Mode::Ticket13 => connection.mailbox.take(),
            Mode::Id | Mode::Ticket12 => connection.current_session()?,
        };
        let took = connection.started.elapsed();
        connection.close();
        let renewed = der.and_then(|der| Session::new(mode, der, name)).filter(|new| !new.resumes_like(session));
        Ok(Resumption { resumed, renewed, took })
    }

    fn context(&self, mode: Mode) -> &SslContext {
        &self.contexts[mode as usize]
    }

    fn connect(&self, target: &Target, mut ssl: Ssl, name: Option<&str>) -> Result<Conversation, ProbeError> {
        let limit = self.options.timeout;
        let mailbox = Arc::new(OfferedSession::default());
        ssl.set_ex_data(self.mailbox, Arc::clone(&mailbox));
        if let Some(name) = name {
            ssl.set_hostname(name).map_err(setup)?;
        }
        if self.options.ca_file.is_some() {
            let expected = ssl.param_mut();
            expected.set_hostflags(X509CheckFlags::NO_PARTIAL_WILDCARDS);
            match name {
                Some(name) => expected.set_host(name),
                None => expected.set_ip(target.addr().ip()),
            }
            .map_err(setup)?;
        }

        let started = Instant::now();
        let tcp = TcpStream::connect_timeout(&target.addr(), limit).map_err(|error| match error.kind() {
            std::io::ErrorKind::TimedOut => ProbeError::Timeout { step: "connecting", limit },
            _ => ProbeError::Connect(error.to_string()),
        })?;
        tcp.set_nodelay(true).map_err(|error| ProbeError::Connect(error.to_string()))?;
        let timed = Timed::new(tcp, Instant::now() + limit, Arc::clone(&mailbox));
        let mut stream = SslStream::new(ssl, timed).map_err(setup)?;
        match stream.connect() {
            Ok(()) => Ok(Conversation { stream, mailbox, started }),
            Err(error) => Err(handshake_error(&error, stream.ssl().verify_result(), limit)),
        }
    }

    /// The first TLS 1.3 ticket that the server sends by itself, if it does soon.
    fn look_for_ticket(&self, connection: &mut Conversation) -> Result<Option<Vec<u8>>, ProbeError> {
        let Conversation { stream, mailbox, .. } = connection;
        stream.get_mut().stop_at_ticket();
        stream.get_mut().set_until(Instant::now() + self.options.timeout.min(UNASKED));
        read_until_ticket(stream, mailbox)?;
        Ok(mailbox.take())
    }

    /// The first TLS 1.3 ticket, or `None` if the server closed the connection or let the time limit pass without one.
    fn wait_for_ticket(&self, connection: &mut Conversation, host: &str) -> Result<Option<Vec<u8>>, ProbeError> {
        let Conversation { stream, mailbox, .. } = connection;
        stream.get_mut().stop_at_ticket();
        stream.get_mut().set_until(Instant::now() + self.options.timeout.min(UNASKED));
        if !read_until_ticket(stream, mailbox)? {
            return Ok(mailbox.take());
        }
        stream.get_mut().set_until(Instant::now() + self.options.timeout);
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        // A server that no longer takes the request may have sent its ticket all the same.
        if stream.write_all(request.as_bytes()).is_ok() {
            read_until_ticket(stream, mailbox)?;
        }
        Ok(mailbox.take())
    }
}

/// How long a server may take to send a ticket by itself before it is asked for a page.
const UNASKED: Duration = Duration::from_millis(300);

/// How long to wait for the server's end of an orderly close.
const LINGER: Duration = Duration::from_millis(500);

struct Conversation {
    stream: SslStream<Timed>,
    mailbox: Arc<OfferedSession>,
    started: Instant,
}

impl Conversation {
    fn current_session(&self) -> Result<Option<Vec<u8>>, ProbeError> {
        self.stream.ssl().session().map(|session| session.to_der().map_err(setup)).transpose()
    }

    fn cipher(&self) -> String {
        let cipher = self.stream.ssl().current_cipher();
        cipher.and_then(|cipher| cipher.standard_name()).unwrap_or("unknown").to_owned()
    }

    /// Sends close_notify and lets the server finish: closing a socket with unread bytes would send a reset, which can
    /// overtake the close_notify. What fails here no longer matters to the result.
    fn close(mut self) {
        self.stream.get_mut().set_until(Instant::now() + LINGER);
        if self.stream.shutdown().is_ok() {
            self.stream.get_mut().drain();
        }
    }
}

/// Reads and discards until a ticket is in the mailbox or the time is over. True if it is worth to go on: neither has a
/// ticket come, nor has the server closed.
///
/// # Errors
/// [`ProbeError::BrokenOff`] if the server sent an alert in place of a ticket.
fn read_until_ticket(stream: &mut SslStream<Timed>, mailbox: &OfferedSession) -> Result<bool, ProbeError> {
    let mut page = [0; 4096];
    while !mailbox.has_session() {
        if let Err(error) = stream.ssl_read(&mut page) {
            return match alert_in(&error).filter(|_| !mailbox.has_session()) {
                Some(alert) => Err(ProbeError::BrokenOff { alert }),
                None => Ok(error.code() == ErrorCode::WANT_READ && !mailbox.has_session()),
            };
        }
        if stream.get_mut().is_over() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The server's alert, in OpenSSL's words: `tlsv13 alert certificate required`.
fn alert_in(error: &ssl::Error) -> Option<String> {
    let reasons = error.ssl_error()?.errors().iter().filter_map(|error| error.reason());
    reasons.filter(|reason| reason.contains(" alert ")).map(str::to_owned).next()
}

/// What to do about an alert, if that can be told, as the end of a sentence.
fn remedy(alert: &str) -> &'static str {
    if alert.contains("certificate required") {
        "; it wants a client certificate, which --cert and --key give"
    } else {
        ""
    }
}

fn context(mode: Mode, options: &Options, mailbox: Index<Ssl, Arc<OfferedSession>>) -> Result<SslContext, ProbeError> {
    let mut context = SslContextBuilder::new(SslMethod::tls_client()).map_err(setup)?;
    context.set_min_proto_version(Some(mode.version())).map_err(setup)?;
    context.set_max_proto_version(Some(mode.version())).map_err(setup)?;
    context.set_options(LEGACY_SERVER_CONNECT);
    if mode == Mode::Id {
        context.set_options(SslOptions::NO_TICKET);
    }
    verify_by(&mut context, options.ca_file.as_deref())?;
    if let Some(certificate) = &options.certificate {
        show(&mut context, certificate)?;
    }
    // The cache stays empty: sessions leave through the callback, and only TLS 1.3's arrive after the handshake.
    context.set_session_cache_mode(SslSessionCacheMode::CLIENT | SslSessionCacheMode::NO_INTERNAL);
    context.set_new_session_callback(move |ssl, session| {
        if let (Some(mailbox), Ok(der)) = (ssl.ex_data(mailbox), session.to_der()) {
            mailbox.put(der);
        }
    });
    Ok(context.build())
}

/// Opens `file` for its reason, which OpenSSL does not give, if it cannot be read.
fn readable<'a>(
    what: &'static str,
    file: &'a Path,
) -> Result<impl Fn(&dyn fmt::Display) -> ProbeError + 'a, ProbeError> {
    let unusable = move |why: &dyn fmt::Display| ProbeError::Options(format!("{what} {}: {why}", file.display()));
    std::fs::File::open(file).map_err(|error| unusable(&error))?;
    Ok(unusable)
}

/// Has certificates of servers verified by the authorities in `ca_file`, if there is one.
fn verify_by(context: &mut SslContextBuilder, ca_file: Option<&Path>) -> Result<(), ProbeError> {
    if let Some(file) = ca_file {
        let unusable = readable("CA file", file)?;
        context.set_ca_file(file).map_err(|_| unusable(&"no certificates in PEM form"))?;
        context.set_verify(SslVerifyMode::PEER);
        return Ok(());
    }
    context.set_verify(SslVerifyMode::NONE);
    // A client that does not look at certificates has no use for rules about their strength either.
    context.set_cipher_list("DEFAULT:@SECLEVEL=0").map_err(setup)
}

/// Has the client show `certificate` where a server asks for one.
fn show(context: &mut SslContextBuilder, certificate: &ClientCertificate) -> Result<(), ProbeError> {
    let ClientCertificate { chain, key } = certificate;
    let unusable = readable("client certificate", chain)?;
    context.set_certificate_chain_file(chain).map_err(|_| unusable(&"no certificate in PEM form"))?;
    let unusable = readable("client key", key)?;
    // A question for a passphrase would hold up a script, which has no terminal.
    let pem = Zeroizing::new(std::fs::read(key).map_err(|error| unusable(&error))?);
    let key = PKey::private_key_from_pem_callback(&pem, |_| Ok(0));
    let key = key.map_err(|_| unusable(&"no private key in PEM form without a passphrase"))?;
    context.set_private_key(&key).map_err(|_| unusable(&"it is not the key of the client certificate"))
}

/// `SSL_OP_LEGACY_SERVER_CONNECT`, which the openssl crate does not name: connect to servers without RFC 5746 too.
const LEGACY_SERVER_CONNECT: SslOptions = SslOptions::from_bits_retain(0x4);

fn check_server_name(name: &str) -> Result<(), ProbeError> {
    let fault = if name.parse::<IpAddr>().is_ok() {
        "is an address; SNI carries host names only (RFC 6066 section 3)"
    } else if name.is_empty() || name.len() > 255 {
        "must have 1 to 255 bytes"
    } else if !name.bytes().all(|b| b.is_ascii_graphic()) {
        "must be ASCII without blanks (write other names in their xn-- form)"
    } else {
        return Ok(());
    };
    Err(ProbeError::Options(format!("server name {name:?} {fault}")))
}

fn setup(errors: ErrorStack) -> ProbeError {
    ProbeError::Setup(reasons(&errors))
}

fn reasons(errors: &ErrorStack) -> String {
    let reasons: Vec<_> = errors.errors().iter().filter_map(|error| error.reason()).collect();
    if reasons.is_empty() { errors.to_string() } else { reasons.join(", ") }
}

fn handshake_error(error: &ssl::Error, verified: X509VerifyResult, limit: Duration) -> ProbeError {
    if matches!(error.code(), ErrorCode::WANT_READ | ErrorCode::WANT_WRITE) {
        return ProbeError::Timeout { step: "the handshake", limit };
    }
    if let Some(errors) = error.ssl_error() {
        // Without verification the result is whatever it is, and no failure.
        let about_certificate = errors.errors().iter().any(|e| e.reason() == Some("certificate verify failed"));
        if about_certificate && verified != X509VerifyResult::OK {
            return ProbeError::Certificate(verified.error_string().to_owned());
        }
        if errors.errors().iter().any(|e| e.reason() == Some("unexpected eof while reading")) {
            return closed();
        }
        if !errors.errors().is_empty() {
            return ProbeError::Handshake(reasons(errors));
        }
    }
    match error.io_error() {
        Some(io) => ProbeError::Handshake(io.to_string()),
        None if error.source().is_none() => closed(),
        None => ProbeError::Handshake(error.to_string()),
    }
}

fn closed() -> ProbeError {
    ProbeError::Handshake("the server closed the connection".into())
}

#[cfg(test)]
mod servers;

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;
    use std::sync::atomic::Ordering;

    use super::servers::{Server, ServerIdentity, no_tickets};
    use super::*;

    static IDENTITY: LazyLock<ServerIdentity> = LazyLock::new(ServerIdentity::new);

    fn client() -> Client {
        Client::new(Options::default()).unwrap()
    }

    fn impatient() -> Client {
        Client::new(Options { timeout: Duration::from_millis(200), ..Options::default() }).unwrap()
    }

    /// Two servers on one context share its ticket keys and its session cache, as a good farm does.
    fn farm(change: impl FnOnce(&mut SslContextBuilder)) -> [Server; 2] {
        let context = IDENTITY.context(change);
        [Server::openssl(context.clone()), Server::openssl(context)]
    }

    fn strangers(change: impl Fn(&mut SslContextBuilder)) -> [Server; 2] {
        [Server::openssl(IDENTITY.context(&change)), Server::openssl(IDENTITY.context(&change))]
    }

    fn outcomes(servers: &[Server], mode: Mode) -> Vec<Vec<Outcome>> {
        let targets: Vec<_> = servers.iter().map(Server::target).collect();
        let matrix = matrix(&client(), &targets, mode, 1);
        matrix.rows.iter().map(|row| row.cells.iter().map(|cell| cell.outcome).collect()).collect()
    }

    const ALL_RESUMED: [[Outcome; 2]; 2] = [[Outcome::Resumed; 2]; 2];
    const ONLY_THEIR_OWN: [[Outcome; 2]; 2] =
        [[Outcome::Resumed, Outcome::Refused], [Outcome::Refused, Outcome::Resumed]];

    #[test]
    fn sessions_cross_by_id_where_the_cache_is_shared_and_only_there() {
        assert_eq!(outcomes(&farm(no_tickets), Mode::Id), ALL_RESUMED);
        assert_eq!(outcomes(&strangers(no_tickets), Mode::Id), ONLY_THEIR_OWN);
    }

    #[test]
    fn sessions_cross_by_id_also_where_the_server_would_rather_give_tickets() {
        assert_eq!(outcomes(&farm(|_| ()), Mode::Id), ALL_RESUMED);
    }

    #[test]
    fn tickets_cross_where_the_keys_are_shared_and_only_there() {
        for mode in [Mode::Ticket12, Mode::Ticket13] {
            assert_eq!(outcomes(&farm(|_| ()), mode), ALL_RESUMED, "{mode}");
            assert_eq!(outcomes(&strangers(|_| ()), mode), ONLY_THEIR_OWN, "{mode}");
        }
    }

    #[test]
    fn tickets_cross_between_rustls_servers_that_share_a_ticketer() {
        let ticketer = || rustls::crypto::ring::Ticketer::new().unwrap();
        let shared = ticketer();
        let farm = [(); 2].map(|()| Server::rustls(IDENTITY.rustls(Arc::clone(&shared))));
        let strangers = [(); 2].map(|()| Server::rustls(IDENTITY.rustls(ticketer())));
        for mode in [Mode::Ticket12, Mode::Ticket13] {
            assert_eq!(outcomes(&farm, mode), ALL_RESUMED, "{mode}");
            assert_eq!(outcomes(&strangers, mode), ONLY_THEIR_OWN, "{mode}");
        }
    }

    #[test]
    fn a_session_can_be_offered_again_and_again() {
        let [a, b] = farm(|_| ());
        for mode in Mode::ALL {
            let made = client().handshake(&a.target(), mode).unwrap();
            for round in 0..10 {
                let at = if round % 2 == 0 { &b } else { &a };
                let resumption = client().resume(&at.target(), &made.session).unwrap();
                assert!(resumption.resumed, "{mode}, round {round}");
            }
        }
    }

    #[test]
    fn a_client_that_takes_each_new_ticket_keeps_resuming() {
        let [a, b] = farm(|_| ());
        let mut session = client().handshake(&a.target(), Mode::Ticket13).unwrap().session;
        for round in 0..5 {
            let at = if round % 2 == 0 { &b } else { &a };
            let resumption = client().resume_and_renew(&at.target(), &session).unwrap();
            assert!(resumption.resumed, "round {round}");
            let renewed = resumption.renewed.expect("OpenSSL sends a new ticket after each TLS 1.3 handshake");
            assert_ne!(renewed.ticket(), session.ticket());
            session = renewed;
        }
    }

    #[test]
    fn a_ticket_that_comes_only_with_an_answer_is_asked_for() {
        let server = Server::openssl_with_late_tickets(IDENTITY.context(|_| ()));
        let made = client().handshake(&server.target(), Mode::Ticket13).unwrap();
        assert_eq!((made.protocol, made.session.mode()), ("TLSv1.3", Mode::Ticket13));
        assert!(made.took >= UNASKED, "{:?}: the tickets were not held back", made.took);
        assert!(client().resume(&server.target(), &made.session).unwrap().resumed);
    }

    /// Servers that ask for a client certificate, and take those of [`IDENTITY`] alone.
    fn farm_that_wants_a_certificate() -> [Server; 2] {
        farm(|context| {
            context.cert_store_mut().add_cert(IDENTITY.certificate.clone()).unwrap();
            context.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
        })
    }

    /// The identity's certificate and key in a file each.
    fn certificate_in(folder: &crate::temporary::Folder) -> ClientCertificate {
        let [chain, key] = ["client.pem", "client.key"].map(|name| folder.path().join(name));
        std::fs::write(&chain, IDENTITY.certificate.to_pem().unwrap()).unwrap();
        std::fs::write(&key, IDENTITY.key.private_key_to_pem_pkcs8().unwrap()).unwrap();
        ClientCertificate { chain, key }
    }

    #[test]
    fn a_farm_that_wants_client_certificates_resumes_with_one_and_without_says_what_the_servers_said() {
        let folder = crate::temporary::Folder::new();
        let servers = farm_that_wants_a_certificate();
        let targets: Vec<_> = servers.iter().map(Server::target).collect();
        let certificate = Some(certificate_in(&folder));
        let shown = Client::new(Options { certificate, ..Options::default() }).unwrap();
        for mode in Mode::ALL {
            let with = matrix(&shown, &targets, mode, 1);
            assert!(with.passed(), "{mode}: {:?}", with.failures());
            let without = client().handshake(&targets[0], mode).unwrap_err();
            let said = without.to_string();
            let expected = match mode {
                Mode::Id | Mode::Ticket12 => "the handshake failed: sslv3 alert handshake failure",
                Mode::Ticket13 => {
                    "the server broke off: tlsv13 alert certificate required; it wants a client certificate, which --cert \
                     and --key give"
                }
            };
            assert_eq!(said, expected, "{mode}");
        }
        // A session that a server takes is refused without a certificate by one that does not know it.
        let made = shown.handshake(&targets[0], Mode::Ticket13).unwrap();
        let [stranger, _] = farm_that_wants_a_certificate();
        let refused = client().resume(&stranger.target(), &made.session).unwrap_err();
        assert!(
            matches!(&refused, ProbeError::BrokenOff { alert } if alert.contains("certificate required")),
            "{refused}"
        );
    }

    #[test]
    fn a_client_certificate_that_cannot_be_used_is_told_before_anything_is_sent() {
        let folder = crate::temporary::Folder::new();
        let good = certificate_in(&folder);
        let refused = |certificate: ClientCertificate| {
            Client::new(Options { certificate: Some(certificate), ..Options::default() }).unwrap_err().to_string()
        };
        let swapped = ClientCertificate { chain: good.key.clone(), key: good.key.clone() };
        assert!(refused(swapped).ends_with("client.key: no certificate in PEM form"));
        let other = folder.path().join("other.key");
        std::fs::write(&other, ServerIdentity::new().key.private_key_to_pem_pkcs8().unwrap()).unwrap();
        let said = refused(ClientCertificate { key: other, ..good.clone() });
        assert!(said.ends_with("other.key: it is not the key of the client certificate"), "{said}");
        let locked = folder.path().join("locked.key");
        let cipher = openssl::symm::Cipher::aes_128_cbc();
        std::fs::write(&locked, IDENTITY.key.private_key_to_pem_pkcs8_passphrase(cipher, b"secret").unwrap()).unwrap();
        let said = refused(ClientCertificate { key: locked, ..good.clone() });
        assert!(said.ends_with("locked.key: no private key in PEM form without a passphrase"), "{said}");
        let said = refused(ClientCertificate { key: folder.path().join("none.key"), ..good });
        assert!(said.contains("none.key: No such file"), "{said}");
    }

    #[test]
    fn a_server_that_offers_nothing_to_resume_by_is_told_apart_from_one_that_refuses() {
        let server = Server::openssl(IDENTITY.context(|context| {
            context.set_options(SslOptions::NO_TICKET);
            context.set_session_cache_mode(SslSessionCacheMode::OFF);
            context.set_num_tickets(0).unwrap();
        }));
        for mode in Mode::ALL {
            match client().handshake(&server.target(), mode) {
                Err(ProbeError::NotOffered(not_offered)) => assert_eq!(not_offered, mode),
                other => panic!("{mode}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_protocol_that_the_server_does_not_speak_is_an_error_that_says_so() {
        let server = Server::openssl(IDENTITY.context(no_tickets));
        let error = client().handshake(&server.target(), Mode::Ticket13).unwrap_err();
        assert!(matches!(&error, ProbeError::Handshake(why) if why.contains("protocol version")), "{error}");
    }

    #[test]
    fn a_server_that_never_answers_costs_the_time_limit() {
        let server = Server::start(|mut tcp| {
            let mut nothing = Vec::new();
            let _ = std::io::Read::read_to_end(&mut tcp, &mut nothing);
        });
        let started = Instant::now();
        let error = impatient().handshake(&server.target(), Mode::Ticket13).unwrap_err();
        assert_eq!(error.to_string(), "the handshake took longer than 200ms");
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    }

    #[test]
    fn a_server_that_drips_bytes_does_not_stretch_the_time_limit() {
        let server = Server::start(|mut tcp| {
            // An endless TLS record, a byte at a time: each read succeeds, the handshake never does.
            let mut bytes = [0x16, 0x03, 0x03, 0x3f, 0x00].into_iter().chain(std::iter::repeat(0x02));
            while tcp.write_all(&[bytes.next().unwrap()]).is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let error = impatient().handshake(&server.target(), Mode::Id).unwrap_err();
        assert_eq!(error, ProbeError::Timeout { step: "the handshake", limit: Duration::from_millis(200) });
    }

    #[test]
    fn servers_that_close_refuse_or_talk_nonsense_are_named_as_such() {
        let closing = Server::start(drop);
        let error = client().handshake(&closing.target(), Mode::Id).unwrap_err();
        assert!(
            matches!(&error, ProbeError::Handshake(why) if why.contains("closed") || why.contains("reset")),
            "{error}"
        );

        let nonsense = Server::start(|mut tcp| {
            let _ = tcp.write_all(b"220 mail.example ESMTP\r\n");
            let _ = std::io::Read::read(&mut tcp, &mut [0; 1024]);
        });
        let error = client().handshake(&nonsense.target(), Mode::Id).unwrap_err();
        assert!(matches!(&error, ProbeError::Handshake(why) if why.contains("wrong version number")), "{error}");

        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = client().handshake(&free.into(), Mode::Id).unwrap_err();
        assert!(matches!(&error, ProbeError::Connect(why) if why.contains("refused")), "{error}");
    }

    #[test]
    fn a_dead_host_fails_its_row_and_its_column_only() {
        let [a, b] = farm(|_| ());
        let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let matrix = matrix(&client(), &[a.target(), dead.into(), b.target()], Mode::Ticket12, 3);
        assert_eq!(matrix.count(), (4, 9));
        for row in &matrix.rows {
            for cell in &row.cells {
                let is_dead = [&row.made_at, &cell.resumed_at].contains(&&dead.to_string());
                assert_eq!(cell.outcome == Outcome::Failed, is_dead, "{row:?}");
            }
        }
        let failures = matrix.failures();
        assert_eq!(failures.len(), 2, "{failures:?}");
        assert!(failures[0].starts_with(&format!("{dead} made no session: cannot connect: Connection refused")));
        let column =
            format!("{dead} failed when offered what was made at {} and {}: cannot connect", a.addr(), b.addr());
        assert!(failures[1].starts_with(&column), "{failures:?}");
    }

    #[test]
    fn a_refusal_is_tried_again_as_often_as_asked() {
        let servers = strangers(|_| ());
        let targets = [servers[0].target(), servers[1].target()];
        let matrix = matrix(&client(), &targets, Mode::Ticket12, 2);
        assert_eq!((matrix.rows[0].cells[0].tries, matrix.rows[0].cells[1].tries), (1, 2));
        // One session made, one resumed, one refused twice.
        assert_eq!(servers[1].connections.load(Ordering::SeqCst), 4);
    }

    #[test]
    fn orderly_closes_keep_a_session_that_breaking_off_loses() {
        let context = IDENTITY.context(no_tickets);
        let server = Server::openssl(context);
        let made = client().handshake(&server.target(), Mode::Id).unwrap();
        assert!(client().resume(&server.target(), &made.session).unwrap().resumed);

        let ssl = session_offer::ssl_offering(client().context(Mode::Id), made.session.der()).unwrap();
        let broken = client().connect(&server.target(), ssl, None).unwrap();
        assert!(broken.stream.ssl().session_reused());
        drop(broken);
        let until = Instant::now() + Duration::from_secs(5);
        while client().resume(&server.target(), &made.session).unwrap().resumed {
            assert!(Instant::now() < until, "the server still resumes a session whose connection broke");
        }
    }

    #[test]
    fn the_name_of_the_first_host_goes_with_the_session() {
        let [a, b] = farm(|_| ());
        let named = Target::resolve(&format!("localhost:{}", a.addr().port()), Duration::from_secs(1)).unwrap();
        let made = client().handshake(&named, Mode::Ticket13).unwrap();
        assert_eq!(made.session.server_name(), Some("localhost"));
        assert!(client().resume(&b.target(), &made.session).unwrap().resumed);
        let given = Client::new(Options { server_name: Some("edge.example".into()), ..Options::default() }).unwrap();
        let made = given.handshake(&named, Mode::Ticket13).unwrap();
        assert_eq!(made.session.server_name(), Some("edge.example"));
    }

    #[test]
    fn certificates_are_verified_only_against_a_ca_file() {
        let directory = crate::temporary::Folder::new();
        let trusted = directory.path().join("ca.pem");
        std::fs::write(&trusted, IDENTITY.certificate.to_pem().unwrap()).unwrap();
        let other = directory.path().join("other.pem");
        std::fs::write(&other, ServerIdentity::new().certificate.to_pem().unwrap()).unwrap();
        let [server, _] = farm(|_| ());
        let ask = |ca_file: &Path, name: Option<&str>| {
            let server_name = name.map(str::to_owned);
            let options = Options { ca_file: Some(ca_file.to_owned()), server_name, ..Options::default() };
            Client::new(options).unwrap().handshake(&server.target(), Mode::Ticket13).map(|_| ())
        };
        assert_eq!(ask(&trusted, None), Ok(()));
        assert_eq!(ask(&trusted, Some("edge.example")), Ok(()));
        let error = ask(&trusted, Some("evil.example")).unwrap_err();
        assert_eq!(error.to_string(), "the certificate is not trusted: hostname mismatch");
        let error = ask(&other, None).unwrap_err();
        assert!(matches!(&error, ProbeError::Certificate(why) if why.contains("self-signed")), "{error}");
    }

    #[test]
    fn options_that_cannot_work_are_refused_with_the_reason() {
        let directory = crate::temporary::Folder::new();
        let empty = directory.path().join("empty.pem");
        std::fs::write(&empty, "").unwrap();
        let missing = directory.path().join("missing.pem");
        let name = |name: &str| Options { server_name: Some(name.into()), ..Options::default() };
        for (options, why) in [
            (name("192.0.2.1"), "host names only"),
            (name(""), "1 to 255 bytes"),
            (name("zürich.example"), "xn--"),
            (Options { timeout: Duration::ZERO, ..Options::default() }, "0s"),
            (Options { ca_file: Some(empty), ..Options::default() }, "no certificates"),
            (Options { ca_file: Some(missing), ..Options::default() }, "No such file"),
        ] {
            let error = Client::new(options).unwrap_err();
            assert!(matches!(&error, ProbeError::Options(text) if text.contains(why)), "{error}");
        }
    }

    #[test]
    fn nothing_printed_of_a_session_is_secret() {
        let [server, _] = farm(|_| ());
        let made = client().handshake(&server.target(), Mode::Ticket12).unwrap();
        let bytes = made.session.der().len();
        assert_eq!(format!("{:?}", made.session), format!("Session {{ mode: Ticket12, bytes: {bytes}, .. }}"));
    }
}
