//! `resumed run` and `resumed demo`: what needs an async runtime.

use std::io;
#[cfg(feature = "rustls")]
use std::io::Write;
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
pub(super) fn run(settings: Settings, config: Option<&Path>) -> Result<(), Failure> {
    let config: Option<PathBuf> = config.map(Path::to_owned);
    let secret_files = move || match read_settings(config.as_deref()) {
        Ok(settings) => Ok(settings.secret_files),
        Err(error) => Err(in_full(&error)),
    };
    runtime()?.block_on(run::run(settings, secret_files)).map_err(failure_of)
}

/// What lies in the configuration, or in a file that it names, is not mended by trying again: the unit does not.
fn failure_of(error: RunError) -> Failure {
    match error {
        RunError::Secret(_) | RunError::Settings(_) | RunError::Host(_) | RunError::Bus(_) => {
            Failure::Usage(error.to_string())
        }
        _ => Failure::of(error),
    }
}

/// Runs the demonstration, and prints to `out` what it sees.
///
/// # Errors
/// If a resumption failed, or it did not come to its end.
#[cfg(feature = "rustls")]
pub(crate) fn run_demo(out: &mut impl Write) -> Result<(), Failure> {
    match runtime()?.block_on(demo(out)) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::BusError;
    use crate::node::NodeSettings;
    use crate::secret_files::farm_secret;

    #[test]
    fn what_another_start_may_mend_ends_with_1_and_what_the_operator_has_to_mend_with_2() {
        let missing = farm_secret::read_all(&["/no/such/farm.secret"]).unwrap_err();
        let faults = NodeSettings::new("", "prod", "default").validate().unwrap_err();
        for (error, code, says) in [
            (RunError::Secret(missing), 2, "/no/such/farm.secret"),
            (RunError::Settings(faults.clone()), 2, "node.name = "),
            (RunError::Bus(BusError::Settings(faults)), 2, "broker settings: node.name = "),
            (RunError::Signals(io::Error::other("none left")), 1, "cannot listen for signals: none left"),
            (RunError::Panicked("the driver"), 1, "the driver ended in a panic"),
        ] {
            let failure = failure_of(error);
            assert!(failure.code() == code && failure.to_string().contains(says), "{failure:?}");
        }
    }

    #[cfg(feature = "rustls")]
    #[test]
    fn the_demonstration_resumes_everywhere_before_and_after_its_rotation() {
        let mut out = Vec::new();
        let ended = run_demo(&mut out);
        let text = String::from_utf8(out).unwrap();
        assert_eq!(ended, Ok(()), "{text}");
        // Three servers, each offered what each of the three made: before the rotation and after it.
        for mode in ["TLS 1.2 by ticket", "TLS 1.3 by ticket"] {
            assert_eq!(text.matches(&format!("{mode}: 9 of 9 resumed\n")).count(), 2, "{text}");
        }
        assert!(text.contains("\nTickets from before the rotation that still open: 18 of 18.\n"), "{text}");
        assert!(text.contains("\nFarm demo, led by node") && text.contains("\n3 nodes, 3 in step\n"), "{text}");
    }

    #[cfg(feature = "rustls")]
    #[test]
    fn a_demonstration_that_cannot_be_printed_fails_and_blames_no_server() {
        struct Full;

        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::Error::other("no space"))
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        assert_eq!(run_demo(&mut Full), Err(Failure::Failed("cannot print the result: no space".to_owned())));
    }
}
