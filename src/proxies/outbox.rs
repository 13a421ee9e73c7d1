//! The outbox between the proxies' connections and the publisher.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::proto::{SessionBatch, SessionEntry};
use crate::sessions::Outbox;

/// An [`Outbox`] from any number of producers to one consumer, which can wait for them.
#[derive(Debug)]
pub struct SharedOutbox {
    waiting: Mutex<Outbox>,
    arrived: Notify,
}

impl SharedOutbox {
    /// As [`Outbox::new`].
    #[must_use]
    pub fn new(max_bytes: usize) -> Self {
        Self { waiting: Mutex::new(Outbox::new(max_bytes)), arrived: Notify::new() }
    }

    /// Adds entries at the end, as a copy: what they are slices of is not kept in memory. Never waits for the consumer.
    /// Returns how many did not fit; what waits already stays. The caller counts them, as reason `outbox_full`.
    pub fn push_all(&self, entries: &[SessionEntry]) -> usize {
        let fitting = self.lock().fitting(entries);
        // The copy is made without the lock.
        let copies = Outbox::copies(fitting);
        let added = self.lock().push_all(copies);
        if added > 0 {
            self.arrived.notify_one();
        }
        entries.len() - added
    }

    /// Waits until something is there and takes it: see [`Outbox::take`].
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

    /// Takes what is there, without waiting.
    #[must_use]
    pub fn take(&self, batch_bytes: usize) -> Option<SessionBatch> {
        self.lock().take(batch_bytes)
    }

    /// Whether no entry waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many entries wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// What the waiting entries are counted for, in bytes: never more than the bound.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.lock().bytes()
    }

    fn lock(&self) -> MutexGuard<'_, Outbox> {
        // Nothing panics between the two changes that belong together.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::{Context, Waker};
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn entry(number: u64, length: usize) -> SessionEntry {
        SessionEntry { id: number.to_be_bytes().to_vec().into(), session: vec![0; length].into(), at: number }
    }

    fn numbers(batch: &SessionBatch) -> Vec<u64> {
        batch.entries.iter().map(|entry| entry.at).collect()
    }

    #[tokio::test]
    async fn a_waiting_consumer_is_woken_and_a_cancelled_one_loses_nothing() {
        let outbox = Arc::new(SharedOutbox::new(1 << 20));
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
        let outbox = Arc::new(SharedOutbox::new(1 << 30));
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
