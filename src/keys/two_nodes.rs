//! Two connected nodes, their proxies and their clocks, through rotations: the invariants of a ticket key's life.

use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;
use zeroize::Zeroizing;

use super::{HeldRing, KeyMaterial, KeySettings, Ring, TicketKey, Timetable};
use crate::clock::Now;
use crate::proto;

const INTERVAL: u64 = 2000;
const SETTLE: u64 = 200;
const TICK: u64 = 20;
const START: u64 = 1_000_000;

#[derive(Clone, Copy, Debug)]
enum Event {
    /// Node 0, node 1, both or neither hold the lease from here on.
    Lead([bool; 2]),
    /// An operator asks this node, which leads for a moment.
    Rotate(usize),
}

/// A node beside a proxy that got its timetable when the ring last changed, and is told nothing in between.
struct Node {
    held: HeldRing,
    proxy: Timetable,
    offset: i64,
    /// Every key that it ever held.
    seen: HashMap<[u8; 16], TicketKey>,
}

struct Farm {
    nodes: [Node; 2],
    leads: [bool; 2],
    /// Rings on their way: (arrival, receiver, ring).
    wire: Vec<(u64, usize, proto::Ring)>,
    delays: std::vec::IntoIter<u64>,
    minted: u8,
    time: u64,
}

impl Node {
    fn new(settings: KeySettings, offset: i64) -> Self {
        Self { held: HeldRing::new(settings), proxy: Timetable::default(), offset, seen: HashMap::new() }
    }

    fn now(&self, time: u64) -> Now {
        Now { wall: time.saturating_add_signed(self.offset), mono: time }
    }

    fn ring_changed(&mut self, time: u64) {
        self.proxy = self.held.timetable(self.now(time));
        self.seen.extend(self.held.ring().keys().iter().map(|key| (key.name, key.clone())));
    }

    /// When the key closes by the rule, given everything that this node ever knew.
    fn closes(&self, name: &[u8; 16]) -> u64 {
        let key = &self.seen[name];
        let higher = self.seen.values().filter(|other| other.order() > key.order());
        higher.map(|other| other.seal_from).chain([key.seal_until]).min().unwrap() + key.open_for
    }
}

impl Farm {
    fn new(settings: KeySettings, clock_difference: i64, delays: Vec<u64>) -> Self {
        let nodes = [Node::new(settings, 0), Node::new(settings, clock_difference)];
        let mut farm =
            Self { nodes, leads: [true, false], wire: Vec::new(), delays: delays.into_iter(), minted: 0, time: START };
        farm.mint(0, |now| now.wall);
        while farm.nodes[1].seen.is_empty() {
            farm.tick();
        }
        farm
    }

    fn mint(&mut self, node: usize, seal_from: impl FnOnce(Now) -> u64) {
        self.minted += 1;
        let material = KeyMaterial::from_random(&Zeroizing::new([self.minted; 80]));
        let now = self.nodes[node].now(self.time);
        self.nodes[node].held.mint(seal_from(now), material, now);
        self.ring_changed(node);
    }

    fn ring_changed(&mut self, node: usize) {
        let time = self.time;
        self.nodes[node].ring_changed(time);
        let delay = self.delays.next().unwrap_or(SETTLE);
        let ring = self.nodes[node].held.ring().to_proto(self.nodes[node].now(time).wall);
        self.wire.push((time + delay, 1 - node, ring));
    }

    fn deliver(&mut self) {
        let time = self.time;
        let (arrived, waiting) = std::mem::take(&mut self.wire).into_iter().partition(|(at, ..)| *at <= time);
        self.wire = waiting;
        let arrived: Vec<(u64, usize, proto::Ring)> = arrived;
        for (_, node, message) in arrived {
            let (now, receiver) = (self.nodes[node].now(time), &mut self.nodes[node]);
            let (ring, faults) = Ring::read(&message, now, receiver.held.settings());
            assert!(faults.is_empty(), "an honest ring has no faults");
            if receiver.held.merge(&ring, now).changed {
                self.ring_changed(node);
            }
        }
    }

    fn tick(&mut self) {
        self.time += TICK;
        self.deliver();
        for node in 0..2 {
            let now = self.nodes[node].now(self.time);
            self.nodes[node].held.drop_faulty(now);
            if self.nodes[node].held.expire(now) {
                self.nodes[node].ring_changed(self.time);
            }
            if let Some(seal_from) = self.nodes[node].held.mint_due(now).filter(|_| self.leads[node]) {
                self.mint(node, |_| seal_from);
            }
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Lead(leads) => self.leads = leads,
            Event::Rotate(node) => {
                if self.nodes[node].held.rotation_pending(self.nodes[node].now(self.time)).is_none() {
                    self.mint(node, |now| now.wall + SETTLE);
                }
            }
        }
    }

    fn sealing(&self, node: usize) -> [u8; 16] {
        let wall = self.nodes[node].now(self.time).wall;
        self.nodes[node].proxy.seal_at(wall).expect("a key seals at every instant").name
    }

    fn opens(&self, node: usize, name: &[u8; 16]) -> bool {
        self.nodes[node].proxy.open_at(name, self.nodes[node].now(self.time).wall).is_some()
    }

    /// Invariants 1 and 2, at this instant.
    fn check(&self) {
        for (node, other) in [(0, 1), (1, 0)] {
            let this = &self.nodes[node];
            let now = this.now(self.time);
            let seals = self.sealing(node);
            assert_eq!(Some(seals), this.held.active(now).map(|key| key.name), "the proxy does as its node");
            assert!(self.opens(other, &seals), "{other} cannot open what {node} seals at {}", self.time);
            let key = &this.seen[&seals];
            let begun = this.held.ring().open_at(now.wall).any(|key| key.seal_from <= now.wall);
            assert!(!begun || key.seal_from <= now.wall, "{node} seals too soon");
            assert!(now.wall <= key.seal_until, "{node} seals for too long");
            for entry in this.proxy.at(now.wall).open {
                assert!(now.wall <= this.closes(&entry.name), "{node} opens for too long");
            }
        }
    }
}

fn settings(keep: u32, intervals_of_sealing: u64) -> KeySettings {
    let settings = KeySettings {
        interval: Duration::from_millis(INTERVAL),
        keep,
        settle: Duration::from_millis(SETTLE),
        max_seal_age: Duration::from_millis(INTERVAL * intervals_of_sealing),
        max_clock_offset: Duration::from_millis(INTERVAL / 2),
    };
    settings.validate().unwrap();
    settings
}

fn run(mut farm: Farm, events: &[(u64, Event)], ticks: u64) {
    farm.check();
    for tick in 0..ticks {
        for (_, event) in events.iter().filter(|(at, _)| *at == tick) {
            farm.happen(*event);
        }
        farm.check();
        farm.tick();
        farm.check();
    }
    assert!(farm.minted >= 4, "keys rotated: {}", farm.minted);
}

/// Somebody leads for most of the time: a pause of more than an interval may leave no key at all.
fn any_leader(ticks: u64) -> impl Strategy<Value = Vec<(u64, Event)>> {
    let leads = prop_oneof![Just([true, false]), Just([false, true]), Just([true, true])];
    let pause = prop_oneof![2 => Just(0), 1 => 1..INTERVAL / TICK];
    prop::collection::vec((0..ticks, leads, pause), 0..5).prop_map(|changes| {
        let step = |(at, leads, pause)| [(at, Event::Lead([false; 2])), (at + pause, Event::Lead(leads))];
        let mut events: Vec<_> = changes.into_iter().flat_map(step).collect();
        events.sort_by_key(|(at, _)| *at);
        // Pauses may overlap; none is to last longer because of that.
        let pauses = events.iter().filter(|(_, event)| matches!(event, Event::Lead([false, false]))).count();
        if pauses > 1 {
            events.retain(|(_, event)| !matches!(event, Event::Lead([false, false])));
        }
        events
    })
}

fn any_rotations(ticks: u64) -> impl Strategy<Value = Vec<(u64, Event)>> {
    prop::collection::vec((0..ticks, (0..2_usize).prop_map(Event::Rotate)), 0..8)
}

fn any_delays() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec((0..=SETTLE / TICK).prop_map(|ticks| ticks * TICK), 40)
}

const TICKS: u64 = 10 * INTERVAL / TICK;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn scheduled_rotations_lose_nothing_with_clocks_less_than_half_an_interval_apart(
        difference in 1 - (INTERVAL as i64) / 2..(INTERVAL as i64) / 2,
        keep in 1..4_u32,
        sealing in 2..4_u64,
        delays in any_delays(),
        events in any_leader(TICKS),
    ) {
        run(Farm::new(settings(keep, sealing), difference, delays), &events, TICKS);
    }

    #[test]
    fn rotations_on_request_lose_nothing_with_clocks_less_than_settle_apart(
        difference in 1 - (SETTLE as i64)..SETTLE as i64,
        keep in 1..4_u32,
        sealing in 2..4_u64,
        delays in any_delays(),
        leaders in any_leader(TICKS),
        rotations in any_rotations(TICKS),
    ) {
        let events = [leaders, rotations].concat();
        run(Farm::new(settings(keep, sealing), difference, delays), &events, TICKS);
    }

    #[test]
    fn a_ticket_opens_for_keep_intervals_and_no_longer_than_one_more(keep in 1..4_u32, delays in any_delays()) {
        let mut farm = Farm::new(settings(keep, 2), 0, delays);
        let (least, most) = (u64::from(keep) * INTERVAL, u64::from(keep + 1) * INTERVAL + SETTLE);
        let mut tickets = Vec::new();
        for _ in 0..TICKS {
            tickets.push((farm.time, farm.sealing(0)));
            farm.tick();
            for (sealed, name) in &tickets {
                let age = farm.time - sealed;
                prop_assert!(age > least || farm.opens(1, name), "refused after {} ms", age);
                prop_assert!(age <= most || !farm.opens(1, name), "opened after {} ms", age);
            }
        }
    }
}

#[test]
fn the_model_notices_a_message_that_takes_longer_than_settle() {
    let late = vec![SETTLE * 2; 10];
    let farm = Farm::new(settings(1, 2), 0, late);
    let events = [(3, Event::Rotate(0))];
    let lost = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(farm, &events, 40)));
    let message = lost.expect_err("a late key must be noticed");
    assert!(message.downcast_ref::<String>().is_some_and(|text| text.contains("cannot open")));
}
