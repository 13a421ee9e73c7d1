//! How values are shown: as they are written in the file, and never with a password.

use std::time::Duration;

use config::ValueKind;

use super::uri::redact;

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

pub(super) fn quoted(text: &str) -> String {
    format!("{text:?}")
}

pub(super) fn shown_text(text: &str) -> String {
    if text.is_empty() { "-".into() } else { text.into() }
}

pub(super) fn shown_list(items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.collect();
    shown_text(&items.join(", "))
}

/// The keys in whose place somebody may write the secret itself instead of a file's path.
const SECRET_FILES: [&str; 2] = ["secret.files", "broker.password_file"];

pub(super) fn shown_path(key: &str, text: &str) -> String {
    if SECRET_FILES.contains(&key) && !text.starts_with('/') { "***".into() } else { quoted(text) }
}

/// A faulty value as it was written, without what may be a secret.
pub(super) fn show_given(key: &str, kind: &ValueKind) -> String {
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
