//! What one step costs, by criterion: nanoseconds of CPU where nothing else happens.
//!
//! Beside what a node does itself stand the two things that bound it: AES-256-GCM over as many bytes, and OpenSSL's own
//! reading of a session.

use std::fs::File;
use std::hint::black_box;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BatchSize, Criterion};
use openssl::ssl::SslSession;
use openssl::symm::{Cipher, encrypt_aead};
use prost::Message;
use resumed::internals::envelope::{EpochKey, Epochs, Opener, Sealer};
use resumed::internals::keys::Ring;
use resumed::internals::proto;
use resumed::internals::proxies::SharedOutbox;
use resumed::internals::sessions::{Cache, Store, validate};
use resumed::{FarmSecret, KeySettings, Now, Secrets, SessionSettings, SystemClock};
use resumed_ats::queue::Queue;
use resumed_ats::replica::Replica;
use resumed_ats::report::Report as SessionReport;
use resumed_ats::sender::SharedSender;
use resumed_ats::session::SessionId as ReplicaId;

use crate::report::Report;
use crate::samples::Sample;

const ROUTE: &str = "resumed.test.sessions.default";
/// A full batch: 96 KiB.
pub const BATCH_SESSIONS: u64 = 390;
/// Sessions that a cache or replica holds while one more is looked at.
const HELD: u64 = 100_000;

/// Measures every step, and notes the median of each.
pub fn run(_: &testkit::broker::Broker, report: &mut Report) {
    let folder = Report::folder().join("criterion");
    // What an earlier run found is no answer.
    if let Err(error) = std::fs::remove_dir_all(&folder) {
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{}: {error}", folder.display());
    }
    let mut criterion = Criterion::default()
        .without_plots()
        .output_directory(&folder)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    let sample = Sample::make();
    envelope(&mut criterion, &sample);
    batches(&mut criterion, &sample);
    sessions(&mut criterion, &sample);
    keys(&mut criterion);
    hook(&mut criterion, &sample);
    for name in NAMES {
        report.add(&format!("micro_{name}_nanoseconds"), median(&folder, name));
    }
}

const NAMES: [&str; 18] = [
    "seal_batch",
    "open_batch",
    "aes_256_gcm_of_a_batch",
    "copy_of_64_mebibytes",
    "encode_batch",
    "decode_batch",
    "outbox_push_and_take_batch",
    "validate_session",
    "openssl_decode_session",
    "cache_insert",
    "cache_look_up",
    "store_remote_batch",
    "ring_merge_same",
    "ring_merge_new_key",
    "hook_report_to_socket",
    "hook_report_to_queue",
    "hook_look_up_hit",
    "hook_look_up_miss",
];

fn median(folder: &Path, name: &str) -> f64 {
    let file = folder.join(name).join("new/estimates.json");
    let opened = File::open(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let estimates: serde_json::Value = serde_json::from_reader(opened).expect("criterion's estimates");
    estimates["median"]["point_estimate"].as_f64().expect("a median")
}

fn batch(sample: &Sample, from: u64, wall: u64) -> proto::SessionBatch {
    let entry = |number| sample.session(number, wall);
    proto::SessionBatch {
        entries: (from..from + BATCH_SESSIONS).map(entry).collect(),
        format: proto::SessionFormat::OpensslDer.into(),
    }
}

fn payload(batch: proto::SessionBatch, wall: u64) -> proto::Payload {
    proto::Payload {
        node: "a.example.net".to_owned(),
        boot_id: vec![7; 16],
        sent_at: wall,
        kind: Some(proto::payload::Kind::Sessions(batch)),
    }
}

/// An epoch that has begun.
fn epochs(now: Now) -> Epochs {
    let mut epochs = Epochs::new(Duration::ZERO);
    let key = EpochKey::from_random(&[5; 32]).expect("a key");
    assert!(epochs.lead_to(key, now), "a new epoch");
    epochs
}

fn envelope(criterion: &mut Criterion, sample: &Sample) {
    let now = SystemClock::start().now();
    let secrets = || Arc::new(Secrets::new(vec![FarmSecret::from_bytes(&[3; 32]).expect("a secret")]).expect("one"));
    let (epochs, payload) = (Arc::new(epochs(now)), payload(batch(sample, 0, now.wall), now.wall));
    let epoch = epochs.current().expect("an epoch");
    let mut sealer = Sealer::new(secrets(), "test", [9; 16]);
    let mut opener = Opener::new(secrets(), "test", Duration::from_secs(300));
    opener.set_epochs(Arc::clone(&epochs));
    let mut seal = || sealer.seal(Some(epoch), ROUTE, &payload).expect("sealed");
    criterion.bench_function("seal_batch", |bench| bench.iter(&mut seal));
    criterion.bench_function("open_batch", |bench| {
        bench.iter_batched(&mut seal, |body| opener.open(ROUTE, body, now).expect("opened"), BatchSize::SmallInput);
    });
    let (text, mut tag) = (payload.encode_to_vec(), [0; 16]);
    criterion.bench_function("aes_256_gcm_of_a_batch", |bench| {
        bench.iter(|| {
            encrypt_aead(Cipher::aes_256_gcm(), &[1; 32], Some(&[2; 12]), &[], black_box(&text), &mut tag)
                .expect("encrypted")
        });
    });
    let (from, mut to) = (vec![1_u8; 64 << 20], vec![0_u8; 64 << 20]);
    criterion.bench_function("copy_of_64_mebibytes", |bench| bench.iter(|| to.copy_from_slice(black_box(&from))));
}

fn batches(criterion: &mut Criterion, sample: &Sample) {
    let wall = SystemClock::start().now().wall;
    let batch = batch(sample, 0, wall);
    let encoded = Bytes::from(batch.encode_to_vec());
    criterion.bench_function("encode_batch", |bench| bench.iter(|| black_box(&batch).encode_to_vec()));
    criterion.bench_function("decode_batch", |bench| {
        bench.iter(|| proto::SessionBatch::decode(black_box(encoded.clone())).expect("a batch"));
    });
    let outbox = SharedOutbox::new(1 << 20);
    criterion.bench_function("outbox_push_and_take_batch", |bench| {
        bench.iter(|| {
            assert_eq!(outbox.push_all(&batch.entries), 0, "nothing is dropped");
            std::iter::from_fn(|| outbox.take(96 * 1024)).collect::<Vec<_>>()
        });
    });
}

fn sessions(criterion: &mut Criterion, sample: &Sample) {
    let now = SystemClock::start().now();
    let ders: Vec<_> = (0..HELD).map(|number| (Sample::id(number), sample.der(number))).collect();
    let read = |(id, der): &([u8; 32], Vec<u8>)| validate(&id[..], der, now.wall, 16 * 1024).expect("a session");
    criterion.bench_function("validate_session", |bench| bench.iter(|| read(black_box(&ders[0]))));
    criterion.bench_function("openssl_decode_session", |bench| {
        bench.iter(|| SslSession::from_der(black_box(&ders[0].1)).expect("a session"));
    });

    let mut cache = Cache::new(1 << 30);
    let mut number = HELD;
    for held in &ders {
        assert_eq!(cache.insert(&read(held), &held.1), Some(0), "room for it");
    }
    let known: Vec<_> = ders.iter().map(|held| read(held).id).collect();
    let mut turn = (0..known.len()).cycle();
    criterion.bench_function("cache_look_up", |bench| {
        bench.iter(|| cache.get(&known[turn.next().expect("for ever")]).expect("held").len());
    });
    criterion.bench_function("cache_insert", |bench| {
        let made = || {
            number += 1;
            let der = sample.der(number);
            (validate(&Sample::id(number), &der, now.wall, 16 * 1024).expect("a session"), der)
        };
        bench.iter_batched(made, |(session, der)| cache.insert(&session, &der), BatchSize::SmallInput);
    });

    let store = Store::new(SessionSettings::default(), Duration::from_secs(600));
    let mut from = 0;
    criterion.bench_function("store_remote_batch", |bench| {
        let made = || {
            from += BATCH_SESSIONS;
            batch(sample, from, now.wall)
        };
        bench.iter_batched(made, |batch| store.remote(batch, now), BatchSize::SmallInput);
    });
}

fn keys(criterion: &mut Criterion) {
    let now = SystemClock::start().now();
    let settings = KeySettings::default();
    let key = |number: u8| proto::TicketKey {
        name: vec![number; 16],
        hmac: vec![number; 32],
        aes: vec![number; 32],
        generation: now.wall - 1_000 + u64::from(number),
        seal_from: now.wall,
        seal_until: now.wall + 1_000_000,
        open_for: 1_000_000,
    };
    let read = |count: u8| {
        let message = proto::Ring { floor: 0, keys: (1..=count).map(key).collect(), sessions_from: 0 };
        let (ring, faults) = Ring::read(&message, now, &settings);
        assert!(faults.is_empty() && ring.keys().len() == usize::from(count), "{faults:?}");
        ring
    };
    let (held, newer) = (read(4), read(5));
    criterion.bench_function("ring_merge_same", |bench| {
        let mut ring = held.clone();
        bench.iter(|| ring.merge(black_box(&held)));
    });
    criterion.bench_function("ring_merge_new_key", |bench| {
        bench.iter_batched(|| held.clone(), |mut ring| ring.merge(black_box(&newer)).changed, BatchSize::SmallInput);
    });
}

/// What the hook does apart from what it asks of ATS.
fn hook(criterion: &mut Criterion, sample: &Sample) {
    let wall = SystemClock::start().now().wall;
    let (session_id, der) = (ReplicaId::new(&Sample::id(1)).expect("an ID"), sample.der(1));
    let report = || {
        let der = |room: &mut [u8]| {
            room[..der.len()].copy_from_slice(black_box(&der));
            der.len()
        };
        SessionReport::new(&session_id, wall, der).expect("room for it")
    };
    let queue = Queue::new(16);
    let sender = SharedSender::default();
    let (ours, mut daemons) = UnixStream::pair().expect("a pair of sockets");
    daemons.set_nonblocking(true).expect("a socket");
    sender.open(ours);
    let mut buffer = vec![0; 64 * 1024];
    // Nobody waits at the other end: what a wake-up costs, it costs elsewhere. What was sent is read in between, or the socket fills up.
    criterion.bench_function("hook_report_to_socket", |bench| {
        bench.iter_custom(|times| {
            let mut took = Duration::ZERO;
            for from in (0..times).step_by(100) {
                let start = Instant::now();
                let sent = (from..times.min(from + 100)).filter(|_| sender.send_now(&report(), &queue)).count();
                took += start.elapsed();
                assert_eq!(sent as u64, times.min(from + 100) - from, "a socket with room");
                while daemons.read(&mut buffer).is_ok() {}
            }
            took
        });
    });
    sender.close();
    // A full queue, which fills its oldest batch anew.
    criterion.bench_function("hook_report_to_queue", |bench| {
        bench.iter(|| queue.push(&report()));
    });

    let replica = Replica::new(256 << 20);
    let id = |number| ReplicaId::new(&Sample::id(number)).expect("an ID");
    let seconds = wall / 1_000;
    for number in 0..HELD {
        replica.insert(&id(number), &sample.der(number), seconds + 3_600);
    }
    let mut into = vec![0; 16 * 1024];
    for (name, from) in [("hook_look_up_hit", 0), ("hook_look_up_miss", HELD)] {
        let mut number = (from..from + HELD).cycle();
        criterion.bench_function(name, |bench| {
            bench.iter(|| {
                let found = replica.copy(&id(number.next().expect("for ever")), seconds, &mut into);
                assert_eq!(found.is_some(), from == 0, "a hit or a miss, as its name says");
            });
        });
    }
}
