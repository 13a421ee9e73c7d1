//! The state machine of one node: hands each event, and the time, to those whom it concerns.

use std::fmt;

use super::announce::{self, Announced};
use super::context::Context;
use super::event::{Action, Event, Note, Sender, Via};
use super::join::EpochKeys;
use super::link::Inbox;
use super::mint::Mint;
use super::own::Own;
use super::report;
use super::requests::{AskedNode, Question, Requests};
use super::settings::{FarmSettings, LocalState};
use super::sites::{Site, Sites};
use super::standing::{Heard, Standing};
use super::timers::Timer;
use crate::clock::{Now, offset_ms};
use crate::envelope::Epochs;
use crate::keys::HeldRing;
use crate::proto::{self, payload::Kind};
use crate::random::Randomness;
use crate::reason::Reason;
use crate::routes::{Route, Seat};

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

    /// Takes in one event and returns what to do, in order.
    #[must_use]
    pub fn handle(&mut self, now: Now, event: Event) -> Vec<Action> {
        let stops = matches!(event, Event::Stop);
        self.on_event(event, now);
        if !stops {
            self.sites.listen(self.hears(Via::Federated), now);
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

    /// The ring, and how long each key has been held.
    #[must_use]
    pub fn held(&self) -> &HeldRing {
        self.mint.held()
    }

    /// The epoch keys that the node holds: [`Epochs::sealing`] says which one seals what.
    #[must_use]
    pub fn epochs(&self) -> &Epochs {
        self.epochs.held()
    }

    /// Whether what comes by this way is for this node. Brokers in several data centres that hand on what is published to
    /// the keys exchange have a leader each, and [`Via::Federated`] is for leaders alone: they tell each other their rings. All
    /// else follow the leader of their own broker.
    #[must_use]
    pub fn hears(&self, via: Via) -> bool {
        via != Via::Federated || self.leads()
    }

    /// Takes in that a message which is about to be handed in as [`Event::Message`] comes [`Via::Federated`], from the site that
    /// its broker calls `site`.
    pub(crate) fn comes_from(&mut self, site: &str, payload: &proto::Payload, now: Now) {
        if self.hears(Via::Federated)
            && payload.boot_id != self.cx.settings.boot_id
            && let Some(Kind::Announcement(announcement)) = &payload.kind
        {
            self.sites.on_heard(site, &payload.node, announcement.report_every_ms, now);
        }
    }

    /// The other sites of the farm, as this node hears them if it leads, or else as its leader said last.
    #[must_use]
    pub(crate) fn sites(&self, now: Now) -> Vec<Site> {
        self.sites.list(now)
    }

    /// Whether this node holds the lease.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.standing.lease.is_held()
    }

    /// Whether this node leads: it holds the lease, or announces without it because no leader was heard for long.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.standing.lease.leads()
    }

    /// Members and members in step: counted by the leader, as announced by it elsewhere.
    #[must_use]
    pub fn member_counts(&self) -> (u32, u32) {
        if self.leads() {
            let assessment = self.standing.members.assessment();
            return (assessment.members, assessment.in_step);
        }
        self.standing.announcements.last().map_or((1, 1), |last| (last.members, last.in_step))
    }

    /// Whether this node leads, or hears the one that does and holds the ring that was announced last.
    #[must_use]
    pub(crate) fn is_in_step(&self, now: Now) -> bool {
        let holds = |last: &Announced| self.mint.ring().fingerprint(last.as_of) == last.fingerprint;
        self.leads() || (self.leader(now).is_some() && self.standing.announcements.last().is_some_and(holds))
    }

    /// The leader's clock minus ours, in milliseconds; 0 at the leader and before the first announcement.
    #[must_use]
    pub(crate) fn clock_offset_ms(&self) -> i64 {
        self.standing.announcements.last().filter(|_| !self.leads()).map_or(0, |last| last.offset_ms)
    }

    /// Whether no other node can have a key of the ring, as far as this one knows: it started without a saved ring, and has
    /// neither led, nor announced, nor been told of a ring with keys since.
    #[must_use]
    pub fn is_on_its_own(&self) -> bool {
        self.mint.is_on_its_own()
    }

    /// The node that is followed, if one was heard within three beats; this node itself if it leads.
    #[must_use]
    pub fn leader(&self, now: Now) -> Option<&str> {
        if self.leads() { Some(&self.cx.settings.node) } else { self.standing.announcements.leader(&self.cx, now) }
    }

    /// This node as its own member table would show it, for a status without a leader.
    #[must_use]
    pub fn own_member(&self) -> proto::Member {
        self.own().member()
    }

    /// Nodes whose clock is too far from this node's to be listened to, each with its clock minus ours in milliseconds. A
    /// node that hears no leader sees here whether a clock, maybe its own, is why.
    pub fn skewed_nodes(&self) -> impl Iterator<Item = (&str, i64)> {
        self.standing.members.assessment().skewed.iter().map(|(name, offset)| (name.as_str(), *offset))
    }

    fn own(&self) -> Own<'_> {
        Own { settings: &self.cx.settings, local: &self.local, held: self.mint.held(), audit: self.requests.audit() }
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
                if self.hears(via) && !own {
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

    /// From a node at another broker, to the leader here.
    fn on_federated_message(&mut self, from: Sender, kind: Option<Kind>, now: Now) {
        match kind {
            Some(Kind::Announcement(announcement)) => self.on_federated_announcement(&from, &announcement, now),
            Some(Kind::Join(join)) => self.on_join(&from, &join, Via::Federated, now),
            Some(Kind::EpochGrant(grant)) => self.on_grant(from, &grant, now),
            // Who is there, and who left, is for the leader there.
            _ => {}
        }
    }

    /// Its nodes hear their leader, and ours hear this one: nothing of it counts but the ring and the epoch key. What this
    /// node knows and the other lacks is in the next announcement; to send that at once would be answered at once, without
    /// end where settings let one of them refuse what the other holds.
    fn on_federated_announcement(&mut self, from: &Sender, announcement: &proto::Announcement, now: Now) {
        if self.on_ring(&from.node, announcement.ring.as_ref(), now) {
            self.cx.timers.hasten(Timer::Announce, now.mono);
        }
        self.mint.on_federated(&from.node, &self.cx, now);
        if !self.epochs.on_federated(&announcement.epoch, now) {
            self.ask_for_epoch(1, now);
        }
    }

    fn on_announcement(&mut self, from: Sender, announcement: proto::Announcement, now: Now) {
        let fingerprint = match announce::check(&announcement, &self.cx.settings, now) {
            Ok(fingerprint) => fingerprint,
            Err(reason) => return self.cx.refuse(&from.node, reason),
        };
        let changed = self.on_ring(&from.node, announcement.ring.as_ref(), now);
        let differs = changed || self.mint.ring().fingerprint(announcement.as_of) != fingerprint;
        match self.standing.on_announcement(&from, &announcement, &mut self.cx, now) {
            Heard::Follows { first } => self.follow(from, announcement, fingerprint, first || differs, now),
            // Two lead, after a partition: the merge decides about the ring.
            Heard::Leads if differs => {
                self.cx.timers.hasten(Timer::Announce, now.mono);
            }
            Heard::Leads => {}
        }
    }

    /// Takes the word of the leader, and tells it soon what this node holds if it does not know: `news`.
    fn follow(&mut self, from: Sender, announcement: proto::Announcement, fingerprint: [u8; 8], news: bool, now: Now) {
        if let (true, Some(seat)) = (announcement.leased, Seat::numbered(announcement.seat)) {
            self.standing.lease.go_to(seat);
        }
        self.sites.on_told(&announcement.sites, now);
        let members = announcement.members;
        if !self.epochs.follow(&announcement.epoch, &mut self.cx, now) {
            self.ask_for_epoch(members, now);
        }
        self.cx.report_interval = self.cx.bounded_interval(announcement.report_every_ms);
        let another = self.standing.announcements.follow(from, announcement, fingerprint, &mut self.cx);
        if news || another {
            self.standing.reports.hasten(0, self.cx.spread(members), &mut self.cx, now);
        }
    }

    fn on_report(&mut self, from: Sender, mut report: proto::Report, via: Via, own: bool, now: Now) {
        if own && via == Via::Lease {
            self.standing.lease.on_echo(now);
        }
        if !self.leads() {
            return;
        }
        if !report::is_sound(&report, &self.cx.settings.names) {
            return self.cx.refuse(&from.node, Reason::BadReport);
        }
        let changed = self.on_ring(&from.node, report.ring.take().as_ref(), now);
        let members = &mut self.standing.members;
        if !members.has_room_for(&from.node, from.boot_id, &report) {
            return self.cx.refuse(&from.node, Reason::TooMany);
        }
        let (first, reply_to) = (report.first, Route::Inbox(report.inbox.clone()));
        let new = members.on_report(&from.node, from.boot_id, from.offset_ms, report, now);
        if changed {
            self.cx.timers.hasten(Timer::Announce, now.mono);
        } else if (first || new) && !own {
            self.send_announcement(reply_to, now);
        }
    }

    /// Takes in the ring that came from `node`, if one did. Returns whether this node's changed.
    fn on_ring(&mut self, node: &str, ring: Option<&proto::Ring>, now: Now) -> bool {
        ring.is_some_and(|ring| self.mint.on_ring(node, ring, &mut self.cx, now))
    }

    fn on_request(&mut self, from: Sender, request: &proto::Request, now: Now) {
        let Self { cx, standing, mint, local, requests, .. } = self;
        requests.on_request(from, request, &mut AskedNode { standing, mint, local }, cx, now);
    }

    /// Grants the asker what it lacks, and shows it the ring. One at another broker sees that by itself.
    fn on_join(&mut self, from: &Sender, join: &proto::Join, via: Via, now: Now) {
        if !self.leads() {
            return; // the asker tries again
        }
        if self.epochs.on_join(from, join, via, &mut self.cx, now) && via != Via::Federated {
            self.send_announcement(Route::Inbox(join.inbox.clone()), now);
        }
    }

    fn on_grant(&mut self, from: Sender, grant: &proto::EpochGrant, now: Now) {
        self.epochs.on_grant(from, grant, self.standing.lease.leads(), &mut self.cx, now);
    }

    fn on_unknown_epoch(&mut self, via: Via, now: Now) {
        // A node that reports under a key which this leader lacks will hear its announcement and ask.
        if via != Via::Lease {
            self.ask_for_epoch(self.standing.announcements.members(), now);
        }
    }

    /// In a farm of `members` nodes all may ask at the same moment.
    fn ask_for_epoch(&mut self, members: u32, now: Now) {
        if self.standing.link.is_up() {
            self.epochs.ask(members, &mut self.cx, now);
        }
    }

    // Time.

    fn advance(&mut self, now: Now) {
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
            Inbox::Doubtful => self.write_to_itself(now),
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
        if self.cx.timers.is_due(Timer::AskEpoch, now) {
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

    // What this node says.

    /// To itself, to see whether its inbox works, and whether its broker does.
    fn write_to_itself(&mut self, now: Now) {
        let Some(inbox) = self.standing.link.inbox().map(str::to_owned) else { return };
        // What it would tell a leader. Without an epoch key it can say no more than that it lacks one.
        let kind = if self.epochs.held().is_empty() {
            Kind::Join(self.epochs.compose_join(inbox.clone(), &mut self.cx))
        } else {
            Kind::Report(self.own().report(inbox.clone(), &self.standing, now))
        };
        self.cx.send(Route::Inbox(inbox), kind);
        self.standing.link.check_broker(&mut self.cx);
    }

    fn send_report(&mut self, now: Now) {
        // It has no epoch key, or does not know yet whether the leader's is among them.
        if self.epochs.held().is_empty() || (self.standing.link.is_first() && !self.leads()) {
            return self.send_join(now);
        }
        let Some(inbox) = self.standing.link.inbox().map(str::to_owned) else { return };
        let report = self.own().report(inbox, &self.standing, now);
        for to in self.standing.routes_of_reports(&self.cx) {
            self.cx.send(to, Kind::Report(report.clone()));
        }
    }

    fn send_join(&mut self, now: Now) {
        let Some(inbox) = self.standing.link.inbox().map(str::to_owned) else { return };
        let routes = if self.leads() { Vec::new() } else { self.standing.routes_to_leader(&self.cx) };
        self.epochs.send_join(inbox, routes, &mut self.cx, now);
    }

    fn send_announcement(&mut self, to: Route, now: Now) {
        self.assess(now);
        let announcement = announce::compose(&self.standing, self.mint.held(), &self.epochs, &self.cx, now);
        let sites = self.sites.to_proto(now);
        self.cx.send(to, Kind::Announcement(proto::Announcement { sites, ..announcement }));
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
