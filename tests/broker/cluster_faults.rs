//! What a farm does when a cluster of three brokers loses one, for each generation of the broker: RABBITMQ says which one,
//! RABBITMQ_STORE where it keeps its metadata. The brokers are set up as the Ansible role sets them up.
//!
//! Each broker is on a network of its own: run these tests as root.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use testkit::broker::{Broker, BrokerOptions, Store};
use testkit::farm::{Farm, FarmSetup, Proxies, wait_for};
use testkit::load::SessionLoad;
use testkit::namespaces::{NetHost, Network, apart};

/// From the death of the broker that serves the leader to another leader.
const LEADER_WITHIN: Duration = Duration::from_secs(5);
/// From there to sessions that cross again, among nodes whose own brokers live.
const SESSIONS_WITHIN: Duration = Duration::from_secs(5);
/// From there to requests of operators that succeed.
const REQUESTS_WITHIN: Duration = Duration::from_secs(10);
/// From a cut to every node at the majority.
const MAJORITY_WITHIN: Duration = Duration::from_secs(40);
/// `rabbitmq_net_ticktime` of the role.
const TICK_TIME: u32 = 15;
/// What Erlang does without it.
const FACTORY_TICK_TIME: u32 = 60;
/// How long a broker stays away that comes back.
const AWAY: Duration = Duration::from_secs(60);
const BEAT: Duration = Duration::from_secs(1);

/// Three brokers, a node at each, and a proxy beside each node that makes sessions.
struct Cluster {
    // In the order in which they go.
    loads: Vec<SessionLoad>,
    farm: Farm,
    brokers: Vec<Broker>,
    hosts: Vec<NetHost>,
}

impl Cluster {
    fn start() -> Self {
        // Where there is Mnesia the side without a majority stops. From 4.3 on that setting is taken and does nothing.
        Self::start_with("cluster_partition_handling = pause_minority", TICK_TIME)
    }

    fn start_with(conf: &str, tick_time: u32) -> Self {
        let network = Network::new(2);
        let hosts: Vec<NetHost> = (0..3).map(|_| network.host()).collect();
        let (conf, tick_time) = (conf.to_owned(), Some(tick_time));
        let options = BrokerOptions { conf, store: Store::chosen(), tick_time, ..BrokerOptions::default() };
        let brokers = Broker::cluster_with(&hosts, &options);
        println!("three brokers, {}, {:?}", brokers[0].versions(), brokers[0].store());
        let uris: Vec<String> = brokers.iter().map(Broker::uri).collect();
        let farm = Farm::start_in_step(&FarmSetup {
            uris_in_turn: true,
            proxies: Proxies::None,
            broker: "report_every = \"1s\"\n".to_owned(),
            ..FarmSetup::new(3, &uris.join(","))
        });
        let loads =
            farm.hosts.iter().map(|host| SessionLoad::start(&host.daemon.home().join("ats.sock"), 50)).collect();
        let cluster = Self { loads, farm, brokers, hosts };
        for host in 0..3 {
            assert_eq!(cluster.broker_of(host), Some(host), "host{host}'s broker");
        }
        cluster.one_farm(&BTreeSet::new());
        cluster.sessions_cross(&[0, 1, 2]);
        cluster
    }

    /// The broker that a node is connected to.
    fn broker_of(&self, host: usize) -> Option<usize> {
        let uri = self.farm.hosts[host].daemon.try_status().ok()?.broker.uri;
        (0..3).find(|broker| uri.contains(&format!("@{}:", self.hosts[*broker].address(0))))
    }

    fn leaders(&self) -> Vec<usize> {
        let leads = |at: &usize| self.farm.hosts[*at].daemon.try_metric("resumed_leader") == Some(1.0);
        (0..3).filter(leads).collect()
    }

    fn reconnects(&self, host: usize) -> f64 {
        self.farm.hosts[host].daemon.metric("resumed_broker_reconnects_total")
    }

    /// The leader, if one leads, all three are in step, and each holds `keys` and what the others hold.
    fn look(&self, keys: &BTreeSet<u64>) -> Result<usize, String> {
        let [leader] = self.leaders()[..] else { return Err(format!("leaders: {:?}", self.leaders())) };
        let mut fingerprints = BTreeSet::new();
        for host in &self.farm.hosts {
            let status = host.daemon.try_status()?;
            let held: BTreeSet<u64> = status.ring.keys.iter().map(|key| key.generation).collect();
            let in_step = status.nodes.iter().filter(|node| node.in_step).count();
            if !keys.is_subset(&held) || in_step != 3 || !status.broker.connected {
                return Err(format!("{}: {status:?}", host.name));
            }
            fingerprints.insert(status.ring.fingerprint);
        }
        if fingerprints.len() == 1 { Ok(leader) } else { Err(format!("rings: {fingerprints:?}")) }
    }

    fn one_farm(&self, keys: &BTreeSet<u64>) -> usize {
        wait_for("one leader and one ring", || self.look(keys)).0
    }

    fn generations(&self) -> BTreeSet<u64> {
        self.farm.hosts.iter().flat_map(|host| host.daemon.generations()).collect()
    }

    /// Waits until sessions of each of `hosts` reach the others of them.
    fn sessions_cross(&self, hosts: &[usize]) -> Duration {
        let received = |host: usize| self.farm.hosts[host].daemon.metric("resumed_sessions_received_total");
        let published = |host: usize| self.farm.hosts[host].daemon.metric("resumed_sessions_published_total");
        let before: Vec<(f64, f64)> = hosts.iter().map(|host| (received(*host), published(*host))).collect();
        let crossed = || {
            let now: Vec<(f64, f64)> = hosts.iter().map(|host| (received(*host), published(*host))).collect();
            let all = now.iter().zip(&before).all(|(now, then)| now.0 > then.0 && now.1 > then.1);
            if all { Ok(()) } else { Err(format!("received and published, before {before:?}, now {now:?}")) }
        };
        wait_for("sessions that cross", crossed).1
    }

    /// Asks for it until it succeeds.
    fn request(&self, host: usize, words: &[&str]) {
        wait_for("a request of an operator that succeeds", || {
            let output = self.farm.hosts[host].daemon.command(words);
            if output.status.success() { Ok(()) } else { Err(format!("{words:?}: {output:?}")) }
        });
    }

    /// A broker is gone since `gone`: what has to be there again, and when.
    fn recovers(&self, what: &str, gone: Instant, living: &[usize], reconnects: &[f64]) {
        // The node that led may lead again, at another broker.
        let connected = |host: usize| self.broker_of(host).is_some_and(|broker| self.brokers[broker].pid().is_some());
        wait_for("a leader at a broker that lives", || match self.leaders()[..] {
            [leader] if connected(leader) => Ok(()),
            _ => Err(format!("leaders: {:?}", self.leaders())),
        });
        let led = gone.elapsed();
        assert!(led < LEADER_WITHIN, "{what}: a leader after {led:?}");
        self.sessions_cross(living);
        let crossed = gone.elapsed();
        assert!(crossed < SESSIONS_WITHIN + LEADER_WITHIN, "{what}: sessions after {crossed:?}");
        self.request(living[0], &["rotate"]);
        self.request(living[1], &["revoke"]);
        let requested = gone.elapsed();
        assert!(requested < REQUESTS_WITHIN, "{what}: requests after {requested:?}");
        self.one_farm(&BTreeSet::new());
        println!(
            "{what}: a leader after {led:?}, sessions after {crossed:?}, rotate and revoke after {requested:?}, all in step \
             after {:?}",
            gone.elapsed()
        );
        for (host, before) in living.iter().zip(reconnects) {
            assert_eq!(self.reconnects(*host), *before, "{what}: host{host}, whose broker lives, connected anew");
        }
    }

    /// Takes the leader's broker away, and looks at what becomes of the farm. Returns which broker.
    fn lose_leaders_broker(&self, what: &str, lose: impl FnOnce(&Broker)) -> usize {
        let leader = self.one_farm(&BTreeSet::new());
        let broker = self.broker_of(leader).expect("the leader is connected");
        let living: Vec<usize> = (0..3).filter(|host| self.broker_of(*host) != Some(broker)).collect();
        assert_eq!(living.len(), 2, "two nodes at other brokers");
        let reconnects: Vec<f64> = living.iter().map(|host| self.reconnects(*host)).collect();
        let gone = Instant::now();
        lose(&self.brokers[broker]);
        // What a broker that stops in order does before it closes its connections is its own time.
        let gone = if what.contains("order") { Instant::now() } else { gone };
        self.recovers(what, gone, &living, &reconnects);
        broker
    }

    /// For `span` the same node leads, no node steps down and none connects anew.
    fn stays(&self, span: Duration) {
        let leader = self.one_farm(&BTreeSet::new());
        let steps_down =
            || self.farm.hosts.iter().map(|host| host.daemon.log().matches("leads no longer").count()).sum::<usize>();
        let reconnects = || (0..3).map(|host| self.reconnects(host)).sum::<f64>();
        let before = (steps_down(), reconnects());
        let start = Instant::now();
        while start.elapsed() < span {
            assert_eq!(self.leaders(), [leader], "after {:?}", start.elapsed());
            thread::sleep(Duration::from_millis(100));
        }
        assert_eq!((steps_down(), reconnects()), before, "a leader stepped down, or a node connected anew");
    }

    fn wait_for_all_brokers(&self) {
        wait_for("three brokers", || {
            let running: Vec<usize> = self.brokers.iter().map(Broker::running).collect();
            if running == [3, 3, 3] { Ok(()) } else { Err(format!("{running:?} run")) }
        });
    }

    /// Who leads, which broker each node is at, and whether it is one farm, said at each change for `span` or until `over`.
    /// Returns whether that came.
    fn watch(&self, what: &str, span: Duration, over: impl Fn(&[usize], &[Option<usize>], bool) -> bool) -> bool {
        let (start, mut before) = (Instant::now(), None);
        while start.elapsed() < span {
            let brokers: Vec<Option<usize>> = (0..3).map(|host| self.broker_of(host)).collect();
            let seen = (self.leaders(), brokers, self.look(&BTreeSet::new()).is_ok());
            if over(&seen.0, &seen.1, seen.2) {
                println!("{what}, after {:.1?}: {seen:?}, as wanted", start.elapsed());
                return true;
            }
            if before.as_ref() != Some(&seen) {
                println!("{what}, after {:.1?}: leaders, brokers of the nodes, one farm: {seen:?}", start.elapsed());
                before = Some(seen);
            }
            thread::sleep(Duration::from_millis(100));
        }
        println!("{what}: not within {span:?}");
        false
    }

    /// Each node begins with its own broker again, as after a restart of its host.
    fn nodes_go_home(&mut self) {
        self.loads.clear();
        for host in 0..3 {
            if self.broker_of(host) != Some(host) {
                self.farm.hosts[host].daemon.stop();
                self.farm.hosts[host].daemon.launch();
                wait_for("the node at its own broker", || match self.broker_of(host) {
                    Some(broker) if broker == host => Ok(()),
                    other => Err(format!("{other:?}")),
                });
            }
        }
        let sockets = self.farm.hosts.iter().map(|host| host.daemon.home().join("ats.sock"));
        self.loads = sockets.map(|socket| SessionLoad::start(&socket, 50)).collect();
        self.one_farm(&BTreeSet::new());
    }

    /// Cuts a broker off from the other two. Clients reach all three.
    fn cut_off(&self, what: &str, broker: usize) {
        let cut = Instant::now();
        self.hosts[broker].cut(1);
        let at_majority = || {
            let brokers: Vec<Option<usize>> = (0..3).map(|host| self.broker_of(host)).collect();
            let all = brokers.iter().all(|at| at.is_some_and(|at| at != broker));
            if all { self.look(&BTreeSet::new()) } else { Err(format!("nodes at brokers {brokers:?}")) }
        };
        let (leader, _) = wait_for("every node at the majority", at_majority);
        let moved = cut.elapsed();
        assert!(moved < MAJORITY_WITHIN, "{what}: {moved:?}");
        self.request(leader, &["rotate"]);
        let keys = self.generations();
        self.one_farm(&keys);
        println!("{what}: every node at the majority, one leader and one ring after {moved:?}");
        self.hosts[broker].heal(1);
        self.wait_for_all_brokers();
        self.stays(5 * BEAT);
        self.one_farm(&keys);
    }
}

#[test]
fn the_broker_of_the_leader_dies_stays_dead_and_is_forgotten() {
    apart(|| {
        let cluster = Cluster::start();
        let dead = cluster.lose_leaders_broker("killed, and dead", Broker::kill);
        cluster.stays(10 * BEAT);
        let forgotten = Instant::now();
        cluster.brokers[(dead + 1) % 3].ctl(&["forget_cluster_node", &cluster.brokers[dead].name()]);
        println!("forgotten in {:?}", forgotten.elapsed());
        // The leader goes home to the first queue, if it was at another.
        cluster.one_farm(&BTreeSet::new());
        let queues = || {
            cluster.brokers[(dead + 1) % 3].ctl(&["list_queues", "--local", "name"])
                + &cluster.brokers[(dead + 2) % 3].ctl(&["list_queues", "--local", "name"])
        };
        let home = format!("resumed.{}.leader", cluster.farm.name());
        wait_for("the lease at the first queue", || {
            let queues = queues();
            let leader: Vec<&str> = queues.lines().filter(|name| name.contains(".leader")).collect();
            if leader == [home.as_str()] { Ok(()) } else { Err(format!("{leader:?}")) }
        });
        cluster.stays(3 * BEAT);
        cluster.request((dead + 1) % 3, &["rotate"]);
        cluster.one_farm(&BTreeSet::new());
        cluster.sessions_cross(&[0, 1, 2]);
    });
}

#[test]
fn the_broker_of_the_leader_stops_in_order_and_another_dies_and_both_come_back() {
    apart(|| {
        let mut cluster = Cluster::start();
        let stopped = cluster.lose_leaders_broker("stopped in order", Broker::stop);
        cluster.brokers[stopped].revive();
        cluster.wait_for_all_brokers();
        cluster.stays(5 * BEAT);
        cluster.nodes_go_home();
        let killed = Instant::now();
        let dead = cluster.lose_leaders_broker("killed, and back after a minute", Broker::kill);
        cluster.stays(AWAY.saturating_sub(killed.elapsed()));
        cluster.brokers[dead].revive();
        cluster.wait_for_all_brokers();
        wait_for("a farm that the return does not disturb", || cluster.look(&BTreeSet::new()));
        cluster.stays(5 * BEAT);
        cluster.request(dead, &["rotate"]);
        cluster.one_farm(&BTreeSet::new());
        cluster.sessions_cross(&[0, 1, 2]);
    });
}

#[test]
fn a_broker_that_is_cut_off_from_its_cluster_loses_every_node_to_the_majority() {
    apart(|| {
        let mut cluster = Cluster::start();
        let leader = cluster.one_farm(&BTreeSet::new());
        cluster.cut_off("cut off, with the leader's node", leader);
        cluster.nodes_go_home();
        let leader = cluster.one_farm(&BTreeSet::new());
        cluster.cut_off("cut off, with another node", (leader + 1) % 3);
    });
}

/// With a `rabbitmq.conf` that says nothing of clusters brokers notice a cut after a minute and more, and where there is
/// Mnesia both halves go on. Measured without a bound, for `docs/faults.md`.
#[test]
#[ignore = "measures for up to ten minutes what other settings than those of docs/install.md cost"]
fn a_cluster_with_settings_of_the_factory_loses_the_broker_of_the_leader_and_then_its_links() {
    apart(|| {
        let mut cluster = Cluster::start_with("", FACTORY_TICK_TIME);
        let long = Duration::from_secs(180);
        let dead = cluster.broker_of(cluster.one_farm(&BTreeSet::new())).expect("a broker");
        let living: Vec<usize> = (0..3).filter(|host| cluster.broker_of(*host) != Some(dead)).collect();
        let killed = Instant::now();
        cluster.brokers[dead].kill();
        let at_living = |brokers: &[Option<usize>]| brokers.iter().all(|at| at.is_some_and(|at| at != dead));
        assert!(cluster.watch("killed", long, |_, brokers, one| one && at_living(brokers)));
        cluster.sessions_cross(&living);
        println!("killed: sessions cross, seen after {:?}", killed.elapsed());
        cluster.brokers[dead].revive();
        cluster.wait_for_all_brokers();
        cluster.nodes_go_home();

        let leader = cluster.one_farm(&BTreeSet::new());
        cluster.hosts[leader].cut(1);
        let left = |brokers: &[Option<usize>]| brokers.iter().all(|at| at.is_some_and(|at| at != leader));
        cluster.watch("cut", long, |_, brokers, one| one && left(brokers));
        cluster.hosts[leader].heal(1);
        if !cluster
            .watch("healed", long / 2, |_, _, one| one && cluster.brokers.iter().all(|broker| broker.running() == 3))
        {
            cluster.brokers[leader].restart();
            assert!(cluster.watch("healed, and the broker restarted", long, |_, _, one| one));
        }
    });
}

#[test]
fn brokers_that_restart_one_after_the_other_and_all_at_once_cost_no_key() {
    apart(|| {
        let cluster = Cluster::start();
        cluster.request(0, &["rotate"]);
        let keys = cluster.generations();
        for broker in &cluster.brokers {
            broker.stop();
            broker.revive();
            cluster.wait_for_all_brokers();
            cluster.one_farm(&keys);
        }
        cluster.sessions_cross(&[0, 1, 2]);
        cluster.request(0, &["rotate"]);
        let keys = cluster.generations();
        let gone = Instant::now();
        cluster.brokers.iter().for_each(Broker::kill);
        thread::scope(|scope| {
            for broker in &cluster.brokers {
                scope.spawn(|| broker.revive_in_a_few_attempts());
            }
        });
        let back = gone.elapsed();
        cluster.one_farm(&keys);
        println!("all killed at once: brokers back after {back:?}, one farm after {:?}", gone.elapsed());
        cluster.sessions_cross(&[0, 1, 2]);
        cluster.request(1, &["rotate"]);
        cluster.stays(3 * BEAT);
    });
}

#[test]
fn a_memory_alarm_of_one_broker_stops_sessions_and_moves_neither_the_lead_nor_a_link() {
    apart(|| {
        let cluster = Cluster::start();
        let leader = cluster.one_farm(&BTreeSet::new());
        let reconnects = || (0..3).map(|host| cluster.reconnects(host)).collect::<Vec<f64>>();
        let before = reconnects();
        let dropped = "resumed_sessions_dropped_total{reason=\"broker_blocked\"}";
        cluster.brokers[leader].ctl(&["set_vm_memory_high_watermark", "0.000001"]);
        cluster.farm.hosts[leader].daemon.wait_for_metric(dropped, |dropped| dropped > 0.0);
        let alarm = Instant::now();
        while alarm.elapsed() < 8 * BEAT {
            assert_eq!(cluster.leaders(), [leader], "{:?} after the alarm", alarm.elapsed());
            thread::sleep(Duration::from_millis(100));
        }
        cluster.brokers[leader].ctl(&["set_vm_memory_high_watermark", "0.4"]);
        let over = Instant::now();
        let crossed = cluster.sessions_cross(&[0, 1, 2]);
        cluster.one_farm(&BTreeSet::new());
        println!("after an alarm of 8 s: sessions after {crossed:?}, all in step after {:?}", over.elapsed());
        cluster.stays(3 * BEAT);
        assert_eq!(reconnects(), before, "a node connected anew");
        cluster.request(0, &["rotate"]);
    });
}

#[test]
fn connections_that_an_operator_closes_again_and_again_leave_none_behind() {
    let broker = Broker::start();
    let farm = Farm::start_in_step(&FarmSetup {
        proxies: Proxies::None,
        broker: "report_every = \"1s\"\n".to_owned(),
        ..FarmSetup::new(3, &broker.uri())
    });
    let start = Instant::now();
    let (mut rounds, mut closed) = (0, 0);
    while start.elapsed() < AWAY {
        // It fails where a connection that it has listed ends by itself before its turn comes.
        match broker.try_ctl(&["close_all_user_connections", "guest", "again"]) {
            Ok(_) => closed += 1,
            Err(fault) => println!("{fault}"),
        }
        rounds += 1;
        thread::sleep((rounds * Duration::from_secs(3)).saturating_sub(start.elapsed()));
    }
    assert!(2 * closed >= rounds, "of {rounds} attempts to close all connections {closed} went through");
    farm.wait_in_step();
    let leader = farm.leader();
    // Two for each node, and one for the lease.
    let expected = 7;
    let (names, took) = wait_for("two connections for each node", || {
        let listed = broker.ctl(&["list_connections", "state", "client_properties"]);
        let running = listed.lines().filter(|line| line.starts_with("running")).count();
        let heading = usize::from(listed.starts_with("state"));
        if running == expected && listed.lines().count() == expected + heading { Ok(listed) } else { Err(listed) }
    });
    println!("closed {closed} times, led by host{leader}: {expected} connections {took:?} later");
    for host in &farm.hosts {
        for role in ["publish", "consume"] {
            assert_eq!(names.matches(&format!("resumed {} {role}", host.name)).count(), 1, "{names}");
        }
    }
}
