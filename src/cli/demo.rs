//! `resumed demo`: a farm within one process, to see it work without a broker, a proxy or root.
//!
//! Three nodes on the in-process bus, and a rustls server beside each: the embedded way to use this library.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use openssl::asn1::Asn1Time;
use openssl::bn::{BigNum, MsbOption};
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::rsa::Rsa;
use openssl::x509::{X509, X509NameBuilder};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::bus::in_process::{Hub, InProcess};
use crate::cli::status;
use crate::clock::SystemClock;
use crate::envelope::{FarmSecret, SecretError, Secrets};
use crate::node::{Node, NodeSettings, NodeView, StartError};
use crate::operator::{Operator, OperatorError};
use crate::probe::{self, Client, Matrix, Mode, ProbeError, Session, Target};
use crate::proxies::rustls::FarmTicketer;

/// How many nodes, and servers.
const NODES: usize = 3;

/// How long any step may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the demonstration did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum DemoError {
    /// No farm secret could be made.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// A node did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// No certificate could be made.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] ErrorStack),
    /// rustls refused the server's configuration.
    #[error("cannot configure a server: {0}")]
    Server(#[from] rustls::Error),
    /// A server cannot listen.
    #[error("cannot listen on loopback: {0}")]
    Listen(#[from] io::Error),
    /// A probe could not be made.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The nodes did not agree in time.
    #[error("{0} did not happen within {PATIENCE:?}")]
    Late(&'static str),
    /// The rotation found no leader.
    #[error(transparent)]
    Rotate(#[from] OperatorError),
    /// A part of the process ended in a panic.
    #[error("a task failed: {0}")]
    Task(#[from] tokio::task::JoinError),
    /// What it saw could not be printed.
    #[error("cannot print the result: {0}")]
    Print(#[source] io::Error),
}

/// Runs the demonstration and prints to `out` what it sees, as it goes. Returns whether every resumption worked.
///
/// # Errors
/// What kept it from its end.
pub(super) async fn demo(out: &mut impl Write) -> Result<bool, DemoError> {
    say(out, &format!("Starting {NODES} nodes on the in-process bus, and a rustls server beside each.\n"))?;
    let clock = SystemClock::start();
    let nodes = start_nodes(clock)?;
    let config = Certificate::new()?;
    let mut targets = Vec::new();
    for node in &nodes {
        targets.push(Target::from(serve(&config, node.ticketer())?));
    }
    wait_for(&nodes, "one ring in common", |views| {
        let fingerprint = &views[0].ring.fingerprint;
        views.iter().all(|view| view.leader.is_some() && view.ring.fingerprint == *fingerprint)
            && views.iter().all(|view| view.active_generation().is_some())
    })
    .await?;

    let mut passed = probe_all(&targets, out).await?;
    let old = sessions_of(&targets).await?;

    say(out, "Rotating the ticket key.\n")?;
    let rotation = Operator::of(&nodes[1]).rotate(PATIENCE, |_| {}).await?;
    wait_for(&nodes, "sealing with the new key", |views| {
        views.iter().all(|view| view.active_generation() == Some(rotation.generation))
    })
    .await?;
    say(out, &format!("Key {} seals on all {} nodes.\n\n", rotation.generation, rotation.have.len()))?;
    let (resumed, tried) = offer_all(&targets, old).await?;
    say(out, &format!("Tickets from before the rotation that still open: {resumed} of {tried}.\n\n"))?;
    passed &= resumed == tried;
    passed &= probe_all(&targets, out).await?;

    say(out, &status::render(&Operator::of(&nodes[0]).status().await, clock.now().wall))?;
    for node in nodes {
        node.stop().await;
    }
    Ok(passed)
}

/// Prints at once: the next step may take seconds.
fn say(out: &mut impl Write, text: &str) -> Result<(), DemoError> {
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(DemoError::Print)
}

fn start_nodes(clock: SystemClock) -> Result<Vec<Node>, DemoError> {
    let hub = Arc::new(Hub::default());
    let (_keep, secrets) = watch::channel(Arc::new(Secrets::new(vec![FarmSecret::generate()?])?));
    let start = |index: usize| {
        let bus = Arc::new(InProcess::new(Arc::clone(&hub)));
        Ok(Node::start(node_settings(index), secrets.clone(), bus, clock)?)
    };
    (0..NODES).map(start).collect()
}

fn node_settings(index: usize) -> NodeSettings {
    let mut settings = NodeSettings::new(&format!("node{}", index + 1), "demo", "demo");
    settings.keys.interval = Duration::from_secs(3600);
    settings.keys.settle = Duration::from_millis(500);
    settings.keys.max_seal_age = Duration::from_secs(3 * 3600);
    settings.report_every = Duration::from_secs(1);
    settings.sessions.max_bytes = 16 << 20;
    settings
}

async fn wait_for(
    nodes: &[Node],
    what: &'static str,
    mut happened: impl FnMut(&[NodeView]) -> bool,
) -> Result<(), DemoError> {
    let late = Instant::now() + PATIENCE;
    loop {
        let views: Vec<NodeView> = nodes.iter().map(|node| node.view.borrow().clone()).collect();
        if happened(&views) {
            return Ok(());
        }
        if Instant::now() > late {
            return Err(DemoError::Late(what));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

const TICKET_MODES: [Mode; 2] = [Mode::Ticket12, Mode::Ticket13];

async fn probe_all(targets: &[Target], out: &mut impl Write) -> Result<bool, DemoError> {
    let targets = targets.to_vec();
    let matrices = tokio::task::spawn_blocking(move || -> Result<Vec<Matrix>, ProbeError> {
        let client = Client::new(probe::Options::default())?;
        Ok(TICKET_MODES.iter().map(|mode| probe::matrix(&client, &targets, *mode, 1)).collect())
    })
    .await??;
    for matrix in &matrices {
        say(out, &format!("{}\n", crate::cli::probe::render(matrix)))?;
    }
    Ok(matrices.iter().all(Matrix::passed))
}

async fn sessions_of(targets: &[Target]) -> Result<Vec<Session>, DemoError> {
    let targets = targets.to_vec();
    let sessions = tokio::task::spawn_blocking(move || {
        let client = Client::new(probe::Options::default())?;
        let pairs = targets.iter().flat_map(|target| TICKET_MODES.map(|mode| (target, mode)));
        pairs.map(|(target, mode)| Ok(client.handshake(target, mode)?.session)).collect::<Result<_, ProbeError>>()
    });
    Ok(sessions.await??)
}

/// Offers every session at every server.
async fn offer_all(targets: &[Target], sessions: Vec<Session>) -> Result<(usize, usize), DemoError> {
    let targets = targets.to_vec();
    let counted = tokio::task::spawn_blocking(move || {
        let client = Client::new(probe::Options::default())?;
        let (mut resumed, mut tried) = (0, 0);
        for session in &sessions {
            for target in &targets {
                tried += 1;
                resumed += usize::from(client.resume(target, session)?.resumed);
            }
        }
        Ok::<_, ProbeError>((resumed, tried))
    });
    Ok(counted.await??)
}

/// One certificate for all servers: a session is only ever resumed under the name that it was made for.
struct Certificate {
    chain: Vec<CertificateDer<'static>>,
    key: PrivatePkcs8KeyDer<'static>,
}

impl Certificate {
    fn new() -> Result<Self, ErrorStack> {
        let key = PKey::from_rsa(Rsa::generate(2048)?)?;
        let mut name = X509NameBuilder::new()?;
        name.append_entry_by_text("CN", "demo.test")?;
        let name = name.build();
        let mut serial = BigNum::new()?;
        serial.rand(120, MsbOption::MAYBE_ZERO, false)?;
        let mut builder = X509::builder()?;
        builder.set_version(2)?;
        builder.set_serial_number(serial.to_asn1_integer()?.as_ref())?;
        builder.set_subject_name(&name)?;
        builder.set_issuer_name(&name)?;
        builder.set_pubkey(&key)?;
        builder.set_not_before(Asn1Time::days_from_now(0)?.as_ref())?;
        builder.set_not_after(Asn1Time::days_from_now(1)?.as_ref())?;
        builder.sign(&key, MessageDigest::sha256())?;
        let key = PrivatePkcs8KeyDer::from(key.private_key_to_pkcs8()?);
        Ok(Self { chain: vec![CertificateDer::from(builder.build().to_der()?)], key })
    }

    /// A server that seals its tickets with the farm's keys: the one line that an embedding server needs.
    fn server(&self, ticketer: FarmTicketer) -> Result<ServerConfig, rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::Pkcs8(self.key.clone_key());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(self.chain.clone(), key)?;
        config.ticketer = Arc::new(ticketer);
        Ok(config)
    }
}

/// Serves on a free loopback port until the process ends.
fn serve(certificate: &Certificate, ticketer: FarmTicketer) -> Result<SocketAddr, DemoError> {
    let config = Arc::new(certificate.server(ticketer)?);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let config = Arc::clone(&config);
            std::thread::spawn(move || {
                // A client that breaks off is the client's business; the probe tells what it saw.
                let _broken_off = answer(stream, config);
            });
        }
    });
    Ok(address)
}

fn answer(mut stream: TcpStream, config: Arc<ServerConfig>) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut connection = ServerConnection::new(config).map_err(io::Error::other)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    let mut tls = rustls::Stream::new(&mut connection, &mut stream);
    let mut request = [0; 1024];
    if tls.read(&mut request)? > 0 {
        tls.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")?;
    }
    connection.send_close_notify();
    connection.complete_io(&mut stream)?;
    Ok(())
}
