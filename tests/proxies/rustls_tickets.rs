//! Rust servers that share the farm's tickets, and an OpenSSL client that goes from one to the other.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::PKey;
use openssl::rand::rand_bytes;
use openssl::ssl::{Ssl, SslContext, SslMethod, SslSession, SslSessionCacheMode, SslVerifyMode, SslVersion};
use openssl::x509::{X509, X509NameBuilder};
use resumed::internals::keys::{HeldRing, KeyMaterial, Timetable};
use resumed::{FarmTicketer, KeySettings, Now, SystemClock};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig, ServerConnection, Stream};
use tokio::sync::watch;
use zeroize::Zeroizing;

const GREETING: &[u8] = b"hello";
const PATIENCE: Duration = Duration::from_secs(10);
const VERSIONS: [SslVersion; 2] = [SslVersion::TLS1_2, SslVersion::TLS1_3];

/// A certificate for localhost that signs itself, and its key.
fn self_signed() -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
    let mut name = X509NameBuilder::new().unwrap();
    name.append_entry_by_nid(Nid::COMMONNAME, "localhost").unwrap();
    let name = name.build();
    let mut certificate = X509::builder().unwrap();
    certificate.set_version(2).unwrap();
    certificate.set_serial_number(&BigNum::from_u32(1).unwrap().to_asn1_integer().unwrap()).unwrap();
    certificate.set_subject_name(&name).unwrap();
    certificate.set_issuer_name(&name).unwrap();
    certificate.set_pubkey(&key).unwrap();
    certificate.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    certificate.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
    certificate.sign(&key, MessageDigest::sha256()).unwrap();
    let key = PrivatePkcs8KeyDer::from(key.private_key_to_pkcs8().unwrap());
    (certificate.build().to_der().unwrap().into(), key.into())
}

/// A TLS server that greets each client and hangs up. It stops when dropped.
struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(timetable: watch::Receiver<Arc<Timetable>>) -> Self {
        Self::with(FarmTicketer::new(timetable, SystemClock::start()), WebPkiClientVerifier::no_client_auth())
    }

    fn with(ticketer: FarmTicketer, clients: Arc<dyn ClientCertVerifier>) -> Self {
        let (certificate, key) = self_signed();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_client_cert_verifier(clients);
        let mut config = builder.with_single_cert(vec![certificate], key).unwrap();
        // Whatever resumes, resumes by its ticket.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = Arc::new(ticketer);
        let (listener, config) = (TcpListener::bind("127.0.0.1:0").unwrap(), Arc::new(config));
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                greet(client, Arc::clone(&config));
            }
        });
        Self { address, stop, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        TcpStream::connect(self.address).expect("the server is listening still");
        let ended = self.thread.take().expect("stopped once").join();
        assert!(ended.is_ok() || thread::panicking(), "the server panicked");
    }
}

fn greet(mut client: TcpStream, config: Arc<ServerConfig>) {
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut connection = ServerConnection::new(config).unwrap();
    let mut stream = Stream::new(&mut connection, &mut client);
    // A client that is turned away sees that itself.
    if stream.write_all(GREETING).is_ok() {
        stream.conn.send_close_notify();
        stream.flush().unwrap();
    }
    // The client hangs up: had this end closed first, what it had not read yet could be lost.
    let _ = io::copy(&mut client, &mut io::sink());
}

/// Asks clients for a certificate of an authority that no client has one of.
fn required() -> Arc<dyn ClientCertVerifier> {
    let mut authorities = RootCertStore::empty();
    authorities.add(self_signed().0).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider).build().unwrap()
}

/// A session as a client may keep it: encoded, because OpenSSL marks a session as used up when it is renewed or its
/// connection is dropped, and these clients come back with one again and again.
type Session = Vec<u8>;

/// An OpenSSL client of one TLS version.
struct Client {
    context: SslContext,
    newest: Arc<Mutex<Option<Session>>>,
}

impl Client {
    fn new(version: SslVersion) -> Self {
        let newest = Arc::new(Mutex::new(None));
        let received = Arc::clone(&newest);
        let mut context = SslContext::builder(SslMethod::tls_client()).unwrap();
        context.set_verify(SslVerifyMode::NONE);
        context.set_min_proto_version(Some(version)).unwrap();
        context.set_max_proto_version(Some(version)).unwrap();
        context.set_session_cache_mode(SslSessionCacheMode::CLIENT | SslSessionCacheMode::NO_INTERNAL);
        context.set_new_session_callback(move |_, session| {
            *received.lock().unwrap() = Some(session.to_der().unwrap());
        });
        Self { context: context.build(), newest }
    }

    /// One connection. Returns whether `offered` was resumed, and the session that the server gave.
    fn visit(&self, server: &Server, offered: Option<&Session>) -> (bool, Option<Session>) {
        self.try_visit(server, offered).expect("every handshake succeeds, resumed or full")
    }

    /// The same where the server may turn the client away.
    fn try_visit(&self, server: &Server, offered: Option<&Session>) -> Result<(bool, Option<Session>), String> {
        self.newest.lock().unwrap().take();
        let mut ssl = Ssl::new(&self.context).unwrap();
        ssl.set_hostname("localhost").unwrap();
        if let Some(session) = offered {
            let session = SslSession::from_der(session).unwrap();
            // SAFETY: a session just decoded belongs to no context yet.
            unsafe { ssl.set_session(&session) }.unwrap();
        }
        let tcp = TcpStream::connect(server.address).unwrap();
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut stream = ssl.connect(tcp).map_err(|error| error.to_string())?;
        let mut greeting = Vec::new();
        // With TLS 1.3 the client is done before the server has seen its certificate.
        stream.read_to_end(&mut greeting).map_err(|error| error.to_string())?;
        assert_eq!(greeting, GREETING);
        Ok((stream.ssl().session_reused(), self.newest.lock().unwrap().take()))
    }

    fn session(&self, server: &Server) -> Session {
        let (_, session) = self.visit(server, None);
        session.expect("the server gives a ticket")
    }

    fn resumes(&self, server: &Server, session: &Session) -> bool {
        self.visit(server, Some(session)).0
    }
}

fn mint(held: &mut HeldRing, seal_from: u64, now: Now) {
    let mut random = Zeroizing::new([0; 80]);
    rand_bytes(&mut *random).unwrap();
    held.mint(seal_from, KeyMaterial::from_random(&random), now);
}

/// Whether the ticket in `session` begins with `name`.
fn contains(session: &Session, name: &[u8; 16]) -> bool {
    session.windows(name.len()).any(|window| window == name)
}

/// A farm's ring with one key that seals.
fn ring(now: Now) -> HeldRing {
    let mut held = HeldRing::new(KeySettings::default());
    mint(&mut held, now.wall, now);
    held
}

#[test]
fn a_client_resumes_on_any_server_of_the_farm_and_on_none_outside() {
    let now = SystemClock::start().now();
    let (_node, farm) = watch::channel(Arc::new(ring(now).timetable(now)));
    let (_other, elsewhere) = watch::channel(Arc::new(ring(now).timetable(now)));
    let (a, b, stranger) = (Server::start(farm.clone()), Server::start(farm), Server::start(elsewhere));
    for version in VERSIONS {
        let client = Client::new(version);
        let session = client.session(&a);
        assert!(client.resumes(&a, &session), "{version:?}: on the server that gave it");
        let (resumed, next) = client.visit(&b, Some(&session));
        assert!(resumed, "{version:?}: on the other server");
        let next = next.unwrap_or(session);
        assert!(client.resumes(&a, &next), "{version:?}: and back");
        assert!(!client.resumes(&stranger, &next), "{version:?}: a server of another farm resumed");
    }
}

#[test]
fn a_rotation_loses_no_ticket_and_a_revocation_all() {
    let now = SystemClock::start().now();
    let mut held = ring(now);
    let (node, farm) = watch::channel(Arc::new(held.timetable(now)));
    let (a, b) = (Server::start(farm.clone()), Server::start(farm));
    let clients = VERSIONS.map(Client::new);
    let old = clients.each_ref().map(|client| client.session(&a));

    // The next key has settled for long: it seals at once.
    let later = now.after(Duration::from_secs(60));
    mint(&mut held, now.wall, now);
    node.send(Arc::new(held.timetable(later))).unwrap();
    let new = clients.each_ref().map(|client| client.session(&a));
    let name = held.active(later).unwrap().name;
    assert!(new.iter().all(|session| contains(session, &name)), "sealed with the next key");
    assert!(!old.iter().any(|session| contains(session, &name)));
    for ((client, old), new) in clients.iter().zip(&old).zip(&new) {
        assert!(client.resumes(&b, old), "a ticket from before the rotation");
        assert!(client.resumes(&b, new), "a ticket from after the rotation");
    }

    let mut random = Zeroizing::new([0; 80]);
    rand_bytes(&mut *random).unwrap();
    held.revoke(KeyMaterial::from_random(&random), 0, now);
    node.send(Arc::new(held.timetable(now))).unwrap();
    for ((client, old), new) in clients.iter().zip(&old).zip(&new) {
        assert!(!client.resumes(&b, old) && !client.resumes(&b, new), "a revoked key opened a ticket");
        assert!(client.resumes(&b, &client.session(&a)), "the key that replaced them");
    }
}

#[test]
fn a_server_without_a_key_serves_all_the_same_and_gives_tickets_as_soon_as_it_has_one() {
    let now = SystemClock::start().now();
    let (node, farm) = watch::channel(Arc::new(Timetable::default()));
    let server = Server::start(farm);
    for version in VERSIONS {
        let client = Client::new(version);
        let (_, session) = client.visit(&server, None);
        let resumed = session.is_some_and(|session| client.resumes(&server, &session));
        assert!(!resumed, "{version:?}: resumed without a key");
    }
    node.send(Arc::new(ring(now).timetable(now))).unwrap();
    for version in VERSIONS {
        let client = Client::new(version);
        let session = client.session(&server);
        assert!(client.resumes(&server, &session), "{version:?}");
    }
}

#[test]
fn a_listener_that_requires_a_client_certificate_takes_no_ticket_of_one_that_does_not() {
    let now = SystemClock::start().now();
    let (_node, farm) = watch::channel(Arc::new(ring(now).timetable(now)));
    let ticketer = || FarmTicketer::new(farm.clone(), SystemClock::start());
    let (open, strict) = (Server::start(farm.clone()), Server::with(ticketer().for_rule("required"), required()));
    let careless = Server::with(ticketer(), required());
    for version in VERSIONS {
        let client = Client::new(version);
        let session = client.session(&open);
        // What rustls does not look at, and the rule's name is for.
        assert!(client.resumes(&careless, &session), "{version:?}: rustls asks now, and rules may go");
        for offered in [None, Some(&session)] {
            let refused = client.try_visit(&strict, offered).expect_err("a client without a certificate");
            assert!(refused.contains("certificate required"), "{version:?}: {refused}");
        }
    }
}
