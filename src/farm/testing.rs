//! What tests of several concerns use: nodes, the events that they are given, and what they answer.

use std::time::Duration;

use super::{Action, Event, Farm, FarmSettings, Note};
use crate::clock::Now;
use crate::keys::{HeldRing, KeySettings};
use crate::proto::{self, payload::Kind};
use crate::random::Randomness;
use crate::routes::{Names, Route, Seat, Via};

pub(super) fn follower(now: Now) -> Farm {
    node("a", 1, Box::new(|bytes| bytes.fill(7)), now)
}

pub(super) fn node(name: &str, boot: u8, random: Randomness, now: Now) -> Farm {
    let keys = KeySettings {
        interval: Duration::from_secs(60),
        keep: 3,
        settle: Duration::from_secs(2),
        max_seal_age: Duration::from_secs(180),
        max_clock_offset: Duration::from_secs(300),
    };
    let settings = FarmSettings {
        node: name.to_owned(),
        boot_id: [boot; 16],
        pod: "p".to_owned(),
        version: "0".to_owned(),
        names: Names::new("f", "p"),
        keys,
        report_every: Duration::from_secs(2),
        start_alone_after: Duration::from_secs(10),
        can_lead: true,
    };
    let mut farm = Farm::new(settings, HeldRing::new(keys), random, now);
    let _reports = farm.handle(now, Event::Connected { inbox: format!("resumed.f.node.{name}.1") });
    farm
}

pub(super) fn at(seconds: u64) -> Now {
    Now { wall: 1_700_000_000_000 + 1_000 * seconds, mono: 1_000_000 + 1_000 * seconds }
}

pub(super) fn own_report() -> proto::Report {
    proto::Report { inbox: "resumed.f.node.a.1".to_owned(), fingerprint: vec![0; 8], ..Default::default() }
}

pub(super) fn own_message(node: &str, boot: u8, now: Now) -> Event {
    let kind = Some(Kind::Report(own_report()));
    let payload = proto::Payload { node: node.to_owned(), boot_id: vec![boot; 16], sent_at: now.wall, kind };
    Event::Message { payload: Box::new(payload), via: Via::Inbox }
}

pub(super) fn announcement(leased: bool, now: Now) -> Event {
    let announcement = proto::Announcement {
        as_of: now.wall,
        fingerprint: vec![0; 8],
        leased,
        report_every_ms: 2_000,
        ..Default::default()
    };
    let kind = Some(Kind::Announcement(announcement));
    let payload = proto::Payload { node: "b".to_owned(), boot_id: vec![2; 16], sent_at: now.wall, kind };
    Event::Message { payload: Box::new(payload), via: Via::Inbox }
}

pub(super) fn request(id: u64, user: &str, highest_generation: u64, now: Now) -> Event {
    let request = proto::Request {
        id,
        inbox: "resumed.f.node.b.1".to_owned(),
        highest_generation,
        user: user.to_owned(),
        kind: Some(proto::request::Kind::Revoke(proto::Revoke { flush_sessions: true })),
    };
    let kind = Some(Kind::Request(request));
    let payload = proto::Payload { node: "b".to_owned(), boot_id: vec![2; 16], sent_at: now.wall, kind };
    Event::Message { payload: Box::new(payload), via: Via::Lease }
}

/// The entries that these actions tell of.
pub(super) fn audited(actions: &[Action]) -> Vec<proto::AuditEntry> {
    let entry = |action: &Action| match action {
        Action::Note(Note::Audited(entry)) => Some(entry.clone()),
        _ => None,
    };
    actions.iter().filter_map(entry).collect()
}

pub(super) fn writes_to_itself(actions: &[Action]) -> bool {
    let own = |action: &Action| matches!(action, Action::Send { to: Route::Inbox(to), .. } if to.contains("node.a."));
    actions.iter().any(own)
}

pub(super) fn tries(actions: &[Action]) -> bool {
    actions.iter().any(|action| matches!(action, Action::TryLease(_)))
}

pub(super) fn later(now: Now, ms: u64) -> Now {
    Now { wall: now.wall + ms, mono: now.mono + ms }
}

pub(super) fn seat(number: u32) -> Seat {
    Seat::numbered(number).expect("one of eight")
}
