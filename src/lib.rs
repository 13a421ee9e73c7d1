//! `resumed` keeps TLS session resumption working across a farm of proxies.
//!
//! One daemon runs beside each proxy. Daemons share session ticket keys and session-ID cache entries through
//! RabbitMQ, as sealed protobuf messages. `docs/architecture.md` is the map of the modules below.
#![forbid(unsafe_code)]

pub mod bus;
pub mod cli;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod envelope;
pub mod farm;
pub mod hex;
mod hkdf;
pub mod keys;
pub mod memory;
pub mod metrics;
pub mod node;
pub mod operator;
pub mod probe;
pub mod proto;
pub mod proxies;
pub mod quiet;
pub mod random;
pub mod reason;
pub mod routes;
pub mod secret_files;
pub mod sessions;
pub mod settings;
pub mod status;
#[cfg(test)]
mod temporary;
pub mod token_bucket;
pub mod unix_socket;
pub mod words;
