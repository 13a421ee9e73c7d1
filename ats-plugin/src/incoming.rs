//! What the daemon sends: read off the socket, and its sessions kept.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use bytes::{Bytes, BytesMut};
use zeroize::Zeroize;

use crate::frame::{self, MOST_PLUGIN_BYTES, ReadError};
use crate::from_daemon::{self, FromDaemon};
use crate::proto::SessionEntry;
use crate::replica::Replica;
use crate::session::{LARGEST_FOR_ATS, SessionId, expiry};

/// A buffer that a large message has left is not kept for small ones.
const KEPT_BYTES: usize = 256 * 1024;

/// Reads one message after the other.
#[derive(Default)]
pub struct Incoming {
    /// The buffer of the last message, for the next one.
    message: BytesMut,
}

impl Incoming {
    /// Waits for the next message and hands it to `take`, or says what is wrong with it. Afterwards its bytes are wiped, for ticket keys
    /// and sessions were among them, unless `take` lets a slice of them out.
    ///
    /// # Errors
    /// The connection's, and `InvalidData` for a message that is too long.
    pub fn next<R>(
        &mut self,
        stream: &mut UnixStream,
        take: impl FnOnce(Result<FromDaemon, String>) -> R,
    ) -> io::Result<R> {
        wait_for_news(stream)?;
        let mut message = std::mem::take(&mut self.message);
        match frame::read(stream, MOST_PLUGIN_BYTES, &mut message) {
            Ok(()) => {}
            Err(ReadError::TooLong(length)) => {
                let what = format!("a message of {length} bytes: at most {MOST_PLUGIN_BYTES} are allowed");
                return Ok(take(Err(what)));
            }
            Err(ReadError::Io(error)) => {
                message.as_mut().zeroize();
                return Err(error);
            }
        }
        let bytes = message.freeze();
        let taken = take(from_daemon::decode(bytes.clone()));
        self.message = wiped(bytes);
        if self.message.capacity() > KEPT_BYTES {
            self.message = BytesMut::new();
        }
        Ok(taken)
    }
}

/// Waits until there is something to read. A reader that waits in recv(2) is woken whenever the daemon reads, too: on a Unix socket
/// both kinds of waiting are one, and poll(2) alone tells them apart.
fn wait_for_news(stream: &UnixStream) -> io::Result<()> {
    let mut socket = libc::pollfd { fd: stream.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, alive during the call, of a descriptor that is open as long as `stream` is borrowed.
    while unsafe { libc::poll(&raw mut socket, 1, -1) } < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(())
}

/// The buffer of a message, for the next one.
fn wiped(message: Bytes) -> BytesMut {
    let mut buffer = message.try_into_mut().unwrap_or_default();
    buffer.as_mut().zeroize();
    buffer
}

/// What of a message was not kept.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// Sessions that are too large for ATS.
    pub too_large: u64,
    /// Those that are none, or have no ID of 1 to 32 bytes, or another than they say.
    pub faulty: u64,
}

/// Keeps the farm's sessions, and forgets those it has removed, in order. `removed` hears of each removal. `now` is in seconds since
/// the epoch.
pub fn keep(replica: &Replica, entries: Vec<SessionEntry>, now: u64, removed: impl Fn(&SessionId)) -> Refused {
    let mut refused = Refused::default();
    for SessionEntry { id, session, .. } in entries {
        let Some(id) = SessionId::new(&id) else {
            refused.faulty += 1;
            continue;
        };
        if session.is_empty() {
            replica.remove(&id);
            removed(&id);
        } else if session.len() > LARGEST_FOR_ATS {
            refused.too_large += 1;
        } else {
            match expiry(&session, &id) {
                Some(expires) if expires > now => replica.insert(&id, &session, expires),
                Some(_) => {}
                None => refused.faulty += 1,
            }
        }
    }
    refused
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io::Write;

    use super::*;
    use crate::session::tests::der;

    const NOW: u64 = 1_700_000_000;

    fn session(id: &[u8], der: Vec<u8>) -> SessionEntry {
        SessionEntry { id: Bytes::copy_from_slice(id), session: Bytes::from(der), at: 0 }
    }

    #[test]
    fn sessions_are_kept_and_removed_in_order_and_bad_ones_are_counted() {
        let replica = Replica::new(1 << 20);
        let made = u32::try_from(NOW).unwrap();
        let entries = vec![
            session(&[1; 32], der(&[1; 32], made, 100)),
            session(&[2; 32], der(&[2; 32], made, 100)),
            session(&[1; 32], Vec::new()),
            session(&[3; 32], der(&[3; 32], made - 200, 100)),
            session(&[], der(&[3; 32], made, 100)),
            session(&[4; 32], der(&[5; 32], made, 100)),
            session(&[6; 32], vec![0; LARGEST_FOR_ATS + 1]),
        ];
        let removed = RefCell::new(Vec::new());
        let refused = keep(&replica, entries, NOW, |id| removed.borrow_mut().push(id.as_bytes().to_vec()));
        assert_eq!(refused, Refused { too_large: 1, faulty: 2 });
        assert_eq!(removed.into_inner(), [vec![1; 32]]);
        assert_eq!(replica.size().0, 1);
        assert!(replica.copy(&SessionId::new(&[2; 32]).unwrap(), NOW, &mut [0; 256]).is_some());
    }

    #[test]
    fn a_message_that_is_too_long_or_none_is_an_error_that_says_so() {
        for (bytes, wanted) in [(&[0, 16, 0, 1][..], "1048577"), (&[0, 0, 0, 1, 0xff][..], "none")] {
            let (mut ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(bytes).unwrap();
            let told = Incoming::default().next(&mut ours, |message| message.err().unwrap_or_default()).unwrap();
            assert!(told.contains(wanted), "{told}");
        }
    }
}
