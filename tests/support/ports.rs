//! Ports for the servers that a test starts.

use std::net::TcpListener;
use std::ops::Range;
use std::sync::atomic::{AtomicU16, Ordering};

/// Ports of 127.0.0.1 within `range` that nobody listens on, and that this process was not given before: a server that
/// is stopped finds its port free when it comes back. Each module that includes this one has a range to itself, and all
/// lie below the one from which the kernel draws source ports (32,768 and up): a test makes thousands of connections,
/// each of which could take a port before its server does, and a client that keeps knocking on a stopped server's port
/// within that range may connect to itself.
pub fn free_ports<const N: usize>(range: Range<u16>) -> [u16; N] {
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    let length = range.end - range.start;
    // Test processes may run side by side: each starts somewhere else.
    let start = std::process::id().wrapping_mul(7_919) % u32::from(length);
    let mut held = Vec::with_capacity(N);
    while held.len() < N {
        let turn = GIVEN.fetch_add(1, Ordering::Relaxed);
        assert!(turn < length, "all loopback ports of {range:?} were given");
        let offset = (start + u32::from(turn)) % u32::from(length);
        let port = range.start + u16::try_from(offset).expect("below the length");
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            held.push(listener);
        }
    }
    std::array::from_fn(|at| held[at].local_addr().expect("a bound socket").port())
}
