//! From a seed to a farm, its faults, and what must hold when they are over.

use std::collections::BTreeSet;
use std::time::Duration;

use resumed::KeySettings;
use resumed::internals::clock::millis;
use resumed::internals::farm::{Ask, LocalState, Reply};
use resumed::internals::keys::Ring;
use resumed::internals::node::Input;
use resumed::internals::proto;

use super::World;
use super::broker::Store;
use super::host::{Host, Settings, Stopped};
use super::random::Seeded;
use super::secrets::STEPS;
use super::world::{START, Setup, Violation};

/// What operators ask for in the middle of it all.
const ASKED: &[Ask] = &[Ask::Rotate, Ask::Rotate, Ask::Status];

const HOUR_MS: i64 = 3_600_000;

/// The kinds of faults that a seed may draw from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Crash,
    StandStill,
    Network,
    Broker,
    Cluster,
    Bugs,
    Clocks,
    Operators,
    Revocations,
    Poison,
    Secrets,
    Disk,
    Host,
    Flood,
    Sites,
}

const CLASSES: &[Class] = &[
    Class::Crash,
    Class::StandStill,
    Class::Network,
    Class::Broker,
    Class::Cluster,
    Class::Bugs,
    Class::Clocks,
    Class::Operators,
    Class::Revocations,
    Class::Poison,
];

/// What happens on hosts beside the others: a farm secret is changed, the ring cannot be saved, what reports say of a host
/// changes, batches come that no node can open.
const ON_HOSTS: &[Class] = &[Class::Secrets, Class::Disk, Class::Host, Class::Flood];

/// These are drawn apart from all others, and two farms of three have some. So chosen that the seeds that found something tell
/// the stories in which they found it.
const HOSTS_SEED: u64 = 0x686f_7374_1d04;

/// Another such draw: which farms without a cluster have two sites. Chosen for the same reason.
const SITES_SEED: u64 = 0x7369_7465_0010;

/// Proxies that a report may tell of.
const MOST_PROXIES: usize = 16;

/// What a run showed, for those who want to know that it showed anything.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub nodes: u64,
    pub faults: u64,
    pub pairs_checked: u64,
    /// Of these, at another site.
    pub pairs_across: u64,
    pub attacks_refused: u64,
    /// How often a node read its farm secrets again, and met a message under one that it had not.
    pub reloads: u64,
    pub unknown_secrets: u64,
    /// How often a ring could not be saved, and how often a node died while it was not.
    pub saves_failed: u64,
    pub died_unsaved: u64,
    /// A node led at a seat behind the first.
    pub led_further_back: bool,
    /// At its end the farm was led without a lease.
    pub led_without_lease: bool,
    /// What happened lately, if a trace was asked for.
    pub story: Vec<String>,
}

/// Runs the seed's farm through its faults.
pub fn run(seed: u64, trace: bool) -> Result<Outcome, Violation> {
    Run::new(seed, trace).run()
}

struct Run {
    world: World,
    faults: Seeded,
    classes: Vec<Class>,
    /// The same for what happens on hosts.
    on_hosts: (Seeded, Vec<Class>),
    died_unsaved: u64,
    happened: u64,
    /// A locked lease is left locked when everything else heals.
    keeps_lock: bool,
    /// The highest generation that every right clock took for possible when all was well again.
    possible: u64,
}

fn seconds(s: u64) -> Duration {
    Duration::from_secs(s)
}

fn setup(seed: u64, random: &mut Seeded, classes: &[Class]) -> Setup {
    let nodes = match random.below(100) {
        0..65 => random.between(2, 5),
        65..90 => random.between(6, 10),
        90..98 => random.between(11, 20),
        _ => random.between(21, 50),
    };
    let interval = random.pick(&[10, 20, 60, 60, 300, 3_600]);
    let beat = random.pick(&[500, 1_000, 2_000, 2_000, 5_000]);
    let settle = random.pick(&[500, 1_000, 2_000, 2_000, 4_000]).min(interval * 450);
    let like = Settings {
        keys: KeySettings {
            interval: seconds(interval),
            keep: u32::try_from(random.between(1, 5)).expect("small"),
            settle: Duration::from_millis(settle),
            max_seal_age: seconds(interval * random.between(2, 4)),
            max_clock_offset: seconds(random.pick(&[30, 60, 300, 300])),
        },
        report_every: Duration::from_millis(beat),
        start_alone_after: seconds(10),
        can_lead: true,
    };
    let differ = random.chance(40);
    let mut hosts: Vec<Settings> = (0..nodes)
        .map(|index| {
            let mut host = like;
            if differ {
                let keys = &mut host.keys;
                keys.interval = keys.interval.mul_f64(random.pick(&[1.0, 1.0, 2.0, 1.5]));
                keys.keep = u32::try_from(random.between(1, 5)).expect("small");
                keys.settle = keys.settle.mul_f64(random.pick(&[1.0, 1.0, 0.75, 0.5]));
                keys.max_seal_age = keys.interval.mul_f64(random.pick(&[2.0, 3.0, 4.0]));
                host.report_every = host.report_every.mul_f64(random.pick(&[1.0, 1.0, 2.0]));
                // The first may always lead, lest nobody may.
                host.can_lead = index == 0 || random.chance(70);
            }
            assert!(host.keys.validate().is_ok(), "{:?}", host.keys.validate());
            host
        })
        .collect();
    let least_settle = hosts.iter().map(|host| millis(host.keys.settle)).min().unwrap_or_default();
    let least_interval = hosts.iter().map(|host| millis(host.keys.interval)).min().unwrap_or_default();
    // A key is announced, may wait for the message before it, and is announced again by whom it reached by a report.
    let most = random.pick(&[5, 20, 100, 1_000]).min(least_settle / 12).min(beat / 20);
    let on_request = [Class::Operators, Class::Revocations, Class::Poison].iter().any(|class| classes.contains(class));
    let clock_bound = if on_request { least_settle } else { least_interval / 2 };
    let in_cluster = classes.contains(&Class::Cluster);
    let khepri = in_cluster && Seeded::new(seed ^ 0x6b68_6570).chance(50);
    let (brokers, store) = match (in_cluster, khepri) {
        (false, _) => (1, Store::Mnesia),
        (true, false) => (2, Store::Mnesia),
        // The smallest cluster in which one may be lost.
        (true, true) => (3, Store::Khepri),
    };
    let attacks = random.pick(&[0, 5, 20]);
    // It knows whose a queue is.
    let deletes_by_name = random.chance(50) && !khepri;
    let (latency, clock_bound) = ((1, most.max(2)), clock_bound.min(10_000));
    let sites = !in_cluster && has_sites(seed);
    let brokers = if sites { 2 } else { brokers };
    if sites {
        // The first of each.
        hosts[1].can_lead = true;
    }
    Setup { hosts, brokers, sites, store, deletes_by_name, latency, attacks, clock_bound }
}

/// What may happen on hosts in the seed's farm, and what decides when.
fn on_hosts(seed: u64, sites: bool) -> (Seeded, Vec<Class>) {
    let mut random = Seeded::new(seed ^ HOSTS_SEED);
    let often = random.pick(&[10, 25, 50]);
    let mut classes: Vec<Class> = ON_HOSTS.iter().copied().filter(|_| random.chance(often)).collect();
    classes.extend(sites.then_some(Class::Sites));
    (random, classes)
}

fn has_sites(seed: u64) -> bool {
    Seeded::new(seed ^ SITES_SEED).chance(25)
}

/// Whether a row of the member table says of a host what its daemon does.
fn tells(member: &proto::Member, host: &Host) -> bool {
    let LocalState { sessions, proxies, secret_ids, reload } = &host.local;
    let told = |proxies: &[proto::Proxy]| proxies.iter().take(MOST_PROXIES).cloned().collect::<Vec<_>>();
    member.name == host.name
        && member.sessions == *sessions
        && told(&member.proxies) == told(proxies)
        && member.secret_ids == *secret_ids
        && member.operators.as_ref().is_some_and(|trail| trail.reload.as_ref() == Some(reload))
}

impl Run {
    fn new(seed: u64, trace: bool) -> Self {
        let mut faults = Seeded::new(seed ^ 0xfa17_fa17);
        let often = faults.pick(&[20, 40, 70]);
        let classes: Vec<Class> = CLASSES.iter().copied().filter(|_| faults.chance(often)).collect();
        let setup = setup(seed, &mut faults, &classes);
        let on_hosts = on_hosts(seed, setup.sites);
        let keeps_lock = faults.chance(30);
        let mut world = World::new(seed, setup, trace);
        world.say(|world| {
            let Setup { brokers, store, deletes_by_name, latency, attacks, clock_bound, .. } = &world.setup;
            format!("{brokers} brokers, {store:?}, deletes by name: {deletes_by_name}, latency {latency:?} ms, attacks {attacks} %, clocks within {clock_bound} ms, {classes:?} and {:?}", on_hosts.1)
        });
        for index in 0..world.hosts.len() {
            world.say(|world| format!("{}: {:?}", world.hosts[index].name, world.hosts[index].settings));
        }
        Self { world, faults, classes, on_hosts, died_unsaved: 0, happened: 0, keeps_lock, possible: 0 }
    }

    fn run(mut self) -> Result<Outcome, Violation> {
        // Clocks are never quite the same.
        let bound = i64::try_from(self.world.setup.clock_bound).expect("small");
        for index in 0..self.world.hosts.len() {
            let offset = self.offset_within(bound / 2);
            self.world.set_clock(index, offset, 0);
        }
        let beat = self.world.ledger.beat();
        self.world.advance(4 * beat)?;
        let rounds = if self.classes.is_empty() { 0 } else { self.faults.between(5, 20) };
        for _ in 0..rounds {
            let class = self.classes[self.faults.index(self.classes.len())];
            self.fault(class);
            self.happened += 1;
            self.on_host();
            let most = self.faults.pick(&[1, 1, 4, 8]) * beat;
            let span = self.faults.below(most);
            self.world.advance(span)?;
        }
        self.all_well()?;
        let World { ledger, hosts, .. } = &self.world;
        Ok(Outcome {
            nodes: hosts.len() as u64,
            faults: self.happened,
            pairs_checked: ledger.pairs_checked,
            pairs_across: ledger.pairs_across,
            attacks_refused: ledger.attacks_refused,
            reloads: self.world.reloads,
            unknown_secrets: self.world.unknown_secrets,
            saves_failed: self.world.saves_failed,
            died_unsaved: self.died_unsaved,
            led_further_back: ledger.led_further_back,
            led_without_lease: !hosts.iter().any(Host::is_leader),
            story: self.world.story(),
        })
    }

    fn offset_within(&mut self, bound: i64) -> i64 {
        let span = u64::try_from(2 * bound.max(1) - 1).expect("positive");
        i64::try_from(self.faults.below(span)).expect("small") - bound + 1
    }

    fn any_host(&mut self) -> usize {
        // Leaders are the more interesting victims.
        let leaders: Vec<_> = (0..self.world.hosts.len()).filter(|host| self.world.hosts[*host].is_leader()).collect();
        if !leaders.is_empty() && self.faults.chance(40) {
            return leaders[self.faults.index(leaders.len())];
        }
        self.faults.index(self.world.hosts.len())
    }

    fn fault(&mut self, class: Class) {
        let host = self.any_host();
        let t = self.world.t;
        let world = &mut self.world;
        match class {
            Class::Crash => match (world.hosts[host].core.is_some(), self.faults.below(4)) {
                (true, 0) => {
                    world.shut_down(host);
                    world.restart(host, true);
                }
                (true, _) => world.crash(host),
                (false, 0) => world.restart(host, false),
                (false, _) => world.restart(host, true),
            },
            Class::StandStill => {
                let hows =
                    [Stopped::Frozen { since: t }, Stopped::Suspended { since: t }, Stopped::Hung, Stopped::Hung];
                match world.hosts[host].stopped {
                    Some(_) => world.go_on(host),
                    None => world.stop(host, self.faults.pick(&hows)),
                }
            }
            Class::Network => match world.hosts[host].cut {
                Some(_) => world.mend(host),
                None => world.cut(host),
            },
            Class::Broker => {
                let broker = self.faults.index(world.cluster.up.len());
                match self.faults.below(4) {
                    0 => world.block(!world.cluster.blocked),
                    _ if world.cluster.up[broker] => world.stop_broker(broker),
                    _ => world.start_broker(broker),
                }
            }
            Class::Cluster => match (world.cluster.split, world.setup.store) {
                (Some(_), _) => world.heal(self.faults.index(2)),
                (None, Store::Mnesia) => world.split(1),
                (None, Store::Khepri) => world.split(self.faults.index(world.setup.brokers)),
            },
            Class::Bugs => match self.faults.below(6) {
                0 => world.lose_lease(false),
                1 => world.lose_lease(true),
                2 => world.silence_lease(),
                3 => world.lock_lease(),
                4 => world.unlock_lease(),
                _ => world.silence_inbox(host),
            },
            Class::Clocks => {
                let offset = match self.faults.below(4) {
                    0 => self.offset_within(HOUR_MS),
                    1 => self.offset_within(300_000),
                    2 => self.offset_within(5_000),
                    _ => 0,
                };
                let drift = self.faults.pick(&[0, 0, 50, -50, 200]);
                self.world.set_clock(host, offset, drift);
            }
            Class::Operators => {
                let ask = self.faults.pick(ASKED);
                self.ask(host, ask);
            }
            Class::Revocations if self.faults.chance(70) => {
                let flush_sessions = self.faults.chance(50);
                let ask = match self.faults.below(3) {
                    0 => Ask::RevokeLocal { flush_sessions },
                    _ => Ask::Revoke { flush_sessions },
                };
                self.ask(host, ask);
            }
            Class::Revocations => {
                if world.hosts[host].core.is_some() && world.hosts[host].stopped.is_none() {
                    world.crash(host);
                }
                world.restart_revoked(host);
            }
            Class::Poison => {
                let ring = self.poisoned(host);
                self.world.poison(host, ring);
            }
            Class::Secrets => self.change_secrets(),
            Class::Disk => self.fail_saves(host),
            Class::Host => {
                let local = self.said_of(host);
                self.world.hosts[host].local = local;
                self.world.tell_of_host(host);
            }
            Class::Sites => {
                let cut = !world.federation.cut;
                world.cut_federation(cut);
            }
            Class::Flood => {
                let (batches, every) = (self.faults.pick(&[50, 200, 400]), self.faults.pick(&[5, 20]));
                world.flood(host, batches, every);
            }
        }
    }

    /// Now and then something happens on a host as well.
    fn on_host(&mut self) {
        let (random, classes) = &mut self.on_hosts;
        if classes.is_empty() || !random.chance(70) {
            return;
        }
        let class = classes[random.index(classes.len())];
        std::mem::swap(&mut self.faults, &mut self.on_hosts.0);
        self.fault(class);
        std::mem::swap(&mut self.faults, &mut self.on_hosts.0);
        self.happened += 1;
    }

    /// An operator goes on with a change of the farm secret, or goes back: on hosts that are behind all others, or ahead of
    /// them, so that none is two steps from another. Or has no patience, and some hosts are left behind.
    fn change_secrets(&mut self) {
        let steps: Vec<u32> = self.world.hosts.iter().map(Host::secrets_step).collect();
        let least = steps.iter().min().copied().unwrap_or_default();
        let most = steps.iter().max().copied().unwrap_or_default();
        let how = self.faults.below(100);
        // What is under way was sealed with what sealed before.
        let settled = self.world.t > self.world.secrets_moved_at + 2 * self.world.setup.latency.1;
        let (from, to) = match how {
            0..8 => (None, (most / STEPS + 1) * STEPS),
            _ if !settled => return,
            8..20 if most > 0 => (Some(most), most - 1),
            _ => (Some(least), least + 1),
        };
        let waits = |host: &usize| self.world.hosts[*host].secrets_on_disk == steps[*host];
        let mut hosts: Vec<usize> = (0..steps.len()).filter(waits).collect();
        hosts.retain(|host| from.is_none_or(|from| steps[*host] == from));
        if hosts.is_empty() {
            return;
        }
        let (first, count) = (self.faults.index(hosts.len()), self.faults.between(1, hosts.len() as u64));
        hosts.rotate_left(first);
        for (_, host) in (0..count).zip(hosts) {
            self.world.put_secrets(host, to);
        }
    }

    /// A host's files cannot be written for a while; or a node dies whose ring could not be saved, and is there again with
    /// what it saved before.
    fn fail_saves(&mut self, host: usize) {
        let is_unsaved = |host: &usize| self.world.hosts[*host].standing.unsaved.is_some();
        let unsaved = (0..self.world.hosts.len()).find(is_unsaved);
        match unsaved {
            Some(host) if self.faults.chance(60) && self.world.hosts[host].core.is_some() => {
                self.died_unsaved += 1;
                self.world.crash(host);
                self.world.restart(host, true);
            }
            _ => {
                let span = self.faults.pick(&[1_000, 4_000, 12_000, 40_000]);
                self.world.fail_saves(host, span);
            }
        }
    }

    /// What a daemon may say of its host: of as many proxies as are connected, and of their settings as much as is told.
    fn said_of(&mut self, host: usize) -> LocalState {
        let count = self.faults.pick(&[0, 1, 1, 2, 20]);
        let mut warnings = self.faults.below(MOST_PROXIES as u64);
        let mut proxy = |number: u64| {
            let of_it = self.faults.below(warnings + 1);
            warnings -= of_it;
            proto::Proxy {
                kind: self.faults.pick(&["ats", "rustls"]).to_owned(),
                version: format!("9.2.{number}"),
                certificate_digest: vec![7; self.faults.pick(&[0, 8])],
                warnings: (0..of_it).map(|which| format!("setting {which} breaks resumption")).collect(),
            }
        };
        let proxies = (0..count).map(&mut proxy).collect();
        let reload = proto::LastReload {
            at: self.world.now(host).wall,
            refused: self.faults.pick(&["", "farm secret: its text is empty"]).to_owned(),
        };
        let secret_ids = self.world.hosts[host].local.secret_ids.clone();
        LocalState { sessions: self.faults.below(100_000), proxies, secret_ids, reload }
    }

    fn ask(&mut self, host: usize, ask: Ask) {
        let id = self.world.sequence_of_asks();
        self.world.say(|world| format!("an operator asks {}: {ask:?}", world.hosts[host].name));
        if self.world.hosts[host].stopped.is_none() {
            self.world.give(host, Input::Ask { id, ask, user: String::new() });
        }
    }

    /// A ring that no honest member sends.
    fn poisoned(&mut self, host: usize) -> proto::Ring {
        let wall = self.world.now(host).wall;
        let offset = millis(self.world.hosts[host].settings.keys.max_clock_offset);
        let interval = millis(self.world.hosts[host].settings.keys.interval);
        let mut ring = proto::Ring::default();
        let far = self.faults.pick(&[u64::MAX, wall + 3_600_000, wall + offset - 1_000]);
        match self.faults.below(7) {
            0 => ring.floor = far,
            6 => ring.sessions_from = far,
            1 => ring.keys.push(self.made_up(far, wall, wall + interval, interval)),
            // As long as any may live, or longer.
            2 => {
                let begins = wall + 7 * 86_400_000;
                let (seals, opens) = (KeySettings::MAX_SEAL_AGE.end(), KeySettings::LONGEST_OPEN_FOR);
                let ends = if far == u64::MAX { far } else { begins + millis(*seals) };
                ring.keys.push(self.made_up(wall + 1, begins, ends, millis(opens)));
            }
            // It closes at once, and with it everything that is older.
            3 => ring.keys.push(self.made_up(wall + 1, wall - interval, wall - 1, 0)),
            4 => {
                let known = self.world.hosts[host].held().and_then(|held| held.ring().keys().first().cloned());
                if let Some(key) = known {
                    let mut message = key.to_proto();
                    message.hmac = vec![0xee; 32];
                    message.generation += self.faults.below(2);
                    ring.keys.push(message);
                }
            }
            _ => {
                let count = Ring::CAP as u64 + 10;
                ring.keys =
                    (0..count).map(|n| self.made_up(wall - 5_000 + n, wall, wall + interval, interval)).collect();
            }
        }
        ring
    }

    fn made_up(&mut self, generation: u64, seal_from: u64, seal_until: u64, open_for: u64) -> proto::TicketKey {
        let mut name = vec![0; 16];
        self.faults.fill(&mut name);
        proto::TicketKey {
            name,
            hmac: vec![0xbb; 32],
            aes: vec![0xaa; 32],
            generation,
            seal_from,
            seal_until,
            open_for,
        }
    }

    /// Everything heals; then invariant 3, and the rest of invariant 4.
    fn all_well(&mut self) -> Result<(), Violation> {
        self.world.say(|_| "everything heals".to_owned());
        let bound = i64::try_from(self.world.setup.clock_bound).expect("small");
        let heals = self.world.cluster.split.filter(|_| !self.world.setup.sites).map(|_| self.faults.index(2));
        heals.into_iter().for_each(|loser| self.world.heal(loser));
        for broker in 0..self.world.setup.brokers {
            self.world.start_broker(broker);
        }
        self.world.block(false);
        self.world.cut_federation(false);
        // A lease without anybody behind it may also last: a farm that can act without it shall do so.
        let locked = self.world.cluster.leases.iter().any(|queue| queue.owner.is_none());
        let without_lease = locked && self.keeps_lock && !self.world.setup.sites;
        if without_lease {
            self.world.cluster.will_stick = false;
        } else {
            self.world.unlock_lease();
        }
        // The change of the secret ends, also where it was left out.
        let step = self.world.hosts.iter().map(Host::secrets_step).max().unwrap_or_default();
        for index in 0..self.world.hosts.len() {
            self.world.put_secrets(index, step);
            let offset = self.offset_within(bound / 2);
            self.world.set_clock(index, offset, 0);
            self.world.mend(index);
            self.world.go_on(index);
            let with_ring = self.faults.chance(80);
            self.world.restart(index, with_ring);
        }
        if !self.world.ledger.poisoned {
            self.keep_in_mind();
        }
        if without_lease { self.all_well_without_lease() } else { self.all_well_with_leader() }?;
        self.all_there()
    }

    /// From now on no key may be lost: what all the nodes hold together is kept in mind. But for keys that were minted by
    /// a clock so far ahead that by all others they cannot have been yet.
    fn keep_in_mind(&mut self) {
        let world = &self.world;
        let offset = world.hosts.iter().map(|host| millis(host.settings.keys.max_clock_offset)).min();
        self.possible = START + world.t + offset.unwrap_or_default() - world.setup.clock_bound;
        let mut all = Ring::default();
        for held in world.hosts.iter().filter_map(Host::held) {
            all.merge(held.ring());
        }
        self.world.ledger.all_keys = Some(all);
    }

    /// Every key that a node held since all was well, and that still opens, is held by all now.
    fn all_there(&mut self) -> Result<(), Violation> {
        // One that was minted a moment ago is on its way.
        let until = self.world.t + 6 * self.world.ledger.beat() + 3 * self.world.setup.latency.1;
        self.wait(until, Self::one_ring)?;
        let world = &self.world;
        let ring = world.hosts.iter().find_map(|host| Some(host.held()?.ring()));
        let (Some(ring), Some(all)) = (ring, &world.ledger.all_keys) else { return Ok(()) };
        let latest = START + world.t + world.setup.clock_bound;
        let missing = all.open_at(latest).find(|key| ring.key(&key.name).is_none());
        if let Some(generation) = missing.map(|key| key.generation).filter(|generation| *generation <= self.possible) {
            self.world.violated(|| format!("invariant 4: key {generation}, which a node held, is lost"));
        }
        self.world.verdict()
    }

    fn all_clear(&self) -> bool {
        (0..self.world.hosts.len()).all(|host| self.world.is_clear(host))
    }

    /// Waits until `done`, at most until `deadline`; whether it came.
    fn wait(&mut self, deadline: u64, done: impl Fn(&Self) -> bool) -> Result<bool, Violation> {
        loop {
            if done(self) {
                return Ok(true);
            }
            let went_on = self.world.step(deadline);
            self.world.verdict()?;
            if !went_on {
                return Ok(false);
            }
        }
    }

    /// Whether all nodes hold the same floor and the same keys, byte for byte, of those that open now.
    fn one_ring(&self) -> bool {
        let at = START + self.world.t;
        let mut rings = self.world.hosts.iter().filter_map(|host| Some(host.held()?.ring()));
        let Some(first) = rings.next() else { return true };
        rings.all(|ring| {
            ring.floor() == first.floor()
                && ring.sessions_from() == first.sessions_from()
                && ring.open_at(at).eq(first.open_at(at))
        })
    }

    fn rings(&self) -> String {
        let base = |generation: &u64| generation.saturating_sub(START);
        let ring = |host: &Host| {
            let ring = host.held().map(|held| held.ring().clone()).unwrap_or_default();
            let keys: Vec<_> = ring.keys().iter().map(|key| base(&key.generation)).collect();
            format!("{} {keys:?} floor {}", host.name, base(&ring.floor()))
        };
        self.world.hosts.iter().map(ring).collect::<Vec<_>>().join("; ")
    }

    fn all_well_with_leader(&mut self) -> Result<(), Violation> {
        let beat = self.world.ledger.beat();
        // Broken links are noticed after two heartbeats, a leader whose clock was wrong stays away for 30 beats.
        let deadline = self.world.t + 30_000 + 45 * beat;
        let is_back = |run: &Self| run.all_clear() && run.world.sites().all(|site| run.world.leader_of(site).is_some());
        if !self.wait(deadline, is_back)? {
            self.world.violated(|| "invariant 4: links or lease do not come back".to_owned());
            return self.world.verdict();
        }
        // A generation just inside max_clock_offset is possible by one clock now, and by the slowest of them later.
        let slowest = if self.world.ledger.poisoned { 2 * self.world.setup.clock_bound } else { 0 };
        // At two sites a leader hears the other, asks for its epoch key, and hears it again.
        let beats = if self.world.setup.sites { 6 } else { 3 };
        let until = self.world.t + beats * beat + 3 * self.world.setup.latency.1 + slowest;
        if !self.wait(until, Self::one_ring)? {
            let rings = self.rings();
            self.world
                .violated(|| format!("invariant 3: {beats} beats after the last fault the rings differ: {rings}"));
            return self.world.verdict();
        }
        self.world.say(|_| "one ring".to_owned());
        self.keys_go_on()
    }

    fn all_well_without_lease(&mut self) -> Result<(), Violation> {
        let beat = self.world.ledger.beat();
        // A node writes to its silent inbox after up to 24 beats, then ten without an announcement.
        let deadline = self.world.t + 30_000 + 60 * beat;
        let has_keys = |host: &Host| host.held().is_some_and(|held| held.ring().highest_generation() > 0);
        let well = |run: &Self| {
            run.all_clear()
                && run.one_ring()
                && run.world.hosts.iter().all(has_keys)
                && run.world.hosts.iter().filter(|host| host.leads()).count() == 1
                && run.all_follow_it()
        };
        if !self.wait(deadline, well)? {
            let leading: Vec<_> = self.world.hosts.iter().filter(|host| host.leads()).map(|host| &host.name).collect();
            let (leading, rings) = (format!("{leading:?}"), self.rings());
            self.world.violated(|| format!("without a lease to be had these lead: {leading}; rings: {rings}"));
            return self.world.verdict();
        }
        // A node that has just begun to lead gathers reports for three beats before it shows them.
        self.world.advance(6 * beat)?;
        self.all_are_shown()
    }

    /// Every node follows the one that leads. One that lacks its epoch key asks for it, in time.
    fn all_follow_it(&self) -> bool {
        let hosts = &self.world.hosts;
        let followed = |(index, host): (usize, &Host)| {
            let now = self.world.now(index);
            host.farm().and_then(|farm| farm.leader(now)).map(str::to_owned)
        };
        let leaders: BTreeSet<_> = hosts.iter().enumerate().map(followed).collect();
        leaders.len() == 1 && hosts.iter().any(|host| host.leads() && leaders.contains(&Some(host.name.clone())))
    }

    /// A node asked for the farm's table, whichever it is, is given that of the one that leads, with every node in it.
    fn all_are_shown(&mut self) -> Result<(), Violation> {
        let asked = self.faults.index(self.world.hosts.len());
        let id = self.world.sequence_of_asks();
        self.world.say(|world| format!("an operator asks {} for the table", world.hosts[asked].name));
        self.world.give(asked, Input::Ask { id, ask: Ask::Status, user: String::new() });
        self.world.advance(6_000)?;
        let leading: Vec<_> = self.world.hosts.iter().filter(|host| host.leads()).map(|host| &host.name).collect();
        let reply = self.world.hosts[asked].replies.iter().find(|(of, _)| *of == id).map(|(_, reply)| reply);
        // One that was restarted may stand there twice.
        let shown = |members: &[proto::Member], host: &Host| members.iter().any(|member| member.name == host.name);
        let whole = matches!(reply, Some(Reply::Members { leader, members })
            if leading == [leader] && self.world.hosts.iter().all(|host| shown(members, host)));
        if !whole {
            let what = format!("{asked} was answered {reply:?}, while these lead: {leading:?}");
            self.world.violated(|| format!("without a lease to be had node{what}"));
        }
        self.world.verdict()
    }

    /// Keys rotate, and everybody seals with the same one.
    fn keys_go_on(&mut self) -> Result<(), Violation> {
        let beat = self.world.ledger.beat();
        let longest = self.world.hosts.iter().map(|host| millis(host.settings.keys.interval)).max().unwrap_or_default();
        let span = 2 * longest + 2 * beat;
        let affordable = span / beat <= 150;
        let before = self.world.t;
        self.world.advance(if affordable { span } else { 10 * beat })?;
        let settled = |run: &Self| {
            let seals: Vec<_> = (0..run.world.hosts.len())
                .map(|host| {
                    run.world.hosts[host].held()?.active(run.world.now(host)).map(|key| (key.generation, key.seal_from))
                })
                .collect();
            let same = seals.iter().all(|seal| seal.is_some() && *seal == seals[0]);
            let rotated = seals[0].is_some_and(|(_, from)| from > START + before);
            let one_epoch = run.world.sites().all(|site| run.one_epoch(site));
            same && one_epoch && run.one_ring() && (rotated || !affordable || run.world.ledger.poisoned)
        };
        let until = self.world.t + 3 * beat + self.world.setup.clock_bound + 5_000;
        if !self.wait(until, settled)? {
            let rings = self.rings();
            self.world.violated(|| format!("invariant 4: rotation does not go on: {rings}"));
        }
        let leaders: Vec<_> = self.world.hosts.iter().filter(|host| host.is_leader()).map(|host| &host.name).collect();
        if leaders.len() != self.world.sites().len() {
            let leaders = format!("{leaders:?}");
            self.world.violated(|| format!("long after the last fault these lead: {leaders}"));
        }
        let settle = self.world.hosts.iter().map(|host| millis(host.settings.keys.settle)).max().unwrap_or_default();
        let until = self.world.t + 3 * beat + settle;
        self.wait(until, |run| run.world.hosts.iter().all(|host| host.standing.joined))?;
        if let Some(index) = (0..self.world.hosts.len()).find(|host| !self.world.hosts[*host].standing.joined) {
            self.world.violated(|| format!("node{index} does not count as connected when all is well"));
        }
        self.all_told()
    }

    /// Whether all nodes of a site hold the epoch key of its leader.
    fn one_epoch(&self, site: usize) -> bool {
        let mut epochs = self.nodes_of(site).map(|host| self.world.epoch(host));
        let first = epochs.next().flatten();
        first.is_some() && epochs.all(|epoch| epoch == first)
    }

    /// The nodes of a site; all of them, if there are none.
    fn nodes_of(&self, site: usize) -> impl Iterator<Item = usize> {
        let World { hosts, setup, .. } = &self.world;
        (0..hosts.len()).filter(move |host| !setup.sites || hosts[*host].home == site)
    }

    /// Any node that is asked shows of each host of its site what its daemon says of it. A leader that is new has not seen what came
    /// before: the report of a process that has ended, sent again while it is fresh, is shown until the host's next one.
    fn all_told(&mut self) -> Result<(), Violation> {
        const TRIES: u32 = 3;
        let asked = self.faults.index(self.world.hosts.len());
        let mut told = Ok(());
        for _ in 0..TRIES {
            told = self.told_by(asked)?;
            if told.is_ok() {
                break;
            }
        }
        if let Err(what) = told {
            self.world.violated(|| what);
        }
        self.world.verdict()
    }

    /// Whether the node `asked` shows all; or what it shows in place of that.
    fn told_by(&mut self, asked: usize) -> Result<Result<(), String>, Violation> {
        let id = self.world.sequence_of_asks();
        self.world.give(asked, Input::Ask { id, ask: Ask::Status, user: String::new() });
        self.world.advance(6_000)?;
        let reply = self.world.hosts[asked].replies.iter().find(|(of, _)| *of == id).map(|(_, reply)| reply);
        let Some(Reply::Members { members, .. }) = reply else {
            return Ok(Err(format!("node{asked} was answered {reply:?} when all is well")));
        };
        let is_told = |host: &usize| members.iter().any(|member| tells(member, &self.world.hosts[*host]));
        let untold = self.nodes_of(self.world.hosts[asked].home).find(|host| !is_told(host));
        let untold = untold.map(|host| &self.world.hosts[host]);
        if let Some(host) = untold {
            let shown: Vec<_> = members.iter().filter(|member| member.name == host.name).collect();
            let what = format!("invariant 7: node{asked} shows {shown:?}, while {} says {:?}", host.name, host.local);
            return Ok(Err(what));
        }
        Ok(Ok(()))
    }
}
