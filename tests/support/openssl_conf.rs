//! An OpenSSL that lacks something: configurations for a process' `OPENSSL_CONF`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Writes into `folder` the configuration of an OpenSSL that has all but X25519, as on a host in FIPS mode. Returns its path.
pub fn without_x25519(folder: &Path) -> PathBuf {
    let module = folder.join("without_x25519.so");
    let source = crate::tree().join("tests/support/without_x25519.c");
    let mut cc = Command::new("cc");
    cc.args(["-Wall", "-Werror", "-shared", "-fPIC", "-o"]).arg(&module).arg(source).arg("-lcrypto");
    assert!(cc.status().expect("a C compiler, which Rust needs as well").success());
    configuration(folder, "without_x25519", &format!("module = {}\n", module.display()))
}

/// Writes into `folder` the configuration of an OpenSSL that has no algorithm but those that read keys. Returns its path.
pub fn with_nothing(folder: &Path) -> PathBuf {
    configuration(folder, "base", "")
}

/// One that activates `provider` in place of the default one.
fn configuration(folder: &Path, provider: &str, module: &str) -> PathBuf {
    let path = folder.join(format!("{provider}.cnf"));
    let text = format!(
        "openssl_conf = all\n[all]\nproviders = active\n[active]\n{provider} = one\n[one]\n{module}activate = 1\n"
    );
    fs::write(&path, text).expect("the configuration");
    path
}
