//! The driver alone: its core, its links and its channels, on a bus within this process, with real clocks.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::*;
use crate::bus::in_process::{Hub, InProcess, InProcessLink};
use crate::bus::{BusError, LeaseAnswer, Link, LinkEvent, LinkEvents};
use crate::envelope::{KeyAgreements, Opener};
use crate::farm::Ask;
use crate::node::channels::NodeEnds;
use crate::node::tests::{secrets, settings};
use crate::node::{Assembled, NodeSettings, Running, assemble};
use crate::proto::payload::Kind;
use crate::routes::{Names, Published, Route, Seat};

/// Whatever a test waits for comes long before.
const PATIENCE: Duration = Duration::from_secs(60);

/// A bus that notes what its links are asked for, in order, and whose broker can be told not to answer a release.
#[derive(Clone)]
struct Noting {
    bus: InProcess,
    asked: Arc<Mutex<Vec<&'static str>>>,
    keeps_leases: Arc<AtomicBool>,
}

impl Noting {
    fn new(hub: &Arc<Hub>) -> Self {
        Self { bus: InProcess::new(Arc::clone(hub)), asked: Arc::default(), keeps_leases: Arc::default() }
    }

    fn note(&self, asked: &'static str) {
        self.asked.lock().expect("no test panics here").push(asked);
    }

    /// What was asked since this was called last.
    fn asked(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.asked.lock().expect("no test panics here"))
    }
}

impl Bus for Noting {
    type Link = NotingLink;

    async fn connect(&self, spec: &LinkSpec, events: LinkEvents) -> Result<NotingLink, BusError> {
        Ok(NotingLink { link: self.bus.connect(spec, events).await?, bus: self.clone() })
    }
}

struct NotingLink {
    link: InProcessLink,
    bus: Noting,
}

impl Link for NotingLink {
    fn inbox(&self) -> &str {
        self.link.inbox()
    }

    fn feed(&self) -> Option<&str> {
        self.link.feed()
    }

    fn peer(&self) -> &str {
        self.link.peer()
    }

    async fn writable(&self) {
        self.link.writable().await;
    }

    fn is_blocked(&self) -> bool {
        self.link.is_blocked()
    }

    async fn publish(&self, to: &Route, body: Bytes) -> Result<Published, BusError> {
        self.bus.note("publish");
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
        if self.bus.keeps_leases.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        // It takes its time: what does not wait for it comes first.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        let released = self.link.release_lease(seat).await;
        self.bus.note("release");
        released
    }

    async fn check(&self) -> Result<(), BusError> {
        self.link.check().await
    }

    async fn close(&self) {
        self.bus.note("close");
        self.link.close().await;
    }
}

/// A driver that runs, with the other ends of its channels.
struct Driven {
    ends: NodeEnds,
    running: Running,
    task: JoinHandle<()>,
}

impl Driven {
    fn start<B: Bus>(settings: &NodeSettings, bus: B) -> Self {
        Self::start_after(settings, bus, || {})
    }

    /// One for which `meanwhile` is done before it runs.
    fn start_after<B: Bus>(settings: &NodeSettings, bus: B, meanwhile: impl FnOnce()) -> Self {
        let running = Running::new();
        let Assembled { driver, ends, .. } =
            assemble(settings, &secrets(), Arc::new(bus), SystemClock::start(), (&running, KeyAgreements::BOTH));
        meanwhile();
        Self { ends, running, task: tokio::spawn(driver.run()) }
    }

    /// Waits until what the node shows fulfils `condition`.
    async fn until(&mut self, what: &str, condition: impl FnMut(&NodeView) -> bool) -> NodeView {
        let shown = tokio::time::timeout(PATIENCE, self.ends.view.wait_for(condition)).await;
        shown.unwrap_or_else(|_| panic!("not {what}")).expect("the driver runs").clone()
    }

    async fn until_it_leads(&mut self) {
        self.until("leading", |view| view.leads && view.broker.connected && view.active_generation().is_some()).await;
    }

    fn ask(&self, ask: Ask) -> oneshot::Receiver<Reply> {
        let (reply, answer) = oneshot::channel();
        let question = OperatorQuestion { ask, user: "ops".to_owned(), reply };
        self.ends.questions.try_send(question).expect("there is room");
        answer
    }

    async fn stop(self) {
        self.running.stop.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.expect("it ends").expect("it does not panic");
    }
}

fn inbox_of(hub: &Hub, node: &str) -> Option<String> {
    hub.queues().into_iter().find(|queue| queue.contains(&format!(".node.{node}.")))
}

#[tokio::test]
async fn a_link_that_ends_is_shown_and_dialled_again_and_what_was_under_way_on_it_ends() {
    let hub = Arc::new(Hub::default());
    let mut driven = Driven::start(&settings("a"), InProcess::new(Arc::clone(&hub)));
    driven.until_it_leads().await;
    let first = inbox_of(&hub, "a").expect("an inbox");
    assert!(hub.delete_queue(&first));
    let view = driven.until("disconnected", |view| !view.broker.connected).await;
    assert!(view.active_generation().is_some(), "it keeps its ring");
    driven.until_it_leads().await;
    let queues: Vec<_> = hub.queues().into_iter().filter(|queue| queue.contains(".node.a.")).collect();
    assert!(queues.len() == 1 && queues[0] != first, "one inbox, and another one: {queues:?}");
    driven.stop().await;
    assert_eq!(inbox_of(&hub, "a"), None, "the link is closed");
}

#[tokio::test]
async fn a_ring_that_cannot_be_saved_holds_up_nothing_and_is_saved_once_it_can_be() {
    let recorder = PrometheusBuilder::new().build_recorder();
    // The test's runtime runs every task on this thread.
    let _local = ::metrics::set_default_local_recorder(&recorder);
    let shows = |line: &str| recorder.handle().render().lines().any(|shown| shown == line);
    let folder = crate::temporary::Folder::new();
    let saved = NodeSettings { ring_directory: Some(folder.path().to_owned()), allow_disk: true, ..settings("a") };
    // It is there when the node starts, and then it is not.
    let vanish = || fs::remove_dir(folder.path()).expect("it is empty");
    let mut driven = Driven::start_after(&saved, InProcess::new(Arc::new(Hub::default())), vanish);
    driven.until_it_leads().await;
    assert!(!driven.ends.timetable.borrow().entries().is_empty(), "the proxies have the key");
    assert!(shows("resumed_ring_saved 0"), "{}", recorder.handle().render());
    fs::create_dir(folder.path()).expect("a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).expect("it is ours");
    driven.until("saved", |_| shows("resumed_ring_saved 1")).await;
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1, "the ring");
    driven.stop().await;
}

#[tokio::test]
async fn an_asker_that_has_gone_away_keeps_no_other_from_its_answer() {
    let mut driven = Driven::start(&settings("a"), InProcess::new(Arc::new(Hub::default())));
    driven.until_it_leads().await;
    drop(driven.ask(Ask::Rotate));
    let answer = driven.ask(Ask::RevokeLocal { flush_sessions: false });
    let reply = tokio::time::timeout(PATIENCE, answer).await.expect("in time").expect("the driver answers");
    assert!(matches!(reply, Reply::Revoked { .. }), "{reply:?}");
    driven.stop().await;
}

#[tokio::test]
async fn a_leader_that_stops_frees_the_lease_then_says_farewell_and_then_closes_the_link() {
    let hub = Arc::new(Hub::default());
    let bus = Noting::new(&hub);
    let mut driven = Driven::start(&settings("a"), bus.clone());
    driven.until_it_leads().await;
    let (keys, mut events) = mpsc::channel(1_024);
    let spec =
        LinkSpec { names: Names::new("prod", "default"), node: "b".into(), sessions: false, elsewhere_than: None };
    let other = InProcess::new(Arc::clone(&hub));
    let other = other.connect(&spec, LinkEvents { keys, feed: mpsc::channel(1).0 }).await.expect("a link");
    // What is under way is through before it is looked what comes after.
    tokio::task::yield_now().await;
    bus.asked();
    driven.stop().await;
    let asked = bus.asked();
    let place = |what| asked.iter().rposition(|asked| *asked == what);
    assert!(place("release").is_some() && place("release") < place("publish"), "{asked:?}");
    assert_eq!(place("close"), Some(asked.len() - 1), "{asked:?}");
    assert_eq!(other.try_lease(Seat::FIRST).await.expect("an answer"), LeaseAnswer::Granted);

    // The last thing that the others hear of it.
    let (secrets, mut last) = (secrets(), None);
    let mut opener = Opener::new(Arc::clone(&secrets.borrow()), "prod", Duration::from_secs(300));
    while let Ok(LinkEvent::Delivered { route, body, .. }) = events.try_recv() {
        last = Some(opener.open(&route, body, SystemClock::start().now()));
    }
    let last = last.expect("a message").expect("a farewell needs no epoch key").payload.kind;
    assert!(matches!(last, Some(Kind::Farewell(_))), "{last:?}");
}

#[tokio::test]
async fn a_broker_that_does_not_free_the_lease_holds_up_the_end_for_a_second() {
    let bus = Noting::new(&Arc::new(Hub::default()));
    let mut driven = Driven::start(&settings("a"), bus.clone());
    driven.until_it_leads().await;
    bus.keeps_leases.store(true, Ordering::SeqCst);
    bus.asked();
    let began = std::time::Instant::now();
    driven.stop().await;
    assert!(began.elapsed() >= FAREWELL_WITHIN, "it waited for the broker");
    assert!(!bus.asked().contains(&"release"));
}
