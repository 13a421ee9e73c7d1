//! Servers and folders that end with this process, however it ends.
//!
//! Dropping a [`Process`] or a [`Folder`] ends it. Should this process be killed, or leave one behind in a static, a shell
//! that has been told of all of them sees its standard input end and does it instead.

use std::fs;
use std::io::{self, Write};
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, mkdtemp};

/// A child that leads a process group of its own: what the terminal sends to this process does not reach it. Killed with
/// its group when dropped.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Starts `command`.
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        // Locked throughout, so that `end_everything` misses nothing.
        let mut watched = watched();
        let child = command.process_group(0).spawn()?;
        watched.groups.push(child.id());
        watched.tell().unwrap_or_else(|error| panic!("the watcher of this process is gone: {error}"));
        Ok(Self(child))
    }

    /// Its process id, which is that of its group too.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id().cast_signed())
    }
}

impl Deref for Process {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Process {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing here may panic: it may run during a panic. What cannot be killed is dead already.
        if !matches!(self.0.try_wait(), Ok(Some(_))) {
            let _dead_already = killpg(self.pid(), Signal::SIGKILL);
            drop(self.0.wait());
        }
        let mut watched = watched();
        watched.groups.retain(|group| *group != self.0.id());
        drop(watched.tell());
    }
}

/// A folder. Removed with all that is in it when dropped.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// A new one in the system's folder for temporary files; its name begins with `prefix`.
    pub fn temporary(prefix: &str) -> Self {
        Self::temporary_in(&std::env::temp_dir(), prefix)
    }

    /// A new one in `parent`; its name begins with `prefix`.
    pub fn temporary_in(parent: &Path, prefix: &str) -> Self {
        Self::watch(mkdtemp(&parent.join(format!("{prefix}XXXXXX"))).expect("a new folder"))
    }

    /// A new one of exactly this name.
    pub fn within(parent: &Path, name: &str) -> Self {
        let path = parent.join(name);
        fs::DirBuilder::new().mode(0o700).create(&path).expect("a new folder");
        Self::watch(path)
    }

    fn watch(path: PathBuf) -> Self {
        let mut watched = watched();
        watched.folders.push(path.clone());
        watched.tell().unwrap_or_else(|error| panic!("the watcher of this process is gone: {error}"));
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nothing here may panic: it may run during a panic.
        drop(fs::remove_dir_all(&self.0));
        let mut watched = watched();
        watched.folders.retain(|folder| *folder != self.0);
        drop(watched.tell());
    }
}

/// Kills all that was started and removes all folders, at once. Whoever wants to start something more, or to drop
/// something, waits for ever: for a process that is about to exit.
pub fn end_everything() {
    let mut watched = watched();
    if let Some(mut shell) = watched.shell.take() {
        drop(shell.stdin.take());
        drop(shell.wait());
    }
    let start = Instant::now();
    while watched.groups.iter().any(|group| runs(*group)) && start.elapsed() < Duration::from_secs(5) {
        thread::sleep(Duration::from_millis(5));
    }
    std::mem::forget(watched);
}

/// Lets all that was started live on after this process, and all folders stay, as long as nobody drops them. Returns the
/// ids of the processes, the one that was started first first.
pub fn release_everything() -> Vec<u32> {
    let mut watched = watched();
    if let Some(mut shell) = watched.shell.take() {
        let told = shell.stdin.take().map(|mut stdin| stdin.write_all(b"done\n"));
        assert!(matches!(told, Some(Ok(()))), "the watcher of this process is gone: {told:?}");
        shell.wait().expect("the watcher is our child");
    }
    watched.folders.clear();
    std::mem::take(&mut watched.groups)
}

/// Whether the process of this id runs: a dead one that nobody has waited for does not.
pub fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).is_some_and(|state| state != "Z")
}

struct Watched {
    shell: Option<Child>,
    groups: Vec<u32>,
    folders: Vec<PathBuf>,
}

static WATCHED: Mutex<Watched> = Mutex::new(Watched { shell: None, groups: Vec::new(), folders: Vec::new() });

fn watched() -> MutexGuard<'static, Watched> {
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watched {
    /// Everything in one write, so that the shell never knows a half.
    fn tell(&mut self) -> io::Result<()> {
        let mut text = "groups".to_owned();
        for group in &self.groups {
            text.push_str(&format!(" {group}"));
        }
        for folder in &self.folders {
            text.push_str(&format!("\nfolder {}", folder.display()));
        }
        text.push('\n');
        let shell = match &mut self.shell {
            Some(shell) => shell,
            // Once all is released or ended, there is nobody to tell.
            None if self.groups.is_empty() && self.folders.is_empty() => return Ok(()),
            none => none.insert(start_shell()?),
        };
        shell.stdin.as_mut().expect("piped").write_all(text.as_bytes())
    }
}

fn start_shell() -> io::Result<Child> {
    Command::new("/bin/sh")
        .args(["-c", WATCH, "watcher"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
}

const WATCH: &str = r#"
trap '' INT TERM HUP
groups=
while read -r word rest; do
    case $word in
        groups) groups=$rest; set -- ;;
        folder) set -- "$@" "$rest" ;;
        done) exit 0 ;;
    esac
done
for group in $groups; do
    kill -s KILL -- "-$group"
done
for turn in 1 2 3 4 5 6 7 8 9 10; do
    rm -rf -- "$@" && break
    sleep 0.1
done
"#;
