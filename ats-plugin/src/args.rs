//! The plugin's arguments in ATS's `plugin.config`.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// What an operator may say after `resumed.so`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Args {
    /// The daemon's socket.
    pub socket: PathBuf,
    /// How long ATS's start may wait for the first ticket keys.
    pub wait: Duration,
}

/// An argument that cannot be meant.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadArgument {
    argument: String,
    wanted: &'static str,
}

impl fmt::Display for BadArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "argument {:?} is not understood: {}", self.argument, self.wanted)
    }
}

/// A Unix socket's path has 108 bytes, the last of them zero.
const LONGEST_PATH: usize = 107;
const LONGEST_WAIT_MS: u64 = 60_000;

impl Args {
    /// Reads the arguments that follow the plugin's own name.
    pub(crate) fn parse(arguments: &[String]) -> Result<Self, BadArgument> {
        let mut args = Self { socket: PathBuf::from("/run/resumed/ats.sock"), wait: Duration::from_millis(1000) };
        for argument in arguments {
            let bad = |wanted| BadArgument { argument: argument.clone(), wanted };
            if let Some(path) = argument.strip_prefix("--socket=") {
                if !path.starts_with('/') || path.len() > LONGEST_PATH {
                    return Err(bad("--socket= wants an absolute path of at most 107 bytes"));
                }
                args.socket = PathBuf::from(path);
            } else if let Some(text) = argument.strip_prefix("--wait-ms=") {
                let wait: Option<u64> = text.parse().ok().filter(|wait| *wait <= LONGEST_WAIT_MS);
                args.wait = Duration::from_millis(wait.ok_or(bad("--wait-ms= wants 0 to 60000 milliseconds"))?);
            } else {
                return Err(bad("accepted are --socket=PATH and --wait-ms=N"));
            }
        }
        Ok(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Args, String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        Args::parse(&words).map_err(|bad| bad.to_string())
    }

    #[test]
    fn without_arguments_the_defaults_hold() {
        let args = parse(&[]).unwrap();
        assert_eq!(args.socket, PathBuf::from("/run/resumed/ats.sock"));
        assert_eq!(args.wait, Duration::from_secs(1));
    }

    #[test]
    fn both_arguments_are_taken_in_any_order() {
        let args = parse(&["--wait-ms=0", "--socket=/x/y"]).unwrap();
        assert_eq!(args, Args { socket: PathBuf::from("/x/y"), wait: Duration::ZERO });
    }

    #[test]
    fn a_bad_argument_is_named_with_what_would_be_accepted() {
        for (word, wanted) in [
            ("--wait-ms=soon", "0 to 60000"),
            ("--wait-ms=-1", "0 to 60000"),
            ("--wait-ms=60001", "0 to 60000"),
            ("--socket=ats.sock", "absolute path"),
            ("--socket=", "absolute path"),
            ("--sockets=/x", "--socket=PATH and --wait-ms=N"),
        ] {
            let error = parse(&[word]).unwrap_err();
            assert!(error.contains(word) && error.contains(wanted), "{error}");
        }
        assert!(parse(&[&format!("--socket=/{}", "x".repeat(107))]).is_err());
    }
}
