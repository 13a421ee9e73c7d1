//! Tests run on the RabbitMQ and the Traffic Server that they are told of, wherever these lie.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::ats::{Ats, AtsSetup, Certificate};
use testkit::broker::{Broker, BrokerOptions, Store};
use testkit::farm::wait_for;
use testkit::rabbitmq::RabbitMq;
use testkit::records::to_yaml;
use testkit::traffic_server::TrafficServer;
use testkit::version::Version;
use testkit::watcher::Folder;

fn link_of(pid: u32, name: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/{name}")).unwrap_or_else(|error| panic!("/proc/{pid}/{name}: {error}"))
}

#[test]
fn the_chosen_broker_is_of_the_version_that_it_is_said_to_be_and_leaves_nothing_mounted() {
    let broker = Broker::start();
    assert_eq!(broker.ctl(&["version"]).trim().parse(), Ok(broker.version()));
    assert!(
        broker.versions().starts_with(&format!("RabbitMQ {} on Erlang ", broker.version())),
        "{}",
        broker.versions()
    );
    assert!(!broker.versions().contains("does not tell"), "{}", broker.versions());
    let root = match RabbitMq::chosen() {
        RabbitMq::Root(root) => fs::canonicalize(root).expect("the root"),
        RabbitMq::Package | RabbitMq::Unpacked(_) => PathBuf::from("/"),
    };
    let pid = broker.pid().expect("it runs");
    assert_eq!(link_of(pid, "root"), root);
    assert!(link_of(pid, "exe").ends_with("beam.smp"), "{:?}", link_of(pid, "exe"));
    let (port, folder) = (broker.port(), broker.log_file().parent().expect("its folder").to_owned());
    TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    drop(broker);
    TcpStream::connect(("127.0.0.1", port)).expect_err("it is gone");
    assert!(!folder.exists(), "{} stays", folder.display());
    let mounts = fs::read_to_string("/proc/self/mounts").expect("the mounts");
    let inside = format!(" {}/", root.display());
    assert!(root == Path::new("/") || !mounts.contains(&inside), "{inside}: {mounts}");
}

#[test]
fn a_broker_keeps_its_metadata_where_it_was_asked_to() {
    let version = RabbitMq::chosen().version();
    let stores: &[Store] = match (version.at_least(4, 0), version.at_least(4, 3)) {
        (false, _) => &[Store::Mnesia],
        (true, false) => &[Store::Mnesia, Store::Khepri],
        (true, true) => &[Store::Khepri],
    };
    for store in stores {
        let broker = Broker::start_with(&BrokerOptions { store: *store, ..BrokerOptions::default() });
        assert_eq!(broker.store(), *store, "RabbitMQ {version}");
        assert_eq!(broker.running(), 1, "brokers in a cluster of one");
    }
}

#[test]
fn a_broker_runs_from_a_folder_that_a_rabbitmq_was_unpacked_into() {
    // The package's home is laid out as what one downloads.
    let script = fs::canonicalize("/usr/lib/rabbitmq/bin/rabbitmq-server").expect("the package rabbitmq-server");
    let home = script.ancestors().nth(2).expect("its home");
    let folder = Folder::temporary("resumed-unpacked-");
    let unpacked = folder.path().join("rabbitmq");
    symlink(home, &unpacked).expect("a link");
    let rabbitmq = RabbitMq::at(&unpacked).expect("a RabbitMQ");
    assert_eq!(rabbitmq, RabbitMq::Unpacked(unpacked.clone()));
    let broker = Broker::start_with(&BrokerOptions { rabbitmq: Some(rabbitmq), ..BrokerOptions::default() });
    assert_eq!(broker.ctl(&["version"]).trim().parse(), Ok(broker.version()));
}

#[test]
fn a_folder_without_a_server_is_refused_with_what_was_looked_for() {
    let folder = Folder::temporary("resumed-empty-");
    let said = RabbitMq::at(folder.path()).expect_err("there is none");
    assert!(said.contains("sbin/rabbitmq-server") && said.contains("usr/lib/rabbitmq/bin"), "{said}");
    let said = TrafficServer::at(folder.path()).expect_err("there is none");
    assert!(said.contains(&folder.path().display().to_string()) && said.contains("bin/traffic_server"), "{said}");
}

/// A copy of Debian's Traffic Server, laid out as `make install` does.
fn installed_below(prefix: &Path) {
    let copy = |what: &str, to: &str| {
        let to = prefix.join(to);
        fs::create_dir_all(to.parent().expect("a parent")).expect("a folder");
        let copied = Command::new("cp").args(["-a", what]).arg(&to).status().expect("cp runs");
        assert!(copied.success(), "{what}");
    };
    for program in ["traffic_server", "traffic_manager", "traffic_ctl", "traffic_layout"] {
        copy(&format!("/usr/bin/{program}"), &format!("bin/{program}"));
    }
    copy("/usr/lib/trafficserver", "lib");
    fs::create_dir(prefix.join("libexec")).expect("a folder");
    fs::rename(prefix.join("lib/modules"), prefix.join("libexec/trafficserver")).expect("its plugins");
}

#[test]
fn a_traffic_server_runs_from_the_prefix_that_it_was_installed_to() {
    let folder = Folder::temporary("rp-");
    let prefix = folder.path().join("opt");
    installed_below(&prefix);
    let installed = TrafficServer::at(&prefix).expect("a Traffic Server");
    assert_eq!(installed.version(), TrafficServer::at(Path::new("/usr")).expect("the package trafficserver").version());
    // By a plugin of its own, which it finds by name.
    let mut setup = AtsSetup::new(&Certificate::self_signed("farm.test"), "xdebug.so");
    setup.manager = true;
    setup.installed = Some(installed);
    let mut ats = Ats::start(&folder.path().join("ats"), &setup);
    let pid = ats.server_pid().as_raw().cast_unsigned();
    assert_eq!(link_of(pid, "exe"), prefix.join("bin/traffic_server"));
    let mapped = fs::read_to_string(format!("/proc/{pid}/maps")).expect("its memory's map");
    let from: Vec<&str> = mapped.lines().filter_map(|line| line.split_whitespace().nth(5)).collect();
    let of = |name: &str| from.iter().find(|path| path.contains(name)).copied().unwrap_or_default();
    assert!(Path::new(of("/libtscore.so")).starts_with(&prefix), "{}", of("/libtscore.so"));
    assert!(!from.iter().any(|path| path.starts_with("/usr/lib/trafficserver")), "{from:?}");
    // The manager takes commands some moments after the server serves.
    wait_for("traffic_ctl's answer", || {
        let output = ats.ctl(&["config", "get", "proxy.config.http.server_ports"]);
        let port = format!("{}:ip-in=127.0.0.1:ssl", ats.address().port());
        if String::from_utf8_lossy(&output.stdout).contains(&port) { Ok(()) } else { Err(format!("{output:?}")) }
    });
    ats.stop();
}

#[test]
fn settings_become_the_tree_of_records_yaml_and_the_later_one_counts() {
    let config = "# a comment\n\
                  CONFIG proxy.config.http.server_ports STRING 8443:ip-in=127.0.0.1:ssl\n\
                  CONFIG proxy.config.crash_log_helper STRING NULL\n\
                  \n\
                  CONFIG proxy.config.http.cache.http INT 1\n\
                  CONFIG proxy.config.ssl.CA.cert.filename STRING a \"quoted\" \\ name.pem\n\
                  CONFIG proxy.config.exec_thread.autoconfig.scale FLOAT 1.5\n\
                  CONFIG proxy.config.http.cache.http INT 0\n\
                  CONFIG proxy.config.cache.ram_cache.size INT 16M\n";
    let yaml = "records:\n\
                \x20 cache:\n\
                \x20   ram_cache:\n\
                \x20     size: 16M\n\
                \x20 crash_log_helper: null\n\
                \x20 exec_thread:\n\
                \x20   autoconfig:\n\
                \x20     scale: 1.5\n\
                \x20 http:\n\
                \x20   cache:\n\
                \x20     http: 0\n\
                \x20   server_ports: \"8443:ip-in=127.0.0.1:ssl\"\n\
                \x20 ssl:\n\
                \x20   CA:\n\
                \x20     cert:\n\
                \x20       filename: \"a \\\"quoted\\\" \\\\ name.pem\"\n";
    assert_eq!(to_yaml(config), yaml);
}

#[test]
fn settings_whose_names_begin_those_of_others_get_the_names_that_10_x_has_for_them() {
    let config = "CONFIG proxy.config.ssl.session_cache INT 2\n\
                  CONFIG proxy.config.ssl.session_cache.size INT 1024\n\
                  CONFIG proxy.config.ssl.TLSv1_3 INT 0\n\
                  CONFIG proxy.config.exec_thread.autoconfig INT 0\n";
    let yaml = "records:\n\
                \x20 exec_thread:\n\
                \x20   autoconfig:\n\
                \x20     enabled: 0\n\
                \x20 ssl:\n\
                \x20   TLSv1_3:\n\
                \x20     enabled: 0\n\
                \x20   session_cache:\n\
                \x20     mode: 2\n\
                \x20     size: 1024\n";
    assert_eq!(to_yaml(config), yaml);
}

#[test]
#[should_panic(expected = "no setting for records.yaml: \"CONFIG proxy.config.http.server_ports\"")]
fn a_line_that_is_no_setting_is_not_left_out_in_silence() {
    to_yaml("CONFIG proxy.config.http.server_ports\n");
}

#[test]
fn versions_are_in_the_order_of_their_numbers() {
    let version = |text: &str| text.parse::<Version>().expect("a version");
    assert!(version("3.10.8") > version("3.9.29") && version("4.0.5") < version("4.3.0-rc.1"));
    assert!(version("4.3.6").at_least(4, 2) && version("10.0.1").at_least(10, 0) && !version("9.2.9").at_least(10, 0));
    assert_eq!(version("4.1").to_string(), "4.1.0");
    "trixie".parse::<Version>().expect_err("no number");
}
