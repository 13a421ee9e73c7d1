//! What the roles in `ansible/` write for each generation of what they configure, as Ansible itself does it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::Group;
use serde_json::{Value, json};
use testkit::watcher::Folder;

/// `program` of Ansible with `words`, on this machine alone; what it said.
fn ansible(program: &str, folder: &Path, words: &[&str]) -> String {
    let output = Command::new(program)
        .args(words)
        .args(["--inventory", "localhost,", "--connection", "local"])
        .env("ANSIBLE_CONFIG", testkit::tree().join("ansible/ansible.cfg"))
        .env("ANSIBLE_LOCAL_TEMP", folder)
        .env("ANSIBLE_REMOTE_TEMP", folder)
        .current_dir(folder)
        .output()
        .expect("ansible (package ansible-core)");
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "{said}");
    said
}

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
