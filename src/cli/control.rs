//! The commands' side of the control socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::BytesMut;

use crate::proto::frame::{self, MOST_REPLY_BYTES, MOST_REQUEST_BYTES, ReadError};
use crate::proto::limits::decode_within;
use crate::proto::local::{
    CONTROL_REPLY, ControlReply, ControlRequest, ReloadCommand, Reloaded, RotateProgress, StatusCommand, control_reply,
    control_request,
};
use crate::status::FarmStatus;

/// Why a command got no answer from the daemon.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// Nobody listens.
    #[error("no daemon answers at {}: is `resumed run` running on this host, with this as its control.socket?", path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The user may not open the socket.
    #[error("may not open {}: be root, or a member of the group in the daemon's control.group (`resumed-control` by default)", path.display())]
    Permission {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The socket cannot be used for another reason.
    #[error("cannot talk to the daemon at {}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The daemon did not answer in time.
    #[error("the daemon at {} has not answered within {limit:?}", path.display())]
    Late {
        /// The socket.
        path: PathBuf,
        /// How long it had.
        limit: Duration,
    },
    /// What came back is no reply of this release.
    #[error("the daemon at {} answered {what}; are the command and the daemon of the same release?", path.display())]
    Nonsense {
        /// The socket.
        path: PathBuf,
        /// What is wrong with the reply.
        what: String,
    },
    /// The daemon said why it could not.
    #[error("the daemon says: {0}")]
    Daemon(String),
}

/// A connection to the daemon beside this command.
#[derive(Debug)]
pub(crate) struct Control {
    stream: UnixStream,
    path: PathBuf,
}

impl Control {
    /// Connects to the control socket at `path`.
    ///
    /// # Errors
    /// [`ControlError::NotRunning`], [`ControlError::Permission`] or [`ControlError::Io`].
    pub(crate) fn connect(path: &Path) -> Result<Self, ControlError> {
        let stream = UnixStream::connect(path).map_err(|source| not_connected(path, source))?;
        Ok(Self { stream, path: path.to_owned() })
    }

    /// The whole farm, as the daemon knows it.
    ///
    /// # Errors
    /// If the daemon does not answer within `limit`, or not with a status.
    pub(crate) fn status(&mut self, limit: Duration) -> Result<FarmStatus, ControlError> {
        let until = Instant::now() + limit;
        self.send(control_request::Kind::Status(StatusCommand {}), until, limit)?;
        match self.receive(until, limit)? {
            control_reply::Kind::StatusJson(json) => {
                serde_json::from_slice(&json).map_err(|error| self.nonsense(format!("a status that is none ({error})")))
            }
            other => Err(self.not_asked_for(other)),
        }
    }

    /// Has the daemon do `request`, a rotation or a revocation, and tells `progress` of every reply, the last included,
    /// which is also returned: it has come when all nodes have confirmed or `wait` is over.
    ///
    /// # Errors
    /// If the daemon cannot, or does not answer within `wait` and [`GRACE`].
    pub(crate) fn follow(
        &mut self,
        request: control_request::Kind,
        wait: Duration,
        mut progress: impl FnMut(&RotateProgress),
    ) -> Result<RotateProgress, ControlError> {
        let limit = wait + GRACE;
        let until = Instant::now() + limit;
        self.send(request, until, limit)?;
        loop {
            match self.receive(until, limit)? {
                control_reply::Kind::Rotate(now) => {
                    progress(&now);
                    if now.done {
                        return Ok(now);
                    }
                }
                other => return Err(self.not_asked_for(other)),
            }
        }
    }

    /// Has the daemon read its farm secrets again. Returns the ids of those that it opens from then on, the one that seals
    /// first.
    ///
    /// # Errors
    /// [`ControlError::Daemon`] says why it refused them; otherwise it did not answer within `limit`, or not with that.
    pub(crate) fn reload(&mut self, limit: Duration) -> Result<Vec<String>, ControlError> {
        let until = Instant::now() + limit;
        self.send(control_request::Kind::Reload(ReloadCommand {}), until, limit)?;
        match self.receive(until, limit)? {
            control_reply::Kind::Reloaded(Reloaded { secret_ids }) => Ok(secret_ids),
            other => Err(self.not_asked_for(other)),
        }
    }

    fn send(&mut self, request: control_request::Kind, until: Instant, limit: Duration) -> Result<(), ControlError> {
        let sent = frame::encode(&ControlRequest { kind: Some(request) }, MOST_REQUEST_BYTES).and_then(|frame| {
            self.stream.set_write_timeout(Some(remaining(until)?))?;
            self.stream.write_all(&frame)
        });
        sent.map_err(|error| self.failed(error, limit))
    }

    fn receive(&mut self, until: Instant, limit: Duration) -> Result<control_reply::Kind, ControlError> {
        let mut reply = BytesMut::new();
        let read = frame::read(&mut Until { stream: &self.stream, until }, MOST_REPLY_BYTES, &mut reply);
        read.map_err(|error| match error {
            ReadError::TooLong(length) => self.nonsense(format!("{length} bytes at once")),
            ReadError::Io(error) => self.failed(error, limit),
        })?;
        match decode_within(&reply[..], &CONTROL_REPLY) {
            Ok(ControlReply { kind: Some(control_reply::Kind::Error(text)) }) => Err(ControlError::Daemon(text)),
            Ok(ControlReply { kind: Some(kind) }) => Ok(kind),
            Ok(ControlReply { kind: None }) => Err(self.nonsense("a reply of an unknown kind".into())),
            Err(error) => Err(self.nonsense(format!("what is no reply ({error})"))),
        }
    }

    fn failed(&self, source: io::Error, limit: Duration) -> ControlError {
        let path = self.path.clone();
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ControlError::Late { path, limit },
            io::ErrorKind::UnexpectedEof => {
                ControlError::Io { path, source: io::Error::new(source.kind(), "it closed the connection") }
            }
            _ => ControlError::Io { path, source },
        }
    }

    fn not_asked_for(&self, reply: control_reply::Kind) -> ControlError {
        self.nonsense(match reply {
            control_reply::Kind::StatusJson(_) => "with a status that was not asked for".into(),
            control_reply::Kind::Rotate(_) => "with a rotation that was not asked for".into(),
            control_reply::Kind::Reloaded(_) => "with a reload that was not asked for".into(),
            control_reply::Kind::Error(text) => text,
        })
    }

    fn nonsense(&self, what: String) -> ControlError {
        ControlError::Nonsense { path: self.path.clone(), what }
    }
}

/// A stream that is read until that time and no longer, however often.
struct Until<'a> {
    stream: &'a UnixStream,
    until: Instant,
}

impl Read for Until<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(remaining(self.until)?))?;
        self.stream.read(bytes)
    }
}

fn not_connected(path: &Path, source: io::Error) -> ControlError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ControlError::NotRunning { path, source },
        io::ErrorKind::PermissionDenied => ControlError::Permission { path, source },
        _ => ControlError::Io { path, source },
    }
}

/// How much longer than it was told to wait the daemon may take to answer.
pub(crate) const GRACE: Duration = Duration::from_secs(5);

fn remaining(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

#[cfg(test)]
pub(super) mod daemon {
    //! The daemon's own control socket, with a test's answers behind it.

    use tokio::sync::mpsc;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::clock::SystemClock;
    use crate::daemon::ControlSettings;
    use crate::daemon::control::{ControlCall, ControlSocket};

    /// Serves a control socket in a runtime of its own until dropped.
    pub struct Daemon {
        directory: crate::temporary::Folder,
        stop: CancellationToken,
        thread: Option<std::thread::JoinHandle<()>>,
    }

    impl Daemon {
        /// `answer` gives the replies to each request.
        pub(crate) fn answering(
            mut answer: impl FnMut(control_request::Kind) -> Vec<control_reply::Kind> + Send + 'static,
        ) -> Self {
            let directory = crate::temporary::Folder::new();
            let settings = ControlSettings { socket: directory.path().join("control.sock"), group: None };
            let stop = CancellationToken::new();
            let stopped = stop.clone();
            let (ready, is_ready) = std::sync::mpsc::channel();
            let thread = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async move {
                    let socket = ControlSocket::open(&settings).unwrap();
                    let (sender, mut calls) = mpsc::channel::<ControlCall>(4);
                    ready.send(()).unwrap();
                    let answering = tokio::spawn(async move {
                        while let Some(call) = calls.recv().await {
                            for kind in answer(call.request) {
                                // The asker may have had enough.
                                let _ = call.replies.send(ControlReply { kind: Some(kind) }).await;
                            }
                        }
                    });
                    socket.serve(sender, SystemClock::start(), stopped).await;
                    answering.await.unwrap();
                });
            });
            is_ready.recv().unwrap();
            Self { directory, stop, thread: Some(thread) }
        }

        pub(crate) fn socket(&self) -> PathBuf {
            self.directory.path().join("control.sock")
        }
    }

    impl Drop for Daemon {
        fn drop(&mut self) {
            self.stop.cancel();
            if let Some(thread) = self.thread.take() {
                thread.join().unwrap();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use prost::Message;

    use super::daemon::Daemon;
    use super::*;

    #[test]
    fn without_a_daemon_the_error_names_the_socket_and_asks_for_it() {
        let directory = crate::temporary::Folder::new();
        let path = directory.path().join("control.sock");
        let missing = Control::connect(&path).unwrap_err();
        drop(UnixListener::bind(&path).unwrap());
        let stale = Control::connect(&path).unwrap_err();
        for error in [missing, stale] {
            assert!(matches!(error, ControlError::NotRunning { .. }), "{error:?}");
            let text = error.to_string();
            assert!(text.contains(path.to_str().unwrap()) && text.contains("resumed run"), "{text}");
        }
    }

    #[test]
    fn a_socket_that_may_not_be_opened_is_a_matter_of_the_group() {
        // Root, as which tests may run, is refused by no socket.
        let error = not_connected(Path::new("/run/x.sock"), io::Error::from_raw_os_error(13));
        assert!(matches!(error, ControlError::Permission { .. }), "{error:?}");
        assert!(error.to_string().contains("/run/x.sock") && error.to_string().contains("group"), "{error}");
    }

    #[test]
    fn a_daemon_that_says_nothing_is_late() {
        let directory = crate::temporary::Folder::new();
        let path = directory.path().join("control.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        let limit = Duration::from_millis(50);
        let error = Control::connect(&path).unwrap().status(limit).unwrap_err();
        assert!(matches!(error, ControlError::Late { limit: l, .. } if l == limit), "{error:?}");
    }

    #[test]
    fn replies_that_are_none_are_named_as_such() {
        let reply = |kind| ControlReply { kind: Some(kind) }.encode_to_vec();
        let framed = |body: &[u8]| [&frame::length_of(body.len())[..], body].concat();
        for (bytes, what) in [
            (b"HTTP/1.1 400 Bad Request".to_vec(), "bytes at once"),
            (framed(b"\xff\xff\xff"), "what is no reply"),
            (framed(b""), "unknown kind"),
            (framed(&reply(control_reply::Kind::StatusJson(b"[]".to_vec()))), "a status that is none"),
            (framed(&reply(control_reply::Kind::Rotate(RotateProgress::default()))), "not asked for"),
            (framed(&reply(control_reply::Kind::Error("no leader".into()))), "the daemon says: no leader"),
        ] {
            let directory = crate::temporary::Folder::new();
            let path = directory.path().join("control.sock");
            let listener = UnixListener::bind(&path).unwrap();
            let server = thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 64];
                let read = stream.read(&mut request).unwrap();
                stream.write_all(&bytes).unwrap();
                read
            });
            let error = Control::connect(&path).unwrap().status(Duration::from_secs(5)).unwrap_err();
            assert!(error.to_string().contains(what), "{what}: {error}");
            assert!(server.join().unwrap() > 4);
        }
    }

    #[test]
    fn a_daemon_that_closes_without_an_answer_is_an_error() {
        let directory = crate::temporary::Folder::new();
        let path = directory.path().join("control.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.read(&mut [0; 64]).unwrap()
        });
        let error = Control::connect(&path).unwrap().status(Duration::from_secs(5)).unwrap_err();
        assert!(matches!(error, ControlError::Io { .. }), "{error:?}");
        assert!(server.join().unwrap() > 4);
    }

    #[test]
    fn a_status_crosses_the_socket() {
        let sent = FarmStatus { farm: "edge".into(), leader: Some("a".into()), ..FarmStatus::default() };
        let json = serde_json::to_vec(&sent).unwrap();
        let daemon = Daemon::answering(move |request| {
            assert_eq!(request, control_request::Kind::Status(StatusCommand {}));
            vec![control_reply::Kind::StatusJson(json.clone())]
        });
        let mut control = Control::connect(&daemon.socket()).unwrap();
        for _ in 0..2 {
            assert_eq!(control.status(Duration::from_secs(5)).unwrap(), sent);
        }
    }
}
