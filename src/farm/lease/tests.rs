use super::LEASE_JITTER_MS;
use crate::clock::Now;
use crate::farm::standing::RECLAIM_MS;
use crate::farm::testing::{
    announcement, at, follower, later, node, own_message, own_report, request, seat, tries, writes_to_itself,
};
use crate::farm::timers::Timer;
use crate::farm::{Action, Event, Farm, Note};
use crate::proto::{self, payload::Kind};
use crate::routes::{Published, Route, Seat, Via};

#[test]
fn a_leaders_farewell_does_not_have_a_large_farm_try_the_lease_at_once() {
    let latest = |members: u32| {
        let delays = (0..=255).map(|draw: u8| {
            let mut node = node("b", 2, Box::new(move |bytes| bytes.fill(draw)), at(0));
            let announcement = proto::Announcement {
                as_of: at(0).wall,
                fingerprint: vec![0; 8],
                leased: true,
                members,
                report_every_ms: 10_000,
                ..Default::default()
            };
            let kind = Some(Kind::Announcement(announcement));
            let payload = proto::Payload { node: "a".to_owned(), boot_id: vec![1; 16], sent_at: at(0).wall, kind };
            let _follows = node.handle(at(0), Event::Message { payload: Box::new(payload), via: Via::Inbox });
            let kind = Some(Kind::Farewell(proto::Farewell {}));
            let payload = proto::Payload { node: "a".to_owned(), boot_id: vec![1; 16], sent_at: at(1).wall, kind };
            let ends = node.handle(at(1), Event::Message { payload: Box::new(payload), via: Via::Inbox });
            if tries(&ends) {
                return 0;
            }
            node.cx.timers.get(Timer::TryLease).unwrap_or_else(|| panic!("{draw}: it does not try")) - at(1).mono
        });
        delays.max().expect("some")
    };
    assert!(latest(3) < LEASE_JITTER_MS);
    assert!((1_500..2_000).contains(&latest(1_000)));
    assert!(latest(1_000_000) <= 2_500, "a quarter of a beat");
}

#[test]
fn a_follower_goes_on_to_the_next_seat_when_the_broker_of_the_first_is_gone() {
    let mut farm = follower(at(0));
    let nacked = |number| Event::Told { seat: seat(number), answer: Published::Nacked };
    let sends_to = |actions: &[Action], number| {
        actions.iter().any(|a| matches!(a, Action::Send { to: Route::Leader(to), .. } if *to == seat(number)))
    };
    let _first = farm.handle(at(1), nacked(0));
    let again = farm.handle(later(at(1), 300), Event::Wake);
    assert!(sends_to(&again, 0), "{again:?}");
    let next = farm.handle(later(at(1), 310), nacked(0));
    assert!(sends_to(&next, 1) && !tries(&next), "{next:?}");
    let _free = farm.handle(later(at(1), 320), Event::Told { seat: seat(1), answer: Published::Unroutable });
    assert!(tries_after(&mut farm, later(at(1), 320)) < LEASE_JITTER_MS);
}

#[test]
fn a_leader_at_a_later_seat_goes_home_when_the_first_is_free_and_steps_down_when_it_is_taken() {
    let leader = || {
        let mut leader = follower(at(0));
        let _leads = leader.handle(at(0), Event::LeaseGranted(seat(1)));
        let beat = leader.handle(at(2), Event::Wake);
        let to = |action: &Action| match action {
            Action::Send { to: Route::Leader(to), kind: Kind::Report(_) } => Some(to.number()),
            _ => None,
        };
        assert_eq!(beat.iter().filter_map(to).collect::<Vec<_>>(), [0, 1]);
        let still = leader.handle(at(2), Event::Told { seat: seat(0), answer: Published::Nacked });
        assert!(!tries(&still) && leader.is_leader(), "{still:?}");
        leader
    };
    let releases = |actions: &[Action], number| {
        actions.iter().any(|action| matches!(action, Action::ReleaseLease(left) if *left == seat(number)))
    };
    let mut home = leader();
    let free = home.handle(at(3), Event::Told { seat: seat(0), answer: Published::Unroutable });
    assert!(tries(&free) && !releases(&free, 1), "{free:?}");
    let taken = home.handle(at(3), Event::LeaseGranted(seat(0)));
    assert!(home.is_leader() && releases(&taken, 1), "the first is held before the other is left: {taken:?}");

    let mut rival = leader();
    let mut told = |answer, milliseconds| {
        let now = Now { mono: at(3).mono + milliseconds, ..at(3) };
        let actions = rival.handle(now, Event::Told { seat: seat(0), answer });
        (rival.is_leader(), releases(&actions, 1))
    };
    assert_eq!(told(Published::Routed, 0), (true, false), "a queue that is about to go takes one, too");
    assert_eq!(told(Published::Routed, 299), (true, false));
    assert_eq!(told(Published::Nacked, 310), (true, false), "it is gone");
    assert_eq!(told(Published::Routed, 320), (true, false), "it counts anew");
    assert_eq!(told(Published::Routed, 620), (false, true));
}

#[test]
fn a_node_that_leads_without_the_lease_answers_requests_and_yields_to_a_lease() {
    let mut farm = follower(at(0));
    let mut second = 1;
    while !farm.leads() {
        assert!(second < 60, "it never leads");
        let actions = farm.handle(at(second), Event::Wake);
        if writes_to_itself(&actions) {
            let _arrived = farm.handle(at(second), own_message("a", 1, at(second)));
        }
        second += 1;
    }
    assert!(!farm.is_leader());
    assert_eq!(farm.leader(at(second)), Some("a"));
    let known = farm.held().ring().highest_generation();
    let answered = farm.handle(at(second), request(7, "alice", known, at(second)));
    let answers = |a: &Action| matches!(a, Action::Send { to: Route::Inbox(_), kind: Kind::Answer(answer) } if answer.outcome() == proto::Outcome::Done);
    assert!(answered.iter().any(answers), "{answered:?}");
    assert!(farm.leads());
    let _yields = farm.handle(at(second), announcement(true, at(second)));
    assert!(!farm.leads());
}

/// No node has the lease of the first seat.
fn unroutable() -> Event {
    Event::Told { seat: Seat::FIRST, answer: Published::Unroutable }
}

/// The events' answers until one of them tries the lease, in milliseconds after `now`.
fn tries_after(farm: &mut Farm, now: Now) -> u64 {
    let later = |after: u64| Now { wall: now.wall + after, mono: now.mono + after };
    (0..1_000).find(|after| tries(&farm.handle(later(*after), Event::Wake))).expect("tries the lease")
}

#[test]
fn a_leader_takes_a_lease_that_the_broker_lost_again_before_anybody_else_tries() {
    let mut leader = follower(at(0));
    let _leads = leader.handle(at(0), Event::LeaseGranted(Seat::FIRST));
    // The first may have been under way since before the lease was ours; a report is sent to make sure.
    let first = leader.handle(at(1), unroutable());
    assert!(!tries(&first));
    let sends = |action: &Action| matches!(action, Action::Send { to: Route::Leader(_), kind: Kind::Report(_) });
    assert!(first.iter().any(sends), "{first:?}");
    assert!(tries(&leader.handle(at(1), unroutable())));
    assert!(!tries(&leader.handle(at(1), unroutable())), "it is tried already");
    let again = leader.handle(at(1), Event::LeaseGranted(Seat::FIRST));
    let told = |action: &Action| matches!(action, Action::Note(Note::Leads | Note::StepsDown(_)));
    assert!(leader.is_leader() && !again.iter().any(told), "{again:?}");

    let mut other = follower(at(0));
    let _follows = other.handle(at(0), announcement(true, at(0)));
    let _waits = other.handle(at(1), unroutable());
    assert!(tries_after(&mut other, at(1)) >= RECLAIM_MS);
    // Where no node led, there is none to wait for.
    let mut first = follower(at(0));
    let _tries = first.handle(at(1), unroutable());
    assert!(tries_after(&mut first, at(1)) < LEASE_JITTER_MS);
}

#[test]
fn a_leader_that_hears_another_looks_often_whether_the_lease_is_still_its_own() {
    let mut leader = follower(at(0));
    let _leads = leader.handle(at(0), Event::LeaseGranted(Seat::FIRST));
    let mut reports = |from: u64, rival: bool| {
        if rival {
            let _heard = leader.handle(at(from), announcement(true, at(from)));
        }
        let mut count = 0;
        for after in (0..2_000).step_by(20) {
            let now = Now { wall: at(from).wall + after, mono: at(from).mono + after };
            let echo = proto::Payload {
                node: "a".to_owned(),
                boot_id: vec![1; 16],
                sent_at: now.wall,
                kind: Some(Kind::Report(own_report())),
            };
            let mut actions = leader.handle(now, Event::Wake);
            actions.extend(leader.handle(now, Event::Message { payload: Box::new(echo), via: Via::Lease }));
            let sent = |action: &&Action| matches!(action, Action::Send { to: Route::Leader(_), .. });
            count += actions.iter().filter(sent).count();
        }
        count
    };
    assert!(reports(0, false) >= 9, "right after it took over");
    assert!(reports(20, false) <= 2, "when it has led for long");
    assert!(reports(30, true) >= 9, "beside another leader");
    assert!(leader.is_leader());
    let stepped_down = leader.handle(at(33), Event::LeaseTaken(Seat::FIRST));
    assert!(!leader.is_leader(), "{stepped_down:?}");
}
