//! Hosts around a broker: what the daemon's driver and key plane do, with time and network decided by a seed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use resumed::internals::envelope::{EpochId, KeyAgreements, Opener, Refusal};
use resumed::internals::farm::{Farm, FarmSettings, Note, Reply};
use resumed::internals::keys::{HeldRing, Ring};
use resumed::internals::node::{Effect, Identity, Input, NodeCore, Saving, Sealing, Stays, Waiting};
use resumed::internals::proto;
use resumed::internals::proto::payload::Kind;
use resumed::internals::routes::{Names, Published, Route, Seat, Via};
use resumed::{BusError, KeySettings, Now};
use tokio::sync::watch;

use super::attacker::Attacker;
use super::broker::{Cluster, Downstream, Envelope, LANES, LeaseQueue, Link, LinkId, Origin, Sealed, Store, Upstream};
use super::host::{Host, Settings};
use super::invariants::Ledger;
use super::random::Seeded;
use super::sites::Federation;

pub use super::host::START;

pub const FARM: &str = "sim";
/// Deliveries that are on their way to a node that stands still; more wait at the broker.
const PREFETCH: usize = 16;
/// What waits at the broker: how many, and for how long.
const QUEUE_LENGTH: usize = 4_096;
const QUEUE_TTL_MS: u64 = 30_000;
/// What a broker may take to answer a declaration (`bus::rabbitmq::leases`).
const ANSWER_WITHIN_MS: u64 = 5_000;
/// How often it is looked whether what waits for a broker that was cut off can go on.
const STALLED_MS: u64 = 100;
/// Lines of a trace that are kept.
const TRACE: usize = 600;

/// How a farm is set up.
#[derive(Clone, Debug)]
pub struct Setup {
    pub hosts: Vec<Settings>,
    /// 1, or more of which one may be split off.
    pub brokers: usize,
    /// The two brokers are no cluster but sites: see [`super::sites`].
    pub sites: bool,
    /// What the brokers keep names in.
    pub store: Store,
    /// The bug of that name, see [`Cluster`].
    pub deletes_by_name: bool,
    /// The least and the most milliseconds between a node and its broker.
    pub latency: (u64, u64),
    /// Of 100 envelopes, so many are abused by whoever has the broker and no secret.
    pub attacks: u64,
    /// Clocks less than this apart count as right, for the invariants that need it.
    pub clock_bound: u64,
}

impl Setup {
    /// One broker, like nodes, short delays, a beat of two seconds, a key a minute.
    pub fn plain(nodes: usize) -> Self {
        let settings = Settings {
            keys: KeySettings {
                interval: Duration::from_secs(60),
                keep: 3,
                settle: Duration::from_secs(2),
                max_seal_age: Duration::from_secs(180),
                max_clock_offset: Duration::from_secs(300),
            },
            report_every: Duration::from_secs(2),
            start_alone_after: Duration::from_secs(10),
            can_lead: true,
        };
        Self {
            hosts: vec![settings; nodes],
            brokers: 1,
            sites: false,
            store: Store::Mnesia,
            deletes_by_name: false,
            latency: (1, 10),
            attacks: 0,
            clock_bound: 2_000,
        }
    }
}

pub enum Happening {
    Wake(usize),
    /// The invariants are due a look at this host: something changes by time alone.
    Look(usize),
    /// The node's attempt of that number to connect.
    Connect(usize, u32),
    Arrive(LinkId, Upstream),
    Deliver(LinkId, Downstream),
    /// Two heartbeats are missing on a link: the node's side, or the broker's, gives it up if it is still the same cut.
    Heartbeats {
        link: LinkId,
        cut: Option<u32>,
        at_node: bool,
    },
    /// A session batch that is sealed under an epoch key that the node lacks.
    UnknownEpoch(usize),
    /// What was published at the other site comes to this broker.
    HandOn {
        since: u64,
        to: usize,
        envelope: Envelope,
    },
    /// Somebody without the farm secret publishes.
    Inject {
        broker: usize,
        envelope: Envelope,
    },
}

/// An invariant that did not hold.
#[derive(Clone, Debug)]
pub struct Violation {
    pub what: String,
    pub trace: Vec<String>,
}

pub struct World {
    /// True time, milliseconds since the start.
    pub t: u64,
    pub random: Seeded,
    pub setup: Setup,
    pub names: Names,
    pub hosts: Vec<Host>,
    pub links: Vec<Link>,
    pub cluster: Cluster,
    pub federation: Federation,
    pub ledger: Ledger,
    pub(super) attacker: Attacker,
    pub(super) violation: Option<String>,
    /// By time, then looks after everything else, then in order.
    agenda: BTreeMap<(u64, bool, u64), Happening>,
    sequence: u64,
    envelopes: u64,
    /// Envelopes sealed under the farm secret alone: when, and by which host.
    pub open: Vec<(u64, usize)>,
    /// How often a node met an envelope of an epoch whose key it lacked.
    pub unknown_epochs: u64,
    /// When a host last got other farm secrets, or began to use them.
    pub secrets_moved_at: u64,
    /// How often a node read its farm secrets again, and met a message under one that it had not.
    pub reloads: u64,
    pub unknown_secrets: u64,
    /// How often a ring could not be saved.
    pub saves_failed: u64,
    trace: Option<VecDeque<String>>,
}

impl World {
    /// A farm that has just been switched on.
    pub fn new(seed: u64, setup: Setup, trace: bool) -> Self {
        let mut world = Self {
            t: 0,
            random: Seeded::new(seed),
            names: Names::new(FARM, "pod"),
            hosts: Vec::new(),
            links: Vec::new(),
            cluster: Cluster {
                up: vec![true; setup.brokers],
                store: setup.store,
                deletes_by_name: setup.deletes_by_name,
                split: setup.sites.then_some(1),
                ..Cluster::default()
            },
            federation: Federation::default(),
            ledger: Ledger::new(&setup),
            attacker: Attacker::new(setup.attacks),
            violation: None,
            agenda: BTreeMap::new(),
            sequence: 0,
            envelopes: 0,
            open: Vec::new(),
            unknown_epochs: 0,
            secrets_moved_at: 0,
            reloads: 0,
            unknown_secrets: 0,
            saves_failed: 0,
            trace: trace.then(VecDeque::new),
            setup,
        };
        for index in 0..world.setup.hosts.len() {
            let home = index % world.setup.brokers;
            world.hosts.push(Host::new(index, world.setup.hosts[index], home));
        }
        for index in 0..world.hosts.len() {
            world.boot(index, false);
        }
        world
    }

    pub fn now(&self, host: usize) -> Now {
        self.hosts[host].clock.at(self.t)
    }

    /// Writes a line of the trace, if one is kept.
    pub fn say(&mut self, line: impl FnOnce(&Self) -> String) {
        if self.trace.is_none() {
            return;
        }
        let line = format!("{:>9.3} s  {}", self.t as f64 / 1000.0, line(self));
        let trace = self.trace.as_mut().expect("it is kept");
        if trace.len() == TRACE {
            trace.pop_front();
        }
        trace.push_back(line);
    }

    /// Notes that an invariant does not hold. The first one counts, and ends the run.
    pub fn violated(&mut self, what: impl FnOnce() -> String) {
        if self.violation.is_none() {
            let what = what();
            self.say(|_| format!("VIOLATED: {what}"));
            self.violation = Some(what);
        }
    }

    pub fn verdict(&self) -> Result<(), Violation> {
        let Some(what) = self.violation.clone() else { return Ok(()) };
        Err(Violation { what, trace: self.story() })
    }

    /// What happened lately, if a trace is kept.
    pub fn story(&self) -> Vec<String> {
        self.trace.iter().flatten().cloned().collect()
    }

    // Time.

    /// Lets `span` milliseconds pass.
    pub fn advance(&mut self, span: u64) -> Result<(), Violation> {
        let until = self.t + span;
        while self.violation.is_none() && self.step(until) {}
        self.t = until;
        self.verdict()
    }

    /// As [`World::advance`], for tests that want no violation.
    pub fn run_for(&mut self, span: u64) {
        if let Err(violation) = self.advance(span) {
            panic!("{}", violation.what);
        }
    }

    /// Does what is next, if that is due by `until`. Whether it was.
    pub fn step(&mut self, until: u64) -> bool {
        let Some(entry) = self.agenda.first_entry().filter(|entry| entry.key().0 <= until) else { return false };
        let ((at, ..), happening) = entry.remove_entry();
        self.t = self.t.max(at);
        match happening {
            Happening::Wake(host) => {
                if self.hosts[host].wake == at && self.hosts[host].stopped.is_none() {
                    self.give(host, Input::Wake);
                }
            }
            Happening::Look(host) => self.look(host),
            Happening::Connect(host, attempt) => self.connect(host, attempt),
            Happening::Arrive(link, what) => self.arrive(link, what),
            Happening::Deliver(link, what) => self.deliver(link, what),
            Happening::Heartbeats { link, cut, at_node } => self.heartbeats_missing(link, cut, at_node),
            Happening::UnknownEpoch(host) if self.hosts[host].stopped.is_none() => self.give(host, Input::UnknownEpoch),
            Happening::UnknownEpoch(_) => {}
            Happening::HandOn { since, to, envelope } => self.handed_on(since, to, envelope),
            Happening::Inject { broker, envelope } => {
                if self.cluster.up[broker] && !self.cluster.blocked {
                    self.route(broker, &envelope);
                }
            }
        }
        self.reassess();
        true
    }

    pub fn plan(&mut self, at: u64, happening: Happening) {
        self.sequence += 1;
        let look = matches!(happening, Happening::Look(_));
        self.agenda.insert((at, look, self.sequence), happening);
    }

    /// An id for an operator's question.
    pub fn sequence_of_asks(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    pub fn hop(&mut self) -> u64 {
        let (least, most) = self.setup.latency;
        self.random.between(least, most)
    }

    // The daemon.

    /// Starts a node's daemon, with the ring that it saved or with none.
    pub fn boot(&mut self, index: usize, with_ring: bool) {
        let host = &self.hosts[index];
        let held = if with_ring { host.saved_ring(self.now(index)) } else { HeldRing::new(host.settings.keys) };
        self.boot_with(index, held);
    }

    pub fn boot_with(&mut self, index: usize, held: HeldRing) {
        let now = self.now(index);
        self.say(|world| format!("{} starts with {} keys", world.hosts[index].name, held.ring().keys().len()));
        let drawn = self.random.draw();
        let (mut random, mut jitter) = (Seeded::new(drawn), Seeded::new(!drawn));
        let names = self.names.clone();
        let host = &mut self.hosts[index];
        if host.secrets_loaded != host.secrets_on_disk {
            self.secrets_moved_at = self.t;
        }
        host.load_secrets();
        let secrets = Arc::clone(&host.secrets.borrow());
        host.boots += 1;
        let settings = FarmSettings {
            node: host.name.clone(),
            boot_id: boot_id(index, host.boots),
            pod: "pod".into(),
            version: "0".into(),
            names,
            keys: host.settings.keys,
            report_every: host.settings.report_every,
            start_alone_after: host.settings.start_alone_after,
            can_lead: host.settings.can_lead,
        };
        let opener = Opener::new(Arc::clone(&secrets), FARM, host.settings.keys.max_clock_offset);
        host.opened.clear();
        // Every third host is in FIPS mode.
        let has = KeyAgreements { x25519: index % 3 != 1, p256: true };
        let farm = Farm::new(settings, held, Box::new(move |bytes| random.fill(bytes)), now).with_agreements(has);
        host.epochs = watch::Sender::new(Arc::new(farm.epochs().clone()));
        let identity = Identity { farm: FARM.into(), node: host.name.clone(), boot_id: boot_id(index, host.boots) };
        let jitter = Box::new(move |bytes: &mut [u8]| jitter.fill(bytes));
        let mut core = NodeCore::new(farm, (opener, &secrets), identity, Saving::On, jitter);
        let effects = core.start(now);
        host.core = Some(core);
        host.stopped = None;
        self.booted(index);
        for effect in effects {
            self.perform(index, effect);
        }
        self.tell_of_host(index);
    }

    /// The driver's turn: the core takes in what happened, and its effects are performed.
    pub fn give(&mut self, index: usize, input: Input) {
        self.turn(index, input, |_| None);
    }

    /// The same. `came` says what a message brings that was opened, from the effects.
    fn turn(
        &mut self,
        index: usize,
        input: Input,
        came: impl FnOnce(&[Effect]) -> Option<Arc<Sealed>>,
    ) -> Option<Refusal> {
        let now = self.now(index);
        let blocked = self.cluster.blocked && self.hosts[index].link.is_some();
        let host = &mut self.hosts[index];
        let core = host.core.as_mut()?;
        core.set_blocked(blocked);
        let led = core.farm().is_leader();
        let effects = core.step(now, input);
        let wake = self.t + core.next_wake(now).saturating_sub(now.mono).max(1);
        host.wake = wake;
        if led != host.is_leader() {
            self.ledger.unsettled = true;
        }
        self.plan(wake, Happening::Wake(index));
        let came = came(&effects);
        let announced = came.as_ref().is_some_and(|sealed| {
            matches!(sealed.kind, Kind::Announcement(_)) && sealed.boot_id != boot_id(index, self.hosts[index].boots)
        });
        let ring = came.map(|sealed| ring_in(&sealed.kind, now, &self.hosts[index].settings.keys)).unwrap_or_default();
        self.check_ring(index, &ring, announced, &effects);
        self.perform_all(index, effects)
    }

    /// Performs what a turn came to, and looks at the host once that is done but for a move to another broker. Why a message
    /// did not open, if one did not.
    fn perform_all(&mut self, index: usize, effects: Vec<Effect>) -> Option<Refusal> {
        let ring_changed = effects.iter().any(|effect| matches!(effect, Effect::Keys { .. }));
        let (moves, others): (Vec<_>, Vec<_>) =
            effects.into_iter().partition(|effect| matches!(effect, Effect::MoveLink { .. }));
        let mut refused = None;
        for effect in others {
            match effect {
                Effect::Refused { refusal, .. } => refused = Some(refusal),
                effect => self.perform(index, effect),
            }
        }
        self.check_saved(index);
        self.check_host(index);
        if ring_changed {
            self.look(index);
        }
        for effect in moves {
            self.perform(index, effect);
        }
        refused
    }

    fn perform(&mut self, index: usize, effect: Effect) {
        match (effect, self.hosts[index].link) {
            (Effect::DialAt(at), _) => {
                let pause = at.saturating_sub(self.now(index).mono);
                self.dial(index, pause);
            }
            (Effect::CloseLink, Some(link)) => {
                self.say(|world| format!("{} renews its link", world.hosts[index].name));
                self.close_at_node(link);
                self.upstream(link, Upstream::Close);
            }
            (Effect::Send { to, kind }, Some(link)) => {
                self.check_asking(index, &to, &kind);
                self.send(link, to, kind);
            }
            (Effect::TryLease(seat), Some(link)) => {
                self.say(|world| format!("{} tries the lease of seat {}", world.hosts[index].name, seat.number()));
                self.upstream(link, Upstream::TryLease(seat));
            }
            (Effect::ReleaseLease(seat), Some(link)) => self.upstream(link, Upstream::ReleaseLease(seat)),
            (Effect::CheckBroker, Some(link)) => self.upstream(link, Upstream::Check),
            (Effect::MoveLink { unless_it_declares }, Some(link)) => self.move_link(index, link, unless_it_declares),
            (Effect::Keys { timetable, .. }, _) => {
                self.hosts[index].proxy = timetable;
                self.hosts[index].standing.published_at = self.t;
            }
            (Effect::SaveRing(contents), _) => self.save_ring(index, &contents),
            (Effect::Epochs(epochs), _) => drop(self.hosts[index].epochs.send_replace(epochs)),
            (Effect::Reply { id, reply }, _) => {
                self.say(|world| format!("{} answers its operator: {}", world.hosts[index].name, words(&reply)));
                self.hosts[index].replies.push((id, reply));
            }
            (Effect::Note { note, .. }, _) => {
                self.say(|world| format!("{}: {note}", world.hosts[index].name));
                self.noted(index, &note);
                self.hosts[index].notes.push(note);
            }
            // What needs a link has none by now, or is for people only.
            (_, _) => {}
        }
    }

    /// The daemon writes its ring's file, and says whether that worked.
    fn save_ring(&mut self, index: usize, contents: &[u8]) {
        let now = self.now(index);
        let saves = self.t >= self.hosts[index].saves_fail_until;
        self.ring_written(index, contents, saves);
        let host = &mut self.hosts[index];
        if saves {
            host.saved = Some(contents.to_vec());
        }
        let Some(core) = host.core.as_mut() else { return };
        let saved = if saves { Ok(()) } else { Err("no space".to_owned()) };
        let _line = core.on_ring_saved(saved, now);
        if !saves {
            // The driver turns again within a second, and asks when it must.
            let wake = self.t + core.next_wake(now).saturating_sub(now.mono).max(1);
            self.hosts[index].wake = wake;
            self.plan(wake, Happening::Wake(index));
            self.saves_failed += 1;
            self.say(|world| format!("{} cannot save its ring", world.hosts[index].name));
        }
    }

    /// The epoch key that a running node takes for the leader's.
    pub fn epoch(&self, index: usize) -> Option<EpochId> {
        Some(self.hosts[index].farm()?.epochs().current()?.id())
    }

    // The key plane: each message is stamped and sealed when the broker takes it.

    pub fn send(&mut self, link: LinkId, to: Route, kind: Kind) {
        // Without room it is dropped: the next beat repeats what matters.
        let _room = self.links[link].waiting.push(to, kind);
        self.pump(link);
    }

    pub fn pump(&mut self, id: LinkId) {
        let host = self.links[id].host;
        if !self.links[id].node_open || self.hosts[host].stopped.is_some() || self.cluster.blocked {
            return;
        }
        while let Some((to, kind)) = self.links[id].waiting.take() {
            self.publish(id, to, kind);
        }
    }

    fn publish(&mut self, id: LinkId, to: Route, kind: Kind) {
        let host = self.links[id].host;
        let now = self.now(host);
        let route = self.names.of(&to).to_owned();
        // A machine sends nothing before it holds the key that it takes.
        let body = self.links[id].sealing.seal(&route, kind.clone(), now).expect("it is sealed");
        if in_no_epoch(&body) {
            self.open.push((self.t, host));
        }
        self.envelopes += 1;
        let sealed = Arc::new(Sealed { boot_id: boot_id(host, self.hosts[host].boots), kind });
        let secret = self.hosts[host].seals_with();
        let envelope = Envelope { route, body, id: self.envelopes, origin: Origin::Sender, secret, sealed };
        self.attack(self.links[id].broker, &envelope);
        self.upstream(id, Upstream::Publish { to, envelope });
    }

    /// An envelope of a node that is not simulated, which `to` can open.
    pub fn sealed_by(&mut self, identity: Identity, to: usize, route: String, kind: Kind) -> Envelope {
        let now = self.now(to);
        self.envelopes += 1;
        let id = self.envelopes;
        let mut salts = Seeded::new(0x0a5c_0000 + id);
        let boot_id = identity.boot_id;
        let salts = Box::new(move |bytes: &mut [u8]| salts.fill(bytes));
        let host = &self.hosts[to];
        let (secrets, secret) = (host.secrets.subscribe(), host.seals_with());
        let mut sealing = Sealing::new(identity, secrets, host.epochs.subscribe(), salts, now);
        let body = sealing.seal(&route, kind.clone(), now).expect("it is sealed");
        Envelope { route, body, id, origin: Origin::Sender, secret, sealed: Arc::new(Sealed { boot_id, kind }) }
    }

    /// An orderly end: farewell, everything queued is written out, the link closes.
    pub fn shut_down(&mut self, index: usize) {
        self.say(|world| format!("{} is stopped by its operator", world.hosts[index].name));
        self.give(index, Input::Stop);
        if let Some(link) = self.hosts[index].link {
            // Everything that waits is written out; the process waits for that.
            // It waits for the confirms of what is under way; a farewell goes to all, or to the leader.
            let seats = (0..Seat::COUNT).filter_map(|number| Seat::numbered(number.into())).map(Route::Leader);
            seats.chain([Route::Keys]).for_each(|to| self.links[link].waiting.arrived(&to));
            while let Some((to, kind)) = self.links[link].waiting.take() {
                self.links[link].waiting.arrived(&to);
                self.publish(link, to, kind);
            }
            self.close_at_node(link);
            self.upstream(link, Upstream::Close);
        }
        self.end_process(index);
    }

    /// The process is gone.
    pub fn end_process(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        host.core = None;
        host.stopped = None;
        host.stash.clear();
        self.ledger.unsettled = true;
    }

    // Links.

    /// The node dials after `pause` milliseconds, and is answered a little later. What it had planned before is void.
    pub fn dial(&mut self, index: usize, pause: u64) {
        let at = self.t + pause + self.hop();
        let host = &mut self.hosts[index];
        host.planned_dials += 1;
        host.dial = Some(host.planned_dials);
        self.plan(at, Happening::Connect(index, self.hosts[index].planned_dials));
    }

    fn connect(&mut self, index: usize, attempt: u32) {
        let host = &mut self.hosts[index];
        if host.dial != Some(attempt) {
            return;
        }
        host.dial = None;
        // A node that stands still goes on when it runs again.
        if host.core.is_none() || host.link.is_some() || host.stopped.is_some() {
            return;
        }
        host.dials += 1;
        let Some(broker) = self.broker_for(index, None) else {
            self.give(index, Input::NotLinked(no_other()));
            return;
        };
        self.connect_to(index, broker);
    }

    /// The first broker in the node's settings that takes it: one that runs, and can declare an inbox.
    fn broker_for(&self, index: usize, elsewhere_than: Option<usize>) -> Option<usize> {
        if self.hosts[index].cut.is_some() {
            return None;
        }
        let (home, count) = (self.hosts[index].home, self.setup.brokers);
        let takes = |broker: &usize| self.cluster.up[*broker] && self.cluster.declares(*broker);
        // A node is set to the brokers of its own site.
        let listed = if self.setup.sites { 1 } else { count };
        let mut listed = (0..listed).map(|after| (home + after) % count);
        listed.find(|broker| elsewhere_than != Some(*broker) && takes(broker))
    }

    /// The node has a link to another broker before it lets go of this one.
    fn move_link(&mut self, index: usize, link: LinkId, unless_it_declares: bool) {
        let here = self.links[link].broker;
        if unless_it_declares && self.cluster.declares(here) {
            self.upstream(link, Upstream::NotMoved(Stays::Declares));
            return;
        }
        let Some(broker) = self.broker_for(index, Some(here)) else {
            self.say(|world| format!("{} finds no other broker", world.hosts[index].name));
            self.upstream(link, Upstream::NotMoved(Stays::NoOther(no_other())));
            return;
        };
        self.say(|world| format!("{} leaves broker {here} for broker {broker}", world.hosts[index].name));
        self.close_at_node(link);
        self.upstream(link, Upstream::Close);
        self.give(index, Input::Left);
        // There is another: it does not dial.
        self.hosts[index].dial = None;
        self.connect_to(index, broker);
    }

    fn connect_to(&mut self, index: usize, broker: usize) {
        let now = self.now(index);
        let host = &mut self.hosts[index];
        host.links += 1;
        let inbox = self.names.inbox(&host.name, &format!("{}-{}", host.boots, host.links));
        let identity = Identity { farm: FARM.into(), node: host.name.clone(), boot_id: boot_id(index, host.boots) };
        let id = self.links.len();
        host.link = Some(id);
        // Of a seed of its own, so that what else happens does not hang on how many are drawn.
        let mut salts = Seeded::new(0x5a17_0000 + id as u64);
        let salts = Box::new(move |bytes: &mut [u8]| salts.fill(bytes));
        self.links.push(Link {
            host: index,
            broker,
            inbox: inbox.clone(),
            node_open: true,
            broker_open: true,
            silent: false,
            waiting: Waiting::default(),
            sealing: Sealing::new(identity, host.secrets.subscribe(), host.epochs.subscribe(), salts, now),
            up_at: 0,
            down_at: [0; LANES],
            stalled_up: VecDeque::new(),
            stalled_down: VecDeque::new(),
            unread: VecDeque::new(),
        });
        self.ledger.unsettled = true;
        self.say(|world| format!("{} is connected to broker {broker}", world.hosts[index].name));
        self.give(index, Input::Linked { inbox });
        self.repeat_announcements(id);
        if self.cluster.drops {
            self.close_at_broker(id);
        }
    }

    /// The node lets go of the link.
    pub fn close_at_node(&mut self, id: LinkId) {
        let link = &mut self.links[id];
        link.node_open = false;
        link.waiting = Waiting::default();
        if self.hosts[link.host].link == Some(id) {
            self.hosts[link.host].link = None;
        }
        let host = self.links[id].host;
        self.disturb(host);
    }

    /// The broker lets go of it: its queues are gone, and the node learns of it if the network lets it.
    pub fn close_at_broker(&mut self, id: LinkId) {
        if !std::mem::take(&mut self.links[id].broker_open) {
            return;
        }
        self.cluster.closed(id, self.links[id].broker);
        self.disturb(self.links[id].host);
        if self.links[id].node_open {
            self.downstream(id, Downstream::Closed);
        }
    }

    fn heartbeats_missing(&mut self, id: LinkId, cut: Option<u32>, at_node: bool) {
        let host = self.links[id].host;
        let still = match cut {
            Some(_) => self.hosts[host].cut == cut,
            None => self.links[id].node_open && self.hosts[host].stopped_for(self.t) >= super::faults::HEARTBEATS_MS,
        };
        if !still {
            return;
        }
        if at_node {
            if self.hosts[host].link == Some(id) {
                self.say(|world| format!("{} gives up its silent link", world.hosts[host].name));
                if self.hosts[host].stopped.is_some() {
                    self.hosts[host].stash.push_back((self.t, id, Downstream::Closed));
                } else {
                    self.take(id, Downstream::Closed);
                }
            }
        } else if self.links[id].broker_open {
            self.say(|world| format!("the broker gives up the silent link of {}", world.hosts[host].name));
            self.close_at_broker(id);
        }
    }

    // The network and the broker.

    pub fn upstream(&mut self, id: LinkId, what: Upstream) {
        let at = (self.t + self.hop()).max(self.links[id].up_at);
        self.links[id].up_at = at;
        self.plan(at, Happening::Arrive(id, what));
    }

    pub fn downstream(&mut self, id: LinkId, what: Downstream) {
        self.downstream_after(0, id, what);
    }

    fn downstream_after(&mut self, delay: u64, id: LinkId, what: Downstream) {
        let hop = self.t + delay + self.hop();
        let link = &mut self.links[id];
        let at = match what.lane() {
            LANES => link.down_at.iter().copied().fold(hop, u64::max),
            lane => {
                link.down_at[lane] = link.down_at[lane].max(hop);
                link.down_at[lane]
            }
        };
        self.plan(at, Happening::Deliver(id, what));
    }

    pub fn arrive(&mut self, id: LinkId, what: Upstream) {
        let link = &mut self.links[id];
        if !link.broker_open {
            return;
        }
        let unread = self.cluster.blocked && matches!(what, Upstream::Publish { .. });
        match what {
            what if self.hosts[link.host].cut.is_some() => link.stalled_up.push_back(what),
            what if unread => link.unread.push_back(what),
            Upstream::Publish { to, envelope } => {
                let broker = link.broker;
                match self.route(broker, &envelope) {
                    // The broker takes the other for living, and waits for it. Should the network heal, it goes through.
                    Published::Nacked if self.is_stalled(broker, &to) => {
                        self.plan(self.t + STALLED_MS, Happening::Arrive(id, Upstream::Publish { to, envelope }));
                    }
                    answer => self.downstream(id, Downstream::Published { to, answer }),
                }
            }
            Upstream::TryLease(seat) => {
                let broker = link.broker;
                // A channel may die for reasons of its own.
                let tried = if self.random.chance(2) {
                    Err(BusError::Closed("the channel died".to_owned()))
                } else {
                    self.cluster.try_lease(id, broker, seat).ok_or_else(unanswered)
                };
                self.ledger.unsettled = true;
                let waits = matches!(tried, Err(BusError::Unanswered { .. }));
                self.downstream_after(if waits { ANSWER_WITHIN_MS } else { 0 }, id, Downstream::Lease(seat, tried));
            }
            Upstream::ReleaseLease(seat) => {
                self.cluster.release(id, seat);
                self.ledger.unsettled = true;
            }
            Upstream::Check => {
                let declares = self.cluster.declares(link.broker);
                let waits = if declares { 0 } else { ANSWER_WITHIN_MS };
                let answer = if declares { Ok(()) } else { Err(unanswered()) };
                self.downstream_after(waits, id, Downstream::Checked(answer));
            }
            Upstream::NotMoved(why) => self.downstream(id, Downstream::NotMoved(why)),
            Upstream::Close => self.close_at_broker(id),
        }
    }

    /// Whether what is for the leader waits, because its queue's broker was cut off just now.
    fn is_stalled(&self, broker: usize, to: &Route) -> bool {
        let Route::Leader(seat) = to else { return false };
        let lives = |queue: &LeaseQueue| !queue.dead && self.cluster.up[queue.broker];
        self.cluster.lease(broker, *seat).is_some_and(lives) && !self.cluster.has_noticed(self.t)
    }

    /// Puts a message into the queues that `envelope.route` names, as seen from `broker`.
    pub fn route(&mut self, broker: usize, envelope: &Envelope) -> Published {
        if envelope.route == self.names.keys {
            self.attacker.announced(envelope);
        }
        let message = |via| Downstream::Message { via, envelope: envelope.clone() };
        if let Some(seat) = self.names.seat_of(&envelope.route) {
            let (answer, taker) = self.cluster.to_leader(broker, seat);
            if let Some(owner) = taker {
                self.downstream(owner, message(Via::Lease));
            }
            return answer;
        }
        let to_all = envelope.route == self.names.keys;
        if to_all {
            self.hand_on(broker, envelope);
        }
        let takes = |link: &Link| {
            link.broker_open && self.cluster.sees(broker, link.broker) && (to_all || link.inbox == envelope.route)
        };
        let takers: Vec<LinkId> = (0..self.links.len()).filter(|id| takes(&self.links[*id])).collect();
        // Whoever has the broker can make a message look as if another broker had handed it on.
        let looks_far = envelope.origin != Origin::Sender && envelope.id % 4 == 3;
        for id in &takers {
            if !self.links[*id].silent {
                self.downstream(*id, message(if looks_far { Via::Federated } else { Via::Inbox }));
            }
        }
        if takers.is_empty() { Published::Unroutable } else { Published::Routed }
    }

    fn deliver(&mut self, id: LinkId, what: Downstream) {
        let link = &mut self.links[id];
        let host = &mut self.hosts[link.host];
        if host.link != Some(id) {
            return;
        }
        if host.cut.is_some() {
            link.stalled_down.push_back(what);
        } else if host.stopped.is_some() {
            if host.stash.len() < QUEUE_LENGTH || !matches!(what, Downstream::Message { .. }) {
                host.stash.push_back((self.t, id, what));
            }
        } else {
            self.take(id, what);
        }
    }

    /// A node that stood still takes in what waited for it.
    pub fn take_stashed(&mut self, index: usize) {
        let stash = std::mem::take(&mut self.hosts[index].stash);
        for (place, (came, link, what)) in stash.into_iter().enumerate() {
            let waited_at_broker = place >= PREFETCH && matches!(what, Downstream::Message { .. });
            let kept = !waited_at_broker || (self.t - came < QUEUE_TTL_MS && self.links[link].broker_open);
            if kept {
                self.deliver(link, what);
            }
        }
    }

    pub fn take(&mut self, id: LinkId, what: Downstream) {
        let index = self.links[id].host;
        match what {
            Downstream::Message { via, envelope } => self.take_in(index, via, &envelope),
            Downstream::Published { to, answer } => {
                self.links[id].waiting.arrived(&to);
                if let Route::Leader(seat) = to {
                    self.give(index, Input::Told { seat, answer });
                }
                self.pump(id);
            }
            Downstream::Lease(seat, answer) => self.give(index, Input::LeaseTried(seat, answer)),
            Downstream::LeaseLost(seat) => self.give(index, Input::LeaseLost(seat)),
            Downstream::Checked(answer) => self.give(index, Input::Checked(answer)),
            Downstream::NotMoved(why) => self.give(index, Input::NotMoved(why)),
            Downstream::Closed => {
                self.say(|world| format!("{} is disconnected", world.hosts[index].name));
                self.close_at_node(id);
                // If only this side has given it up, the other learns of it as soon as the network lets it.
                self.upstream(id, Upstream::Close);
                self.give(index, Input::Closed { reason: "disconnected".to_owned() });
            }
        }
    }

    /// A message comes to a node that runs.
    pub fn take_in(&mut self, index: usize, via: Via, envelope: &Envelope) {
        // What it does not listen to, it does not open.
        let hears = self.hosts[index].farm().is_some_and(|farm| farm.is_listening_to(via));
        let (route, body) = (envelope.route.clone(), Bytes::clone(&envelope.body));
        let opened = |effects: &[Effect]| {
            let refused = effects.iter().any(|effect| matches!(effect, Effect::Refused { .. }));
            (hears && !refused).then(|| Arc::clone(&envelope.sealed))
        };
        let site = (via == Via::Federated).then(|| "elsewhere".to_owned());
        let refused = self.turn(index, Input::Delivered { from: via, route, body, site }, opened);
        if hears {
            self.check_opened(index, envelope, refused.as_ref());
        }
        if let Some(refusal) = refused {
            self.unknown_epochs += u64::from(refusal == Refusal::UnknownEpoch);
            self.unknown_secrets += u64::from(refusal == Refusal::UnknownSecret && envelope.origin == Origin::Sender);
            self.say(|world| {
                let (host, id) = (&world.hosts[index].name, envelope.id);
                format!("{host} refuses envelope {id} ({:?}): {}", envelope.origin, refusal.reason())
            });
        }
    }
}

fn boot_id(index: usize, boots: u8) -> [u8; 16] {
    let mut id = [0; 16];
    id[0] = u8::try_from(index).expect("few nodes");
    id[1] = boots;
    id
}

/// Whether an envelope is sealed under the farm secret alone.
fn in_no_epoch(body: &Bytes) -> bool {
    let envelope = proto::Envelope::decode(body.clone()).expect("a sealed envelope");
    envelope.epoch.iter().all(|byte| *byte == 0)
}

/// The ring that a message brings.
fn ring_in(kind: &Kind, now: Now, settings: &KeySettings) -> Ring {
    let ring = match kind {
        Kind::Announcement(announcement) => announcement.ring.as_ref(),
        Kind::Report(report) => report.ring.as_ref(),
        Kind::Answer(answer) => answer.ring.as_ref(),
        _ => None,
    };
    ring.map(|ring| Ring::read(ring, now, settings).0).unwrap_or_default()
}

fn words(reply: &Reply) -> String {
    match reply {
        Reply::Members { leader, members } => {
            format!("{} members by {leader}", members.len())
        }
        other => format!("{other:?}"),
    }
}

/// No broker takes the node.
fn no_other() -> BusError {
    BusError::Unreachable(String::new())
}

/// The broker does not answer a declaration.
fn unanswered() -> BusError {
    BusError::Unanswered { operation: "declare".to_owned(), within: Duration::from_millis(ANSWER_WITHIN_MS) }
}

/// What a turn made the machine notice.
pub fn noted(effects: &[Effect]) -> impl Iterator<Item = &Note> {
    effects.iter().filter_map(|effect| if let Effect::Note { note, .. } = effect { Some(note) } else { None })
}

/// The key that was minted, if a note is about one.
pub fn minted(note: &Note) -> Option<u64> {
    match note {
        Note::Minted { generation, .. } | Note::Revoked { generation, .. } => Some(*generation),
        _ => None,
    }
}
