//! The configuration file: the values that `config` reads in it, and the line that each stands in.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use config::{File, FileFormat, Map, Source, Value};
use toml::de::{DeTable, DeValue};

use super::ConfigError;
use super::mistake::{Origin, Place};

/// A file that is TOML. The default is none at all.
#[derive(Default)]
pub(super) struct TomlFile {
    /// Its sections.
    pub(super) values: Map<String, Value>,
    path: PathBuf,
    lines: Lines,
}

impl TomlFile {
    /// Reads `text`, which stands in the file at `path`.
    ///
    /// # Errors
    /// The text is not TOML.
    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let values = File::from_str(text, FileFormat::Toml).collect().map_err(|error| {
            let cause = match error {
                config::ConfigError::FileParse { cause, .. } => cause.to_string(),
                other => other.to_string(),
            };
            // The parser draws the line at fault with a bar beside it: it may hold a password.
            let lines = cause.lines().map(str::trim).filter(|line| !line.is_empty() && !line.contains('|'));
            ConfigError::Syntax { path: path.into(), reason: lines.collect::<Vec<_>>().join(": ") }
        })?;
        Ok(Self { values, path: path.into(), lines: Lines::of(text) })
    }

    /// Where a section, or a key outside of any, stands.
    pub(super) fn section(&self, name: &str) -> Origin {
        self.place(self.lines.sections.get(name).copied())
    }

    /// Where `section.key` stands, and then each item of its list, if it is one.
    pub(super) fn key(&self, key: &str) -> Vec<Origin> {
        let lines = self.lines.keys.get(key).map_or(&[][..], Vec::as_slice);
        lines.iter().map(|line| self.place(Some(*line))).collect()
    }

    fn place(&self, line: Option<usize>) -> Origin {
        // The lines are found by the parser that `config` reads with: what has a value has a line.
        Origin::File(Place { path: self.path.clone(), line: line.unwrap_or(1) })
    }
}

/// The lines of sections and keys, counted from 1. `config` reads with the same parser and does not keep them.
#[derive(Default)]
struct Lines {
    sections: BTreeMap<String, usize>,
    /// By `section.key`: the key's line, then those of the items of its list.
    keys: BTreeMap<String, Vec<usize>>,
}

impl Lines {
    fn of(text: &str) -> Self {
        let mut found = Self::default();
        let Ok(table) = DeTable::parse(text) else { return found };
        let ends: Vec<usize> = text.match_indices('\n').map(|(at, _)| at).collect();
        let line = |at: usize| ends.partition_point(|end| *end < at) + 1;
        for (section, value) in table.get_ref() {
            found.sections.insert(section.get_ref().to_string(), line(section.span().start));
            let DeValue::Table(keys) = value.get_ref() else { continue };
            for (key, value) in keys {
                let mut lines = vec![line(key.span().start)];
                if let DeValue::Array(items) = value.get_ref() {
                    lines.extend(items.iter().map(|item| line(item.span().start)));
                }
                found.keys.insert(format!("{}.{}", section.get_ref(), key.get_ref()), lines);
            }
        }
        found
    }
}
