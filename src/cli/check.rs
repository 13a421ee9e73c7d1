//! What `resumed check` prints: the settings as they were understood, or every mistake.

use std::fmt::Write;
use std::path::Path;

use crate::config::{ConfigError, FileProblem, Mistake, Understood};

/// One aligned table for each section: key, value, where the value comes from. `file` is the configuration file that
/// was read, if one was. Passwords stand as `***` in `understood` already.
#[must_use]
pub fn understood(understood: &[Understood], file: Option<&Path>) -> String {
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
        line(&mut text, format_args!("  {key:key_width$}  {:value_width$}  {}", row.value, row.origin));
    }
    text
}

/// Every mistake, one paragraph each: key and value, where it comes from, what is wrong, what would be accepted.
#[must_use]
pub fn mistakes(error: &ConfigError) -> String {
    let ConfigError::Mistakes(mistakes) = error else {
        return format!("{error}\n");
    };
    let mut text = counted(mistakes.len(), "mistake", "in the configuration");
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

/// Every file that the settings name and that cannot be read.
#[must_use]
pub fn file_problems(problems: &[FileProblem]) -> String {
    let mut text = counted(problems.len(), "file", "cannot be used");
    for FileProblem { key, path, reason } in problems {
        line(&mut text, format_args!("\n{key} = {}\n  mistake   {reason}", path.display()));
        line(&mut text, format_args!("  accepted  a file that this user can read"));
    }
    text
}

fn counted(count: usize, what: &str, rest: &str) -> String {
    format!("{count} {what}{} {rest}\n", if count == 1 { "" } else { "s" })
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
    use crate::config::{Origin, Settings};

    #[test]
    fn settings_stand_in_one_aligned_table_a_section() {
        let rows = [
            Understood { key: "node.name", value: "a".into(), origin: Origin::Default },
            Understood { key: "node.start_alone_after", value: "10s".into(), origin: Origin::File },
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
  start_alone_after  10s               file

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
            origin: Origin::File,
            reason: "is wrong".into(),
            accepted: "something else".into(),
        };
        let error = ConfigError::Mistakes(vec![mistake("keys.keep", Some("99")), mistake("zoo", None)]);
        let expected = "\
2 mistakes in the configuration

keys.keep = 99
  from      file
  mistake   is wrong
  accepted  something else

zoo
  from      file
  mistake   is wrong
  accepted  something else
";
        assert_eq!(mistakes(&error), expected);
    }

    #[test]
    fn what_was_understood_of_a_real_file_shows_no_password_and_every_key_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resumed.toml");
        let toml = "[broker]\nuris = [\"amqps://resumed:hunter2@mq1\", \"amqps://resumed:hunter2@mq2\"]\n\
                    [secret]\nfiles = [\"/etc/resumed/farm.secret\"]\n";
        std::fs::write(&path, toml).unwrap();
        let (_, rows) = Settings::load_explained(Some(&path)).unwrap();
        let text = understood(&rows, Some(&path));
        assert!(text.contains("amqps://resumed:***@mq1, amqps://resumed:***@mq2"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
        assert_eq!(text.lines().filter(|line| line.starts_with("  ")).count(), rows.len(), "{text}");
        assert_eq!(text.matches("\n[").count(), 8, "{text}");
    }

    #[test]
    fn files_that_cannot_be_used_stand_in_paragraphs() {
        let problem =
            FileProblem { key: "secret.files", path: "/x".into(), reason: "No such file or directory".into() };
        let expected = "\
1 file cannot be used

secret.files = /x
  mistake   No such file or directory
  accepted  a file that this user can read
";
        assert_eq!(file_problems(&[problem]), expected);
    }
}
