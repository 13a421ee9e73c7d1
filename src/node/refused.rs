//! Says which publishes the broker refuses, and keeps it for `status`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::warn;

use crate::bus::refusals::Refusals;
use crate::bus::{BusError, LeaseAnswer};
use crate::clock::Now;
use crate::routes::{Names, Published, Route};

/// What the broker refuses this node. Copies share it; it outlives the links, which such a refusal may end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Refused(Arc<Mutex<Refusals>>);

impl Refused {
    fn refusals(&self) -> MutexGuard<'_, Refusals> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what became of a publish, and warns of a refusal that is news.
    pub(crate) fn note(&self, route: &Route, result: &Result<Published, BusError>, names: &Names, now: Now) {
        let news = match result {
            Ok(_) => {
                self.refusals().published(route);
                None
            }
            Err(error) => self.refusals().refused(route, error, names, now),
        };
        if let Some(news) = news {
            warn!("{news}");
        }
    }

    /// The same of a publish on the session plane.
    pub(crate) fn note_sessions(&self, result: &Result<(), BusError>, names: &Names, now: Now) {
        let news = match result {
            Ok(()) => {
                self.refusals().sessions_published();
                None
            }
            Err(error) => self.refusals().sessions_refused(error, names, now),
        };
        if let Some(news) = news {
            warn!("{news}");
        }
    }

    /// The same of an attempt at the lease.
    pub(crate) fn note_lease(&self, answer: &Result<LeaseAnswer, BusError>, names: &Names, now: Now) {
        let news = match answer {
            Ok(_) => {
                self.refusals().lease_answered();
                None
            }
            Err(error) => self.refusals().lease_refused(error, names, now),
        };
        if let Some(news) = news {
            warn!("{news}");
        }
    }

    /// What is refused at `now`, in sentences.
    #[must_use]
    pub(crate) fn sentences(&self, now: Now) -> Vec<String> {
        self.refusals().sentences(now)
    }
}
