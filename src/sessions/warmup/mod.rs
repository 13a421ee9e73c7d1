//! Who hands its sessions on to a node that lacks them: two state machines, one for each side.
//!
//! ```text
//! joiner ── call, to the pod ──► everybody         who could?
//! joiner ◄── offers ──────────── everybody         ready, busy, or lacking sessions too
//! joiner ── request ───────────► one donor         begin; so many chunks
//! joiner ◄── chunks ──────────── donor             tombstones, then sessions, oldest first
//! joiner ── request ───────────► donor             so many were taken, so many more; or: again, or: done
//! ```
//!
//! The donor itself is the lock: it serves one joiner at a time, whoever leads, and tells others that it is busy. A
//! request says in absolute numbers what was taken and what may be sent, so a lost or repeated one does no harm. Chunks
//! are taken in order; behind a gap the donor sends again. A donor that falls silent is replaced by another offer, or
//! after another call; what was taken stays.

pub(super) mod donation;

use std::collections::{HashMap, VecDeque};
use std::fmt;

use prost::Message;

use super::{Donation, Position, Store};
use crate::clock::Now;
use crate::proto::payload::Kind;
use crate::proto::{Warmup, WarmupCall, WarmupOffer, WarmupRequest, WarmupState};
use crate::random::Randomness;

/// Chunks that may be under way to a joiner. With chunks of 32 KiB that is 1 MiB: what live sessions may have to wait
/// behind in the feed, some ten milliseconds of work, and at the donor's rate enough for a round trip of 23 ms.
const WINDOW: u64 = 32;
/// A joiner asks for more when so many of the chunks that it granted were taken.
const GRANT_EVERY: u64 = 8;

/// The first call comes within so long after the feed came up: after a broker's restart everybody calls.
const CALL_WITHIN_MS: u64 = 300;
/// How long a call waits for offers. They cost nobody anything, so it is short.
const OFFERS_WITHIN_MS: u64 = 250;
/// The pause before another call, and what is added at random.
const CALL_AGAIN_MS: u64 = 1_000;
const CALL_JITTER_MS: u64 = 500;
/// So many calls to which no node answers that has all sessions, or will have them soon: then nobody has.
const CALLS: u32 = 3;

/// Without a chunk for so long, a joiner repeats its request.
const NUDGE_MS: u64 = 1_000;
/// Without a chunk for so long, a donor is replaced.
const SILENT_MS: u64 = 3_000;
/// Without a request for so long, a donor takes the joiner for gone: longer than the joiner's own patience.
const GONE_MS: u64 = 5_000;

/// How often it is noted that the feed lives.
const LOOK_EVERY_MS: u64 = 5_000;
/// A node that did not look for so long was frozen or suspended. Its feed may have ended at the beginning of that, but
/// the news of it comes within so long after the end.
const STALLED_MS: u64 = 10_000;
const NEWS_WITHIN_MS: u64 = 30_000;

/// Bytes a second that a donor sends at most: a quarter of a gigabit, which leaves the rest to the live feed, and a
/// million sessions of 200 bytes in about eight seconds.
pub const RATE: u64 = 32 << 20;
/// What a donor may send at once after a pause: timers are no finer than a millisecond, in which it may send 32 KiB.
const BURST: u64 = 256 << 10;

/// Knocks of one node, calls or requests that begin something, that are answered at once, and how much time must pass
/// for each one more. An honest joiner knocks twice a second at most.
const KNOCKS: u64 = 8;
const KNOCK_EVERY_MS: u64 = 250;
/// So many nodes' knocks are remembered; beyond that the farm's own size is the flood.
const MAX_KNOCKERS: usize = 4_096;
/// Offers that a joiner looks at: one of a thousand nodes is as good as another.
const MAX_OFFERS: usize = 1_024;
/// Ids of earlier calls and warm-ups: what still comes for them is late, not unasked for.
const REMEMBERED: usize = 16;

/// Who sent a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The node's name.
    pub node: String,
    /// Random for each start.
    pub boot_id: [u8; 16],
}

/// What is to be done.
#[allow(clippy::large_enum_variant, reason = "a few at a time, and each is handed on at once")]
#[derive(Debug)]
pub enum Action {
    /// Publish to the pod's sessions exchange.
    Call(WarmupCall),
    /// Publish straight to a session feed.
    Send {
        /// The queue.
        feed: String,
        /// What.
        kind: Kind,
    },
    /// Something worth a log line or a counter.
    Note(Note),
}

/// What the machines noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A donor was asked to begin.
    Begins {
        /// The donor.
        donor: String,
        /// What it said that it would send.
        entries: u64,
    },
    /// All that the donor had was taken.
    WarmedUp {
        /// The last donor.
        donor: String,
        /// Sessions that it sent, and those before it.
        sessions: u64,
        /// Tombstones, likewise.
        tombstones: u64,
        /// Milliseconds since the first donor was asked.
        took_ms: u64,
    },
    /// Nobody in the pod has anything that this node lacks.
    NothingToGet,
    /// A donor fell silent or took another joiner; what it sent stays.
    DonorLost {
        /// The donor.
        donor: String,
        /// Why.
        reason: &'static str,
    },
    /// This node warms another one up.
    Donates {
        /// The joiner.
        to: String,
        /// About how many sessions and tombstones.
        entries: u64,
    },
    /// That came to its end.
    Donated {
        /// The joiner.
        to: String,
        /// Sessions sent.
        sessions: u64,
        /// Tombstones sent.
        tombstones: u64,
        /// Why it ended.
        reason: &'static str,
    },
    /// A message was not acted on.
    Refused {
        /// The sender.
        node: String,
        /// The counted reason.
        reason: &'static str,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begins { donor, entries } => write!(f, "being warmed up by {donor}: about {entries} entries"),
            Self::WarmedUp { donor, sessions, tombstones, took_ms } => {
                write!(f, "warmed up by {donor}: {sessions} sessions and {tombstones} tombstones in {took_ms} ms")
            }
            Self::NothingToGet => write!(f, "nobody in the pod has sessions that this node lacks"),
            Self::DonorLost { donor, reason } => write!(f, "{donor} warms this node up no longer: {reason}"),
            Self::Donates { to, entries } => write!(f, "warming up {to}: about {entries} entries"),
            Self::Donated { to, sessions, tombstones, reason } => {
                write!(f, "sent {to} {sessions} sessions and {tombstones} tombstones: {reason}")
            }
            Self::Refused { node, reason } => write!(f, "refused a message of {node}: {reason}"),
        }
    }
}

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
enum State {
    /// Nothing is lacking, or there is no feed.
    Idle,
    Waiting {
        call_at: u64,
        calls: u32,
    },
    Calling {
        id: u64,
        calls: u32,
        decide_at: u64,
        offers: Vec<Offer>,
    },
    Receiving(Receiving),
}

#[derive(Clone, Debug)]
struct Offer {
    peer: Peer,
    feed: String,
    entries: u64,
    state: WarmupState,
}

#[derive(Debug)]
struct Receiving {
    id: u64,
    donor: Offer,
    /// Other nodes that were ready.
    others: Vec<Offer>,
    taken: u64,
    credit: u64,
    /// Nothing behind `taken` is asked for again twice, unless it is late.
    asked_again: bool,
    heard_at: u64,
    nudge_at: u64,
}

/// The side of the node that lacks sessions. A node that has just started lacks everything.
pub struct Joiner {
    random: Randomness,
    feed: Option<String>,
    /// When the feed was last taken for alive.
    looked_at: Option<Now>,
    /// When that was before the node stalled, and until when it matters.
    stalled: Option<(Now, u64)>,
    lack: Option<Lack>,
    state: State,
    /// Of calls and warm-ups that are over.
    former: VecDeque<u64>,
    /// The donor that fell silent last: asked again only if there is no other.
    avoid: Option<[u8; 16]>,
    /// Since when this warm-up runs, over all its donors, and what it brought.
    begun_at: Option<u64>,
    sessions: u64,
    tombstones: u64,
    out: Vec<Action>,
}

impl Joiner {
    /// A node that lacks everything and has no feed yet.
    #[must_use]
    pub fn new(random: Randomness) -> Self {
        Self {
            random,
            feed: None,
            looked_at: None,
            stalled: None,
            lack: Some(Lack::Everything),
            state: State::Idle,
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
        (self.looked_at, self.stalled) = (Some(now), None);
        if self.lack.is_some() {
            let call_at = now.mono + self.below(CALL_WITHIN_MS);
            self.state = State::Waiting { call_at, calls: 0 };
        }
    }

    /// The session feed is gone, and what the pod makes from now on is missed; if the node stalled, from then on.
    pub fn feed_down(&mut self, now: Now) {
        self.look(now);
        self.feed = None;
        let lost_at = match self.stalled {
            Some((before, until)) if now.mono < until => before,
            _ => now,
        };
        self.lack.get_or_insert(Lack::Since(lost_at));
        self.leave();
        self.state = State::Idle;
    }

    /// Whether this node lacks sessions; then it is no donor to be preferred.
    #[must_use]
    pub fn lacks(&self) -> bool {
        self.lack.is_some()
    }

    /// Whether a donor is sending what this node lacks.
    #[must_use]
    pub fn is_receiving(&self) -> bool {
        matches!(self.state, State::Receiving(_))
    }

    /// An offer came. Its feed is a feed of this pod.
    pub fn offered(&mut self, peer: Peer, offer: WarmupOffer, now: Now) -> Vec<Action> {
        let state = offer.state();
        match &mut self.state {
            State::Calling { id, offers, .. } if *id == offer.id => {
                if offers.len() < MAX_OFFERS && offers.iter().all(|other| other.peer != peer) {
                    offers.push(Offer { peer, feed: offer.feed, entries: offer.entries, state });
                }
            }
            State::Receiving(receiving) if receiving.id == offer.id => {
                if receiving.donor.peer != peer {
                    self.refuse(peer, "warmup_unasked");
                } else if state != WarmupState::Ready {
                    self.replace_donor("it is busy", now);
                }
            }
            _ if self.former.contains(&offer.id) => {}
            _ => self.refuse(peer, "warmup_unasked"),
        }
        std::mem::take(&mut self.out)
    }

    /// A chunk came. If it is the next one it is to be taken in, which the first value says; [`Self::taken`] follows.
    pub fn chunk(&mut self, peer: &Peer, chunk: &Warmup, now: Now) -> (bool, Vec<Action>) {
        let mut next = false;
        match &mut self.state {
            State::Receiving(receiving) if receiving.id == chunk.id && receiving.donor.peer == *peer => {
                if chunk.number == 0 || chunk.number > receiving.credit {
                    self.refuse(peer.clone(), "warmup_over_credit");
                } else if chunk.number == receiving.taken + 1 {
                    next = true;
                } else if chunk.number > receiving.taken {
                    // One before it is lost: all behind that come again.
                    receiving.heard_at = now.mono;
                    if !std::mem::replace(&mut receiving.asked_again, true) {
                        self.request(true, false, now);
                    }
                }
            }
            _ if self.former.contains(&chunk.id) => {}
            _ => self.refuse(peer.clone(), "warmup_unasked"),
        }
        (next, std::mem::take(&mut self.out))
    }

    /// The chunk that was next has been taken in.
    pub fn taken(&mut self, sessions: u64, tombstones: u64, last: bool, now: Now) -> Vec<Action> {
        let State::Receiving(receiving) = &mut self.state else { return Vec::new() };
        self.sessions += sessions;
        self.tombstones += tombstones;
        receiving.taken += 1;
        receiving.asked_again = false;
        receiving.heard_at = now.mono;
        receiving.nudge_at = now.mono + NUDGE_MS;
        if last {
            let donor = receiving.donor.peer.node.clone();
            self.request(false, true, now);
            self.leave();
            let took_ms = now.mono.saturating_sub(self.begun_at.unwrap_or(now.mono));
            let (sessions, tombstones) = (self.sessions, self.tombstones);
            self.content();
            self.note(Note::WarmedUp { donor, sessions, tombstones, took_ms });
        } else if receiving.taken + WINDOW >= receiving.credit + GRANT_EVERY {
            receiving.credit = receiving.taken + WINDOW;
            self.request(false, false, now);
        }
        std::mem::take(&mut self.out)
    }

    /// Time has passed. `blocked`: nothing can be sent now, so silence says nothing.
    pub fn wake(&mut self, blocked: bool, now: Now) -> Vec<Action> {
        self.look(now);
        match &mut self.state {
            State::Waiting { call_at, .. } if blocked => *call_at = (*call_at).max(now.mono + CALL_WITHIN_MS / 2),
            State::Waiting { call_at, calls } if now.mono >= *call_at => {
                let calls = *calls;
                self.call(calls, now);
            }
            State::Calling { decide_at, .. } if now.mono >= *decide_at => self.decide(now),
            State::Receiving(receiving) => {
                if blocked {
                    receiving.heard_at = now.mono;
                    receiving.nudge_at = now.mono + NUDGE_MS;
                } else if now.mono.saturating_sub(receiving.heard_at) >= SILENT_MS {
                    self.replace_donor("it fell silent", now);
                } else if now.mono >= receiving.nudge_at {
                    receiving.nudge_at = now.mono + NUDGE_MS;
                    self.request(true, false, now);
                }
            }
            _ => {}
        }
        std::mem::take(&mut self.out)
    }

    /// Monotonic milliseconds at which [`Self::wake`] is due; none without a feed.
    #[must_use]
    pub fn next_wake(&self) -> Option<u64> {
        let look_at = self.looked_at.filter(|_| self.feed.is_some()).map(|looked| looked.mono + LOOK_EVERY_MS);
        let due = match &self.state {
            State::Idle => None,
            State::Waiting { call_at, .. } => Some(*call_at),
            State::Calling { decide_at, .. } => Some(*decide_at),
            State::Receiving(receiving) => Some(receiving.nudge_at.min(receiving.heard_at + SILENT_MS)),
        };
        due.into_iter().chain(look_at).min()
    }

    /// Notes that the node runs, and whether it stood still before.
    fn look(&mut self, now: Now) {
        let Some(looked_at) = self.looked_at.filter(|_| self.feed.is_some()) else { return };
        if since(looked_at, now) >= STALLED_MS {
            self.stalled = Some((looked_at, now.mono + NEWS_WITHIN_MS));
        }
        self.looked_at = Some(now);
    }

    fn call(&mut self, calls: u32, now: Now) {
        let (Some(feed), Some(lack)) = (self.feed.clone(), self.lack) else { return };
        let id = self.number();
        self.state =
            State::Calling { id, calls: calls + 1, decide_at: now.mono + OFFERS_WITHIN_MS, offers: Vec::new() };
        self.out.push(Action::Call(WarmupCall { id, feed, away_ms: lack.away_ms(now) }));
    }

    fn decide(&mut self, now: Now) {
        let State::Calling { calls, offers, .. } = &mut self.state else { return };
        let (calls, offers) = (*calls, std::mem::take(offers));
        let of = |state| offers.iter().filter(move |offer| offer.state == state).cloned().collect::<Vec<_>>();
        let (ready, lacking) = (of(WarmupState::Ready), of(WarmupState::Lacking));
        let busy = offers.iter().any(|offer| offer.state == WarmupState::Busy);
        self.leave();
        if ready.iter().any(|offer| offer.entries > 0) {
            self.choose(ready, now);
        } else if busy {
            // Whoever is busy has sessions, and will be free.
            self.wait(0, now);
        } else if !ready.is_empty() {
            self.nothing_to_get();
        } else if calls < CALLS {
            self.wait(calls, now);
        } else if lacking.iter().any(|offer| offer.entries > 0) {
            self.choose(lacking, now);
        } else {
            self.nothing_to_get();
        }
    }

    /// Asks one of those who have about the most; two joiners that choose alike find out at the donor.
    fn choose(&mut self, mut offers: Vec<Offer>, now: Now) {
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
        self.note(Note::Begins { donor: donor.peer.node.clone(), entries: donor.entries });
        self.begun_at.get_or_insert(now.mono);
        self.state = State::Receiving(Receiving {
            id: self.number(),
            donor,
            others: offers,
            taken: 0,
            credit: WINDOW,
            asked_again: false,
            heard_at: now.mono,
            nudge_at: now.mono + NUDGE_MS,
        });
        self.request(false, false, now);
    }

    fn replace_donor(&mut self, reason: &'static str, now: Now) {
        let State::Receiving(receiving) = &mut self.state else { return };
        let (donor, others) = (receiving.donor.peer.clone(), std::mem::take(&mut receiving.others));
        self.avoid = Some(donor.boot_id);
        self.leave();
        self.note(Note::DonorLost { donor: donor.node, reason });
        if others.is_empty() {
            self.wait(0, now);
        } else {
            self.choose(others, now);
        }
    }

    fn request(&mut self, again: bool, done: bool, now: Now) {
        let (State::Receiving(receiving), Some(feed), Some(lack)) = (&self.state, &self.feed, self.lack) else {
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
        let action = Action::Send { feed: receiving.donor.feed.clone(), kind: Kind::WarmupRequest(request) };
        self.out.push(action);
    }

    fn wait(&mut self, calls: u32, now: Now) {
        let call_at = now.mono + CALL_AGAIN_MS + self.below(CALL_JITTER_MS);
        self.state = State::Waiting { call_at, calls };
    }

    fn nothing_to_get(&mut self) {
        self.content();
        self.note(Note::NothingToGet);
    }

    /// Nothing is lacking any more.
    fn content(&mut self) {
        self.state = State::Idle;
        self.lack = None;
        self.avoid = None;
        self.begun_at = None;
        (self.sessions, self.tombstones) = (0, 0);
    }

    /// Remembers the id of a state that is about to end.
    fn leave(&mut self) {
        let id = match &self.state {
            State::Calling { id, .. } => *id,
            State::Receiving(receiving) => receiving.id,
            State::Idle | State::Waiting { .. } => return,
        };
        if self.former.len() == REMEMBERED {
            self.former.pop_front();
        }
        self.former.push_back(id);
    }

    fn refuse(&mut self, peer: Peer, reason: &'static str) {
        self.note(Note::Refused { node: peer.node, reason });
    }

    fn note(&mut self, note: Note) {
        self.out.push(Action::Note(note));
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

/// When a donor has something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// [`Donor::next_chunk`] now.
    Now,
    /// [`Donor::due`] again at these monotonic milliseconds.
    At(u64),
    /// Not before another request.
    Never,
}

/// The side of the node that has sessions: one warm-up at a time.
pub struct Donor {
    feed: Option<String>,
    running: Option<Running>,
    /// For each node how many knocks it has left, and since when.
    knocks: HashMap<[u8; 16], (u64, u64)>,
    /// Bytes that may be sent, and since when. Below zero after a chunk that was larger than what was left.
    allowance: i64,
    allowed_at: u64,
    out: Vec<Action>,
}

#[derive(Debug)]
struct Running {
    peer: Peer,
    id: u64,
    feed: String,
    donation: Donation,
    position: Position,
    sent: u64,
    credit: u64,
    /// Where the chunks begin that were sent and not taken yet: at most a window of them.
    under_way: VecDeque<Position>,
    last: bool,
    asked_at: u64,
    sessions: u64,
    tombstones: u64,
}

impl Default for Donor {
    fn default() -> Self {
        Self {
            feed: None,
            running: None,
            knocks: HashMap::new(),
            allowance: BURST as i64,
            allowed_at: 0,
            out: Vec::new(),
        }
    }
}

impl Donor {
    /// The session feed is up, under that name.
    pub fn feed_up(&mut self, feed: String) {
        self.feed = Some(feed);
    }

    /// The session feed is gone, and with it the joiner's way to ask for more.
    pub fn feed_down(&mut self) -> Vec<Action> {
        self.feed = None;
        self.end("this node lost the broker");
        std::mem::take(&mut self.out)
    }

    /// A call came from `peer`. Its feed is a feed of this pod.
    pub fn called(&mut self, peer: &Peer, call: &WarmupCall, joiner: &Joiner, store: &Store, now: Now) -> Vec<Action> {
        if self.knocked(peer, now) {
            let state = match () {
                () if self.running.as_ref().is_some_and(|running| running.peer != *peer) => WarmupState::Busy,
                () if joiner.is_receiving() => WarmupState::Busy,
                () if joiner.lacks() => WarmupState::Lacking,
                () => WarmupState::Ready,
            };
            let entries = store.donation(away(call.away_ms), now).entries;
            self.offer(call.id, call.feed.clone(), entries, state);
        }
        std::mem::take(&mut self.out)
    }

    /// A request came from `peer`. Its feed is a feed of this pod.
    pub fn asked(&mut self, peer: Peer, request: WarmupRequest, store: &Store, now: Now) -> Vec<Action> {
        match &mut self.running {
            Some(running) if running.id == request.id && running.peer == peer => {
                let taken = request.taken;
                if taken > running.sent || taken + (running.under_way.len() as u64) < running.sent {
                    // Neither under way nor just taken: an earlier request that came late, or nonsense.
                    return Vec::new();
                }
                running.asked_at = now.mono;
                while running.sent - (running.under_way.len() as u64) < taken {
                    running.under_way.pop_front();
                }
                running.credit = running.credit.max(request.credit.min(taken.saturating_add(WINDOW)));
                if request.again
                    && let Some(lost) = running.under_way.front()
                {
                    running.position = *lost;
                    running.sent = taken;
                    running.last = false;
                    running.under_way.clear();
                }
                if request.done || (running.last && running.sent == taken) {
                    self.end("done");
                }
            }
            // What it asked for before, it has given up.
            running if running.as_ref().is_none_or(|running| running.peer == peer) => {
                if request.done || !self.knocked(&peer, now) {
                    return std::mem::take(&mut self.out);
                }
                if request.taken > 0 {
                    // Forgotten here, for want of requests: let it begin anew.
                    self.offer(request.id, request.feed, 0, WarmupState::Busy);
                    return std::mem::take(&mut self.out);
                }
                self.end("it asked anew");
                let donation = store.donation(away(request.away_ms), now);
                self.out.push(Action::Note(Note::Donates { to: peer.node.clone(), entries: donation.entries }));
                self.running = Some(Running {
                    peer,
                    id: request.id,
                    feed: request.feed,
                    position: donation.start,
                    donation,
                    sent: 0,
                    credit: request.credit.min(WINDOW),
                    under_way: VecDeque::new(),
                    last: false,
                    asked_at: now.mono,
                    sessions: 0,
                    tombstones: 0,
                });
            }
            _ => {
                if !request.done && self.knocked(&peer, now) {
                    self.offer(request.id, request.feed, 0, WarmupState::Busy);
                }
            }
        }
        std::mem::take(&mut self.out)
    }

    /// Whether a chunk may be sent. Ends a warm-up whose joiner is gone. `blocked`: the broker takes no messages now.
    pub fn due(&mut self, blocked: bool, now: Now) -> (Due, Vec<Action>) {
        let Some(running) = &mut self.running else { return (Due::Never, Vec::new()) };
        if blocked {
            running.asked_at = now.mono;
            return (Due::At(now.mono + 100), Vec::new());
        }
        let gone_at = running.asked_at + GONE_MS;
        if now.mono >= gone_at {
            self.end("it asks for no more");
            return (Due::Never, std::mem::take(&mut self.out));
        }
        if running.last || running.sent >= running.credit {
            return (Due::At(gone_at), Vec::new());
        }
        let earned = now.mono.saturating_sub(self.allowed_at).min(1_000) * RATE / 1_000;
        self.allowance = self.allowance.saturating_add_unsigned(earned).min(BURST as i64);
        self.allowed_at = now.mono;
        if self.allowance > 0 {
            return (Due::Now, Vec::new());
        }
        let wait = self.allowance.unsigned_abs() * 1_000 / RATE + 1;
        (Due::At(now.mono + wait), Vec::new())
    }

    /// The next chunk, of about `chunk_bytes`, if [`Self::due`] said so.
    pub fn next_chunk(&mut self, store: &Store, chunk_bytes: usize, now: Now) -> Option<Action> {
        let running = self.running.as_mut()?;
        let (mut chunk, position) = store.donate(&running.donation, running.position, chunk_bytes, now);
        running.under_way.push_back(running.position);
        running.position = position;
        running.sent += 1;
        running.last = chunk.last;
        running.sessions += chunk.entries.len() as u64;
        running.tombstones += chunk.tombstones.len() as u64;
        (chunk.id, chunk.number) = (running.id, running.sent);
        self.allowance = self.allowance.saturating_sub_unsigned(chunk.encoded_len() as u64);
        Some(Action::Send { feed: running.feed.clone(), kind: Kind::Warmup(chunk) })
    }

    /// Whether a warm-up runs.
    #[must_use]
    pub fn is_donating(&self) -> bool {
        self.running.is_some()
    }

    fn offer(&mut self, id: u64, to: String, entries: u64, state: WarmupState) {
        let Some(feed) = self.feed.clone() else { return };
        let offer = WarmupOffer { id, feed, entries, state: state.into() };
        self.out.push(Action::Send { feed: to, kind: Kind::WarmupOffer(offer) });
    }

    fn end(&mut self, reason: &'static str) {
        let Some(Running { peer, sessions, tombstones, .. }) = self.running.take() else { return };
        self.out.push(Action::Note(Note::Donated { to: peer.node, sessions, tombstones, reason }));
    }

    /// Counts a knock of `peer`; whether it is to be answered.
    fn knocked(&mut self, peer: &Peer, now: Now) -> bool {
        let full = |since: u64| now.mono.saturating_sub(since) >= KNOCKS * KNOCK_EVERY_MS;
        if self.knocks.len() >= MAX_KNOCKERS {
            self.knocks.retain(|_, (_, since)| !full(*since));
        }
        if self.knocks.len() >= MAX_KNOCKERS && !self.knocks.contains_key(&peer.boot_id) {
            return false;
        }
        let (left, since) = self.knocks.entry(peer.boot_id).or_insert((KNOCKS, now.mono));
        let more = now.mono.saturating_sub(*since) / KNOCK_EVERY_MS;
        *left = left.saturating_add(more).min(KNOCKS);
        *since += more * KNOCK_EVERY_MS;
        let answered = *left > 0;
        *left = left.saturating_sub(1);
        if !answered {
            let node = peer.node.clone();
            self.out.push(Action::Note(Note::Refused { node, reason: "warmup_flood" }));
        }
        answered
    }
}

fn away(ms: u64) -> Option<std::time::Duration> {
    (ms > 0).then(|| std::time::Duration::from_millis(ms))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::LazyLock;
    use std::time::Duration;

    use bytes::Bytes;

    use super::super::samples::plain;
    use super::super::{Removals, SessionId, StoreSettings};
    use super::*;
    use crate::proto::{SessionBatch, SessionEntry, SessionFormat};

    const START: u64 = 1_700_000_000_000;
    const CHUNK: usize = 4 << 10;

    fn id(number: u64) -> SessionId {
        SessionId::try_from(&[&number.to_be_bytes()[..], &[0x5a; 24]].concat()[..]).unwrap()
    }

    fn entry(number: u64, removed: bool) -> SessionEntry {
        static SAMPLE: LazyLock<Bytes> = LazyLock::new(|| plain(id(0).as_bytes(), START / 1000, 7_200, 1));
        let id = id(number);
        let mut session = Vec::new();
        if !removed {
            session.extend_from_slice(&SAMPLE);
            let at = session.windows(32).position(|bytes| bytes == super::tests::id(0).as_bytes()).unwrap();
            session[at..at + 32].copy_from_slice(id.as_bytes());
        }
        SessionEntry { id: id.as_bytes().to_vec().into(), session: session.into(), at: 0 }
    }

    /// A node as the daemon makes one of the machines and a store.
    struct Node {
        joiner: Joiner,
        donor: Donor,
        store: Store,
        feed: Option<String>,
        notes: Vec<Note>,
        chunks: u64,
    }

    /// Nodes on one broker that delivers everything a millisecond later.
    struct World {
        t: u64,
        nodes: Vec<Node>,
        /// When, from whom, to which feed, what.
        under_way: VecDeque<(u64, usize, String, Kind)>,
        /// Chunks of these numbers are lost once, by (donor, number).
        lost: BTreeSet<(usize, u64)>,
        /// Most warm-ups that one donor was seen to run, and most donors at a time.
        most_donors: usize,
        most_under_way: u64,
    }

    impl World {
        fn new(nodes: usize) -> Self {
            let mut world = Self {
                t: 100_000,
                nodes: Vec::new(),
                under_way: VecDeque::new(),
                lost: BTreeSet::new(),
                most_donors: 0,
                most_under_way: 0,
            };
            for _ in 0..nodes {
                world.add();
            }
            world
        }

        /// A node without a feed that lacks everything.
        fn add(&mut self) -> usize {
            let mut state = self.nodes.len() as u64 + 1;
            let random = move |bytes: &mut [u8]| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                bytes.copy_from_slice(&(state >> 16).to_le_bytes());
            };
            let settings = StoreSettings {
                max_bytes: 64 << 20,
                max_session_bytes: 16 << 10,
                removals: Removals::Replicate,
                tombstone_for: Duration::from_secs(600),
            };
            self.nodes.push(Node {
                joiner: Joiner::new(Box::new(random)),
                donor: Donor::default(),
                store: Store::new(settings),
                feed: None,
                notes: Vec::new(),
                chunks: 0,
            });
            self.nodes.len() - 1
        }

        fn now(&self) -> Now {
            Now { wall: START + self.t, mono: self.t }
        }

        fn peer(index: usize) -> Peer {
            Peer { node: format!("n{index}"), boot_id: [index as u8; 16] }
        }

        fn link(&mut self, index: usize, up: bool) {
            let now = self.now();
            let feed = up.then(|| format!("feed{index}-{}", self.t));
            let node = &mut self.nodes[index];
            let actions = node.donor.feed_down();
            node.joiner.feed_down(now);
            node.feed.clone_from(&feed);
            if let Some(feed) = feed {
                node.donor.feed_up(feed.clone());
                node.joiner.feed_up(feed, now);
            }
            self.carry_out(index, actions);
        }

        fn carry_out(&mut self, from: usize, actions: Vec<Action>) {
            for action in actions {
                match action {
                    Action::Note(note) => self.nodes[from].notes.push(note),
                    Action::Call(call) => {
                        for to in (0..self.nodes.len()).filter(|to| *to != from) {
                            if let Some(feed) = self.nodes[to].feed.clone() {
                                let kind = Kind::WarmupCall(call.clone());
                                self.under_way.push_back((self.t + 1, from, feed, kind));
                            }
                        }
                    }
                    Action::Send { feed, kind } => self.under_way.push_back((self.t + 1, from, feed, kind)),
                }
            }
        }

        fn deliver(&mut self, from: usize, to: usize, kind: Kind) {
            let (now, peer) = (self.now(), Self::peer(from));
            let node = &mut self.nodes[to];
            let actions = match kind {
                Kind::WarmupCall(call) => node.donor.called(&peer, &call, &node.joiner, &node.store, now),
                Kind::WarmupOffer(offer) => node.joiner.offered(peer, offer, now),
                Kind::WarmupRequest(request) => node.donor.asked(peer, request, &node.store, now),
                Kind::Warmup(chunk) => {
                    node.chunks += 1;
                    let (next, mut actions) = node.joiner.chunk(&peer, &chunk, now);
                    if next {
                        let (sessions, tombstones) = (chunk.entries.len() as u64, chunk.tombstones.len() as u64);
                        let last = chunk.last;
                        let _applied = node.store.warm(chunk, now);
                        let _buried = node.store.bury(now);
                        actions.extend(node.joiner.taken(sessions, tombstones, last, now));
                    }
                    actions
                }
                other => panic!("{other:?}"),
            };
            self.carry_out(to, actions);
        }

        fn step(&mut self) {
            self.t += 1;
            let now = self.now();
            while let Some((at, ..)) = self.under_way.front()
                && *at <= self.t
            {
                let (_, from, feed, kind) = self.under_way.pop_front().unwrap();
                if let Kind::Warmup(chunk) = &kind
                    && self.lost.remove(&(from, chunk.number))
                {
                    continue;
                }
                if let Some(to) = self.nodes.iter().position(|node| node.feed.as_ref() == Some(&feed)) {
                    self.deliver(from, to, kind);
                }
            }
            for index in 0..self.nodes.len() {
                if self.nodes[index].feed.is_none() {
                    continue;
                }
                let actions = self.nodes[index].joiner.wake(false, now);
                self.carry_out(index, actions);
                loop {
                    let node = &mut self.nodes[index];
                    let (due, actions) = node.donor.due(false, now);
                    let chunk = (due == Due::Now).then(|| node.donor.next_chunk(&node.store, CHUNK, now)).flatten();
                    self.carry_out(index, actions);
                    let Some(chunk) = chunk else { break };
                    self.carry_out(index, vec![chunk]);
                }
                if self.t.is_multiple_of(100) {
                    let _swept = self.nodes[index].store.sweep(now);
                }
            }
            let running = self.nodes.iter().filter(|node| node.donor.is_donating()).count();
            self.most_donors = self.most_donors.max(running);
            for node in &self.nodes {
                let under_way = node.donor.running.as_ref().map_or(0, |running| running.under_way.len() as u64);
                self.most_under_way = self.most_under_way.max(under_way);
            }
        }

        fn run_for(&mut self, ms: u64) {
            for _ in 0..ms {
                self.step();
            }
        }

        /// Until no node lacks anything; returns how long that took.
        fn settle(&mut self) -> u64 {
            let start = self.t;
            let lacks = |node: &Node| node.feed.is_some() && node.joiner.lacks();
            while self.nodes.iter().any(lacks) {
                assert!(self.t < start + 60_000, "somebody lacks sessions still: {:#?}", self.notes());
                self.step();
            }
            self.t - start
        }

        fn notes(&self) -> Vec<&[Note]> {
            self.nodes.iter().map(|node| &node.notes[..]).collect()
        }

        fn make(&self, index: usize, numbers: std::ops::Range<u64>, removed: bool) {
            let entries = numbers.map(|number| entry(number, removed)).collect();
            let batch = SessionBatch { entries, format: SessionFormat::OpensslDer.into() };
            let applied = self.nodes[index].store.remote(batch, self.now());
            assert!(applied.dropped.is_empty(), "{:?}", applied.dropped);
        }

        fn donor_of(&self, index: usize) -> Vec<String> {
            let begins = |note: &Note| match note {
                Note::Begins { donor, .. } => Some(donor.clone()),
                _ => None,
            };
            self.nodes[index].notes.iter().filter_map(begins).collect()
        }
    }

    /// `nodes` nodes that have all the sessions `numbers` and lack nothing.
    fn settled(nodes: usize, numbers: std::ops::Range<u64>) -> World {
        let mut world = World::new(nodes);
        for index in 0..nodes {
            world.link(index, true);
        }
        world.settle();
        for index in 0..nodes {
            world.make(index, numbers.clone(), false);
            world.nodes[index].notes.clear();
        }
        world
    }

    #[test]
    fn a_node_that_joins_late_gets_every_session_and_every_tombstone_and_nothing_that_was_removed() {
        let mut world = settled(2, 0..5_000);
        for index in 0..2 {
            world.make(index, 100..400, true);
        }
        let joiner = world.add();
        world.link(joiner, true);
        world.settle();
        let store = &world.nodes[joiner].store;
        assert_eq!((store.len(), store.tombstones()), (4_700, 300));
        let [Note::Begins { .. }, Note::WarmedUp { sessions: 4_700, tombstones: 300, .. }] =
            world.nodes[joiner].notes[..]
        else {
            panic!("{:?}", world.notes())
        };
        world.run_for(5);
        assert!(world.nodes.iter().all(|node| !node.donor.is_donating()), "the donor is free at once");
        assert!(world.most_under_way <= WINDOW);
    }

    #[test]
    fn two_joiners_at_once_get_two_donors() {
        let mut world = settled(2, 0..20_000);
        let joiners = [world.add(), world.add()];
        for joiner in joiners {
            world.link(joiner, true);
        }
        world.settle();
        for joiner in joiners {
            assert_eq!(world.nodes[joiner].store.len(), 20_000);
        }
        assert_eq!(world.most_donors, 2);
        let last = |joiner: usize| world.donor_of(joiner).last().cloned();
        assert_ne!(last(joiners[0]), last(joiners[1]), "{:?}", world.notes());
    }

    #[test]
    fn many_joiners_wait_for_their_turn_where_there_is_one_donor() {
        let mut world = settled(1, 0..20_000);
        let joiners: Vec<usize> = (0..4).map(|_| world.add()).collect();
        for joiner in &joiners {
            world.link(*joiner, true);
        }
        world.settle();
        for joiner in &joiners {
            assert_eq!(world.nodes[*joiner].store.len(), 20_000, "{:?}", world.notes());
        }
        // One who was warmed up first may warm up the next; but none ever served two at once, which a second
        // `Donates` before a `Donated` would show.
        for node in &world.nodes {
            let mut running = 0;
            for note in &node.notes {
                running += match note {
                    Note::Donates { .. } => 1,
                    Note::Donated { .. } => -1,
                    _ => 0,
                };
                assert!((0..=1).contains(&running), "{:?}", node.notes);
            }
        }
    }

    #[test]
    fn an_interrupted_donor_is_replaced_and_what_it_sent_stays() {
        let mut world = settled(2, 0..30_000);
        let joiner = world.add();
        world.link(joiner, true);
        while world.nodes[joiner].store.len() < 10_000 {
            world.step();
        }
        let first = (0..2).find(|index| world.nodes[*index].donor.is_donating()).unwrap();
        let had = world.nodes[joiner].store.len();
        world.link(first, false);
        let took = world.settle();
        assert_eq!(world.nodes[joiner].store.len(), 30_000);
        assert!(had >= 10_000 && took < SILENT_MS + 2_000, "{took} ms");
        assert_eq!(world.donor_of(joiner), [format!("n{first}"), format!("n{}", 1 - first)]);
        let lost = Note::DonorLost { donor: format!("n{first}"), reason: "it fell silent" };
        assert!(world.nodes[joiner].notes.contains(&lost), "{:?}", world.notes());
    }

    #[test]
    fn lost_chunks_are_sent_again_and_the_last_one_too() {
        let mut world = settled(1, 0..5_000);
        let joiner = world.add();
        world.link(joiner, true);
        let mut whole = settled(1, 0..5_000);
        let other = whole.add();
        whole.link(other, true);
        whole.settle();
        let last = whole.nodes[other].chunks;
        assert!(last > 2 * WINDOW, "{last} chunks");
        world.lost.extend([1, 2, 40, last].map(|number| (0, number)));
        world.settle();
        assert!(world.lost.is_empty(), "{:?}", world.lost);
        assert_eq!(world.nodes[joiner].store.len(), 5_000);
        assert_eq!(world.donor_of(joiner).len(), 1, "nobody had to be replaced: {:?}", world.notes());
    }

    #[test]
    fn a_donor_keeps_to_the_credit_and_to_its_rate() {
        let mut world = settled(1, 0..30_000);
        let (joiner, now) = (World::peer(9), world.now());
        let request = |taken, credit| WarmupRequest { id: 7, feed: "f".into(), taken, credit, ..Default::default() };
        let Node { donor, store, .. } = &mut world.nodes[0];
        let send = |donor: &mut Donor, now: Now| {
            let mut bytes = 0;
            let mut chunks = 0;
            while donor.due(false, now).0 == Due::Now {
                let Some(Action::Send { kind: Kind::Warmup(chunk), .. }) = donor.next_chunk(store, CHUNK, now) else {
                    panic!("no chunk")
                };
                (bytes, chunks) = (bytes + chunk.encoded_len() as u64, chunks + 1);
            }
            (chunks, bytes)
        };
        let _began = donor.asked(joiner.clone(), request(0, 5), store, now);
        assert_eq!(send(donor, now).0, 5);
        // Whatever the joiner grants, no more than a window is under way.
        let _more = donor.asked(joiner.clone(), request(0, u64::MAX), store, now);
        assert_eq!(send(donor, now).0, WINDOW - 5);
        // An old request takes nothing back, one about chunks that were never sent does nothing.
        let _old = donor.asked(joiner.clone(), request(0, 1), store, now);
        let _odd = donor.asked(joiner.clone(), request(1_000, 2_000), store, now);
        assert_eq!(send(donor, now).0, 0);
        // With all the credit in the world, the rate remains.
        let (mut sent, mut taken) = (0, WINDOW);
        for ms in 1..=500 {
            let now = Now { wall: now.wall + ms, mono: now.mono + ms };
            let _more = donor.asked(joiner.clone(), request(taken, taken + WINDOW), store, now);
            let (chunks, bytes) = send(donor, now);
            (sent, taken) = (sent + bytes, taken + chunks);
            assert!(sent <= RATE * ms / 1_000 + BURST + CHUNK as u64, "{sent} bytes in {ms} ms");
        }
        // Silence: the joiner is gone.
        let late = Now { wall: now.wall + 500 + GONE_MS, mono: now.mono + 500 + GONE_MS };
        assert_eq!(donor.due(false, late).0, Due::Never);
        assert!(!donor.is_donating());
    }

    #[test]
    fn chunks_that_are_late_or_that_nobody_asked_for_change_nothing() {
        let mut world = settled(2, 0..30_000);
        let joiner = world.add();
        world.link(joiner, true);
        while !world.nodes[joiner].joiner.is_receiving() {
            world.step();
        }
        let State::Receiving(Receiving { id, donor, .. }) = &world.nodes[joiner].joiner.state else { unreachable!() };
        let (id, donor) = (*id, donor.peer.clone());
        let now = world.now();
        let chunk = |id, number| Warmup { id, number, ..Default::default() };
        let machine = &mut world.nodes[joiner].joiner;
        for (peer, chunk, reason) in [
            (&World::peer(8), chunk(id, 1), "warmup_unasked"),
            (&donor, chunk(id + 1, 1), "warmup_unasked"),
            (&donor, chunk(id, 0), "warmup_over_credit"),
            (&donor, chunk(id, u64::MAX), "warmup_over_credit"),
        ] {
            let (next, actions) = machine.chunk(peer, &chunk, now);
            assert!(!next);
            let [Action::Note(Note::Refused { reason: said, .. })] = &actions[..] else { panic!("{actions:?}") };
            assert_eq!(*said, reason);
        }
        let offer = WarmupOffer { id: id + 1, ..Default::default() };
        let actions = machine.offered(World::peer(8), offer, now);
        assert!(matches!(actions[..], [Action::Note(Note::Refused { reason: "warmup_unasked", .. })]), "{actions:?}");
        world.settle();
        // It is over: what still comes for it is late, and nobody's fault.
        let (next, actions) = world.nodes[joiner].joiner.chunk(&donor, &chunk(id, 3), now);
        assert!(!next && actions.is_empty(), "{actions:?}");
        assert_eq!(world.nodes[joiner].store.len(), 30_000);
    }

    #[test]
    fn a_node_that_was_away_gets_what_it_missed_and_forgets_what_was_removed() {
        let mut world = settled(2, 0..5_000);
        world.run_for(60_000);
        world.link(1, false);
        world.make(0, 5_000..5_100, false);
        world.make(0, 10..30, true);
        world.run_for(20_000);
        let before = world.nodes[1].chunks;
        world.link(1, true);
        world.settle();
        let store = &world.nodes[1].store;
        assert_eq!((store.len(), store.tombstones()), (5_080, 20));
        let [.., Note::WarmedUp { sessions, tombstones: 20, .. }] = world.nodes[1].notes[..] else {
            panic!("{:?}", world.notes())
        };
        assert!(sessions < 200 && world.nodes[1].chunks - before < 10, "{sessions} sessions to bring 100");
    }

    #[test]
    fn a_node_that_stood_still_asks_for_what_was_made_since_then() {
        for (still, wall) in [(300_000, 300_000), (5, 300_000)] {
            let mut joiner = Joiner::new(Box::new(|bytes| bytes.fill(0)));
            let at = |mono, wall| Now { wall: START + wall, mono: 1_000 + mono };
            joiner.feed_up("one".to_owned(), at(0, 0));
            joiner.content();
            for second in 1..=100 {
                let _idle = joiner.wake(false, at(second * 1_000, second * 1_000));
            }
            assert_eq!(joiner.next_wake(), Some(1_000 + 100_000 + LOOK_EVERY_MS));
            // The timer may go off before the broken connection is noticed.
            let thawed = at(100_000 + still, 100_000 + wall);
            let _idle = joiner.wake(false, thawed);
            let noticed = Now { wall: thawed.wall + 1_000, mono: thawed.mono + 1_000 };
            joiner.feed_down(noticed);
            joiner.feed_up("two".to_owned(), noticed);
            let later = Now { wall: noticed.wall + 1_000, mono: noticed.mono + 1_000 };
            let actions = joiner.wake(false, later);
            let [Action::Call(WarmupCall { away_ms: 302_000, .. })] = actions[..] else { panic!("{actions:?}") };
        }
    }

    #[test]
    fn nodes_that_start_together_give_up_after_three_calls_and_serve_each_other_then() {
        let mut world = World::new(5);
        for index in 0..5 {
            world.link(index, true);
        }
        let took = world.settle();
        assert!(took < u64::from(CALLS) * (CALL_AGAIN_MS + CALL_JITTER_MS + OFFERS_WITHIN_MS), "{took} ms");
        assert!(world.nodes.iter().all(|node| node.notes == [Note::NothingToGet]), "{:?}", world.notes());
        // What is live meanwhile is handed on by whoever has most, though it has all the same called itself.
        let mut world = World::new(2);
        world.link(0, true);
        world.link(1, true);
        world.make(0, 0..1_000, false);
        world.settle();
        assert_eq!(world.nodes[1].store.len(), 1_000, "{:?}", world.notes());
    }

    #[test]
    fn a_flood_of_calls_and_requests_of_one_node_is_counted_and_left_unanswered() {
        let mut world = settled(1, 0..100);
        let (peer, now) = (World::peer(9), world.now());
        let node = &mut world.nodes[0];
        let call = WarmupCall { id: 1, feed: "f".into(), away_ms: 0 };
        let mut offers = 0;
        let mut floods = 0;
        for _ in 0..100 {
            for action in node.donor.called(&peer, &call, &node.joiner, &node.store, now) {
                match action {
                    Action::Send { .. } => offers += 1,
                    Action::Note(Note::Refused { reason: "warmup_flood", .. }) => floods += 1,
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!((offers, floods), (KNOCKS, 100 - KNOCKS));
        // Nobody else pays for it, and neither does it for ever.
        assert_eq!(node.donor.called(&World::peer(8), &call, &node.joiner, &node.store, now).len(), 1);
        let later = Now { wall: now.wall + 1_000, mono: now.mono + 1_000 };
        let [Action::Send { .. }] = node.donor.called(&peer, &call, &node.joiner, &node.store, later)[..] else {
            panic!("no offer a second later")
        };
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
        assert!(matches!(actions[..], [Action::Call(_)]), "{actions:?}");
    }
}
