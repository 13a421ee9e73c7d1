//! One ticket key.

use std::fmt;
use std::sync::Arc;

use openssl::memcmp;
use zeroize::{Zeroize, Zeroizing};

use super::settings::KeySettings;
use crate::clock::{Now, millis};
use crate::proto;
use crate::reason::KeyReason;

/// No honest key begins later than this: the longest interval is 7 days, and a clock may be off.
const FARTHEST_SEAL_FROM_MS: u64 = 8 * 24 * 60 * 60 * 1000;

/// A session ticket encryption key (RFC 5077 section 4). Times are UTC milliseconds.
///
/// Clones share the secrets, which are wiped when the last clone is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct TicketKey {
    /// What its tickets begin with, 16 bytes. Public.
    pub name: [u8; 16],
    /// Minted later means higher, to within the offset between two clocks.
    pub generation: u64,
    /// Seals from here on.
    pub seal_from: u64,
    /// The last instant at which it may seal.
    pub seal_until: u64,
    /// Milliseconds for which its tickets open after it is superseded, or after `seal_until`.
    pub open_for: u64,
    secrets: Arc<Secrets>,
}

/// A fresh key's name and secrets, from which [`super::HeldRing::mint`] makes a key.
pub struct KeyMaterial {
    name: [u8; 16],
    secrets: Arc<Secrets>,
}

/// Behind one pointer, so that moving a key leaves no copies of it in memory.
struct Secrets {
    hmac: [u8; 32],
    aes: [u8; 32],
}

/// Why a key is not taken. One counted reason each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum KeyFault {
    /// The name is not 16 bytes, or a secret not 32.
    #[error("name or secret of a wrong length")]
    WrongLength,
    /// `seal_from` is more than 8 days ahead.
    #[error("begins to seal more than 8 days ahead")]
    SealFromFarAhead,
    /// `seal_until` is before `seal_from`.
    #[error("stops sealing before it begins")]
    SealsBackwards,
    /// It seals or opens for longer than the limits of [`KeySettings`] allow any node to mint a key for.
    #[error("seals or opens for longer than any setting allows")]
    LivesTooLong,
    /// The generation is beyond now + `max_clock_offset`.
    #[error("generation lies ahead of the clock by more than max_clock_offset")]
    GenerationFarAhead,
}

impl KeyFault {
    /// The counted reason.
    #[must_use]
    pub(crate) fn reason(self) -> KeyReason {
        match self {
            Self::WrongLength => KeyReason::WrongLength,
            Self::SealFromFarAhead => KeyReason::SealFromFarAhead,
            Self::SealsBackwards => KeyReason::SealsBackwards,
            Self::LivesTooLong => KeyReason::LivesTooLong,
            Self::GenerationFarAhead => KeyReason::GenerationFarAhead,
        }
    }
}

impl TicketKey {
    /// Makes a key of `material` with the times that `settings` give one that begins at `seal_from`.
    pub(super) fn mint(material: KeyMaterial, generation: u64, seal_from: u64, settings: &KeySettings) -> Self {
        Self {
            name: material.name,
            generation,
            seal_from,
            seal_until: seal_from.saturating_add(millis(settings.max_seal_age)),
            open_for: millis(settings.open_for()),
            secrets: material.secrets,
        }
    }

    /// Takes a key from a message.
    ///
    /// # Errors
    /// The first fault found; see [`KeyFault`].
    pub fn read(key: &proto::TicketKey, now: Now, settings: &KeySettings) -> Result<Self, KeyFault> {
        fn exact<const N: usize>(bytes: &[u8]) -> Result<[u8; N], KeyFault> {
            bytes.try_into().map_err(|_| KeyFault::WrongLength)
        }
        let secrets = Secrets { hmac: exact(&key.hmac)?, aes: exact(&key.aes)? };
        let key = Self {
            name: exact(&key.name)?,
            generation: key.generation,
            seal_from: key.seal_from,
            seal_until: key.seal_until,
            open_for: key.open_for,
            secrets: Arc::new(secrets),
        };
        key.check(now, settings)?;
        Ok(key)
    }

    /// Checks the key's times and generation against this node's clock.
    ///
    /// # Errors
    /// The first fault found; see [`KeyFault`].
    pub fn check(&self, now: Now, settings: &KeySettings) -> Result<(), KeyFault> {
        if self.seal_until < self.seal_from {
            Err(KeyFault::SealsBackwards)
        } else if self.seal_from > now.wall.saturating_add(FARTHEST_SEAL_FROM_MS) {
            Err(KeyFault::SealFromFarAhead)
        } else if is_far_ahead(self.generation, now, settings) {
            Err(KeyFault::GenerationFarAhead)
        } else if self.lives_too_long() {
            Err(KeyFault::LivesTooLong)
        } else {
            Ok(())
        }
    }

    /// Whether no settings within their limits make such a key. This node's own settings do not count: others may have
    /// longer ones, also for a time while all are changed.
    fn lives_too_long(&self) -> bool {
        self.seal_until.saturating_sub(self.seal_from) > millis(*KeySettings::MAX_SEAL_AGE.end())
            || self.open_for > millis(KeySettings::LONGEST_OPEN_FOR)
    }

    /// The key as a message.
    #[must_use]
    pub fn to_proto(&self) -> proto::TicketKey {
        proto::TicketKey {
            name: self.name.to_vec(),
            hmac: self.secrets.hmac.to_vec(),
            aes: self.secrets.aes.to_vec(),
            generation: self.generation,
            seal_from: self.seal_from,
            seal_until: self.seal_until,
            open_for: self.open_for,
        }
    }

    /// The HMAC-SHA256 secret, 32 bytes.
    #[must_use]
    pub fn hmac(&self) -> &[u8; 32] {
        &self.secrets.hmac
    }

    /// The AES-256 key, 32 bytes.
    #[must_use]
    pub fn aes(&self) -> &[u8; 32] {
        &self.secrets.aes
    }

    /// The key's place among others: by generation, then by name.
    #[must_use]
    pub fn order(&self) -> (u64, [u8; 16]) {
        (self.generation, self.name)
    }

    /// Of two keys of one name that differ, all nodes keep the one with the larger rank. The generation stands first,
    /// so that the larger rank is never lower in order: the join stays one under the ring's cap and floor. Both come
    /// from holders of the farm secret, so the comparison need not take constant time.
    pub(super) fn rank(&self) -> (u64, u64, u64, u64, &[u8; 32], &[u8; 32]) {
        (self.generation, self.seal_from, self.seal_until, self.open_for, self.hmac(), self.aes())
    }
}

/// Whether a generation or a floor cannot have been minted yet.
pub(super) fn is_far_ahead(generation: u64, now: Now, settings: &KeySettings) -> bool {
    generation > now.wall.saturating_add(settings.max_clock_offset_ms())
}

impl KeyMaterial {
    /// Splits 80 random bytes into a name (16), an HMAC secret (32) and an AES key (32).
    #[must_use]
    pub fn from_random(random: &Zeroizing<[u8; 80]>) -> Self {
        let mut name = [0; 16];
        let mut secrets = Secrets { hmac: [0; 32], aes: [0; 32] };
        name.copy_from_slice(&random[..16]);
        secrets.hmac.copy_from_slice(&random[16..48]);
        secrets.aes.copy_from_slice(&random[48..]);
        Self { name, secrets: Arc::new(secrets) }
    }
}

impl PartialEq for Secrets {
    fn eq(&self, other: &Self) -> bool {
        memcmp::eq(&self.hmac, &other.hmac) & memcmp::eq(&self.aes, &other.aes)
    }
}

impl Eq for Secrets {}

impl Drop for Secrets {
    fn drop(&mut self) {
        self.hmac.zeroize();
        self.aes.zeroize();
    }
}

/// A message that carried a key leaves none in memory.
impl Drop for proto::TicketKey {
    fn drop(&mut self) {
        self.hmac.zeroize();
        self.aes.zeroize();
    }
}

impl fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketKey")
            .field("name", &self.name)
            .field("generation", &self.generation)
            .field("seal_from", &self.seal_from)
            .field("seal_until", &self.seal_until)
            .field("open_for", &self.open_for)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for KeyMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyMaterial").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Now = Now { wall: 1_000_000_000, mono: 0 };

    fn message() -> proto::TicketKey {
        proto::TicketKey {
            name: vec![1; 16],
            hmac: vec![2; 32],
            aes: vec![3; 32],
            generation: NOW.wall,
            seal_from: NOW.wall,
            seal_until: NOW.wall,
            open_for: 5,
        }
    }

    fn fault(change: impl FnOnce(&mut proto::TicketKey)) -> Option<KeyFault> {
        let mut key = message();
        change(&mut key);
        TicketKey::read(&key, NOW, &KeySettings::default()).err()
    }

    #[test]
    fn a_key_comes_back_from_its_message() {
        let key = TicketKey::read(&message(), NOW, &KeySettings::default()).unwrap();
        assert_eq!(key.to_proto(), message());
        assert_eq!((key.hmac(), key.aes()), (&[2; 32], &[3; 32]));
    }

    #[test]
    fn names_and_secrets_of_a_wrong_length_are_refused() {
        let wrong = Some(KeyFault::WrongLength);
        assert_eq!(fault(|key| key.name.truncate(15)), wrong);
        assert_eq!(fault(|key| key.name.push(0)), wrong);
        assert_eq!(fault(|key| key.hmac.truncate(31)), wrong);
        assert_eq!(fault(|key| key.hmac.push(0)), wrong);
        assert_eq!(fault(|key| key.aes.clear()), wrong);
    }

    #[test]
    fn times_and_generations_that_cannot_be_are_refused() {
        let limit = NOW.wall + FARTHEST_SEAL_FROM_MS;
        let begins = |at| {
            move |key: &mut proto::TicketKey| {
                key.seal_from = at;
                key.seal_until = at;
            }
        };
        assert_eq!(fault(begins(limit)), None);
        assert_eq!(fault(begins(limit + 1)), Some(KeyFault::SealFromFarAhead));
        assert_eq!(fault(|key| key.seal_until -= 1), Some(KeyFault::SealsBackwards));
        assert_eq!(fault(|key| key.seal_until += 365 * 86_400_000), None);
        assert_eq!(fault(|key| key.seal_until += 365 * 86_400_000 + 1), Some(KeyFault::LivesTooLong));
        assert_eq!(fault(|key| key.seal_until = u64::MAX), Some(KeyFault::LivesTooLong));
        assert_eq!(fault(|key| key.open_for = 32 * 7 * 86_400_000), None);
        assert_eq!(fault(|key| key.open_for = 32 * 7 * 86_400_000 + 1), Some(KeyFault::LivesTooLong));
        assert_eq!(fault(|key| key.open_for = u64::MAX), Some(KeyFault::LivesTooLong));
        assert_eq!(fault(|key| key.generation += 300_000), None);
        assert_eq!(fault(|key| key.generation += 300_001), Some(KeyFault::GenerationFarAhead));
    }

    #[test]
    fn material_is_split_into_name_hmac_and_aes() {
        let mut random = Zeroizing::new([0; 80]);
        for (byte, n) in random.iter_mut().zip(0..) {
            *byte = n;
        }
        let key = TicketKey::mint(KeyMaterial::from_random(&random), 7, 1000, &KeySettings::default());
        assert_eq!((key.name[0], key.hmac()[0], key.aes()[0], key.aes()[31]), (0, 16, 48, 79));
        assert_eq!((key.seal_until, key.open_for), (1000 + 24 * 3_600_000, 24 * 3_600_000));
    }

    #[test]
    fn debug_shows_no_secret() {
        let material = KeyMaterial::from_random(&Zeroizing::new([0xab; 80]));
        assert_eq!(format!("{material:?}").matches("171").count(), 16, "the name and no more");
        let key = TicketKey::mint(material, 7, 1000, &KeySettings::default());
        assert_eq!(format!("{key:?}").matches("171").count(), 16, "the name and no more");
    }
}
