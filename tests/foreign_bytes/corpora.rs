//! The inputs that fuzzers found worth keeping, replayed: every target, every input.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::Path;

use resumed_decoders::{TARGETS, run};

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a plain name")).collect()
}

/// Bytes of a tar archive that go together.
const BLOCK: usize = 512;

/// A field of a header: text that zeros end.
fn text(header: &[u8], at: Range<usize>) -> &str {
    let bytes = header[at].split(|byte| *byte == 0).next().expect("there is always one");
    std::str::from_utf8(bytes).expect("ASCII")
}

/// The files in an archive as `scripts/fuzz-corpus.sh` packs it, of the form "ustar": name and content.
fn unpacked(mut archive: &[u8]) -> Vec<(&str, &[u8])> {
    let mut files = Vec::new();
    // Two blocks of zeros end it.
    while archive[0] != 0 {
        let (header, behind) = archive.split_at(BLOCK);
        assert_eq!((text(header, 257..263), header[156]), ("ustar", b'0'), "a plain file");
        let length = usize::from_str_radix(text(header, 124..136), 8).expect("a length");
        files.push((text(header, 0..100), &behind[..length]));
        archive = &behind[length.next_multiple_of(BLOCK)..];
    }
    assert!(archive == [0; 2 * BLOCK], "something behind the last file");
    files
}

#[test]
fn every_input_of_every_corpus_is_taken_without_a_panic() {
    let corpora = testkit::tree().join("fuzz/corpus");
    let expected: BTreeSet<String> = TARGETS.iter().map(|(name, _)| format!("{name}.tar")).collect();
    assert_eq!(names(&corpora), expected, "one corpus for each target");
    for (name, _) in TARGETS {
        let archive = fs::read(corpora.join(format!("{name}.tar"))).expect("an archive");
        let inputs = unpacked(&archive);
        assert!(inputs.len() >= 10, "{name} has {} inputs", inputs.len());
        for (input, bytes) in inputs {
            // Shown only if what follows panics.
            println!("fuzz/corpus/{name}.tar: {input}");
            run(name, bytes);
        }
    }
}

/// What no fuzzer comes to within its time: messages of the longest length, of elements that are as short as can be. Each is a
/// head, and an element again and again behind its length.
fn longest() -> Vec<(&'static str, Vec<u8>)> {
    const MIB: usize = 1 << 20;
    let field = |number: u8, content: &[u8]| {
        let mut bytes = vec![(number << 3) | 2];
        prost::encode_length_delimiter(content.len(), &mut bytes).expect("a Vec grows");
        bytes.extend_from_slice(content);
        bytes
    };
    let empty = |number: u8| [(number << 3) | 2, 0].repeat(MIB * 9 / 20);
    let keys = empty(2);
    let announcement = field(10, &field(1, &keys));
    let answer = field(15, &[&[8, 1][..], &empty(5)].concat());
    let sessions = field(13, &empty(1));
    let join = [&[0x82, 0x01][..], &field(0, &empty(3))[1..]].concat();
    let mut inputs = vec![("ring_file", [&[1][..], &field(3, &keys)].concat())];
    inputs.push(("ring", [&[0xff, 0xff][..], &keys].concat()));
    for text in [&announcement, &answer, &sessions, &join] {
        inputs.push(("payload", [&[12, 0, 0xff, 0xff][..], text].concat()));
        inputs.push(("payload", [&[0, 2, 0xff, 0xff][..], text].concat()));
        inputs.push(("envelope", [&[3, 0, 0][..], text].concat()));
    }
    inputs.push(("envelope", [&[0][..], &empty(2)].concat()));
    inputs.push(("to_proxy", [&[0, 0][..], &field(2, &empty(1))].concat()));
    inputs.push(("to_proxy", [&[0, 0][..], &field(3, &empty(1))].concat()));
    inputs.push(("control", field(3, &empty(2))));
    // The longest reply that a command takes from its node.
    inputs.push(("control", field(3, &[(2 << 3) | 2, 0].repeat(32 * MIB - 4))));
    // Behind a Hello, as the plugin begins.
    let frame = |text: &[u8]| [&u32::try_from(text.len()).expect("a length").to_be_bytes()[..], text].concat();
    inputs.push(("from_proxy", [frame(&field(1, &[])), frame(&field(2, &empty(1)))].concat()));
    inputs
}

#[test]
fn the_longest_messages_of_the_shortest_elements_cost_no_more_than_their_length_is_worth() {
    for (name, input) in longest() {
        println!("{name}: {} bytes", input.len());
        run(name, &input);
    }
}

#[test]
fn every_target_has_a_program_for_the_fuzzer() {
    let programs = names(&testkit::tree().join("fuzz/fuzz_targets"));
    let expected: BTreeSet<String> = TARGETS.iter().map(|(name, _)| format!("{name}.rs")).collect();
    assert_eq!(programs, expected);
}
