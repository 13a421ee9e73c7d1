//! What a test reads off a running world or asks its nodes, and a message that it hands one of them by itself.

use std::collections::BTreeSet;

use resumed::internals::envelope::EpochId;
use resumed::internals::farm::{Ask, Reply};
use resumed::internals::keys::Ring;
use resumed::internals::node::{Identity, Input};
use resumed::internals::proto::payload::Kind;
use resumed::internals::routes::Via;

use super::host::START;
use super::world::{FARM, World};

/// The boot id of a node that is not simulated.
const ASKER: [u8; 16] = [9; 16];

impl World {
    pub fn leaders(&self) -> Vec<usize> {
        (0..self.hosts.len()).filter(|index| self.hosts[*index].is_leader()).collect()
    }

    pub fn running(&self) -> impl Iterator<Item = usize> {
        (0..self.hosts.len()).filter(|index| self.hosts[*index].core.is_some())
    }

    pub fn ring(&self, index: usize) -> &Ring {
        self.hosts[index].held().expect("it runs").ring()
    }

    pub fn rings(&self) -> BTreeSet<[u8; 8]> {
        self.running().map(|index| self.ring(index).fingerprint(START + self.t)).collect()
    }

    pub fn generations(&self, index: usize) -> Vec<u64> {
        self.ring(index).keys().iter().map(|key| key.generation).collect()
    }

    pub fn is_on_its_own(&self, index: usize) -> bool {
        self.hosts[index].farm().expect("it runs").is_on_its_own()
    }

    /// The epoch keys that the running nodes take for the leader's.
    pub fn epochs(&self) -> BTreeSet<EpochId> {
        self.running().filter_map(|index| self.epoch(index)).collect()
    }

    /// The floor and the session floor that a node holds.
    pub fn floors(&self, index: usize) -> (u64, u64) {
        (self.ring(index).floor(), self.ring(index).sessions_from())
    }

    /// Hands a node a message of a node that is not simulated, sealed as the node opens it.
    pub fn hand(&mut self, to: usize, kind: Kind, via: Via) {
        let identity = Identity { farm: FARM.into(), node: "asker".into(), boot_id: ASKER };
        let route = match via {
            Via::Inbox => self.hosts[to].link.map(|link| self.links[link].inbox.clone()).expect("it is connected"),
            Via::Lease => self.names.leader.clone(),
            Via::Federated => self.names.keys.clone(),
            Via::Feed => unreachable!("sessions are not simulated"),
        };
        let envelope = self.sealed_by(identity, to, route, kind);
        self.take_in(to, via, &envelope);
    }

    /// The nodes that lead, with the lease or without.
    pub fn leading(&self) -> Vec<usize> {
        (0..self.hosts.len()).filter(|index| self.hosts[*index].leads()).collect()
    }

    /// Asks a node, and gives it five seconds for the answer.
    pub fn answer(&mut self, index: usize, ask: Ask) -> Reply {
        let id = self.sequence_of_asks();
        self.give(index, Input::Ask { id, ask, user: String::new() });
        self.run_for(5_000);
        let reply = self.hosts[index].replies.iter().find(|(asked, _)| *asked == id);
        reply.unwrap_or_else(|| panic!("node{index} was not answered {ask:?}")).1.clone()
    }

    /// Where a leader is, as broker `from` sees it.
    pub fn seat_led(&self, from: usize) -> Option<u32> {
        self.led_by(from).map(|(_, seat)| seat.number())
    }

    /// Every running node is shown whichever is asked, and each names the leader.
    pub fn assert_all_are_shown(&mut self, leader: usize) {
        let (name, running) = (self.hosts[leader].name.clone(), self.running().collect::<Vec<_>>());
        for asked in running.clone() {
            let reply = self.answer(asked, Ask::Status);
            let Reply::Members { leader, members } = reply else { panic!("node{asked}: {reply:?}") };
            assert_eq!(leader, name, "as node{asked} was told");
            let names: BTreeSet<_> = members.iter().map(|member| &member.name).collect();
            assert_eq!(names, running.iter().map(|index| &self.hosts[*index].name).collect());
            assert!(members.iter().all(|member| member.in_step), "{members:?}");
        }
    }

    /// What a revocation that the operator of `index` asked for with that id came to: the floors.
    pub fn revoked(&self, index: usize, id: u64) -> (u64, u64) {
        let replies = &self.hosts[index].replies;
        let Some((_, Reply::Revoked { floor, sessions_from })) = replies.iter().find(|(asked, _)| *asked == id) else {
            panic!("{replies:?}")
        };
        (*floor, *sessions_from)
    }

    pub fn active(&self, index: usize) -> Option<u64> {
        self.hosts[index].held().expect("it runs").active(self.now(index)).map(|key| key.generation)
    }

    pub fn assert_one_farm(&self, context: &str) {
        assert_eq!(self.leaders().len(), 1, "{context}: leaders {:?}", self.leaders());
        let rings: Vec<_> = self.running().map(|index| (index, self.generations(index))).collect();
        assert_eq!(self.rings().len(), 1, "{context}: rings {rings:?}");
        assert_eq!(self.epochs().len(), 1, "{context}: epochs {:x?}", self.epochs());
        for index in self.running() {
            assert!(self.active(index).is_some(), "{context}: node{index} holds no key that seals");
        }
    }
}
