//! When to draw a new salt: for every link, hourly, and after a jump between wall and monotonic clock.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use super::random::random;
use crate::clock::Now;
use crate::envelope::{Epochs, SealError, Sealer, Secrets, travels_open};
use crate::proto::{self, payload::Kind};

const RENEW_AFTER_MS: u64 = 60 * 60 * 1000;

/// Wall and monotonic clock of a running host drift apart by less than this between two messages.
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

/// Seals payloads of one plane on one link, under salts that are never used twice: also not after a virtual machine was
/// resumed from a snapshot, which shows as a jump of the wall clock.
pub struct Sealing {
    identity: Identity,
    secrets: watch::Receiver<Arc<Secrets>>,
    epochs: watch::Receiver<Arc<Epochs>>,
    sealer: Sealer,
    drawn_at: Now,
    last: Now,
}

impl Sealing {
    /// Begins with a fresh salt.
    #[must_use]
    pub fn new(
        identity: Identity,
        secrets: watch::Receiver<Arc<Secrets>>,
        epochs: watch::Receiver<Arc<Epochs>>,
        now: Now,
    ) -> Self {
        let sealer = Sealer::new(Arc::clone(&secrets.borrow()), &identity.farm, random());
        Self { identity, secrets, epochs, sealer, drawn_at: now, last: now }
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
        if now.mono.saturating_sub(self.drawn_at.mono) >= RENEW_AFTER_MS || jumped(self.last, now) {
            self.renew_salt(now);
        }
        self.last = now;
        let payload = proto::Payload {
            node: self.identity.node.clone(),
            boot_id: self.identity.boot_id.to_vec(),
            sent_at: now.wall,
            kind: Some(kind),
        };
        let epochs = Arc::clone(&self.epochs.borrow());
        let kind = payload.kind.as_ref().expect("just set");
        let epoch = epochs.sealing(kind, now);
        if epoch.is_none() && !travels_open(kind) {
            return Err(SealError::NoEpoch);
        }
        match self.sealer.seal_in(epoch, route, &payload) {
            Err(SealError::SaltSpent) => {
                self.renew_salt(now);
                self.sealer.seal_in(epoch, route, &payload)
            }
            sealed => sealed,
        }
    }

    fn renew_salt(&mut self, now: Now) {
        self.sealer.resalt(random());
        self.drawn_at = now;
    }
}

/// Whether the wall clock moved otherwise than the monotonic one.
fn jumped(last: Now, now: Now) -> bool {
    let wall = i128::from(now.wall) - i128::from(last.wall);
    let mono = i128::from(now.mono) - i128::from(last.mono);
    (wall - mono).abs() > JUMP_MS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::{EpochKey, FarmSecret, Opener};

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
        let sealing = |epochs| Sealing::new(identity.clone(), watch::channel(Arc::clone(&secrets)).1, epochs, at(0, 0));
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
        let mut sealing = Sealing::new(identity, receiver, held(0), times[0]);
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
    fn a_salt_serves_for_an_hour() {
        let hour = RENEW_AFTER_MS;
        let salts = salts(&[at(0, 0), at(hour - 1, hour - 1), at(hour, hour)]);
        assert_eq!(salts[0], salts[1]);
        assert_ne!(salts[1], salts[2]);
    }

    #[test]
    fn a_jump_of_the_wall_clock_draws_a_new_salt_in_both_directions() {
        let salts = salts(&[at(0, 0), at(5_000, 10), at(5_010, 20), at(1_000, 30)]);
        assert_ne!(salts[0], salts[1]);
        assert_eq!(salts[1], salts[2]);
        assert_ne!(salts[2], salts[3]);
    }
}
