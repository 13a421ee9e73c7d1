use std::time::Duration;

use crate::farm::testing::{announcement, at, follower, own_report};
use crate::farm::{Action, Event, Note};
use crate::proto::{self, payload::Kind};
use crate::reason::Reason;
use crate::routes::{Seat, Via};

#[test]
fn a_report_that_no_node_sends_is_refused_and_not_kept() {
    let mut leader = follower(at(0));
    let _leads = leader.handle(at(0), Event::LeaseGranted(Seat::FIRST));
    let proxy = |version: usize, digest: usize| proto::Proxy {
        kind: "ats".to_owned(),
        version: "9".repeat(version),
        certificate_digest: vec![1; digest],
        warnings: Vec::new(),
    };
    let warned = |count: usize, bytes: usize| proto::Proxy { warnings: vec!["w".repeat(bytes); count], ..proxy(1, 8) };
    let trail = |bytes: usize, audit: Vec<proto::AuditEntry>| {
        let reload = Some(proto::LastReload { at: 1, refused: "r".repeat(bytes) });
        Some(Box::new(proto::OperatorTrail { reload, audit }))
    };
    let entry = |node: &str, user: &str| proto::AuditEntry {
        node: node.to_owned(),
        user: user.to_owned(),
        ..proto::AuditEntry::default()
    };
    let good = proto::Report {
        secret_ids: vec![vec![1; 8]; 16],
        proxies: [vec![warned(8, 128); 2], vec![proxy(256, 8); 14]].concat(),
        operators: trail(256, vec![entry("b", "root"); 8]),
        ..own_report()
    };
    let bad = [
        proto::Report { inbox: "resumed.other.node.a.1".to_owned(), ..good.clone() },
        proto::Report { fingerprint: vec![0; 9], ..good.clone() },
        proto::Report { pod: "p".repeat(257), ..good.clone() },
        proto::Report { version: "1".repeat(257), ..good.clone() },
        proto::Report { secret_ids: vec![vec![1; 8]; 17], ..good.clone() },
        proto::Report { secret_ids: vec![vec![1; 9]], ..good.clone() },
        proto::Report { proxies: vec![proxy(1, 8); 17], ..good.clone() },
        proto::Report { proxies: vec![proxy(257, 8)], ..good.clone() },
        proto::Report { proxies: vec![proxy(1, 7)], ..good.clone() },
        proto::Report { proxies: vec![warned(17, 1)], ..good.clone() },
        proto::Report { proxies: vec![warned(9, 1), warned(8, 1)], ..good.clone() },
        proto::Report { proxies: vec![warned(1, 2049)], ..good.clone() },
        proto::Report { proxies: vec![warned(8, 128), warned(8, 129)], ..good.clone() },
        proto::Report { operators: trail(257, Vec::new()), ..good.clone() },
        proto::Report { operators: trail(1, vec![entry("b", "root"); 9]), ..good.clone() },
        proto::Report { operators: trail(1, vec![entry("", "root")]), ..good.clone() },
        proto::Report { operators: trail(1, vec![entry("b", "root\n")]), ..good.clone() },
    ];
    let mut hear = |report: proto::Report| {
        let kind = Some(Kind::Report(report));
        let payload = proto::Payload { node: "b".to_owned(), boot_id: vec![2; 16], sent_at: at(1).wall, kind };
        let actions = leader.handle(at(1), Event::Message { payload: Box::new(payload), via: Via::Lease });
        let refused = |action: &Action| matches!(action, Action::Note(Note::Refused { reason: Reason::BadReport, .. }));
        (actions.iter().any(refused), leader.standing.members.iter().any(|member| member.name == "b"))
    };
    for report in bad {
        assert_eq!(hear(report.clone()), (true, false), "{report:?}");
    }
    assert_eq!(hear(good), (false, true));
}

#[test]
fn a_beat_above_the_longest_interval_is_kept() {
    let now = at(0);
    let mut farm = follower(now);
    farm.cx.settings.report_every = Duration::from_secs(300);
    let _heard = farm.handle(at(1), announcement(true, at(1)));
    assert_eq!(farm.cx.report_interval, 300_000);
    let _leads = farm.handle(at(2), Event::LeaseGranted(Seat::FIRST));
    let _beat = farm.handle(at(3), Event::Wake);
    assert_eq!(farm.cx.report_interval, 300_000);
}
