//! The member table: what the leader knows of every node, from their reports alone.

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;

use super::assessment::{ASSESSED_IN_A_MS, Assessment, InStep};
use super::context::{Context, SILENT_BEATS};
use super::lease::Lease;
use super::table_parts::report_footprint;
use super::timers::Timer;
use crate::clock::Now;
use crate::keys::Ring;
use crate::proto::{self, MOST_MEMBERS};

/// A node that stays silent this long is forgotten; until then an operator sees that it is missing.
const FORGET_AFTER_MS: u64 = 5 * 60 * 1000;

/// Offsets of the last reports; the one least delayed is the best estimate.
const OFFSET_WINDOW: usize = 8;

/// As many must find room in the replay table of the node that leads them.
const _: () = assert!(16 * MOST_MEMBERS <= crate::envelope::MOST_TRACKED);

/// What all reports may take in memory, in bytes: some 1,200 for each of 20,000 nodes. What a leader keeps it may also send:
/// it is below what a node takes in as a member table.
pub(super) const MOST_REPORT_BYTES: usize = 24 * 1024 * 1024;

/// For this many beats, and in this many messages, the stamps of a sender must advance as time does before its clock is
/// believed to be wrong.
const STEADY_BEATS: u64 = 2;
const STEADY_MESSAGES: u32 = 3;

/// A sender of such stamps that is silent for longer has to begin anew; a beat may be as long as this, or longer.
const DOUBT_FOR_MS: u64 = 60_000;

/// How many former boot ids are remembered for each node.
const MOST_FORMER: usize = 8;

/// One node, as its reports describe it.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    /// The node's name.
    pub name: String,
    /// Random for each start of the node.
    pub boot_id: [u8; 16],
    /// Its last report; `None` if its clock is so far off that none was acted on.
    pub report: Option<proto::Report>,
    /// Monotonic milliseconds of the last sign of life.
    pub heard_at: u64,
    /// What its report takes in memory, in bytes.
    bytes: usize,
    first_heard_at: u64,
    offsets: VecDeque<i64>,
    /// Boot ids that this one replaced, as a restart does. Should one of them report again, it was no restart.
    former: Vec<[u8; 16]>,
}

impl Member {
    /// The member's clock minus ours in milliseconds: the smallest over a window, because delay is not skew.
    #[must_use]
    pub(crate) fn clock_offset_ms(&self) -> i64 {
        self.offsets.iter().copied().min_by_key(|offset| offset.unsigned_abs()).unwrap_or(0)
    }

    /// As an operator is shown it.
    fn to_proto(&self, in_step: bool, now: Now) -> proto::Member {
        let seen = Seen {
            name: self.name.clone(),
            boot_id: self.boot_id,
            last_report_ms: now.mono.saturating_sub(self.heard_at),
            in_step,
            clock_offset_ms: self.clock_offset_ms(),
        };
        seen.telling(self.report.clone().unwrap_or_default())
    }

    /// Its clock was set: what was seen before the last message says nothing any more.
    fn forget_earlier_offsets(&mut self) {
        self.offsets.drain(..self.offsets.len().saturating_sub(1));
    }
}

/// What a leader sees of a node, beside what that reports.
pub(super) struct Seen {
    pub(super) name: String,
    pub(super) boot_id: [u8; 16],
    /// Milliseconds since its last sign of life.
    pub(super) last_report_ms: u64,
    pub(super) in_step: bool,
    /// Its clock minus the leader's.
    pub(super) clock_offset_ms: i64,
}

impl Seen {
    /// The node in a member table, if it tells `report` of itself.
    pub(super) fn telling(self, report: proto::Report) -> proto::Member {
        proto::Member {
            name: self.name,
            boot_id: self.boot_id.to_vec(),
            pod: report.pod,
            version: report.version,
            last_report_ms: self.last_report_ms,
            in_step: self.in_step,
            clock_offset_ms: self.clock_offset_ms,
            sessions: report.sessions,
            proxies: report.proxies,
            secret_ids: report.secret_ids,
            highest_generation: report.highest_generation,
            floor: report.floor,
            sessions_from: report.sessions_from,
            operators: report.operators,
        }
    }
}

/// A sender whose stamps are far from our clock. It may be a node whose clock is wrong, or somebody who has the broker
/// and no farm secret, and sends again what was recorded: such messages pass no replay check.
#[derive(Clone, Copy, Debug)]
struct Doubt {
    /// Monotonic milliseconds and offset of the message that the later ones are compared with.
    since: u64,
    offset_ms: i64,
    /// How many there were since then.
    messages: u32,
    /// The last stamp, UTC milliseconds, and when it came, monotonic milliseconds.
    sent_at: u64,
    heard_at: u64,
}

impl Doubt {
    fn new(offset_ms: i64, now: Now) -> Self {
        let sent_at = now.wall.saturating_add_signed(offset_ms);
        Self { since: now.mono, offset_ms, messages: 1, sent_at, heard_at: now.mono }
    }

    /// Takes in another message. Returns whether stamps have advanced as time has, for long enough.
    fn on_message(&mut self, offset_ms: i64, beat: u64, now: Now) -> bool {
        let new = Self::new(offset_ms, now);
        if now.mono.saturating_sub(self.heard_at) > (SILENT_BEATS * beat).max(DOUBT_FOR_MS) {
            *self = new;
        }
        if new.sent_at <= self.sent_at {
            return false;
        }
        let elapsed = now.mono.saturating_sub(self.since);
        if offset_ms.abs_diff(self.offset_ms) > (elapsed / 8).max(beat / 2) {
            *self = new;
            return false;
        }
        (self.sent_at, self.heard_at) = (new.sent_at, now.mono);
        self.messages = self.messages.saturating_add(1);
        elapsed >= STEADY_BEATS * beat && self.messages >= STEADY_MESSAGES
    }
}

/// The keys of all boots of the node `name`.
fn namesakes_of(name: &str) -> RangeInclusive<(String, [u8; 16])> {
    (name.to_owned(), [0; 16])..=(name.to_owned(), [0xff; 16])
}

/// All nodes that were heard lately.
#[derive(Debug, Default)]
pub(crate) struct Members {
    table: BTreeMap<(String, [u8; 16]), Member>,
    doubts: BTreeMap<(String, [u8; 16]), Doubt>,
    /// What the reports take in memory together, in bytes.
    bytes: usize,
    assessment: Assessment,
}

impl Members {
    /// Whether this report finds room, in place of the last one of that node.
    #[must_use]
    pub(crate) fn has_room_for(&self, name: &str, boot_id: [u8; 16], report: &proto::Report) -> bool {
        let earlier = self.table.get(&(name.to_owned(), boot_id)).map_or(0, |member| member.bytes);
        self.bytes - earlier + report_footprint(report) <= MOST_REPORT_BYTES
    }

    /// Notes an authentic report that [has room](Self::has_room_for). Returns whether the node was unknown until now.
    pub(crate) fn on_report(
        &mut self,
        name: &str,
        boot_id: [u8; 16],
        offset_ms: i64,
        report: proto::Report,
        now: Now,
    ) -> bool {
        let bytes = report_footprint(&report);
        let Some((member, new)) = self.on_alive(name, boot_id, offset_ms, now) else { return false };
        let earlier = std::mem::replace(&mut member.bytes, bytes);
        if member.report.replace(report).is_none() {
            member.forget_earlier_offsets();
        }
        self.bytes = self.bytes - earlier + bytes;
        new
    }

    fn remove(&mut self, key: &(String, [u8; 16])) {
        if let Some(member) = self.table.remove(key) {
            self.bytes -= member.bytes;
        }
    }

    /// Takes in that a message was not acted on, because its stamp is too far from our clock. It counts as a sign of life of
    /// a node whose clock is wrong once its stamps have risen as time passed, for two beats.
    ///
    /// Not if a node of that name reported in time within three beats. Else these are old messages, held up or replayed,
    /// and whoever has the broker but no farm secret could make a leader doubt its clock.
    pub(crate) fn on_skewed(&mut self, name: &str, boot_id: [u8; 16], offset_ms: i64, beat: u64, now: Now) {
        let key = (name.to_owned(), boot_id);
        if self.doubts.len() >= MOST_MEMBERS && !self.doubts.contains_key(&key) {
            return;
        }
        let doubt = self.doubts.entry(key).or_insert_with(|| Doubt::new(offset_ms, now));
        if !doubt.on_message(offset_ms, beat, now) {
            return;
        }
        let mut namesakes = self.table.range(namesakes_of(name));
        let is_fresh = |member: &Member| {
            member.report.is_some() && now.mono.saturating_sub(member.heard_at) <= SILENT_BEATS * beat
        };
        if namesakes.any(|(_, member)| is_fresh(member)) {
            return;
        }
        if let Some((member, _)) = self.on_alive(name, boot_id, offset_ms, now)
            && member.report.take().is_some()
        {
            member.forget_earlier_offsets();
            let bytes = std::mem::take(&mut member.bytes);
            self.bytes -= bytes;
        }
    }

    /// Takes in a sign of life. Returns the node, and whether it was unknown until now; nothing where there is no room.
    fn on_alive(&mut self, name: &str, boot_id: [u8; 16], offset_ms: i64, now: Now) -> Option<(&mut Member, bool)> {
        let key = (name.to_owned(), boot_id);
        let new = !self.table.contains_key(&key);
        if new {
            if self.table.len() >= MOST_MEMBERS {
                return None;
            }
            let member = Member {
                name: name.to_owned(),
                boot_id,
                report: None,
                bytes: 0,
                heard_at: now.mono,
                first_heard_at: now.mono,
                offsets: VecDeque::new(),
                former: Vec::new(),
            };
            self.table.insert(key.clone(), member);
        }
        self.settle_name(name, boot_id, now);
        let member = self.table.get_mut(&key)?;
        member.heard_at = now.mono;
        if member.offsets.len() == OFFSET_WINDOW {
            member.offsets.pop_front();
        }
        member.offsets.push_back(offset_ms);
        Some((member, new))
    }

    /// A restarted node replaces its former self; two that both keep reporting stay.
    fn settle_name(&mut self, name: &str, boot_id: [u8; 16], now: Now) {
        let first_heard_at =
            self.table.get(&(name.to_owned(), boot_id)).map_or(now.mono, |member| member.first_heard_at);
        let (mut former, mut gone) = (Vec::new(), Vec::new());
        for ((_, other_boot), other) in self.table.range_mut(namesakes_of(name)) {
            if *other_boot == boot_id {
                continue;
            }
            // Heard after we began to report, or it took our place: it is alive, not our former self.
            let is_alive = other.heard_at > first_heard_at || other.former.contains(&boot_id);
            if !is_alive {
                gone.push(*other_boot);
                former.push(*other_boot);
                former.append(&mut other.former);
            }
        }
        for other_boot in gone {
            self.remove(&(name.to_owned(), other_boot));
        }
        if let Some(member) = self.table.get_mut(&(name.to_owned(), boot_id)) {
            member.former.append(&mut former);
            let excess = member.former.len().saturating_sub(MOST_FORMER);
            member.former.drain(..excess);
        }
    }

    /// Forgets a node that said farewell, or whose clock is no longer doubted.
    pub(crate) fn forget(&mut self, name: &str, boot_id: [u8; 16]) {
        let key = (name.to_owned(), boot_id);
        self.remove(&key);
        self.doubts.remove(&key);
    }

    /// Forgets nodes that were silent for long.
    pub(crate) fn forget_silent(&mut self, now: Now) {
        self.table.retain(|_, member| now.mono.saturating_sub(member.heard_at) < FORGET_AFTER_MS);
        self.bytes = self.table.values().map(|member| member.bytes).sum();
        // The slowest beat is as long as that.
        self.doubts.retain(|_, doubt| now.mono.saturating_sub(doubt.heard_at) < 2 * FORGET_AFTER_MS);
    }

    /// Forgets everybody, at the end of a lead.
    pub(super) fn clear(&mut self, cx: &mut Context) {
        cx.timers.stop(Timer::AssessPause);
        self.table.clear();
        self.bytes = 0;
        self.doubts.clear();
        self.assessment = Assessment::default();
    }

    /// Looks at all members, if the last look is not of just now: in a large farm some hundred messages come in a second.
    /// Returns whether more of them are silent than before.
    pub(super) fn assess(&mut self, ring: &Ring, lease: &Lease, cx: &mut Context, now: Now) -> bool {
        if cx.timers.is_running(Timer::AssessPause, now) {
            return false;
        }
        self.forget_silent(now);
        cx.timers.set(Timer::AssessPause, now.mono + self.len() as u64 / ASSESSED_IN_A_MS);
        let before = self.assessment.silent;
        self.assessment = Assessment::of(self, ring, lease, cx, now);
        self.assessment.silent > before
    }

    /// What the last look at all members told.
    pub(super) fn assessment(&self) -> &Assessment {
        &self.assessment
    }

    /// What an operator is shown: all members but this node, and this node as `own`.
    pub(super) fn table(&self, own: proto::Member, ring: &Ring, cx: &Context, now: Now) -> Vec<proto::Member> {
        let mut steps = InStep::new(ring, cx, now);
        let others = self.iter().filter(|member| member.boot_id != cx.settings.boot_id);
        let mut table: Vec<_> = others.map(|member| member.to_proto(steps.has(member), now)).collect();
        table.push(own);
        table.sort_by(|a, b| (&a.name, &a.boot_id).cmp(&(&b.name, &b.boot_id)));
        table
    }

    /// All members by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Member> {
        self.table.values()
    }

    /// How many members there are.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether nobody was heard.
    #[must_use]
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Whether a strict majority of the farm, of which `own` is one, has a clock more than `limit_ms` from ours, all
    /// in the same direction. Farms of fewer than three nodes have no majority worth following.
    #[must_use]
    pub(crate) fn majority_disagrees(&self, own: [u8; 16], limit_ms: u64) -> bool {
        let limit = i64::try_from(limit_ms).unwrap_or(i64::MAX);
        let (mut total, mut ahead, mut behind) = (1, 0, 0);
        let mut others = self.table.values().filter(|member| member.boot_id != own).peekable();
        while let Some(member) = others.next() {
            // One vote a name, however many boots of it were heard: that of the one whose clock is nearest to ours.
            let mut nearest = member.clock_offset_ms();
            while let Some(namesake) = others.next_if(|other| other.name == member.name) {
                let offset = namesake.clock_offset_ms();
                if offset.unsigned_abs() < nearest.unsigned_abs() {
                    nearest = offset;
                }
            }
            total += 1;
            ahead += usize::from(nearest > limit);
            behind += usize::from(nearest < -limit);
        }
        total >= 3 && (2 * ahead > total || 2 * behind > total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEAT: u64 = 100;

    fn at(mono: u64) -> Now {
        Now { wall: 100_000_000 + mono, mono: 100_000 + mono }
    }

    /// Messages of a node whose clock is `offset_ms` off, from `mono` on, one a beat until it is believed.
    fn skewed_from(members: &mut Members, name: &str, boot: u8, offset_ms: i64, mono: u64) {
        for beat in 0..=STEADY_BEATS {
            members.on_skewed(name, [boot; 16], offset_ms, BEAT, at(mono + beat * BEAT));
        }
    }

    fn names(members: &Members) -> Vec<(String, u8)> {
        members.iter().map(|m| (m.name.clone(), m.boot_id[0])).collect()
    }

    #[test]
    fn a_restarted_node_replaces_its_former_self() {
        let mut members = Members::default();
        assert!(members.on_report("a", [1; 16], 0, proto::Report::default(), at(0)));
        assert!(!members.on_report("a", [1; 16], 0, proto::Report::default(), at(10)));
        assert!(members.on_report("a", [2; 16], 0, proto::Report::default(), at(20)));
        assert_eq!(names(&members), [("a".into(), 2)]);
    }

    #[test]
    fn reports_are_bounded_in_memory_and_a_node_that_is_gone_makes_room() {
        let mut members = Members::default();
        let large =
            || proto::Report { version: "v".repeat(256), secret_ids: vec![vec![0; 8]; 16], ..Default::default() };
        let mut taken = 0_u32;
        while members.has_room_for(&taken.to_string(), [1; 16], &large()) {
            members.on_report(&taken.to_string(), [1; 16], 0, large(), at(0));
            taken += 1;
        }
        assert!((10_000..20_000).contains(&taken) && members.bytes <= MOST_REPORT_BYTES, "{taken}: {}", members.bytes);
        assert!(members.has_room_for("7", [1; 16], &large()), "in place of its last one");
        members.forget("7", [1; 16]);
        assert!(members.has_room_for("new", [1; 16], &large()));
        members.forget_silent(at(2 * FORGET_AFTER_MS));
        assert_eq!((members.len(), members.bytes), (0, 0));
        // Every node of the largest farm reports like this.
        let proxy = || proto::Proxy {
            kind: "ats".into(),
            version: "9.2.9".into(),
            certificate_digest: vec![2; 8],
            ..Default::default()
        };
        let entry =
            || proto::AuditEntry { node: "proxy00000.example.net".into(), user: "alice".into(), ..Default::default() };
        let trail = proto::OperatorTrail { reload: Some(proto::LastReload::default()), audit: vec![entry(); 2] };
        let usual = proto::Report {
            inbox: "resumed.farm.node.proxy00000.example.net.1".into(),
            proxies: vec![proxy(); 2],
            operators: Some(Box::new(trail)),
            ..Default::default()
        };
        assert!(20_000 * report_footprint(&usual) <= MOST_REPORT_BYTES, "{} bytes each", report_footprint(&usual));
    }

    #[test]
    fn two_nodes_of_one_name_are_both_shown() {
        let mut members = Members::default();
        for round in 0..3 {
            members.on_report("a", [1; 16], 0, proto::Report::default(), at(20 * round));
            members.on_report("a", [2; 16], 0, proto::Report::default(), at(20 * round + 10));
        }
        assert_eq!(names(&members), [("a".into(), 1), ("a".into(), 2)]);
    }

    #[test]
    fn a_silent_node_is_shown_for_minutes_and_then_forgotten() {
        let mut members = Members::default();
        members.on_report("a", [1; 16], 0, proto::Report::default(), at(0));
        members.forget_silent(at(FORGET_AFTER_MS - 1));
        assert_eq!(members.len(), 1);
        members.forget_silent(at(FORGET_AFTER_MS));
        assert!(members.is_empty());
    }

    #[test]
    fn delay_is_not_skew() {
        let mut members = Members::default();
        for offset in [-900, -3, -4_000] {
            members.on_report("a", [1; 16], offset, proto::Report::default(), at(0));
        }
        assert_eq!(members.iter().next().expect("one member").clock_offset_ms(), -3);
    }

    #[test]
    fn old_messages_say_nothing_of_a_node_that_reports_in_time() {
        let mut members = Members::default();
        members.on_report("a", [1; 16], 0, proto::Report::default(), at(0));
        // Its own, and one of its former self.
        skewed_from(&mut members, "a", 1, -9_000, BEAT);
        skewed_from(&mut members, "a", 2, -9_000, BEAT);
        assert_eq!(names(&members), [("a".into(), 1)]);
        let member = members.iter().next().expect("one member");
        assert!(member.report.is_some() && member.clock_offset_ms() == 0, "{member:?}");
        // It reports no longer: now its clock may have been set.
        skewed_from(&mut members, "a", 1, -9_000, 301);
        assert!(members.iter().next().expect("one member").report.is_none());
    }

    #[test]
    fn a_clock_that_is_set_shows_after_two_beats_and_with_the_next_message_when_it_is_set_right() {
        let mut members = Members::default();
        let offset = |members: &Members| members.iter().next().expect("one member").clock_offset_ms();
        members.on_report("a", [1; 16], 3, proto::Report::default(), at(0));
        skewed_from(&mut members, "a", 1, 3_600_000, 400);
        assert_eq!(offset(&members), 3_600_000);
        members.on_report("a", [1; 16], -400, proto::Report::default(), at(800));
        assert_eq!(offset(&members), -400);
    }

    #[test]
    fn recorded_messages_make_nobody_a_node_with_a_wrong_clock() {
        let mut members = Members::default();
        // What three gone nodes sent a day ago, each of them again and again; and two messages of one of them in turn.
        let day_ago = at(0).wall - 86_400_000;
        for turn in 0..200 {
            let now = at(turn * BEAT / 4);
            for boot in 1..=3 {
                for sent_at in [day_ago, day_ago + u64::from(boot) * 40] {
                    let offset = -i64::try_from(now.wall - sent_at).expect("a day");
                    members.on_skewed("gone", [boot; 16], offset, BEAT, now);
                }
            }
        }
        assert_eq!(members.len(), 0);
        // The least and the greatest stamp there is.
        for offset in [i64::MIN, i64::MAX] {
            members.on_skewed("gone", [9; 16], offset, BEAT, at(6_000));
        }
        assert_eq!(members.len(), 0);
    }

    #[test]
    fn two_recorded_messages_are_not_enough_and_many_boots_of_one_name_have_one_vote() {
        let mut members = Members::default();
        for boot in 1..=8 {
            members.on_skewed("gone", [boot; 16], -86_400_000, BEAT, at(0));
            members.on_skewed("gone", [boot; 16], -86_400_000, BEAT, at(STEADY_BEATS * BEAT));
        }
        assert_eq!(members.len(), 0);
        // Played back at its own pace it is a node that sends; but one.
        members.on_report("a", [21; 16], 0, proto::Report::default(), at(1_000));
        members.on_report("b", [22; 16], 0, proto::Report::default(), at(1_000));
        for turn in 0..8 {
            for boot in 1..=8 {
                members.on_skewed("gone", [boot; 16], -86_400_000, BEAT, at(1_000 + turn * BEAT));
            }
        }
        assert!(members.len() > 2, "{:?}", names(&members));
        assert!(!members.majority_disagrees([20; 16], 1_000), "{:?}", names(&members));
    }

    #[test]
    fn a_node_that_sends_more_slowly_than_its_leader_is_shown_too() {
        let mut members = Members::default();
        for turn in 0..3 {
            members.on_skewed("slow", [1; 16], 9_000, BEAT, at(turn * 50 * BEAT));
            members.forget_silent(at(turn * 50 * BEAT));
        }
        assert_eq!(members.len(), 1);
    }

    #[test]
    fn old_messages_among_them_do_not_hide_a_node_with_a_wrong_clock() {
        let mut members = Members::default();
        for turn in 0..4 {
            members.on_skewed("a", [1; 16], 9_000, BEAT, at(turn * BEAT));
            members.on_skewed(
                "a",
                [1; 16],
                9_000 - 50 - i64::try_from(turn * BEAT).expect("small"),
                BEAT,
                at(turn * BEAT),
            );
        }
        assert_eq!(members.iter().next().map(Member::clock_offset_ms), Some(9_000));
    }

    #[test]
    fn only_a_strict_majority_in_one_direction_disagrees() {
        let disagrees = |offsets: &[i64]| {
            let mut members = Members::default();
            members.on_report("own", [0; 16], 0, proto::Report::default(), at(0));
            for (index, offset) in offsets.iter().enumerate() {
                let boot = u8::try_from(index).expect("few") + 1;
                skewed_from(&mut members, &format!("n{index}"), boot, *offset, 0);
            }
            members.majority_disagrees([0; 16], 1000)
        };
        assert!(disagrees(&[5000, 5000]));
        assert!(!disagrees(&[5000, -5000]));
        assert!(!disagrees(&[5000]), "two nodes have no majority");
        assert!(!disagrees(&[5000, 5000, 0]), "two of four are no strict majority");
        assert!(disagrees(&[-5000, -5000, -5000, 0]));
    }
}
