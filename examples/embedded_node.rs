//! A Rust server that is a node of the farm by itself, without a daemon beside it: "host c" of README.md's picture.
//!
//! ```text
//! cargo run --example embedded_node -- --name c --farm prod --broker amqp://resumed@127.0.0.1:5672/%2f \
//!     --password-file broker.password --secret farm.secret --listen 127.0.0.1:8443
//! openssl s_client -connect 127.0.0.1:8443 -tls1_2 -sess_out session.pem </dev/null | grep New,
//! openssl s_client -connect 127.0.0.1:8444 -tls1_2 -sess_in session.pem </dev/null | grep Reused,
//! ```
//!
//! with a second one, of another name, at port 8444. `--certificate` and `--key` name PEM files; without them the server signs
//! a certificate of its own, which is enough to try this. SIGTERM ends it with a farewell to the farm.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::PKey;
use openssl::x509::{X509, X509NameBuilder};
use resumed::{
    BrokerUri, Node, NodeSettings, ProxyInfo, RabbitMq, RabbitMqSettings, SystemClock, memory, read_farm_secrets,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::{ServerConfig, ServerConnection, Stream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

type Fallible<T> = Result<T, Box<dyn Error>>;

/// What clients of this listener must show, in the words of all servers of the farm that ask the same of theirs.
///
/// rustls resumes a ticket without asking for a client certificate, whichever listener it was made on. So a ticket is to
/// open only where the same rule holds. A listener that requires certificates gets another name here, such as
/// "client certificate: required, of our own authority": a client that comes to it with a ticket of this one then makes a
/// full handshake, and has to show its certificate.
const RULE: &str = "client certificate: not asked for";

const USAGE: &str = "usage: embedded_node --name NODE --farm FARM --broker URI --secret FILE --listen ADDRESS:PORT \
                     [--pod POD] [--password-file FILE] [--certificate PEM --key PEM]";

/// A client that says nothing for so long is gone.
const PATIENCE: Duration = Duration::from_secs(10);

// One thread is enough for a node. Clients have threads of their own here; a server on tokio would have tasks.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Fallible<()> {
    // Before the first secret is read: keys then reach neither swap nor core dumps.
    for weakness in memory::keep() {
        eprintln!("embedded_node: {weakness}");
    }
    let flags = Flags::parse(std::env::args().skip(1))?;
    let mut terminate = signal(SignalKind::terminate())?;
    // A server that reads its secrets again, for their renewal, sends the new ones here.
    let (_later_secrets, secrets) = watch::channel(Arc::new(read_farm_secrets(&[flags.required("secret")?])?));
    let bus = RabbitMq::new(broker(&flags)?)?;
    let node = Node::start(node_settings(&flags)?, secrets, Arc::new(bus), SystemClock::start())?;
    // So that `resumed status` names this server beside its node.
    let _registered = node.register(this_server());

    let listener = TcpListener::bind(flags.required("listen")?)?;
    let config = Arc::new(server_config(&node, identity(&flags)?)?);
    // The first key comes a moment later. Until then clients get no ticket; they never wait for one.
    println!("listening on {}", listener.local_addr()?);
    thread::spawn(move || serve(&listener, &config));

    let mut broken = node.broken.clone();
    tokio::select! {
        _ = terminate.recv() => {}
        Ok(task) = broken.wait_for(Option::is_some) => return Err(format!("a task of the node broke: {:?}", *task).into()),
    }
    node.stop().await;
    Ok(())
}

fn node_settings(flags: &Flags) -> Fallible<NodeSettings> {
    let pod = flags.get("pod").unwrap_or("default");
    let mut settings = NodeSettings::new(flags.required("name")?, flags.required("farm")?, pod);
    // A rustls server takes tickets alone from other hosts, and no sessions.
    settings.sessions.replicate = false;
    Ok(settings)
}

fn broker(flags: &Flags) -> Fallible<RabbitMqSettings> {
    let uris = flags.required("broker")?.split(',').map(BrokerUri::parse).collect::<Result<_, _>>()?;
    let password_file = flags.get("password-file").map(Into::into);
    Ok(RabbitMqSettings { uris, password_file, ..RabbitMqSettings::default() })
}

fn this_server() -> ProxyInfo {
    ProxyInfo { kind: "rustls".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned(), ..ProxyInfo::default() }
}

/// What a rustls server changes to share its tickets.
fn server_config(node: &Node, (chain, key): Identity) -> Fallible<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.ticketer = Arc::new(node.ticketer().for_rule(RULE));
    // Sessions that only this server can resume are of no use behind a load balancer.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
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

/// Answers one request, whatever it is, with how the handshake went.
fn greet(mut client: TcpStream, config: Arc<ServerConfig>) -> Fallible<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    let mut connection = ServerConnection::new(config)?;
    let mut stream = Stream::new(&mut connection, &mut client);
    if stream.read(&mut [0; 1024])? > 0 {
        let body = format!("your handshake: {:?}\n", stream.conn.handshake_kind());
        let length = body.len();
        write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")?;
    }
    stream.conn.send_close_notify();
    Ok(stream.flush()?)
}

/// A chain of certificates and its key.
type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn identity(flags: &Flags) -> Fallible<Identity> {
    match (flags.get("certificate"), flags.get("key")) {
        (Some(chain), Some(key)) => from_files(Path::new(chain), Path::new(key)),
        (None, None) => self_signed(),
        _ => Err("--certificate and --key go together".into()),
    }
}

fn from_files(chain: &Path, key: &Path) -> Fallible<Identity> {
    let chain = X509::stack_from_pem(&std::fs::read(chain)?)?;
    let chain = chain.iter().map(|certificate| Ok(certificate.to_der()?.into())).collect::<Fallible<_>>()?;
    let key = PKey::private_key_from_pem(&std::fs::read(key)?)?;
    Ok((chain, PrivatePkcs8KeyDer::from(key.private_key_to_pkcs8()?).into()))
}

fn self_signed() -> Fallible<Identity> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
    let key = PKey::from_ec_key(EcKey::generate(&group)?)?;
    let mut name = X509NameBuilder::new()?;
    name.append_entry_by_nid(Nid::COMMONNAME, "localhost")?;
    let name = name.build();
    let mut certificate = X509::builder()?;
    certificate.set_version(2)?;
    certificate.set_serial_number(&*BigNum::from_u32(1)?.to_asn1_integer()?)?;
    certificate.set_subject_name(&name)?;
    certificate.set_issuer_name(&name)?;
    certificate.set_pubkey(&key)?;
    certificate.set_not_before(&*Asn1Time::days_from_now(0)?)?;
    certificate.set_not_after(&*Asn1Time::days_from_now(30)?)?;
    certificate.sign(&key, MessageDigest::sha256())?;
    let key = PrivatePkcs8KeyDer::from(key.private_key_to_pkcs8()?);
    Ok((vec![certificate.build().to_der()?.into()], key.into()))
}

/// The command line: `--flag value`, each at most once.
struct Flags(BTreeMap<String, String>);

impl Flags {
    const KNOWN: [&str; 9] =
        ["name", "farm", "pod", "broker", "password-file", "secret", "listen", "certificate", "key"];

    fn parse(mut words: impl Iterator<Item = String>) -> Fallible<Self> {
        let mut flags = BTreeMap::new();
        while let Some(word) = words.next() {
            let flag = word.strip_prefix("--").filter(|flag| Self::KNOWN.contains(flag)).ok_or(USAGE)?;
            let value = words.next().ok_or(USAGE)?;
            if flags.insert(flag.to_owned(), value).is_some() {
                return Err(format!("--{flag} is given twice").into());
            }
        }
        Ok(Self(flags))
    }

    fn get(&self, flag: &str) -> Option<&str> {
        self.0.get(flag).map(String::as_str)
    }

    fn required(&self, flag: &str) -> Fallible<&str> {
        self.get(flag).ok_or_else(|| format!("--{flag} is missing\n{USAGE}").into())
    }
}
