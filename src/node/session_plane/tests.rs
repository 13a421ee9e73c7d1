//! One link's sessions and what outlives it, on a bus within this process.

use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use tokio::sync::broadcast;

use super::*;
use crate::bus::in_process::{Hub, InProcess, InProcessLink};
use crate::bus::{Bus, LinkEvents, LinkSpec};
use crate::envelope::{EpochKey, FarmSecret};
use crate::keys::Timetable;
use crate::node::sealing::Identity;
use crate::proto::{SessionBatch, SessionEntry, SessionFormat};
use crate::proxies::{Registry, SharedOutbox};
use crate::random::{random, system};
use crate::routes::Via;
use crate::sessions::{SessionSettings, Store};

const OFFSET: Duration = Duration::from_secs(300);

fn plane(clock: SystemClock) -> Arc<ProxyPlane> {
    let settings = SessionSettings { max_bytes: 1 << 20, ..SessionSettings::default() };
    Arc::new(ProxyPlane {
        timetable: watch::channel(Arc::new(Timetable::default())).1,
        from_farm: broadcast::channel(16).0,
        outbox: Arc::new(SharedOutbox::new(1 << 20)),
        store: Arc::new(Store::new(settings, 2 * OFFSET)),
        registry: Arc::new(Registry::default()),
        clock,
        welcome: Default::default(),
    })
}

type Keys<'a> = (&'a watch::Receiver<Arc<Secrets>>, &'a watch::Receiver<Arc<Epochs>>);

fn sessions(proxies: &Arc<ProxyPlane>, names: &Names, (secrets, epochs): Keys<'_>) -> Arc<SessionPlane> {
    let parts = SessionParts {
        proxies: Arc::clone(proxies),
        secrets: secrets.clone(),
        epochs: epochs.clone(),
        unknown_epoch: Arc::default(),
        names: names.clone(),
        boot_id: random(),
        batch_bytes: 1 << 15,
        refused: Refused::default(),
        clock: proxies.clock,
        tasks: NodeTasks::new(watch::Sender::new(None)),
        publisher: NodeTasks::new(watch::Sender::new(None)),
        stop: CancellationToken::new(),
    };
    let opener = Opener::new(Arc::clone(&secrets.borrow()), "f", OFFSET);
    Arc::new(SessionPlane::new(parts, opener, Warmups::new(true, system())))
}

#[tokio::test]
async fn what_a_link_delivered_before_it_broke_is_taken_in() {
    const BATCHES: u8 = 12;
    for _ in 0..20 {
        let clock = SystemClock::start();
        let names = Names::new("f", "p");
        let (_secrets, secrets) =
            watch::channel(Arc::new(Secrets::new(vec![FarmSecret::generate().unwrap()]).unwrap()));
        let mut held = Epochs::new(Duration::ZERO);
        held.lead_to(EpochKey::from_random(&random()).unwrap(), clock.now());
        let (_epochs, epochs) = watch::channel(Arc::new(held));
        let sealing = |node: &str| {
            let identity = Identity { farm: "f".to_owned(), node: node.to_owned(), boot_id: random() };
            Sealing::new(identity, secrets.clone(), epochs.clone(), system(), clock.now())
        };
        let bus = InProcess::new(Arc::new(Hub::default()));
        let spec = LinkSpec { names: names.clone(), node: "a".to_owned(), sessions: false, elsewhere_than: None };
        let (feed_sender, feed) = mpsc::channel(usize::from(BATCHES));
        let events = LinkEvents { keys: mpsc::channel(16).0, feed: feed_sender.clone() };
        let link = Arc::new(bus.connect(&spec, events).await.unwrap());

        let proxies = plane(clock);
        let sessions = sessions(&proxies, &names, (&secrets, &epochs));
        let linked = sessions.start(link, sealing("a"), feed);
        tokio::task::yield_now().await;

        // Delivered and lost in one moment, as when the broker is killed under load.
        let mut other = sealing("b");
        for number in 0..BATCHES {
            let removal = SessionEntry { id: vec![number; 32].into(), at: clock.now().wall, ..Default::default() };
            let batch = SessionBatch { entries: vec![removal], format: SessionFormat::OpensslDer.into() };
            let body = other.seal(&names.sessions, Kind::Sessions(batch), clock.now()).unwrap();
            let event = LinkEvent::Delivered { from: Via::Feed, route: names.sessions.clone(), body, site: None };
            feed_sender.try_send(event).unwrap();
        }
        drop(linked);
        assert!(!sessions.outlet.is_linked(), "the link is still in use");
        // Its tasks end with it, the feed's when all of it is taken in.
        sessions.node.tasks.ended().await;
        assert_eq!(proxies.store.tombstones(), usize::from(BATCHES));
    }
}

#[tokio::test]
async fn keys_that_are_out_of_use_are_let_go_also_without_a_link() {
    let clock = SystemClock::start();
    let new_secrets = || Arc::new(Secrets::new(vec![FarmSecret::generate().unwrap()]).unwrap());
    let (secrets_sender, secrets) = watch::channel(new_secrets());
    let (epochs_sender, epochs) = watch::channel(Arc::new(Epochs::new(Duration::ZERO)));
    let sessions = sessions(&plane(clock), &Names::new("f", "p"), (&secrets, &epochs));
    let following = tokio::spawn(Arc::clone(&sessions).follow_keys());
    let old = (Arc::downgrade(&secrets.borrow()), Arc::downgrade(&epochs.borrow()));
    secrets_sender.send_replace(new_secrets());
    epochs_sender.send_replace(Arc::new(Epochs::new(Duration::ZERO)));
    let gone = async {
        while old.0.upgrade().is_some() || old.1.upgrade().is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), gone).await.expect("the opener keeps keys of before");
    sessions.node.stop.cancel();
    following.await.unwrap();
}

/// A plane that publishes, and another node of the pod, which gets what is published.
struct Pod {
    clock: SystemClock,
    names: Names,
    secrets: watch::Receiver<Arc<Secrets>>,
    epochs: watch::Sender<Arc<Epochs>>,
    hub: Arc<Hub>,
    sessions: Arc<SessionPlane>,
    _other: InProcessLink,
    feed: mpsc::Receiver<LinkEvent>,
    opener: Opener,
}

impl Pod {
    /// Without a link so far, and without an epoch key.
    async fn new() -> Self {
        let (clock, names, hub) = (SystemClock::start(), Names::new("f", "p"), Arc::new(Hub::default()));
        let secrets = watch::channel(Arc::new(Secrets::new(vec![FarmSecret::generate().unwrap()]).unwrap())).1;
        let epochs = watch::Sender::new(Arc::new(Epochs::new(Duration::ZERO)));
        let sessions = sessions(&plane(clock), &names, (&secrets, &epochs.subscribe()));
        sessions.node.publisher.spawn("no link", Arc::clone(&sessions).drop_without_link());
        let spec = LinkSpec { names: names.clone(), node: "b".to_owned(), sessions: true, elsewhere_than: None };
        let (feed_sender, feed) = mpsc::channel(64);
        let events = LinkEvents { keys: mpsc::channel(16).0, feed: feed_sender };
        let _other = InProcess::new(Arc::clone(&hub)).connect(&spec, events).await.unwrap();
        let opener = Opener::new(Arc::clone(&secrets.borrow()), "f", OFFSET);
        Self { clock, names, secrets, epochs, hub, sessions, _other, feed, opener }
    }

    fn grant_epoch(&mut self) {
        let mut held = Epochs::new(Duration::ZERO);
        held.lead_to(EpochKey::from_random(&random()).unwrap(), self.clock.now());
        self.opener.set_epochs(Arc::new(held.clone()));
        self.epochs.send_replace(Arc::new(held));
    }

    async fn link(&self) -> LinkedSessions {
        let spec = LinkSpec { names: self.names.clone(), node: "a".to_owned(), sessions: false, elsewhere_than: None };
        let events = LinkEvents { keys: mpsc::channel(16).0, feed: mpsc::channel(1).0 };
        let link = InProcess::new(Arc::clone(&self.hub)).connect(&spec, events).await.unwrap();
        let identity = Identity { farm: "f".to_owned(), node: "a".to_owned(), boot_id: random() };
        let sealing = Sealing::new(identity, self.secrets.clone(), self.epochs.subscribe(), system(), self.clock.now());
        self.sessions.start(Arc::new(link), sealing, mpsc::channel(1).1)
    }

    /// The proxies report sessions of these numbers.
    fn report(&self, numbers: std::ops::Range<u8>) {
        let at = self.clock.now().wall;
        let entries: Vec<_> =
            numbers.map(|number| SessionEntry { id: vec![number; 32].into(), at, ..Default::default() }).collect();
        assert_eq!(self.sessions.node.proxies.outbox.push_all(&entries), 0, "there is room");
    }

    /// The numbers of the next batch that the other node gets.
    async fn next(&mut self) -> Vec<u8> {
        let event = tokio::time::timeout(Duration::from_secs(30), self.feed.recv()).await.expect("a batch");
        let Some(LinkEvent::Delivered { route, body, .. }) = event else { panic!("{event:?}") };
        let opened = self.opener.open(&route, body, self.clock.now()).unwrap();
        let Some(Kind::Sessions(batch)) = opened.payload.kind else { panic!("{:?}", opened.payload.kind) };
        batch.entries.iter().map(|entry| entry.id[0]).collect()
    }

    /// Lets every task do what it can. They all run on this thread.
    async fn settled(&self) {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    async fn stopped(&self) {
        self.sessions.node.stop.cancel();
        let ended = self.sessions.node.publisher.ended();
        tokio::time::timeout(Duration::from_secs(30), ended).await.expect("the publisher ends");
    }
}

/// What was dropped: the reasons with their counts.
fn dropped(recorder: &PrometheusRecorder) -> Vec<(String, u64)> {
    let text = recorder.handle().render();
    let of = |line: &str| {
        let rest = line.strip_prefix("resumed_sessions_dropped_total{reason=\"")?;
        let (reason, count) = rest.split_once("\"} ")?;
        Some((reason.to_owned(), count.parse().unwrap()))
    };
    text.lines().filter_map(of).filter(|(_, count)| *count > 0).collect()
}

#[tokio::test]
async fn what_waits_for_the_first_epoch_key_outlives_the_link_that_it_met() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _local = ::metrics::set_default_local_recorder(&recorder);
    let mut pod = Pod::new().await;
    let first = pod.link().await;
    pod.report(0..1);
    pod.settled().await;
    pod.report(1..3);
    pod.settled().await;
    assert_eq!(pod.sessions.node.proxies.outbox.len(), 2, "behind the batch that waits");
    drop(first);
    pod.settled().await;
    let _second = pod.link().await;
    pod.settled().await;
    pod.grant_epoch();
    assert_eq!(pod.next().await, [0]);
    assert_eq!(pod.next().await, [1, 2]);
    assert_eq!(dropped(&recorder), []);
}

#[tokio::test]
async fn without_a_link_what_is_reported_is_dropped_and_counted_and_over_the_next_it_goes_out_again() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _local = ::metrics::set_default_local_recorder(&recorder);
    let mut pod = Pod::new().await;
    pod.grant_epoch();
    pod.report(0..5);
    pod.settled().await;
    assert_eq!(dropped(&recorder), [("broker_away".to_owned(), 5)]);
    let link = pod.link().await;
    pod.report(5..7);
    assert_eq!(pod.next().await, [5, 6]);
    drop(link);
    pod.report(7..8);
    pod.settled().await;
    assert_eq!(dropped(&recorder), [("broker_away".to_owned(), 6)]);
}

#[tokio::test]
async fn what_waits_for_an_epoch_key_that_comes_without_a_link_is_dropped() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _local = ::metrics::set_default_local_recorder(&recorder);
    let mut pod = Pod::new().await;
    let link = pod.link().await;
    pod.report(0..1);
    pod.settled().await;
    pod.report(1..2);
    drop(link);
    pod.settled().await;
    assert_eq!(dropped(&recorder), [], "there may be another link before there is a key");
    pod.grant_epoch();
    pod.settled().await;
    assert_eq!(dropped(&recorder), [("broker_away".to_owned(), 2)]);
}

#[tokio::test]
async fn a_link_that_takes_the_place_of_another_at_once_loses_nothing() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _local = ::metrics::set_default_local_recorder(&recorder);
    let mut pod = Pod::new().await;
    pod.grant_epoch();
    let mut link = Some(pod.link().await);
    for round in 0..20 {
        drop(link.take());
        pod.report(round..round + 1);
        link = Some(pod.link().await);
        assert_eq!(pod.next().await, [round]);
    }
    assert_eq!(dropped(&recorder), []);
}

#[tokio::test]
async fn a_node_that_stops_publishes_what_is_left_and_its_publisher_ends() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _local = ::metrics::set_default_local_recorder(&recorder);
    let mut pod = Pod::new().await;
    pod.grant_epoch();
    let _link = pod.link().await;
    pod.settled().await;
    pod.report(0..9);
    pod.stopped().await;
    assert_eq!(pod.next().await, (0..9).collect::<Vec<_>>());
    assert_eq!(dropped(&recorder), []);
}

#[tokio::test]
async fn a_node_that_stops_counts_once_what_it_cannot_publish() {
    // With a link and without; the first batch has met a link, and waits for an epoch key.
    for has_link in [true, false] {
        let recorder = PrometheusBuilder::new().build_recorder();
        let _local = ::metrics::set_default_local_recorder(&recorder);
        let pod = Pod::new().await;
        let link = pod.link().await;
        pod.report(0..1);
        pod.settled().await;
        pod.report(1..4);
        let link = has_link.then_some(link);
        pod.settled().await;
        pod.stopped().await;
        let expected = match has_link {
            true => vec![("no_epoch".to_owned(), 4)],
            false => vec![("broker_away".to_owned(), 3), ("no_epoch".to_owned(), 1)],
        };
        let mut counted = dropped(&recorder);
        counted.sort();
        assert_eq!(counted, expected, "has_link = {has_link}");
        drop(link);
    }
}
