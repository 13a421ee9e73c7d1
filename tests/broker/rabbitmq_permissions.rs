//! What `etc/rabbitmq/permissions.sh` grants is enough for a whole node, and no part of it can be left out.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use testkit::watcher::Folder;

use resumed::internals::bus::{Bus, LeaseAnswer, Link, LinkEvents, LinkSpec, RabbitMqLink};
use resumed::internals::probe::{Client, Mode, Options};
use resumed::internals::routes::{Names, Published, Route, Seat};
use resumed::{BusError, RabbitMq, RabbitMqSettings};
use testkit::broker::Broker;
use testkit::farm::{Farm, FarmSetup, Proxies, wait_for};
use tokio::sync::mpsc;

/// Configure, write, read: patterns as RabbitMQ takes them.
type Permissions = [String; 3];

/// What the script tells rabbitmqctl, for which something else stands in here.
fn shipped(farm: &str, user: &str) -> Permissions {
    let folder = Folder::temporary("resumed-");
    let stand_in = folder.path().join("rabbitmqctl");
    fs::write(&stand_in, "#!/bin/sh\nfor word in \"$@\"; do printf '%s\\n' \"$word\"; done\n").expect("a script");
    fs::set_permissions(&stand_in, fs::Permissions::from_mode(0o755)).expect("a mode");
    let script = testkit::tree().join("etc/rabbitmq/permissions.sh");
    let path = format!("{}:/usr/bin:/bin", folder.path().display());
    let output = Command::new("sh").arg(script).args([farm, user]).env("PATH", path).output().expect("sh runs");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    let words: Vec<&str> = text.lines().collect();
    let ["set_permissions", "--vhost", "/", who, configure, write, read] = words[..] else { panic!("{words:?}") };
    assert_eq!(who, user);
    [configure, write, read].map(str::to_owned)
}

fn grant(broker: &Broker, user: &str, [configure, write, read]: &Permissions) {
    broker.ctl(&["set_permissions", user, configure, write, read]);
}

#[test]
fn a_farm_lives_on_what_the_script_grants() {
    let broker = Broker::shared();
    broker.ctl(&["add_user", "least", "hunter2"]);
    let setup = FarmSetup::new(2, &broker.uri_as("least", "hunter2", "/"));
    grant(&broker, "least", &shipped(&setup.name, "least"));
    // Lease, reports and their answers, announcements, requests, answers to them; sessions both ways; a change of leader.
    let mut farm = Farm::start_in_step(&FarmSetup { proxies: Proxies::SessionIds, ..setup });
    let client = Client::new(Options::default()).expect("a client");
    let made = client.handshake(&farm.hosts[0].target(), Mode::Id).expect("a full handshake").session;
    wait_for("a session resumed on the other host", || match client.resume(&farm.hosts[1].target(), &made) {
        Ok(visit) if visit.resumed => Ok(()),
        other => Err(format!("{:?}", other.map(|visit| visit.resumed))),
    });
    for host in &farm.hosts {
        let rotated = host.daemon.command(&["rotate"]);
        assert!(rotated.status.success(), "{rotated:?}");
    }
    let leader = farm.leader();
    farm.hosts[leader].daemon.kill();
    farm.another_leads(&farm.others(leader));
    for host in &farm.hosts {
        assert!(!host.daemon.log().contains("ACCESS_REFUSED"), "{}", host.daemon.log());
    }
}

async fn connect(broker: &Broker, user: &str, farm: &str) -> Result<RabbitMqLink, BusError> {
    let uris = vec![broker.uri_as(user, "hunter2", "/").parse().expect("a URI")];
    let settings = RabbitMqSettings { uris, ..RabbitMqSettings::default() };
    let spec = LinkSpec { names: Names::new(farm, "p"), node: "a".to_owned(), sessions: true, elsewhere_than: None };
    let (keys, _keys) = mpsc::channel(64);
    let (feed, _feed) = mpsc::channel(64);
    RabbitMq::new(settings)?.connect(&spec, LinkEvents { keys, feed }).await
}

/// Everything that a node asks of a broker, in turn: the first refusal.
async fn whole_node(broker: &Broker, user: &str, farm: &str) -> Result<(), BusError> {
    let link = connect(broker, user, farm).await?;
    assert_eq!(link.try_lease(Seat::FIRST).await?, LeaseAnswer::Granted);
    for route in [Route::Keys, Route::Leader(Seat::FIRST), Route::Inbox(link.inbox().to_owned())] {
        assert_eq!(link.publish(&route, "x".into()).await?, Published::Routed, "{route:?}");
    }
    link.publish_sessions("s".into()).await?;
    link.release_lease(Seat::FIRST).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_any_one_part_of_it_a_node_says_what_it_may_not_do() {
    let broker = Broker::shared();
    broker.ctl(&["add_user", "less", "hunter2"]);
    let farm = format!("less{}", std::process::id());
    let whole = shipped(&farm, "less");
    grant(&broker, "less", &whole);
    whole_node(&broker, "less", &farm).await.expect("all of it is enough");

    let own = format!(r"resumed\.{farm}\.");
    let nothing = "^$".to_owned();
    let with = |place: usize, pattern: String| {
        let mut less = whole.clone();
        less[place] = pattern;
        less
    };
    for (less, operation) in [
        (with(0, nothing.clone()), format!("declare exchange resumed.{farm}.keys")),
        // The exchanges alone, then the inbox, the feed and the lease one by one.
        (with(0, format!(r"^{own}(keys|sessions\.p|leader)$")), format!("declare queue resumed.{farm}.")),
        (with(0, format!(r"^{own}(keys|sessions|node)")), format!("declare queue resumed.{farm}.leader")),
        (with(1, r"^amq\.default$".to_owned()), "bind".to_owned()),
        (with(1, format!("^{own}")), format!("publish to resumed.{farm}.leader")),
        (with(1, format!(r"^({own}(node|sessions)|amq\.default$)")), format!("publish to resumed.{farm}.keys")),
        (with(2, nothing.clone()), "bind".to_owned()),
        (with(2, format!("^{own}(keys|sessions)")), "consume".to_owned()),
    ] {
        grant(&broker, "less", &less);
        // What the broker remembers of a channel's rights goes with the connection.
        let refused = whole_node(&broker, "less", &farm).await;
        let said = refused.expect_err(&format!("{less:?} is enough as well")).to_string();
        println!("{less:?}: {said}");
        assert!(said.contains(&operation) && said.contains("403 ACCESS_REFUSED"), "{less:?}: {said:?}");
        assert!(!said.contains("hunter2"), "{said}");
    }
    grant(&broker, "less", &whole);
    let (result, _) = tokio::task::block_in_place(|| {
        let runtime = tokio::runtime::Handle::current();
        wait_for("a node that may do everything again", || {
            runtime.block_on(whole_node(&broker, "less", &farm)).map_err(|error| error.to_string())
        })
    });
    result
}

#[test]
fn a_node_that_may_not_publish_says_once_what_to_grant() {
    let broker = Broker::shared();
    broker.ctl(&["add_user", "mute", "hunter2"]);
    let setup = FarmSetup {
        proxies: Proxies::None,
        log: "info".to_owned(),
        ..FarmSetup::new(2, &broker.uri_as("mute", "hunter2", "/"))
    };
    let whole = shipped(&setup.name, "mute");
    let own = format!(r"^resumed\.{}\.", setup.name);
    grant(&broker, "mute", &[whole[0].clone(), own, whole[2].clone()]);
    let farm = Farm::start(&setup);
    let [configure, write, read] = &whole;
    let command = format!("rabbitmqctl set_permissions --vhost '/' 'mute' '{configure}' '{write}' '{read}'");
    let warns = |line: &&str| line.contains("WARN") && line.contains("amq.default") && line.contains(&command);
    for host in &farm.hosts {
        wait_for("a warning in the log and in status", || {
            let warnings = host.daemon.try_status()?.warnings;
            let shown = warnings.iter().any(|warning| warning.contains("amq.default") && warning.contains(&command));
            let log = host.daemon.log();
            if shown && log.lines().any(|line| warns(&line)) { Ok(()) } else { Err(format!("{warnings:?}\n{log}")) }
        });
    }
    // What it lacks is what the sentence grants. Until then every beat was refused, and each kind of route said once.
    grant(&broker, "mute", &whole);
    farm.wait_in_step();
    for host in &farm.hosts {
        let log = host.daemon.log();
        let said: Vec<&str> = log.lines().filter(warns).collect();
        assert!((1..=2).contains(&said.len()), "{said:#?}");
    }
}

#[test]
fn a_node_that_may_not_publish_sessions_keeps_its_link_and_says_once_what_to_grant() {
    let broker = Broker::shared();
    broker.ctl(&["add_user", "keyed", "hunter2"]);
    let setup = FarmSetup {
        proxies: Proxies::None,
        log: "info".to_owned(),
        ..FarmSetup::new(2, &broker.uri_as("keyed", "hunter2", "/"))
    };
    let whole = shipped(&setup.name, "keyed");
    // All but the sessions' exchange: the feed's queue is bound to it, for which it must be writable itself.
    let write = format!(r"^(resumed\.{}\.(keys|node|leader|sessions\.[^.]+\.)|amq\.default$)", setup.name);
    grant(&broker, "keyed", &[whole[0].clone(), write, whole[2].clone()]);
    let farm = Farm::start(&setup);
    farm.wait_in_step();
    let sessions = |line: &&str| line.contains("publishes of sessions") && line.contains("rabbitmqctl set_permissions");
    for host in &farm.hosts {
        // A node that starts asks the pod for its sessions, and again when no answer comes.
        wait_for("a warning in the log and in status", || {
            let warnings = host.daemon.try_status()?.warnings;
            let shown = warnings.iter().map(String::as_str).any(|warning| sessions(&warning));
            let log = host.daemon.log();
            if shown && log.lines().any(|line| sessions(&line)) { Ok(()) } else { Err(format!("{warnings:?}\n{log}")) }
        });
    }
    let rotated = farm.hosts[0].daemon.command(&["rotate"]);
    assert!(rotated.status.success(), "{rotated:?}");
    for host in &farm.hosts {
        let log = host.daemon.log();
        assert!(!log.contains("disconnected from the broker"), "{log}");
        assert_eq!(log.lines().filter(sessions).count(), 1, "{log}");
        assert_eq!(host.daemon.metric("resumed_broker_reconnects_total"), 0.0);
    }
}
