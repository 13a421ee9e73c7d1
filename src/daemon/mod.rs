//! The daemon: owns the sockets, timers and tasks, and drives the pure parts.
//!
//! [`Node`] is one node without its Unix sockets: what `run`, `demo` and an embedding server have in common.

pub mod bounded_listener;
pub mod control;
pub mod driver;
mod gauges;
pub mod history;
pub mod http;
pub mod key_plane;
mod lease;
pub mod memory;
pub mod node;
pub mod operator;
pub mod overview;
pub mod page;
pub mod refused;
pub mod reload;
pub mod ring_file;
pub mod run;
pub mod sealing;
pub mod secret_steps;
pub mod service;
pub mod session_plane;
mod settings;
mod sites;
pub mod turns;
mod users;
pub mod view;
pub mod warmup;

pub use node::Node;
pub use settings::{
    ControlSettings, GROUP_NAME, MetricsSettings, NODE_NAME, NodeSettings, Settings, group_name, node_name,
};
pub use view::NodeView;
