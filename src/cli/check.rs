//! What `resumed check` prints: the settings as they were understood, or every mistake.

use std::fmt::Write;
use std::fs::File;
use std::path::{Path, PathBuf};

use crate::bus::BrokerUri;
use crate::bus::rabbitmq::{BadFile, BrokerFile};
use crate::bus::refusals::EMPTY_VHOST_REMEDY;
use crate::config::{Mistake, Understood};
use crate::daemon::Settings;
use crate::envelope::{FarmSecret, KeyAgreements, SecretError};
use crate::secret_files::farm_secret::{self, SecretFileError};
use crate::secret_files::{ACCEPTED_MODES, Warning};
use crate::words::counted;

/// One aligned table for each section: key, value, where the value comes from. `file` is the configuration file that
/// was read, if one was. Passwords stand as `***` in `understood` already.
#[must_use]
pub(super) fn understood(understood: &[Understood], file: Option<&Path>) -> String {
    let mut text = match file {
        Some(file) => format!("{}\n", file.display()),
        None => "no configuration file\n".to_owned(),
    };
    let split = |row: &Understood| row.key.split_once('.').unwrap_or(("", row.key));
    let key_width = understood.iter().map(|row| width(split(row).1)).max().unwrap_or(0);
    // One list of many brokers does not push all origins off the screen.
    let value_width = understood.iter().map(|row| width(&row.value)).filter(|width| *width <= 40).max().unwrap_or(0);
    let mut section = None;
    for row in understood {
        let (of, key) = split(row);
        if section != Some(of) {
            section = Some(of);
            line(&mut text, format_args!("\n[{of}]"));
        }
        line(
            &mut text,
            format_args!("  {key:key_width$}  {:value_width$}  {}", row.value, row.origin.within_the_file()),
        );
    }
    text
}

/// What this host can do: its OpenSSL, called `openssl`, and the key agreements that it has. What it lacks is nothing that keeps
/// the daemon from running.
#[must_use]
pub(crate) fn host(openssl: &str, agreements: KeyAgreements) -> String {
    let mut text = format!("\n[this host]\n  OpenSSL         {openssl}\n  key agreements  {agreements}\n");
    if let Some(lacking) = agreements.lacking() {
        line(&mut text, format_args!("\n1 warning about this host\n"));
        line(&mut text, format_args!("OpenSSL"));
        line(&mut text, format_args!("  warning   {lacking}"));
        line(&mut text, format_args!("  better    see \"Hosts in FIPS mode\" in docs/install.md"));
    }
    text
}

/// A file that the settings name and that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileProblem {
    /// `section.key`.
    pub key: &'static str,
    /// The file.
    pub path: PathBuf,
    /// Why it cannot be used.
    pub reason: String,
    /// What could be.
    pub accepted: String,
}

/// Everything that is wrong: the mistakes, then the files.
#[must_use]
pub(super) fn told(mistakes: &[Mistake], problems: &[FileProblem]) -> String {
    let parts = [
        (!mistakes.is_empty()).then(|| self::mistakes(mistakes)),
        (!problems.is_empty()).then(|| file_problems(problems)),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join("\n")
}

/// Every mistake, one paragraph each: key and value, where it comes from, what is wrong, what would be accepted.
#[must_use]
pub(super) fn mistakes(mistakes: &[Mistake]) -> String {
    let mut text = format!("{} in the configuration\n", counted(mistakes.len(), "mistake"));
    for Mistake { key, value, origin, reason, accepted } in mistakes {
        match value {
            Some(value) => line(&mut text, format_args!("\n{key} = {value}")),
            None => line(&mut text, format_args!("\n{key}")),
        }
        line(&mut text, format_args!("  from      {origin}"));
        line(&mut text, format_args!("  mistake   {reason}"));
        line(&mut text, format_args!("  accepted  {accepted}"));
    }
    text
}

/// Every file that the settings name and that cannot be used.
#[must_use]
pub(crate) fn file_problems(problems: &[FileProblem]) -> String {
    let mut text = format!("{} cannot be used\n", counted(problems.len(), "file"));
    for FileProblem { key, path, reason, accepted } in problems {
        line(&mut text, format_args!("\n{key} = {}", path.display()));
        line(&mut text, format_args!("  mistake   {reason}"));
        line(&mut text, format_args!("  accepted  {accepted}"));
    }
    text
}

/// Every secret that others than the daemon may get at: nothing that keeps it from running. Empty if there is none.
#[must_use]
pub(super) fn warnings(warnings: &[Warning]) -> String {
    if warnings.is_empty() {
        return String::new();
    }
    let mut text = format!("\n{} about files with secrets\n", counted(warnings.len(), "warning"));
    for Warning { key, path, exposure } in warnings {
        line(&mut text, format_args!("\n{key} = {}", path.display()));
        line(&mut text, format_args!("  warning   {exposure}"));
        line(&mut text, format_args!("  better    {}", exposure.remedy()));
    }
    text
}

/// Every URI that names a virtual host that is hardly meant: nothing that keeps the daemon from running. Empty if there is
/// none.
#[must_use]
pub(crate) fn uri_warnings(uris: &[BrokerUri]) -> String {
    let nameless: Vec<_> = uris.iter().filter(|uri| uri.has_nameless_vhost()).collect();
    if nameless.is_empty() {
        return String::new();
    }
    let mut text = format!("\n{} about the URIs of brokers\n", counted(nameless.len(), "warning"));
    for uri in nameless {
        line(&mut text, format_args!("\nbroker.uris = {uri}"));
        line(
            &mut text,
            format_args!("  warning   names the virtual host with the empty name, which brokers seldom have"),
        );
        line(&mut text, format_args!("  better    {EMPTY_VHOST_REMEDY}"));
    }
    text
}

/// What is wrong with the files that `settings` name, each judged alone: whether it can be read, and what is in it.
///
/// # Errors
/// OpenSSL failed, which says nothing about a file.
pub(crate) fn problems(settings: &Settings) -> Result<Vec<FileProblem>, SecretError> {
    let mut problems = unreadable_files(settings);
    let readable = |path: &Path| problems.iter().all(|problem| problem.path != path);
    let mut found = Vec::new();
    let mut secrets: Vec<(FarmSecret, &Path)> = Vec::new();
    for path in settings.secret_files.iter().map(AsRef::as_ref).filter(|path: &&Path| readable(path)) {
        let wrong = match farm_secret::read(path) {
            Ok(secret) => {
                let same = secrets.iter().find(|(earlier, _)| earlier.id() == secret.id()).map(|(_, path)| *path);
                secrets.push((secret, path));
                same.map(|other| (format!("is the same secret as {}", other.display()), "another secret".to_owned()))
            }
            Err(SecretFileError::Secret(error)) => return Err(error),
            Err(error) => Some(wrong_secret(error)),
        };
        found.extend(wrong.map(|(reason, accepted)| FileProblem {
            key: "secret.files",
            path: path.into(),
            reason,
            accepted,
        }));
    }
    for BadFile { file, path, wrong } in settings.broker.bad_files() {
        // Where it cannot even be read is said above.
        if readable(&path) {
            let (key, accepted) = described(file);
            found.push(FileProblem { key, path, reason: wrong.to_string(), accepted: accepted.into() });
        }
    }
    problems.append(&mut found);
    Ok(problems)
}

/// What is wrong with the files that `settings` name: each must be there and be readable by this process. What is in them
/// is not looked at.
fn unreadable_files(settings: &Settings) -> Vec<FileProblem> {
    let broker = &settings.broker;
    let one = [
        ("broker.ca_file", &broker.ca_file),
        ("broker.cert_file", &broker.cert_file),
        ("broker.key_file", &broker.key_file),
        ("broker.password_file", &broker.password_file),
    ];
    one.iter()
        .filter_map(|(key, path)| path.as_ref().map(|path| (*key, path)))
        .chain(settings.secret_files.iter().map(|path| ("secret.files", path)))
        .filter_map(|(key, path)| {
            let reason = unreadable(path)?;
            Some(FileProblem { key, path: path.clone(), reason, accepted: "a file that this user can read".into() })
        })
        .collect()
}

fn unreadable(path: &Path) -> Option<String> {
    match std::fs::metadata(path) {
        // Opening a FIFO would wait for its other end.
        Ok(metadata) if !metadata.is_file() => Some("is not a regular file".into()),
        Ok(_) => File::open(path).err().map(|error| error.to_string()),
        Err(error) => Some(error.to_string()),
    }
}

/// The setting that names a file of the broker, and what the file is to be.
fn described(file: BrokerFile) -> (&'static str, &'static str) {
    let pair = "PEM, a certificate with its chain and the key that belongs to it";
    match file {
        BrokerFile::Authorities => ("broker.ca_file", "PEM, one or more certificates"),
        BrokerFile::Certificate => ("broker.cert_file", pair),
        BrokerFile::Key => ("broker.key_file", pair),
        BrokerFile::Password => ("broker.password_file", "UTF-8 text"),
    }
}

/// What is wrong with a farm secret's file, and what would be accepted.
fn wrong_secret(error: SecretFileError) -> (String, String) {
    match error {
        SecretFileError::NotAFile { found, .. } => (format!("is {found}"), "a regular file".into()),
        SecretFileError::Mode { found, .. } => (format!("has mode {found:04o}"), ACCEPTED_MODES.into()),
        SecretFileError::Owner { found, own, .. } => (
            format!("belongs to user id {found}"),
            format!("a file of root (0) or of the user that resumed runs as ({own})"),
        ),
        SecretFileError::Content { found, .. } => {
            (found, "exactly 64 hex digits and a newline, as `resumed secret new FILE` writes it".into())
        }
        SecretFileError::Read { source, .. } => (source.to_string(), "a file that this user can read".into()),
        other => (other.to_string(), "a farm secret, as `resumed secret new FILE` makes it".into()),
    }
}

fn width(text: &str) -> usize {
    text.chars().count()
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Origin, Place};
    use crate::secret_files::Exposure;

    fn in_file(line: usize) -> Origin {
        Origin::File(Place { path: "/etc/resumed/resumed.toml".into(), line })
    }

    #[test]
    fn settings_stand_in_one_aligned_table_a_section() {
        let rows = [
            Understood { key: "node.name", value: "a".into(), origin: Origin::Default },
            Understood { key: "node.start_alone_after", value: "10s".into(), origin: in_file(7) },
            Understood {
                key: "broker.uris",
                value: "amqp://u:***@mq1".into(),
                origin: Origin::Environment("RESUMED__BROKER__URIS".into()),
            },
        ];
        let expected = "\
/etc/resumed/resumed.toml

[node]
  name               a                 default
  start_alone_after  10s               line 7

[broker]
  uris               amqp://u:***@mq1  environment RESUMED__BROKER__URIS
";
        assert_eq!(understood(&rows, Some(Path::new("/etc/resumed/resumed.toml"))), expected);
        assert!(understood(&rows, None).starts_with("no configuration file\n\n[node]\n"));
    }

    #[test]
    fn mistakes_stand_in_paragraphs() {
        let mistake = |key: &str, value: Option<&str>| Mistake {
            key: key.into(),
            value: value.map(Into::into),
            origin: in_file(3),
            reason: "is wrong".into(),
            accepted: "something else".into(),
        };
        let expected = "\
2 mistakes in the configuration

keys.keep = 99
  from      /etc/resumed/resumed.toml:3
  mistake   is wrong
  accepted  something else

zoo
  from      /etc/resumed/resumed.toml:3
  mistake   is wrong
  accepted  something else
";
        assert_eq!(mistakes(&[mistake("keys.keep", Some("99")), mistake("zoo", None)]), expected);
    }

    #[test]
    fn what_was_understood_of_a_real_file_shows_no_password_and_every_key_once() {
        let directory = crate::temporary::Folder::new();
        let path = directory.path().join("resumed.toml");
        let toml = "[broker]\nuris = [\"amqps://resumed:hunter2@mq1\", \"amqps://resumed:hunter2@mq2\"]\n\
                    [secret]\nfiles = [\"/etc/resumed/farm.secret\"]\n";
        std::fs::write(&path, toml).unwrap();
        let (_, rows, _) = config::load_explained(Some(&path)).unwrap();
        let text = understood(&rows, Some(&path));
        assert!(text.contains("amqps://resumed:***@mq1, amqps://resumed:***@mq2"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
        assert_eq!(text.lines().filter(|line| line.starts_with("  ")).count(), rows.len(), "{text}");
        assert_eq!(text.matches("\n[").count(), 8, "{text}");
    }

    #[test]
    fn files_that_cannot_be_used_stand_in_paragraphs() {
        let problem = FileProblem {
            key: "secret.files",
            path: "/x".into(),
            reason: "No such file or directory".into(),
            accepted: "a file that this user can read".into(),
        };
        let expected = "\
1 file cannot be used

secret.files = /x
  mistake   No such file or directory
  accepted  a file that this user can read
";
        assert_eq!(file_problems(&[problem]), expected);
    }

    #[test]
    fn warnings_stand_in_paragraphs() {
        let warning = Warning {
            key: "broker.key_file",
            path: "/etc/resumed/node.key".into(),
            exposure: Exposure::Mode { mode: 0o644 },
        };
        let expected = "
1 warning about files with secrets

broker.key_file = /etc/resumed/node.key
  warning   has mode 0644, which lets others at it
  better    give it mode 0640 or tighter: 0600, 0440, 0400
";
        assert_eq!(warnings(&[warning]), expected);
        assert_eq!(warnings(&[]), "");
    }

    #[test]
    fn what_the_host_can_do_is_said_and_what_it_lacks_is_warned_of() {
        let expected = "
[this host]
  OpenSSL         OpenSSL 3.5.7
  key agreements  P-256

1 warning about this host

OpenSSL
  warning   has no X25519, as in FIPS mode: this node and one of release 0.1.0 cannot give each other epoch keys
  better    see \"Hosts in FIPS mode\" in docs/install.md
";
        assert_eq!(host("OpenSSL 3.5.7", KeyAgreements { x25519: false, p256: true }), expected);
        let only = host("OpenSSL 3.5.7", KeyAgreements { x25519: true, p256: false });
        assert!(only.contains("key agreements  X25519\n") && only.contains("has no P-256"), "{only}");
        let both = "\n[this host]\n  OpenSSL         OpenSSL 3.5.7\n  key agreements  X25519, P-256\n";
        assert_eq!(host("OpenSSL 3.5.7", KeyAgreements::BOTH), both);
    }

    #[test]
    fn a_uri_that_names_the_virtual_host_without_a_name_is_warned_of() {
        let uris =
            ["amqp://u:hunter2@mq1/", "amqp://u@mq2", "amqp://u@mq3/%2f"].map(|uri| BrokerUri::parse(uri).unwrap());
        let expected = "
1 warning about the URIs of brokers

broker.uris = amqp://u:***@mq1/
  warning   names the virtual host with the empty name, which brokers seldom have
  better    if / is meant, end the URI in %2f, or leave out its last /
";
        assert_eq!(uri_warnings(&uris), expected);
        assert_eq!(uri_warnings(&uris[1..]), "");
    }

    #[test]
    fn one_bad_file_hides_no_other_and_no_mistake_hides_a_file() {
        use std::os::unix::fs::PermissionsExt;
        let directory = crate::temporary::Folder::new();
        let file = |name: &str, text: &str, mode| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path.display().to_string()
        };
        let hex = "0f".repeat(32);
        let good = file("good", &format!("{hex}\n"), 0o600);
        let again = file("again", &format!("{hex}\n"), 0o600);
        let open = file("open", &format!("{hex}\n"), 0o644);
        let junk = file("junk", "hunter2", 0o600);
        let gone = directory.path().join("gone").display().to_string();
        let (ca, cert, key) = (file("ca", "x", 0o600), file("cert", "x", 0o600), file("key", "x", 0o600));
        let toml = format!(
            "[keys]\nkeep = 99\n[secret]\nfiles = [{:?}, {again:?}, {open:?}, {junk:?}, {gone:?}]\n[broker]\n\
             uris = [\"amqps://mq1\"]\nca_file = {ca:?}\ncert_file = {cert:?}\nkey_file = {key:?}\n",
            good
        );
        let path = file("resumed.toml", &toml, 0o600);
        let (settings, _, mistakes) = config::load_explained(Some(Path::new(&path))).unwrap();
        let problems = problems(&settings).unwrap();
        let found: Vec<(&str, String)> =
            problems.iter().map(|problem| (problem.key, problem.path.display().to_string())).collect();
        let expected = [
            ("secret.files", &gone),
            ("secret.files", &again),
            ("secret.files", &open),
            ("secret.files", &junk),
            ("broker.ca_file", &ca),
            ("broker.cert_file", &cert),
            ("broker.key_file", &key),
        ];
        assert_eq!(found, expected.map(|(key, path)| (key, path.clone())));
        let text = told(&mistakes, &problems);
        for part in ["1 mistake in", "keys.keep = 99", "7 files cannot", "has mode 0644", ACCEPTED_MODES, &good] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(!text.contains(&hex) && !text.contains("hunter2"), "{text}");
        assert!(!text.contains("broker settings"), "{text}");
    }

    #[test]
    fn files_that_are_missing_or_no_files_are_told_with_their_keys() {
        let directory = crate::temporary::Folder::new();
        let there = directory.path().join("there");
        std::fs::write(&there, "x").unwrap();
        let mut settings = config::defaults();
        settings.secret_files = vec![there.clone(), directory.path().join("missing")];
        settings.broker.ca_file = Some(directory.path().into());
        settings.broker.password_file = Some(there);
        let problems: Vec<(&str, String)> =
            unreadable_files(&settings).into_iter().map(|problem| (problem.key, problem.reason)).collect();
        assert_eq!(
            problems,
            [
                ("broker.ca_file", "is not a regular file".to_owned()),
                ("secret.files", "No such file or directory (os error 2)".to_owned()),
            ]
        );
    }
}
