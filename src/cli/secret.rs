//! `resumed secret new`: a farm secret in a new file.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::Failure;
use crate::envelope::FarmSecret;

/// The commands under `resumed secret`.
#[derive(Subcommand, Clone, Debug)]
pub enum SecretCommand {
    /// Write a new random farm secret to FILE, mode 0600; never overwrites
    #[command(after_long_help = "\
Copy the file to every node of the farm, and name it in secret.files there. Whoever has it can read and forge all that \
the nodes tell each other: ticket keys and sessions.

Example:
  resumed secret new /etc/resumed/farm.secret")]
    New {
        /// The file to make
        file: PathBuf,
    },
}

/// Runs one of them.
///
/// # Errors
/// If the file is there already or cannot be written, or the system has no randomness.
pub fn run(command: &SecretCommand, out: &mut impl Write) -> Result<(), Failure> {
    match command {
        SecretCommand::New { file } => new(file, out),
    }
}

fn new(file: &Path, out: &mut impl Write) -> Result<(), Failure> {
    let secret = FarmSecret::generate().map_err(Failure::of)?;
    secret.write_new(file).map_err(Failure::of)?;
    writeln!(out, "{}: farm secret {}, mode 0600", file.display(), hex(&secret.id()))?;
    Ok(())
}
