//! How the commands print tables and names.

use comfy_table::{Cell, Table, presets::UTF8_FULL_CONDENSED};

/// A table with the look that all commands share.
pub(super) fn table<T: Into<Cell>>(header: impl IntoIterator<Item = T>) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(header);
    table
}

/// `text` with `?` for each character that is not one to see: what other hosts call themselves shall neither steer the terminal,
/// nor turn the order of what stands beside it (U+202E), nor look like another name.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if is_seen(c) { c } else { '?' }).collect()
}

/// Whether `c` is a character of its own that a reader sees, or the blank. Beyond ASCII that is what Rust prints as it is in a
/// debug string, and so no control or format character, no other blank, no separator of lines, nothing without a meaning, and
/// nothing that changes the character before it.
fn is_seen(c: char) -> bool {
    match c {
        // Letters and a pattern by name, and nothing to see: the fillers of Hangul and the empty pattern of Braille.
        '\u{115f}' | '\u{1160}' | '\u{2800}' | '\u{3164}' | '\u{ffa0}' => false,
        ' '..='~' => true,
        _ => c.escape_debug().eq([c]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_steer_the_terminal() {
        assert_eq!(plain("edge-1\x1b[2J\n\u{9b}x"), "edge-1?[2J??x");
    }

    #[test]
    fn what_a_reader_does_not_see_is_a_question_mark() {
        let unseen = [
            "\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2066}\u{2067}\u{2068}\u{2069}\u{200e}\u{200f}\u{61c}", // direction
            "\u{200b}\u{200c}\u{200d}\u{2060}\u{feff}\u{ad}\u{34f}\u{180e}\u{fe0f}\u{e0041}", // no width
            "\u{a0}\u{2003}\u{202f}\u{3000}\u{2028}\u{2029}\u{85}", // blanks and ends of lines
            "\u{115f}\u{1160}\u{3164}\u{ffa0}\u{2800}",             // empty letters
            "\u{301}\u{20dd}\u{e000}\u{378}\u{fff9}\t\r\0\x7f",     // marks, private, unassigned
        ];
        for c in unseen.iter().flat_map(|some| some.chars()) {
            assert_eq!(plain(&format!("a{c}b")), "a?b", "U+{:04X}", u32::from(c));
        }
    }

    #[test]
    fn what_a_reader_sees_stays() {
        for seen in [
            "edge-1.example.net",
            "it's \"rack\" \\7 {~}",
            "z\u{fc}rich",
            "\u{4e1c}\u{4eac}",
            "\u{5d0}\u{2014}\u{20ac}\u{1f600}",
        ] {
            assert_eq!(plain(seen), seen);
        }
    }
}
