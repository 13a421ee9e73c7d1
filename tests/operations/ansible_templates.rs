//! What the roles in `ansible/` write for each generation of what they configure, as Ansible itself renders it.

use std::fs;
use std::process::Command;

use testkit::watcher::Folder;

/// `rabbitmq.conf` of one of `brokers` brokers, on a host whose package is RabbitMQ `version`.
fn rabbitmq_conf(version: &str, brokers: usize) -> String {
    let role = testkit::tree().join("ansible/roles/rabbitmq");
    let dir = Folder::temporary("resumed-");
    let conf = dir.path().join("rabbitmq.conf");
    let names: Vec<_> = (1..=brokers).map(|number| format!("mq-{number}")).collect();
    let facts = serde_json::json!({"rabbitmq_package": {"stdout": version}, "rabbitmq_brokers": names});
    let template = role.join("templates/rabbitmq.conf.j2");
    let output = Command::new("ansible")
        .args(["localhost", "--inventory", "localhost,", "--connection", "local"])
        .args(["--extra-vars", &format!("@{}", role.join("defaults/main.yml").display())])
        .args(["--extra-vars", &facts.to_string()])
        .args(["--module-name", "ansible.builtin.template"])
        .args(["--args", &format!("src={} dest={}", template.display(), conf.display())])
        .env("ANSIBLE_CONFIG", testkit::tree().join("ansible/ansible.cfg"))
        .env("ANSIBLE_LOCAL_TEMP", dir.path())
        .env("ANSIBLE_REMOTE_TEMP", dir.path())
        .current_dir(dir.path())
        .output()
        .expect("ansible (package ansible-core)");
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "{said}");
    fs::read_to_string(conf).expect("the rendered file")
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
