//! Where the plugin's library is, built if need be.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// `libresumed_ats.so` of the profile that this test was built with. Cargo does not build it for the tests of another
/// package, so the first call does.
pub fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let test = std::env::current_exe().expect("the path of this test");
        let profile = test.ancestors().nth(2).expect("target/<profile>/deps/<test>");
        let name = profile.file_name().and_then(|name| name.to_str()).expect("a profile");
        let status = Command::new(env!("CARGO"))
            .args(["build", "--locked", "--quiet", "--package", "resumed-ats"])
            .args(["--profile", if name == "debug" { "dev" } else { name }])
            .arg("--target-dir")
            .arg(profile.parent().expect("a target folder"))
            .arg("--manifest-path")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
            .status()
            .expect("cargo");
        assert!(status.success(), "building the plugin: {status}");
        profile.join("libresumed_ats.so")
    })
}
