//! Finds secrets in what processes wrote, however they were written down.

use std::collections::HashMap;

use openssl::base64::encode_block;
use resumed::internals::hex::hex;

/// So many bytes of a secret in a row are a leak.
pub const WINDOW: usize = 8;

/// Looks for any [`WINDOW`] consecutive bytes of the secrets that it was given, written raw, as hex digits of either case,
/// in base64 at any alignment and of either alphabet, as a list of numbers, or escaped as Rust shows bytes.
#[derive(Default)]
pub struct Scanner {
    patterns: Vec<Pattern>,
    /// By the first eight bytes.
    index: HashMap<Vec<u8>, Vec<usize>>,
}

struct Pattern {
    bytes: Vec<u8>,
    what: String,
}

impl Scanner {
    /// Looks for `secret` too, which is called `name` in what is found.
    pub fn add(&mut self, name: &str, secret: &[u8]) {
        for (at, window) in secret.windows(WINDOW).enumerate() {
            let mut add = |form: &str, bytes: Vec<u8>| {
                // No form is shorter than what it stands for.
                self.index.entry(bytes[..8].to_vec()).or_default().push(self.patterns.len());
                self.patterns.push(Pattern { bytes, what: format!("{name}, bytes {at} on, {form}") });
            };
            add("raw", window.to_vec());
            add("in hex", hex(window).into_bytes());
            add("in hex", hex(window).to_uppercase().into_bytes());
            for before in 0..3 {
                let text = base64(window, before);
                let url_safe = text.replace('+', "-").replace('/', "_");
                if url_safe != text {
                    add("in base64", url_safe.into_bytes());
                }
                add("in base64", text.into_bytes());
            }
            let numbers: Vec<String> = window.iter().map(u8::to_string).collect();
            add("as numbers", numbers.join(", ").into_bytes());
            let escaped = window.escape_ascii().to_string().into_bytes();
            if escaped != window {
                add("escaped", escaped);
            }
        }
    }

    /// What of the secrets stands in `text`: one line for each find.
    pub fn find(&self, text: &[u8]) -> Vec<String> {
        let mut found = Vec::new();
        for (at, first) in text.windows(8).enumerate() {
            let Some(candidates) = self.index.get(first) else { continue };
            let here = candidates.iter().map(|place| &self.patterns[*place]);
            for pattern in here.filter(|pattern| text[at..].starts_with(&pattern.bytes)) {
                found.push(format!("at {at}: {}", pattern.what));
            }
        }
        found
    }
}

/// The base64 digits that `window` alone decides if `before` bytes stand before it in the encoded text (modulo 3).
fn base64(window: &[u8], before: usize) -> String {
    let padded = [&[0; 2][..before], window, &[0; 2]].concat();
    let from = (8 * before).div_ceil(6);
    let until = 8 * (before + window.len()) / 6;
    encode_block(&padded)[from..until].to_owned()
}
