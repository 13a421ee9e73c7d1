//! The side of a node that lacks sessions: it calls, picks a donor, and takes what that sends.

use std::collections::VecDeque;

use super::{DonorLoss, PodNode, WINDOW, WarmupAction, WarmupNote};
use crate::clock::Now;
use crate::proto::payload::Kind;
use crate::proto::{Warmup, WarmupCall, WarmupOffer, WarmupRequest, WarmupState};
use crate::random::Randomness;
use crate::reason::Reason;

/// A joiner asks for more when so many of the chunks that it granted were taken.
const GRANT_EVERY: u64 = 8;

/// The first call comes within so long after the feed came up: after a broker's restart everybody calls.
const CALL_WITHIN_MS: u64 = 300;
/// How long a call waits for offers. They cost little, so it is short.
pub(super) const OFFERS_WITHIN_MS: u64 = 250;
/// The pause before another call, and what is added at random.
pub(super) const CALL_AGAIN_MS: u64 = 1_000;
pub(super) const CALL_JITTER_MS: u64 = 500;
/// After this many calls that no node with all sessions, or with all of them soon, has answered, there is no such node.
pub(super) const CALLS: u32 = 3;

/// Without a chunk for so long, a joiner repeats its request.
const REPEAT_MS: u64 = 1_000;
/// Without a chunk for so long, a donor is replaced.
pub(super) const SILENT_MS: u64 = 3_000;

/// How often it is noted that the feed lives.
const NOTE_LIVENESS_EVERY_MS: u64 = 5_000;
/// A node that did not note it for so long was frozen or suspended. Its feed may have ended at the beginning of that, but
/// the news of it comes within so long after the end.
const STALLED_MS: u64 = 10_000;
const NEWS_WITHIN_MS: u64 = 30_000;

/// Offers that a joiner looks at: one of a thousand nodes is as good as another.
const MAX_OFFERS: usize = 1_024;
/// Ids of earlier calls and warm-ups: what still comes for them is late, not unasked for.
const REMEMBERED: usize = 16;

/// What a node lacks.
#[derive(Clone, Copy, Debug)]
enum Lack {
    Everything,
    /// What the pod made since its feed ended.
    Since(Now),
}

impl Lack {
    /// As calls and requests carry it: 0 is everything.
    fn away_ms(self, now: Now) -> u64 {
        match self {
            Self::Everything => 0,
            Self::Since(then) => since(then, now).max(1),
        }
    }
}

/// Milliseconds from `then` to `now`. The monotonic clock stands still while a host is suspended.
fn since(then: Now, now: Now) -> u64 {
    now.mono.saturating_sub(then.mono).max(now.wall.saturating_sub(then.wall))
}

#[derive(Debug)]
enum JoinerState {
    /// Nothing is lacking, or there is no feed.
    Idle,
    Waiting {
        call_at: u64,
        calls: u32,
    },
    Calling {
        id: u64,
        calls: u32,
        pick_at: u64,
        offers: Vec<HeardOffer>,
    },
    Receiving(Receiving),
}

#[derive(Clone, Debug)]
struct HeardOffer {
    peer: PodNode,
    feed: String,
    entries: u64,
    state: WarmupState,
}

#[derive(Debug)]
struct Receiving {
    id: u64,
    donor: HeardOffer,
    /// Other nodes that were ready.
    others: Vec<HeardOffer>,
    taken: u64,
    credit: u64,
    /// Nothing behind `taken` is asked for again twice, unless it is late.
    asked_again: bool,
    heard_at: u64,
    repeat_at: u64,
}

/// The side of the node that lacks sessions. A node that has just started lacks everything.
pub struct Joiner {
    random: Randomness,
    feed: Option<String>,
    /// When it was last noted that the feed lives.
    alive_at: Option<Now>,
    /// When that was before the node stalled, and until when it matters.
    stalled: Option<(Now, u64)>,
    lack: Option<Lack>,
    state: JoinerState,
    /// Of calls and warm-ups that are over.
    former: VecDeque<u64>,
    /// The donor that fell silent last: asked again only if there is no other.
    avoid: Option<[u8; 16]>,
    /// Since when this warm-up runs, over all its donors, and what it brought.
    begun_at: Option<u64>,
    sessions: u64,
    tombstones: u64,
    out: Vec<WarmupAction>,
}

impl Joiner {
    /// A node that lacks everything and has no feed yet.
    #[must_use]
    pub fn new(random: Randomness) -> Self {
        Self {
            random,
            feed: None,
            alive_at: None,
            stalled: None,
            lack: Some(Lack::Everything),
            state: JoinerState::Idle,
            former: VecDeque::new(),
            avoid: None,
            begun_at: None,
            sessions: 0,
            tombstones: 0,
            out: Vec::new(),
        }
    }

    /// The session feed is up, under that name.
    pub fn feed_up(&mut self, feed: String, now: Now) {
        self.feed = Some(feed);
        (self.alive_at, self.stalled) = (Some(now), None);
        if self.lack.is_some() {
            let call_at = now.mono + self.below(CALL_WITHIN_MS);
            self.state = JoinerState::Waiting { call_at, calls: 0 };
        }
    }

    /// The session feed is gone, and what the pod makes from now on is missed; if the node stalled, from then on.
    pub(crate) fn feed_down(&mut self, now: Now) {
        self.note_liveness(now);
        self.feed = None;
        let lost_at = match self.stalled {
            Some((before, until)) if now.mono < until => before,
            _ => now,
        };
        self.lack.get_or_insert(Lack::Since(lost_at));
        self.remember_id();
        self.state = JoinerState::Idle;
    }

    /// Whether this node lacks sessions; then it is no donor to be preferred.
    #[must_use]
    pub(crate) fn lacks(&self) -> bool {
        self.lack.is_some()
    }

    /// Whether a donor is sending what this node lacks.
    #[must_use]
    pub(crate) fn is_receiving(&self) -> bool {
        matches!(self.state, JoinerState::Receiving(_))
    }

    /// An offer came. Its feed is a feed of this pod.
    pub fn on_offer(&mut self, peer: PodNode, offer: WarmupOffer, now: Now) -> Vec<WarmupAction> {
        let state = offer.state();
        match &mut self.state {
            JoinerState::Calling { id, offers, .. } if *id == offer.id => {
                if offers.len() < MAX_OFFERS && offers.iter().all(|other| other.peer != peer) {
                    offers.push(HeardOffer { peer, feed: offer.feed, entries: offer.entries, state });
                }
            }
            JoinerState::Receiving(receiving) if receiving.id == offer.id => {
                if receiving.donor.peer != peer {
                    self.refuse(peer, Reason::WarmupUnasked);
                } else if state != WarmupState::Ready {
                    self.replace_donor(DonorLoss::Busy, now);
                }
            }
            _ if self.former.contains(&offer.id) => {}
            _ => self.refuse(peer, Reason::WarmupUnasked),
        }
        std::mem::take(&mut self.out)
    }

    /// A chunk came. If it is the next one it is to be taken in, which the first value says; [`Self::chunk_taken`] follows.
    pub fn on_chunk(&mut self, peer: &PodNode, chunk: &Warmup, now: Now) -> (bool, Vec<WarmupAction>) {
        let mut next = false;
        match &mut self.state {
            JoinerState::Receiving(receiving) if receiving.id == chunk.id && receiving.donor.peer == *peer => {
                if chunk.number == 0 || chunk.number > receiving.credit {
                    self.refuse(peer.clone(), Reason::WarmupOverCredit);
                } else if chunk.number == receiving.taken + 1 {
                    next = true;
                } else if chunk.number > receiving.taken {
                    // One before it is lost: all behind that come again.
                    receiving.heard_at = now.mono;
                    if !std::mem::replace(&mut receiving.asked_again, true) {
                        self.send_request(true, false, now);
                    }
                }
            }
            _ if self.former.contains(&chunk.id) => {}
            _ => self.refuse(peer.clone(), Reason::WarmupUnasked),
        }
        (next, std::mem::take(&mut self.out))
    }

    /// The chunk that was next has been taken in.
    pub fn chunk_taken(&mut self, sessions: u64, tombstones: u64, last: bool, now: Now) -> Vec<WarmupAction> {
        let JoinerState::Receiving(receiving) = &mut self.state else { return Vec::new() };
        self.sessions += sessions;
        self.tombstones += tombstones;
        receiving.taken += 1;
        receiving.asked_again = false;
        receiving.heard_at = now.mono;
        receiving.repeat_at = now.mono + REPEAT_MS;
        if last {
            let donor = receiving.donor.peer.node.clone();
            self.send_request(false, true, now);
            self.remember_id();
            let took_ms = now.mono.saturating_sub(self.begun_at.unwrap_or(now.mono));
            let (sessions, tombstones) = (self.sessions, self.tombstones);
            self.finish();
            self.note(WarmupNote::WarmedUp { donor, sessions, tombstones, took_ms });
        } else if receiving.taken + WINDOW >= receiving.credit + GRANT_EVERY {
            receiving.credit = receiving.taken + WINDOW;
            self.send_request(false, false, now);
        }
        std::mem::take(&mut self.out)
    }

    /// Time has passed. `blocked`: nothing can be sent now, so silence says nothing.
    pub fn wake(&mut self, blocked: bool, now: Now) -> Vec<WarmupAction> {
        self.note_liveness(now);
        match &mut self.state {
            JoinerState::Waiting { call_at, .. } if blocked => *call_at = (*call_at).max(now.mono + CALL_WITHIN_MS / 2),
            JoinerState::Waiting { call_at, calls } if now.mono >= *call_at => {
                let calls = *calls;
                self.send_call(calls, now);
            }
            JoinerState::Calling { pick_at, .. } if now.mono >= *pick_at => self.pick_donor(now),
            JoinerState::Receiving(receiving) => {
                if blocked {
                    receiving.heard_at = now.mono;
                    receiving.repeat_at = now.mono + REPEAT_MS;
                } else if now.mono.saturating_sub(receiving.heard_at) >= SILENT_MS {
                    self.replace_donor(DonorLoss::Silent, now);
                } else if now.mono >= receiving.repeat_at {
                    receiving.repeat_at = now.mono + REPEAT_MS;
                    self.send_request(true, false, now);
                }
            }
            _ => {}
        }
        std::mem::take(&mut self.out)
    }

    /// Monotonic milliseconds at which [`Self::wake`] is due; none without a feed.
    #[must_use]
    pub(crate) fn next_wake(&self) -> Option<u64> {
        let note_at = self.alive_at.filter(|_| self.feed.is_some()).map(|alive| alive.mono + NOTE_LIVENESS_EVERY_MS);
        let due = match &self.state {
            JoinerState::Idle => None,
            JoinerState::Waiting { call_at, .. } => Some(*call_at),
            JoinerState::Calling { pick_at, .. } => Some(*pick_at),
            JoinerState::Receiving(receiving) => Some(receiving.repeat_at.min(receiving.heard_at + SILENT_MS)),
        };
        due.into_iter().chain(note_at).min()
    }

    /// Notes that the node runs, and whether it stood still before.
    fn note_liveness(&mut self, now: Now) {
        let Some(alive_at) = self.alive_at.filter(|_| self.feed.is_some()) else { return };
        if since(alive_at, now) >= STALLED_MS {
            self.stalled = Some((alive_at, now.mono + NEWS_WITHIN_MS));
        }
        self.alive_at = Some(now);
    }

    fn send_call(&mut self, calls: u32, now: Now) {
        let (Some(feed), Some(lack)) = (self.feed.clone(), self.lack) else { return };
        let id = self.number();
        self.state =
            JoinerState::Calling { id, calls: calls + 1, pick_at: now.mono + OFFERS_WITHIN_MS, offers: Vec::new() };
        self.out.push(WarmupAction::Call(WarmupCall { id, feed, away_ms: lack.away_ms(now) }));
    }

    fn pick_donor(&mut self, now: Now) {
        let JoinerState::Calling { calls, offers, .. } = &mut self.state else { return };
        let (calls, offers) = (*calls, std::mem::take(offers));
        let of = |state| offers.iter().filter(move |offer| offer.state == state).cloned().collect::<Vec<_>>();
        let (ready, lacking) = (of(WarmupState::Ready), of(WarmupState::Lacking));
        let busy = offers.iter().any(|offer| offer.state == WarmupState::Busy);
        self.remember_id();
        if ready.iter().any(|offer| offer.entries > 0) {
            self.ask_one_of(ready, now);
        } else if busy {
            // A node that is busy has sessions, and will be free.
            self.wait(0, now);
        } else if !ready.is_empty() {
            self.nothing_to_get();
        } else if calls < CALLS {
            self.wait(calls, now);
        } else if lacking.iter().any(|offer| offer.entries > 0) {
            self.ask_one_of(lacking, now);
        } else {
            self.nothing_to_get();
        }
    }

    /// Asks one of those who have about the most; two joiners that choose alike find out at the donor.
    fn ask_one_of(&mut self, mut offers: Vec<HeardOffer>, now: Now) {
        offers.retain(|offer| offer.entries > 0);
        if offers.len() > 1 && offers.iter().any(|offer| Some(offer.peer.boot_id) != self.avoid) {
            offers.retain(|offer| Some(offer.peer.boot_id) != self.avoid);
        }
        let most = offers.iter().map(|offer| offer.entries).max().unwrap_or(0);
        let good: Vec<usize> = (0..offers.len()).filter(|at| offers[*at].entries >= most - most / 10).collect();
        if good.is_empty() {
            self.wait(0, now);
            return;
        }
        let at = good[usize::try_from(self.below(good.len() as u64)).unwrap_or(0)];
        let donor = offers.swap_remove(at);
        self.note(WarmupNote::Begins { donor: donor.peer.node.clone(), entries: donor.entries });
        self.begun_at.get_or_insert(now.mono);
        self.state = JoinerState::Receiving(Receiving {
            id: self.number(),
            donor,
            others: offers,
            taken: 0,
            credit: WINDOW,
            asked_again: false,
            heard_at: now.mono,
            repeat_at: now.mono + REPEAT_MS,
        });
        self.send_request(false, false, now);
    }

    fn replace_donor(&mut self, reason: DonorLoss, now: Now) {
        let JoinerState::Receiving(receiving) = &mut self.state else { return };
        let (donor, others) = (receiving.donor.peer.clone(), std::mem::take(&mut receiving.others));
        self.avoid = Some(donor.boot_id);
        self.remember_id();
        self.note(WarmupNote::DonorLost { donor: donor.node, reason });
        if others.is_empty() {
            self.wait(0, now);
        } else {
            self.ask_one_of(others, now);
        }
    }

    fn send_request(&mut self, again: bool, done: bool, now: Now) {
        let (JoinerState::Receiving(receiving), Some(feed), Some(lack)) = (&self.state, &self.feed, self.lack) else {
            return;
        };
        let request = WarmupRequest {
            id: receiving.id,
            feed: feed.clone(),
            away_ms: lack.away_ms(now),
            taken: receiving.taken,
            credit: receiving.credit,
            again,
            done,
        };
        let action = WarmupAction::Send { feed: receiving.donor.feed.clone(), kind: Kind::WarmupRequest(request) };
        self.out.push(action);
    }

    fn wait(&mut self, calls: u32, now: Now) {
        let call_at = now.mono + CALL_AGAIN_MS + self.below(CALL_JITTER_MS);
        self.state = JoinerState::Waiting { call_at, calls };
    }

    fn nothing_to_get(&mut self) {
        self.finish();
        self.note(WarmupNote::NothingToGet);
    }

    /// Nothing is lacking any more.
    fn finish(&mut self) {
        self.state = JoinerState::Idle;
        self.lack = None;
        self.avoid = None;
        self.begun_at = None;
        (self.sessions, self.tombstones) = (0, 0);
    }

    /// Remembers the id of a state that is about to end.
    fn remember_id(&mut self) {
        let id = match &self.state {
            JoinerState::Calling { id, .. } => *id,
            JoinerState::Receiving(receiving) => receiving.id,
            JoinerState::Idle | JoinerState::Waiting { .. } => return,
        };
        if self.former.len() == REMEMBERED {
            self.former.pop_front();
        }
        self.former.push_back(id);
    }

    /// The id of the warm-up that runs, and its donor.
    #[cfg(test)]
    pub(super) fn receives(&self) -> Option<(u64, PodNode)> {
        match &self.state {
            JoinerState::Receiving(receiving) => Some((receiving.id, receiving.donor.peer.clone())),
            JoinerState::Idle | JoinerState::Waiting { .. } | JoinerState::Calling { .. } => None,
        }
    }

    fn refuse(&mut self, peer: PodNode, reason: Reason) {
        self.note(WarmupNote::Refused { node: peer.node, reason });
    }

    fn note(&mut self, note: WarmupNote) {
        self.out.push(WarmupAction::WarmupNote(note));
    }

    fn number(&mut self) -> u64 {
        let mut bytes = [0; 8];
        (self.random)(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1_700_000_000_000;

    #[test]
    fn a_node_that_stood_still_asks_for_what_was_made_since_then() {
        for (still, wall) in [(300_000, 300_000), (5, 300_000)] {
            let mut joiner = Joiner::new(Box::new(|bytes| bytes.fill(0)));
            let at = |mono, wall| Now { wall: START + wall, mono: 1_000 + mono };
            joiner.feed_up("one".to_owned(), at(0, 0));
            joiner.finish();
            for second in 1..=100 {
                let _idle = joiner.wake(false, at(second * 1_000, second * 1_000));
            }
            assert_eq!(joiner.next_wake(), Some(1_000 + 100_000 + NOTE_LIVENESS_EVERY_MS));
            // The timer may go off before the broken connection is noticed.
            let thawed = at(100_000 + still, 100_000 + wall);
            let _idle = joiner.wake(false, thawed);
            let noticed = Now { wall: thawed.wall + 1_000, mono: thawed.mono + 1_000 };
            joiner.feed_down(noticed);
            joiner.feed_up("two".to_owned(), noticed);
            let later = Now { wall: noticed.wall + 1_000, mono: noticed.mono + 1_000 };
            let actions = joiner.wake(false, later);
            let [WarmupAction::Call(WarmupCall { away_ms: 302_000, .. })] = actions[..] else { panic!("{actions:?}") };
        }
    }

    #[test]
    fn a_node_that_may_not_send_yet_calls_as_soon_as_it_may() {
        let mut joiner = Joiner::new(Box::new(|bytes| bytes.copy_from_slice(&7_u64.to_le_bytes())));
        let at = |mono| Now { wall: START + mono, mono };
        joiner.feed_up("feed".into(), at(1_000));
        // Longer than three calls and their answers take.
        for mono in (1_000..21_000).step_by(50) {
            assert!(joiner.wake(true, at(mono)).is_empty());
            assert!(joiner.next_wake().is_some_and(|due| due > mono), "it would be woken all the time");
        }
        let may = at(21_000);
        assert!(joiner.next_wake().is_some_and(|due| due <= may.mono + CALL_WITHIN_MS));
        let actions = joiner.wake(false, at(may.mono + CALL_WITHIN_MS));
        assert!(matches!(actions[..], [WarmupAction::Call(_)]), "{actions:?}");
    }
}
