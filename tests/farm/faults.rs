//! What a farm of real processes does when parts of it die, freeze, restart or are cut off.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use resumed::internals::hex::hex;
use resumed::internals::keys::KeyState;
use resumed::internals::probe::{Client, Mode, Options, Session, Target};
use testkit::broker::Broker;
use testkit::farm::{Farm, FarmSetup, Proxies, wait_for};
use testkit::hopping::Hopping;
use testkit::network::Dropping;
use testkit::sessions::refused_at;

fn client() -> Client {
    Client::new(Options::default()).expect("a client")
}

fn resumes(client: &Client, target: &Target, session: &Session) -> bool {
    client.resume(target, session).unwrap_or_else(|error| panic!("resuming at {target}: {error}")).resumed
}

fn make(client: &Client, target: &Target, mode: Mode) -> Session {
    client.handshake(target, mode).unwrap_or_else(|error| panic!("a full handshake at {target}: {error}")).session
}

/// Ends what runs beside a test, also if the test panics.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Clients hop between hosts with tickets during `faults`, and none may be refused. Returns how many were offered.
fn no_ticket_is_refused_during(targets: &[Target], faults: impl FnOnce()) -> usize {
    let ((), tally) = Hopping::during(targets, &[Mode::Ticket12, Mode::Ticket13], |_| faults());
    let refused = tally.refused;
    assert!(refused.is_empty(), "{} of {} tickets refused: {:#?}", refused.len(), tally.tickets, &refused[..1]);
    tally.tickets
}

#[test]
fn a_killed_leader_is_replaced_within_five_seconds_with_the_same_ring_and_no_refusal() {
    let broker = Broker::shared();
    let mut farm = Farm::start_in_step(&FarmSetup::new(3, &broker.uri()));
    let targets = farm.targets();
    let leader = farm.leader();
    let before = farm.hosts[farm.others(leader)[0]].daemon.generations();
    let offered = no_ticket_is_refused_during(&targets, || {
        farm.hosts[leader].daemon.kill();
        let rest = farm.others(leader);
        let (next, took) = farm.another_leads(&rest);
        println!("another led {took:?} after the leader was killed");
        assert!(took < Duration::from_secs(5), "another led only after {took:?}");
        farm.wait_in_step_at(next);
        assert_eq!(farm.hosts[next].daemon.generations(), before, "the ring changed with the leader");
        // The killed daemon's proxy went on with its keys; its daemon finds its ring again.
        farm.hosts[leader].daemon.launch();
        farm.wait_in_step_at(leader);
        assert_eq!(farm.hosts[leader].daemon.generations(), before, "the killed daemon's ring");
        assert!(farm.hosts[leader].daemon.log().contains("took up the ring of the last run"));
    });
    println!("{offered} tickets offered meanwhile, none refused");
    assert!(offered > 20, "only {offered} offers");
}

#[test]
fn a_frozen_leader_is_replaced_and_follows_when_it_thaws() {
    let broker = Broker::shared();
    let farm = Farm::start_in_step(&FarmSetup::new(3, &broker.uri()));
    let targets = farm.targets();
    let leader = farm.leader();
    let before = farm.hosts[leader].daemon.generations();
    no_ticket_is_refused_during(&targets, || {
        let frozen = Instant::now();
        farm.hosts[leader].daemon.signal(Signal::SIGSTOP);
        let (next, took) = farm.another_leads(&farm.others(leader));
        println!("another led {took:?} after the leader was frozen");
        std::thread::sleep(Duration::from_secs(30).saturating_sub(frozen.elapsed()));
        farm.hosts[leader].daemon.signal(Signal::SIGCONT);
        farm.hosts[leader].daemon.wait_for_metric("resumed_leader", |value| value == 0.0);
        assert_eq!(farm.leader(), next, "one leader, and the thawed one follows");
        let status = farm.wait_in_step_at(leader);
        assert_eq!(status.nodes.iter().filter(|node| node.in_step).count(), 3, "{status:?}");
        assert_eq!(farm.hosts[leader].daemon.generations(), before, "one ring, that of before");
    });
}

#[test]
fn a_stopped_leader_says_farewell_within_two_seconds_and_the_lease_moves_at_once() {
    let broker = Broker::shared();
    let mut farm = Farm::start_in_step(&FarmSetup { proxies: Proxies::None, ..FarmSetup::new(3, &broker.uri()) });
    let leader = farm.leader();
    let rest = farm.others(leader);
    let (status, took) = farm.hosts[leader].daemon.stop();
    assert!(status.success(), "{status}");
    assert!(took < Duration::from_secs(2), "stopped only after {took:?}");
    let (next, moved) = farm.another_leads(&rest);
    println!("stopped in {took:?}; another led {moved:?} later");
    assert!(moved < Duration::from_secs(1), "the lease moved only after {moved:?}");
    let (gone, _) = wait_for("the stopped node's leaving", || {
        let status = farm.hosts[next].daemon.try_status()?;
        let left = status.nodes.iter().all(|node| node.name != format!("host{leader}"));
        if left && status.nodes.iter().all(|node| node.in_step) { Ok(status) } else { Err(format!("{status:?}")) }
    });
    assert_eq!(gone.nodes.len(), 2);
}

#[test]
fn without_its_daemon_a_proxy_goes_on_serving_resuming_and_rotating() {
    let broker = Broker::shared();
    let setup = FarmSetup {
        keys: "interval = \"4s\"\nsettle = \"200ms\"\nkeep = 3".to_owned(),
        ..FarmSetup::new(2, &broker.uri())
    };
    let mut farm = Farm::start_in_step(&setup);
    let (client, targets) = (client(), farm.targets());
    // The next key is at the proxies an interval before it seals, and no daemon is needed for the change.
    let next = |farm: &Farm| {
        let status = farm.hosts[0].daemon.try_status()?;
        let next = status.ring.keys.iter().find(|key| key.state == KeyState::Next).map(|key| key.name_prefix.clone());
        next.ok_or_else(|| format!("no next key: {:?}", status.ring))
    };
    let (prefix, _) = wait_for("a next key", || next(&farm));
    farm.hosts[0].daemon.kill();
    farm.hosts[1].daemon.kill();
    let (made, _) = wait_for("a ticket of the next key", || {
        let made = make(&client, &targets[0], Mode::Ticket12);
        let name = hex(&made.ticket()[..4]);
        if name == prefix { Ok(made) } else { Err(format!("sealed by {name}, not {prefix}")) }
    });
    let resumed_elsewhere = || if resumes(&client, &targets[1], &made) { Ok(()) } else { Err("refused".to_owned()) };
    wait_for("the other proxy to open it", resumed_elsewhere);
    for host in &mut farm.hosts {
        host.daemon.launch();
    }
    farm.wait_in_step();
    assert!(resumes(&client, &targets[1], &made), "refused after the daemons came back");
}

#[test]
fn a_daemon_that_comes_back_without_ring_and_broker_takes_no_key_from_its_proxy_but_a_revoked_one() {
    let broker = Broker::start();
    let mut farm = Farm::start_in_step(&FarmSetup::new(2, &broker.uri()));
    let (client, targets) = (client(), farm.targets());
    let made = [Mode::Ticket12, Mode::Ticket13].map(|mode| make(&client, &targets[1], mode));
    // Clients hop: what the first host seals must open at the second.
    let offered = no_ticket_is_refused_during(&targets, || {
        broker.kill();
        farm.hosts[0].daemon.kill();
        std::fs::remove_file(farm.dir().join("host0/ring")).expect("the saved ring");
        farm.hosts[0].daemon.launch();
        let daemon = &farm.hosts[0].daemon;
        daemon.wait_for_metric("resumed_proxies_connected", |proxies| proxies == 1.0);
        assert!(made.iter().all(|ticket| resumes(&client, &targets[0], ticket)), "before it has a key");
        // Then it mints a key for itself, which no other host has.
        farm.hosts[0].ats().wait_for_note("the daemon came without its ring");
        assert!(made.iter().all(|ticket| resumes(&client, &targets[0], ticket)), "with a key of its own");
    });
    println!("{offered} tickets offered meanwhile, none refused");

    // A revocation is another matter, also on a daemon that does not know what it revokes.
    let revoked = farm.hosts[0].daemon.command(&["revoke", "--local"]);
    assert!(revoked.status.success(), "{revoked:?}");
    refused_at(&client, &targets[0], &made);
    broker.revive();
    farm.wait_in_step();
    refused_at(&client, &targets[1], &made);
    farm.assert_all_resume(Mode::Ticket12);
}

#[test]
fn a_restarted_proxy_is_refilled_and_resumes_sessions_from_before() {
    let broker = Broker::shared();
    let setup = FarmSetup { proxies: Proxies::SessionIds, ..FarmSetup::new(2, &broker.uri()) };
    let mut farm = Farm::start_in_step(&setup);
    let (client, targets) = (client(), farm.targets());
    let sessions: Vec<Session> = (0..200).map(|turn| make(&client, &targets[turn % 2], Mode::Id)).collect();
    for host in &farm.hosts {
        host.daemon.wait_for_metric("resumed_cache_entries", |entries| entries >= 200.0);
    }
    farm.hosts[0].ats_mut().restart();
    farm.hosts[0].daemon.wait_for_metric("resumed_proxies_connected", |proxies| proxies == 1.0);
    let (refused, _) = wait_for("the refill", || {
        let refused = sessions.iter().filter(|session| !resumes(&client, &targets[0], session)).count();
        if refused == 0 { Ok(refused) } else { Err(format!("{refused} of 200 refused")) }
    });
    assert_eq!(refused, 0);
}

#[test]
fn a_broker_restarted_under_load_loses_no_key_and_only_the_sessions_of_its_absence() {
    let broker = Broker::start();
    let farm = Farm::start_in_step(&FarmSetup { proxies: Proxies::SessionIds, ..FarmSetup::new(3, &broker.uri()) });
    let (client, targets) = (client(), farm.targets());
    let before = farm.hosts[0].daemon.generations();
    let (over, begun) = (AtomicBool::new(false), AtomicUsize::new(0));
    let made_meanwhile = std::thread::scope(|scope| {
        scope.spawn(|| {
            for turn in 0.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                begun.store(turn + 1, Ordering::Relaxed);
                make(&client, &targets[turn % 3], Mode::Id);
            }
        });
        let _over = Over(&over);
        std::thread::sleep(Duration::from_secs(1));
        let before = begun.load(Ordering::Relaxed);
        broker.kill();
        for host in &farm.hosts {
            host.daemon.wait_for_metric("resumed_broker_connected", |value| value == 0.0);
        }
        broker.revive();
        let back = Instant::now();
        for host in &farm.hosts {
            host.daemon.wait_for_metric("resumed_broker_connected", |value| value == 1.0);
        }
        println!("all nodes were back {:?} after the broker", back.elapsed());
        assert!(back.elapsed() < Duration::from_secs(5), "back only {:?} after the broker", back.elapsed());
        // The one under way when the broker was killed, too.
        begun.load(Ordering::Relaxed) - before + 1
    });
    farm.wait_in_step();
    for index in 0..3 {
        assert!(before.is_subset(&farm.hosts[index].daemon.generations()), "host{index} lost a key");
        let away = farm.hosts[index].daemon.metric("resumed_sessions_dropped_total{reason=\"broker_away\"}");
        println!("host{index} counted {away} sessions lost while the broker was away");
    }
    let lost = |reason| {
        let series = format!("resumed_sessions_dropped_total{{reason=\"{reason}\"}}");
        farm.hosts.iter().map(|host| host.daemon.metric(&series)).sum::<f64>()
    };
    let counted = lost("broker_away") + lost("not_sent");
    println!("{counted} of {made_meanwhile} sessions made meanwhile were counted as lost");
    assert!(lost("broker_away") > 0.0, "nothing was counted as lost");
    assert!(counted <= made_meanwhile as f64, "{counted} lost, but only {made_meanwhile} made meanwhile");
    // What is made from now on is shared again.
    let made = make(&client, &targets[0], Mode::Id);
    wait_for("sessions shared again", || {
        if resumes(&client, &targets[1], &made) { Ok(()) } else { Err("refused".to_owned()) }
    });
}

#[test]
fn a_broker_that_accepts_and_drops_is_dialled_a_few_times_in_ten_seconds() {
    let broker = Broker::shared();
    let front = Dropping::before(SocketAddr::from((Ipv4Addr::LOCALHOST, broker.port())));
    let uri = broker.uri().replace(&format!(":{}/", broker.port()), &format!(":{}/", front.address().port()));
    let farm = Farm::start(&FarmSetup { proxies: Proxies::None, ..FarmSetup::new(1, &uri) });
    let daemon = &farm.hosts[0].daemon;
    wait_for("a link that was dropped", || {
        if daemon.log().contains("disconnected from the broker") { Ok(()) } else { Err("no link yet".to_owned()) }
    });
    let before = front.accepted();
    std::thread::sleep(Duration::from_secs(10));
    let opened = front.accepted() - before;
    let linked = daemon.log().matches(" connected to the broker").count();
    println!("{opened} connections opened in 10 s; {linked} links since the start");
    // Pauses of at least 50, 100, 200, 400, 800, 1,600 and then 2,250 ms; two connections for each attempt.
    assert!(opened <= 2 * 10, "{opened} connections opened in 10 s");
    assert!(linked >= 3, "a link was made only {linked} times: this tested something else");
    front.keep();
    farm.wait_in_step();
}

#[test]
fn tickets_cross_pods_and_sessions_do_not() {
    let broker = Broker::shared();
    let pods = ["a", "a", "b"].map(str::to_owned).to_vec();
    let ids = FarmSetup { pods: pods.clone(), proxies: Proxies::SessionIds, ..FarmSetup::new(3, &broker.uri()) };
    let farm = Farm::start_in_step(&ids);
    let (client, targets) = (client(), farm.targets());
    let made = make(&client, &targets[0], Mode::Id);
    wait_for("the session in its pod", || {
        if resumes(&client, &targets[1], &made) { Ok(()) } else { Err("refused".to_owned()) }
    });
    assert!(!resumes(&client, &targets[2], &made), "the session crossed into another pod");
    assert_eq!(farm.hosts[2].daemon.try_metric("resumed_sessions_received_total"), Some(0.0));
    drop(farm);

    let farm = Farm::start_in_step(&FarmSetup { pods, ..FarmSetup::new(3, &broker.uri()) });
    farm.assert_all_resume(Mode::Ticket12);
    farm.assert_all_resume(Mode::Ticket13);
}

#[test]
fn nothing_crosses_between_two_farms_on_one_broker() {
    let broker = Broker::shared();
    let setup = || FarmSetup { proxies: Proxies::SessionIds, ..FarmSetup::new(2, &broker.uri()) };
    let (one, two) = (Farm::start_in_step(&setup()), Farm::start_in_step(&setup()));
    let client = client();
    let made = make(&client, &one.targets()[0], Mode::Id);
    wait_for("the session in its farm", || {
        if resumes(&client, &one.targets()[1], &made) { Ok(()) } else { Err("refused".to_owned()) }
    });
    for host in &two.hosts {
        assert_eq!(host.daemon.try_metric("resumed_sessions_received_total"), Some(0.0));
        assert_eq!(host.daemon.try_metric("resumed_messages_refused_total"), Some(0.0));
    }
    for host in &two.hosts {
        assert!(!resumes(&client, &host.target(), &made), "the session crossed into another farm");
    }
    assert!(one.hosts[0].daemon.generations().is_disjoint(&two.hosts[0].daemon.generations()), "a key crossed");
}
