//! The settings: a TOML file, any key of which the environment overrides as `RESUMED__SECTION__KEY`.
//!
//! `etc/resumed.toml` documents every key with its default. In short: durations are texts with a unit (`"8h"`,
//! `"1h 30m"`), sizes are texts (`"256MiB"`) or numbers of bytes, lists in the environment are comma-separated, paths
//! are absolute, and an empty text means "none" where a setting may be absent. A key that is not known is a mistake,
//! and all mistakes are reported together.

mod file;
mod mistake;
mod reader;
mod sections;
mod shown;
mod unknown;

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::bus::BrokerUri;
use crate::daemon::Settings;
use file::TomlFile;
pub(crate) use mistake::{Mistake, Understood};
#[cfg(test)]
pub(crate) use mistake::{Origin, Place};
use reader::Reader;

/// Where the configuration stands unless `--config` says otherwise.
pub(crate) const DEFAULT_FILE: &str = "/etc/resumed/resumed.toml";

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("the configuration file {} is not valid TOML: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why, without the text around it, which may hold a password.
        reason: String,
    },
    /// The file and the environment hold mistakes: all of them, at least one.
    #[error("{}", in_lines(.0))]
    Mistakes(Vec<Mistake>),
}

fn in_lines(mistakes: &[Mistake]) -> String {
    let mut text = match mistakes.len() {
        1 => "1 mistake in the configuration:".to_owned(),
        n => format!("{n} mistakes in the configuration:"),
    };
    for mistake in mistakes {
        // Writing to a String cannot fail.
        let _ = write!(text, "\n  {mistake}");
    }
    text
}

/// The settings, with every key, its value as it was understood and where it came from, and with every mistake; defaults
/// stand where there is one.
pub(crate) type Explained = (Settings, Vec<Understood>, Vec<Mistake>);

/// Reads the file at `path`, if one is given, and the environment.
///
/// # Errors
/// The file cannot be read or is not TOML; or every mistake in it and in the environment.
pub(crate) fn load(path: Option<&Path>) -> Result<Settings, ConfigError> {
    let (settings, _, mistakes) = load_explained(path)?;
    if mistakes.is_empty() { Ok(settings) } else { Err(ConfigError::Mistakes(mistakes)) }
}

/// Like [`load`], with everything that there is to say about it.
///
/// # Errors
/// The file cannot be read or is not TOML.
pub(crate) fn load_explained(path: Option<&Path>) -> Result<Explained, ConfigError> {
    let file = match path {
        None => TomlFile::default(),
        Some(path) => {
            let text = std::fs::read_to_string(path).map(Zeroizing::new);
            let text = text.map_err(|source| ConfigError::Unreadable { path: path.into(), source })?;
            TomlFile::parse(path, &text)?
        }
    };
    let (mut settings, understood, mistakes) = understand(file, std::env::vars_os(), &host_name());
    let from_file = |of: &Understood| of.key == "broker.uris" && of.origin.is_file();
    if understood.iter().any(from_file) && settings.broker.uris.iter().any(BrokerUri::has_password) {
        settings.passwords_in = path.map(Path::to_owned);
    }
    Ok((settings, understood, mistakes))
}

/// Like [`load_explained`] for a file at `path` that says `text`, without the environment.
///
/// # Errors
/// The text is not TOML.
pub fn read_explained(path: &Path, text: &str) -> Result<Explained, ConfigError> {
    Ok(understand(TomlFile::parse(path, text)?, std::iter::empty(), &host_name()))
}

/// Every setting at its default.
#[must_use]
pub(crate) fn defaults() -> Settings {
    understand(TomlFile::default(), std::iter::empty(), &host_name()).0
}

fn host_name() -> OsString {
    nix::unistd::gethostname().unwrap_or_default()
}

/// The settings, what was understood, and the mistakes; defaults stand where there are mistakes.
fn understand(file: TomlFile, variables: impl Iterator<Item = (OsString, OsString)>, host: &OsStr) -> Explained {
    // Not config's own `Environment`, which does not say which variable a value comes from, and stops at the first one
    // that is not UTF-8.
    let mut overrides = Vec::new();
    let mut not_utf8 = Vec::new();
    for (name, value) in variables {
        let name = name.to_string_lossy().into_owned();
        let Some(key) = name.strip_prefix("RESUMED__") else { continue };
        let key = key.to_lowercase().replace("__", ".");
        match value.into_string() {
            Ok(value) => overrides.push((key, value, name)),
            Err(_) => not_utf8.push((key, name)),
        }
    }
    // Where two names differ only in case, the same one wins every time.
    overrides.sort_by(|(_, _, a), (_, _, b)| b.cmp(a));

    let mut reader = Reader::new(file, overrides);
    let settings = sections::read(&mut reader, &host.to_string_lossy());
    for fault in settings.faults() {
        reader.compared(fault);
    }
    for (key, variable) in not_utf8 {
        reader.not_utf8(key, variable);
    }
    let (understood, mistakes) = reader.finish();
    (settings, understood, mistakes)
}

#[cfg(test)]
mod tests;
