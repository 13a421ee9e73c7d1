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

/// The project's tree.
pub fn tree() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the tree")
}
