//! Reads one key after another, notes what was understood, and collects every mistake.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use config::{Map, Value, ValueKind};

use super::uri::{BrokerUri, redact};

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// The configuration file.
    File,
    /// This environment variable.
    Environment(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File => f.write_str("file"),
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

/// A value that somebody gave, not yet understood.
struct Given {
    kind: ValueKind,
    origin: Origin,
}

/// Why a value was not understood.
struct Fault {
    /// The part of the value at fault, ready to be shown; the whole value if none.
    part: Option<String>,
    reason: String,
}

impl<R: Into<String>> From<R> for Fault {
    fn from(reason: R) -> Self {
        Self { part: None, reason: reason.into() }
    }
}

/// See the module.
pub(super) struct Reader {
    given: BTreeMap<String, Given>,
    understood: Vec<Understood>,
    mistakes: Vec<Mistake>,
    faulty: BTreeSet<&'static str>,
    /// Sections written as something else than a table, and keys outside of any.
    outside: Vec<(String, Origin)>,
    sections: BTreeSet<String>,
}

impl Reader {
    /// `file` is the parsed file; `environment` the overrides by `section.key`, each with its variable's name.
    pub(super) fn new(file: Map<String, Value>, environment: Vec<(String, String, String)>) -> Self {
        let mut reader = Self {
            given: BTreeMap::new(),
            understood: Vec::new(),
            mistakes: Vec::new(),
            faulty: BTreeSet::new(),
            outside: Vec::new(),
            sections: BTreeSet::new(),
        };
        for (section, value) in file {
            let ValueKind::Table(keys) = value.kind else {
                reader.outside.push((section, Origin::File));
                continue;
            };
            for (key, value) in keys {
                reader.given.insert(format!("{section}.{key}"), Given { kind: value.kind, origin: Origin::File });
            }
            reader.sections.insert(section);
        }
        for (key, value, variable) in environment {
            let origin = Origin::Environment(variable);
            match key.split_once('.') {
                Some(_) => {
                    reader.given.insert(key, Given { kind: ValueKind::String(value), origin });
                }
                None => reader.outside.push((key, origin)),
            }
        }
        reader
    }

    /// Everything understood and every mistake, after all keys were read.
    pub(super) fn finish(mut self) -> (Vec<Understood>, Vec<Mistake>) {
        self.find_unknown();
        (self.understood, self.mistakes)
    }

    /// Whether none of `keys` was at fault so far, so that they can be compared with one another.
    pub(super) fn sound(&self, keys: &[&'static str]) -> bool {
        keys.iter().all(|key| !self.faulty.contains(key))
    }

    /// Notes that `key`, already read, cannot work together with the others.
    pub(super) fn object(&mut self, key: &'static str, reason: impl Into<String>, accepted: impl Into<String>) {
        let row = self.understood.iter().find(|row| row.key == key);
        let (value, origin) = match row {
            Some(row) => (row.value.clone(), row.origin.clone()),
            None => unreachable!("{key} is compared before it is read"),
        };
        self.faulty.insert(key);
        self.mistakes.push(Mistake {
            key: key.into(),
            value: Some(value),
            origin,
            reason: reason.into(),
            accepted: accepted.into(),
        });
    }

    /// Notes a variable whose bytes are not UTF-8.
    pub(super) fn not_utf8(&mut self, key: String, variable: String) {
        self.mistakes.push(Mistake {
            key,
            value: None,
            origin: Origin::Environment(variable),
            reason: "is not UTF-8".into(),
            accepted: "UTF-8 text".into(),
        });
    }

    fn read<T>(
        &mut self,
        key: &'static str,
        default: T,
        accepted: impl Into<String>,
        parse: impl FnOnce(&Given) -> Result<T, Fault>,
        show: impl FnOnce(&T) -> String,
    ) -> T {
        let (value, origin) = match self.given.remove(key) {
            None => (default, Origin::Default),
            Some(given) => match parse(&given) {
                Ok(value) => (value, given.origin),
                Err(fault) => {
                    let shown = fault.part.unwrap_or_else(|| show_given(key, &given.kind));
                    self.faulty.insert(key);
                    self.mistakes.push(Mistake {
                        key: key.into(),
                        value: Some(shown),
                        origin: given.origin.clone(),
                        reason: fault.reason,
                        accepted: accepted.into(),
                    });
                    (default, given.origin)
                }
            },
        };
        self.understood.push(Understood { key, value: show(&value), origin });
        value
    }

    /// A text that `check` finds no fault with.
    pub(super) fn text(
        &mut self,
        key: &'static str,
        default: &str,
        accepted: &str,
        check: impl Fn(&str) -> Result<(), String>,
    ) -> String {
        let parse = |given: &Given| {
            let text = text_of(given)?;
            check(text)?;
            Ok(text.to_owned())
        };
        self.read(key, default.to_owned(), accepted, parse, |text| shown_text(text))
    }

    /// `true` or `false`.
    pub(super) fn flag(&mut self, key: &'static str, default: bool) -> bool {
        let parse = |given: &Given| match (&given.kind, &given.origin) {
            (ValueKind::Boolean(flag), _) => Ok(*flag),
            (ValueKind::String(text), Origin::Environment(_)) if text == "true" => Ok(true),
            (ValueKind::String(text), Origin::Environment(_)) if text == "false" => Ok(false),
            _ => Err("is neither true nor false".into()),
        };
        self.read(key, default, "true or false, without quotes", parse, bool::to_string)
    }

    /// A whole number within `range`.
    pub(super) fn number(&mut self, key: &'static str, default: u32, range: RangeInclusive<u32>) -> u32 {
        let parse = |given: &Given| {
            let number = match (&given.kind, &given.origin) {
                (ValueKind::I64(number), _) => Some(i128::from(*number)),
                (ValueKind::String(text), Origin::Environment(_)) => text.parse().ok(),
                _ => None,
            };
            let number = number.ok_or("is not a whole number")?;
            within(&number, &i128::from(*range.start()), &i128::from(*range.end()))?;
            u32::try_from(number).map_err(|_| "is out of range".into())
        };
        let accepted = format!("a whole number from {} to {}", range.start(), range.end());
        self.read(key, default, accepted, parse, u32::to_string)
    }

    /// A duration within `range`, in whole multiples of `unit`.
    pub(super) fn duration(
        &mut self,
        key: &'static str,
        default: Duration,
        range: RangeInclusive<Duration>,
        unit: Duration,
    ) -> Duration {
        let (start, end) = (*range.start(), *range.end());
        let multiple = if unit == SECOND { "whole seconds" } else { "whole milliseconds" };
        let parse = |given: &Given| {
            let text = match &given.kind {
                ValueKind::I64(_) | ValueKind::Float(_) => return Err("needs a unit, in quotes".into()),
                _ => text_of(given)?,
            };
            let span = humantime::parse_duration(text).map_err(|e| format!("is not a duration: {e}"))?;
            within(&span, &start, &end)?;
            if span.as_nanos() % unit.as_nanos() != 0 {
                return Err(format!("is not in {multiple}").into());
            }
            Ok(span)
        };
        let accepted = format!("a duration with its unit, such as \"1h 30m\", from {} to {}", span(start), span(end));
        self.read(key, default, accepted, parse, |value| span(*value))
    }

    /// A number of bytes within `range`.
    pub(super) fn size(&mut self, key: &'static str, default: u64, range: RangeInclusive<u64>) -> u64 {
        let parse = |given: &Given| {
            let bytes = match &given.kind {
                ValueKind::I64(bytes) => u64::try_from(*bytes).map_err(|_| "is negative")?,
                _ => match text_of(given)?.parse::<ByteSize>() {
                    Ok(size) => size.as_u64(),
                    Err(_) => return Err("is not a size".into()),
                },
            };
            within(&bytes, range.start(), range.end())?;
            Ok(bytes)
        };
        let accepted = format!(
            "a number of bytes or a size such as \"64KiB\", from {} to {}",
            bytes(*range.start()),
            bytes(*range.end())
        );
        self.read(key, default, accepted, parse, |value| bytes(*value))
    }

    /// An absolute path.
    pub(super) fn path(&mut self, key: &'static str, default: &str) -> PathBuf {
        let parse = |given: &Given| absolute(text_of(given)?);
        self.read(key, default.into(), "an absolute path", parse, |path| path.display().to_string())
    }

    /// An absolute path, or `""` for none.
    pub(super) fn optional_path(&mut self, key: &'static str) -> Option<PathBuf> {
        let parse = |given: &Given| match text_of(given)? {
            "" => Ok(None),
            text => absolute(text).map(Some),
        };
        let show = |path: &Option<PathBuf>| path.as_ref().map_or("-".into(), |path| path.display().to_string());
        self.read(key, None, "an absolute path, or \"\" for none", parse, show)
    }

    /// The path of a Unix socket, which must fit `sockaddr_un` (108 bytes with the zero at the end).
    pub(super) fn socket(&mut self, key: &'static str, default: &str) -> PathBuf {
        let parse = |given: &Given| {
            let text = text_of(given)?;
            if text.len() > MAX_SOCKET_PATH {
                return Err(format!("is {} bytes long", text.len()).into());
            }
            absolute(text)
        };
        let accepted = format!("an absolute path of at most {MAX_SOCKET_PATH} bytes");
        self.read(key, default.into(), accepted, parse, |path: &PathBuf| path.display().to_string())
    }

    /// Broker URIs.
    pub(super) fn uris(&mut self, key: &'static str) -> Vec<BrokerUri> {
        let parse = |given: &Given| {
            let whole = matches!(given.origin, Origin::File);
            each(given, |text| {
                BrokerUri::parse(text).map_err(|reason| Fault {
                    // Out of a comma-separated list it may be one half of a URI.
                    part: Some(if whole || text.contains("://") { quoted(&redact(text)) } else { quoted("***") }),
                    reason,
                })
            })
        };
        let accepted = "URIs such as \"amqps://user:password@host:5671/vhost\"";
        self.read(key, Vec::new(), accepted, parse, |uris| shown_list(uris.iter().map(ToString::to_string)))
    }

    /// Absolute paths.
    pub(super) fn paths(&mut self, key: &'static str) -> Vec<PathBuf> {
        let parse = |given: &Given| {
            each(given, |text| absolute(text).map_err(|fault| Fault { part: Some(shown_path(key, text)), ..fault }))
        };
        let show = |paths: &Vec<PathBuf>| shown_list(paths.iter().map(|path| path.display().to_string()));
        self.read(key, Vec::new(), "absolute paths", parse, show)
    }

    /// Texts that `check` finds no fault with.
    pub(super) fn texts(
        &mut self,
        key: &'static str,
        default: &[&str],
        accepted: &str,
        check: impl Fn(&str) -> Result<(), String>,
    ) -> Vec<String> {
        let parse = |given: &Given| {
            each(given, |text| match check(text) {
                Ok(()) => Ok(text.to_owned()),
                Err(reason) => Err(Fault { part: Some(quoted(text)), reason }),
            })
        };
        let default = default.iter().map(ToString::to_string).collect();
        self.read(key, default, accepted, parse, |texts| shown_list(texts.iter().cloned()))
    }

    /// One of a few words, or whatever else `parse` makes something of.
    pub(super) fn parsed<T>(
        &mut self,
        key: &'static str,
        default: T,
        accepted: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
        show: impl FnOnce(&T) -> String,
    ) -> T {
        self.read(key, default, accepted, |given| Ok(parse(text_of(given)?)?), show)
    }

    fn find_unknown(&mut self) {
        let known: Vec<&'static str> = self.understood.iter().map(|row| row.key).collect();
        let mut sections: Vec<&'static str> = known.iter().map(|key| section_of(key)).collect();
        sections.dedup();

        for (name, origin) in std::mem::take(&mut self.outside) {
            let (reason, accepted) = if sections.contains(&name.as_str()) {
                (
                    "is a section, not a key".into(),
                    match origin {
                        Origin::Environment(_) => format!("RESUMED__{}__KEY", name.to_uppercase()),
                        _ => format!("a table [{name}]"),
                    },
                )
            } else {
                ("stands outside of any section".into(), nearest(&name, None, &known, &sections))
            };
            self.mistakes.push(Mistake { key: name, value: None, origin, reason, accepted });
        }

        for section in std::mem::take(&mut self.sections) {
            if !sections.contains(&section.as_str()) {
                self.mistakes.push(unknown_section(section.clone(), &section, Origin::File, &sections));
            }
        }
        // The values of unknown keys are not shown: one may well be a password.
        for (key, given) in std::mem::take(&mut self.given) {
            let (section, name) = key.split_once('.').unwrap_or((&key, ""));
            if sections.contains(&section) {
                let accepted = nearest(name, Some(section), &known, &sections);
                let reason = "unknown key".into();
                self.mistakes.push(Mistake { key, value: None, origin: given.origin, reason, accepted });
            } else if given.origin != Origin::File {
                let section = section.to_owned();
                self.mistakes.push(unknown_section(key, &section, given.origin, &sections));
            }
        }
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// `sun_path` has 108 bytes, the last of which is zero.
const MAX_SOCKET_PATH: usize = 107;

fn section_of(key: &'static str) -> &'static str {
    key.split('.').next().unwrap_or(key)
}

fn unknown_section(key: String, section: &str, origin: Origin, sections: &[&str]) -> Mistake {
    let all = sections.join(", ");
    let accepted = match closest(section, sections.iter().copied()) {
        Some(near) => format!("perhaps {near} is meant; the sections are {all}"),
        None => format!("the sections {all}"),
    };
    Mistake { key, value: None, origin, reason: "unknown section".into(), accepted }
}

/// What the writer of an unknown key may have meant.
fn nearest(name: &str, section: Option<&str>, known: &[&'static str], sections: &[&str]) -> String {
    let (elsewhere, here): (Vec<(&str, &str)>, Vec<_>) =
        known.iter().filter_map(|key| key.split_once('.')).partition(|(of, _)| Some(*of) != section);
    let near = closest(name, here.iter().map(|(_, key)| *key));
    if let (Some(section), Some(near)) = (section, near) {
        return format!("perhaps {section}.{near} is meant");
    }
    match elsewhere.iter().find(|(_, key)| *key == name) {
        Some((section, key)) => format!("perhaps {section}.{key} is meant"),
        None => match section {
            Some(section) => {
                let keys: Vec<&str> = here.iter().map(|(_, key)| *key).collect();
                format!("the keys of {section}: {}", keys.join(", "))
            }
            None => format!("keys within the sections {}", sections.join(", ")),
        },
    }
}

/// The name out of `names` that `name` is a misspelling of: about one slip for every three letters.
fn closest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names
        .map(|known| (strsim::damerau_levenshtein(name, known), known))
        .filter(|(slips, known)| *slips <= known.len().div_ceil(3))
        .min_by_key(|(slips, _)| *slips)
        .map(|(_, known)| known)
}

fn text_of(given: &Given) -> Result<&str, Fault> {
    match &given.kind {
        ValueKind::String(text) => Ok(text),
        _ => Err("is not a text in quotes".into()),
    }
}

fn absolute(text: &str) -> Result<PathBuf, Fault> {
    if text.contains('\0') {
        return Err("has a zero byte".into());
    }
    if !Path::new(text).is_absolute() {
        return Err("is not an absolute path".into());
    }
    Ok(PathBuf::from(text))
}

/// Each text of a TOML list or of a comma-separated variable, read by `parse`.
fn each<T>(given: &Given, parse: impl Fn(&str) -> Result<T, Fault>) -> Result<Vec<T>, Fault> {
    match (&given.kind, &given.origin) {
        (ValueKind::String(text), Origin::Environment(_)) => {
            text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(parse).collect()
        }
        (ValueKind::Array(values), _) => values
            .iter()
            .map(|value| match &value.kind {
                ValueKind::String(text) => parse(text),
                _ => Err("is not a list of texts in quotes".into()),
            })
            .collect(),
        _ => Err("is not a list, such as [\"one\", \"two\"]".into()),
    }
}

fn within<T: PartialOrd>(value: &T, start: &T, end: &T) -> Result<(), Fault> {
    if value < start {
        return Err("is too small".into());
    }
    if value > end {
        return Err("is too large".into());
    }
    Ok(())
}

/// `value` as it is written in the file: `1h 30m`.
pub(super) fn span(value: Duration) -> String {
    humantime::format_duration(value).to_string()
}

/// `value` as it is written in the file, in the largest unit that divides it: `256MiB`.
pub(super) fn bytes(value: u64) -> String {
    for (unit, name) in [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
        if value >= unit && value.is_multiple_of(unit) {
            return format!("{}{name}", value / unit);
        }
    }
    format!("{value}B")
}

fn quoted(text: &str) -> String {
    format!("{text:?}")
}

pub(super) fn shown_text(text: &str) -> String {
    if text.is_empty() { "-".into() } else { text.into() }
}

fn shown_list(items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.collect();
    shown_text(&items.join(", "))
}

/// The keys in whose place somebody may write the secret itself instead of a file's path.
const SECRET_FILES: [&str; 2] = ["secret.files", "broker.password_file"];

fn shown_path(key: &str, text: &str) -> String {
    if SECRET_FILES.contains(&key) && !text.starts_with('/') { "***".into() } else { quoted(text) }
}

/// A faulty value as it was written, without what may be a secret.
fn show_given(key: &str, kind: &ValueKind) -> String {
    match kind {
        ValueKind::String(text) if text.contains("://") => quoted(&redact(text)),
        ValueKind::String(_) if key == "broker.uris" => "***".into(),
        ValueKind::String(text) => shown_path(key, text),
        ValueKind::Array(values) => {
            let items: Vec<String> = values.iter().map(|value| show_given(key, &value.kind)).collect();
            format!("[{}]", items.join(", "))
        }
        ValueKind::Table(_) => "{ … }".into(),
        _ if SECRET_FILES.contains(&key) => "***".into(),
        other => other.to_string(),
    }
}
