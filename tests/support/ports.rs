//! Ports for the servers that a test starts.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

/// Ports of 127.0.0.1 that nobody listens on. They lie below the range from which the kernel draws source ports (32,768
/// and up): a test makes thousands of connections, each of which could take a port before its server does, and a client
/// that keeps knocking on a stopped server's port within that range may connect to itself.
pub fn free_ports<const N: usize>() -> [u16; N] {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Test processes run side by side, and this module may be in one process twice: each starts somewhere else.
    let start = std::process::id().wrapping_mul(7_919).wrapping_add((&raw const NEXT).addr() as u32 / 4);
    let mut held = Vec::with_capacity(N);
    while held.len() < N {
        let turn = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(turn < 20_000, "no free loopback port found");
        let port = u16::try_from(12_000 + start.wrapping_add(turn) % 20_000).expect("below 32,000");
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            held.push(listener);
        }
    }
    std::array::from_fn(|at| held[at].local_addr().expect("a bound socket").port())
}
