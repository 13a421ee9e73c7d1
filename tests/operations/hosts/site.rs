//! A farm on hosts of its own, set up from a control host by the playbooks that operators use.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use resumed::status::FarmStatus;

use super::host::Host;
use testkit::ats::Certificate;
use testkit::farm::{built, wait_for};
use testkit::namespaces::Network;
use testkit::release::previous_package;
use testkit::watcher::Folder;

/// The name in the proxies' certificate.
pub const SERVER_NAME: &str = "farm.test";

/// The test's own address among the hosts: that of their load balancer.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 254);

/// The user on each host who may use the control socket; every Debian has this one.
pub const OPERATOR: &str = "games";

/// Hosts with a proxy each, three brokers on the same or on others, and one host to control them.
#[derive(Debug)]
pub struct Site {
    /// The proxies: `a`, `b` and `c`, which are the brokers too; or `a` and `b`.
    pub hosts: Vec<Host>,
    /// The brokers that have hosts of their own: none, or `x`, `y` and `z`.
    pub brokers: Vec<Host>,
    /// Has Ansible, the packages and the secrets; of the farm itself nothing.
    pub control: Host,
    dir: Folder,
}

/// What a playbook did.
#[derive(Clone, Debug)]
pub struct Played {
    /// Whether it succeeded everywhere.
    pub succeeded: bool,
    /// All that it printed.
    pub text: String,
    /// Tasks that changed something, over all hosts.
    pub changed: u32,
    /// How long it took.
    pub took: Duration,
}

/// The package `name` as `make deb` builds it.
pub fn package(name: &str, revision: u32) -> PathBuf {
    let program = built("resumed");
    let target = program.ancestors().nth(2).expect("a target folder");
    let file = target.join(format!("debian/{name}_{}-{revision}_amd64.deb", env!("CARGO_PKG_VERSION")));
    assert!(file.is_file(), "{} is missing: make deb REVISION={revision}", file.display());
    file
}

/// The version of `package`, from its file's name.
pub fn version(package: &Path) -> String {
    let name = package.file_name().expect("a file").to_string_lossy();
    name.split('_').nth(1).expect("name_version_architecture.deb").to_owned()
}

/// Where hosts are kept: on a file system that overlays can lie on.
fn within() -> PathBuf {
    let within = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hosts");
    fs::create_dir_all(&within).expect("a folder for hosts");
    within
}

/// A new folder for the hosts of one test.
pub fn folder() -> Folder {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    Folder::within(&within(), &format!("run-{}-{number}", std::process::id()))
}

/// The systems that hosts begin with.
#[derive(Clone, Debug)]
pub struct Bases {
    /// Debian 12.
    pub bookworm: PathBuf,
    /// Debian 13.
    pub trixie: PathBuf,
}

/// The systems that all hosts begin with. They are made if they are not there yet, beside each other, which takes some
/// minutes.
pub fn bases() -> Bases {
    let script = testkit::tree().join("tests/operations/hosts/base.sh");
    let make = |release: &str| Command::new(&script).arg(within()).args([release, "man-db"]).spawn();
    let made = ["bookworm", "trixie"].map(|release| (release, make(release).expect("tests/operations/hosts/base.sh")));
    let [bookworm, trixie] = made.map(|(release, mut script)| {
        assert!(script.wait().expect("the script").success(), "no base system of {release}");
        within().join(release)
    });
    Bases { bookworm, trixie }
}

impl Site {
    /// Boots three hosts with a broker and a proxy each, over the system in `base`.
    pub fn boot(network: &Network, base: &Path) -> Self {
        Self::boot_all(network, base, &["a", "b", "c"], None)
    }

    /// Boots two proxies over the system in `base`, and three brokers over that in `brokers_base`.
    pub fn boot_with_brokers_apart(network: &Network, base: &Path, brokers_base: &Path) -> Self {
        Self::boot_all(network, base, &["a", "b"], Some(brokers_base))
    }

    fn boot_all(network: &Network, base: &Path, proxies: &[&str], brokers_base: Option<&Path>) -> Self {
        let tree = testkit::tree();
        let dir = folder();
        let key = dir.path().join("id_ed25519");
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "control", "-f"])
            .arg(&key)
            .status()
            .expect("ssh-keygen (package openssh-client)");
        assert!(made.success(), "no SSH key");
        let public_key = fs::read_to_string(key.with_extension("pub")).expect("the public key");
        let host = |base, name| Host::new(network, dir.path(), base, name, &public_key);
        let hosts = proxies.iter().map(|name| host(base, name)).collect();
        let brokers = brokers_base.into_iter().flat_map(|base| ["x", "y", "z"].map(|name| host(base, name))).collect();
        let mut site = Self { hosts, brokers, control: host(base, "control"), dir };
        // As the names would be in DNS.
        let names: String = site.all().map(|host| format!("{} {}\n", host.address(), host.name())).collect();
        for host in site.all() {
            host.write("etc/hosts", &format!("127.0.0.1 localhost\n{names}"));
        }
        for host in site.hosts.iter_mut().chain(&mut site.brokers).chain([&mut site.control]) {
            host.boot();
        }
        site.furnish_control(tree, &key);
        site
    }

    /// Every host, the one that controls them last.
    pub fn all(&self) -> impl Iterator<Item = &Host> {
        self.hosts.iter().chain(&self.brokers).chain([&self.control])
    }

    /// A folder for what the test itself runs.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn furnish_control(&self, tree: &Path, key: &Path) {
        let control = &self.control;
        control.must(
            "apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -qy install ansible-core openssh-client",
        );
        let root = control.root();
        let copy = root.join("root/.ssh/id_ed25519");
        fs::copy(key, &copy).expect("the key");
        // ssh refuses a key that others may read.
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o600)).expect("the key's mode");
        let copied = Command::new("cp").arg("-rL").arg(tree.join("ansible")).arg(root.join("srv/ansible")).status();
        assert!(copied.expect("cp").success(), "the playbooks are copied");
        fs::create_dir_all(root.join("srv/farm/group_vars")).expect("a folder for the inventory");
        for name in ["resumed", "resumed-trafficserver"] {
            for package in [previous_package(name), package(name, 1)] {
                fs::copy(&package, root.join("srv").join(package.file_name().expect("a name"))).expect("a package");
            }
        }
        let example = tree.join("ansible/inventory/example/group_vars");
        for group in ["brokers.yml", "proxies.yml"] {
            fs::copy(example.join(group), root.join("srv/farm/group_vars").join(group))
                .expect("the example's variables");
        }
        control.write("srv/farm/hosts.yml", &self.inventory());
        let certificate = Certificate::self_signed(SERVER_NAME);
        fs::write(root.join("srv/farm.test.pem"), &certificate.pem).expect("the certificate");
        fs::write(root.join("srv/farm.test.key"), &certificate.key).expect("its key");
        let first = version(&package("resumed", 1));
        let variables = VARIABLES.replace("FIRST", &first).replace("OPERATOR", OPERATOR);
        control.write("srv/farm/group_vars/all.yml", &variables);
        // Tells the load balancer to send nobody to a host any more, or to send them again.
        let tell = "exec 3<>/dev/tcp/10.79.0.254/9999; echo set server farm/$2 state $1 >&3; cat <&3";
        control.write("srv/balancer", &format!("#!/bin/bash\n{tell}\n"));
        control.must("chmod 755 /srv/balancer");
    }

    fn inventory(&self) -> String {
        let members: String = self
            .hosts
            .iter()
            .chain(&self.brokers)
            .map(|host| format!("    {}: {{ansible_host: {}}}\n", host.name(), host.address()))
            .collect();
        let group =
            |hosts: &[Host]| hosts.iter().map(|host| format!("{}: ", host.name())).collect::<Vec<_>>().join(", ");
        let brokers = if self.brokers.is_empty() { &self.hosts } else { &self.brokers };
        format!(
            "all:\n  hosts:\n{members}  children:\n    brokers:\n      hosts: {{{}}}\n    proxies:\n      hosts: {{{}}}\n",
            group(brokers),
            group(&self.hosts)
        )
    }

    /// Puts packages of this revision onto the control host whose daemon ends as soon as it is started. Returns their
    /// version.
    pub fn offer_broken_package(&self, revision: &str) -> String {
        for name in ["resumed", "resumed-trafficserver"] {
            let folder = self.dir().join(format!("{name}-{revision}"));
            let dpkg_deb = |words: &[&Path]| {
                let done = Command::new("dpkg-deb").args(words).output().expect("dpkg-deb");
                assert!(done.status.success(), "dpkg-deb {words:?}: {}", String::from_utf8_lossy(&done.stderr));
            };
            dpkg_deb(&[Path::new("--raw-extract"), &package(name, 1), &folder]);
            let control = folder.join("DEBIAN/control");
            let text = fs::read_to_string(&control).expect("the control file");
            let versions = ["1", revision].map(|revision| format!("{}-{revision}\n", env!("CARGO_PKG_VERSION")));
            fs::write(&control, text.replace(&versions[0], &versions[1])).expect("the control file");
            if name == "resumed" {
                fs::write(folder.join("usr/bin/resumed"), "#!/bin/sh\nexit 1\n").expect("a daemon that ends");
            }
            let file = format!("srv/{name}_{}-{revision}_amd64.deb", env!("CARGO_PKG_VERSION"));
            dpkg_deb(&[Path::new("--build"), &folder, &self.control.root().join(file)]);
        }
        format!("{}-{revision}", env!("CARGO_PKG_VERSION"))
    }

    /// Runs `ansible-playbook` with these words on the control host.
    pub fn play(&self, words: &str) -> Played {
        let start = Instant::now();
        let line = format!(
            "cd /srv/ansible && ANSIBLE_HOST_KEY_CHECKING=no exec ansible-playbook -i /srv/farm/hosts.yml {words} 2>&1"
        );
        let output = self.control.shell(&line);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (_, recap) = text.split_once("PLAY RECAP").unwrap_or((&text, ""));
        let changed =
            recap.split_whitespace().filter_map(|word| word.strip_prefix("changed=")?.parse::<u32>().ok()).sum();
        Played { succeeded: output.status.success(), changed, took: start.elapsed(), text }
    }

    /// Runs a playbook that must succeed.
    pub fn must_play(&self, words: &str) -> Played {
        let played = self.play(words);
        assert!(played.succeeded, "ansible-playbook {words} failed:\n{}", played.text);
        played
    }

    /// What the daemon on `host` says of the farm.
    pub fn status(&self, host: &Host) -> FarmStatus {
        serde_json::from_str(&host.must("resumed status --json")).expect("status --json")
    }

    /// The index of the host that leads; waits for one.
    pub fn leader(&self) -> usize {
        let start = Instant::now();
        loop {
            let seen: Vec<_> =
                self.hosts.iter().filter(|host| host.is_on()).map(|host| self.status(host).leader).collect();
            if let Some(leader) = seen.iter().flatten().next() {
                return self.hosts.iter().position(|host| host.name() == leader).expect("one of the hosts");
            }
            assert!(start.elapsed() < Duration::from_secs(60), "no host knows a leader: {seen:?}");
        }
    }

    /// Waits until the broker of `host` hears of no more than `others` more.
    pub fn wait_until_brokers_part(&self, host: &Host, others: usize, within: Duration) -> Duration {
        host.wait_for(&format!("test $(rabbitmqctl --quiet eval 'length(nodes()).') = {others}"), within).1
    }

    /// Waits until the broker of `host` is in a cluster with `others` more.
    pub fn wait_for_brokers(&self, host: &Host, others: usize, within: Duration) -> Duration {
        let brokers = others + 1;
        let line = format!(
            "rabbitmqctl --quiet cluster_status --formatter json | python3 -c \
             'import json, sys; sys.exit(len(json.load(sys.stdin)[\"running_nodes\"]) != {brokers})'"
        );
        host.wait_for(&line, within).1
    }

    /// Waits until every host says that the whole farm, `nodes` of them, is in step.
    pub fn wait_in_step(&self, nodes: usize) -> Duration {
        let start = Instant::now();
        for host in self.hosts.iter().filter(|host| host.is_on()) {
            loop {
                host.must("resumed status --wait-in-step 90s");
                let seen = self.status(host).nodes.len();
                if seen == nodes {
                    break;
                }
                assert!(start.elapsed() < Duration::from_secs(90), "{} sees {seen} nodes, not {nodes}", host.name());
            }
        }
        start.elapsed()
    }

    /// Waits until every host that is on says of itself that it has a broker, hears the leader, and lacks no session.
    ///
    /// What [`Self::wait_in_step`] hears of a host that was cut off may be what the others knew before.
    pub fn wait_until_warm(&self) {
        const WELL: [&str; 3] = ["resumed_broker_connected 1", "resumed_in_step 1", "resumed_warmup_lacking 0"];
        for host in self.hosts.iter().filter(|host| host.is_on()) {
            let url = format!("http://{}:9464/metrics", host.address());
            wait_for(&format!("{} connected, in step and warm", host.name()), || {
                let mut answer = ureq::get(&url).call().map_err(|error| error.to_string())?;
                let text = answer.body_mut().read_to_string().map_err(|error| error.to_string())?;
                let missing: Vec<_> =
                    WELL.into_iter().filter(|line| !text.lines().any(|shown| shown == *line)).collect();
                if missing.is_empty() { Ok(()) } else { Err(format!("not {missing:?}")) }
            });
        }
    }
}

const VARIABLES: &str = "\
resumed_farm: test
farm_secrets_directory: /root/farm-secrets
resumed_deb: /srv/resumed_{{ packages_version | default('FIRST') }}_amd64.deb
trafficserver_plugin_deb: /srv/resumed-trafficserver_{{ packages_version | default('FIRST') }}_amd64.deb
resumed_metrics_listen: 0.0.0.0:9464
trafficserver_certificates:
  - certificate: /srv/farm.test.pem
    key: /srv/farm.test.key
trafficserver_records:
  proxy.config.http.server_ports: STRING 443:ssl
farm_check_server_name: farm.test
resumed_settings: {keys: {interval: 1m}}
resumed_operators: [OPERATOR]
rabbitmq_unstick_after: 20
rollout_before_command: /srv/balancer drain
rollout_after_command: /srv/balancer ready
";
