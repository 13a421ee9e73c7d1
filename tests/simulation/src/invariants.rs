//! Invariants 1 to 7 of `docs/testing.md` ("Simulated farms"), checked at every step. The rules stand here a second
//! time, apart from the code that is checked.

use std::collections::{HashMap, HashSet, VecDeque};

use resumed::internals::clock::millis;
use resumed::internals::envelope::Refusal;
use resumed::internals::farm::{MintReason, Note};
use resumed::internals::keys::{KeyMaterial, ProxyKey, Ring, TicketKey, read_back};
use resumed::internals::node::Effect;
use resumed::internals::proto;
use resumed::internals::proto::payload::Kind;
use resumed::internals::reason::Reason;
use resumed::internals::routes::{Route, Seat};
use resumed::{KeySettings, Now};
use zeroize::Zeroizing;

use super::World;
use super::broker::{Envelope, LeaseQueue, Origin};
use super::host::Host;
use super::world::{FARM, Happening, Setup, minted, noted};

const EIGHT_DAYS_MS: u64 = 8 * 24 * 3_600_000;
/// A ring that could not be saved is tried again within so long: five seconds, and the one within which a daemon turns.
const SAVED_AGAIN_MS: u64 = 6_000;
/// A node asks for the leader's epoch key no more often than so many times a beat: once because it meets messages that it
/// cannot open, and with each report until it has joined, of which news brings a few before their time.
const MOST_ASKED: usize = 10;

/// What the invariants know of the farm.
pub struct Ledger {
    /// Every key that was ever minted, or made up by a dishonest member, by name.
    keys: HashMap<[u8; 16], Vec<TicketKey>>,
    /// When each key was made, by name.
    made_at: HashMap<[u8; 16], u64>,
    floors: HashSet<u64>,
    session_floors: HashSet<u64>,
    /// Something changed that [`World::reassess`] looks at.
    pub unsettled: bool,
    /// Who leads on each broker's side with everything in order, and since when.
    pub led: Vec<Option<(usize, u64)>>,
    /// A node led at a seat behind the first.
    pub led_further_back: bool,
    /// Until then keys may be unknown elsewhere: keys were revoked, or a member is dishonest.
    pub excused_until: u64,
    /// A member is dishonest.
    pub poisoned: bool,
    /// Some keys may have closed before they came, and close all that are older: a dishonest member's, or those of a
    /// clock that was wrong by as much as keys last and still taken.
    tainted: bool,
    /// Until then the key that seals may be one that nobody announced an interval ahead: clocks must agree within the
    /// least `settle`.
    unscheduled_until: u64,
    /// Who minted the last such key.
    unscheduled_by: usize,
    least_settle: u64,
    clocks_differ: bool,
    /// Until then some nodes may have heard what others had to refuse for its stamp.
    clocks_excused_until: u64,
    clock_bound: u64,
    beat: u64,
    settle: u64,
    /// The shortest of the farm.
    interval: u64,
    /// Once everything is well: all keys that any node held since.
    pub all_keys: Option<Ring>,
    /// How often one node's key was looked for at another.
    pub pairs_checked: u64,
    /// Of these, at another site.
    pub pairs_across: u64,
    /// Envelopes that were refused because they were opened before, or forged.
    pub attacks_refused: u64,
}

/// What the invariants know of one host.
#[derive(Default)]
pub struct Standing {
    /// Its ring as it was last seen, each key with the monotonic instant since when it is held.
    ring: HashMap<[u8; 16], (TicketKey, u64)>,
    floor: u64,
    sessions_from: u64,
    /// Since when nothing is wrong with it, its link, and its broker.
    clear_since: Option<u64>,
    pub clock_set_at: u64,
    alone_at: u64,
    /// When it last had a leader with everything in order, whose clock agrees with its own.
    led_at: u64,
    pub published_at: u64,
    /// The ring is another than the one in its file. When that must have been mended, monotonic milliseconds.
    pub unsaved: Option<u64>,
    /// When it asked for an epoch key, within the last beat.
    asked: VecDeque<u64>,
    /// When the next look is planned.
    look_at: Option<u64>,
    /// It was connected, undisturbed, beside a leader for three beats: it takes part in invariant 1 until something
    /// happens to it.
    pub joined: bool,
}

impl Ledger {
    pub fn new(setup: &Setup) -> Self {
        let hosts = setup.hosts.len() as u64;
        let slowest = setup.hosts.iter().map(|host| millis(host.report_every)).max().unwrap_or_default();
        Self {
            keys: HashMap::new(),
            made_at: HashMap::new(),
            floors: HashSet::from([0]),
            session_floors: HashSet::from([0]),
            unsettled: true,
            led: vec![None; setup.brokers],
            led_further_back: false,
            excused_until: 0,
            poisoned: false,
            tainted: false,
            unscheduled_until: 0,
            unscheduled_by: 0,
            least_settle: setup.hosts.iter().map(|host| millis(host.keys.settle)).min().unwrap_or_default(),
            clocks_differ: false,
            clocks_excused_until: 0,
            clock_bound: setup.clock_bound,
            beat: slowest.max(10 * hosts),
            settle: setup.hosts.iter().map(|host| millis(host.keys.settle)).max().unwrap_or_default(),
            interval: setup.hosts.iter().map(|host| millis(host.keys.interval)).min().unwrap_or_default(),
            all_keys: None,
            pairs_checked: 0,
            pairs_across: 0,
            attacks_refused: 0,
        }
    }

    /// The slowest beat of the farm.
    pub fn beat(&self) -> u64 {
        self.beat
    }

    fn is_registered(&self, key: &TicketKey) -> bool {
        self.keys.get(&key.name).is_some_and(|known| known.contains(key))
    }
}

/// Why a node may not keep `key`, by its own clock.
fn is_impossible(key: &TicketKey, now: Now, settings: &KeySettings) -> bool {
    key.seal_until < key.seal_from
        || key.seal_from > now.wall.saturating_add(EIGHT_DAYS_MS)
        || key.seal_until - key.seal_from > millis(*KeySettings::MAX_SEAL_AGE.end())
        || key.open_for > millis(KeySettings::LONGEST_OPEN_FOR)
        || key.generation > now.wall.saturating_add(millis(settings.max_clock_offset))
}

/// When each of `keys`, highest in order first, opens its last ticket.
fn closings<'a>(keys: impl Iterator<Item = &'a TicketKey>) -> Vec<u64> {
    let (mut above, mut closings): (Vec<&TicketKey>, Vec<u64>) = (Vec::new(), Vec::new());
    for key in keys {
        let superseded = above.iter().map(|higher| higher.seal_from).min().unwrap_or(u64::MAX);
        let own = key.seal_until.min(superseded).saturating_add(key.open_for);
        closings.push(closings.iter().copied().fold(own, u64::min));
        above.push(key);
    }
    closings
}

impl World {
    pub fn key_material(&mut self) -> KeyMaterial {
        let mut bytes = Zeroizing::new([0; 80]);
        self.random.fill(bytes.as_mut());
        KeyMaterial::from_random(&bytes)
    }

    pub fn register(&mut self, key: TicketKey) {
        self.ledger.made_at.entry(key.name).or_insert(self.t);
        self.ledger.keys.entry(key.name).or_default().push(key);
    }

    pub fn register_floor(&mut self, floor: u64) {
        self.ledger.floors.insert(floor);
    }

    /// A dishonest member's keys may be in rings from now on.
    pub fn register_poison(&mut self, ring: &proto::Ring) {
        let anywhen = Now { wall: u64::MAX, mono: 0 };
        for key in &ring.keys {
            if let Ok(key) = TicketKey::read(key, anywhen, &KeySettings::default()) {
                self.register(key);
            }
        }
        self.register_floor(ring.floor);
        self.ledger.session_floors.insert(ring.sessions_from);
        self.ledger.poisoned = true;
        self.ledger.tainted = true;
        self.excuse();
    }

    /// Keys are missing here and there for a while, and are allowed to.
    fn excuse(&mut self) {
        let span = 5 * self.ledger.beat + self.ledger.settle + 2 * self.ledger.clock_bound;
        self.ledger.excused_until = self.ledger.excused_until.max(self.t + span);
    }

    /// The daemon of a host has started with some ring.
    pub fn booted(&mut self, index: usize) {
        let now = self.now(index);
        let Some(held) = self.hosts[index].held() else { return };
        let held_for = |name| held.held_for(name, now).map_or(0, millis);
        let keys: Vec<_> =
            held.ring().keys().iter().map(|key| (key.clone(), now.mono.saturating_sub(held_for(&key.name)))).collect();
        let (floor, sessions_from) = (held.ring().floor(), held.ring().sessions_from());
        self.ledger.unsettled = true;
        let standing = &mut self.hosts[index].standing;
        standing.ring = keys.iter().map(|(key, since)| (key.name, (key.clone(), *since))).collect();
        (standing.floor, standing.sessions_from) = (floor, sessions_from);
        (standing.clear_since, standing.joined, standing.unsaved) = (None, false, None);
        if let Some((key, _)) = keys.into_iter().find(|(key, _)| !self.ledger.is_registered(key)) {
            self.violated(|| format!("a saved ring brought key {} that nobody minted", key.generation));
        }
    }

    /// Whether an envelope may be opened by this node, now: invariant 5.
    pub fn check_opened(&mut self, index: usize, envelope: &Envelope, refused: Option<&Refusal>) {
        let host = &mut self.hosts[index];
        let name = host.name.clone();
        let (id, origin) = (envelope.id, envelope.origin);
        match refused {
            None if origin == Origin::Forged => {
                self.violated(|| format!("invariant 5: {name} opens envelope {id}, which was altered or moved"));
            }
            None if !host.opens_with(envelope.secret) => {
                let secret = envelope.secret;
                self.violated(|| {
                    format!("invariant 5: {name} opens envelope {id} under secret {secret}, which it has not")
                });
            }
            None => {
                if !host.opened.insert(id) {
                    self.violated(|| format!("invariant 5: {name} opens envelope {id} twice ({origin:?})"));
                }
            }
            Some(refusal) if origin == Origin::Sender => {
                let limit = millis(host.settings.keys.max_clock_offset);
                let right = match refusal {
                    Refusal::Clock { offset_ms, .. } => offset_ms.unsigned_abs() > limit,
                    // Somebody else was faster with it.
                    Refusal::Replay { .. } => host.opened.contains(&id),
                    // It asks for the key.
                    Refusal::UnknownEpoch => true,
                    Refusal::UnknownSecret => !host.opens_with(envelope.secret),
                    _ => false,
                };
                if !right {
                    self.violated(|| format!("{name} refuses envelope {id}, which is authentic and new: {refusal}"));
                }
            }
            Some(_) => self.ledger.attacks_refused += 1,
        }
    }

    /// What a step did to a node's ring: every key has a maker, and none goes without a reason. Invariants 4 and 5.
    /// `came` is the ring that a message brought; one that was announced is joined.
    pub fn check_ring(&mut self, index: usize, came: &Ring, announced: bool, effects: &[Effect]) {
        let now = self.now(index);
        let host = &self.hosts[index];
        let Some(held) = host.held() else { return };
        let (ring, standing) = (held.ring(), &host.standing);
        let refused = noted(effects).any(|note| matches!(note, Note::Refused { .. }));
        let mut joined = came.keys().iter().filter(|_| announced && !refused);
        let lower = joined.find(|key| ring.key(&key.name).is_some_and(|held| rank(held) < rank(key)));
        if let Some(generation) = lower.map(|key| key.generation) {
            let name = host.name.clone();
            self.violated(|| format!("{name} keeps the lower of two keys {generation} of one name"));
            return;
        }
        let same = ring.floor() == standing.floor
            && ring.sessions_from() == standing.sessions_from
            && ring.keys().len() == standing.ring.len()
            && ring.keys().iter().all(|key| standing.ring.get(&key.name).is_some_and(|(known, _)| known == key));
        if same {
            return;
        }
        let (name, ring, floor_before) = (host.name.clone(), ring.clone(), standing.floor);
        let (sessions_before, taking) = (standing.sessions_from, host.is_leader() || standing.joined);
        let before = host.standing.ring.clone();
        let settings = host.settings.keys;
        self.hosts[index].standing.unsaved.get_or_insert(now.mono);
        if !effects.iter().any(|effect| matches!(effect, Effect::Keys { .. })) {
            self.violated(|| format!("the ring of {name} changed, and neither its file nor its proxies hear of it"));
        }
        // What a partition held back for longer than settle closes older keys when it comes, at each clock's own time.
        let late = |key: &&TicketKey| {
            let made_at = self.ledger.made_at.get(&key.name);
            !before.contains_key(&key.name) && made_at.is_some_and(|at| self.t > at + self.ledger.settle)
        };
        let came_late = taking && ring.keys().iter().any(|key| late(&key));
        if came_late {
            self.excuse();
        }
        let generations: Vec<u64> = noted(effects).filter_map(minted).collect();
        for key in ring.keys() {
            let known = before.get(&key.name).is_some_and(|(known, _)| known == key);
            if known || self.ledger.is_registered(key) {
                continue;
            }
            if generations.contains(&key.generation) {
                self.register(key.clone());
                if key.seal_from <= now.wall + millis(settings.settle) {
                    // A first key, one asked for, or one that could not be minted in time.
                    self.ledger.unscheduled_until = self.t + 2 * self.ledger.clock_bound + 2 * self.ledger.settle;
                    self.ledger.unscheduled_by = index;
                }
            } else {
                let generation = key.generation;
                self.violated(|| format!("invariant 5: {name} holds key {generation}, which nobody minted"));
            }
        }
        if ring.floor() != floor_before {
            if generations.contains(&ring.floor()) {
                self.register_floor(ring.floor());
            }
            if !self.ledger.floors.contains(&ring.floor()) {
                self.violated(|| format!("invariant 5: {name} has floor {}, which nobody set", ring.floor()));
            }
            let fell_rightly = floor_before > now.wall.saturating_add(millis(settings.max_clock_offset));
            if ring.floor() < floor_before && !fell_rightly {
                self.violated(|| format!("{name} lowers its floor from {floor_before} to {}", ring.floor()));
            }
            self.excuse();
        }
        if ring.sessions_from() != sessions_before {
            if noted(effects).any(|note| matches!(note, Note::Revoked { flush_sessions: true, .. })) {
                self.ledger.session_floors.insert(ring.sessions_from());
            }
            if !self.ledger.session_floors.contains(&ring.sessions_from()) {
                self.violated(|| {
                    format!("invariant 5: {name} flushes up to {}, which nobody asked", ring.sessions_from())
                });
            }
            let fell_rightly = sessions_before > now.wall.saturating_add(millis(settings.max_clock_offset));
            if ring.sessions_from() < sessions_before && !fell_rightly {
                self.violated(|| format!("{name} lowers its session floor from {sessions_before}"));
            }
        }
        let order: Vec<_> = ring.keys().iter().map(TicketKey::order).collect();
        if !order.is_sorted_by(|a, b| a > b)
            || order.len() > Ring::CAP
            || order.last().is_some_and(|low| low.0 < ring.floor())
        {
            self.violated(|| format!("the ring of {name} is no ring: {order:?}"));
        }

        // Everything that was there, and everything that came, in order: that says when each of them closes.
        let mut all: Vec<TicketKey> = before.values().map(|(key, _)| key.clone()).collect();
        all.retain(|key| ring.key(&key.name).is_none());
        all.extend(ring.keys().iter().cloned());
        all.extend(
            came.keys()
                .iter()
                .filter(|key| all.iter().all(|other| other.name != key.name))
                .cloned()
                .collect::<Vec<_>>(),
        );
        all.sort_by_key(|key| std::cmp::Reverse(key.order()));
        let possible: Vec<&TicketKey> = all.iter().filter(|key| !is_impossible(key, now, &settings)).collect();
        let closings = closings(possible.iter().copied());
        for (key, _) in before.values() {
            let closes = possible.iter().position(|other| other.name == key.name).map(|place| closings[place]);
            let expired = closes.is_none_or(|at| now.wall > at.saturating_add(millis(settings.max_clock_offset)));
            let lost = match ring.key(&key.name) {
                Some(other) => other != key && rank(other) < rank(key),
                None => {
                    let over_cap = all.iter().filter(|other| other.order() > key.order()).count() >= Ring::CAP;
                    !(expired || key.generation < ring.floor() || over_cap)
                }
            };
            if self.ledger.tainted && ring.key(&key.name).is_none() {
                self.excuse();
            }
            if lost {
                let generation = key.generation;
                self.violated(|| format!("invariant 4: {name} loses key {generation} for no reason"));
            }
        }

        if let Some(all) = &mut self.ledger.all_keys {
            all.merge(&ring);
        }
        let standing = &mut self.hosts[index].standing;
        let since = |key: &TicketKey| match before.get(&key.name) {
            Some((known, since)) if known == key => *since,
            _ => now.mono,
        };
        standing.ring = ring.keys().iter().map(|key| (key.name, (key.clone(), since(key)))).collect();
        (standing.floor, standing.sessions_from) = (ring.floor(), ring.sessions_from());
        self.say(|world| {
            let keys: Vec<_> =
                ring.keys().iter().map(|key| key.generation - super::host::START.min(key.generation)).collect();
            format!("{} holds {keys:?}, floor {}", world.hosts[index].name, ring.floor())
        });
    }

    /// A node's daemon writes this as its ring, and it is kept or lost: invariant 6. Every key that it can have and that still
    /// opens is in there, and none but those.
    pub fn ring_written(&mut self, index: usize, contents: &[u8], kept: bool) {
        let now = self.now(index);
        let host = &mut self.hosts[index];
        if !kept {
            host.standing.unsaved = Some(now.mono + SAVED_AGAIN_MS);
            return;
        }
        host.standing.unsaved = None;
        let host = &self.hosts[index];
        let (Some(held), settings) = (host.held(), host.settings.keys) else { return };
        let back = match read_back(contents, FARM, settings, now) {
            Ok(back) => back.held,
            Err(why) => return self.violated(|| format!("invariant 6: node{index} cannot read back its ring: {why}")),
        };
        let (held, saved) = (held.ring(), back.ring());
        let possible = |key: &&TicketKey| !is_impossible(key, now, &settings);
        let lacks = held.open_at(now.wall).filter(possible).find(|key| saved.key(&key.name) != Some(*key));
        let wrong = lacks.or_else(|| saved.keys().iter().find(|key| held.key(&key.name) != Some(*key)));
        if let Some(generation) = wrong.map(|key| key.generation) {
            self.violated(|| format!("invariant 6: node{index} saves another ring than it holds: key {generation}"));
        }
    }

    /// After each turn of a node: its ring is in its file, or was tried in vain and will be again.
    pub fn check_saved(&mut self, index: usize) {
        let now = self.now(index);
        let host = &self.hosts[index];
        if host.core.is_some() && host.standing.unsaved.is_some_and(|until| now.mono >= until) {
            let name = host.name.clone();
            self.violated(|| format!("invariant 6: {name} has not saved its ring, nor tried again"));
        }
    }

    /// A node sends this: however many messages of unknown epochs it meets, it asks for the key seldom.
    pub fn check_asking(&mut self, index: usize, to: &Route, kind: &Kind) {
        // What it writes to itself asks for nothing.
        if !matches!(kind, Kind::Join(_)) || matches!(to, Route::Inbox(_)) {
            return;
        }
        let t = self.t;
        let Host { standing, settings, name, .. } = &mut self.hosts[index];
        standing.asked.retain(|at| at + millis(settings.report_every) > t);
        // By several routes at once.
        if standing.asked.back() != Some(&t) {
            standing.asked.push_back(t);
        }
        if standing.asked.len() > MOST_ASKED {
            let name = name.clone();
            self.violated(|| {
                format!("invariant 7: {name} asks for an epoch key more than {MOST_ASKED} times in a beat")
            });
        }
    }

    /// Invariant 2 at one host: the key that seals is the one that the rule of `keys::timetable::sealing` names, at the node
    /// and at its proxy.
    pub fn check_host(&mut self, index: usize) {
        let now = self.now(index);
        let host = &self.hosts[index];
        let name = &host.name;
        let mut wrong = None;
        if let Some(held) = host.held() {
            let settle = millis(host.settings.keys.settle);
            let keys = held.ring().keys();
            let open: Vec<_> = keys
                .iter()
                .zip(closings(keys.iter()))
                .filter(|(_, closes)| now.wall <= *closes)
                .map(|(k, _)| k)
                .collect();
            let settled = |key: &TicketKey| {
                host.standing.ring.get(&key.name).is_some_and(|(_, since)| now.mono.saturating_sub(*since) >= settle)
            };
            let able: Vec<_> =
                open.iter().filter(|key| key.seal_from <= now.wall && now.wall <= key.seal_until).collect();
            let begun = open.iter().any(|key| key.seal_from <= now.wall);
            let first = || open.iter().min_by_key(|key| (!settled(key), key.seal_from));
            let expected = able.iter().find(|key| settled(key)).or(able.first()).copied();
            let expected = expected.or_else(|| if begun { None } else { first() });
            let active = held.active(now);
            if active != expected.copied() {
                let generation = |key: Option<&TicketKey>| key.map(|key| (key.generation, settled(key)));
                wrong = Some(format!(
                    "invariant 2: {name} seals with {:?} at {}, not with {:?} (generation, settled)",
                    generation(active),
                    now.wall,
                    generation(expected.copied())
                ));
            }
            let proxy = host.proxy.seal_at(now.wall).map(|entry| entry.name);
            let clocks_apart =
                host.standing.clock_set_at >= host.standing.published_at && host.standing.clock_set_at > 0;
            let steady = host.clock.drift_ppm == 0 && host.clock.suspended_ms == 0 && !clocks_apart;
            if steady && proxy != active.map(|key| key.name) {
                wrong = Some(format!("the proxy of {name} does not seal with its node's key at {}", now.wall));
            }
        }
        let seals = host.proxy.seal_at(now.wall);
        let begun =
            host.proxy.entries().iter().any(|entry| entry.seal_from <= now.wall && now.wall <= entry.open_until);
        if let Some(entry) = seals {
            if now.wall > entry.seal_until {
                wrong = Some(format!("invariant 2: the proxy of {name} seals past seal_until at {}", now.wall));
            }
            if now.wall < entry.seal_from && begun {
                wrong = Some(format!("invariant 2: the proxy of {name} seals before seal_from at {}", now.wall));
            }
        }
        let held = || host.standing.ring.values().map(|(key, _)| key);
        for entry in host.proxy.entries().iter().filter(|entry| now.wall <= entry.open_until) {
            let Some((key, _)) = host.standing.ring.get(&entry.name) else {
                // A daemon that stands still, or is gone, takes no key away.
                if host.core.is_some() && host.stopped.is_none() {
                    wrong = Some(format!("invariant 2: the proxy of {name} opens with a key that its node has not"));
                }
                continue;
            };
            let successors = held().filter(|other| other.order() > key.order()).map(|other| other.seal_from);
            let closes = successors.chain([key.seal_until]).min().expect("its own");
            if now.wall > closes.saturating_add(key.open_for) {
                wrong = Some(format!("invariant 2: the proxy of {name} opens with {} for too long", key.generation));
            }
        }
        if let Some(wrong) = wrong {
            self.violated(|| wrong);
        }
    }

    /// Looks at a host because its keys changed, or time changes what they do; and plans the next look.
    pub fn look(&mut self, index: usize) {
        self.check_host(index);
        for other in 0..self.hosts.len() {
            if other != index {
                self.check_pair(index, other);
                self.check_pair(other, index);
            }
        }
        let wall = self.now(index).wall;
        if let Some(at) = self.hosts[index].proxy.next_change(wall) {
            // A drifting clock may not be there yet: then it is looked at once more.
            let at = self.t + at.saturating_sub(wall).max(1);
            let standing = &mut self.hosts[index].standing;
            if at < self.t + 24 * 3_600_000 && standing.look_at != Some(at) {
                standing.look_at = Some(at);
                self.plan(at, Happening::Look(index));
            }
        }
    }

    /// Invariant 1: what `sealer` seals now, `opener` opens now.
    fn check_pair(&mut self, sealer: usize, opener: usize) {
        if self.t < self.ledger.excused_until || self.t < self.ledger.clocks_excused_until {
            return;
        }
        let (a, b) = (&self.hosts[sealer], &self.hosts[opener]);
        let scheduled = self.t >= self.ledger.unscheduled_until;
        let bound = if scheduled { self.ledger.clock_bound } else { self.ledger.least_settle };
        let minter = if scheduled { sealer } else { self.ledger.unscheduled_by };
        let apart = [self.apart(sealer, opener), self.apart(sealer, minter), self.apart(opener, minter)];
        if !a.standing.joined || !b.standing.joined || apart.iter().any(|apart| *apart >= bound) {
            return;
        }
        let (Some(link_a), Some(link_b)) = (a.link, b.link) else { return };
        let (at_a, at_b) = (self.links[link_a].broker, self.links[link_b].broker);
        // A leader that is new takes a few beats until it opens what the other site's says.
        let across = self.setup.sites && at_a != at_b;
        let hear = if across {
            self.sites_are_joined(5 * self.ledger.beat + self.ledger.settle)
        } else {
            self.cluster.sees(at_a, at_b)
        };
        if !hear || !self.share_secrets(sealer, opener) {
            return;
        }
        self.ledger.pairs_across += u64::from(across);
        self.ledger.pairs_checked += 1;
        let (a, b) = (&self.hosts[sealer], &self.hosts[opener]);
        let now = self.now(sealer);
        let held_for = |name| a.standing.ring.get(name).map_or(0, |(_, since)| now.mono.saturating_sub(*since));
        let settle = millis(a.settings.keys.settle);
        let settled_begun = |now: Now| {
            a.standing.ring.values().any(|(key, _)| key.seal_from <= now.wall && held_for(&key.name) >= settle)
        };
        let opens = |sealed: &ProxyKey| {
            let entry = b.proxy.open_at(&sealed.name, self.now(opener).wall);
            entry.is_some_and(|entry| entry.hmac == sealed.hmac && entry.aes == sealed.aes)
        };
        let wrong = match a.proxy.seal_at(now.wall) {
            // Where a key may close all that are older, none may be left, or one that has just come must do.
            None if self.ledger.tainted => None,
            Some(entry) if self.ledger.tainted && held_for(&entry.name) < settle => None,
            Some(entry) if self.ledger.tainted && b.standing.ring.contains_key(&entry.name) => None,
            None => Some(format!("invariant 1: {} has no key of the farm's to seal with", a.name)),
            // None that has settled has begun by this clock, and one that came just now has.
            Some(entry) if held_for(&entry.name) < settle && !settled_begun(now) => None,
            Some(entry) if !opens(entry) => {
                let generation = a.standing.ring.get(&entry.name).map(|(key, _)| key.generation);
                Some(format!("invariant 1: {} cannot open what {} seals with {generation:?}", b.name, a.name))
            }
            Some(_) => None,
        };
        if let Some(wrong) = wrong {
            self.violated(|| wrong);
        }
    }

    /// How far two hosts' wall clocks are apart.
    fn apart(&self, a: usize, b: usize) -> u64 {
        let offset = |host: usize| self.hosts[host].clock.offset_at(self.t);
        offset(a).abs_diff(offset(b))
    }

    /// Whether nothing is wrong with a host, as far as keys reach it and come from it.
    pub fn is_clear(&self, index: usize) -> bool {
        let host = &self.hosts[index];
        let Some(link) = host.link.map(|link| &self.links[link]) else { return false };
        host.core.is_some()
            && host.cut.is_none()
            && host.stopped.is_none()
            && link.broker_open
            && !link.silent
            && !self.cluster.blocked
    }

    /// Who leads `broker`'s side of the cluster with everything in order.
    pub fn leader_of(&self, broker: usize) -> Option<usize> {
        self.led_by(broker).map(|(host, _)| host)
    }

    /// The same, and at which seat.
    pub fn led_by(&self, broker: usize) -> Option<(usize, Seat)> {
        let seen = |queue: &&LeaseQueue| self.cluster.up[broker] && self.cluster.sees(broker, queue.broker);
        let live = self.cluster.leases.iter().filter(seen).filter(|queue| !queue.dead && !queue.silent);
        // Of two leaders the one at the lower seat stays.
        let queue = live.min_by_key(|queue| queue.seat)?;
        let link = queue.owner?;
        let host = self.links[link].host;
        let leads = self.hosts[host].link == Some(link) && self.hosts[host].is_leader() && self.is_clear(host);
        leads.then_some((host, queue.seat))
    }

    /// Something happened to a host: it has to join again.
    pub fn disturb(&mut self, index: usize) {
        let standing = &mut self.hosts[index].standing;
        (standing.clear_since, standing.joined) = (None, false);
        self.ledger.unsettled = true;
    }

    /// Takes stock of who is connected undisturbed, and who leads.
    pub fn reassess(&mut self) {
        if std::mem::take(&mut self.ledger.unsettled) {
            for index in 0..self.hosts.len() {
                let clear = self.is_clear(index);
                let t = self.t;
                let standing = &mut self.hosts[index].standing;
                match (clear, standing.clear_since) {
                    (true, None) => standing.clear_since = Some(t),
                    (false, _) => (standing.clear_since, standing.joined) = (None, false),
                    (true, Some(_)) => {}
                }
            }
            self.assess_clocks();
            for broker in 0..self.setup.brokers {
                let led_by = self.led_by(broker);
                let leader = led_by.map(|(host, _)| host);
                if leader != self.ledger.led[broker].map(|(host, _)| host) {
                    self.ledger.led[broker] = leader.map(|host| (host, self.t));
                    self.ledger.led_further_back |= led_by.is_some_and(|(_, seat)| seat != Seat::FIRST);
                }
            }
        }
        if self.ledger.clocks_differ {
            let span = 3 * self.ledger.beat + self.ledger.settle + 2 * self.ledger.clock_bound;
            self.ledger.clocks_excused_until = self.t + span;
        }
        for index in 0..self.hosts.len() {
            // A farm without a leader loses nothing for an interval.
            if self.is_led(index) {
                self.hosts[index].standing.led_at = self.t;
            } else if self.t > self.hosts[index].standing.led_at + self.ledger.interval {
                self.hosts[index].standing.joined = false;
            }
            if !self.hosts[index].standing.joined && self.has_joined(index) {
                self.hosts[index].standing.joined = true;
                self.look(index);
            }
        }
    }

    fn is_led(&self, index: usize) -> bool {
        let broker = self.hosts[index].link.map(|link| self.links[link].broker);
        let leader = broker.and_then(|broker| self.ledger.led[broker]);
        leader.is_some_and(|(leader, _)| {
            self.apart(index, leader) < self.ledger.clock_bound && self.share_secrets(index, leader)
        })
    }

    /// Whether it has been connected undisturbed beside a leader for three beats, and for a beat and `settle`.
    fn has_joined(&self, index: usize) -> bool {
        let Some(link) = self.hosts[index].link else { return false };
        let Some((leader, led_since)) = self.ledger.led[self.links[link].broker] else { return false };
        let (own, lead) = (&self.hosts[index].standing, &self.hosts[leader].standing);
        let (Some(own_since), Some(lead_since)) = (own.clear_since, lead.clear_since) else { return false };
        let since = [led_since, own_since, lead_since, own.clock_set_at, lead.clock_set_at, own.alone_at];
        let since = since.into_iter().fold(0, u64::max);
        // What it got when it came has settled by then: until that, it seals with what it had, however old.
        let span = (3 * self.ledger.beat).max(self.ledger.beat + self.ledger.settle);
        self.t >= since + span
            && self.apart(index, leader) < self.ledger.clock_bound
            && self.share_secrets(index, leader)
    }

    /// While some take a node's messages and others refuse them for its clock, the former may know keys that the latter
    /// do not. After a dishonest member sent its ring, any wrong clock makes such a difference.
    fn assess_clocks(&mut self) {
        let bound = self.ledger.clock_bound;
        let running: Vec<_> = (0..self.hosts.len()).filter(|host| self.hosts[*host].core.is_some()).collect();
        let limits = || running.iter().map(|host| millis(self.hosts[*host].settings.keys.max_clock_offset));
        let (least, most) = (limits().min().unwrap_or_default(), limits().max().unwrap_or_default());
        let wrong: Vec<u64> = running
            .iter()
            .flat_map(|a| running.iter().filter(move |b| a < *b).map(|b| self.apart(*a, *b)))
            .filter(|apart| *apart >= bound)
            .collect();
        let taken = |apart: &u64| *apart <= most + bound;
        self.ledger.tainted |= 2 * most >= self.ledger.interval && wrong.iter().any(taken);
        let differs = |apart: &u64| self.ledger.poisoned || (taken(apart) && apart + bound >= least);
        self.ledger.clocks_differ = wrong.iter().any(differs);
    }

    /// What a node noticed that matters here.
    pub fn noted(&mut self, index: usize, note: &Note) {
        match note {
            // No other node needs to know that key yet.
            Note::Minted { reason: MintReason::Alone, .. } => {
                self.hosts[index].standing.alone_at = self.t;
                self.hosts[index].standing.joined = false;
            }
            // What a node reports of its host is within bounds, also where the daemon tells it of more. No report here is forged.
            Note::Refused { node, reason: Reason::BadReport } => {
                let name = self.hosts[index].name.clone();
                self.violated(|| format!("invariant 7: {name} refuses a report of {node}"));
            }
            // Nothing opened any more: what a dishonest member may bring about.
            Note::Minted { reason: MintReason::First, .. } if self.ledger.tainted => self.excuse(),
            _ => {}
        }
    }
}

/// Of two keys of one name that differ, the higher of these stays.
fn rank(key: &TicketKey) -> (u64, u64, u64, u64, [u8; 32], [u8; 32]) {
    (key.generation, key.seal_from, key.seal_until, key.open_for, *key.hmac(), *key.aes())
}
