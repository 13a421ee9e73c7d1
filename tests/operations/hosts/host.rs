//! Debian hosts of a test's own: systemd as process 1, an address, a link that can be cut, a power switch.
//!
//! Each is an overlay over one base system, booted by systemd-nspawn in a network of [`Network`]'s. They share the kernel
//! and its clock, and can reach each other and the test, nothing else: what they install comes from the base.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use testkit::namespaces::{NetHost, Network, run};
use testkit::watcher::{Process, runs};

/// How long a host may take to boot, or to shut down in order. Both take a second or two; the machine may be busy.
const BOOT_WITHIN: Duration = Duration::from_secs(120);

/// A host, off until it is booted. Switched off without a word when dropped.
#[derive(Debug)]
pub struct Host {
    name: String,
    net: NetHost,
    dir: PathBuf,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    unshare: Process,
    init: Pid,
}

impl Host {
    /// A new host called `name` over the system in `base`, with its own files in `dir/name`, and with the next address in
    /// `network`. Its root trusts the SSH key in `public_key`.
    pub fn new(network: &Network, dir: &Path, base: &Path, name: &str, public_key: &str) -> Self {
        let dir = dir.join(name);
        for part in ["upper", "work", "root"] {
            fs::create_dir_all(dir.join(part)).expect("a folder for the host");
        }
        let host = Self { name: name.to_owned(), net: network.host(), dir, running: None };
        let folders = ["upper", "work"].map(|part| host.dir.join(part).display().to_string());
        let options = format!("lowerdir={},upperdir={},workdir={}", base.display(), folders[0], folders[1]);
        let root = host.root().display().to_string();
        run("mount", ["-t", "overlay", "-o", &options, "overlay", &root]);
        // A name of its network that holds in every PID namespace.
        File::create(host.dir.join("net")).expect("a file to mount on");
        let namespace = host.net.namespace();
        run("mount", [Path::new("--bind"), &namespace, &host.dir.join("net")]);
        host.write("etc/hostname", &format!("{name}\n"));
        fs::create_dir_all(host.root().join("root/.ssh")).expect("a folder for keys");
        host.write("root/.ssh/authorized_keys", public_key);
        let keys = Command::new("ssh-keygen").arg("-A").arg("-f").arg(host.root()).output();
        let keys = keys.expect("ssh-keygen (package openssh-client)");
        assert!(keys.status.success(), "host keys for {name}: {}", String::from_utf8_lossy(&keys.stderr));
        host
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        self.net.address(0)
    }

    /// Its files, also while it is off.
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// Writes a file of the host's.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.root().join(path);
        fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// Switches it on, and waits until systemd has started all that it should. Returns how long that took.
    pub fn boot(&mut self) -> Duration {
        let start = Instant::now();
        self.switch_on();
        self.wait_until_it_is(start, &["running", "degraded"]);
        start.elapsed()
    }

    /// Switches it on, and waits until it can be logged in to.
    pub fn switch_on(&mut self) {
        assert!(self.running.is_none(), "host {} runs", self.name);
        let start = Instant::now();
        let console = File::create(self.dir.join("console.log")).expect("a file for the console");
        // In a PID namespace, where systemd-nspawn is process 1: whoever kills it, or is killed and has a watcher, ends the
        // host as well. By itself the host would live on.
        let mut command = Command::new("unshare");
        command
            .args(["--pid", "--fork", "--kill-child", "--mount-proc", "systemd-nspawn"])
            .args(["--register=no", "--keep-unit", "--boot", "--console=pipe", "--quiet"])
            .arg(format!("--directory={}", self.root().display()))
            .args([format!("--machine={}", self.name), format!("--hostname={}", self.name)])
            .arg(format!("--network-namespace-path={}", self.dir.join("net").display()))
            .stdin(Stdio::null())
            .stdout(console.try_clone().expect("the same file"))
            .stderr(console);
        let unshare = Process::spawn(&mut command).expect("unshare (package util-linux)");
        self.running = Some(Running { init: unshare.pid(), unshare });
        self.wait_until_it_is(start, &["starting", "running", "degraded"]);
    }

    fn wait_until_it_is(&mut self, start: Instant, wanted: &[&str]) {
        let mut state = String::new();
        // Not `--wait`: before the system bus is there that fails at once.
        while !wanted.contains(&state.as_str()) {
            if start.elapsed() > BOOT_WITHIN {
                let jobs = self.shell("systemctl list-jobs --no-pager");
                let jobs = String::from_utf8_lossy(&jobs.stdout);
                panic!("host {} is {state:?}, and waits for\n{jobs}\n{}", self.name, self.console());
            }
            thread::sleep(Duration::from_millis(100));
            let running = self.running.as_mut().expect("just set");
            if let Ok(Some(status)) = running.unshare.try_wait() {
                panic!("host {} ended as it booted, {status}; {}", self.name, self.console());
            }
            // Its first child prepares the way and ends; the one after it is the host's process 1.
            let Some(init) = child_of(running.unshare.pid()).and_then(child_of) else { continue };
            running.init = init;
            let output = self.command("systemctl").arg("is-system-running").output().expect("nsenter");
            state = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        }
    }

    /// What it wrote to its console.
    pub fn console(&self) -> String {
        let text = fs::read_to_string(self.dir.join("console.log")).unwrap_or_default();
        let last: Vec<_> = text.lines().rev().take(30).collect();
        let last: Vec<_> = last.into_iter().rev().collect();
        format!("the console of host {}:\n{}", self.name, last.join("\n"))
    }

    fn init(&self) -> Pid {
        self.running.as_ref().unwrap_or_else(|| panic!("host {} is off", self.name)).init
    }

    /// `program` on the host, as root.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init().to_string(), "--all", "--"]).arg(program);
        // A login there knows nothing of the test's environment.
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/root").env("LC_ALL", "C.UTF-8");
        command.stdin(Stdio::null());
        command
    }

    /// Runs a line of shell on the host.
    pub fn shell(&self, line: &str) -> Output {
        self.command("/bin/sh").args(["-c", line]).output().expect("nsenter")
    }

    /// Runs a line of shell on the host that must succeed; gives what it printed, trimmed.
    pub fn must(&self, line: &str) -> String {
        let output = self.shell(line);
        let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).trim().to_owned());
        assert!(output.status.success(), "on {}: {line}: {}\n{out}\n{err}", self.name, output.status);
        out
    }

    /// Waits until a line of shell succeeds on the host; gives what it printed then, and how long it took.
    pub fn wait_for(&self, line: &str, within: Duration) -> (String, Duration) {
        let start = Instant::now();
        loop {
            let output = self.shell(line);
            let [out, err] =
                [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).trim().to_owned());
            if output.status.success() {
                return (out, start.elapsed());
            }
            assert!(
                start.elapsed() < within,
                "on {}, for {within:?}: {line}: {}\n{out}\n{err}",
                self.name,
                output.status
            );
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Shuts it down as its power button does: services are stopped in order.
    pub fn power_off(&mut self) {
        let init = self.init();
        // systemd(1): SIGRTMIN+4 starts poweroff.target. nix knows no real-time signals.
        let asked = Command::new("kill").args(["-s", "RTMIN+4", &init.to_string()]).status().expect("kill");
        assert!(asked.success(), "host {} cannot be shut down", self.name);
        self.wait_until_off();
    }

    /// Cuts its power: nothing on it has time for anything.
    pub fn crash(&mut self) {
        kill(self.init(), Signal::SIGKILL).unwrap_or_else(|error| panic!("host {}: {error}", self.name));
        self.wait_until_off();
    }

    fn wait_until_off(&mut self) {
        let running = self.running.take().expect("running");
        let (start, pid) = (Instant::now(), running.unshare.pid().as_raw().cast_unsigned());
        while runs(pid) {
            assert!(start.elapsed() < BOOT_WITHIN, "host {} does not end; {}", self.name, self.console());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether it is on.
    pub fn is_on(&self) -> bool {
        self.running.is_some()
    }

    /// Takes its network link down, as pulling the cable out does: nobody is told.
    pub fn cut(&self) {
        self.net.cut(0);
    }

    /// Puts the cable in again.
    pub fn heal(&self) {
        self.net.heal(0);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.running.take());
        // Whatever of it still ends holds the mounts for a moment; they go with the test's namespaces in any case.
        for mounted in [self.root(), self.dir.join("net")] {
            drop(Command::new("umount").arg("--lazy").arg(&mounted).output());
        }
    }
}

/// The first child of a process: what systemd-nspawn has booted.
fn child_of(parent: Pid) -> Option<Pid> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok().map(Pid::from_raw)
}
