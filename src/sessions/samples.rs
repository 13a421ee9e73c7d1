//! Sessions for tests: real ones from real handshakes, and copies of them under other IDs and times.

use std::{os::unix::net::UnixStream, sync::LazyLock, thread};

use bytes::Bytes;
use openssl::{
    asn1::Asn1Time,
    bn::BigNum,
    ec::{EcGroup, EcKey},
    hash::MessageDigest,
    nid::Nid,
    pkey::{PKey, Private},
    ssl::{Ssl, SslContext, SslMethod, SslOptions, SslSession, SslSessionCacheMode, SslVerifyMode, SslVersion},
    x509::{X509, X509NameBuilder},
};

use super::encoded::Encoded;

/// The kinds of session that a server makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// TLS 1.2 by session ID.
    Plain,
    /// The same, from a client with a certificate and a server name, with ALPN.
    ClientCertificate,
    /// TLS 1.3 with stateful tickets, whose ID is the ticket.
    Tls13,
}

fn certificate(name: &str) -> (X509, PKey<Private>) {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
    let mut subject = X509NameBuilder::new().unwrap();
    subject.append_entry_by_text("CN", name).unwrap();
    let subject = subject.build();
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    builder.set_serial_number(&BigNum::from_u32(1).unwrap().to_asn1_integer().unwrap()).unwrap();
    builder.set_subject_name(&subject).unwrap();
    builder.set_issuer_name(&subject).unwrap();
    builder.set_pubkey(&key).unwrap();
    builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::days_from_now(2).unwrap()).unwrap();
    builder.sign(&key, MessageDigest::sha256()).unwrap();
    (builder.build(), key)
}

/// One handshake over a socket pair; the session as the server's OpenSSL keeps it.
pub(super) fn handshake(kind: Kind) -> SslSession {
    let version = if kind == Kind::Tls13 { SslVersion::TLS1_3 } else { SslVersion::TLS1_2 };
    let mut server = SslContext::builder(SslMethod::tls_server()).unwrap();
    let (cert, key) = certificate("server.test");
    server.set_certificate(&cert).unwrap();
    server.set_private_key(&key).unwrap();
    server.set_min_proto_version(Some(version)).unwrap();
    server.set_max_proto_version(Some(version)).unwrap();
    server.set_options(SslOptions::NO_TICKET);
    server.set_session_cache_mode(SslSessionCacheMode::SERVER);
    server.set_session_id_context(b"samples").unwrap();
    let mut client = SslContext::builder(SslMethod::tls_client()).unwrap();
    client.set_verify(SslVerifyMode::NONE);
    if kind == Kind::ClientCertificate {
        server.set_verify_callback(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT, |_, _| true);
        server.set_alpn_select_callback(|_, offered| {
            openssl::ssl::select_next_proto(b"\x02h2", offered).ok_or(openssl::ssl::AlpnError::NOACK)
        });
        let (cert, key) = certificate("client.test");
        client.set_certificate(&cert).unwrap();
        client.set_private_key(&key).unwrap();
        client.set_alpn_protos(b"\x02h2").unwrap();
    }
    let (near, far) = UnixStream::pair().unwrap();
    let client = client.build();
    let connecting = thread::spawn(move || {
        let mut ssl = Ssl::new(&client).unwrap();
        ssl.set_hostname("www.server.test").unwrap();
        let mut stream = ssl.connect(far).unwrap();
        // Reading drains what the server sends after the handshake, and waits for its close.
        std::io::Read::read_to_end(&mut stream, &mut Vec::new()).unwrap();
    });
    let mut stream = Ssl::new(&server.build()).unwrap().accept(near).unwrap();
    let session = stream.ssl().session().unwrap().to_owned();
    stream.shutdown().unwrap();
    drop(stream);
    connecting.join().unwrap();
    session
}

/// The DER of one real session of each kind, made once a test run.
pub(super) fn real(kind: Kind) -> Bytes {
    static PLAIN: LazyLock<Bytes> = LazyLock::new(|| handshake(Kind::Plain).to_der().unwrap().into());
    static WITH_CERTIFICATE: LazyLock<Bytes> =
        LazyLock::new(|| handshake(Kind::ClientCertificate).to_der().unwrap().into());
    static TLS13: LazyLock<Bytes> = LazyLock::new(|| handshake(Kind::Tls13).to_der().unwrap().into());
    match kind {
        Kind::Plain => PLAIN.clone(),
        Kind::ClientCertificate => WITH_CERTIFICATE.clone(),
        Kind::Tls13 => TLS13.clone(),
    }
}

/// The real session `kind` after `change` has been at its parts.
pub(super) fn changed(kind: Kind, change: impl FnOnce(&mut Encoded<'_>)) -> Bytes {
    let real = real(kind);
    let mut encoded: Encoded<'_> = asn1::parse_single(&real).unwrap();
    change(&mut encoded);
    asn1::write_single(&encoded).unwrap().into()
}

/// A plain session under another ID, created at `time` for `timeout`, both in seconds; `secret` tells copies apart.
pub(crate) fn plain(id: &[u8], time: u64, timeout: u64, secret: u8) -> Bytes {
    let real = real(Kind::Plain);
    let mut encoded: Encoded<'_> = asn1::parse_single(&real).unwrap();
    let master = [secret; 48];
    encoded.session_id = id;
    encoded.master_key = &master;
    encoded.time = Some(i64::try_from(time).unwrap());
    encoded.timeout = Some(i64::try_from(timeout).unwrap());
    asn1::write_single(&encoded).unwrap().into()
}
