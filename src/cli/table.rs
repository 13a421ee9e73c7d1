//! How the commands print tables and names.

use comfy_table::{Cell, Table, presets::UTF8_FULL_CONDENSED};

/// A table with the look that all commands share.
pub(super) fn table<T: Into<Cell>>(header: impl IntoIterator<Item = T>) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(header);
    table
}

/// `text` with control characters as `?`: what other hosts call themselves shall not steer the terminal.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_steer_the_terminal() {
        assert_eq!(plain("edge-1\x1b[2J\n\u{9b}x"), "edge-1?[2J??x");
    }
}
