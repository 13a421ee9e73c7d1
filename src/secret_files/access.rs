//! Who may do what with a file that holds a secret, and the most that may be granted.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The modes that are taken, for messages.
pub(crate) const ACCEPTED_MODES: &str = "mode 0640 or tighter: 0600, 0440, 0400";

/// The most that a mode may grant: the owner writes, its group reads.
const LOOSEST: u32 = 0o640;

/// The most where the service manager made the file and says who gets to it: nothing to others.
const LOOSEST_HANDED_OVER: u32 = 0o7770;

/// Who may do what with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    /// Its permission bits, up to 07777. Where it has an ACL, those of the group are the ACL's mask.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Whether it lies in `$CREDENTIALS_DIRECTORY`: systemd and other managers hand it over there, to this process alone
    /// (systemd.exec(5), `LoadCredential=`).
    pub handed_over: bool,
}

impl Access {
    /// Who may do what with the file at `path`, which has `metadata`.
    #[must_use]
    pub(crate) fn of(path: &Path, metadata: &Metadata) -> Self {
        let folder = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        let handed_over = folder.is_some_and(|folder| lies_in(path, &folder));
        Self { mode: metadata.mode() & 0o7777, uid: metadata.uid(), gid: metadata.gid(), handed_over }
    }

    /// Whether the mode grants more than a secret's may. What is tighter is fine, so long as the file can be opened.
    #[must_use]
    pub(crate) fn is_too_open(self) -> bool {
        let loosest = if self.handed_over { LOOSEST_HANDED_OVER } else { LOOSEST };
        self.mode & !loosest != 0
    }

    /// Whether who is in its group matters. The folder of what was handed over lets no group in.
    #[cfg(feature = "daemon")]
    pub(super) fn is_the_groups(self) -> bool {
        !self.handed_over && self.mode & 0o040 != 0
    }
}

/// Whether `path` leads to something in `folder`, links followed.
fn lies_in(path: &Path, folder: &Path) -> bool {
    match (path.canonicalize(), folder.canonicalize()) {
        (Ok(path), Ok(folder)) => path.starts_with(folder),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_file_lies_in_a_folder_by_where_its_links_lead() {
        let directory = crate::temporary::Folder::new();
        let folder = directory.path().join("credentials");
        fs::create_dir(&folder).unwrap();
        let [inside, outside] = [folder.join("farm.secret"), directory.path().join("farm.secret")];
        for path in [&inside, &outside] {
            fs::write(path, "x").unwrap();
        }
        let [inwards, outwards] = [directory.path().join("inwards"), folder.join("outwards")];
        symlink(&inside, &inwards).unwrap();
        symlink(&outside, &outwards).unwrap();
        for (path, expected) in [
            (&inside, true),
            (&inwards, true),
            (&outside, false),
            (&outwards, false),
            (&folder.join("../farm.secret"), false),
            (&folder.join("none"), false),
        ] {
            assert_eq!(lies_in(path, &folder), expected, "{}", path.display());
        }
        assert!(!lies_in(&inside, &directory.path().join("none")));
    }
}
