//! What the hook has seen, on its way to the daemon: bounded, and never a wait for the hook.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::batch::Batch;
use crate::report::Report;

/// Empty batches that are kept for the hook: it fills the next while one is sent.
const SPARES: usize = 1;

/// Sessions and removals in the order in which the proxy reported them, in batches as they travel.
pub struct Queue {
    state: Mutex<State>,
    news: Condvar,
    max_batches: usize,
}

struct State {
    /// What the hook fills now. By itself, for the hook looks at as little memory as can be.
    last: Batch,
    /// Those before it, full ones and what was put back.
    full: VecDeque<Batch>,
    /// Each is empty.
    spares: Vec<Batch>,
    /// Somebody sleeps in [`Queue::wait`]: only then does the hook pay for waking.
    waiting: bool,
    woken: bool,
}

impl Queue {
    /// At most `max_batches` of [`crate::batch::BATCH_BYTES`], and one that was put back.
    pub fn new(max_batches: usize) -> Self {
        let spares = (0..SPARES).map(|_| Batch::new()).collect();
        let state = State { last: Batch::new(), full: VecDeque::new(), spares, waiting: false, woken: false };
        Self { state: Mutex::new(state), news: Condvar::new(), max_batches: max_batches.max(1) }
    }

    /// Puts `report` last. A full queue loses its oldest batch, which clients are least likely to bring back; returns
    /// how many reports were in it.
    #[inline]
    pub fn push(&self, report: &Report) -> u64 {
        let (lost, wake) = {
            let mut state = self.lock();
            (state.push(report, self.max_batches), std::mem::take(&mut state.waiting))
        };
        if wake {
            self.news.notify_one();
        }
        lost
    }

    /// Waits until there is something, until [`Queue::wake`], or for `patience`. Returns whether there is something.
    pub fn wait(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        while state.is_empty() && !state.woken {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state.waiting = true;
            state = self.news.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.waiting = false;
        state.woken = false;
        !state.is_empty()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Takes the oldest batch.
    pub fn take(&self) -> Option<Batch> {
        self.lock().take()
    }

    /// Takes back a batch that was sent, for the hook to fill again.
    pub fn reuse(&self, mut batch: Batch) {
        batch.wipe();
        let mut state = self.lock();
        if state.spares.len() < SPARES {
            state.spares.push(batch);
        }
    }

    /// Puts back a batch that could not be sent, before everything else.
    pub fn put_back(&self, batch: Batch) {
        self.lock().full.push_front(batch);
    }

    /// Makes a waiting [`Queue::wait`] return.
    pub fn wake(&self) {
        self.lock().woken = true;
        self.news.notify_all();
    }

    /// Forgets everything.
    pub fn clear(&self) {
        while let Some(batch) = self.take() {
            self.reuse(batch);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_empty(&self) -> bool {
        self.full.is_empty() && self.last.is_empty()
    }

    #[inline]
    fn push(&mut self, report: &Report, max_batches: usize) -> u64 {
        if self.last.push(report) { 0 } else { self.push_into_next(report, max_batches) }
    }

    #[cold]
    fn push_into_next(&mut self, report: &Report, max_batches: usize) -> u64 {
        let oldest = if self.full.len() + 1 >= max_batches { self.full.pop_front() } else { None };
        let lost = oldest.as_ref().map_or(0, Batch::reports);
        let mut next = oldest.or_else(|| self.spares.pop()).unwrap_or_default();
        next.restart();
        next.push(report);
        self.full.push_back(std::mem::replace(&mut self.last, next));
        lost
    }

    fn take(&mut self) -> Option<Batch> {
        if let Some(oldest) = self.full.pop_front() {
            return Some(oldest);
        }
        (!self.last.is_empty()).then(|| std::mem::replace(&mut self.last, self.spares.pop().unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::batch::tests::times;
    use crate::report::tests::report;

    fn order(queue: &Queue) -> Vec<u64> {
        std::iter::from_fn(|| queue.take()).flat_map(|mut batch| times(&mut batch)).collect()
    }

    #[test]
    fn reports_leave_in_the_order_in_which_they_came() {
        let queue = Queue::new(100);
        for at in 0..1_000 {
            assert_eq!(queue.push(&report(at)), 0);
        }
        let first = queue.take().expect("a batch");
        assert!(first.reports() < 500, "{}", first.reports());
        queue.put_back(first);
        assert_eq!(order(&queue), (0..1_000).collect::<Vec<_>>());
        assert!(queue.is_empty());
    }

    #[test]
    fn a_full_queue_loses_its_oldest_and_says_how_many() {
        let queue = Queue::new(2);
        let lost: u64 = (0..2_000).map(|at| queue.push(&report(at))).sum();
        assert!(lost > 1_000, "{lost}");
        let taken = queue.take().expect("a batch");
        let taken_reports = taken.reports();
        let late = (2_000..4_000).map(|at| queue.push(&report(at))).sum::<u64>();
        queue.put_back(taken);
        let mut all = order(&queue).into_iter();
        assert_eq!(
            all.by_ref().take(taken_reports as usize).collect::<Vec<_>>(),
            (lost..lost + taken_reports).collect::<Vec<_>>()
        );
        assert_eq!(all.collect::<Vec<_>>(), (lost + taken_reports + late..4_000).collect::<Vec<_>>());
    }

    #[test]
    fn a_batch_that_was_sent_is_filled_again() {
        let queue = Queue::new(2);
        for at in 0..100 {
            queue.push(&report(at));
            let mut batch = queue.take().expect("a batch");
            assert!(queue.lock().spares.is_empty(), "at {at}");
            assert_eq!(times(&mut batch), [at]);
            queue.reuse(batch);
            assert_eq!(queue.lock().spares.len(), 1, "at {at}");
        }
    }

    #[test]
    fn a_sleeper_is_woken_by_a_report_and_by_a_call() {
        let queue = Arc::new(Queue::new(100));
        for wake in [false, true] {
            let sleeper = std::thread::spawn({
                let queue = Arc::clone(&queue);
                move || usize::from(queue.wait(Duration::from_secs(60))) + usize::from(queue.take().is_some())
            });
            while !queue.lock().waiting {
                std::thread::yield_now();
            }
            if wake {
                queue.wake();
            } else {
                queue.push(&report(0));
            }
            assert_eq!(sleeper.join().unwrap(), if wake { 0 } else { 2 });
        }
    }
}
