//! Which Traffic Server the proxies of tests are of, and where its parts are.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::records::to_yaml;
use crate::tree;
use crate::version::Version;

/// In the environment, the prefix that the Traffic Server was installed to that is tested; empty or unset: Debian's package
/// on this machine.
const CHOICE: &str = "ATS";

/// An installed Traffic Server.
#[derive(Clone, Debug)]
pub struct TrafficServer {
    prefix: PathBuf,
    programs: PathBuf,
    libraries: PathBuf,
    modules: PathBuf,
    version: Version,
}

impl TrafficServer {
    /// The one whose prefix ATS in the environment names: by its path from the project's tree or from `/`. Panics if there
    /// is none.
    pub fn chosen() -> &'static Self {
        static CHOSEN: OnceLock<TrafficServer> = OnceLock::new();
        CHOSEN.get_or_init(|| {
            let named = std::env::var_os(CHOICE).filter(|path| !path.is_empty());
            let found = named.as_ref().map_or_else(|| Self::at(Path::new("/usr")), |path| Self::at(&tree().join(path)));
            let chosen = found.unwrap_or_else(|fault| {
                panic!(
                    "{fault}: install the package trafficserver (make test does), or name another's prefix in {CHOICE}"
                )
            });
            // Past what the test runner withholds of a test that passes.
            let _told = writeln!(io::stderr(), "proxy: Traffic Server {}", chosen.version);
            chosen
        })
    }

    /// The one with this prefix: laid out as `make install` does, or as Debian's package is under `/usr`.
    pub fn at(prefix: &Path) -> Result<Self, String> {
        let find = |folders: &[&str], begins: &str| {
            let mut folders = folders.iter().map(|folder| prefix.join(folder));
            folders.find(|folder| names(folder).any(|name| name.starts_with(begins)))
        };
        let missing = |what: &str| format!("{} holds no Traffic Server: {what} not found", prefix.display());
        let programs = find(&["bin", "sbin"], "traffic_server").ok_or_else(|| missing("bin/traffic_server is"))?;
        let libraries =
            find(&["lib/trafficserver", "lib", "lib64"], "libts").ok_or_else(|| missing("its libraries are"))?;
        let modules = find(&["lib/trafficserver/modules", "libexec/trafficserver", "libexec", "lib/modules"], "")
            .ok_or_else(|| missing("its plugins are"))?;
        let version = Version::default();
        let mut found = Self { prefix: prefix.to_owned(), programs, libraries, modules, version };
        found.version = found.ask_version()?;
        Ok(found)
    }

    fn ask_version(&self) -> Result<Version, String> {
        let output = self.command("traffic_server").arg("--version").stdin(Stdio::null()).output();
        let output = output.map_err(|error| format!("{}/traffic_server: {error}", self.programs.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let after = text.split_once("Traffic Server ").and_then(|(_, after)| after.split_whitespace().next());
        let read = after.and_then(|word| word.parse().ok());
        read.ok_or_else(|| format!("{}/traffic_server --version says {output:?}", self.programs.display()))
    }

    /// A command that runs `program` of it. Its libraries are found though the prefix was moved since it was built.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.program(program));
        self.find_libraries(&mut command);
        command
    }

    /// Where `program` of it is.
    pub fn program(&self, program: &str) -> PathBuf {
        self.programs.join(program)
    }

    /// Lets what `command` starts find its libraries: those of Debian's package are found in any case.
    pub fn find_libraries(&self, command: &mut Command) {
        if self.prefix != Path::new("/usr") {
            command.env("LD_LIBRARY_PATH", &self.libraries);
        }
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Whether `traffic_manager` starts `traffic_server`, and `traffic_ctl` asks that. From 10.0 on it asks the server itself.
    pub fn has_manager(&self) -> bool {
        !self.version.at_least(10, 0)
    }

    /// Its settings file, and `settings`, lines of a `records.config`, as it reads them.
    pub fn records(&self, settings: &str) -> (&'static str, String) {
        if self.version.at_least(10, 0) {
            ("records.yaml", to_yaml(settings))
        } else {
            ("records.config", settings.to_owned())
        }
    }

    /// The lines of `runroot.yaml` that say where it is.
    pub fn layout(&self) -> String {
        format!(
            "exec_prefix: {}\nbindir: {}\nsbindir: {}\nincludedir: {}\nlibdir: {}\nlibexecdir: {}\n",
            self.prefix.display(),
            self.programs.display(),
            self.programs.display(),
            self.prefix.join("include").display(),
            self.libraries.display(),
            self.modules.display(),
        )
    }
}

/// What is in a folder.
fn names(folder: &Path) -> impl Iterator<Item = String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}
