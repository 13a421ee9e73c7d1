//! Which RabbitMQ the brokers of tests are of, and how its programs are started.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use nix::unistd::{Pid, geteuid};

use crate::namespaces::command_at;
use crate::tree;
use crate::version::Version;

/// In the environment, where the RabbitMQ is that is tested; empty or unset: Debian's package on this machine.
const CHOICE: &str = "RABBITMQ";

/// In the environment, where another RabbitMQ is, for tests of two versions side by side.
const OTHER: &str = "RABBITMQ_NEXT";

/// Where Debian's package puts the scripts. Those in `sbin/` would switch to the user `rabbitmq`; these run as the caller.
const PACKAGED: &str = "usr/lib/rabbitmq/bin";

/// What a program in the root of another Debian finds on its path.
const PATH_THERE: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs `$3...` in the root `$1`, in the folder in which it was started if that is in there. The root gets the machine's
/// own devices, processes and names of hosts, and the folder `$2` with the files of tests, by mounts that end with the
/// program.
const ENTER: &str = r#"
set -e
root=$1
temporary=$2
shift 2
mkdir -p "$root$temporary"
for folder in /dev /proc /sys "$temporary"; do mount --rbind "$folder" "$root$folder"; done
touch "$root/etc/hosts"
mount --bind /etc/hosts "$root/etc/hosts"
folder=$PWD
[ -d "$root$folder" ] || folder=/
exec chroot "$root" env --chdir="$folder" "$@"
"#;

/// A RabbitMQ that brokers can be of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RabbitMq {
    /// Debian's package on this machine.
    Package,
    /// One that was unpacked into this folder: `sbin/rabbitmq-server` is in it. It runs on the Erlang of the path.
    Unpacked(PathBuf),
    /// That of another Debian, whose root file system this is (`scripts/broker-root.sh` makes some). It runs in there,
    /// with its own Erlang and its own libraries. Needs root.
    Root(PathBuf),
}

/// Says that `test` is not run, and why, past what the test runner withholds of a test that passes.
pub fn say_not_run(test: &str, why: &str) {
    let _told = writeln!(io::stderr(), "\n==> {test}: NOT RUN: {why}");
}

impl RabbitMq {
    /// The one that RABBITMQ in the environment names: a folder, by its path from the project's tree or from `/`.
    /// Panics if there is none.
    pub fn chosen() -> &'static Self {
        static CHOSEN: OnceLock<RabbitMq> = OnceLock::new();
        CHOSEN.get_or_init(|| match std::env::var_os(CHOICE).filter(|path| !path.is_empty()) {
            None => Self::package().unwrap_or_else(|fault| panic!("{fault}")),
            Some(path) => Self::at(&tree().join(path)).unwrap_or_else(|fault| panic!("{CHOICE}: {fault}")),
        })
    }

    /// The one that RABBITMQ_NEXT in the environment names, beside the chosen one; without it, says that `test` is not run.
    /// Panics if there is none where it points to.
    pub fn other(test: &str) -> Option<Self> {
        let Some(path) = std::env::var_os(OTHER).filter(|path| !path.is_empty()) else {
            say_not_run(test, &format!("{OTHER} names no second RabbitMQ"));
            return None;
        };
        Some(Self::at(&tree().join(path)).unwrap_or_else(|fault| panic!("{OTHER}: {fault}")))
    }

    fn package() -> Result<Self, String> {
        if Path::new("/").join(PACKAGED).join("rabbitmq-server").exists() {
            return Ok(Self::Package);
        }
        Err(format!("/{PACKAGED}/rabbitmq-server is missing: install the package rabbitmq-server (make test does)"))
    }

    /// The one in `folder`, by what is in there.
    pub fn at(folder: &Path) -> Result<Self, String> {
        if folder == Path::new("/") {
            return Self::package();
        }
        if folder.join("sbin/rabbitmq-server").exists() && folder.join("plugins").exists() {
            return Ok(Self::Unpacked(folder.to_owned()));
        }
        if !folder.join(PACKAGED).join("rabbitmq-server").exists() {
            return Err(format!(
                "{} holds no RabbitMQ: neither sbin/rabbitmq-server and plugins, as one that was unpacked, nor \
                 {PACKAGED}/rabbitmq-server, as the root of a Debian",
                folder.display()
            ));
        }
        if !geteuid().is_root() {
            return Err(format!("{} is the root of a Debian: run the test as root", folder.display()));
        }
        Ok(Self::Root(folder.to_owned()))
    }

    /// A command that runs `program` of it, as `rabbitmqctl`, on the host whose network that process keeps; here, if
    /// there is none. What it becomes has the process id of the command.
    pub fn command(&self, holder: Option<Pid>, program: &str) -> Command {
        match self {
            Self::Package | Self::Unpacked(_) => command_at(holder, self.programs().join(program)),
            Self::Root(root) => within(root, holder, Path::new("/").join(PACKAGED).join(program)),
        }
    }

    /// The same for `epmd`, which names the brokers of a host to each other and comes with Erlang.
    pub fn epmd(&self, holder: Option<Pid>) -> Command {
        match self {
            Self::Package | Self::Unpacked(_) => command_at(holder, "epmd"),
            Self::Root(root) => within(root, holder, "epmd"),
        }
    }

    /// Its version, by what lies there.
    pub fn version(&self) -> Version {
        // The script is a link into the broker's home in Debian's packages.
        let script = self.programs().join("rabbitmq-server");
        let script = fs::canonicalize(&script).unwrap_or(script);
        let plugins = script.ancestors().nth(2).map(|home| home.join("plugins"));
        let entries = plugins.and_then(|plugins| fs::read_dir(plugins).ok()).into_iter().flatten().flatten();
        // `rabbit-4.0.5` is the broker's own library.
        let mut found = entries.filter_map(|entry| entry.file_name().to_str()?.strip_prefix("rabbit-")?.parse().ok());
        found.next().unwrap_or_else(|| panic!("{self:?} has no rabbit-VERSION among its plugins"))
    }

    fn programs(&self) -> PathBuf {
        match self {
            Self::Package => Path::new("/").join(PACKAGED),
            Self::Unpacked(folder) => folder.join("sbin"),
            Self::Root(root) => root.join(PACKAGED),
        }
    }
}

fn within(root: &Path, holder: Option<Pid>, program: impl AsRef<OsStr>) -> Command {
    let mut command = command_at(holder, "unshare");
    command
        .args(["--mount", "/bin/sh", "-c", ENTER, "enter"])
        .args([root, std::env::temp_dir().as_path()])
        .arg(program)
        .env("PATH", PATH_THERE)
        // A Debian without locales of its own has this one.
        .env("LC_ALL", "C.UTF-8");
    command
}
