use crate::clock::Now;
use crate::farm::Event;
use crate::farm::testing::{at, follower};
use crate::proto::{self, payload::Kind};
use crate::routes::{Seat, Via};

#[test]
fn a_node_is_in_step_while_it_hears_the_leader_and_holds_its_ring() {
    let mut farm = follower(at(0));
    assert!(!farm.is_in_step(at(0)), "no leader was heard");
    let mut told = proto::Announcement {
        as_of: at(1).wall,
        fingerprint: farm.held().ring().fingerprint(at(1).wall).to_vec(),
        leased: true,
        report_every_ms: 2_000,
        ..Default::default()
    };
    let mut hear = |told: &proto::Announcement, now: Now| {
        let kind = Some(Kind::Announcement(told.clone()));
        let payload = proto::Payload { node: "b".to_owned(), boot_id: vec![2; 16], sent_at: now.wall, kind };
        let _heard = farm.handle(now, Event::Message { payload: Box::new(payload), via: Via::Inbox });
        (farm.is_in_step(now), farm.is_in_step(Now { wall: now.wall + 6_001, mono: now.mono + 6_001 }))
    };
    assert_eq!(hear(&told, at(1)), (true, false), "for three beats");
    told.fingerprint = vec![0; 8];
    assert_eq!(hear(&told, at(2)), (false, false), "another ring");
    let _leads = farm.handle(at(3), Event::LeaseGranted(Seat::FIRST));
    assert!(farm.is_leader() && farm.is_in_step(at(3)));
}
