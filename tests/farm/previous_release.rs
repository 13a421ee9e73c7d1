//! This release and the one before it in one farm, either leading: daemons, plugins, saved rings and commands, both ways
//! round. What an operator relies on who upgrades host by host, or goes back. `--nocapture` shows the figures.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Output};
use std::time::Instant;

use resumed::internals::probe::{Client, Mode, Options, Session};
use resumed::internals::routes::Names;
use resumed::status::{FarmStatus, NodeStatus, RingStatus, SecretStep};
use testkit::broker::Broker;
use testkit::farm::{Daemon, Farm, FarmSetup, Host, Proxies, new_secret, wait_for};
use testkit::held_seat::HeldSeat;
use testkit::hopping::Hopping;
use testkit::release::Release;
use testkit::sessions::{new_ones_resume, refused_at, resumes};
use testkit::tree;
use testkit::watcher::Folder;

const RELEASES: [Release; 2] = [Release::Current, Release::Previous];
const TICKETS: [Mode; 2] = [Mode::Ticket12, Mode::Ticket13];

/// How many sessions wait for a node that joins late.
const WARM: usize = 20;

/// What a daemon logs that begins with the ring in its file.
const TOOK_UP: &str = "took up the ring of the last run";

/// Standard output of a command that must succeed.
fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn client() -> Client {
    Client::new(Options::default()).expect("a client")
}

fn make(client: &Client, farm: &Farm, host: usize, mode: Mode) -> Session {
    let target = farm.hosts[host].target();
    client.handshake(&target, mode).unwrap_or_else(|error| panic!("a full handshake at {target}: {error}")).session
}

/// A farm of three whose first host, of `leading`, leads: the others come when it does, and are warmed up.
///
/// The daemon of the third host is of one release, its plugin of the other.
fn led_by(leading: Release, broker: &Broker) -> Farm {
    let other = leading.other();
    let mut farm = Farm::lay_out(&FarmSetup {
        // Rotations as well; every ticket stays good for longer than the test takes.
        keys: "interval = \"10s\"\nsettle = \"500ms\"\nkeep = 32".to_owned(),
        daemons: vec![leading, other, other],
        plugins: vec![leading, other, leading],
        ..FarmSetup::new(3, &broker.uri())
    });
    Farm::launch_hosts(&mut farm.hosts[..1]);
    farm.wait_in_step();
    farm.hosts[0].daemon.wait_for_metric("resumed_warmup_lacking", |lacking| lacking == 0.0);
    let client = client();
    let waiting: Vec<Session> = (0..WARM).map(|_| make(&client, &farm, 0, Mode::Id)).collect();
    farm.hosts[0].daemon.wait_for_metric("resumed_cache_entries", |entries| entries == WARM as f64);
    joins_warm(&mut farm, 1, &client, &waiting);
    assert_eq!(farm.hosts[0].daemon.metric("resumed_warmup_sessions_sent_total"), WARM as f64, "another donor?");
    joins_warm(&mut farm, 2, &client, &waiting);
    farm.wait_in_step();
    assert_eq!(farm.leader(), 0);
    farm
}

/// Starts a host and waits until its node has been given the sessions that were made before, and its proxy resumes them.
fn joins_warm(farm: &mut Farm, host: usize, client: &Client, waiting: &[Session]) {
    Farm::launch_hosts(&mut farm.hosts[host..=host]);
    let (joiner, target) = (&farm.hosts[host].daemon, farm.hosts[host].target());
    joiner.wait_for_metric("resumed_proxies_connected", |proxies| proxies == 1.0);
    joiner.wait_for_metric("resumed_warmup_sessions_received_total", |sessions| sessions == waiting.len() as f64);
    wait_for("sessions from before the join", || {
        let refused = waiting.iter().filter(|session| !resumes(client, &target, session)).count();
        if refused == 0 { Ok(()) } else { Err(format!("{refused} refused at {target}")) }
    });
}

/// `rotate` by a command of each release, at a daemon of each; and the commands' own word that all nodes have it.
fn rotates(farm: &Farm) {
    for (host, by) in [(0, RELEASES[0]), (0, RELEASES[1]), (1, RELEASES[0]), (1, RELEASES[1])] {
        let before = farm.hosts[2].daemon.generations();
        let said = succeeded(&farm.hosts[host].daemon.command_of(by, &["rotate"]));
        assert!(said.contains("all 3 nodes"), "{by:?} at host{host}: {said}");
        let after = farm.hosts[2].daemon.generations();
        assert!(after.last() > before.last(), "no newer key: {before:?}, then {after:?}");
        // Until it seals, another `rotate` is told of this one.
        wait_for("the new key seals at the leader", || {
            let status = farm.hosts[farm.leader()].daemon.try_status()?;
            let sealing = status.ring.active().map(|key| key.generation);
            if sealing >= after.last().copied() { Ok(()) } else { Err(format!("{sealing:?} of {after:?}")) }
        });
    }
}

/// `status` by a command of each release, at every daemon.
fn shows_the_farm(farm: &Farm) {
    for daemon in farm.hosts.iter().map(|host| &host.daemon) {
        for by in RELEASES {
            let shown = succeeded(&daemon.command_of(by, &["status", "--wait-in-step", "60s"]));
            assert!(farm.hosts.iter().all(|host| shown.contains(&host.name)), "{by:?} at {}: {shown}", daemon.name());
            // What scripts read: this release's documents by those written for the one before, and the reverse.
            wait_for("the whole farm in a status", || {
                let document = succeeded(&daemon.command_of(by, &["status", "--json"]));
                let status: FarmStatus = serde_json::from_str(&document).map_err(|error| error.to_string())?;
                let told = || format!("{by:?} at {}: {document}", daemon.name());
                if is_of(&status, farm) { Ok(()) } else { Err(told()) }
            });
        }
    }
}

/// Whether `status` shows each host as it is, in step, and the first as the leader.
fn is_of(status: &FarmStatus, farm: &Farm) -> bool {
    let is_host = |(node, host): (&NodeStatus, &Host)| {
        node.name == host.name
            && node.version == host.daemon.release().version()
            && node.in_step
            && node.proxies.len() == 1
    };
    status.leader.as_ref() == Some(&farm.hosts[0].name)
        && status.nodes.len() == farm.hosts.len()
        && status.nodes.iter().zip(&farm.hosts).all(is_host)
}

/// A new farm secret by its three steps, a host of each release last.
fn changes_its_secret(farm: &Farm) {
    new_secret(&farm.dir().join("new.secret"));
    let steps: [(&[&str], _); 3] = [
        (&["farm.secret", "new.secret"], SecretStep::SealFirst),
        (&["new.secret", "farm.secret"], SecretStep::Remove),
        (&["new.secret"], SecretStep::Add),
    ];
    farm.wait_for_secrets(SecretStep::Add, true, &[]);
    for ((files, next), last) in steps.into_iter().zip([1, 0, 1]) {
        for host in farm.others(last) {
            farm.set_secrets(host, files);
        }
        farm.wait_for_secrets(next, false, &[&farm.hosts[last].name]);
        farm.set_secrets(last, files);
        farm.wait_for_secrets(next, true, &[]);
    }
    let status = farm.wait_for_secrets(SecretStep::Add, true, &[]);
    assert_eq!(status.secrets.sealing.len(), 1);
}

/// `revoke` without and with a flush, each by a command of the release that the asked daemon is not of.
fn revokes(farm: &Farm) {
    let (client, targets) = (client(), farm.targets());
    let everywhere = |modes: &[Mode]| -> Vec<Session> {
        let at_host = |host| modes.iter().map(move |mode| (host, *mode));
        (0..3).flat_map(at_host).map(|(host, mode)| make(&client, farm, host, mode)).collect()
    };
    let (tickets, ids) = (everywhere(&TICKETS), everywhere(&[Mode::Id]));
    for target in &targets {
        wait_for("session IDs everywhere", || {
            let missing = ids.iter().filter(|id| !resumes(&client, target, id)).count();
            if missing == 0 { Ok(()) } else { Err(format!("{missing} refused at {target}")) }
        });
    }
    let ask = |host: usize, words: &[&str]| {
        let daemon = &farm.hosts[host].daemon;
        let said = succeeded(&daemon.command_of(daemon.release().other(), words));
        assert!(said.contains("out of use at all 3 nodes: host0, host1, host2"), "{said}");
    };
    ask(1, &["revoke"]);
    for target in &targets {
        refused_at(&client, target, &tickets);
        assert!(ids.iter().all(|id| resumes(&client, target, id)), "session IDs are another matter, at {target}");
    }
    ask(0, &["revoke", "--flush-sessions"]);
    for target in &targets {
        refused_at(&client, target, &ids);
    }
    for mode in Mode::ALL {
        new_ones_resume(&client, &targets, mode);
    }
}

/// Puts `release` into the place of a host's daemon; with its ring it goes on, and the farm with it.
fn becomes(farm: &mut Farm, host: usize, release: Release, asked: usize) {
    let daemon = &mut farm.hosts[host].daemon;
    let before = daemon.generations();
    let times = daemon.log().matches(TOOK_UP).count();
    daemon.stop();
    daemon.install(release);
    daemon.launch();
    farm.wait_in_step_at(asked);
    let daemon = &farm.hosts[host].daemon;
    daemon.wait_for_metric("resumed_proxies_connected", |proxies| proxies == 1.0);
    assert_eq!(daemon.log().matches(TOOK_UP).count(), times + 1, "{}", daemon.log());
    let after = daemon.generations();
    assert!(before.is_subset(&after), "keys were lost: {before:?}, then {after:?}");
}

/// The leader's host gets the other release, so a node of that leads; and another host goes the other way.
fn changes_leader(farm: &mut Farm, leading: Release) {
    let leads = farm.leader();
    let rest = farm.others(leads);
    becomes(farm, leads, leading.other(), rest[0]);
    let (next, took) = farm.another_leads(&rest);
    println!("a node of {:?} led {took:?} after the upgrade or downgrade of the leader", leading.other());
    assert_eq!(farm.hosts[next].daemon.release(), leading.other());
    let follower = farm.others(next).into_iter().find(|host| *host != leads).expect("three hosts");
    becomes(farm, follower, leading, next);
    succeeded(&farm.hosts[leads].daemon.command_of(leading, &["rotate"]));
}

/// Nothing that one release sends is refused by the other.
fn assert_nothing_refused(farm: &Farm) {
    for host in &farm.hosts {
        let refused = host.daemon.try_metric("resumed_messages_refused_total");
        assert_eq!(refused, Some(0.0), "{}:\n{}", host.name, host.daemon.log());
    }
}

fn both_in_one_farm(leading: Release) {
    let (broker, start) = (Broker::shared(), Instant::now());
    let mut farm = led_by(leading, &broker);
    let targets = farm.targets();
    println!("three nodes in step and warm after {:.1?}", start.elapsed());
    new_ones_resume(&client(), &targets, Mode::Id);
    TICKETS.into_iter().for_each(|mode| farm.assert_all_resume(mode));
    shows_the_farm(&farm);
    let ((), hopped) = Hopping::during(&targets, &[Mode::Ticket12, Mode::Ticket13, Mode::Id], |_| {
        rotates(&farm);
        changes_its_secret(&farm);
    });
    println!("rotated and changed the secret by {:.1?}: {} tickets", start.elapsed(), hopped.tickets);
    assert!(hopped.refused.is_empty(), "{:#?}", hopped.refused);
    assert!(hopped.tickets > 20 && hopped.ids > 10, "too few to tell: {} and {}", hopped.tickets, hopped.ids);
    assert_nothing_refused(&farm);
    revokes(&farm);
    println!("revoked twice by {:.1?}", start.elapsed());
    let ((), hopped) = Hopping::during(&targets, &TICKETS, |_| changes_leader(&mut farm, leading));
    println!("all done by {:.1?}: {} tickets during the change of leader", start.elapsed(), hopped.tickets);
    assert!(hopped.refused.is_empty(), "{:#?}", hopped.refused);
    assert_nothing_refused(&farm);
}

#[test]
fn a_farm_of_both_releases_works_when_this_one_leads() {
    both_in_one_farm(Release::Current);
}

#[test]
fn a_farm_of_both_releases_works_when_the_one_before_leads() {
    both_in_one_farm(Release::Previous);
}

#[test]
fn a_leader_at_a_further_seat_gives_the_release_before_every_ring_and_counts_it_when_it_is_home() {
    let broker = Broker::shared();
    let mut farm = Farm::lay_out(&FarmSetup {
        proxies: Proxies::None,
        daemons: vec![Release::Current, Release::Current, Release::Previous],
        broker: "report_every = \"1s\"\n".to_owned(),
        ..FarmSetup::new(3, &broker.uri())
    });
    let seat = HeldSeat::take_as_if_dead(&broker.uri(), &Names::new(farm.name(), "pod").leader);
    farm.launch();
    let leader = farm.leader();
    assert_ne!(leader, 2, "the release before knows the first seat alone");
    let leads = &farm.hosts[leader].daemon;
    wait_for("a leader that counts the nodes of its release", || {
        let status = leads.try_status()?;
        let counted: BTreeSet<&str> = status.nodes.iter().map(|node| node.name.as_str()).collect();
        if counted == BTreeSet::from(["host0", "host1"]) { Ok(()) } else { Err(format!("{counted:?}")) }
    });
    let said = succeeded(&leads.command(&["rotate"]));
    assert!(said.contains("all 2 nodes"), "{said}");
    let old = &farm.hosts[2].daemon;
    let (_, took) = wait_for("the ring at the node of the release before", || {
        let (held, leaders) = (old.generations(), leads.generations());
        if held == leaders { Ok(()) } else { Err(format!("{held:?}, and {leaders:?} at the leader")) }
    });
    println!("the release before had the new key {took:?} after rotate");
    assert!(
        leads.metric("resumed_messages_nacked_total") > 0.0,
        "what the broker refused at the first seat is counted"
    );
    for by in RELEASES {
        let refused = old.command_of(by, &["rotate"]);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        let said = succeeded(&old.command_of(by, &["status", "--json"]));
        assert!(said.contains("\"leader\": null") || said.contains("\"leader\":null"), "{said}");
    }

    drop(seat);
    let returned = Instant::now();
    farm.wait_in_step_at(2);
    println!("all three in step {:?} after the first seat was free", returned.elapsed());
    // The leader goes home, unless the release before was faster.
    let home = farm.leader();
    assert!([leader, 2].contains(&home), "host{leader} led, and now host{home}");
    for by in RELEASES {
        let said = succeeded(&farm.hosts[2].daemon.command_of(by, &["rotate"]));
        assert!(said.contains("all 3 nodes"), "{said}");
    }
    assert_nothing_refused(&farm);
}

/// What a saved ring is to say to the next daemon.
fn ring(daemon: &Daemon) -> RingStatus {
    let (ring, _) = wait_for("a ring with a key that seals", || {
        let ring = daemon.try_status()?.ring;
        let seals = ring.active().is_some();
        if seals { Ok(ring) } else { Err(format!("{ring:?}")) }
    });
    ring
}

#[test]
fn a_saved_ring_is_taken_up_by_the_other_release_without_a_farm_to_ask() {
    // No broker: what is not in the file is lost.
    let setup = FarmSetup { proxies: Proxies::None, daemons: vec![Release::Previous], ..FarmSetup::new(1, "") };
    let mut farm = Farm::start(&setup);
    let daemon = &mut farm.hosts[0].daemon;
    ring(daemon);
    succeeded(&daemon.command(&["rotate"]));
    succeeded(&daemon.command(&["revoke", "--local", "--flush-sessions"]));
    let saved = ring(daemon);
    assert!(saved.floor > 0 && saved.sessions_from > 0, "{saved:?}");
    for release in [Release::Current, Release::Previous, Release::Current] {
        daemon.stop();
        daemon.install(release);
        daemon.launch();
        let found = ring(daemon);
        let what = |ring: &RingStatus| (ring.floor, ring.sessions_from, ring.fingerprint.clone());
        assert_eq!(what(&found), what(&saved), "at {release:?}");
    }
    assert_eq!(daemon.log().matches(TOOK_UP).count(), 3, "{}", daemon.log());
}

#[test]
fn a_clone_that_lacks_the_commit_of_the_release_before_says_so() {
    let clone = Folder::temporary("resumed-");
    let at = |path: &str| clone.path().join(path);
    succeeded(&Command::new("git").args(["init", "--quiet"]).arg(clone.path()).output().expect("git"));
    for path in ["scripts/build-previous-release.sh", "tests/previous-release"] {
        fs::create_dir_all(at(path).parent().expect("a folder")).expect("a folder");
        fs::copy(tree().join(path), at(path)).expect("a copy");
    }
    let script = at("scripts/build-previous-release.sh");
    let output = Command::new(script).arg(at("target")).arg("debug").output().expect("the script runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("is not in this clone") && said.contains("git fetch --unshallow"), "{said}");
}
