//! What settings become on the way to a connection. The links themselves are tested with a broker, in `tests/`.

use std::fs;
use std::net::SocketAddr;

use lapin::uri::SASLMechanism;
use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::x509::{X509, X509NameBuilder};

use super::*;
use crate::bus::BrokerUri;

fn uris(texts: &[&str]) -> Vec<BrokerUri> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn target(uri: &str, settings: RabbitMqSettings) -> BrokerTarget {
    BrokerTarget::of(&uri.parse().unwrap(), &settings, Some("from-file"))
}

#[test]
fn debug_of_the_settings_shows_no_password() {
    let uris = uris(&["amqp://user:hunter2@host/"]);
    let shown = format!("{:?}", RabbitMqSettings { uris, ..RabbitMqSettings::default() });
    assert!(shown.contains("amqp://user:***@host/") && !shown.contains("hunter2"), "{shown}");
}

#[test]
fn a_password_file_serves_the_uris_without_a_password() {
    let settings = RabbitMqSettings::default;
    assert_eq!(target("amqp://user@host", settings()).uri.authority.userinfo.password, "from-file");
    assert_eq!(target("amqp://user:own@host", settings()).uri.authority.userinfo.password, "own");
}

#[test]
fn a_client_certificate_logs_in_where_the_uri_names_no_user() {
    let with_cert = || RabbitMqSettings { cert_file: Some("cert".into()), ..RabbitMqSettings::default() };
    let mechanism = |uri, settings| target(uri, settings).uri.query.auth_mechanism;
    assert_eq!(mechanism("amqps://host", with_cert()), Some(SASLMechanism::External));
    assert_eq!(mechanism("amqps://user@host", with_cert()), None);
    assert_eq!(mechanism("amqp://host", with_cert()), None);
    assert_eq!(mechanism("amqps://host", RabbitMqSettings::default()), None);
}

#[test]
fn an_ipv6_address_is_not_taken_for_localhost() {
    let read = target("amqps://[2001:db8::5]:5671/v", RabbitMqSettings::default());
    assert_eq!(read.uri.authority.host, "2001:db8::5");
    assert_eq!(read.uri.authority.port, 5671);
}

#[tokio::test]
async fn a_link_local_address_leads_out_of_its_interface() {
    let read = target("amqp://[fe80::1%25lo]:5672/v", RabbitMqSettings::default());
    let resolved = tokio::net::lookup_host((read.uri.authority.host.as_str(), read.uri.authority.port)).await;
    let [SocketAddr::V6(address)] = resolved.unwrap().collect::<Vec<_>>()[..] else { panic!("one address") };
    // The loopback interface is the first of every Linux host.
    assert_eq!((address.ip().to_string().as_str(), address.port(), address.scope_id()), ("fe80::1", 5672, 1));
}

#[test]
fn heartbeats_are_whole_seconds_and_never_none() {
    for (heartbeat, seconds) in [(0, 1), (1, 1), (1_500, 2), (5_000, 5), (u64::MAX, u16::MAX)] {
        let heartbeat = Duration::from_millis(heartbeat);
        let read = target("amqp://h", RabbitMqSettings { heartbeat, ..RabbitMqSettings::default() });
        assert_eq!(read.uri.query.heartbeat, Some(seconds), "{heartbeat:?}");
    }
}

#[test]
fn bad_settings_are_named() {
    let of = |uri: &str| RabbitMqSettings { uris: uris(&[uri]), ..RabbitMqSettings::default() };
    let tls = "amqps://host";
    let file = || Some("/x".into());
    for (settings, expected) in [
        (RabbitMqSettings::default(), "broker.uris = -: names no broker"),
        (RabbitMqSettings { cert_file: file(), ..of(tls) }, "broker.cert_file = /x: there is no broker.key_file"),
        (RabbitMqSettings { key_file: file(), ..of(tls) }, "broker.key_file = /x: there is no broker.cert_file"),
        (
            RabbitMqSettings { ca_file: file(), ..of("amqp://host") },
            "broker.ca_file = /x: no URI in broker.uris uses TLS",
        ),
        (
            RabbitMqSettings { password_file: file(), ..of("amqps://user:hunter2@host") },
            "broker.password_file = /x: every URI in broker.uris carries a password already",
        ),
        (
            RabbitMqSettings { heartbeat: Duration::ZERO, ..of(tls) },
            "broker.heartbeat = 0s: is too small; accepted: from 1s to 5m",
        ),
    ] {
        let said = RabbitMq::new(settings).expect_err(expected).to_string();
        assert!(said.starts_with(&format!("broker settings: {expected}")), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[test]
fn bad_files_are_named_each_of_them_alone() {
    let files = crate::temporary::Folder::new();
    let file = |name: &str, contents: &[u8]| {
        let path = files.path().join(name);
        fs::write(&path, contents).unwrap();
        path
    };
    let (junk, gone) = (file("junk.pem", b"no certificate"), files.path().join("gone.pem"));
    let (cert, key) = (file("cert.pem", &certificate_of(&own_key())), file("key.pem", &pem_of(&own_key())));
    let all = RabbitMqSettings {
        uris: uris(&["amqps://host"]),
        ca_file: Some(junk.clone()),
        cert_file: Some(junk.clone()),
        key_file: Some(gone.clone()),
        password_file: Some(gone.clone()),
        ..RabbitMqSettings::default()
    };
    let bad = all.bad_files();
    let named: Vec<_> = bad.iter().map(|bad| (bad.file, bad.path.as_path())).collect();
    let expected = [
        (BrokerFile::Authorities, junk.as_path()),
        (BrokerFile::Certificate, &junk),
        (BrokerFile::Key, &gone),
        (BrokerFile::Password, &gone),
    ];
    assert_eq!(named, expected);
    let junk = junk.display();
    assert_eq!(bad[0].to_string(), format!("ca_file {junk} holds no PEM certificate"));
    assert!(bad[1].to_string().starts_with(&format!("cert_file {junk} cannot be used: ")), "{}", bad[1]);
    assert_eq!(bad[2].to_string(), format!("key_file {}: No such file or directory (os error 2)", gone.display()));

    // One of another algorithm, which is well by itself.
    let rsa = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
    let other = RabbitMqSettings {
        cert_file: Some(cert.clone()),
        key_file: Some(file("rsa.pem", &pem_of(&rsa))),
        ..RabbitMqSettings::default()
    };
    assert_eq!(other.bad_files().iter().map(|bad| bad.file).collect::<Vec<_>>(), [BrokerFile::Key]);

    // Each is well by itself.
    let apart = RabbitMqSettings { cert_file: Some(cert), key_file: Some(key.clone()), ..RabbitMqSettings::default() };
    let [bad] = &apart.bad_files()[..] else { panic!("{:?}", apart.bad_files()) };
    assert_eq!((bad.file, &bad.path), (BrokerFile::Key, &key));
    let said = RabbitMqSettings { uris: uris(&["amqps://host"]), ..apart }.check().unwrap_err();
    assert!(said.to_string().starts_with("broker settings: key_file ") && matches!(said, BusError::File(_)), "{said}");
}

#[test]
fn a_key_behind_a_passphrase_is_refused_and_no_terminal_is_asked() {
    let files = crate::temporary::Folder::new();
    let own = own_key();
    let path = files.path().join("key.pem");
    let locked = own.private_key_to_pem_pkcs8_passphrase(openssl::symm::Cipher::aes_128_cbc(), b"hunter2");
    fs::write(&path, locked.unwrap()).unwrap();
    let cert = files.path().join("cert.pem");
    fs::write(&cert, certificate_of(&own)).unwrap();
    let settings = RabbitMqSettings { cert_file: Some(cert), key_file: Some(path), ..RabbitMqSettings::default() };
    assert_eq!(settings.bad_files().iter().map(|bad| bad.file).collect::<Vec<_>>(), [BrokerFile::Key]);
}

fn own_key() -> PKey<Private> {
    let curve = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    PKey::from_ec_key(EcKey::generate(&curve).unwrap()).unwrap()
}

fn pem_of(key: &PKey<Private>) -> Vec<u8> {
    key.private_key_to_pem_pkcs8().unwrap()
}

fn certificate_of(key: &PKey<Private>) -> Vec<u8> {
    let mut name = X509NameBuilder::new().unwrap();
    name.append_entry_by_text("CN", "edge-1").unwrap();
    let name = name.build();
    let serial = BigNum::from_u32(1).unwrap().to_asn1_integer().unwrap();
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    builder.set_serial_number(&serial).unwrap();
    builder.set_subject_name(&name).unwrap();
    builder.set_issuer_name(&name).unwrap();
    builder.set_pubkey(key).unwrap();
    builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
    builder.sign(key, MessageDigest::sha256()).unwrap();
    builder.build().to_pem().unwrap()
}

#[test]
fn error_texts_are_scrubbed_of_the_password() {
    let read = target("amqp://user:hunter2@host", RabbitMqSettings::default());
    assert_eq!(read.scrub("login of user with hunter2 refused"), "login of user with *** refused");
    let guest = target("amqp://guest:guest@host", RabbitMqSettings::default());
    assert_eq!(guest.scrub("user 'guest' refused"), "user 'guest' refused");
}
