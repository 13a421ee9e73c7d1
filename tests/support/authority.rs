//! Certificate authorities for tests.

use std::fs;
use std::path::{Path, PathBuf};

use openssl::asn1::Asn1Time;
use openssl::bn::{BigNum, MsbOption};
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::x509::extension::{BasicConstraints, KeyUsage, SubjectAlternativeName};
use openssl::x509::{X509, X509Builder, X509Name, X509NameBuilder};

/// A self-signed authority that writes what it issues into a directory.
pub struct Authority {
    directory: PathBuf,
    certificate: X509,
    key: PKey<Private>,
}

/// A certificate and its key, as PEM files.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate.
    pub cert_file: PathBuf,
    /// Its key.
    pub key_file: PathBuf,
}

/// From when until when a certificate holds, in days from now.
pub type Days = (i64, i64);

/// Yesterday until in ten years.
pub const VALID: Days = (-1, 3_650);

impl Authority {
    /// A new authority called `name`; its certificate is `<name>.pem` in `directory`.
    pub fn new(directory: &Path, name: &str) -> Self {
        let key = new_key();
        let mut builder = certificate(name, &key, VALID);
        builder.set_issuer_name(&named(name)).unwrap();
        builder.append_extension(BasicConstraints::new().critical().ca().build().unwrap()).unwrap();
        builder.append_extension(KeyUsage::new().critical().key_cert_sign().crl_sign().build().unwrap()).unwrap();
        builder.sign(&key, MessageDigest::sha256()).unwrap();
        let certificate = builder.build();
        fs::write(directory.join(format!("{name}.pem")), certificate.to_pem().unwrap()).unwrap();
        Self { directory: directory.to_owned(), certificate, key }
    }

    /// The PEM file with the authority's certificate.
    pub fn file(&self) -> PathBuf {
        let name = self.certificate.subject_name().entries().next().unwrap().data().to_string().unwrap();
        self.directory.join(format!("{name}.pem"))
    }

    /// Issues a certificate for the common name `name` and the DNS names or addresses `hosts`.
    pub fn issue(&self, name: &str, hosts: &[&str], days: Days) -> Issued {
        let key = new_key();
        let mut builder = certificate(name, &key, days);
        builder.set_issuer_name(self.certificate.subject_name()).unwrap();
        if !hosts.is_empty() {
            let mut names = SubjectAlternativeName::new();
            for host in hosts {
                match host.parse::<std::net::IpAddr>() {
                    Ok(_) => names.ip(host),
                    Err(_) => names.dns(host),
                };
            }
            let names = names.build(&builder.x509v3_context(Some(&self.certificate), None)).unwrap();
            builder.append_extension(names).unwrap();
        }
        builder.sign(&self.key, MessageDigest::sha256()).unwrap();
        let issued = Issued {
            cert_file: self.directory.join(format!("{name}.cert.pem")),
            key_file: self.directory.join(format!("{name}.key.pem")),
        };
        fs::write(&issued.cert_file, builder.build().to_pem().unwrap()).unwrap();
        fs::write(&issued.key_file, key.private_key_to_pem_pkcs8().unwrap()).unwrap();
        issued
    }
}

fn new_key() -> PKey<Private> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap()
}

fn certificate(name: &str, key: &PKey<Private>, (from, until): Days) -> X509Builder {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let day = |days: i64| {
        let seconds = i64::try_from(now.as_secs()).unwrap() + days * 86_400;
        Asn1Time::from_unix(seconds).unwrap()
    };
    let mut serial = BigNum::new().unwrap();
    serial.rand(127, MsbOption::MAYBE_ZERO, false).unwrap();
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    builder.set_serial_number(&serial.to_asn1_integer().unwrap()).unwrap();
    builder.set_subject_name(&named(name)).unwrap();
    builder.set_not_before(&day(from)).unwrap();
    builder.set_not_after(&day(until)).unwrap();
    builder.set_pubkey(key).unwrap();
    builder
}

fn named(common_name: &str) -> X509Name {
    let mut name = X509NameBuilder::new().unwrap();
    name.append_entry_by_nid(Nid::COMMONNAME, common_name).unwrap();
    name.build()
}
