//! What comes over the two Unix sockets, both ways.

use std::convert::Infallible;
use std::future::Future;
use std::io::Write;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::{Buf, Bytes};
use resumed::internals::daemon::{ControlCall, IDLE, converse};
use resumed::internals::keys::Timetable;
use resumed::internals::operator::wait_of;
use resumed::internals::proto::limits::decode_within;
use resumed::internals::proto::local::{
    CONTROL_REPLY, CONTROL_REQUEST, ControlReply, ControlRequest, Welcome, control_reply, control_request,
};
use resumed::internals::proxies::{ProxyPlane, Registry, SharedOutbox, ats};
use resumed::internals::reason::ProxyReason::{Garbage, Io, NoHello, TooLarge, Truncated};
use resumed::internals::sessions::Store;
use resumed::{SessionSettings, SystemClock};
use resumed_ats::from_daemon::{FromDaemon, decode};
use resumed_ats::incoming::keep;
use resumed_ats::replica::Replica;
use resumed_ats::session::{SessionId, expiry};
use resumed_ats::tickets::{OwnKeys, RECORD_BYTES};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{broadcast, mpsc, watch};
use zeroize::Zeroizing;

use crate::NOW;

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_all().build().expect("a runtime"));

/// Has `serve` talk to somebody who sends `data`, says no more, and takes what is answered without a look. `data` may be longer
/// than what a socket holds.
fn talk<S: Future>(data: &[u8], serve: impl FnOnce(UnixStream) -> S) -> S::Output {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair of sockets");
    ours.set_nonblocking(true).expect("a socket for tokio");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Who has heard enough closes, and misses the rest.
            let _cut = (&theirs).write_all(data);
            let _gone = theirs.shutdown(std::net::Shutdown::Write);
        });
        scope.spawn(|| std::io::copy(&mut &theirs, &mut std::io::sink()));
        RUNTIME.block_on(async { serve(UnixStream::from_std(ours).expect("a socket for tokio")).await })
    })
}

/// What a proxy's plugin sends: frames with their lengths.
pub fn from_proxy(data: &[u8]) {
    let (_keys, timetable) = watch::channel(Arc::new(Timetable::default()));
    let plane = Arc::new(ProxyPlane {
        timetable,
        from_farm: broadcast::Sender::new(4),
        outbox: Arc::new(SharedOutbox::new(1 << 20)),
        store: Arc::new(Store::new(
            SessionSettings { max_bytes: 1 << 20, ..SessionSettings::default() },
            Duration::from_secs(600),
        )),
        registry: Arc::new(Registry::default()),
        clock: SystemClock::start(),
        welcome: Welcome { replicate: true, removals: true, ..Welcome::default() },
    });
    let ended = talk(data, |stream| ats::converse(stream, Arc::clone(&plane)));
    assert!(matches!(ended, Ok(()) | Err(NoHello | TooLarge | Truncated | Garbage | Io)), "{ended:?}");
    assert!(plane.registry.is_empty());
    assert!(plane.store.bytes() <= 1 << 20 && plane.outbox.bytes() <= 1 << 20);
}

/// What somebody sends to the control socket: frames with their lengths.
pub fn control(data: &[u8]) {
    let ended = talk(data, |stream| async move {
        let (calls, mut called) = mpsc::channel::<ControlCall>(1);
        let answers = tokio::spawn(async move {
            let mut count = 0_usize;
            while let Some(ControlCall { request, replies, .. }) = called.recv().await {
                match request {
                    control_request::Kind::Rotate(command) => assert!(wait_of(command.wait_ms) > Duration::ZERO),
                    control_request::Kind::Revoke(command) => assert!(wait_of(command.wait_ms) > Duration::ZERO),
                    control_request::Kind::Status(_) | control_request::Kind::Reload(_) => {}
                }
                let kind = Some(control_reply::Kind::StatusJson(b"{}".to_vec()));
                // Who closed misses it.
                let _gone = replies.send(ControlReply { kind }).await;
                count += 1;
            }
            count
        });
        let ended = converse(stream, &calls, IDLE).await;
        drop(calls);
        (ended, answers.await.expect("no panic"))
    });
    let (ended, answered) = ended;
    let asks = |frame: &[u8]| matches!(decode_within(frame, &CONTROL_REQUEST), Ok(ControlRequest { kind: Some(_) }));
    let good = frames(data).take_while(|frame| asks(frame)).count();
    assert!(answered <= good, "{answered} requests were taken for {good}: {ended:?}");
    // The other direction: what the command reads.
    let _reply = decode_within::<ControlReply>(data, &CONTROL_REPLY);
}

fn frames(mut data: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = data.split_first_chunk()?;
        let (frame, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        data = rest;
        Some(frame)
    })
}

/// What the daemon sends to the plugin: one frame, its length left out, behind two bytes that say how much later it is.
pub fn to_proxy(mut data: &[u8]) {
    if data.len() < 2 {
        return;
    }
    let later = u64::from(data.get_u16());
    let Ok(message) = decode(Bytes::copy_from_slice(data)) else { return };
    match message {
        FromDaemon::Timetable(timetable) => {
            let mut own = OwnKeys::default();
            for wall in [0, later, NOW.wall, NOW.wall + later.pow(3), u64::MAX] {
                let random = || Ok::<_, Infallible>(Zeroizing::new([0xee; RECORD_BYTES]));
                let choice = own.choose(&timetable, wall, random).unwrap_or_else(|never| match never {});
                assert!(!choice.records.is_empty() && choice.records.len().is_multiple_of(RECORD_BYTES));
                assert_eq!(choice.own_key_seals, timetable.seal_at(wall).is_none());
                if let Some(seal) = timetable.seal_at(wall) {
                    assert_eq!(choice.records[..16], seal.name, "the sealing key is not the first");
                }
                assert!(timetable.next_change(wall).is_none_or(|change| change > wall));
            }
        }
        FromDaemon::Sessions(entries) => {
            let replica = Replica::new(0);
            let now = NOW.wall / 1000;
            let kept = Replica::new(0);
            let refused = keep(&kept, entries.clone(), now, |id| assert!(kept.copy(id, 0, &mut [0; 256]).is_none()));
            assert!(kept.size().0 + refused.faulty + refused.too_large <= entries.len() as u64);
            for entry in entries {
                let Some(id) = SessionId::new(&entry.id) else { continue };
                if entry.session.is_empty() {
                    replica.remove(&id);
                    continue;
                }
                let expires = expiry(&entry.session, &id).unwrap_or(now + 1);
                replica.insert(&id, &entry.session, expires);
                let mut copy = vec![0; entry.session.len()];
                if let Some(length) = replica.copy(&id, now, &mut copy) {
                    assert_eq!(copy[..length], entry.session[..]);
                }
            }
            replica.sweep(now + later);
        }
        FromDaemon::Welcome(_) | FromDaemon::Unknown => {}
    }
}
