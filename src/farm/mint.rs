//! The ring that this node holds: what it takes in from others, and what it mints and revokes.

use super::context::Context;
use super::event::{Action, MintReason, Note};
use super::timers::Timer;
use crate::clock::{Now, millis};
use crate::keys::{HeldRing, KeyMaterial, Ring, RingFaults};
use crate::proto;

/// How long a leader leaves it to the federated leader that comes before it by name to mint a key that is due: this many
/// beats, and at most this part of an interval.
const LEAVE_MINTING_BEATS: u64 = 3;
const LEAVE_MINTING_PART: u64 = 4;

/// The ring, and what bears on who mints.
#[derive(Debug)]
pub(super) struct Mint {
    held: HeldRing,
    /// See [`super::Farm::is_on_its_own`].
    on_its_own: bool,
    /// The last announcement of a federated leader whose name comes before this node's, monotonic milliseconds.
    senior_heard_at: Option<u64>,
}

/// What a revocation set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Revocation {
    pub(super) floor: u64,
    /// 0: no sessions were flushed.
    pub(super) sessions_from: u64,
}

impl Mint {
    pub(super) fn new(held: HeldRing, now: Now) -> Self {
        let on_its_own = held.is_empty(now);
        Self { held, on_its_own, senior_heard_at: None }
    }

    pub(super) fn held(&self) -> &HeldRing {
        &self.held
    }

    pub(super) fn ring(&self) -> &Ring {
        self.held.ring()
    }

    pub(super) fn is_on_its_own(&self) -> bool {
        self.on_its_own
    }

    // What comes from others.

    /// Merges a ring that came from `node`. Returns whether this node's changed.
    pub(super) fn on_ring(&mut self, node: &str, ring: &proto::Ring, cx: &mut Context, now: Now) -> bool {
        let (ring, faults) = Ring::read(ring, now, &cx.settings.keys);
        note_faults(node, &faults, cx);
        let merge = self.held.merge(&ring, now);
        if ring.open_at(now.wall).next().is_some() {
            self.meet_others(cx);
        }
        if merge.conflicts > 0 {
            cx.note(Note::KeyConflict { node: node.to_owned(), count: merge.conflicts.into() });
        }
        if merge.changed {
            cx.act(Action::RingChanged);
        }
        merge.changed
    }

    /// Other nodes have keys that this one has, or get them now. Its proxies hear of that.
    pub(super) fn meet_others(&mut self, cx: &mut Context) {
        if std::mem::take(&mut self.on_its_own) && !self.ring().keys().is_empty() {
            cx.act(Action::RingChanged);
        }
    }

    /// A federated leader announces.
    pub(super) fn on_federated(&mut self, node: &str, cx: &Context, now: Now) {
        if node < cx.settings.node.as_str() {
            self.senior_heard_at = Some(now.mono);
        }
    }

    // What this node mints.

    /// Puts every key but a new one out of use, those included that a node which knows the generation `known` holds; and
    /// announces it, if this node leads.
    pub(super) fn revoke(&mut self, known: u64, flush_sessions: bool, cx: &mut Context, now: Now) -> Revocation {
        let floor = self.held.revoke(KeyMaterial::from_random(&cx.draw()), known, now).generation;
        let sessions_from = if flush_sessions { self.held.flush_sessions(now) } else { 0 };
        cx.note(Note::Revoked { generation: floor, flush_sessions });
        cx.act(Action::RingChanged);
        cx.timers.hasten(Timer::Announce, now.mono);
        Revocation { floor, sessions_from }
    }

    /// Mints a key that seals from `seal_from`, UTC milliseconds, and announces it, if this node leads. Returns its
    /// generation.
    pub(super) fn mint(&mut self, seal_from: u64, reason: MintReason, cx: &mut Context, now: Now) -> u64 {
        let generation = self.held.mint(seal_from, KeyMaterial::from_random(&cx.draw()), now).generation;
        cx.note(Note::Minted { generation, reason });
        cx.act(Action::RingChanged);
        cx.timers.hasten(Timer::Announce, now.mono);
        generation
    }

    // What time brings.

    /// Drops what the clock says cannot be, as after it was set back.
    pub(super) fn drop_faulty(&mut self, cx: &mut Context, now: Now) {
        let floors = |ring: &Ring| (ring.floor(), ring.sessions_from());
        let before = floors(self.ring());
        let faults = self.held.drop_faulty(now);
        let own = cx.settings.node.clone();
        note_faults(&own, &faults, cx);
        if !faults.is_empty() || floors(self.ring()) != before {
            cx.act(Action::RingChanged);
        }
    }

    /// Drops what has had its time, and mints what is due. `leased`: this node holds the lease.
    pub(super) fn advance(&mut self, leased: bool, cx: &mut Context, now: Now) {
        self.drop_faulty(cx, now);
        if self.held.expire(now) {
            cx.act(Action::RingChanged);
        }
        if self.held.stranded(now) {
            // No successor was minted in time: forward secrecy before resumption.
            self.mint(now.wall, MintReason::Alone, cx, now);
        }
        if cx.timers.is_due(Timer::Mint, now) {
            self.mint_due(cx, now);
        } else if self.held.is_empty(now) && !leased && cx.timers.is_due(Timer::StartAlone, now) {
            // No leader is there to mint, as far as this node can tell.
            self.mint(now.wall, MintReason::Alone, cx, now);
        }
    }

    fn mint_due(&mut self, cx: &mut Context, now: Now) {
        if self.held.is_empty(now) {
            self.mint(now.wall, MintReason::First, cx, now);
        }
        match self.held.mint_due(now) {
            Some(seal_from) if self.advance_turn(cx, now) => {
                self.mint(seal_from, MintReason::Scheduled, cx, now);
            }
            Some(_) => {}
            None => cx.timers.stop(Timer::MintInPlaceOfSenior),
        }
    }

    /// Leaders at several brokers find a key due at the same moment; the one whose name comes first mints it, and the others
    /// if its key does not come. Returns whether it is minted here now.
    fn advance_turn(&self, cx: &mut Context, now: Now) -> bool {
        if !self.senior_heard_at.is_some_and(|at| cx.is_heard(at, now)) {
            cx.timers.stop(Timer::MintInPlaceOfSenior);
            return true;
        }
        let most = millis(cx.settings.keys.interval) / LEAVE_MINTING_PART;
        let wait = cx.beats(LEAVE_MINTING_BEATS).min(most);
        now.mono >= cx.timers.get_or_set(Timer::MintInPlaceOfSenior, now.mono + wait)
    }
}

fn note_faults(node: &str, faults: &RingFaults, cx: &mut Context) {
    for (fault, count) in faults.iter() {
        cx.note(Note::BadKey { node: node.to_owned(), reason: fault.reason(), count });
    }
}
