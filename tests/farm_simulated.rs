//! The farm's state machine under a simulated broker: every run is decided by its seed alone.

mod simulation;

use std::collections::BTreeSet;
use std::env;

use resumed::farm::{Ask, Event, Note, Reply};
use resumed::keys::Ring;
use resumed::proto;

use simulation::World;
use simulation::sweep::{Sweep, explain, sweep, try_seed};
use simulation::world::{START, Setup};

const BEAT: u64 = 2_000;

/// How many seeds an ordinary run of the tests takes.
const SEEDS: u64 = 2_000;

fn farm(seed: u64, nodes: usize) -> World {
    World::new(seed, Setup::plain(nodes), false)
}

impl World {
    fn leaders(&self) -> Vec<usize> {
        (0..self.hosts.len()).filter(|index| self.hosts[*index].is_leader()).collect()
    }

    fn running(&self) -> impl Iterator<Item = usize> {
        (0..self.hosts.len()).filter(|index| self.hosts[*index].farm.is_some())
    }

    fn ring(&self, index: usize) -> &Ring {
        self.hosts[index].held().expect("it runs").ring()
    }

    fn rings(&self) -> BTreeSet<[u8; 8]> {
        self.running().map(|index| self.ring(index).fingerprint(START + self.t)).collect()
    }

    fn generations(&self, index: usize) -> Vec<u64> {
        self.ring(index).keys().iter().map(|key| key.generation).collect()
    }

    fn active(&self, index: usize) -> Option<u64> {
        self.hosts[index].held().expect("it runs").active(self.now(index)).map(|key| key.generation)
    }

    fn assert_one_farm(&self, context: &str) {
        assert_eq!(self.leaders().len(), 1, "{context}: leaders {:?}", self.leaders());
        let rings: Vec<_> = self.running().map(|index| (index, self.generations(index))).collect();
        assert_eq!(self.rings().len(), 1, "{context}: rings {rings:?}");
        for index in self.running() {
            assert!(self.active(index).is_some(), "{context}: node{index} holds no key that seals");
        }
    }
}

#[test]
fn nodes_that_start_together_elect_one_leader_and_share_one_ring() {
    for seed in 0..50 {
        let mut world = farm(seed, 5);
        world.run_for(3 * BEAT);
        world.assert_one_farm(&format!("seed {seed}"));
        let keys: Vec<_> = world.generations(0);
        assert_eq!(keys.len(), 2, "seed {seed}: one active and one next key, not {keys:?}");
    }
}

#[test]
fn a_dead_leader_is_replaced_and_no_key_is_lost() {
    for seed in 0..50 {
        let mut world = farm(seed, 4);
        world.run_for(3 * BEAT);
        let leader = world.leaders()[0];
        let before = world.generations(leader);
        world.crash(leader);
        world.run_for(2 * BEAT);
        world.assert_one_farm(&format!("seed {seed}"));
        assert_eq!(world.generations((leader + 1) % 4), before, "seed {seed}");
    }
}

#[test]
fn a_leader_that_says_farewell_is_replaced_at_once() {
    let mut world = farm(7, 4);
    world.run_for(3 * BEAT);
    let leader = world.leaders()[0];
    world.give(leader, Event::Stop);
    world.run_for(50);
    world.crash(leader);
    world.run_for(BEAT / 4);
    world.assert_one_farm("after the farewell");
}

#[test]
fn keys_rotate_for_hours_and_every_node_seals_with_the_same_key() {
    let mut world = farm(3, 3);
    world.run_for(3 * BEAT);
    let mut seen = BTreeSet::new();
    for _ in 0..200 {
        world.run_for(30_000);
        world.assert_one_farm("rotating");
        let now = world.now(0);
        let active: BTreeSet<u64> = world
            .running()
            .filter_map(|index| world.hosts[index].farm.as_ref()?.held().active(now).map(|key| key.generation))
            .collect();
        assert_eq!(active.len(), 1, "one key seals everywhere");
        seen.extend(active);
        // Next, active, three that still open, and those of the five minutes until they are erased.
        assert!(world.generations(0).len() <= 11, "old keys are erased: {:?}", world.generations(0));
    }
    assert!(seen.len() >= 95, "100 minutes at one minute a key: {} keys", seen.len());
}

#[test]
fn a_rotation_asked_for_anywhere_reaches_everybody() {
    for seed in 0..30 {
        let mut world = farm(seed, 4);
        world.run_for(3 * BEAT);
        let asker = usize::try_from(seed % 4).expect("small");
        world.give(asker, Event::Ask { id: 9, ask: Ask::Rotate });
        world.run_for(1_000);
        let replies = world.hosts[asker].replies.clone();
        let [(9, Reply::Rotating { generation, pending: false })] = replies[..] else {
            panic!("seed {seed}: {replies:?}")
        };
        world.assert_one_farm(&format!("seed {seed}"));
        // A second request while the first is pending changes nothing.
        world.give((asker + 1) % 4, Event::Ask { id: 10, ask: Ask::Rotate });
        world.run_for(500);
        let again = &world.hosts[(asker + 1) % 4].replies;
        assert_eq!(again[..], [(10, Reply::Rotating { generation, pending: true })], "seed {seed}");
        world.run_for(2_000);
        let now = world.now(asker);
        let active = world.hosts[asker].farm.as_ref().and_then(|farm| farm.held().active(now));
        assert_eq!(active.map(|key| key.generation), Some(generation), "seed {seed}");
    }
}

#[test]
fn a_new_leader_shows_no_half_of_the_farm_as_the_whole() {
    for seed in 0..30 {
        let mut world = World::new(seed, Setup::plain(5), true);
        world.run_for(3 * BEAT);
        world.stop_broker(0);
        world.run_for(5_000);
        world.start_broker(0);
        let mut asked = 0;
        while world.hosts.iter().all(|node| node.replies.is_empty()) {
            asked += 1;
            for node in 0..5 {
                if world.hosts[node].link.is_some() {
                    world.give(node, Event::Ask { id: asked, ask: Ask::Status });
                }
            }
            world.run_for(20);
            world.hosts.iter_mut().for_each(|node| node.replies.retain(|(_, reply)| *reply != Reply::NoLeader));
            assert!(asked < 500, "seed {seed}: nobody ever answered");
        }
        let reply = world.hosts.iter().find_map(|node| node.replies.first()).expect("one answered");
        let (_, Reply::Members { members, .. }) = reply else { panic!("seed {seed}: {reply:?}") };
        assert!(
            members.len() >= 4,
            "seed {seed}: {} of 5 nodes shown as the farm\n{}",
            members.len(),
            world.story().join("\n")
        );
    }
}

#[test]
fn a_node_without_broker_and_ring_starts_alone_and_merges_later() {
    let mut world = farm(11, 3);
    world.stop_broker(0);
    world.run_for(15_000);
    for index in 0..3 {
        assert_eq!(world.generations(index).len(), 1, "node{index} minted for itself");
    }
    world.start_broker(0);
    world.run_for(3 * BEAT);
    world.assert_one_farm("after the broker came");
    assert!(world.generations(0).len() >= 3, "everybody's keys still open: {:?}", world.generations(0));
}

#[test]
fn a_farm_without_a_lease_to_be_had_still_rotates() {
    let mut world = farm(5, 4);
    world.run_for(3 * BEAT);
    let leader = world.leaders()[0];
    world.lock_lease();
    world.crash(leader);
    world.run_for(13 * BEAT);
    assert_eq!(world.leaders(), [] as [usize; 0], "nobody can hold the lease");
    world.run_for(180_000);
    assert_eq!(world.rings().len(), 1, "one ring without a lease");
    let acting: usize =
        world.hosts.iter().map(|node| node.notes.iter().filter(|note| **note == Note::ActsAlone).count()).sum();
    assert!(acting >= 1, "somebody announces without the lease");
    world.unlock_lease();
    world.run_for(6 * BEAT);
    world.assert_one_farm("after the lease could be had again");
}

#[test]
fn a_broker_that_blocks_publishers_costs_nobody_the_lead_or_a_link() {
    let mut world = farm(17, 4);
    world.run_for(3 * BEAT);
    let (leader, links) = (world.leaders()[0], world.hosts.iter().map(|node| node.links).collect::<Vec<_>>());
    world.block(true);
    world.run_for(30 * BEAT);
    assert_eq!(world.leaders(), [leader], "while the broker blocks");
    world.block(false);
    world.run_for(2 * BEAT);
    world.assert_one_farm("after the broker took messages again");
    assert_eq!(world.leaders(), [leader], "after the broker took messages again");
    assert_eq!(world.hosts.iter().map(|node| node.links).collect::<Vec<_>>(), links, "links were renewed");
}

#[test]
fn a_leader_whose_clock_the_farm_disagrees_with_gives_up_the_lease() {
    let mut world = farm(2, 4);
    world.run_for(3 * BEAT);
    let leader = world.leaders()[0];
    world.set_clock(leader, -3_600_000, 0);
    world.run_for(15 * BEAT);
    assert!(!world.leaders().contains(&leader), "the skewed node still leads");
    assert_eq!(world.leaders().len(), 1);
}

#[test]
fn a_node_that_may_not_lead_never_does() {
    let mut setup = Setup::plain(3);
    for index in [0, 2] {
        setup.hosts[index].can_lead = false;
    }
    let mut world = World::new(13, setup, false);
    world.run_for(3 * BEAT);
    assert_eq!(world.leaders(), [1]);
    world.crash(1);
    world.run_for(30 * BEAT);
    assert_eq!(world.leaders(), [] as [usize; 0]);
}

#[test]
fn a_key_asked_for_of_a_new_leader_is_everywhere_before_it_seals() {
    // The new leader has an answer to give to every node. The key must not wait for all of them to be written out.
    for seed in 0..10 {
        let mut setup = Setup::plain(40);
        setup.latency = (10, 30);
        let mut world = World::new(seed, setup, false);
        world.run_for(5 * BEAT);
        world.crash(world.leaders()[0]);
        while world.leaders().is_empty() {
            world.run_for(10);
        }
        let leader = world.leaders()[0];
        // It has just heard from most of them.
        world.run_for(200);
        world.give(leader, Event::Ask { id: 1, ask: Ask::Rotate });
        let [(1, Reply::Rotating { generation, .. })] = world.hosts[leader].replies[..] else {
            panic!("seed {seed}: {:?}", world.hosts[leader].replies)
        };
        world.run_for(500);
        for index in world.running() {
            assert!(world.generations(index).contains(&generation), "seed {seed}: node{index} lacks the key");
        }
    }
}

#[test]
fn a_key_that_closed_before_it_came_closes_older_ones_at_every_node_alike() {
    // A member whose settings, or intentions, differ: its key opens nothing, and by order it says when older keys close.
    // Held by some and forwarded by nobody, it left the rings different for max_clock_offset.
    for seed in 0..10 {
        let mut world = farm(seed, 4);
        world.run_for(4 * BEAT);
        let wall = world.now(0).wall;
        let key = proto::TicketKey {
            name: vec![9; 16],
            hmac: vec![9; 32],
            aes: vec![9; 32],
            generation: wall,
            seal_from: wall - 60_000,
            seal_until: wall - 1,
            open_for: 0,
        };
        let sender = usize::try_from(seed % 4).expect("small");
        world.poison(sender, proto::Ring { keys: vec![key], ..Default::default() });
        world.run_for(3 * BEAT);
        world.assert_one_farm(&format!("seed {seed}"));
        world.run_for(200_000);
        world.assert_one_farm(&format!("seed {seed}, later"));
    }
}

#[test]
fn of_two_keys_of_one_name_every_node_comes_to_hold_the_same_one() {
    // One that only a follower holds has to reach the leader: the fingerprint was over names, and told no difference.
    for seed in 0..10 {
        let mut world = farm(seed, 4);
        world.run_for(4 * BEAT);
        let follower = (world.leaders()[0] + 1) % 4;
        let mut key = world.ring(follower).keys()[0].to_proto();
        key.hmac = vec![0xff; 32];
        key.generation += 1;
        world.crash(follower);
        let mut saved = world.hosts[follower].saved.clone().expect("it held keys");
        saved.ring.keys[0] = key.clone();
        world.register_poison(&proto::Ring { keys: vec![key.clone()], ..Default::default() });
        world.boot(follower, Some(saved));
        world.run_for(3 * BEAT);
        for index in 0..4 {
            let held =
                world.ring(index).keys().iter().find(|held| held.name == key.name[..]).map(|held| held.to_proto());
            assert_eq!(held, Some(key.clone()), "seed {seed}: node{index} holds the other one");
        }
    }
}

#[test]
fn the_same_seed_tells_the_same_story() {
    for seed in [1, 7, 23, 60] {
        let story = |_| simulation::script::run(seed, true).expect("it passes").story;
        let [first, second] = [0, 1].map(story);
        assert!(first.len() > 20, "seed {seed} has a story: {first:?}");
        assert_eq!(first, second, "seed {seed}");
    }
}

/// A number from the environment.
fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

/// The invariants of `docs/testing.md` under faults of every kind. `make soak` sets RESUMED_SEEDS and
/// RESUMED_FIRST_SEED, or RESUMED_SEED for one seed and its story.
#[test]
fn every_seed_keeps_the_invariants() {
    if let Some(seed) = number("RESUMED_SEED") {
        match try_seed(seed, true) {
            Ok(outcome) => println!("{}\nseed {seed} passes", outcome.story.join("\n")),
            Err(_) => panic!("{}", explain(seed)),
        }
        return;
    }
    let (first, count) = (number("RESUMED_FIRST_SEED").unwrap_or(0), number("RESUMED_SEEDS").unwrap_or(SEEDS));
    let most_failures = number("RESUMED_FAILURES").unwrap_or(5);
    let Sweep { seeds, nodes, faults, pairs_checked, attacks_refused, failures } = sweep(first, count, most_failures);
    println!(
        "{seeds} farms of {nodes} nodes in all, {faults} faults; {pairs_checked} times one node's key was looked for at \
         another; {attacks_refused} replays and forgeries were refused"
    );
    if let Some((seed, _)) = failures.first() {
        let list: Vec<_> = failures.iter().map(|(seed, what)| format!("seed {seed}: {what}")).collect();
        panic!("{}\n{} of {seeds} seeds fail:\n{}", explain(*seed), list.len(), list.join("\n"));
    }
    // Faults make exceptions; they must not make all there is.
    assert!(pairs_checked > 100 * count, "the invariants were hardly looked at: {pairs_checked}");
    assert!(attacks_refused > count, "nobody attacked: {attacks_refused}");
}
