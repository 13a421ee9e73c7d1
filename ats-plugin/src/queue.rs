//! What the hook has seen, on its way to the daemon: bounded, and never a wait for the hook.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::proto::Session;

/// Sessions and removals in the order in which ATS reported them.
pub struct Queue {
    state: Mutex<State>,
    news: Condvar,
    max_entries: usize,
    max_bytes: usize,
}

#[derive(Default)]
struct State {
    entries: VecDeque<Session>,
    bytes: usize,
    /// Somebody sleeps in [`Queue::wait`]: only then does the hook pay for waking.
    waiting: bool,
    woken: bool,
}

impl Queue {
    /// At most `max_entries` of `max_bytes` together.
    pub fn new(max_entries: usize, max_bytes: usize) -> Self {
        Self { state: Mutex::default(), news: Condvar::new(), max_entries, max_bytes }
    }

    /// Puts `entry` last. A full queue loses its oldest entries, which clients are least likely to bring back; returns
    /// how many.
    pub fn push(&self, entry: Session) -> u64 {
        let mut lost = Vec::new();
        let wake = {
            let mut state = self.lock();
            state.bytes += weight(&entry);
            state.entries.push_back(entry);
            while state.entries.len() > self.max_entries || state.bytes > self.max_bytes {
                let Some(oldest) = state.entries.pop_front() else { break };
                state.bytes -= weight(&oldest);
                lost.push(oldest);
            }
            std::mem::take(&mut state.waiting)
        };
        if wake {
            self.news.notify_one();
        }
        lost.len() as u64
    }

    /// Waits until there is an entry, until [`Queue::wake`], or for `patience`. Returns whether there is an entry.
    pub fn wait(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        while state.entries.is_empty() && !state.woken {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state.waiting = true;
            state = self.news.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.waiting = false;
        state.woken = false;
        !state.entries.is_empty()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.lock().entries.is_empty()
    }

    /// Takes entries of up to `max_bytes` (at least one, if there is any), oldest first.
    pub fn take(&self, max_bytes: usize) -> Vec<Session> {
        let mut state = self.lock();
        let (mut count, mut bytes) = (0, 0);
        for entry in &state.entries {
            if count > 0 && bytes + weight(entry) > max_bytes {
                break;
            }
            bytes += weight(entry);
            count += 1;
        }
        state.bytes -= bytes;
        state.entries.drain(..count).collect()
    }

    /// Puts back what could not be sent, before everything else. Returns how many entries found no room.
    pub fn put_back(&self, entries: Vec<Session>) -> u64 {
        let mut state = self.lock();
        let mut lost = 0;
        for entry in entries.into_iter().rev() {
            if state.entries.len() >= self.max_entries || state.bytes + weight(&entry) > self.max_bytes {
                lost += 1;
            } else {
                state.bytes += weight(&entry);
                state.entries.push_front(entry);
            }
        }
        lost
    }

    /// Makes a waiting [`Queue::wait`] return.
    pub fn wake(&self) {
        self.lock().woken = true;
        self.news.notify_all();
    }

    /// Forgets everything.
    pub fn clear(&self) {
        let mut state = self.lock();
        state.bytes = 0;
        let entries = std::mem::take(&mut state.entries);
        drop(state);
        drop(entries);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The memory that an entry stands for: ID, DER and what surrounds them.
fn weight(entry: &Session) -> usize {
    entry.id.len() + entry.session.len() + 96
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;

    fn entry(n: u64) -> Session {
        Session { id: Bytes::from_static(&[1; 32]), session: Bytes::from_static(&[2; 160]), at: n }
    }

    fn order(entries: &[Session]) -> Vec<u64> {
        entries.iter().map(|entry| entry.at).collect()
    }

    #[test]
    fn entries_leave_in_the_order_in_which_they_came() {
        let queue = Queue::new(100, 1 << 20);
        for n in 0..10 {
            assert_eq!(queue.push(entry(n)), 0);
        }
        let first = queue.take(3 * weight(&entry(0)));
        assert_eq!(order(&first), [0, 1, 2]);
        assert_eq!(queue.put_back(first), 0);
        assert_eq!(order(&queue.take(1 << 20)), (0..10).collect::<Vec<_>>());
        assert_eq!(queue.lock().bytes, 0);
    }

    #[test]
    fn a_full_queue_loses_its_oldest_and_says_how_many() {
        let queue = Queue::new(3, 1 << 20);
        let lost: u64 = (0..5).map(|n| queue.push(entry(n))).sum();
        assert_eq!(lost, 2);
        assert_eq!(queue.put_back(vec![entry(9)]), 1);
        assert_eq!(order(&queue.take(1 << 20)), [2, 3, 4]);
        let queue = Queue::new(100, 2 * weight(&entry(0)));
        assert_eq!((0..5).map(|n| queue.push(entry(n))).sum::<u64>(), 3);
    }

    #[test]
    fn one_entry_larger_than_a_batch_travels_alone() {
        let queue = Queue::new(100, 1 << 20);
        queue.push(entry(0));
        queue.push(entry(1));
        assert_eq!(order(&queue.take(1)), [0]);
    }

    #[test]
    fn a_sleeper_is_woken_by_an_entry_and_by_a_call() {
        let queue = Arc::new(Queue::new(100, 1 << 20));
        for wake in [false, true] {
            let sleeper = std::thread::spawn({
                let queue = Arc::clone(&queue);
                move || usize::from(queue.wait(Duration::from_secs(60))) + queue.take(1 << 20).len()
            });
            while !queue.lock().waiting {
                std::thread::yield_now();
            }
            if wake {
                queue.wake();
            } else {
                queue.push(entry(0));
            }
            assert_eq!(sleeper.join().unwrap(), if wake { 0 } else { 2 });
        }
    }
}
