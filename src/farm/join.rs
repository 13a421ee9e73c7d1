//! Epoch keys: drawing one, asking for the leader's, and granting it.

use super::context::Context;
use super::event::{Action, Note, Sender};
use super::timers::Timer;
use crate::clock::{Now, millis};
use crate::envelope::{EpochId, EpochKey, Epochs, JoinKey, KeyAgreements, seal_grant};
use crate::proto::{self, payload::Kind};
use crate::reason::Reason;
use crate::routes::{Names, Route, Via};

/// Epoch keys in a join: messages with more are refused.
const MOST_IDS: usize = 16;

/// A leader draws a new epoch key after this long, without any other reason.
const EPOCH_FOR_MS: u64 = 24 * 60 * 60 * 1000;

/// A node that asked in vain for this many beats asks all nodes, and again after as many.
const ASK_ALL_BEATS: u64 = 4;

/// The epoch keys that a node holds, and what it asks for the leader's with.
#[derive(Debug)]
pub(super) struct EpochKeys {
    held: Epochs,
    /// What this host has to agree on a secret by.
    has: KeyAgreements,
    /// Drawn when the node asks, and erased a beat after it has the leader's key: someone who reads its memory later finds
    /// nothing that opens a recorded grant.
    key: Option<JoinKey>,
    /// The one that the leader's key was granted to, until [`Timer::ForgetJoinKey`]: where two nodes announce, both grant
    /// theirs.
    granted: Option<JoinKey>,
}

impl EpochKeys {
    pub(super) fn new(held: Epochs) -> Self {
        Self { held, has: KeyAgreements::BOTH, key: None, granted: None }
    }

    /// Before the node asks for the first time.
    pub(super) fn set_agreements(&mut self, has: KeyAgreements) {
        (self.has, self.key) = (has, None);
    }

    pub(super) fn held(&self) -> &Epochs {
        &self.held
    }

    #[cfg(test)]
    pub(super) fn held_mut(&mut self) -> &mut Epochs {
        &mut self.held
    }

    // As a leader.

    /// Draws the epoch key of a new term, or of the next part of one. All other nodes ask for it when it is announced.
    pub(super) fn draw(&mut self, cx: &mut Context, now: Now) {
        let Ok(key) = EpochKey::from_random(&cx.draw()) else {
            // It had HKDF when the node started: out of memory, or its configuration has changed.
            refuse_own(cx);
            return cx.timers.set(Timer::RenewEpoch, now.mono + cx.report_interval);
        };
        cx.timers.set(Timer::RenewEpoch, now.mono + EPOCH_FOR_MS);
        cx.note(Note::Epoch { id: key.id(), from: cx.settings.node.clone() });
        self.held.lead_to(key, now);
        cx.act(Action::EpochsChanged);
        cx.timers.hasten(Timer::Announce, now.mono);
    }

    /// Leads with the key of the leader that is gone, if there is one: most nodes hold it, and it is renewed in time.
    pub(super) fn take_up(&mut self, cx: &mut Context, now: Now) {
        match self.held.current_since() {
            Some(since) => cx.timers.set(Timer::RenewEpoch, since + EPOCH_FOR_MS),
            None => self.draw(cx, now),
        }
    }

    /// Grants the asker this leader's epoch key, and the one that it seals with for now. Returns whether it was right to
    /// ask. No queue of this broker reaches a node at another: the grant goes the way that the question came.
    pub(super) fn on_join(&self, from: &Sender, join: &proto::Join, via: Via, cx: &mut Context, now: Now) -> bool {
        match self.grants(from, join, via, cx, now) {
            Ok(grants) => {
                for grant in grants {
                    let to = if via == Via::Federated { Route::Keys } else { Route::Inbox(join.inbox.clone()) };
                    cx.send(to, Kind::EpochGrant(grant));
                }
                true
            }
            Err(reason) => {
                cx.refuse(&from.node, reason);
                false
            }
        }
    }

    fn grants(
        &self,
        from: &Sender,
        join: &proto::Join,
        via: Via,
        cx: &mut Context,
        now: Now,
    ) -> Result<Vec<proto::EpochGrant>, Reason> {
        if !is_sound(join, &cx.settings.names) {
            return Err(Reason::BadJoin);
        }
        let mut grants = Vec::new();
        let farm = cx.settings.names.farm.clone();
        for key in self.lacking(join, now) {
            let grant = seal_grant(key, &farm, &from.boot_id, join, self.has, &mut || cx.draw())
                .map_err(|fault| fault.reason())?;
            let asker = if via == Via::Federated { from.boot_id.to_vec() } else { grant.asker };
            grants.push(proto::EpochGrant { asker, ..grant });
        }
        Ok(grants)
    }

    /// The keys that are in use here, and that the asker does not hold.
    fn lacking(&self, join: &proto::Join, now: Now) -> Vec<&EpochKey> {
        let keys = [self.held.settled(now), self.held.current()];
        let is_lacking = |key: &&EpochKey| !join.epochs.iter().any(|held| held[..] == key.id());
        let mut lacking: Vec<&EpochKey> = keys.into_iter().flatten().filter(is_lacking).collect();
        lacking.dedup_by_key(|key| key.id());
        lacking
    }

    /// A federated leader seals with this key. Returns whether this node holds it, or it is none.
    pub(super) fn on_federated(&mut self, epoch: &[u8], now: Now) -> bool {
        let Ok(id) = EpochId::try_from(epoch) else { return true };
        self.held.still_used(id, now)
    }

    // As one that asks.

    /// A new link makes no leader answer: when to ask all nodes stays.
    pub(super) fn on_connected(&self, cx: &mut Context) {
        cx.timers.stop(Timer::Join);
        cx.timers.stop(Timer::JoinPause);
    }

    /// Seals under the announcer's key from now on. Returns whether this node holds it, or none was announced.
    pub(super) fn on_announced(&mut self, announced: &[u8], cx: &mut Context, now: Now) -> bool {
        let Ok(id) = EpochId::try_from(announced) else { return true };
        let last = self.held.current().map(EpochKey::id);
        if !self.held.follow(id, now) {
            return false;
        }
        self.on_joined(cx, now);
        if last != Some(id) {
            cx.act(Action::EpochsChanged);
        }
        true
    }

    /// Asks soon, unless it did within this beat. In a farm of `members` nodes all may do so at the same moment.
    pub(super) fn schedule_join(&self, members: u32, cx: &mut Context, now: Now) {
        if cx.timers.get(Timer::Join).is_some() || cx.timers.is_running(Timer::JoinPause, now) {
            return;
        }
        cx.timers.set(Timer::JoinPause, now.mono + cx.report_interval);
        let delay = cx.random_below(cx.spread(members));
        cx.timers.set(Timer::Join, now.mono + delay);
    }

    /// Asks by all `routes` to the leader; at a node that leads itself there are none, and it hears no other leader in its
    /// own queue. Then, and when it asked in vain for long, it asks all nodes.
    pub(super) fn send_join(&mut self, inbox: String, routes: Vec<Route>, cx: &mut Context, now: Now) {
        cx.timers.stop(Timer::Join);
        let join = self.compose_join(inbox, cx);
        let to_all_at = cx.timers.get_or_set(Timer::JoinToAll, now.mono + cx.beats(ASK_ALL_BEATS));
        if routes.is_empty() || now.mono >= to_all_at {
            cx.timers.stop(Timer::JoinToAll);
            cx.send(Route::Keys, Kind::Join(join.clone()));
        }
        for route in routes {
            cx.send(route, Kind::Join(join.clone()));
        }
    }

    pub(super) fn compose_join(&mut self, inbox: String, cx: &mut Context) -> proto::Join {
        if self.key.is_none() {
            match JoinKey::draw(self.has, &mut || cx.draw()) {
                Ok(key) => self.key = Some(key),
                Err(_) => refuse_own(cx),
            }
        }
        let epochs = self.held.ids().map(|id| id.to_vec()).collect();
        let join = proto::Join { inbox, epochs, ..proto::Join::default() };
        self.key.iter().fold(join, |join, key| key.offer(join))
    }

    /// Takes a key that was granted to this node. `leads`: another node leads, too. Its ring is worth opening, but this
    /// node's term has a key of its own.
    pub(super) fn on_grant(
        &mut self,
        from: Sender,
        grant: &proto::EpochGrant,
        leads: bool,
        cx: &mut Context,
        now: Now,
    ) {
        if !(grant.asker.is_empty() || grant.asker == cx.settings.boot_id) {
            return; // for another
        }
        if self.held.ids().any(|id| grant.epoch[..] == id) {
            return; // asked twice, granted twice
        }
        let key = match self.open_grant(grant, &cx.settings.names, &cx.settings.boot_id) {
            Ok(key) => key,
            Err(reason) => return cx.refuse(&from.node, reason),
        };
        cx.note(Note::Epoch { id: key.id(), from: from.node });
        if leads {
            self.held.open_too(key, now);
            self.on_joined(cx, now);
        } else {
            self.held.lead_to(key, now);
        }
        cx.act(Action::EpochsChanged);
    }

    fn open_grant(&self, grant: &proto::EpochGrant, names: &Names, boot_id: &[u8; 16]) -> Result<EpochKey, Reason> {
        let mut reason = None;
        for key in self.key.iter().chain(&self.granted) {
            match key.open_grant(&names.farm, boot_id, grant) {
                Ok(epoch) => return Ok(epoch),
                Err(fault) => reason = reason.or(Some(fault.reason())),
            }
        }
        Err(reason.unwrap_or(Reason::BadGrant))
    }

    /// What was asked for is there. When to ask again at the earliest stays: the answer brings an announcement, and to ask
    /// after each would let anyone who can write to the broker keep both sides busy.
    fn on_joined(&mut self, cx: &mut Context, now: Now) {
        if let Some(key) = self.key.take() {
            self.granted = Some(key);
            cx.timers.set(Timer::ForgetJoinKey, now.mono + cx.report_interval);
        }
        cx.timers.stop(Timer::Join);
        cx.timers.stop(Timer::JoinToAll);
    }

    // What time brings.

    /// Erases what nothing is sealed with any more, and draws a new key if it is time.
    pub(super) fn advance(&mut self, cx: &mut Context, now: Now) {
        // Nothing that is sealed under an older one would be accepted by its stamp.
        let keys = &cx.settings.keys;
        let within = millis(keys.settle).saturating_add(2 * millis(keys.max_clock_offset));
        if self.held.expire(within, now) {
            cx.act(Action::EpochsChanged);
        }
        if cx.timers.is_due(Timer::RenewEpoch, now) {
            self.draw(cx, now);
        }
        if cx.timers.take_due(Timer::ForgetJoinKey, now) {
            self.granted = None;
        }
    }
}

/// This host's OpenSSL failed at what it could do when the node started.
fn refuse_own(cx: &mut Context) {
    let own = cx.settings.node.clone();
    cx.refuse(&own, Reason::Library);
}

/// Whether a join is one that a node of this farm sends.
fn is_sound(join: &proto::Join, names: &Names) -> bool {
    let is_id = |id: &Vec<u8>| id.len() == size_of::<EpochId>();
    names.is_inbox(&join.inbox) && join.epochs.len() <= MOST_IDS && join.epochs.iter().all(is_id)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, node, seat};
    use super::super::{Event, Farm};
    use super::*;

    const BOTH: KeyAgreements = KeyAgreements::BOTH;
    const X25519: KeyAgreements = KeyAgreements { x25519: true, p256: false };
    const P256: KeyAgreements = KeyAgreements { x25519: false, p256: true };

    const INBOX: &str = "resumed.f.node.a.1";

    fn host(name: &str, boot: u8, has: KeyAgreements) -> Farm {
        node(name, boot, Box::new(move |bytes| bytes.fill(boot)), at(0)).with_agreements(has)
    }

    fn message(node: &str, boot: u8, kind: Kind, via: Via) -> Event {
        let kind = Some(kind);
        let payload = proto::Payload { node: node.to_owned(), boot_id: vec![boot; 16], sent_at: at(0).wall, kind };
        Event::Message { payload: Box::new(payload), via }
    }

    /// Whether a node that has `asker` gets the epoch key of a leader that has `leader`, by the leader's word if it does not.
    fn is_granted(asker: KeyAgreements, leader: KeyAgreements) -> Result<bool, Reason> {
        let (mut asker, mut leader) = (host("a", 1, asker), host("l", 2, leader));
        drop(leader.handle(at(0), Event::LeaseGranted(seat(0))));
        let join = asker.epochs.compose_join(INBOX.to_owned(), &mut asker.cx);
        for action in leader.handle(at(0), message("a", 1, Kind::Join(join), Via::Lease)) {
            match action {
                Action::Send { to: Route::Inbox(to), kind: Kind::EpochGrant(grant) } => {
                    assert_eq!(to, INBOX);
                    drop(asker.handle(at(0), message("l", 2, Kind::EpochGrant(grant), Via::Inbox)));
                }
                Action::Note(Note::Refused { node, reason }) => {
                    assert_eq!(node, "a");
                    return Err(reason);
                }
                _ => {}
            }
        }
        let current = leader.epochs().current().map(EpochKey::id);
        Ok(current.is_some_and(|id| asker.epochs().get(id).is_some()))
    }

    #[test]
    fn a_node_joins_where_it_has_any_agreement_in_common_with_the_leader() {
        for (asker, leader) in [(BOTH, BOTH), (BOTH, X25519), (X25519, BOTH), (BOTH, P256), (P256, BOTH), (P256, P256)]
        {
            assert_eq!(is_granted(asker, leader), Ok(true), "{asker:?} asks {leader:?}");
        }
        for (asker, leader) in [(X25519, P256), (P256, X25519)] {
            assert_eq!(is_granted(asker, leader), Err(Reason::NoAgreement), "{asker:?} asks {leader:?}");
        }
    }

    #[test]
    fn a_host_that_lost_every_agreement_says_so_and_goes_on() {
        let mut asker = host("a", 1, KeyAgreements { x25519: false, p256: false });
        let join = asker.epochs.compose_join(INBOX.to_owned(), &mut asker.cx);
        assert!(join.public_key.is_empty() && join.public_key_p256.is_empty());
        assert_eq!(is_granted(KeyAgreements { x25519: false, p256: false }, BOTH), Err(Reason::BadPublicKey));
    }
}
