//! The daemon: one node with its servers, as a process that a service manager runs.

mod commands;
pub(crate) mod control;
mod http;
mod reload;
pub(crate) mod run;
mod servers;
mod service;
mod settings;
#[cfg(test)]
mod tests;
mod users;

pub(crate) use settings::{ControlSettings, MetricsSettings, Settings};
