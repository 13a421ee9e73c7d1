//! Hosts whose OpenSSL has no X25519, as in FIPS mode, beside hosts that have it. A provider of the tests' own is OpenSSL's
//! default one without X25519 (`tests/support/without_x25519.c`).

use std::fs;

use resumed::internals::probe::{Client, Mode, Options};
use testkit::broker::Broker;
use testkit::farm::{Farm, FarmSetup, Proxies, wait_for};
use testkit::openssl_conf;
use testkit::watcher::Folder;

/// Whether a ticket from each host opens at the other.
fn tickets_cross(farm: &Farm, client: &Client) -> Result<(), String> {
    let targets = farm.targets();
    for (from, to) in [(0, 1), (1, 0)] {
        let session = client.handshake(&targets[from], Mode::Ticket12).map_err(|error| error.to_string())?.session;
        let offered = client.resume(&targets[to], &session).map_err(|error| error.to_string())?;
        if !offered.resumed {
            return Err(format!("a ticket of host {from} does not open at host {to}"));
        }
    }
    Ok(())
}

#[test]
fn a_host_without_x25519_is_granted_epoch_keys_and_grants_them() {
    let broker = Broker::shared();
    let folder = Folder::temporary("resumed-");
    let mut farm = Farm::lay_out(&FarmSetup {
        keys: "settle = \"200ms\"".to_owned(),
        broker: "report_every = \"500ms\"".to_owned(),
        proxies: Proxies::Tickets,
        ..FarmSetup::new(2, &broker.uri())
    });
    farm.hosts[1].daemon.use_openssl(&openssl_conf::without_x25519(folder.path()));
    farm.launch();
    farm.wait_in_step();
    let client = Client::new(Options::default()).expect("a client");
    wait_for("tickets from host to host", || tickets_cross(&farm, &client));

    // Now the other one leads, and the one that comes back has no epoch key.
    let first = farm.leader();
    farm.hosts[first].daemon.stop();
    assert_eq!(farm.leader(), 1 - first);
    farm.hosts[first].daemon.launch();
    farm.wait_in_step_at(first);
    wait_for("tickets from host to host", || tickets_cross(&farm, &client));

    let log = fs::read_to_string(farm.hosts[1].daemon.log_file()).expect("its log");
    assert!(log.contains("OpenSSL on this host has no X25519"), "{log}");
    for host in &farm.hosts {
        let metrics = host.daemon.metrics().expect("its metrics");
        for reason in ["no_agreement", "bad_public_key", "bad_grant"] {
            let series = format!("resumed_messages_refused_total{{reason=\"{reason}\"}} 0\n");
            assert!(metrics.contains(&series), "{reason} at {}: {metrics}", host.daemon.name());
        }
    }
}
