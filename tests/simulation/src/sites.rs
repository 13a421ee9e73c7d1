//! Two sites of one farm: a broker each, which does not see the other, and between the two what RabbitMQ's federation hands
//! on from one keys exchange to the other. Each site has a leader of its own.

use super::World;
use super::broker::{Downstream, Envelope};
use super::world::Happening;
use resumed::internals::routes::Via;

/// What waits for a link between the sites is dropped after so long, as `message-ttl` has it in `docs/scaling.md`.
const HANDED_ON_WITHIN_MS: u64 = 60_000;

/// What goes from one site to the other.
#[derive(Default)]
pub struct Federation {
    pub cut: bool,
    /// Since when it is not.
    pub whole_since: u64,
    /// No earlier than this arrives what is handed on next, at each site.
    at: [u64; 2],
    /// What waits: since when, and for which broker.
    waiting: Vec<(u64, usize, Envelope)>,
}

impl World {
    /// What was published to the keys exchange of `broker` goes to the other site, too.
    pub fn hand_on(&mut self, broker: usize, envelope: &Envelope) {
        if self.setup.sites {
            let to = 1 - broker;
            let at = (self.t + self.hop()).max(self.federation.at[to]);
            self.federation.at[to] = at;
            self.plan(at, Happening::HandOn { since: self.t, to, envelope: envelope.clone() });
        }
    }

    /// It comes to the other site's exchange, and from there to every inbox; or it waits.
    pub fn handed_on(&mut self, since: u64, to: usize, envelope: Envelope) {
        if self.federation.cut || self.cluster.blocked || !self.cluster.up[to] {
            self.federation.waiting.push((since, to, envelope));
            return;
        }
        if self.t > since + HANDED_ON_WITHIN_MS {
            return;
        }
        for id in 0..self.links.len() {
            let link = &self.links[id];
            if link.broker == to && link.broker_open && !link.silent {
                self.downstream(id, Downstream::Message { via: Via::Federated, envelope: envelope.clone() });
            }
        }
    }

    /// The link between the sites may be there again: what waits for it goes on, in order.
    pub fn hand_on_what_waits(&mut self) {
        for (since, to, envelope) in std::mem::take(&mut self.federation.waiting) {
            let at = (self.t + self.hop()).max(self.federation.at[to]);
            self.federation.at[to] = at;
            self.plan(at, Happening::HandOn { since, to, envelope });
        }
        self.federation.whole_since = self.t;
    }

    pub fn cut_federation(&mut self, cut: bool) {
        if self.federation.cut == cut {
            return;
        }
        self.say(|_| format!("the link between the sites is {}", if cut { "cut" } else { "mended" }));
        self.federation.cut = cut;
        if !cut {
            self.hand_on_what_waits();
        }
    }

    /// Every site, by its broker. A cluster is one site, and broker 0 stands for it.
    pub fn sites(&self) -> std::ops::Range<usize> {
        0..if self.setup.sites { 2 } else { 1 }
    }

    /// Whether what one site's nodes seal with is known at the other: both have been led for a while, and hear each other.
    pub fn sites_are_joined(&self, span: u64) -> bool {
        let federation = &self.federation;
        let whole = !federation.cut && !self.cluster.blocked && self.cluster.up.iter().all(|up| *up);
        let led = |site: usize| self.ledger.led[site].is_some_and(|(_, since)| self.t >= since + span);
        let leader = |site: usize| self.ledger.led[site].map(|(host, _)| host);
        let share = || matches!((leader(0), leader(1)), (Some(a), Some(b)) if self.share_secrets(a, b));
        self.setup.sites && whole && self.t >= federation.whole_since + span && self.sites().all(led) && share()
    }
}
