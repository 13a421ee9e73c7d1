//! Whole farms on one machine: private brokers, private proxies, and the daemon as it is installed.

pub mod ats;
pub mod authority;
pub mod broker;
pub mod browser;
pub mod farm;
pub mod hopping;
pub mod load;
pub mod namespaces;
pub mod network;
pub mod prometheus;
pub mod scanner;
pub mod sessions;
pub mod tls;
pub mod watcher;
