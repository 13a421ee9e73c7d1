//! Where this node stands in the farm: its link, whether it leads, whom it follows, and who is there.
//!
//! Each of these is a concern with a file of its own. Here is what they decide together: every reason to step down, to wish for
//! the lease, and to follow another node.

use super::announce::Announcements;
use super::context::Context;
use super::event::{Action, Note, Sender, StepDown};
use super::lease::{Lease, Told};
use super::link::{Inbox, LinkState};
use super::members::Members;
use super::report::Reports;
use super::timers::Timer;
use crate::clock::Now;
use crate::keys::Ring;
use crate::proto::{self, payload::Kind};
use crate::routes::{Published, Route, Seat};

/// A node that heard a leader just now leaves it this long before it tries a lease that was seen free: the leader may
/// be there, and take it again itself.
pub(super) const RECLAIM_MS: u64 = 300;

/// A leader sets the beat: at least this much time between reports for each member, so that reports stay few a second.
const INTERVAL_PER_MEMBER_MS: u64 = 10;

/// What this node does about another one's announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stance {
    /// It follows that node; `first`: no announcement was heard on this link before.
    Follows { first: bool },
    /// It leads, too, and goes on.
    Leads,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) link: LinkState,
    pub(super) lease: Lease,
    pub(super) announcements: Announcements,
    pub(super) reports: Reports,
    pub(super) members: Members,
}

impl Standing {
    pub(super) fn new(cx: &mut Context, now: Now) -> Self {
        Self {
            link: LinkState::default(),
            lease: Lease::new(),
            announcements: Announcements::new(cx, now),
            reports: Reports::default(),
            members: Members::default(),
        }
    }

    // What the broker says.

    pub(super) fn on_connected(&mut self, inbox: String, cx: &mut Context, now: Now) {
        let renewed = self.link.on_connected(inbox, cx, now);
        self.announcements.on_connected(renewed, now);
        self.lease.on_connected(cx);
        if renewed {
            // The old inbox was silent: maybe no node leads, maybe a queue is stuck. Trying the lease tells.
            self.wish_for_lease(cx, now);
        }
    }

    pub(super) fn on_disconnected(&mut self, cx: &mut Context, now: Now) {
        self.link.on_disconnected(cx);
        self.lease.on_disconnected();
        self.step_down(StepDown::Disconnected, cx, now);
    }

    /// Returns whether this node begins to lead.
    pub(super) fn on_granted(&mut self, seat: Seat, cx: &mut Context, now: Now) -> bool {
        if !self.lease.on_granted(seat, cx, now) || !self.link.is_up() {
            return false;
        }
        // The beat was that of a large farm, maybe, and begins anew with the least: three of those may be over already.
        self.link.begin_anew(now);
        self.members.clear(cx);
        cx.report_interval = cx.bounded_interval(0);
        self.lease.lead(seat, cx, now);
        true
    }

    pub(super) fn on_taken(&mut self, seat: Seat, cx: &mut Context, now: Now) {
        if self.lease.on_taken(seat) {
            self.step_down(StepDown::LeaseTaken, cx, now);
        }
        // The node that won wants to hear of us, once it is ready to.
        self.reports.hasten(50, 250, cx, now);
    }

    pub(super) fn on_unanswered(&mut self, cx: &mut Context, now: Now) {
        self.lease.on_unanswered(cx, now);
        self.link.leave_broker(Note::BrokerCutOff, cx, now);
    }

    pub(super) fn on_lost(&mut self, seat: Seat, cx: &mut Context, now: Now) {
        if self.lease.own_seat() == Some(seat) {
            self.step_down(StepDown::LeaseLost, cx, now);
        }
        self.wish_for_lease(cx, now);
    }

    pub(super) fn on_told(&mut self, seat: Seat, answer: Published, cx: &mut Context, now: Now) {
        match self.lease.on_told(seat, answer, cx, now) {
            Told::Noted => {}
            Told::Free(seat) => {
                let led = self.announcements.is_holder_heard(cx, now);
                self.wish_for_lease_of(seat, if led { RECLAIM_MS } else { 0 }, cx, now);
            }
            Told::Outranked { own, other } => {
                self.give_up_lease(own, StepDown::Outranked, cx, now);
                self.lease.go_to(other);
            }
        }
    }

    // What other nodes say.

    /// Takes in that another node announces.
    pub(super) fn on_announcement(
        &mut self,
        from: &Sender,
        announcement: &proto::Announcement,
        cx: &mut Context,
        now: Now,
    ) -> Stance {
        self.announcements.on_heard(cx, now);
        self.lease.on_announcement(announcement.leased, cx);
        let first = self.link.on_announcement();
        if !self.lease.leads() {
            // A follower notes only nodes whose clock is too far off: this one's is not, any more.
            self.members.forget(&from.node, from.boot_id);
        } else if !self.lease.is_held() && (announcement.leased || from.node < cx.settings.node) {
            self.step_down(StepDown::Yields, cx, now);
        } else {
            self.lease.on_rival(announcement, cx, now);
            return Stance::Leads;
        }
        Stance::Follows { first }
    }

    pub(super) fn on_farewell(&mut self, from: &Sender, own: bool, cx: &mut Context, now: Now) {
        self.members.forget(&from.node, from.boot_id);
        if self.announcements.follows(from.boot_id) && !own {
            self.wish_for_lease(cx, now);
        }
    }

    // Leading, and not.

    fn wish_for_lease(&mut self, cx: &mut Context, now: Now) {
        self.wish_for_lease_of(self.lease.sought_seat(), 0, cx, now);
    }

    fn wish_for_lease_of(&mut self, seat: Seat, least: u64, cx: &mut Context, now: Now) {
        if self.link.is_up() {
            self.lease.wish(seat, least, self.announcements.members(), cx, now);
        }
    }

    /// This node leads no longer. Its lease, if it had one, is gone; where it is still held: [`Standing::give_up_lease`].
    fn step_down(&mut self, reason: StepDown, cx: &mut Context, now: Now) {
        if self.lease.become_follower(reason, cx) {
            self.members.clear(cx);
            // While it led, nothing was to be heard of another leader.
            self.announcements.pardon_silence(now);
        }
    }

    fn give_up_lease(&mut self, seat: Seat, reason: StepDown, cx: &mut Context, now: Now) {
        self.step_down(reason, cx, now);
        cx.act(Action::ReleaseLease(seat));
    }

    /// Whether this node leads so newly that most of the farm has not reported to it yet.
    pub(super) fn is_gathering(&self, cx: &Context, now: Now) -> bool {
        // The leader before may be the one that is gone.
        let expected = usize::try_from(self.announcements.members().saturating_sub(1)).unwrap_or(usize::MAX);
        cx.timers.is_running(Timer::Gather, now) && self.members.len() < expected
    }

    /// Looks at all members. Those that fell silent may be gone, or this leader's broker is cut off from where they are.
    pub(super) fn assess(&mut self, ring: &Ring, cx: &mut Context, now: Now) {
        let more_silent = self.members.assess(ring, &self.lease, cx, now);
        if more_silent && self.lease.leads() {
            self.link.check_broker(cx);
        }
    }

    /// The ways to the leader: to a node that leads without the lease, too, if one was heard last.
    pub(super) fn routes_to_leader(&self, cx: &Context) -> Vec<Route> {
        let acting = self.announcements.acting_inbox(cx).map(Route::Inbox);
        acting.into_iter().chain([self.lease.route()]).collect()
    }

    /// The ways of this node's reports.
    pub(super) fn routes_of_reports(&self, cx: &Context) -> Vec<Route> {
        // A leader further back looks whether a seat before its own is free, or taken.
        let before = self.lease.own_seat().into_iter().flat_map(Seat::before).map(Route::Leader);
        before.chain(self.routes_to_leader(cx)).collect()
    }

    /// The way for what must be done once: a node that leads without the lease is asked at its inbox, while it is heard.
    /// Asked as well, a leader that cannot be heard would do it a second time.
    pub(super) fn route_of_requests(&self, cx: &Context, now: Now) -> Route {
        let heard = self.announcements.is_leader_heard(cx, now);
        let acting = self.announcements.acting_inbox(cx).filter(|_| heard);
        acting.map_or_else(|| self.lease.route(), Route::Inbox)
    }

    pub(super) fn send_farewell(&self, cx: &mut Context) {
        if !self.link.is_up() {
            return;
        }
        // The lease is free before any node hears that it is.
        if let Some(seat) = self.lease.own_seat() {
            cx.act(Action::ReleaseLease(seat));
        }
        let to = if self.lease.leads() { Route::Keys } else { self.lease.route() };
        cx.send(to, Kind::Farewell(proto::Farewell {}));
    }

    // What time brings.

    /// No node can be heard: every span of silence begins anew.
    pub(super) fn pardon_silence(&mut self, now: Now) {
        self.announcements.pardon_silence(now);
        self.link.pardon_silence(now);
        self.lease.pardon_silence(now);
    }

    /// Sets the beat as the leader with the lease, and steps down if it is no good as one.
    pub(super) fn advance_lead(&mut self, cx: &mut Context, now: Now) {
        let Some(seat) = self.lease.own_seat() else { return };
        if !self.is_gathering(cx, now) {
            self.announcements.set_members(u32::try_from(self.members.len()).unwrap_or(u32::MAX));
        }
        let members = u64::try_from(self.members.len()).unwrap_or(u64::MAX);
        cx.report_interval = cx.bounded_interval(members.saturating_mul(INTERVAL_PER_MEMBER_MS));
        if !self.lease.advance_echo(cx, now) {
            self.give_up_lease(seat, StepDown::NoEcho, cx, now);
            // A broker that takes messages and does not deliver them is no good, as some are after a split.
            self.link.leave_broker(Note::BrokerKeepsReports, cx, now);
        } else if self.members.assessment().majority_disagrees {
            self.give_up_lease(seat, StepDown::ClockDoubted, cx, now);
            self.lease.on_own_clock_doubted(cx, now);
        }
    }

    /// Looks whether the inbox works, and opens another link if it does not.
    pub(super) fn advance_link(&mut self, cx: &mut Context, now: Now) -> Inbox {
        let inbox = self.link.advance(cx, now);
        if inbox == Inbox::Broken {
            self.step_down(StepDown::InboxSilent, cx, now);
            self.lease.forget_wish(cx);
            self.link.renew(cx);
        }
        inbox
    }

    /// Tries the lease if it is time. Returns whether this node begins to lead without it.
    pub(super) fn advance_lease(&mut self, cx: &mut Context, now: Now) -> bool {
        self.lease.advance(cx, now);
        let acts = self.lease.advance_acting(self.announcements.silent_since(), cx, now);
        if acts {
            self.members.clear(cx);
            self.lease.lead_without_lease(cx, now);
        }
        acts
    }

    /// A report is sent now.
    pub(super) fn advance_report(&mut self, cx: &mut Context, now: Now) {
        self.reports.on_due(cx, now);
    }
}
