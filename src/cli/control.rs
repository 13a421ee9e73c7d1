//! The commands' side of the control socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use prost::Message;

use crate::clock::millis;
use crate::proto::local::{
    ControlReply, ControlRequest, RotateCommand, RotateProgress, StatusCommand, control_reply, control_request,
};
use crate::status::FarmStatus;

/// The longest reply that is read, in bytes.
const MAX_FRAME: usize = 1024 * 1024;

/// Why a command got no answer from the daemon.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens.
    #[error("no daemon answers at {}: is `resumed run` running on this host, with this as its control.socket?", path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The user may not open the socket.
    #[error("may not open {}: be root, or a member of the group in the daemon's control.group (`resumed` by default)", path.display())]
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
pub struct Control {
    stream: UnixStream,
    path: PathBuf,
}

impl Control {
    /// Connects to the control socket at `path`.
    ///
    /// # Errors
    /// [`ControlError::NotRunning`], [`ControlError::Permission`] or [`ControlError::Io`].
    pub fn connect(path: &Path) -> Result<Self, ControlError> {
        let stream = UnixStream::connect(path).map_err(|source| {
            let path = path.to_owned();
            match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ControlError::NotRunning { path, source },
                io::ErrorKind::PermissionDenied => ControlError::Permission { path, source },
                _ => ControlError::Io { path, source },
            }
        })?;
        Ok(Self { stream, path: path.to_owned() })
    }

    /// The whole farm, as the daemon knows it.
    ///
    /// # Errors
    /// If the daemon does not answer within `limit`, or not with a status.
    pub fn status(&mut self, limit: Duration) -> Result<FarmStatus, ControlError> {
        let until = Instant::now() + limit;
        self.send(control_request::Kind::Status(StatusCommand {}), until, limit)?;
        match self.receive(until, limit)? {
            control_reply::Kind::StatusJson(json) => {
                serde_json::from_slice(&json).map_err(|error| self.nonsense(format!("a status that is none ({error})")))
            }
            other => Err(self.not_asked_for(other)),
        }
    }

    /// Has the leader mint a key and tells `progress` of every reply, the last included, which is also returned: it has
    /// come when all nodes hold the key or `wait` is over.
    ///
    /// # Errors
    /// If the daemon cannot rotate, or does not answer within `wait` and [`GRACE`].
    pub fn rotate(
        &mut self,
        wait: Duration,
        mut progress: impl FnMut(&RotateProgress),
    ) -> Result<RotateProgress, ControlError> {
        let limit = wait + GRACE;
        let until = Instant::now() + limit;
        let request = control_request::Kind::Rotate(RotateCommand { wait_ms: millis(wait) });
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

    fn send(&mut self, request: control_request::Kind, until: Instant, limit: Duration) -> Result<(), ControlError> {
        let body = ControlRequest { kind: Some(request) }.encode_to_vec();
        let mut frame = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
        frame.extend(body);
        let sent = remaining(until).and_then(|left| self.stream.set_write_timeout(Some(left)));
        sent.and_then(|()| self.stream.write_all(&frame)).map_err(|error| self.failed(error, limit))
    }

    fn receive(&mut self, until: Instant, limit: Duration) -> Result<control_reply::Kind, ControlError> {
        let mut length = [0; 4];
        self.read(&mut length, until).map_err(|error| self.failed(error, limit))?;
        let length = u32::from_be_bytes(length) as usize;
        if length > MAX_FRAME {
            return Err(self.nonsense(format!("{length} bytes at once")));
        }
        let mut body = vec![0; length];
        self.read(&mut body, until).map_err(|error| self.failed(error, limit))?;
        match ControlReply::decode(&body[..]) {
            Ok(ControlReply { kind: Some(control_reply::Kind::Error(text)) }) => Err(ControlError::Daemon(text)),
            Ok(ControlReply { kind: Some(kind) }) => Ok(kind),
            Ok(ControlReply { kind: None }) => Err(self.nonsense("a reply of an unknown kind".into())),
            Err(error) => Err(self.nonsense(format!("what is no reply ({error})"))),
        }
    }

    fn read(&mut self, mut bytes: &mut [u8], until: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            self.stream.set_read_timeout(Some(remaining(until)?))?;
            match self.stream.read(bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => bytes = &mut bytes[read..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
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
            control_reply::Kind::Error(text) => text,
        })
    }

    fn nonsense(&self, what: String) -> ControlError {
        ControlError::Nonsense { path: self.path.clone(), what }
    }
}

/// How much longer than it was told to wait the daemon may take to answer.
pub const GRACE: Duration = Duration::from_secs(5);

fn remaining(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}
