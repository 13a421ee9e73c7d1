//! ATS's own settings: which of them break resumption across the farm, and the digest of its certificate names.

use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::api::{self, Api};
use crate::fields::{self, Fields};
use crate::libssl;

/// Where settings come from: ATS, or a test.
pub(crate) trait Source {
    /// An integer of `records.config` or `records.yaml`.
    fn number(&self, name: &CStr) -> Option<i64>;
    /// A text of them, not empty.
    fn text(&self, name: &CStr) -> Option<String>;
    /// The folder of ATS's configuration.
    fn config_dir(&self) -> Option<String>;
    /// ATS's major version.
    fn major(&self) -> i32;
}

impl Source for Api {
    fn number(&self, name: &CStr) -> Option<i64> {
        self.setting(name)
    }

    fn text(&self, name: &CStr) -> Option<String> {
        self.text_setting(name)
    }

    fn config_dir(&self) -> Option<String> {
        Api::config_dir(self)
    }

    fn major(&self) -> i32 {
        Api::major(self)
    }
}

/// What a node is told of its proxy's settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shown {
    /// Equal on two hosts only if ATS derives the same session ID contexts on them; none if a file that it depends on cannot be
    /// read.
    pub certificate_digest: Option<[u8; 8]>,
    /// What an operator should change, in sentences.
    pub warnings: Vec<String>,
}

/// Looks at ATS's settings as they are now. `sessions`: this ATS shares session IDs with plugins at all.
pub(crate) fn look(source: &impl Source, sessions: bool) -> Shown {
    let files = Files::read(source);
    Shown { certificate_digest: certificate_digest(&files), warnings: warnings(source, &files, sessions) }
}

/// A file of ATS's configuration.
struct File<T> {
    path: PathBuf,
    /// What it says, or why it cannot be read.
    content: Result<T, String>,
}

/// What ATS's settings name beside the records.
struct Files {
    certificates: File<Vec<Fields>>,
    names: File<Vec<Fields>>,
    /// The names of the authorities whose certificates clients may have, if there is such a file: a digest of each, in the file's
    /// order.
    authorities: Option<File<Vec<[u8; 32]>>>,
}

/// More than any file of ATS's configuration has, in bytes.
const LARGEST_FILE: u64 = 16 << 20;

impl Files {
    fn read(source: &impl Source) -> Self {
        let at = |setting: &CStr, default: &str| {
            let name = source.text(setting).unwrap_or_else(|| default.to_owned());
            // Without one, not from wherever ATS happens to run.
            Path::new(&source.config_dir().unwrap_or_else(|| "/unknown".to_owned())).join(name)
        };
        let default = if source.major() < 11 { "ssl_multicert.config" } else { "ssl_multicert.yaml" };
        let certificates = at(c"proxy.config.ssl.server.multicert.filename", default);
        let names = at(c"proxy.config.ssl.servername.filename", "sni.yaml");
        let read = |path: &Path| content(path).map_err(|error| error.to_string());
        // ATS does without one.
        let or_none = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => Ok(String::new()),
            _ => Err(error.to_string()),
        };
        Self {
            certificates: File {
                content: read(&certificates)
                    .and_then(|text| fields::certificates(&certificates.to_string_lossy(), &text)),
                path: certificates,
            },
            names: File {
                content: content(&names).or_else(or_none).and_then(|text| fields::entries(&text, "sni")),
                path: names,
            },
            authorities: authorities_file(source)
                .map(|path| File { content: authorities(&path).map_err(|error| error.to_string()), path }),
        }
    }
}

fn content(path: &Path) -> io::Result<String> {
    if std::fs::metadata(path)?.len() > LARGEST_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it has more than 16 MiB"));
    }
    std::fs::read_to_string(path)
}

/// ATS takes a relative folder from where it runs, as this process does.
fn authorities_file(source: &impl Source) -> Option<PathBuf> {
    let name = source.text(c"proxy.config.ssl.CA.cert.filename").filter(|name| name != "NULL")?;
    let folder = source.text(c"proxy.config.ssl.CA.cert.path").unwrap_or_default();
    Some(Path::new(&folder).join(name))
}

fn authorities(path: &Path) -> io::Result<Vec<[u8; 32]>> {
    content(path)?;
    let found = CString::new(path.as_os_str().as_bytes()).ok().and_then(|path| libssl::authorities(&path));
    found.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it has no certificate in PEM"))
}

/// What an operator should change, in sentences.
fn warnings(source: &impl Source, files: &Files, sessions: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    if sessions {
        of_sessions(source, files, &mut warnings);
    }
    of_tickets(source, &mut warnings);
    of_certificates(source, files, &mut warnings);
    of_names(files, &mut warnings);
    of_rules(source, files, &mut warnings);
    unreadable(files, &mut warnings);
    warnings
}

/// The first of `names` that this ATS knows, and its value.
fn first(source: &impl Source, names: &[&'static CStr]) -> Option<(&'static str, i64)> {
    names.iter().find_map(|name| source.number(name).map(|value| (name.to_str().unwrap_or_default(), value)))
}

fn of_sessions(source: &impl Source, files: &Files, warnings: &mut Vec<String>) {
    let cache = first(source, &[c"proxy.config.ssl.session_cache.mode", c"proxy.config.ssl.session_cache"]);
    if let Some((name, value)) = cache.filter(|(_, value)| *value != 2) {
        warnings.push(format!(
            "{name} is {value}, not 2: without ATS's own session cache no session is resumed by ID across the farm"
        ));
    }
    if source.number(c"proxy.config.ssl.session_cache.skip_cache_on_bucket_contention").unwrap_or(0) != 0 {
        warnings.push(
            "proxy.config.ssl.session_cache.skip_cache_on_bucket_contention is 1: under load ATS neither keeps nor finds \
             some sessions"
                .into(),
        );
    }
    let asks = source.number(c"proxy.config.ssl.client.certification_level").unwrap_or(0);
    if asks != 0 {
        warnings.push(format!("proxy.config.ssl.client.certification_level is {asks}: {CLIENT_CERTIFICATES}"));
    }
    let asks = |entry: &&Fields| entry.get("verify_client").is_some_and(|level| !level.eq_ignore_ascii_case("NONE"));
    some_names(files, "verify_client", asks, CLIENT_CERTIFICATES, warnings);
}

const CLIENT_CERTIFICATES: &str = "ATS keeps no session of more than 256 bytes, so sessions with a client certificate resume by \
                                   ticket only";

fn of_tickets(source: &impl Source, warnings: &mut Vec<String>) {
    let tls_1_3 = first(source, &[c"proxy.config.ssl.TLSv1_3.enabled", c"proxy.config.ssl.TLSv1_3"]);
    if tls_1_3.is_none_or(|(_, value)| value != 0) {
        for name in [c"proxy.config.ssl.server.session_ticket.enable", c"proxy.config.ssl.server.session_ticket.number"]
        {
            if source.number(name) == Some(0) {
                let name = name.to_str().unwrap_or_default();
                warnings.push(format!("{name} is 0: TLS 1.3 clients never resume, they need tickets"));
            }
        }
    }
    if let Some(file) = ticket_key_file(source) {
        warnings.push(format!(
            "proxy.config.ssl.server.ticket_key.filename is {file:?}: ATS can put that file's keys in place of the farm's \
             at every configuration reload; leave it unset"
        ));
    }
    if source.number(c"proxy.config.ssl.server.max_early_data").unwrap_or(0) > 0 {
        warnings.push(
            "proxy.config.ssl.server.max_early_data is above 0: early data (0-RTT) of one client can be replayed to \
             every host of the farm"
                .into(),
        );
    }
}

/// The first release whose tickets are sealed by the address on which a client came.
const TICKETS_BY_ADDRESS: i32 = 10;

fn of_certificates(source: &impl Source, files: &Files, warnings: &mut Vec<String>) {
    let file = files.certificates.name();
    for entry in files.certificates.entries() {
        let certificate = entry.get("ssl_cert_name").unwrap_or("?");
        if entry.is("ssl_ticket_enabled", 0) {
            warnings.push(format!("{file} gives {certificate} ssl_ticket_enabled=0: its clients get no tickets"));
        }
        if entry.is("ssl_ticket_number", 0) {
            warnings
                .push(format!("{file} gives {certificate} ssl_ticket_number=0: its TLS 1.3 clients get no tickets"));
        }
        let address = entry.get("dest_ip").filter(|address| *address != "*");
        if let Some(address) = address.filter(|_| source.major() >= TICKETS_BY_ADDRESS) {
            warnings.push(format!(
                "{file} gives {certificate} dest_ip={address}: ATS seals the tickets of that address with a random key of its \
                 own, and they resume on this host only; write dest_ip=*, ATS chooses certificates by the name that a client asks for"
            ));
        }
    }
}

/// Settings of single names, which win over those for all.
fn of_names(files: &Files, warnings: &mut Vec<String>) {
    let off = |entry: &&Fields| entry.is("ssl_ticket_enabled", 0);
    some_names(files, "ssl_ticket_enabled: 0", off, "their clients get no tickets", warnings);
    let none = |entry: &&Fields| entry.is("ssl_ticket_number", 0);
    some_names(files, "ssl_ticket_number: 0", none, "their TLS 1.3 clients get no tickets", warnings);
}

/// Rules about client certificates that differ between names. ATS 9.2.9 looks at a name's rule in full handshakes alone, and takes a
/// session or a ticket of any name under any other, certificates of their own or not: on one host, and so on all of a farm.
fn of_rules(source: &impl Source, files: &Files, warnings: &mut Vec<String>) {
    let default = source.number(c"proxy.config.ssl.client.certification_level").unwrap_or(0);
    let weaker = |entry: &&Fields| level_of(entry).is_some_and(|level| level < default);
    let stricter = |entry: &&Fields| level_of(entry).is_some_and(|level| level > default);
    let follows = "what a client got under a name with a weaker rule it resumes under the others, on any host of the farm, and is \
                   asked for no certificate; serve names with different rules by different farms";
    for (setting, picked) in [
        ("a weaker verify_client than other names", &weaker as &dyn Fn(&&Fields) -> bool),
        ("a stricter verify_client than other names", &stricter),
    ] {
        some_names(files, setting, picked, follows, warnings);
    }
}

/// The name's own rule, as `certification_level` has it: 0 asks for no certificate, 1 takes none too, 2 requires one.
fn level_of(entry: &Fields) -> Option<i64> {
    entry.get("verify_client").map(|level| match level.to_ascii_uppercase().as_str() {
        "NONE" => 0,
        "MODERATE" => 1,
        _ => 2,
    })
}

/// So many names stand in one sentence.
const MOST_NAMES: usize = 5;

/// One sentence about all names that `picked` picks.
fn some_names(
    files: &Files,
    setting: &str,
    picked: impl Fn(&&Fields) -> bool,
    follows: &str,
    warnings: &mut Vec<String>,
) {
    let found = files.names.entries().filter(picked);
    let names: Vec<&str> = found.map(|entry| entry.get("fqdn").unwrap_or("?")).collect();
    let more = match names.len().saturating_sub(MOST_NAMES) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    if !names.is_empty() {
        let listed = names[..names.len().min(MOST_NAMES)].join(", ");
        warnings.push(format!("{} gives {listed}{more} {setting}: {follows}", files.names.name()));
    }
}

/// What stays unknown, and would else look as on every other host.
fn unreadable(files: &Files, warnings: &mut Vec<String>) {
    let digest = "the certificates of this host cannot be compared with those of the others";
    let found = [
        files.certificates.unreadable().map(|why| (why, digest)),
        files.authorities.as_ref().and_then(File::unreadable).map(|why| (why, digest)),
        files.names.unreadable().map(|why| (why, "its settings of single names are not checked")),
    ];
    warnings.extend(found.into_iter().flatten().map(|(why, follows)| format!("cannot read {why}: {follows}")));
}

impl<T> File<T> {
    /// Its name without its folder.
    fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Its path and why it cannot be read.
    fn unreadable(&self) -> Option<String> {
        self.content.as_ref().err().map(|why| format!("{} ({why})", self.path.display()))
    }
}

impl File<Vec<Fields>> {
    fn entries(&self) -> impl Iterator<Item = &Fields> {
        self.content.iter().flatten()
    }
}

/// The file from which ATS reads its ticket keys, if the operator named one.
pub(crate) fn ticket_key_file(source: &impl Source) -> Option<String> {
    source.text(c"proxy.config.ssl.server.ticket_key.filename").filter(|name| name != "NULL")
}

/// ATS's session ID context of a certificate is a hash over the text of `ssl_cert_name`, and over the names in the file of
/// authorities in their order, whichever way they are reached (`SSLMultiCertConfigLoader::set_session_id_context` in 9.2 to 11).
/// So is this, over all certificates. Release 0.1.0 says the same where there is no such file, and no `ssl_ca_name`.
fn certificate_digest(files: &Files) -> Option<[u8; 8]> {
    let certificates = files.certificates.content.as_ref().ok()?;
    let authorities = match &files.authorities {
        Some(file) => file.content.as_ref().ok()?.concat(),
        None => Vec::new(),
    };
    let mut names: Vec<&str> = certificates.iter().filter_map(|entry| entry.get("ssl_cert_name")).collect();
    names.sort_unstable();
    names.dedup();
    // An empty one behind each: there 0.1.0 has `ssl_ca_name`, which ATS does not hash.
    let texts = names.iter().flat_map(|name| [name.as_bytes(), b""]).chain([&authorities[..]]);
    let mut bytes = Vec::new();
    for text in texts {
        bytes.extend_from_slice(&(text.len() as u64).to_be_bytes());
        bytes.extend_from_slice(text);
    }
    let digest = api::sha256(&bytes);
    Some(std::array::from_fn(|at| digest[at]))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[derive(Default)]
    struct Records {
        numbers: HashMap<&'static str, i64>,
        texts: HashMap<&'static str, String>,
        major: i32,
    }

    impl Source for Records {
        fn number(&self, name: &CStr) -> Option<i64> {
            self.numbers.get(name.to_str().unwrap()).copied()
        }

        fn text(&self, name: &CStr) -> Option<String> {
            self.texts.get(name.to_str().unwrap()).cloned()
        }

        fn config_dir(&self) -> Option<String> {
            Some("/nowhere".to_owned())
        }

        fn major(&self) -> i32 {
            self.major
        }
    }

    const GOOD: &str = "ssl_cert_name=farm.pem ssl_key_name=farm.key dest_ip=*\n";

    fn good() -> Records {
        let numbers = [
            ("proxy.config.ssl.session_cache", 2),
            ("proxy.config.ssl.server.session_ticket.enable", 1),
            ("proxy.config.ssl.server.session_ticket.number", 2),
        ];
        Records { numbers: numbers.into(), major: 9, ..Records::default() }
    }

    fn files(multicert: &str, sni: &str) -> Files {
        let (certificates, names) = ("/etc/ts/ssl_multicert.config", "/etc/ts/sni.yaml");
        Files {
            certificates: File { path: certificates.into(), content: fields::certificates(certificates, multicert) },
            names: File { path: names.into(), content: fields::entries(sni, "sni") },
            authorities: None,
        }
    }

    fn found(records: &Records, multicert: &str, sni: &str) -> Vec<String> {
        warnings(records, &files(multicert, sni), true)
    }

    #[test]
    fn good_settings_give_no_warning() {
        assert!(found(&good(), GOOD, "").is_empty());
    }

    #[test]
    fn each_setting_that_breaks_resumption_is_named() {
        for (name, value) in [
            ("proxy.config.ssl.session_cache", 1),
            ("proxy.config.ssl.session_cache.mode", 0),
            ("proxy.config.ssl.session_cache.skip_cache_on_bucket_contention", 1),
            ("proxy.config.ssl.server.session_ticket.enable", 0),
            ("proxy.config.ssl.server.session_ticket.number", 0),
            ("proxy.config.ssl.client.certification_level", 2),
            ("proxy.config.ssl.server.max_early_data", 16_384),
        ] {
            let mut records = good();
            records.numbers.insert(name, value);
            let found = found(&records, GOOD, "");
            assert_eq!(found.len(), 1, "{name}: {found:?}");
            assert!(found[0].contains(&format!("{name} is ")), "{found:?}");
        }
        let mut records = good();
        records.texts.insert("proxy.config.ssl.server.ticket_key.filename", "keys.bin".to_owned());
        assert!(found(&records, GOOD, "")[0].contains("\"keys.bin\""));
    }

    #[test]
    fn tickets_off_is_no_fault_where_tls_1_3_is_off_too() {
        let mut records = good();
        records.numbers.insert("proxy.config.ssl.server.session_ticket.enable", 0);
        records.numbers.insert("proxy.config.ssl.server.session_ticket.number", 0);
        records.numbers.insert("proxy.config.ssl.TLSv1_3", 0);
        assert!(found(&records, GOOD, "").is_empty());
    }

    #[test]
    fn without_session_functions_what_concerns_sessions_does_not_matter() {
        let mut records = good();
        records.numbers.insert("proxy.config.ssl.session_cache", 0);
        let files = files(GOOD, "sni: [{fqdn: a, verify_client: STRICT}]");
        assert_eq!(warnings(&records, &files, false).len(), 1, "whose rule tickets pass too");
        assert_eq!(warnings(&records, &files, true).len(), 3);
    }

    #[test]
    fn a_certificate_without_tickets_is_named() {
        let text = "# ssl_ticket_enabled=0\n\nssl_cert_name=\"a b.pem\" SSL_ticket_enabled=0\nssl_cert_name=c.pem ssl_ticket_number=0";
        let found = found(&good(), text, "");
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("gives a b.pem ssl_ticket_enabled=0"), "{found:?}");
        assert!(found[1].contains("gives c.pem ssl_ticket_number=0"), "{found:?}");
    }

    #[test]
    fn an_address_keeps_tickets_on_its_host_from_10_on() {
        let text = "ssl_cert_name=a.pem dest_ip=192.0.2.1\nssl_cert_name=b.pem dest_ip=*\nssl_cert_name=c.pem";
        assert!(found(&good(), text, "").is_empty(), "with 9.2 such tickets cross");
        for major in [10, 11] {
            let found = found(&Records { major, ..good() }, text, "");
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].contains("gives a.pem dest_ip=192.0.2.1") && found[0].contains("dest_ip=*"), "{found:?}");
        }
    }

    #[test]
    fn settings_of_single_names_are_told_in_one_sentence_each() {
        let mut sni = "sni:\n- {fqdn: one, ssl_ticket_number: 0, verify_client: NONE}\n".to_owned();
        for n in 0..7 {
            sni += &format!("- fqdn: n{n}\n  ssl_ticket_enabled: 0\n  verify_client: MODERATE\n");
        }
        let found = found(&good(), GOOD, &sni);
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(
            found[0].contains("sni.yaml gives n0, n1, n2, n3, n4 and 2 more verify_client: ATS keeps"),
            "{found:?}"
        );
        assert!(found[1].contains("and 2 more ssl_ticket_enabled: 0: their clients get no tickets"), "{found:?}");
        assert!(found[2].contains("gives one ssl_ticket_number: 0: their TLS 1.3 clients"), "{found:?}");
    }

    #[test]
    fn names_with_another_rule_about_client_certificates_than_the_rest_are_told() {
        let sni = "sni:\n- {fqdn: a, verify_client: strict}\n- {fqdn: b, verify_client: MODERATE}\n- {fqdn: c}\n";
        let said = |level: i64, sni: &str| -> Vec<String> {
            let mut records = good();
            records.numbers.insert("proxy.config.ssl.client.certification_level", level);
            let told = found(&records, GOOD, sni);
            told.into_iter().filter(|warning| warning.contains("verify_client than other names")).collect()
        };
        for (level, names) in [(0, "gives a, b a stricter"), (1, "gives a a stricter"), (2, "gives b a weaker")] {
            let told = said(level, sni);
            assert!(told.len() == 1 && told[0].contains(names), "{level}: {told:?}");
        }
        let both = said(1, "sni: [{fqdn: a, verify_client: STRICT}, {fqdn: b, verify_client: NONE}]");
        assert!(both.len() == 2 && both[0].contains("b a weaker") && both[1].contains("a a stricter"), "{both:?}");
        assert_eq!(said(2, "sni: [{fqdn: a, verify_client: STRICT}, {fqdn: b}]"), [""; 0]);
        assert_eq!(said(0, "sni: [{fqdn: a, verify_client: NONE}, {fqdn: b}]"), [""; 0]);
    }

    #[test]
    fn what_cannot_be_read_is_said_and_has_no_digest() {
        let yaml = "ssl_multicert:\n  - ssl_cert_name: a.pem\n";
        let unread = files(yaml, "snis: []");
        assert_eq!(certificate_digest(&unread), None);
        let found = warnings(&good(), &unread, true);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("cannot read /etc/ts/ssl_multicert.config (line 1 has no"), "{found:?}");
        assert!(found[1].contains("cannot read /etc/ts/sni.yaml (no sni at its top)"), "{found:?}");
        // What is missing altogether, but for what ATS does without.
        let shown = look(&good(), true);
        assert_eq!((shown.certificate_digest, shown.warnings.len()), (None, 1), "{shown:?}");
        assert!(shown.warnings[0].contains("/nowhere/ssl_multicert.config"), "{shown:?}");
        assert!(look(&Records { major: 11, ..good() }, true).warnings[0].contains("/nowhere/ssl_multicert.yaml"));
        let mut records = good();
        records.texts.insert("proxy.config.ssl.CA.cert.filename", "ca.pem".to_owned());
        records.texts.insert("proxy.config.ssl.CA.cert.path", "/nowhere/else".to_owned());
        assert!(look(&records, true).warnings[1].contains("/nowhere/else/ca.pem"));
    }

    #[test]
    fn the_digest_is_over_certificate_names_and_not_their_order() {
        let digest = |text: &str| certificate_digest(&files(text, "")).unwrap();
        let two = "ssl_cert_name=a.pem dest_ip=*\nssl_cert_name=b.pem";
        let turned = "# hosts\nssl_cert_name='b.pem' ssl_key_name=b.key ssl_ca_name=ca.pem\n  ssl_cert_name=a.pem";
        assert_eq!(digest(two), digest(turned));
        assert_ne!(digest(two), digest(GOOD));
        assert_ne!(digest("ssl_cert_name=a.pem"), digest("ssl_cert_name=./a.pem"));
        let mut yaml = files(GOOD, "");
        let text = "ssl_multicert: [{ssl_cert_name: a.pem}, {ssl_cert_name: b.pem}]";
        yaml.certificates.content = fields::certificates("ssl_multicert.yaml", text);
        assert_eq!(certificate_digest(&yaml).unwrap(), digest(two));
    }

    #[test]
    fn the_digest_is_the_one_of_0_1_0_where_no_authority_is_named() {
        // What 0.1.0 says of this line: SHA-256 over the length of each text in eight bytes, and the text.
        let expected = [0xff, 0x10, 0x3d, 0x13, 0x27, 0x3e, 0x61, 0x84];
        assert_eq!(certificate_digest(&files(GOOD, "")), Some(expected));
    }

    #[test]
    fn the_digest_follows_the_authorities_and_their_order() {
        let with = |authorities: &[[u8; 32]]| {
            let mut files = files(GOOD, "");
            files.authorities = Some(File { path: "ca.pem".into(), content: Ok(authorities.to_vec()) });
            certificate_digest(&files).unwrap()
        };
        let (one, other) = ([1; 32], [2; 32]);
        assert_ne!(with(&[one, other]), with(&[other, one]));
        assert_ne!(with(&[one]), with(&[one, other]));
        assert_ne!(Some(with(&[one])), certificate_digest(&files(GOOD, "")));
    }
}
