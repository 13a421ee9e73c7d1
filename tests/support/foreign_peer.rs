//! A process of a user whom a Unix socket is not for.

use std::path::Path;
use std::process::{Command, Output};

use nix::unistd::User;

/// Connects to `socket` as the user `nobody`, which takes root: what came of it, with the number of bytes that it was told on
/// standard output. Its program is compiled in `folder`, once.
pub fn connect(folder: &Path, socket: &Path) -> Output {
    let program = folder.join("foreign-peer");
    if !program.exists() {
        let source = crate::tree().join("tests/support/foreign_peer.c");
        let status = Command::new("cc").args(["-Wall", "-Werror", "-o"]).arg(&program).arg(source).status();
        assert!(status.expect("a C compiler, which Rust needs as well").success());
    }
    let nobody = User::from_name("nobody").expect("users").expect("nobody").uid;
    Command::new(program).arg(socket).arg(nobody.to_string()).output().expect("the peer runs")
}
