//! `resumed run` and `resumed demo`: what needs an async runtime.

use std::io;
use std::path::{Path, PathBuf};

use tokio::runtime::{Builder, Runtime};

#[cfg(feature = "rustls")]
use super::demo::demo;
use super::{Failure, in_full, read_settings};
use crate::daemon::Settings;
use crate::daemon::run::{self, RunError};

/// Runs the daemon until it is told to stop. On a reload it finds the names of its secret files in the configuration in
/// `config`, as it is then.
///
/// # Errors
/// If it cannot start, or one of its sockets fails.
pub fn run(settings: Settings, config: Option<&Path>) -> Result<(), Failure> {
    let config: Option<PathBuf> = config.map(Path::to_owned);
    let secret_files = move || match read_settings(config.as_deref()) {
        Ok(settings) => Ok(settings.secret_files),
        Err(error) => Err(in_full(&error)),
    };
    let ended = runtime()?.block_on(run::run(settings, secret_files));
    ended.map_err(|error| match error {
        RunError::Secret(_) | RunError::Settings(_) | RunError::Bus(_) => Failure::Usage(error.to_string()),
        _ => Failure::of(error),
    })
}

/// Runs the demonstration.
///
/// # Errors
/// If a resumption failed, or it did not come to its end.
#[cfg(feature = "rustls")]
pub(crate) fn run_demo() -> Result<(), Failure> {
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
