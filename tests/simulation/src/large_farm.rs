//! A farm of thousands: the real state machines around a broker that does nothing but route. No faults, no sealing; what
//! is counted is what the leader does, and what goes through the broker.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message;
use resumed::internals::clock::millis;
use resumed::internals::envelope::EpochId;
use resumed::internals::farm::{Action, Ask, Event, Farm, FarmSettings, Note, Reply};
use resumed::internals::keys::HeldRing;
use resumed::internals::proto;
use resumed::internals::proto::payload::Kind;
use resumed::internals::routes::{Names, Published, Route, Via};
use resumed::{KeySettings, Now};

use super::random::Seeded;

/// What an envelope adds to its payload, in bytes: version, secret id, epoch, salt, sequence, tag, and their fields.
const ENVELOPE_BYTES: u64 = 73;
const START: u64 = 1_700_000_000_000;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// Between a node and the broker, milliseconds.
const HOP_MS: (u64, u64) = (1, 5);
/// All nodes start within so long, milliseconds.
const START_WITHIN_MS: u64 = 10_000;

/// The beat of a farm of `nodes`, seconds: what it is set to, but 10 ms a node at least, and no longer than a minute.
pub fn beat(nodes: usize, report_every: Duration) -> f64 {
    report_every.as_secs_f64().max(nodes as f64 * 0.01).min(60.0_f64.max(report_every.as_secs_f64()))
}

/// What a farm costs while nothing happens, and what it cost so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted {
    /// Reports and announcements to all that were published, and their bytes.
    pub reports: (u64, u64),
    pub announcements: (u64, u64),
    /// Messages that the leader published, and their bytes.
    pub leader_sent: (u64, u64),
    /// Messages that reached the leader, and their bytes.
    pub leader_received: (u64, u64),
    /// Deliveries of the broker to all nodes, and their bytes.
    pub delivered: (u64, u64),
    /// Events that the leader's machine took in, and the time that it took for that.
    pub leader_events: u64,
    pub leader_busy: Duration,
}

fn add(count: &mut (u64, u64), bytes: u64) {
    count.0 += 1;
    count.1 += bytes;
}

struct Sent {
    payload: proto::Payload,
    epoch: Option<EpochId>,
    bytes: u64,
}

enum Happening {
    Wake,
    Event(Event),
    Message(Via, Arc<Sent>),
}

struct Node {
    farm: Farm,
    wake: u64,
    runs: bool,
    notes: Vec<Note>,
    answer: Option<Reply>,
}

pub struct LargeFarm {
    /// Milliseconds since the start.
    pub t: u64,
    pub counted: Counted,
    nodes: Vec<Node>,
    by_inbox: HashMap<String, usize>,
    lease: Option<usize>,
    names: Names,
    random: Seeded,
    agenda: BinaryHeap<Reverse<(u64, u64, usize)>>,
    happenings: HashMap<u64, Happening>,
    sequence: u64,
}

impl LargeFarm {
    /// `nodes` that start within some seconds, with the daemon's defaults but for the pace.
    pub fn start(nodes: usize, report_every: Duration) -> Self {
        let names = Names::new("large", "default");
        let mut farm = Self {
            t: 0,
            counted: Counted::default(),
            nodes: Vec::with_capacity(nodes),
            by_inbox: HashMap::new(),
            lease: None,
            names,
            random: Seeded::new(1),
            agenda: BinaryHeap::new(),
            happenings: HashMap::new(),
            sequence: 0,
        };
        for index in 0..nodes {
            let name = format!("proxy{index:05}.example.net");
            let inbox = farm.names.inbox(&name, "0123456789abcdef");
            let mut boot_id = [0; 16];
            boot_id[..8].copy_from_slice(&(index as u64).to_be_bytes());
            let keys = KeySettings {
                interval: Duration::from_secs(8 * 60 * 60),
                keep: 3,
                settle: Duration::from_secs(2),
                max_seal_age: Duration::from_secs(24 * 60 * 60),
                max_clock_offset: Duration::from_secs(300),
            };
            let settings = FarmSettings {
                node: name,
                boot_id,
                pod: "default".into(),
                version: "0.1.0".into(),
                names: farm.names.clone(),
                keys,
                report_every,
                start_alone_after: Duration::from_secs(60),
                can_lead: true,
            };
            let mut random = Seeded::new(index as u64 + 2);
            let machine =
                Farm::new(settings, HeldRing::new(keys), Box::new(move |bytes| random.fill(bytes)), farm.now());
            farm.by_inbox.insert(inbox.clone(), index);
            farm.nodes.push(Node { farm: machine, wake: 0, runs: true, notes: Vec::new(), answer: None });
            let at = farm.random.below(START_WITHIN_MS);
            farm.plan(at, index, Happening::Event(Event::Connected { inbox }));
        }
        farm
    }

    /// Lets time pass until `wanted`, or for `at_most` milliseconds; whether it came to that.
    pub fn run_until(&mut self, at_most: u64, mut wanted: impl FnMut(&Self) -> bool) -> bool {
        let until = self.t + at_most;
        while !wanted(self) {
            let Some(Reverse((at, ..))) = self.agenda.peek().filter(|next| next.0.0 <= until).copied() else {
                self.t = until;
                return wanted(self);
            };
            // All of one millisecond, so that `wanted` is not asked for every event.
            self.t = at;
            while let Some(Reverse((next, sequence, node))) = self.agenda.peek().copied()
                && next == at
            {
                self.agenda.pop();
                let happening = self.happenings.remove(&sequence).expect("it was planned");
                self.happen(node, happening);
            }
        }
        true
    }

    /// The node that leads.
    pub fn leader(&self) -> Option<usize> {
        self.lease.filter(|index| self.nodes[*index].farm.is_leader())
    }

    /// Whether a node leads, and counts as many as run, all in step.
    pub fn is_whole(&self) -> bool {
        let running = self.nodes.iter().filter(|node| node.runs).count();
        let counts = |leader: usize| self.nodes[leader].farm.member_counts();
        self.leader().is_some_and(|leader| counts(leader) == (running as u32, running as u32))
    }

    /// How many of the running nodes hold a key of that generation, or of a later one.
    pub fn holding(&self, generation: u64) -> usize {
        let holds = |node: &&Node| node.runs && node.farm.held().ring().highest_generation() >= generation;
        self.nodes.iter().filter(holds).count()
    }

    /// How many nodes have told the leader that they hold a key of that generation, or of a later one.
    pub fn confirmed(&mut self, generation: u64) -> usize {
        let leader = self.leader().expect("somebody leads");
        let Reply::Members { members, .. } = self.ask(leader, Ask::Status) else { panic!("no table") };
        members.iter().filter(|member| member.highest_generation >= generation).count()
    }

    /// How many of the running nodes follow `leader`, itself included.
    pub fn following(&self, leader: usize) -> usize {
        let name = self.nodes[leader].farm.own_member().name;
        let follows = |node: &&Node| node.runs && node.farm.leader(self.now()) == Some(&name);
        self.nodes.iter().filter(follows).count()
    }

    /// Asks `node` something, and waits for the answer.
    pub fn ask(&mut self, node: usize, ask: Ask) -> Reply {
        self.nodes[node].answer = None;
        self.give(node, Event::Ask { id: 1, ask, user: String::new() });
        assert!(self.run_until(60_000, |farm| farm.nodes[node].answer.is_some()), "no answer to {ask:?}");
        self.nodes[node].answer.take().expect("just seen")
    }

    /// The leader's host is gone from one moment to the next, and the broker notices.
    pub fn lose_leader(&mut self) {
        let leader = self.lease.take().expect("somebody leads");
        self.nodes[leader].runs = false;
    }

    fn now(&self) -> Now {
        Now { wall: START + self.t, mono: DAY_MS + self.t }
    }

    fn plan(&mut self, at: u64, node: usize, happening: Happening) {
        self.sequence += 1;
        self.happenings.insert(self.sequence, happening);
        self.agenda.push(Reverse((at, self.sequence, node)));
    }

    fn plan_soon(&mut self, node: usize, happening: Happening) {
        let at = self.t + self.random.between(HOP_MS.0, HOP_MS.1);
        self.plan(at, node, happening);
    }

    fn happen(&mut self, index: usize, happening: Happening) {
        let node = &self.nodes[index];
        if !node.runs {
            return;
        }
        match happening {
            Happening::Wake if node.wake > self.t => {}
            Happening::Wake => self.give(index, Event::Wake),
            Happening::Event(event) => self.give(index, event),
            Happening::Message(via, sent) => {
                add(&mut self.counted.delivered, sent.bytes);
                if self.lease == Some(index) {
                    add(&mut self.counted.leader_received, sent.bytes);
                }
                let readable = sent.epoch.is_none_or(|epoch| node.farm.epochs().get(epoch).is_some());
                let event = if readable {
                    Event::Message { payload: Box::new(sent.payload.clone()), via }
                } else {
                    Event::UnknownEpoch { via }
                };
                self.give(index, event);
            }
        }
    }

    fn give(&mut self, index: usize, event: Event) {
        let now = self.now();
        let began = Instant::now();
        let actions = self.nodes[index].farm.handle(now, event);
        if self.lease == Some(index) {
            self.counted.leader_events += 1;
            self.counted.leader_busy += began.elapsed();
        }
        let node = &mut self.nodes[index];
        let wake = self.t + node.farm.next_wake(now).saturating_sub(now.mono).max(1);
        // What is planned already comes first, and finds out that it is not due.
        if wake != node.wake {
            node.wake = wake;
            self.plan(wake, index, Happening::Wake);
        }
        for action in actions {
            match action {
                Action::Send { to, kind } => self.send(index, &to, kind),
                Action::TryLease(seat) => {
                    let holder = *self.lease.get_or_insert(index);
                    let answer = if holder == index { Event::LeaseGranted(seat) } else { Event::LeaseTaken(seat) };
                    self.plan_soon(index, Happening::Event(answer));
                }
                Action::ReleaseLease(_) => self.lease = self.lease.filter(|holder| *holder != index),
                Action::Reply { reply, .. } => self.nodes[index].answer = Some(reply),
                Action::CheckBroker => self.plan_soon(index, Happening::Event(Event::Checked(true))),
                Action::RenewLink | Action::MoveLink { .. } => panic!(
                    "node {index} gives up its link although nothing is wrong, at {} ms, under node {:?}: {:?}",
                    self.t, self.lease, self.nodes[index].notes
                ),
                Action::Note(note) => self.nodes[index].notes.push(note),
                Action::RingChanged | Action::EpochsChanged => {}
            }
        }
    }

    fn send(&mut self, from: usize, to: &Route, kind: Kind) {
        let now = self.now();
        let member = self.nodes[from].farm.own_member();
        let epoch = self.nodes[from].farm.epochs().sealing(&kind, now).map(resumed::internals::envelope::EpochKey::id);
        let payload =
            proto::Payload { node: member.name, boot_id: member.boot_id, sent_at: now.wall, kind: Some(kind) };
        let bytes = payload.encoded_len() as u64 + ENVELOPE_BYTES;
        match (to, &payload.kind) {
            (Route::Leader(_), Some(Kind::Report(_))) => add(&mut self.counted.reports, bytes),
            (Route::Keys, Some(Kind::Announcement(_))) => add(&mut self.counted.announcements, bytes),
            _ => {}
        }
        let sent = Arc::new(Sent { payload, epoch, bytes });
        if self.lease == Some(from) {
            add(&mut self.counted.leader_sent, bytes);
        }
        match to {
            Route::Keys => {
                for index in 0..self.nodes.len() {
                    self.plan_soon(index, Happening::Message(Via::Inbox, Arc::clone(&sent)));
                }
            }
            Route::Leader(seat) => {
                let (seat, leader) = (*seat, self.lease);
                let answer = if leader.is_some() { Published::Routed } else { Published::Unroutable };
                self.plan_soon(from, Happening::Event(Event::Told { seat, answer }));
                if let Some(leader) = leader {
                    self.plan_soon(leader, Happening::Message(Via::Lease, sent));
                }
            }
            Route::Inbox(inbox) => {
                if let Some(index) = self.by_inbox.get(inbox) {
                    self.plan_soon(*index, Happening::Message(Via::Inbox, sent));
                }
            }
        }
    }
}

/// What a large farm did.
#[derive(Debug)]
pub struct LargeFarmFigures {
    /// From the first node's start until all are in step, in the farm's own seconds.
    pub join_seconds: f64,
    /// What the leader's machine computed for that.
    pub join_busy: Duration,
    /// The beat that the leader announces.
    pub beat_seconds: f64,
    /// A second of a farm in which nothing happens.
    pub leader_sent_per_second: (f64, f64),
    pub leader_received_per_second: (f64, f64),
    pub delivered_per_second: (f64, f64),
    pub leader_busy_share: f64,
    /// The mean size of a report and of an announcement.
    pub report_bytes: f64,
    pub announcement_bytes: f64,
    /// From a request to rotate until every node holds the key, and until the leader knows.
    pub rotate_seconds: f64,
    pub confirmed_seconds: f64,
    /// From the leader's end until another leads, and until all follow it.
    pub failover_seconds: f64,
    pub followed_seconds: f64,
    /// Members in the table that a follower was sent.
    pub status_members: usize,
}

/// Starts a farm, and watches it join, rest, rotate and lose its leader.
pub fn measure(nodes: usize, report_every: Duration) -> LargeFarmFigures {
    let minutes = |minutes: u64| minutes * 60_000;
    let seconds = |ms: u64| ms as f64 / 1000.0;
    let mut farm = LargeFarm::start(nodes, report_every);
    assert!(farm.run_until(minutes(10), LargeFarm::is_whole), "{nodes} nodes are not whole after ten minutes");
    let (join_seconds, join_busy) = (seconds(farm.t), farm.counted.leader_busy);

    // Past what joining leaves behind.
    let beat_ms = millis(Duration::from_secs_f64(beat(nodes, report_every)));
    farm.run_until(3 * beat_ms, |_| false);
    let (before, from) = (farm.counted, farm.t);
    farm.run_until(20 * beat_ms, |_| false);
    let (after, span) = (farm.counted, seconds(farm.t - from));
    let per_second = |after: (u64, u64), before: (u64, u64)| {
        ((after.0 - before.0) as f64 / span, (after.1 - before.1) as f64 / span)
    };
    let leader_sent_per_second = per_second(after.leader_sent, before.leader_sent);
    let leader_received_per_second = per_second(after.leader_received, before.leader_received);
    let delivered_per_second = per_second(after.delivered, before.delivered);
    let leader_busy_share = (after.leader_busy - before.leader_busy).as_secs_f64() / span;
    let mean = |after: (u64, u64), before: (u64, u64)| (after.1 - before.1) as f64 / (after.0 - before.0) as f64;
    let report_bytes = mean(after.reports, before.reports);
    let announcement_bytes = mean(after.announcements, before.announcements);
    let Reply::Members { members, .. } = farm.ask(nodes / 2, Ask::Status) else { panic!("no table") };

    let asked_at = farm.t;
    let Reply::Rotating { generation, .. } = farm.ask(nodes / 2, Ask::Rotate) else { panic!("no rotation") };
    assert!(farm.run_until(minutes(5), |farm| farm.holding(generation) == nodes), "a key does not reach all");
    let rotate_seconds = seconds(farm.t - asked_at);
    while farm.confirmed(generation) < nodes {
        assert!(farm.t - asked_at < minutes(5), "the leader does not hear that all hold the key");
        farm.run_until(100, |_| false);
    }
    let confirmed_seconds = seconds(farm.t - asked_at);

    let lost_at = farm.t;
    farm.lose_leader();
    assert!(farm.run_until(minutes(10), |farm| farm.leader().is_some()), "nobody leads");
    let failover_seconds = seconds(farm.t - lost_at);
    let leader = farm.leader().expect("just seen");
    assert!(farm.run_until(minutes(10), |farm| farm.following(leader) == nodes - 1), "not all follow");
    let followed_seconds = seconds(farm.t - lost_at);
    LargeFarmFigures {
        join_seconds,
        join_busy,
        beat_seconds: seconds(beat_ms),
        leader_sent_per_second,
        leader_received_per_second,
        delivered_per_second,
        leader_busy_share,
        report_bytes,
        announcement_bytes,
        rotate_seconds,
        confirmed_seconds,
        failover_seconds,
        followed_seconds,
        status_members: members.len(),
    }
}
