//! The state machine of one node.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use zeroize::Zeroizing;

use super::audit::{Asked, AuditTrail, MOST_AUDITED, is_entry, is_user};
use super::event::{Action, Event, Note, Via};
use super::members::{Member, Members};
use super::operator::{Added, Ask, MOST_WAITING_BYTES, PartialTable, Pending, Reply, in_parts};
use super::settings::{FarmSettings, LocalState};
use super::sites::{Site, Sites};
use super::walk::{Step, Walk};
use crate::bus::{Names, Published, Route, Seat};
use crate::clock::{Now, millis};
use crate::envelope::{EpochId, EpochKey, Epochs, JoinKey, seal_grant};
use crate::keys::{HeldRing, KeyMaterial, Ring, RingFaults};
use crate::proto::{self, AuditOutcome, payload::Kind};
use crate::random::Randomness;
use crate::reason::Reason;

/// A leader, a lease or an inbox that is silent for this many beats is taken for broken.
const SILENT_BEATS: u64 = 3;

/// A node that has not turned for this many beats, though it is due every beat, did not run.
const FROZEN_BEATS: u64 = 2;

/// After this many beats without any valid announcement a node announces without the lease.
const ACT_AFTER_BEATS: u64 = 10;

/// How long a leader whose clock the farm disagrees with stays away from the lease, in beats.
const SKEWED_BACKOFF_BEATS: u64 = 30;

/// A new leader waits this long (or `settle`, if that is shorter) for reports that may bring a ring, before it mints the
/// first key of an empty farm. A ring that comes later merges all the same; but proxies that start with the farm wait
/// only a second for their first key.
const GATHER_MS: u64 = 250;

/// For so many beats a new leader waits for reports before it shows its member table as the farm.
const GATHER_BEATS: u64 = 3;

/// The longest random delay before trying a lease that was seen free, in a small farm.
const LEASE_JITTER_MS: u64 = 150;

/// A node that heard a leader just now leaves it this long before it tries a lease that was seen free: the leader may
/// be there, and take it again itself.
const RECLAIM_MS: u64 = 300;

/// A leader that took over just now, or hears another one, looks this often whether the lease is still its own.
const PROBE_MS: u64 = 200;

/// So many returned messages in a row tell a leader that its queue is gone. One may have been under way since before it
/// took the lease.
const RETURNS: u8 = 2;

/// The leader's pace: at least this much time between reports for each member, so that reports stay few a second.
const PACE_PER_MEMBER_MS: u64 = 10;

/// No announcement makes a node report more seldom than this.
const SLOWEST_PACE_MS: u64 = 60_000;

/// Epoch keys in a join and farm secrets in a report, and proxies in a report: messages with more are refused, for the
/// leader keeps the last report of every node.
const MOST_IDS: usize = 16;
const MOST_PROXIES: usize = 16;
/// Bytes in a pod's name, a release, and a kind of proxy.
const LONGEST_WORD: usize = 256;

/// A leader draws a new epoch key after this long, without any other reason.
const EPOCH_FOR_MS: u64 = 24 * 60 * 60 * 1000;

/// A node that asked in vain for this many beats asks all nodes, and again after as many.
const ASK_ALL_BEATS: u64 = 4;

/// So many beats a leader leaves it to the one at another broker whose name comes before its own to mint a key that is due,
/// and at most this part of an interval.
const LEAVE_MINTING_BEATS: u64 = 3;
const LEAVE_MINTING_PART: u64 = 4;

/// How long a request waits for the leader's answer in all, and between two tries.
const ASK_FOR_MS: u64 = 5_000;
const ASK_AGAIN_MS: u64 = 500;

/// Members are looked at all together no more often than every so many of them a millisecond: at every event in a farm of
/// fewer, and some times a second in one of 10,000.
const ASSESSED_IN_A_MS: u64 = 64;

/// The farm as one node sees it.
pub struct Farm {
    settings: FarmSettings,
    local: LocalState,
    random: Randomness,
    held: HeldRing,
    epochs: Epochs,
    joining: Joining,
    /// When a leader draws its next epoch key, monotonic milliseconds.
    renew_epoch_at: u64,
    members: Members,
    assessment: Assessment,
    role: Role,
    link: Option<LinkState>,
    announced: Option<Announced>,
    /// The node last followed, to notice a change.
    follows: Option<(String, [u8; 16])>,
    /// Milliseconds between reports, as the leader last said.
    pace: u64,
    /// The last valid announcement of another node, or the start.
    leader_heard_at: u64,
    /// Since when no valid announcement was heard on a link that worked.
    silent_since: u64,
    report_at: u64,
    /// The next report is one before its time, as those of many nodes are then.
    reports_early: bool,
    lease: LeaseWish,
    walk: Walk,
    checks: Checks,
    renewals: u32,
    /// The last link was closed on purpose, to renew it.
    renewing: bool,
    /// See [`Farm::is_on_its_own`].
    on_its_own: bool,
    /// How many nodes the farm had when it was last counted, here or in an announcement.
    last_members: u32,
    /// What the announcement that said so was made for, UTC milliseconds.
    counted_as_of: u64,
    /// The broker takes no messages now, from anybody: silence says nothing.
    blocked: bool,
    /// When the machine last took in an event.
    turned_at: u64,
    /// In order: which goes first is no chance.
    asks: BTreeMap<u64, Pending>,
    /// The last announcement from another broker of a node whose name comes before this one's, monotonic milliseconds.
    senior_heard_at: Option<u64>,
    /// When a key that is due is minted here all the same.
    mint_at: Option<u64>,
    /// The last revocation requested here: by which request, and what it was answered with.
    revoked: Option<(u64, Revocation)>,
    audit: AuditTrail,
    /// The other sites of the farm.
    sites: Sites,
    out: Vec<Action>,
}

/// What a look at all members told.
#[derive(Debug, Default)]
struct Assessment {
    /// Monotonic milliseconds until which it need not be made again.
    good_until: u64,
    members: u32,
    in_step: u32,
    /// Nodes whose clock is too far off, each with its clock minus ours in milliseconds.
    skewed: Vec<(String, i64)>,
    /// Most clocks differ from this leader's, to one side.
    majority_disagrees: bool,
    /// Nodes that report no longer, and said no farewell.
    silent: u32,
}

/// What a revocation set.
#[derive(Clone, Copy, Debug)]
struct Revocation {
    floor: u64,
    /// 0: no sessions were flushed.
    sessions_from: u64,
}

#[derive(Debug)]
enum Role {
    Follower,
    /// Holds the lease.
    Leading {
        seat: Seat,
        mint_after: u64,
        /// Until then, or until all but one of the nodes that were there before have reported, the member table is no
        /// picture of the farm.
        gather_until: u64,
        echo_at: u64,
        announce_at: u64,
        /// Until then it reports to itself often.
        probe_until: u64,
        /// Its own messages that came back since its last report arrived.
        returned: u8,
    },
    /// Announces without the lease.
    Acting {
        announce_at: u64,
        /// As that of a leader.
        gather_until: u64,
    },
}

/// What this node asks of its link when it hears nothing.
#[derive(Debug, Default)]
struct Checks {
    /// When it last wrote to its own inbox, until something arrives there.
    written_at: Option<u64>,
    /// How often it did since another node was heard: each time it waits twice as long, up to eight times three beats.
    in_vain: u32,
    /// The broker was asked to declare, or another one is looked for.
    busy: bool,
    /// How often another broker was looked for since another node was heard, and when it may be next.
    moves: u32,
    move_not_before: u64,
}

#[derive(Debug)]
struct LinkState {
    inbox: String,
    heard_at: u64,
    /// No announcement was heard on this link yet.
    first: bool,
}

/// The last valid announcement of another node.
#[derive(Debug)]
struct Announced {
    as_of: u64,
    fingerprint: [u8; 8],
    leased: bool,
    inbox: String,
    members: u32,
    in_step: u32,
    /// The announcer's clock minus ours.
    offset_ms: i64,
}

/// How far a node has come in asking for the leader's epoch key.
#[derive(Debug, Default)]
struct Joining {
    /// Drawn when the node asks, and erased a beat after it has the leader's key: whoever reads its memory later finds
    /// nothing that opens a recorded grant.
    key: Option<JoinKey>,
    /// The one that the leader's key was granted to, and until when: where two nodes announce, both grant theirs.
    granted: Option<(JoinKey, u64)>,
    /// When to ask although no report is due.
    ask_at: Option<u64>,
    /// No sooner than that.
    not_before: u64,
    /// When to ask all nodes, because whoever announces does not hear what is sent to the leader.
    ask_all_at: Option<u64>,
}

#[derive(Debug, Default)]
struct LeaseWish {
    /// When to try, and of which seat.
    try_at: Option<(u64, Seat)>,
    trying: bool,
    not_before: u64,
    act_at: Option<u64>,
}

impl Farm {
    /// A node that has just started, with the ring that it saved before, if any.
    #[must_use]
    pub fn new(settings: FarmSettings, held: HeldRing, random: Randomness, now: Now) -> Self {
        let on_its_own = held.is_empty(now);
        Self {
            pace: millis(settings.report_every),
            epochs: Epochs::new(settings.keys.settle),
            joining: Joining::default(),
            renew_epoch_at: 0,
            settings,
            local: LocalState::default(),
            random,
            held,
            members: Members::default(),
            assessment: Assessment::default(),
            role: Role::Follower,
            link: None,
            announced: None,
            follows: None,
            leader_heard_at: now.mono,
            silent_since: now.mono,
            report_at: now.mono,
            reports_early: false,
            lease: LeaseWish::default(),
            walk: Walk::default(),
            checks: Checks::default(),
            renewals: 0,
            renewing: false,
            on_its_own,
            last_members: 0,
            counted_as_of: 0,
            blocked: false,
            turned_at: now.mono,
            asks: BTreeMap::new(),
            senior_heard_at: None,
            mint_at: None,
            revoked: None,
            audit: AuditTrail::default(),
            sites: Sites::default(),
            out: Vec::new(),
        }
    }

    /// Takes in one event and returns what to do, in order.
    #[must_use]
    pub fn handle(&mut self, now: Now, event: Event) -> Vec<Action> {
        match event {
            Event::Wake => {}
            Event::Connected { inbox } => self.connected(inbox, now),
            Event::Disconnected => self.disconnected(),
            Event::LeaseGranted(seat) => self.granted(seat, now),
            Event::LeaseHeld(seat) => self.lease_held(seat, now),
            Event::LeaseFailed => self.lease_failed(now),
            Event::LeaseUnanswered => self.lease_unanswered(now),
            Event::LeaseLost(seat) => self.lease_lost(seat, now),
            Event::Told { seat, answer } => self.told(seat, answer, now),
            Event::Checked(answers) => self.checked(answers, now),
            Event::NotMoved => self.checks.busy = false,
            Event::Message { payload, via } => self.message(*payload, via, now),
            Event::Skewed { node, boot_id, offset_ms, via } => self.skewed(node, boot_id, offset_ms, via, now),
            Event::UnknownEpoch { via } => self.unknown_epoch(via, now),
            Event::Ask { id, ask, user } => self.ask(id, ask, user, now),
            Event::Stop => {
                self.farewell();
                return std::mem::take(&mut self.out);
            }
        }
        self.sites.listen(self.hears(Via::Far), now);
        self.advance(now);
        std::mem::take(&mut self.out)
    }

    /// Monotonic milliseconds at which [`Event::Wake`] is due, if nothing else happens before.
    #[must_use]
    pub fn next_wake(&self, now: Now) -> u64 {
        let mut due = vec![now.mono + self.pace];
        let silent = SILENT_BEATS * self.pace;
        if self.link.is_some() {
            due.push(self.report_at);
        }
        match self.role {
            Role::Leading { mint_after, echo_at, announce_at, .. } => {
                due.extend([mint_after, echo_at + silent, announce_at])
            }
            Role::Acting { announce_at, .. } => due.push(announce_at),
            Role::Follower => {}
        }
        if !matches!(self.role, Role::Follower) {
            due.push(self.renew_epoch_at);
        }
        due.extend(self.joining.ask_at);
        due.extend(self.joining.granted.as_ref().map(|(_, until)| *until));
        due.extend(self.lease.try_at.map(|(at, _)| at));
        due.extend(self.lease.act_at);
        due.extend(self.mint_at);
        due.push(self.leader_heard_at + millis(self.settings.start_alone_after));
        due.extend(self.asks.values().map(|pending| pending.retry_at.min(pending.give_up_at)));
        due.extend(self.held.next_change(now).map(|wall| now.mono + wall.saturating_sub(now.wall)));
        due.into_iter().filter(|at| *at > now.mono).min().unwrap_or(now.mono + self.pace)
    }

    /// What the next reports say of this host.
    pub fn set_local(&mut self, local: LocalState) {
        self.local = local;
    }

    /// Whether the broker has said that it takes no messages now (`connection.blocked`). Until it does again, silence is
    /// no sign of a broken inbox, lease or leader.
    pub fn set_blocked(&mut self, blocked: bool) {
        self.blocked = blocked;
    }

    /// The ring, and how long each key has been held.
    #[must_use]
    pub fn held(&self) -> &HeldRing {
        &self.held
    }

    /// The epoch keys that the node holds: [`Epochs::sealing`] says which one seals what.
    #[must_use]
    pub fn epochs(&self) -> &Epochs {
        &self.epochs
    }

    /// Whether what comes by this way is for this node. Brokers in several data centres that hand on what is published to
    /// the keys exchange have a leader each, and [`Via::Far`] is for leaders alone: they tell each other their rings. All
    /// else follow the leader of their own broker.
    #[must_use]
    pub fn hears(&self, via: Via) -> bool {
        via != Via::Far || !matches!(self.role, Role::Follower)
    }

    /// Takes in that a message which is about to be handed in as [`Event::Message`] comes [`Via::Far`], from the site that
    /// its broker calls `site`.
    pub fn comes_from(&mut self, site: &str, payload: &proto::Payload, now: Now) {
        if self.hears(Via::Far)
            && payload.boot_id != self.settings.boot_id
            && let Some(Kind::Announcement(announcement)) = &payload.kind
        {
            self.sites.heard(site, &payload.node, announcement.report_every_ms, now);
        }
    }

    /// The other sites of the farm, as this node hears them if it leads, or else as its leader said last.
    #[must_use]
    pub fn sites(&self, now: Now) -> Vec<Site> {
        self.sites.list(now)
    }

    /// Whether this node holds the lease.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        matches!(self.role, Role::Leading { .. })
    }

    /// Whether this node leads: it holds the lease, or announces without it because no leader was heard for long.
    #[must_use]
    pub fn leads(&self) -> bool {
        !matches!(self.role, Role::Follower)
    }

    /// Members and members in step: counted by the leader, as announced by it elsewhere.
    #[must_use]
    pub fn member_counts(&self) -> (u32, u32) {
        match (&self.role, &self.announced) {
            (Role::Follower, Some(announced)) => (announced.members, announced.in_step),
            (Role::Follower, None) => (1, 1),
            _ => (self.assessment.members, self.assessment.in_step),
        }
    }

    /// Whether this node leads, or hears whoever announces and holds the ring that was announced last.
    #[must_use]
    pub fn is_in_step(&self, now: Now) -> bool {
        match (&self.role, &self.announced) {
            (Role::Leading { .. } | Role::Acting { .. }, _) => true,
            (Role::Follower, Some(announced)) => {
                self.leader(now).is_some() && self.held.ring().fingerprint(announced.as_of) == announced.fingerprint
            }
            (Role::Follower, None) => false,
        }
    }

    /// The leader's clock minus ours, in milliseconds; 0 at the leader and before the first announcement.
    #[must_use]
    pub fn clock_offset_ms(&self) -> i64 {
        match (&self.role, &self.announced) {
            (Role::Follower, Some(announced)) => announced.offset_ms,
            _ => 0,
        }
    }

    /// Whether no other node can have a key of the ring, as far as this one knows: it started without a saved ring, and has
    /// neither led, nor announced, nor been told of a ring with keys since.
    #[must_use]
    pub fn is_on_its_own(&self) -> bool {
        self.on_its_own
    }

    /// The node that is followed, if one was heard within three beats; this node itself if it leads.
    #[must_use]
    pub fn leader(&self, now: Now) -> Option<&str> {
        if self.leads() {
            return Some(&self.settings.node);
        }
        let heard = now.mono.saturating_sub(self.leader_heard_at) <= SILENT_BEATS * self.pace;
        self.follows.as_ref().filter(|_| heard).map(|(name, _)| name.as_str())
    }

    /// This node as its own member table would show it, for a status without a leader.
    #[must_use]
    pub fn own_member(&self) -> proto::Member {
        proto::Member {
            name: self.settings.node.clone(),
            boot_id: self.settings.boot_id.to_vec(),
            pod: self.settings.pod.clone(),
            version: self.settings.version.clone(),
            last_report_ms: 0,
            in_step: true,
            clock_offset_ms: 0,
            sessions: self.local.sessions,
            proxies: self.local.proxies.clone(),
            secret_ids: self.local.secret_ids.clone(),
            leader: self.leads(),
            highest_generation: self.held.ring().highest_generation(),
            floor: self.held.ring().floor(),
            sessions_from: self.held.ring().sessions_from(),
            operators: Some(self.operator_trail()),
        }
    }

    fn operator_trail(&self) -> Box<proto::OperatorTrail> {
        let reload = Some(self.local.reload.clone());
        Box::new(proto::OperatorTrail { reload, audit: self.audit.to_proto() })
    }

    /// Nodes whose clock is too far from this node's to be listened to, each with its clock minus ours in milliseconds. A
    /// node that hears no leader sees here whether a clock, maybe its own, is why.
    pub fn skewed_nodes(&self) -> impl Iterator<Item = (&str, i64)> {
        self.assessment.skewed.iter().map(|(name, offset)| (name.as_str(), *offset))
    }

    // Links and the lease.

    fn connected(&mut self, inbox: String, now: Now) {
        self.link = Some(LinkState { inbox, heard_at: now.mono, first: true });
        self.announced = None;
        self.walk = Walk::default();
        self.checks = Checks { written_at: None, busy: false, ..self.checks };
        self.lease = LeaseWish { not_before: self.lease.not_before, ..LeaseWish::default() };
        self.report_at = now.mono;
        // A new link makes no leader answer: when to ask all nodes stays.
        let Joining { key, granted, ask_all_at, .. } = std::mem::take(&mut self.joining);
        self.joining = Joining { key, granted, ask_all_at, ..Joining::default() };
        if self.renewing {
            // The old inbox was silent: maybe nobody leads, maybe a queue is stuck. Trying the lease tells.
            self.wish_for_lease(now);
        } else {
            self.silent_since = now.mono;
        }
        self.renewing = false;
    }

    fn disconnected(&mut self) {
        self.link = None;
        self.renewing = false;
        self.lease.trying = false;
        self.follow("the connection to the broker is gone");
    }

    fn granted(&mut self, granted: Seat, now: Now) {
        self.lease.trying = false;
        self.lease.try_at = None;
        self.walk.go_to(granted);
        if let Role::Leading { ref mut seat, ref mut echo_at, .. } = self.role {
            // A seat before its own has become free: everybody looks there first.
            let left = std::mem::replace(seat, granted);
            if left != granted {
                *echo_at = now.mono;
                self.out.push(Action::ReleaseLease(left));
                self.announce_now(now);
            }
            return;
        }
        let Some(link) = &mut self.link else { return };
        // The beat was that of a large farm, maybe, and begins anew with the least: three of those may be over already.
        link.heard_at = now.mono;
        self.forget_members();
        self.pace = millis(self.settings.report_every);
        self.role = Role::Leading {
            seat: granted,
            // Reports that arrive until then may bring a ring.
            mint_after: now.mono + millis(self.settings.keys.settle).min(GATHER_MS),
            gather_until: now.mono + GATHER_BEATS * self.pace,
            echo_at: now.mono,
            announce_at: now.mono,
            probe_until: now.mono + SILENT_BEATS * self.pace,
            returned: 0,
        };
        self.report_at = now.mono;
        self.meet_others();
        self.note(Note::Leads);
        self.draw_epoch(now);
    }

    fn lease_held(&mut self, tried: Seat, now: Now) {
        self.lease.trying = false;
        if let Role::Leading { seat, .. } = self.role
            && seat == tried
        {
            self.follow("another node has the lease");
        }
        // The node that won wants to hear of us, once it is ready to.
        self.report_within(now, 50, 250);
    }

    /// The broker refused, or could not be reached again: what is missing now is missing in a moment, too.
    fn lease_failed(&mut self, now: Now) {
        self.lease.trying = false;
        self.lease.not_before = self.lease.not_before.max(now.mono + self.pace);
    }

    /// The broker answers no declaration, though the link works.
    fn lease_unanswered(&mut self, now: Now) {
        self.lease.trying = false;
        self.lease.not_before = now.mono + SILENT_BEATS * self.pace;
        if !self.checks.busy {
            self.move_link(Note::BrokerCutOff, now);
        }
    }

    fn checked(&mut self, answers: bool, now: Now) {
        self.checks.busy = false;
        if !answers && self.link.is_some() {
            self.move_link(Note::BrokerCutOff, now);
        }
    }

    /// Looks for another broker. Where one after the other is no good, each time after twice as long as before.
    fn move_link(&mut self, why: Note, now: Now) {
        if now.mono < self.checks.move_not_before {
            return;
        }
        self.checks.moves = self.checks.moves.saturating_add(1);
        self.checks.move_not_before = now.mono + ((SILENT_BEATS * self.pace) << self.checks.moves.min(5));
        self.checks.busy = true;
        self.note(why);
        self.out.push(Action::MoveLink);
    }

    fn check_broker(&mut self) {
        if self.link.is_some() && !self.checks.busy {
            self.checks.busy = true;
            self.out.push(Action::CheckBroker);
        }
    }

    /// What became of a message to the leader, at the seat where it was looked for.
    fn told(&mut self, seat: Seat, answer: Published, now: Now) {
        if let Role::Leading { seat: own, .. } = self.role {
            return match answer {
                Published::Unroutable if seat == own => self.own_queue_is_gone(seat, now),
                // Its own reports come back or do not: that is looked at elsewhere.
                _ if seat >= own => {}
                Published::Routed => {
                    self.follow("another node leads at a seat before its own");
                    self.out.push(Action::ReleaseLease(own));
                    self.walk.go_to(seat);
                }
                Published::Unroutable => self.try_lease(seat),
                Published::Nacked => {}
            };
        }
        let step = match answer {
            Published::Routed => return self.walk.taken(seat),
            Published::Unroutable => self.walk.unroutable(seat),
            Published::Nacked => self.walk.nacked(seat, now.mono),
        };
        match step {
            Step::Stay => {}
            Step::Again(after) => self.report_at = self.report_at.min(now.mono + after),
            Step::Try(seat) => self.lease_is_free(seat, now),
        }
    }

    /// The leader's queue is not there. A broker can lose it under a leader that lives: when a broker of a cluster dies
    /// the others clean up after it by name, and so does a former holder's connection when it ends. Whoever led then
    /// takes its place again; were others faster, each one's end would take the lease from the next for ever.
    fn own_queue_is_gone(&mut self, own: Seat, now: Now) {
        let Role::Leading { ref mut returned, .. } = self.role else { return };
        *returned += 1;
        if *returned < RETURNS {
            self.report_at = now.mono;
        } else if !self.lease.trying {
            *returned = 0;
            self.try_lease(own);
        }
    }

    fn lease_is_free(&mut self, seat: Seat, now: Now) {
        let heard = now.mono.saturating_sub(self.leader_heard_at) <= SILENT_BEATS * self.pace;
        let led = heard && self.announced.as_ref().is_some_and(|announced| announced.leased);
        self.wish_for_lease_in(if led { RECLAIM_MS } else { 0 }, seat, now);
    }

    fn lease_lost(&mut self, lost: Seat, now: Now) {
        if let Role::Leading { seat, .. } = self.role
            && seat == lost
        {
            self.follow("the broker took the lease away");
        }
        self.wish_for_lease(now);
    }

    fn try_lease(&mut self, seat: Seat) {
        if !self.lease.trying {
            self.lease.trying = true;
            self.out.push(Action::TryLease(seat));
        }
    }

    fn follow(&mut self, reason: &'static str) {
        if self.leads() {
            self.note(Note::StepsDown(reason));
            self.forget_members();
        }
        self.role = Role::Follower;
    }

    /// Tries the lease after a short random delay, unless it is tried already or not wanted.
    fn wish_for_lease(&mut self, now: Now) {
        self.wish_for_lease_in(0, self.walk.seat(), now);
    }

    /// The same after `least` milliseconds and a short random delay.
    fn wish_for_lease_in(&mut self, least: u64, seat: Seat, now: Now) {
        let wanted = self.settings.can_lead && self.link.is_some() && !self.is_leader();
        if wanted && !self.lease.trying && self.lease.try_at.is_none() {
            // All may see it at the same moment, and each attempt is a connection. Once one has the lease it says so, and the
            // others stay.
            let jitter = self.spread(self.last_members).max(LEASE_JITTER_MS);
            let at = now.mono + least + self.random_below(jitter);
            self.lease.try_at = Some((at.max(self.lease.not_before), seat));
        }
    }

    fn renew_link(&mut self) {
        self.link = None;
        self.renewing = true;
        self.checks.busy = false;
        self.lease.trying = false;
        self.lease.try_at = None;
        self.out.push(Action::RenewLink);
    }

    fn farewell(&mut self) {
        if self.link.is_none() {
            return;
        }
        // The lease is free before anybody hears that it is.
        if let Role::Leading { seat, .. } = self.role {
            self.out.push(Action::ReleaseLease(seat));
        }
        let to = if self.leads() { Route::Keys } else { self.leader_route() };
        self.out.push(Action::Send { to, kind: Kind::Farewell(proto::Farewell {}) });
    }

    // Messages.

    fn message(&mut self, payload: proto::Payload, via: Via, now: Now) {
        let own = payload.boot_id == self.settings.boot_id;
        if via == Via::Inbox {
            if own && self.checks.written_at.is_some() && self.checks.in_vain == 1 {
                self.note(Note::NoLeaderHeard);
            }
            self.inbox_lives(now);
        }
        let Ok(boot_id) = <[u8; 16]>::try_from(payload.boot_id.as_slice()) else { return };
        let offset_ms = offset(payload.sent_at, now.wall);
        let from = Sender { node: payload.node, boot_id, offset_ms };
        if via == Via::Far {
            if self.hears(via) && !own {
                self.far_message(from, payload.kind, now);
            }
            return;
        }
        match payload.kind {
            Some(Kind::Announcement(announcement)) if !own => self.announcement(from, announcement, now),
            Some(Kind::Announcement(_)) => {}
            Some(Kind::Report(report)) => self.report(from, report, via, own, now),
            Some(Kind::Join(join)) if !own => self.join(from, &join, via, now),
            Some(Kind::Join(_)) => {}
            Some(Kind::EpochGrant(grant)) => self.take_epoch(from, &grant, now),
            Some(Kind::Farewell(_)) => self.left(&from, own, now),
            Some(Kind::Request(request)) => self.request(from, &request, now),
            Some(Kind::Answer(answer)) => self.answer(&from, answer, now),
            // Whatever else there is has no business on the key plane.
            Some(_) | None => self.note(Note::UnknownKind { node: from.node }),
        }
    }

    /// From a node at another broker, to the leader here.
    fn far_message(&mut self, from: Sender, kind: Option<Kind>, now: Now) {
        match kind {
            Some(Kind::Announcement(announcement)) => self.far_announcement(&from, &announcement, now),
            Some(Kind::Join(join)) => self.join(from, &join, Via::Far, now),
            Some(Kind::EpochGrant(grant)) => self.take_epoch(from, &grant, now),
            // Who is there, and who left, is for the leader there.
            _ => {}
        }
    }

    /// Its nodes hear their leader, and ours hear this one: nothing of it counts but the ring and the epoch key. What this
    /// node knows and the other lacks is in the next announcement; to send that at once would be answered at once, for ever
    /// where settings let one of them refuse what the other holds.
    fn far_announcement(&mut self, from: &Sender, announcement: &proto::Announcement, now: Now) {
        if announcement.ring.as_ref().is_some_and(|ring| self.take_over(&from.node, ring, now)) {
            self.announce_now(now);
        }
        if from.node < self.settings.node {
            self.senior_heard_at = Some(now.mono);
        }
        if let Ok(id) = EpochId::try_from(&announcement.epoch[..])
            && !self.epochs.still_used(id, now)
        {
            self.ask_for_epoch(1, now);
        }
    }

    fn inbox_lives(&mut self, now: Now) {
        if let Some(link) = &mut self.link {
            link.heard_at = now.mono;
        }
        self.checks.written_at = None;
        self.renewals = 0;
    }

    fn skewed(&mut self, node: String, boot_id: [u8; 16], offset_ms: i64, via: Via, now: Now) {
        if via == Via::Inbox {
            self.inbox_lives(now);
        }
        // What a link between brokers held up says nothing of a clock, and the nodes there are not this leader's.
        if boot_id == self.settings.boot_id || via == Via::Far {
            return;
        }
        self.members.skewed(&node, boot_id, offset_ms, self.pace, now);
        self.note(Note::Skewed { node, offset_ms });
    }

    fn announcement(&mut self, from: Sender, announcement: proto::Announcement, now: Now) {
        let Ok(fingerprint) = <[u8; 8]>::try_from(announcement.fingerprint.as_slice()) else {
            self.note(Note::Refused { node: from.node, reason: Reason::BadFingerprint });
            return;
        };
        if !(announcement.inbox.is_empty() || self.settings.names.is_inbox(&announcement.inbox)) {
            self.note(Note::Refused { node: from.node, reason: Reason::BadAnnouncement });
            return;
        }
        if !matches!(announcement.epoch.len(), 0 | 8) {
            self.note(Note::Refused { node: from.node, reason: Reason::BadEpoch });
            return;
        }
        let limit = millis(self.settings.keys.max_clock_offset);
        if offset(announcement.as_of, now.wall).unsigned_abs() > 2 * limit {
            self.note(Note::Refused { node: from.node, reason: Reason::AsOfFarOff });
            return;
        }
        let changed = announcement.ring.as_ref().is_some_and(|ring| self.take_over(&from.node, ring, now));
        self.leader_heard_at = now.mono;
        self.silent_since = now.mono;
        (self.checks.in_vain, self.checks.moves) = (0, 0);
        if announcement.leased {
            // A leader is there: what was seen free before is not.
            self.lease.try_at = None;
        }
        self.lease.act_at = None;
        if matches!(self.role, Role::Follower) {
            // A follower notes only nodes whose clock is too far off: this one's is not, any more.
            self.members.left(&from.node, from.boot_id);
        }
        let first = self.link.as_mut().is_some_and(|link| std::mem::take(&mut link.first));
        let differs = self.held.ring().fingerprint(announcement.as_of) != fingerprint;
        match self.role {
            Role::Leading { seat, ref mut announce_at, ref mut probe_until, .. } => {
                // Two lead, after a partition: the broker decides about the lease, the merge about the ring.
                if changed || differs {
                    *announce_at = now.mono;
                }
                if announcement.leased {
                    // The end of the other's connection may delete our queue.
                    *probe_until = now.mono + SILENT_BEATS * self.pace;
                    let lower = Seat::numbered(announcement.seat).is_some_and(|other| other < seat);
                    self.report_at = self.report_at.min(now.mono + if lower { 0 } else { PROBE_MS });
                }
                return;
            }
            Role::Acting { ref mut announce_at, .. } => {
                if announcement.leased || from.node < self.settings.node {
                    self.follow("another node announces");
                } else {
                    if changed || differs {
                        *announce_at = now.mono;
                    }
                    return;
                }
            }
            Role::Follower => {}
        }
        if announcement.leased
            && let Some(seat) = Seat::numbered(announcement.seat)
        {
            self.walk.go_to(seat);
        }
        self.sites.told(&announcement.sites, now);
        let who = (from.node, from.boot_id);
        let another = self.follows.as_ref() != Some(&who);
        self.follow_epoch(&announcement.epoch, announcement.members, now);
        self.pace = announcement.report_every_ms.clamp(millis(self.settings.report_every), self.slowest_pace());
        if another {
            self.note(Note::Follows(who.0.clone()));
            self.follows = Some(who);
        }
        let offset_ms = match &self.announced {
            // The smallest in a row of announcements: delay is not skew.
            Some(last) if !another && last.offset_ms.unsigned_abs() < from.offset_ms.unsigned_abs() => {
                last.offset_ms + (from.offset_ms - last.offset_ms) / 8
            }
            _ => from.offset_ms,
        };
        // One that is late, or sent again to a node that never saw it, knows less of the farm.
        if announcement.as_of >= self.counted_as_of {
            (self.last_members, self.counted_as_of) = (announcement.members, announcement.as_of);
        }
        self.announced = Some(Announced {
            as_of: announcement.as_of,
            fingerprint,
            leased: announcement.leased,
            inbox: announcement.inbox,
            members: announcement.members,
            in_step: announcement.members_in_step,
            offset_ms,
        });
        if first || another || changed || differs {
            self.report_within(now, 0, self.spread(announcement.members));
        }
    }

    fn report(&mut self, from: Sender, mut report: proto::Report, via: Via, own: bool, now: Now) {
        if own
            && via == Via::Lease
            && let Role::Leading { ref mut echo_at, ref mut returned, .. } = self.role
        {
            *echo_at = now.mono;
            *returned = 0;
        }
        if matches!(self.role, Role::Follower) {
            return;
        }
        if !is_sound(&report, &self.settings.names) {
            self.note(Note::Refused { node: from.node, reason: Reason::BadReport });
            return;
        }
        let ring = report.ring.take();
        let changed = ring.is_some_and(|ring| self.take_over(&from.node, &ring, now));
        let reply_to = Route::Inbox(report.inbox.clone());
        let first = report.first;
        if !self.members.has_room_for(&from.node, from.boot_id, &report) {
            self.note(Note::Refused { node: from.node, reason: Reason::TooMany });
            return;
        }
        let new = self.members.reported(&from.node, from.boot_id, from.offset_ms, report, now);
        if changed {
            self.announce_now(now);
        } else if (first || new) && !own {
            let announcement = self.compose_announcement(now);
            self.send(reply_to, Kind::Announcement(announcement));
        }
    }

    fn left(&mut self, from: &Sender, own: bool, now: Now) {
        self.members.left(&from.node, from.boot_id);
        let led = self.follows.as_ref().is_some_and(|(_, boot_id)| *boot_id == from.boot_id);
        if led && !own {
            self.wish_for_lease(now);
        }
    }

    /// Merges a ring that came from `node`; whether ours changed.
    fn take_over(&mut self, node: &str, ring: &proto::Ring, now: Now) -> bool {
        let (ring, faults) = Ring::read(ring, now, &self.settings.keys);
        self.note_faults(node, &faults);
        let merge = self.held.merge(&ring, now);
        if ring.open_at(now.wall).next().is_some() {
            self.meet_others();
        }
        if merge.conflicts > 0 {
            self.note(Note::KeyConflict { node: node.to_owned(), count: merge.conflicts.into() });
        }
        if merge.changed {
            self.out.push(Action::RingChanged);
        }
        merge.changed
    }

    /// Other nodes have keys that this one has, or get them now. Its proxies hear of that.
    fn meet_others(&mut self) {
        if std::mem::take(&mut self.on_its_own) && !self.held.ring().keys().is_empty() {
            self.out.push(Action::RingChanged);
        }
    }

    fn note_faults(&mut self, node: &str, faults: &RingFaults) {
        for (fault, count) in faults.iter() {
            self.note(Note::BadKey { node: node.to_owned(), reason: fault.reason(), count });
        }
    }

    // Epoch keys.

    /// Draws the epoch key of a new term, or of the next part of one. Everybody else asks for it when it is announced.
    fn draw_epoch(&mut self, now: Now) {
        let mut bytes = Zeroizing::new([0; 32]);
        (self.random)(bytes.as_mut());
        let key = EpochKey::from_random(&bytes).expect("OpenSSL has HKDF-SHA256");
        self.renew_epoch_at = now.mono + EPOCH_FOR_MS;
        self.note(Note::Epoch { id: key.id(), from: self.settings.node.clone() });
        self.epochs.lead_to(key, now);
        self.out.push(Action::EpochsChanged);
        self.announce_now(now);
    }

    fn unknown_epoch(&mut self, via: Via, now: Now) {
        // Whoever reports under a key that this leader lacks will hear its announcement and ask.
        if via != Via::Lease {
            self.ask_for_epoch(self.last_members, now);
        }
    }

    /// Asks soon, unless it did within this beat. In a farm of `members` nodes all may do so at the same moment.
    fn ask_for_epoch(&mut self, members: u32, now: Now) {
        if self.link.is_none() || self.joining.ask_at.is_some() || now.mono < self.joining.not_before {
            return;
        }
        self.joining.not_before = now.mono + self.pace;
        self.joining.ask_at = Some(now.mono + self.random_below(self.spread(members)));
    }

    /// Seals under the announcer's key from now on, or asks for it.
    fn follow_epoch(&mut self, announced: &[u8], members: u32, now: Now) {
        let Ok(id) = EpochId::try_from(announced) else { return };
        let last = self.epochs.current().map(EpochKey::id);
        if !self.epochs.follow(id, now) {
            self.ask_for_epoch(members, now);
            return;
        }
        self.joined(now);
        if last != Some(id) {
            self.out.push(Action::EpochsChanged);
        }
    }

    /// Whether this node asks for an epoch key in place of reporting: it has none, or does not know yet whether the
    /// leader's is among them.
    fn must_join(&self) -> bool {
        let first = self.link.as_ref().is_some_and(|link| link.first);
        self.epochs.is_empty() || (first && matches!(self.role, Role::Follower))
    }

    fn send_join(&mut self, now: Now) {
        let Some(inbox) = self.link.as_ref().map(|link| link.inbox.clone()) else { return };
        self.joining.ask_at = None;
        let join = self.compose_join(inbox);
        // A node that announces hears no other one in its own queue.
        let announces = !matches!(self.role, Role::Follower);
        let ask_all_at = *self.joining.ask_all_at.get_or_insert(now.mono + ASK_ALL_BEATS * self.pace);
        if announces || now.mono >= ask_all_at {
            self.joining.ask_all_at = None;
            self.send(Route::Keys, Kind::Join(join.clone()));
        }
        if !announces {
            if let Some(inbox) = self.acting_inbox() {
                self.send(Route::Inbox(inbox), Kind::Join(join.clone()));
            }
            self.send(self.leader_route(), Kind::Join(join));
        }
    }

    fn compose_join(&mut self, inbox: String) -> proto::Join {
        let random = &mut self.random;
        let key = self.joining.key.get_or_insert_with(|| {
            let mut bytes = Zeroizing::new([0; 32]);
            random(bytes.as_mut());
            JoinKey::from_random(&bytes).expect("OpenSSL has X25519")
        });
        let public_key = key.public().to_vec();
        let epochs = self.epochs.ids().map(|id| id.to_vec()).collect();
        proto::Join { inbox, public_key, epochs }
    }

    /// Grants the asker this leader's epoch key, and the one that it seals with for now, and shows it the ring. No queue of
    /// this broker reaches one at another broker: the grant goes the way that the question came, and the ring by itself.
    fn join(&mut self, from: Sender, join: &proto::Join, via: Via, now: Now) {
        if matches!(self.role, Role::Follower) {
            return; // the asker tries again
        }
        let is_id = |id: &Vec<u8>| id.len() == size_of::<EpochId>();
        if !self.settings.names.is_inbox(&join.inbox) || join.epochs.len() > MOST_IDS || !join.epochs.iter().all(is_id)
        {
            self.note(Note::Refused { node: from.node, reason: Reason::BadJoin });
            return;
        }
        let far = via == Via::Far;
        let to = || if far { Route::Keys } else { Route::Inbox(join.inbox.clone()) };
        let keys = [self.epochs.settled(now), self.epochs.current()];
        let mut lacking: Vec<&EpochKey> =
            keys.into_iter().flatten().filter(|key| !join.epochs.iter().any(|held| held[..] == key.id())).collect();
        lacking.dedup_by_key(|key| key.id());
        let mut grants = Vec::new();
        for key in lacking {
            let mut random = Zeroizing::new([0; 32]);
            (self.random)(random.as_mut());
            let farm = &self.settings.names.farm;
            match seal_grant(key, farm, &from.boot_id, &join.public_key, &random) {
                Ok(grant) if far => grants.push(proto::EpochGrant { asker: from.boot_id.to_vec(), ..grant }),
                Ok(grant) => grants.push(grant),
                Err(fault) => {
                    self.note(Note::Refused { node: from.node, reason: fault.reason() });
                    return;
                }
            }
        }
        for grant in grants {
            self.send(to(), Kind::EpochGrant(grant));
        }
        if !far {
            let announcement = self.compose_announcement(now);
            self.send(to(), Kind::Announcement(announcement));
        }
    }

    fn take_epoch(&mut self, from: Sender, grant: &proto::EpochGrant, now: Now) {
        if !(grant.asker.is_empty() || grant.asker == self.settings.boot_id) {
            return; // for another
        }
        if self.epochs.ids().any(|id| grant.epoch[..] == id) {
            return; // asked twice, granted twice
        }
        let farm = &self.settings.names.farm;
        let asked = self.joining.key.iter().chain(self.joining.granted.iter().map(|(key, _)| key));
        let mut opened = asked.map(|key| key.open_grant(farm, &self.settings.boot_id, grant)).collect::<Vec<_>>();
        let key = match opened.iter().position(Result::is_ok).map(|place| opened.swap_remove(place)) {
            Some(Ok(key)) => key,
            _ => {
                let fault = opened.into_iter().find_map(Result::err);
                let reason = fault.map_or(Reason::BadGrant, |fault| fault.reason());
                return self.note(Note::Refused { node: from.node, reason });
            }
        };
        self.note(Note::Epoch { id: key.id(), from: from.node });
        if matches!(self.role, Role::Follower) {
            self.epochs.lead_to(key, now);
        } else {
            // Another one leads too. Its ring is worth opening, but this node's term has a key of its own.
            self.epochs.open_too(key, now);
            self.joined(now);
        }
        self.out.push(Action::EpochsChanged);
    }

    /// What was asked for is there. When to ask again at the earliest stays: the answer brings an announcement, and to ask
    /// after each would let anybody who can write to the broker keep both sides busy.
    fn joined(&mut self, now: Now) {
        let Joining { key, granted, not_before, .. } = std::mem::take(&mut self.joining);
        let granted = key.map(|key| (key, now.mono + self.pace)).or(granted);
        self.joining = Joining { granted, not_before, ..Joining::default() };
    }

    fn advance_epochs(&mut self, now: Now) {
        // Nothing that is sealed under an older one would be accepted by its stamp.
        let settle = millis(self.settings.keys.settle);
        let within = settle.saturating_add(2 * millis(self.settings.keys.max_clock_offset));
        if self.epochs.expire(within, now) {
            self.out.push(Action::EpochsChanged);
        }
        if !matches!(self.role, Role::Follower) && now.mono >= self.renew_epoch_at {
            self.draw_epoch(now);
        }
        self.joining.granted.take_if(|(_, until)| now.mono >= *until);
        if self.joining.ask_at.is_some_and(|at| now.mono >= at) {
            self.send_join(now);
        }
    }

    // Requests of operators.

    fn ask(&mut self, id: u64, ask: Ask, user: String, now: Now) {
        // What is minted or revoked goes beyond every generation of the ring, and must not go with a faulty one.
        self.drop_faulty(now);
        if let Ask::RevokeLocal { flush_sessions } = ask {
            let Revocation { floor, sessions_from } = self.revoke(0, flush_sessions, now);
            // To whoever can be reached.
            self.report_at = now.mono;
            self.announce_now(now);
            self.audit_own(id, ask, user, (AuditOutcome::Done, floor), now);
            self.out.push(Action::Reply { id, reply: Reply::Revoked { floor, sessions_from } });
        } else if self.leads() && !self.must_wait(ask, now) {
            let answer = self.decide(ask, self.held.ring().highest_generation(), id, now);
            self.audit_own(id, ask, user, outcome_of(&answer), now);
            let leader = self.settings.node.clone();
            self.reply(id, leader, answer);
        } else if self.link.is_none() {
            self.audit_own(id, ask, user, (AuditOutcome::NoLeader, 0), now);
            self.out.push(Action::Reply { id, reply: Reply::NoLeader });
        } else {
            let known = self.held.ring().highest_generation();
            let give_up_at = now.mono + ASK_FOR_MS;
            let pending = Pending { ask, user, known, give_up_at, retry_at: now.mono, table: PartialTable::default() };
            self.asks.insert(id, pending);
        }
    }

    fn request(&mut self, from: Sender, request: &proto::Request, now: Now) {
        if !self.settings.names.is_inbox(&request.inbox) || !is_user(&request.user) {
            self.note(Note::Refused { node: from.node, reason: Reason::BadRequest });
            return;
        }
        if !self.leads() {
            return; // the asker tries again, and then says that nobody answered
        }
        self.drop_faulty(now);
        if request.kind.as_ref().is_some_and(|kind| self.must_wait(Ask::of(kind), now)) {
            return; // likewise
        }
        let answer = match &request.kind {
            Some(kind) => {
                let answer = self.decide(Ask::of(kind), request.highest_generation, request.id, now);
                let asked = (Ask::of(kind), from.node, request.user.clone());
                self.audit(request.id, asked, outcome_of(&answer), now);
                answer
            }
            // Of a later release, which learns that this leader cannot do it.
            None => {
                self.note(Note::Refused { node: from.node, reason: Reason::BadRequest });
                proto::Answer { id: request.id, outcome: proto::Outcome::Refused.into(), ..Default::default() }
            }
        };
        let answer = proto::Answer { leader: self.settings.node.clone(), ..answer };
        for part in in_parts(answer, now.wall) {
            self.send(Route::Inbox(request.inbox.clone()), Kind::Answer(part));
        }
    }

    /// Whether this leader cannot do that just now: half a table would make missing nodes look like none, and a key that the
    /// broker does not take from anybody would seal before anybody else has it.
    fn must_wait(&self, ask: Ask, now: Now) -> bool {
        match ask {
            Ask::Status => self.gathers(now),
            Ask::Rotate => self.blocked,
            Ask::Revoke { .. } | Ask::RevokeLocal { .. } => false,
        }
    }

    /// Whether this node leads so newly that most of the farm has not reported to it yet.
    fn gathers(&self, now: Now) -> bool {
        let (Role::Leading { gather_until, .. } | Role::Acting { gather_until, .. }) = self.role else { return false };
        // The leader before may be the one that is gone.
        let expected = usize::try_from(self.last_members.saturating_sub(1)).unwrap_or(usize::MAX);
        now.mono < gather_until && self.members.len() < expected
    }

    /// Does what is asked, as the leader. `known` is the highest generation that the asker knows: with it a request is
    /// compare-and-set, and a replayed one does nothing.
    fn decide(&mut self, ask: Ask, known: u64, id: u64, now: Now) -> proto::Answer {
        let mut answer = proto::Answer { id, ..Default::default() };
        let outcome = match ask {
            Ask::Status => {
                answer.members = self.member_table(now);
                proto::Outcome::Done
            }
            Ask::Rotate => {
                if let Some(generation) = self.held.rotation_pending(now) {
                    answer.generation = generation;
                    proto::Outcome::Pending
                } else if known < self.held.ring().highest_generation() {
                    answer.ring = Some(self.held.to_proto(now));
                    proto::Outcome::Stale
                } else {
                    let seal_from = now.wall + millis(self.settings.keys.settle);
                    answer.generation = self.mint(seal_from, "requested", now);
                    self.announce_now(now);
                    proto::Outcome::Done
                }
            }
            Ask::Revoke { flush_sessions } => {
                let earlier = self.revoked.filter(|(request, _)| *request == id).map(|(_, done)| done);
                if earlier.is_none() && known < self.held.ring().highest_generation() {
                    answer.ring = Some(self.held.to_proto(now));
                    proto::Outcome::Stale
                } else {
                    // The same request again is one whose answer was lost, and done already.
                    let done = earlier.unwrap_or_else(|| self.revoke(known, flush_sessions, now));
                    self.revoked = Some((id, done));
                    (answer.floor, answer.sessions_from) = (done.floor, done.sessions_from);
                    self.announce_now(now);
                    proto::Outcome::Done
                }
            }
            Ask::RevokeLocal { .. } => proto::Outcome::Refused,
        };
        answer.outcome = outcome.into();
        answer
    }

    /// Puts every key but a new one out of use, those included that somebody who knows the generation `known` holds.
    fn revoke(&mut self, known: u64, flush_sessions: bool, now: Now) -> Revocation {
        let mut bytes = Zeroizing::new([0; 80]);
        (self.random)(bytes.as_mut());
        let floor = self.held.revoke(KeyMaterial::from_random(&bytes), known, now).generation;
        let sessions_from = if flush_sessions { self.held.flush_sessions(now) } else { 0 };
        self.note(Note::Revoked { generation: floor, flush_sessions });
        self.out.push(Action::RingChanged);
        Revocation { floor, sessions_from }
    }

    fn answer(&mut self, from: &Sender, mut answer: proto::Answer, now: Now) {
        let others = self.asks.iter().filter(|(id, _)| **id != answer.id).map(|(_, other)| other.table.bytes()).sum();
        let Some(pending) = self.asks.get_mut(&answer.id) else {
            return; // an answer that came after we gave up, or twice
        };
        if answer.outcome() == proto::Outcome::Stale {
            if let Some(ring) = &answer.ring {
                self.take_over(&from.node, ring, now);
            }
            let known = self.held.ring().highest_generation();
            if let Some(pending) = self.asks.get_mut(&answer.id) {
                pending.known = known;
                pending.retry_at = now.mono;
            }
            return;
        }
        let room = MOST_WAITING_BYTES.saturating_sub(others);
        match pending.table.add(&mut answer, room) {
            Added::Incomplete => {}
            Added::Whole(members) => {
                answer.members = members;
                if let Some(pending) = self.asks.remove(&answer.id) {
                    self.audit_own(answer.id, pending.ask, pending.user, outcome_of(&answer), now);
                }
                self.reply(answer.id, from.node.clone(), answer);
            }
            Added::Bad(reason) => {
                if let Some(pending) = self.asks.remove(&answer.id) {
                    self.audit_own(answer.id, pending.ask, pending.user, (AuditOutcome::NoLeader, 0), now);
                }
                self.note(Note::Refused { node: from.node.clone(), reason });
                self.out.push(Action::Reply { id: answer.id, reply: Reply::BadAnswer { from: from.node.clone() } });
            }
        }
    }

    fn reply(&mut self, id: u64, leader: String, answer: proto::Answer) {
        let reply = match answer.outcome() {
            proto::Outcome::Done if answer.floor != 0 => {
                Reply::Revoked { floor: answer.floor, sessions_from: answer.sessions_from }
            }
            proto::Outcome::Done | proto::Outcome::Pending if answer.generation != 0 => {
                Reply::Rotating { generation: answer.generation, pending: answer.outcome() == proto::Outcome::Pending }
            }
            proto::Outcome::Done => Reply::Members { leader, members: answer.members },
            _ => Reply::Refused { leader },
        };
        self.out.push(Action::Reply { id, reply });
    }

    fn advance_asks(&mut self, now: Now) {
        let mut over = Vec::new();
        let mut send = Vec::new();
        let usable = self.link.is_some();
        // Without an epoch key nothing can be asked yet.
        let sealable = !self.epochs.is_empty();
        for (id, pending) in &mut self.asks {
            if now.mono >= pending.give_up_at || !usable {
                over.push(*id);
            } else if sealable && now.mono >= pending.retry_at {
                pending.retry_at = now.mono + ASK_AGAIN_MS;
                send.push((*id, pending.ask, pending.known, pending.user.clone()));
            }
        }
        for id in over {
            if let Some(pending) = self.asks.remove(&id) {
                self.audit_own(id, pending.ask, pending.user, (AuditOutcome::NoLeader, 0), now);
            }
            self.out.push(Action::Reply { id, reply: Reply::NoLeader });
        }
        for (id, ask, highest_generation, user) in send {
            let inbox = self.link.as_ref().map(|link| link.inbox.clone()).unwrap_or_default();
            let request = proto::Request { id, inbox, highest_generation, user, kind: ask.to_proto() };
            // A node that leads without the lease is asked at its inbox, while it is heard. Asked as well, a leader that cannot be
            // heard would do it a second time.
            let heard = now.mono.saturating_sub(self.leader_heard_at) <= SILENT_BEATS * self.pace;
            let to = self.acting_inbox().filter(|_| heard).map_or_else(|| self.leader_route(), Route::Inbox);
            self.send(to, Kind::Request(request));
        }
    }

    /// Keeps what became of a request that was made at this node.
    fn audit_own(&mut self, id: u64, ask: Ask, user: String, outcome: (AuditOutcome, u64), now: Now) {
        self.audit(id, (ask, self.settings.node.clone(), user), outcome, now);
    }

    /// Keeps what became of a request of `user` at `node`. One that the asker will repeat is not over yet.
    fn audit(
        &mut self,
        id: u64,
        (ask, node, user): (Ask, String, String),
        (outcome, generation): (AuditOutcome, u64),
        now: Now,
    ) {
        if outcome == AuditOutcome::Unspecified {
            return;
        }
        let asked = Asked { id, ask, node, user };
        if let Some(entry) = self.audit.note(asked, outcome, generation, now.wall) {
            self.note(Note::Audited(entry));
        }
    }

    // Time.

    fn advance(&mut self, now: Now) {
        // Nor was anything heard while this node itself did not run: a frozen one finds what it missed in its queues.
        let frozen =
            now.mono.saturating_sub(std::mem::replace(&mut self.turned_at, now.mono)) > FROZEN_BEATS * self.pace;
        if self.blocked || frozen {
            self.pardon_silence(now);
        }
        self.advance_ring(now);
        self.advance_lead(now);
        self.advance_link(now);
        self.advance_epochs(now);
        self.advance_asks(now);
        if self.link.is_some() && now.mono >= self.report_at {
            self.send_report(now);
        }
        self.advance_announcement(now);
        self.assess(now);
    }

    /// Nobody can be heard: every span of silence begins anew.
    fn pardon_silence(&mut self, now: Now) {
        self.silent_since = now.mono;
        if let Some(link) = &mut self.link {
            link.heard_at = now.mono;
        }
        self.checks.written_at = None;
        if let Role::Leading { echo_at, .. } = &mut self.role {
            *echo_at = now.mono;
        }
    }

    /// Drops what the clock says cannot be, as after it was set back.
    fn drop_faulty(&mut self, now: Now) {
        let faults = self.held.drop_faulty(now);
        let own = self.settings.node.clone();
        self.note_faults(&own, &faults);
        if !faults.is_empty() {
            self.out.push(Action::RingChanged);
        }
    }

    fn advance_ring(&mut self, now: Now) {
        self.drop_faulty(now);
        if self.held.expire(now) {
            self.out.push(Action::RingChanged);
        }
        if self.held.stranded(now) {
            // Nobody minted a successor in time: forward secrecy before resumption.
            self.mint(now.wall, "alone", now);
            self.announce_now(now);
        }
        let mints = match self.role {
            Role::Leading { mint_after, .. } => now.mono >= mint_after,
            Role::Acting { .. } => true,
            Role::Follower => false,
        };
        if mints {
            if self.held.is_empty(now) {
                self.mint(now.wall, "first", now);
                self.announce_now(now);
            }
            match self.held.mint_due(now) {
                Some(seal_from) if self.mints_now(now) => {
                    self.mint(seal_from, "scheduled", now);
                    self.announce_now(now);
                }
                Some(_) => {}
                None => self.mint_at = None,
            }
        } else if self.held.is_empty(now) && !self.is_leader() && self.is_alone(now) {
            self.mint(now.wall, "alone", now);
        }
    }

    /// Whether a key that is due is minted here now. Leaders at several brokers find it due at the same moment; the one
    /// whose name comes first mints it, and the others if its key does not come.
    fn mints_now(&mut self, now: Now) -> bool {
        let beats = |count: u64| count.saturating_mul(self.pace);
        let heard = |at| now.mono.saturating_sub(at) <= beats(SILENT_BEATS);
        if !self.senior_heard_at.is_some_and(heard) {
            self.mint_at = None;
            return true;
        }
        let least = millis(self.settings.keys.interval) / LEAVE_MINTING_PART;
        let wait = beats(LEAVE_MINTING_BEATS).min(least);
        now.mono >= *self.mint_at.get_or_insert(now.mono + wait)
    }

    /// No leader is there to mint, as far as this node can tell.
    fn is_alone(&self, now: Now) -> bool {
        now.mono.saturating_sub(self.leader_heard_at) >= millis(self.settings.start_alone_after)
    }

    fn mint(&mut self, seal_from: u64, reason: &'static str, now: Now) -> u64 {
        let mut bytes = Zeroizing::new([0; 80]);
        (self.random)(bytes.as_mut());
        let generation = self.held.mint(seal_from, KeyMaterial::from_random(&bytes), now).generation;
        self.note(Note::Minted { generation, reason });
        self.out.push(Action::RingChanged);
        generation
    }

    /// Milliseconds: no farm is so large that a node reports less often, unless it is told to.
    fn slowest_pace(&self) -> u64 {
        SLOWEST_PACE_MS.max(millis(self.settings.report_every))
    }

    fn advance_lead(&mut self, now: Now) {
        self.assess(now);
        let Role::Leading { seat, echo_at, .. } = self.role else { return };
        if !self.gathers(now) {
            self.last_members = u32::try_from(self.members.len()).unwrap_or(u32::MAX);
        }
        let members = u64::try_from(self.members.len()).unwrap_or(u64::MAX);
        self.pace =
            millis(self.settings.report_every).max(members.saturating_mul(PACE_PER_MEMBER_MS)).min(self.slowest_pace());
        if now.mono.saturating_sub(echo_at) > SILENT_BEATS * self.pace {
            self.follow("its own reports do not come back");
            self.lease.not_before = now.mono + SILENT_BEATS * self.pace;
            self.out.push(Action::ReleaseLease(seat));
            // A broker that takes messages and does not deliver them is no good, as some are after a split.
            if !self.checks.busy {
                self.move_link(Note::BrokerKeepsReports, now);
            }
            return;
        }
        if self.assessment.majority_disagrees {
            self.follow("most of the farm disagrees with its clock");
            self.lease.not_before = now.mono + SKEWED_BACKOFF_BEATS * self.pace;
            self.out.push(Action::ReleaseLease(seat));
        }
    }

    /// An inbox where nothing arrives may be broken, or no node announces. What this node writes to it itself tells which.
    fn advance_link(&mut self, now: Now) {
        let Some(link) = &self.link else { return };
        let silent = SILENT_BEATS * self.pace;
        match self.checks.written_at {
            Some(at) if now.mono.saturating_sub(at) > silent << self.renewals.min(3) => {
                self.renewals += 1;
                self.note(Note::InboxSilent);
                self.follow("its inbox is silent");
                self.renew_link();
                return;
            }
            None if now.mono.saturating_sub(link.heard_at) > silent << self.checks.in_vain.min(3) => {
                self.write_to_itself(now);
            }
            _ => {}
        }
        if let Some((_, seat)) = self.lease.try_at.take_if(|(at, _)| now.mono >= *at) {
            self.try_lease(seat);
        }
        self.act_if_silent(now);
    }

    /// Looks whether its inbox works, and whether its broker does.
    fn write_to_itself(&mut self, now: Now) {
        self.checks.written_at = Some(now.mono);
        self.checks.in_vain = self.checks.in_vain.saturating_add(1);
        let Some(inbox) = self.link.as_ref().map(|link| link.inbox.clone()) else { return };
        // What it would tell a leader. Without an epoch key it can say no more than that it lacks one.
        let kind = if self.epochs.is_empty() {
            Kind::Join(self.compose_join(inbox.clone()))
        } else {
            Kind::Report(self.compose_report(inbox.clone(), now))
        };
        self.send(Route::Inbox(inbox), kind);
        self.check_broker();
    }

    fn act_if_silent(&mut self, now: Now) {
        let silent = now.mono.saturating_sub(self.silent_since) > ACT_AFTER_BEATS * self.pace;
        if silent && self.settings.can_lead && matches!(self.role, Role::Follower) {
            let jitter = self.random_below(self.pace);
            let act_at = *self.lease.act_at.get_or_insert(now.mono + jitter);
            if now.mono >= act_at {
                self.lease.act_at = None;
                self.forget_members();
                let gather_until = now.mono + GATHER_BEATS * self.pace;
                self.role = Role::Acting { announce_at: now.mono, gather_until };
                self.meet_others();
                self.note(Note::ActsAlone);
                // The key of the leader that is gone does as well: most nodes hold it, and it is renewed in time.
                match self.epochs.current_since() {
                    Some(since) => self.renew_epoch_at = since + EPOCH_FOR_MS,
                    None => self.draw_epoch(now),
                }
            }
        }
    }

    fn advance_announcement(&mut self, now: Now) {
        if self.link.is_none() {
            return;
        }
        let (Role::Leading { announce_at, .. } | Role::Acting { announce_at, .. }) = &mut self.role else { return };
        if now.mono < *announce_at {
            return;
        }
        *announce_at = now.mono + self.pace;
        let announcement = self.compose_announcement(now);
        self.send(Route::Keys, Kind::Announcement(announcement));
    }

    fn announce_now(&mut self, now: Now) {
        if let Role::Leading { announce_at, .. } | Role::Acting { announce_at, .. } = &mut self.role {
            *announce_at = now.mono;
        }
    }

    fn compose_announcement(&mut self, now: Now) -> proto::Announcement {
        self.assess(now);
        let Assessment { members, in_step: members_in_step, .. } = self.assessment;
        proto::Announcement {
            ring: Some(self.held.to_proto(now)),
            as_of: now.wall,
            fingerprint: self.held.ring().fingerprint(now.wall).to_vec(),
            members,
            members_in_step,
            report_every_ms: self.pace,
            leased: self.is_leader(),
            inbox: self.link.as_ref().map(|link| link.inbox.clone()).unwrap_or_default(),
            epoch: self.epochs.current().map(|key| key.id().to_vec()).unwrap_or_default(),
            seat: self.walk.seat().number(),
            sites: self.sites.to_proto(now),
        }
    }

    /// Where the leader is, or is looked for.
    fn leader_route(&self) -> Route {
        Route::Leader(self.walk.seat())
    }

    fn send_report(&mut self, now: Now) {
        let all_at_once = std::mem::take(&mut self.reports_early) && self.pace > millis(self.settings.report_every);
        // Reports of a large farm that came close together spread over the beat again: the next one of any node finds out that
        // the leader is gone.
        let jitter = self.random_below(if all_at_once { self.pace } else { self.pace / 10 + 1 });
        self.report_at = match self.role {
            Role::Leading { probe_until, .. } if now.mono < probe_until => now.mono + PROBE_MS.min(self.pace),
            _ => now.mono + self.pace - jitter,
        };
        if self.must_join() {
            self.send_join(now);
            return;
        }
        let Some(inbox) = self.link.as_ref().map(|link| link.inbox.clone()) else { return };
        let report = self.compose_report(inbox, now);
        if let Role::Leading { seat, .. } = self.role {
            // A leader further back looks whether a seat before its own is free, or taken.
            for before in seat.before() {
                self.send(Route::Leader(before), Kind::Report(report.clone()));
            }
        }
        if let Some(inbox) = self.acting_inbox() {
            self.send(Route::Inbox(inbox), Kind::Report(report.clone()));
        }
        self.send(self.leader_route(), Kind::Report(report));
    }

    fn compose_report(&self, inbox: String, now: Now) -> proto::Report {
        let ring = self.held.ring();
        let as_of = self.announced.as_ref().map_or(0, |announced| announced.as_of);
        let fingerprint = ring.fingerprint(if as_of == 0 { now.wall } else { as_of });
        let differs = self.announced.as_ref().is_none_or(|announced| announced.fingerprint != fingerprint);
        proto::Report {
            pod: self.settings.pod.clone(),
            version: self.settings.version.clone(),
            inbox,
            as_of,
            fingerprint: fingerprint.to_vec(),
            highest_generation: ring.highest_generation(),
            ring: (differs && !self.is_leader()).then(|| self.held.to_proto(now)),
            secret_ids: self.local.secret_ids.iter().take(MOST_IDS).cloned().collect(),
            sessions: self.local.sessions,
            proxies: self.local.proxies.iter().take(MOST_PROXIES).cloned().collect(),
            first: self.link.as_ref().is_some_and(|link| link.first),
            can_lead: self.settings.can_lead,
            floor: ring.floor(),
            sessions_from: ring.sessions_from(),
            operators: Some(self.operator_trail()),
        }
    }

    /// Where a node that announces without the lease hears reports, if such a one was heard last.
    fn acting_inbox(&self) -> Option<String> {
        let acting = self.announced.as_ref().filter(|announced| !announced.leased)?;
        Some(acting.inbox.clone()).filter(|inbox| self.settings.names.is_inbox(inbox))
    }

    fn report_within(&mut self, now: Now, least: u64, most: u64) {
        let at = now.mono + least + self.random_below(most - least + 1);
        self.reports_early |= at < self.report_at;
        self.report_at = self.report_at.min(at);
    }

    // The member table.

    fn forget_members(&mut self) {
        self.members.clear();
        self.assessment = Assessment::default();
    }

    /// Looks at all members, if the last look is not of just now: in a large farm some hundred messages come in a second.
    fn assess(&mut self, now: Now) {
        if now.mono < self.assessment.good_until {
            return;
        }
        self.members.forget_silent(now);
        let limit = millis(self.settings.keys.max_clock_offset);
        let mut known = HashMap::new();
        let mut found = Assessment {
            good_until: now.mono + self.members.len() as u64 / ASSESSED_IN_A_MS,
            majority_disagrees: self.is_leader() && self.members.majority_disagrees(self.settings.boot_id, limit),
            ..Assessment::default()
        };
        for member in self.members.iter() {
            found.members += 1;
            found.in_step += u32::from(self.has_in_step(member, &mut known, now));
            found.silent += u32::from(now.mono.saturating_sub(member.heard_at) > SILENT_BEATS * self.pace);
            let offset = member.clock_offset_ms();
            if offset.unsigned_abs() > limit {
                found.skewed.push((member.name.clone(), offset));
            }
        }
        // They may be gone, or this leader's broker is cut off from where they are.
        let more_silent = self.leads() && found.silent > self.assessment.silent;
        self.assessment = found;
        if more_silent {
            self.check_broker();
        }
    }

    /// Whether a member reports in time and holds our ring. `known` saves hashing the ring for every member.
    fn has_in_step(&self, member: &Member, known: &mut HashMap<u64, [u8; 8]>, now: Now) -> bool {
        if member.boot_id == self.settings.boot_id {
            return true;
        }
        let Some(report) = &member.report else { return false };
        let heard = now.mono.saturating_sub(member.heard_at) <= SILENT_BEATS * self.pace;
        let expected = known.entry(report.as_of).or_insert_with(|| self.held.ring().fingerprint(report.as_of));
        heard && report.as_of != 0 && report.fingerprint == *expected
    }

    fn member_table(&self, now: Now) -> Vec<proto::Member> {
        let mut known = HashMap::new();
        let mut table = vec![self.own_member()];
        for member in self.members.iter().filter(|member| member.boot_id != self.settings.boot_id) {
            let report = member.report.clone().unwrap_or_default();
            table.push(proto::Member {
                name: member.name.clone(),
                boot_id: member.boot_id.to_vec(),
                pod: report.pod,
                version: report.version,
                last_report_ms: now.mono.saturating_sub(member.heard_at),
                in_step: self.has_in_step(member, &mut known, now),
                clock_offset_ms: member.clock_offset_ms(),
                sessions: report.sessions,
                proxies: report.proxies,
                secret_ids: report.secret_ids,
                leader: false,
                highest_generation: report.highest_generation,
                floor: report.floor,
                sessions_from: report.sessions_from,
                operators: report.operators,
            });
        }
        table.sort_by(|a, b| (&a.name, &a.boot_id).cmp(&(&b.name, &b.boot_id)));
        table
    }

    // Small things.

    fn send(&mut self, to: Route, kind: Kind) {
        self.out.push(Action::Send { to, kind });
    }

    fn note(&mut self, note: Note) {
        self.out.push(Action::Note(note));
    }

    /// Over how many milliseconds `members` nodes spread what all of them do for one and the same reason.
    fn spread(&self, members: u32) -> u64 {
        (2 * u64::from(members)).clamp(1, self.pace / 4 + 1)
    }

    fn random_below(&mut self, bound: u64) -> u64 {
        let mut bytes = [0; 8];
        (self.random)(&mut bytes);
        u64::from_le_bytes(bytes) % bound.max(1)
    }
}

impl fmt::Debug for Farm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Farm").field("node", &self.settings.node).field("role", &self.role).finish_non_exhaustive()
    }
}

struct Sender {
    node: String,
    boot_id: [u8; 16],
    offset_ms: i64,
}

/// What an answer says of a request, and the generation that came of it; unspecified if the asker is to ask again.
fn outcome_of(answer: &proto::Answer) -> (AuditOutcome, u64) {
    let outcome = match answer.outcome() {
        proto::Outcome::Done => AuditOutcome::Done,
        proto::Outcome::Pending => AuditOutcome::Pending,
        proto::Outcome::Stale => AuditOutcome::Unspecified,
        proto::Outcome::Refused | proto::Outcome::Unspecified => AuditOutcome::Refused,
    };
    (outcome, answer.generation.max(answer.floor))
}

/// Whether a report is one that a node sends: whole, and of bounded size, for the last one of each node is kept.
fn is_sound(report: &proto::Report, names: &Names) -> bool {
    let is_word = |word: &String| word.len() <= LONGEST_WORD;
    let is_proxy = |proxy: &proto::Proxy| {
        is_word(&proxy.kind) && is_word(&proxy.version) && matches!(proxy.certificate_digest.len(), 0 | 8)
    };
    names.is_inbox(&report.inbox)
        && report.fingerprint.len() == 8
        && is_word(&report.pod)
        && is_word(&report.version)
        && report.secret_ids.len() <= MOST_IDS
        && report.secret_ids.iter().all(|id| id.len() == 8)
        && report.proxies.len() <= MOST_PROXIES
        && report.proxies.iter().all(is_proxy)
        && are_told(report.proxies.iter().flat_map(|proxy| &proxy.warnings))
        && report.operators.as_ref().is_none_or(|trail| {
            trail.reload.as_ref().is_none_or(|reload| is_word(&reload.refused))
                && trail.audit.len() <= MOST_AUDITED
                && trail.audit.iter().all(is_entry)
        })
}

/// Whether a node tells of so many warnings of its proxies.
fn are_told<'a>(warnings: impl Iterator<Item = &'a String>) -> bool {
    let (count, bytes) = warnings.fold((0, 0), |(count, bytes), warning| (count + 1, bytes + warning.len()));
    count <= proto::MOST_WARNINGS_TOLD && bytes <= proto::MOST_WARNING_BYTES
}

/// `theirs` minus `ours`, saturating.
fn offset(theirs: u64, ours: u64) -> i64 {
    let difference = i128::from(theirs) - i128::from(ours);
    i64::try_from(difference).unwrap_or(if difference > 0 { i64::MAX } else { i64::MIN })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::keys::KeySettings;

    fn follower(now: Now) -> Farm {
        node("a", 1, Box::new(|bytes| bytes.fill(7)), now)
    }

    fn node(name: &str, boot: u8, random: Randomness, now: Now) -> Farm {
        let keys = KeySettings {
            interval: Duration::from_secs(60),
            keep: 3,
            settle: Duration::from_secs(2),
            max_seal_age: Duration::from_secs(180),
            max_clock_offset: Duration::from_secs(300),
        };
        let settings = FarmSettings {
            node: name.to_owned(),
            boot_id: [boot; 16],
            pod: "p".to_owned(),
            version: "0".to_owned(),
            names: Names::new("f", "p"),
            keys,
            report_every: Duration::from_secs(2),
            start_alone_after: Duration::from_secs(10),
            can_lead: true,
        };
        let mut farm = Farm::new(settings, HeldRing::new(keys), random, now);
        let _reports = farm.handle(now, Event::Connected { inbox: format!("resumed.f.node.{name}.1") });
        farm
    }

    fn at(seconds: u64) -> Now {
        Now { wall: 1_700_000_000_000 + 1_000 * seconds, mono: 1_000_000 + 1_000 * seconds }
    }

    fn own_report() -> proto::Report {
        proto::Report { inbox: "resumed.f.node.a.1".to_owned(), fingerprint: vec![0; 8], ..Default::default() }
    }

    #[test]
    fn a_report_that_no_node_sends_is_refused_and_not_kept() {
        let mut leader = follower(at(0));
        let _leads = leader.handle(at(0), Event::LeaseGranted(Seat::FIRST));
        let proxy = |version: usize, digest: usize| proto::Proxy {
            kind: "ats".to_owned(),
            version: "9".repeat(version),
            certificate_digest: vec![1; digest],
            warnings: Vec::new(),
        };
        let warned =
            |count: usize, bytes: usize| proto::Proxy { warnings: vec!["w".repeat(bytes); count], ..proxy(1, 8) };
        let trail = |bytes: usize, audit: Vec<proto::AuditEntry>| {
            let reload = Some(proto::LastReload { at: 1, refused: "r".repeat(bytes) });
            Some(Box::new(proto::OperatorTrail { reload, audit }))
        };
        let entry = |node: &str, user: &str| proto::AuditEntry {
            node: node.to_owned(),
            user: user.to_owned(),
            ..proto::AuditEntry::default()
        };
        let good = proto::Report {
            secret_ids: vec![vec![1; 8]; 16],
            proxies: [vec![warned(8, 128); 2], vec![proxy(256, 8); 14]].concat(),
            operators: trail(256, vec![entry("b", "root"); 8]),
            ..own_report()
        };
        let bad = [
            proto::Report { inbox: "resumed.other.node.a.1".to_owned(), ..good.clone() },
            proto::Report { fingerprint: vec![0; 9], ..good.clone() },
            proto::Report { pod: "p".repeat(257), ..good.clone() },
            proto::Report { version: "1".repeat(257), ..good.clone() },
            proto::Report { secret_ids: vec![vec![1; 8]; 17], ..good.clone() },
            proto::Report { secret_ids: vec![vec![1; 9]], ..good.clone() },
            proto::Report { proxies: vec![proxy(1, 8); 17], ..good.clone() },
            proto::Report { proxies: vec![proxy(257, 8)], ..good.clone() },
            proto::Report { proxies: vec![proxy(1, 7)], ..good.clone() },
            proto::Report { proxies: vec![warned(17, 1)], ..good.clone() },
            proto::Report { proxies: vec![warned(9, 1), warned(8, 1)], ..good.clone() },
            proto::Report { proxies: vec![warned(1, 2049)], ..good.clone() },
            proto::Report { proxies: vec![warned(8, 128), warned(8, 129)], ..good.clone() },
            proto::Report { operators: trail(257, Vec::new()), ..good.clone() },
            proto::Report { operators: trail(1, vec![entry("b", "root"); 9]), ..good.clone() },
            proto::Report { operators: trail(1, vec![entry("", "root")]), ..good.clone() },
            proto::Report { operators: trail(1, vec![entry("b", "root\n")]), ..good.clone() },
        ];
        let mut hear = |report: proto::Report| {
            let kind = Some(Kind::Report(report));
            let payload = proto::Payload { node: "b".to_owned(), boot_id: vec![2; 16], sent_at: at(1).wall, kind };
            let actions = leader.handle(at(1), Event::Message { payload: Box::new(payload), via: Via::Lease });
            let refused =
                |action: &Action| matches!(action, Action::Note(Note::Refused { reason: Reason::BadReport, .. }));
            (actions.iter().any(refused), leader.members.iter().any(|member| member.name == "b"))
        };
        for report in bad {
            assert_eq!(hear(report.clone()), (true, false), "{report:?}");
        }
        assert_eq!(hear(good), (false, true));
    }

    #[test]
    fn a_leaders_farewell_does_not_have_a_large_farm_try_the_lease_at_once() {
        let latest = |members: u32| {
            let delays = (0..=255).map(|draw: u8| {
                let mut node = node("b", 2, Box::new(move |bytes| bytes.fill(draw)), at(0));
                (node.pace, node.last_members) = (10 * 1_000, members);
                node.follows = Some(("a".to_owned(), [1; 16]));
                let kind = Some(Kind::Farewell(proto::Farewell {}));
                let payload = proto::Payload { node: "a".to_owned(), boot_id: vec![1; 16], sent_at: at(1).wall, kind };
                let _ends = node.handle(at(1), Event::Message { payload: Box::new(payload), via: Via::Inbox });
                // One without a delay tries already.
                node.lease.try_at.map_or(0, |(due, _)| due - at(1).mono)
            });
            delays.max().expect("some")
        };
        assert!(latest(3) < LEASE_JITTER_MS);
        assert!((1_500..2_000).contains(&latest(1_000)));
        assert!(latest(1_000_000) <= 2_500, "a quarter of a beat");
    }

    /// The entries that these actions tell of.
    fn audited(actions: &[Action]) -> Vec<proto::AuditEntry> {
        let entry = |action: &Action| match action {
            Action::Note(Note::Audited(entry)) => Some(entry.clone()),
            _ => None,
        };
        actions.iter().filter_map(entry).collect()
    }

    fn request(id: u64, user: &str, highest_generation: u64, now: Now) -> Event {
        let request = proto::Request {
            id,
            inbox: "resumed.f.node.b.1".to_owned(),
            highest_generation,
            user: user.to_owned(),
            kind: Some(proto::request::Kind::Revoke(proto::Revoke { flush_sessions: true })),
        };
        let kind = Some(Kind::Request(request));
        let payload = proto::Payload { node: "b".to_owned(), boot_id: vec![2; 16], sent_at: now.wall, kind };
        Event::Message { payload: Box::new(payload), via: Via::Lease }
    }

    #[test]
    fn a_leader_keeps_who_asked_it_through_which_node_once_and_only_for_what_it_did() {
        let mut leader = follower(at(0));
        let _leads = leader.handle(at(0), Event::LeaseGranted(Seat::FIRST));
        let highest = |leader: &Farm| leader.held().ring().highest_generation();
        let _first_key = leader.handle(at(3), Event::Wake);
        let stale = highest(&leader) - 1;
        assert_eq!(audited(&leader.handle(at(4), request(7, "alice", stale, at(4)))), [], "it is to ask again");
        let known = highest(&leader);
        let [done] = &audited(&leader.handle(at(5), request(7, "alice", known, at(5))))[..] else { panic!("one") };
        let expected = proto::AuditEntry {
            id: 7,
            at: at(5).wall,
            action: proto::AuditAction::Revoke.into(),
            flush_sessions: true,
            node: "b".into(),
            user: "alice".into(),
            outcome: AuditOutcome::Done.into(),
            // Of the key that seals at once. The next one was minted above it.
            generation: at(5).wall,
        };
        assert_eq!(*done, expected);
        assert_eq!(audited(&leader.handle(at(6), request(7, "alice", known, at(6)))), [], "its answer was lost");
        // A release that says nothing of users, and one that says what no user is called.
        let known = highest(&leader);
        let old = audited(&leader.handle(at(7), request(8, "", known, at(7))));
        assert!(matches!(&old[..], [entry] if entry.user.is_empty()), "{old:?}");
        let known = highest(&leader);
        let bad = leader.handle(at(8), request(9, "a\nb", known, at(8)));
        assert!(
            bad.iter().any(|action| matches!(action, Action::Note(Note::Refused { reason: Reason::BadRequest, .. })))
        );
        assert_eq!((audited(&bad), highest(&leader)), (vec![], known), "it changes nothing");
        let own = leader.own_member();
        assert_eq!(
            own.operators.iter().flat_map(|trail| &trail.audit).map(|entry| entry.id).collect::<Vec<_>>(),
            [7, 8]
        );
    }

    #[test]
    fn the_asked_node_says_who_asks_and_keeps_what_became_of_it() {
        let mut asker = follower(at(0));
        let ask = |id| Event::Ask { id, ask: Ask::Rotate, user: "bob".to_owned() };
        let key = EpochKey::from_random(&[5; 32]).expect("OpenSSL has HKDF-SHA256");
        asker.epochs.lead_to(key, at(0));
        let said = asker.handle(at(1), ask(1));
        let users = said.iter().filter_map(|action| match action {
            Action::Send { kind: Kind::Request(request), .. } => Some(request.user.as_str()),
            _ => None,
        });
        assert_eq!(users.collect::<Vec<_>>(), ["bob"]);
        let answer = proto::Answer { id: 1, outcome: proto::Outcome::Done.into(), generation: 9, ..Default::default() };
        let kind = Some(Kind::Answer(answer));
        let payload = proto::Payload { node: "b".to_owned(), boot_id: vec![2; 16], sent_at: at(1).wall, kind };
        let answered = audited(&asker.handle(at(1), Event::Message { payload: Box::new(payload), via: Via::Inbox }));
        assert!(matches!(&answered[..], [entry] if entry.node == "a" && entry.generation == 9), "{answered:?}");
        // In vain: no leader answers within five seconds, and then none can be asked.
        let _asked = asker.handle(at(2), ask(2));
        let late = audited(&asker.handle(at(8), Event::Wake));
        let _gone = asker.handle(at(9), Event::Disconnected);
        let alone = audited(&asker.handle(at(9), ask(3)));
        for entries in [&late, &alone] {
            assert!(matches!(&entries[..], [entry] if entry.outcome() == AuditOutcome::NoLeader), "{entries:?}");
        }
        let local = Event::Ask { id: 4, ask: Ask::RevokeLocal { flush_sessions: false }, user: String::new() };
        let local = audited(&asker.handle(at(10), local));
        assert!(matches!(&local[..], [entry] if entry.action() == proto::AuditAction::RevokeLocal), "{local:?}");
        let kept: Vec<u64> = asker.operator_trail().audit.iter().map(|entry| entry.id).collect();
        assert_eq!(kept, [1, 3, 4], "asked in vain twice");
    }

    #[test]
    fn a_beat_above_the_slowest_pace_is_kept() {
        let now = at(0);
        let mut farm = follower(now);
        farm.settings.report_every = Duration::from_secs(300);
        let _heard = farm.handle(at(1), announcement(true, at(1)));
        assert_eq!(farm.pace, 300_000);
        let _leads = farm.handle(at(2), Event::LeaseGranted(Seat::FIRST));
        let _beat = farm.handle(at(3), Event::Wake);
        assert_eq!(farm.pace, 300_000);
    }

    #[test]
    fn a_node_is_in_step_while_it_hears_the_leader_and_holds_its_ring() {
        let mut farm = follower(at(0));
        assert!(!farm.is_in_step(at(0)), "nobody was heard");
        let mut told = proto::Announcement {
            as_of: at(1).wall,
            fingerprint: farm.held().ring().fingerprint(at(1).wall).to_vec(),
            leased: true,
            report_every_ms: 2_000,
            ..Default::default()
        };
        let mut hear = |told: &proto::Announcement, now: Now| {
            let kind = Some(Kind::Announcement(told.clone()));
            let payload = proto::Payload { node: "b".to_owned(), boot_id: vec![2; 16], sent_at: now.wall, kind };
            let _heard = farm.handle(now, Event::Message { payload: Box::new(payload), via: Via::Inbox });
            (farm.is_in_step(now), farm.is_in_step(Now { wall: now.wall + 6_001, mono: now.mono + 6_001 }))
        };
        assert_eq!(hear(&told, at(1)), (true, false), "for three beats");
        told.fingerprint = vec![0; 8];
        assert_eq!(hear(&told, at(2)), (false, false), "another ring");
        let _leads = farm.handle(at(3), Event::LeaseGranted(Seat::FIRST));
        assert!(farm.is_leader() && farm.is_in_step(at(3)));
    }

    fn renews(actions: &[Action]) -> bool {
        actions.iter().any(|action| matches!(action, Action::RenewLink))
    }

    #[test]
    fn a_node_that_was_frozen_does_not_take_that_for_a_silent_inbox() {
        let mut farm = follower(at(0));
        assert!(!renews(&farm.handle(at(1), Event::Wake)));
        // It thaws, and what came meanwhile waits in its queues.
        assert!(!renews(&farm.handle(at(40), Event::Wake)), "threw its queues away");
        // From here on it would have heard something.
        let silent: Vec<u64> = (41..60).filter(|second| renews(&farm.handle(at(*second), Event::Wake))).collect();
        assert_eq!(silent, [54], "it writes to itself three beats after it thawed, and waits for that as long");
    }

    fn own_message(node: &str, boot: u8, now: Now) -> Event {
        let kind = Some(Kind::Report(own_report()));
        let payload = proto::Payload { node: node.to_owned(), boot_id: vec![boot; 16], sent_at: now.wall, kind };
        Event::Message { payload: Box::new(payload), via: Via::Inbox }
    }

    fn writes_to_itself(actions: &[Action]) -> bool {
        let own =
            |action: &Action| matches!(action, Action::Send { to: Route::Inbox(to), .. } if to.contains("node.a."));
        actions.iter().any(own)
    }

    #[test]
    fn a_link_is_not_renewed_because_no_node_leads() {
        let mut farm = follower(at(0));
        let (mut written, mut noted) = (Vec::new(), 0);
        for second in 1..200 {
            let actions = farm.handle(at(second), Event::Wake);
            assert!(!renews(&actions), "after {second} s");
            if writes_to_itself(&actions) {
                assert!(actions.iter().any(|action| matches!(action, Action::CheckBroker)), "{actions:?}");
                written.push(second);
                let arrived = farm.handle(at(second), own_message("a", 1, at(second)));
                noted += arrived.iter().filter(|a| matches!(a, Action::Note(Note::NoLeaderHeard))).count();
                let _fine = farm.handle(at(second), Event::Checked(true));
                // It announces itself after ten beats, and would hear that.
                farm.settings.can_lead = false;
            }
        }
        assert_eq!(written, [7, 20, 45, 94, 143, 192], "less and less often");
        assert_eq!(noted, 1);
    }

    #[test]
    fn a_broker_that_answers_no_declaration_is_left_for_another() {
        let moves = |actions: &[Action]| actions.iter().filter(|a| matches!(a, Action::MoveLink)).count();
        let mut farm = follower(at(0));
        let asked = |farm: &mut Farm, second| farm.handle(at(second), Event::Wake);
        assert!((1..8).any(|second| writes_to_itself(&asked(&mut farm, second))));
        assert_eq!(moves(&farm.handle(at(12), Event::Checked(false))), 1);
        assert_eq!(moves(&farm.handle(at(12), Event::LeaseUnanswered)), 0, "it is looked for already");
        let _none = farm.handle(at(13), Event::NotMoved);
        assert_eq!(moves(&farm.handle(at(14), Event::LeaseUnanswered)), 0, "none was there just now");
        assert_eq!(moves(&farm.handle(at(25), Event::LeaseUnanswered)), 1);
        let _none = farm.handle(at(26), Event::NotMoved);
        assert_eq!(moves(&farm.handle(at(48), Event::Checked(false))), 0, "after twice as long");
        assert_eq!(moves(&farm.handle(at(50), Event::Checked(false))), 1);
        assert!(farm.link.is_some(), "what works stays until there is another");
    }

    #[test]
    fn a_leader_that_misses_a_member_asks_whether_it_is_the_one_that_is_cut_off() {
        let mut leader = follower(at(0));
        let _leads = leader.handle(at(0), Event::LeaseGranted(Seat::FIRST));
        let report = |farm: &mut Farm, node: &str, boot: u8, now: Now| {
            let kind = Some(Kind::Report(own_report()));
            let payload = proto::Payload { node: node.to_owned(), boot_id: vec![boot; 16], sent_at: now.wall, kind };
            farm.handle(now, Event::Message { payload: Box::new(payload), via: Via::Lease })
        };
        let _b = report(&mut leader, "b", 2, at(1));
        let mut asked = Vec::new();
        for second in 1..30 {
            let mut actions = report(&mut leader, "a", 1, at(second));
            actions.extend(leader.handle(at(second), own_message("a", 1, at(second))));
            actions.extend(leader.handle(at(second), Event::Wake));
            asked.extend(actions.iter().filter(|a| matches!(a, Action::CheckBroker)).map(|_| second));
            let _fine = leader.handle(at(second), Event::Checked(true));
        }
        assert_eq!(asked, [8], "once for one that is gone");
    }

    fn seat(number: u32) -> Seat {
        Seat::numbered(number).expect("one of eight")
    }

    fn later(now: Now, ms: u64) -> Now {
        Now { wall: now.wall + ms, mono: now.mono + ms }
    }

    #[test]
    fn a_follower_goes_on_to_the_next_seat_when_the_broker_of_the_first_is_gone() {
        let mut farm = follower(at(0));
        let nacked = |number| Event::Told { seat: seat(number), answer: Published::Nacked };
        let sends_to = |actions: &[Action], number| {
            actions.iter().any(|a| matches!(a, Action::Send { to: Route::Leader(to), .. } if *to == seat(number)))
        };
        let _first = farm.handle(at(1), nacked(0));
        let again = farm.handle(later(at(1), 300), Event::Wake);
        assert!(sends_to(&again, 0), "{again:?}");
        let next = farm.handle(later(at(1), 310), nacked(0));
        assert!(sends_to(&next, 1) && !tries(&next), "{next:?}");
        let _free = farm.handle(later(at(1), 320), Event::Told { seat: seat(1), answer: Published::Unroutable });
        assert!(tries_after(&mut farm, later(at(1), 320)) < LEASE_JITTER_MS);
    }

    #[test]
    fn a_leader_at_a_later_seat_goes_home_when_the_first_is_free_and_steps_down_when_it_is_taken() {
        let leader = || {
            let mut leader = follower(at(0));
            let _leads = leader.handle(at(0), Event::LeaseGranted(seat(1)));
            let beat = leader.handle(at(2), Event::Wake);
            let to = |action: &Action| match action {
                Action::Send { to: Route::Leader(to), kind: Kind::Report(_) } => Some(to.number()),
                _ => None,
            };
            assert_eq!(beat.iter().filter_map(to).collect::<Vec<_>>(), [0, 1]);
            let still = leader.handle(at(2), Event::Told { seat: seat(0), answer: Published::Nacked });
            assert!(!tries(&still) && leader.is_leader(), "{still:?}");
            leader
        };
        let releases = |actions: &[Action], number| {
            actions.iter().any(|action| matches!(action, Action::ReleaseLease(left) if *left == seat(number)))
        };
        let mut home = leader();
        let free = home.handle(at(3), Event::Told { seat: seat(0), answer: Published::Unroutable });
        assert!(tries(&free) && !releases(&free, 1), "{free:?}");
        let taken = home.handle(at(3), Event::LeaseGranted(seat(0)));
        assert!(home.is_leader() && releases(&taken, 1), "the first is held before the other is left: {taken:?}");

        let mut rival = leader();
        let held = rival.handle(at(3), Event::Told { seat: seat(0), answer: Published::Routed });
        assert!(!rival.is_leader() && releases(&held, 1), "{held:?}");
    }

    #[test]
    fn a_node_that_leads_without_the_lease_answers_requests_and_yields_to_a_lease() {
        let mut farm = follower(at(0));
        let mut second = 1;
        while !farm.leads() {
            assert!(second < 60, "it never leads");
            let actions = farm.handle(at(second), Event::Wake);
            if writes_to_itself(&actions) {
                let _arrived = farm.handle(at(second), own_message("a", 1, at(second)));
            }
            second += 1;
        }
        assert!(!farm.is_leader());
        assert_eq!(farm.leader(at(second)), Some("a"));
        let known = farm.held().ring().highest_generation();
        let answered = farm.handle(at(second), request(7, "alice", known, at(second)));
        let answers = |a: &Action| matches!(a, Action::Send { to: Route::Inbox(_), kind: Kind::Answer(answer) } if answer.outcome() == proto::Outcome::Done);
        assert!(answered.iter().any(answers), "{answered:?}");
        assert!(farm.own_member().leader);
        let _yields = farm.handle(at(second), announcement(true, at(second)));
        assert!(!farm.leads());
    }

    /// No node has the lease of the first seat.
    fn unroutable() -> Event {
        Event::Told { seat: Seat::FIRST, answer: Published::Unroutable }
    }

    fn tries(actions: &[Action]) -> bool {
        actions.iter().any(|action| matches!(action, Action::TryLease(_)))
    }

    fn announcement(leased: bool, now: Now) -> Event {
        let announcement = proto::Announcement {
            as_of: now.wall,
            fingerprint: vec![0; 8],
            leased,
            report_every_ms: 2_000,
            ..Default::default()
        };
        let kind = Some(Kind::Announcement(announcement));
        let payload = proto::Payload { node: "b".to_owned(), boot_id: vec![2; 16], sent_at: now.wall, kind };
        Event::Message { payload: Box::new(payload), via: Via::Inbox }
    }

    /// The events' answers until one of them tries the lease, in milliseconds after `now`.
    fn tries_after(farm: &mut Farm, now: Now) -> u64 {
        let later = |after: u64| Now { wall: now.wall + after, mono: now.mono + after };
        (0..1_000).find(|after| tries(&farm.handle(later(*after), Event::Wake))).expect("tries the lease")
    }

    #[test]
    fn a_leader_takes_a_lease_that_the_broker_lost_again_before_anybody_else_tries() {
        let mut leader = follower(at(0));
        let _leads = leader.handle(at(0), Event::LeaseGranted(Seat::FIRST));
        // The first may have been under way since before the lease was ours; a report is sent to make sure.
        let first = leader.handle(at(1), unroutable());
        assert!(!tries(&first));
        let sends = |action: &Action| matches!(action, Action::Send { to: Route::Leader(_), kind: Kind::Report(_) });
        assert!(first.iter().any(sends), "{first:?}");
        assert!(tries(&leader.handle(at(1), unroutable())));
        assert!(!tries(&leader.handle(at(1), unroutable())), "it is tried already");
        let again = leader.handle(at(1), Event::LeaseGranted(Seat::FIRST));
        let told = |action: &Action| matches!(action, Action::Note(Note::Leads | Note::StepsDown(_)));
        assert!(leader.is_leader() && !again.iter().any(told), "{again:?}");

        let mut other = follower(at(0));
        let _follows = other.handle(at(0), announcement(true, at(0)));
        let _waits = other.handle(at(1), unroutable());
        assert!(tries_after(&mut other, at(1)) >= RECLAIM_MS);
        // Nobody is waited for where nobody led.
        let mut first = follower(at(0));
        let _tries = first.handle(at(1), unroutable());
        assert!(tries_after(&mut first, at(1)) < LEASE_JITTER_MS);
    }

    #[test]
    fn a_leader_that_hears_another_looks_often_whether_the_lease_is_still_its_own() {
        let mut leader = follower(at(0));
        let _leads = leader.handle(at(0), Event::LeaseGranted(Seat::FIRST));
        let mut reports = |from: u64, rival: bool| {
            if rival {
                let _heard = leader.handle(at(from), announcement(true, at(from)));
            }
            let mut count = 0;
            for after in (0..2_000).step_by(20) {
                let now = Now { wall: at(from).wall + after, mono: at(from).mono + after };
                let echo = proto::Payload {
                    node: "a".to_owned(),
                    boot_id: vec![1; 16],
                    sent_at: now.wall,
                    kind: Some(Kind::Report(own_report())),
                };
                let mut actions = leader.handle(now, Event::Wake);
                actions.extend(leader.handle(now, Event::Message { payload: Box::new(echo), via: Via::Lease }));
                let sent = |action: &&Action| matches!(action, Action::Send { to: Route::Leader(_), .. });
                count += actions.iter().filter(sent).count();
            }
            count
        };
        assert!(reports(0, false) >= 9, "right after it took over");
        assert!(reports(20, false) <= 2, "when it has led for long");
        assert!(reports(30, true) >= 9, "beside another leader");
        assert!(leader.is_leader());
        let stepped_down = leader.handle(at(33), Event::LeaseHeld(Seat::FIRST));
        assert!(!leader.is_leader(), "{stepped_down:?}");
    }

    /// Two brokers that hand on what is published to the keys exchange, with a leader at each and a follower at the first.
    struct Federated {
        leaders: [Farm; 2],
        follower: Farm,
        /// Whether the link between them is whole.
        linked: bool,
        /// Announcements that each sent.
        announced: [usize; 2],
        /// Keys that each minted because they were due.
        scheduled: [usize; 2],
        ms: u64,
    }

    impl Federated {
        fn new() -> Self {
            let leader = |name, boot: u8| {
                let mut drawn = u64::from(boot);
                let random = move |bytes: &mut [u8]| {
                    drawn += 256;
                    bytes.chunks_mut(8).for_each(|some| some.copy_from_slice(&drawn.to_le_bytes()[..some.len()]));
                };
                node(name, boot, Box::new(random), at(0))
            };
            let (leaders, follower) = ([leader("ams", 1), leader("fra", 2)], leader("ams-2", 3));
            let (announced, scheduled) = ([0; 2], [0; 2]);
            let mut all = Self { leaders, follower, linked: true, announced, scheduled, ms: 0 };
            for place in 0..2 {
                all.give(place, Event::LeaseGranted(Seat::FIRST));
            }
            all
        }

        fn now(&self) -> Now {
            Now { wall: at(0).wall + self.ms, mono: at(0).mono + self.ms }
        }

        /// Hands `event` to a leader, and on what it sends to all.
        fn give(&mut self, place: usize, event: Event) {
            let now = self.now();
            for action in self.leaders[place].handle(now, event) {
                match action {
                    Action::Note(Note::Minted { reason: "scheduled", .. }) => self.scheduled[place] += 1,
                    Action::Note(note @ (Note::Refused { .. } | Note::UnknownKind { .. })) => panic!("{note}"),
                    Action::Send { to: Route::Inbox(inbox), .. } => panic!("sent to {inbox}"),
                    Action::Send { to: Route::Keys, kind } => self.hand_on(place, kind),
                    Action::Send { to: Route::Leader(_), kind: Kind::Report(report) } => {
                        let echo = self.payload(place, Kind::Report(report));
                        self.give(place, Event::Message { payload: echo, via: Via::Lease });
                    }
                    _ => {}
                }
            }
        }

        fn payload(&self, place: usize, kind: Kind) -> Box<proto::Payload> {
            let sender = &self.leaders[place].settings;
            let (node, boot_id) = (sender.node.clone(), sender.boot_id.to_vec());
            Box::new(proto::Payload { node, boot_id, sent_at: self.now().wall, kind: Some(kind) })
        }

        fn hand_on(&mut self, place: usize, kind: Kind) {
            self.announced[place] += usize::from(matches!(kind, Kind::Announcement(_)));
            let now = self.now();
            let payload = self.payload(place, kind.clone());
            // Its own inbox is bound to the exchange, too.
            self.give(place, Event::Message { payload: payload.clone(), via: Via::Inbox });
            if place == 0 {
                let heard = self.follower.handle(now, Event::Message { payload: payload.clone(), via: Via::Inbox });
                let refused = |action: &Action| matches!(action, Action::Note(Note::Refused { .. }));
                assert!(!heard.iter().any(refused), "{heard:?}");
            }
            if place == 1 {
                assert!(!self.follower.hears(Via::Far));
                self.follower.comes_from("a name that is not sealed", &payload, now);
                let far = Event::Message { payload: payload.clone(), via: Via::Far };
                let heard = self.follower.handle(now, far);
                let follows = |action: &Action| matches!(action, Action::RingChanged | Action::Note(Note::Follows(_)));
                assert!(!heard.iter().any(follows), "{heard:?}");
            }
            if !self.linked {
                return;
            }
            let other = 1 - place;
            let sealed = self.leaders[place].epochs.sealing(&kind, now).map(EpochKey::id);
            let opens = sealed.is_none_or(|id| self.leaders[other].epochs.get(id).is_some());
            let via = Via::Far;
            if opens {
                self.leaders[other].comes_from(["site of ams", "site of fra"][place], &payload, now);
            }
            self.give(other, if opens { Event::Message { payload, via } } else { Event::UnknownEpoch { via } });
        }

        fn run_until(&mut self, seconds: u64) {
            while self.ms < 1_000 * seconds {
                self.ms += 20;
                for place in 0..2 {
                    self.give(place, Event::Wake);
                }
            }
        }

        fn rings(&self) -> [[u8; 8]; 2] {
            [0, 1].map(|place| self.leaders[place].held.ring().fingerprint(self.now().wall))
        }

        fn assert_one_ring(&self) {
            let [one, other] = self.rings();
            assert_eq!(one, other, "after {} ms", self.ms);
        }
    }

    #[test]
    fn leaders_at_two_brokers_come_to_one_ring_and_one_of_them_mints() {
        let mut all = Federated::new();
        all.run_until(10);
        all.assert_one_ring();
        for leader in &all.leaders {
            assert_eq!(leader.epochs.ids().count(), 2);
        }
        let first = all.scheduled;
        all.run_until(300);
        all.assert_one_ring();
        assert_eq!([all.scheduled[0] - first[0], all.scheduled[1] - first[1]], [4, 0], "in 290 s with a key for 60 s");
        assert!(all.announced.iter().all(|count| *count < 200), "a beat is 2 s: {:?}", all.announced);
        // Longer than an epoch key would be kept that nobody uses any more.
        all.run_until(1_500);
        assert!(all.leaders.iter().all(|leader| leader.epochs.ids().count() == 2));
        all.assert_one_ring();
    }

    #[test]
    fn leaders_at_two_brokers_go_on_without_each_other_and_come_to_one_ring_again() {
        for outage in [100, 2_000] {
            let mut all = Federated::new();
            all.run_until(10);
            all.linked = false;
            let before = all.scheduled;
            all.run_until(10 + outage);
            let minted = [0, 1].map(|place| all.scheduled[place] - before[place]);
            assert!(minted.iter().all(|count| *count as u64 >= outage / 60), "{minted:?} in {outage} s");
            let [one, other] = all.rings();
            assert_ne!(one, other);
            all.linked = true;
            all.run_until(10 + outage + 6);
            all.assert_one_ring();
        }
    }

    #[test]
    fn a_leader_and_its_follower_know_when_the_other_site_is_silent() {
        let mut all = Federated::new();
        let seen = |all: &Federated| {
            let [ams, fra] = &all.leaders;
            [ams, &all.follower, fra].map(|node| {
                let sites = node.sites(all.now()).into_iter();
                sites.map(|site| (site.name.clone(), site.is_silent())).collect::<Vec<_>>()
            })
        };
        let both = |silent| ["site of fra", "site of fra", "site of ams"].map(|site| vec![(site.to_owned(), silent)]);
        all.run_until(10);
        assert_eq!(seen(&all), both(false));
        all.linked = false;
        all.run_until(14);
        assert_eq!(seen(&all), both(false), "a beat is 2 s");
        // Three beats, and one until the follower hears of it.
        all.run_until(10 + 6 + 2 + 1);
        assert_eq!(seen(&all), both(true));
        all.linked = true;
        all.run_until(10 + 9 + 4 + 1);
        assert_eq!(seen(&all), both(false));
    }

    #[test]
    fn a_leader_at_another_broker_is_no_rival_and_what_its_link_held_up_no_wrong_clock() {
        let mut leader = follower(at(0));
        let _leads = leader.handle(at(0), Event::LeaseGranted(Seat::FIRST));
        for second in 1..30 {
            let now = at(second);
            let Event::Message { payload, .. } = announcement(true, now) else { panic!("a message") };
            let own = Box::new(proto::Payload { boot_id: vec![1; 16], ..(*payload).clone() });
            let _own = leader.handle(now, Event::Message { payload: own, via: Via::Inbox });
            let heard = leader.handle(now, Event::Message { payload, via: Via::Far });
            let sends = |action: &&Action| matches!(action, Action::Send { to: Route::Keys, .. });
            assert!(heard.iter().filter(sends).count() <= 1, "{heard:?}");
            let skewed = Event::Skewed { node: "b".to_owned(), boot_id: [2; 16], offset_ms: -400_000, via: Via::Far };
            let _nothing = leader.handle(now, skewed);
            let echo = proto::Payload {
                node: "a".to_owned(),
                boot_id: [1; 16].to_vec(),
                sent_at: now.wall,
                kind: Some(Kind::Report(own_report())),
            };
            let _echo = leader.handle(now, Event::Message { payload: Box::new(echo), via: Via::Lease });
        }
        let Role::Leading { probe_until, .. } = leader.role else { panic!("leads no longer") };
        assert!(probe_until < at(10).mono, "it looks after its lease");
        assert_eq!(leader.members.iter().map(|member| &member.name).collect::<Vec<_>>(), ["a"]);
    }
}
