//! What ATS's configuration files say, in either of their forms: lists of entries, each of them words under names.
//!
//! ATS 9 and 10 read `ssl_multicert.config`, lines of `name=value`; ATS 11 reads `ssl_multicert.yaml`; all read `sni.yaml`. A file
//! that cannot be read is an error with a reason and never an empty list: that would look the same on all hosts.

use saphyr_parser::{Event, Parser};

/// One entry: names and their values, in the file's order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Fields(Vec<(String, String)>);

impl Fields {
    /// The value under `name`, unless it is empty. ATS takes names in either case.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// Whether the value under `name` is a number, and this one.
    pub(crate) fn is(&self, name: &str, number: i64) -> bool {
        self.get(name).and_then(|value| value.parse().ok()) == Some(number)
    }
}

/// The certificates of the file `name`, whose content is `text`. ATS 11 knows by the name which form it has.
///
/// # Errors
/// Why ATS or this plugin cannot read it.
pub(crate) fn certificates(name: &str, text: &str) -> Result<Vec<Fields>, String> {
    let is_yaml = name.ends_with(".yaml") || name.ends_with(".yml");
    let entries = if is_yaml { entries(text, "ssl_multicert")? } else { lines(text)? };
    let is_known = |entry: &Fields| entry.get("ssl_cert_name").is_some() || entry.get("action").is_some();
    match entries.iter().position(|entry| !is_known(entry)) {
        None => Ok(entries),
        Some(at) => Err(format!("entry {} names neither ssl_cert_name nor action", at + 1)),
    }
}

/// The lines that say something, as ATS reads them: pairs between blanks, values perhaps in quotes.
fn lines(text: &str) -> Result<Vec<Fields>, String> {
    let mut entries = Vec::new();
    for (line, number) in text.lines().map(str::trim).zip(1..) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let fields = pairs(line);
        if fields.0.is_empty() {
            return Err(format!("line {number} has no name=value"));
        }
        entries.push(fields);
    }
    Ok(entries)
}

fn pairs(line: &str) -> Fields {
    let mut pairs = Vec::new();
    let mut rest = line;
    while let Some((key, after)) = rest.split_once('=') {
        let after = after.trim_start();
        let quote = after.chars().next().filter(|first| matches!(first, '"' | '\''));
        let (value, left) = match quote {
            Some(quote) => after[1..].split_once(quote).unwrap_or((&after[1..], "")),
            None => after.split_once(char::is_whitespace).unwrap_or((after, "")),
        };
        pairs.push((key.trim().to_owned(), value.to_owned()));
        rest = left;
    }
    Fields(pairs)
}

/// The entries of the sequence under `top` in a YAML document; of each, what stands there as a word. An empty document has none.
///
/// # Errors
/// Where it is not YAML, or not of this form; and where it has an alias (`*name`), which is not followed.
pub(crate) fn entries(text: &str, top: &'static str) -> Result<Vec<Fields>, String> {
    let mut walk = YamlWalk { top, open: Vec::new(), found: false, nothing: true, entries: Vec::new() };
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| error.to_string())?;
        match event {
            // ATS reads the first document.
            Event::DocumentEnd => break,
            Event::Scalar(word, ..) => walk.scalar(&word),
            Event::MappingStart(..) => walk.begin(Open::Mapping { key: None }),
            Event::SequenceStart(..) => walk.begin(Open::Sequence),
            Event::MappingEnd | Event::SequenceEnd => walk.end(),
            Event::Alias(_) => Err("an alias, which this plugin does not follow".to_owned()),
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) => Ok(()),
        }
        .map_err(|what| format!("line {}: {what}", span.start.line()))?;
    }
    if walk.found || walk.nothing { Ok(walk.entries) } else { Err(format!("no {top} at its top")) }
}

/// What has begun and not ended.
enum Open {
    /// `key` is read, and its value is not.
    Mapping {
        key: Option<String>,
    },
    Sequence,
}

struct YamlWalk {
    top: &'static str,
    open: Vec<Open>,
    found: bool,
    /// There is no document, or it is a null.
    nothing: bool,
    entries: Vec<Fields>,
}

/// Deeper than any file of ATS goes.
const DEEPEST: usize = 32;

impl YamlWalk {
    fn scalar(&mut self, word: &str) -> Result<(), String> {
        let is_null = matches!(word, "" | "~" | "null");
        if let Some(Open::Mapping { key: key @ None }) = self.open.last_mut() {
            *key = Some(word.to_owned());
            return Ok(());
        }
        match self.open.len() {
            0 => self.nothing = is_null,
            1 if self.is_inside() && !is_null => return self.wanted("a sequence"),
            1 if self.is_inside() => self.found = true,
            2 if self.is_item() => return self.wanted("a mapping"),
            3 if self.is_inside() => self.keep(word),
            _ => {}
        }
        self.ended();
        Ok(())
    }

    /// Keeps a word of the last entry, unless it is in a list there.
    fn keep(&mut self, word: &str) {
        if let (Some(Open::Mapping { key: Some(key) }), Some(Fields(fields))) =
            (self.open.last(), self.entries.last_mut())
        {
            fields.push((key.clone(), word.to_owned()));
        }
    }

    fn begin(&mut self, open: Open) -> Result<(), String> {
        if self.open.len() >= DEEPEST {
            return Err("nested too deeply".to_owned());
        }
        if matches!(self.open.last(), Some(Open::Mapping { key: None })) {
            return Err("a key that is no word".to_owned());
        }
        let is_mapping = matches!(open, Open::Mapping { .. });
        self.nothing = false;
        match self.open.len() {
            0 if !is_mapping => return self.wanted("a mapping"),
            1 if self.is_inside() && is_mapping => return self.wanted("a sequence"),
            1 if self.is_inside() => self.found = true,
            2 if self.is_item() && !is_mapping => return self.wanted("a mapping"),
            2 if self.is_item() => self.entries.push(Fields::default()),
            _ => {}
        }
        self.open.push(open);
        Ok(())
    }

    fn end(&mut self) -> Result<(), String> {
        self.open.pop();
        self.ended();
        Ok(())
    }

    /// A value is over: the next word of its mapping is a key.
    fn ended(&mut self) {
        if let Some(Open::Mapping { key }) = self.open.last_mut() {
            *key = None;
        }
    }

    /// Whether what comes is under `top`.
    fn is_inside(&self) -> bool {
        matches!(self.open.first(), Some(Open::Mapping { key: Some(key) }) if key == self.top)
    }

    /// Whether what comes is an entry.
    fn is_item(&self) -> bool {
        self.is_inside() && matches!(self.open[..], [_, Open::Sequence])
    }

    fn wanted(&self, what: &str) -> Result<(), String> {
        Err(format!("{} wants {what} here", self.top))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(entries: &[Fields], key: &str) -> Vec<String> {
        entries.iter().map(|entry| entry.get(key).unwrap_or("-").to_owned()).collect()
    }

    #[test]
    fn both_forms_say_the_same() {
        let lines =
            "# all\n\nSSL_cert_name=\"a b.pem\"  ssl_ticket_enabled=0\n  dest_ip=[::1]:443 ssl_cert_name=c.pem\n";
        let yaml = "# all\nssl_multicert:\n  - ssl_cert_name: a b.pem\n    ssl_ticket_enabled: 0\n  - {dest_ip: '[::1]:443', ssl_cert_name: c.pem}\n";
        for (name, text) in [("ssl_multicert.config", lines), ("x.yaml", yaml), ("x.yml", yaml)] {
            let found = certificates(name, text).unwrap();
            assert_eq!(names(&found, "ssl_cert_name"), ["a b.pem", "c.pem"], "{name}");
            assert_eq!(names(&found, "dest_ip"), ["-", "[::1]:443"], "{name}");
            assert!(found[0].is("ssl_ticket_enabled", 0) && !found[1].is("ssl_ticket_enabled", 0));
        }
    }

    #[test]
    fn what_an_entry_nests_is_passed_over() {
        let text = "other: [1, {sni: 2}]\nsni:\n- fqdn: a\n  valid_tls_versions_in: [TLSv1_2]\n  verify_client_ca_certs:\n    fqdn: no\n    file: x\n  verify_client: STRICT\n- fqdn: '*.b'\nlast: {fqdn: c}\n---\nsni: nonsense\n";
        let found = entries(text, "sni").unwrap();
        assert_eq!(names(&found, "fqdn"), ["a", "*.b"]);
        assert_eq!(names(&found, "verify_client"), ["STRICT", "-"]);
    }

    #[test]
    fn a_file_without_entries_has_none() {
        for text in ["", "# nothing\n", "---\n", "~", "sni:\n", "sni: []\n", "sni: ~"] {
            assert_eq!(entries(text, "sni"), Ok(Vec::new()), "{text:?}");
        }
        assert_eq!(certificates("ssl_multicert.config", "# nothing\n"), Ok(Vec::new()));
    }

    #[test]
    fn what_cannot_be_read_is_an_error_that_says_where() {
        for (text, why) in [
            ("sni: [", "line"),
            ("snis: []", "no sni at its top"),
            ("words", "no sni at its top"),
            ("- sni: []", "wants a mapping"),
            ("sni: word", "line 1: sni wants a sequence"),
            ("sni: {fqdn: a}", "line 1: sni wants a sequence"),
            ("sni:\n- fqdn: a\n- b\n", "line 3: sni wants a mapping"),
            ("sni:\n- [fqdn, a]\n", "line 2: sni wants a mapping"),
            ("x: &x {fqdn: a}\nsni:\n- *x\n", "line 3: an alias"),
            ("sni:\n- ? [a]\n  : b\n", "a key that is no word"),
        ] {
            let error = entries(text, "sni").unwrap_err();
            assert!(error.contains(why), "{text:?}: {error}");
        }
        let deep = format!("sni: {}", "[".repeat(10_000));
        assert!(entries(&deep, "sni").unwrap_err().contains("line 1"));
        let yaml = "ssl_multicert:\n  - ssl_cert_name: a.pem\n";
        assert!(certificates("ssl_multicert.config", yaml).unwrap_err().contains("line 1 has no name=value"));
        let nameless = certificates("ssl_multicert.config", "ssl_cert_name=a.pem\nssl_key_name=b").unwrap_err();
        assert!(nameless.contains("entry 2"), "{nameless}");
    }
}
