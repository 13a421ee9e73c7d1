//! A farm moves from one RabbitMQ to another that stands beside it, of another version (RABBITMQ_NEXT in the environment), host
//! by host, under clients that come back all the while: the two ways of `docs/upgrade.md`.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::thread;

use resumed::internals::keys::KeyState;
use resumed::internals::probe::{Client, Mode, Options, Target};
use testkit::broker::{Broker, BrokerOptions};
use testkit::farm::{Farm, FarmSetup, wait_for};
use testkit::federation;
use testkit::hopping::{Hopping, Tally};
use testkit::rabbitmq::RabbitMq;
use testkit::sessions;

/// The modes in which clients come back: those that tickets are for.
const TICKETS: [Mode; 2] = [Mode::Ticket12, Mode::Ticket13];
/// So many more tickets are offered between two steps.
const BETWEEN_STEPS: usize = 30;
/// How long an announcement may wait for the link between the brokers, in milliseconds.
const TTL: u64 = 60_000;

/// A farm of three at the old broker, and a new one that nothing uses yet.
struct Moving {
    // In the order in which they go.
    farm: Farm,
    old: Broker,
    new: Broker,
}

impl Moving {
    /// None where there is no second RabbitMQ.
    fn start(test: &str) -> Option<Self> {
        let other = RabbitMq::other(test)?;
        let plugins = vec![federation::PLUGIN];
        let options = [None, Some(other)].map(|rabbitmq| BrokerOptions {
            plugins: plugins.clone(),
            rabbitmq,
            ..BrokerOptions::default()
        });
        let [old, new] = thread::scope(|scope| {
            options
                .each_ref()
                .map(|options| scope.spawn(move || Broker::start_with(options)))
                .map(|broker| broker.join().expect("a broker"))
        });
        println!("from {} to {}", old.versions(), new.versions());
        let farm = Farm::start_in_step(&FarmSetup {
            // No key is due while the test lasts but those that are asked for.
            keys: "interval = \"1h\"\nsettle = \"2s\"".to_owned(),
            broker: "report_every = \"500ms\"".to_owned(),
            ..FarmSetup::new(3, &old.uri())
        });
        Some(Self { farm, old, new })
    }

    /// The hosts in the order in which they move: the leader last.
    fn order(&self) -> Vec<usize> {
        let leader = self.farm.leader();
        self.farm.others(leader).into_iter().chain([leader]).collect()
    }

    /// What the document tells to do at each host.
    fn move_host(&mut self, host: usize) {
        let daemon = &mut self.farm.hosts[host].daemon;
        let (old, new) = (self.old.uri(), self.new.uri());
        let text = fs::read_to_string(daemon.config()).expect("the configuration");
        assert!(text.contains(&old), "{text}");
        fs::write(daemon.config(), text.replace(&old, &new)).expect("the configuration");
        let checked = daemon.command(&["check"]);
        assert!(checked.status.success(), "{checked:?}");
        daemon.stop();
        daemon.launch();
        wait_for("status of the host that moved", || {
            let waited = daemon.command(&["status", "--wait-in-step", "60s"]);
            if waited.status.success() { Ok(()) } else { Err(format!("{waited:?}")) }
        });
        let status = daemon.try_status().expect("a status");
        assert!(status.broker.uri.contains(&format!(":{}/", self.new.port())), "{:?}", status.broker);
        daemon.wait_for_metric("resumed_proxies_connected", |proxies| proxies == 1.0);
    }

    fn minted_at(&self, host: usize) -> u64 {
        let daemon = &self.farm.hosts[host].daemon;
        let before = daemon.generations();
        let output = daemon.command(&["rotate"]);
        assert!(output.status.success(), "rotate: {output:?}");
        let (minted, _) = wait_for("a new key", || {
            let now = daemon.generations();
            now.difference(&before).max().copied().ok_or_else(|| format!("{now:?}"))
        });
        minted
    }

    /// Waits until all three seal with that key.
    fn seal_with(&self, generation: u64) {
        wait_for("one key that seals everywhere", || {
            for host in &self.farm.hosts {
                let keys = host.daemon.try_status()?.ring.keys;
                if !keys.iter().any(|key| key.generation == generation && key.state == KeyState::Active) {
                    return Err(format!("{}: {keys:?}", host.name));
                }
            }
            Ok(())
        });
    }

    /// The farm is one, at the new broker; the old one has nothing of it and ends.
    fn is_over(&self, keys: &BTreeSet<u64>) {
        self.farm.wait_in_step();
        self.farm.leader();
        let (_, took) = wait_for("one ring of three nodes", || {
            let mut rings = BTreeSet::new();
            for host in &self.farm.hosts {
                let status = host.daemon.try_status()?;
                let held: BTreeSet<u64> = status.ring.keys.iter().map(|key| key.generation).collect();
                if status.nodes.len() != 3 || !keys.is_subset(&held) {
                    return Err(format!("{}: {} nodes, {held:?}", host.name, status.nodes.len()));
                }
                rings.insert(status.ring.fingerprint);
            }
            if rings.len() == 1 { Ok(()) } else { Err(format!("{rings:?}")) }
        });
        println!("one ring {took:?} after the last host was in step");
        wait_for("no connection of a node at the old broker", || {
            let left = self.old.ctl(&["list_connections", "client_properties"]);
            if left.contains("resumed host") { Err(left) } else { Ok(()) }
        });
        self.old.stop();
        let minted = self.minted_at(0);
        self.seal_with(minted);
    }

    fn keys(&self) -> BTreeSet<u64> {
        self.farm.hosts.iter().flat_map(|host| host.daemon.generations()).collect()
    }
}

/// Clients offer some more tickets, at hosts old and new.
fn clients_come_back(hopping: &Hopping) {
    let before = hopping.so_far().tickets;
    wait_for("clients that come back", || {
        let offered = hopping.so_far().tickets - before;
        if offered >= BETWEEN_STEPS { Ok(()) } else { Err(format!("{offered} tickets")) }
    });
}

/// Every ticket was taken, and there were some of the last key.
fn none_refused(tally: &Tally) {
    assert!(tally.refused.is_empty(), "{} of {}: {:#?}", tally.refused.len(), tally.tickets, tally.refused);
    assert!(tally.tickets > 4 * BETWEEN_STEPS, "{} tickets", tally.tickets);
    println!("{} tickets of {} keys offered, none refused", tally.tickets, tally.keys.len());
}

fn session_ids_cross(targets: &[Target]) {
    sessions::new_ones_resume(&Client::new(Options::default()).expect("a client"), targets, Mode::Id);
}

#[test]
fn a_farm_moves_to_another_broker_host_by_host_within_an_interval_and_no_ticket_is_refused() {
    let Some(mut moving) = Moving::start("a move between brokers within an interval") else { return };
    let targets = moving.farm.targets();
    let ((), tally) = Hopping::during(&targets, &TICKETS, |hopping| {
        clients_come_back(hopping);
        let keys = moving.keys();
        for host in moving.order() {
            moving.move_host(host);
            clients_come_back(hopping);
        }
        moving.is_over(&keys);
        clients_come_back(hopping);
    });
    none_refused(&tally);
    session_ids_cross(&targets);
}

#[test]
fn a_farm_that_moves_slowly_between_federated_brokers_shares_the_keys_that_either_side_makes() {
    let Some(mut moving) = Moving::start("a move between federated brokers") else { return };
    let targets = moving.farm.targets();
    let farm = moving.farm.name().to_owned();
    let brokers = [&moving.old, &moving.new];
    brokers.into_iter().for_each(|broker| federation::let_in(broker, &farm));
    for [reads, other] in [[0, 1], [1, 0]] {
        let other = SocketAddr::from((Ipv4Addr::LOCALHOST, brokers[other].port()));
        federation::federate(brokers[reads], other, &farm, TTL);
    }
    let ((), tally) = Hopping::during(&targets, &TICKETS, |hopping| {
        clients_come_back(hopping);
        let order = moving.order();
        moving.move_host(order[0]);
        // The exchange at the new broker is there since the first node is.
        [&moving.old, &moving.new].into_iter().for_each(federation::wait_for_link);
        for at in [order[1], order[0]] {
            let minted = moving.minted_at(at);
            moving.seal_with(minted);
            clients_come_back(hopping);
        }
        for host in &order[1..] {
            moving.move_host(*host);
            clients_come_back(hopping);
        }
        federation::part(&moving.new);
        let keys = moving.keys();
        moving.is_over(&keys);
        clients_come_back(hopping);
    });
    none_refused(&tally);
    assert!(tally.keys.len() >= 4, "{:?}", tally.keys);
    session_ids_cross(&targets);
}
