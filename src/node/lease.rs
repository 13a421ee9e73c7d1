//! Asks the broker about the lease, one question after the other and beside everything else: a broker that does not
//! answer holds up the questions behind, and nothing but them.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use super::refused::Refused;
use crate::bus::{BusError, LeaseAnswer, Link};
use crate::clock::SystemClock;
use crate::routes::{Names, Seat};

/// Questions that wait for the one before. A node tries once at a time, and gives up only what it holds.
const QUEUE: usize = 8;

#[derive(Debug)]
enum LeaseQuestion {
    Try(Seat),
    Release { seat: Seat, done: oneshot::Sender<()> },
}

/// The broker's answer to an attempt at the lease of a seat.
pub(super) type LeaseTried = (Seat, Result<LeaseAnswer, BusError>);

/// The questions of one link. Dropping it ends the asking after those that were put.
#[derive(Debug)]
pub(super) struct LeaseAsker {
    questions: mpsc::Sender<LeaseQuestion>,
}

impl LeaseAsker {
    /// Starts asking on `link`; what the broker says to each [`LeaseAsker::try_take`] goes to `answers`, and what it refuses to
    /// `refused` too.
    pub(crate) fn start<L: Link>(
        link: Arc<L>,
        (names, refused): (Names, Refused),
        clock: SystemClock,
        answers: mpsc::Sender<LeaseTried>,
    ) -> Self {
        let (questions, mut waiting) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            while let Some(question) = waiting.recv().await {
                match question {
                    LeaseQuestion::Try(seat) => {
                        let answer = link.try_lease(seat).await;
                        refused.note_lease(&answer, &names, clock.now());
                        // The driver may have another link by now; then it wants no answer.
                        let _gone = answers.send((seat, answer)).await;
                    }
                    LeaseQuestion::Release { seat, done } => {
                        if let Err(error) = link.release_lease(seat).await {
                            warn!(%error, "could not release the lease");
                        }
                        // Only a farewell waits for it.
                        let _nobody_waits = done.send(());
                    }
                }
            }
        });
        Self { questions }
    }

    /// Tries to take the lease of a seat, after what was asked before.
    pub(crate) fn try_take(&self, seat: Seat) {
        self.put(LeaseQuestion::Try(seat));
    }

    /// Gives the lease up, after what was asked before, whether or not somebody waits for what is returned: it ends when
    /// the broker has answered or the link has ended.
    pub(crate) fn release(&self, seat: Seat) -> oneshot::Receiver<()> {
        let (done, released) = oneshot::channel();
        self.put(LeaseQuestion::Release { seat, done });
        released
    }

    fn put(&self, question: LeaseQuestion) {
        if let Err(error) = self.questions.try_send(question) {
            warn!(%error, "the broker has left {QUEUE} questions about the lease unanswered; this one is not put");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::sync::Notify;
    use tokio::time::timeout;

    use super::*;
    use crate::bus::in_process::{Hub, InProcess, InProcessLink};
    use crate::bus::{Bus, LinkEvents, LinkSpec};
    use crate::routes::{Published, Route};

    /// A link whose broker answers a release only when it is let.
    struct Slow {
        link: InProcessLink,
        answer: Arc<Notify>,
    }

    impl Link for Slow {
        fn inbox(&self) -> &str {
            self.link.inbox()
        }

        fn peer(&self) -> &str {
            self.link.peer()
        }

        fn feed(&self) -> Option<&str> {
            self.link.feed()
        }

        async fn writable(&self) {
            self.link.writable().await;
        }

        fn is_blocked(&self) -> bool {
            self.link.is_blocked()
        }

        async fn publish(&self, to: &Route, body: Bytes) -> Result<Published, BusError> {
            self.link.publish(to, body).await
        }

        async fn publish_sessions(&self, body: Bytes) -> Result<(), BusError> {
            self.link.publish_sessions(body).await
        }

        async fn publish_to_feed(&self, feed: &str, body: Bytes) -> Result<(), BusError> {
            self.link.publish_to_feed(feed, body).await
        }

        async fn try_lease(&self, seat: Seat) -> Result<LeaseAnswer, BusError> {
            self.link.try_lease(seat).await
        }

        async fn release_lease(&self, seat: Seat) -> Result<(), BusError> {
            self.answer.notified().await;
            self.link.release_lease(seat).await
        }

        async fn check(&self) -> Result<(), BusError> {
            self.link.check().await
        }

        async fn close(&self) {
            self.link.close().await;
        }
    }

    async fn link(hub: &Arc<Hub>, node: &str) -> InProcessLink {
        let spec =
            LinkSpec { names: Names::new("f", "p"), node: node.to_owned(), sessions: false, elsewhere_than: None };
        let events = LinkEvents { keys: mpsc::channel(16).0, feed: mpsc::channel(1).0 };
        InProcess::new(Arc::clone(hub)).connect(&spec, events).await.unwrap()
    }

    fn start<L: Link>(link: L, answers: mpsc::Sender<LeaseTried>) -> LeaseAsker {
        let refused = (Names::new("f", "p"), Refused::default());
        LeaseAsker::start(Arc::new(link), refused, SystemClock::start(), answers)
    }

    #[tokio::test]
    async fn a_try_does_not_overtake_a_release_that_the_broker_has_not_answered() {
        let hub = Arc::new(Hub::default());
        let answer = Arc::new(Notify::new());
        let slow = Slow { link: link(&hub, "a").await, answer: Arc::clone(&answer) };
        let (sender, mut answers) = mpsc::channel(1);
        let lease = start(slow, sender);
        lease.try_take(Seat::FIRST);
        assert!(matches!(answers.recv().await, Some((Seat::FIRST, Ok(LeaseAnswer::Granted)))));

        // Neither call waits, and a try that overtook the release would be granted the lease that is about to go.
        let released = lease.release(Seat::FIRST);
        lease.try_take(Seat::FIRST);
        assert!(timeout(Duration::from_millis(50), answers.recv()).await.is_err());
        answer.notify_one();
        released.await.unwrap();
        assert!(matches!(answers.recv().await, Some((Seat::FIRST, Ok(LeaseAnswer::Granted)))));
        let other = link(&hub, "b").await;
        assert_eq!(
            other.try_lease(Seat::FIRST).await.unwrap(),
            LeaseAnswer::Taken,
            "the try came last, and holds the lease"
        );
    }

    #[tokio::test]
    async fn what_was_asked_before_the_link_was_let_go_is_still_asked() {
        let hub = Arc::new(Hub::default());
        let (sender, mut answers) = mpsc::channel(1);
        let lease = start(link(&hub, "a").await, sender);
        lease.try_take(Seat::FIRST);
        assert!(matches!(answers.recv().await, Some((Seat::FIRST, Ok(LeaseAnswer::Granted)))));
        let released = lease.release(Seat::FIRST);
        drop(lease);
        released.await.unwrap();
        let other = link(&hub, "b").await;
        assert_eq!(other.try_lease(Seat::FIRST).await.unwrap(), LeaseAnswer::Granted);
    }
}
