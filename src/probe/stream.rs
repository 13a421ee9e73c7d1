//! A TCP stream with a time limit for what OpenSSL does on it, rather than for each read.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::session::OfferedSession;

/// Past its limit every read and write is `WouldBlock`, which OpenSSL hands on as WANT_READ or WANT_WRITE.
#[derive(Debug)]
pub(crate) struct Timed {
    tcp: TcpStream,
    until: Instant,
    mailbox: Arc<OfferedSession>,
    stop_at_ticket: bool,
}

impl Timed {
    pub(crate) fn new(tcp: TcpStream, until: Instant, mailbox: Arc<OfferedSession>) -> Self {
        Self { tcp, until, mailbox, stop_at_ticket: false }
    }

    pub(crate) fn set_until(&mut self, until: Instant) {
        self.until = until;
    }

    /// From now on a read does not wait once a ticket has come. OpenSSL would: it takes a ticket for no answer to
    /// SSL_read and reads on for application data, which a server need not send.
    pub(crate) fn stop_at_ticket(&mut self) {
        self.stop_at_ticket = true;
    }

    pub(crate) fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    /// Ends the sending side and discards what comes until the other side ends its own, or the limit.
    pub(crate) fn drain(&mut self) {
        self.stop_at_ticket = false;
        let mut bytes = [0; 4096];
        if self.tcp.shutdown(Shutdown::Write).is_ok() {
            while matches!(self.read(&mut bytes), Ok(1..)) {}
        }
    }

    fn remaining(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(left) }
    }
}

impl Read for Timed {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.stop_at_ticket && self.mailbox.has_session() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.tcp.set_read_timeout(Some(self.remaining()?))?;
        self.tcp.read(bytes).map_err(late)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.tcp.set_write_timeout(Some(self.remaining()?))?;
        self.tcp.write(bytes).map_err(late)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tcp.flush()
    }
}

/// Systems differ in what they call a read that timed out.
fn late(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::TimedOut { io::ErrorKind::WouldBlock.into() } else { error }
}
