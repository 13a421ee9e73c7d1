//! Somebody with the broker's password and no farm secret: records, replays, alters, moves. And the broker's own
//! duplicates across reconnects.

use resumed::internals::routes::Via;
use std::collections::VecDeque;

use bytes::Bytes;

use super::World;
use super::broker::{Downstream, Envelope, LinkId, Origin};
use super::random::Seeded;
use super::world::Happening;

const REMEMBERED: usize = 64;

pub struct Attacker {
    /// Of 100 envelopes, so many are abused.
    percent: u64,
    recorded: VecDeque<Envelope>,
    /// The last announcements.
    announced: VecDeque<Envelope>,
}

impl Attacker {
    pub fn new(percent: u64) -> Self {
        Self { percent, recorded: VecDeque::new(), announced: VecDeque::new() }
    }

    pub fn announced(&mut self, envelope: &Envelope) {
        if envelope.origin == Origin::Sender {
            self.announced.push_back(envelope.clone());
            keep_last(&mut self.announced, 4);
        }
    }
}

fn keep_last<T>(queue: &mut VecDeque<T>, most: usize) {
    let excess = queue.len().saturating_sub(most);
    queue.drain(..excess);
}

impl World {
    /// What passes the broker may be recorded, and something recorded be published.
    pub(super) fn attack(&mut self, broker: usize, passing: &Envelope) {
        if self.attacker.percent == 0 {
            return;
        }
        self.attacker.recorded.push_back(passing.clone());
        keep_last(&mut self.attacker.recorded, REMEMBERED);
        if !self.random.chance(self.attacker.percent) {
            return;
        }
        let recorded = &self.attacker.recorded;
        let mut envelope = recorded[self.random.index(recorded.len())].clone();
        match self.random.below(4) {
            0 => {
                envelope.body = flipped(&envelope.body, &mut self.random);
                envelope.origin = Origin::Forged;
            }
            1 => {
                let mut routes = vec![self.names.keys.clone(), self.names.leader.clone()];
                routes.extend(self.hosts.iter().filter_map(|host| Some(self.links[host.link?].inbox.clone())));
                let route = routes.swap_remove(self.random.index(routes.len()));
                let moved = route != envelope.route;
                envelope = Envelope { route, origin: if moved { Origin::Forged } else { Origin::Replay }, ..envelope };
            }
            _ => envelope.origin = Origin::Replay,
        }
        let longest = self.hosts.iter().map(|host| host.settings.keys.max_clock_offset.as_millis()).max();
        let longest = longest.and_then(|longest| u64::try_from(longest).ok()).unwrap_or_default();
        // At once, soon, or when it may just be fresh still.
        let span = self.random.pick(&[50, 5_000, 2 * longest]);
        let at = self.t + self.random.below(span);
        self.plan(at, Happening::Inject { broker, envelope });
    }

    /// A broker may hand a node on its new connection what it handed it on the old one.
    pub(super) fn repeat_announcements(&mut self, link: LinkId) {
        if !self.random.chance(30) {
            return;
        }
        for envelope in self.attacker.announced.clone() {
            let envelope = Envelope { origin: Origin::Replay, ..envelope };
            self.downstream(link, Downstream::Message { via: Via::Inbox, envelope });
        }
    }
}

fn flipped(body: &Bytes, random: &mut Seeded) -> Bytes {
    let mut bytes = body.to_vec();
    match random.below(8) {
        0 => bytes.truncate(random.index(bytes.len())),
        _ => {
            let at = random.index(bytes.len());
            bytes[at] ^= 1 << random.below(8);
        }
    }
    Bytes::from(bytes)
}
