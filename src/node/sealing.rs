//! When to draw a new salt: for every link, after a minute of use, and after a jump between wall and monotonic clock.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use crate::clock::Now;
use crate::envelope::{Epochs, SealError, Sealer, Secrets, is_sealed_without_epoch};
use crate::proto::{self, payload::Kind};
use crate::random::Randomness;

/// No salt seals for longer than this. It bounds for how long a machine that was restored from a snapshot, or is one of
/// its clones, may go on under a salt that was in the snapshot; a receiver pays with one window for each salt of the
/// last ten minutes (see [`MOST_TRACKED`](crate::envelope::MOST_TRACKED)).
const RENEW_AFTER_MS: u64 = 60 * 1000;

/// Wall and monotonic clock of a running host drift apart by less than this under one salt: time services slew both
/// alike, so what parts them is a clock that was set.
const JUMP_MS: i128 = 1_000;

/// Who seals, as every payload says it.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The farm's name.
    pub farm: String,
    /// The node's name.
    pub node: String,
    /// Random for each start.
    pub boot_id: [u8; 16],
}

/// Seals payloads of one plane on one link, under salts of at most a minute each. What that guarantees, also where a
/// virtual machine went back to a snapshot, is in [`crate::envelope`].
pub struct Sealing {
    identity: Identity,
    secrets: watch::Receiver<Arc<Secrets>>,
    epochs: watch::Receiver<Arc<Epochs>>,
    sealer: Sealer,
    random: Randomness,
    drawn_at: Now,
}

impl Sealing {
    /// Begins with a fresh salt from `random`, which gives all that follow.
    #[must_use]
    pub fn new(
        identity: Identity,
        mut secrets: watch::Receiver<Arc<Secrets>>,
        epochs: watch::Receiver<Arc<Epochs>>,
        mut random: Randomness,
        now: Now,
    ) -> Self {
        let sealer = Sealer::new(Arc::clone(&secrets.borrow_and_update()), &identity.farm, salt(&mut random));
        Self { identity, secrets, epochs, sealer, random, drawn_at: now }
    }

    /// Stamps and seals `kind` for `route`, under the epoch key that is right for it now. Call it immediately before the
    /// message is written out.
    ///
    /// # Errors
    /// [`SealError::NoEpoch`] if it may not travel without an epoch key and the node holds none; otherwise if the payload is too large for an envelope, or OpenSSL fails.
    pub fn seal(&mut self, route: &str, kind: Kind, now: Now) -> Result<Bytes, SealError> {
        if self.secrets.has_changed().unwrap_or(false) {
            self.sealer.set_secrets(Arc::clone(&self.secrets.borrow_and_update()));
        }
        if now.mono.saturating_sub(self.drawn_at.mono) >= RENEW_AFTER_MS || jumped(self.drawn_at, now) {
            self.renew_salt(now);
        }
        let payload = proto::Payload {
            node: self.identity.node.clone(),
            boot_id: self.identity.boot_id.to_vec(),
            sent_at: now.wall,
            kind: Some(kind),
        };
        let epochs = Arc::clone(&self.epochs.borrow());
        let kind = payload.kind.as_ref().expect("just set");
        let epoch = epochs.sealing(kind, now);
        if epoch.is_none() && !is_sealed_without_epoch(kind) {
            return Err(SealError::NoEpoch);
        }
        match self.sealer.seal(epoch, route, &payload) {
            Err(SealError::SaltSpent) => {
                self.renew_salt(now);
                self.sealer.seal(epoch, route, &payload)
            }
            sealed => sealed,
        }
    }

    fn renew_salt(&mut self, now: Now) {
        self.sealer.resalt(salt(&mut self.random));
        self.drawn_at = now;
    }
}

fn salt(random: &mut Randomness) -> [u8; 16] {
    let mut salt = [0; 16];
    random(&mut salt);
    salt
}

/// Whether the wall clock moved otherwise than the monotonic one.
fn jumped(since: Now, now: Now) -> bool {
    let wall = i128::from(now.wall) - i128::from(since.wall);
    let mono = i128::from(now.mono) - i128::from(since.mono);
    (wall - mono).abs() > JUMP_MS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::{EpochKey, FarmSecret, Opener};
    use crate::random::twins::{Kernel, Twin};
    use crate::random::{Mixed, system};

    fn held(epochs: u8) -> watch::Receiver<Arc<Epochs>> {
        let mut held = Epochs::new(std::time::Duration::ZERO);
        for byte in 0..epochs {
            held.lead_to(EpochKey::from_random(&[byte; 32]).expect("a key"), Now { wall: 0, mono: 0 });
        }
        watch::channel(Arc::new(held)).1
    }

    #[test]
    fn nothing_but_joins_leaves_without_an_epoch_key() {
        let secrets = Arc::new(Secrets::new(vec![FarmSecret::generate().expect("a secret")]).expect("one secret"));
        let identity = Identity { farm: "f".into(), node: "n".into(), boot_id: [1; 16] };
        let sealing =
            |epochs| Sealing::new(identity.clone(), watch::channel(Arc::clone(&secrets)).1, epochs, system(), at(0, 0));
        let epoch = |sealed: Bytes| {
            use prost::Message;
            proto::Envelope::decode(sealed).expect("an envelope").epoch.to_vec()
        };
        for kind in [Kind::Join(Default::default()), Kind::Farewell(Default::default())] {
            for epochs in [held(0), held(1)] {
                let sealed = sealing(epochs).seal("r", kind.clone(), at(0, 0)).expect("sealed");
                assert_eq!(epoch(sealed), [0; 8]);
            }
        }
        for kind in [Kind::Report(Default::default()), Kind::Sessions(Default::default())] {
            let refused = sealing(held(0)).seal("r", kind.clone(), at(0, 0));
            assert!(matches!(refused, Err(SealError::NoEpoch)), "{refused:?}");
            let sealed = sealing(held(1)).seal("r", kind, at(0, 0)).expect("sealed");
            assert_eq!(epoch(sealed), EpochKey::from_random(&[0; 32]).expect("a key").id());
        }
    }

    fn salts(times: &[Now]) -> Vec<Vec<u8>> {
        use prost::Message;
        let secrets = Arc::new(Secrets::new(vec![FarmSecret::generate().expect("a secret")]).expect("one secret"));
        let identity = Identity { farm: "f".into(), node: "n".into(), boot_id: [1; 16] };
        let (_sender, receiver) = watch::channel(Arc::clone(&secrets));
        let mut sealing = Sealing::new(identity, receiver, held(0), system(), times[0]);
        let mut opener = Opener::new(secrets, "f", std::time::Duration::from_secs(300));
        let seal = |now: &Now| {
            let sealed = sealing.seal("r", Kind::Farewell(proto::Farewell {}), *now).expect("sealed");
            opener.open("r", sealed.clone(), *now).expect("it opens, so no sequence repeats under a salt");
            proto::Envelope::decode(sealed).expect("an envelope").salt.to_vec()
        };
        times.iter().map(seal).collect()
    }

    fn at(wall: u64, mono: u64) -> Now {
        Now { wall: 1_700_000_000_000 + wall, mono }
    }

    #[test]
    fn a_salt_serves_for_a_minute() {
        let salts = salts(&[at(0, 0), at(59_999, 59_999), at(60_000, 60_000), at(119_999, 119_999)]);
        assert_eq!(salts[0], salts[1]);
        assert_ne!(salts[1], salts[2]);
        assert_eq!(salts[2], salts[3]);
    }

    #[test]
    fn a_jump_of_the_wall_clock_draws_a_new_salt_in_both_directions() {
        let salts = salts(&[at(0, 0), at(5_000, 10), at(5_010, 20), at(1_000, 30)]);
        assert_ne!(salts[0], salts[1]);
        assert_eq!(salts[1], salts[2]);
        assert_ne!(salts[2], salts[3]);
    }

    #[test]
    fn clocks_that_part_by_little_steps_draw_a_new_salt_in_the_end() {
        let salts = salts(&[at(0, 0), at(600, 10), at(1_200, 20)]);
        assert_eq!(salts[0], salts[1]);
        assert_ne!(salts[1], salts[2]);
    }

    /// Salt and sequence of each message of a run that begins at `start`, five seconds apart, on one route.
    fn run(start: Now, wall_ns: u128, kernel: Kernel, messages: u64) -> impl Iterator<Item = (Vec<u8>, u64)> {
        use prost::Message;
        let mixed = Mixed::of(Twin::at(wall_ns, kernel));
        let random = Box::new(move |bytes: &mut [u8]| mixed.try_fill(bytes).expect("the sources work"));
        let secret = FarmSecret::from_bytes(&[1; 32]).expect("a secret");
        let secrets = watch::channel(Arc::new(Secrets::new(vec![secret]).expect("one secret"))).1;
        let identity = Identity { farm: "f".into(), node: "n".into(), boot_id: [1; 16] };
        let mut sealing = Sealing::new(identity, secrets, held(0), random, start);
        (0..messages).map(move |message| {
            let now = start.after(std::time::Duration::from_secs(5 * message));
            let sealed = sealing.seal("r", Kind::Farewell(proto::Farewell {}), now).expect("sealed");
            let envelope = proto::Envelope::decode(sealed).expect("an envelope");
            (envelope.salt.to_vec(), envelope.sequence)
        })
    }

    #[test]
    fn two_runs_of_one_snapshot_never_seal_under_one_salt_and_sequence() {
        // Of each run; in all 200,000.
        const MESSAGES: u64 = 25_000;
        // Restored twice: a second apart, and in the same millisecond, where an old kernel leaves but the nanoseconds.
        let cases = [
            (1_000, 1_000_000_000, Kernel::Knows),
            (0, 0, Kernel::Knows),
            (1_000, 1_000_000_000, Kernel::Repeats),
            (0, 1, Kernel::Repeats),
        ];
        for (later_ms, later_ns, kernel) in cases {
            let wall_ns = u128::from(at(0, 0).wall) * 1_000_000;
            let first: std::collections::HashSet<_> = run(at(0, 0), wall_ns, kernel, MESSAGES).collect();
            assert_eq!(first.len() as u64, MESSAGES, "nor one run alone");
            let mut second = run(at(later_ms, 0), wall_ns + later_ns, kernel, MESSAGES);
            assert_eq!(second.find(|nonce| first.contains(nonce)), None, "{later_ns} ns later");
        }
    }
}
