//! Versions of the servers that tests run.

use std::fmt;
use std::str::FromStr;

/// A version, as 4.0.5, in the order of versions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version([u32; 3]);

impl Version {
    /// Whether it is that of `major.minor` or a later one.
    pub fn at_least(&self, major: u32, minor: u32) -> bool {
        *self >= Self([major, minor, 0])
    }
}

impl FromStr for Version {
    type Err = String;

    /// Takes numbers with dots between; what follows them, as `-rc.1`, does not count.
    fn from_str(text: &str) -> Result<Self, String> {
        let end = text.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(text.len());
        let mut parts = text[..end].split('.').map(str::parse);
        let mut next = || parts.next().unwrap_or(Ok(0)).map_err(|error| format!("{text:?} is no version: {error}"));
        Ok(Self([next()?, next()?, next()?]))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.0;
        write!(formatter, "{major}.{minor}.{patch}")
    }
}
