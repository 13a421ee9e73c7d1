//! `resumed secret new`: a farm secret in a new file.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::Failure;
use crate::envelope::FarmSecret;
use crate::hex::hex;
use crate::secret_files::farm_secret;

/// The commands under `resumed secret`.
#[derive(Subcommand, Clone, Debug)]
pub(crate) enum SecretCommand {
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
pub(super) fn run(command: &SecretCommand, out: &mut impl Write) -> Result<(), Failure> {
    match command {
        SecretCommand::New { file } => new(file, out),
    }
}

fn new(file: &Path, out: &mut impl Write) -> Result<(), Failure> {
    let secret = FarmSecret::generate().map_err(Failure::of)?;
    farm_secret::write_new(&secret, file).map_err(Failure::of)?;
    writeln!(out, "{}: farm secret {}, mode 0600", file.display(), hex(&secret.id()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_new_secret_is_private_readable_by_the_daemon_and_never_overwritten() {
        let directory = crate::temporary::Folder::new();
        let file = directory.path().join("farm.secret");
        let command = SecretCommand::New { file: file.clone() };
        let mut out = Vec::new();
        run(&command, &mut out).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
        let id = farm_secret::read(&file).unwrap().id();
        let said = format!("{}: farm secret {:016x}, mode 0600\n", file.display(), u64::from_be_bytes(id));
        assert_eq!(String::from_utf8(out).unwrap(), said);

        let before = std::fs::read(&file).unwrap();
        let failure = run(&command, &mut Vec::new()).unwrap_err();
        assert!(failure.code() == 1 && failure.to_string().contains("farm.secret"), "{failure}");
        assert_eq!(std::fs::read(&file).unwrap(), before);
    }
}
