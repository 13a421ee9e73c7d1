//! What comes from the broker, and the ring that a restart reads back.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::{Buf, Bytes};
use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::sha::sha256;
use openssl::sign::Signer;
use openssl::symm::{Cipher, encrypt_aead};
use prost::Message;
use resumed::internals::envelope::{EpochKey, Epochs, Opener, Refusal, is_node_name, is_sealed_without_epoch};
use resumed::internals::farm::{Ask, Event, Farm, FarmSettings};
use resumed::internals::keys::{HeldRing, Ring, read_back};
use resumed::internals::proto;
use resumed::internals::proto::limits::decode_within;
use resumed::internals::proto::payload::Kind;
use resumed::internals::routes::{Names, Seat, Via};
use resumed::internals::sessions::warmup::{Donor, Due, Joiner, PodNode, WarmupAction};
use resumed::internals::sessions::{Store, validate};
use resumed::{FarmSecret, KeySettings, Now, Removals, Secrets, SessionSettings};

use crate::NOW;

const FARM: &str = "fuzz";
const POD: &str = "pod";
const SECRET: [u8; 32] = [0x5a; 32];
const EPOCH: [u8; 32] = [0xe9; 32];
const SALT: [u8; 16] = [0x11; 16];
/// What the joiner draws for everything: a chunk that answers can be made beforehand.
const WARMUP_ID: u64 = 7;
/// What one message makes a node do, at most: a note for each reason, and what is due anyway.
const MOST_ACTIONS: usize = 64;
const MAX_CLOCK_OFFSET: Duration = Duration::from_secs(300);

static SECRETS: LazyLock<Arc<Secrets>> = LazyLock::new(|| {
    let secret = FarmSecret::from_bytes(&SECRET).expect("OpenSSL derives an id");
    Arc::new(Secrets::new(vec![secret]).expect("one secret"))
});
static NAMES: LazyLock<Names> = LazyLock::new(|| Names::new(FARM, POD));
static SECRET_ID: LazyLock<Vec<u8>> = LazyLock::new(|| hkdf(&SECRET, b"", b"resumed/1 id")[..8].to_vec());
/// Keys of an envelope: under the farm secret alone, and in the epoch.
static KEYS: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
    let info = format!("resumed/1|{FARM}|{}", NAMES.keys);
    [&SECRET[..], &[SECRET, EPOCH].concat()].map(|secret| hkdf(secret, &SALT, info.as_bytes()))
});
static EPOCHS: LazyLock<Arc<Epochs>> = LazyLock::new(|| {
    let mut epochs = Epochs::new(Duration::ZERO);
    epochs.lead_to(EpochKey::from_random(&EPOCH).expect("OpenSSL derives an id"), NOW);
    Arc::new(epochs)
});

/// RFC 5869 with SHA-256, for at most 32 bytes of output.
fn hkdf(secret: &[u8], salt: &[u8], info: &[u8]) -> Vec<u8> {
    let hmac = |key: &[u8], text: &[u8]| {
        // An empty salt stands for one of zeros.
        let key = PKey::hmac(if key.is_empty() { &[0; 32] } else { key }).expect("a key");
        let mut signer = Signer::new(MessageDigest::sha256(), &key).expect("HMAC");
        signer.sign_oneshot_to_vec(text).expect("HMAC")
    };
    hmac(&hmac(salt, secret), &[info, &[1]].concat())
}

/// Seals any bytes at all under the farm secret, alone or in the epoch, as the format's description in `src/envelope/mod.rs`
/// says.
fn seal(text: &[u8], in_epoch: bool, sequence: u64) -> Bytes {
    let epoch = if in_epoch { EPOCHS.current().map_or([0; 8], EpochKey::id) } else { [0; 8] };
    let mut header = Vec::new();
    for field in [&1_u32.to_be_bytes()[..], &SECRET_ID, &epoch, &SALT, &sequence.to_be_bytes()] {
        header.extend_from_slice(&u32::try_from(field.len()).expect("a length").to_be_bytes());
        header.extend_from_slice(field);
    }
    let nonce = [&[0; 4][..], &sequence.to_be_bytes()].concat();
    let mut tag = [0; 16];
    let sealed =
        encrypt_aead(Cipher::aes_256_gcm(), &KEYS[usize::from(in_epoch)], Some(&nonce), &header, text, &mut tag);
    let envelope = proto::Envelope {
        version: 1,
        secret_id: Bytes::copy_from_slice(&SECRET_ID),
        epoch: Bytes::copy_from_slice(&epoch),
        salt: Bytes::from_static(&SALT),
        sequence,
        ciphertext: [sealed.expect("sealed"), tag.to_vec()].concat().into(),
    };
    envelope.encode_to_vec().into()
}

/// Bytes from the broker: as they are if the first byte is even, else sealed under the right key, so that only what is
/// inside can be wrong, in the epoch if its second bit is set. The second and third are the sequence then.
pub fn envelope(data: &[u8]) {
    let mut opener = Opener::new(Arc::clone(&SECRETS), FARM, MAX_CLOCK_OFFSET);
    opener.set_epochs(Arc::clone(&EPOCHS));
    let Some((&mode, rest)) = data.split_first() else { return };
    if mode % 2 == 0 {
        // No fuzzer finds a tag.
        let refusal =
            opener.open(&NAMES.keys, Bytes::copy_from_slice(rest), NOW).expect_err("opened without the secret");
        assert!(matches!(
            refusal.reason().as_str(),
            "too_large" | "malformed" | "unknown_secret" | "unknown_epoch" | "bad_tag"
        ));
        assert_eq!(opener.tracked(), 0, "a refused envelope left a trace");
        return;
    }
    let Some((sequence, text)) = rest.split_first_chunk() else { return };
    let in_epoch = mode & 2 != 0;
    let sealed = seal(text, in_epoch, u64::from(u16::from_be_bytes(*sequence)) << (mode / 4));
    match opener.open(&NAMES.keys, sealed.clone(), NOW) {
        Ok(opened) => {
            assert!(is_node_name(&opened.payload.node) && opened.payload.boot_id.len() == 16);
            assert!(opened.payload.sent_at.abs_diff(NOW.wall) <= 300_000);
            assert!(
                in_epoch || opened.payload.kind.as_ref().is_none_or(is_sealed_without_epoch),
                "{:?}",
                opened.payload.kind
            );
            let again = opener.open(&NAMES.keys, sealed, NOW);
            assert!(matches!(again, Err(Refusal::Replay { .. })), "opened twice: {again:?}");
        }
        Err(refusal) => {
            let of_alone = !in_epoch && matches!(refusal, Refusal::NotInEpoch { .. });
            let of_text = matches!(
                refusal,
                Refusal::Malformed(_) | Refusal::TooMany { .. } | Refusal::Clock { .. } | Refusal::TooLarge
            );
            assert!(of_alone || of_text, "{refusal}");
            assert_eq!(opener.tracked(), 0, "a refused envelope left a trace");
        }
    }
}

/// What a node does with messages of a holder of the farm secret. The first byte says what node it is; then come records
/// of a byte that says how the message comes and how much time has passed, its length (16 bits), and a `Payload`.
pub fn payload(data: &[u8]) {
    let Some((&start, mut rest)) = data.split_first() else { return };
    // The second host's clock is that of a machine without a battery.
    let mut now = if start & 1 == 0 { NOW } else { Now { wall: 1000, mono: NOW.mono } };
    let settings = KeySettings::default();
    let mut farm = Farm::new(farm_settings(settings), HeldRing::new(settings), randomness(), now);
    let removals = if start & 2 == 0 { Removals::Replicate } else { Removals::Keep };
    let sessions = SessionSettings { max_bytes: 1 << 20, removals, ..SessionSettings::default() };
    let store = Store::new(sessions, 2 * MAX_CLOCK_OFFSET);
    let (mut joiner, mut donor) =
        (Joiner::new(Box::new(|bytes| bytes.copy_from_slice(&WARMUP_ID.to_le_bytes()))), Donor::default());
    joiner.feed_up(NAMES.feed("fuzz", "1"), now);
    donor.feed_up(NAMES.feed("fuzz", "1"));
    // It has called: what comes may be an answer.
    now = now.after(Duration::from_secs(1));
    drop(joiner.wake(false, now));
    drop(farm.handle(now, Event::Connected { inbox: NAMES.inbox("fuzz", "1") }));
    if start & 4 != 0 {
        drop(farm.handle(now, Event::LeaseGranted(Seat::FIRST)));
    }
    if start & 8 != 0 {
        let ask = if start & 16 == 0 { Ask::Status } else { Ask::Rotate };
        drop(farm.handle(now, Event::Ask { id: 1, ask, user: String::new() }));
    }
    while rest.remaining() >= 3 {
        let how = rest.get_u8();
        // The longest length stands for all that is left.
        let length = match rest.get_u16() {
            u16::MAX => rest.len(),
            length => usize::from(length).min(rest.len()),
        };
        let (message, after) = rest.split_at(length);
        rest = after;
        now = now.after(Duration::from_millis(u64::from(how >> 2).pow(3)));
        let via = if how & 1 == 0 { Via::Inbox } else { Via::Lease };
        let Ok(mut payload) = decode_within::<proto::Payload>(message, &proto::PAYLOAD) else { continue };
        // What an opener has seen to.
        payload.boot_id.resize(16, 0);
        if !is_node_name(&payload.node) {
            payload.node = "other".into();
        }
        payload.sent_at = now.wall.saturating_sub(300_000).saturating_add(payload.sent_at % 600_001);
        if how & 2 != 0 {
            // As it comes through the session feed.
            let peer = PodNode { node: payload.node, boot_id: payload.boot_id.try_into().expect("resized") };
            let sending = match payload.kind {
                Some(Kind::Sessions(batch)) => {
                    let entries = batch.entries.len();
                    let applied = store.remote(batch, now);
                    let dropped: u64 = applied.dropped.values().sum();
                    assert_eq!(applied.sessions + applied.removals + dropped, entries as u64);
                    Vec::new()
                }
                Some(Kind::WarmupCall(call)) => donor.on_call(&peer, &call, &joiner, &store, now),
                Some(Kind::WarmupOffer(offer)) => joiner.on_offer(peer, offer, now),
                Some(Kind::WarmupRequest(request)) => donor.on_request(peer, request, &store, now),
                Some(Kind::Warmup(chunk)) => {
                    let (next, mut sending) = joiner.on_chunk(&peer, &chunk, now);
                    if next {
                        let (sessions, tombstones) = (chunk.entries.len() as u64, chunk.tombstones.len() as u64);
                        let last = chunk.last;
                        drop(store.warm(chunk, now));
                        drop(store.apply_tombstones(now));
                        sending.extend(joiner.chunk_taken(sessions, tombstones, last, now));
                    }
                    sending
                }
                _ => Vec::new(),
            };
            // The joiner's calls are told what to expect: an offer that follows may answer them.
            drop((sending, joiner.wake(false, now)));
            if let (Due::Now, _) = donor.due(false, now)
                && let Some(WarmupAction::Send { kind: Kind::Warmup(chunk), .. }) = donor.next_chunk(&store, 4096, now)
            {
                assert!(chunk.encoded_len() <= 4096 + 16 * 1024 + 1024, "a chunk of {} bytes", chunk.encoded_len());
            }
            assert!(store.bytes() <= 1 << 20);
            continue;
        }
        let actions = farm.handle(now, Event::Message { payload: Box::new(payload), via });
        assert!(actions.len() <= MOST_ACTIONS, "{} actions after one message", actions.len());
        check(farm.held(), now);
        assert!(farm.next_wake(now) > now.mono);
        let (members, in_step) = farm.member_counts();
        assert!(!farm.is_leader() || in_step <= members);
    }
    store.sweep(now);
}

fn farm_settings(keys: KeySettings) -> FarmSettings {
    FarmSettings {
        node: "fuzz".into(),
        boot_id: [0xfe; 16],
        pod: POD.into(),
        version: "0".into(),
        names: NAMES.clone(),
        keys,
        report_every: Duration::from_secs(2),
        start_alone_after: Duration::from_secs(10),
        can_lead: true,
    }
}

/// Never the same bytes twice within a run, always the same run.
fn randomness() -> resumed::internals::random::Randomness {
    let mut state = 1_u64;
    Box::new(move |bytes| {
        for byte in bytes {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = (state >> 56) as u8;
        }
    })
}

/// What holds of every ring that a node holds.
fn check(held: &HeldRing, now: Now) {
    let (ring, settings) = (held.ring(), held.settings());
    assert!(ring.keys().len() <= Ring::CAP);
    assert!(ring.keys().is_sorted_by(|a, b| a.order() > b.order()), "out of order, or one key twice");
    // Above a generation just inside max_clock_offset a key minted at once is outside, by a millisecond a key: no node takes
    // it before that has passed, and then all do.
    let soon = Now { wall: now.wall + Ring::CAP as u64, ..now };
    for (place, key) in ring.keys().iter().enumerate() {
        assert!(key.generation >= ring.floor());
        assert_eq!(key.check(soon, settings), Ok(()));
        assert!(ring.keys()[..place].iter().all(|other| other.name != key.name), "two keys of one name");
    }
    let timetable = held.timetable(now);
    let set = timetable.at(now.wall);
    assert_eq!(set.seal.map(|entry| entry.name), held.active(now).map(|key| key.name));
    assert!(timetable.next_change(now.wall).is_none_or(|change| change > now.wall));
    assert!(held.next_change(now).is_none_or(|change| change > now.wall));
}

/// The first message behind its length in two bytes, and the rest; the longest length stands for all that is there.
fn one_of_two(mut data: &[u8]) -> Option<(&[u8], &[u8])> {
    if data.remaining() < 2 {
        return None;
    }
    let length = data.get_u16();
    let length = if length == u16::MAX { data.len() } else { usize::from(length).min(data.len()) };
    Some(data.split_at(length))
}

/// Two rings of other nodes, one behind the other, each behind its length (16 bits): they merge into one, whatever the order.
pub fn ring(mut data: &[u8]) {
    let settings = KeySettings::default();
    let mut rings = Vec::new();
    for _ in 0..2 {
        let Some((message, rest)) = one_of_two(data) else { return };
        data = rest;
        let Ok(message) = decode_within::<proto::Ring>(message, &proto::RING) else { return };
        let (ring, faults) = Ring::read(&message, NOW, &settings);
        assert!(ring.keys().len() as u64 + faults.count() <= message.keys.len() as u64 + 2);
        rings.push(ring);
    }
    let joined = |first: &Ring, second: &Ring| {
        let mut ring = first.clone();
        ring.merge(second);
        ring
    };
    let (one, other) = (&rings[0], &rings[1]);
    let both = joined(one, other);
    assert_eq!(both, joined(other, one), "not commutative");
    assert_eq!(both, joined(&both, other), "not idempotent");
    assert_eq!(*one, joined(one, one), "not idempotent");
    assert_eq!(both.fingerprint(NOW.wall), joined(other, one).fingerprint(NOW.wall));

    let (sent, faults) = Ring::read(&both.to_proto(NOW.wall), NOW, &settings);
    assert!(faults.is_empty(), "what a node sends is good: {faults:?}");
    assert!(sent.open_at(NOW.wall).eq(both.open_at(NOW.wall)), "a ring changes on its way");

    let mut held = HeldRing::new(settings);
    held.merge(&both, NOW);
    check(&held, NOW);
    held.expire(NOW);
    check(&held, NOW);
}

/// A saved ring: as it is if the first byte is even, else behind the right header.
pub fn ring_file(data: &[u8]) {
    let Some((&mode, body)) = data.split_first() else { return };
    let contents =
        if mode % 2 == 0 { body.to_vec() } else { [b"resumed ring 1\n\0", &sha256(body)[..], body].concat() };
    if let Ok(restored) = read_back(&contents, FARM, KeySettings::default(), NOW) {
        check(&restored.held, NOW);
    }
}

/// A session under an ID: a byte of the ID's length, the ID, and the DER. The daemon takes none that the plugin does not
/// read in the same way.
pub fn session(data: &[u8]) {
    let Some((&length, rest)) = data.split_first() else { return };
    let Some((id, der)) = rest.split_at_checked(usize::from(length)) else { return };
    let read = resumed_ats::session::SessionId::new(id).and_then(|id| resumed_ats::session::expiry(der, &id));
    if let Ok(session) = validate(id, der, NOW.wall, 16 * 1024) {
        assert_eq!(session.id.as_bytes(), id);
        assert!(session.expires_at > NOW.wall);
        if session.expires_at < u64::MAX {
            assert_eq!(read, Some(session.expires_at / 1000), "the plugin reads another expiry");
        }
    }
}
