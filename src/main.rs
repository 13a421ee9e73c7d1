//! The `resumed` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    resumed::internals::cli::main()
}
