//! What waits to be published: filled by the proxies' connections, emptied by the publisher.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use prost::Message;
use tokio::sync::Notify;

use super::MAX_BATCH_ENTRIES;
use crate::proto::{SessionBatch, SessionEntry, SessionFormat};

/// What one waiting entry is counted for besides its ID and session, in bytes: the entry itself and its allocation.
const ENTRY_OVERHEAD: usize = 128;

/// A queue of sessions and removals, bounded in bytes, from any number of producers to one consumer. Order is kept.
///
/// The consumer takes whatever is there: one entry when the farm is idle, at once, and large batches when entries
/// arrive faster than batches leave.
#[derive(Debug)]
pub struct Outbox {
    max_bytes: usize,
    waiting: Mutex<Waiting>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    entries: VecDeque<SessionEntry>,
    bytes: usize,
}

impl Outbox {
    /// An outbox for at most `max_bytes`, every entry counted with 128 bytes beside its ID and session.
    #[must_use]
    pub fn new(max_bytes: usize) -> Self {
        Self { max_bytes, waiting: Mutex::default(), arrived: Notify::new() }
    }

    /// Adds entries at the end, as a copy: what they are slices of is not kept in memory. Never waits for the consumer.
    /// Returns how many did not fit; what waits already stays. The caller counts them, as reason `outbox_full`.
    pub fn push_all(&self, entries: &[SessionEntry]) -> usize {
        // Looked at first without the copy, which a full outbox under load would make for nothing.
        let room = self.max_bytes.saturating_sub(self.lock().bytes);
        let mut cost_of_all = 0;
        let fitting = entries.iter().take_while(|entry| {
            cost_of_all += cost(entry);
            cost_of_all <= room
        });
        let fitting = &entries[..fitting.count()];
        // One allocation, which lives until the last of them has left.
        let mut copy = Vec::with_capacity(fitting.iter().map(|entry| entry.id.len() + entry.session.len()).sum());
        for entry in fitting {
            copy.extend_from_slice(&entry.id);
            copy.extend_from_slice(&entry.session);
        }
        let mut copy = Bytes::from(copy);
        let copies = fitting.iter().map(|entry| SessionEntry {
            id: copy.split_to(entry.id.len()),
            session: copy.split_to(entry.session.len()),
            at: entry.at,
        });
        let mut taken = 0;
        {
            let mut waiting = self.lock();
            for entry in copies {
                let cost = cost(&entry);
                if waiting.bytes.saturating_add(cost) > self.max_bytes {
                    break;
                }
                waiting.bytes += cost;
                waiting.entries.push_back(entry);
                taken += 1;
            }
        }
        if taken > 0 {
            self.arrived.notify_one();
        }
        entries.len() - taken
    }

    /// Waits until something is there and takes the oldest entries, as many as encode to `batch_bytes` but at least
    /// one and at most [`MAX_BATCH_ENTRIES`].
    ///
    /// Cancel-safe: nothing is taken unless it is returned. There must be one consumer only.
    pub async fn next_batch(&self, batch_bytes: usize) -> SessionBatch {
        loop {
            if let Some(batch) = self.take(batch_bytes) {
                return batch;
            }
            // A push between the look and here has left its permit behind.
            self.arrived.notified().await;
        }
    }

    /// Takes everything that is there, in batches as [`Self::next_batch`] would give them, without waiting.
    #[must_use]
    pub fn drain_now(&self, batch_bytes: usize) -> Vec<SessionBatch> {
        std::iter::from_fn(|| self.take(batch_bytes)).collect()
    }

    /// How many entries wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().entries.len()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the waiting entries are counted for, in bytes: never more than the bound.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }

    fn take(&self, batch_bytes: usize) -> Option<SessionBatch> {
        let mut waiting = self.lock();
        let (mut count, mut bytes, mut encoded) = (0, 0, 0);
        for entry in waiting.entries.iter().take(MAX_BATCH_ENTRIES) {
            // As a field of the batch: a tag, a length, the entry.
            let length = entry.encoded_len();
            encoded += 1 + prost::length_delimiter_len(length) + length;
            if count > 0 && encoded > batch_bytes {
                break;
            }
            count += 1;
            bytes += cost(entry);
        }
        if count == 0 {
            return None;
        }
        waiting.bytes -= bytes;
        let entries = waiting.entries.drain(..count).collect();
        if waiting.entries.is_empty() && waiting.entries.capacity() > 4096 {
            waiting.entries = VecDeque::new();
        }
        Some(SessionBatch { entries, format: SessionFormat::OpensslDer.into() })
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics between the two changes that belong together.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn cost(entry: &SessionEntry) -> usize {
    entry.id.len() + entry.session.len() + ENTRY_OVERHEAD
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        sync::Arc,
        task::{Context, Poll, Waker},
        thread,
        time::Duration,
    };

    use super::*;

    fn entry(number: u64, length: usize) -> SessionEntry {
        SessionEntry { id: number.to_be_bytes().to_vec().into(), session: vec![0; length].into(), at: number }
    }

    fn numbers(batch: &SessionBatch) -> Vec<u64> {
        batch.entries.iter().map(|entry| entry.at).collect()
    }

    /// One poll, without a runtime: what comes must be there already.
    fn poll_once<F: Future>(future: F) -> Option<F::Output> {
        match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_lone_entry_leaves_at_once() {
        let outbox = Outbox::new(1 << 20);
        assert_eq!(outbox.push_all(&[entry(1, 100)]), 0);
        let batch = poll_once(outbox.next_batch(32 * 1024)).expect("without waiting for more");
        assert_eq!(numbers(&batch), [1]);
        assert_eq!(batch.format(), SessionFormat::OpensslDer);
        assert!(outbox.is_empty());
        assert!(poll_once(outbox.next_batch(32 * 1024)).is_none(), "an empty batch");
    }

    #[test]
    fn batches_are_as_large_as_allowed_and_keep_the_order() {
        let outbox = Outbox::new(1 << 20);
        for number in 0..1_000 {
            assert_eq!(outbox.push_all(&[entry(number, 200)]), 0);
        }
        let mut seen = Vec::new();
        while let Some(batch) = poll_once(outbox.next_batch(10_000)) {
            // The batch's own field for the format is two bytes more.
            let encoded = batch.encoded_len() - 2;
            assert!(encoded <= 10_000, "{encoded} bytes");
            if seen.len() + batch.entries.len() < 1_000 {
                assert!(encoded > 10_000 - 230, "room for another entry in {encoded} bytes");
            }
            seen.extend(numbers(&batch));
        }
        assert_eq!(seen, (0..1_000).collect::<Vec<_>>());
        assert_eq!(outbox.bytes(), 0);
    }

    #[test]
    fn an_entry_larger_than_a_batch_travels_alone() {
        let outbox = Outbox::new(1 << 20);
        for (number, length) in [(1, 10), (2, 5_000), (3, 10)] {
            assert_eq!(outbox.push_all(&[entry(number, length)]), 0);
        }
        let batches: Vec<_> = outbox.drain_now(1_000).iter().map(numbers).collect();
        assert_eq!(batches, [vec![1], vec![2], vec![3]]);
    }

    #[test]
    fn a_full_outbox_refuses_and_keeps_what_it_has() {
        let each = 8 + 100 + ENTRY_OVERHEAD;
        let outbox = Outbox::new(3 * each);
        for number in 1..=3 {
            assert_eq!(outbox.push_all(&[entry(number, 100)]), 0);
        }
        assert_eq!(outbox.push_all(&[entry(4, 100)]), 1);
        assert_eq!(outbox.push_all(&[entry(4, 0)]), 1, "a removal needs room, too");
        assert_eq!(outbox.bytes(), 3 * each);
        assert_eq!(numbers(&poll_once(outbox.next_batch(1)).unwrap()), [1]);
        assert_eq!(outbox.push_all(&[entry(5, 100)]), 0);
        assert_eq!(outbox.drain_now(1 << 20).iter().flat_map(numbers).collect::<Vec<_>>(), [2, 3, 5]);
        assert!(outbox.drain_now(1 << 20).is_empty());
    }

    #[test]
    fn a_batch_has_no_more_entries_than_a_receiver_takes() {
        let outbox = Outbox::new(1 << 30);
        for number in 0..=MAX_BATCH_ENTRIES as u64 {
            assert_eq!(outbox.push_all(&[entry(number, 0)]), 0);
        }
        let counts: Vec<_> = outbox.drain_now(usize::MAX).iter().map(|batch| batch.entries.len()).collect();
        assert_eq!(counts, [MAX_BATCH_ENTRIES, 1]);
    }

    #[test]
    fn an_entry_does_not_keep_the_message_that_brought_it() {
        let frame = Bytes::from(vec![7; 100_000]);
        let outbox = Outbox::new(1 << 20);
        assert_eq!(outbox.push_all(&[SessionEntry { id: frame.slice(..32), session: frame.slice(32..200), at: 0 }]), 0);
        assert!(frame.is_unique(), "the whole message stays in memory");
        let taken = &outbox.drain_now(1)[0].entries[0];
        assert_eq!((&taken.id[..], &taken.session[..]), (&[7; 32][..], &[7; 168][..]));
    }

    #[tokio::test]
    async fn a_waiting_consumer_is_woken_and_a_cancelled_one_loses_nothing() {
        let outbox = Arc::new(Outbox::new(1 << 20));
        let consumer = tokio::spawn({
            let outbox = outbox.clone();
            async move { outbox.next_batch(1_000).await }
        });
        tokio::task::yield_now().await;
        assert_eq!(outbox.push_all(&[entry(1, 10)]), 0);
        let batch = tokio::time::timeout(Duration::from_secs(10), consumer).await.expect("not woken").unwrap();
        assert_eq!(numbers(&batch), [1]);

        // Woken and dropped before it ran: the next one finds the entry.
        let mut cancelled = Box::pin(outbox.next_batch(1_000));
        assert!(cancelled.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(outbox.push_all(&[entry(2, 10)]), 0);
        drop(cancelled);
        let batch = tokio::time::timeout(Duration::from_secs(10), outbox.next_batch(1_000)).await.expect("lost");
        assert_eq!(numbers(&batch), [2]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn entries_of_many_threads_all_arrive_each_thread_in_order() {
        const THREADS: u64 = 4;
        const EACH: u64 = 20_000;
        let outbox = Arc::new(Outbox::new(1 << 30));
        let producers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let outbox = outbox.clone();
                thread::spawn(move || {
                    for number in 0..EACH {
                        assert_eq!(outbox.push_all(&[entry(thread * EACH + number, 20)]), 0);
                    }
                })
            })
            .collect();
        let all = async {
            let mut seen = vec![Vec::new(); THREADS as usize];
            while seen.iter().map(Vec::len).sum::<usize>() < (THREADS * EACH) as usize {
                for number in numbers(&outbox.next_batch(4_096).await) {
                    seen[(number / EACH) as usize].push(number % EACH);
                }
            }
            seen
        };
        let seen = tokio::time::timeout(Duration::from_secs(60), all).await.expect("entries are missing");
        for (thread, numbers) in seen.into_iter().enumerate() {
            assert!(numbers.into_iter().eq(0..EACH), "thread {thread}");
        }
        for producer in producers {
            producer.join().unwrap();
        }
        assert_eq!((outbox.len(), outbox.bytes()), (0, 0));
    }
}
