//! The two releases that a farm may be of at the same time: this one, and the one before it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::farm::built;
use crate::tree;

/// A release of which there is a daemon and a plugin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Release {
    /// What this tree is, as the build that this test is of made it.
    #[default]
    Current,
    /// The release before it, at the commit in `tests/previous-release`.
    Previous,
}

impl Release {
    /// The one that this is not.
    pub fn other(self) -> Self {
        match self {
            Self::Current => Self::Previous,
            Self::Previous => Self::Current,
        }
    }

    /// `resumed`: the daemon and its commands.
    pub fn program(self) -> PathBuf {
        self.file("resumed")
    }

    /// The plugin for Traffic Server.
    pub fn plugin(self) -> PathBuf {
        self.file("libresumed_ats.so")
    }

    /// What `resumed --version` says, as `0.1.0`.
    pub fn version(self) -> String {
        let output = Command::new(self.program()).arg("--version").output().expect("resumed runs");
        let said = String::from_utf8_lossy(&output.stdout);
        said.trim().strip_prefix("resumed ").unwrap_or_else(|| panic!("no version: {output:?}")).to_owned()
    }

    fn file(self, name: &str) -> PathBuf {
        match self {
            Self::Current => built(name),
            Self::Previous => previous().join(name),
        }
    }
}

/// The folder with the programs of the release before, of the same profile as this test. `make test` has built them; if
/// not, that is done now.
fn previous() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let programs = built("resumed").parent().expect("a folder").to_owned();
        let profile = programs.file_name().expect("the profile's folder");
        let output = Command::new(tree().join("scripts/build-previous-release.sh"))
            .arg(programs.parent().expect("Cargo's folder"))
            .arg(profile)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .expect("the script runs");
        assert!(output.status.success(), "the release before was not built: see above");
        PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
    })
}

/// The Debian package `name` of the release before, which `make deb-previous` makes.
pub fn previous_package(name: &str) -> PathBuf {
    let programs = built("resumed");
    let target = programs.ancestors().nth(2).expect("Cargo's folder");
    let commit = include_str!("../previous-release").trim();
    let folder = target.join("previous-release").join(commit).join("build/debian");
    let prefix = format!("{name}_");
    let files = fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut packages = files.filter(|file| file.extension().is_some_and(|extension| extension == "deb"));
    let named = |file: &PathBuf| file.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&prefix));
    packages.find(named).unwrap_or_else(|| panic!("no package {name} in {}: make deb-previous", folder.display()))
}
