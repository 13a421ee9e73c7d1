use super::*;
use crate::envelope::EpochKey;
use crate::farm::MintReason;
use crate::farm::testing::{announcement, at, follower, node, own_report};
use crate::routes::Via;

/// Two brokers that hand on what is published to the keys exchange, with a leader at each and a follower at the first.
struct Federated {
    leaders: [Farm; 2],
    follower: Farm,
    /// Whether the link between them is whole.
    linked: bool,
    /// Announcements that each sent.
    announced: [usize; 2],
    /// Keys that each minted because they were due.
    scheduled: [usize; 2],
    ms: u64,
}

impl Federated {
    fn new() -> Self {
        let leader = |name, boot: u8| {
            let mut drawn = u64::from(boot);
            let random = move |bytes: &mut [u8]| {
                drawn += 256;
                bytes.chunks_mut(8).for_each(|some| some.copy_from_slice(&drawn.to_le_bytes()[..some.len()]));
            };
            node(name, boot, Box::new(random), at(0))
        };
        let (leaders, follower) = ([leader("ams", 1), leader("fra", 2)], leader("ams-2", 3));
        let (announced, scheduled) = ([0; 2], [0; 2]);
        let mut all = Self { leaders, follower, linked: true, announced, scheduled, ms: 0 };
        for place in 0..2 {
            all.give(place, Event::LeaseGranted(Seat::FIRST));
        }
        all
    }

    fn now(&self) -> Now {
        Now { wall: at(0).wall + self.ms, mono: at(0).mono + self.ms }
    }

    /// Hands `event` to a leader, and on what it sends to all.
    fn give(&mut self, place: usize, event: Event) {
        let now = self.now();
        for action in self.leaders[place].handle(now, event) {
            match action {
                Action::Note(Note::Minted { reason: MintReason::Scheduled, .. }) => self.scheduled[place] += 1,
                Action::Note(note @ (Note::Refused { .. } | Note::UnknownKind { .. })) => panic!("{note}"),
                Action::Send { to: Route::Inbox(inbox), .. } => panic!("sent to {inbox}"),
                Action::Send { to: Route::Keys, kind } => self.hand_on(place, kind),
                Action::Send { to: Route::Leader(_), kind: Kind::Report(report) } => {
                    let echo = self.payload(place, Kind::Report(report));
                    self.give(place, Event::Message { payload: echo, via: Via::Lease });
                }
                _ => {}
            }
        }
    }

    fn payload(&self, place: usize, kind: Kind) -> Box<proto::Payload> {
        let sender = &self.leaders[place].cx.settings;
        let (node, boot_id) = (sender.node.clone(), sender.boot_id.to_vec());
        Box::new(proto::Payload { node, boot_id, sent_at: self.now().wall, kind: Some(kind) })
    }

    fn hand_on(&mut self, place: usize, kind: Kind) {
        self.announced[place] += usize::from(matches!(kind, Kind::Announcement(_)));
        let now = self.now();
        let payload = self.payload(place, kind.clone());
        // Its own inbox is bound to the exchange, too.
        self.give(place, Event::Message { payload: payload.clone(), via: Via::Inbox });
        if place == 0 {
            let heard = self.follower.handle(now, Event::Message { payload: payload.clone(), via: Via::Inbox });
            let refused = |action: &Action| matches!(action, Action::Note(Note::Refused { .. }));
            assert!(!heard.iter().any(refused), "{heard:?}");
        }
        if place == 1 {
            assert!(!self.follower.is_listening_to(Via::Federated));
            self.follower.on_site_heard("a name that is not sealed", &payload, now);
            let far = Event::Message { payload: payload.clone(), via: Via::Federated };
            let heard = self.follower.handle(now, far);
            let follows = |action: &Action| matches!(action, Action::RingChanged | Action::Note(Note::Follows(_)));
            assert!(!heard.iter().any(follows), "{heard:?}");
        }
        if !self.linked {
            return;
        }
        let other = 1 - place;
        let sealed = self.leaders[place].epochs().sealing(&kind, now).map(EpochKey::id);
        let opens = sealed.is_none_or(|id| self.leaders[other].epochs().get(id).is_some());
        let via = Via::Federated;
        if opens {
            self.leaders[other].on_site_heard(["site of ams", "site of fra"][place], &payload, now);
        }
        self.give(other, if opens { Event::Message { payload, via } } else { Event::UnknownEpoch { via } });
    }

    fn run_until(&mut self, seconds: u64) {
        while self.ms < 1_000 * seconds {
            self.ms += 20;
            for place in 0..2 {
                self.give(place, Event::Wake);
            }
        }
    }

    fn rings(&self) -> [[u8; 8]; 2] {
        [0, 1].map(|place| self.leaders[place].held().ring().fingerprint(self.now().wall))
    }

    fn assert_one_ring(&self) {
        let [one, other] = self.rings();
        assert_eq!(one, other, "after {} ms", self.ms);
    }
}

#[test]
fn leaders_at_two_brokers_come_to_one_ring_and_one_of_them_mints() {
    let mut all = Federated::new();
    all.run_until(10);
    all.assert_one_ring();
    for leader in &all.leaders {
        assert_eq!(leader.epochs().ids().count(), 2);
    }
    let first = all.scheduled;
    all.run_until(300);
    all.assert_one_ring();
    assert_eq!([all.scheduled[0] - first[0], all.scheduled[1] - first[1]], [4, 0], "in 290 s with a key for 60 s");
    assert!(all.announced.iter().all(|count| *count < 200), "a beat is 2 s: {:?}", all.announced);
    // Longer than an epoch key is kept that no node uses any more.
    all.run_until(1_500);
    assert!(all.leaders.iter().all(|leader| leader.epochs().ids().count() == 2));
    all.assert_one_ring();
}

#[test]
fn leaders_at_two_brokers_go_on_without_each_other_and_come_to_one_ring_again() {
    for outage in [100, 2_000] {
        let mut all = Federated::new();
        all.run_until(10);
        all.linked = false;
        let before = all.scheduled;
        all.run_until(10 + outage);
        let minted = [0, 1].map(|place| all.scheduled[place] - before[place]);
        assert!(minted.iter().all(|count| *count as u64 >= outage / 60), "{minted:?} in {outage} s");
        let [one, other] = all.rings();
        assert_ne!(one, other);
        all.linked = true;
        all.run_until(10 + outage + 6);
        all.assert_one_ring();
    }
}

#[test]
fn a_leader_and_its_follower_know_when_the_other_site_is_silent() {
    let mut all = Federated::new();
    let seen = |all: &Federated| {
        let [ams, fra] = &all.leaders;
        [ams, &all.follower, fra].map(|node| {
            let sites = node.sites(all.now()).into_iter();
            sites.map(|site| (site.name.clone(), site.is_silent())).collect::<Vec<_>>()
        })
    };
    let both = |silent| ["site of fra", "site of fra", "site of ams"].map(|site| vec![(site.to_owned(), silent)]);
    all.run_until(10);
    assert_eq!(seen(&all), both(false));
    all.linked = false;
    all.run_until(14);
    assert_eq!(seen(&all), both(false), "a beat is 2 s");
    // Three beats, and one until the follower hears of it.
    all.run_until(10 + 6 + 2 + 1);
    assert_eq!(seen(&all), both(true));
    all.linked = true;
    all.run_until(10 + 9 + 4 + 1);
    assert_eq!(seen(&all), both(false));
}

#[test]
fn a_leader_at_another_broker_is_no_rival_and_what_its_link_held_up_no_wrong_clock() {
    let mut leader = follower(at(0));
    let _leads = leader.handle(at(0), Event::LeaseGranted(Seat::FIRST));
    for second in 1..30 {
        let now = at(second);
        let Event::Message { payload, .. } = announcement(true, now) else { panic!("a message") };
        let own = Box::new(proto::Payload { boot_id: vec![1; 16], ..(*payload).clone() });
        let _own = leader.handle(now, Event::Message { payload: own, via: Via::Inbox });
        let heard = leader.handle(now, Event::Message { payload, via: Via::Federated });
        let sends = |action: &&Action| matches!(action, Action::Send { to: Route::Keys, .. });
        assert!(heard.iter().filter(sends).count() <= 1, "{heard:?}");
        let skewed = Event::Skewed { node: "b".to_owned(), boot_id: [2; 16], offset_ms: -400_000, via: Via::Federated };
        let _nothing = leader.handle(now, skewed);
        let echo = proto::Payload {
            node: "a".to_owned(),
            boot_id: [1; 16].to_vec(),
            sent_at: now.wall,
            kind: Some(Kind::Report(own_report())),
        };
        let _echo = leader.handle(now, Event::Message { payload: Box::new(echo), via: Via::Lease });
    }
    assert!(leader.is_leader() && !leader.cx.timers.is_running(Timer::Probe, at(10)), "it looks after its lease");
    assert_eq!(leader.standing.members.iter().map(|member| &member.name).collect::<Vec<_>>(), ["a"]);
}
