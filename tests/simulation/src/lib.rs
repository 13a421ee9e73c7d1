//! A deterministic simulator: the real state machines, rings and envelopes of whole farms around a broker with
//! RabbitMQ's semantics, driven through faults by a seed.
//!
//! [`World`] carries out what the machines decide, as the daemon's driver does, and checks the invariants of `docs/testing.md`
//! at every step. [`script`] turns a seed into a farm and its faults, [`sweep`] runs many seeds. Nothing depends on
//! anything but the seed, except the bytes of the salts, which no decision looks at.

pub mod attacker;
pub mod broker;
pub mod faults;
pub mod host;
pub mod invariants;
pub mod large_farm;
pub mod observe;
pub mod random;
pub mod script;
pub mod secrets;
pub mod sites;
pub mod sweep;
pub mod world;

pub use world::World;
