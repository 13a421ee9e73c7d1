//! Networks and mounts of a test's own: hosts with addresses, links that can be cut, file systems that can fill up.
//!
//! All of it lies in namespaces that end with the test's last thread and process, so nothing is left behind and nothing of
//! the machine is touched. Needs root and iproute2; a test that lacks either fails and says so.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::{Pid, geteuid};

use crate::watcher::Process;

/// Runs `test` on a thread with a network and mounts of its own, which all that it starts shares.
pub fn apart<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    assert!(geteuid().is_root(), "this test makes network and mount namespaces: run it as root");
    let alone = move || {
        unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS).expect("namespaces of this test's own");
        // What is mounted from here on is seen here only.
        run("mount", ["--make-rprivate", "/"]);
        run("ip", ["link", "set", "lo", "up"]);
        test()
    };
    thread::scope(|scope| scope.spawn(alone).join()).unwrap_or_else(|panic| resume_unwind(panic))
}

/// Moves the calling thread into new namespaces of these kinds, see unshare(2).
///
/// Called of libc and not of nix, whose feature for it the daemon would then be built with as well.
fn unshare(kinds: libc::c_int) -> io::Result<()> {
    // SAFETY: takes flags alone and touches no memory of this process.
    if unsafe { libc::unshare(kinds) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Moves the calling thread into that namespace, see setns(2).
fn enter(namespace: &File, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as it is borrowed; the call touches no memory of this process.
    if unsafe { libc::setns(namespace.as_raw_fd(), kind) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Runs a command that must succeed.
pub fn run<S: AsRef<OsStr>>(program: &str, words: impl IntoIterator<Item = S>) {
    let mut command = Command::new(program);
    command.args(words);
    let output = command.output().unwrap_or_else(|error| panic!("{program}: {error}: is its package installed?"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn ip(words: &str) {
    run("ip", words.split(' '));
}

/// Hosts on `segments` networks; the test itself has address 254 in each of them.
pub struct Network {
    segments: u8,
    hosts: Cell<u8>,
}

impl Network {
    /// Call it within [`apart`].
    pub fn new(segments: u8) -> Self {
        for segment in 0..segments {
            ip(&format!("link add lan{segment} type bridge"));
            ip(&format!("addr add {}/24 dev lan{segment}", address(segment, 254)));
            ip(&format!("link set lan{segment} up"));
        }
        Self { segments, hosts: Cell::new(0) }
    }

    /// One more host, with a link to each network.
    pub fn host(&self) -> NetHost {
        let number = self.hosts.get() + 1;
        self.hosts.set(number);
        let mut holder = Command::new("unshare");
        holder.args(["--net", "sleep", "infinity"]).stdin(Stdio::null());
        let holder = Process::spawn(&mut holder).expect("unshare (package util-linux)");
        let host = NetHost { number, holder };
        let (ours, start) = (fs::read_link("/proc/thread-self/ns/net").expect("our own network"), Instant::now());
        while fs::read_link(host.namespace()).is_ok_and(|theirs| theirs == ours) {
            assert!(start.elapsed() < Duration::from_secs(30), "unshare made no network namespace");
            thread::sleep(Duration::from_millis(5));
        }
        let pid = host.pid();
        for segment in 0..self.segments {
            let near = host.link(segment);
            ip(&format!("link add {near} type veth peer name eth{segment} netns {pid}"));
            ip(&format!("link set {near} master lan{segment} up"));
            let far = |words: &str| run("nsenter", format!("-t {pid} -n ip {words}").split(' '));
            far(&format!("addr add {}/24 dev eth{segment}", host.address(segment)));
            far(&format!("link set eth{segment} up"));
            far("link set lo up");
        }
        host
    }
}

fn address(segment: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 79, segment, host)
}

/// A host of a [`Network`]: what runs on it shares the file system with everything else.
#[derive(Debug)]
pub struct NetHost {
    number: u8,
    holder: Process,
}

impl NetHost {
    /// The process that keeps its network.
    pub fn pid(&self) -> Pid {
        self.holder.pid()
    }

    /// Its address in a network.
    pub fn address(&self, segment: u8) -> Ipv4Addr {
        address(segment, self.number)
    }

    /// Takes its link to a network down, as pulling the cable out does: nobody is told, and nothing arrives.
    pub fn cut(&self, segment: u8) {
        ip(&format!("link set {} down", self.link(segment)));
    }

    /// Puts the cable in again.
    pub fn heal(&self, segment: u8) {
        ip(&format!("link set {} up", self.link(segment)));
    }

    fn link(&self, segment: u8) -> String {
        format!("h{}n{segment}", self.number)
    }

    /// Its network namespace.
    pub fn namespace(&self) -> PathBuf {
        namespace(self.pid())
    }
}

fn namespace(holder: Pid) -> PathBuf {
    PathBuf::from(format!("/proc/{holder}/ns/net"))
}

/// `program` on the host whose network that process keeps; here, if there is none.
pub fn command_at(holder: Option<Pid>, program: impl AsRef<OsStr>) -> Command {
    match holder {
        None => Command::new(program),
        Some(pid) => {
            // nsenter becomes the program: the process id is the program's.
            let mut command = Command::new("nsenter");
            command.args(["-t", &pid.to_string(), "-n"]).arg(program);
            command
        }
    }
}

/// Does `what` on the host whose network that process keeps: sockets that it opens are of that host.
pub fn at<T: Send>(holder: Option<Pid>, what: impl FnOnce() -> T + Send) -> T {
    let Some(pid) = holder else { return what() };
    let there = move || {
        let network = File::open(namespace(pid)).expect("a host's network");
        enter(&network, libc::CLONE_NEWNET).expect("a thread at that host");
        what()
    };
    thread::scope(|scope| scope.spawn(there).join()).unwrap_or_else(|panic| resume_unwind(panic))
}

/// A small file system in memory, which cannot swap. Unmounted when dropped.
pub struct Tmpfs {
    at: PathBuf,
}

impl Tmpfs {
    /// Mounts one of so many bytes at `at`, which is made. Call it within [`apart`].
    pub fn mount(at: &Path, bytes: u64) -> Self {
        fs::create_dir(at).expect("a mount point");
        let at = at.to_owned();
        let mount = |options: &str| {
            let mut command = Command::new("mount");
            command.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&at);
            command.output().expect("mount").status.success()
        };
        // Kernels before 6.4 know no `noswap`; without swap tmpfs is safe there too.
        let mounted = mount(&format!("size={bytes},mode=0700,noswap")) || mount(&format!("size={bytes},mode=0700"));
        assert!(mounted, "no tmpfs could be mounted at {}", at.display());
        Self { at }
    }

    /// Fills it to the last byte with a file of that name.
    pub fn fill(&self, name: &str) {
        let mut file = File::create(self.at.join(name)).expect("a file");
        let zeros = [0; 4096];
        while std::io::Write::write_all(&mut file, &zeros).is_ok() {}
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // It goes with its namespace in any case; lazily, because a process may still have a file open.
        drop(Command::new("umount").arg("--lazy").arg(&self.at).output());
    }
}
