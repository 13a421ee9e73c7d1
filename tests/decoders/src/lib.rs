//! One function for each decoder of resumed that reads foreign bytes: it feeds them in as the daemon or the plugin would,
//! and checks what must hold whatever they are. A panic is a finding.
//!
//! `make fuzz` runs them under libFuzzer (`fuzz/`), the test `corpora` over the committed corpora.

mod cost;
pub mod counting;
mod farm;
mod local;
mod settings;

pub use farm::{envelope, payload, ring, ring_file, session};
pub use local::{control, from_proxy, to_proxy};
pub use settings::{config, uri};

/// What is done with one input.
pub type Target = fn(&[u8]);

/// All targets by name: `fuzz/fuzz_targets/<name>.rs` runs one, `fuzz/corpus/<name>.tar` holds its inputs.
pub const TARGETS: [(&str, Target); 10] = [
    ("config", config),
    ("control", control),
    ("envelope", envelope),
    ("from_proxy", from_proxy),
    ("payload", payload),
    ("ring", ring),
    ("ring_file", ring_file),
    ("session", session),
    ("to_proxy", to_proxy),
    ("uri", uri),
];

/// Feeds `data` to the target `name`, as the fuzzer's programs do.
///
/// # Panics
/// If the target finds something, or costs more memory or time than so many bytes are worth.
pub fn run(name: &str, data: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(target, _)| *target == name).expect("a target of that name");
    cost::bounded(name, *target, data);
}

/// An instant of both clocks: sessions in the corpora were made then.
const NOW: resumed::Now = resumed::Now { wall: 1_795_620_000_000, mono: 86_400_000 };
