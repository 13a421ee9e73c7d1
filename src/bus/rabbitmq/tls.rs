//! TLS to the broker: chain, dates and host name are verified, and why a certificate was refused is remembered.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use openssl::error::ErrorStack;
use openssl::pkey::PKey;
use openssl::ssl::{SslConnector, SslConnectorBuilder, SslMethod, SslVerifyMode, SslVersion};
use openssl::x509::X509;
use openssl::x509::store::X509StoreBuilder;

use super::settings::{BadFile, BrokerFile, FileFault, RabbitMqSettings, bad, contents, unusable};
use crate::bus::BusError;

/// Why the broker's certificate was not accepted. OpenSSL's own error says only "certificate verify failed".
#[derive(Clone, Debug, Default)]
pub(super) struct CertificateRefusal(Arc<Mutex<Option<String>>>);

impl CertificateRefusal {
    fn note(&self, subject: &str, why: &str) {
        let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert_with(|| format!("the broker's certificate was refused: {why} (certificate: {subject})"));
    }

    pub(super) fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// TLS as the broker's side is verified: chain, dates, host name. Whatever fails is put into `refusal`.
pub(super) fn connector(settings: &RabbitMqSettings, refusal: &CertificateRefusal) -> Result<SslConnector, BusError> {
    let openssl = |error: ErrorStack| BusError::Unprepared(format!("OpenSSL: {error}"));
    let mut builder = SslConnector::builder(SslMethod::tls_client()).map_err(openssl)?;
    builder.set_min_proto_version(Some(SslVersion::TLS1_2)).map_err(openssl)?;
    if let Some(path) = &settings.ca_file {
        let mut store = X509StoreBuilder::new().map_err(openssl)?;
        for authority in authorities(path)? {
            store.add_cert(authority).map_err(openssl)?;
        }
        builder.set_cert_store(store.build());
    }
    if let (Some(cert), Some(key)) = (&settings.cert_file, &settings.key_file) {
        present_certificate(&mut builder, cert)?;
        present_key(&mut builder, key)?;
        check_pair(&builder, key)?;
    }
    let refusal = refusal.clone();
    builder.set_verify_callback(SslVerifyMode::PEER, move |fine, context| {
        if !fine {
            let subject = context.current_cert().map(|cert| format!("{:?}", cert.subject_name()));
            refusal.note(subject.as_deref().unwrap_or("its certificate"), context.error().error_string());
        }
        fine
    });
    Ok(builder.build())
}

/// The authorities in a `ca_file`, at least one.
pub(super) fn authorities(path: &Path) -> Result<Vec<X509>, BadFile> {
    let pem = contents(BrokerFile::Authorities, path)?;
    let found = X509::stack_from_pem(&pem).map_err(unusable(BrokerFile::Authorities, path))?;
    if found.is_empty() { Err(bad(BrokerFile::Authorities, path, FileFault::NoCertificate)) } else { Ok(found) }
}

fn present_certificate(builder: &mut SslConnectorBuilder, path: &Path) -> Result<(), BadFile> {
    // OpenSSL names neither the file nor why it could not be read.
    contents(BrokerFile::Certificate, path)?;
    builder.set_certificate_chain_file(path).map_err(unusable(BrokerFile::Certificate, path))
}

/// The key goes with the certificate that is there already, if one is.
fn present_key(builder: &mut SslConnectorBuilder, path: &Path) -> Result<(), BadFile> {
    let pem = contents(BrokerFile::Key, path)?;
    // Where the key is behind a passphrase, OpenSSL itself would ask a terminal; a daemon has no one to ask.
    let key = PKey::private_key_from_pem_callback(&pem, |_| Ok(0));
    key.and_then(|key| builder.set_private_key(&key)).map_err(unusable(BrokerFile::Key, path))
}

/// Whether the key, which stands at `path`, is that of the certificate. OpenSSL notices one of another algorithm only here.
fn check_pair(builder: &SslConnectorBuilder, path: &Path) -> Result<(), BadFile> {
    builder.check_private_key().map_err(unusable(BrokerFile::Key, path))
}

/// What is wrong with a certificate and its key: one of them or both by themselves, or the key beside the certificate.
#[cfg(feature = "daemon")]
pub(super) fn bad_pair(cert: &Path, key: &Path) -> Vec<BadFile> {
    let Ok(mut builder) = SslConnector::builder(SslMethod::tls_client()) else { return Vec::new() };
    match (present_certificate(&mut builder, cert), present_key(&mut builder, key)) {
        (Ok(()), Ok(())) => check_pair(&builder, key).err().into_iter().collect(),
        (cert, key) => [cert.err(), key.err()].into_iter().flatten().collect(),
    }
}
