//! The farm's state machine under a simulated broker: every run is decided by its seed alone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use resumed::bus::{Names, Route};
use resumed::clock::{Now, millis};
use resumed::envelope::{EpochId, travels_open};
use resumed::farm::{Action, Ask, Event, Farm, FarmSettings, Note, Reply, Via};
use resumed::keys::{HeldRing, KeySettings};
use resumed::proto::{self, payload::Kind};

const START: u64 = 1_700_000_000_000;
const BEAT: u64 = 2_000;

/// splitmix64: small, and good enough to pick delays and faults.
#[derive(Clone)]
struct Seeded(u64);

impl Seeded {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
}

/// A node: its machine, and its connection to the simulated broker.
struct Node {
    name: String,
    farm: Option<Farm>,
    boots: u8,
    saved: Option<HeldRing>,
    /// The inbox of its live link; `None` while it is not connected.
    inbox: Option<String>,
    links: u32,
    /// Its network is cut: it neither sends nor receives, and loses its link.
    cut: bool,
    /// Its clock minus true time.
    offset_ms: i64,
    replies: Vec<(u64, Reply)>,
    notes: Vec<Note>,
    wake: u64,
    /// When the last message of this node arrives anywhere: order between two nodes is kept.
    arrives: u64,
}

enum Happening {
    Wake(usize),
    Event {
        node: usize,
        link: u32,
        event: Event,
    },
    /// Opened on arrival: the receiver must hold the epoch key then.
    Sealed {
        node: usize,
        link: u32,
        epoch: EpochId,
        via: Via,
        event: Event,
    },
    Connect(usize),
}

/// A broker with the farm's nodes around it.
struct World {
    t: u64,
    random: Seeded,
    nodes: Vec<Node>,
    lease: Option<usize>,
    broker_up: bool,
    /// The lease queue is locked, and nobody is behind it: a broker bug.
    lease_stuck: bool,
    blocked: bool,
    agenda: BTreeMap<(u64, u64), Happening>,
    sequence: u64,
    keys: KeySettings,
    can_lead: Vec<bool>,
    /// Messages that their receiver could not open for want of an epoch key.
    unknown: u32,
    /// Messages sealed under the farm secret alone, by sender.
    open: Vec<(u64, usize)>,
}

impl World {
    fn new(seed: u64, nodes: usize) -> Self {
        let keys = KeySettings {
            interval: Duration::from_secs(60),
            keep: 3,
            settle: Duration::from_secs(2),
            max_seal_age: Duration::from_secs(180),
            max_clock_offset: Duration::from_secs(300),
        };
        let mut world = Self {
            t: 0,
            random: Seeded(seed),
            nodes: Vec::new(),
            lease: None,
            broker_up: true,
            lease_stuck: false,
            blocked: false,
            agenda: BTreeMap::new(),
            sequence: 0,
            keys,
            can_lead: vec![true; nodes],
            unknown: 0,
            open: Vec::new(),
        };
        for index in 0..nodes {
            world.nodes.push(Node {
                name: format!("node{index}"),
                farm: None,
                boots: 0,
                saved: None,
                inbox: None,
                links: 0,
                cut: false,
                offset_ms: 0,
                replies: Vec::new(),
                notes: Vec::new(),
                wake: 0,
                arrives: 0,
            });
            world.boot(index, false);
        }
        world
    }

    fn now(&self, node: usize) -> Now {
        let wall = (START + self.t).saturating_add_signed(self.nodes[node].offset_ms);
        Now { wall, mono: 1_000_000 + self.t }
    }

    fn boot(&mut self, index: usize, with_ring: bool) {
        let now = self.now(index);
        let seed = self.random.next();
        let node = &mut self.nodes[index];
        node.boots += 1;
        let mut boot_id = [0; 16];
        boot_id[0] = u8::try_from(index).expect("few nodes");
        boot_id[1] = node.boots;
        let settings = FarmSettings {
            node: node.name.clone(),
            boot_id,
            pod: "pod".into(),
            version: "0".into(),
            names: Names::new("sim", "pod"),
            keys: self.keys,
            report_every: Duration::from_millis(BEAT),
            start_alone_after: Duration::from_secs(10),
            can_lead: self.can_lead[index],
        };
        let held = node.saved.take().filter(|_| with_ring).unwrap_or_else(|| HeldRing::new(self.keys));
        let mut random = Seeded(seed);
        let fill = move |bytes: &mut [u8]| {
            for byte in bytes {
                *byte = random.next().to_le_bytes()[0];
            }
        };
        node.farm = Some(Farm::new(settings, held, Box::new(fill), now));
        self.connect_soon(index);
        self.give(index, Event::Wake);
    }

    fn crash(&mut self, index: usize) {
        if let Some(farm) = self.nodes[index].farm.take() {
            self.nodes[index].saved = Some(farm.held().clone());
        }
        self.unlink(index);
    }

    fn unlink(&mut self, index: usize) {
        self.nodes[index].inbox = None;
        self.nodes[index].links += 1;
        if self.lease == Some(index) {
            self.lease = None;
        }
    }

    fn drop_link(&mut self, index: usize) {
        if self.nodes[index].inbox.is_some() {
            self.unlink(index);
            self.give(index, Event::Disconnected);
            self.connect_soon(index);
        }
    }

    fn cut(&mut self, index: usize, cut: bool) {
        self.nodes[index].cut = cut;
        if cut {
            self.drop_link(index);
        } else {
            self.connect_soon(index);
        }
    }

    fn broker(&mut self, up: bool) {
        self.broker_up = up;
        for index in 0..self.nodes.len() {
            if up { self.connect_soon(index) } else { self.drop_link(index) }
        }
    }

    /// A memory alarm: the broker takes nothing from anybody, and says so.
    fn block(&mut self, blocked: bool) {
        self.blocked = blocked;
        for node in &mut self.nodes {
            if let Some(farm) = &mut node.farm {
                farm.set_blocked(blocked);
            }
        }
    }

    fn connect_soon(&mut self, index: usize) {
        let at = self.t + 5 + self.random.below(200);
        self.plan(at, Happening::Connect(index));
    }

    fn plan(&mut self, at: u64, happening: Happening) {
        self.sequence += 1;
        self.agenda.insert((at, self.sequence), happening);
    }

    fn run_for(&mut self, span: u64) {
        let until = self.t + span;
        while let Some(entry) = self.agenda.first_entry().filter(|entry| entry.key().0 <= until) {
            let ((at, _), happening) = entry.remove_entry();
            self.t = self.t.max(at);
            match happening {
                Happening::Wake(node) if self.nodes[node].wake == at => self.give(node, Event::Wake),
                Happening::Wake(_) => {}
                Happening::Connect(node) => self.connect(node),
                Happening::Sealed { node, link, epoch, via, event } => {
                    if self.nodes[node].links == link {
                        let holds = |farm: &Farm| epoch == [0; 8] || farm.epochs().ids().any(|id| id == epoch);
                        let opens = self.nodes[node].farm.as_ref().is_some_and(holds);
                        self.unknown += u32::from(!opens);
                        self.give(node, if opens { event } else { Event::UnknownEpoch { via } });
                    }
                }
                Happening::Event { node, link, event } => {
                    if self.nodes[node].links == link {
                        self.give(node, event);
                    }
                }
            }
        }
        self.t = until;
    }

    fn connect(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        if node.farm.is_none() || node.cut || !self.broker_up || node.inbox.is_some() {
            return;
        }
        node.links += 1;
        let inbox = Names::new("sim", "pod").inbox(&node.name, &node.links.to_string());
        node.inbox = Some(inbox.clone());
        self.give(index, Event::Connected { inbox });
    }

    fn give(&mut self, index: usize, event: Event) {
        let now = self.now(index);
        let Some(farm) = &mut self.nodes[index].farm else { return };
        let actions = farm.handle(now, event);
        let sealing = farm.held().active(now).map(|key| (key.generation, key.seal_from, key.seal_until));
        let wake = self.t + farm.next_wake(now).saturating_sub(now.mono).max(1);
        if let Some((generation, from, until)) = sealing {
            let begun = farm.held().ring().keys().iter().any(|key| key.seal_from <= now.wall);
            assert!(now.wall <= until, "{generation} seals past seal_until");
            assert!(now.wall >= from || !begun, "{generation} seals before seal_from");
        }
        self.nodes[index].wake = wake;
        self.plan(wake, Happening::Wake(index));
        for action in actions {
            self.act(index, action);
        }
    }

    fn act(&mut self, index: usize, action: Action) {
        match action {
            Action::Send { to, kind } => self.send(index, &to, kind),
            Action::TryLease => {
                let free = self.lease.is_none() && !self.lease_stuck && self.nodes[index].inbox.is_some();
                if free {
                    self.lease = Some(index);
                }
                let event = if free { Event::LeaseGranted } else { Event::LeaseHeld };
                self.deliver(index, index, event);
            }
            Action::ReleaseLease => {
                if self.lease == Some(index) {
                    self.lease = None;
                }
            }
            Action::RenewLink => {
                self.unlink(index);
                self.connect_soon(index);
            }
            Action::RingChanged | Action::EpochsChanged => {}
            Action::Reply { id, reply } => self.nodes[index].replies.push((id, reply)),
            Action::Note(note) => self.nodes[index].notes.push(note),
        }
    }

    fn send(&mut self, from: usize, to: &Route, kind: Kind) {
        if self.nodes[from].inbox.is_none() || self.blocked {
            return;
        }
        let farm = self.nodes[from].farm.as_ref().expect("a sender runs");
        let payload = proto::Payload {
            node: self.nodes[from].name.clone(),
            boot_id: farm.own_member().boot_id,
            sent_at: self.now(from).wall,
            kind: Some(kind),
        };
        // What the envelope would do.
        let kind = payload.kind.as_ref().expect("just set");
        let epoch = farm.epochs().sealing(kind, self.now(from)).map_or([0; 8], |key| key.id());
        assert!(epoch != [0; 8] || travels_open(kind), "node{from} sends without an epoch key: {kind:?}");
        if epoch == [0; 8] {
            self.open.push((self.t, from));
        }
        let message = |via| (epoch, Event::Message { payload: Box::new(payload.clone()), via });
        match to {
            Route::Keys => {
                for node in 0..self.nodes.len() {
                    if self.nodes[node].inbox.is_some() {
                        self.deliver_message(from, node, message(Via::Inbox));
                    }
                }
            }
            Route::Leader => match self.lease {
                Some(leader) => self.deliver_message(from, leader, message(Via::Lease)),
                // A stuck queue swallows what is sent to it.
                None if self.lease_stuck => {}
                None => self.deliver(from, from, Event::Unroutable),
            },
            Route::Inbox(queue) => {
                let owner = self.nodes.iter().position(|node| node.inbox.as_ref() == Some(queue));
                if let Some(owner) = owner {
                    self.deliver_message(from, owner, message(Via::Inbox));
                }
            }
        }
    }

    /// What the envelope would do: refuse a message whose stamp is too far from the receiver's clock.
    fn deliver_message(&mut self, from: usize, to: usize, (epoch, event): (EpochId, Event)) {
        let Event::Message { payload, via } = event else { unreachable!("only messages come here") };
        let skew = self.nodes[from].offset_ms - self.nodes[to].offset_ms;
        let event = if skew.unsigned_abs() > millis(self.keys.max_clock_offset) {
            let boot_id = payload.boot_id.as_slice().try_into().expect("16 bytes");
            Event::Skewed { node: payload.node, boot_id, offset_ms: skew, via }
        } else {
            Event::Message { payload, via }
        };
        let at = self.arrival(from);
        let link = self.nodes[to].links;
        self.plan(at, Happening::Sealed { node: to, link, epoch, via, event });
    }

    fn arrival(&mut self, from: usize) -> u64 {
        let at = (self.t + 1 + self.random.below(20)).max(self.nodes[from].arrives);
        self.nodes[from].arrives = at;
        at
    }

    fn deliver(&mut self, from: usize, to: usize, event: Event) {
        let at = self.arrival(from);
        let link = self.nodes[to].links;
        self.plan(at, Happening::Event { node: to, link, event });
    }

    fn leaders(&self) -> Vec<usize> {
        let leads = |node: &Node| node.farm.as_ref().is_some_and(Farm::is_leader);
        (0..self.nodes.len()).filter(|index| leads(&self.nodes[*index])).collect()
    }

    fn running(&self) -> impl Iterator<Item = usize> {
        (0..self.nodes.len()).filter(|index| self.nodes[*index].farm.is_some())
    }

    fn rings(&self) -> BTreeSet<[u8; 8]> {
        let fingerprint =
            |index: usize| self.nodes[index].farm.as_ref().map(|farm| farm.held().ring().fingerprint(START + self.t));
        self.running().filter_map(fingerprint).collect()
    }

    /// The epoch keys that the running nodes take for the leader's.
    fn epochs(&self) -> BTreeSet<EpochId> {
        let current = |index: usize| self.nodes[index].farm.as_ref()?.epochs().current().map(|key| key.id());
        self.running().filter_map(current).collect()
    }

    fn generations(&self, index: usize) -> Vec<u64> {
        let farm = self.nodes[index].farm.as_ref().expect("it runs");
        farm.held().ring().keys().iter().map(|key| key.generation).collect()
    }

    fn assert_one_farm(&self, context: &str) {
        assert_eq!(self.leaders().len(), 1, "{context}: leaders {:?}", self.leaders());
        let rings: Vec<_> = self.running().map(|index| (index, self.generations(index))).collect();
        assert_eq!(self.rings().len(), 1, "{context}: rings {rings:?}");
        assert_eq!(self.epochs().len(), 1, "{context}: epochs {:x?}", self.epochs());
        let now = self.now(0);
        for index in self.running() {
            let farm = self.nodes[index].farm.as_ref().expect("it runs");
            assert!(farm.held().active(now).is_some(), "{context}: node{index} holds no key that seals");
        }
    }
}

#[test]
fn nodes_that_start_together_elect_one_leader_and_share_one_ring() {
    for seed in 0..50 {
        let mut world = World::new(seed, 5);
        world.run_for(3 * BEAT);
        world.assert_one_farm(&format!("seed {seed}"));
        let keys: Vec<_> = world.generations(0);
        assert_eq!(keys.len(), 2, "seed {seed}: one active and one next key, not {keys:?}");
    }
}

#[test]
fn a_dead_leader_is_replaced_and_no_key_is_lost() {
    for seed in 0..50 {
        let mut world = World::new(seed, 4);
        world.run_for(3 * BEAT);
        let leader = world.leaders()[0];
        let before = world.generations(leader);
        world.crash(leader);
        world.run_for(2 * BEAT);
        world.assert_one_farm(&format!("seed {seed}"));
        assert_eq!(world.generations((leader + 1) % 4), before, "seed {seed}");
    }
}

#[test]
fn a_leader_that_says_farewell_is_replaced_at_once() {
    let mut world = World::new(7, 4);
    world.run_for(3 * BEAT);
    let leader = world.leaders()[0];
    world.give(leader, Event::Stop);
    world.run_for(50);
    world.crash(leader);
    world.run_for(BEAT / 4);
    world.assert_one_farm("after the farewell");
}

#[test]
fn keys_rotate_for_hours_and_every_node_seals_with_the_same_key() {
    let mut world = World::new(3, 3);
    world.run_for(3 * BEAT);
    let mut seen = BTreeSet::new();
    for _ in 0..200 {
        world.run_for(30_000);
        world.assert_one_farm("rotating");
        let now = world.now(0);
        let active: BTreeSet<u64> = world
            .running()
            .filter_map(|index| world.nodes[index].farm.as_ref()?.held().active(now).map(|key| key.generation))
            .collect();
        assert_eq!(active.len(), 1, "one key seals everywhere");
        seen.extend(active);
        // Next, active, three that still open, and those of the five minutes until they are erased.
        assert!(world.generations(0).len() <= 11, "old keys are erased: {:?}", world.generations(0));
    }
    assert!(seen.len() >= 95, "100 minutes at one minute a key: {} keys", seen.len());
}

#[test]
fn a_rotation_asked_for_anywhere_reaches_everybody() {
    for seed in 0..30 {
        let mut world = World::new(seed, 4);
        world.run_for(3 * BEAT);
        let asker = usize::try_from(seed % 4).expect("small");
        world.give(asker, Event::Ask { id: 9, ask: Ask::Rotate });
        world.run_for(1_000);
        let replies = world.nodes[asker].replies.clone();
        let [(9, Reply::Rotating { generation, pending: false })] = replies[..] else {
            panic!("seed {seed}: {replies:?}")
        };
        world.assert_one_farm(&format!("seed {seed}"));
        // A second request while the first is pending changes nothing.
        world.give((asker + 1) % 4, Event::Ask { id: 10, ask: Ask::Rotate });
        world.run_for(500);
        let again = &world.nodes[(asker + 1) % 4].replies;
        assert_eq!(again[..], [(10, Reply::Rotating { generation, pending: true })], "seed {seed}");
        world.run_for(2_000);
        let now = world.now(asker);
        let active = world.nodes[asker].farm.as_ref().and_then(|farm| farm.held().active(now));
        assert_eq!(active.map(|key| key.generation), Some(generation), "seed {seed}");
    }
}

#[test]
fn a_new_leader_shows_no_half_of_the_farm_as_the_whole() {
    for seed in 0..30 {
        let mut world = World::new(seed, 5);
        world.run_for(3 * BEAT);
        world.broker(false);
        world.run_for(5_000);
        world.broker(true);
        let mut asked = 0;
        while world.nodes.iter().all(|node| node.replies.is_empty()) {
            asked += 1;
            for node in 0..5 {
                if world.nodes[node].inbox.is_some() {
                    world.give(node, Event::Ask { id: asked, ask: Ask::Status });
                }
            }
            world.run_for(20);
            world.nodes.iter_mut().for_each(|node| node.replies.retain(|(_, reply)| *reply != Reply::NoLeader));
            assert!(asked < 500, "seed {seed}: nobody ever answered");
        }
        let reply = world.nodes.iter().find_map(|node| node.replies.first()).expect("one answered");
        let (_, Reply::Members { members, .. }) = reply else { panic!("seed {seed}: {reply:?}") };
        assert!(members.len() >= 4, "seed {seed}: {} of 5 nodes shown as the farm", members.len());
    }
}

#[test]
fn a_node_without_broker_and_ring_starts_alone_and_merges_later() {
    let mut world = World::new(11, 3);
    world.broker(false);
    world.run_for(15_000);
    for index in 0..3 {
        assert_eq!(world.generations(index).len(), 1, "node{index} minted for itself");
    }
    world.broker(true);
    world.run_for(3 * BEAT);
    world.assert_one_farm("after the broker came");
    assert!(world.generations(0).len() >= 3, "everybody's keys still open: {:?}", world.generations(0));
}

#[test]
fn a_farm_without_a_lease_to_be_had_still_rotates() {
    let mut world = World::new(5, 4);
    world.run_for(3 * BEAT);
    let leader = world.leaders()[0];
    world.lease_stuck = true;
    world.crash(leader);
    world.run_for(13 * BEAT);
    assert_eq!(world.leaders(), [] as [usize; 0], "nobody can hold the lease");
    world.run_for(180_000);
    assert_eq!(world.rings().len(), 1, "one ring without a lease");
    let acting: usize =
        world.nodes.iter().map(|node| node.notes.iter().filter(|note| **note == Note::ActsAlone).count()).sum();
    assert!(acting >= 1, "somebody announces without the lease");
    world.lease_stuck = false;
    world.run_for(6 * BEAT);
    world.assert_one_farm("after the lease could be had again");
}

#[test]
fn a_broker_that_blocks_publishers_costs_nobody_the_lead_or_a_link() {
    let mut world = World::new(17, 4);
    world.run_for(3 * BEAT);
    let (leader, links) = (world.leaders()[0], world.nodes.iter().map(|node| node.links).collect::<Vec<_>>());
    world.block(true);
    world.run_for(30 * BEAT);
    assert_eq!(world.leaders(), [leader], "while the broker blocks");
    world.block(false);
    world.run_for(2 * BEAT);
    world.assert_one_farm("after the broker took messages again");
    assert_eq!(world.leaders(), [leader], "after the broker took messages again");
    assert_eq!(world.nodes.iter().map(|node| node.links).collect::<Vec<_>>(), links, "links were renewed");
}

#[test]
fn a_leader_whose_clock_the_farm_disagrees_with_gives_up_the_lease() {
    let mut world = World::new(2, 4);
    world.run_for(3 * BEAT);
    let leader = world.leaders()[0];
    world.nodes[leader].offset_ms = -3_600_000;
    world.run_for(15 * BEAT);
    assert!(!world.leaders().contains(&leader), "the skewed node still leads");
    assert_eq!(world.leaders().len(), 1);
}

#[test]
fn a_node_that_may_not_lead_never_does() {
    let mut world = World::new(13, 3);
    world.can_lead = vec![false, true, false];
    for index in 0..3 {
        world.crash(index);
        world.boot(index, false);
    }
    world.run_for(3 * BEAT);
    assert_eq!(world.leaders(), [1]);
    world.crash(1);
    world.run_for(30 * BEAT);
    assert_eq!(world.leaders(), [] as [usize; 0]);
}

#[test]
fn after_any_faults_all_nodes_hold_one_ring_within_three_beats() {
    for seed in 0..300 {
        let mut world = World::new(seed, 2 + usize::try_from(seed % 6).expect("small"));
        let mut faults = Seeded(seed ^ 0xfau64);
        world.run_for(3 * BEAT);
        for _ in 0..20 {
            let node = usize::try_from(faults.below(world.nodes.len() as u64)).expect("small");
            match faults.below(7) {
                0 if world.nodes[node].farm.is_some() => world.crash(node),
                1 if world.nodes[node].farm.is_none() => world.boot(node, true),
                2 if world.nodes[node].farm.is_none() => world.boot(node, false),
                3 => world.cut(node, true),
                4 => world.cut(node, false),
                5 => {
                    let up = !world.broker_up;
                    world.broker(up);
                }
                _ => world.give(node, Event::Ask { id: world.t, ask: Ask::Rotate }),
            }
            world.run_for(faults.below(40_000));
        }
        if !world.broker_up {
            world.broker(true);
        }
        for node in 0..world.nodes.len() {
            world.cut(node, false);
            if world.nodes[node].farm.is_none() {
                world.boot(node, true);
            }
        }
        // A link, a lease, and then three beats.
        world.run_for(500 + BEAT + 3 * BEAT);
        world.assert_one_farm(&format!("seed {seed}"));
    }
}

/// The floor and the session floor that a node holds.
fn floors(world: &World, node: usize) -> (u64, u64) {
    let ring = world.nodes[node].farm.as_ref().expect("it runs").held().ring();
    (ring.floor(), ring.sessions_from())
}

fn revoked(world: &World, node: usize, id: u64) -> (u64, u64) {
    let reply = world.nodes[node].replies.iter().find(|(asked, _)| *asked == id);
    let Some((_, Reply::Revoked { floor, sessions_from })) = reply else { panic!("{:?}", world.nodes[node].replies) };
    (*floor, *sessions_from)
}

#[test]
fn a_revocation_asked_for_anywhere_leaves_no_older_key_anywhere_and_happens_once() {
    for seed in 0..30 {
        let mut world = World::new(seed, 4);
        world.run_for(3 * BEAT);
        let old = world.generations(0);
        let asker = usize::try_from(seed % 4).expect("small");
        world.crash(3 - asker);
        world.give(asker, Event::Ask { id: 9, ask: Ask::Revoke { flush_sessions: seed % 2 == 0 } });
        // Longer than it takes to ask again: the answer may come late, and a second try is no second request.
        world.run_for(1_500);
        let (floor, sessions_from) = revoked(&world, asker, 9);
        assert!(floor > old[0], "seed {seed}: {floor} {old:?}");
        assert_eq!(sessions_from > 0, seed % 2 == 0, "seed {seed}");
        // It was away, comes back with the ring that it saved, and drops the older keys on the first announcement.
        world.boot(3 - asker, true);
        world.run_for(3 * BEAT);
        world.assert_one_farm(&format!("seed {seed}"));
        for node in 0..4 {
            assert_eq!(floors(&world, node), (floor, sessions_from), "seed {seed}: node{node}");
            assert!(world.generations(node).iter().all(|generation| *generation >= floor), "seed {seed}: node{node}");
        }
    }
}

#[test]
fn a_revocation_request_that_is_replayed_does_nothing() {
    let mut world = World::new(5, 3);
    world.run_for(3 * BEAT);
    let leader = world.leaders()[0];
    let asker = (leader + 1) % 3;
    let known = world.generations(asker)[0];
    let request = |id, highest_generation| {
        let revoke = proto::request::Kind::Revoke(proto::Revoke { flush_sessions: true });
        let inbox = Names::new("sim", "pod").inbox("node", "x");
        Kind::Request(proto::Request { id, inbox, highest_generation, kind: Some(revoke) })
    };
    let replay = |world: &mut World, to: usize, kind: Kind| {
        let payload = proto::Payload {
            node: "asker".into(),
            boot_id: vec![9; 16],
            sent_at: world.now(to).wall,
            kind: Some(kind),
        };
        world.give(to, Event::Message { payload: Box::new(payload), via: Via::Lease });
        world.run_for(100);
    };
    replay(&mut world, leader, request(1, known));
    let first = floors(&world, leader);
    assert!(first.0 > known);
    // The same one again, as a lost answer makes the asker send it; and as anybody may who recorded it, at a new leader too.
    replay(&mut world, leader, request(1, known));
    world.crash(leader);
    world.run_for(3 * BEAT);
    let next = world.leaders()[0];
    replay(&mut world, next, request(1, known));
    assert_eq!(floors(&world, next), first);
}

#[test]
fn a_revocation_wins_after_a_partition_whatever_the_other_side_minted_before() {
    for seed in 0..30 {
        let mut world = World::new(seed, 4);
        world.run_for(3 * BEAT);
        let leader = world.leaders()[0];
        let away = (leader + 1) % 4;
        world.cut(away, true);
        // Long enough for the cut-off node to mint for itself, past the end of its last key.
        world.run_for(300_000);
        let minted = world.generations(away);
        assert!(minted[0] > world.generations(leader).last().copied().unwrap_or(0), "it has minted nothing");
        world.give(leader, Event::Ask { id: 1, ask: Ask::Revoke { flush_sessions: true } });
        let (floor, sessions_from) = revoked(&world, leader, 1);
        world.run_for(BEAT);
        assert_eq!(world.generations(away), minted, "nothing has reached it");
        world.cut(away, false);
        world.run_for(4 * BEAT);
        world.assert_one_farm(&format!("seed {seed}"));
        for node in 0..4 {
            assert_eq!(floors(&world, node), (floor, sessions_from), "seed {seed}: node{node}");
            assert!(world.generations(node).iter().all(|generation| !minted.contains(generation)), "seed {seed}");
        }
    }
}

#[test]
fn a_host_that_is_cut_off_revokes_alone_and_the_farm_follows_when_it_is_back() {
    for seed in 0..30 {
        let mut world = World::new(seed, 4);
        world.run_for(3 * BEAT);
        let leader = world.leaders()[0];
        let away = (leader + 1) % 4;
        world.cut(away, true);
        world.give(away, Event::Ask { id: 1, ask: Ask::Revoke { flush_sessions: true } });
        assert_eq!(world.nodes[away].replies[..], [(1, Reply::NoLeader)], "seed {seed}");
        world.give(away, Event::Ask { id: 2, ask: Ask::RevokeLocal { flush_sessions: true } });
        let (floor, sessions_from) = revoked(&world, away, 2);
        assert_eq!(world.generations(away), [floor]);
        world.run_for(BEAT);
        assert_eq!(floors(&world, leader), (0, 0));
        world.cut(away, false);
        world.run_for(4 * BEAT);
        world.assert_one_farm(&format!("seed {seed}"));
        assert_eq!(floors(&world, leader), (floor, sessions_from), "seed {seed}");
    }
}

#[test]
fn without_a_leader_no_key_seals_past_max_seal_age_and_the_node_goes_on_with_its_own() {
    let mut world = World::new(1, 3);
    world.run_for(3 * BEAT);
    let held = world.generations(0);
    world.broker(false);
    let max_seal_age = millis(world.keys.max_seal_age);
    // `give` asserts at every step that no key seals past its `seal_until`.
    world.run_for(2 * max_seal_age + 10_000);
    for node in 0..3 {
        let now = world.now(node);
        let active =
            world.nodes[node].farm.as_ref().and_then(|farm| farm.held().active(now)).expect("a key that seals");
        assert!(!held.contains(&active.generation), "node{node} still seals with a key of the farm");
        let alone = |note: &Note| matches!(note, Note::Minted { reason: "alone", .. });
        assert!(world.nodes[node].notes.iter().any(alone), "node{node}: {:?}", world.nodes[node].notes);
    }
    world.broker(true);
    world.run_for(4 * BEAT);
    world.assert_one_farm("after the outage");
}

#[test]
fn a_node_with_a_wrong_clock_is_shown_by_name_with_its_offset_and_sees_the_others() {
    let mut world = World::new(11, 4);
    world.run_for(3 * BEAT);
    let leader = world.leaders()[0];
    let wrong = (leader + 1) % 4;
    world.nodes[wrong].offset_ms = -3_600_000;
    world.run_for(6 * BEAT);
    world.give(leader, Event::Ask { id: 1, ask: Ask::Status });
    let Some((_, Reply::Members { members, .. })) = world.nodes[leader].replies.last() else { panic!("no table") };
    let shown = members.iter().find(|member| member.name == world.nodes[wrong].name).expect("it is in the table");
    assert!((-3_600_100..=-3_600_000).contains(&shown.clock_offset_ms), "{shown:?}");
    assert!(!shown.in_step && shown.secret_ids.is_empty());
    assert!(members.iter().filter(|member| member.name != shown.name).all(|member| member.clock_offset_ms.abs() < 100));
    let farm = world.nodes[wrong].farm.as_ref().expect("it runs");
    let seen: Vec<_> = farm.skewed_nodes().collect();
    assert_eq!(seen.iter().map(|(name, _)| *name).collect::<Vec<_>>(), [world.nodes[leader].name.as_str()]);
    assert!(seen[0].1 > 3_599_000, "{seen:?}");
    // Its clock is set right: nobody is shown any more.
    world.nodes[wrong].offset_ms = 0;
    world.run_for(6 * BEAT);
    world.assert_one_farm("after the clock was set");
    assert_eq!(world.nodes[wrong].farm.as_ref().expect("it runs").skewed_nodes().count(), 0);
}

#[test]
fn a_farm_in_step_sends_nothing_that_the_farm_secret_alone_opens() {
    for seed in 0..20 {
        let mut world = World::new(seed, 5);
        world.run_for(3 * BEAT);
        let epoch = world.epochs();
        world.open.clear();
        world.run_for(100 * BEAT);
        assert_eq!(world.open, [], "seed {seed}: joins of a farm that is in step");
        assert_eq!(world.epochs(), epoch, "seed {seed}");
    }
}

#[test]
fn every_leader_draws_an_epoch_key_and_a_change_makes_no_message_unreadable() {
    for seed in 0..50 {
        let mut world = World::new(seed, 4);
        world.run_for(3 * BEAT);
        let (leader, before) = (world.leaders()[0], world.epochs());
        world.unknown = 0;
        world.crash(leader);
        world.run_for(2 * BEAT);
        world.assert_one_farm(&format!("seed {seed}"));
        assert_ne!(world.epochs(), before, "seed {seed}: a new term in the old epoch");
        assert_eq!(world.unknown, 0, "seed {seed}: the new leader was a member, so all that it seals opens");
        // The restarted node is granted the key, as if it were new.
        world.boot(leader, true);
        world.run_for(2 * BEAT);
        world.assert_one_farm(&format!("seed {seed}, after the restart"));
    }
}

#[test]
fn a_leader_that_was_no_member_is_joined_at_once() {
    for seed in 0..50 {
        let mut world = World::new(seed, 4);
        world.run_for(3 * BEAT);
        let before = world.generations(0);
        // Every node but one goes, and that one may not see the new leader's election.
        for node in 1..4 {
            world.crash(node);
        }
        world.cut(0, true);
        for node in 1..4 {
            world.boot(node, false);
        }
        world.run_for(3 * BEAT);
        world.cut(0, false);
        world.run_for(500 + BEAT / 2);
        world.assert_one_farm(&format!("seed {seed}"));
        let held = world.generations(1);
        assert!(before.iter().all(|generation| held.contains(generation)), "seed {seed}: {before:?} in {held:?}");
    }
}

#[test]
fn an_epoch_key_lasts_a_day() {
    let mut world = World::new(4, 2);
    world.run_for(3 * BEAT);
    let leader = world.leaders()[0];
    let first = world.epochs();
    world.run_for(24 * 3_600_000 - 4 * BEAT);
    assert_eq!(world.epochs(), first);
    world.unknown = 0;
    world.run_for(3 * BEAT);
    assert_eq!(world.leaders(), [leader]);
    world.assert_one_farm("after a day");
    assert_ne!(world.epochs(), first);
    assert_eq!(world.unknown, 0, "it was announced in the epoch before");
    world.run_for(11 * 60_000);
    let held = world.nodes[leader].farm.as_ref().expect("it runs").epochs().ids().count();
    assert_eq!(held, 1, "the first key is erased");
}

#[test]
fn a_node_that_starts_while_nobody_can_lead_is_granted_the_key_too() {
    for seed in 0..20 {
        let mut world = World::new(seed, 4);
        world.run_for(3 * BEAT);
        let leader = world.leaders()[0];
        let late = (leader + 1) % 4;
        world.lease_stuck = true;
        world.crash(leader);
        world.crash(late);
        world.run_for(13 * BEAT);
        world.boot(late, false);
        world.run_for(15 * BEAT);
        assert_eq!(world.leaders(), [] as [usize; 0]);
        assert_eq!(world.rings().len(), 1, "seed {seed}");
        assert_eq!(world.epochs().len(), 1, "seed {seed}");
    }
}

#[test]
fn envelopes_that_only_claim_an_epoch_make_a_node_ask_once_a_beat() {
    let mut world = World::new(9, 3);
    world.run_for(3 * BEAT);
    let follower = (world.leaders()[0] + 1) % 3;
    let epoch = world.epochs();
    world.open.clear();
    for _ in 0..500 {
        world.give(follower, Event::UnknownEpoch { via: Via::Inbox });
        world.run_for(20);
    }
    let asked = world.open.iter().filter(|(_, node)| *node == follower).count();
    assert!((4..=6).contains(&asked), "asked {asked} times in five beats");
    world.assert_one_farm("after the flood");
    assert_eq!(world.epochs(), epoch);
}

#[test]
fn two_leaders_of_a_healed_farm_open_each_others_rings_and_end_in_one_epoch() {
    for seed in 0..30 {
        let mut world = World::new(seed, 4);
        world.run_for(3 * BEAT);
        let one = world.leaders()[0];
        let other = (one + 1) % 4;
        // The second one was away, so it holds nothing of the first one's epoch, and leads as if on its own side.
        world.crash(other);
        world.boot(other, false);
        world.lease = Some(other);
        world.nodes[other].inbox = Some(Names::new("sim", "pod").inbox(&world.nodes[other].name, "split"));
        let inbox = world.nodes[other].inbox.clone().expect("just set");
        world.give(other, Event::Connected { inbox });
        world.give(other, Event::LeaseGranted);
        assert_eq!(world.leaders().len(), 2, "seed {seed}");
        for (id, leader) in [(1, one), (2, other)] {
            world.give(leader, Event::Ask { id, ask: Ask::Rotate });
        }
        let minted: Vec<u64> =
            [one, other].iter().map(|leader| *world.generations(*leader).last().expect("it minted")).collect();
        world.run_for(BEAT);
        let held = world.generations(one);
        assert!(minted.iter().all(|key| held.contains(key)), "seed {seed}: {minted:?} in {held:?} while both lead");
        world.run_for(5 * BEAT);
        world.assert_one_farm(&format!("seed {seed}"));
    }
}
