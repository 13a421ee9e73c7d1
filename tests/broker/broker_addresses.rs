//! Brokers that are reached by their IPv6 address, with and without TLS.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use testkit::authority::{Authority, VALID};
use testkit::broker::{Broker, BrokerOptions, BrokerTls};
use testkit::farm::{Farm, FarmSetup, Proxies, built, wait_for};
use testkit::watcher::Folder;

/// Ports of ::1 that no server listens on.
fn free_ports() -> [u16; 2] {
    let held = [(); 2].map(|()| TcpListener::bind("[::1]:0").expect("a socket on ::1"));
    held.map(|listener| listener.local_addr().expect("a bound socket").port())
}

fn check(config: &Path) -> Output {
    Command::new(built("resumed")).args(["check", "--config"]).arg(config).output().expect("resumed runs")
}

/// Two nodes at the broker at `uri` are in step, and `resumed check` finds nothing wrong with their settings.
fn a_farm_lives_at(uri: &str, broker: &str) {
    let setup = FarmSetup { proxies: Proxies::None, broker: broker.to_owned(), ..FarmSetup::new(2, uri) };
    let farm = Farm::lay_out(&setup);
    let checked = check(&farm.hosts[0].daemon.config());
    assert!(checked.status.success(), "{uri}: {checked:?}");
    drop(farm);
    Farm::start_in_step(&setup);
}

#[test]
fn a_farm_lives_at_a_broker_with_an_ipv6_address() {
    let folder = Folder::temporary("resumed-");
    let ours = Authority::new(folder.path(), "ours");
    let [broker, client] = [ours.issue("broker", &["::1"], VALID), ours.issue("client", &[], VALID)];
    let tls = BrokerTls { ca_file: ours.file(), cert_file: broker.cert_file, key_file: broker.key_file };
    let [plain, encrypted] = free_ports();
    let conf = format!("listeners.tcp.six = ::1:{plain}\nlisteners.ssl.six = ::1:{encrypted}\n");
    let broker = Broker::start_with(&BrokerOptions { tls: Some(tls), conf, ..BrokerOptions::default() });

    a_farm_lives_at(&format!("amqp://guest:guest@[::1]:{plain}/%2f"), "");
    let files =
        format!("ca_file = {:?}\ncert_file = {:?}\nkey_file = {:?}", ours.file(), client.cert_file, client.key_file);
    a_farm_lives_at(&format!("amqps://guest:guest@[::1]:{encrypted}/%2f"), &files);

    // The certificate is for ::1, and for no other address of this broker.
    let elsewhere = format!("amqps://guest:guest@127.0.0.1:{}/%2f", broker.tls_port());
    let setup = FarmSetup { proxies: Proxies::None, broker: files, ..FarmSetup::new(1, &elsewhere) };
    let farm = Farm::start(&setup);
    wait_for("a certificate of another address refused", || {
        let log = farm.hosts[0].daemon.log();
        if log.contains("IP address mismatch") { Ok(()) } else { Err(log) }
    });
}
