//! Rust servers that share their session tickets: what a server embeds, and how keys rotate under it.
//!
//! ```text
//! cargo run --example rustls_server -- 127.0.0.1:8443 127.0.0.1:8444
//! openssl s_client -connect 127.0.0.1:8443 -tls1_2 -sess_out session.pem </dev/null | grep New,
//! openssl s_client -connect 127.0.0.1:8444 -tls1_2 -sess_in session.pem </dev/null | grep Reused,
//! ```
//!
//! Each address is a server of its own, with a certificate of its own: all that they share is the timetable. Here one
//! process keeps the ring for both. In a farm the node does, and every host's timetable comes to hold the same keys.

use std::error::Error;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use openssl::asn1::Asn1Time;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::PKey;
use openssl::x509::{X509, X509NameBuilder};
use resumed::clock::{Now, SystemClock};
use resumed::keys::{HeldRing, KeyMaterial, KeySettings, Timetable};
use resumed::proxies::rustls::FarmTicketer;
use resumed::random;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::{ServerConfig, ServerConnection, Stream};
use tokio::sync::watch;
use zeroize::Zeroizing;

type Fallible<T> = Result<T, Box<dyn Error>>;

fn main() -> Fallible<()> {
    let addresses: Vec<String> = std::env::args().skip(1).collect();
    if addresses.is_empty() {
        return Err("usage: rustls_server ADDRESS:PORT...".into());
    }
    let clock = SystemClock::start();
    let mut held = HeldRing::new(KeySettings::default());
    let now = clock.now();
    held.mint(now.wall, material()?, now);
    let (publish, timetable) = watch::channel(Arc::new(held.timetable(now)));
    for address in addresses {
        let config = Arc::new(config(timetable.clone(), clock)?);
        let listener = TcpListener::bind(&address)?;
        println!("listening on {}", listener.local_addr()?);
        thread::spawn(move || serve(&listener, &config));
    }
    keep_one_key_ahead(&mut held, &publish, clock)
}

/// The part that a server embeds.
fn config(timetable: watch::Receiver<Arc<Timetable>>, clock: SystemClock) -> Fallible<ServerConfig> {
    let (certificate, key) = self_signed()?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    config.ticketer = Arc::new(FarmTicketer::new(timetable, clock));
    // Sessions that only this server can resume are of no use behind a load balancer.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

/// What a node's leader does for ever.
fn keep_one_key_ahead(
    held: &mut HeldRing,
    publish: &watch::Sender<Arc<Timetable>>,
    clock: SystemClock,
) -> Fallible<()> {
    loop {
        let now = clock.now();
        if let Some(seal_from) = due(held, now) {
            held.mint(seal_from, material()?, now);
        }
        held.expire(now);
        publish.send_replace(Arc::new(held.timetable(now)));
        let wait = held.next_change(now).map_or(1000, |at| at - now.wall);
        thread::sleep(Duration::from_millis(wait));
    }
}

/// A host that slept through the life of its keys needs one at once; otherwise the next is made ahead of its time.
fn due(held: &HeldRing, now: Now) -> Option<u64> {
    if held.is_empty(now) || held.stranded(now) { Some(now.wall) } else { held.mint_due(now) }
}

fn material() -> Fallible<KeyMaterial> {
    let mut bytes = Zeroizing::new([0; 80]);
    random::try_fill(&mut *bytes)?;
    Ok(KeyMaterial::from_random(&bytes))
}

fn serve(listener: &TcpListener, config: &Arc<ServerConfig>) {
    for client in listener.incoming() {
        let config = Arc::clone(config);
        thread::spawn(move || {
            if let Err(error) = client.map_err(Into::into).and_then(|client| greet(client, config)) {
                eprintln!("client: {error}");
            }
        });
    }
}

fn greet(mut client: TcpStream, config: Arc<ServerConfig>) -> Fallible<()> {
    client.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut connection = ServerConnection::new(config)?;
    let mut stream = Stream::new(&mut connection, &mut client);
    stream.conn.complete_io(stream.sock)?;
    let how = stream.conn.handshake_kind();
    writeln!(stream, "hello; your handshake: {how:?}")?;
    stream.conn.send_close_notify();
    Ok(stream.flush()?)
}

/// A certificate for localhost that signs itself, and its key.
fn self_signed() -> Fallible<(CertificateDer<'static>, PrivateKeyDer<'static>)> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
    let key = PKey::from_ec_key(EcKey::generate(&group)?)?;
    let mut name = X509NameBuilder::new()?;
    name.append_entry_by_nid(Nid::COMMONNAME, "localhost")?;
    let name = name.build();
    let mut certificate = X509::builder()?;
    certificate.set_version(2)?;
    certificate.set_subject_name(&name)?;
    certificate.set_issuer_name(&name)?;
    certificate.set_pubkey(&key)?;
    certificate.set_not_before(&*Asn1Time::days_from_now(0)?)?;
    certificate.set_not_after(&*Asn1Time::days_from_now(30)?)?;
    certificate.sign(&key, MessageDigest::sha256())?;
    let key = PrivatePkcs8KeyDer::from(key.private_key_to_pkcs8()?);
    Ok((certificate.build().to_der()?.into(), key.into()))
}
