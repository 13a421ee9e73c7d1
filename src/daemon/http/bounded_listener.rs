//! TCP connections that cannot use the daemon up: so many at a time, so many a second, and none that goes on without an
//! answer or needs many pieces for a request.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

use super::turns::Turns;

/// How many times a client may be read from before it gets an answer. A request comes in one piece or a few; each one more
/// wakes the daemon.
const MOST_PIECES: u32 = 16;
/// The longest such piece, in bytes. The HTTP server keeps what it has not answered: 64 KiB at most.
const LONGEST_PIECE: usize = 4096;

/// A listener that takes at most so many connections at a time. More wait in the system's backlog, without a file
/// descriptor of the daemon's.
#[derive(Debug)]
pub(crate) struct BoundedListener {
    listener: TcpListener,
    room: Arc<Semaphore>,
    arrivals: Turns,
    patience: Duration,
}

impl BoundedListener {
    /// Takes up to `connections` at a time from `listener`, each in its turn. One on which nothing was written for `patience`
    /// ends.
    #[must_use]
    pub(crate) fn new(listener: TcpListener, connections: usize, arrivals: Turns, patience: Duration) -> Self {
        Self { listener, room: Arc::new(Semaphore::new(connections)), arrivals, patience }
    }
}

impl Listener for BoundedListener {
    type Io = BoundedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (BoundedStream, SocketAddr) {
        let room = Arc::clone(&self.room).acquire_owned().await.expect("the semaphore is never closed");
        self.arrivals.next().await;
        // Its errors are told and waited out there.
        let (stream, peer) = Listener::accept(&mut self.listener).await;
        let end = Box::pin(sleep(self.patience));
        (BoundedStream { stream, end, patience: self.patience, pieces: 0, _room: room }, peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection of a [`BoundedListener`]. Reading does not prolong it: who sends a request byte by byte gets no answer
/// and no time.
#[derive(Debug)]
pub(crate) struct BoundedStream {
    stream: TcpStream,
    end: Pin<Box<Sleep>>,
    patience: Duration,
    /// How many times it was read from since the last answer.
    pieces: u32,
    _room: OwnedSemaphorePermit,
}

impl BoundedStream {
    fn still_in_time(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.end.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }

    fn wrote(&mut self, written: io::Result<usize>) -> io::Result<usize> {
        if matches!(written, Ok(bytes) if bytes > 0) {
            self.pieces = 0;
            self.end.as_mut().reset(Instant::now() + self.patience);
        }
        written
    }
}

impl AsyncRead for BoundedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.still_in_time(context)?;
        if self.pieces >= MOST_PIECES {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "a request in too many pieces")));
        }
        let mut piece = [0; LONGEST_PIECE];
        let mut read = ReadBuf::new(&mut piece[..buffer.remaining().min(LONGEST_PIECE)]);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut read))?;
        buffer.put_slice(read.filled());
        self.pieces += 1;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for BoundedStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.still_in_time(context)?;
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes));
        Poll::Ready(self.wrote(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.still_in_time(context)?;
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, slices));
        Poll::Ready(self.wrote(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;
    use crate::clock::SystemClock;

    const PATIENCE: Duration = Duration::from_secs(30);

    async fn serve(connections: usize, patience: Duration) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", get(|| async { "here" }));
        let arrivals = Turns::new(64, Duration::from_millis(1), SystemClock::start());
        let listener = BoundedListener::new(listener, connections, arrivals, patience);
        tokio::spawn(axum::serve(listener, router).into_future());
        address
    }

    async fn say(address: SocketAddr, text: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        stream
    }

    async fn hear_out(mut stream: TcpStream) -> String {
        let mut answer = Vec::new();
        // A connection that is given up with unread bytes may end in a reset.
        let _reset = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end");
        String::from_utf8(answer).unwrap()
    }

    const WHOLE: &str = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    const HALF: &str = "GET / HTTP/1.1\r\nHo";

    #[tokio::test]
    async fn one_more_than_there_is_room_for_waits_until_another_ends() {
        let address = serve(2, PATIENCE).await;
        let held = [say(address, HALF).await, say(address, HALF).await];
        let waiting = tokio::spawn(hear_out(say(address, WHOLE).await));
        // Nothing says that it is not answered but that it is not, for a moment.
        assert!(
            timeout(Duration::from_millis(300), async {
                while !waiting.is_finished() {
                    tokio::task::yield_now().await;
                }
            })
            .await
            .is_err()
        );
        drop(held);
        assert!(waiting.await.unwrap().ends_with("here"));
    }

    #[tokio::test]
    async fn who_is_silent_or_never_comes_to_the_end_of_a_request_is_let_go_and_makes_room() {
        let address = serve(2, Duration::from_millis(200)).await;
        let silent = say(address, "").await;
        let mut slow = say(address, HALF).await;
        let waiting = tokio::spawn(hear_out(say(address, WHOLE).await));
        // A byte at a time is no request, and prolongs nothing.
        let ended = timeout(PATIENCE, async {
            while slow.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        ended.await.expect("the end of a slow client");
        assert_eq!(hear_out(silent).await, "");
        assert!(waiting.await.unwrap().ends_with("here"));
    }

    #[tokio::test]
    async fn a_request_in_more_pieces_than_any_has_ends_the_connection_and_one_in_a_few_is_answered() {
        let address = serve(2, PATIENCE).await;
        for (pieces, answered) in [(1, true), (8, true), (usize::MAX, false)] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let long = format!("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: {}\r\n\r\n", "x".repeat(8_000));
            let text = if answered { WHOLE } else { &long };
            let size = text.len().div_ceil(pieces);
            for piece in text.as_bytes().chunks(size) {
                // Each as a piece of its own: the daemon's task runs on this thread, in between.
                if stream.write_all(piece).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(hear_out(stream).await.ends_with("here"), answered, "{pieces} pieces");
        }
    }

    #[tokio::test]
    async fn a_client_that_asks_again_and_again_keeps_its_connection() {
        let address = serve(1, Duration::from_millis(400)).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        for _ in 0..8 {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(b"here") {
                let mut some = [0; 512];
                let read = timeout(PATIENCE, stream.read(&mut some)).await.expect("an answer").unwrap();
                assert!(read > 0, "closed after {answer:?}");
                answer.extend_from_slice(&some[..read]);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
