//! A proxy host: the node's state machine, its envelopes, its clocks, what it saved, and the proxy beside it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use resumed::bus::backoff::Redial;
use resumed::clock::{Now, millis};
use resumed::envelope::{Epochs, Opener};
use resumed::farm::{Farm, Note, Reply};
use resumed::keys::{HeldRing, KeySettings, Ring, Timetable};
use resumed::proto;
use tokio::sync::watch;

use super::broker::{Downstream, LinkId};
use super::invariants::Standing;

/// True time at the start of every run, UTC milliseconds.
pub const START: u64 = 1_700_000_000_000;
const MONO_START: u64 = 86_400_000;

/// How one node is configured.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub keys: KeySettings,
    pub report_every: Duration,
    pub start_alone_after: Duration,
    pub can_lead: bool,
}

/// A host's clocks against true time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    pub offset_ms: i64,
    /// Parts per million that the wall clock runs fast.
    pub drift_ppm: i64,
    /// For so long the monotonic clock stood still: the host was suspended.
    pub suspended_ms: u64,
}

impl Clock {
    /// The wall clock minus true time at `t`.
    pub fn offset_at(&self, t: u64) -> i64 {
        self.offset_ms + i64::try_from(t).expect("a short run") * self.drift_ppm / 1_000_000
    }

    pub fn at(&self, t: u64) -> Now {
        Now { wall: (START + t).saturating_add_signed(self.offset_at(t)), mono: MONO_START + t - self.suspended_ms }
    }
}

/// What stops a node from running while its process exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// SIGSTOP: no heartbeats either.
    Frozen { since: u64 },
    /// The whole host, as a virtual machine: its monotonic clock too.
    Suspended { since: u64 },
    /// Stuck, while the connection's heartbeats go on.
    Hung,
}

/// A ring as `ring_file` saves it.
#[derive(Clone)]
pub struct Saved {
    pub ring: proto::Ring,
    held_for: HashMap<[u8; 16], u64>,
    saved_at: u64,
}

impl Saved {
    pub fn save(held: &HeldRing, now: Now) -> Self {
        let span = |name: &[u8; 16]| held.held_for(name, now).map_or(0, millis);
        let held_for = held.ring().open_at(now.wall).map(|key| (key.name, span(&key.name))).collect();
        Self { ring: held.ring().to_proto(now.wall), held_for, saved_at: now.wall }
    }

    /// Time that passed since counts as held.
    pub fn restore(&self, settings: KeySettings, now: Now) -> HeldRing {
        let since = now.wall.saturating_sub(self.saved_at);
        let spans = self.held_for.iter().map(|(name, span)| (*name, Duration::from_millis(span + since))).collect();
        let (ring, _) = Ring::read(&self.ring, now, &settings);
        let mut held = HeldRing::restore(ring, &spans, settings, now);
        held.expire(now);
        held
    }
}

pub struct Host {
    pub name: String,
    pub settings: Settings,
    /// The broker that it tries first.
    pub home: usize,
    /// `None` while the daemon does not run.
    pub farm: Option<Farm>,
    pub boots: u8,
    pub saved: Option<Saved>,
    pub opener: Option<Opener>,
    /// This boot's epoch keys, for all who seal and open.
    pub epochs: watch::Sender<Arc<Epochs>>,
    /// The envelopes that this boot's opener has opened.
    pub opened: HashSet<u64>,
    /// The link that the node takes for open.
    pub link: Option<LinkId>,
    pub links: u32,
    /// When this boot dials again.
    pub redial: Redial,
    /// The attempt to connect that is planned, by its number.
    pub dial: Option<u32>,
    /// How many attempts were planned, and how often it has dialled, over all boots.
    pub planned_dials: u32,
    pub dials: u32,
    /// What the proxy was last given. It outlives the daemon.
    pub proxy: Timetable,
    /// The network to the broker is cut, for the how-many-eth time.
    pub cut: Option<u32>,
    pub cuts: u32,
    pub stopped: Option<Stopped>,
    /// What waits for a stopped node: when it came, on which link.
    pub stash: VecDeque<(u64, LinkId, Downstream)>,
    pub clock: Clock,
    pub replies: Vec<(u64, Reply)>,
    pub notes: Vec<Note>,
    /// When the machine wants to wake, true time.
    pub wake: u64,
    pub standing: Standing,
}

impl Host {
    pub fn new(index: usize, settings: Settings, home: usize) -> Self {
        Self {
            name: format!("node{index}"),
            settings,
            home,
            farm: None,
            boots: 0,
            saved: None,
            opener: None,
            epochs: watch::Sender::new(Arc::new(Epochs::new(settings.keys.settle))),
            opened: HashSet::new(),
            link: None,
            links: 0,
            redial: Redial::default(),
            dial: None,
            planned_dials: 0,
            dials: 0,
            proxy: Timetable::default(),
            cut: None,
            cuts: 0,
            stopped: None,
            stash: VecDeque::new(),
            clock: Clock::default(),
            replies: Vec::new(),
            notes: Vec::new(),
            wake: 0,
            standing: Standing::default(),
        }
    }

    pub fn is_leader(&self) -> bool {
        self.farm.as_ref().is_some_and(Farm::is_leader)
    }

    /// Whether it leads, with the lease or without.
    pub fn leads(&self) -> bool {
        self.farm.as_ref().is_some_and(Farm::leads)
    }

    pub fn held(&self) -> Option<&HeldRing> {
        self.farm.as_ref().map(Farm::held)
    }
}
