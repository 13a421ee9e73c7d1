//! What nodes tell each other: what a message of another node is to the concerns here, and what this node says.

use super::Farm;
use crate::clock::Now;
use crate::farm::announce;
use crate::farm::event::Sender;
use crate::farm::report;
use crate::farm::requests::AskedNode;
use crate::farm::standing::Stance;
use crate::farm::timers::Timer;
use crate::proto::{self, payload::Kind};
use crate::reason::Reason;
use crate::routes::{Route, Seat, Via};

impl Farm {
    // What other nodes say.

    /// Takes in that a message which is about to be handed in as [`super::Event::Message`] comes [`Via::Federated`], from the
    /// site that its broker calls `site`.
    pub(crate) fn on_site_heard(&mut self, site: &str, payload: &proto::Payload, now: Now) {
        if self.is_listening_to(Via::Federated)
            && payload.boot_id != self.cx.settings.boot_id
            && let Some(Kind::Announcement(announcement)) = &payload.kind
        {
            self.sites.on_heard(site, &payload.node, announcement.report_every_ms, now);
        }
    }

    /// From a node at another broker, to the leader here.
    pub(super) fn on_federated_message(&mut self, from: Sender, kind: Option<Kind>, now: Now) {
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
            self.schedule_join(1, now);
        }
    }

    pub(super) fn on_announcement(&mut self, from: Sender, announcement: proto::Announcement, now: Now) {
        let fingerprint = match announce::check(&announcement, &self.cx.settings, now) {
            Ok(fingerprint) => fingerprint,
            Err(reason) => return self.cx.refuse(&from.node, reason),
        };
        let changed = self.on_ring(&from.node, announcement.ring.as_ref(), now);
        let differs = changed || self.mint.ring().fingerprint(announcement.as_of) != fingerprint;
        match self.standing.on_announcement(&from, &announcement, &mut self.cx, now) {
            Stance::Follows { first } => self.on_leader(from, announcement, fingerprint, first || differs, now),
            // Two lead, after a partition: the merge decides about the ring.
            Stance::Leads if differs => {
                self.cx.timers.hasten(Timer::Announce, now.mono);
            }
            Stance::Leads => {}
        }
    }

    /// Takes the word of the leader, and tells it soon what this node holds if it does not know: `news`.
    fn on_leader(
        &mut self,
        from: Sender,
        announcement: proto::Announcement,
        fingerprint: [u8; 8],
        news: bool,
        now: Now,
    ) {
        if let (true, Some(seat)) = (announcement.leased, Seat::numbered(announcement.seat)) {
            self.standing.lease.go_to(seat);
        }
        self.sites.on_announced(&announcement.sites, now);
        let members = announcement.members;
        if !self.epochs.on_announced(&announcement.epoch, &mut self.cx, now) {
            self.schedule_join(members, now);
        }
        self.cx.report_interval = self.cx.bounded_interval(announcement.report_every_ms);
        let another = self.standing.announcements.follow(from, announcement, fingerprint, &mut self.cx);
        if news || another {
            self.standing.reports.hasten(0, self.cx.spread(members), &mut self.cx, now);
        }
    }

    pub(super) fn on_report(&mut self, from: Sender, mut report: proto::Report, via: Via, own: bool, now: Now) {
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

    pub(super) fn on_request(&mut self, from: Sender, request: &proto::Request, now: Now) {
        let Self { cx, standing, mint, local, requests, .. } = self;
        requests.on_request(from, request, &mut AskedNode { standing, mint, local }, cx, now);
    }

    /// Grants the asker what it lacks, and shows it the ring. One at another broker sees that by itself.
    pub(super) fn on_join(&mut self, from: &Sender, join: &proto::Join, via: Via, now: Now) {
        if !self.leads() {
            return; // the asker tries again
        }
        if self.epochs.on_join(from, join, via, &mut self.cx, now) && via != Via::Federated {
            self.send_announcement(Route::Inbox(join.inbox.clone()), now);
        }
    }

    pub(super) fn on_grant(&mut self, from: Sender, grant: &proto::EpochGrant, now: Now) {
        self.epochs.on_grant(from, grant, self.standing.lease.leads(), &mut self.cx, now);
    }

    pub(super) fn on_unknown_epoch(&mut self, via: Via, now: Now) {
        // A node that reports under a key which this leader lacks will hear its announcement and ask.
        if via != Via::Lease {
            self.schedule_join(self.standing.announcements.members(), now);
        }
    }

    /// Asks for the leader's epoch key soon. In a farm of `members` nodes all may do so at the same moment.
    fn schedule_join(&mut self, members: u32, now: Now) {
        if self.standing.link.is_up() {
            self.epochs.schedule_join(members, &mut self.cx, now);
        }
    }

    // What this node says.

    /// To itself, to see whether its inbox works, and whether its broker does.
    pub(super) fn send_to_itself(&mut self, now: Now) {
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

    pub(super) fn send_report(&mut self, now: Now) {
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

    pub(super) fn send_join(&mut self, now: Now) {
        let Some(inbox) = self.standing.link.inbox().map(str::to_owned) else { return };
        let routes = if self.leads() { Vec::new() } else { self.standing.routes_to_leader(&self.cx) };
        self.epochs.send_join(inbox, routes, &mut self.cx, now);
    }

    pub(super) fn send_announcement(&mut self, to: Route, now: Now) {
        self.assess(now);
        let announcement = announce::compose(&self.standing, self.mint.held(), &self.epochs, &self.cx, now);
        let sites = self.sites.to_proto(now);
        self.cx.send(to, Kind::Announcement(proto::Announcement { sites, ..announcement }));
    }
}
