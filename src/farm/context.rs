//! What every concern of the farm is handed: who the node is, how often it reports, its deadlines and its randomness; and
//! where it puts what is to be done.

use zeroize::Zeroizing;

use super::event::{Action, Note};
use super::settings::FarmSettings;
use super::timers::Timers;
use crate::clock::{Now, millis};
use crate::proto::payload::Kind;
use crate::random::Randomness;
use crate::reason::Reason;
use crate::routes::Route;

/// A leader, a lease or an inbox that is silent for this many beats is taken for broken.
pub(super) const SILENT_BEATS: u64 = 3;

/// No announcement makes a node report more seldom than this.
const LONGEST_REPORT_INTERVAL_MS: u64 = 60_000;

/// Belongs to the node; concerns borrow it for as long as they decide.
pub(super) struct Context {
    pub(super) settings: FarmSettings,
    /// Milliseconds between reports, the beat: as the leader last said, or as this leader sets it.
    pub(super) report_interval: u64,
    pub(super) timers: Timers,
    random: Randomness,
    out: Vec<Action>,
}

impl Context {
    pub(super) fn new(settings: FarmSettings, random: Randomness) -> Self {
        let report_interval = millis(settings.report_every);
        Self { settings, report_interval, timers: Timers::default(), random, out: Vec::new() }
    }

    // What is to be done.

    pub(super) fn act(&mut self, action: Action) {
        self.out.push(action);
    }

    pub(super) fn send(&mut self, to: Route, kind: Kind) {
        self.act(Action::Send { to, kind });
    }

    pub(super) fn note(&mut self, note: Note) {
        self.act(Action::Note(note));
    }

    /// A message of `node` is not acted on.
    pub(super) fn refuse(&mut self, node: &str, reason: Reason) {
        self.note(Note::Refused { node: node.to_owned(), reason });
    }

    /// What was put here since this was called last, in order.
    pub(super) fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.out)
    }

    // Time.

    /// As many beats in milliseconds.
    pub(super) fn beats(&self, count: u64) -> u64 {
        count.saturating_mul(self.report_interval)
    }

    /// After this many milliseconds what is silent is taken for broken.
    pub(super) fn silence(&self) -> u64 {
        self.beats(SILENT_BEATS)
    }

    /// Whether what was heard at `at`, monotonic milliseconds, was heard lately enough to be there.
    pub(super) fn is_heard(&self, at: u64, now: Now) -> bool {
        now.mono.saturating_sub(at) <= self.silence()
    }

    /// Milliseconds: a node reports no more often than it is set to, and no farm is so large that one reports less often
    /// than once a minute, unless it is set to.
    pub(super) fn bounded_interval(&self, interval: u64) -> u64 {
        let least = millis(self.settings.report_every);
        interval.clamp(least, LONGEST_REPORT_INTERVAL_MS.max(least))
    }

    // Randomness.

    /// Bytes of which a key is made.
    pub(super) fn draw<const N: usize>(&mut self) -> Zeroizing<[u8; N]> {
        let mut bytes = Zeroizing::new([0; N]);
        (self.random)(bytes.as_mut());
        bytes
    }

    /// A number below `bound`, or 0.
    pub(super) fn random_below(&mut self, bound: u64) -> u64 {
        let mut bytes = [0; 8];
        (self.random)(&mut bytes);
        u64::from_le_bytes(bytes) % bound.max(1)
    }

    /// Over how many milliseconds `members` nodes spread what all of them do for one and the same reason.
    pub(super) fn spread(&self, members: u32) -> u64 {
        (2 * u64::from(members)).clamp(1, self.report_interval / 4 + 1)
    }
}
