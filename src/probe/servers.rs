//! Real TLS servers in threads, for the tests of this module.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use openssl::asn1::Asn1Time;
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::ssl::{
    ShutdownState, Ssl, SslContext, SslContextBuilder, SslMethod, SslOptions, SslSessionCacheMode, SslStream,
};
use openssl::x509::extension::SubjectAlternativeName;
use openssl::x509::{X509, X509NameBuilder};

/// A self-signed certificate for `edge.example` and 127.0.0.1.
pub struct ServerIdentity {
    pub certificate: X509,
    pub key: PKey<Private>,
}

impl ServerIdentity {
    pub(crate) fn new() -> Self {
        let key = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
        let mut name = X509NameBuilder::new().unwrap();
        name.append_entry_by_text("CN", "edge.example").unwrap();
        let name = name.build();
        let mut certificate = X509::builder().unwrap();
        certificate.set_version(2).unwrap();
        certificate.set_subject_name(&name).unwrap();
        certificate.set_issuer_name(&name).unwrap();
        certificate.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
        certificate.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
        certificate.set_pubkey(&key).unwrap();
        let names = SubjectAlternativeName::new()
            .dns("edge.example")
            .ip("127.0.0.1")
            .build(&certificate.x509v3_context(None, None))
            .unwrap();
        certificate.append_extension(names).unwrap();
        certificate.sign(&key, MessageDigest::sha256()).unwrap();
        Self { certificate: certificate.build(), key }
    }

    /// An OpenSSL server's context with its own ticket keys and session cache. `change` adjusts it.
    pub(crate) fn context(&self, change: impl FnOnce(&mut SslContextBuilder)) -> SslContext {
        let mut context = SslContext::builder(SslMethod::tls_server()).unwrap();
        context.set_certificate(&self.certificate).unwrap();
        context.set_private_key(&self.key).unwrap();
        context.set_session_id_context(b"edge").unwrap();
        context.set_session_cache_mode(SslSessionCacheMode::SERVER);
        change(&mut context);
        context.build()
    }

    /// A rustls server's configuration that seals tickets with `ticketer`.
    pub(crate) fn rustls(&self, ticketer: Arc<dyn rustls::server::ProducesTickets>) -> Arc<rustls::ServerConfig> {
        let certificate = self.certificate.to_der().unwrap().into();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(self.key.private_key_to_pkcs8().unwrap());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let mut config = config.unwrap().with_no_client_auth().with_single_cert(vec![certificate], key.into()).unwrap();
        config.ticketer = ticketer;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Arc::new(config)
    }
}

pub(crate) fn no_tickets(context: &mut SslContextBuilder) {
    context.set_options(SslOptions::NO_TICKET | SslOptions::NO_TLSV1_3);
}

/// A listener on a free loopback port that hands each connection to its own thread, until dropped.
pub struct Server {
    addr: SocketAddr,
    stop: Arc<AtomicBool>,
    pub connections: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, connections) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, count, serve) = (Arc::clone(&stop), Arc::clone(&connections), Arc::new(serve));
        let thread = thread::spawn(move || {
            for tcp in listener.incoming().flatten() {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                count.fetch_add(1, Ordering::SeqCst);
                tcp.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                let serve = Arc::clone(&serve);
                thread::spawn(move || serve(tcp));
            }
        });
        Self { addr, stop, connections, thread: Some(thread) }
    }

    /// An OpenSSL server that answers a request with a short page and closes in order.
    pub(crate) fn openssl(context: SslContext) -> Self {
        Self::start(move |tcp| {
            let mut stream = SslStream::new(Ssl::new(&context).unwrap(), tcp).unwrap();
            // A connection that just breaks also reads as an end, but without close_notify: then there is no answer to it.
            if stream.accept().is_ok() && (answer(&mut stream) || stream.get_shutdown() == ShutdownState::RECEIVED) {
                // The client may be gone by now.
                let _ = stream.shutdown();
            }
        })
    }

    /// An OpenSSL server whose tickets stay behind until it answers a request.
    pub(crate) fn openssl_with_late_tickets(context: SslContext) -> Self {
        Self::start(move |tcp| {
            let mut stream = SslStream::new(Ssl::new(&context).unwrap(), HoldsBack::new(tcp)).unwrap();
            if stream.accept().is_ok() {
                let mut request = [0; 1024];
                if matches!(stream.read(&mut request), Ok(1..)) {
                    stream.get_mut().release().unwrap();
                }
                let _ = stream.shutdown();
            }
        })
    }

    pub(crate) fn rustls(config: Arc<rustls::ServerConfig>) -> Self {
        Self::start(move |mut tcp| {
            let mut connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = rustls::Stream::new(&mut connection, &mut tcp);
            let _ = answer(&mut stream);
            connection.send_close_notify();
            let _ = connection.write_tls(&mut tcp);
        })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn target(&self) -> super::Target {
        self.addr.into()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the accepting thread; if it is gone, so is the listener.
        let _ = TcpStream::connect(self.addr);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// True if there was a request to answer.
fn answer(stream: &mut (impl Read + Write)) -> bool {
    let mut request = [0; 1024];
    matches!(stream.read(&mut request), Ok(1..))
        && stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").is_ok()
}

/// Keeps what is written after the client's Finished, which is its second flight, until released.
struct HoldsBack {
    tcp: TcpStream,
    client_flights: u32,
    was_writing: bool,
    held: Option<Vec<u8>>,
}

impl HoldsBack {
    fn new(tcp: TcpStream) -> Self {
        Self { tcp, client_flights: 0, was_writing: true, held: Some(Vec::new()) }
    }

    fn release(&mut self) -> io::Result<()> {
        self.tcp.write_all(&self.held.take().unwrap_or_default())
    }
}

impl Read for HoldsBack {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if std::mem::take(&mut self.was_writing) {
            self.client_flights += 1;
        }
        self.tcp.read(bytes)
    }
}

impl Write for HoldsBack {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.was_writing = true;
        match &mut self.held {
            Some(held) if self.client_flights >= 2 => held.write(bytes),
            _ => self.tcp.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tcp.flush()
    }
}
