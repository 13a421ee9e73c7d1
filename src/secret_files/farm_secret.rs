//! New farm secrets, and their files: read, written, and refused unless only the daemon gets at them.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use zeroize::Zeroizing;

use super::access::{ACCEPTED_MODES, Access};
use crate::envelope::{FarmSecret, SECRET_TEXT_BYTES, SecretError, Secrets};
use crate::random;

// Here and not beside the type: `envelope` draws nothing by itself.
impl FarmSecret {
    /// A new secret from the randomness of this host.
    ///
    /// # Errors
    /// [`SecretError::Randomness`] if there is none; [`SecretError::Library`] if OpenSSL cannot derive its id.
    pub fn generate() -> Result<Self, SecretError> {
        let mut bytes = Box::new(Zeroizing::new([0; 32]));
        random::try_fill(&mut bytes[..])?;
        Self::new(bytes)
    }
}

/// Reads a secret from the file at `path`, which may be a symbolic link to it.
///
/// The file must be a regular one of exactly 64 hex digits (of either case) and a newline, have mode 0640 or a tighter
/// one, and belong to root or to the user that this process runs as. In `$CREDENTIALS_DIRECTORY`, where the service
/// manager says who gets to it, any mode will do that grants nothing to others.
///
/// # Errors
/// One for each of these rules, saying what was found and what would be accepted, and [`SecretFileError::Read`] if the
/// file cannot be read at all. No error reveals any of the file's contents.
pub fn read(path: &Path) -> Result<FarmSecret, SecretFileError> {
    let unreadable = |source| SecretFileError::Read { path: path.into(), source };
    // Non-blocking, so that a pipe is found out instead of waited for. All checks are made on the open file.
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path).map_err(unreadable)?;
    check(path, &file)?;
    // One byte more than allowed, to see that there are more.
    let mut text = Zeroizing::new([0; SECRET_TEXT_BYTES + 1]);
    let length = fill(&file, &mut text[..]).map_err(unreadable)?;
    FarmSecret::from_text(&text[..length]).map_err(|error| match error {
        SecretError::Text(found) => SecretFileError::Content { path: path.into(), found },
        other => other.into(),
    })
}

/// Whether the open file may hold a secret, by its kind, mode and owner.
fn check(path: &Path, file: &File) -> Result<(), SecretFileError> {
    let metadata = file.metadata().map_err(|source| SecretFileError::Read { path: path.into(), source })?;
    let kind = metadata.file_type();
    if !kind.is_file() {
        let found = match () {
            () if kind.is_dir() => "a directory",
            () if kind.is_fifo() => "a pipe",
            () => "a device",
        };
        return Err(SecretFileError::NotAFile { path: path.into(), found });
    }
    let access = Access::of(path, &metadata);
    if access.is_too_open() {
        return Err(SecretFileError::Mode { path: path.into(), found: access.mode });
    }
    check_owner(path, access.uid, geteuid().as_raw())
}

fn check_owner(path: &Path, owner: u32, own: u32) -> Result<(), SecretFileError> {
    if owner == 0 || owner == own {
        Ok(())
    } else {
        Err(SecretFileError::Owner { path: path.into(), found: owner, own })
    }
}

/// Reads until `text` is full or the file ends. Returns how many bytes there are.
fn fill(mut file: &File, text: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < text.len() {
        match file.read(&mut text[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// Reads a set of secrets, one from each of `files`; the first one seals.
///
/// # Errors
/// As [`read`] and [`Secrets::new`]; [`SecretFileError::SameAs`] if two files hold the same secret.
pub fn read_all<P: AsRef<Path>>(files: &[P]) -> Result<Secrets, SecretFileError> {
    let mut secrets: Vec<FarmSecret> = Vec::with_capacity(files.len());
    for file in files {
        let path = file.as_ref();
        let secret = read(path)?;
        if let Some(place) = secrets.iter().position(|earlier| earlier.id() == secret.id()) {
            return Err(SecretFileError::SameAs { path: path.into(), other: files[place].as_ref().into() });
        }
        secrets.push(secret);
    }
    Ok(Secrets::new(secrets)?)
}

/// Writes `secret` to a new file at `path` with mode 0600, in the form that [`read`] takes, and waits until it is on the
/// disk.
///
/// # Errors
/// [`SecretFileError::Exists`] if there is anything at `path`, which is left as it is; [`SecretFileError::Write`] if the
/// file cannot be written, in which case none is left behind.
pub fn write_new(secret: &FarmSecret, path: &Path) -> Result<(), SecretFileError> {
    // `create_new` is O_EXCL: it neither overwrites nor follows a symbolic link.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let file = file.map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => SecretFileError::Exists { path: path.into() },
        _ => SecretFileError::Write { path: path.into(), source },
    })?;
    write_all(file, &secret.to_text()[..]).map_err(|source| {
        let source = match std::fs::remove_file(path) {
            Ok(()) => source,
            Err(left) => io::Error::other(format!("{source}; and what was written is still there: {left}")),
        };
        SecretFileError::Write { path: path.into(), source }
    })
}

fn write_all(mut file: File, text: &[u8]) -> io::Result<()> {
    // Whatever the umask took away.
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(text)?;
    file.sync_all()
}

/// What is wrong with a farm secret's file, or with a set of such files.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// The file cannot be opened or read.
    #[error("farm secret {}: cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not a file.
    #[error("farm secret {}: is {found}; it must be a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// Its mode grants more than a secret's may.
    #[error("farm secret {}: has mode {found:04o}; accepted is {ACCEPTED_MODES}", path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        found: u32,
    },
    /// Another user could change it.
    #[error(
        "farm secret {}: belongs to user id {found}; accepted are root (0) and the user that resumed runs as ({own})",
        path.display()
    )]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its owner.
        found: u32,
        /// The user of this process.
        own: u32,
    },
    /// It does not hold a secret.
    #[error(
        "farm secret {}: {found}; it must hold exactly 64 hex digits and a newline, as `resumed secret new` writes it",
        path.display()
    )]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, without any of the contents.
        found: String,
    },
    /// Two files of a set hold the same secret.
    #[error("farm secret {}: is the same secret as {}; each may be configured once", path.display(), other.display())]
    SameAs {
        /// The later file.
        path: PathBuf,
        /// The earlier one.
        other: PathBuf,
    },
    /// A new secret's file exists.
    #[error("farm secret {}: exists already; a secret is never overwritten", path.display())]
    Exists {
        /// The path.
        path: PathBuf,
    },
    /// A new secret's file cannot be written.
    #[error("farm secret {}: cannot be written: {source}", path.display())]
    Write {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is wrong has nothing to do with a file.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    const HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    fn file(directory: &Path, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = directory.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn a_file_of_any_other_content_is_refused_and_not_quoted() {
        let directory = crate::temporary::Folder::new();
        let path = file(directory.path(), "secret", &format!("{HEX}\n"), 0o600);
        assert_eq!(read(&path).unwrap().to_text()[..], *format!("{HEX}\n").as_bytes());
        for (text, found) in [
            (String::new(), "is empty"),
            (format!("{HEX}{HEX}\n"), "has at least 66 hex digits"),
            (format!("{HEX}\n\n"), "goes on after the newline"),
            (format!("{HEX} # prod\n"), "has something other than a hex digit or the newline at byte 65"),
        ] {
            let path = file(directory.path(), "secret", &text, 0o600);
            let error = read(&path).unwrap_err().to_string();
            let expected = format!(
                "farm secret {}: {found}; it must hold exactly 64 hex digits and a newline, as `resumed secret new` \
                 writes it",
                path.display()
            );
            assert_eq!(error, expected, "for {text:?}");
        }
    }

    #[test]
    fn what_is_tighter_than_0640_is_taken_and_what_is_looser_is_refused() {
        let directory = crate::temporary::Folder::new();
        let path = file(directory.path(), "secret", &format!("{HEX}\n"), 0o600);
        for mode in 0..=0o7777 {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let is_tight = mode & !0o640 == 0;
            match read(&path) {
                Ok(_) => assert!(is_tight, "mode {mode:04o} was accepted"),
                // Without root's powers a file without the owner's read bit cannot be opened at all.
                Err(SecretFileError::Read { .. }) => assert_eq!(mode & 0o400, 0, "mode {mode:04o}"),
                Err(error) => {
                    assert!(!is_tight, "{error}");
                    let found = format!("has mode {mode:04o}; accepted is mode 0640 or tighter: 0600, 0440, 0400");
                    assert!(error.to_string().ends_with(&found), "{error}");
                }
            }
        }
    }

    #[test]
    fn a_secret_belongs_to_root_or_to_the_daemon() {
        let path = Path::new("/etc/resumed/farm.secret");
        for (owner, own) in [(0, 0), (0, 990), (990, 990)] {
            assert!(check_owner(path, owner, own).is_ok());
        }
        for (owner, own) in [(1000, 990), (1000, 0)] {
            let error = check_owner(path, owner, own).unwrap_err().to_string();
            let expected = format!(
                "farm secret /etc/resumed/farm.secret: belongs to user id {owner}; accepted are root (0) and the user \
                 that resumed runs as ({own})"
            );
            assert_eq!(error, expected);
        }
    }

    #[test]
    fn the_owner_is_that_of_the_file() {
        let directory = crate::temporary::Folder::new();
        let path = file(directory.path(), "secret", &format!("{HEX}\n"), 0o600);
        let given_away = std::os::unix::fs::chown(&path, Some(12_345), None);
        let read = read(&path);
        match given_away {
            Ok(()) => assert!(matches!(read, Err(SecretFileError::Owner { found: 12_345, own: 0, .. })), "{read:?}"),
            // Only root may give a file away.
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
                assert!(read.is_ok(), "{read:?}");
            }
        }
    }

    #[test]
    fn a_secret_is_a_regular_file() {
        let directory = crate::temporary::Folder::new();
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR).unwrap();
        for (path, found) in
            [(directory.path(), "a directory"), (&pipe, "a pipe"), (Path::new("/dev/null"), "a device")]
        {
            let error = read(path).unwrap_err().to_string();
            let expected = format!("farm secret {}: is {found}; it must be a regular file", path.display());
            assert_eq!(error, expected);
        }
        let error = read(&directory.path().join("none")).unwrap_err();
        assert!(matches!(error, SecretFileError::Read { .. }), "{error}");

        let target = file(directory.path(), "secret", &format!("{HEX}\n"), 0o640);
        let link = directory.path().join("link");
        symlink(&target, &link).unwrap();
        assert!(read(&link).is_ok());
    }

    #[test]
    fn generated_secrets_differ() {
        let (one, other) = (FarmSecret::generate().unwrap(), FarmSecret::generate().unwrap());
        assert_ne!(one.to_text()[..], other.to_text()[..]);
        assert_ne!(one.id(), other.id());
    }

    #[test]
    fn a_written_secret_reads_back_and_is_private() {
        let directory = crate::temporary::Folder::new();
        let path = directory.path().join("secret");
        let secret = FarmSecret::generate().unwrap();
        write_new(&secret, &path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(read(&path).unwrap().to_text()[..], secret.to_text()[..]);
    }

    #[test]
    fn a_secret_is_never_overwritten() {
        let directory = crate::temporary::Folder::new();
        let path = file(directory.path(), "secret", "precious", 0o600);
        let dangling = directory.path().join("dangling");
        symlink(directory.path().join("nowhere"), &dangling).unwrap();
        for path in [&path, &dangling] {
            let error = write_new(&FarmSecret::generate().unwrap(), path).unwrap_err();
            assert!(matches!(error, SecretFileError::Exists { .. }), "{error}");
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        assert!(!directory.path().join("nowhere").exists());

        let error = write_new(&FarmSecret::generate().unwrap(), &directory.path().join("no/such/place")).unwrap_err();
        assert!(matches!(error, SecretFileError::Write { .. }), "{error}");
    }

    #[test]
    fn a_set_of_files_names_the_file_at_fault() {
        let directory = crate::temporary::Folder::new();
        let one = file(directory.path(), "one", &format!("{HEX}\n"), 0o600);
        let again = file(directory.path(), "again", &format!("{}\n", HEX.to_uppercase()), 0o600);
        let error = read_all(&[&one, &again]).unwrap_err().to_string();
        let expected = format!(
            "farm secret {}: is the same secret as {}; each may be configured once",
            again.display(),
            one.display()
        );
        assert_eq!(error, expected);

        let bad = file(directory.path(), "bad", "bad\n", 0o600);
        let error = read_all(&[&one, &bad]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("farm secret {}: ", bad.display())), "{error}");

        let none: [&Path; 0] = [];
        assert!(matches!(read_all(&none), Err(SecretFileError::Secret(SecretError::NoSecret))));
    }
}
