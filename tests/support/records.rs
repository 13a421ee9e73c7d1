//! The settings of a Traffic Server, as `records.config` of 9.x has them and as `records.yaml` of 10.x does.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Settings that got a name of their own in 10.x, because others have theirs for a beginning.
const RENAMED: [(&str, &str); 6] = [
    ("proxy.config.exec_thread.autoconfig", "proxy.config.exec_thread.autoconfig.enabled"),
    ("proxy.config.hostdb", "proxy.config.hostdb.enabled"),
    ("proxy.config.output.logfile", "proxy.config.output.logfile.name"),
    ("proxy.config.ssl.TLSv1_3", "proxy.config.ssl.TLSv1_3.enabled"),
    ("proxy.config.ssl.client.TLSv1_3", "proxy.config.ssl.client.TLSv1_3.enabled"),
    ("proxy.config.ssl.session_cache", "proxy.config.ssl.session_cache.mode"),
];

/// What the names of all settings begin with that `records.yaml` holds.
const ROOT: &str = "proxy.config.";

/// A setting's value, or all settings whose names go on from here.
enum Node {
    Value(String),
    Names(BTreeMap<String, Node>),
}

/// The lines of a `records.config` as a `records.yaml`. Of two lines for one setting the later one counts, as there.
/// Panics at a line that is none.
pub fn to_yaml(config: &str) -> String {
    let mut names = BTreeMap::new();
    for line in config.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (name, value) = read(line).unwrap_or_else(|| panic!("no setting for records.yaml: {line:?}"));
        insert(&mut names, &name, value);
    }
    let mut text = "records:\n".to_owned();
    write(&mut text, 1, &names);
    text
}

/// A setting's name without what all begin with, and its value as YAML has it.
fn read(line: &str) -> Option<(String, String)> {
    let mut words = line.splitn(4, char::is_whitespace);
    let (kind, name, of, value) = (words.next()?, words.next()?, words.next()?, words.next()?.trim());
    let renamed = RENAMED.iter().find(|(before, _)| *before == name).map_or(name, |(_, now)| now);
    let name = renamed.strip_prefix(ROOT).filter(|_| kind == "CONFIG")?;
    let value = match (of, value) {
        ("STRING", "NULL") => "null".to_owned(),
        ("STRING", text) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
        ("INT" | "FLOAT", number) => number.to_owned(),
        _ => return None,
    };
    Some((name.to_owned(), value))
}

fn insert(names: &mut BTreeMap<String, Node>, name: &str, value: String) {
    let Some((first, rest)) = name.split_once('.') else {
        let before = names.insert(name.to_owned(), Node::Value(value));
        assert!(!matches!(before, Some(Node::Names(_))), "{name} is the beginning of other settings' names");
        return;
    };
    match names.entry(first.to_owned()).or_insert_with(|| Node::Names(BTreeMap::new())) {
        Node::Names(names) => insert(names, rest, value),
        Node::Value(_) => panic!("{first} is a setting, and the beginning of the name of {rest}"),
    }
}

fn write(text: &mut String, depth: usize, names: &BTreeMap<String, Node>) {
    for (name, node) in names {
        let indent = "  ".repeat(depth);
        match node {
            Node::Value(value) => writeln!(text, "{indent}{name}: {value}").expect("text grows"),
            Node::Names(names) => {
                writeln!(text, "{indent}{name}:").expect("text grows");
                write(text, depth + 1, names);
            }
        }
    }
}
