//! What a farm of real processes does when its broker, or a part of a cluster of them, dies, splits or runs out of memory.
//!
//! The tests of a cluster put each broker on a network of its own: run them as root.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use resumed::internals::probe::Mode;
use testkit::broker::{Broker, BrokerOptions, Store};
use testkit::farm::{Farm, FarmSetup, Proxies, wait_for};
use testkit::hopping::Hopping;
use testkit::load::SessionLoad;
use testkit::namespaces::{NetHost, Network, apart};
use testkit::rabbitmq::{RabbitMq, say_not_run};

/// In the environment: how long a node that freezes stays so at least, in seconds.
const FREEZE: &str = "RESUMED_FREEZE_SECONDS";

/// For so long it stays so after its feed is full: what does not fit is dropped from the front then.
const OVERFLOW: Duration = Duration::from_secs(8);

/// Sessions a second for a node that freezes, if the tests do not run alone: a feed fills within the minute.
const LOAD: u64 = 20_000;

/// What a session feed may hold at the broker (`RabbitMqSettings::feed_max_bytes`).
const FEED_BYTES: u64 = 64 << 20;

/// A cluster that has not healed itself by then, and says that it gave up, will not.
const AUTOHEAL_WITHIN: Duration = Duration::from_secs(20);

fn beat() -> Duration {
    Duration::from_secs(2)
}

/// Three brokers, each on a host of its own. Its second network, which clients do not use, is the cluster's.
struct Cluster {
    brokers: Vec<Broker>,
    hosts: Vec<NetHost>,
}

impl Cluster {
    fn start(conf: &str) -> Self {
        Self::start_in(Store::Default, conf)
    }

    /// With its metadata in `store`.
    fn start_in(store: Store, conf: &str) -> Self {
        let network = Network::new(2);
        let hosts: Vec<NetHost> = (0..3).map(|_| network.host()).collect();
        let options = BrokerOptions { conf: conf.to_owned(), store, ..BrokerOptions::default() };
        let brokers = Broker::cluster_with(&hosts, &options);
        Self { brokers, hosts }
    }

    /// A farm of which each node is at a broker of its own.
    fn farm(&self, setup: impl FnOnce(FarmSetup) -> FarmSetup) -> Farm {
        let uris: Vec<String> = self.brokers.iter().map(Broker::uri).collect();
        let setup = setup(FarmSetup { uris_in_turn: true, ..FarmSetup::new(3, &uris.join(",")) });
        let farm = Farm::start_in_step(&setup);
        for index in 0..3 {
            assert_eq!(self.broker_of(&farm, index), Some(index), "host{index}'s broker");
        }
        farm
    }

    /// The broker that a node is connected to.
    fn broker_of(&self, farm: &Farm, host: usize) -> Option<usize> {
        let uri = farm.hosts[host].daemon.try_status().ok()?.broker.uri;
        let address = |broker: &usize| uri.contains(&format!("@{}:", self.hosts[*broker].address(0)));
        (0..3).find(address)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (broker, number) in self.brokers.iter().zip(1..) {
                let said = broker.history();
                let about =
                    |line: &&str| ["artition", "utoheal", "rabbit on node", "ause"].iter().any(|w| line.contains(w));
                let said: Vec<&str> = said.lines().filter(about).collect();
                eprintln!("broker {number} said of the cluster:\n{}", said.join("\n"));
            }
        }
    }
}

fn leaders(farm: &Farm) -> Vec<usize> {
    (0..farm.hosts.len()).filter(|at| farm.hosts[*at].daemon.try_metric("resumed_leader") == Some(1.0)).collect()
}

/// What each node holds.
fn rings(farm: &Farm) -> Vec<BTreeSet<u64>> {
    farm.hosts.iter().map(|host| host.daemon.generations()).collect()
}

fn steps_down(farm: &Farm) -> usize {
    farm.hosts.iter().map(|host| host.daemon.log().matches("this node leads no longer").count()).sum()
}

/// The leader, if all nodes are connected, one leads, and each holds `keys` and what the others hold.
fn look(farm: &Farm, keys: &BTreeSet<u64>) -> Result<usize, String> {
    let leaders = leaders(farm);
    let [leader] = leaders[..] else { return Err(format!("leaders: {leaders:?}")) };
    let mut fingerprints = BTreeSet::new();
    for host in &farm.hosts {
        let status = host.daemon.try_status()?;
        let held: BTreeSet<u64> = status.ring.keys.iter().map(|key| key.generation).collect();
        if !keys.is_subset(&held) {
            return Err(format!("{} lacks {:?}", host.name, keys - &held));
        }
        let in_step = status.nodes.iter().filter(|node| node.in_step).count();
        if in_step != farm.hosts.len() || !status.broker.connected {
            return Err(format!("{} sees {status:?}", host.name));
        }
        fingerprints.insert(status.ring.fingerprint);
    }
    if fingerprints.len() == 1 { Ok(leader) } else { Err(format!("rings: {fingerprints:?}")) }
}

/// Waits for that. Returns how long it took, too.
fn one_farm(farm: &Farm, keys: &BTreeSet<u64>) -> (usize, Duration) {
    wait_for("one leader and one ring", || look(farm, keys))
}

/// For three beats the same node leads, and nobody steps down.
fn stays(farm: &Farm, leader: usize) {
    let before = steps_down(farm);
    let start = Instant::now();
    while start.elapsed() < 3 * beat() {
        assert_eq!(leaders(farm), [leader], "after {:?}", start.elapsed());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(steps_down(farm), before, "a leader stepped down");
}

fn rotate(farm: &Farm, host: usize) {
    let output = farm.hosts[host].daemon.command(&["rotate"]);
    println!("rotate at host{host}: {}", String::from_utf8_lossy(&output.stdout).lines().last().unwrap_or_default());
}

#[test]
fn the_broker_that_holds_the_lease_dies_and_its_return_does_not_disturb_the_new_leader() {
    apart(|| {
        let cluster = Cluster::start("");
        let farm = cluster.farm(|setup| setup);
        let targets = farm.targets();
        let before = farm.leader();
        let ring = farm.hosts[before].daemon.generations();
        let modes = [Mode::Ticket12, Mode::Ticket13];
        let ((), tally) = Hopping::during(&targets, &modes, |_| {
            let killed = Instant::now();
            cluster.brokers[before].kill();
            farm.hosts[before].daemon.wait_for_metric("resumed_leader", |leads| leads == 0.0);
            farm.another_leads(&[0, 1, 2]);
            println!("a leader {:?} after the lease's broker was killed", killed.elapsed());
            let (leader, _) = one_farm(&farm, &ring);
            println!("one farm at two brokers {:?} after the kill, led by host{leader}", killed.elapsed());
            assert_ne!(cluster.broker_of(&farm, before), Some(before));
            cluster.brokers[before].revive();
            stays(&farm, leader);
        });
        assert!(tally.refused.is_empty(), "{} refused: {:#?}", tally.refused.len(), &tally.refused[..1]);
        println!("{} tickets offered meanwhile, none refused", tally.tickets);
        assert!(tally.tickets > 20, "only {} offers", tally.tickets);
        assert_eq!(farm.hosts[before].daemon.generations(), ring, "the ring changed");
    });
}

/// So does one on Khepri, which knows no other way: its minority keeps its clients and makes no queue, and nodes go by that.
#[test]
fn a_cluster_that_pauses_its_minority_splits_and_heals_without_losing_a_key() {
    apart(|| {
        let cluster = Cluster::start("cluster_partition_handling = pause_minority");
        let farm = cluster.farm(|setup| FarmSetup { proxies: Proxies::None, ..setup });
        let before = farm.leader();
        let cut = Instant::now();
        cluster.hosts[before].cut(1);
        farm.hosts[before].daemon.wait_for_metric("resumed_leader", |leads| leads == 0.0);
        let (leader, _) = farm.another_leads(&[0, 1, 2]);
        println!("the paused broker let its lease go, and host{leader} led, {:?} after the cut", cut.elapsed());
        one_farm(&farm, &BTreeSet::new());
        println!("all three nodes at the majority {:?} after the cut", cut.elapsed());
        rotate(&farm, leader);
        let keys: BTreeSet<u64> = rings(&farm).into_iter().flatten().collect();
        let (leader, _) = one_farm(&farm, &keys);
        let healed = Instant::now();
        cluster.hosts[before].heal(1);
        wait_for("the paused broker's return", || {
            let running = cluster.brokers[leader].running();
            if running == 3 { Ok(()) } else { Err(format!("{running} run")) }
        });
        println!("three brokers again {:?} after the healing", healed.elapsed());
        stays(&farm, leader);
        one_farm(&farm, &keys);
    });
}

/// Only Mnesia makes queues on both sides of a split. 4.3 has it no more: there the test above says what a split does.
#[test]
fn a_cluster_that_heals_itself_splits_with_a_leader_on_each_side_and_ends_with_one_ring() {
    let version = RabbitMq::chosen().version();
    if version.at_least(4, 3) {
        let why =
            format!("RabbitMQ {version} has no Mnesia: no cluster of it has two halves that both take declarations");
        say_not_run("a cluster that heals itself", &why);
        return;
    }
    apart(|| {
        let cluster = Cluster::start_in(Store::Mnesia, "cluster_partition_handling = autoheal");
        let farm = cluster.farm(|setup| FarmSetup { proxies: Proxies::None, ..setup });
        let before = farm.leader();
        let cut = Instant::now();
        cluster.hosts[before].cut(1);
        let (other, _) = wait_for("a leader on each side", || {
            let leaders = leaders(&farm);
            let other = leaders.iter().find(|leader| **leader != before).copied();
            other.filter(|_| leaders.contains(&before)).ok_or_else(|| format!("leaders: {leaders:?}"))
        });
        println!("two leaders, host{before} and host{other}, {:?} after the cut", cut.elapsed());
        // Each side mints a key that the other does not know.
        rotate(&farm, before);
        rotate(&farm, other);
        let held = rings(&farm);
        assert_ne!(held[before], held[other], "the sides hear each other");
        let keys: BTreeSet<u64> = held.into_iter().flatten().collect();
        let healed = Instant::now();
        cluster.hosts[before].heal(1);
        // RabbitMQ decides on what it sees of the partition at the first moment. If that is a half, it restarts too few brokers:
        // 3.10 says "Autoheal: aborting", 4.0 asks a broker that restarts just then. Either stays split until an operator
        // restarts a broker of the smaller side. No client can mend that.
        while look(&farm, &keys).is_err() {
            let split: Vec<usize> = cluster.brokers.iter().map(Broker::split_from).collect();
            let most = (0..3).max_by_key(|broker| split[*broker]).expect("three brokers");
            if healed.elapsed() > AUTOHEAL_WITHIN && split[most] > 0 {
                println!("split from {split:?} others {:?} after the healing: restarting a broker", healed.elapsed());
                cluster.brokers[most].restart();
                break;
            }
            assert!(healed.elapsed() < 3 * AUTOHEAL_WITHIN, "split from {split:?}: {:?}", look(&farm, &keys));
            std::thread::sleep(Duration::from_millis(50));
        }
        let (leader, _) = one_farm(&farm, &keys);
        println!("one leader and one ring {:?} after the healing", healed.elapsed());
        stays(&farm, leader);
        one_farm(&farm, &keys);
    });
}

#[test]
fn a_memory_alarm_costs_sessions_and_neither_a_key_nor_the_lead() {
    let broker = Broker::start();
    let farm = Farm::start_in_step(&FarmSetup { proxies: Proxies::None, ..FarmSetup::new(3, &broker.uri()) });
    let leader = farm.leader();
    let ring = farm.hosts[leader].daemon.generations();
    let daemon = &farm.hosts[0].daemon;
    let blocked = || daemon.metric("resumed_sessions_dropped_total{reason=\"broker_blocked\"}");
    let load = SessionLoad::start(&daemon.home().join("ats.sock"), 500);
    daemon.wait_for_metric("resumed_sessions_published_total", |published| published > 0.0);
    let threshold = broker
        .ctl(&["eval", "{ok, {absolute, _}} = {ok, {absolute, 0}}, vm_memory_monitor:get_vm_memory_high_watermark()."]);

    broker.ctl(&["set_vm_memory_high_watermark", "0"]);
    let alarm = Instant::now();
    wait_for("sessions dropped", || if blocked() > 0.0 { Ok(()) } else { Err("none".to_owned()) });
    println!("sessions were dropped {:?} after the alarm", alarm.elapsed());
    // Well beyond the three beats after which silence would be a fault.
    let (before, dropped, made) = (steps_down(&farm), blocked(), load.made());
    while alarm.elapsed() < 5 * beat() {
        assert_eq!(leaders(&farm), [leader], "{:?} after the alarm", alarm.elapsed());
        std::thread::sleep(Duration::from_millis(100));
    }
    let (dropped, made) = (blocked() - dropped, load.made() - made);
    println!("{dropped} of {made} sessions dropped while the alarm lasted");
    assert!(dropped > 0.0);

    broker.ctl(&["set_vm_memory_high_watermark", threshold.trim()]);
    let over = Instant::now();
    let published = daemon.metric("resumed_sessions_published_total");
    daemon.wait_for_metric("resumed_sessions_published_total", |now| now > published);
    println!("sessions flowed again {:?} after the alarm", over.elapsed());
    one_farm(&farm, &ring);
    println!("one farm in step {:?} after the alarm", over.elapsed());
    stays(&farm, leader);
    assert_eq!(steps_down(&farm), before, "the lead moved");
    for host in &farm.hosts {
        assert_eq!(host.daemon.metric("resumed_broker_reconnects_total"), 0.0, "{} reconnected", host.name);
    }
    load.stop();
    rotate(&farm, 0);
    assert!(farm.hosts[0].daemon.generations().len() > ring.len(), "rotation does not go on");
}

/// What a process holds in memory, in bytes.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    1024 * line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
}

#[test]
fn a_frozen_node_under_full_load_fills_its_queue_to_the_limit_and_catches_up_when_it_thaws() {
    let least = Duration::from_secs(std::env::var(FREEZE).map_or(0, |seconds| seconds.parse().expect("seconds")));
    let broker = Broker::start();
    // With the default of 5 s the broker would let the frozen node's queues go after ten.
    let setup = FarmSetup {
        proxies: Proxies::None,
        broker: "heartbeat = \"60s\"".to_owned(),
        ..FarmSetup::new(3, &broker.uri())
    };
    let farm = Farm::start_in_step(&setup);
    let leader = farm.leader();
    let (source, frozen) = (farm.others(leader)[0], farm.others(leader)[1]);
    let live = &farm.hosts[leader].daemon;
    let (source, frozen) = (&farm.hosts[source].daemon, &farm.hosts[frozen].daemon);
    let sessions = "resumed_messages_received_total{plane=\"sessions\"}";
    let sent = || source.metric("resumed_messages_sent_total{plane=\"sessions\"}");
    let load = SessionLoad::start(&source.home().join("ats.sock"), LOAD);
    frozen.wait_for_metric("resumed_sessions_received_total", |received| received > 10_000.0);

    let before = resident(broker.pid().expect("it runs"));
    let (began, made) = (Instant::now(), load.made());
    frozen.signal(Signal::SIGSTOP);
    let (mut fullest, mut largest, mut full_after) = (0, 0, None);
    while full_after.is_none_or(|after| began.elapsed() < least.max(after + OVERFLOW)) {
        let listed = broker.ctl(&["list_queues", "name", "messages", "message_bytes", "memory"]);
        let mine = |line: &&str| line.contains(".sessions.") && line.contains(&format!(".{}.", frozen.name()));
        let line = listed.lines().find(mine).unwrap_or_else(|| panic!("the feed is gone:\n{listed}"));
        let bytes: u64 = line.split('\t').nth(2).and_then(|bytes| bytes.parse().ok()).expect("bytes");
        fullest = fullest.max(bytes);
        largest = largest.max(resident(broker.pid().expect("it runs")));
        if bytes > FEED_BYTES - (1 << 20) {
            full_after.get_or_insert(began.elapsed());
        }
        assert!(began.elapsed() < Duration::from_secs(120), "the queue does not fill: {line}");
    }
    let through = load.made() - made;
    println!(
        "frozen for {:?}: {through} sessions went through; the feed was full after {:?} and held {} MiB at most; the \
         broker's memory rose by {} MiB",
        began.elapsed(),
        full_after.unwrap_or_default(),
        fullest >> 20,
        largest.saturating_sub(before) >> 20
    );
    // What is delivered and not acknowledged counts as well: a prefetch of 128 batches of 96 KiB.
    assert!(fullest <= FEED_BYTES + (16 << 20), "the feed held {fullest} bytes");
    assert!(largest.saturating_sub(before) < 4 * FEED_BYTES, "the broker grew from {before} to {largest} bytes");

    let thawed = Instant::now();
    frozen.signal(Signal::SIGCONT);
    let target = sent();
    wait_for("the thawed node at the live end", || {
        let seen = frozen.metric(sessions) + frozen.metric("resumed_messages_missed_total");
        if seen >= target { Ok(()) } else { Err(format!("{seen} of {target} batches")) }
    });
    println!("the thawed node was live again after {:?}", thawed.elapsed());
    load.stop();
    let (received, _) = wait_for("every batch at the live node", || {
        let (received, sent) = (live.metric(sessions), sent());
        if received == sent { Ok(received) } else { Err(format!("{received} of {sent}")) }
    });
    assert_eq!(live.metric("resumed_messages_missed_total"), 0.0, "the live node missed something");
    let (missed, _) = wait_for("every batch received or counted as missed", || {
        let (seen, missed) = (frozen.metric(sessions), frozen.metric("resumed_messages_missed_total"));
        if seen + missed >= received { Ok(missed) } else { Err(format!("{seen} and {missed} of {received}")) }
    });
    println!("of {received} batches the thawed node counted {missed} as missed");
    assert!(missed > 0.0, "nothing was counted as missed");
    // What its queue held was not thrown away: a batch has 96 KiB at most.
    let kept = received - missed;
    assert!(kept >= (FEED_BYTES / (96 << 10)) as f64, "only {kept} batches of a full queue were taken in");
    assert_eq!(frozen.metric("resumed_broker_reconnects_total"), 0.0, "the thawed node reconnected");
    farm.wait_in_step();
    assert_eq!(leaders(&farm), [leader]);
}
