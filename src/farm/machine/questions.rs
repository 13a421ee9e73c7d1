//! What the machine tells of itself, between two events.

use super::Farm;
use crate::clock::Now;
use crate::envelope::Epochs;
use crate::farm::announce::Announced;
use crate::farm::own::Own;
use crate::farm::sites::Site;
use crate::keys::HeldRing;
use crate::proto;
use crate::routes::Via;

impl Farm {
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
    pub fn is_listening_to(&self, via: Via) -> bool {
        via != Via::Federated || self.leads()
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

    pub(super) fn own(&self) -> Own<'_> {
        Own { settings: &self.cx.settings, local: &self.local, held: self.mint.held(), audit: self.requests.audit() }
    }
}
