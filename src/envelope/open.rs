//! Opening: from envelope to payload, or to a reason why not.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use openssl::error::ErrorStack;
use prost::Message;
use zeroize::Zeroize;

use super::epoch::{EpochId, Epochs, is_sealed_without_epoch};
use super::key::{OpeningKey, Source};
use super::replay::{Mark, NotAdmitted, SenderSalt, Table, TableLimits};
use super::secret::Secrets;
use super::wire::{Header, MAX_ENVELOPE_BYTES, NO_EPOCH, TAG_BYTES, is_node_name, payload_fault};
use crate::clock::{Now, millis, offset_ms};
use crate::proto;
use crate::proto::limits::{Undecodable, decode_within};
use crate::reason::Reason;

/// The most (secret, salt, route) that an [`Opener`] follows at a time: 16 for each of the 20,000 members that a farm may
/// have.
///
/// A sender changes to a new salt after a minute of use, and a window is kept for ten minutes after its last message (with
/// the default largest clock offset of five) and up to 15 s more, until the next sweep. That is 11 or 12 windows for each
/// sender on a route. The other four are for links that break: each has a salt of its own.
///
/// Who hears whom: the leader hears every node on its queue, at least once a minute; a node hears the leader on the
/// keys exchange and on its inbox, and on the feed each node of its pod that has sessions, and its donor. In a farm of
/// 10,000 the leader follows 112,500 windows, which are 16 MiB, and about 7,500 of them are in use (the beat is a minute
/// then), which are 6 MiB more. Every other node follows 24, and 12 for each node of the pod.
///
/// All taken, they are 33 MiB (50 while the hash table grows), and those in use another 33 MiB. A node has two openers.
pub(crate) const MOST_TRACKED: usize = 16 * 20_000;

pub(super) const LIMITS: TableLimits = TableLimits { windows: MOST_TRACKED, live: 40_000 };

/// Opens envelopes of one farm, each at most once.
///
/// It should live as long as its process, across all connections: what it has seen is what keeps replays out.
pub struct Opener {
    secrets: Arc<Secrets>,
    epochs: Arc<Epochs>,
    farm: String,
    /// Milliseconds.
    max_clock_offset: u64,
    table: Table,
    /// Kinds that need an epoch key are opened without, to test the format apart from the rule.
    #[cfg(test)]
    anything: bool,
}

/// An envelope that passed every check.
#[derive(Clone, Debug, PartialEq)]
pub struct Opened {
    /// What was in it. The sender's name is valid (see [`is_node_name`](super::is_node_name)) and its boot id has 16
    /// bytes; everything else is for the caller to check. `kind` is `None` if a later release sent something that this
    /// one does not know: to be counted and ignored. Session bytes are slices of the one buffer that the message came
    /// in, so a session that is kept for long should be copied out of it.
    pub payload: proto::Payload,
    /// How many sequences of its sender on this route were skipped just before it: messages lost, late, or refused.
    pub missed: u64,
}

impl Opener {
    /// Opens envelopes of the farm named `farm`, sealed with any of `secrets`, whose stamp is at most `max_clock_offset`
    /// away from this node's clock. Until [`Opener::set_epochs`] it opens the kinds only that travel without an epoch key.
    #[must_use]
    pub fn new(secrets: Arc<Secrets>, farm: &str, max_clock_offset: Duration) -> Self {
        Self {
            secrets,
            epochs: Arc::new(Epochs::new(Duration::ZERO)),
            farm: farm.into(),
            max_clock_offset: millis(max_clock_offset),
            table: Table::new(LIMITS, max_clock_offset),
            #[cfg(test)]
            anything: false,
        }
    }

    /// Opens with any of `secrets` from now on, and forgets every key derived from a secret that is not among them.
    ///
    /// Which sequences were seen under it is remembered for as long as they could be replayed, should it come back.
    pub(crate) fn set_secrets(&mut self, secrets: Arc<Secrets>) {
        self.secrets = secrets;
        self.forget_keys();
    }

    /// Opens under any of `epochs` from now on, and forgets every key derived from one that is not among them. As with
    /// [`Opener::set_secrets`], what was seen is remembered.
    pub fn set_epochs(&mut self, epochs: Arc<Epochs>) {
        self.epochs = epochs;
        self.forget_keys();
    }

    /// Whether it holds any epoch key. Without, [`Refusal::UnknownEpoch`] is what every node meets until it has joined.
    #[must_use]
    pub(crate) fn has_epochs(&self) -> bool {
        !self.epochs.is_empty()
    }

    /// Opens every kind under the farm secret alone.
    #[cfg(test)]
    pub(super) fn of_anything(mut self) -> Self {
        self.anything = true;
        self
    }

    fn forget_keys(&mut self) {
        let (secrets, epochs) = (&self.secrets, &self.epochs);
        self.table.keep_keys(|secret, epoch| {
            secrets.get(secret).is_some() && (epoch == NO_EPOCH || epochs.get(epoch).is_some())
        });
    }

    /// Whether a payload may come in an envelope of this epoch.
    fn may_come_in(&self, epoch: EpochId, payload: &proto::Payload) -> bool {
        #[cfg(test)]
        if self.anything {
            return true;
        }
        // Of a kind that nobody knows nothing is acted on.
        epoch != NO_EPOCH || payload.kind.as_ref().is_none_or(is_sealed_without_epoch)
    }

    /// How many (secret, salt, route) are followed now, of at most [`MOST_TRACKED`].
    #[must_use]
    pub fn tracked(&self) -> usize {
        self.table.len()
    }

    /// Opens the envelope in `body`, which was published to `route`: the exact name of an exchange, or of the queue if
    /// it came through the default exchange.
    ///
    /// If `body` is the only handle to its buffer, it is decrypted in place.
    ///
    /// # Errors
    /// The first check that failed; they are made in the order of [`Refusal`]'s variants. Nothing of a refused envelope
    /// may be acted on; only [`Refusal::Clock`] says something about its sender.
    pub fn open(&mut self, route: &str, body: Bytes, now: Now) -> Result<Opened, Refusal> {
        if body.len() > MAX_ENVELOPE_BYTES {
            return Err(Refusal::TooLarge);
        }
        let (header, start) = Header::decode(&body).map_err(Refusal::Malformed)?;
        let secret = self.secrets.get(header.secret_id).ok_or(Refusal::UnknownSecret)?;
        let epoch = match header.epoch {
            NO_EPOCH => None,
            id => Some(self.epochs.get(id).ok_or(Refusal::UnknownEpoch)?),
        };

        let sender = SenderSalt { secret_id: header.secret_id, salt: header.salt };
        let mut derived = None;
        let key = match self.table.key(route, &sender, header.epoch) {
            Some(key) => key,
            None => {
                let source = Source { secret, epoch, farm: &self.farm };
                &mut derived.insert((header.epoch, OpeningKey::derive(source, route, &header.salt)?)).1
            }
        };
        let text = decrypt(key, &header, body, start)?.ok_or(Refusal::BadTag)?;
        let payload = decode(text)?;
        if !self.may_come_in(header.epoch, &payload) {
            return Err(Refusal::NotInEpoch { node: payload.node });
        }

        if payload.sent_at.abs_diff(now.wall) > self.max_clock_offset {
            let boot_id = payload.boot_id.try_into().map_err(|_| Refusal::Malformed("boot_id"))?;
            let offset_ms = offset_ms(payload.sent_at, now.wall);
            return Err(Refusal::Clock { node: payload.node, boot_id, offset_ms });
        }
        let mark = Mark { sequence: header.sequence, sent_at: payload.sent_at };
        let missed = self.table.admit(route, sender, mark, derived, now).map_err(|why| match why {
            NotAdmitted::Replay => Refusal::Replay { node: payload.node.clone() },
            NotAdmitted::Full => Refusal::TableFull { node: payload.node.clone() },
        })?;
        Ok(Opened { payload, missed })
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { farm, secrets, table, .. } = self;
        f.debug_struct("Opener")
            .field("farm", farm)
            .field("secrets", secrets)
            .field("tracked", &table.len())
            .finish_non_exhaustive()
    }
}

/// The plaintext of the envelope `body`, whose ciphertext begins at `start`; `None` if the tag is wrong.
fn decrypt(key: &mut OpeningKey, header: &Header, body: Bytes, start: usize) -> Result<Option<Bytes>, ErrorStack> {
    let mut text = match body.try_into_mut() {
        Ok(mut own) => {
            own.advance(start);
            own
        }
        // Somebody else holds the message too, as on the in-process bus.
        Err(shared) => BytesMut::from(&shared[start..]),
    };
    let tag = text.split_off(text.len() - TAG_BYTES);
    let tag = tag[..].try_into().expect("split off at its length");
    Ok(key.open(header, &mut text, tag)?.then(|| text.freeze()))
}

/// The payload in `text`, checked as far as every message must be.
fn decode(text: Bytes) -> Result<proto::Payload, Refusal> {
    let decoded = decode_within::<proto::Payload>(text.clone(), &proto::PAYLOAD).map_err(|why| refused_as(&why, &text));
    // Only sessions stay where they are. Ticket keys were copied out, and nothing of them may stay behind.
    if !matches!(&decoded, Ok(proto::Payload { kind: Some(proto::payload::Kind::Sessions(_)), .. })) {
        drop(wiped(text));
    }
    let payload = decoded?;
    match payload_fault(&payload) {
        Some(field) => Err(Refusal::Malformed(field)),
        None => Ok(payload),
    }
}

/// The part of a payload that says who sent it.
#[derive(Clone, PartialEq, Message)]
struct SentBy {
    #[prost(string, tag = "1")]
    node: String,
}

/// Why a payload was not decoded, as a refusal that names its sender where that can be told.
fn refused_as(why: &Undecodable, text: &[u8]) -> Refusal {
    match (why, SentBy::decode(text)) {
        (Undecodable::TooMany(_), Ok(SentBy { node })) if !is_node_name(&node) => Refusal::Malformed("node"),
        (Undecodable::TooMany(field), Ok(SentBy { node })) => Refusal::TooMany { node, field },
        _ => Refusal::Malformed("payload"),
    }
}

/// The buffer behind `text`, overwritten with zeros; `None` if it has other holders.
fn wiped(text: Bytes) -> Option<BytesMut> {
    let mut buffer = text.try_into_mut().ok()?;
    buffer[..].zeroize();
    Some(buffer)
}

/// Why an envelope was not opened, in the order of the checks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is larger than [`MAX_ENVELOPE_BYTES`].
    #[error("larger than {MAX_ENVELOPE_BYTES} bytes")]
    TooLarge,
    /// It is not an envelope of version 1 in its canonical encoding, or, if the field is `payload`, `node` or
    /// `boot_id`, a holder of the farm secret sealed something that is no payload.
    #[error("malformed: {0}")]
    Malformed(
        /// The field at fault; `encoding` if it is the envelope as such.
        &'static str,
    ),
    /// It is sealed under a farm secret that this node does not have.
    #[error("sealed under an unknown farm secret")]
    UnknownSecret,
    /// It is sealed under an epoch key that this node does not hold. Nothing shows that it comes from the farm.
    #[error("sealed under an unknown epoch key")]
    UnknownEpoch,
    /// It was altered, forged, made for another farm, or moved from another route.
    #[error("the tag does not fit")]
    BadTag,
    /// A holder of the farm secret sealed more of something than any node sends: see [`proto::PAYLOAD`].
    #[error("{node} sent more {field} than any node does")]
    TooMany {
        /// The sender.
        node: String,
        /// The field, by its name in `farm.proto`.
        field: &'static str,
    },
    /// A holder of the farm secret sealed a kind without an epoch key that never travels without.
    #[error("{node} sealed it without an epoch key")]
    NotInEpoch {
        /// The sender.
        node: String,
    },
    /// It is authentic, but stamped too far from this node's clock. It has not passed the replay check, so it shows that
    /// the sender exists and not that it is alive.
    #[error("the clock of {node} is {offset_ms} ms away from ours")]
    Clock {
        /// The sender.
        node: String,
        /// The sender's boot id.
        boot_id: [u8; 16],
        /// The sender's clock minus this node's, in milliseconds, if the message was not held up on its way.
        offset_ms: i64,
    },
    /// It was opened before, or is more than 1,023 sequences behind (63, if nothing came under its salt for 30 s).
    #[error("a message of {node} that was opened before, or comes too late to tell")]
    Replay {
        /// Who sealed it. Who sent it again is not known.
        node: String,
    },
    /// It is the first of its sender on this route, and this node follows as many as it can.
    #[error("too many senders to follow {node} too")]
    TableFull {
        /// The sender.
        node: String,
    },
    /// OpenSSL failed; says nothing about the envelope.
    #[error("OpenSSL failed: {0}")]
    Library(
        /// What it said.
        String,
    ),
}

impl Refusal {
    /// The counted reason.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::TooLarge => Reason::TooLarge,
            Self::Malformed(_) => Reason::Malformed,
            Self::UnknownSecret => Reason::UnknownSecret,
            Self::UnknownEpoch => Reason::UnknownEpoch,
            Self::BadTag => Reason::BadTag,
            Self::TooMany { .. } => Reason::TooMany,
            Self::NotInEpoch { .. } => Reason::NotInEpoch,
            Self::Clock { .. } => Reason::Clock,
            Self::Replay { .. } => Reason::Replay,
            Self::TableFull { .. } => Reason::TableFull,
            Self::Library(_) => Reason::Library,
        }
    }
}

impl From<ErrorStack> for Refusal {
    fn from(error: ErrorStack) -> Self {
        Self::Library(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use bytes::BufMut;
    use proptest::prelude::*;

    use super::*;
    use crate::envelope::{EpochKey, FarmSecret, Sealer};

    const OFFSET: Duration = Duration::from_secs(300);
    const NOW: Now = Now { wall: 1_800_000_000_000, mono: 86_400_000 };
    const ROUTE: &str = "resumed.prod.sessions.fra";

    fn secrets(bytes: &[u8]) -> Arc<Secrets> {
        Arc::new(
            Secrets::new(bytes.iter().map(|byte| FarmSecret::from_bytes(&[*byte; 32]).unwrap()).collect()).unwrap(),
        )
    }

    fn sealer() -> Sealer {
        Sealer::new(secrets(&[1]), "prod", [9; 16])
    }

    /// Sessions are sealed without an epoch key in most of these tests.
    fn opener() -> Opener {
        Opener::new(secrets(&[1]), "prod", OFFSET).of_anything()
    }

    fn farewell(sent_at: u64) -> proto::Payload {
        let kind = Some(proto::payload::Kind::Farewell(proto::Farewell {}));
        proto::Payload { node: "edge-1".into(), boot_id: vec![5; 16], sent_at, kind }
    }

    /// A farewell that was opened before.
    fn replay() -> Refusal {
        Refusal::Replay { node: "edge-1".into() }
    }

    fn batch(sessions: usize) -> proto::Payload {
        let entry = |n: usize| proto::SessionEntry {
            id: Bytes::from(vec![n as u8; 32]),
            session: Bytes::from(vec![n as u8; 300]),
            at: NOW.wall,
        };
        let entries = (0..sessions).map(entry).collect();
        let kind = proto::payload::Kind::Sessions(proto::SessionBatch { entries, format: 1 });
        proto::Payload { kind: Some(kind), ..farewell(NOW.wall) }
    }

    /// `count` farewells in the order they were sealed.
    fn stream(count: usize) -> Vec<Bytes> {
        let mut sealer = sealer();
        (0..count).map(|_| sealer.seal(None, ROUTE, &farewell(NOW.wall)).unwrap()).collect()
    }

    #[test]
    fn what_was_sealed_opens() {
        let (mut sealer, mut opener) = (sealer(), opener());
        for payload in [farewell(NOW.wall), batch(0), batch(20), batch(3000)] {
            let opened = opener.open(ROUTE, sealer.seal(None, ROUTE, &payload).unwrap(), NOW).unwrap();
            assert_eq!(opened, Opened { payload, missed: 0 });
        }
        assert_eq!(opener.tracked(), 1);
    }

    #[test]
    fn sessions_are_slices_of_the_message_that_brought_them() {
        let body = sealer().seal(None, ROUTE, &batch(20)).unwrap();
        let buffer = body.as_ptr_range();
        let opened = opener().open(ROUTE, body, NOW).unwrap();
        let Some(proto::payload::Kind::Sessions(batch)) = opened.payload.kind else { panic!("{opened:?}") };
        for entry in batch.entries {
            for field in [&entry.id, &entry.session] {
                let at = field.as_ptr_range();
                assert!(buffer.start <= at.start && at.end <= buffer.end, "a field was copied");
            }
        }
    }

    #[test]
    fn a_message_that_others_hold_too_is_left_as_it_is() {
        let body = sealer().seal(None, ROUTE, &batch(20)).unwrap();
        let before = body.to_vec();
        for _ in 0..2 {
            assert_eq!(opener().open(ROUTE, body.clone(), NOW).unwrap().payload, batch(20));
        }
        assert_eq!(body, before);
    }

    #[test]
    fn keys_leave_no_copy_in_the_buffer_that_brought_them() {
        let mut key = proto::TicketKey::default();
        (key.name, key.hmac) = (vec![1; 16], vec![0xa5; 32]);
        let ring = proto::Ring { floor: 0, keys: vec![key], ..Default::default() };
        let announcement = proto::Announcement { ring: Some(ring), ..Default::default() };
        let kind = Some(proto::payload::Kind::Announcement(announcement));
        let payload = proto::Payload { kind, ..farewell(NOW.wall) };

        let text = Bytes::from(payload.encode_to_vec());
        let decoded = proto::Payload::decode(text.clone()).unwrap();
        let length = text.len();
        let buffer = wiped(text).expect("a decoded ring holds on to nothing");
        assert_eq!(buffer[..], vec![0; length][..]);
        assert_eq!(decoded, payload);

        let text = Bytes::from(batch(1).encode_to_vec());
        let _sessions = proto::Payload::decode(text.clone()).unwrap();
        assert!(wiped(text).is_none(), "sessions hold on to the buffer");
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        for sequence in [0, 5, 300, u64::MAX] {
            let mut sealer = sealer();
            sealer.skip_to(ROUTE, sequence);
            let body = sealer.seal(None, ROUTE, &farewell(NOW.wall)).unwrap();
            let mut opener = opener();
            for bit in 0..body.len() * 8 {
                let mut altered = body.to_vec();
                altered[bit / 8] ^= 1 << (bit % 8);
                let refusal = opener.open(ROUTE, Bytes::from(altered), NOW).unwrap_err();
                let reason = refusal.reason();
                let possible = [Reason::Malformed, Reason::UnknownSecret, Reason::UnknownEpoch, Reason::BadTag];
                assert!(possible.contains(&reason), "bit {bit} of sequence {sequence}: {refusal:?}");
            }
            assert_eq!(opener.tracked(), 0, "nothing refused leaves a trace");
            assert!(opener.open(ROUTE, body, NOW).is_ok());
        }
    }

    #[test]
    fn every_truncation_and_every_addition_is_refused() {
        let body = sealer().seal(None, ROUTE, &farewell(NOW.wall)).unwrap();
        let mut opener = opener();
        for length in 0..body.len() {
            assert!(opener.open(ROUTE, body.slice(..length), NOW).is_err(), "{length} bytes of {}", body.len());
        }
        for byte in 0..=u8::MAX {
            assert!(opener.open(ROUTE, Bytes::from([&body[..], &[byte]].concat()), NOW).is_err(), "{byte} added");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn bytes_from_anywhere_are_refused(body in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(opener().open(ROUTE, Bytes::from(body), NOW).is_err());
        }

        #[test]
        fn a_flipped_bit_in_a_batch_is_refused(at in any::<prop::sample::Index>(), bit in 0..8) {
            let mut body = sealer().seal(None, ROUTE, &batch(10)).unwrap().to_vec();
            let at = at.index(body.len());
            body[at] ^= 1_u8 << bit;
            prop_assert!(opener().open(ROUTE, Bytes::from(body), NOW).is_err());
        }

        #[test]
        fn any_reorder_within_the_window_opens_each_message_once(
            order in prop::collection::vec(any::<prop::sample::Index>(), 1024),
        ) {
            let mut left = stream(1024);
            let mut opener = opener();
            let mut opened = Vec::new();
            for index in order {
                let body = left.swap_remove(index.index(left.len()));
                prop_assert!(opener.open(ROUTE, body.clone(), NOW).is_ok());
                prop_assert_eq!(opener.open(ROUTE, body.clone(), NOW), Err(replay()));
                opened.push(body);
            }
            for body in opened {
                prop_assert_eq!(opener.open(ROUTE, body, NOW), Err(replay()));
            }
        }

        #[test]
        fn a_replay_never_opens(picks in prop::collection::vec(any::<prop::sample::Index>(), 1..200)) {
            let stream = stream(2500);
            let mut opener = opener();
            let mut seen = HashSet::new();
            for pick in picks {
                let pick = pick.index(stream.len());
                let result = opener.open(ROUTE, stream[pick].clone(), NOW);
                prop_assert!(result.is_err() || seen.insert(pick), "message {} opened twice", pick);
            }
        }
    }

    #[test]
    fn gaps_are_counted_and_the_first_of_a_salt_counts_none() {
        let stream = stream(20);
        let mut opener = opener();
        let mut missed = |sequence: usize| opener.open(ROUTE, stream[sequence].clone(), NOW).unwrap().missed;
        assert_eq!([missed(3), missed(4), missed(10), missed(7), missed(11)], [0, 0, 5, 0, 0]);
    }

    #[test]
    fn another_farm_or_route_is_a_bad_tag() {
        let body = sealer().seal(None, ROUTE, &farewell(NOW.wall)).unwrap();
        let mut other_farm = Opener::new(secrets(&[1]), "prod-2", OFFSET);
        assert_eq!(other_farm.open(ROUTE, body.clone(), NOW), Err(Refusal::BadTag));
        let mut opener = opener();
        assert_eq!(opener.open("resumed.prod.sessions.ams", body.clone(), NOW), Err(Refusal::BadTag));
        assert_eq!(opener.tracked(), 0);
        assert!(opener.open(ROUTE, body, NOW).is_ok());
    }

    #[test]
    fn another_secret_is_unknown() {
        let body = sealer().seal(None, ROUTE, &farewell(NOW.wall)).unwrap();
        let mut opener = Opener::new(secrets(&[2, 3]), "prod", OFFSET);
        assert_eq!(opener.open(ROUTE, body, NOW), Err(Refusal::UnknownSecret));
    }

    /// An envelope whose header says something else than sealers write, with a tag that fits.
    fn sealed_with(alter: impl Fn(&mut Header)) -> Bytes {
        let secrets = secrets(&[1]);
        let secret = secrets.sealing();
        let mut header = Header { secret_id: secret.id(), epoch: NO_EPOCH, salt: [9; 16], sequence: 0 };
        alter(&mut header);
        let mut text = farewell(NOW.wall).encode_to_vec();
        let mut body = header.encode(text.len() + TAG_BYTES);
        let source = Source { secret, epoch: None, farm: "prod" };
        let mut key = crate::envelope::key::SealingKey::derive(source, ROUTE, &header.salt).unwrap();
        let tag = key.seal(&header, &mut text).unwrap();
        body.extend(text);
        body.extend(tag);
        Bytes::from(body)
    }

    #[test]
    fn an_epoch_that_is_not_held_is_unknown() {
        assert!(opener().open(ROUTE, sealed_with(|_| {}), NOW).is_ok());
        for byte in 0..8 {
            let body = sealed_with(|header| header.epoch[byte] = 1);
            assert_eq!(opener().open(ROUTE, body, NOW), Err(Refusal::UnknownEpoch));
        }
    }

    fn epochs(bytes: &[u8]) -> Arc<Epochs> {
        let mut epochs = Epochs::new(Duration::ZERO);
        for byte in bytes {
            assert!(epochs.lead_to(EpochKey::from_random(&[*byte; 32]).unwrap(), NOW));
        }
        Arc::new(epochs)
    }

    #[test]
    fn what_is_sealed_in_an_epoch_opens_in_it_alone() {
        let held = epochs(&[1, 2]);
        let mut sealer = sealer();
        let mut opener = Opener::new(secrets(&[1]), "prod", OFFSET);
        let body = sealer.seal(held.current(), ROUTE, &batch(3)).unwrap();
        assert!(!opener.has_epochs());
        assert_eq!(opener.open(ROUTE, body.clone(), NOW), Err(Refusal::UnknownEpoch));
        opener.set_epochs(epochs(&[1]));
        assert_eq!(opener.open(ROUTE, body.clone(), NOW), Err(Refusal::UnknownEpoch));
        assert_eq!(opener.tracked(), 0);
        opener.set_epochs(epochs(&[2]));
        assert!(opener.has_epochs());
        assert_eq!(opener.open(ROUTE, body.clone(), NOW).unwrap().payload, batch(3));
        assert_eq!(opener.open(ROUTE, body.clone(), NOW), Err(replay()));

        // The header says which key; another one does not open it, nor does the farm secret alone.
        let ids: Vec<EpochId> = held.ids().collect();
        opener.set_epochs(Arc::clone(&held));
        for other in [ids[0], NO_EPOCH] {
            let mut envelope = proto::Envelope::decode(body.clone()).unwrap();
            envelope.epoch = Bytes::copy_from_slice(&other);
            let body = Bytes::from(envelope.encode_to_vec());
            assert_eq!(opener.open(ROUTE, body, NOW), Err(Refusal::BadTag));
        }
    }

    #[test]
    fn epochs_change_under_a_salt_and_nothing_opens_twice() {
        let held = epochs(&[1, 2]);
        let ids: Vec<EpochId> = held.ids().collect();
        let (mut sealer, mut opener) = (sealer(), opener());
        opener.set_epochs(Arc::clone(&held));
        let mut sealed = Vec::new();
        for epoch in [NO_EPOCH, ids[0], ids[1], NO_EPOCH, ids[0], ids[1]] {
            sealed.push(sealer.seal(held.get(epoch), ROUTE, &farewell(NOW.wall)).unwrap());
        }
        for body in sealed.iter().rev() {
            opener.open(ROUTE, body.clone(), NOW).unwrap();
        }
        assert_eq!(opener.tracked(), 1);
        opener.set_epochs(epochs(&[1]));
        opener.set_epochs(held);
        for body in sealed {
            assert_eq!(opener.open(ROUTE, body, NOW), Err(replay()), "also after its key was away");
        }
    }

    #[test]
    fn nothing_but_joins_is_taken_outside_an_epoch() {
        use proto::payload::Kind;
        let mut opener = Opener::new(secrets(&[1]), "prod", OFFSET);
        opener.set_epochs(epochs(&[1]));
        let mut sealer = sealer();
        let mut open = |kind: Kind| {
            let payload = proto::Payload { kind: Some(kind), ..farewell(NOW.wall) };
            opener.open(ROUTE, sealer.seal(None, ROUTE, &payload).unwrap(), NOW).map(|_| ())
        };
        for kind in [
            Kind::Announcement(Default::default()),
            Kind::Report(Default::default()),
            Kind::Sessions(Default::default()),
            Kind::Request(Default::default()),
            Kind::Answer(Default::default()),
        ] {
            assert_eq!(open(kind), Err(Refusal::NotInEpoch { node: "edge-1".into() }));
        }
        for kind in
            [Kind::Join(Default::default()), Kind::EpochGrant(Default::default()), Kind::Farewell(Default::default())]
        {
            assert_eq!(open(kind), Ok(()));
        }
    }

    #[test]
    fn a_mebibyte_opens_and_not_a_byte_more() {
        let base = batch(1);
        let padded = |bytes: usize| {
            let mut payload = base.clone();
            let Some(proto::payload::Kind::Sessions(batch)) = &mut payload.kind else { unreachable!() };
            batch.entries[0].session = Bytes::from(vec![7; bytes]);
            payload
        };
        let room = MAX_ENVELOPE_BYTES - sealer().seal(None, ROUTE, &padded(1_000_000)).unwrap().len();
        let body = sealer().seal(None, ROUTE, &padded(1_000_000 + room)).unwrap();
        assert_eq!(body.len(), MAX_ENVELOPE_BYTES);
        assert!(opener().open(ROUTE, body.clone(), NOW).is_ok());
        let longer = Bytes::from([&body[..], &[0]].concat());
        assert_eq!(opener().open(ROUTE, longer, NOW), Err(Refusal::TooLarge));
    }

    #[test]
    fn a_wrong_clock_is_refused_by_name_and_leaves_no_trace() {
        for offset in [-300_001, 300_001, -86_400_000, 86_400_000] {
            let mut opener = opener();
            let sent_at = NOW.wall.saturating_add_signed(offset);
            let body = sealer().seal(None, ROUTE, &farewell(sent_at)).unwrap();
            let refusal = opener.open(ROUTE, body.clone(), NOW).unwrap_err();
            assert_eq!(refusal, Refusal::Clock { node: "edge-1".into(), boot_id: [5; 16], offset_ms: offset });
            assert_eq!(opener.tracked(), 0);
            let right = Now { wall: sent_at, ..NOW };
            assert!(opener.open(ROUTE, body, right).is_ok(), "it was not counted as seen");
        }
        for offset in [-300_000, -1, 0, 300_000] {
            let body = sealer().seal(None, ROUTE, &farewell(NOW.wall.saturating_add_signed(offset))).unwrap();
            assert!(opener().open(ROUTE, body, NOW).is_ok(), "{offset}");
        }
        for (sent_at, offset_ms) in [(u64::MAX, i64::MAX), (0, -1_800_000_000_000)] {
            let body = sealer().seal(None, ROUTE, &farewell(sent_at)).unwrap();
            let refusal = opener().open(ROUTE, body, NOW).unwrap_err();
            assert_eq!(refusal, Refusal::Clock { node: "edge-1".into(), boot_id: [5; 16], offset_ms });
        }
    }

    #[test]
    fn the_clock_is_checked_before_the_window_and_after_the_tag() {
        let mut opener = opener();
        let body = sealer().seal(None, ROUTE, &farewell(NOW.wall)).unwrap();
        opener.open(ROUTE, body.clone(), NOW).unwrap();
        let later = NOW.after(OFFSET + Duration::from_millis(1));
        assert_eq!(opener.open(ROUTE, body.clone(), later).unwrap_err().reason(), Reason::Clock);
        let mut forged = body.to_vec();
        *forged.last_mut().unwrap() ^= 1;
        assert_eq!(opener.open(ROUTE, Bytes::from(forged), later), Err(Refusal::BadTag));
    }

    #[test]
    fn what_the_secrets_holders_seal_is_checked_too() {
        let cases = [
            ("payload", b"not a payload".to_vec()),
            ("node", vec![]),
            ("node", proto::Payload { node: "a\nb".into(), ..farewell(NOW.wall) }.encode_to_vec()),
            ("node", proto::Payload { node: "n".repeat(129), ..farewell(NOW.wall) }.encode_to_vec()),
            ("boot_id", proto::Payload { boot_id: vec![], ..farewell(NOW.wall) }.encode_to_vec()),
            ("boot_id", proto::Payload { boot_id: vec![1; 17], ..farewell(NOW.wall) }.encode_to_vec()),
        ];
        let (mut sealer, mut opener) = (sealer(), opener());
        for (field, text) in cases {
            let body = sealer.seal_encoded(None, ROUTE, text.len(), |buffer| buffer.put_slice(&text)).unwrap();
            assert_eq!(opener.open(ROUTE, body, NOW), Err(Refusal::Malformed(field)));
        }
        assert_eq!(opener.tracked(), 0);
    }

    #[test]
    fn a_kind_from_a_later_release_opens_as_none() {
        let mut text = farewell(NOW.wall).encode_to_vec();
        text.truncate(text.len() - 2);
        // Field 99, length-delimited, 3 bytes.
        text.extend([0x9a, 0x06, 3, b'n', b'e', b'w']);
        let body = sealer().seal_encoded(None, ROUTE, text.len(), |buffer| buffer.put_slice(&text)).unwrap();
        let opened = opener().open(ROUTE, body, NOW).unwrap();
        assert_eq!(opened.payload, proto::Payload { kind: None, ..farewell(NOW.wall) });
    }

    #[test]
    fn fields_from_a_later_release_are_passed_over_wherever_they_are() {
        // Field 99, length-delimited, 3 bytes.
        let newer = [0x9a, 0x06, 3, b'n', b'e', b'w'];
        let known = batch(1);
        let Some(proto::payload::Kind::Sessions(sessions)) = &known.kind else { panic!("{known:?}") };
        // In the entry, in the batch around it, and in the payload: tag, length, then what was there and the new field.
        let within = |tag: u8, inner: &[u8]| {
            let mut field = vec![tag];
            prost::encode_length_delimiter(inner.len() + newer.len(), &mut field).unwrap();
            [&field[..], inner, &newer].concat()
        };
        let entry = within(0x0a, &sessions.entries[0].encode_to_vec());
        let format = proto::SessionBatch { entries: Vec::new(), format: sessions.format }.encode_to_vec();
        let outer = proto::Payload { kind: None, ..known.clone() }.encode_to_vec();
        let kind = known.encode_to_vec()[outer.len()];
        let text = [&outer[..], &within(kind, &[&entry[..], &format].concat()), &newer].concat();
        let body = sealer().seal_encoded(None, ROUTE, text.len(), |buffer| buffer.put_slice(&text)).unwrap();
        assert_eq!(opener().open(ROUTE, body, NOW).unwrap().payload, known);
    }

    fn salted(salt: u8, sent_at: u64) -> Bytes {
        Sealer::new(secrets(&[1]), "prod", [salt; 16]).seal(None, ROUTE, &farewell(sent_at)).unwrap()
    }

    #[test]
    fn a_full_table_refuses_new_salts_until_old_ones_are_out_of_reach() {
        let mut opener = Opener { table: Table::new(TableLimits { windows: 2, live: 2 }, OFFSET), ..opener() };
        // Stamped as far ahead as is allowed, so fresh for as long as can be.
        let ahead = salted(1, NOW.wall + 300_000);
        opener.open(ROUTE, ahead.clone(), NOW).unwrap();
        opener.open(ROUTE, salted(2, NOW.wall), NOW.after(OFFSET)).unwrap();

        let last = NOW.after(2 * OFFSET);
        assert_eq!(opener.open(ROUTE, salted(3, last.wall), last), Err(Refusal::TableFull { node: "edge-1".into() }));
        assert_eq!(opener.open(ROUTE, ahead.clone(), last), Err(replay()));

        let due = last.after(Duration::from_millis(1));
        assert!(opener.open(ROUTE, salted(3, due.wall), due).is_ok());
        assert_eq!(opener.open(ROUTE, ahead, due).unwrap_err().reason(), Reason::Clock);
        assert_eq!(opener.tracked(), 2);
    }

    #[test]
    fn a_flood_of_forgeries_neither_fills_nor_empties_the_table() {
        let mut opener = Opener { table: Table::new(TableLimits { windows: 2, live: 2 }, OFFSET), ..opener() };
        let seen = [salted(1, NOW.wall), salted(2, NOW.wall)];
        for body in &seen {
            opener.open(ROUTE, body.clone(), NOW).unwrap();
        }
        let last = NOW.after(OFFSET);
        for salt in 0..=u8::MAX {
            let mut forged = salted(salt, last.wall).to_vec();
            *forged.last_mut().unwrap() ^= 0x80;
            assert_eq!(opener.open(ROUTE, Bytes::from(forged), last), Err(Refusal::BadTag));
        }
        assert_eq!(opener.tracked(), 2);
        for body in seen {
            assert_eq!(opener.open(ROUTE, body, last), Err(replay()));
        }
    }

    #[test]
    fn a_farm_secret_is_changed_in_three_steps_without_one_refusal() {
        // Known next to the old one, then first, then alone; every node takes each step in its own time.
        let steps = [&[1][..], &[1, 2], &[2, 1], &[2]];
        let mut nodes: Vec<(Sealer, Opener)> = (0..3)
            .map(|n| {
                let sealer = Sealer::new(secrets(steps[0]), "prod", [n; 16]);
                (sealer, Opener::new(secrets(steps[0]), "prod", OFFSET))
            })
            .collect();
        let mut sealed_under = HashSet::new();
        for step in &steps[1..] {
            for turn in 0..nodes.len() {
                let (sealer, opener) = &mut nodes[turn];
                sealer.set_secrets(secrets(step));
                opener.set_secrets(secrets(step));
                for from in 0..nodes.len() {
                    let body = nodes[from].0.seal(None, ROUTE, &farewell(NOW.wall)).unwrap();
                    sealed_under.insert(Header::decode(&body).unwrap().0.secret_id);
                    for (to, (_, opener)) in nodes.iter_mut().enumerate() {
                        let opened = opener.open(ROUTE, body.clone(), NOW);
                        let opened = opened.unwrap_or_else(|why| panic!("{from} to {to} in step {step:?}: {why}"));
                        assert_eq!(opened.missed, 0);
                    }
                }
            }
        }
        assert_eq!(sealed_under.len(), 2);
        let mut left_behind = Sealer::new(secrets(&[1]), "prod", [7; 16]);
        let body = left_behind.seal(None, ROUTE, &farewell(NOW.wall)).unwrap();
        assert_eq!(nodes[0].1.open(ROUTE, body, NOW), Err(Refusal::UnknownSecret));
    }

    #[test]
    fn a_secret_that_was_away_comes_back_without_its_replays() {
        let mut sealer = sealer();
        let mut opener = opener();
        let first = sealer.seal(None, ROUTE, &farewell(NOW.wall)).unwrap();
        opener.open(ROUTE, first.clone(), NOW).unwrap();
        opener.set_secrets(secrets(&[2]));
        assert_eq!(opener.open(ROUTE, first.clone(), NOW), Err(Refusal::UnknownSecret));
        opener.set_secrets(secrets(&[2, 1]));
        assert_eq!(opener.open(ROUTE, first, NOW), Err(replay()));
        let next = sealer.seal(None, ROUTE, &farewell(NOW.wall)).unwrap();
        assert_eq!(opener.open(ROUTE, next, NOW).unwrap().missed, 0);
    }

    #[test]
    fn reasons_are_the_labels_of_the_metric() {
        let clock = Refusal::Clock { node: "a".into(), boot_id: [0; 16], offset_ms: 0 };
        let expected = [
            (Refusal::UnknownSecret, "unknown_secret"),
            (Refusal::BadTag, "bad_tag"),
            (replay(), "replay"),
            (clock, "clock"),
            (Refusal::Malformed("salt"), "malformed"),
            (Refusal::TooLarge, "too_large"),
            (Refusal::TableFull { node: "a".into() }, "table_full"),
            (Refusal::UnknownEpoch, "unknown_epoch"),
            (Refusal::NotInEpoch { node: "a".into() }, "not_in_epoch"),
            (Refusal::Library(String::new()), "library"),
        ];
        for (refusal, reason) in expected {
            assert_eq!(refusal.reason().as_str(), reason);
        }
    }

    #[test]
    fn debug_shows_counts_and_ids_only() {
        let mut opener = opener();
        opener.open(ROUTE, salted(9, NOW.wall), NOW).unwrap();
        let id = format!("{:016x}", u64::from_be_bytes(secrets(&[1]).sealing().id()));
        let expected = format!(
            "Opener {{ farm: \"prod\", secrets: Secrets([FarmSecret {{ id: \"{id}\", .. }}]), tracked: 1, .. }}"
        );
        assert_eq!(format!("{opener:?}"), expected);
    }
}
