//! Both sides at once, on a broker that delivers everything a millisecond later.

use std::collections::{BTreeSet, VecDeque};
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;

use super::donor::GONE_MS;
use super::joiner::{CALL_AGAIN_MS, CALL_JITTER_MS, CALLS, OFFERS_WITHIN_MS, SILENT_MS};
use super::limiter::{BYTE_BURST, BYTES_A_SECOND, REQUEST_BURST};
use super::*;
use crate::clock::Now;
use crate::proto::{SessionBatch, SessionEntry, SessionFormat, Warmup, WarmupOffer, WarmupRequest, WarmupState};
use crate::sessions::samples::plain;
use crate::sessions::{SessionId, SessionSettings, Store};

const START: u64 = 1_700_000_000_000;
const CHUNK: usize = 4 << 10;

fn id(number: u64) -> SessionId {
    SessionId::try_from(&[&number.to_be_bytes()[..], &[0x5a; 24]].concat()[..]).unwrap()
}

fn entry(number: u64, removed: bool) -> SessionEntry {
    static SAMPLE: LazyLock<Bytes> = LazyLock::new(|| plain(id(0).as_bytes(), START / 1000, 7_200, 1));
    let id = id(number);
    let mut session = Vec::new();
    if !removed {
        session.extend_from_slice(&SAMPLE);
        let at = session.windows(32).position(|bytes| bytes == self::id(0).as_bytes()).unwrap();
        session[at..at + 32].copy_from_slice(id.as_bytes());
    }
    SessionEntry { id: id.as_bytes().to_vec().into(), session: session.into(), at: 0 }
}

/// A node as the daemon makes one of the machines and a store.
struct Node {
    joiner: Joiner,
    donor: Donor,
    store: Store,
    feed: Option<String>,
    notes: Vec<WarmupNote>,
    chunks: u64,
}

/// Nodes on one broker that delivers everything a millisecond later.
struct World {
    t: u64,
    nodes: Vec<Node>,
    /// When, from whom, to which feed, what.
    under_way: VecDeque<(u64, usize, String, Kind)>,
    /// Chunks of these numbers are lost once, by (donor, number).
    lost: BTreeSet<(usize, u64)>,
    /// Most warm-ups that one donor was seen to run, and most donors at a time.
    most_donors: usize,
    most_under_way: u64,
}

impl World {
    fn new(nodes: usize) -> Self {
        let mut world = Self {
            t: 100_000,
            nodes: Vec::new(),
            under_way: VecDeque::new(),
            lost: BTreeSet::new(),
            most_donors: 0,
            most_under_way: 0,
        };
        for _ in 0..nodes {
            world.add();
        }
        world
    }

    /// A node without a feed that lacks everything.
    fn add(&mut self) -> usize {
        let mut state = self.nodes.len() as u64 + 1;
        let random = move |bytes: &mut [u8]| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bytes.copy_from_slice(&(state >> 16).to_le_bytes());
        };
        let settings = SessionSettings { max_bytes: 64 << 20, ..SessionSettings::default() };
        self.nodes.push(Node {
            joiner: Joiner::new(Box::new(random)),
            donor: Donor::default(),
            store: Store::new(settings, Duration::from_secs(600)),
            feed: None,
            notes: Vec::new(),
            chunks: 0,
        });
        self.nodes.len() - 1
    }

    fn now(&self) -> Now {
        Now { wall: START + self.t, mono: self.t }
    }

    fn peer(index: usize) -> PodNode {
        PodNode { node: format!("n{index}"), boot_id: [index as u8; 16] }
    }

    fn link(&mut self, index: usize, up: bool) {
        let now = self.now();
        let feed = up.then(|| format!("feed{index}-{}", self.t));
        let node = &mut self.nodes[index];
        let actions = node.donor.feed_down();
        node.joiner.feed_down(now);
        node.feed.clone_from(&feed);
        if let Some(feed) = feed {
            node.donor.feed_up(feed.clone());
            node.joiner.feed_up(feed, now);
        }
        self.carry_out(index, actions);
    }

    fn carry_out(&mut self, from: usize, actions: Vec<WarmupAction>) {
        for action in actions {
            match action {
                WarmupAction::WarmupNote(note) => self.nodes[from].notes.push(note),
                WarmupAction::Call(call) => {
                    for to in (0..self.nodes.len()).filter(|to| *to != from) {
                        if let Some(feed) = self.nodes[to].feed.clone() {
                            let kind = Kind::WarmupCall(call.clone());
                            self.under_way.push_back((self.t + 1, from, feed, kind));
                        }
                    }
                }
                WarmupAction::Send { feed, kind } => self.under_way.push_back((self.t + 1, from, feed, kind)),
            }
        }
    }

    fn deliver(&mut self, from: usize, to: usize, kind: Kind) {
        let (now, peer) = (self.now(), Self::peer(from));
        let node = &mut self.nodes[to];
        let actions = match kind {
            Kind::WarmupCall(call) => node.donor.on_call(&peer, &call, &node.joiner, &node.store, now),
            Kind::WarmupOffer(offer) => node.joiner.on_offer(peer, offer, now),
            Kind::WarmupRequest(request) => node.donor.on_request(peer, request, &node.store, now),
            Kind::Warmup(chunk) => {
                node.chunks += 1;
                let (next, mut actions) = node.joiner.on_chunk(&peer, &chunk, now);
                if next {
                    let (sessions, tombstones) = (chunk.entries.len() as u64, chunk.tombstones.len() as u64);
                    let last = chunk.last;
                    let _applied = node.store.warm(chunk, now);
                    let _removals = node.store.apply_tombstones(now);
                    actions.extend(node.joiner.chunk_taken(sessions, tombstones, last, now));
                }
                actions
            }
            other => panic!("{other:?}"),
        };
        self.carry_out(to, actions);
    }

    fn step(&mut self) {
        self.t += 1;
        let now = self.now();
        while let Some((at, ..)) = self.under_way.front()
            && *at <= self.t
        {
            let (_, from, feed, kind) = self.under_way.pop_front().unwrap();
            if let Kind::Warmup(chunk) = &kind
                && self.lost.remove(&(from, chunk.number))
            {
                continue;
            }
            if let Some(to) = self.nodes.iter().position(|node| node.feed.as_ref() == Some(&feed)) {
                self.deliver(from, to, kind);
            }
        }
        for index in 0..self.nodes.len() {
            if self.nodes[index].feed.is_none() {
                continue;
            }
            let actions = self.nodes[index].joiner.wake(false, now);
            self.carry_out(index, actions);
            loop {
                let node = &mut self.nodes[index];
                let (due, actions) = node.donor.due(false, now);
                let chunk = (due == Due::Now).then(|| node.donor.next_chunk(&node.store, CHUNK, now)).flatten();
                self.carry_out(index, actions);
                let Some(chunk) = chunk else { break };
                self.carry_out(index, vec![chunk]);
            }
            if self.t.is_multiple_of(100) {
                let _swept = self.nodes[index].store.sweep(now);
            }
        }
        let running = self.nodes.iter().filter(|node| node.donor.is_donating()).count();
        self.most_donors = self.most_donors.max(running);
        for node in &self.nodes {
            let under_way = node.donor.under_way();
            self.most_under_way = self.most_under_way.max(under_way);
        }
    }

    fn run_for(&mut self, ms: u64) {
        for _ in 0..ms {
            self.step();
        }
    }

    /// Until no node lacks anything; returns how long that took.
    fn settle(&mut self) -> u64 {
        let start = self.t;
        let lacks = |node: &Node| node.feed.is_some() && node.joiner.lacks();
        while self.nodes.iter().any(lacks) {
            assert!(self.t < start + 60_000, "somebody lacks sessions still: {:#?}", self.notes());
            self.step();
        }
        self.t - start
    }

    fn notes(&self) -> Vec<&[WarmupNote]> {
        self.nodes.iter().map(|node| &node.notes[..]).collect()
    }

    fn make(&self, index: usize, numbers: std::ops::Range<u64>, removed: bool) {
        let entries = numbers.map(|number| entry(number, removed)).collect();
        let batch = SessionBatch { entries, format: SessionFormat::OpensslDer.into() };
        let applied = self.nodes[index].store.remote(batch, self.now());
        assert!(applied.dropped.is_empty(), "{:?}", applied.dropped);
    }

    fn donor_of(&self, index: usize) -> Vec<String> {
        let begins = |note: &WarmupNote| match note {
            WarmupNote::Begins { donor, .. } => Some(donor.clone()),
            _ => None,
        };
        self.nodes[index].notes.iter().filter_map(begins).collect()
    }
}

/// `nodes` nodes that have all the sessions `numbers` and lack nothing.
fn settled(nodes: usize, numbers: std::ops::Range<u64>) -> World {
    let mut world = World::new(nodes);
    for index in 0..nodes {
        world.link(index, true);
    }
    world.settle();
    for index in 0..nodes {
        world.make(index, numbers.clone(), false);
        world.nodes[index].notes.clear();
    }
    world
}

#[test]
fn a_node_that_joins_late_gets_every_session_and_every_tombstone_and_nothing_that_was_removed() {
    let mut world = settled(2, 0..5_000);
    for index in 0..2 {
        world.make(index, 100..400, true);
    }
    let joiner = world.add();
    world.link(joiner, true);
    world.settle();
    let store = &world.nodes[joiner].store;
    assert_eq!((store.len(), store.tombstones()), (4_700, 300));
    let [WarmupNote::Begins { .. }, WarmupNote::WarmedUp { sessions: 4_700, tombstones: 300, .. }] =
        world.nodes[joiner].notes[..]
    else {
        panic!("{:?}", world.notes())
    };
    world.run_for(5);
    assert!(world.nodes.iter().all(|node| !node.donor.is_donating()), "the donor is free at once");
    assert!(world.most_under_way <= WINDOW);
}

#[test]
fn two_joiners_at_once_get_two_donors() {
    let mut world = settled(2, 0..20_000);
    let joiners = [world.add(), world.add()];
    for joiner in joiners {
        world.link(joiner, true);
    }
    world.settle();
    for joiner in joiners {
        assert_eq!(world.nodes[joiner].store.len(), 20_000);
    }
    assert_eq!(world.most_donors, 2);
    let last = |joiner: usize| world.donor_of(joiner).last().cloned();
    assert_ne!(last(joiners[0]), last(joiners[1]), "{:?}", world.notes());
}

#[test]
fn many_joiners_wait_for_their_turn_where_there_is_one_donor() {
    let mut world = settled(1, 0..20_000);
    let joiners: Vec<usize> = (0..4).map(|_| world.add()).collect();
    for joiner in &joiners {
        world.link(*joiner, true);
    }
    world.settle();
    for joiner in &joiners {
        assert_eq!(world.nodes[*joiner].store.len(), 20_000, "{:?}", world.notes());
    }
    // One who was warmed up first may warm up the next; but none ever served two at once, which a second
    // `Donates` before a `Donated` would show.
    for node in &world.nodes {
        let mut running = 0;
        for note in &node.notes {
            running += match note {
                WarmupNote::Donates { .. } => 1,
                WarmupNote::Donated { .. } => -1,
                _ => 0,
            };
            assert!((0..=1).contains(&running), "{:?}", node.notes);
        }
    }
}

#[test]
fn an_interrupted_donor_is_replaced_and_what_it_sent_stays() {
    let mut world = settled(2, 0..30_000);
    let joiner = world.add();
    world.link(joiner, true);
    while world.nodes[joiner].store.len() < 10_000 {
        world.step();
    }
    let first = (0..2).find(|index| world.nodes[*index].donor.is_donating()).unwrap();
    let had = world.nodes[joiner].store.len();
    world.link(first, false);
    let took = world.settle();
    assert_eq!(world.nodes[joiner].store.len(), 30_000);
    assert!(had >= 10_000 && took < SILENT_MS + 2_000, "{took} ms");
    assert_eq!(world.donor_of(joiner), [format!("n{first}"), format!("n{}", 1 - first)]);
    let lost = WarmupNote::DonorLost { donor: format!("n{first}"), reason: DonorLoss::Silent };
    assert!(world.nodes[joiner].notes.contains(&lost), "{:?}", world.notes());
}

#[test]
fn lost_chunks_are_sent_again_and_the_last_one_too() {
    let mut world = settled(1, 0..5_000);
    let joiner = world.add();
    world.link(joiner, true);
    let mut whole = settled(1, 0..5_000);
    let other = whole.add();
    whole.link(other, true);
    whole.settle();
    let last = whole.nodes[other].chunks;
    assert!(last > 2 * WINDOW, "{last} chunks");
    world.lost.extend([1, 2, 40, last].map(|number| (0, number)));
    world.settle();
    assert!(world.lost.is_empty(), "{:?}", world.lost);
    assert_eq!(world.nodes[joiner].store.len(), 5_000);
    assert_eq!(world.donor_of(joiner).len(), 1, "no donor had to be replaced: {:?}", world.notes());
}

#[test]
fn a_donor_keeps_to_the_credit_and_to_its_rate() {
    let mut world = settled(1, 0..30_000);
    let (joiner, now) = (World::peer(9), world.now());
    let request = |taken, credit| WarmupRequest { id: 7, feed: "f".into(), taken, credit, ..Default::default() };
    let Node { donor, store, .. } = &mut world.nodes[0];
    let send = |donor: &mut Donor, now: Now| {
        let mut bytes = 0;
        let mut chunks = 0;
        while donor.due(false, now).0 == Due::Now {
            let Some(WarmupAction::Send { kind: Kind::Warmup(chunk), .. }) = donor.next_chunk(store, CHUNK, now) else {
                panic!("no chunk")
            };
            (bytes, chunks) = (bytes + chunk.encoded_len() as u64, chunks + 1);
        }
        (chunks, bytes)
    };
    let _began = donor.on_request(joiner.clone(), request(0, 5), store, now);
    assert_eq!(send(donor, now).0, 5);
    // Whatever the joiner grants, no more than a window is under way.
    let _more = donor.on_request(joiner.clone(), request(0, u64::MAX), store, now);
    assert_eq!(send(donor, now).0, WINDOW - 5);
    // An old request takes nothing back, one about chunks that were never sent does nothing.
    let _old = donor.on_request(joiner.clone(), request(0, 1), store, now);
    let _odd = donor.on_request(joiner.clone(), request(1_000, 2_000), store, now);
    assert_eq!(send(donor, now).0, 0);
    // With all the credit in the world, the rate remains.
    let (mut sent, mut taken) = (0, WINDOW);
    for ms in 1..=500 {
        let now = Now { wall: now.wall + ms, mono: now.mono + ms };
        let _more = donor.on_request(joiner.clone(), request(taken, taken + WINDOW), store, now);
        let (chunks, bytes) = send(donor, now);
        (sent, taken) = (sent + bytes, taken + chunks);
        assert!(sent <= BYTES_A_SECOND * ms / 1_000 + BYTE_BURST + CHUNK as u64, "{sent} bytes in {ms} ms");
    }
    // Silence: the joiner is gone.
    let late = Now { wall: now.wall + 500 + GONE_MS, mono: now.mono + 500 + GONE_MS };
    assert_eq!(donor.due(false, late).0, Due::Never);
    assert!(!donor.is_donating());
}

#[test]
fn chunks_that_are_late_or_that_nobody_asked_for_change_nothing() {
    let mut world = settled(2, 0..30_000);
    let joiner = world.add();
    world.link(joiner, true);
    while !world.nodes[joiner].joiner.is_receiving() {
        world.step();
    }
    let (id, donor) = world.nodes[joiner].joiner.receives().expect("it is receiving");
    let now = world.now();
    let chunk = |id, number| Warmup { id, number, ..Default::default() };
    let machine = &mut world.nodes[joiner].joiner;
    for (peer, chunk, reason) in [
        (&World::peer(8), chunk(id, 1), Reason::WarmupUnasked),
        (&donor, chunk(id + 1, 1), Reason::WarmupUnasked),
        (&donor, chunk(id, 0), Reason::WarmupOverCredit),
        (&donor, chunk(id, u64::MAX), Reason::WarmupOverCredit),
    ] {
        let (next, actions) = machine.on_chunk(peer, &chunk, now);
        assert!(!next);
        let [WarmupAction::WarmupNote(WarmupNote::Refused { reason: said, .. })] = &actions[..] else {
            panic!("{actions:?}")
        };
        assert_eq!(*said, reason);
    }
    let offer = WarmupOffer { id: id + 1, ..Default::default() };
    let actions = machine.on_offer(World::peer(8), offer, now);
    assert!(
        matches!(actions[..], [WarmupAction::WarmupNote(WarmupNote::Refused { reason: Reason::WarmupUnasked, .. })]),
        "{actions:?}"
    );
    world.settle();
    // It is over: what still comes for it is late, and no fault.
    let (next, actions) = world.nodes[joiner].joiner.on_chunk(&donor, &chunk(id, 3), now);
    assert!(!next && actions.is_empty(), "{actions:?}");
    assert_eq!(world.nodes[joiner].store.len(), 30_000);
}

#[test]
fn a_node_that_was_away_gets_what_it_missed_and_forgets_what_was_removed() {
    let mut world = settled(2, 0..5_000);
    world.run_for(60_000);
    world.link(1, false);
    world.make(0, 5_000..5_100, false);
    world.make(0, 10..30, true);
    world.run_for(20_000);
    let before = world.nodes[1].chunks;
    world.link(1, true);
    world.settle();
    let store = &world.nodes[1].store;
    assert_eq!((store.len(), store.tombstones()), (5_080, 20));
    let [.., WarmupNote::WarmedUp { sessions, tombstones: 20, .. }] = world.nodes[1].notes[..] else {
        panic!("{:?}", world.notes())
    };
    assert!(sessions < 200 && world.nodes[1].chunks - before < 10, "{sessions} sessions to bring 100");
}

#[test]
fn nodes_that_start_together_give_up_after_three_calls_and_serve_each_other_then() {
    let mut world = World::new(5);
    for index in 0..5 {
        world.link(index, true);
    }
    let took = world.settle();
    assert!(took < u64::from(CALLS) * (CALL_AGAIN_MS + CALL_JITTER_MS + OFFERS_WITHIN_MS), "{took} ms");
    assert!(world.nodes.iter().all(|node| node.notes == [WarmupNote::NothingToGet]), "{:?}", world.notes());
    // What is live meanwhile is handed on by the node that has most, although it has called itself.
    let mut world = World::new(2);
    world.link(0, true);
    world.link(1, true);
    world.make(0, 0..1_000, false);
    world.settle();
    assert_eq!(world.nodes[1].store.len(), 1_000, "{:?}", world.notes());
}

#[test]
fn a_flood_of_calls_and_requests_of_one_node_is_counted_and_left_unanswered() {
    let mut world = settled(1, 0..100);
    let (peer, now) = (World::peer(9), world.now());
    let node = &mut world.nodes[0];
    let call = WarmupCall { id: 1, feed: "f".into(), away_ms: 0 };
    let mut offers = 0;
    let mut floods = 0;
    for _ in 0..100 {
        for action in node.donor.on_call(&peer, &call, &node.joiner, &node.store, now) {
            match action {
                WarmupAction::Send { .. } => offers += 1,
                WarmupAction::WarmupNote(WarmupNote::Refused { reason: Reason::WarmupFlood, .. }) => floods += 1,
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!((offers, floods), (REQUEST_BURST, 100 - REQUEST_BURST));
    // No other node pays for it, and it does not pay indefinitely.
    assert_eq!(node.donor.on_call(&World::peer(8), &call, &node.joiner, &node.store, now).len(), 1);
    let later = Now { wall: now.wall + 1_000, mono: now.mono + 1_000 };
    let [WarmupAction::Send { .. }] = node.donor.on_call(&peer, &call, &node.joiner, &node.store, later)[..] else {
        panic!("no offer a second later")
    };
}

#[test]
fn a_donor_says_every_reason_for_which_it_ends_a_warm_up() {
    let mut world = settled(1, 0..1_000);
    let (peer, now) = (World::peer(9), world.now());
    let late = Now { wall: now.wall + GONE_MS, mono: now.mono + GONE_MS };
    let first = |id| WarmupRequest { id, feed: "f".into(), credit: 5, ..Default::default() };
    let done = WarmupRequest { done: true, ..first(1) };
    let Node { donor, store, .. } = &mut world.nodes[0];
    let ended = [
        donor.on_request(peer.clone(), first(1), store, now),
        donor.on_request(peer.clone(), done, store, now),
        donor.on_request(peer.clone(), first(2), store, now),
        donor.on_request(peer.clone(), first(3), store, now),
        donor.due(false, late).1,
        donor.on_request(peer, first(4), store, late),
        donor.feed_down(),
    ];
    let ended = ended.into_iter().flatten().filter_map(|action| match action {
        WarmupAction::WarmupNote(WarmupNote::Donated { reason, .. }) => Some(reason),
        _ => None,
    });
    assert_eq!(Vec::from_iter(ended), DonationEnd::ALL);
}

#[test]
fn a_joiner_says_every_reason_for_which_it_leaves_a_donor() {
    let mut world = settled(3, 0..30_000);
    let joiner = world.add();
    world.link(joiner, true);
    while !world.nodes[joiner].joiner.is_receiving() {
        world.step();
    }
    let now = world.now();
    let silent = Now { wall: now.wall + SILENT_MS, mono: now.mono + SILENT_MS };
    let machine = &mut world.nodes[joiner].joiner;
    let (id, donor) = machine.receives().expect("it is receiving");
    let busy = WarmupOffer { id, state: WarmupState::Busy.into(), ..Default::default() };
    let left = [machine.on_offer(donor, busy, now), machine.wake(false, silent)];
    let left = left.into_iter().flatten().filter_map(|action| match action {
        WarmupAction::WarmupNote(WarmupNote::DonorLost { reason, .. }) => Some(reason),
        _ => None,
    });
    assert_eq!(Vec::from_iter(left), DonorLoss::ALL);
}
