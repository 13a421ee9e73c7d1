use std::time::Duration;

use tokio::sync::watch;

use super::*;
use crate::envelope::{EpochKey, Epochs, FarmSecret};
use crate::farm::{Ask, FarmSettings, Reply};
use crate::keys::saved::read_back;
use crate::keys::{HeldRing, KeySettings};
use crate::node::sealing::Sealing;
use crate::proto;
use crate::proto::payload::Kind;
use crate::random::system;
use crate::routes::{Names, Via};

const INBOX: &str = "resumed.f.node.a.1";

fn secrets() -> Arc<Secrets> {
    let secret = FarmSecret::from_bytes(&[5; 32]).expect("a secret");
    Arc::new(Secrets::new(vec![secret]).expect("one secret"))
}

fn identity(node: &str) -> Identity {
    Identity { farm: "f".into(), node: node.into(), boot_id: [node.len() as u8; 16] }
}

fn at(ms: u64) -> Now {
    Now { wall: 1_700_000_000_000 + ms, mono: 1_000_000 + ms }
}

/// A node that begins at 0, and starts alone after ten seconds.
fn core(saving: Saving) -> NodeCore {
    let keys = KeySettings::default();
    let settings = FarmSettings {
        node: "a".into(),
        boot_id: identity("a").boot_id,
        pod: "p".into(),
        version: "0".into(),
        names: Names::new("f", "p"),
        keys,
        report_every: Duration::from_secs(2),
        start_alone_after: Duration::from_secs(10),
        can_lead: true,
    };
    let farm = Farm::new(settings, HeldRing::new(keys), system(), at(0));
    let opener = Opener::new(secrets(), "f", keys.max_clock_offset);
    // The same draw each time: no pause is shortened.
    NodeCore::new(farm, (opener, &secrets()), identity("a"), saving, Box::new(|bytes| bytes.fill(0)))
}

fn linked(core: &mut NodeCore, now: Now) -> Vec<Effect> {
    core.step(now, Input::Linked { inbox: INBOX.into() })
}

fn closed() -> Input {
    Input::Closed { reason: "the broker has gone".to_owned() }
}

fn unreachable() -> BusError {
    BusError::Unreachable("amqp://host/: connection refused".to_owned())
}

fn unanswered() -> BusError {
    BusError::Unanswered { operation: "declare queue q".to_owned(), within: Duration::from_secs(5) }
}

/// What became of a ring for which there is no room.
fn full() -> Result<(), String> {
    Err("no space left on device".to_owned())
}

/// The lines that are to be written.
fn lines(effects: &[Effect]) -> Vec<&Line> {
    effects.iter().filter_map(|effect| if let Effect::Log(line) = effect { Some(line) } else { None }).collect()
}

/// Lets a node without a broker start alone.
fn started_alone(core: &mut NodeCore) -> Vec<Effect> {
    let mut effects = core.start(at(0));
    for second in 0..=12 {
        effects.extend(core.step(at(1_000 * second), Input::Wake));
    }
    effects
}

fn dials(effects: &[Effect]) -> Vec<u64> {
    effects.iter().filter_map(|effect| if let Effect::DialAt(at) = effect { Some(*at) } else { None }).collect()
}

fn saves(effects: &[Effect]) -> Vec<&[u8]> {
    effects
        .iter()
        .filter_map(|effect| if let Effect::SaveRing(ring) = effect { Some(&ring[..]) } else { None })
        .collect()
}

fn needs_a_link(effect: &Effect) -> bool {
    use Effect::{CheckBroker, CloseLink, MoveLink, ReleaseLease, Send, TryLease};
    matches!(effect, CheckBroker | CloseLink | MoveLink { .. } | ReleaseLease(_) | Send { .. } | TryLease(_))
}

/// A report of another node to this one's inbox, under an epoch key that this one lacks.
fn unreadable(now: Now) -> Input {
    let mut epochs = Epochs::new(Duration::ZERO);
    epochs.lead_to(EpochKey::from_random(&[9; 32]).expect("a key"), now);
    let (secrets, epochs) = (watch::channel(secrets()).1, watch::channel(Arc::new(epochs)).1);
    let mut sealing = Sealing::new(identity("other"), secrets, epochs, system(), now);
    let body = sealing.seal(INBOX, Kind::Report(proto::Report::default()), now).expect("it is sealed");
    Input::Delivered { from: Via::Inbox, route: INBOX.into(), body, site: None }
}

fn garbage() -> Input {
    Input::Delivered { from: Via::Inbox, route: INBOX.into(), body: Bytes::from_static(b"garbage"), site: None }
}

/// Of each message that did not open: whether it is counted, and whether it is logged.
fn refused(effects: &[Effect]) -> Vec<(bool, Option<u64>)> {
    let of = |effect: &Effect| match effect {
        Effect::Refused { counted, logged, .. } => Some((*counted, *logged)),
        _ => None,
    };
    effects.iter().filter_map(of).collect()
}

#[test]
fn a_node_dials_at_once_and_then_ever_more_slowly_while_links_end_at_once() {
    let mut core = core(Saving::Off);
    assert_eq!(dials(&core.start(at(0))), [at(0).mono]);
    let mut pauses = Vec::new();
    for round in 0..8 {
        let now = at(10_000 * round);
        linked(&mut core, now);
        let effects = core.step(now, closed());
        assert_eq!(dials(&effects).len(), 1, "{effects:?}");
        pauses.push(dials(&effects)[0] - now.mono);
    }
    assert_eq!(pauses, [100, 200, 400, 800, 1_600, 3_200, 4_500, 4_500]);
    let effects = core.step(at(90_000), Input::NotLinked(unreachable()));
    assert_eq!(dials(&effects), [at(90_000).mono + 4_500], "an attempt that fails counts like a link that ends");
}

#[test]
fn without_a_link_nothing_is_asked_of_one() {
    let mut core = core(Saving::Off);
    assert!(!started_alone(&mut core).iter().any(needs_a_link));
    let effects = linked(&mut core, at(13_000));
    assert!(effects.iter().any(needs_a_link), "it speaks to the farm: {effects:?}");
    let effects = core.step(at(14_000), closed());
    assert!(!effects.iter().any(needs_a_link), "{effects:?}");
    let effects = core.step(at(30_000), Input::Stop);
    assert!(!effects.iter().any(needs_a_link), "{effects:?}");
}

#[test]
fn a_ring_that_changes_is_told_and_saved_and_comes_back() {
    let mut core = core(Saving::On);
    let effects = started_alone(&mut core);
    let told = effects.iter().filter(|effect| matches!(effect, Effect::Keys { .. })).count();
    assert_eq!(told, 2, "at the start, and when it minted a key: {effects:?}");
    let saved = saves(&effects);
    assert_eq!(saved.len(), 1);
    let back = read_back(saved[0], "f", KeySettings::default(), at(20_000)).expect("it is this farm's");
    assert_eq!(back.held.ring(), core.farm().held().ring());
    assert_eq!(saves(&core.step(at(20_000), Input::Stop)).len(), 1, "once more at the end");
}

#[test]
fn a_ring_that_could_not_be_saved_is_tried_again_until_it_is() {
    let mut core = core(Saving::On);
    started_alone(&mut core);
    assert!(matches!(core.on_ring_saved(full(), at(12_000)), Some(Line::RingNotSaved { held_back: 0, .. })));
    for failure in 0..3 {
        let now = at(17_000 + 5_000 * failure);
        let sooner = Now { wall: now.wall - 1, mono: now.mono - 1 };
        assert_eq!(saves(&core.step(sooner, Input::Wake)).len(), 0);
        assert!(core.next_wake(sooner) <= now.mono, "it is woken for it");
        assert_eq!(saves(&core.step(now, Input::Wake)).len(), 1);
        assert!(core.on_ring_saved(full(), now).is_none(), "one line a minute");
    }
    assert!(matches!(core.on_ring_saved(Ok(()), at(32_000)), Some(Line::RingSavedAgain)), "it had not been saved");
    assert_eq!(saves(&core.step(at(40_000), Input::Wake)).len(), 0);
    assert!(core.on_ring_saved(Ok(()), at(41_000)).is_none(), "it is no news that it is saved");
    assert!(matches!(core.on_ring_saved(full(), at(72_000)), Some(Line::RingNotSaved { held_back: 3, .. })));
}

#[test]
fn a_ring_that_is_kept_nowhere_is_not_encoded() {
    let mut core = core(Saving::Off);
    assert_eq!(saves(&started_alone(&mut core)).len(), 0);
    assert_eq!(saves(&core.step(at(20_000), Input::Stop)).len(), 0);
}

#[test]
fn what_a_node_meets_until_it_has_joined_is_neither_counted_nor_logged() {
    let mut core = core(Saving::Off);
    core.start(at(0));
    linked(&mut core, at(0));
    assert_eq!(refused(&core.step(at(10), unreadable(at(10)))), [(false, None)]);
    // A leader draws an epoch key.
    core.step(at(20), Input::LeaseTried(Seat::FIRST, Ok(LeaseAnswer::Granted)));
    assert!(core.opener.has_epochs());
    let now = at(30);
    assert_eq!(refused(&core.step(now, unreadable(now))), [(true, Some(0))]);
    assert_eq!(refused(&core.step(now, unreadable(now))), [(true, None)], "one line a minute");
}

#[test]
fn a_flood_of_garbage_is_counted_and_logged_once_and_holds_up_nothing_that_is_due() {
    let mut core = core(Saving::Off);
    core.start(at(0));
    linked(&mut core, at(0));
    core.step(at(1), Input::Wake);
    let due = core.next_wake(at(1));
    let logged: Vec<_> = (0..100).flat_map(|_| refused(&core.step(at(1), garbage()))).collect();
    assert_eq!(logged.iter().filter(|(counted, _)| *counted).count(), 100);
    assert_eq!(logged.iter().filter(|(_, logged)| logged.is_some()).count(), 1);
    assert!(!core.step(at(1), garbage()).iter().any(|effect| matches!(effect, Effect::Show)), "nothing turned");
    let late = Now { wall: at(0).wall + due - at(0).mono, mono: due };
    assert!(core.step(late, garbage()).iter().any(|effect| matches!(effect, Effect::Show)), "what was due is done");
}

#[test]
fn an_operator_is_answered_under_the_id_of_the_question() {
    let mut core = core(Saving::Off);
    core.start(at(0));
    let effects = core.step(at(0), Input::Ask { id: 77, ask: Ask::Rotate, user: "ops".into() });
    let replies: Vec<_> = effects.iter().filter(|effect| matches!(effect, Effect::Reply { .. })).collect();
    assert!(matches!(replies[..], [Effect::Reply { id: 77, reply: Reply::NoLeader }]), "{effects:?}");
}

#[test]
fn a_silent_inbox_has_the_link_closed_and_another_one_dialled() {
    let mut core = core(Saving::Off);
    core.start(at(0));
    linked(&mut core, at(0));
    // Nothing arrives, not even what the node writes to itself.
    let closing = (0..120_000).step_by(500).find_map(|ms| {
        let effects = core.step(at(ms), Input::Wake);
        let closes = effects.iter().position(|effect| matches!(effect, Effect::CloseLink))?;
        Some((ms, closes, effects))
    });
    let (ms, closes, effects) = closing.expect("it closes the link");
    assert!(matches!(effects[closes + 1], Effect::DialAt(dial) if dial >= at(ms).mono), "{effects:?}");
    assert!(!effects[closes..].iter().skip(1).any(needs_a_link), "nothing is asked of it afterwards: {effects:?}");
}

#[test]
fn an_attempt_to_connect_that_fails_is_told_with_the_pause_before_the_next() {
    let mut core = core(Saving::Off);
    core.start(at(0));
    for (round, pause) in [100, 200, 400].into_iter().enumerate() {
        let now = at(1_000 * round as u64);
        let effects = core.step(now, Input::NotLinked(unreachable()));
        let told = lines(&effects);
        assert!(matches!(told[..], [Line::NotConnected { retry_in_ms, .. }] if *retry_in_ms == pause), "{told:?}");
        assert_eq!(dials(&effects), [now.mono + pause]);
    }
}

#[test]
fn a_link_that_ends_is_told_and_one_that_is_left_for_another_is_not() {
    let mut core = core(Saving::Off);
    core.start(at(0));
    linked(&mut core, at(0));
    let effects = core.step(at(10), Input::Left);
    assert_eq!((lines(&effects).len(), dials(&effects).len()), (0, 1), "{effects:?}");
    linked(&mut core, at(10));
    let effects = core.step(at(20), closed());
    let told = lines(&effects);
    assert!(matches!(told[..], [Line::Disconnected { reason }] if reason == "the broker has gone"), "{told:?}");
    assert_eq!(dials(&effects).len(), 1);
}

#[test]
fn a_lease_that_cannot_be_tried_is_told_once_a_minute_for_each_kind_of_failure() {
    let mut core = core(Saving::Off);
    core.start(at(0));
    linked(&mut core, at(0));
    let closed = || BusError::Closed("channel closed".to_owned());
    let refused = || BusError::Refused { operation: "declare".to_owned(), reason: "ACCESS_REFUSED".to_owned() };
    let mut told = |ms, error| {
        let effects = core.step(at(ms), Input::LeaseTried(Seat::FIRST, Err(error)));
        let told: Vec<_> = lines(&effects).into_iter().map(|line| format!("{line:?}")).collect();
        told.join(", ")
    };
    assert_eq!(told(0, refused()), "", "refusals are told where all are");
    assert!(told(1, unanswered()).starts_with("LeaseNotTried { error: Unanswered"));
    assert!(told(2, closed()).starts_with("LeaseNotTried { error: Closed"), "the other failure hides it not");
    assert_eq!(told(3, unanswered()), "");
    assert!(told(60_001, unanswered()).ends_with("held_back: 1 }"));
}

#[test]
fn an_attempt_at_the_lease_is_to_the_farm_what_the_broker_said() {
    let mut core = core(Saving::Off);
    let mut event = |answer| {
        let mut effects = Vec::new();
        core.event_of(at(0), Input::LeaseTried(Seat::FIRST, answer), &mut effects)
    };
    assert!(matches!(event(Ok(LeaseAnswer::Granted)), Some(Event::LeaseGranted(Seat::FIRST))));
    assert!(matches!(event(Ok(LeaseAnswer::Taken)), Some(Event::LeaseTaken(Seat::FIRST))));
    assert!(matches!(event(Err(unanswered())), Some(Event::LeaseUnanswered)));
    for error in [
        BusError::Closed(String::new()),
        BusError::Refused { operation: String::new(), reason: String::new() },
        unreachable(),
    ] {
        assert!(matches!(event(Err(error)), Some(Event::LeaseFailed)));
    }
}

#[test]
fn only_a_broker_that_is_silent_when_asked_to_declare_is_taken_for_cut_off() {
    let mut core = core(Saving::Off);
    let mut checked = |answer| {
        let mut effects = Vec::new();
        let event = core.event_of(at(0), Input::Checked(answer), &mut effects);
        let Some(Event::Checked(declares)) = event else { panic!("{event:?}") };
        (declares, lines(&effects).len())
    };
    assert_eq!(checked(Ok(())), (true, 0));
    assert_eq!(checked(Err(unanswered())), (false, 1));
    let refused = BusError::Refused { operation: "declare".to_owned(), reason: "ACCESS_REFUSED".to_owned() };
    assert_eq!(checked(Err(refused)), (true, 1), "a refusal is an answer");
    assert_eq!(checked(Err(BusError::Closed("gone".to_owned()))), (true, 1), "its link ends, which says more");
}

#[test]
fn a_link_that_stays_is_told_with_the_reason() {
    let mut core = core(Saving::Off);
    core.start(at(0));
    linked(&mut core, at(0));
    let effects = core.step(at(1), Input::NotMoved(Stays::NoOther(unreachable())));
    assert!(matches!(lines(&effects)[..], [Line::Stays(Stays::NoOther(_))]), "{effects:?}");
    let effects = core.step(at(2), Input::NotMoved(Stays::Declares));
    assert!(matches!(lines(&effects)[..], [Line::Stays(Stays::Declares)]), "{effects:?}");
    assert_eq!(dials(&effects).len(), 0, "no other link is dialled");
}
