//! Writes a link's key-plane messages out: waits until the broker takes them, then stamps, seals and publishes.
//!
//! What goes to all goes before what goes to one: a new key must be everywhere within `settle`, and a new leader has
//! answers waiting for every node. Each queue or exchange gets its messages one after the other, each when the broker has
//! confirmed the one before, in order; several are written to at a time, for a confirm takes a journey there and back.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tracing::{debug, warn};

use super::refused::Refused;
use super::sealing::Sealing;
use crate::bus::{BusError, Link};
use crate::clock::SystemClock;
use crate::metrics::{self, Plane};
use crate::proto::payload::Kind;
use crate::routes::{Names, Published, Route, Seat};

/// How long the broker's answer to a message is waited for before another one goes the same way, where a node reports every
/// `report_every`: a broker of a cluster that stands still must not keep a leader's next announcement from the others until
/// they take it for gone. Within 0.5 to 3 s: an answer that is not waited for costs a channel.
pub(super) fn confirm_within(report_every: Duration) -> Duration {
    report_every.clamp(Duration::from_millis(500), Duration::from_secs(3))
}

/// What the plane tells the driver.
#[derive(Debug)]
pub(crate) enum KeyPlaneEvent {
    /// What the broker answered to a message for the leader at this seat.
    Told(Seat, Published),
}

/// Messages that wait, and where some are under way. The order in which they go is decided here.
#[derive(Debug, Default)]
pub struct Waiting {
    to_all: VecDeque<Kind>,
    to_one: VecDeque<(Route, Kind)>,
    under_way: Vec<Route>,
    closing: bool,
}

impl Waiting {
    /// How many wait for a broker that is blocked or slow, to all and to one each. Reports and announcements repeat every
    /// beat; a new leader answers each of some hundred nodes with a grant and an announcement.
    pub(crate) const MOST: usize = 1_024;
    /// Routes written to at a time: as many as a link has channels for it.
    const ROUTES: usize = 8;

    /// Adds a message; false if there is no room, and it is dropped. An announcement takes the place of one that waits
    /// for the same route: it says the same and more, and behind others it would come late. So does a report, of which one a
    /// beat would wait for a queue whose broker stands still; and the grant of an epoch key to a node that has asked again.
    pub fn push(&mut self, route: Route, kind: Kind) -> bool {
        let to_all = self.to_all.iter_mut().filter(|_| route == Route::Keys);
        let to_one = self.to_one.iter_mut().filter(|(other, _)| *other == route).map(|(_, kind)| kind);
        if let Some(waiting) = to_all.chain(to_one).find(|waiting| is_needless(waiting, &kind)) {
            *waiting = kind;
            return true;
        }
        match route {
            Route::Keys if self.to_all.len() < Self::MOST => self.to_all.push_back(kind),
            Route::Leader(_) | Route::Inbox(_) if self.to_one.len() < Self::MOST => {
                self.to_one.push_back((route, kind))
            }
            _ => return false,
        }
        true
    }

    /// The message that goes next, if one can: nothing is under way to its route until [`Waiting::arrived`].
    pub fn take(&mut self) -> Option<(Route, Kind)> {
        if self.under_way.len() >= Self::ROUTES {
            return None;
        }
        let next = match self.to_all.front() {
            Some(_) if !self.under_way.contains(&Route::Keys) => {
                self.to_all.pop_front().map(|kind| (Route::Keys, kind))
            }
            _ => {
                let free = |(route, _): &(Route, Kind)| !self.under_way.contains(route);
                self.to_one.iter().position(free).and_then(|place| self.to_one.remove(place))
            }
        }?;
        self.under_way.push(next.0.clone());
        Some(next)
    }

    /// The message under way to `route` was confirmed, came back, or failed.
    pub fn arrived(&mut self, route: &Route) {
        self.under_way.retain(|busy| busy != route);
    }

    /// Whether nothing waits and nothing is under way.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.to_all.is_empty() && self.to_one.is_empty() && self.under_way.is_empty()
    }
}

/// Whether, of two messages to the same route, the later one makes the earlier one needless.
fn is_needless(earlier: &Kind, later: &Kind) -> bool {
    match (earlier, later) {
        (Kind::Announcement(_), Kind::Announcement(_)) => true,
        // A ring that only the earlier one has is one that the later one agrees about.
        (Kind::Report(_), Kind::Report(_)) => true,
        (Kind::EpochGrant(earlier), Kind::EpochGrant(later)) => {
            (&earlier.epoch, &earlier.asker) == (&later.epoch, &later.asker)
        }
        _ => false,
    }
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    stirred: Notify,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.waiting().closing = true;
        self.stirred.notify_one();
    }
}

/// The sending half; dropping it ends the plane once everything queued was written.
#[derive(Debug)]
pub(crate) struct KeyPlane {
    shared: Arc<Shared>,
    task: Option<JoinHandle<()>>,
}

impl KeyPlane {
    /// Starts the plane of one link; `timing` is this host's clock and [`confirm_within`].
    pub(crate) fn start<L: Link>(
        link: Arc<L>,
        names: Names,
        sealing: Sealing,
        timing: (SystemClock, Duration),
        refused: Refused,
        events: mpsc::Sender<KeyPlaneEvent>,
    ) -> Self {
        let shared = Arc::new(Shared::default());
        let task = tokio::spawn(write_out(Arc::clone(&shared), link, names, sealing, timing, refused, events));
        Self { shared, task: Some(task) }
    }

    /// Queues a message. A full queue drops it, which is counted: the broker is blocked, and the next beat repeats what matters.
    pub(crate) fn send(&self, route: Route, kind: Kind) {
        if self.shared.waiting().push(route, kind) {
            self.shared.stirred.notify_one();
        } else {
            metrics::MESSAGES_CROWDED_OUT.add(1);
            debug!("the broker is blocked and the queue full: a message on the key plane is dropped");
        }
    }

    /// Writes out what is queued and ends.
    pub(crate) async fn finish(mut self) {
        self.shared.close();
        if let Some(task) = self.task.take() {
            // A panic in the task is reported by the runtime; there is nothing left to write then.
            let _ended = task.await;
        }
    }
}

impl Drop for KeyPlane {
    fn drop(&mut self) {
        self.shared.close();
    }
}

async fn write_out<L: Link>(
    shared: Arc<Shared>,
    link: Arc<L>,
    names: Names,
    mut sealing: Sealing,
    (clock, confirm_within): (SystemClock, Duration),
    refused: Refused,
    events: mpsc::Sender<KeyPlaneEvent>,
) {
    let mut under_way: JoinSet<(Route, Option<Published>)> = JoinSet::new();
    loop {
        link.writable().await;
        let next = shared.waiting().take();
        if let Some((route, kind)) = next {
            match sealing.seal(names.of(&route), kind, clock.now()) {
                Ok(sealed) => {
                    metrics::MESSAGES_SENT.add(Plane::Keys, 1);
                    let (link, names, refused) = (Arc::clone(&link), names.clone(), refused.clone());
                    under_way.spawn(async move {
                        let result = confirmed(link.publish(&route, sealed), confirm_within).await;
                        refused.note(&route, &result, &names, clock.now());
                        let answer = answer_to(&route, result);
                        (route, answer)
                    });
                }
                Err(error) => {
                    warn!(%error, "could not seal a message");
                    shared.waiting().arrived(&route);
                }
            }
            continue;
        }
        {
            let waiting = shared.waiting();
            if waiting.closing && waiting.is_empty() {
                return;
            }
        }
        tokio::select! {
            Some(ended) = under_way.join_next() => {
                // After a panic nobody knows what is under way. The driver sees this end, and opens another link.
                let Ok((route, answer)) = ended else { return };
                shared.waiting().arrived(&route);
                if let (Route::Leader(seat), Some(answer)) = (route, answer)
                    && events.send(KeyPlaneEvent::Told(seat, answer)).await.is_err()
                {
                    return;
                }
            }
            () = shared.stirred.notified() => {}
        }
    }
}

/// A broker answers when all queues have the message. One that stands still must not keep this node from all others: the
/// message is with the rest of them, and its answer is waited for no longer.
async fn confirmed(
    publish: impl Future<Output = Result<Published, BusError>>,
    within: Duration,
) -> Result<Published, BusError> {
    let unanswered = |_| Err(BusError::Unanswered { operation: "publish".to_owned(), within });
    tokio::time::timeout(within, publish).await.unwrap_or_else(unanswered)
}

/// The broker's answer, if it gave one.
fn answer_to(route: &Route, result: Result<Published, BusError>) -> Option<Published> {
    match result {
        Ok(answer) => {
            if answer == Published::Nacked {
                metrics::MESSAGES_NACKED.add(1);
            }
            if answer != Published::Routed {
                debug!(?route, ?answer, "no queue took the message");
            }
            // The inboxes of a broker that is gone stay bound to the exchange: the others have got it.
            Some(answer)
        }
        // The link says `Closed` if it is gone; whatever is lost is repeated by the next beat.
        Err(error) => {
            debug!(%error, ?route, "could not publish");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use bytes::Bytes;
    use tokio::sync::{Semaphore, watch};

    use super::*;
    use crate::bus::LeaseAnswer;
    use crate::envelope::{Epochs, FarmSecret, Secrets};
    use crate::node::sealing::Identity;
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

        async fn try_lease(&self, _: Seat) -> Result<LeaseAnswer, BusError> {
            Ok(LeaseAnswer::Taken)
        }

        async fn release_lease(&self, _: Seat) -> Result<(), BusError> {
            Ok(())
        }

        async fn check(&self) -> Result<(), BusError> {
            Ok(())
        }

        async fn close(&self) {}
    }

    fn leader() -> Route {
        Route::Leader(Seat::FIRST)
    }

    fn farewell() -> Kind {
        Kind::Farewell(proto::Farewell {})
    }

    /// A plane whose broker takes nothing yet.
    fn plane() -> (Arc<Slow>, KeyPlane) {
        let link = Arc::new(Slow { takes: Semaphore::new(0), taken: Mutex::default() });
        let secrets = Arc::new(Secrets::new(vec![FarmSecret::generate().expect("a secret")]).expect("one secret"));
        let (_sender, secrets) = watch::channel(secrets);
        let identity = Identity { farm: "f".into(), node: "n".into(), boot_id: [1; 16] };
        let clock = SystemClock::start();
        let (_sender, epochs) = watch::channel(Arc::new(Epochs::new(std::time::Duration::ZERO)));
        let sealing = Sealing::new(identity, secrets, epochs, crate::random::system(), clock.now());
        let (events, _events) = mpsc::channel(1);
        let timing = (clock, confirm_within(Duration::from_secs(2)));
        let names = Names::new("f", "p");
        let plane = KeyPlane::start(Arc::clone(&link), names, sealing, timing, Refused::default(), events);
        (link, plane)
    }

    #[tokio::test]
    async fn what_finds_no_room_is_counted() {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let _local = ::metrics::set_default_local_recorder(&recorder);
        let (_link, plane) = plane();
        for _ in 0..Waiting::MOST + 3 {
            plane.send(leader(), farewell());
        }
        let shown = recorder.handle().render();
        assert!(shown.lines().any(|line| line == "resumed_messages_crowded_out_total 3"), "{shown}");
    }

    #[tokio::test]
    async fn what_goes_to_all_does_not_wait_for_what_goes_to_one() {
        let (link, plane) = plane();
        let answers: Vec<_> = (0..20).map(|node| Route::Inbox(format!("{node}"))).collect();
        answers.iter().for_each(|to| plane.send(to.clone(), farewell()));
        // The first answers are with the broker by now.
        tokio::task::yield_now().await;
        plane.send(Route::Keys, farewell());
        link.takes.add_permits(answers.len() + 1);
        plane.finish().await;
        let taken = link.taken.lock().expect("no test panics here");
        assert_eq!(taken.len(), answers.len() + 1, "everything was written out: {taken:?}");
        let place = taken.iter().position(|route| *route == Route::Keys);
        assert_eq!(place, Some(Waiting::ROUTES), "{taken:?}");
    }

    #[test]
    fn a_route_gets_one_message_at_a_time_in_order_and_waits_for_no_other() {
        let mut waiting = Waiting::default();
        let inbox = |name: &str| Route::Inbox(name.into());
        let numbered = |id| Kind::Answer(proto::Answer { id, ..Default::default() });
        for (route, id) in [(inbox("a"), 1), (inbox("a"), 2), (leader(), 3), (Route::Keys, 4), (Route::Keys, 5)] {
            assert!(waiting.push(route, numbered(id)));
        }
        let next = |waiting: &mut Waiting| {
            let (route, kind) = waiting.take()?;
            let Kind::Answer(answer) = kind else { panic!("{kind:?}") };
            Some((route, answer.id))
        };
        assert_eq!(next(&mut waiting), Some((Route::Keys, 4)));
        assert_eq!(next(&mut waiting), Some((inbox("a"), 1)));
        assert_eq!(next(&mut waiting), Some((leader(), 3)));
        assert_eq!(next(&mut waiting), None, "what is left has the same routes");
        waiting.arrived(&inbox("a"));
        assert_eq!(next(&mut waiting), Some((inbox("a"), 2)));
        waiting.arrived(&Route::Keys);
        assert_eq!(next(&mut waiting), Some((Route::Keys, 5)));
        assert!(!waiting.is_empty());
        for route in [Route::Keys, leader(), inbox("a")] {
            waiting.arrived(&route);
        }
        assert!(waiting.is_empty());
    }

    #[test]
    fn an_announcement_takes_the_place_of_one_that_waits() {
        let announcement = |as_of| Kind::Announcement(proto::Announcement { as_of, ..Default::default() });
        for route in [Route::Keys, Route::Inbox("a".into())] {
            let mut waiting = Waiting::default();
            let other = Route::Inbox("b".into());
            for (to, kind) in [
                (&route, farewell()),
                (&other, announcement(1)),
                (&route, announcement(2)),
                (&route, announcement(3)),
                (&route, farewell()),
            ] {
                assert!(waiting.push(to.clone(), kind));
            }
            let mut written = Vec::new();
            while let Some((to, kind)) = waiting.take() {
                waiting.arrived(&to);
                if to == route {
                    written.push(kind);
                }
            }
            assert_eq!(written, [farewell(), announcement(3), farewell()]);
        }
    }

    #[test]
    fn a_grant_takes_the_place_of_one_of_the_same_key_to_the_same_node() {
        let grant = |epoch, asker: u8, sealed| {
            let (epoch, asker, sealed) = (vec![epoch; 8], vec![asker], vec![sealed]);
            Kind::EpochGrant(proto::EpochGrant { epoch, asker, sealed, ..Default::default() })
        };
        let mut waiting = Waiting::default();
        let [a, b] = ["a", "b"].map(|name| Route::Inbox(name.into()));
        for (to, kind) in [
            (&a, grant(1, 0, 1)),
            (&a, grant(2, 0, 2)),
            (&b, grant(1, 0, 3)),
            (&a, grant(1, 0, 4)),
            // To all, for one each at other brokers.
            (&Route::Keys, grant(1, 8, 5)),
            (&Route::Keys, grant(1, 9, 6)),
        ] {
            assert!(waiting.push(to.clone(), kind));
        }
        let mut written = Vec::new();
        while let Some((to, kind)) = waiting.take() {
            waiting.arrived(&to);
            written.push((to, kind));
        }
        let keys = || Route::Keys;
        let expected = [
            (keys(), grant(1, 8, 5)),
            (keys(), grant(1, 9, 6)),
            (a.clone(), grant(1, 0, 4)),
            (a, grant(2, 0, 2)),
            (b, grant(1, 0, 3)),
        ];
        assert_eq!(written, expected);
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut waiting = Waiting::default();
        let taken = |waiting: &mut Waiting, route: &Route| {
            (0..2 * Waiting::MOST).filter(|_| waiting.push(route.clone(), farewell())).count()
        };
        assert_eq!(taken(&mut waiting, &leader()), Waiting::MOST);
        assert_eq!(taken(&mut waiting, &Route::Keys), Waiting::MOST);
    }
}
