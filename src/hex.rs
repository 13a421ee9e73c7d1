//! Bytes as people read them.

/// Lower-case hex digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0xf)]).map(char::from).collect()
}

/// The lower-case hex digit of `value`, of which the lower four bits count: for text that is written in place, such as a secret's.
#[must_use]
pub(crate) fn digit(value: u8) -> u8 {
    b"0123456789abcdef"[usize::from(value & 0xf)]
}

/// The value of an ASCII hex digit, of either case.
#[must_use]
pub(crate) fn value(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

/// What the bytes behind the hex digits of `text` are; panics if it has something else in it.
#[cfg(test)]
pub fn unhex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2), "{text}");
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_in_lower_case_digits_and_read_back() {
        assert_eq!(hex(&[0x00, 0x9a, 0xbf, 0xff]), "009abfff");
        assert_eq!(hex(&[]), "");
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(unhex(&hex(&all)), all);
    }
}
