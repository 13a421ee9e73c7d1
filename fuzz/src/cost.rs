//! What one input may cost: memory, counted by the allocator of the very program, and time on a processor, for each byte.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;

/// What a target holds and does whatever its input, and what each byte of it may add: in bytes, and in nanoseconds of an
/// optimised build. The rest of a mebibyte's worth is the decoders' own limit on structures.
const BASE_BYTES: usize = 24 * 1024 * 1024;
const BYTES_EACH: usize = 64;
const BASE_NS: u64 = 100_000_000;
const NS_EACH: u64 = 300;
/// How much slower a build with debug assertions is, at most.
const UNOPTIMISED: u64 = 20;

/// Counts what each thread holds.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn hold(bytes: isize) {
    // A thread that ends may free what it held when its counters are gone.
    let _ended = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ended = MOST.try_with(|most| most.set(most.get().max(held.get())));
    });
}

fn signed(bytes: usize) -> isize {
    isize::try_from(bytes).unwrap_or(isize::MAX)
}

// SAFETY: all of it is left to the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        hold(signed(layout.size()));
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        hold(-signed(layout.size()));
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Nanoseconds that this thread has run on a processor: a machine that is busy elsewhere costs none.
fn processor_ns() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split_whitespace().next().and_then(|ns| ns.parse().ok()).unwrap_or(0)
}

/// Runs `target` on `data`. Panics if it costs more than so many bytes are worth.
pub fn bounded(name: &str, target: fn(&[u8]), data: &[u8]) {
    let (before, begun) = (HELD.get(), processor_ns());
    MOST.set(before);
    target(data);
    let held = usize::try_from(MOST.get() - before).unwrap_or(0);
    let took = processor_ns().saturating_sub(begun);
    let slower = if cfg!(debug_assertions) { UNOPTIMISED } else { 1 };
    let length = data.len();
    assert!(held <= BASE_BYTES + BYTES_EACH * length, "{name}: {length} bytes made it hold {held}");
    assert!(took <= slower * (BASE_NS + NS_EACH * length as u64), "{name}: {length} bytes took {took} ns");
}
