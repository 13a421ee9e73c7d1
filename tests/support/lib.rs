//! Whole farms on one machine: private brokers, private proxies, and the daemon as it is installed. For tests, the
//! benchmark and the demo. Farms that are simulated are a crate of their own, `tests/simulation/`.

use std::path::Path;

pub mod ats;
pub mod attacker;
pub mod authority;
pub mod broker;
pub mod browser;
pub mod dashboard;
pub mod farm;
pub mod federation;
pub mod foreign_peer;
pub mod held_seat;
pub mod hopping;
pub mod load;
pub mod namespaces;
pub mod network;
pub mod node;
pub mod openssl_conf;
pub mod plugin;
pub mod ports;
pub mod prometheus;
pub mod rabbitmq;
pub mod records;
pub mod release;
pub mod scanner;
pub mod sessions;
pub mod tls;
pub mod traffic_server;
pub mod version;
pub mod watcher;

/// The 32 bytes of the farm secret in `file`, read without the code that is tested.
pub fn secret_bytes(file: &Path) -> Vec<u8> {
    let text = std::fs::read_to_string(file).expect("a farm secret's file");
    let digits = |at: usize| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).expect("hex digits");
    (0..32).map(digits).collect()
}

/// The project's tree.
pub fn tree() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the tree")
}
