//! The hook's way to the daemon: onto the socket at once if nothing waits before it, else into the queue.
//!
//! Waking a thread that would write to the socket costs a session more time than writing does. The hook never waits: a
//! sender that is in use, or a socket that takes nothing now, means the queue.

use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use zeroize::Zeroizing;

use crate::batch::frame_of;
use crate::frame::{MOST_PLUGIN_BYTES, encode};
use crate::proto::{FromProxy, from_proxy};
use crate::queue::Queue;
use crate::report::Report;

/// The sending side of the connection, if there is one. Whoever sends holds it.
#[derive(Default)]
pub struct SharedSender(Mutex<Option<Sender>>);

/// A connection on which the introduction was sent.
pub struct Sender {
    stream: UnixStream,
    /// What a socket that was nearly full left of a message. Nothing else may be sent before it.
    rest: Zeroizing<Vec<u8>>,
}

impl SharedSender {
    /// Opens it on a connection.
    pub fn open(&self, stream: UnixStream) {
        *self.lock() = Some(Sender { stream, rest: Zeroizing::default() });
    }

    /// Closes it. What the hook reports from now on goes into the queue.
    pub fn close(&self) {
        *self.lock() = None;
    }

    /// The sender, for the thread that may wait.
    pub fn lock(&self) -> MutexGuard<'_, Option<Sender>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends `report` if that needs no waiting and nothing in `queue` is older. Returns whether it did.
    #[inline(never)]
    pub fn send_now(&self, report: &Report, queue: &Queue) -> bool {
        let mut shared = match self.0.try_lock() {
            Ok(shared) => shared,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        let Some(sender) = shared.as_mut().filter(|sender| sender.rest.is_empty()) else { return false };
        // Reports leave the queue only under this lock: an empty one means that all were sent.
        if !queue.is_empty() {
            return false;
        }
        let frame = frame_of(report);
        match send_without_waiting(&sender.stream, &frame) {
            Ok(sent) if sent == frame.len() => true,
            Ok(sent) if sent > 0 => {
                sender.rest = Zeroizing::new(frame[sent..].to_vec());
                queue.wake();
                true
            }
            // Full, or broken: the thread that may wait will find out which.
            _ => false,
        }
    }
}

impl Sender {
    /// Sends a message, after what is left of the last one. Waits as long as the daemon does not read.
    pub fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.finish()?;
        self.stream.write_all(frame)
    }

    /// Sends what is left of the last message.
    pub fn finish(&mut self) -> io::Result<()> {
        let rest = std::mem::take(&mut self.rest);
        self.stream.write_all(&rest)
    }
}

/// `kind` behind its length, as it travels.
pub fn frame(kind: from_proxy::Kind) -> io::Result<Vec<u8>> {
    encode(&FromProxy { kind: Some(kind) }, MOST_PLUGIN_BYTES)
}

fn send_without_waiting(stream: &UnixStream, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the descriptor is open as long as `stream` is borrowed, and the pointer and length are those of a live
    // slice, which send(2) only reads.
    let sent = unsafe { libc::send(stream.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::report::tests::report;

    fn open() -> (SharedSender, Queue, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let shared = SharedSender::default();
        shared.open(ours);
        (shared, Queue::new(16), theirs)
    }

    fn read(daemon: &mut UnixStream) -> Vec<u64> {
        let mut frame = vec![0; 4];
        daemon.read_exact(&mut frame).expect("a length");
        let length = u32::from_be_bytes(frame[..4].try_into().expect("four bytes"));
        frame.resize(4 + length as usize, 0);
        daemon.read_exact(&mut frame[4..]).expect("a message");
        crate::batch::tests::read(&frame).iter().map(|entry| entry.at).collect()
    }

    #[test]
    fn a_report_goes_straight_onto_an_idle_socket() {
        let (shared, queue, mut daemon) = open();
        assert!(shared.send_now(&report(1), &queue));
        assert_eq!(read(&mut daemon), [1]);
    }

    #[test]
    fn nothing_overtakes_the_queue_or_whoever_sends() {
        let (shared, queue, _daemon) = open();
        queue.push(&report(1));
        assert!(!shared.send_now(&report(2), &queue));
        assert!(queue.take().is_some());
        let sending = shared.lock();
        assert!(!shared.send_now(&report(3), &queue));
        drop(sending);
        shared.close();
        assert!(!shared.send_now(&report(4), &queue));
    }

    #[test]
    fn a_full_socket_makes_nobody_wait_and_tears_no_message() {
        let (shared, queue, mut daemon) = open();
        let mut sent = 0;
        while shared.send_now(&report(sent), &queue) {
            sent += 1;
        }
        let reader = std::thread::spawn(move || {
            let mut seen = Vec::new();
            while seen.last() != Some(&sent) {
                seen.extend(read(&mut daemon));
            }
            seen
        });
        let mut shared = shared.lock();
        let sender = shared.as_mut().expect("it is open");
        sender.send(&frame_of(&report(sent))).expect("the daemon reads");
        assert_eq!(reader.join().expect("the reader"), (0..=sent).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_left_of_a_message_goes_before_everything_else() {
        let (shared, queue, mut daemon) = open();
        let whole = frame_of(&report(1));
        {
            let mut shared = shared.lock();
            let sender = shared.as_mut().expect("it is open");
            sender.stream.write_all(&whole[..10]).expect("an idle socket");
            sender.rest = Zeroizing::new(whole[10..].to_vec());
        }
        assert!(!shared.send_now(&report(2), &queue));
        shared.lock().as_mut().expect("it is open").send(&frame_of(&report(3))).expect("an idle socket");
        assert_eq!([read(&mut daemon), read(&mut daemon)], [[1], [3]]);
        assert!(shared.send_now(&report(4), &queue));
    }

    #[test]
    fn a_daemon_that_has_gone_is_no_signal_and_no_panic() {
        let (shared, queue, daemon) = open();
        drop(daemon);
        assert!(!shared.send_now(&report(1), &queue));
    }
}
