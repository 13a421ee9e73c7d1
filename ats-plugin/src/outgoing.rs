//! All of the hook's way to the daemon: a report goes by itself when there are few, else with others through the queue.
//!
//! What the hook runs under load is inlined, here and in what it calls, and what it runs seldom is kept apart: a handshake later its
//! code is cold, and code that stands together is read in again in half the time.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::batch::Batch;
use crate::coalescer::{Coalescer, Next};
use crate::proto::from_proxy;
use crate::queue::Queue;
use crate::report::Report;
use crate::sender::{SharedSender, frame};

/// 16 MiB: at 1,000 sessions a second, a minute without a daemon.
const QUEUE_BATCHES: usize = 256;
const TELL_EVERY: Duration = Duration::from_secs(2);

/// What the proxy's threads report, and the thread that sends it.
pub struct Outgoing {
    queue: Queue,
    sender: SharedSender,
    coalescer: Coalescer,
    sent: AtomicU64,
    lost: AtomicU64,
}

impl Default for Outgoing {
    fn default() -> Self {
        Self {
            queue: Queue::new(QUEUE_BATCHES),
            sender: SharedSender::default(),
            coalescer: Coalescer::new(Instant::now()),
            sent: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        }
    }
}

impl Outgoing {
    /// The hook has something to report. Never waits.
    #[inline(always)]
    pub fn report(&self, report: &Report, now: Instant) {
        if self.coalescer.goes_alone(now) && self.sender.send_now(report, &self.queue) {
            self.sent.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let lost = self.queue.push(report);
        if lost > 0 {
            self.lost.fetch_add(lost, Ordering::Relaxed);
        }
    }

    /// Opens the way onto a connection on which the introduction was sent.
    pub fn open(&self, stream: UnixStream) {
        self.sender.open(stream);
    }

    /// Closes it. What is reported from now on waits in the queue.
    pub fn close(&self) {
        self.sender.close();
    }

    /// Sends what is queued, and `news` now and then, as long as `goes_on` and the way is open.
    ///
    /// # Errors
    /// The connection's. What was not sent is in the queue again.
    pub fn send_all(
        &self,
        goes_on: impl Fn() -> bool,
        mut news: impl FnMut() -> Vec<from_proxy::Kind>,
    ) -> io::Result<()> {
        let mut told: Option<Instant> = None;
        let mut more = false;
        while goes_on() {
            match self.coalescer.next(more) {
                Next::Send => {}
                Next::Collect(time) => thread::sleep(time),
                Next::Wait => {
                    self.queue.wait(TELL_EVERY);
                }
            }
            let mut sender = self.sender.lock();
            let Some(sender) = sender.as_mut() else { return Ok(()) };
            sender.finish()?;
            let batch = self.queue.take();
            more = !self.queue.is_empty();
            let reports = batch.as_ref().map_or(0, Batch::reports);
            self.coalescer.collected(reports, Instant::now());
            if let Some(mut batch) = batch {
                if let Err(error) = sender.send(batch.frame()) {
                    self.queue.put_back(batch);
                    return Err(error);
                }
                self.sent.fetch_add(reports, Ordering::Relaxed);
                self.queue.reuse(batch);
            }
            if told.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
                for kind in news() {
                    sender.send(&frame(kind)?)?;
                }
                told = Some(Instant::now());
            }
        }
        Ok(())
    }

    /// Makes the thread in [`Self::send_all`] look whether it is to go on.
    pub fn wake(&self) {
        self.queue.wake();
    }

    /// Forgets what is queued.
    pub fn clear(&self) {
        self.queue.clear();
    }

    /// Sessions and removals handed to the daemon.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Those lost because the queue was full.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::Read;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::batch::tests::read;
    use crate::proto::FromProxy;
    use crate::report::tests::report;
    use prost::Message;

    /// What arrives until the other end closes: the times of all reports.
    fn arrivals(mut daemon: UnixStream) -> Vec<u64> {
        let mut all = Vec::new();
        daemon.read_to_end(&mut all).expect("a socket");
        let (mut left, mut times) = (&all[..], Vec::new());
        while !left.is_empty() {
            let len = 4 + u32::from_be_bytes(*left.first_chunk().expect("a length")) as usize;
            let (frame, rest) = left.split_at(len);
            let message = FromProxy::decode(&frame[4..]).expect("a message");
            if !matches!(message.kind, Some(from_proxy::Kind::Counters(_))) {
                times.extend(read(frame).iter().map(|entry| entry.at));
            }
            left = rest;
        }
        times
    }

    #[test]
    fn every_report_of_a_hundred_thousand_arrives_once_and_in_order() {
        const REPORTS: u64 = 100_000;
        let outgoing = Outgoing::default();
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let daemon = thread::spawn(move || arrivals(theirs));
        outgoing.open(ours);
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let sending = scope.spawn(|| outgoing.send_all(|| !over.load(Ordering::Relaxed), Vec::new));
            for at in 1..=REPORTS {
                // No more than the queue holds, or it would rightly drop.
                while at > outgoing.sent() + 50_000 {
                    thread::yield_now();
                }
                outgoing.report(&report(at), Instant::now());
            }
            let deadline = Instant::now() + Duration::from_secs(60);
            while outgoing.sent() < REPORTS {
                assert!(Instant::now() < deadline, "{} of {REPORTS} were sent", outgoing.sent());
                thread::yield_now();
            }
            over.store(true, Ordering::Relaxed);
            outgoing.wake();
            sending.join().expect("the sender").expect("a daemon that reads");
        });
        outgoing.close();
        assert_eq!(daemon.join().expect("the daemon"), (1..=REPORTS).collect::<Vec<_>>());
        assert_eq!(outgoing.lost(), 0);
    }

    #[test]
    fn what_a_connection_took_down_with_it_is_sent_on_the_next() {
        let outgoing = Outgoing::default();
        for at in 1..=1_000 {
            outgoing.report(&report(at), Instant::now());
        }
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        drop(theirs);
        outgoing.open(ours);
        assert!(outgoing.send_all(|| true, Vec::new).is_err());
        outgoing.close();
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let daemon = thread::spawn(move || arrivals(theirs));
        outgoing.open(ours);
        outgoing.send_all(|| outgoing.sent() < 1_000, Vec::new).expect("a daemon that reads");
        outgoing.close();
        let arrived = daemon.join().expect("the daemon");
        assert_eq!(arrived.into_iter().collect::<BTreeSet<_>>().len(), 1_000);
    }
}
