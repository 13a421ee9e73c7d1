//! `resumed` keeps TLS session resumption working across a farm of proxies.
//!
//! One daemon runs beside each proxy. Daemons share session ticket keys and session-ID cache entries through
//! RabbitMQ, as sealed protobuf messages. `docs/architecture.md` is the map of the modules below.
//!
//! # A server that embeds a node
//!
//! A Rust server needs no daemon beside it: it runs the node itself, and seals its tickets with the farm's keys. Everything
//! for that stands at the root of this crate.
//!
//! ```
//! use std::sync::Arc;
//!
//! use resumed::{FarmSecret, Hub, InProcess, Node, NodeSettings, Secrets, SystemClock};
//! use tokio::sync::watch;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // In a real farm `read_farm_secrets` reads them, and the bus is `RabbitMq`.
//! let secrets = Secrets::new(vec![FarmSecret::generate()?])?;
//! let (_later_secrets, secrets) = watch::channel(Arc::new(secrets));
//! let bus = Arc::new(InProcess::new(Arc::new(Hub::default())));
//! let node = Node::start(NodeSettings::new("edge-1", "prod", "default"), secrets, bus, SystemClock::start())?;
//!
//! // For `rustls::ServerConfig::ticketer`.
//! let ticketer = node.ticketer();
//! # drop(ticketer);
//!
//! // The node says farewell, so that the farm does not wait for it.
//! node.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! `examples/embedded_node.rs` is a whole server. Keys pass through this process: call [`memory::keep`] before the first secret
//! is read. The node logs with `tracing` and counts with `metrics`, to the subscriber and the recorder that the process
//! has; [`metrics::announce`] tells that recorder of every metric.
//!
//! # Features
//!
//! | feature | gives | brings |
//! | --- | --- | --- |
//! | none | the node, its buses, secrets and their files, what operators ask, the adapter for Traffic Server | no crate of those below |
//! | `rustls` (default) | [`Node::ticketer`], for rustls servers; `resumed demo` | rustls with ring |
//! | `daemon` (default) | the program `resumed`: commands, configuration, control socket, HTTP, the exporter of metrics, the probe, warnings about secret files | clap, axum, comfy-table, config, toml, metrics-exporter-prometheus, sd-notify, tracing-subscriber |
//!
//! A server that embeds a node asks for `default-features = false, features = ["rustls"]`.
//!
//! # The rooms
//!
//! The modules are the rooms of `docs/architecture.md`, and this crate's own. For a server that embeds a node, everything stands at the
//! root and in [`memory`], [`metrics`] and [`status`]. The project's own tests, benchmark and fuzzers, which are other packages, come in by
//! a door that the documentation does not show, `internals`: what is there may change with every commit.
#![forbid(unsafe_code)]
// Tests tell their story in one piece.
#![cfg_attr(test, allow(clippy::too_many_lines, unreachable_pub))]

mod bus;
#[cfg(feature = "daemon")]
mod cli;
mod clock;
#[cfg(feature = "daemon")]
mod config;
#[cfg(feature = "daemon")]
mod daemon;
mod envelope;
mod farm;
mod hex;
mod hkdf;
#[doc(hidden)]
pub mod internals;
mod keys;
mod log_limiter;
pub mod memory;
pub mod metrics;
mod node;
mod operator;
#[cfg(feature = "daemon")]
mod probe;
mod proto;
mod proxies;
mod random;
mod reason;
mod routes;
mod secret_files;
mod sessions;
mod settings;
pub mod status;
#[cfg(test)]
mod temporary;
mod token_bucket;
mod unix_socket;
mod words;

pub use bus::in_process::{Hub, InProcess};
pub use bus::rabbitmq::{RabbitMq, RabbitMqSettings};
pub use bus::{BrokerUri, BusError, UriFault};
pub use clock::{Now, SystemClock};
pub use envelope::{FarmSecret, MissingAlgorithm, SecretError, Secrets};
pub use keys::KeySettings;
pub use node::{Health, LastReload, Node, NodeSettings, NodeView, StartError};
pub use operator::{Operator, OperatorError, RotationProgress};
#[cfg(feature = "rustls")]
pub use proxies::rustls::FarmTicketer;
pub use proxies::{ProxyInfo, Registered};
pub use secret_files::farm_secret::{
    SecretFileError, read as read_farm_secret, read_all as read_farm_secrets, write_new as write_farm_secret,
};
pub use sessions::{Removals, SessionSettings};
pub use settings::{Fault, SettingsError};
pub use status::FarmStatus;
