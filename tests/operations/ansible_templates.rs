//! What the roles in `ansible/` write for each generation of what they configure, and what they refuse and do not show, as Ansible
//! itself does it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::Group;
use serde_json::{Value, json};
use testkit::broker::Broker;
use testkit::farm::built;
use testkit::watcher::Folder;

/// `program` of Ansible, or what runs one, as on a control host that has its files in `folder` and finds programs in `bin` there.
fn control_host(program: &str, folder: &Path) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(program);
    command
        .env("PATH", format!("{}:{path}", folder.join("bin").display()))
        .env("ANSIBLE_CONFIG", testkit::tree().join("ansible/ansible.cfg"))
        .env("ANSIBLE_LOCAL_TEMP", folder)
        .env("ANSIBLE_REMOTE_TEMP", folder)
        .current_dir(folder);
    command
}

/// Whether `command` succeeded, and what it said.
fn outcome(command: &mut Command) -> (bool, String) {
    let output = command.output().expect("ansible (package ansible-core)");
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    (output.status.success(), said)
}

/// The words of what Ansible `said`, without the lines and quotes into which it breaks a message.
fn told(said: &str) -> String {
    said.split_whitespace().collect::<Vec<_>>().join(" ").replace("\\\"", "\"").replace("''", "'")
}

/// What has Ansible act on this machine alone.
const HERE: [&str; 4] = ["--inventory", "localhost,", "--connection", "local"];

/// `program` of Ansible with `words`, on this machine alone; what it said.
fn ansible(program: &str, folder: &Path, words: &[&str]) -> String {
    let (succeeded, said) = outcome(control_host(program, folder).args(words).args(HERE));
    assert!(succeeded, "{said}");
    said
}

/// Plays the tasks `from` of `role` with `variables` on this machine, or what of it `within` shows; whether that succeeded, and
/// what Ansible said.
fn play_tasks(
    folder: &Path,
    (role, from): (&str, &str),
    variables: &Value,
    within: &[&str],
    words: &[&str],
) -> (bool, String) {
    let task = format!("ansible.builtin.include_role: {{name: {role}, tasks_from: {from}}}");
    let play = format!("- hosts: localhost\n  gather_facts: false\n  tasks:\n    - {task}\n");
    fs::create_dir_all(folder.join("play")).expect("a folder");
    fs::write(folder.join("play/tasks.yml"), play).expect("a playbook");
    let variables = variables.to_string();
    let play = ["ansible-playbook", "play/tasks.yml", "--extra-vars", &variables];
    let all: Vec<_> = within.iter().chain(&play).chain(&HERE).chain(words).collect();
    outcome(control_host(all[0], folder).args(&all[1..]))
}

/// Runs the rest of its words with an /etc of their own, in which a host is as the package has made it: the group "resumed", and a
/// folder for each of its configuration and that of RabbitMQ. What it adds, `etc` beside the words' folder holds. Needs root.
const ON_A_HOST: [&str; 6] = [
    "unshare",
    "--mount",
    "/bin/sh",
    "-c",
    "set -e; mount -t tmpfs -o mode=755 etc /mnt; cp -a /etc/. /mnt; mkdir -p /mnt/resumed /mnt/rabbitmq; cp -r etc/. /mnt; \
     mount --move /mnt /etc; grep -q ^resumed: /etc/group || echo resumed:x:64000: >>/etc/group; exec \"$@\"",
    "on-a-host",
];

/// A template of a role with the role's own defaults and variables, and `facts` on top.
fn rendered(role: &str, template: &str, facts: &Value) -> String {
    let role = testkit::tree().join("ansible/roles").join(role);
    let folder = Folder::temporary("resumed-");
    let file = folder.path().join("rendered");
    let arguments = format!("src={} dest={}", role.join("templates").join(template).display(), file.display());
    let facts = facts.to_string();
    let own = ["defaults/main.yml", "vars/main.yml"].map(|own| role.join(own));
    let own = own.iter().filter(|own| own.exists()).map(|own| format!("@{}", own.display())).collect::<Vec<_>>();
    let mut words = vec!["localhost", "--module-name", "ansible.builtin.template", "--args", &arguments];
    for variables in own.iter().chain([&facts]) {
        words.extend(["--extra-vars", variables]);
    }
    ansible("ansible", folder.path(), &words);
    fs::read_to_string(file).expect("the rendered file")
}

/// `rabbitmq.conf` of one of `brokers` brokers, on a host whose package is RabbitMQ `version`.
fn rabbitmq_conf(version: &str, brokers: usize) -> String {
    let names: Vec<_> = (1..=brokers).map(|number| format!("mq-{number}")).collect();
    let facts = json!({"rabbitmq_package": {"stdout": version}, "rabbitmq_brokers": names});
    rendered("rabbitmq", "rabbitmq.conf.j2", &facts)
}

/// The keys and values of a `rabbitmq.conf`, in their order.
fn settings(conf: &str) -> Vec<&str> {
    conf.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

/// RabbitMQ up to 4.2 may keep its metadata in Mnesia, and then both sides of a split go on unless it is told otherwise. From
/// 4.3 on there is Khepri alone, where only a majority goes on: the setting would be without effect.
#[test]
fn a_broker_is_asked_to_pause_in_the_minority_where_that_has_an_effect() {
    const PAUSES: &str = "cluster_partition_handling = pause_minority";
    for (version, has_effect) in
        [("3.10.8", true), ("4.0.5", true), ("4.2.0", true), ("4.3.0", false), ("4.10.1", false)]
    {
        let conf = rabbitmq_conf(version, 3);
        assert_eq!(settings(&conf).contains(&PAUSES), has_effect, "RabbitMQ {version}:\n{conf}");
        assert!(settings(&conf).contains(&"net_ticktime = 15"), "RabbitMQ {version}:\n{conf}");
    }
}

#[test]
fn a_broker_alone_is_told_nothing_of_clusters() {
    let conf = rabbitmq_conf("4.0.5", 1);
    assert_eq!(settings(&conf), ["listeners.tcp = none", "max_message_size = 2097152"]);
}

/// The variables in the role's README for a Traffic Server that somebody built.
fn example_of_a_built_traffic_server() -> String {
    let readme = fs::read_to_string(testkit::tree().join("ansible/roles/trafficserver/README.md")).expect("the README");
    let (_, example) = readme.split_once("```yaml\n").expect("an example");
    example.split("```").next().unwrap_or_default().to_owned()
}

/// A host with a Traffic Server that somebody built, as far as the role looks at it, in a folder.
struct BuiltTrafficServer {
    folder: Folder,
}

impl BuiltTrafficServer {
    const RECORDS: &str = "records:\n  http:\n    server_ports: 8080\n";

    fn new() -> Self {
        let host = Self { folder: Folder::temporary("resumed-") };
        for folder in ["opt/ats/etc/trafficserver", "opt/ats/libexec/trafficserver", "srv/resumed", "etc"] {
            fs::create_dir_all(host.folder.path().join(folder)).expect("a folder");
        }
        let roots = ["/opt/ats", "/srv/resumed"];
        let example = roots.iter().fold(example_of_a_built_traffic_server(), |example, root| {
            example.replace(root, &host.folder.path().join(&root[1..]).display().to_string())
        });
        host.write("example.yml", &example);
        host.write("play.yml", "- hosts: localhost\n  gather_facts: false\n  roles: [trafficserver]\n");
        host.write("opt/ats/etc/trafficserver/records.yaml", Self::RECORDS);
        host.write("opt/ats/etc/trafficserver/plugin.config", "# mine\n");
        host.write("opt/ats/etc/trafficserver/ssl_multicert.config", "");
        host.write("srv/resumed/resumed.so", "a plugin");
        host.write("www.pem", "a certificate");
        host.write("www.key", "a key");
        host
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.folder.path().join(file), text).unwrap_or_else(|error| panic!("{file}: {error}"));
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.folder.path().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
    }

    fn drop_in(&self) -> PathBuf {
        self.folder.path().join("etc/resumed.service.d/before-trafficserver.conf")
    }

    /// Plays the role; whether it changed anything. A group that every Debian has stands for that of the example.
    fn play(&self, others: &Value) -> bool {
        let path = self.folder.path();
        let own = json!({
            "trafficserver_service": false,
            "trafficserver_drop_in": self.drop_in(),
            "trafficserver_group": "www-data",
            "trafficserver_session_cache_size": 50_000,
            "trafficserver_records": {"proxy.config.http.server_ports": "STRING 443:ssl"},
            "trafficserver_certificates": [{"certificate": path.join("www.pem"), "key": path.join("www.key")}],
        });
        let (own, others) = (own.to_string(), others.to_string());
        let variables = ["@example.yml", &own, &others].into_iter().flat_map(|words| ["--extra-vars", words]);
        let said = ansible("ansible-playbook", path, &["play.yml"].into_iter().chain(variables).collect::<Vec<_>>());
        !said.contains("changed=0 ")
    }
}

#[test]
fn a_traffic_server_that_somebody_built_gets_its_files_where_it_reads_them_and_starts_after_the_daemon() {
    assert!(example_of_a_built_traffic_server().contains("trafficserver_group: web\n"));
    let host = BuiltTrafficServer::new();
    assert!(host.play(&json!({})));
    let added = "# BEGIN of what resumption across hosts needs\n\
                 ---\n\
                 records:\n\
                 \x20 ssl.session_cache.mode: 2\n\
                 \x20 ssl.server.session_ticket.enable: 1\n\
                 \x20 ssl.session_cache.size: 50000\n\
                 \x20 http.server_ports: \"443:ssl\"\n\
                 # END of what resumption across hosts needs\n";
    let records = format!("{}{added}", BuiltTrafficServer::RECORDS);
    assert_eq!(host.read("opt/ats/etc/trafficserver/records.yaml"), records);
    let plugin = host.folder.path().join("opt/ats/libexec/trafficserver/resumed.so");
    assert_eq!(fs::read_to_string(&plugin).expect("the plugin"), "a plugin");
    let line = format!("# mine\n{} --socket=/run/resumed/ats.sock --wait-ms=1000\n", plugin.display());
    assert_eq!(host.read("opt/ats/etc/trafficserver/plugin.config"), line);
    let certificate = "dest_ip=* ssl_cert_name=ssl/www.pem ssl_key_name=ssl/www.key\n";
    assert_eq!(host.read("opt/ats/etc/trafficserver/ssl_multicert.config"), certificate);
    let key = fs::metadata(host.folder.path().join("opt/ats/etc/trafficserver/ssl/www.key")).expect("the key");
    let group = Group::from_name("www-data").expect("a look-up").expect("Debian's group");
    assert_eq!((key.mode() & 0o777, key.gid()), (0o640, group.gid.as_raw()));
    let drop_in = fs::read_to_string(host.drop_in()).expect("what is added to the daemon's unit");
    let lines: Vec<_> = drop_in.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(lines, ["[Unit]", "Before=ats.service"]);

    assert!(!host.play(&json!({})), "a second run changes something");
    assert_eq!(host.read("opt/ats/etc/trafficserver/records.yaml"), records);
    // The daemon's unit names this one itself.
    assert!(host.play(&json!({"trafficserver_unit": "trafficserver.service"})));
    assert!(!host.drop_in().exists());
}

/// systemd reads what is added to a unit in one folder alone.
#[test]
fn what_orders_the_daemon_before_another_unit_lies_where_systemd_looks() {
    let variables = fs::read_to_string(testkit::tree().join("ansible/roles/trafficserver/vars/main.yml"));
    let line = "\ntrafficserver_drop_in: /etc/systemd/system/resumed.service.d/before-trafficserver.conf\n";
    assert!(variables.expect("the role's variables").contains(line));
}

#[test]
fn the_user_that_a_traffic_server_runs_as_may_connect_to_the_daemon() {
    let facts = json!({"resumed_farm": "prod", "resumed_settings": {"ats": {"users": ["web"]}}});
    let toml = rendered("resumed", "resumed.toml.j2", &facts);
    let lines: Vec<_> = toml.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    assert_eq!(lines, ["[ats]", "users = [\"web\"]", "[node]", "farm = \"prod\""]);
    assert!(example_of_a_built_traffic_server().contains("  ats:\n    users: [web] "));
}

/// A host's configuration as an operator wrote it who keeps the password in the URI, which the daemon takes.
const BY_HAND: &str = "[node]\nfarm = \"prod\"\n[broker]\nuris = [\"amqp://resumed:hunter2@mq1:5672/%2f\"]\n";

/// A folder with `etc/FILE`, which holds `text`, and the daemon's program in `bin`.
fn host_with(file: &str, text: &str) -> Folder {
    let folder = Folder::temporary("resumed-");
    let file = folder.path().join("etc").join(file);
    fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
    fs::create_dir(folder.path().join("bin")).expect("a folder");
    fs::write(file, text).expect("a configuration");
    symlink(built("resumed"), folder.path().join("bin/resumed")).expect("a link");
    folder
}

/// What `--check --diff` says at the second level of detail of a host whose resumed.toml is `text`.
fn checked_against(text: &str) -> String {
    let host = host_with("resumed/resumed.toml", text);
    let variables = json!({"resumed_farm": "edge"});
    let words = ["--check", "--diff", "-vv"];
    let (succeeded, said) = play_tasks(host.path(), ("resumed", "toml"), &variables, &ON_A_HOST, &words);
    assert!(succeeded && said.contains("changed=1 "), "{said}");
    said
}

/// Whether `said` shows `secret`, as it is or as Ansible's modules hand files on.
fn shows(said: &str, file: &str, secret: &str) -> bool {
    said.contains(secret) || said.contains(&openssl::base64::encode_block(file.as_bytes()))
}

#[test]
fn a_diff_shows_no_configuration_that_may_hold_a_password() {
    let forms = [
        BY_HAND.to_owned(),
        // As a comment, with an @ and a / in it, with the @ written as TOML can, and beside one without.
        BY_HAND.replace("uris", "# uris"),
        BY_HAND.replace("hunter2", "a@b/hunter2"),
        BY_HAND.replace("hunter2@", "hunter2\\u0040"),
        BY_HAND.replace("[\"amqp", "[\"amqps://resumed@mq2:5671/%2f\", \"amqp"),
    ];
    for text in forms {
        let said = checked_against(&text);
        assert!(!shows(&said, &text, "hunter2"), "{said}");
    }
}

#[test]
fn a_diff_shows_what_changes_in_a_configuration_without_a_password() {
    let text = "[node]\nfarm = \"prod\"\n[broker]\nuris = [\"amqps://resumed@mq1:5671/%2f\", \"amqp://mq2/\"]\n";
    let said = checked_against(text);
    assert!(said.contains("-farm = \"prod\"") && said.contains("+farm = \"edge\""), "{said}");
    assert!(said.contains("-uris = "), "{said}");
}

/// The step of a rotation edits one line; a diff would show those around it.
#[test]
fn a_diff_of_a_step_of_a_rotation_shows_no_line_beside_it() {
    let text = format!("{BY_HAND}[secret]\nfiles = [\"/etc/resumed/farm.secret\"]\n");
    let host = host_with("resumed/resumed.toml", &text);
    let secret = host.path().join("farm.secret");
    fs::write(&secret, "a secret").expect("a secret");
    fs::write(host.path().join("farm.secret.step"), "step: add\n").expect("a step");
    let variables = json!({"resumed_farm_secret_src": secret});
    let words = ["--check", "--diff", "-vv"];
    let (_, said) = play_tasks(host.path(), ("resumed", "secrets"), &variables, &ON_A_HOST, &words);
    let (_, named) = said.split_once("TASK [resumed : Name the farm secrets in their order]").expect(&said);
    assert!(named.contains("changed: [localhost]"), "{said}");
    assert!(!shows(&said, &text, "hunter2"), "{said}");
}

#[test]
fn a_diff_shows_no_settings_of_rabbitmq() {
    let text = "listeners.tcp = none\nssl_options.password = hunter2\n";
    let host = host_with("rabbitmq/rabbitmq.conf", text);
    let variables = json!({"rabbitmq_settings": {"default_pass": "hunter3"}, "rabbitmq_package": {"stdout": "4.0.5"}});
    // A machine without systemd says so at the task after this one.
    let (_, said) =
        play_tasks(host.path(), ("rabbitmq", "configure"), &variables, &ON_A_HOST, &["--check", "--diff", "-vv"]);
    let (_, configured) = said.split_once("TASK [rabbitmq : Configure RabbitMQ]").expect(&said);
    let (configured, _) = configured.split_once("\nTASK [").expect(&said);
    assert!(configured.contains("changed: [localhost]"), "{said}");
    assert!(!shows(&said, text, "hunter2") && !said.contains("hunter3"), "{said}");
}

/// A folder with the farm secret of a farm, in the clear, and `password`, that of a vault.
fn secrets_in_a_folder() -> Folder {
    let folder = Folder::temporary("resumed-");
    fs::write(folder.path().join("farm.secret"), format!("{}\n", "ab".repeat(32))).expect("a secret");
    fs::write(folder.path().join("password"), "of the vault\n").expect("a password");
    folder
}

fn encrypt(folder: &Path, file: &str) {
    let words = ["encrypt", "--vault-id", "farms@password", file];
    let (succeeded, said) = outcome(control_host("ansible-vault", folder).args(words));
    assert!(succeeded, "{said}");
}

/// Has the role make the new secret of a rotation.
fn new_secret(folder: &Path, words: &[&str]) -> (bool, String) {
    let variables = json!({"resumed_farm_secret_src": folder.join("farm.secret")});
    play_tasks(folder, ("rotate_secret", "new_secret"), &variables, &[], words)
}

const VAULT: [&str; 2] = ["--vault-id", "farms@password"];

#[test]
fn a_new_farm_secret_is_in_the_vault_that_the_old_one_is_in() {
    let folder = secrets_in_a_folder();
    let read = |file: &str| fs::read_to_string(folder.path().join(file)).expect(file);
    encrypt(folder.path(), "farm.secret");
    let old = read("farm.secret");

    let (succeeded, said) = new_secret(folder.path(), &[]);
    assert!(
        !succeeded && told(&said).contains("farm.secret is encrypted with ansible-vault, and Ansible cannot"),
        "{said}"
    );
    assert!(!folder.path().join("farm.secret.new").exists(), "{said}");

    let (succeeded, said) = new_secret(folder.path(), &VAULT);
    assert!(succeeded, "{said}");
    let new = read("farm.secret.new");
    assert_eq!(new.lines().next(), old.lines().next(), "another vault than the old one's");
    assert_eq!(fs::metadata(folder.path().join("farm.secret.new")).expect("the new one").mode() & 0o777, 0o600);
    let (succeeded, plain) =
        outcome(control_host("ansible-vault", folder.path()).args(["view", "farm.secret.new"]).args(VAULT));
    assert!(succeeded && plain.trim().len() == 64 && plain.trim().bytes().all(|c| c.is_ascii_hexdigit()), "{plain}");
    assert_ne!(plain.trim(), "ab".repeat(32));
    assert!(!said.contains(plain.trim()), "{said}");

    // One that is there is taken, also one that is the farm's already, which a rotation left that was stopped at its end.
    assert!(new_secret(folder.path(), &VAULT).0);
    assert_eq!(read("farm.secret.new"), new);
    fs::write(folder.path().join("farm.secret.new"), &old).expect("the old one");
    assert!(new_secret(folder.path(), &VAULT).0);
    assert_ne!(read("farm.secret.new"), old);
    assert_eq!(read("farm.secret"), old);
}

#[test]
fn a_new_farm_secret_in_the_clear_takes_no_place_in_a_vault() {
    let folder = secrets_in_a_folder();
    encrypt(folder.path(), "farm.secret");
    fs::write(folder.path().join("farm.secret.new"), "cd".repeat(32)).expect("a new secret");
    let (succeeded, said) = new_secret(folder.path(), &VAULT);
    assert!(
        !succeeded && told(&said).contains("ansible-vault encrypt ") && told(&said).contains("Nothing was changed."),
        "{said}"
    );
}

#[test]
fn a_new_farm_secret_is_in_the_clear_where_the_old_one_is() {
    let folder = secrets_in_a_folder();
    let (succeeded, said) = new_secret(folder.path(), &[]);
    assert!(succeeded, "{said}");
    let new = fs::read_to_string(folder.path().join("farm.secret.new")).expect("the new secret");
    assert_eq!(new.trim().len(), 64, "{new}");
    assert_eq!(fs::metadata(folder.path().join("farm.secret.new")).expect("the new one").mode() & 0o777, 0o600);
}

/// Makes the secrets of a farm whose brokers have those names.
fn farm_secrets(folder: &Path, brokers: &[&str], words: &[&str]) -> (bool, String) {
    let secrets = folder.join("secrets");
    let variables = json!({"farm_secrets_directory": secrets, "farm_secrets_brokers": brokers});
    play_tasks(folder, ("farm_secrets", "main"), &variables, &[], words)
}

#[test]
fn the_name_of_a_broker_is_nothing_that_a_shell_reads() {
    let folder = Folder::temporary("resumed-");
    let names = ["mq;touch other", "mq >third | x"];
    let (succeeded, said) = farm_secrets(folder.path(), &names, &[]);
    assert!(succeeded, "{said}");
    let (succeeded, again) = farm_secrets(folder.path(), &names, &[]);
    assert!(succeeded && again.contains("changed=0 "), "{again}");
    let made = fs::read_dir(folder.path().join("secrets")).expect("the folder").flatten();
    let mut made: Vec<_> = made.map(|entry| entry.file_name().into_string().expect("UTF-8")).collect();
    made.sort();
    let pairs = names.iter().flat_map(|name| ["key", "pem"].map(|kind| format!("broker-{name}.{kind}")));
    let others = ["broker.password", "ca.key", "ca.pem", "erlang.cookie", "farm.secret"].map(str::to_owned);
    let mut expected: Vec<_> = pairs.chain(others).collect();
    expected.sort();
    assert_eq!(made, expected);
}

#[test]
fn a_brokers_key_in_a_vault_is_not_replaced_by_one_in_the_clear() {
    let folder = secrets_in_a_folder();
    assert!(farm_secrets(folder.path(), &["mq"], &[]).0);
    let key = folder.path().join("secrets/broker-mq.key");
    encrypt(folder.path(), "secrets/broker-mq.key");
    let in_vault = fs::read_to_string(&key).expect("the key");
    let (succeeded, said) = farm_secrets(folder.path(), &["mq"], &VAULT);
    assert!(succeeded && said.contains("changed=0 "), "{said}");
    // As if its end were near.
    fs::remove_file(folder.path().join("secrets/broker-mq.pem")).expect("the certificate");
    let (succeeded, said) = farm_secrets(folder.path(), &["mq"], &VAULT);
    assert!(!succeeded && told(&said).contains("mq needs a new certificate, and broker-NAME.key"), "{said}");
    assert_eq!(fs::read_to_string(&key).expect("the key"), in_vault);
}

/// The example's inventory in a folder, with `change` made to it, of hosts that cannot be reached.
struct Inventory {
    folder: Folder,
}

impl Inventory {
    fn of_the_example(change: impl Fn(&str, String) -> String) -> Self {
        let folder = Folder::temporary("resumed-");
        let example = testkit::tree().join("ansible/inventory/example");
        fs::create_dir_all(folder.path().join("farm/group_vars")).expect("a folder");
        for file in ["hosts.yml", "group_vars/all.yml", "group_vars/brokers.yml", "group_vars/proxies.yml"] {
            let text = fs::read_to_string(example.join(file)).expect(file);
            let text = text.replace("/etc/resumed-farms", &folder.path().display().to_string());
            fs::write(folder.path().join("farm").join(file), change(file, text)).expect(file);
        }
        fs::create_dir(folder.path().join("bin")).expect("a folder");
        let ssh = folder.path().join("bin/ssh");
        fs::write(&ssh, "#!/bin/sh\necho no route to host >&2\nexit 255\n").expect("a program");
        fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).expect("its mode");
        Self { folder }
    }

    /// Plays site.yml as far as that goes: to the secrets on this machine, for no host can be reached. Whether it came to them,
    /// and what it said.
    fn set_up(&self) -> (bool, String) {
        let site = testkit::tree().join("ansible/site.yml");
        let mut command = control_host("ansible-playbook", self.folder.path());
        let (succeeded, said) = outcome(command.arg(site).args(["--inventory", "farm"]));
        assert!(!succeeded, "{said}");
        (self.folder.path().join("prod/farm.secret").exists(), said)
    }

    /// What `variable` is for the first proxy.
    fn shows(&self, variable: &str) -> String {
        let mut command = control_host("ansible", self.folder.path());
        let words =
            ["a.example.net", "--inventory", "farm", "--module-name", "debug", "--args", &format!("var={variable}")]
                .map(str::to_owned);
        let (succeeded, said) = outcome(command.args(words));
        assert!(succeeded, "{said}");
        said
    }
}

#[test]
fn the_example_has_a_virtual_host_of_the_farms_own_and_serves_metrics_on_loopback() {
    let example = Inventory::of_the_example(|_, text| text);
    let uris = example.shows("resumed_broker_uris");
    assert_eq!(uris.lines().filter(|line| line.ends_with(":5671/prod")).count(), 3, "{uris}");
    // The daemon's own default, which is loopback, unless it is set.
    let listen = example.shows("resumed_metrics_listen");
    assert!(listen.contains("VARIABLE IS NOT DEFINED") || listen.contains("127.0.0.1:"), "{listen}");
    let (made, said) = example.set_up();
    assert!(made && said.contains("UNREACHABLE"), "{said}");
}

/// As the example of 0.1.0 had it, whose copies name no virtual host but at the end of the URIs.
fn in_the_default_virtual_host(file: &str, text: String) -> String {
    if file == "group_vars/proxies.yml" { text.replace("5671/' ~ resumed_farm", "5671/%2f'") } else { text }
}

#[test]
fn an_inventory_of_the_release_before_is_stopped_before_anything_changes_and_one_line_lets_it_go_on() {
    let before = Inventory::of_the_example(in_the_default_virtual_host);
    let uris = before.shows("resumed_broker_uris");
    assert_eq!(uris.lines().filter(|line| line.ends_with(":5671/%2f")).count(), 3, "{uris}");
    let (made, said) = before.set_up();
    assert!(!made, "{said}");
    let told = told(&said);
    assert!(told.contains("end in the virtual host \"/\", and the brokers have \"prod\""), "{said}");
    assert!(told.contains("rabbitmq_vhost: /") && told.contains("Nothing was changed."), "{said}");

    let kept = Inventory::of_the_example(|file, text| {
        let line = if file == "group_vars/brokers.yml" { "rabbitmq_vhost: /\n" } else { "" };
        in_the_default_virtual_host(file, text) + line
    });
    let (made, said) = kept.set_up();
    assert!(made && said.contains("UNREACHABLE"), "{said}");
}

/// Has the role let the nodes of the farm `prod` in at the broker behind `bin/rabbitmqctl`.
fn let_in(folder: &Path, vhost: Option<&str>) -> (bool, String) {
    let mut variables = json!({"rabbitmq_farm": "prod", "rabbitmq_password_src": folder.join("password")});
    vhost.into_iter().for_each(|vhost| variables["rabbitmq_vhost"] = json!(vhost));
    play_tasks(folder, ("rabbitmq", "user"), &variables, &[], &[])
}

#[test]
fn a_farm_gets_a_virtual_host_of_its_own_and_one_that_is_elsewhere_stays_there() {
    let broker = Broker::start();
    let folder = secrets_in_a_folder();
    fs::create_dir(folder.path().join("bin")).expect("a folder");
    broker.write_ctl(&folder.path().join("bin/rabbitmqctl"));
    let granted = || {
        let told = broker.ctl(&["list_user_permissions", "resumed", "--formatter", "json"]);
        let told: Value = serde_json::from_str(&told).expect("JSON");
        let mut vhosts: Vec<_> =
            told.as_array().expect("a list").iter().map(|grant| grant["vhost"].to_string()).collect();
        vhosts.sort();
        vhosts.join(" ")
    };

    let (succeeded, said) = let_in(folder.path(), None);
    assert!(succeeded, "{said}");
    assert_eq!(granted(), "\"prod\"");
    assert!(!broker.ctl(&["list_users"]).contains("guest"));
    let (succeeded, said) = let_in(folder.path(), None);
    assert!(succeeded && said.contains("changed=0 "), "{said}");

    // As 0.1.0 set it up.
    broker.ctl(&["delete_vhost", "prod"]);
    assert!(let_in(folder.path(), Some("/")).0);
    let (succeeded, said) = let_in(folder.path(), None);
    let told = told(&said);
    assert!(!succeeded && told.contains("works for the farm prod in the virtual host \"/\""), "{said}");
    assert_eq!(granted(), "\"/\"");
    assert!(!broker.ctl(&["list_vhosts"]).contains("prod"));
    // It stays when that is said, and moves when that is said.
    let (succeeded, said) = let_in(folder.path(), Some("/"));
    assert!(succeeded && said.contains("changed=0 "), "{said}");
    assert!(let_in(folder.path(), Some("prod")).0);
    assert_eq!(granted(), "\"/\" \"prod\"");
    let (succeeded, said) = let_in(folder.path(), None);
    assert!(succeeded && said.contains("changed=0 "), "{said}");
}
