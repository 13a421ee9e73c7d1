//! What leaders announce: what this node knows of the one that it follows, and of the farm by its word.

use super::context::Context;
use super::event::{Note, Sender};
use super::join::EpochKeys;
use super::settings::FarmSettings;
use super::standing::Standing;
use super::timers::Timer;
use crate::clock::{Now, millis, offset_ms};
use crate::keys::HeldRing;
use crate::proto;
use crate::reason::Reason;

/// What was heard of leaders.
#[derive(Debug)]
pub(super) struct Announcements {
    /// The last valid announcement of the node that is followed.
    last: Option<Announced>,
    /// The node last followed, to notice a change.
    follows: Option<(String, [u8; 16])>,
    /// The last valid announcement of another node, or the start.
    heard_at: u64,
    /// Since when no valid announcement was heard on a link that worked.
    silent_since: u64,
    /// How many nodes the farm had when it was last counted, here or in an announcement.
    members: u32,
    /// What the announcement that said so was made for, UTC milliseconds.
    counted_as_of: u64,
}

/// An announcement, without its ring.
#[derive(Debug)]
pub(super) struct Announced {
    pub(super) as_of: u64,
    pub(super) fingerprint: [u8; 8],
    pub(super) leased: bool,
    pub(super) inbox: String,
    pub(super) members: u32,
    pub(super) in_step: u32,
    /// The announcer's clock minus ours.
    pub(super) offset_ms: i64,
}

/// The fingerprint in an announcement that a node of this farm may send now; or why it is none.
pub(super) fn check(announcement: &proto::Announcement, settings: &FarmSettings, now: Now) -> Result<[u8; 8], Reason> {
    let fingerprint = announcement.fingerprint.as_slice().try_into().map_err(|_| Reason::BadFingerprint)?;
    if !(announcement.inbox.is_empty() || settings.names.is_inbox(&announcement.inbox)) {
        return Err(Reason::BadAnnouncement);
    }
    if !matches!(announcement.epoch.len(), 0 | 8) {
        return Err(Reason::BadEpoch);
    }
    let limit = millis(settings.keys.max_clock_offset);
    if offset_ms(announcement.as_of, now.wall).unsigned_abs() > 2 * limit {
        return Err(Reason::AsOfFarOff);
    }
    Ok(fingerprint)
}

/// What this leader announces, but for the other sites.
pub(super) fn compose(
    standing: &Standing,
    held: &HeldRing,
    epochs: &EpochKeys,
    cx: &Context,
    now: Now,
) -> proto::Announcement {
    let assessment = standing.members.assessment();
    proto::Announcement {
        ring: Some(held.to_proto(now)),
        as_of: now.wall,
        fingerprint: held.ring().fingerprint(now.wall).to_vec(),
        members: assessment.members,
        members_in_step: assessment.in_step,
        report_every_ms: cx.report_interval,
        leased: standing.lease.is_held(),
        inbox: standing.link.inbox().unwrap_or_default().to_owned(),
        epoch: epochs.held().current().map(|key| key.id().to_vec()).unwrap_or_default(),
        seat: standing.lease.sought_seat().number(),
        sites: Vec::new(),
    }
}

impl Announcements {
    pub(super) fn new(cx: &mut Context, now: Now) -> Self {
        let mut new = Self { last: None, follows: None, heard_at: 0, silent_since: 0, members: 0, counted_as_of: 0 };
        new.on_heard(cx, now);
        new
    }

    /// Another node announces, validly.
    pub(super) fn on_heard(&mut self, cx: &mut Context, now: Now) {
        (self.heard_at, self.silent_since) = (now.mono, now.mono);
        cx.timers.set(Timer::StartAlone, now.mono + millis(cx.settings.start_alone_after));
    }

    /// A link is up; `renewed`: in place of one that was closed because its inbox was silent.
    pub(super) fn on_connected(&mut self, renewed: bool, now: Now) {
        self.last = None;
        if !renewed {
            self.silent_since = now.mono;
        }
    }

    /// Nothing could be heard until now.
    pub(super) fn pardon_silence(&mut self, now: Now) {
        self.silent_since = now.mono;
    }

    /// Follows the node that announces. Returns whether it is another one than before.
    pub(super) fn follow(
        &mut self,
        from: Sender,
        announcement: proto::Announcement,
        fingerprint: [u8; 8],
        cx: &mut Context,
    ) -> bool {
        let who = (from.node, from.boot_id);
        let another = self.follows.as_ref() != Some(&who);
        if another {
            cx.note(Note::Follows(who.0.clone()));
            self.follows = Some(who);
        }
        // One that is late, or sent again to a node that never saw it, knows less of the farm.
        if announcement.as_of >= self.counted_as_of {
            (self.members, self.counted_as_of) = (announcement.members, announcement.as_of);
        }
        self.last = Some(Announced {
            as_of: announcement.as_of,
            fingerprint,
            leased: announcement.leased,
            inbox: announcement.inbox,
            members: announcement.members,
            in_step: announcement.members_in_step,
            offset_ms: self.smoothed(from.offset_ms, another),
        });
        another
    }

    /// The smallest offset in a row of announcements: delay is not skew.
    fn smoothed(&self, offset_ms: i64, another: bool) -> i64 {
        match &self.last {
            Some(last) if !another && last.offset_ms.unsigned_abs() < offset_ms.unsigned_abs() => {
                last.offset_ms + (offset_ms - last.offset_ms) / 8
            }
            _ => offset_ms,
        }
    }

    /// The last announcement on this link.
    pub(super) fn last(&self) -> Option<&Announced> {
        self.last.as_ref()
    }

    /// Whether an announcement was heard within three beats.
    pub(super) fn is_leader_heard(&self, cx: &Context, now: Now) -> bool {
        cx.is_heard(self.heard_at, now)
    }

    /// Whether the one that was heard within three beats holds the lease.
    pub(super) fn is_holder_heard(&self, cx: &Context, now: Now) -> bool {
        self.is_leader_heard(cx, now) && self.last.as_ref().is_some_and(|last| last.leased)
    }

    /// The node that is followed, if an announcement was heard within three beats.
    pub(super) fn leader(&self, cx: &Context, now: Now) -> Option<&str> {
        self.follows.as_ref().filter(|_| self.is_leader_heard(cx, now)).map(|(name, _)| name.as_str())
    }

    /// Whether the node that was followed last is the one that started with this boot id.
    pub(super) fn follows(&self, boot_id: [u8; 16]) -> bool {
        self.follows.as_ref().is_some_and(|(_, followed)| *followed == boot_id)
    }

    pub(super) fn silent_since(&self) -> u64 {
        self.silent_since
    }

    /// Where a node that announces without the lease hears reports, if such a one was heard last.
    pub(super) fn acting_inbox(&self, cx: &Context) -> Option<String> {
        let acting = self.last.as_ref().filter(|last| !last.leased)?;
        Some(acting.inbox.clone()).filter(|inbox| cx.settings.names.is_inbox(inbox))
    }

    /// How many nodes the farm had when it was last counted.
    pub(super) fn members(&self) -> u32 {
        self.members
    }

    /// This leader counts them itself.
    pub(super) fn set_members(&mut self, members: u32) {
        self.members = members;
    }
}

#[cfg(test)]
mod tests;
