//! What an operator can do in an emergency, on farms of real processes: revoke, with and without a broker, and change the
//! farm's secret.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};
use std::time::Instant;

use resumed::internals::probe::{Client, Mode, Options, Session, Target};
use resumed::internals::proto::{Request, Rotate, payload, request};
use resumed::status::{AuditAction, AuditOutcome, AuditStatus, ReloadState, SecretStep};
use testkit::attacker::Attacker;
use testkit::broker::Broker;
use testkit::farm::{Farm, FarmSetup, Proxies, new_secret, wait_for};
use testkit::hopping::Hopping;
use testkit::sessions::{new_ones_resume, refused_at, resumes};

const TICKETS: [Mode; 2] = [Mode::Ticket12, Mode::Ticket13];

fn client() -> Client {
    Client::new(Options::default()).expect("a client")
}

fn make(client: &Client, target: &Target, mode: Mode) -> Session {
    client.handshake(target, mode).unwrap_or_else(|error| panic!("a full handshake at {target}: {error}")).session
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Standard output of a command that must succeed.
fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    text(&output.stdout)
}

/// Standard error of a command that must exit with 1.
fn failed(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    text(&output.stderr)
}

#[test]
fn a_revocation_ends_older_tickets_and_sessions_on_every_host_also_on_one_that_was_away() {
    let broker = Broker::shared();
    let mut farm = Farm::start_in_step(&FarmSetup::new(3, &broker.uri()));
    let (client, targets) = (client(), farm.targets());
    let leader = farm.leader();
    let (asked, away) = (farm.others(leader)[0], farm.others(leader)[1]);

    let tickets = |targets: &[Target]| -> Vec<Session> {
        targets.iter().flat_map(|at| TICKETS.map(|mode| make(&client, at, mode))).collect()
    };
    let old = tickets(&targets);
    let ids: Vec<Session> = targets.iter().map(|at| make(&client, at, Mode::Id)).collect();
    for target in &targets {
        assert!(old.iter().all(|ticket| resumes(&client, target, ticket)), "before the revocation, at {target}");
        wait_for("session IDs everywhere", || {
            let missing = ids.iter().filter(|id| !resumes(&client, target, id)).count();
            if missing == 0 { Ok(()) } else { Err(format!("{missing} refused at {target}")) }
        });
    }

    let began = Instant::now();
    let said = succeeded(&farm.hosts[asked].daemon.command(&["revoke"]));
    println!("revoked at all 3 nodes {:?} after the command began", began.elapsed());
    assert!(
        said.lines().last().is_some_and(|last| last.ends_with("out of use at all 3 nodes: host0, host1, host2")),
        "{said}"
    );
    for target in &targets {
        refused_at(&client, target, &old);
        assert!(ids.iter().all(|id| resumes(&client, target, id)), "session IDs are another matter, at {target}");
    }
    for mode in TICKETS {
        new_ones_resume(&client, &targets, mode);
    }

    // One host is away: it is named, and its proxy goes on with what it has.
    let newer = tickets(&targets);
    farm.hosts[away].daemon.kill();
    let unknown = make(&client, &targets[away], Mode::Id);
    let output = farm.hosts[asked].daemon.command(&["revoke", "--flush-sessions", "--wait", "3s"]);
    let why = failed(&output);
    assert!(why.contains(&format!("after 3s, host{away} has not confirmed")), "{why}");
    assert!(text(&output.stdout).contains(&format!("missing: host{away}")), "{output:?}");
    for here in [leader, asked] {
        refused_at(&client, &targets[here], &newer);
        refused_at(&client, &targets[here], &ids);
        farm.hosts[here].daemon.wait_for_metric("resumed_cache_entries", |entries| entries < 30.0);
    }
    assert!(newer.iter().all(|ticket| resumes(&client, &targets[away], ticket)), "its proxy has heard nothing");

    // It takes up its saved ring, and drops the older keys with the first announcement.
    farm.hosts[away].daemon.launch();
    refused_at(&client, &targets[away], &newer);
    refused_at(&client, &targets[away], &ids);
    // What its proxy made while its daemon was down, and no node has ever known.
    refused_at(&client, &targets[away], std::slice::from_ref(&unknown));
    assert!(farm.hosts[away].daemon.log().contains("took up the ring of the last run"));
    let status = farm.wait_in_step();
    assert!(status.ring.sessions_from > 0 && status.ring.floor >= status.ring.sessions_from, "{:?}", status.ring);
    for mode in [Mode::Ticket12, Mode::Ticket13, Mode::Id] {
        new_ones_resume(&client, &targets, mode);
    }
    for target in &targets {
        for session in newer.iter().chain(&ids).chain(&old) {
            assert!(!resumes(&client, target, session), "an older session came back at {target}");
        }
    }
}

#[test]
fn without_a_broker_a_host_revokes_alone_and_the_farm_follows() {
    let broker = Broker::start();
    let farm = Farm::start_in_step(&FarmSetup::new(2, &broker.uri()));
    let (client, targets) = (client(), farm.targets());
    let old: Vec<Session> = TICKETS.map(|mode| make(&client, &targets[1], mode)).into();
    broker.kill();
    farm.hosts[0].daemon.wait_for_metric("resumed_broker_connected", |value| value == 0.0);

    let why = failed(&farm.hosts[0].daemon.command(&["revoke"]));
    assert!(why.contains("no leader answered") && why.contains("revoke --local"), "{why}");
    assert!(old.iter().all(|ticket| resumes(&client, &targets[0], ticket)), "nothing was revoked");
    let status = farm.hosts[0].daemon.try_status().expect("a status");
    let warned = |words: &str| status.warnings.iter().any(|warning| warning.contains(words));
    assert!(warned("no leader answered") && warned("keys.max_seal_age"), "{:?}", status.warnings);

    let said = succeeded(&farm.hosts[0].daemon.command(&["revoke", "--local", "--flush-sessions"]));
    assert!(said.contains("is out of use at host0, and elsewhere when its ring gets there"), "{said}");
    refused_at(&client, &targets[0], &old);
    assert!(old.iter().all(|ticket| resumes(&client, &targets[1], ticket)), "the other host has heard nothing");
    let floor = farm.hosts[0].daemon.try_status().expect("a status").ring.floor;

    broker.revive();
    refused_at(&client, &targets[1], &old);
    let status = farm.wait_in_step_at(1);
    assert_eq!(status.ring.floor, floor);
    assert!(status.warnings.is_empty(), "{:?}", status.warnings);
    new_ones_resume(&client, &targets, Mode::Ticket13);
}

#[test]
fn a_new_farm_secret_goes_in_by_three_steps_without_one_refused_message() {
    let broker = Broker::shared();
    // Rotations as well, so that key messages matter; every ticket stays good for longer than the test takes.
    let keys = "interval = \"10s\"\nsettle = \"500ms\"\nkeep = 32".to_owned();
    let farm = Farm::start_in_step(&FarmSetup { keys, ..FarmSetup::new(3, &broker.uri()) });
    new_secret(&farm.dir().join("new.secret"));
    let old = farm.hosts[0].daemon.try_status().expect("a status").secrets.sealing;
    let (old, targets) = (&old[0], farm.targets());
    let unsafe_text = |farm: &Farm| text(&farm.hosts[0].daemon.command(&["status"]).stdout);

    farm.wait_for_secrets(SecretStep::Add, true, &[]);
    let ((recorded, attacker), hopped) = Hopping::during(&targets, &[Mode::Ticket13, Mode::Id], |_| {
        let steps: [(&[&str], _, _); 3] = [
            (&["farm.secret", "new.secret"], SecretStep::SealFirst, "first in secret.files; "),
            (&["new.secret", "farm.secret"], SecretStep::Remove, "remove "),
            (&["new.secret"], SecretStep::Add, "the end of "),
        ];
        let mut attacker = Attacker::join(&broker.uri(), farm.name(), &["pod"], &farm.secret);
        let recorded = attacker.record(&attacker.names.keys.clone());
        for (files, next, words) in steps {
            farm.set_secrets(0, files);
            farm.set_secrets(2, files);
            farm.wait_for_secrets(next, false, &["host1"]);
            let shown = unsafe_text(&farm);
            assert!(shown.contains(words) && shown.contains("NOT SAFE yet, waiting for host1"), "{shown}");
            farm.set_secrets(1, files);
            farm.wait_for_secrets(next, true, &[]);
        }
        (recorded, attacker)
    });
    println!("{} tickets and {} session IDs offered during the three steps", hopped.tickets, hopped.ids);
    assert!(hopped.refused.is_empty(), "{:#?}", hopped.refused);
    assert!(hopped.tickets > 20 && hopped.ids > 20, "too few to tell: {} and {}", hopped.tickets, hopped.ids);
    let status = farm.wait_for_secrets(SecretStep::Add, true, &[]);
    assert_eq!(status.secrets.sealing.len(), 1);
    assert_ne!(&status.secrets.sealing[0], old);
    assert!(status.warnings.is_empty(), "{:?}", status.warnings);
    for host in &farm.hosts {
        let refused = host.daemon.try_metric("resumed_messages_refused_total");
        assert_eq!(refused, Some(0.0), "{}:\n{}", host.name, host.daemon.metrics().unwrap_or_default());
    }

    // What was recorded under the old secret opens nowhere now; and putting that secret back does not make it new.
    attacker.to_all(&recorded);
    for host in &farm.hosts {
        host.daemon.wait_for_metric("resumed_messages_refused_total", |refused| refused == 1.0);
    }
    farm.set_secrets(0, &["new.secret", "farm.secret"]);
    wait_for("the old secret at host0", || {
        let status = farm.hosts[0].daemon.try_status()?;
        let ids = status.nodes.iter().find(|node| node.name == "host0").map_or(0, |node| node.secret_ids.len());
        if ids == 2 { Ok(()) } else { Err(format!("{:?}", status.nodes)) }
    });
    attacker.to_all(&recorded);
    wait_for("the replay refused", || {
        let replays = farm.hosts[0].daemon.metric("resumed_messages_refused_total{reason=\"replay\"}");
        if replays == 1.0 { Ok(()) } else { Err(format!("{replays} replays refused")) }
    });
}

#[test]
fn a_host_with_a_wrong_clock_is_named_in_status() {
    let broker = Broker::shared();
    let farm = Farm::start_in_step(&FarmSetup { proxies: Proxies::None, ..FarmSetup::new(2, &broker.uri()) });
    let mut attacker = Attacker::join(&broker.uri(), farm.name(), &["pod"], &farm.secret);
    let report = resumed::internals::proto::payload::Kind::Report(resumed::internals::proto::Report::default());
    let leaders = attacker.names.leader.clone();
    wait_for("the warning", || {
        // It reports on; one message alone may be an old one that somebody sends again.
        let late = attacker.seal_at(&leaders, "host7", report.clone(), -3_600_000);
        attacker.to_leader(&late);
        let status = farm.hosts[0].daemon.try_status()?;
        let warned = status.warnings.iter().any(|warning| warning.starts_with("the clock of host7 is 1h"));
        if warned { Ok(()) } else { Err(format!("{:?}", status.warnings)) }
    });
}

/// The requests of operators that `status` at `host` tells of, oldest first, once `wanted` takes them.
fn requests_at(farm: &Farm, host: usize, wanted: impl Fn(&[AuditStatus]) -> bool) -> Vec<AuditStatus> {
    let (audit, _) = wait_for("the requests of operators", || {
        let audit = farm.hosts[host].daemon.try_status()?.audit;
        if wanted(&audit) { Ok(audit) } else { Err(format!("{audit:?}")) }
    });
    audit
}

/// This process's user, as the daemons name it.
fn own_user() -> String {
    let ask = |option| Command::new("id").arg(option).output().expect("id (package coreutils)");
    let name = ask("-un");
    let answer = if name.status.success() { name } else { ask("-u") };
    text(&answer.stdout).trim().to_owned()
}

#[test]
fn every_node_tells_which_operator_asked_for_what_at_which_node() {
    let broker = Broker::shared();
    let mut farm = Farm::start_in_step(&FarmSetup { proxies: Proxies::None, ..FarmSetup::new(3, &broker.uri()) });
    let leader = farm.leader();
    let (asked, third) = (farm.others(leader)[0], farm.others(leader)[1]);
    let (asked_name, leader_name) = (farm.hosts[asked].name.clone(), farm.hosts[leader].name.clone());
    succeeded(&farm.hosts[asked].daemon.command(&["rotate"]));
    succeeded(&farm.hosts[leader].daemon.command(&["revoke", "--flush-sessions"]));
    let audit = requests_at(&farm, third, |audit| audit.len() == 2);
    let told: Vec<_> = audit.iter().map(|entry| (entry.action, &*entry.node, entry.flush_sessions)).collect();
    assert_eq!(
        told,
        [(AuditAction::Rotate, &*asked_name, false), (AuditAction::Revoke, &*leader_name, true)],
        "{audit:?}"
    );
    for entry in &audit {
        assert_eq!((entry.user.as_deref(), entry.outcome), (Some(&*own_user()), AuditOutcome::Done), "{entry:?}");
        assert!(entry.generation > 0 && entry.at > 1_700_000_000_000, "{entry:?}");
    }
    let shown = text(&farm.hosts[third].daemon.command(&["status"]).stdout);
    assert!(shown.contains("Operators asked last: 2 requests") && shown.contains("revoke --flush-sessions"), "{shown}");

    // One line with fixed fields, where it was asked and where it was done.
    for host in [asked, leader] {
        let (log, user) = (farm.hosts[host].daemon.log(), own_user());
        let fields = format!(
            "request of an operator action=\"rotate\" flush_sessions=false node=\"{asked_name}\" user=\"{user}\" \
             outcome=\"done\" generation={}",
            audit[0].generation
        );
        assert_eq!(log.matches(&fields).count(), 1, "{fields}\n{log}");
    }

    // A node of a release that does not say who asked.
    let mut old = Attacker::join(&broker.uri(), farm.name(), &["pod"], &farm.secret);
    let ask = |id, highest_generation| {
        let inbox = old.names.inbox("host7", "0");
        let kind = Some(request::Kind::Rotate(Rotate {}));
        payload::Kind::Request(Request { id, inbox, highest_generation, kind, ..Request::default() })
    };
    let leaders = old.names.leader.clone();
    let asks = ask(7, farm.hosts[leader].daemon.generations().last().copied().unwrap_or_default());
    let sealed = old.seal(&leaders, "host7", asks);
    old.to_leader(&sealed);
    let audit = requests_at(&farm, third, |audit| audit.len() == 3);
    assert_eq!((&*audit[2].node, audit[2].user.as_deref()), ("host7", None), "{audit:?}");
    let shown = text(&farm.hosts[third].daemon.command(&["status"]).stdout);
    assert!(shown.contains("user not said"), "{shown}");

    // Who asked is known as long as either the asked node or the leader of then lives.
    farm.hosts[leader].daemon.kill();
    let (next, _) = farm.another_leads(&[asked, third]);
    let kept = requests_at(&farm, third, |audit| audit.iter().any(|entry| entry.node == asked_name));
    assert!(kept.iter().all(|entry| entry.node != "host7"), "the leader {next} never heard of it: {kept:?}");
}

#[test]
fn a_host_that_refuses_a_new_farm_secret_is_named_by_every_node_and_fails_its_reload() {
    let broker = Broker::shared();
    let farm = Farm::start_in_step(&FarmSetup { proxies: Proxies::None, ..FarmSetup::new(2, &broker.uri()) });
    let new = farm.dir().join("new.secret");
    new_secret(&new);
    fs::set_permissions(&new, Permissions::from_mode(0o644)).expect("a mode");
    farm.set_secrets(1, &["farm.secret", "new.secret"]);
    let reload_of = |host: usize, at: usize| {
        let status = farm.hosts[at].daemon.try_status()?;
        let node = status.nodes.iter().find(|node| node.name == farm.hosts[host].name);
        let node = node.ok_or_else(|| format!("{:?}", status.nodes))?;
        Ok::<_, String>((node.reload.clone(), node.secret_ids.len(), status.warnings.clone()))
    };
    // Its SIGHUP has no answer, so the other node tells.
    let ((_, secrets, warnings), _) = wait_for("the refused reload", || match reload_of(1, 0)? {
        seen if seen.0.state == ReloadState::Refused => Ok(seen),
        seen => Err(format!("{seen:?}")),
    });
    assert_eq!(secrets, 1, "it goes on with the one of before");
    let named =
        |warning: &String| warning.starts_with("host1 refused its farm secrets") && warning.contains("mode 0644");
    assert!(warnings.iter().any(named), "{warnings:?}");
    let why = failed(&farm.hosts[1].daemon.command(&["reload"]));
    assert!(why.contains("new.secret") && why.contains("mode 0644"), "{why}");
    assert!(farm.hosts[1].daemon.is_running());
    farm.wait_in_step();

    fs::set_permissions(&new, Permissions::from_mode(0o600)).expect("a mode");
    let said = succeeded(&farm.hosts[1].daemon.command(&["reload"]));
    assert!(said.contains(" seals; ") && said.contains(" opens too"), "{said}");
    wait_for("the taken reload", || match reload_of(1, 0)? {
        (reload, 2, _) if reload.state == ReloadState::Taken => Ok(()),
        seen => Err(format!("{seen:?}")),
    });
    let shown = text(&farm.hosts[0].daemon.command(&["status"]).stdout);
    assert!(shown.contains("secrets read again") && !shown.contains("REFUSED"), "{shown}");
}
