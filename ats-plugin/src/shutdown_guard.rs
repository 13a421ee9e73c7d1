//! Keeps the plugin's threads away from ATS and OpenSSL once ATS stops and takes both apart.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Counts the threads that are inside.
#[derive(Default)]
pub(crate) struct ShutdownGuard {
    state: Mutex<State>,
    left: Condvar,
}

#[derive(Default)]
struct State {
    inside: usize,
    shut: bool,
}

/// Somebody is inside.
pub(crate) struct Inside<'a>(&'a ShutdownGuard);

impl ShutdownGuard {
    /// Enters; none once ATS stops.
    pub(crate) fn enter(&self) -> Option<Inside<'_>> {
        let mut state = self.lock();
        (!state.shut).then(|| {
            state.inside += 1;
            Inside(self)
        })
    }

    /// Lets no thread enter any more, and waits until all have left, for at most `patience`.
    pub(crate) fn shut(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        state.shut = true;
        while state.inside > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.left.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether it is shut.
    pub(crate) fn is_shut(&self) -> bool {
        self.lock().shut
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.lock().inside -= 1;
        self.0.left.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_enters_a_shut_gate_and_shutting_waits_for_those_inside() {
        let guard = ShutdownGuard::default();
        let inside = guard.enter().unwrap();
        std::thread::scope(|scope| {
            let shutting = scope.spawn(|| guard.shut(Duration::from_secs(60)));
            while !guard.is_shut() {
                std::thread::yield_now();
            }
            assert!(!shutting.is_finished());
            drop(inside);
        });
        assert!(guard.enter().is_none());
    }

    #[test]
    fn shutting_gives_up_on_one_who_stays() {
        let guard = ShutdownGuard::default();
        let _inside = guard.enter();
        guard.shut(Duration::from_millis(1));
        assert!(guard.enter().is_none());
    }
}
