//! Reads one key after another, notes what was understood, and collects every mistake.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use config::ValueKind;

use super::file::TomlFile;
use super::mistake::{Mistake, Origin, Understood};
use super::shown::{quoted, show_given, shown_list, shown_path, shown_text};
use super::unknown::Known;
use crate::bus::{BrokerUri, redact};
use crate::settings::{self, absolute_path, bytes, outside, span};
use crate::unix_socket::{SOCKET_PATH, socket_path};

/// A value that somebody gave, not yet understood.
struct Given {
    kind: ValueKind,
    origin: Origin,
    /// Of a list in the file: where each item stands.
    items: Vec<Origin>,
}

/// Why a value was not understood.
struct Misread {
    /// The part of the value at fault, ready to be shown; the whole value if none.
    part: Option<String>,
    /// The place in the list of what is at fault, from 0.
    item: Option<usize>,
    reason: String,
}

impl<R: Into<String>> From<R> for Misread {
    fn from(reason: R) -> Self {
        Self { part: None, item: None, reason: reason.into() }
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
    sections: Vec<(String, Origin)>,
}

impl Reader {
    /// `environment` holds the overrides by `section.key`, each with its variable's name.
    pub(super) fn new(mut file: TomlFile, environment: Vec<(String, String, String)>) -> Self {
        let mut reader = Self {
            given: BTreeMap::new(),
            understood: Vec::new(),
            mistakes: Vec::new(),
            faulty: BTreeSet::new(),
            outside: Vec::new(),
            sections: Vec::new(),
        };
        let mut sections: Vec<_> = std::mem::take(&mut file.values).into_iter().collect();
        sections.sort_by(|(a, _), (b, _)| a.cmp(b));
        for (section, value) in sections {
            let origin = file.section(&section);
            let ValueKind::Table(keys) = value.kind else {
                reader.outside.push((section, origin));
                continue;
            };
            for (key, value) in keys {
                let key = format!("{section}.{key}");
                let mut places = file.key(&key).into_iter();
                let origin = places.next().unwrap_or_else(|| origin.clone());
                reader.given.insert(key, Given { kind: value.kind, origin, items: places.collect() });
            }
            reader.sections.push((section, origin));
        }
        for (key, value, variable) in environment {
            let origin = Origin::Environment(variable);
            match key.split_once('.') {
                Some(_) => {
                    reader.given.insert(key, Given { kind: ValueKind::String(value), origin, items: Vec::new() });
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

    /// Notes what a comparison of settings found, unless one of them is at fault already: a default stands there.
    pub(super) fn compared(&mut self, fault: settings::Fault) {
        if self.sound(&[fault.key]) && self.sound(fault.beside) {
            self.object(fault.key, fault.reason, fault.accepted);
        }
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
        parse: impl FnOnce(&Given) -> Result<T, Misread>,
        show: impl FnOnce(&T) -> String,
    ) -> T {
        let (value, origin) = match self.given.remove(key) {
            None => (default, Origin::Default),
            Some(given) => match parse(&given) {
                Ok(value) => (value, given.origin),
                Err(fault) => {
                    let item = fault.item.and_then(|item| given.items.get(item));
                    let origin = item.unwrap_or(&given.origin).clone();
                    let shown = fault.part.unwrap_or_else(|| show_given(key, &given.kind));
                    self.faulty.insert(key);
                    self.mistakes.push(Mistake {
                        key: key.into(),
                        value: Some(shown),
                        origin,
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
            within(&number, &(i128::from(*range.start())..=i128::from(*range.end())))?;
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
        let multiple = if unit == SECOND { "whole seconds" } else { "whole milliseconds" };
        let parse = |given: &Given| {
            let text = match &given.kind {
                ValueKind::I64(_) | ValueKind::Float(_) => return Err("needs a unit, in quotes".into()),
                _ => text_of(given)?,
            };
            let span = humantime::parse_duration(text).map_err(|e| format!("is not a duration: {e}"))?;
            within(&span, &range)?;
            if span.as_nanos() % unit.as_nanos() != 0 {
                return Err(format!("is not in {multiple}").into());
            }
            Ok(span)
        };
        let accepted = format!(
            "a duration with its unit, such as \"1h 30m\", from {} to {}",
            span(*range.start()),
            span(*range.end())
        );
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
            within(&bytes, &range)?;
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

    /// The path of a Unix socket.
    pub(super) fn socket(&mut self, key: &'static str, default: PathBuf) -> PathBuf {
        let parse = |given: &Given| {
            let path = PathBuf::from(text_of(given)?);
            socket_path(&path)?;
            Ok(path)
        };
        self.read(key, default, SOCKET_PATH, parse, |path| path.display().to_string())
    }

    /// Broker URIs.
    pub(super) fn uris(&mut self, key: &'static str) -> Vec<BrokerUri> {
        let parse = |given: &Given| {
            let whole = given.origin.is_file();
            each(given, |text| {
                BrokerUri::parse(text).map_err(|reason| Misread {
                    // Out of a comma-separated list it may be one half of a URI.
                    part: Some(if whole || text.contains("://") { quoted(&redact(text)) } else { quoted("***") }),
                    ..reason.to_string().into()
                })
            })
        };
        let accepted = "URIs such as \"amqps://user:password@host:5671/vhost\"";
        self.read(key, Vec::new(), accepted, parse, |uris| shown_list(uris.iter().map(ToString::to_string)))
    }

    /// Absolute paths.
    pub(super) fn paths(&mut self, key: &'static str) -> Vec<PathBuf> {
        let parse = |given: &Given| {
            each(given, |text| absolute(text).map_err(|fault| Misread { part: Some(shown_path(key, text)), ..fault }))
        };
        let show = |paths: &Vec<PathBuf>| shown_list(paths.iter().map(|path| path.display().to_string()));
        self.read(key, Vec::new(), "absolute paths", parse, show)
    }

    /// Texts that `check` finds no fault with.
    pub(super) fn texts(
        &mut self,
        key: &'static str,
        default: Vec<String>,
        accepted: &str,
        check: impl Fn(&str) -> Result<(), String>,
    ) -> Vec<String> {
        let parse = |given: &Given| {
            each(given, |text| match check(text) {
                Ok(()) => Ok(text.to_owned()),
                Err(reason) => Err(Misread { part: Some(quoted(text)), ..reason.into() }),
            })
        };
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
        let known = Known::new(self.understood.iter().map(|row| row.key).collect());
        for (name, origin) in std::mem::take(&mut self.outside) {
            self.mistakes.push(known.outside(name, origin));
        }
        for (section, origin) in std::mem::take(&mut self.sections) {
            if !known.has_section(&section) {
                self.mistakes.push(known.unknown_section(section, origin));
            }
        }
        for (key, given) in std::mem::take(&mut self.given) {
            if known.has_section(key.split('.').next().unwrap_or(&key)) {
                self.mistakes.push(known.unknown_key(key, given.origin));
            } else if !given.origin.is_file() {
                self.mistakes.push(known.unknown_section(key, given.origin));
            }
        }
    }
}

const SECOND: Duration = Duration::from_secs(1);

fn text_of(given: &Given) -> Result<&str, Misread> {
    match &given.kind {
        ValueKind::String(text) => Ok(text),
        _ => Err("is not a text in quotes".into()),
    }
}

fn absolute(text: &str) -> Result<PathBuf, Misread> {
    let path = PathBuf::from(text);
    absolute_path(&path)?;
    Ok(path)
}

/// Each text of a TOML list or of a comma-separated variable, read by `parse`.
fn each<T>(given: &Given, parse: impl Fn(&str) -> Result<T, Misread>) -> Result<Vec<T>, Misread> {
    match (&given.kind, &given.origin) {
        (ValueKind::String(text), Origin::Environment(_)) => {
            text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(parse).collect()
        }
        (ValueKind::Array(values), _) => values
            .iter()
            .enumerate()
            .map(|(item, value)| {
                let parsed = match &value.kind {
                    ValueKind::String(text) => parse(text),
                    _ => Err("is not a list of texts in quotes".into()),
                };
                parsed.map_err(|fault| Misread { item: Some(item), ..fault })
            })
            .collect(),
        _ => Err("is not a list, such as [\"one\", \"two\"]".into()),
    }
}

fn within<T: PartialOrd>(value: &T, range: &RangeInclusive<T>) -> Result<(), Misread> {
    outside(value, range).map_or(Ok(()), |reason| Err(reason.into()))
}
