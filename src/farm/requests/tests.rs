use super::Ask;
use crate::envelope::EpochKey;
use crate::farm::testing::{at, audited, follower, later, node, request};
use crate::farm::{Action, Event, Farm, Note};
use crate::proto::{self, AuditOutcome, payload::Kind};
use crate::reason::Reason;
use crate::routes::{Route, Seat, Via};

#[test]
fn a_leader_keeps_who_asked_it_through_which_node_once_and_only_for_what_it_did() {
    let mut leader = follower(at(0));
    let _leads = leader.handle(at(0), Event::LeaseGranted(Seat::FIRST));
    let highest = |leader: &Farm| leader.held().ring().highest_generation();
    let _first_key = leader.handle(at(3), Event::Wake);
    let stale = highest(&leader) - 1;
    assert_eq!(audited(&leader.handle(at(4), request(7, "alice", stale, at(4)))), [], "it is to ask again");
    let known = highest(&leader);
    let [done] = &audited(&leader.handle(at(5), request(7, "alice", known, at(5))))[..] else { panic!("one") };
    let expected = proto::AuditEntry {
        id: 7,
        at: at(5).wall,
        action: proto::AuditAction::Revoke.into(),
        flush_sessions: true,
        node: "b".into(),
        user: "alice".into(),
        outcome: AuditOutcome::Done.into(),
        // Of the key that seals at once. The next one was minted above it.
        generation: at(5).wall,
    };
    assert_eq!(*done, expected);
    assert_eq!(audited(&leader.handle(at(6), request(7, "alice", known, at(6)))), [], "its answer was lost");
    // A release that says nothing of users, and one that says what no user is called.
    let known = highest(&leader);
    let old = audited(&leader.handle(at(7), request(8, "", known, at(7))));
    assert!(matches!(&old[..], [entry] if entry.user.is_empty()), "{old:?}");
    let known = highest(&leader);
    let bad = leader.handle(at(8), request(9, "a\nb", known, at(8)));
    assert!(bad.iter().any(|action| matches!(action, Action::Note(Note::Refused { reason: Reason::BadRequest, .. }))));
    assert_eq!((audited(&bad), highest(&leader)), (vec![], known), "it changes nothing");
    let own = leader.own_member();
    assert_eq!(own.operators.iter().flat_map(|trail| &trail.audit).map(|entry| entry.id).collect::<Vec<_>>(), [7, 8]);
}

#[test]
fn the_asked_node_says_who_asks_and_keeps_what_became_of_it() {
    let mut asker = follower(at(0));
    let ask = |id| Event::Ask { id, ask: Ask::Rotate, user: "bob".to_owned() };
    let key = EpochKey::from_random(&[5; 32]).expect("OpenSSL has HKDF-SHA256");
    asker.epochs.held_mut().lead_to(key, at(0));
    let said = asker.handle(at(1), ask(1));
    let users = said.iter().filter_map(|action| match action {
        Action::Send { kind: Kind::Request(request), .. } => Some(request.user.as_str()),
        _ => None,
    });
    assert_eq!(users.collect::<Vec<_>>(), ["bob"]);
    let answer = proto::Answer { id: 1, outcome: proto::Outcome::Done.into(), generation: 9, ..Default::default() };
    let kind = Some(Kind::Answer(answer));
    let payload = proto::Payload { node: "b".to_owned(), boot_id: vec![2; 16], sent_at: at(1).wall, kind };
    let answered = audited(&asker.handle(at(1), Event::Message { payload: Box::new(payload), via: Via::Inbox }));
    assert!(matches!(&answered[..], [entry] if entry.node == "a" && entry.generation == 9), "{answered:?}");
    // In vain: no leader answers within five seconds, and then none can be asked.
    let _asked = asker.handle(at(2), ask(2));
    let late = audited(&asker.handle(at(8), Event::Wake));
    let _gone = asker.handle(at(9), Event::Disconnected);
    let alone = audited(&asker.handle(at(9), ask(3)));
    for entries in [&late, &alone] {
        assert!(matches!(&entries[..], [entry] if entry.outcome() == AuditOutcome::NoLeader), "{entries:?}");
    }
    let local = Event::Ask { id: 4, ask: Ask::RevokeLocal { flush_sessions: false }, user: String::new() };
    let local = audited(&asker.handle(at(10), local));
    assert!(matches!(&local[..], [entry] if entry.action() == proto::AuditAction::RevokeLocal), "{local:?}");
    let kept: Vec<u64> =
        asker.own_member().operators.iter().flat_map(|trail| &trail.audit).map(|entry| entry.id).collect();
    assert_eq!(kept, [1, 3, 4], "asked in vain twice");
}

#[test]
fn a_leader_announces_at_once_what_it_revokes_without_being_asked_as_the_leader() {
    let mut drawn = 0_u8;
    let random = move |bytes: &mut [u8]| {
        drawn = drawn.wrapping_add(1);
        bytes.fill(drawn);
    };
    let mut leader = node("a", 1, Box::new(random), at(0));
    let announces = |actions: &[Action]| {
        actions.iter().any(|a| matches!(a, Action::Send { to: Route::Keys, kind: Kind::Announcement(_) }))
    };
    let _leads = leader.handle(at(0), Event::LeaseGranted(Seat::FIRST));
    assert!(announces(&leader.handle(at(1), Event::Wake)), "its first key");
    assert!(!announces(&leader.handle(later(at(1), 100), Event::Wake)), "a beat is 2 s");
    let ask = Event::Ask { id: 1, ask: Ask::RevokeLocal { flush_sessions: false }, user: String::new() };
    assert!(announces(&leader.handle(later(at(1), 200), ask)));
}
