//! What others may try with the broker, the farm's secret, the Unix sockets and the configuration: each kind of bad input
//! is counted under one reason, nothing of it is applied, and nothing crashes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use testkit::watcher::Folder;

use bytes::Bytes;
use openssl::ssl::SslSession;
use prost::Message;
use resumed::internals::hex::hex;
use resumed::internals::probe::{Client, Mode, Options};
use resumed::internals::proto::frame::MOST_PLUGIN_BYTES;
use resumed::internals::proto::local::{
    ControlRequest, Counters, FromProxy, Hello, RotateCommand, Sessions, StatusCommand, control_request, from_proxy,
};
use resumed::internals::proto::payload::Kind;
use resumed::internals::proto::{
    Announcement, Answer, AuditEntry, EpochGrant, Farewell, Join, Member, OperatorTrail, Outcome, Payload, Proxy,
    Report, Request, Ring, Rotate, SessionBatch, SessionEntry, SessionFormat, TicketKey, request,
};
use resumed::internals::proxies::ats::MAX_PROXIES;
use resumed::status::{FarmStatus, KeyStatus, RingStatus};
use testkit::attacker::{Attacker, announcement, flipped, random};
use testkit::broker::Broker;
use testkit::farm::{Daemon, Farm, FarmSetup, PATIENCE, Proxies, built, wait_for};
use testkit::foreign_peer;

const HOUR_MS: i64 = 3_600_000;

/// The counters of bad input.
const FAMILIES: [&str; 6] = [
    "resumed_messages_refused_total",
    "resumed_keys_skipped_total",
    "resumed_key_conflicts_total",
    "resumed_sessions_dropped_total",
    "resumed_proxies_refused_total",
    "resumed_control_refused_total",
];

/// Drops that healthy farms have too.
const ORDINARY: [&str; 3] = ["\"duplicate\"", "\"echo\"", "\"tombstone\""];

/// Every counter of bad input at one daemon, those at 0 too.
type Counts = BTreeMap<String, u64>;

fn counts(daemon: &Daemon) -> Counts {
    let text = daemon.metrics().expect("metrics");
    let lines = text.lines().filter(|line| FAMILIES.iter().any(|family| line.starts_with(family)));
    let series = lines.map(|line| line.rsplit_once(' ').expect("a series and its value"));
    let wanted = series.filter(|(series, _)| !ORDINARY.iter().any(|ordinary| series.contains(ordinary)));
    wanted.map(|(series, value)| (series.to_owned(), value.trim().parse().expect("a count"))).collect()
}

fn refused(reason: &str) -> String {
    format!("resumed_messages_refused_total{{reason=\"{reason}\"}}")
}

fn skipped(reason: &str) -> String {
    format!("resumed_keys_skipped_total{{reason=\"{reason}\"}}")
}

fn proxy_refused(reason: &str) -> String {
    format!("resumed_proxies_refused_total{{reason=\"{reason}\"}}")
}

fn control_refused(reason: &str) -> String {
    format!("resumed_control_refused_total{{reason=\"{reason}\"}}")
}

fn dropped(reason: &str) -> String {
    format!("resumed_sessions_dropped_total{{reason=\"{reason}\"}}")
}

/// A farm and what it was like before the attacks.
struct Siege<'a> {
    farm: &'a Farm,
    ring: RingStatus,
    counts: Vec<Counts>,
    resident: Vec<u64>,
}

impl<'a> Siege<'a> {
    fn begin(farm: &'a Farm) -> Self {
        let ring = farm.wait_in_step().ring;
        let counts: Vec<Counts> = farm.hosts.iter().map(|host| counts(&host.daemon)).collect();
        for counts in &counts {
            assert!(counts.values().all(|count| *count == 0), "bad input before there was any: {counts:?}");
        }
        let resident = farm.hosts.iter().map(|host| resident_kib(&host.daemon)).collect();
        Self { farm, ring, counts, resident }
    }

    /// Since it was last called, exactly these counters rose at host `index`, by that much.
    #[track_caller]
    fn counted_at(&mut self, index: usize, expected: &[(String, u64)]) {
        let daemon = &self.farm.hosts[index].daemon;
        let mut wanted = self.counts[index].clone();
        for (series, by) in expected {
            // One that is not shown from the start hides its first event from `rate()`.
            *wanted.get_mut(series).unwrap_or_else(|| panic!("{series} is not there from the start")) += by;
        }
        let begun = Instant::now();
        loop {
            let seen = counts(daemon);
            if seen == wanted {
                break;
            }
            let differ = |(series, count): &(&String, &u64)| wanted.get(*series) != Some(*count);
            let differ: Vec<_> = seen.iter().filter(differ).map(|(s, n)| (s, n, wanted.get(s))).collect();
            let above = differ.iter().any(|(_, seen, wanted)| wanted.is_none_or(|wanted| wanted < seen));
            if above || begun.elapsed() > PATIENCE {
                panic!("host{index} counts (seen, wanted): {differ:#?}\n{}", daemon.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.counts[index] = wanted;
    }

    /// The same at every host.
    #[track_caller]
    fn counted(&mut self, expected: &[(String, u64)]) {
        for index in 0..self.farm.hosts.len() {
            self.counted_at(index, expected);
        }
    }

    /// Each of these lines of warning stands in host `index`'s log exactly once.
    #[track_caller]
    fn warned_at(&self, index: usize, lines: &[&str]) {
        let log = self.farm.hosts[index].daemon.log();
        for line in lines {
            let found: Vec<&str> = log.lines().filter(|text| text.contains(" WARN ") && text.contains(line)).collect();
            assert_eq!(found.len(), 1, "host{index} warned of {line:?}: {found:#?}");
        }
    }

    /// The same at every host.
    #[track_caller]
    fn warned(&self, lines: &[&str]) {
        for index in 0..self.farm.hosts.len() {
            self.warned_at(index, lines);
        }
    }

    /// Nothing was lost: one leader, all in step with the ring of before and the keys named `taken`, memory bounded, and
    /// a rotation reaches everybody.
    #[track_caller]
    fn withstood(&mut self, taken: &[String]) {
        let mut names: BTreeSet<String> = self.ring.keys.iter().map(|key| key.name_prefix.clone()).collect();
        names.extend(taken.iter().cloned());
        for index in 0..self.farm.hosts.len() {
            let status = self.farm.wait_in_step_at(index);
            assert_eq!(status.nodes.len(), self.farm.hosts.len(), "{status:?}");
            assert_eq!(status.ring.floor, self.ring.floor);
            assert_eq!(status.ring.keys.iter().map(|key| key.name_prefix.clone()).collect::<BTreeSet<_>>(), names);
            if taken.is_empty() {
                assert_eq!(status.ring.fingerprint, self.ring.fingerprint);
            }
            for key in &self.ring.keys {
                let now = status.ring.keys.iter().find(|now| now.name_prefix == key.name_prefix).expect("seen above");
                let fixed = |key: &KeyStatus| (key.generation, key.seal_from, key.seal_until);
                assert_eq!(fixed(now), fixed(key), "a key was changed");
            }
        }
        let follower = (0..self.farm.hosts.len()).find(|index| *index != self.farm.leader()).expect("a follower");
        let rotated = self.farm.hosts[follower].daemon.command(&["rotate", "--wait", "20s"]);
        assert!(rotated.status.success(), "{rotated:?}");
        self.ring = self.farm.wait_in_step().ring;
        assert!(self.ring.keys.len() > names.len(), "no new key: {:?}", self.ring);
        for (index, host) in self.farm.hosts.iter().enumerate() {
            let log = host.daemon.log();
            assert!(!log.contains("panic"), "{log}");
            assert_eq!(log.matches("resumed is running").count(), 1, "host{index} was started again");
            let (before, now) = (self.resident[index], resident_kib(&host.daemon));
            println!("host{index}: {before} KiB resident before, {now} KiB after");
            assert!(now < before + 48 * 1024, "host{index} grew from {before} to {now} KiB");
        }
    }
}

/// Physical memory of a daemon.
fn resident_kib(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("the daemon runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("a number of KiB")
}

fn farm(hosts: usize, uri: &str, proxies: Proxies) -> FarmSetup {
    FarmSetup {
        keys: "settle = \"200ms\"".to_owned(),
        broker: "report_every = \"500ms\"".to_owned(),
        proxies,
        ..FarmSetup::new(hosts, uri)
    }
}

fn farewell() -> Kind {
    Kind::Farewell(Farewell {})
}

fn batch(entries: Vec<SessionEntry>) -> Kind {
    Kind::Sessions(SessionBatch { entries, format: SessionFormat::OpensslDer.into() })
}

#[test]
fn envelopes_that_are_not_right_are_counted_once_each_and_change_nothing() {
    let broker = Broker::shared();
    let farm = Farm::start_in_step(&farm(2, &broker.uri(), Proxies::None));
    let mut siege = Siege::begin(&farm);
    let mut attacker = Attacker::join(&broker.uri(), farm.name(), &["pod"], &farm.secret);
    let (keys, sessions, leaders) =
        (attacker.names.keys.clone(), attacker.names.sessions.clone(), attacker.names.leader.clone());
    // What would take every key out of the farm, if anybody acted on it.
    let deadly = |attacker: &Attacker| {
        let now = attacker.wall();
        Kind::Announcement(announcement(Ring { floor: now, ..Ring::default() }, now))
    };
    let is_announcement =
        |payload: Payload| matches!(payload.kind, Some(Kind::Announcement(_))).then_some(payload.node);
    let (leader, recorded) = attacker.record_until(&keys, is_announcement);

    // Of another secret.
    let kind = deadly(&attacker);
    let foreign = attacker.seal_without_the_secret(&keys, "mallory", kind);
    attacker.to_all(&foreign);
    siege.counted(&[(refused("unknown_secret"), 1)]);

    // Altered: tag, ciphertext, salt; then the framing.
    for at in [recorded.len() - 1, recorded.len() / 2, 35] {
        attacker.to_all(&flipped(&recorded, at));
    }
    siege.counted(&[(refused("bad_tag"), 3)]);
    for at in [0, 2] {
        attacker.to_all(&flipped(&recorded, at));
    }
    siege.counted(&[(refused("malformed"), 2)]);

    // Sent again, and again.
    for _ in 0..3 {
        attacker.to_all(&recorded);
    }
    siege.counted(&[(refused("replay"), 3)]);

    // Truncated, garbage, oversized.
    let cuts: Vec<usize> = (1..8).map(|eighth| recorded.len() * eighth / 8).collect();
    for cut in &cuts {
        attacker.to_all(&recorded[..*cut]);
    }
    let noise: [u8; 1000] = random();
    for garbage in [&[][..], &[0], &[0xff; 64], &noise, b"GET / HTTP/1.1\r\n\r\n"] {
        attacker.to_all(garbage);
    }
    siege.counted(&[(refused("malformed"), cuts.len() as u64 + 5)]);
    for bytes in [(1 << 20) + 1, 4 << 20] {
        attacker.to_all(&vec![0x0a; bytes]);
    }
    siege.counted(&[(refused("too_large"), 2)]);

    // Moved from its route to another, also by way of an exchange of the attacker's own.
    attacker.to_leader(&recorded);
    siege.counted_at(farm.leader(), &[(refused("bad_tag"), 1)]);
    attacker.to_feeds(&recorded);
    let entries = batch(Vec::new());
    let feed_message = attacker.seal(&sessions, "mallory", entries);
    attacker.to_all(&feed_message);
    attacker.to_all_through("x\u{1b}[2J", &recorded);
    siege.counted(&[(refused("bad_tag"), 3)]);
    // In its place it is welcome, once.
    attacker.to_feeds(&feed_message);
    attacker.to_feeds(&feed_message);
    siege.counted(&[(refused("replay"), 1)]);

    // By clocks that are wrong: not acted on, but the sender is shown, once its stamps advance as time does. What somebody
    // recorded long ago and sends again and again is no node.
    let kind = deadly(&attacker);
    let recorded_once = attacker.seal_at(&keys, "ghost", kind, -HOUR_MS);
    let mut skewed = 0;
    let (status, _) = wait_for("the skewed nodes in the member table", || {
        attacker.to_all(&recorded_once);
        for (node, offset) in [("slow", -HOUR_MS), ("fast", HOUR_MS)] {
            let kind = deadly(&attacker);
            let sealed = attacker.seal_at(&keys, node, kind, offset);
            attacker.to_all(&sealed);
        }
        skewed += 3;
        let status = farm.hosts[0].daemon.try_status()?;
        if status.nodes.len() == 4 { Ok(status) } else { Err(format!("{status:?}")) }
    });
    siege.counted(&[(refused("clock"), skewed)]);
    for (node, offset) in [("slow", -HOUR_MS), ("fast", HOUR_MS)] {
        let shown = status.nodes.iter().find(|shown| shown.name == node).expect("the sender's name");
        assert!((shown.clock_offset_ms - offset).abs() < 60_000 && !shown.in_step, "{shown:?}");
        let gone = attacker.seal(&keys, node, farewell());
        attacker.to_all(&gone);
    }
    // Nor does an old message of a node that is well make it look unwell.
    for host in &farm.hosts {
        let kind = deadly(&attacker);
        let old = attacker.seal_at(&keys, &host.name, kind, -HOUR_MS);
        attacker.to_all(&old);
    }
    siege.counted(&[(refused("clock"), 2)]);
    let status = farm.hosts[0].daemon.try_status().expect("a status");
    let in_step = |status: &FarmStatus| status.nodes.iter().filter(|node| node.in_step).count();
    assert_eq!((status.nodes.len(), in_step(&status)), (2, 2), "{status:?}");

    // Authentic, and of no use: unknown kinds, kinds on the wrong route, payloads that are none.
    let mut novelty = attacker.payload("mallory", None, 0).encode_to_vec();
    // Field 99, length-delimited, 3 bytes.
    novelty.extend([0x9a, 0x06, 3, b'n', b'e', b'w']);
    for route in [&keys, &sessions] {
        let sealed = attacker.seal_raw(route, &novelty, [0; 8]);
        attacker.publish(route, "", &sealed);
    }
    let entries = batch(vec![SessionEntry { id: Bytes::from_static(&[1; 32]), ..SessionEntry::default() }]);
    let misplaced = attacker.seal(&keys, "mallory", entries);
    attacker.to_all(&misplaced);
    siege.counted(&[(refused("unknown_kind"), 3)]);
    let sealed = attacker.seal_raw(&keys, &novelty, [1; 8]);
    attacker.to_all(&sealed);
    siege.counted(&[(refused("unknown_epoch"), 1)]);
    // Under the farm secret alone, what may not be.
    let kind = deadly(&attacker);
    let downgraded = attacker.seal_outside_the_epoch(&keys, "mallory", kind);
    attacker.to_all(&downgraded);
    let downgraded = attacker.seal_outside_the_epoch(&sessions, "mallory", batch(Vec::new()));
    attacker.to_feeds(&downgraded);
    siege.counted(&[(refused("not_in_epoch"), 2)]);
    // An epoch key that nobody asked for, and requests for one to a key with which every secret is zero.
    let grant = EpochGrant { epoch: vec![1; 8], public_key: vec![9; 32], sealed: vec![0; 48], ..EpochGrant::default() };
    let sealed = attacker.seal(&keys, "mallory", Kind::EpochGrant(grant));
    attacker.to_all(&sealed);
    siege.counted(&[(refused("bad_grant"), 1)]);
    for public_key in [vec![0; 32], vec![9; 31]] {
        let join = Join { inbox: attacker.names.inbox("mallory", "0"), public_key, ..Join::default() };
        let sealed = attacker.seal(&leaders, "mallory", Kind::Join(join));
        attacker.to_leader(&sealed);
    }
    siege.counted_at(farm.leader(), &[(refused("bad_public_key"), 2)]);
    let escape = Payload { node: "\u{1b}[2Jroot".to_owned(), ..attacker.payload("x", Some(farewell()), 0) };
    let short = Payload { boot_id: vec![1; 15], ..attacker.payload("mallory", Some(farewell()), 0) };
    for text in [&b"no payload"[..], &escape.encode_to_vec(), &short.encode_to_vec()] {
        let sealed = attacker.seal_raw(&keys, text, [0; 8]);
        attacker.to_all(&sealed);
    }
    siege.counted(&[(refused("malformed"), 3)]);
    let now = attacker.wall();
    let good = announcement(Ring { floor: now, ..Ring::default() }, now);
    let no_fingerprint = Announcement { fingerprint: vec![0; 7], ..good.clone() };
    let long_ago = Announcement { as_of: 1, ..good.clone() };
    let no_epoch = Announcement { epoch: vec![0; 9], ..good };
    for announcement in [no_fingerprint, long_ago, no_epoch] {
        let sealed = attacker.seal(&keys, "mallory", Kind::Announcement(announcement));
        attacker.to_all(&sealed);
    }
    siege.counted(&[(refused("bad_fingerprint"), 1), (refused("as_of_far_off"), 1), (refused("bad_epoch"), 1)]);
    // Answers go to inboxes of the farm and nowhere else, and what the leader keeps is bounded.
    let elsewhere = || "resumed.another.node.mallory.0".to_owned();
    let here = attacker.names.inbox("mallory", "0");
    let lost = Announcement { inbox: elsewhere(), ..announcement(Ring::default(), now) };
    let sealed = attacker.seal(&keys, "mallory", Kind::Announcement(lost));
    attacker.to_all(&sealed);
    siege.counted(&[(refused("bad_announcement"), 1)]);
    let public_key = vec![9; 32];
    let rotate = Some(request::Kind::Rotate(Rotate {}));
    let report = Report { inbox: here.clone(), fingerprint: vec![0; 8], ..Report::default() };
    let many = OperatorTrail { audit: vec![AuditEntry::default(); 9], ..OperatorTrail::default() };
    for kind in [
        Kind::Join(Join { inbox: elsewhere(), public_key: public_key.clone(), ..Join::default() }),
        Kind::Join(Join { inbox: here.clone(), public_key, epochs: vec![vec![0; 8]; 17], ..Join::default() }),
        Kind::Request(Request { inbox: elsewhere(), kind: rotate, ..Request::default() }),
        Kind::Request(Request { inbox: here.clone(), kind: rotate, user: "a\nb".to_owned(), ..Request::default() }),
        Kind::Request(Request { inbox: here, kind: None, ..Request::default() }),
        Kind::Report(Report { inbox: elsewhere(), ..report.clone() }),
        Kind::Report(Report { pod: "p".repeat(1 << 19), ..report.clone() }),
        Kind::Report(Report { proxies: vec![Proxy::default(); 17], ..report.clone() }),
        Kind::Report(Report { operators: Some(Box::new(many)), ..report }),
    ] {
        let sealed = attacker.seal(&leaders, "mallory", kind);
        attacker.to_leader(&sealed);
    }
    let expected = [(refused("bad_join"), 2), (refused("bad_request"), 3), (refused("bad_report"), 4)];
    siege.counted_at(farm.leader(), &expected);

    // A flood: what is due is done all the same, and questions are answered.
    let forged: Vec<Vec<u8>> = (0..3_000).map(|n| flipped(&recorded, recorded.len() / 2 + n % 64)).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| attacker.flood(&keys, "", forged.iter().map(Vec::as_slice)));
        for _ in 0..5 {
            farm.hosts[1].daemon.try_status().expect("a status in the middle of a flood");
        }
    });
    siege.counted(&[(refused("bad_tag"), 3_000)]);
    // To the leader alone, whose queue drops the oldest.
    attacker.publish("", &leaders, &noise);
    siege.counted_at(farm.leader(), &[(refused("malformed"), 1)]);

    // One line a reason, with the sender where it is known.
    siege.warned(&[
        "refused a message (unknown_secret): ",
        "refused a message (bad_tag): ",
        "refused a session batch (bad_tag): ",
        "refused a message (malformed): ",
        &format!("refused a message (replay): a message of {leader} "),
        "refused a session batch (replay): a message of mallory ",
        "refused a message (too_large): ",
        "refused a message (clock): the clock of ghost is -36",
        "refused a message (unknown_epoch): ",
        "ignored a message of unknown kind from mallory held_back",
        "ignored a message of unknown kind from mallory among the sessions",
        "refused a message of mallory: bad_fingerprint",
        "refused a message of mallory: as_of_far_off",
        "refused a message of mallory: bad_announcement",
        "refused a message of mallory: bad_epoch",
        "refused a message of mallory: bad_grant",
        "refused a message (not_in_epoch): mallory ",
        "refused a session batch (not_in_epoch): mallory ",
    ]);
    for host in &farm.hosts {
        assert!(!host.daemon.log().contains('\u{1b}'), "a terminal's control codes came into the log");
    }
    siege.withstood(&[]);
}

/// A key that nothing is wrong with, superseded already.
fn old_key(generation: u64, now: u64) -> TicketKey {
    TicketKey {
        name: random::<16>().to_vec(),
        hmac: random::<32>().to_vec(),
        aes: random::<32>().to_vec(),
        generation,
        seal_from: now - 20_000,
        seal_until: now + 3_600_000,
        open_for: 3_600_000,
    }
}

fn prefix(key: &TicketKey) -> String {
    hex(&key.name[..4])
}

/// The longest that settings let a key seal, and open after that: 365 days and 32 intervals of a week. Milliseconds.
const MOST_SEAL_AGE: u64 = 365 * 86_400_000;
const MOST_OPEN_FOR: u64 = 32 * 7 * 86_400_000;

/// One key of each bad kind beside `good`, under a floor that lies an hour ahead. `known` is a key of the farm.
fn poisoned(good: &TicketKey, known: &TicketKey, now: u64) -> (Ring, Vec<(String, u64)>) {
    let old = |generation: u64, spoil: fn(&mut TicketKey, u64)| {
        let mut key = old_key(generation, now);
        spoil(&mut key, now);
        key
    };
    // Ranks below the farm's own key of that name.
    let mut rival = known.clone();
    rival.generation -= 1;
    rival.hmac = vec![9; 32];
    let keys = vec![
        old(1, |key, _| key.name = vec![1; 15]),
        old(2, |key, _| key.hmac = vec![1; 33]),
        old(3, |key, _| key.aes.clear()),
        old(4, |key, now| (key.seal_from, key.seal_until) = (now + 9 * 24 * 3_600_000, u64::MAX)),
        good.clone(),
        old(5, |key, now| key.seal_until = now - 20_001),
        old(6, |key, now| key.generation = now + 360_000),
        old(7, |key, _| key.generation = u64::MAX),
        old(8, |key, _| key.seal_until = u64::MAX),
        old(9, |key, _| key.open_for = MOST_OPEN_FOR + 1),
        rival,
    ];
    let expected = vec![
        (skipped("wrong_length"), 3),
        (skipped("seal_from_far_ahead"), 1),
        (skipped("seals_backwards"), 1),
        (skipped("generation_far_ahead"), 2),
        (skipped("lives_too_long"), 2),
        (skipped("floor_far_ahead"), 1),
        ("resumed_key_conflicts_total".to_owned(), 1),
    ];
    (Ring { floor: now + 3_600_000, keys, ..Ring::default() }, expected)
}

#[test]
fn only_the_bad_keys_of_a_ring_are_skipped_and_each_is_counted() {
    let broker = Broker::shared();
    let farm = Farm::start_in_step(&farm(2, &broker.uri(), Proxies::None));
    let mut siege = Siege::begin(&farm);
    let mut attacker = Attacker::join(&broker.uri(), farm.name(), &["pod"], &farm.secret);
    let (keys, leaders) = (attacker.names.keys.clone(), attacker.names.leader.clone());
    let known = attacker
        .record_until(&keys, |payload| match payload.kind {
            Some(Kind::Announcement(announcement)) => announcement.ring.and_then(|ring| ring.keys.first().cloned()),
            _ => None,
        })
        .0;
    let now = attacker.wall();

    // Announced to all.
    let announced = old_key(known.generation - 1_000, now);
    let (ring, expected) = poisoned(&announced, &known, now);
    let sealed = attacker.seal(&keys, "mallory", Kind::Announcement(announcement(ring, now)));
    attacker.to_all(&sealed);
    siege.counted(&expected);

    // Reported to the leader, which passes on what is good of it and nothing else.
    let reported = old_key(known.generation - 2_000, now);
    let (ring, expected) = poisoned(&reported, &known, now);
    // By the rules a good one, as far from the ordinary as they allow.
    let mut extreme = old_key(0, now);
    (extreme.seal_from, extreme.open_for) = (extreme.seal_until - MOST_SEAL_AGE, MOST_OPEN_FOR);
    let ring = Ring { keys: [ring.keys, vec![extreme.clone()]].concat(), ..ring };
    let inbox = attacker.names.inbox("mallory", "0");
    let report = Report { ring: Some(ring), inbox, fingerprint: vec![1; 8], as_of: u64::MAX, ..Report::default() };
    let sealed = attacker.seal(&leaders, "mallory", Kind::Report(report));
    attacker.to_leader(&sealed);
    let leader = farm.leader();
    siege.counted_at(leader, &expected);
    let taken: Vec<String> = [&announced, &reported, &extreme].into_iter().map(prefix).collect();
    for host in &farm.hosts {
        wait_for("the good keys", || {
            let ring = host.daemon.try_status()?.ring;
            let held = |name: &String| ring.keys.iter().any(|key| key.name_prefix == *name);
            if taken.iter().all(held) { Ok(()) } else { Err(format!("{ring:?}")) }
        });
    }
    siege.counted_at(1 - leader, &[]);

    // As many as are read: counted one by one, logged once. One more, and nothing of the message is.
    for (keys_in_it, expected) in [(256, (skipped("wrong_length"), 256)), (257, (refused("too_many"), 1))] {
        let ring = Ring { floor: 0, keys: vec![TicketKey::default(); keys_in_it], ..Ring::default() };
        let sealed = attacker.seal(&keys, "mallory", Kind::Announcement(announcement(ring, now)));
        attacker.to_all(&sealed);
        siege.counted(&[expected]);
    }

    // Whoever announces is followed for a moment, and shown as a member until it says farewell.
    let gone = attacker.seal(&leaders, "mallory", farewell());
    attacker.to_leader(&gone);
    siege.warned(&[
        "skipped 3 ticket keys of mallory: wrong_length",
        "refused a message (too_many): mallory sent more keys than any node does",
        "skipped a ticket key of mallory: seal_from_far_ahead",
        "skipped a ticket key of mallory: seals_backwards",
        "skipped 2 ticket keys of mallory: generation_far_ahead",
        "skipped 2 ticket keys of mallory: lives_too_long",
        "skipped a ticket key of mallory: floor_far_ahead",
        "mallory sent another key under a known name",
    ]);
    siege.withstood(&taken);
}

/// The most physical memory that a daemon ever had.
fn most_resident_kib(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("the daemon runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    line.trim().trim_end_matches(" kB").parse().expect("a number of KiB")
}

/// A leader, and a follower that asks it and never leads, with one beat in `beat`.
fn leader_and_follower(broker: &Broker, beat: &str) -> Farm {
    let setup = farm(2, &broker.uri(), Proxies::None);
    let mut farm = Farm::lay_out(&FarmSetup { broker: format!("report_every = \"{beat}\""), ..setup });
    let config = farm.hosts[1].daemon.config();
    let text =
        fs::read_to_string(&config).expect("a configuration").replacen("[keys]\n", "[keys]\ncan_lead = false\n", 1);
    fs::write(&config, text).expect("a configuration");
    farm.launch();
    farm
}

#[test]
fn messages_that_would_swell_up_take_no_memory_and_hold_nobody_up() {
    let broker = Broker::shared();
    let farm = leader_and_follower(&broker, "500ms");
    let mut siege = Siege::begin(&farm);
    let mut attacker = Attacker::join(&broker.uri(), farm.name(), &["pod"], &farm.secret);
    let keys = attacker.names.keys.clone();
    let before: Vec<u64> = farm.hosts.iter().map(|host| most_resident_kib(&host.daemon)).collect();

    // Nearly a mebibyte of empty ticket keys, ten times, while a follower asks its leader.
    let hostile: Vec<Bytes> = (0..10)
        .map(|_| {
            let ring = Ring { keys: vec![TicketKey::default(); 470_000], ..Ring::default() };
            let now = attacker.wall();
            attacker.seal(&keys, "mallory", Kind::Announcement(announcement(ring, now)))
        })
        .collect();
    std::thread::scope(|scope| {
        scope.spawn(|| attacker.flood(&keys, "", hostile.iter().map(|body| &body[..])));
        for _ in 0..5 {
            let begun = Instant::now();
            let status = farm.hosts[1].daemon.try_status().expect("a status among hostile messages");
            assert!(status.leader.is_some(), "no leader answered: {status:?}");
            println!("a status took {:?}", begun.elapsed());
            assert!(begun.elapsed() < Duration::from_secs(4));
        }
    });
    siege.counted(&[(refused("too_many"), 10)]);

    for (host, before) in farm.hosts.iter().zip(before) {
        let now = most_resident_kib(&host.daemon);
        println!("at most {before} KiB before, {now} KiB after");
        assert!(now < before + 96 * 1024, "grew from {before} to {now} KiB");
    }
}

/// The attacker in the leader's place.
struct Usurper {
    attacker: Attacker,
    /// The questions that it has answered. One that has waited for a second comes again.
    answered: BTreeSet<u64>,
}

impl Usurper {
    /// The requests with which a follower asks: one of each of `count` questions.
    fn asked(&mut self, count: usize) -> Vec<Request> {
        let leaders = self.attacker.names.leader.clone();
        let request = |payload: Payload| match payload.kind {
            Some(Kind::Request(request)) => Some(request),
            _ => None,
        };
        let mut requests = BTreeMap::new();
        while requests.len() < count {
            let (request, _) = self.attacker.record_until(&leaders, request);
            if !self.answered.contains(&request.id) {
                requests.insert(request.id, request);
            }
        }
        self.answered.extend(requests.keys());
        requests.into_values().collect()
    }

    /// Answers each of `requests` with `parts` parts of a table, one too few, each of which holds `members`.
    fn answer(&mut self, requests: &[Request], members: &[Member], parts: u32) {
        for part in 0..parts {
            for request in requests {
                let (id, outcome) = (request.id, Outcome::Done.into());
                let members = members.to_vec();
                let answer = Answer { id, outcome, part, parts: parts + 1, as_of: 1, members, ..Answer::default() };
                let sealed = self.attacker.seal(&request.inbox, "mallory", Kind::Answer(answer));
                self.attacker.publish("", &request.inbox, &sealed);
            }
        }
    }

    /// Has `follower` asked for its status `questions` times at once, and answers so. Meanwhile the follower lets its health be
    /// seen, and in the end it says what it knows by itself.
    fn answers(&mut self, follower: &Daemon, questions: usize, members: &[Member], parts: u32) {
        let (answering, until) = (AtomicBool::new(true), Instant::now() + PATIENCE);
        std::thread::scope(|scope| {
            let ask = || scope.spawn(|| follower.try_status().expect("a status"));
            let asking: Vec<_> = (0..questions).map(|_| ask()).collect();
            let watching = scope.spawn(|| {
                // Should the other thread panic, this one ends too.
                while answering.load(Ordering::Relaxed) && Instant::now() < until {
                    let begun = Instant::now();
                    follower.get("/healthz").expect("an answer among hostile ones");
                    assert!(begun.elapsed() < Duration::from_secs(4), "its health took {:?}", begun.elapsed());
                    std::thread::sleep(Duration::from_millis(10));
                }
            });
            let requests = self.asked(questions);
            self.answer(&requests, members, parts);
            let answers: Vec<FarmStatus> = asking.into_iter().map(|asking| asking.join().expect("a status")).collect();
            answering.store(false, Ordering::Relaxed);
            watching.join().expect("its health throughout");
            assert!(answers.iter().all(|status| status.leader.is_none()), "{answers:?}");
        });
    }
}

#[test]
fn an_answer_in_hostile_parts_takes_little_memory_and_delays_no_node() {
    let broker = Broker::shared();
    // The attacker announces nothing: three beats later the follower would take its inbox for silent, and open another.
    let mut farm = leader_and_follower(&broker, "10s");
    farm.wait_in_step();
    let mut attacker = Attacker::join(&broker.uri(), farm.name(), &["pod"], &farm.secret);
    farm.hosts[0].daemon.kill();
    attacker.take_the_lease();
    let mut usurper = Usurper { attacker, answered: BTreeSet::new() };
    let follower = &farm.hosts[1].daemon;
    let before = most_resident_kib(follower);
    let member = |name: &str| Member { name: name.into(), boot_id: vec![1; 16], ..Member::default() };
    let mut expected = counts(follower);

    // Members that are nothing, so many to a part that it is not decoded; as many as a farm may have, and more; one that no
    // terminal should show.
    let tables = [
        (vec![Member::default(); 60_000], 4, refused("too_many"), 4),
        (vec![member("a"); 10_001], 3, refused("too_many"), 1),
        (vec![member("a\u{1b}[2J")], 2, refused("bad_answer"), 1),
    ];
    for (members, parts, series, count) in tables {
        usurper.answers(follower, 1, &members, parts);
        *expected.get_mut(&series).expect("shown from the start") += count;
        wait_for("what is refused to be counted", || {
            let counts = counts(follower);
            if counts == expected { Ok(()) } else { Err(format!("{counts:?}, wanted {expected:?}")) }
        });
    }

    // To several questions at once, each in as many bytes as one may take: together more than all may. A question is given up
    // after five seconds, so a busy machine may need another try to send as much.
    let long = vec![Member { boot_id: vec![1; 64 * 1024], ..member("a") }; 15];
    let (refusals, _) = wait_for("one of four tables of 30 MiB to be refused", || {
        usurper.answers(follower, 4, &long, 30);
        let refusals = counts(follower)[&refused("too_many")] - expected[&refused("too_many")];
        if refusals > 0 { Ok(refusals) } else { Err("all were kept".to_owned()) }
    });
    let now = most_resident_kib(follower);
    println!("at most {before} KiB before, {now} KiB after; {refusals} of four tables refused");
    assert!(now < before + 96 * 1024, "grew from {before} to {now} KiB");

    // With a leader as it should be all is well again.
    drop(usurper);
    farm.hosts[0].daemon.launch();
    assert_eq!(farm.wait_in_step_at(1).leader.as_deref(), Some("host0"));
    let log = farm.hosts[1].daemon.log();
    assert!(!log.contains("panic") && log.matches("resumed is running").count() == 1, "{log}");
}

/// `der` with its creation time replaced; OpenSSL must agree.
fn made_at(der: &[u8], seconds: u32) -> Vec<u8> {
    // Element [1]: an INTEGER of four bytes.
    let tag = [0xa1, 0x06, 0x02, 0x04];
    let at = der.windows(4).rposition(|window| window == tag).expect("a creation time") + 4;
    let mut der = der.to_vec();
    der[at..at + 4].copy_from_slice(&seconds.to_be_bytes());
    assert_eq!(SslSession::from_der(&der).expect("a session").time(), i64::from(seconds));
    der
}

/// `der` with another protocol version in place of TLS 1.2.
fn of_version(der: &[u8], version: u8) -> Vec<u8> {
    let tls12 = [0x02, 0x02, 0x03, 0x03];
    let at = der.windows(4).position(|window| window == tls12).expect("a protocol version");
    let mut der = der.to_vec();
    der[at + 3] = version;
    der
}

/// Bad sessions, each with the reason for which it is dropped. `real` is one as an ATS made it.
fn bad_sessions(real: &SessionEntry, now: u64) -> Vec<(SessionEntry, &'static str)> {
    let with = |session: Vec<u8>| SessionEntry { session: session.into(), ..real.clone() };
    let called = |id: &[u8]| SessionEntry { id: Bytes::copy_from_slice(id), ..real.clone() };
    let der = &real.session;
    let mut trailing = der.to_vec();
    trailing.push(0);
    let seconds = u32::try_from(now / 1000).expect("before 2106");
    vec![
        (with(der[..der.len() - 1].to_vec()), "broken_der"),
        (with(trailing), "broken_der"),
        (with(random::<300>().to_vec()), "broken_der"),
        (with(vec![0x30]), "broken_der"),
        (called(&[7; 32]), "wrong_id"),
        (called(&real.id[..31]), "wrong_id"),
        (called(&[7; 33]), "bad_id"),
        (called(&[]), "bad_id"),
        (called(&[7; 4096]), "bad_id"),
        (with(made_at(der, seconds - 10 * 86_400)), "expired"),
        (with(made_at(der, seconds + 86_400)), "from_the_future"),
        (with(of_version(der, 9)), "unknown_version"),
        (with(vec![0x30; 16 * 1024 + 1]), "too_large"),
    ]
}

fn by_reason(bad: &[(SessionEntry, &'static str)]) -> Vec<(String, u64)> {
    let mut counts = BTreeMap::new();
    for (_, reason) in bad {
        *counts.entry(dropped(reason)).or_insert(0) += 1;
    }
    counts.into_iter().collect()
}

#[test]
fn bad_sessions_are_skipped_one_by_one_and_the_good_ones_beside_them_resume() {
    let broker = Broker::shared();
    // Sessions of pod `a` reach pod `b` by the attacker's hand alone.
    let pods = ["a", "b"].map(str::to_owned).to_vec();
    let farm = Farm::start_in_step(&FarmSetup { pods, ..farm(2, &broker.uri(), Proxies::SessionIds) });
    let mut siege = Siege::begin(&farm);
    let mut attacker = Attacker::join(&broker.uri(), farm.name(), &["a", "b"], &farm.secret);
    let (client, targets) = (Client::new(Options::default()).expect("a client"), farm.targets());
    let from_a = format!("resumed.{}.sessions.a", farm.name());
    let mut make = || {
        let session = client.handshake(&targets[0], Mode::Id).expect("a full handshake").session;
        let (entry, sealed) = attacker.record_until(&from_a, |payload| match payload.kind {
            Some(Kind::Sessions(batch)) => batch.entries.into_iter().find(|entry| entry.id == session.id()),
            _ => None,
        });
        (session, entry, sealed)
    };
    let (spoilt, spoilt_entry, _) = make();
    let (good, good_entry, recorded) = make();
    let resumes = |session| client.resume(&targets[1], session).expect("a handshake").resumed;
    assert!(!resumes(&good) && !resumes(&spoilt), "the session is in pod b already");
    let to_b = attacker.names.sessions.clone();
    let inserted = || farm.hosts[1].daemon.metric("resumed_sessions_inserted_total");

    // Replayed in its own pod, and moved to the other.
    attacker.publish(&from_a, "", &recorded);
    siege.counted_at(0, &[(refused("replay"), 1)]);
    attacker.to_feeds(&recorded);
    siege.counted_at(1, &[(refused("bad_tag"), 1)]);
    assert_eq!(inserted(), 0.0);

    // A good one amid bad ones.
    let bad = bad_sessions(&spoilt_entry, attacker.wall());
    let mut entries: Vec<SessionEntry> = bad.iter().map(|(entry, _)| entry.clone()).collect();
    entries.insert(entries.len() / 2, good_entry.clone());
    let sealed = attacker.seal(&to_b, "mallory", batch(entries));
    attacker.to_feeds(&sealed);
    siege.counted_at(1, &by_reason(&bad));
    assert_eq!(inserted(), 1.0);
    wait_for("the good session in the other pod", || if resumes(&good) { Ok(()) } else { Err("refused".to_owned()) });
    assert!(!resumes(&spoilt), "a bad session was resumed");

    // A format of the future, and more entries than a batch may have.
    let future = SessionBatch { entries: vec![spoilt_entry.clone(); 2], format: 7 };
    let sealed = attacker.seal(&to_b, "mallory", Kind::Sessions(future));
    attacker.to_feeds(&sealed);
    siege.counted_at(1, &[(dropped("unknown_format"), 2)]);
    let removal = SessionEntry { id: Bytes::from_static(b"x"), ..SessionEntry::default() };
    let sealed = attacker.seal(&to_b, "mallory", batch(vec![removal; 32_770]));
    attacker.to_feeds(&sealed);
    siege.counted_at(1, &[(dropped("over_limit"), 2)]);
    siege.counted_at(0, &[]);
    assert_eq!(inserted(), 1.0);
    assert!(resumes(&good) && !resumes(&spoilt));

    siege.warned_at(0, &["refused a session batch (replay): a message of host0 "]);
    let lines = ["broken_der", "wrong_id", "bad_id", "expired", "from_the_future", "unknown_version", "too_large"];
    let lines: Vec<String> = lines.map(|reason| format!("sessions of mallory: {reason} ")).to_vec();
    siege.warned_at(1, &lines.iter().map(String::as_str).collect::<Vec<_>>());
    siege.warned_at(1, &["sessions of mallory: unknown_format", "sessions of mallory: over_limit"]);
    siege.withstood(&[]);
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&u32::try_from(message.len()).expect("a length").to_be_bytes()[..], message].concat()
}

fn from_proxy(kind: from_proxy::Kind) -> Vec<u8> {
    framed(&FromProxy { kind: Some(kind) }.encode_to_vec())
}

fn hello() -> Vec<u8> {
    let hello = Hello { kind: "ats".to_owned(), process_id: 1, sessions: true, ..Hello::default() };
    from_proxy(from_proxy::Kind::Hello(hello))
}

fn control(kind: control_request::Kind) -> Vec<u8> {
    framed(&ControlRequest { kind: Some(kind) }.encode_to_vec())
}

fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap_or_else(|error| panic!("{}: {error}", socket.display()));
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
    stream
}

/// Says `bytes` to `socket`, ends its side if `ends`, and waits until the daemon has ended the other.
fn say(socket: &Path, bytes: &[u8], ends: bool) {
    let mut stream = connect(socket);
    // The daemon may have had enough before the last byte.
    let _cut = stream.write_all(bytes);
    if ends { hang_up(stream) } else { hear_out(stream) }
}

fn hang_up(stream: UnixStream) {
    let _gone = stream.shutdown(Shutdown::Write);
    hear_out(stream);
}

fn hear_out(mut stream: UnixStream) {
    if let Err(error) = stream.read_to_end(&mut Vec::new()) {
        assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "the daemon does not let go of the connection");
    }
}

/// Ends what runs beside a test, also if the test panics.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn on_the_plugins_socket(siege: &mut Siege<'_>, socket: &Path) {
    let too_large = u32::try_from(MOST_PLUGIN_BYTES + 1).expect("a length").to_be_bytes();
    let sessions = |entries| from_proxy(from_proxy::Kind::Sessions(Sessions { entries }));
    let counters = from_proxy(from_proxy::Kind::Counters(Counters { queued: u64::MAX, ..Counters::default() }));
    let noise = [&[0xfe][..], &random::<500>()].concat();
    // What comes first, and whether the sender then ends its side.
    let first: [(&[u8], &str); 9] = [
        (&too_large, "too_large"),
        (&[0xff; 4], "too_large"),
        (&noise, "too_large"),
        (&framed(&[0xff; 32]), "garbage"),
        (&framed(&[]), "no_hello"),
        (&sessions(Vec::new()), "no_hello"),
        (&counters, "no_hello"),
        (&[0, 0], "truncated"),
        (b"\x00\x00\x00\x09cut", "truncated"),
    ];
    for (bytes, reason) in first {
        say(socket, bytes, reason == "truncated");
        siege.counted_at(0, &[(proxy_refused(reason), 1)]);
    }
    let later: [(&[u8], &str); 4] = [
        (&too_large, "too_large"),
        (&framed(&[0xff; 32]), "garbage"),
        (&hello(), "no_hello"),
        (b"\x00\x10\x00\x00cut", "truncated"),
    ];
    for (bytes, reason) in later {
        say(socket, &[&hello(), bytes].concat(), reason == "truncated");
        siege.counted_at(0, &[(proxy_refused(reason), 1)]);
    }
    // Well-formed messages of bad sessions cost the sessions, not the connection.
    let session = |id: &[u8], der: &[u8]| SessionEntry {
        id: Bytes::copy_from_slice(id),
        session: Bytes::copy_from_slice(der),
        at: 1,
    };
    let bad = [
        session(&[7; 33], b"x"),
        session(&[], b"x"),
        session(&[7; 32], &random::<100>()),
        session(&[7; 32], &[0x30; 16 * 1024 + 1]),
    ];
    let words = [hello(), sessions(bad.to_vec()), framed(&[0x9a, 0x06, 0])].concat();
    say(socket, &words, true);
    siege.counted_at(0, &[(dropped("bad_id"), 2), (dropped("broken_der"), 1), (dropped("too_large"), 1)]);
    // Promises of much take up no room.
    let promising: Vec<UnixStream> = (0..40)
        .map(|_| {
            let mut stream = connect(socket);
            stream.write_all(&[&hello()[..], b"\x00\x10\x00\x00x"].concat()).expect("the daemon listens");
            stream
        })
        .collect();
    siege.farm.hosts[0].daemon.wait_for_metric("resumed_proxies_connected", |proxies| proxies == 41.0);
    promising.into_iter().for_each(hang_up);
    siege.counted_at(0, &[(proxy_refused("truncated"), 40)]);
    siege.farm.hosts[0].daemon.wait_for_metric("resumed_proxies_connected", |proxies| proxies == 1.0);
}

fn on_the_control_socket(siege: &mut Siege<'_>, socket: &Path) {
    let status = || control(control_request::Kind::Status(StatusCommand {}));
    let rotate = control(control_request::Kind::Rotate(RotateCommand { wait_ms: u64::MAX }));
    let noise = [&[0xfe][..], &random::<500>()].concat();
    let words: [(&[u8], &str); 9] = [
        (&[0, 0, 0x10, 0x01], "too_large"),
        (&[0xff; 4], "too_large"),
        (&noise, "too_large"),
        (&framed(&[0xff; 32]), "malformed"),
        (&framed(&[]), "malformed"),
        (&framed(&[0x9a, 0x06, 0]), "malformed"),
        // The second before the first was answered.
        (&[status(), status()].concat(), "malformed"),
        (&[0, 0], "truncated"),
        (&rotate[..rotate.len() - 1], "truncated"),
    ];
    for (bytes, reason) in words {
        say(socket, bytes, reason == "truncated");
        siege.counted_at(0, &[(control_refused(reason), 1)]);
    }
}

/// Somebody with an account on the host and no business with the daemon.
fn strangers(siege: &mut Siege<'_>, ats: &Path, ctl: &Path) {
    if !nix::unistd::geteuid().is_root() {
        // Only root can play another user; `make test` runs as root or says so here.
        eprintln!("not root: cannot connect as another user, nothing shown");
        return;
    }
    let folder = siege.farm.dir();
    for folder in [folder, siege.farm.hosts[0].daemon.home()] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("permissions");
    }
    let told = foreign_peer::connect(folder, ats);
    assert!(told.status.success() && told.stdout == b"0\n", "{told:?}");
    siege.counted_at(0, &[(proxy_refused("peer"), 1)]);
    siege.warned_at(0, &["of user 65534: user 65534 is neither root"]);
    // There the file's mode turns it away, and the daemon hears nothing of it.
    let kept_out = foreign_peer::connect(folder, ctl);
    assert!(!kept_out.status.success(), "{kept_out:?}");
    assert_eq!(String::from_utf8_lossy(&kept_out.stderr), "connect: Permission denied\n");
    siege.counted_at(0, &[]);
}

/// More than there is room for, all of them too slow.
fn crowd(siege: &mut Siege<'_>, ats: &Path, ctl: &Path) {
    let daemon = &siege.farm.hosts[0].daemon;
    let mut slow: Vec<UnixStream> = (0..MAX_PROXIES + 6).map(|_| connect(ats)).collect();
    let mut slow_operators: Vec<UnixStream> = (0..40).map(|_| connect(ctl)).collect();
    for stream in slow.iter_mut().chain(&mut slow_operators) {
        // The first bytes of a message of 1,000.
        let _had_enough = stream.write_all(&[0, 0, 3, 232]);
    }
    // The farm's own proxy has a place already.
    let expected = [(proxy_refused("silent"), MAX_PROXIES as u64 - 1), (proxy_refused("too_many"), 7)];
    wait_for("the end of the slow connections", || {
        for stream in slow.iter_mut().chain(&mut slow_operators) {
            let _had_enough = stream.write_all(&[0]);
        }
        let silent = daemon.metric(&expected[0].0);
        if silent >= 63.0 { Ok(()) } else { Err(format!("{silent} of 63")) }
    });
    siege.counted_at(0, &expected);
    slow_operators.into_iter().for_each(hang_up);
    siege.counted_at(0, &[(control_refused("truncated"), 40)]);
}

/// Files that a daemon has open.
fn open_files(daemon: &Daemon) -> usize {
    fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("a daemon that runs").count()
}

/// By how much that may change of itself.
const FEW: usize = 12;

#[test]
fn connections_to_the_metrics_that_ask_nothing_cost_the_daemon_no_more_than_its_limit() {
    let setup = farm(1, "", Proxies::None);
    let farm = Farm::start_in_step(&setup);
    let daemon = &farm.hosts[0].daemon;
    let before = open_files(daemon);
    let half = |_| {
        let mut stream = std::net::TcpStream::connect(daemon.metrics_address())?;
        stream.set_nonblocking(true)?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHo").map(|()| stream)
    };
    // More than there is room for, and the backlog behind it: those that the kernel takes.
    let held: Vec<_> = (0..150).map(half).collect::<Result<_, _>>().expect("connections");
    // A few more or less are the daemon's own, at any moment.
    let (most, _) = wait_for("as many connections as may be", || match open_files(daemon).saturating_sub(before) {
        taken if taken >= 64 - FEW => Ok(taken),
        taken => Err(taken.to_string()),
    });
    daemon.try_status().expect("status while the metrics are besieged");
    drop(connect(&daemon.home().join("ats.sock")));
    let then = open_files(daemon).saturating_sub(before);
    assert!(then <= 64 + FEW, "{most} at first, {then} then");
    drop(held);
    wait_for("metrics again", || daemon.metrics());
}

#[test]
fn bad_company_on_the_unix_sockets_is_shown_the_door_while_others_are_served() {
    let broker = Broker::shared();
    let farm = Farm::start_in_step(&farm(2, &broker.uri(), Proxies::SessionIds));
    let mut siege = Siege::begin(&farm);
    let daemon = &farm.hosts[0].daemon;
    let (ats, ctl) = (daemon.home().join("ats.sock"), daemon.home().join("control.sock"));
    let (over, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (client, targets) = (Client::new(Options::default()).expect("a client"), farm.targets());
    std::thread::scope(|scope| {
        // Meanwhile operators ask, and sessions go from proxy to proxy through both daemons.
        scope.spawn(|| {
            for turn in 0.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                daemon.try_status().expect("a status while others misbehave");
                let (from, to) = (&targets[turn % 2], &targets[(turn + 1) % 2]);
                let session = client.handshake(from, Mode::Id).expect("a full handshake").session;
                wait_for("a resumption while others misbehave", || {
                    let resumed = client.resume(to, &session).map_err(|error| error.to_string())?.resumed;
                    if resumed { Ok(()) } else { Err("refused".to_owned()) }
                });
                served.fetch_add(1, Ordering::Relaxed);
            }
        });
        let _over = Over(&over);
        on_the_plugins_socket(&mut siege, &ats);
        on_the_control_socket(&mut siege, &ctl);
        strangers(&mut siege, &ats, &ctl);
        crowd(&mut siege, &ats, &ctl);
    });
    let served = served.into_inner();
    println!("{served} times a status was given and a session resumed elsewhere meanwhile");
    assert!(served > 3, "served only {served} times");
    siege.warned_at(
        0,
        &[
            "user 0: a message of more than 1048576 bytes",
            "user 0: a message that is none: ",
            "user 0: the first message is no introduction",
            "user 0: the connection ended in the middle of a message",
            "user 0: no introduction within 5s",
            "user 0: more than 64 connections",
            "user 0 reported a session ID of 33 bytes",
            "user 0 reported a session whose DER is broken",
            "user 0 reported a session of 16385 bytes",
            "user 0: sent a request of more than 4096 bytes",
            "user 0: sent something that is no request",
            "user 0: ended in the middle of a message",
        ],
    );
    siege.counted_at(1, &[]);
    siege.withstood(&[]);
}

/// Runs `resumed` with these words until it ends by itself, which it must.
fn resumed(words: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(built("resumed"));
    command.args(words).envs(environment.iter().copied()).env_remove("RESUMED_LOG");
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("resumed");
    let begun = Instant::now();
    while child.try_wait().expect("our child").is_none() {
        if begun.elapsed() > PATIENCE {
            let _gone = child.kill();
            panic!("resumed {words:?} runs on: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().expect("our child");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).expect("UTF-8"))
}

/// `run` and `check` both refuse the configuration in `text` with exit code 2 and say each of `says`.
#[track_caller]
fn is_refused(folder: &Path, text: &str, environment: &[(&str, &str)], says: &[&[&str]]) {
    let file = folder.join("resumed.toml");
    fs::write(&file, text).expect("the configuration");
    for command in ["run", "check"] {
        let (code, said) = resumed(&[command, "--config", file.to_str().expect("UTF-8")], environment);
        assert_eq!(code, Some(2), "{command}: {said}");
        assert!(!said.contains("hunter2") && !said.contains("c0ffee"), "{command} shows a secret: {said}");
        for parts in says {
            for part in *parts {
                assert!(said.contains(part), "{command} does not say {part:?}: {said}");
            }
        }
    }
}

#[test]
fn mistakes_in_the_configuration_are_all_told_and_nothing_starts() {
    let folder = Folder::temporary("resumed-");
    let text = "farm = \"x\"\n[node]\nfarm = \"Prod\"\ncolour = \"red\"\n[broker]\n\
                uris = [\"amqp://resumed:hunter2@mq1\", \"http://resumed:hunter2@mq2\"]\nheartbeat = \"-1s\"\n\
                [keys]\nkeep = 0\ninterval = \"9d\"\nsettle = 5\nintervall = \"8h\"\n[sessions]\n\
                max_bytes = \"1B\"\nremovals = \"maybe\"\n[ats]\nsocket = \"relative.sock\"\n[metrics]\n\
                listen = \"everywhere\"\n[zoo]\nx = 1\n";
    let environment = [("RESUMED__KEYS__CAN_LEAD", "perhaps")];
    is_refused(
        folder.path(),
        text,
        &environment,
        &[
            &["15 mistakes"],
            &["farm", "stands outside of any section", "perhaps node.farm is meant"],
            &["node.farm = \"Prod\"", "has the character 'P'", "1 to 63 of a-z, 0-9 and -"],
            &["node.colour", "unknown key", "the keys of node: "],
            &[
                "broker.uris = \"http://resumed:***@mq2\"",
                "is not an AMQP URI",
                "amqps://user:password@host:5671/vhost",
            ],
            &["broker.heartbeat = \"-1s\"", "is not a duration", "from 1s to 5m"],
            &["keys.keep = 0", "is too small", "a whole number from 1 to 32"],
            &["keys.interval = \"9d\"", "is too large", "from 1s to 7days"],
            &["keys.settle = 5", "needs a unit, in quotes"],
            &["keys.intervall", "unknown key", "perhaps keys.interval is meant"],
            &["keys.can_lead = \"perhaps\"", "environment RESUMED__KEYS__CAN_LEAD", "is neither true nor false"],
            &["sessions.max_bytes = \"1B\"", "is too small", "from 1MiB to 1TiB"],
            &["sessions.removals = \"maybe\"", "is not known", "\"replicate\" or \"keep\""],
            &["ats.socket = \"relative.sock\"", "is not an absolute path"],
            &["metrics.listen = \"everywhere\"", "is not an IP address with a port", "\"127.0.0.1:9464\""],
            &["zoo", "unknown section", "the sections node, broker, secret, keys, sessions, ats, control, metrics"],
        ],
    );
    let text = "[broker]\nuris = [\"amqp://resumed:hunter2@mq1\"\n";
    is_refused(folder.path(), text, &[], &[&["is not valid TOML", "line "]]);
    let text = "[broker]\nuris = [\"amqp://resumed:hunter2@mq1\"]\n";
    is_refused(
        folder.path(),
        text,
        &[],
        &[&["secret.files", "nothing goes there unsealed", "`resumed secret new FILE`"]],
    );
    assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 1, "something was started");
}

#[test]
fn a_farm_secret_that_is_not_as_it_must_be_is_refused_and_not_shown() {
    let folder = Folder::temporary("resumed-");
    let path = |name: &str| folder.path().join(name);
    let write = |name: &str, text: &str, mode: u32| -> PathBuf {
        fs::write(path(name), text).expect("a file");
        fs::set_permissions(path(name), fs::Permissions::from_mode(mode)).expect("permissions");
        path(name)
    };
    let digits = "c0ffee".repeat(11);
    let good = format!("{}\n", &digits[..64]);
    let content = "exactly 64 hex digits and a newline, as `resumed secret new";
    for (file, says) in [
        (write("open", &good, 0o644), "has mode 0644"),
        (write("run", &good, 0o700), "has mode 0700"),
        (write("short", &format!("{}\n", &digits[..63]), 0o600), "has 63 hex digits"),
        (write("long", &format!("{}\n", &digits[..65]), 0o600), "has 65 hex digits"),
        (write("bare", &digits[..64], 0o600), "has 64 hex digits but no newline after them"),
        (write("words", "hunter2 is no secret\n", 0o600), "something other than a hex digit or the newline at byte 1"),
        (write("none", "", 0o600), "is empty"),
        (folder.path().to_owned(), "a regular file"),
        (path("missing"), "No such file or directory"),
    ] {
        let text = format!(
            "[broker]\nuris = [\"amqp://resumed:hunter2@127.0.0.1:1\"]\n[secret]\nfiles = [\"{}\"]\n",
            file.display()
        );
        let name = file.display().to_string();
        is_refused(folder.path(), &text, &[], &[&[&name, says]]);
        if says.starts_with("has mode") {
            is_refused(folder.path(), &text, &[], &[&["0600", "0640"]]);
        } else if file.is_file() {
            is_refused(folder.path(), &text, &[], &[&[content]]);
        }
    }
    // The same secret twice would make a rotation of secrets look safe that is not.
    let (one, two) = (write("one", &good, 0o600), write("two", &good, 0o640));
    let text = format!("[secret]\nfiles = [\"{}\", \"{}\"]\n", one.display(), two.display());
    is_refused(folder.path(), &text, &[], &[&["/two", "is the same secret as ", "/one"]]);
}
