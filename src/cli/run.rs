//! `resumed run` and `resumed demo`: what needs an async runtime.

use std::io;

use tokio::runtime::{Builder, Runtime};

use super::Failure;
use super::demo::demo;
use crate::config::Settings;
use crate::daemon::run::{self, RunError};

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// If it cannot start, or one of its sockets fails.
pub fn run(settings: Settings) -> Result<(), Failure> {
    let ended = runtime()?.block_on(run::run(settings));
    ended.map_err(|error| match error {
        RunError::Secret(_) | RunError::Bus(_) => Failure::Usage(error.to_string()),
        _ => Failure::of(error),
    })
}

/// Runs the demonstration.
///
/// # Errors
/// If a resumption failed, or it did not come to its end.
pub fn run_demo() -> Result<(), Failure> {
    match runtime()?.block_on(demo()) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::Failed("not every session was resumed: see the tables".to_owned())),
        Err(error) => Err(Failure::of(error)),
    }
}

/// One thread: a node does little and waits much, and waking a second thread costs a session a third of the time that it
/// takes through the broker.
fn runtime() -> Result<Runtime, Failure> {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error: io::Error| Failure::Failed(format!("cannot start: {error}")))
}
