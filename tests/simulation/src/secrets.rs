//! Farm secrets on the hosts, and the steps in which an operator changes them, one host after the other.
//!
//! A host's files are at a step: at 0 it has secret 0 alone, at 1 secret 1 is there too, at 2 secret 1 seals, at 3 secret 0 is
//! gone; and so on with the next secret. Two nodes open each other's messages as long as they are one step apart at most.

use std::sync::Arc;

use resumed::internals::farm::LocalState;
use resumed::internals::node::Input;
use resumed::internals::proto;
use resumed::{FarmSecret, Secrets};

use super::World;
use super::host::Host;

/// Steps of one change.
pub const STEPS: u32 = 3;

/// The secrets that a host has at `step`, the one that seals first.
fn numbers(step: u32) -> Vec<u32> {
    let (old, new) = (step / STEPS, step / STEPS + 1);
    match step % STEPS {
        0 => vec![old],
        1 => vec![old, new],
        _ => vec![new, old],
    }
}

/// The same, as a node reads them from its files.
pub fn secrets(step: u32) -> Arc<Secrets> {
    let secret = |number: u32| {
        let byte = 7 + u8::try_from(number).expect("few changes");
        FarmSecret::from_bytes(&[byte; 32]).expect("a secret")
    };
    let all = numbers(step).into_iter().map(secret).collect();
    Arc::new(Secrets::new(all).expect("one or two, which differ"))
}

fn ids(step: u32) -> Vec<Vec<u8>> {
    secrets(step).ids().map(|id| id.to_vec()).collect()
}

impl Host {
    /// The secret that the node seals with.
    pub fn seals_with(&self) -> u32 {
        numbers(self.secrets_loaded)[0]
    }

    /// Whether the node opens what is sealed with that secret.
    pub fn opens_with(&self, secret: u32) -> bool {
        numbers(self.secrets_loaded).contains(&secret)
    }

    /// The process has just been started: it reads what is there.
    pub fn load_secrets(&mut self) {
        self.secrets_loaded = self.secrets_on_disk;
        let secrets = secrets(self.secrets_loaded);
        self.secrets.send_if_modified(|last| {
            let changed = !last.ids().eq(secrets.ids());
            *last = secrets;
            changed
        });
        self.local = LocalState { secret_ids: ids(self.secrets_loaded), ..LocalState::default() };
    }

    /// How far a change has come here: what the process has, or will have when it starts.
    pub fn secrets_step(&self) -> u32 {
        if self.core.is_some() { self.secrets_loaded } else { self.secrets_on_disk }
    }
}

impl World {
    /// Whether two nodes open each other's messages, as far as farm secrets go.
    pub fn share_secrets(&self, a: usize, b: usize) -> bool {
        let (a, b) = (&self.hosts[a], &self.hosts[b]);
        a.opens_with(b.seals_with()) && b.opens_with(a.seals_with())
    }

    /// An operator puts the files of that step on a host, and has its daemon read them. One that stands still does so later.
    pub fn put_secrets(&mut self, index: usize, step: u32) {
        let before = std::mem::replace(&mut self.hosts[index].secrets_on_disk, step);
        if before == step {
            return;
        }
        self.say(|world| format!("{} has secrets {:?} on disk", world.hosts[index].name, numbers(step)));
        self.secrets_moved_at = self.t;
        self.read_secrets(index);
    }

    /// The daemon reads its secrets again, if they have changed and it runs.
    pub fn read_secrets(&mut self, index: usize) {
        let host = &self.hosts[index];
        if host.core.is_none() || host.stopped.is_some() || host.secrets_loaded == host.secrets_on_disk {
            return;
        }
        let shared: Vec<bool> = (0..self.hosts.len()).map(|other| self.share_secrets(index, other)).collect();
        let step = host.secrets_on_disk;
        let reload = proto::LastReload { at: self.now(index).wall, refused: String::new() };
        let host = &mut self.hosts[index];
        host.secrets_loaded = step;
        // What seals hears of it by itself, what opens by the core.
        host.secrets.send_replace(secrets(step));
        host.local = LocalState { secret_ids: ids(step), reload, ..std::mem::take(&mut host.local) };
        self.secrets_moved_at = self.t;
        self.reloads += 1;
        self.say(|world| format!("{} reads secrets {:?}", world.hosts[index].name, numbers(step)));
        self.part(index, &shared);
        self.give(index, Input::Secrets(secrets(step)));
        self.tell_of_host(index);
    }

    /// A node has other secrets now: it and those with whom it shares one no longer, or again, have to join anew.
    fn part(&mut self, index: usize, shared: &[bool]) {
        for other in (0..self.hosts.len()).filter(|other| *other != index) {
            if !(shared[other] && self.share_secrets(index, other)) && self.hosts[other].core.is_some() {
                self.disturb(index);
                self.disturb(other);
            }
        }
        self.ledger.unsettled = true;
    }

    /// The daemon tells the core what reports are to say of its host.
    pub fn tell_of_host(&mut self, index: usize) {
        if self.hosts[index].core.is_some() && self.hosts[index].stopped.is_none() {
            let local = self.hosts[index].local.clone();
            self.give(index, Input::Local(local));
        }
    }
}
