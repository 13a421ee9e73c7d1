//! Folders of the unit tests.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::mkdtemp;

/// A new folder that its user alone may open. Removed with all that is in it when dropped.
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// One in the system's folder for temporary files.
    pub(crate) fn new() -> Self {
        Self::within(&std::env::temp_dir()).expect("a temporary folder")
    }

    /// One in `parent`.
    pub(crate) fn within(parent: &Path) -> io::Result<Self> {
        Ok(Self(mkdtemp(&parent.join("resumed-XXXXXX"))?))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A test may have removed it, or taken its rights away: what is left lies in the system's temporary folder.
        drop(fs::remove_dir_all(&self.0));
    }
}
