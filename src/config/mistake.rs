//! What is said of a configuration: each value as it was understood, each mistake in full.

use std::fmt;
use std::path::PathBuf;

/// A place in the configuration file. Shown as editors and compilers take it: `/etc/resumed/resumed.toml:3`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// The line, counted from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.line)
    }
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// It was not set.
    Default,
    /// The configuration file.
    File(Place),
    /// This environment variable.
    Environment(String),
}

impl Origin {
    /// Whether it is the configuration file.
    #[must_use]
    pub(crate) fn is_file(&self) -> bool {
        matches!(self, Self::File(_))
    }

    /// The same where the file's name stands already: `line 3`.
    #[must_use]
    pub(crate) fn within_the_file(&self) -> String {
        match self {
            Self::File(place) => format!("line {}", place.line),
            other => other.to_string(),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(place) => place.fmt(f),
            Self::Environment(variable) => write!(f, "environment {variable}"),
        }
    }
}

/// One setting as it was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Understood {
    /// `section.key`.
    pub key: &'static str,
    /// The value as `check` prints it: passwords as `***`, nothing at all as `-`.
    pub value: String,
    /// Where it comes from.
    pub origin: Origin,
}

/// One mistake in the configuration. Never holds a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// `section.key`, or the section alone.
    pub key: String,
    /// The value at fault as it was written, `***` where it may be a secret; none where the key itself is the
    /// mistake.
    pub value: Option<String>,
    /// Where the value comes from.
    pub origin: Origin,
    /// What is wrong with it.
    pub reason: String,
    /// What would be accepted.
    pub accepted: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)?;
        if let Some(value) = &self.value {
            write!(f, " = {value}")?;
        }
        write!(f, " ({}): {}; accepted: {}", self.origin, self.reason, self.accepted)
    }
}
