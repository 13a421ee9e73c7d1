//! The state machine of one node: hands each event, and the time, to those whom it concerns.
//!
//! Three files have methods of [`Farm`]: here, what happens and what time brings; in `messages`, what other nodes say and
//! what this one says; in `questions`, what it tells of itself.

mod messages;
mod questions;

use std::fmt;

use super::context::Context;
use super::event::{Action, Event, Note, Sender};
use super::join::EpochKeys;
use super::link::Inbox;
use super::mint::Mint;
use super::requests::{AskedNode, Question, Requests};
use super::settings::{FarmSettings, LocalState};
use super::sites::Sites;
use super::standing::Standing;
use super::timers::Timer;
use crate::clock::{Now, offset_ms};
use crate::envelope::{Epochs, KeyAgreements};
use crate::keys::HeldRing;
use crate::proto::{self, payload::Kind};
use crate::random::Randomness;
use crate::routes::{Route, Seat, Via};

/// A node that has not turned for this many beats, though it is due every beat, did not run.
const FROZEN_BEATS: u64 = 2;

/// The farm as one node sees it. Each concern keeps its own state; what they share is handed to them.
pub struct Farm {
    pub(super) cx: Context,
    /// What the next reports say of this host.
    local: LocalState,
    pub(super) standing: Standing,
    mint: Mint,
    pub(super) epochs: EpochKeys,
    requests: Requests,
    /// The other sites of the farm.
    sites: Sites,
    /// When the machine last took in an event.
    turned_at: u64,
}

impl Farm {
    /// A node that has just started, with the ring that it saved before, if any.
    #[must_use]
    pub fn new(settings: FarmSettings, held: HeldRing, random: Randomness, now: Now) -> Self {
        let epochs = EpochKeys::new(Epochs::new(settings.keys.settle));
        let mut cx = Context::new(settings, random);
        Self {
            standing: Standing::new(&mut cx, now),
            cx,
            local: LocalState::default(),
            mint: Mint::new(held, now),
            epochs,
            requests: Requests::default(),
            sites: Sites::default(),
            turned_at: now.mono,
        }
    }

    /// The same node on a host that has only these ways to agree on a secret. Without this it has both.
    #[must_use]
    pub fn with_agreements(mut self, has: KeyAgreements) -> Self {
        self.epochs.set_agreements(has);
        self
    }

    /// Takes in one event and returns what to do, in order.
    #[must_use]
    pub fn handle(&mut self, now: Now, event: Event) -> Vec<Action> {
        let stops = matches!(event, Event::Stop);
        self.on_event(event, now);
        if !stops {
            self.advance(now);
        }
        self.cx.take_actions()
    }

    /// Monotonic milliseconds at which [`Event::Wake`] is due, if nothing else happens before.
    #[must_use]
    pub fn next_wake(&self, now: Now) -> u64 {
        let ring_changes = self.mint.held().next_change(now).map(|wall| now.mono + wall.saturating_sub(now.wall));
        let due = [self.cx.timers.next(now), ring_changes.filter(|at| *at > now.mono)];
        due.into_iter().flatten().fold(now.mono + self.cx.report_interval, u64::min)
    }

    /// What the next reports say of this host.
    pub(crate) fn set_local(&mut self, local: LocalState) {
        self.local = local;
    }

    /// Whether the broker has said that it takes no messages now (`connection.blocked`). Until it does again, silence is
    /// no sign of a broken inbox, lease or leader.
    pub(crate) fn set_blocked(&mut self, blocked: bool) {
        self.standing.link.blocked = blocked;
    }

    // Events.

    fn on_event(&mut self, event: Event, now: Now) {
        let Self { cx, standing, .. } = self;
        match event {
            Event::Wake => {}
            Event::Connected { inbox } => self.on_connected(inbox, now),
            Event::Disconnected => standing.on_disconnected(cx, now),
            Event::LeaseGranted(seat) => self.on_granted(seat, now),
            Event::LeaseTaken(seat) => standing.on_taken(seat, cx, now),
            Event::LeaseFailed => standing.lease.on_failed(cx, now),
            Event::LeaseUnanswered => standing.on_unanswered(cx, now),
            Event::LeaseLost(seat) => standing.on_lost(seat, cx, now),
            Event::Told { seat, answer } => standing.on_told(seat, answer, cx, now),
            Event::Checked(answers) => standing.link.on_checked(answers, cx, now),
            Event::NotMoved => standing.link.on_not_moved(),
            Event::Message { payload, via } => self.on_message(*payload, via, now),
            Event::Skewed { node, boot_id, offset_ms, via } => self.on_skewed(node, boot_id, offset_ms, via, now),
            Event::UnknownEpoch { via } => self.on_unknown_epoch(via, now),
            Event::Ask { id, ask, user } => self.on_ask(Question { id, ask, user }, now),
            Event::Stop => standing.send_farewell(cx),
        }
    }

    fn on_connected(&mut self, inbox: String, now: Now) {
        self.standing.on_connected(inbox, &mut self.cx, now);
        self.epochs.on_connected(&mut self.cx);
    }

    fn on_granted(&mut self, seat: Seat, now: Now) {
        if self.standing.on_granted(seat, &mut self.cx, now) {
            self.mint.meet_others(&mut self.cx);
            self.cx.note(Note::Leads);
            self.epochs.draw(&mut self.cx, now);
        }
    }

    fn on_skewed(&mut self, node: String, boot_id: [u8; 16], offset_ms: i64, via: Via, now: Now) {
        if via == Via::Inbox {
            self.standing.link.on_inbox(false, &mut self.cx, now);
        }
        // What a link between brokers held up says nothing of a clock, and the nodes there are not this leader's.
        if boot_id != self.cx.settings.boot_id && via != Via::Federated {
            self.standing.members.on_skewed(&node, boot_id, offset_ms, self.cx.report_interval, now);
            self.cx.note(Note::Skewed { node, offset_ms });
        }
    }

    fn on_ask(&mut self, question: Question, now: Now) {
        let Self { cx, standing, mint, local, requests, .. } = self;
        requests.on_ask(question, &mut AskedNode { standing, mint, local }, cx, now);
    }

    // Messages.

    fn on_message(&mut self, payload: proto::Payload, via: Via, now: Now) {
        let own = payload.boot_id == self.cx.settings.boot_id;
        if via == Via::Inbox {
            self.standing.link.on_inbox(own, &mut self.cx, now);
        }
        let Ok(boot_id) = <[u8; 16]>::try_from(payload.boot_id.as_slice()) else { return };
        let from = Sender { node: payload.node, boot_id, offset_ms: offset_ms(payload.sent_at, now.wall) };
        match payload.kind {
            kind if via == Via::Federated => {
                if self.is_listening_to(via) && !own {
                    self.on_federated_message(from, kind, now);
                }
            }
            Some(Kind::Announcement(_) | Kind::Join(_)) if own => {}
            Some(Kind::Announcement(announcement)) => self.on_announcement(from, announcement, now),
            Some(Kind::Report(report)) => self.on_report(from, report, via, own, now),
            Some(Kind::Join(join)) => self.on_join(&from, &join, via, now),
            Some(Kind::EpochGrant(grant)) => self.on_grant(from, &grant, now),
            Some(Kind::Farewell(_)) => self.standing.on_farewell(&from, own, &mut self.cx, now),
            Some(Kind::Request(request)) => self.on_request(from, &request, now),
            Some(Kind::Answer(answer)) => {
                self.requests.on_answer(&from, answer, &mut self.mint, &mut self.cx, now);
            }
            // Whatever else there is has no business on the key plane.
            Some(_) | None => self.cx.note(Note::UnknownKind { node: from.node }),
        }
    }

    // Time.

    fn advance(&mut self, now: Now) {
        self.sites.advance(self.is_listening_to(Via::Federated), now);
        // Nor was anything heard while this node itself did not run: a frozen one finds what it missed in its queues.
        let turned_at = std::mem::replace(&mut self.turned_at, now.mono);
        let frozen = now.mono.saturating_sub(turned_at) > self.cx.beats(FROZEN_BEATS);
        if self.standing.link.blocked || frozen {
            self.standing.pardon_silence(now);
        }
        self.mint.advance(self.is_leader(), &mut self.cx, now);
        self.assess(now);
        self.standing.advance_lead(&mut self.cx, now);
        self.advance_link(now);
        self.advance_epochs(now);
        self.advance_requests(now);
        self.advance_messages(now);
        self.assess(now);
    }

    fn advance_link(&mut self, now: Now) {
        match self.standing.advance_link(&mut self.cx, now) {
            Inbox::Away | Inbox::Broken => return,
            Inbox::Doubtful => self.send_to_itself(now),
            Inbox::Works => {}
        }
        if self.standing.advance_lease(&mut self.cx, now) {
            self.mint.meet_others(&mut self.cx);
            self.cx.note(Note::ActsAlone);
            self.epochs.take_up(&mut self.cx, now);
        }
    }

    fn advance_epochs(&mut self, now: Now) {
        self.epochs.advance(&mut self.cx, now);
        if self.cx.timers.is_due(Timer::Join, now) {
            self.send_join(now);
        }
    }

    fn advance_requests(&mut self, now: Now) {
        let to = self.standing.route_of_requests(&self.cx, now);
        let sealable = !self.epochs.held().is_empty();
        self.requests.advance(self.standing.link.inbox(), &to, sealable, &mut self.cx, now);
    }

    fn advance_messages(&mut self, now: Now) {
        if !self.standing.link.is_up() {
            return;
        }
        if self.cx.timers.is_due(Timer::Report, now) {
            self.standing.advance_report(&mut self.cx, now);
            self.send_report(now);
        }
        if self.cx.timers.is_due(Timer::Announce, now) {
            self.cx.timers.set(Timer::Announce, now.mono + self.cx.report_interval);
            self.send_announcement(Route::Keys, now);
        }
    }

    fn assess(&mut self, now: Now) {
        self.standing.assess(self.mint.ring(), &mut self.cx, now);
    }
}

impl fmt::Debug for Farm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Farm")
            .field("node", &self.cx.settings.node)
            .field("lease", &self.standing.lease)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
