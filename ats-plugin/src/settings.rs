//! ATS's own settings: which of them break resumption across the farm, and the digest of its certificate names.

use std::ffi::CStr;
use std::path::Path;

use crate::api::{self, Api};

/// Where settings come from: ATS, or a test.
pub trait Source {
    /// An integer of `records.config`.
    fn number(&self, name: &CStr) -> Option<i64>;
    /// A text of `records.config`, not empty.
    fn text(&self, name: &CStr) -> Option<String>;
}

impl Source for Api {
    fn number(&self, name: &CStr) -> Option<i64> {
        self.setting(name)
    }

    fn text(&self, name: &CStr) -> Option<String> {
        self.text_setting(name)
    }
}

/// One line of `ssl_multicert.config`: its `key=value` pairs.
struct Line(Vec<(String, String)>);

impl Line {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }
}

/// What ATS says about its certificates; none if the file cannot be read.
pub fn multicert(source: &impl Source, config_dir: Option<&str>) -> Option<String> {
    let name = source.text(c"proxy.config.ssl.server.multicert.filename");
    let name = name.as_deref().unwrap_or("ssl_multicert.config");
    std::fs::read_to_string(Path::new(config_dir?).join(name)).ok()
}

/// What an operator should change, in sentences. `sessions`: this ATS shares session IDs with plugins at all.
pub fn warnings(source: &impl Source, multicert: Option<&str>, sessions: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut warn = |text: String| warnings.push(text);
    let first = |names: &[&'static CStr]| {
        names.iter().find_map(|name| source.number(name).map(|value| (name.to_str().unwrap_or_default(), value)))
    };
    if sessions {
        let cache = first(&[c"proxy.config.ssl.session_cache.mode", c"proxy.config.ssl.session_cache"]);
        if let Some((name, value)) = cache.filter(|(_, value)| *value != 2) {
            warn(format!(
                "{name} is {value}, not 2: without ATS's own session cache no session is resumed by ID across the farm"
            ));
        }
        let asks = source.number(c"proxy.config.ssl.client.certification_level").unwrap_or(0);
        if asks != 0 {
            warn(format!(
                "proxy.config.ssl.client.certification_level is {asks}: ATS keeps no session of more than 256 bytes, \
                 so sessions with a client certificate resume by ticket only"
            ));
        }
    }
    let tickets = source.number(c"proxy.config.ssl.server.session_ticket.enable");
    let tls_1_3 = first(&[c"proxy.config.ssl.TLSv1_3.enabled", c"proxy.config.ssl.TLSv1_3"]);
    if tickets == Some(0) && tls_1_3.is_none_or(|(_, value)| value != 0) {
        warn(
            "proxy.config.ssl.server.session_ticket.enable is 0: TLS 1.3 clients never resume, they need tickets"
                .into(),
        );
    }
    if let Some(file) = ticket_key_file(source) {
        warn(format!(
            "proxy.config.ssl.server.ticket_key.filename is {file:?}: ATS can put that file's keys in place of the farm's \
             at every configuration reload; leave it unset"
        ));
    }
    if source.number(c"proxy.config.ssl.server.max_early_data").unwrap_or(0) > 0 {
        warn(
            "proxy.config.ssl.server.max_early_data is above 0: early data (0-RTT) of one client can be replayed to \
              every host of the farm"
                .into(),
        );
    }
    for line in lines(multicert.unwrap_or_default()) {
        let certificate = line.get("ssl_cert_name").unwrap_or("?");
        if let Some(file) = line.get("ticket_key_name") {
            warn(format!(
                "ssl_multicert.config gives {certificate} a ticket_key_name ({file}): it ignores the farm's ticket keys"
            ));
        }
        if line.get("ssl_ticket_enabled") == Some("0") {
            warn(format!("ssl_multicert.config gives {certificate} ssl_ticket_enabled=0: its clients get no tickets"));
        }
    }
    warnings
}

/// The file from which ATS reads its ticket keys, if the operator named one.
pub fn ticket_key_file(source: &impl Source) -> Option<String> {
    source.text(c"proxy.config.ssl.server.ticket_key.filename").filter(|name| name != "NULL")
}

/// 8 bytes that are equal on two hosts only if ATS derives the same session ID contexts on them: over the texts of
/// `ssl_cert_name` and `ssl_ca_name`, sorted, and the name of the CA file.
pub fn certificate_digest(source: &impl Source, multicert: &str) -> [u8; 8] {
    let mut names: Vec<[String; 2]> = lines(multicert)
        .filter(|line| line.get("ssl_cert_name").is_some())
        .map(|line| ["ssl_cert_name", "ssl_ca_name"].map(|key| line.get(key).unwrap_or_default().to_owned()))
        .collect();
    names.sort();
    names.dedup();
    let ca = source.text(c"proxy.config.ssl.CA.cert.filename").filter(|name| name != "NULL").unwrap_or_default();
    let mut bytes = Vec::new();
    for text in names.iter().flatten().chain([&ca]) {
        bytes.extend_from_slice(&(text.len() as u64).to_be_bytes());
        bytes.extend_from_slice(text.as_bytes());
    }
    let digest = api::sha256(&bytes);
    std::array::from_fn(|at| digest[at])
}

/// The lines that say something, as ATS reads them: pairs between blanks, values perhaps in quotes.
fn lines(multicert: &str) -> impl Iterator<Item = Line> {
    multicert.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(|line| {
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
        Line(pairs)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[derive(Default)]
    struct Records {
        numbers: HashMap<&'static str, i64>,
        texts: HashMap<&'static str, &'static str>,
    }

    impl Source for Records {
        fn number(&self, name: &CStr) -> Option<i64> {
            self.numbers.get(name.to_str().unwrap()).copied()
        }

        fn text(&self, name: &CStr) -> Option<String> {
            self.texts.get(name.to_str().unwrap()).map(|text| (*text).to_owned())
        }
    }

    const GOOD: &str = "ssl_cert_name=farm.pem ssl_key_name=farm.key dest_ip=*\n";

    fn good() -> Records {
        let numbers = [("proxy.config.ssl.session_cache", 2), ("proxy.config.ssl.server.session_ticket.enable", 1)];
        Records { numbers: numbers.into(), ..Default::default() }
    }

    #[test]
    fn good_settings_give_no_warning() {
        assert!(warnings(&good(), Some(GOOD), true).is_empty());
    }

    #[test]
    fn each_setting_that_breaks_resumption_is_named() {
        for (name, value) in [
            ("proxy.config.ssl.session_cache", 1),
            ("proxy.config.ssl.session_cache.mode", 0),
            ("proxy.config.ssl.server.session_ticket.enable", 0),
            ("proxy.config.ssl.client.certification_level", 2),
            ("proxy.config.ssl.server.max_early_data", 16_384),
        ] {
            let mut records = good();
            records.numbers.insert(name, value);
            let found = warnings(&records, Some(GOOD), true);
            assert_eq!(found.len(), 1, "{name}: {found:?}");
            assert!(found[0].contains(&format!("{name} is ")), "{found:?}");
        }
        let mut records = good();
        records.texts.insert("proxy.config.ssl.server.ticket_key.filename", "keys.bin");
        assert!(warnings(&records, Some(GOOD), true)[0].contains("\"keys.bin\""));
    }

    #[test]
    fn tickets_off_is_no_fault_where_tls_1_3_is_off_too() {
        let mut records = good();
        records.numbers.insert("proxy.config.ssl.server.session_ticket.enable", 0);
        records.numbers.insert("proxy.config.ssl.TLSv1_3", 0);
        assert!(warnings(&records, Some(GOOD), true).is_empty());
    }

    #[test]
    fn without_session_functions_the_session_cache_does_not_matter() {
        let mut records = good();
        records.numbers.insert("proxy.config.ssl.session_cache", 0);
        assert!(warnings(&records, Some(GOOD), false).is_empty());
    }

    #[test]
    fn a_certificate_with_ticket_keys_of_its_own_is_named() {
        let text = "# ticket_key_name=no\n\nssl_cert_name=\"a b.pem\" ticket_key_name=k.bin\nssl_cert_name=c.pem ssl_ticket_enabled=0";
        let found = warnings(&good(), Some(text), true);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("a b.pem") && found[0].contains("k.bin"));
        assert!(found[1].contains("c.pem"));
    }

    #[test]
    fn the_digest_is_over_certificate_names_and_not_their_order() {
        let digest = |text: &str| certificate_digest(&good(), text);
        let two = "ssl_cert_name=a.pem dest_ip=*\nssl_cert_name=b.pem ssl_ca_name=ca.pem";
        let turned = "# hosts\nssl_cert_name='b.pem' ssl_key_name=b.key ssl_ca_name=ca.pem\n  ssl_cert_name=a.pem";
        assert_eq!(digest(two), digest(turned));
        assert_ne!(digest(two), digest(GOOD));
        assert_ne!(digest("ssl_cert_name=a.pem"), digest("ssl_cert_name=./a.pem"));
        let mut other_ca = good();
        other_ca.texts.insert("proxy.config.ssl.CA.cert.filename", "ca.pem");
        assert_ne!(certificate_digest(&other_ca, two), digest(two));
    }
}
