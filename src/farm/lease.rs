//! Who leads: whether this node does, where the lease is looked for, and when it is tried.
//!
//! The lease is an exclusive queue of the broker, one for each [`Seat`]: a lock that is bound to a connection, without a
//! term. That a leader is gone is seen by its silence.

use super::context::{Context, SILENT_BEATS};
use super::event::{Action, Note, StepDown};
use super::timers::Timer;
use super::walk::{SURE_MS, Step, Walk};
use crate::clock::{Now, millis};
use crate::proto;
use crate::routes::{Published, Route, Seat};

/// After this many beats without any valid announcement a node announces without the lease.
const ACT_AFTER_BEATS: u64 = 10;

/// How long a leader whose clock the farm disagrees with stays away from the lease, in beats.
const SKEWED_BACKOFF_BEATS: u64 = 30;

/// A new leader waits this long (or `settle`, if that is shorter) for reports that may bring a ring, before it mints the
/// first key of an empty farm. A ring that comes later is merged, too; but proxies that start with the farm wait only a
/// second for their first key.
const GATHER_MS: u64 = 250;

/// For this many beats a new leader waits for reports before it shows its member table as the farm.
const GATHER_BEATS: u64 = 3;

/// The longest random delay before trying a lease that was seen free, in a small farm.
pub(super) const LEASE_JITTER_MS: u64 = 150;

/// A leader that took over just now, or hears another one, looks this often whether the lease is still its own.
pub(super) const PROBE_MS: u64 = 200;

/// This many returned messages in a row tell a leader that its queue is gone. One may have been under way since before it
/// took the lease.
const RETURNS: u8 = 2;

/// What is set while a node leads.
const OF_A_LEADER: [Timer; 6] =
    [Timer::Mint, Timer::Announce, Timer::Echo, Timer::RenewEpoch, Timer::Gather, Timer::Probe];

/// What this node is in the farm.
#[derive(Debug)]
enum Role {
    Follower,
    /// Holds the lease.
    Leading(Term),
    /// Announces without the lease.
    Acting,
}

/// One term of a leader that holds the lease.
#[derive(Debug)]
struct Term {
    seat: Seat,
    /// When its own report came back last.
    echo_at: u64,
    /// Its own messages that were returned since its last report came back.
    returned: u8,
    /// The first seat before its own that took a message, and when it first did.
    taken_before: Option<(Seat, u64)>,
}

/// The role of this node, and its wish for the lease.
#[derive(Debug)]
pub(super) struct Lease {
    role: Role,
    walk: Walk,
    /// An attempt is under way.
    trying: bool,
    /// The seat to try at [`Timer::TryLease`].
    wanted: Seat,
}

/// What the broker's answer to a message for a leader tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Nothing that is not seen to here.
    Noted,
    /// No node holds the lease of this seat.
    Free(Seat),
    /// Another node leads at a seat before this leader's own.
    Outranked {
        /// This leader's.
        own: Seat,
        /// The other's.
        other: Seat,
    },
}

impl Lease {
    pub(super) fn new() -> Self {
        Self { role: Role::Follower, walk: Walk::default(), trying: false, wanted: Seat::default() }
    }

    // The role.

    /// Whether this node holds the lease.
    pub(super) fn is_held(&self) -> bool {
        matches!(self.role, Role::Leading(_))
    }

    /// Whether this node leads: it holds the lease, or announces without it.
    pub(super) fn leads(&self) -> bool {
        !matches!(self.role, Role::Follower)
    }

    /// The seat of the lease that this node holds.
    pub(super) fn own_seat(&self) -> Option<Seat> {
        if let Role::Leading(term) = &self.role { Some(term.seat) } else { None }
    }

    /// This node holds the lease of `seat`, and begins to lead.
    pub(super) fn lead(&mut self, seat: Seat, cx: &mut Context, now: Now) {
        self.role = Role::Leading(Term { seat, echo_at: now.mono, returned: 0, taken_before: None });
        cx.timers.set(Timer::Probe, now.mono + cx.silence());
        // Reports that arrive until then may bring a ring.
        Self::begin(now.mono + millis(cx.settings.keys.settle).min(GATHER_MS), cx, now);
        cx.timers.set(Timer::Report, now.mono);
    }

    /// Looks for how long no announcement was heard. Returns whether this node is to lead without the lease now.
    pub(super) fn advance_acting(&self, silent_since: u64, cx: &mut Context, now: Now) -> bool {
        let silent = now.mono.saturating_sub(silent_since) > cx.beats(ACT_AFTER_BEATS);
        if !silent || !cx.settings.can_lead || self.leads() {
            return false;
        }
        let jitter = cx.random_below(cx.report_interval);
        cx.timers.get_or_set(Timer::Act, now.mono + jitter);
        cx.timers.take_due(Timer::Act, now)
    }

    /// Announces without the lease.
    pub(super) fn lead_without_lease(&mut self, cx: &mut Context, now: Now) {
        self.role = Role::Acting;
        Self::begin(now.mono, cx, now);
    }

    fn begin(mint_at: u64, cx: &mut Context, now: Now) {
        cx.timers.set(Timer::Gather, now.mono + cx.beats(GATHER_BEATS));
        cx.timers.set(Timer::Mint, mint_at);
        cx.timers.set(Timer::Announce, now.mono);
    }

    /// This node leads no longer. Returns whether it did.
    pub(super) fn become_follower(&mut self, reason: StepDown, cx: &mut Context) -> bool {
        if !self.leads() {
            return false;
        }
        cx.note(Note::StepsDown(reason));
        self.role = Role::Follower;
        for timer in OF_A_LEADER {
            cx.timers.stop(timer);
        }
        true
    }

    // What the broker says.

    pub(super) fn on_connected(&mut self, cx: &mut Context) {
        self.walk = Walk::default();
        self.forget_wish(cx);
        cx.timers.stop(Timer::Act);
    }

    pub(super) fn on_disconnected(&mut self) {
        self.trying = false;
    }

    /// What was wished for went with the link.
    pub(super) fn forget_wish(&mut self, cx: &mut Context) {
        self.trying = false;
        cx.timers.stop(Timer::TryLease);
    }

    /// The lease of `granted` is this node's. Returns whether it held none until now.
    pub(super) fn on_granted(&mut self, granted: Seat, cx: &mut Context, now: Now) -> bool {
        self.forget_wish(cx);
        self.walk.go_to(granted);
        let Role::Leading(term) = &mut self.role else { return true };
        // A seat before its own has become free: every node looks there first.
        let left = std::mem::replace(&mut term.seat, granted);
        term.taken_before = None;
        if left != granted {
            term.echo_at = now.mono;
            cx.act(Action::ReleaseLease(left));
            cx.timers.hasten(Timer::Announce, now.mono);
        }
        false
    }

    /// Another node has the lease of `tried`. Returns whether this node thought that it had it.
    pub(super) fn on_taken(&mut self, tried: Seat) -> bool {
        self.trying = false;
        self.own_seat() == Some(tried)
    }

    /// The broker refused, or could not be reached again: what is missing now is missing in a moment, too.
    pub(super) fn on_failed(&mut self, cx: &mut Context, now: Now) {
        self.trying = false;
        cx.timers.postpone(Timer::LeasePause, now.mono + cx.report_interval);
    }

    /// The broker answers no declaration, though the link works.
    pub(super) fn on_unanswered(&mut self, cx: &mut Context, now: Now) {
        self.trying = false;
        stay_away(SILENT_BEATS, cx, now);
    }

    /// What became of a message to the leader at `seat`, where it was looked for.
    pub(super) fn on_told(&mut self, seat: Seat, answer: Published, cx: &mut Context, now: Now) -> Told {
        if let Some(own) = self.own_seat() {
            return self.on_told_as_leader(own, seat, answer, cx, now);
        }
        let step = match answer {
            Published::Routed => {
                self.walk.on_routed(seat);
                Step::Stay
            }
            Published::Unroutable => self.walk.on_unroutable(seat),
            Published::Nacked => self.walk.on_nacked(seat, now.mono),
        };
        match step {
            Step::Stay => {}
            Step::Again(after) => {
                cx.timers.hasten(Timer::Report, now.mono + after);
            }
            Step::Try(seat) => return Told::Free(seat),
        }
        Told::Noted
    }

    fn on_told_as_leader(&mut self, own: Seat, seat: Seat, answer: Published, cx: &mut Context, now: Now) -> Told {
        match answer {
            Published::Unroutable if seat == own => self.on_own_queue_gone(own, cx, now),
            // Its own reports come back or do not: that is looked at elsewhere.
            _ if seat >= own => {}
            Published::Routed => return self.on_seat_before_taken(own, seat, cx, now),
            Published::Unroutable | Published::Nacked => {
                if let Role::Leading(term) = &mut self.role {
                    term.taken_before.take_if(|(taken, _)| *taken == seat);
                }
                if answer == Published::Unroutable {
                    self.send_attempt(seat, cx);
                }
            }
        }
        Told::Noted
    }

    /// `seat`, before this leader's own, took a message. A broker that comes back to its cluster has the queue of a lease
    /// whose holder is long gone, and deletes it a moment later: one message is no sign of a leader there.
    fn on_seat_before_taken(&mut self, own: Seat, seat: Seat, cx: &mut Context, now: Now) -> Told {
        let Role::Leading(term) = &mut self.role else { return Told::Noted };
        match term.taken_before {
            Some((taken, since)) if taken == seat && now.mono >= since + SURE_MS => {
                Told::Outranked { own, other: seat }
            }
            Some((taken, _)) if taken <= seat => Told::Noted,
            _ => {
                term.taken_before = Some((seat, now.mono));
                cx.timers.hasten(Timer::Report, now.mono + SURE_MS);
                Told::Noted
            }
        }
    }

    /// The leader's queue is not there. A broker can lose it under a leader that lives: when a broker of a cluster dies
    /// the others clean up after it by name, and so does a former holder's connection when it ends. The node that led then
    /// takes its place again; were others faster, each one's end would take the lease from the next, again and again.
    fn on_own_queue_gone(&mut self, own: Seat, cx: &mut Context, now: Now) {
        let Role::Leading(term) = &mut self.role else { return };
        term.returned += 1;
        if term.returned < RETURNS {
            cx.timers.hasten(Timer::Report, now.mono);
        } else if !self.trying {
            term.returned = 0;
            self.send_attempt(own, cx);
        }
    }

    // What other nodes say, and what this one says to itself.

    /// A report of this node came back through the lease's queue.
    pub(super) fn on_echo(&mut self, now: Now) {
        if let Role::Leading(term) = &mut self.role {
            term.echo_at = now.mono;
            term.returned = 0;
        }
    }

    /// Nothing could come back until now.
    pub(super) fn pardon_silence(&mut self, now: Now) {
        if let Role::Leading(term) = &mut self.role {
            term.echo_at = now.mono;
        }
    }

    /// Another node announces; `leased`: it holds the lease, so what was seen free before is not.
    pub(super) fn on_announcement(&mut self, leased: bool, cx: &mut Context) {
        if leased {
            cx.timers.stop(Timer::TryLease);
        }
        cx.timers.stop(Timer::Act);
    }

    /// Two lead, after a partition: the broker decides about the lease.
    pub(super) fn on_rival(&self, announcement: &proto::Announcement, cx: &mut Context, now: Now) {
        let Role::Leading(term) = &self.role else { return };
        if announcement.leased {
            // The end of the other's connection may delete our queue.
            cx.timers.set(Timer::Probe, now.mono + cx.silence());
            let lower = Seat::numbered(announcement.seat).is_some_and(|other| other < term.seat);
            cx.timers.hasten(Timer::Report, now.mono + if lower { 0 } else { PROBE_MS });
        }
    }

    /// A leader is at `seat`.
    pub(super) fn go_to(&mut self, seat: Seat) {
        self.walk.go_to(seat);
    }

    /// Where the leader is, or is looked for.
    pub(super) fn sought_seat(&self) -> Seat {
        self.walk.seat()
    }

    /// The queue of that seat.
    pub(super) fn route(&self) -> Route {
        Route::Leader(self.sought_seat())
    }

    // What time brings.

    /// Looks whether this leader's reports still come back. One whose reports do not stays away from the lease for a while.
    /// Returns whether they do.
    pub(super) fn advance_echo(&self, cx: &mut Context, now: Now) -> bool {
        let Role::Leading(term) = &self.role else { return true };
        let silent_at = term.echo_at + cx.silence();
        cx.timers.set(Timer::Echo, silent_at);
        if now.mono > silent_at {
            stay_away(SILENT_BEATS, cx, now);
        }
        now.mono <= silent_at
    }

    /// Most of the farm disagrees with this node's clock.
    pub(super) fn on_own_clock_doubted(&self, cx: &mut Context, now: Now) {
        stay_away(SKEWED_BACKOFF_BEATS, cx, now);
    }

    /// Tries the lease of `seat` after `least` milliseconds and a short random delay, unless it is tried already or not
    /// wanted. The farm has `members` nodes.
    pub(super) fn wish(&mut self, seat: Seat, least: u64, members: u32, cx: &mut Context, now: Now) {
        let wanted = cx.settings.can_lead && !self.is_held();
        if wanted && !self.trying && cx.timers.get(Timer::TryLease).is_none() {
            // All may see it at the same moment, and each attempt is a connection. Once one has the lease it says so, and the
            // others stay.
            let jitter = cx.spread(members).max(LEASE_JITTER_MS);
            let at = now.mono + least + cx.random_below(jitter);
            self.wanted = seat;
            let earliest = cx.timers.get(Timer::LeasePause).unwrap_or(at);
            cx.timers.set(Timer::TryLease, at.max(earliest));
        }
    }

    /// Tries the lease that it wished for, if it is time.
    pub(super) fn advance(&mut self, cx: &mut Context, now: Now) {
        if cx.timers.take_due(Timer::TryLease, now) {
            self.send_attempt(self.wanted, cx);
        }
    }

    fn send_attempt(&mut self, seat: Seat, cx: &mut Context) {
        if !self.trying {
            self.trying = true;
            cx.act(Action::TryLease(seat));
        }
    }
}

/// No attempt for this many beats.
fn stay_away(beats: u64, cx: &mut Context, now: Now) {
    cx.timers.set(Timer::LeasePause, now.mono + cx.beats(beats));
}

#[cfg(test)]
mod tests;
