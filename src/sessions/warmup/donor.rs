//! The side of a node that has sessions: it serves one joiner at a time.

use std::collections::VecDeque;
use std::time::Duration;

use prost::Message;

use super::donation::{Donation, Position};
use super::limiter::{Admission, RequestLimiter, SendRate};
use super::{DonationEnd, Joiner, PodNode, WINDOW, WarmupAction, WarmupNote};
use crate::clock::Now;
use crate::proto::payload::Kind;
use crate::proto::{WarmupCall, WarmupOffer, WarmupRequest, WarmupState};
use crate::reason::Reason;
use crate::sessions::Store;

/// Without a request for so long, a donor takes the joiner for gone: longer than the joiner's own patience.
pub(super) const GONE_MS: u64 = 5_000;

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
#[derive(Default)]
pub struct Donor {
    feed: Option<String>,
    running: Option<Running>,
    requests: RequestLimiter,
    rate: SendRate,
    out: Vec<WarmupAction>,
}

/// A warm-up under way.
#[derive(Debug)]
struct Running {
    peer: PodNode,
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

impl Running {
    fn new(peer: PodNode, request: WarmupRequest, donation: Donation, now: Now) -> Self {
        Self {
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
        }
    }

    /// Whether `taken` is under way or was just taken; else its request came late, or is nonsense.
    fn is_recent(&self, taken: u64) -> bool {
        taken <= self.sent && taken + self.under_way.len() as u64 >= self.sent
    }

    /// The joiner has taken the first `taken` chunks and grants so many in all; of those, no more than a window is under way.
    fn go_on(&mut self, taken: u64, credit: u64, now: Now) {
        self.asked_at = now.mono;
        while self.sent - (self.under_way.len() as u64) < taken {
            self.under_way.pop_front();
        }
        self.credit = self.credit.max(credit.min(taken.saturating_add(WINDOW)));
    }

    /// The chunks behind `taken` are lost: they are read again.
    fn go_back_to(&mut self, taken: u64) {
        let Some(lost) = self.under_way.front() else { return };
        self.position = *lost;
        self.sent = taken;
        self.last = false;
        self.under_way.clear();
    }
}

impl Donor {
    /// The session feed is up, under that name.
    pub fn feed_up(&mut self, feed: String) {
        self.feed = Some(feed);
    }

    /// The session feed is gone, and with it the joiner's way to ask for more.
    pub(crate) fn feed_down(&mut self) -> Vec<WarmupAction> {
        self.feed = None;
        self.end(DonationEnd::FeedLost);
        std::mem::take(&mut self.out)
    }

    /// A call came from `peer`. Its feed is a feed of this pod.
    pub fn on_call(
        &mut self,
        peer: &PodNode,
        call: &WarmupCall,
        joiner: &Joiner,
        store: &Store,
        now: Now,
    ) -> Vec<WarmupAction> {
        if self.admits(peer, now) {
            let state = match () {
                () if self.running.as_ref().is_some_and(|running| running.peer != *peer) => WarmupState::Busy,
                () if joiner.is_receiving() => WarmupState::Busy,
                () if joiner.lacks() => WarmupState::Lacking,
                () => WarmupState::Ready,
            };
            let entries = store.donation(away(call.away_ms), now).entries;
            self.send_offer(call.id, call.feed.clone(), entries, state);
        }
        std::mem::take(&mut self.out)
    }

    /// A request came from `peer`. Its feed is a feed of this pod.
    pub fn on_request(&mut self, peer: PodNode, request: WarmupRequest, store: &Store, now: Now) -> Vec<WarmupAction> {
        match &self.running {
            Some(running) if running.id == request.id && running.peer == peer => self.on_progress(&request, now),
            // What the same node asked for before, it has given up.
            Some(running) if running.peer != peer => self.on_request_while_busy(&peer, request, now),
            _ => self.on_first_request(peer, request, store, now),
        }
        std::mem::take(&mut self.out)
    }

    fn on_progress(&mut self, request: &WarmupRequest, now: Now) {
        let taken = request.taken;
        let Some(running) = self.running.as_mut().filter(|running| running.is_recent(taken)) else { return };
        running.go_on(taken, request.credit, now);
        if request.again {
            running.go_back_to(taken);
        }
        if request.done || (running.last && running.sent == taken) {
            self.end(DonationEnd::Done);
        }
    }

    fn on_first_request(&mut self, peer: PodNode, request: WarmupRequest, store: &Store, now: Now) {
        if request.done || !self.admits(&peer, now) {
            return;
        }
        if request.taken > 0 {
            // Forgotten here, for want of requests: let it begin anew.
            self.send_offer(request.id, request.feed, 0, WarmupState::Busy);
            return;
        }
        self.end(DonationEnd::AskedAnew);
        let donation = store.donation(away(request.away_ms), now);
        self.note(WarmupNote::Donates { to: peer.node.clone(), entries: donation.entries });
        self.running = Some(Running::new(peer, request, donation, now));
    }

    fn on_request_while_busy(&mut self, peer: &PodNode, request: WarmupRequest, now: Now) {
        if !request.done && self.admits(peer, now) {
            self.send_offer(request.id, request.feed, 0, WarmupState::Busy);
        }
    }

    /// Whether a chunk may be sent. Ends a warm-up whose joiner is gone. `blocked`: the broker takes no messages now.
    pub fn due(&mut self, blocked: bool, now: Now) -> (Due, Vec<WarmupAction>) {
        let Some(running) = &mut self.running else { return (Due::Never, Vec::new()) };
        if blocked {
            running.asked_at = now.mono;
            return (Due::At(now.mono + 100), Vec::new());
        }
        let gone_at = running.asked_at + GONE_MS;
        if now.mono >= gone_at {
            self.end(DonationEnd::JoinerSilent);
            return (Due::Never, std::mem::take(&mut self.out));
        }
        if running.last || running.sent >= running.credit {
            return (Due::At(gone_at), Vec::new());
        }
        let due = match self.rate.wait_ms(now) {
            0 => Due::Now,
            wait => Due::At(now.mono + wait),
        };
        (due, Vec::new())
    }

    /// The next chunk, of about `chunk_bytes`, if [`Self::due`] said so.
    pub fn next_chunk(&mut self, store: &Store, chunk_bytes: usize, now: Now) -> Option<WarmupAction> {
        let running = self.running.as_mut()?;
        let (mut chunk, position) = store.donate(&running.donation, running.position, chunk_bytes, now);
        running.under_way.push_back(running.position);
        running.position = position;
        running.sent += 1;
        running.last = chunk.last;
        running.sessions += chunk.entries.len() as u64;
        running.tombstones += chunk.tombstones.len() as u64;
        (chunk.id, chunk.number) = (running.id, running.sent);
        self.rate.spend(chunk.encoded_len());
        Some(WarmupAction::Send { feed: running.feed.clone(), kind: Kind::Warmup(chunk) })
    }

    /// Whether a warm-up runs.
    #[cfg(test)]
    pub(super) fn is_donating(&self) -> bool {
        self.running.is_some()
    }

    /// How many chunks were sent and not taken yet.
    #[cfg(test)]
    pub(super) fn under_way(&self) -> u64 {
        self.running.as_ref().map_or(0, |running| running.under_way.len() as u64)
    }

    fn send_offer(&mut self, id: u64, to: String, entries: u64, state: WarmupState) {
        let Some(feed) = self.feed.clone() else { return };
        let offer = WarmupOffer { id, feed, entries, state: state.into() };
        self.out.push(WarmupAction::Send { feed: to, kind: Kind::WarmupOffer(offer) });
    }

    fn end(&mut self, reason: DonationEnd) {
        let Some(Running { peer, sessions, tombstones, .. }) = self.running.take() else { return };
        self.note(WarmupNote::Donated { to: peer.node, sessions, tombstones, reason });
    }

    /// Whether a call or a first request of `peer` is to be answered.
    fn admits(&mut self, peer: &PodNode, now: Now) -> bool {
        let admission = self.requests.admit(peer.boot_id, now);
        if admission == Admission::TooOften {
            self.note(WarmupNote::Refused { node: peer.node.clone(), reason: Reason::WarmupFlood });
        }
        admission == Admission::Granted
    }

    fn note(&mut self, note: WarmupNote) {
        self.out.push(WarmupAction::WarmupNote(note));
    }
}

fn away(ms: u64) -> Option<Duration> {
    (ms > 0).then(|| Duration::from_millis(ms))
}
