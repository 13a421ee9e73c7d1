//! How the commands print tables, names and times.

use comfy_table::{Cell, Table, presets::UTF8_FULL_CONDENSED};

/// A table with the look that all commands share.
pub fn table<T: Into<Cell>>(header: impl IntoIterator<Item = T>) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(header);
    table
}

/// `text` with control characters as `?`: what other hosts call themselves shall not steer the terminal.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// When `at` is, seen from `now` (both UTC milliseconds): `in 3h 12m`, `2m 5s ago`, `now`.
pub fn relative(at: u64, now: u64) -> String {
    let apart = at.abs_diff(now);
    match apart {
        0..1000 => "now".to_owned(),
        _ if at > now => format!("in {}", span(apart)),
        _ => format!("{} ago", span(apart)),
    }
}

/// A span of milliseconds in its two largest units: `3h 12m`, `45s`, `350ms`.
pub fn span(ms: u64) -> String {
    if ms < 1000 {
        return format!("{ms}ms");
    }
    let seconds = ms / 1000;
    let units = [(seconds / 86_400, 'd'), (seconds / 3600 % 24, 'h'), (seconds / 60 % 60, 'm'), (seconds % 60, 's')];
    let first = units.iter().position(|(n, _)| *n > 0).unwrap_or(units.len() - 1);
    let shown = units[first..].iter().take(2).filter(|(n, _)| *n > 0);
    shown.map(|(n, unit)| format!("{n}{unit}")).collect::<Vec<_>>().join(" ")
}

/// `1 node`, `2 nodes`.
pub fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_their_two_largest_units() {
        let now = 1_000_000_000_u64;
        for (offset, text) in [
            (0, "now"),
            (999, "now"),
            (-999, "now"),
            (1_000, "in 1s"),
            (-59_999, "59s ago"),
            (60_000, "in 1m"),
            (-125_000, "2m 5s ago"),
            (3 * 3_600_000 + 12 * 60_000 + 9_000, "in 3h 12m"),
            (-(86_400_000 + 59_000), "1d ago"),
            (2 * 86_400_000 + 3_600_000, "in 2d 1h"),
        ] {
            assert_eq!(relative(now.checked_add_signed(offset).unwrap(), now), text, "{offset}");
        }
        assert_eq!(span(350), "350ms");
        assert_eq!(span(0), "0ms");
    }

    #[test]
    fn names_cannot_steer_the_terminal() {
        assert_eq!(plain("edge-1\x1b[2J\n\u{9b}x"), "edge-1?[2J??x");
    }
}
