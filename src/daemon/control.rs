//! The control socket, on which the commands `status`, `rotate`, `revoke` and `reload` reach the daemon.
//!
//! Each message is a protobuf ([`ControlRequest`], [`ControlReply`]) in a frame (`proto::frame`). A connection carries any
//! number of requests, one at a time: the next may be sent when the last reply to the one before has come. Only root, the
//! daemon's own user and the members of one group can open it: the file's rights say so.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use nix::sys::socket::Backlog;
use nix::unistd::Group;
use prost::Message;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::codec::{Framed, LengthDelimitedCodec, LengthDelimitedCodecError};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::settings::ControlSettings;
use crate::clock::SystemClock;
use crate::log_limiter::LogLimiter;
use crate::metrics::CONTROL_REFUSED;
use crate::proto::frame::{MOST_REPLY_BYTES, MOST_REQUEST_BYTES};
use crate::proto::limits::decode_within;
use crate::proto::local::{CONTROL_REQUEST, ControlReply, ControlRequest, control_reply, control_request};
use crate::reason::ControlReason;
use crate::unix_socket::{FreshSocket, SocketError, SocketOptions, bind_fresh};

/// The most connections at a time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 64;

/// How long a connection may stay silent between requests, or take to send one or to take a reply.
pub const IDLE: Duration = Duration::from_secs(30);

/// One request to the daemon.
///
/// Whoever receives it sends any number of replies and drops `replies` after the last. A reply that cannot be sent
/// means that the asker has gone, and the rest of the work may be left.
#[derive(Debug)]
pub struct ControlCall {
    /// What is asked.
    pub request: control_request::Kind,
    /// The effective user of the process that connected, as the kernel says it (`SO_PEERCRED`), if it does.
    pub uid: Option<u32>,
    /// Where the replies go.
    pub replies: mpsc::Sender<ControlReply>,
}

/// A control socket that is open, but not yet served.
#[derive(Debug)]
pub(crate) struct ControlSocket {
    socket: FreshSocket,
    idle: Duration,
}

impl ControlSocket {
    /// Opens the socket: mode 0660 for the group, or 0600 with a line in the log if there is no such group or the
    /// daemon may not give files to it. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// If the settings cannot work, another daemon serves it, or it cannot be made.
    pub(crate) fn open(settings: &ControlSettings) -> Result<Self, SocketError> {
        settings.validate()?;
        let ControlSettings { socket: path, group } = settings;
        let alone = SocketOptions { mode: 0o600, group: None, backlog: Backlog::MAXCONN, makes_directory: true };
        let socket = match group.as_deref().and_then(found) {
            None => bind_fresh(path, alone)?,
            Some(found) => match bind_fresh(path, SocketOptions { mode: 0o660, group: Some(found.gid), ..alone }) {
                Err(SocketError::Group { source, .. }) => {
                    warn!(group = found.name, error = %source, "cannot give the control socket to control.group: root and this daemon's user only");
                    bind_fresh(path, alone)?
                }
                other => other?,
            },
        };
        info!(socket = %path.display(), "control socket open");
        Ok(Self { socket, idle: IDLE })
    }

    /// Serves the socket until `stop`: each request goes to `calls`. When this returns all connections are closed and
    /// the socket's file is gone.
    pub(crate) async fn serve(self, calls: mpsc::Sender<ControlCall>, clock: SystemClock, stop: CancellationToken) {
        let mut connections = JoinSet::new();
        let acceptor = Arc::new(ControlConnections { log_limiter: Mutex::default(), clock, idle: self.idle });
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.socket.listener().accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                    Ok((stream, _)) => {
                        let (calls, acceptor) = (calls.clone(), Arc::clone(&acceptor));
                        connections.spawn(async move { acceptor.admit(stream, &calls).await });
                    }
                    Err(error) => {
                        // Out of file descriptors, most likely: it would fail again at once.
                        warn!(%error, "cannot accept a control connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(ended) = connections.join_next() => if let Err(error) = ended {
                    warn!(%error, "a control connection ended in a panic");
                },
            }
        }
        connections.shutdown().await;
    }
}

fn found(name: &str) -> Option<Group> {
    match Group::from_name(name) {
        Ok(Some(group)) => return Some(group),
        Ok(None) => warn!(group = name, "control.group does not exist: root and this daemon's user only"),
        Err(error) => warn!(group = name, %error, "cannot look up control.group: root and this daemon's user only"),
    }
    None
}

/// What all connections share.
struct ControlConnections {
    log_limiter: Mutex<LogLimiter>,
    clock: SystemClock,
    idle: Duration,
}

impl ControlConnections {
    async fn admit(&self, stream: UnixStream, calls: &mpsc::Sender<ControlCall>) {
        let who = match stream.peer_cred() {
            Ok(peer) => format!("process {} of user {}", peer.pid().unwrap_or_default(), peer.uid()),
            Err(_) => "an unknown process".to_owned(),
        };
        let Err(refusal) = converse(stream, calls, self.idle).await else { return };
        CONTROL_REFUSED.add(refusal.reason(), 1);
        let passed = self.log_limiter.lock().unwrap_or_else(PoisonError::into_inner).pass(
            "connection",
            refusal.reason().as_str(),
            self.clock.now(),
        );
        if let Some(held_back) = passed {
            warn!(held_back, "control socket: {who}: {refusal}");
        }
    }
}

/// Why a connection was closed by the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlRefusal {
    /// A frame that is no request, or one that this release does not know, or a second before the first was answered.
    #[error("sent something that is no request, or one before the last was answered")]
    Malformed,
    /// A frame longer than any request.
    #[error("sent a request of more than {MOST_REQUEST_BYTES} bytes")]
    TooLarge,
    /// The connection ended within a frame.
    #[error("ended in the middle of a message")]
    Truncated,
    /// Silence for longer than 30 s.
    #[error("neither asked nor took an answer within {IDLE:?}")]
    Idle,
}

impl ControlRefusal {
    /// The counted reason.
    #[must_use]
    pub(crate) fn reason(self) -> ControlReason {
        match self {
            Self::Malformed => ControlReason::Malformed,
            Self::TooLarge => ControlReason::TooLarge,
            Self::Truncated => ControlReason::Truncated,
            Self::Idle => ControlReason::Idle,
        }
    }
}

type Frames = Framed<UnixStream, LengthDelimitedCodec>;

/// Serves one connection until its end: each request goes to `calls`, and the replies come back.
///
/// A connection that for `idle` neither asks nor takes an answer is ended.
///
/// # Errors
/// Why this side ended it.
pub async fn converse(
    stream: UnixStream,
    calls: &mpsc::Sender<ControlCall>,
    idle: Duration,
) -> Result<(), ControlRefusal> {
    let codec = LengthDelimitedCodec::builder().max_frame_length(MOST_REQUEST_BYTES).new_codec();
    let uid = stream.peer_cred().ok().map(|peer| peer.uid());
    let mut frames = Framed::new(stream, codec);
    loop {
        let frame = tokio::time::timeout(idle, frames.next()).await.map_err(|_| ControlRefusal::Idle)?;
        let Some(frame) = whole(frame)? else { return Ok(()) };
        let Ok(ControlRequest { kind: Some(request) }) = decode_within(frame, &CONTROL_REQUEST) else {
            let text = "the daemon does not know this request; are the command and the daemon of the same release?";
            reply(&mut frames, &error(text), idle).await?;
            return Err(ControlRefusal::Malformed);
        };
        let (replies, mut answers) = mpsc::channel(16);
        if calls.send(ControlCall { request, uid, replies }).await.is_err() {
            reply(&mut frames, &error("the daemon is stopping"), idle).await?;
            return Ok(());
        }
        let mut is_answered = false;
        loop {
            tokio::select! {
                answer = answers.recv() => match answer {
                    Some(answer) => {
                        is_answered = is_last(&answer);
                        reply(&mut frames, &answer, idle).await?;
                    }
                    None => break,
                },
                // Dropping `answers` tells the daemon that nobody listens any more.
                frame = frames.next() => return whole(frame)?.map_or(Ok(()), |_| Err(ControlRefusal::Malformed)),
            }
        }
        if !is_answered {
            reply(&mut frames, &error("the daemon gave no answer; it may be stopping"), idle).await?;
        }
    }
}

fn is_last(reply: &ControlReply) -> bool {
    match &reply.kind {
        Some(control_reply::Kind::Rotate(progress)) => progress.done,
        Some(control_reply::Kind::Error(_) | control_reply::Kind::StatusJson(_) | control_reply::Kind::Reloaded(_)) => {
            true
        }
        None => false,
    }
}

fn error(text: &str) -> ControlReply {
    ControlReply { kind: Some(control_reply::Kind::Error(text.to_owned())) }
}

/// The frame; `None` if the other side has closed between frames.
fn whole(frame: Option<io::Result<BytesMut>>) -> Result<Option<BytesMut>, ControlRefusal> {
    match frame {
        None => Ok(None),
        Some(Ok(frame)) => Ok(Some(frame)),
        Some(Err(error)) if error.get_ref().is_some_and(|inner| inner.is::<LengthDelimitedCodecError>()) => {
            Err(ControlRefusal::TooLarge)
        }
        Some(Err(_)) => Err(ControlRefusal::Truncated),
    }
}

async fn reply(frames: &mut Frames, reply: &ControlReply, idle: Duration) -> Result<(), ControlRefusal> {
    let mut bytes = reply.encode_to_vec();
    if bytes.len() > MOST_REPLY_BYTES {
        bytes = error(&format!("the reply has {} bytes, over the {MOST_REPLY_BYTES} of a frame", bytes.len()))
            .encode_to_vec();
    }
    // Limits in the codec hold for both directions; only what comes in is not trusted.
    frames.codec_mut().set_max_frame_length(MOST_REPLY_BYTES);
    let sent = tokio::time::timeout(idle, frames.send(Bytes::from(bytes))).await;
    frames.codec_mut().set_max_frame_length(MOST_REQUEST_BYTES);
    // Who closes before the reply misses it, and that is all.
    sent.map_err(|_| ControlRefusal::Idle)?.map_err(|_| ControlRefusal::Truncated)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};

    use metrics_exporter_prometheus::PrometheusBuilder;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinHandle;

    use super::*;
    use crate::proto::frame::length_of;
    use crate::proto::local::{RotateCommand, RotateProgress, StatusCommand};

    struct Served {
        directory: crate::temporary::Folder,
        calls: mpsc::Receiver<ControlCall>,
        stop: CancellationToken,
        task: JoinHandle<()>,
    }

    impl Served {
        fn start() -> Self {
            Self::start_with(IDLE)
        }

        fn start_with(idle: Duration) -> Self {
            let directory = crate::temporary::Folder::new();
            let settings = ControlSettings { socket: directory.path().join("control.sock"), group: None };
            let mut socket = ControlSocket::open(&settings).unwrap();
            socket.idle = idle;
            let (sender, calls) = mpsc::channel(4);
            let stop = CancellationToken::new();
            let task = tokio::spawn(socket.serve(sender, SystemClock::start(), stop.clone()));
            Self { directory, calls, stop, task }
        }

        fn path(&self) -> PathBuf {
            self.directory.path().join("control.sock")
        }

        async fn connect(&self) -> UnixStream {
            UnixStream::connect(self.path()).await.unwrap()
        }
    }

    fn frame(request: control_request::Kind) -> Vec<u8> {
        let body = ControlRequest { kind: Some(request) }.encode_to_vec();
        [&length_of(body.len())[..], &body].concat()
    }

    async fn read_reply(stream: &mut UnixStream) -> Option<control_reply::Kind> {
        let length = stream.read_u32().await.ok()?;
        let mut body = vec![0; length as usize];
        stream.read_exact(&mut body).await.unwrap();
        ControlReply::decode(&body[..]).unwrap().kind
    }

    fn status() -> control_request::Kind {
        control_request::Kind::Status(StatusCommand {})
    }

    #[tokio::test]
    async fn requests_reach_the_daemon_one_after_another_on_one_connection() {
        let mut served = Served::start();
        let mut stream = served.connect().await;
        for n in 0..3_u8 {
            stream.write_all(&frame(status())).await.unwrap();
            let call = served.calls.recv().await.unwrap();
            assert_eq!((&call.request, call.uid), (&status(), Some(nix::unistd::geteuid().as_raw())));
            let json = control_reply::Kind::StatusJson(vec![n]);
            call.replies.send(ControlReply { kind: Some(json.clone()) }).await.unwrap();
            drop(call);
            assert_eq!(read_reply(&mut stream).await, Some(json));
        }
    }

    #[tokio::test]
    async fn progress_is_passed_on_as_it_comes_and_a_missing_last_reply_becomes_an_error() {
        let mut served = Served::start();
        let mut stream = served.connect().await;
        stream.write_all(&frame(control_request::Kind::Rotate(RotateCommand { wait_ms: 5 }))).await.unwrap();
        let call = served.calls.recv().await.unwrap();
        let progress = control_reply::Kind::Rotate(RotateProgress { generation: 7, ..Default::default() });
        call.replies.send(ControlReply { kind: Some(progress.clone()) }).await.unwrap();
        // Read before the call ends.
        assert_eq!(read_reply(&mut stream).await, Some(progress));
        drop(call);
        let last = read_reply(&mut stream).await;
        assert!(matches!(&last, Some(control_reply::Kind::Error(why)) if why.contains("no answer")), "{last:?}");
    }

    #[tokio::test]
    async fn an_asker_that_leaves_is_noticed_by_the_daemon() {
        let mut served = Served::start();
        let mut stream = served.connect().await;
        stream.write_all(&frame(status())).await.unwrap();
        let call = served.calls.recv().await.unwrap();
        drop(stream);
        tokio::time::timeout(Duration::from_secs(5), call.replies.closed()).await.expect("noticed within 5 s");
    }

    #[tokio::test]
    async fn garbage_giant_and_truncated_frames_are_counted_and_end_only_their_connection() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        // The test's runtime runs every task on this thread.
        let _local = metrics::set_default_local_recorder(&recorder);
        let mut served = Served::start();
        let request = frame(status());
        let bad: [(&str, Vec<u8>); 6] = [
            ("malformed", b"\0\0\0\x04\xff\xff\xff\xff".to_vec()),
            // A well-formed request of a kind that this release does not know: field 99, empty.
            ("malformed", b"\0\0\0\x03\x9a\x06\0".to_vec()),
            ("malformed", b"\0\0\0\0".to_vec()),
            ("too_large", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
            ("too_large", 4097_u32.to_be_bytes().to_vec()),
            ("truncated", request[..request.len() - 1].to_vec()),
        ];
        for (reason, bytes) in &bad {
            let mut stream = served.connect().await;
            stream.write_all(bytes).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
            let says = String::from_utf8_lossy(&rest).contains("same release");
            assert_eq!(says, *reason == "malformed", "{reason}: {rest:?}");
        }
        served.calls.try_recv().expect_err("nothing of this is a request");
        let counted = handle.render();
        for (reason, count) in [("malformed", 3), ("too_large", 2), ("truncated", 1)] {
            let line = format!("{}{{reason=\"{reason}\"}} {count}\n", CONTROL_REFUSED.name());
            assert!(counted.contains(&line), "{line} is not in:\n{counted}");
        }

        let mut stream = served.connect().await;
        stream.write_all(&request).await.unwrap();
        assert_eq!(served.calls.recv().await.unwrap().request, status());
    }

    #[tokio::test]
    async fn a_second_request_before_the_answer_is_refused() {
        let mut served = Served::start();
        let mut stream = served.connect().await;
        stream.write_all(&frame(status())).await.unwrap();
        let call = served.calls.recv().await.unwrap();
        stream.write_all(&frame(status())).await.unwrap();
        assert_eq!(read_reply(&mut stream).await, None, "closed");
        assert!(call.replies.is_closed());
    }

    #[tokio::test]
    async fn a_reply_over_the_frame_limit_is_an_error_with_its_size() {
        let mut served = Served::start();
        let mut stream = served.connect().await;
        stream.write_all(&frame(status())).await.unwrap();
        let call = served.calls.recv().await.unwrap();
        let json = control_reply::Kind::StatusJson(vec![b' '; MOST_REPLY_BYTES]);
        call.replies.send(ControlReply { kind: Some(json) }).await.unwrap();
        let reply = read_reply(&mut stream).await;
        assert!(
            matches!(&reply, Some(control_reply::Kind::Error(why)) if why.contains(&format!("over the {MOST_REPLY_BYTES}"))),
            "{reply:?}"
        );
    }

    #[tokio::test]
    async fn stopping_closes_connections_and_removes_the_file() {
        let served = Served::start();
        let mut stream = served.connect().await;
        served.stop.cancel();
        tokio::time::timeout(Duration::from_secs(5), served.task).await.expect("stopped within 5 s").unwrap();
        assert_eq!(read_reply(&mut stream).await, None);
        assert!(!served.directory.path().join("control.sock").exists());
    }

    #[tokio::test]
    async fn silent_connections_do_not_lock_others_out_for_ever() {
        let mut served = Served::start_with(Duration::from_millis(50));
        let mut silent = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            silent.push(served.connect().await);
        }
        let mut stream = served.connect().await;
        stream.write_all(&frame(status())).await.unwrap();
        assert_eq!(served.calls.recv().await.unwrap().request, status());
        drop(silent);
    }

    fn mode_of(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[tokio::test]
    async fn the_group_may_open_the_socket_if_it_exists_and_nobody_else_if_not() {
        let directory = crate::temporary::Folder::new();
        let open = |group: Option<&str>| {
            let path = directory.path().join("control.sock");
            let socket =
                ControlSocket::open(&ControlSettings { socket: path.clone(), group: group.map(str::to_owned) });
            let mode = mode_of(&path);
            drop(socket.unwrap());
            mode
        };
        let own = Group::from_gid(nix::unistd::getegid()).unwrap().expect("the group of this process has a name");
        assert_eq!(open(Some(&own.name)), 0o660);
        assert_eq!(open(Some("no-such-group-here")), 0o600);
        assert_eq!(open(None), 0o600);
    }
}
