//! What one input may cost: memory, as [`counting`](crate::counting) counts it, and time on a processor, for each byte.

use std::fs;

use crate::counting::peak;

/// What a target holds and does whatever its input, and what each byte of it may add: in bytes, and in nanoseconds of an
/// optimised build. The rest of a mebibyte's worth is the decoders' own limit on structures. What once took 355 to 730 ms for a
/// mebibyte is beyond it.
const BASE_BYTES: usize = 24 * 1024 * 1024;
const BYTES_EACH: usize = 64;
const BASE_NS: u64 = 50_000_000;
const NS_EACH: u64 = 100;

/// How much slower this build may be: fuzzers are optimised, with debug assertions and an instrument at each branch.
fn slower() -> u64 {
    match (cfg!(debug_assertions), env!("OPTIMISED")) {
        (false, _) => 1,
        (true, "yes") => 2,
        (true, _) => 20,
    }
}

/// Nanoseconds that this thread has run on a processor: a machine that is busy elsewhere costs none.
fn processor_ns() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").expect("proc(5)");
    text.split_whitespace().next().and_then(|ns| ns.parse().ok()).expect("nanoseconds, see proc(5)")
}

/// Runs `target` on `data`. Panics if it costs more than so many bytes are worth.
pub fn bounded(name: &str, target: fn(&[u8]), data: &[u8]) {
    let begun = processor_ns();
    let ((), held) = peak(|| target(data));
    let took = processor_ns().saturating_sub(begun);
    let length = data.len();
    assert!(held <= BASE_BYTES + BYTES_EACH * length, "{name}: {length} bytes made it hold {held}");
    assert!(took <= slower() * (BASE_NS + NS_EACH * length as u64), "{name}: {length} bytes took {took} ns");
}
