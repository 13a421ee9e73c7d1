//! What the settings promise, key by key and all together.

use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use super::*;
use crate::sessions::Removals;

fn with_host(toml: &str, variables: &[(&str, &str)], host: &str) -> Explained {
    let file = TomlFile::parse(Path::new("test.toml"), toml).expect("valid TOML");
    let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
    understand(file, variables, OsStr::new(host))
}

fn outcome(toml: &str, variables: &[(&str, &str)]) -> Explained {
    with_host(toml, variables, "host1")
}

fn lines(toml: &str, variables: &[(&str, &str)]) -> Vec<String> {
    outcome(toml, variables).2.iter().map(ToString::to_string).collect()
}

fn good(toml: &str, variables: &[(&str, &str)]) -> Settings {
    let (settings, _, mistakes) = outcome(toml, variables);
    assert_eq!(mistakes, [], "{}", in_lines(&mistakes));
    settings
}

const DOCUMENTED: &str = include_str!("../../etc/resumed.toml");

/// `etc/resumed.toml` with every default that it shows in force.
fn uncommented() -> String {
    let is_key = |line: &str| line.starts_with('#') && line.as_bytes().get(1).is_some_and(u8::is_ascii_lowercase);
    DOCUMENTED.lines().map(|line| if is_key(line) { &line[1..] } else { line }).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_documented_file_changes_nothing_as_it_is() {
    assert_eq!(good(DOCUMENTED, &[]), good("", &[]));
}

#[test]
fn the_documented_file_shows_every_key_with_its_default() {
    let (settings, understood, mistakes) = outcome(&uncommented(), &[]);
    assert_eq!(mistakes, [], "{}", in_lines(&mistakes));
    assert_eq!(settings, good("", &[]));
    for row in understood {
        assert!(row.origin.is_file(), "{} is not documented in etc/resumed.toml", row.key);
    }
}

#[test]
fn the_defaults_are_those_that_are_promised() {
    let settings = defaults();
    assert!(!settings.node.name.is_empty());
    assert_eq!((settings.node.farm.as_str(), settings.node.pod.as_str()), ("default", "default"));
    assert_eq!(settings.node.keys.max_clock_offset, Duration::from_secs(300));
    assert_eq!(settings.node.start_alone_after, Duration::from_secs(10));
    assert_eq!(settings.broker.uris, []);
    assert_eq!(settings.broker.heartbeat, Duration::from_secs(5));
    assert_eq!(settings.node.report_every, Duration::from_secs(2));
    assert_eq!(settings.node.keys.interval, Duration::from_secs(8 * 3600));
    assert_eq!(settings.node.keys.max_seal_age, Duration::from_secs(24 * 3600));
    assert_eq!((settings.node.keys.keep, settings.node.keys.settle), (3, Duration::from_secs(2)));
    assert!(settings.node.can_lead && !settings.node.allow_disk);
    assert!(settings.node.sessions.replicate);
    assert_eq!(settings.node.sessions.removals, Removals::Replicate);
    assert_eq!(settings.node.sessions.max_bytes, 268_435_456);
    assert_eq!(settings.node.sessions.max_session_bytes, 16_384);
    assert_eq!(settings.node.sessions.batch_bytes, 98_304);
    assert_eq!(settings.ats.socket, Path::new("/run/resumed/ats.sock"));
    assert_eq!(settings.ats.users, ["trafficserver"]);
    assert_eq!(settings.control.group.as_deref(), Some("resumed-control"));
    assert_eq!(settings.metrics.listen, Some("127.0.0.1:9464".parse().unwrap()));
    assert!(settings.metrics.page);
}

#[test]
fn the_environment_overrides_the_file_and_each_value_names_its_origin() {
    let toml = "[node]\nfarm = \"one\"\npod = \"fra\"\n[keys]\nkeep = 5\ncan_lead = true\n";
    let variables = [
        ("RESUMED__NODE__FARM", "two"),
        ("RESUMED__KEYS__KEEP", "7"),
        ("RESUMED__KEYS__CAN_LEAD", "false"),
        ("RESUMED__KEYS__INTERVAL", "1h 30m"),
        ("RESUMED__SESSIONS__MAX_BYTES", "1073741824"),
        ("RESUMED__BROKER__URIS", "amqp://a, amqps://b:99/vh ,"),
        ("RESUMED__SECRET__FILES", "/etc/a,/etc/b"),
        ("RESUMED__ATS__USERS", ""),
        ("RESUMED__METRICS__LISTEN", "off"),
        ("RESUMED__METRICS__PAGE", "false"),
        ("RESUMED__CONTROL__GROUP", ""),
        ("RESUMED_LOG", "debug"),
        ("PATH", "/bin"),
    ];
    let (settings, understood, mistakes) = outcome(toml, &variables);
    assert_eq!(mistakes, []);
    assert_eq!((settings.node.farm.as_str(), settings.node.pod.as_str()), ("two", "fra"));
    assert_eq!((settings.node.keys.keep, settings.node.can_lead), (7, false));
    assert_eq!(settings.node.keys.interval, Duration::from_secs(5400));
    assert_eq!(settings.node.keys.max_seal_age, Duration::from_secs(3 * 5400));
    assert_eq!(settings.node.sessions.max_bytes, 1 << 30);
    let uris: Vec<String> = settings.broker.uris.iter().map(ToString::to_string).collect();
    assert_eq!(uris, ["amqp://a", "amqps://b:99/vh"]);
    assert_eq!(settings.secret_files, [Path::new("/etc/a"), Path::new("/etc/b")]);
    assert!(settings.ats.users.is_empty());
    assert_eq!((settings.metrics.listen, settings.metrics.page), (None, false));
    assert_eq!(settings.control.group, None);

    let origin = |key| understood.iter().find(|row| row.key == key).unwrap().origin.clone();
    assert_eq!(origin("node.farm"), Origin::Environment("RESUMED__NODE__FARM".into()));
    assert_eq!(origin("node.pod"), Origin::File(Place { path: "test.toml".into(), line: 3 }));
    assert_eq!(origin("node.name"), Origin::Default);
}

#[test]
fn durations_combine_units_and_sizes_may_be_numbers() {
    let settings = good(
        "[keys]\ninterval = \"1h 30m\"\nsettle = \"1s 500ms\"\n[sessions]\nmax_bytes = 2097152\n\
         max_session_bytes = \"1KiB\"\nbatch_bytes = \"20kB\"\n",
        &[],
    );
    assert_eq!(settings.node.keys.interval, Duration::from_secs(5400));
    assert_eq!(settings.node.keys.settle, Duration::from_millis(1500));
    assert_eq!(settings.node.sessions.max_bytes, 2 << 20);
    assert_eq!((settings.node.sessions.max_session_bytes, settings.node.sessions.batch_bytes), (1024, 20_000));
}

#[test]
fn every_mistake_is_told_in_full() {
    let long = "n".repeat(129);
    let cases: &[(&str, &str)] = &[
        ("[keys]\nkeep = 33", "keys.keep = 33 (test.toml:2): is too large; accepted: a whole number from 1 to 32"),
        ("[keys]\nkeep = 0", "keys.keep = 0 (test.toml:2): is too small; accepted: a whole number from 1 to 32"),
        (
            "[keys]\nkeep = \"3\"",
            "keys.keep = \"3\" (test.toml:2): is not a whole number; accepted: a whole number from 1 to 32",
        ),
        (
            "[keys]\nkeep = 2.5",
            "keys.keep = 2.5 (test.toml:2): is not a whole number; accepted: a whole number from 1 to 32",
        ),
        (
            "[keys]\ninterval = 28800",
            "keys.interval = 28800 (test.toml:2): needs a unit, in quotes; accepted: a duration with its unit, such as \
             \"1h 30m\", from 1s to 7days",
        ),
        (
            "[keys]\ninterval = \"28800\"",
            "keys.interval = \"28800\" (test.toml:2): is not a duration: time unit needed, for example 28800sec or \
             28800ms; accepted: a duration with its unit, such as \"1h 30m\", from 1s to 7days",
        ),
        (
            "[keys]\ninterval = \"8d\"",
            "keys.interval = \"8d\" (test.toml:2): is too large; accepted: a duration with its unit, such as \"1h 30m\", \
             from 1s to 7days",
        ),
        (
            "[keys]\ninterval = \"2s 1us\"\nsettle = \"1ms\"",
            "keys.interval = \"2s 1us\" (test.toml:2): is not in whole milliseconds; accepted: a duration with its unit, \
             such as \"1h 30m\", from 1s to 7days",
        ),
        (
            "[keys]\ninterval = \"4s\"",
            "keys.settle = 2s (default): is not below half of keys.interval, which is 4s; accepted: a duration \
             below 2s",
        ),
        (
            "[keys]\nmax_seal_age = \"15h\"",
            "keys.max_seal_age = 15h (test.toml:2): is less than twice keys.interval, which is 8h; accepted: a duration \
             of at least 16h",
        ),
        (
            "[keys]\ncan_lead = \"yes\"",
            "keys.can_lead = \"yes\" (test.toml:2): is neither true nor false; accepted: true or false, without quotes",
        ),
        (
            "[keys]\ndirectory = \"run\"",
            "keys.directory = \"run\" (test.toml:2): is not an absolute path; accepted: an absolute path",
        ),
        (
            "[broker]\nheartbeat = \"1500ms\"",
            "broker.heartbeat = \"1500ms\" (test.toml:2): is not in whole seconds; accepted: a duration with its unit, \
             such as \"1h 30m\", from 1s to 5m",
        ),
        (
            "[broker]\nreport_every = \"1ms\"",
            "broker.report_every = \"1ms\" (test.toml:2): is too small; accepted: a duration with its unit, such as \
             \"1h 30m\", from 100ms to 5m",
        ),
        (
            "[broker]\nca_file = 7",
            "broker.ca_file = 7 (test.toml:2): is not a text in quotes; accepted: an absolute path, or \"\" for none",
        ),
        (
            "[broker]\ncert_file = \"/c\"",
            "broker.cert_file = /c (test.toml:2): there is no broker.key_file; accepted: both or neither",
        ),
        (
            "[broker]\nkey_file = \"/k\"",
            "broker.key_file = /k (test.toml:2): there is no broker.cert_file; accepted: both or neither",
        ),
        (
            "[broker]\nuris = [\"amqp://mq1\"]",
            "secret.files = - (default): a broker is configured, and nothing goes there unsealed; accepted: at \
             least one file made with `resumed secret new FILE`",
        ),
        (
            "[broker]\nuris = [\"amqp://mq1\"]\nca_file = \"/ca\"\n[secret]\nfiles = [\"/s\"]",
            "broker.ca_file = /ca (test.toml:3): no URI in broker.uris uses TLS; accepted: amqps:// in broker.uris, or \
             no such file",
        ),
        (
            "[broker]\nuris = [\"amqp://u:p@mq1\"]\npassword_file = \"/p\"\n[secret]\nfiles = [\"/s\"]",
            "broker.password_file = /p (test.toml:3): every URI in broker.uris carries a password already, so this one \
             is of no use; accepted: URIs without their password, or no such file",
        ),
        (
            "[broker]\nuris = \"amqp://u:hunter2@mq1\"",
            "broker.uris = \"amqp://u:***@mq1\" (test.toml:2): is not a list, such as [\"one\", \"two\"]; accepted: URIs \
             such as \"amqps://user:password@host:5671/vhost\"",
        ),
        (
            "[broker]\nuris = [\"amqp://mq1\", \"http://u:hunter2@mq2\"]",
            "broker.uris = \"http://u:***@mq2\" (test.toml:2): is not an AMQP URI (a comma within one is written %2C); \
             accepted: URIs such as \"amqps://user:password@host:5671/vhost\"",
        ),
        (
            "[node]\nfarm = \"Prod\"",
            "node.farm = \"Prod\" (test.toml:2): has the character 'P'; accepted: 1 to 63 of a-z, 0-9 and -",
        ),
        ("[node]\npod = \"\"", "node.pod = \"\" (test.toml:2): is empty; accepted: 1 to 63 of a-z, 0-9 and -"),
        (
            "[node]\nname = \"a b\"",
            "node.name = \"a b\" (test.toml:2): has the character ' '; accepted: 1 to 128 printable ASCII characters \
             without spaces, or \"\" for the host name",
        ),
        (
            "[node]\nmax_clock_offset = \"0s\"",
            "node.max_clock_offset = \"0s\" (test.toml:2): is too small; accepted: a duration with its unit, such as \
             \"1h 30m\", from 1s to 1h",
        ),
        (
            "[sessions]\nremovals = \"drop\"",
            "sessions.removals = \"drop\" (test.toml:2): is not known; accepted: \"replicate\" or \"keep\"",
        ),
        (
            "[sessions]\nmax_bytes = \"lots\"",
            "sessions.max_bytes = \"lots\" (test.toml:2): is not a size; accepted: a number of bytes or a size such as \
             \"64KiB\", from 1MiB to 1TiB",
        ),
        (
            "[sessions]\nmax_bytes = -1",
            "sessions.max_bytes = -1 (test.toml:2): is negative; accepted: a number of bytes or a size such as \
             \"64KiB\", from 1MiB to 1TiB",
        ),
        (
            "[sessions]\nbatch_bytes = \"1MiB\"",
            "sessions.batch_bytes = \"1MiB\" (test.toml:2): is too large; accepted: a number of bytes or a size such as \
             \"64KiB\", from 1KiB to 512KiB",
        ),
        (
            "[sessions]\nbatch_bytes = \"8KiB\"",
            "sessions.max_session_bytes = 16KiB (default): is more than sessions.batch_bytes, which is 8KiB; \
             accepted: at most 8KiB",
        ),
        (
            "[ats]\nsocket = \"ats.sock\"",
            "ats.socket = \"ats.sock\" (test.toml:2): is not an absolute path; accepted: an absolute path of at most 107 \
             bytes",
        ),
        (
            "[ats]\nusers = [\"ats\", \"a b\"]",
            "ats.users = \"a b\" (test.toml:2): has the character ' '; accepted: user names",
        ),
        (
            "[ats]\nusers = [\"ats\", 33]",
            "ats.users = [\"ats\", 33] (test.toml:2): is not a list of texts in quotes; accepted: user names",
        ),
        (
            "[control]\nsocket = \"/run/resumed/ats.sock\"",
            "control.socket = /run/resumed/ats.sock (test.toml:2): is the same as ats.socket; accepted: a path of its own",
        ),
        (
            "[metrics]\nlisten = \"localhost:9464\"",
            "metrics.listen = \"localhost:9464\" (test.toml:2): is not an IP address with a port; accepted: an IP \
             address with a port, such as \"127.0.0.1:9464\" or \"[::1]:9464\"; or \"off\"",
        ),
        (
            "[keys]\nintervall = \"8h\"",
            "keys.intervall (test.toml:2): unknown key; accepted: perhaps keys.interval is meant",
        ),
        (
            "[node]\ninterval = \"8h\"",
            "node.interval (test.toml:2): unknown key; accepted: perhaps keys.interval is meant",
        ),
        ("[secret]\nrotation = 1", "secret.rotation (test.toml:2): unknown key; accepted: the keys of secret: files"),
        (
            "[brokers]\nuris = []",
            "brokers (test.toml:1): unknown section; accepted: perhaps broker is meant; the sections are node, broker, \
             secret, keys, sessions, ats, control, metrics",
        ),
        (
            "[haproxy]",
            "haproxy (test.toml:1): unknown section; accepted: the sections node, broker, secret, keys, sessions, ats, \
             control, metrics",
        ),
        ("farm = \"x\"", "farm (test.toml:1): stands outside of any section; accepted: perhaps node.farm is meant"),
        ("node = \"x\"", "node (test.toml:1): is a section, not a key; accepted: a table [node]"),
        (
            "[broker.tls]\nca = \"/x\"",
            "broker.tls (test.toml:1): unknown key; accepted: the keys of broker: uris, ca_file, cert_file, key_file, \
             password_file, heartbeat, report_every",
        ),
    ];
    for (toml, expected) in cases {
        assert_eq!(lines(toml, &[]), [*expected], "for\n{toml}");
    }
    let socket = format!("[ats]\nsocket = \"/{}\"", "s".repeat(107));
    assert!(lines(&socket, &[])[0].contains("is 108 bytes long; accepted: an absolute path of at most 107 bytes"));
    let longest = format!("/{}", "s".repeat(106));
    assert_eq!(good(&format!("[ats]\nsocket = \"{longest}\""), &[]).ats.socket, Path::new(&longest));
    assert!(lines(&format!("[node]\nname = \"{long}\""), &[])[0].contains("is 129 bytes long"));
    assert!(lines(&format!("[node]\nfarm = \"{}\"", "f".repeat(64)), &[])[0].contains("is 64 bytes long"));
}

#[test]
fn a_mistake_in_the_environment_names_the_variable() {
    let cases = [
        (
            ("RESUMED__KEYS__KEEP", "many"),
            "keys.keep = \"many\" (environment RESUMED__KEYS__KEEP): is not a whole number; accepted: a whole \
             number from 1 to 32",
        ),
        (
            ("RESUMED__KEYS__CAN_LEAD", "1"),
            "keys.can_lead = \"1\" (environment RESUMED__KEYS__CAN_LEAD): is neither true nor false; accepted: \
             true or false, without quotes",
        ),
        (
            ("RESUMED__KEYS__KEPT", "3"),
            "keys.kept (environment RESUMED__KEYS__KEPT): unknown key; accepted: perhaps keys.keep is meant",
        ),
        (
            ("RESUMED__KEY__KEEP", "3"),
            "key.keep (environment RESUMED__KEY__KEEP): unknown section; accepted: perhaps keys is meant; the \
             sections are node, broker, secret, keys, sessions, ats, control, metrics",
        ),
        (
            ("RESUMED__NODE", "3"),
            "node (environment RESUMED__NODE): is a section, not a key; accepted: RESUMED__NODE__KEY",
        ),
        (
            ("RESUMED__FARM", "3"),
            "farm (environment RESUMED__FARM): stands outside of any section; accepted: perhaps node.farm is meant",
        ),
    ];
    for (variable, expected) in cases {
        assert_eq!(lines("", &[variable]), [expected], "for {variable:?}");
    }
    let bytes = OsString::from_vec(vec![b'f', 0xff]);
    let variables = [(OsString::from("RESUMED__NODE__FARM"), bytes)].into_iter();
    let (_, _, mistakes) = understand(TomlFile::default(), variables, OsStr::new("host1"));
    assert_eq!(
        in_lines(&mistakes),
        "1 mistake in the configuration:\n  node.farm (environment RESUMED__NODE__FARM): is not UTF-8; accepted: \
         UTF-8 text"
    );
}

#[test]
fn all_mistakes_are_told_at_once() {
    let directory = crate::temporary::Folder::new();
    let path = directory.path().join("resumed.toml");
    std::fs::write(&path, "[node]\nfarm = \"A\"\npod = 3\n[keys]\nkeep = 99\nnonsense = 1\n[zoo]\nx = 1\n").unwrap();
    let error = load(Some(&path)).expect_err("five mistakes");
    let ConfigError::Mistakes(mistakes) = &error else { panic!("{error}") };
    let keys: Vec<&str> = mistakes.iter().map(|mistake| mistake.key.as_str()).collect();
    assert_eq!(keys, ["node.farm", "node.pod", "keys.keep", "zoo", "keys.nonsense"]);
    assert!(
        error
            .to_string()
            .starts_with(&format!("5 mistakes in the configuration:\n  node.farm = \"A\" ({}:2): ", path.display()))
    );
}

#[test]
fn one_mistake_does_not_bring_others_about() {
    // Neither settle nor max_seal_age is held against an interval that is itself a mistake.
    assert_eq!(lines("[keys]\ninterval = \"1ms\"\nmax_seal_age = \"1s\"", &[]).len(), 1);
    assert_eq!(lines("[broker]\nuris = [\"nonsense\"]", &[]).len(), 1);
}

#[test]
fn secrets_are_in_no_message() {
    let hex = "c0ffee".repeat(10);
    let (settings, understood, mistakes) = outcome(
        "[broker]\nuris = [\"amqps://resumed:hunter2@mq1\"]\npassword_file = \"/etc/p\"\n[secret]\nfiles = [\"/s\"]",
        &[],
    );
    assert!(!format!("{settings:?} {understood:?} {mistakes:?}").contains("hunter2"));
    assert!(understood.iter().any(|row| row.value == "amqps://resumed:***@mq1"));

    for (toml, variable) in [
        (String::new(), Some(("RESUMED__BROKER__URIS", "amqp://resumed:hun,hunter2@mq1"))),
        (String::new(), Some(("RESUMED__BROKER__URIS", "amqp://resumed:a,hunter2,b@mq1"))),
        ("[broker]\nuri = \"amqp://resumed:hunter2@mq1\"".into(), None),
        ("[broker]\nuris = [\"resumed:hunter2@mq1\"]".into(), None),
        ("[broker]\nuris = \"resumed:hunter2@mq1\"".into(), None),
        ("[broker]\nuris = [\"amqp://resumed:hunter2@mq1\", 7]".into(), None),
        ("[broker]\npassword = \"hunter2\"".into(), None),
        ("[broker]\npassword_file = \"hunter2\"".into(), None),
        ("[broker]\npassword_file = [\"hunter2\"]".into(), None),
        ("password = \"hunter2\"".into(), None),
        (format!("[secret]\nfiles = [\"{hex}\"]"), None),
        (format!("[secret]\nfiles = \"{hex}\""), None),
        (format!("[secret]\nkey = \"{hex}\""), None),
    ] {
        let lines = lines(&toml, variable.as_slice()).join("\n");
        assert!(!lines.is_empty(), "{toml} passes");
        assert!(!lines.contains("hunter2") && !lines.contains("c0ffee"), "{lines}");
    }
}

#[test]
fn a_file_whose_uris_carry_a_password_is_a_file_with_a_secret() {
    let directory = crate::temporary::Folder::new();
    let path = directory.path().join("resumed.toml");
    let passwords_in = |toml: &str| {
        std::fs::write(&path, format!("{toml}[secret]\nfiles = [\"/s\"]\n")).unwrap();
        load(Some(&path)).unwrap().passwords_in
    };
    assert_eq!(passwords_in("[broker]\nuris = [\"amqp://mq1\"]\npassword_file = \"/p\"\n"), None);
    assert_eq!(passwords_in(""), None);
    let found = passwords_in("[broker]\nuris = [\"amqp://mq1\", \"amqp://u:p@mq2\"]\n");
    assert_eq!(found, Some(path.clone()));
}

#[test]
fn a_file_that_is_not_toml_is_told_with_its_line_but_not_its_text() {
    let toml = "[broker]\nuris = [\"amqp://resumed:hunter2@mq1\"\npassword_file = \"x\"\n";
    let error = TomlFile::parse(Path::new("/etc/x.toml"), toml).err().expect("no closing bracket");
    let text = error.to_string();
    assert!(
        text.starts_with("the configuration file /etc/x.toml is not valid TOML: TOML parse error at line "),
        "{text}"
    );
    assert!(!text.contains("hunter2") && !text.contains("amqp"), "{text}");
    for toml in
        ["[broker]\nuris = hunter2", "hunter2", "[a]\nx = \"hunter2", "[a]\nx = 1 hunter2", "hunter2 = 1\nhunter2 = 2"]
    {
        let text = TomlFile::parse(Path::new("x"), toml).err().expect(toml).to_string();
        assert!(text.contains("line "), "{text}");
        assert!(!text.contains("= hunter2") && !text.contains("\"hunter2"), "{text}");
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = load(Some(Path::new("/nonexistent/resumed.toml"))).expect_err("no file");
    assert_eq!(
        error.to_string(),
        "cannot read the configuration file /nonexistent/resumed.toml: No such file or directory (os error 2)"
    );
}

#[test]
fn a_host_name_that_cannot_name_a_node_is_a_mistake_unless_there_is_a_name() {
    let (_, _, mistakes) = with_host("", &[], "");
    assert_eq!(
        in_lines(&mistakes),
        "1 mistake in the configuration:\n  node.name = - (default): the host name is empty; accepted: 1 to 128 \
         printable ASCII characters without spaces, or \"\" for the host name"
    );
    assert_eq!(with_host("[node]\nname = \"n1\"", &[], "").2, []);
    assert_eq!(with_host("[node]\nname = \"\"", &[], "h.example.net").0.node.name, "h.example.net");
}

#[test]
fn a_mistake_in_the_file_names_its_line() {
    let toml = "\
# What this host says of itself.
[node]
name = \"n1\"
farm = \"A\" # one capital

[broker]
uris = [
    \"amqps://resumed:hunter2@mq1\",
    # One more.
    \"amqps://resumed:hunter2@[::1\",
]
report_every = \"\"\"
1ms\"\"\"
[broker.tls]
ca = \"/x\"
[secret]
files = [\"/s\"]
[ats]
users = [\"ats\",
  33]
[zoo]
x = 1
[keys]
kep = 3
";
    let (_, understood, mistakes) = outcome(toml, &[("RESUMED__KEYS__KEEP", "0")]);
    let found: Vec<(&str, String)> =
        mistakes.iter().map(|mistake| (mistake.key.as_str(), mistake.origin.to_string())).collect();
    let expected = [
        ("node.farm", "test.toml:4"),
        ("broker.uris", "test.toml:10"),
        ("broker.report_every", "test.toml:12"),
        ("keys.keep", "environment RESUMED__KEYS__KEEP"),
        ("ats.users", "test.toml:20"),
        ("zoo", "test.toml:21"),
        ("broker.tls", "test.toml:14"),
        ("keys.kep", "test.toml:24"),
    ];
    assert_eq!(found, expected.map(|(key, place)| (key, place.to_owned())));
    assert!(!in_lines(&mistakes).contains("hunter2"), "{}", in_lines(&mistakes));
    let name = understood.iter().find(|row| row.key == "node.name").unwrap();
    assert_eq!(name.origin.within_the_file(), "line 3");
}

#[test]
fn lines_are_counted_whatever_ends_them_and_however_a_key_is_written() {
    for (toml, key, line) in [
        ("\r\n[node]\r\nfarm = \"A\"\r\n", "node.farm", 3),
        ("# Übung ☂\nnode.farm = \"A\"", "node.farm", 2),
        ("\n\nnode = { pod = \"p\", farm = \"A\" }", "node.farm", 3),
        ("[node]\n\"farm\" = \"A\"", "node.farm", 2),
        ("[node]\npod = \"\"\"\n\n\"\"\"", "node.pod", 2),
        ("\nfarm = 1", "farm", 2),
        ("[keys]\n\n[[zoo]]\n", "zoo", 3),
    ] {
        let mistakes = outcome(toml, &[]).2;
        let found: Vec<_> = mistakes.iter().map(|mistake| (mistake.key.as_str(), mistake.origin.to_string())).collect();
        assert_eq!(found, [(key, format!("test.toml:{line}"))], "{toml:?}");
    }
}
