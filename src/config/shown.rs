//! How values are shown: as they are written in the file, and never with a password.

use config::ValueKind;

use crate::bus::redact;

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
