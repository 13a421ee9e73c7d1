//! What goes wrong, one at a time, and how it is put right again.

use resumed::internals::clock::millis;
use resumed::internals::proto;
use resumed::internals::proto::payload::Kind;
use resumed::internals::routes::{Route, Seat};

use super::World;
use super::broker::{Downstream, Store};
use super::host::{Host, Stopped};
use super::world::Happening;

/// Two AMQP heartbeats: a side that hears nothing for so long gives a connection up.
pub const HEARTBEATS_MS: u64 = 10_000;

impl Host {
    /// For how long the node has sent no heartbeats.
    pub fn stopped_for(&self, t: u64) -> u64 {
        match self.stopped {
            Some(Stopped::Frozen { since } | Stopped::Suspended { since }) => t - since,
            _ => 0,
        }
    }
}

impl World {
    // Nodes.

    /// The process dies. What it saved stays, and its proxy goes on.
    pub fn crash(&mut self, index: usize) {
        if self.hosts[index].core.is_none() {
            return;
        }
        self.say(|world| format!("{} crashes", world.hosts[index].name));
        self.end_process(index);
        if let Some(link) = self.hosts[index].link {
            self.close_at_node(link);
            // The kernel closes the connection, if the network lets it.
            self.upstream(link, super::broker::Upstream::Close);
        }
    }

    /// It starts again: with the ring that it saved, if it saved one, or without.
    pub fn restart(&mut self, index: usize, with_ring: bool) {
        if self.hosts[index].core.is_none() {
            self.boot(index, with_ring);
        }
    }

    /// It starts with its saved ring, on which somebody revoked every key while it was down.
    pub fn restart_revoked(&mut self, index: usize) {
        if self.hosts[index].core.is_some() {
            return;
        }
        let now = self.now(index);
        let mut held = self.hosts[index].saved_ring(now);
        let material = self.key_material();
        let key = held.revoke(material, 0, now).clone();
        self.say(|world| format!("{}: every key below {} is revoked", world.hosts[index].name, key.generation));
        self.register(key.clone());
        self.register_floor(key.generation);
        self.boot_with(index, held);
    }

    /// SIGSTOP, a suspended host, or a daemon that hangs.
    pub fn stop(&mut self, index: usize, how: Stopped) {
        if self.hosts[index].core.is_none() || self.hosts[index].stopped.is_some() {
            return;
        }
        self.say(|world| format!("{} stands still: {how:?}", world.hosts[index].name));
        self.hosts[index].stopped = Some(how);
        self.disturb(index);
        if let (Stopped::Frozen { .. } | Stopped::Suspended { .. }, Some(link)) = (how, self.hosts[index].link) {
            let at = self.t + self.random.between(HEARTBEATS_MS, HEARTBEATS_MS * 3 / 2);
            self.plan(at, Happening::Heartbeats { link, cut: None, at_node: false });
        }
    }

    pub fn go_on(&mut self, index: usize) {
        let Some(how) = self.hosts[index].stopped.take() else { return };
        self.say(|world| format!("{} goes on", world.hosts[index].name));
        if let Stopped::Suspended { since } = how {
            self.hosts[index].clock.suspended_ms += self.t - since;
        }
        self.ledger.unsettled = true;
        // What comes from its host goes first.
        self.read_secrets(index);
        self.take_stashed(index);
        // Its pause ended while it stood still.
        if self.hosts[index].link.is_none() && self.hosts[index].dial.is_none() {
            self.dial(index, 0);
        }
        self.tell_of_host(index);
        if let Some(link) = self.hosts[index].link {
            self.pump(link);
        }
    }

    /// The wall clock is set to so much more than true time.
    pub fn set_clock(&mut self, index: usize, offset_ms: i64, drift_ppm: i64) {
        let t = i64::try_from(self.t).expect("a short run");
        let bound = i64::try_from(millis(self.hosts[index].settings.keys.max_clock_offset)).expect("a short time");
        let clock = &self.hosts[index].clock;
        let before = clock.offset_ms + t * clock.drift_ppm / 1_000_000;
        if before > bound && offset_ms < -bound {
            // By the clock of before it was all too old to come again, and forgotten.
            self.hosts[index].opened.clear();
        }
        let clock = &mut self.hosts[index].clock;
        clock.drift_ppm = drift_ppm;
        clock.offset_ms = offset_ms - t * drift_ppm / 1_000_000;
        self.hosts[index].standing.clock_set_at = self.t;
        self.hosts[index].standing.joined = false;
        self.ledger.unsettled = true;
        self.say(|world| format!("the clock of {} is set to {offset_ms:+} ms", world.hosts[index].name));
        self.plan(self.t, Happening::Look(index));
    }

    /// No file can be written there for so many milliseconds: the disk is full, say.
    pub fn fail_saves(&mut self, index: usize, span: u64) {
        self.say(|world| format!("{} cannot write files for {span} ms", world.hosts[index].name));
        self.hosts[index].saves_fail_until = self.t + span;
    }

    /// So many session batches come to a node under an epoch key that it lacks, one every `every` milliseconds.
    pub fn flood(&mut self, index: usize, batches: u64, every: u64) {
        self.say(|world| format!("{} gets {batches} batches of no epoch of its own", world.hosts[index].name));
        for batch in 0..batches {
            self.plan(self.t + batch * every, Happening::UnknownEpoch(index));
        }
    }

    // Networks.

    pub fn cut(&mut self, index: usize) {
        if self.hosts[index].cut.is_some() {
            return;
        }
        self.say(|world| format!("the network of {} is cut", world.hosts[index].name));
        let host = &mut self.hosts[index];
        host.cuts += 1;
        host.cut = Some(host.cuts);
        let cut = host.cut;
        self.disturb(index);
        if let Some(link) = self.hosts[index].link {
            for at_node in [false, true] {
                let at = self.t + self.random.between(HEARTBEATS_MS, HEARTBEATS_MS * 3 / 2);
                self.plan(at, Happening::Heartbeats { link, cut, at_node });
            }
        }
    }

    pub fn mend(&mut self, index: usize) {
        if self.hosts[index].cut.take().is_none() {
            return;
        }
        self.say(|world| format!("the network of {} is mended", world.hosts[index].name));
        self.ledger.unsettled = true;
        for id in 0..self.links.len() {
            let link = &mut self.links[id];
            if link.host != index || !(link.node_open || link.broker_open) {
                continue;
            }
            let (up, down) = (std::mem::take(&mut link.stalled_up), std::mem::take(&mut link.stalled_down));
            up.into_iter().for_each(|what| self.arrive(id, what));
            down.into_iter().for_each(|what| self.downstream(id, what));
            let link = &self.links[id];
            if !link.broker_open && link.node_open {
                self.downstream(id, Downstream::Closed);
            } else if !link.node_open && link.broker_open {
                self.close_at_broker(id);
            }
        }
    }

    // Brokers.

    pub fn stop_broker(&mut self, broker: usize) {
        if !self.cluster.up[broker] {
            return;
        }
        self.say(|_| format!("broker {broker} stops"));
        self.cluster.stopped(broker);
        for id in 0..self.links.len() {
            if self.links[id].broker == broker && self.links[id].broker_open {
                self.close_at_broker(id);
            }
        }
        self.ledger.unsettled = true;
    }

    pub fn start_broker(&mut self, broker: usize) {
        if !self.cluster.up[broker] {
            self.say(|_| format!("broker {broker} starts"));
            self.cluster.up[broker] = true;
            self.cluster.recovered();
            self.hand_on_what_waits();
            self.ledger.unsettled = true;
        }
    }

    /// From now on every connection is closed as soon as it is there, the present ones too; or no longer.
    pub fn drop_links(&mut self, drops: bool) {
        self.say(|_| format!("the broker {} what it accepts", if drops { "drops" } else { "keeps" }));
        self.cluster.drops = drops;
        for id in (0..self.links.len()).filter(|_| drops) {
            self.close_at_broker(id);
        }
        self.ledger.unsettled = true;
    }

    pub fn split(&mut self, alone: usize) {
        if self.cluster.up.len() > 1 && self.cluster.split.is_none() {
            self.say(|_| format!("broker {alone} is cut off from the rest of the cluster"));
            self.cluster.split = Some(alone);
            self.cluster.split_at = self.t;
            self.ledger.unsettled = true;
        }
    }

    /// The brokers see each other again. With Mnesia, where there may be two leases, one side's broker starts afresh, as
    /// `autoheal` has it.
    pub fn heal(&mut self, loser: usize) {
        if self.cluster.split.is_none() {
            return;
        }
        match self.cluster.store {
            Store::Mnesia => {
                self.say(|_| format!("the cluster is whole again, broker {loser} starts afresh"));
                self.stop_broker(loser);
                self.cluster.split = None;
                self.start_broker(loser);
            }
            Store::Khepri => {
                self.say(|_| "the cluster is whole again".to_owned());
                let alone = self.cluster.split.take();
                self.cluster.recovered();
                // What they missed comes with the next announcement or report.
                for index in 0..self.hosts.len() {
                    if self.hosts[index].link.map(|link| self.links[link].broker) == alone {
                        self.disturb(index);
                    }
                }
                self.ledger.unsettled = true;
            }
        }
    }

    pub fn block(&mut self, blocked: bool) {
        if self.cluster.blocked == blocked {
            return;
        }
        self.say(|_| format!("the broker {} publishers", if blocked { "blocks" } else { "takes messages of" }));
        self.cluster.blocked = blocked;
        self.ledger.unsettled = true;
        if !blocked {
            for id in 0..self.links.len() {
                let unread = std::mem::take(&mut self.links[id].unread);
                unread.into_iter().for_each(|what| self.arrive(id, what));
                self.pump(id);
            }
            self.hand_on_what_waits();
        }
    }

    // Bugs of the broker.

    /// The leader's queue is gone, and the leader is told or not.
    pub fn lose_lease(&mut self, with_notice: bool) {
        let (lost, rest) = std::mem::take(&mut self.cluster.leases).into_iter().partition(|queue| !queue.dead);
        self.cluster.leases = rest;
        let owners: Vec<_> = lost.into_iter().filter_map(|queue| Some((queue.owner?, queue.seat))).collect();
        self.say(|_| format!("the leader's queue vanishes, notice: {with_notice}"));
        for (owner, seat) in owners.into_iter().filter(|_| with_notice) {
            self.downstream(owner, Downstream::LeaseLost(seat));
        }
        self.ledger.unsettled = true;
    }

    /// The leader's queue gets no message through to the leader.
    pub fn silence_lease(&mut self) {
        self.say(|_| "the leader's queue goes silent".to_owned());
        self.cluster.leases.iter_mut().for_each(|queue| queue.silent = true);
        self.ledger.unsettled = true;
    }

    /// The leader's queue stays locked when its holder's connection ends.
    pub fn lock_lease(&mut self) {
        self.say(|_| "the leader's queue will stay locked".to_owned());
        self.cluster.will_stick = true;
    }

    pub fn unlock_lease(&mut self) {
        self.cluster.will_stick = false;
        self.cluster.leases.retain(|queue| queue.owner.is_some() || queue.dead);
        self.cluster.leases.iter_mut().for_each(|queue| queue.silent = false);
        self.ledger.unsettled = true;
    }

    /// The node has the lease of `seat`, if no other node has: as one that was granted it on its side of a split.
    pub fn grant(&mut self, index: usize, seat: Seat) {
        let Some(link) = self.hosts[index].link else { return };
        if let Some(answer) = self.cluster.try_lease(link, self.links[link].broker, seat) {
            self.downstream(link, Downstream::Lease(seat, Ok(answer)));
        }
        self.ledger.unsettled = true;
    }

    pub fn silence_inbox(&mut self, index: usize) {
        if let Some(link) = self.hosts[index].link {
            self.say(|world| format!("the inbox of {} goes silent", world.hosts[index].name));
            self.links[link].silent = true;
            self.disturb(index);
        }
    }

    // A member of the farm that is not honest, or not sane.

    /// The node announces and reports `ring`, which is nothing that it holds.
    pub fn poison(&mut self, index: usize, ring: proto::Ring) {
        let Some(link) = self.hosts[index].link else { return };
        // It cannot speak before it has joined.
        if self.hosts[index].stopped.is_some() || self.epoch(index).is_none() {
            return;
        }
        self.say(|world| {
            let keys: Vec<_> = ring.keys.iter().map(|key| key.generation).collect();
            format!("{} sends a poisoned ring: floor {}, keys {keys:?}", world.hosts[index].name, ring.floor)
        });
        self.register_poison(&ring);
        let inbox = self.links[link].inbox.clone();
        let announcement = proto::Announcement {
            ring: Some(ring.clone()),
            as_of: self.now(index).wall,
            fingerprint: vec![0; 8],
            members: 1,
            members_in_step: 1,
            report_every_ms: 0,
            leased: true,
            inbox: inbox.clone(),
            epoch: Vec::new(),
            seat: 0,
            sites: Vec::new(),
        };
        let report = proto::Report { inbox, fingerprint: vec![0; 8], ring: Some(ring), ..proto::Report::default() };
        self.send(link, Route::Keys, Kind::Announcement(announcement));
        self.send(link, Route::Leader(Seat::FIRST), Kind::Report(report));
    }
}
