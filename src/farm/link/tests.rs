use crate::clock::Now;
use crate::farm::testing::{at, follower, own_message, own_report, writes_to_itself};
use crate::farm::{Action, Event, Farm, Note};
use crate::proto::{self, payload::Kind};
use crate::routes::{Seat, Via};

fn renews(actions: &[Action]) -> bool {
    actions.iter().any(|action| matches!(action, Action::RenewLink))
}

#[test]
fn a_node_that_was_frozen_does_not_take_that_for_a_silent_inbox() {
    let mut farm = follower(at(0));
    assert!(!renews(&farm.handle(at(1), Event::Wake)));
    // It thaws, and what came meanwhile waits in its queues.
    assert!(!renews(&farm.handle(at(40), Event::Wake)), "threw its queues away");
    // From here on it would have heard something.
    let silent: Vec<u64> = (41..60).filter(|second| renews(&farm.handle(at(*second), Event::Wake))).collect();
    assert_eq!(silent, [54], "it writes to itself three beats after it thawed, and waits for that as long");
}

#[test]
fn a_link_is_not_renewed_because_no_node_leads() {
    let mut farm = follower(at(0));
    let (mut written, mut noted) = (Vec::new(), 0);
    for second in 1..200 {
        let actions = farm.handle(at(second), Event::Wake);
        assert!(!renews(&actions), "after {second} s");
        if writes_to_itself(&actions) {
            assert!(actions.iter().any(|action| matches!(action, Action::CheckBroker)), "{actions:?}");
            written.push(second);
            let arrived = farm.handle(at(second), own_message("a", 1, at(second)));
            noted += arrived.iter().filter(|a| matches!(a, Action::Note(Note::NoLeaderHeard))).count();
            let _fine = farm.handle(at(second), Event::Checked(true));
            // It announces itself after ten beats, and would hear that.
            farm.cx.settings.can_lead = false;
        }
    }
    assert_eq!(written, [7, 20, 45, 94, 143, 192], "less and less often");
    assert_eq!(noted, 1);
}

#[test]
fn a_broker_that_answers_no_declaration_is_left_for_another() {
    let moves = |actions: &[Action]| actions.iter().filter(|a| matches!(a, Action::MoveLink { .. })).count();
    let mut farm = follower(at(0));
    let asked = |farm: &mut Farm, second| farm.handle(at(second), Event::Wake);
    assert!((1..8).any(|second| writes_to_itself(&asked(&mut farm, second))));
    assert_eq!(moves(&farm.handle(at(12), Event::Checked(false))), 1);
    assert_eq!(moves(&farm.handle(at(12), Event::LeaseUnanswered)), 0, "it is looked for already");
    let _none = farm.handle(at(13), Event::NotMoved);
    assert_eq!(moves(&farm.handle(at(14), Event::LeaseUnanswered)), 0, "none was there just now");
    assert_eq!(moves(&farm.handle(at(25), Event::LeaseUnanswered)), 1);
    let _none = farm.handle(at(26), Event::NotMoved);
    assert_eq!(moves(&farm.handle(at(48), Event::Checked(false))), 0, "after twice as long");
    assert_eq!(moves(&farm.handle(at(50), Event::Checked(false))), 1);
    assert!(farm.standing.link.is_up(), "what works stays until there is another");
}

#[test]
fn a_leader_that_misses_a_member_asks_whether_it_is_the_one_that_is_cut_off() {
    let mut leader = follower(at(0));
    let _leads = leader.handle(at(0), Event::LeaseGranted(Seat::FIRST));
    let report = |farm: &mut Farm, node: &str, boot: u8, now: Now| {
        let kind = Some(Kind::Report(own_report()));
        let payload = proto::Payload { node: node.to_owned(), boot_id: vec![boot; 16], sent_at: now.wall, kind };
        farm.handle(now, Event::Message { payload: Box::new(payload), via: Via::Lease })
    };
    let _b = report(&mut leader, "b", 2, at(1));
    let mut asked = Vec::new();
    for second in 1..30 {
        let mut actions = report(&mut leader, "a", 1, at(second));
        actions.extend(leader.handle(at(second), own_message("a", 1, at(second))));
        actions.extend(leader.handle(at(second), Event::Wake));
        asked.extend(actions.iter().filter(|a| matches!(a, Action::CheckBroker)).map(|_| second));
        let _fine = leader.handle(at(second), Event::Checked(true));
    }
    assert_eq!(asked, [8], "once for one that is gone");
}
