//! The inputs that fuzzers found worth keeping, replayed: every target, every file.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[path = "../fuzz/src/lib.rs"]
mod targets;

use targets::TARGETS;

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a plain name")).collect()
}

#[test]
fn every_input_of_every_corpus_is_taken_without_a_panic() {
    let corpora = testkit::tree().join("fuzz/corpus");
    let known: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names(&corpora), known, "one corpus for each target");
    for (name, target) in TARGETS {
        let corpus = corpora.join(name);
        let inputs = names(&corpus);
        assert!(inputs.len() >= 10, "{name} has {} inputs", inputs.len());
        for input in inputs {
            let bytes = fs::read(corpus.join(&input)).expect("an input");
            // Shown only if what follows panics.
            println!("fuzz/corpus/{name}/{input}");
            target(&bytes);
        }
    }
}

#[test]
fn every_target_has_a_program_for_the_fuzzer() {
    let programs = names(&testkit::tree().join("fuzz/fuzz_targets"));
    let expected: BTreeSet<String> = TARGETS.iter().map(|(name, _)| format!("{name}.rs")).collect();
    assert_eq!(programs, expected);
}
