//! `resumed` keeps TLS session resumption working across a farm of proxies.
//!
//! One daemon runs beside each proxy. Daemons share session ticket keys and session-ID cache entries through
//! RabbitMQ, as sealed protobuf messages. `docs/architecture.md` is the map of the modules below.
//!
//! # Features
//!
//! | feature | gives | brings |
//! | --- | --- | --- |
//! | none | the node, its buses, secrets and their files, what operators ask, the adapter for Traffic Server | no crate of those below |
//! | `rustls` (default) | `FarmTicketer`, for rustls servers; `resumed demo` | rustls with ring |
//! | `daemon` (default) | the program `resumed`: commands, configuration, control socket, HTTP, the exporter of metrics, the probe, warnings about secret files | clap, axum, comfy-table, config, toml, metrics-exporter-prometheus, sd-notify, tracing-subscriber |
//!
//! A server that embeds a node asks for `default-features = false, features = ["rustls"]`.
#![forbid(unsafe_code)]

pub mod bus;
#[cfg(feature = "daemon")]
pub mod cli;
pub mod clock;
#[cfg(feature = "daemon")]
pub mod config;
#[cfg(feature = "daemon")]
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
#[cfg(feature = "daemon")]
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
