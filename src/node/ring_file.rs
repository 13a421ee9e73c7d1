//! The ring as a file, so that a restart of the daemon keeps it and a power cut forgets it.
//!
//! A ticket key on a disk outlives every promise made about it. So the file lies in memory that cannot be swapped out,
//! ramfs or tmpfs, unless the operator allows a disk. Elsewhere the file has the floors alone, which are no secret: what an
//! operator revoked stays revoked across a restart.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::{major, minor};
use nix::unistd::Uid;
use zeroize::Zeroizing;

use crate::clock::Now;
use crate::keys::KeySettings;
use crate::keys::saved::{Restored, read_back, without_keys};

const FILE: &str = "ring";
const NEW_FILE: &str = "ring.new";
/// A full ring takes about 12 KiB.
const LARGEST: u64 = 64 * 1024;

/// Where one node saves its ring.
#[derive(Clone, Debug)]
pub(crate) struct RingFile {
    directory: PathBuf,
    farm: String,
    allow_disk: bool,
    /// Keys may not lie there, as it was when the node started.
    floors_only: bool,
}

/// Why a ring could not be saved or read. No case is fatal: a node without a file starts with an empty ring.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RingFileError {
    /// The directory is not in memory that cannot be swapped out.
    #[error(
        "keys.directory {}: {found}; ticket keys are saved only on ramfs, or on tmpfs with the mount option noswap or \
         on a host without active swap; move the directory or set keys.allow_disk = true",
        path.display()
    )]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// What it is instead.
        found: String,
    },
    /// A file or directory could not be used.
    #[error("cannot {verb} {}: {error}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The file is not one that this node's daemon wrote.
    #[error("{} is not this node's ring: {reason}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl RingFile {
    /// The file of a node of `farm` in `directory`, which has to be there already and, unless `allow_disk`, in memory
    /// that cannot be swapped out.
    ///
    /// # Errors
    /// `Unsafe` if it is not, saying what was found: then [`RingFile::for_floors`] is left. `Io` if that cannot be told.
    pub(crate) fn open(directory: &Path, farm: &str, allow_disk: bool) -> Result<Self, RingFileError> {
        let file = Self { allow_disk, floors_only: false, ..Self::for_floors(directory, farm) };
        file.check()?;
        Ok(file)
    }

    /// The same file where keys may not lie: it has the floors of the ring and no more.
    #[must_use]
    pub(crate) fn for_floors(directory: &Path, farm: &str) -> Self {
        Self { directory: directory.to_owned(), farm: farm.to_owned(), allow_disk: false, floors_only: true }
    }

    /// Whether what is saved there is the whole ring.
    #[must_use]
    pub(crate) fn keeps_keys(&self) -> bool {
        !self.floors_only
    }

    /// The file's path.
    #[must_use]
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.join(FILE)
    }

    /// Saves `contents`, of [`encode`](crate::keys::saved::encode), in place of what was there, at once or not at all, readable by its owner only (mode 0600). Whether
    /// the memory can be swapped out is asked again each time: swap can be turned on later. If it was, the floors take the
    /// place of what was saved before.
    ///
    /// # Errors
    /// `Unsafe` or `Io`.
    pub(crate) fn save(&self, contents: &[u8]) -> Result<(), RingFileError> {
        if self.floors_only {
            return self.save_floors(contents);
        }
        if let Err(error) = self.check() {
            self.save_floors(contents).inspect_err(|_| drop(self.remove()))?;
            return Err(error);
        }
        self.write(contents)
    }

    /// Writes nothing where the same floors are saved already.
    fn save_floors(&self, contents: &[u8]) -> Result<(), RingFileError> {
        let floors = without_keys(contents, &self.farm)
            .map_err(|reason| RingFileError::Foreign { path: self.path(), reason })?;
        if read(&self.path()).is_ok_and(|saved| saved == floors) { Ok(()) } else { self.write(&floors) }
    }

    fn write(&self, contents: &[u8]) -> Result<(), RingFileError> {
        let new = self.directory.join(NEW_FILE);
        write_new(&new, contents)
            .and_then(|()| fs::rename(&new, self.path()))
            .map_err(|error| io_error("write", &new, error))
            .inspect_err(|_| drop(fs::remove_file(&new)))
    }

    /// Reads the ring back, without the keys that expired meanwhile. `None` if there is no file.
    ///
    /// # Errors
    /// `Foreign` if the file is damaged, of another farm, or open to others; `Io` if it cannot be read.
    pub(crate) fn load(&self, settings: KeySettings, now: Now) -> Result<Option<Restored>, RingFileError> {
        let path = self.path();
        let contents = match read(&path) {
            Err(RingFileError::Io { error, .. }) if error.kind() == ErrorKind::NotFound => return Ok(None),
            contents => contents?,
        };
        let restored = read_back(&contents, &self.farm, settings, now);
        restored.map(Some).map_err(|reason| RingFileError::Foreign { path, reason })
    }

    /// Removes the file. It need not be there.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn remove(&self) -> Result<(), RingFileError> {
        let path = self.path();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(io_error("remove", &path, error)),
            _ => Ok(()),
        }
    }

    fn check(&self) -> Result<(), RingFileError> {
        let failed = |verb, error| io_error(verb, &self.directory, error);
        let directory = self.directory.canonicalize().map_err(|error| failed("find", error))?;
        let metadata = directory.metadata().map_err(|error| failed("read", error))?;
        if !metadata.is_dir() {
            return Err(failed("use", ErrorKind::NotADirectory.into()));
        }
        if self.allow_disk {
            return Ok(());
        }
        let proc = Path::new("/proc");
        let mountinfo = read_text(&proc.join("self/mountinfo"))?;
        stays_in_memory(&mountinfo, &Swap::of(proc)?, &directory, metadata.dev())
            .map_err(|found| RingFileError::Unsafe { path: self.directory.clone(), found })
    }
}

/// What a host can put pages of memory on, as proc(5) tells.
#[derive(Debug, PartialEq)]
enum Swap {
    /// No area is active, or the kernel has no swap at all.
    None,
    /// This area is active; there may be others.
    Active(String),
    /// What would tell is not there, as where only processes are shown (`ProcSubset=pid`).
    Unknown,
}

impl Swap {
    /// As the files in `proc` say. A kernel built without swap has no `swaps`, and then says that it has none in `meminfo`.
    fn of(proc: &Path) -> Result<Self, RingFileError> {
        if let Some(swaps) = if_there(read_text(&proc.join("swaps")))? {
            return Ok(active_swap(&swaps).map_or(Self::None, |area| Self::Active(area.to_owned())));
        }
        let total = if_there(read_text(&proc.join("meminfo")))?.as_deref().and_then(swap_total);
        Ok(match total {
            Some(0) => Self::None,
            Some(kibibytes) => Self::Active(format!("areas of {kibibytes} KiB")),
            None => Self::Unknown,
        })
    }
}

/// Reads a file below /proc. Paths in it may be any bytes.
fn read_text(path: &Path) -> Result<String, RingFileError> {
    let bytes = fs::read(path).map_err(|error| io_error("read", path, error))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// `None` where the file is not there.
fn if_there(read: Result<String, RingFileError>) -> Result<Option<String>, RingFileError> {
    match read {
        Err(RingFileError::Io { error, .. }) if error.kind() == ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

fn io_error(verb: &'static str, path: &Path, error: io::Error) -> RingFileError {
    RingFileError::Io { verb, path: path.to_owned(), error }
}

/// Whether `directory` on `device` keeps its files in memory that is never swapped out; if not, what it does instead.
/// The text is that of /proc/self/mountinfo, see proc(5).
fn stays_in_memory(mountinfo: &str, swap: &Swap, directory: &Path, device: u64) -> Result<(), String> {
    let mounts = mountinfo.lines().filter_map(Mount::parse);
    let over = mounts.filter(|mount| mount.is_on(device) && directory.starts_with(&mount.point));
    // Of mounts one over the other the last one counts.
    let Some(mount) = over.max_by_key(|mount| mount.point.as_os_str().len()) else {
        return Err("lies on a file system that /proc/self/mountinfo does not show".into());
    };
    match mount.kind {
        "ramfs" => Ok(()),
        "tmpfs" if mount.options.split(',').any(|option| option == "noswap") => Ok(()),
        "tmpfs" => match swap {
            Swap::None => Ok(()),
            Swap::Active(area) => Err(format!("lies on tmpfs without noswap, and there is active swap on {area}")),
            Swap::Unknown => {
                Err("lies on tmpfs without noswap, and whether there is active swap cannot be told: /proc has \
                                  neither swaps nor meminfo (ProcSubset=pid in the unit hides them)"
                    .into())
            }
        },
        other => Err(format!("lies on {other}")),
    }
}

/// The first active swap area in the text of /proc/swaps: a line of headings, then one for each area.
fn active_swap(swaps: &str) -> Option<&str> {
    swaps.lines().skip(1).find_map(|line| line.split_whitespace().next())
}

/// The size of all active swap areas in the text of /proc/meminfo, in KiB: `SwapTotal:       0 kB`.
fn swap_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("SwapTotal:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// One line of /proc/self/mountinfo.
#[derive(Debug, PartialEq)]
struct Mount<'a> {
    /// `major:minor`, as in the st_dev of files on it.
    device: &'a str,
    point: PathBuf,
    kind: &'a str,
    /// Of the file system, separated by commas.
    options: &'a str,
}

impl<'a> Mount<'a> {
    /// `36 35 98:0 /root /mount/point options [optional]... - type source super-options`
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(2);
        let device = mount.next()?;
        let point = unescape(mount.nth(1)?);
        let mut file_system = file_system.split(' ');
        let kind = file_system.next()?;
        let options = file_system.nth(1)?;
        Some(Self { device, point, kind, options })
    }

    fn is_on(&self, device: u64) -> bool {
        self.device == format!("{}:{}", major(device), minor(device))
    }
}

/// Space, tab, newline and backslash stand as three octal digits after a backslash.
fn unescape(field: &str) -> PathBuf {
    let mut parts = field.split('\\');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => text.extend([char::from(code).to_string().as_str(), &part[3..]]),
            None => text.extend(["\\", part]),
        }
    }
    text.into()
}

fn write_new(path: &Path, contents: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(contents)
}

/// Reads a file that only this user, or root, can have written, and nobody else can read.
fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, RingFileError> {
    let failed = |error| io_error("read", path, error);
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let foreign = |reason| Err(RingFileError::Foreign { path: path.to_owned(), reason });
    let mode = metadata.permissions().mode() & 0o777;
    if !metadata.is_file() {
        return foreign("it is not a regular file".into());
    }
    if metadata.uid() != Uid::effective().as_raw() && metadata.uid() != 0 {
        return foreign(format!("it belongs to user {}", metadata.uid()));
    }
    if mode & 0o077 != 0 {
        return foreign(format!("its mode is {mode:04o}, it must be 0600"));
    }
    if metadata.len() > LARGEST {
        return foreign(format!("{} bytes are more than {LARGEST}", metadata.len()));
    }
    read_whole(file, metadata.len()).map_err(failed)
}

fn read_whole(file: File, size: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    let room = usize::try_from(size).unwrap_or_default();
    let mut contents = Zeroizing::new(vec![0; room]);
    // Files are replaced, never changed: one that is shorter than it said is damaged, and read_exact says so.
    (&file).read_exact(&mut contents)?;
    Ok(contents)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use std::time::Duration;

    use openssl::sha::sha256;

    use super::*;
    use crate::keys::saved::{MAGIC, encode};
    use crate::keys::{HeldRing, KeyMaterial};

    const HOUR: u64 = 3_600_000;
    const NO_SWAP: Swap = Swap::None;
    /// What /proc/swaps says where no area is active.
    const HEADINGS: &str = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
    const MOUNTS: &str = "\
27 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,discard
23 27 0:5 / /dev rw,relatime - devtmpfs devtmpfs rw,mode=755
24 27 0:23 / /run rw,nosuid,nodev shared:5 master:2 - tmpfs tmpfs rw,size=80k,mode=755
25 24 0:24 / /run/locked rw - tmpfs none rw,noswap,size=80k
26 24 0:25 / /run/old rw - ramfs ramfs rw
28 24 0:26 / /run/covered rw - tmpfs tmpfs rw
29 28 254:2 / /run/covered rw - xfs /dev/vdb rw
30 24 0:27 / /run/with\\040space rw - ramfs ramfs rw
";

    fn device(major: u64, minor: u64) -> u64 {
        nix::sys::stat::makedev(major, minor)
    }

    fn verdict(swap: &Swap, directory: &str, (major, minor): (u64, u64)) -> Result<(), String> {
        stays_in_memory(MOUNTS, swap, Path::new(directory), device(major, minor))
    }

    fn at(wall: u64) -> Now {
        Now { wall, mono: 24 * HOUR + wall }
    }

    fn two_keys() -> HeldRing {
        let mut held = HeldRing::new(KeySettings::default());
        for (name, hour) in [(1, 100), (2, 108)] {
            held.mint(hour * HOUR, KeyMaterial::from_random(&Zeroizing::new([name; 80])), at(100 * HOUR));
        }
        held
    }

    fn on_disk() -> (crate::temporary::Folder, RingFile) {
        let directory = crate::temporary::Folder::new();
        let file = RingFile::open(directory.path(), "test", true).unwrap();
        (directory, file)
    }

    fn load(file: &RingFile) -> Result<Option<Restored>, RingFileError> {
        file.load(KeySettings::default(), at(101 * HOUR))
    }

    fn refusal(file: &RingFile) -> String {
        load(file).expect_err("a file that is not this node's ring").to_string()
    }

    fn write(file: &RingFile, contents: &[u8]) {
        write_new(&file.path(), contents).unwrap();
    }

    #[test]
    fn memory_that_is_never_swapped_out_is_accepted() {
        let swap = Swap::Active("/dev/vdb1".into());
        assert_eq!(verdict(&NO_SWAP, "/run/resumed", (0, 23)), Ok(()));
        assert_eq!(verdict(&swap, "/run/locked/resumed", (0, 24)), Ok(()));
        assert_eq!(verdict(&swap, "/run/old", (0, 25)), Ok(()));
        assert_eq!(verdict(&swap, "/run/with space/resumed", (0, 27)), Ok(()));
    }

    #[test]
    fn everything_else_is_refused_with_what_was_found() {
        let swap = Swap::Active("/dev/vdb1".into());
        let swapped = verdict(&swap, "/run/resumed", (0, 23)).unwrap_err();
        assert_eq!(swapped, "lies on tmpfs without noswap, and there is active swap on /dev/vdb1");
        assert_eq!(verdict(&NO_SWAP, "/var/lib/resumed", (254, 1)).unwrap_err(), "lies on ext4");
        assert_eq!(verdict(&NO_SWAP, "/dev/resumed", (0, 5)).unwrap_err(), "lies on devtmpfs");
        assert_eq!(verdict(&NO_SWAP, "/run/covered", (254, 2)).unwrap_err(), "lies on xfs");
        assert_eq!(verdict(&NO_SWAP, "/run/lockedup", (254, 2)).unwrap_err(), UNKNOWN, "a name is no prefix of a path");
        assert_eq!(verdict(&NO_SWAP, "/run/resumed", (0, 99)).unwrap_err(), UNKNOWN);
        assert_eq!(stays_in_memory("garbage - here\n\n", &NO_SWAP, Path::new("/"), 0).unwrap_err(), UNKNOWN);
    }

    const UNKNOWN: &str = "lies on a file system that /proc/self/mountinfo does not show";

    #[test]
    fn a_mount_option_that_only_contains_noswap_is_another_one() {
        let mounts = "24 27 0:23 / /run rw - tmpfs noswap rw,mynoswap=1\n";
        let swap = Swap::Active("/swapfile".into());
        assert!(stays_in_memory(mounts, &swap, Path::new("/run"), device(0, 23)).is_err());
    }

    #[test]
    fn tmpfs_is_refused_where_swap_cannot_be_told_and_what_never_swaps_is_not() {
        let refused = verdict(&Swap::Unknown, "/run/resumed", (0, 23)).unwrap_err();
        assert!(refused.contains("cannot be told: /proc has neither swaps nor meminfo"), "{refused}");
        assert_eq!(verdict(&Swap::Unknown, "/run/locked/resumed", (0, 24)), Ok(()));
        assert_eq!(verdict(&Swap::Unknown, "/run/old", (0, 25)), Ok(()));
    }

    #[test]
    fn swap_is_told_by_either_file_and_unknown_where_both_are_hidden() {
        let active = format!("{HEADINGS}/dev/vdb1  partition\t2097148\t0\t-2\n");
        let (none, some) = ("MemTotal: 9 kB\nSwapTotal:       0 kB\n", "SwapTotal:     512 kB\nSwapFree: 0 kB\n");
        for (swaps, meminfo, expected) in [
            (Some(HEADINGS), Some(none), Swap::None),
            (Some(active.as_str()), Some(some), Swap::Active("/dev/vdb1".into())),
            // A kernel without swap.
            (None, Some(none), Swap::None),
            (None, Some(some), Swap::Active("areas of 512 KiB".into())),
            // Only processes are shown.
            (None, None, Swap::Unknown),
            (None, Some("MemTotal: 9 kB\n"), Swap::Unknown),
        ] {
            let proc = crate::temporary::Folder::new();
            for (file, text) in [("swaps", swaps), ("meminfo", meminfo)] {
                text.map(|text| fs::write(proc.path().join(file), text)).transpose().unwrap();
            }
            assert_eq!(Swap::of(proc.path()).unwrap(), expected, "swaps {swaps:?}, meminfo {meminfo:?}");
        }
    }

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape(r"/a\040b\011c\134d"), Path::new("/a b\tc\\d"));
        assert_eq!(unescape(r"/a\04"), Path::new(r"/a\04"));
        assert_eq!(unescape(r"/a\9é9"), Path::new(r"/a\9é9"));
    }

    /// What this host's own tools say about a directory, to hold the verdict against.
    fn file_system(directory: &Path) -> String {
        let output = std::process::Command::new("stat").args(["-f", "-c", "%T"]).arg(directory).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn agrees_with_this_host(directory: &Path) {
        let kind = file_system(directory);
        let swapping = Swap::of(Path::new("/proc")).unwrap() != Swap::None;
        match RingFile::open(directory, "test", false) {
            Ok(_) => assert!(kind == "ramfs" || kind == "tmpfs", "{kind} accepted"),
            Err(RingFileError::Unsafe { found, .. }) => {
                assert!(kind != "ramfs" && (kind != "tmpfs" || swapping), "{found}")
            }
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn this_hosts_shared_memory_and_temporary_directory_are_judged_as_what_they_are() {
        for parent in [Path::new("/dev/shm"), &std::env::temp_dir(), Path::new("/proc")] {
            let directory = crate::temporary::Folder::within(parent);
            agrees_with_this_host(directory.as_ref().map_or(parent, |directory| directory.path()));
        }
    }

    #[test]
    fn the_refusal_says_what_was_found_and_what_would_be_accepted() {
        let error = RingFile::open(Path::new("/proc"), "test", false).unwrap_err().to_string();
        assert!(
            error.starts_with("keys.directory /proc: lies on proc; ticket keys are saved only on ramfs"),
            "{error}"
        );
        assert!(error.ends_with("set keys.allow_disk = true"), "{error}");
        let missing = RingFile::open(Path::new("/proc/none"), "test", true).unwrap_err().to_string();
        assert!(missing.starts_with("cannot find /proc/none: "), "{missing}");
        let file = RingFile::open(Path::new("/proc/swaps"), "test", true).unwrap_err().to_string();
        assert!(file.starts_with("cannot use /proc/swaps: "), "{file}");
    }

    #[test]
    fn a_ring_comes_back_as_it_was_held_and_time_goes_on_for_it() {
        let (_directory, file) = on_disk();
        assert!(load(&file).unwrap().is_none(), "no file yet");
        let held = two_keys();
        file.save(&encode(&held, "test", at(100 * HOUR + 500))).unwrap();
        let next_boot = Now { wall: 100 * HOUR + 900, mono: 24 * HOUR };
        let restored = file.load(KeySettings::default(), next_boot).unwrap().unwrap();
        assert!(restored.faults.is_empty());
        assert_eq!(restored.held.ring(), held.ring());
        assert_eq!(restored.held.held_for(&[1; 16], next_boot), Some(Duration::from_millis(900)));
    }

    #[test]
    fn only_its_owner_can_read_the_file_and_nothing_is_left_beside_it() {
        let (directory, file) = on_disk();
        fs::write(directory.path().join(NEW_FILE), "left by a crash").unwrap();
        file.save(&encode(&two_keys(), "test", at(100 * HOUR))).unwrap();
        file.save(&encode(&two_keys(), "test", at(100 * HOUR))).unwrap();
        assert_eq!(file.path().metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let names: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [FILE]);
        file.remove().unwrap();
        file.remove().unwrap();
        assert!(load(&file).unwrap().is_none());
    }

    #[test]
    fn a_save_that_fails_leaves_the_old_file_and_no_other() {
        let (directory, file) = on_disk();
        file.save(&encode(&two_keys(), "test", at(100 * HOUR))).unwrap();
        fs::create_dir(directory.path().join(NEW_FILE)).unwrap();
        let error = file.save(&encode(&HeldRing::new(KeySettings::default()), "test", at(101 * HOUR))).unwrap_err();
        assert!(error.to_string().starts_with("cannot write "), "{error}");
        assert_eq!(load(&file).unwrap().unwrap().held.ring().keys().len(), 2);
    }

    #[test]
    fn a_save_where_keys_may_no_longer_lie_leaves_no_key_of_what_was_saved_before() {
        let (directory, allowed) = on_disk();
        if file_system(directory.path()) == "tmpfs" {
            return agrees_with_this_host(directory.path());
        }
        allowed.save(&encode(&two_keys(), "test", at(100 * HOUR))).unwrap();
        let forbidden = RingFile { allow_disk: false, ..allowed };
        assert!(matches!(
            forbidden.save(&encode(&two_keys(), "test", at(100 * HOUR))),
            Err(RingFileError::Unsafe { .. })
        ));
        assert!(load(&forbidden).unwrap().unwrap().held.ring().keys().is_empty());
    }

    #[test]
    fn where_keys_may_not_lie_the_floors_outlive_a_restart() {
        let (directory, whole) = on_disk();
        let mut held = two_keys();
        let floor = held.revoke(KeyMaterial::from_random(&Zeroizing::new([3; 80])), 0, at(100 * HOUR)).generation;
        let contents = encode(&held, "test", at(100 * HOUR));
        whole.save(&contents).unwrap();

        let file = RingFile::for_floors(directory.path(), "test");
        assert!(whole.keeps_keys() && !file.keeps_keys());
        file.save(&contents).unwrap();
        let saved = fs::read(file.path()).unwrap();
        let holds = |bytes: &[u8; 32]| saved.windows(32).any(|window| window == bytes);
        assert!(held.ring().keys().iter().all(|key| !holds(key.hmac()) && !holds(key.aes())));
        let restored = load(&file).unwrap().unwrap();
        assert_eq!((restored.held.ring().floor(), restored.held.ring().keys().len()), (floor, 0));

        // The same floors are not written again.
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o400)).unwrap();
        file.save(&encode(&held, "test", at(101 * HOUR))).unwrap();
        assert_eq!(file.path().metadata().unwrap().permissions().mode() & 0o777, 0o400);
        held.flush_sessions(at(101 * HOUR));
        file.save(&encode(&held, "test", at(101 * HOUR))).unwrap();
        assert_eq!(load(&file).unwrap().unwrap().held.ring().sessions_from(), 101 * HOUR);
    }

    #[test]
    fn a_floor_that_is_saved_counts_once_the_clock_is_set_right() {
        let (_directory, file) = on_disk();
        let mut held = two_keys();
        let floor = held.revoke(KeyMaterial::from_random(&Zeroizing::new([3; 80])), 0, at(100 * HOUR)).generation;
        file.save(&encode(&held, "test", at(100 * HOUR))).unwrap();
        let too_early = Now { wall: HOUR, mono: 24 * HOUR };
        let mut held = file.load(KeySettings::default(), too_early).unwrap().unwrap().held;
        assert_eq!(held.ring().floor(), 0);
        held.drop_faulty(Now { wall: 100 * HOUR + 5_000, mono: 24 * HOUR + 4_000 });
        assert_eq!(held.ring().floor(), floor);
    }

    #[test]
    fn expired_keys_are_neither_saved_nor_restored() {
        let (_directory, file) = on_disk();
        file.save(&encode(&two_keys(), "test", at(132 * HOUR + 1))).unwrap();
        let restored = load(&file).unwrap().unwrap();
        assert_eq!(restored.held.ring().keys().len(), 1);
        let restored = file.load(KeySettings::default(), at(200 * HOUR)).unwrap().unwrap();
        assert!(restored.held.ring().keys().is_empty());
    }

    #[test]
    fn keys_that_cannot_be_are_skipped_with_their_faults() {
        let (_directory, file) = on_disk();
        file.save(&encode(&two_keys(), "test", at(100 * HOUR))).unwrap();
        let restored = file.load(KeySettings::default(), at(50 * HOUR)).unwrap().unwrap();
        assert_eq!(restored.faults.count(), 2);
        assert!(restored.held.ring().keys().is_empty());
    }

    #[test]
    fn a_file_cut_short_is_refused() {
        let (_directory, file) = on_disk();
        let contents = encode(&two_keys(), "test", at(100 * HOUR));
        write(&file, &contents[..contents.len() - 1]);
        assert!(refusal(&file).ends_with("is not this node's ring: it is damaged or cut short"));
        write(&file, b"short");
        assert!(refusal(&file).ends_with("5 bytes are too few"));
        write(&file, &[0xff; 500]);
        assert!(refusal(&file).ends_with("it does not begin like one"));
    }

    #[test]
    fn garbage_behind_a_good_digest_is_refused() {
        let (_directory, file) = on_disk();
        let body = [0xff; 100];
        write(&file, &[&MAGIC[..], &sha256(&body), &body].concat());
        assert!(refusal(&file).contains("is not this node's ring: "), "{}", refusal(&file));
    }

    #[test]
    fn a_ring_of_another_farm_is_refused() {
        let (directory, file) = on_disk();
        file.save(&encode(&two_keys(), "test", at(100 * HOUR))).unwrap();
        let other = RingFile::open(directory.path(), "other", true).unwrap();
        assert!(refusal(&other).ends_with("it is of farm \"test\", this is \"other\""));
    }

    #[test]
    fn huge_files_links_directories_and_open_modes_are_refused_unread() {
        let (directory, file) = on_disk();
        let path = file.path();
        write(&file, b"");
        OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
        assert!(refusal(&file).ends_with("1099511627776 bytes are more than 65536"));
        file.save(&encode(&two_keys(), "test", at(100 * HOUR))).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(refusal(&file).ends_with("its mode is 0640, it must be 0600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let elsewhere = directory.path().join("elsewhere");
        fs::rename(&path, &elsewhere).unwrap();
        symlink(&elsewhere, &path).unwrap();
        assert!(refusal(&file).starts_with("cannot read "));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(refusal(&file).ends_with("it is not a regular file"));
    }
}
