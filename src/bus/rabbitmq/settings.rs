//! How to reach RabbitMQ, and what is wrong with that or with the files that it names.

use std::fmt;
use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use openssl::error::ErrorStack;
use zeroize::Zeroizing;

use super::target::BrokerTarget;
use super::tls::{self, CertificateRefusal};
use crate::bus::{BrokerUri, BusError};
use crate::settings::{Fault, Faults, SettingsError, refuse};

/// How to reach RabbitMQ: section `broker` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RabbitMqSettings {
    /// Brokers, tried in this order. An `amqps` URI without a user name logs in with the client certificate (EXTERNAL) if
    /// there is one.
    pub uris: Vec<BrokerUri>,
    /// PEM file with the authorities that may sign the broker's certificate; without it those of the system.
    pub ca_file: Option<PathBuf>,
    /// PEM file with the client certificate and its chain; there is one exactly if there is a `key_file`.
    pub cert_file: Option<PathBuf>,
    /// PEM file with the client certificate's key.
    pub key_file: Option<PathBuf>,
    /// File with the password for every URI that has none of its own; a final newline does not count.
    pub password_file: Option<PathBuf>,
    /// AMQP heartbeat, in whole seconds (rounded up): a silent broker is given up after two.
    pub heartbeat: Duration,
    /// Bytes that this node's session feed may hold at the broker. No setting of the configuration.
    pub feed_max_bytes: u32,
    /// How long one URI may take for each of: TCP and TLS, login, declarations. No setting of the configuration.
    pub connect_timeout: Duration,
}

impl Default for RabbitMqSettings {
    fn default() -> Self {
        Self {
            uris: Vec::new(),
            ca_file: None,
            cert_file: None,
            key_file: None,
            password_file: None,
            heartbeat: Duration::from_secs(5),
            feed_max_bytes: 64 << 20,
            connect_timeout: Duration::from_secs(10),
        }
    }
}

impl RabbitMqSettings {
    /// How long a heartbeat may be.
    pub(crate) const HEARTBEAT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(5 * 60);

    /// Everything that cannot work, by the settings alone: no file is looked at. That there is no broker is no fault here: a
    /// node may run alone.
    #[must_use]
    pub(crate) fn faults(&self) -> Vec<Fault> {
        let mut faults = Faults::default();
        faults.span("broker.heartbeat", self.heartbeat, &Self::HEARTBEAT);
        if !self.uris.is_empty() {
            self.compare_with_uris(&mut faults);
        }
        self.compare_pair(&mut faults);
        faults.found()
    }

    fn compare_with_uris(&self, faults: &mut Faults) {
        const URIS: &[&str] = &["broker.uris"];
        let no_tls = !self.uris.iter().any(BrokerUri::is_tls);
        for (key, file) in [("broker.ca_file", &self.ca_file), ("broker.cert_file", &self.cert_file)] {
            if let Some(path) = file.as_ref().filter(|_| no_tls) {
                let accepted = "amqps:// in broker.uris, or no such file";
                faults.compared(misplaced(key, path, "no URI in broker.uris uses TLS", accepted, URIS));
            }
        }
        if let Some(path) = &self.password_file
            && self.uris.iter().all(BrokerUri::has_password)
        {
            let reason = "every URI in broker.uris carries a password already, so this one is of no use";
            let accepted = "URIs without their password, or no such file";
            faults.compared(misplaced("broker.password_file", path, reason, accepted, URIS));
        }
    }

    /// A certificate and its key go together.
    fn compare_pair(&self, faults: &mut Faults) {
        let accepted = "both or neither";
        match (&self.cert_file, &self.key_file) {
            (Some(cert), None) => {
                let reason = "there is no broker.key_file";
                faults.compared(misplaced("broker.cert_file", cert, reason, accepted, &["broker.key_file"]));
            }
            (None, Some(key)) => {
                let reason = "there is no broker.cert_file";
                faults.compared(misplaced("broker.key_file", key, reason, accepted, &["broker.cert_file"]));
            }
            _ => {}
        }
    }

    /// Whether a bus can be made of these settings, without a look at any file.
    ///
    /// # Errors
    /// Every setting that is outside of its limits or does not fit the others, or that there is no broker.
    pub fn validate(&self) -> Result<(), SettingsError> {
        let mut faults = self.faults();
        if self.uris.is_empty() {
            faults.push(Fault {
                key: "broker.uris",
                value: "-".to_owned(),
                reason: "names no broker".to_owned(),
                accepted: "URIs such as \"amqps://user:password@host:5671/vhost\"".to_owned(),
                beside: &[],
            });
        }
        refuse(faults)
    }

    /// Validates, and reads every file named, as a connection attempt will.
    ///
    /// # Errors
    /// [`BusError::Settings`], or [`BusError::File`] with the first file that cannot be used.
    pub fn check(&self) -> Result<(), BusError> {
        self.validate()?;
        self.targets()?;
        if self.uris.iter().any(BrokerUri::is_tls) {
            tls::connector(self, &CertificateRefusal::default())?;
        }
        Ok(())
    }

    /// Everything that is wrong with the files, each of them judged alone, and a key also beside its certificate.
    #[must_use]
    #[cfg(feature = "daemon")]
    pub(crate) fn bad_files(&self) -> Vec<BadFile> {
        let mut bad = Vec::new();
        bad.extend(self.ca_file.as_deref().and_then(|path| tls::authorities(path).err()));
        if let (Some(cert), Some(key)) = (&self.cert_file, &self.key_file) {
            bad.extend(tls::bad_pair(cert, key));
        }
        bad.extend(self.password_file.as_deref().and_then(|path| password(path).err()));
        bad
    }

    /// What to connect to, in order.
    pub(super) fn targets(&self) -> Result<Vec<BrokerTarget>, BusError> {
        let password = self.password_file.as_deref().map(password).transpose()?;
        Ok(self.uris.iter().map(|uri| BrokerTarget::of(uri, self, password.as_deref().map(String::as_str))).collect())
    }
}

/// The path of `key` has no use, or no meaning, beside the other settings.
fn misplaced(key: &'static str, path: &Path, reason: &str, accepted: &str, beside: &'static [&'static str]) -> Fault {
    let value = path.display().to_string();
    Fault { key, value, reason: reason.to_owned(), accepted: accepted.to_owned(), beside }
}

/// The files that the settings may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokerFile {
    /// `ca_file`
    Authorities,
    /// `cert_file`
    Certificate,
    /// `key_file`
    Key,
    /// `password_file`
    Password,
}

impl fmt::Display for BrokerFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Authorities => "ca_file",
            Self::Certificate => "cert_file",
            Self::Key => "key_file",
            Self::Password => "password_file",
        })
    }
}

/// A file that the settings name and that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{file} {}{}{wrong}", path.display(), wrong.joined())]
pub struct BadFile {
    /// Which one it is.
    pub file: BrokerFile,
    /// Where it is.
    pub path: PathBuf,
    /// What is wrong with it.
    pub wrong: FileFault,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum FileFault {
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(io::Error),
    /// OpenSSL can make nothing of it.
    #[error("cannot be used: {0}")]
    Unusable(ErrorStack),
    /// There is nothing in it that it is for.
    #[error("holds no PEM certificate")]
    NoCertificate,
}

impl FileFault {
    /// What stands between the file and its fault.
    fn joined(&self) -> &'static str {
        if matches!(self, Self::Unreadable(_)) { ": " } else { " " }
    }
}

pub(super) fn bad(file: BrokerFile, path: &Path, wrong: FileFault) -> BadFile {
    BadFile { file, path: path.into(), wrong }
}

pub(super) fn unusable(file: BrokerFile, path: &Path) -> impl Fn(ErrorStack) -> BadFile {
    move |error| bad(file, path, FileFault::Unusable(error))
}

/// The whole file: it may hold a secret.
pub(super) fn contents(file: BrokerFile, path: &Path) -> Result<Zeroizing<Vec<u8>>, BadFile> {
    fs::read(path).map(Zeroizing::new).map_err(|error| bad(file, path, FileFault::Unreadable(error)))
}

/// The password in a `password_file`.
fn password(path: &Path) -> Result<Zeroizing<String>, BadFile> {
    let unreadable = |error| bad(BrokerFile::Password, path, FileFault::Unreadable(error));
    let text = Zeroizing::new(fs::read_to_string(path).map_err(unreadable)?);
    Ok(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()))
}
