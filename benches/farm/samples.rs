//! Sessions of exactly the length that is measured with.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::thread;

use bytes::Bytes;
use openssl::pkey::PKey;
use openssl::ssl::{Ssl, SslContext, SslMethod, SslOptions, SslSessionCacheMode, SslVerifyMode, SslVersion};
use openssl::x509::X509;
use resumed::internals::proto::SessionEntry;

use testkit::ats::Certificate;

/// What a session of the measurements has, in bytes of DER.
pub const SESSION_BYTES: usize = 200;

const ID_BYTES: usize = 32;

/// A real TLS 1.2 session under as many IDs as are wanted.
pub struct Sample {
    der: Vec<u8>,
    /// Where its ID stands in it.
    at: usize,
}

impl Sample {
    /// One of [`SESSION_BYTES`].
    pub fn make() -> Self {
        // The name that the client asked for is part of a session, and the only part of any length.
        let short = handshake("a.test");
        let name = format!("{}.test", "a".repeat(1 + SESSION_BYTES - short.1.len()));
        let (id, mut der) = handshake(&name);
        if der.len() > SESSION_BYTES {
            // A longer length field on the way.
            (_, der) = (id.clone(), handshake(&name[der.len() - SESSION_BYTES..]).1);
        }
        assert_eq!((id.len(), der.len()), (ID_BYTES, SESSION_BYTES), "a session of the wanted length");
        let at =
            ID_AT.iter().copied().find(|at| der[*at] == 4 && der[at + 1] == 32).expect("an OCTET STRING of 32 bytes");
        Self { der, at: at + 2 }
    }

    /// An ID that nothing else has.
    pub fn id(number: u64) -> [u8; ID_BYTES] {
        let mut id = [0xa5; ID_BYTES];
        id[..8].copy_from_slice(&number.to_be_bytes());
        id
    }

    /// The number that [`Self::id`] was made of.
    pub fn number(id: &[u8]) -> u64 {
        u64::from_be_bytes(id[..8].try_into().expect("an ID of 32 bytes"))
    }

    /// The session's DER under the ID of `number`.
    pub fn der(&self, number: u64) -> Vec<u8> {
        let mut der = self.der.clone();
        der[self.at..self.at + ID_BYTES].copy_from_slice(&Self::id(number));
        der
    }

    /// The session as a proxy reports it.
    pub fn session(&self, number: u64, wall: u64) -> SessionEntry {
        SessionEntry { id: Bytes::copy_from_slice(&Self::id(number)), session: Bytes::from(self.der(number)), at: wall }
    }
}

/// SSL_SESSION_ASN1: two integers and the cipher come before the ID.
const ID_AT: [usize; 6] = [9, 10, 11, 12, 13, 14];

/// One handshake over a socket pair, in which the client asks for `name`: the server's session, as its ID and its DER.
fn handshake(name: &str) -> (Vec<u8>, Vec<u8>) {
    let certificate = Certificate::self_signed("farm.test");
    let mut server = SslContext::builder(SslMethod::tls_server()).expect("a context");
    server.set_certificate(&X509::from_pem(&certificate.pem).expect("PEM")).expect("a certificate");
    server.set_private_key(&PKey::private_key_from_pem(&certificate.key).expect("PEM")).expect("a key");
    server.set_max_proto_version(Some(SslVersion::TLS1_2)).expect("a version");
    server.set_options(SslOptions::NO_TICKET);
    server.set_session_id_context(b"test").expect("a context");
    server.set_servername_callback(|_, _| Ok(()));
    let mut client = SslContext::builder(SslMethod::tls_client()).expect("a context");
    client.set_options(SslOptions::NO_TICKET);
    client.set_verify(SslVerifyMode::NONE);
    client.set_session_cache_mode(SslSessionCacheMode::OFF);
    let mut connection = Ssl::new(&client.build()).expect("TLS");
    connection.set_hostname(name).expect("a name");
    let (near, far) = UnixStream::pair().expect("a socket pair");
    let connecting = thread::spawn(move || {
        let mut stream = connection.connect(far).expect("a handshake");
        let _end = stream.read_to_end(&mut Vec::new());
    });
    let mut stream = Ssl::new(&server.build()).expect("TLS").accept(near).expect("a handshake");
    let session = stream.ssl().session().expect("a session").to_owned();
    let _closed = stream.shutdown();
    drop(stream);
    connecting.join().expect("the client");
    (session.id().to_vec(), session.to_der().expect("DER"))
}
