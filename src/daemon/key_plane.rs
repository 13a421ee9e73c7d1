//! Writes a link's key-plane messages out, one after the other: waits until the broker takes them, then stamps, seals
//! and publishes. What goes to all goes before what goes to one: a new key must be everywhere within `settle`, and a new
//! leader has an answer waiting for every node.

use std::sync::Arc;

use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::sealing::Sealing;
use crate::bus::{Link, Names, Published, Route};
use crate::clock::SystemClock;
use crate::metrics::{self, Plane};
use crate::proto::payload::Kind;

/// Messages that wait for a broker that is blocked. Reports and announcements repeat every beat, so few matter.
const QUEUE: usize = 256;

/// What the plane tells the driver.
#[derive(Debug)]
pub enum KeyPlaneEvent {
    /// A message to the leader came back: nobody holds the lease.
    Unroutable,
}

/// The sending half; dropping it ends the plane once everything queued was written.
#[derive(Debug)]
pub struct KeyPlane {
    announcements: mpsc::Sender<(Route, Kind)>,
    queue: mpsc::Sender<(Route, Kind)>,
    task: tokio::task::JoinHandle<()>,
}

impl KeyPlane {
    /// Starts the plane of one link.
    pub fn start<L: Link>(
        link: Arc<L>,
        names: Names,
        mut sealing: Sealing,
        clock: SystemClock,
        events: mpsc::Sender<KeyPlaneEvent>,
    ) -> Self {
        let (announcements, mut to_all) = mpsc::channel::<(Route, Kind)>(QUEUE);
        let (queue, mut to_one) = mpsc::channel::<(Route, Kind)>(QUEUE);
        let task = tokio::spawn(async move {
            loop {
                link.writable().await;
                let (route, kind) = tokio::select! {
                    biased;
                    Some(next) = to_all.recv() => next,
                    Some(next) = to_one.recv() => next,
                    else => return,
                };
                link.writable().await;
                let sealed = match sealing.seal(names.of(&route), kind, clock.now()) {
                    Ok(sealed) => sealed,
                    Err(error) => {
                        warn!(%error, "could not seal a message");
                        continue;
                    }
                };
                metrics::sent(Plane::Keys);
                match link.publish(&route, sealed).await {
                    Ok(Published::Routed) => {}
                    Ok(Published::Unroutable) if route == Route::Leader => {
                        if events.send(KeyPlaneEvent::Unroutable).await.is_err() {
                            return;
                        }
                    }
                    Ok(Published::Unroutable) => debug!(?route, "nobody took the message"),
                    // The link says `Closed` if it is gone; whatever is lost is repeated by the next beat.
                    Err(error) => debug!(%error, ?route, "could not publish"),
                }
            }
        });
        Self { announcements, queue, task }
    }

    /// Queues a message. A full queue drops it: the broker is blocked, and the next beat repeats what matters.
    pub fn send(&self, route: Route, kind: Kind) {
        let queue = if route == Route::Keys { &self.announcements } else { &self.queue };
        if queue.try_send((route, kind)).is_err() {
            debug!("the broker is blocked and the queue full: a message on the key plane is dropped");
        }
    }

    /// Writes out what is queued and ends.
    pub async fn finish(self) {
        drop((self.announcements, self.queue));
        // A panic in the task is reported by the runtime; there is nothing left to write then.
        let _ended = self.task.await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use bytes::Bytes;
    use tokio::sync::{Semaphore, watch};

    use super::*;
    use crate::bus::{BusError, LeaseAnswer};
    use crate::daemon::sealing::Identity;
    use crate::envelope::{Epochs, FarmSecret, Secrets};
    use crate::proto;

    /// A link whose broker takes a message for each permit.
    struct Slow {
        takes: Semaphore,
        taken: Mutex<Vec<Route>>,
    }

    impl Link for Slow {
        fn inbox(&self) -> &str {
            "inbox"
        }

        fn peer(&self) -> &str {
            "slow"
        }

        fn feed(&self) -> Option<&str> {
            None
        }

        async fn writable(&self) {}

        fn is_blocked(&self) -> bool {
            false
        }

        async fn publish(&self, to: &Route, _: Bytes) -> Result<Published, BusError> {
            self.takes.acquire().await.map_err(|error| BusError::Closed(error.to_string()))?.forget();
            self.taken.lock().expect("no test panics here").push(to.clone());
            Ok(Published::Routed)
        }

        async fn publish_sessions(&self, _: Bytes) -> Result<(), BusError> {
            Ok(())
        }

        async fn publish_to_feed(&self, _: &str, _: Bytes) -> Result<(), BusError> {
            Ok(())
        }

        async fn try_lease(&self) -> Result<LeaseAnswer, BusError> {
            Ok(LeaseAnswer::Held)
        }

        async fn release_lease(&self) -> Result<(), BusError> {
            Ok(())
        }

        async fn close(&self) {}
    }

    #[tokio::test]
    async fn what_goes_to_all_does_not_wait_for_what_goes_to_one() {
        let link = Arc::new(Slow { takes: Semaphore::new(0), taken: Mutex::default() });
        let secrets = Arc::new(Secrets::new(vec![FarmSecret::generate().expect("a secret")]).expect("one secret"));
        let (_sender, secrets) = watch::channel(secrets);
        let identity = Identity { farm: "f".into(), node: "n".into(), boot_id: [1; 16] };
        let clock = SystemClock::start();
        let (_sender, epochs) = watch::channel(Arc::new(Epochs::new(std::time::Duration::ZERO)));
        let sealing = Sealing::new(identity, secrets, epochs, clock.now());
        let (events, _events) = mpsc::channel(1);
        let plane = KeyPlane::start(Arc::clone(&link), Names::new("f", "p"), sealing, clock, events);
        let farewell = || Kind::Farewell(proto::Farewell {});
        let answers = ["a", "b", "c"].map(|inbox| Route::Inbox(inbox.into()));
        answers.iter().for_each(|to| plane.send(to.clone(), farewell()));
        // The first answer is with the broker by now.
        tokio::task::yield_now().await;
        plane.send(Route::Keys, farewell());
        link.takes.add_permits(9);
        plane.finish().await;
        let [a, b, c] = answers;
        assert_eq!(*link.taken.lock().expect("no test panics here"), [a, Route::Keys, b, c]);
    }
}
