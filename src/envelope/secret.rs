//! Farm secrets: the pre-shared keys that all envelopes of a farm are sealed under.

use std::fmt;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use openssl::error::ErrorStack;
use zeroize::Zeroizing;

use crate::hkdf::hkdf_sha256;
use crate::random::{self, NoRandomness};
use crate::secret_files::{ACCEPTED_MODES, Access};

/// Tells farm secrets apart without revealing them: the first 8 bytes of HKDF-SHA256 (RFC 5869) of the secret, with an
/// empty salt and the info "resumed/1 id".
pub type SecretId = [u8; 8];

/// A secret file: 64 hex digits and a newline.
const FILE_BYTES: usize = 65;

/// A farm secret: 32 random bytes. Erased from memory when dropped; `Debug` shows only its id.
pub struct FarmSecret {
    // Boxed, so that moving the secret leaves no copy behind.
    bytes: Box<Zeroizing<[u8; 32]>>,
    id: SecretId,
}

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

    /// The secret that consists of `bytes`.
    ///
    /// # Errors
    /// [`SecretError::Library`] if OpenSSL cannot derive its id.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, SecretError> {
        Self::new(Box::new(Zeroizing::new(*bytes)))
    }

    fn new(bytes: Box<Zeroizing<[u8; 32]>>) -> Result<Self, SecretError> {
        let mut id = [0; 8];
        hkdf_sha256(&bytes[..], b"", &[b"resumed/1 id"], &mut id)?;
        Ok(Self { bytes, id })
    }

    /// Reads a secret from the file at `path`, which may be a symbolic link to it.
    ///
    /// The file must be a regular one of exactly 64 hex digits (of either case) and a newline, have mode 0640 or a tighter
    /// one, and belong to root or to the user that this process runs as. In `$CREDENTIALS_DIRECTORY`, where the service
    /// manager says who gets to it, any mode will do that grants nothing to others.
    ///
    /// # Errors
    /// One for each of these rules, saying what was found and what would be accepted, and [`SecretError::Read`] if the
    /// file cannot be read at all. No error reveals any of the file's contents.
    pub fn read(path: &Path) -> Result<Self, SecretError> {
        let unreadable = |source| SecretError::Read { path: path.into(), source };
        // Non-blocking, so that a pipe is found out instead of waited for. All checks are made on the open file.
        let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path);
        let file = file.map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;

        let kind = metadata.file_type();
        if !kind.is_file() {
            let found = match () {
                () if kind.is_dir() => "a directory",
                () if kind.is_fifo() => "a pipe",
                () => "a device",
            };
            return Err(SecretError::NotAFile { path: path.into(), found });
        }
        let access = Access::of(path, &metadata);
        if access.is_too_open() {
            return Err(SecretError::Mode { path: path.into(), found: access.mode });
        }
        check_owner(path, access.uid, nix::unistd::geteuid().as_raw())?;

        // One byte more than allowed, to see that there are more.
        let mut text = Zeroizing::new([0; FILE_BYTES + 1]);
        let mut length = 0;
        while length < text.len() {
            match (&file).read(&mut text[length..]) {
                Ok(0) => break,
                Ok(more) => length += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(unreadable(error)),
            }
        }
        let bytes = parse(&text[..length]).map_err(|found| SecretError::Content { path: path.into(), found })?;
        Self::new(bytes)
    }

    /// Writes the secret to a new file at `path` with mode 0600, in the form that [`FarmSecret::read`] takes, and waits
    /// until it is on the disk.
    ///
    /// # Errors
    /// [`SecretError::Exists`] if there is anything at `path`, which is left as it is; [`SecretError::Write`] if the file
    /// cannot be written, in which case none is left behind.
    pub fn write_new(&self, path: &Path) -> Result<(), SecretError> {
        let mut text = Zeroizing::new([0; FILE_BYTES]);
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.bytes.iter()) {
            pair.copy_from_slice(&[hex_digit(byte >> 4), hex_digit(byte & 15)]);
        }
        text[FILE_BYTES - 1] = b'\n';

        // `create_new` is O_EXCL: it neither overwrites nor follows a symbolic link.
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = file.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => SecretError::Exists { path: path.into() },
            _ => SecretError::Write { path: path.into(), source },
        })?;
        write_all(file, &text[..]).map_err(|source| {
            let source = match std::fs::remove_file(path) {
                Ok(()) => source,
                Err(left) => io::Error::other(format!("{source}; and what was written is still there: {left}")),
            };
            SecretError::Write { path: path.into(), source }
        })
    }

    /// The secret's id.
    #[must_use]
    pub fn id(&self) -> SecretId {
        self.id
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.bytes
    }
}

impl fmt::Debug for FarmSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FarmSecret").field("id", &hex(self.id)).finish_non_exhaustive()
    }
}

fn check_owner(path: &Path, owner: u32, own: u32) -> Result<(), SecretError> {
    if owner == 0 || owner == own { Ok(()) } else { Err(SecretError::Owner { path: path.into(), found: owner, own }) }
}

fn write_all(mut file: File, text: &[u8]) -> io::Result<()> {
    // Whatever the umask took away.
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(text)?;
    file.sync_all()
}

/// The bytes of a secret file's text, or what is wrong with it.
fn parse(text: &[u8]) -> Result<Box<Zeroizing<[u8; 32]>>, String> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    match &text[digits..] {
        _ if text.is_empty() => return Err("is empty".into()),
        [] | [b'\n'] if digits != FILE_BYTES - 1 => {
            let least = if digits > FILE_BYTES { "at least " } else { "" };
            return Err(format!("has {least}{digits} hex digits"));
        }
        [] => return Err("has 64 hex digits but no newline after them".into()),
        [b'\n'] => {}
        [b'\n', ..] => return Err("goes on after the newline".into()),
        _ => return Err(format!("has something other than a hex digit or the newline at byte {}", digits + 1)),
    }
    let mut bytes = Box::new(Zeroizing::new([0; 32]));
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = (hex_value(pair[0]) << 4) | hex_value(pair[1]);
    }
    Ok(bytes)
}

fn hex_digit(value: u8) -> u8 {
    b"0123456789abcdef"[usize::from(value)]
}

/// The value of an ASCII hex digit.
fn hex_value(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

fn hex(id: SecretId) -> String {
    format!("{:016x}", u64::from_be_bytes(id))
}

/// The farm secrets that a node knows: at least one, all different. The first seals, all open.
#[derive(Debug)]
pub struct Secrets(Vec<FarmSecret>);

impl Secrets {
    /// A set of `secrets`; the first one seals.
    ///
    /// # Errors
    /// [`SecretError::NoSecret`] if there is none, [`SecretError::Twice`] if one is in it twice.
    pub fn new(secrets: Vec<FarmSecret>) -> Result<Self, SecretError> {
        if secrets.is_empty() {
            return Err(SecretError::NoSecret);
        }
        for (place, secret) in secrets.iter().enumerate() {
            if secrets[..place].iter().any(|earlier| earlier.id == secret.id) {
                return Err(SecretError::Twice { id: hex(secret.id) });
            }
        }
        Ok(Self(secrets))
    }

    /// Reads a set of secrets, one from each of `files`; the first one seals.
    ///
    /// # Errors
    /// As [`FarmSecret::read`] and [`Secrets::new`]; [`SecretError::SameAs`] if two files hold the same secret.
    pub fn read<P: AsRef<Path>>(files: &[P]) -> Result<Self, SecretError> {
        let mut secrets: Vec<FarmSecret> = Vec::with_capacity(files.len());
        for file in files {
            let path = file.as_ref();
            let secret = FarmSecret::read(path)?;
            if let Some(place) = secrets.iter().position(|earlier| earlier.id == secret.id) {
                return Err(SecretError::SameAs { path: path.into(), other: files[place].as_ref().into() });
            }
            secrets.push(secret);
        }
        Self::new(secrets)
    }

    /// The ids of all secrets in the set, the one that seals first.
    pub fn ids(&self) -> impl Iterator<Item = SecretId> + '_ {
        self.0.iter().map(FarmSecret::id)
    }

    /// The secret that seals.
    pub(super) fn sealing(&self) -> &FarmSecret {
        &self.0[0]
    }

    /// The secret called `id`.
    pub(super) fn get(&self, id: SecretId) -> Option<&FarmSecret> {
        self.0.iter().find(|secret| secret.id == id)
    }
}

/// What is wrong with a farm secret, its file, or a set of them.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
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
    /// Somebody else could change it.
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
    /// A secret is in a set twice.
    #[error("farm secret {id} is given twice; each may be configured once")]
    Twice {
        /// Its id, 16 hex digits.
        id: String,
    },
    /// A set is empty.
    #[error("no farm secret is given; at least one is needed")]
    NoSecret,
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
    /// OpenSSL failed.
    #[error("farm secret: OpenSSL failed: {0}")]
    Library(#[from] ErrorStack),
    /// There are no random bytes for a new secret.
    #[error("farm secret: {0}")]
    Randomness(#[from] NoRandomness),
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
    fn a_secret_is_64_hex_digits_and_a_newline() {
        let directory = crate::temporary::Folder::new();
        let expected: Vec<u8> = (0..32).collect();
        for (name, text) in [("lower", format!("{HEX}\n")), ("upper", format!("{}\n", HEX.to_uppercase()))] {
            let secret = FarmSecret::read(&file(directory.path(), name, &text, 0o600)).unwrap();
            assert_eq!(secret.bytes()[..], expected[..]);
        }
    }

    #[test]
    fn any_other_content_is_refused_and_not_quoted() {
        let directory = crate::temporary::Folder::new();
        let cases = [
            ("", "is empty"),
            ("\n", "has 0 hex digits"),
            (HEX, "has 64 hex digits but no newline after them"),
            (&HEX[1..], "has 63 hex digits"),
            (&format!("{}\n", &HEX[1..]), "has 63 hex digits"),
            (&format!("{HEX}0\n"), "has 65 hex digits"),
            (&format!("{HEX}{HEX}\n"), "has at least 66 hex digits"),
            (&format!("{HEX}\r\n"), "has something other than a hex digit or the newline at byte 65"),
            (&format!("{HEX}\n\n"), "goes on after the newline"),
            (&format!(" {HEX}\n"), "has something other than a hex digit or the newline at byte 1"),
            (&format!("{}g\n", &HEX[1..]), "has something other than a hex digit or the newline at byte 64"),
            (&format!("{HEX} # prod\n"), "has something other than a hex digit or the newline at byte 65"),
        ];
        for (text, found) in cases {
            let path = file(directory.path(), "secret", text, 0o600);
            let error = FarmSecret::read(&path).unwrap_err().to_string();
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
            match FarmSecret::read(&path) {
                Ok(_) => assert!(is_tight, "mode {mode:04o} was accepted"),
                // Without root's powers a file without the owner's read bit cannot be opened at all.
                Err(SecretError::Read { .. }) => assert_eq!(mode & 0o400, 0, "mode {mode:04o}"),
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
        let read = FarmSecret::read(&path);
        match given_away {
            Ok(()) => assert!(matches!(read, Err(SecretError::Owner { found: 12_345, own: 0, .. })), "{read:?}"),
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
            let error = FarmSecret::read(path).unwrap_err().to_string();
            let expected = format!("farm secret {}: is {found}; it must be a regular file", path.display());
            assert_eq!(error, expected);
        }
        let error = FarmSecret::read(&directory.path().join("none")).unwrap_err();
        assert!(matches!(error, SecretError::Read { .. }), "{error}");

        let target = file(directory.path(), "secret", &format!("{HEX}\n"), 0o640);
        let link = directory.path().join("link");
        symlink(&target, &link).unwrap();
        assert!(FarmSecret::read(&link).is_ok());
    }

    #[test]
    fn a_written_secret_reads_back_and_is_private() {
        let directory = crate::temporary::Folder::new();
        let path = directory.path().join("secret");
        let secret = FarmSecret::generate().unwrap();
        secret.write_new(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(FarmSecret::read(&path).unwrap().bytes(), secret.bytes());
    }

    #[test]
    fn a_secret_is_never_overwritten() {
        let directory = crate::temporary::Folder::new();
        let path = file(directory.path(), "secret", "precious", 0o600);
        let dangling = directory.path().join("dangling");
        symlink(directory.path().join("nowhere"), &dangling).unwrap();
        for path in [&path, &dangling] {
            let error = FarmSecret::generate().unwrap().write_new(path).unwrap_err();
            assert!(matches!(error, SecretError::Exists { .. }), "{error}");
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        assert!(!directory.path().join("nowhere").exists());

        let error = FarmSecret::generate().unwrap().write_new(&directory.path().join("no/such/place")).unwrap_err();
        assert!(matches!(error, SecretError::Write { .. }), "{error}");
    }

    #[test]
    fn generated_secrets_differ() {
        let (one, other) = (FarmSecret::generate().unwrap(), FarmSecret::generate().unwrap());
        assert_ne!(one.bytes(), other.bytes());
        assert_ne!(one.id(), other.id());
    }

    #[test]
    fn debug_shows_the_id_and_nothing_else() {
        let secret = FarmSecret::from_bytes(&[0xa5; 32]).unwrap();
        let expected = format!("FarmSecret {{ id: \"{}\", .. }}", hex(secret.id()));
        assert_eq!(format!("{secret:?}"), expected);
        assert!(!expected.contains("a5a5") && !expected.contains("165"));
    }

    #[test]
    fn a_set_holds_each_secret_once_and_keeps_their_order() {
        let secret = |byte| FarmSecret::from_bytes(&[byte; 32]).unwrap();
        assert!(matches!(Secrets::new(vec![]), Err(SecretError::NoSecret)));
        assert!(matches!(Secrets::new(vec![secret(1), secret(2), secret(1)]), Err(SecretError::Twice { .. })));
        let secrets = Secrets::new(vec![secret(2), secret(1)]).unwrap();
        assert_eq!(secrets.ids().collect::<Vec<_>>(), [secret(2).id(), secret(1).id()]);
        assert_eq!(secrets.sealing().id(), secret(2).id());
    }

    #[test]
    fn a_set_of_files_names_the_file_at_fault() {
        let directory = crate::temporary::Folder::new();
        let one = file(directory.path(), "one", &format!("{HEX}\n"), 0o600);
        let again = file(directory.path(), "again", &format!("{}\n", HEX.to_uppercase()), 0o600);
        let error = Secrets::read(&[&one, &again]).unwrap_err().to_string();
        let expected = format!(
            "farm secret {}: is the same secret as {}; each may be configured once",
            again.display(),
            one.display()
        );
        assert_eq!(error, expected);

        let bad = file(directory.path(), "bad", "bad\n", 0o600);
        let error = Secrets::read(&[&one, &bad]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("farm secret {}: ", bad.display())), "{error}");

        let none: [&Path; 0] = [];
        assert!(matches!(Secrets::read(&none), Err(SecretError::NoSecret)));
    }
}
