//! A proxy host: the node's state machine, its envelopes, its clocks, what it saved, and the proxy beside it.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use resumed::internals::envelope::Epochs;
use resumed::internals::farm::{Farm, LocalState, Note, Reply};
use resumed::internals::keys::{HeldRing, Timetable, read_back};
use resumed::internals::node::NodeCore;
use resumed::{KeySettings, Now, Secrets};
use tokio::sync::watch;

use super::broker::{Downstream, LinkId};
use super::invariants::Standing;
use super::secrets::secrets;
use super::world::FARM;

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

pub struct Host {
    pub name: String,
    pub settings: Settings,
    /// The broker that it tries first.
    pub home: usize,
    /// `None` while the daemon does not run.
    pub core: Option<NodeCore>,
    pub boots: u8,
    /// The file of its ring.
    pub saved: Option<Vec<u8>>,
    /// Until then no file can be written, true time.
    pub saves_fail_until: u64,
    /// How far a change of the farm secret has come in its files, and in its process.
    pub secrets_on_disk: u32,
    pub secrets_loaded: u32,
    /// The process's farm secrets, for all who seal.
    pub secrets: watch::Sender<Arc<Secrets>>,
    /// What its reports are to say of it.
    pub local: LocalState,
    /// This boot's epoch keys, for all who seal and open.
    pub epochs: watch::Sender<Arc<Epochs>>,
    /// The envelopes that this boot's opener has opened.
    pub opened: HashSet<u64>,
    /// The link that the node takes for open.
    pub link: Option<LinkId>,
    pub links: u32,
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
            core: None,
            boots: 0,
            saved: None,
            saves_fail_until: 0,
            secrets_on_disk: 0,
            secrets_loaded: 0,
            secrets: watch::Sender::new(secrets(0)),
            local: LocalState::default(),
            epochs: watch::Sender::new(Arc::new(Epochs::new(settings.keys.settle))),
            opened: HashSet::new(),
            link: None,
            links: 0,
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

    /// Its machine, while the daemon runs.
    pub fn farm(&self) -> Option<&Farm> {
        self.core.as_ref().map(NodeCore::farm)
    }

    pub fn is_leader(&self) -> bool {
        self.farm().is_some_and(Farm::is_leader)
    }

    /// Whether it leads, with the lease or without.
    pub fn leads(&self) -> bool {
        self.farm().is_some_and(Farm::leads)
    }

    pub fn held(&self) -> Option<&HeldRing> {
        self.farm().map(Farm::held)
    }

    /// The ring that a daemon of this host finds at `now`.
    pub fn saved_ring(&self, now: Now) -> HeldRing {
        let read = |contents: &Vec<u8>| read_back(contents, FARM, self.settings.keys, now).expect("it wrote the file");
        self.saved.as_ref().map_or_else(|| HeldRing::new(self.settings.keys), |contents| read(contents).held)
    }
}
