//! A node as it runs: its driver and its tasks on a bus within this process, with real clocks.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use metrics_exporter_prometheus::PrometheusBuilder;

use super::*;
use crate::bus::in_process::{Hub, InProcess, InProcessLink};
use crate::bus::{BusError, LinkEvents};
use crate::envelope::FarmSecret;
use crate::farm::{Ask, Reply};

/// Whatever a test waits for comes long before.
const PATIENCE: Duration = Duration::from_secs(60);

/// A bus that refuses some attempts first, and notes when each was made.
struct Reluctant {
    bus: InProcess,
    refusals: AtomicUsize,
    attempts: Mutex<Vec<Instant>>,
}

impl Reluctant {
    fn new(hub: &Arc<Hub>, refusals: usize) -> Arc<Self> {
        let bus = InProcess::new(Arc::clone(hub));
        Arc::new(Self { bus, refusals: AtomicUsize::new(refusals), attempts: Mutex::default() })
    }

    fn attempts(&self) -> Vec<Instant> {
        self.attempts.lock().expect("no test panics here").clone()
    }
}

impl Bus for Reluctant {
    type Link = InProcessLink;

    async fn connect(&self, spec: &LinkSpec, events: LinkEvents) -> Result<InProcessLink, BusError> {
        self.attempts.lock().expect("no test panics here").push(Instant::now());
        let take = |left: usize| left.checked_sub(1);
        if self.refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok() {
            return Err(BusError::Unreachable("on purpose".to_owned()));
        }
        self.bus.connect(spec, events).await
    }
}

pub(super) fn secrets() -> watch::Receiver<Arc<Secrets>> {
    let secret = FarmSecret::from_bytes(&[7; 32]).expect("a secret");
    watch::channel(Arc::new(Secrets::new(vec![secret]).expect("one secret"))).1
}

/// A node with a short beat, which starts alone soon.
pub(super) fn settings(name: &str) -> NodeSettings {
    let mut settings = NodeSettings::new(name, "prod", "default");
    settings.report_every = Duration::from_millis(200);
    settings.start_alone_after = Duration::from_millis(300);
    settings.keys.settle = Duration::from_millis(100);
    settings
}

fn start<B: Bus>(settings: NodeSettings, bus: Arc<B>) -> Node {
    Node::start(settings, secrets(), bus, SystemClock::start()).expect("the settings are good")
}

/// Waits until what the node shows fulfils `condition`.
async fn until(node: &Node, what: &str, condition: impl Fn(&NodeView) -> bool) -> NodeView {
    let mut view = node.view.clone();
    let waited = tokio::time::timeout(PATIENCE, view.wait_for(|view| condition(view))).await;
    waited.unwrap_or_else(|_| panic!("{what}: {:?}", node.view.borrow())).expect("the driver runs").clone()
}

async fn ask(node: &Node, ask: Ask) -> Reply {
    let (reply, answer) = tokio::sync::oneshot::channel();
    let question = OperatorQuestion { ask, user: "ops".to_owned(), reply };
    node.questions.send(question).await.expect("the driver runs");
    answer.await.expect("the driver answers")
}

#[tokio::test]
async fn a_server_that_embeds_a_node_is_told_what_is_wrong_with_its_settings() {
    let mut settings = NodeSettings::new("edge-1", "Prod", "default");
    settings.keys.keep = 0;
    settings.sessions.max_bytes = 1;
    let secrets = Secrets::new(vec![FarmSecret::generate().unwrap()]).unwrap();
    let (_keep, secrets) = watch::channel(Arc::new(secrets));
    let bus = || Arc::new(InProcess::new(Arc::new(Hub::default())));
    let refused = Node::start(settings, secrets.clone(), bus(), SystemClock::start());
    assert_eq!(
        refused.err().expect("three faults").to_string(),
        "node.farm = \"Prod\": has the character 'P'; accepted: 1 to 63 of a-z, 0-9 and -; keys.keep = 0: is too \
         small; accepted: from 1 to 32; sessions.max_bytes = 1B: is too small; accepted: from 1MiB to 1TiB"
    );
    let good = NodeSettings::new("edge-1", "prod", "default");
    Node::start(good, secrets, bus(), SystemClock::start()).expect("it starts").stop().await;
}

#[tokio::test]
async fn a_broker_that_refuses_is_dialled_again_after_longer_and_longer_pauses() {
    let hub = Arc::new(Hub::default());
    let bus = Reluctant::new(&hub, 4);
    let node = start(settings("a"), Arc::clone(&bus));
    until(&node, "a link", |view| view.broker.connected).await;
    let attempts = bus.attempts();
    assert_eq!(attempts.len(), 5);
    // Half of 100, 200, 400 and 800 ms at least: jitter takes no more.
    for (pair, least) in attempts.windows(2).zip([50, 100, 200, 400]) {
        assert!(pair[1] - pair[0] >= Duration::from_millis(least - 1), "{attempts:?}");
    }
    node.stop().await;
}

#[tokio::test]
async fn a_leader_that_stops_in_order_leaves_the_lead_and_its_ring_to_the_next() {
    let hub = Arc::new(Hub::default());
    let nodes = ["a", "b", "c"].map(|name| start(settings(name), Reluctant::new(&hub, 0)));
    let mut rings = Vec::new();
    for node in &nodes {
        let view = until(node, "in step", |view| view.in_step && view.active_generation().is_some()).await;
        rings.push(view.ring.fingerprint);
    }
    assert!(rings.iter().all(|ring| *ring == rings[0]), "{rings:?}");
    let (leaders, others): (Vec<_>, Vec<_>) = nodes.into_iter().partition(|node| node.view.borrow().leads);
    assert_eq!(leaders.len(), 1, "one of the three leads");
    let left = leaders[0].settings.name.clone();
    for leader in leaders {
        leader.stop().await;
    }
    for node in &others {
        let view = until(node, "another leader", |view| view.in_step && view.leader.as_ref() != Some(&left)).await;
        assert_eq!(view.ring.fingerprint, rings[0], "no key was lost or made");
    }
    for node in others {
        node.stop().await;
    }
}

#[tokio::test]
async fn a_ring_that_is_saved_is_taken_up_by_the_next_run() {
    let folder = crate::temporary::Folder::new();
    let saved = || NodeSettings { ring_directory: Some(folder.path().to_owned()), allow_disk: true, ..settings("a") };
    let alone = || Arc::new(InProcess::new(Arc::new(Hub::default())));
    let first = start(saved(), alone());
    let before = until(&first, "a key", |view| view.active_generation().is_some()).await;
    first.stop().await;
    let second = start(saved(), alone());
    let after = until(&second, "a key", |view| view.active_generation().is_some()).await;
    assert_eq!(after.ring.keys[0].name_prefix, before.ring.keys[0].name_prefix);
    second.stop().await;
    let elsewhere = NodeSettings { farm: "other".to_owned(), ..saved() };
    let third = start(elsewhere, alone());
    let other = until(&third, "a key", |view| view.active_generation().is_some()).await;
    assert_ne!(other.ring.keys[0].name_prefix, before.ring.keys[0].name_prefix, "the ring of another farm is none");
    third.stop().await;
}

#[tokio::test]
async fn questions_are_answered_each_with_its_own_answer() {
    let node = start(settings("a"), Arc::new(InProcess::new(Arc::new(Hub::default()))));
    until(&node, "to lead", |view| view.leads && view.active_generation().is_some()).await;
    let (status, revoked) =
        tokio::join!(ask(&node, Ask::Status), ask(&node, Ask::RevokeLocal { flush_sessions: true }));
    assert!(matches!(status, Reply::Members { .. } | Reply::NoLeader), "{status:?}");
    let Reply::Revoked { floor, .. } = revoked else { panic!("{revoked:?}") };
    until(&node, "the floor", |view| view.ring.floor == floor).await;
    node.stop().await;
}

#[tokio::test]
async fn farm_secrets_that_are_read_again_are_used_without_another_link() {
    let secret = |byte| FarmSecret::from_bytes(&[byte; 32]).expect("a secret");
    let set = |bytes: &[u8]| Arc::new(Secrets::new(bytes.iter().map(|byte| secret(*byte)).collect()).expect("a set"));
    let hub = Arc::new(Hub::default());
    let begin = |name: &str| {
        let (sender, receiver) = watch::channel(set(&[1]));
        let bus = Reluctant::new(&hub, 0);
        let node =
            Node::start(settings(name), receiver, Arc::clone(&bus), SystemClock::start()).expect("good settings");
        (node, sender, bus)
    };
    let farm = [begin("a"), begin("b")];
    for (node, ..) in &farm {
        until(node, "in step", |view| view.in_step && view.leader.is_some()).await;
    }
    for step in [&[1, 2][..], &[2, 1], &[2]] {
        for (_, secrets, _) in &farm {
            secrets.send_replace(set(step));
        }
        // A request that was under way when the secret changed may be refused: then it is asked again.
        let generation = loop {
            if let Reply::Rotating { generation, .. } = ask(&farm[0].0, Ask::Rotate).await {
                break generation;
            }
        };
        for (node, ..) in &farm {
            until(node, "the new key", |view| view.ring.keys.iter().any(|key| key.generation >= generation)).await;
        }
    }
    for (node, _, bus) in farm {
        assert_eq!(bus.attempts().len(), 1, "one link for each");
        node.stop().await;
    }
}

#[tokio::test]
async fn of_two_nodes_in_a_process_the_one_that_connects_again_counts_it_once() {
    let recorder = PrometheusBuilder::new().build_recorder();
    // The test's runtime runs every task on this thread.
    let _local = metrics::set_default_local_recorder(&recorder);
    let reconnects = || {
        let text = recorder.handle().render();
        text.lines().find_map(|line| line.strip_prefix("resumed_broker_reconnects_total ")?.parse::<u32>().ok())
    };
    let secrets = Secrets::new(vec![FarmSecret::generate().unwrap()]).unwrap();
    let (_keep, secrets) = watch::channel(Arc::new(secrets));
    let hub = Arc::new(Hub::default());
    let start = |name| {
        let bus = Arc::new(InProcess::new(Arc::clone(&hub)));
        Node::start(NodeSettings::new(name, "prod", "default"), secrets.clone(), bus, SystemClock::start())
            .expect("it starts")
    };
    let (mut one, mut other) = (start("edge-1"), start("edge-2"));
    let counted = async {
        for node in [&mut one, &mut other] {
            node.view.wait_for(|view| view.broker.connected).await.expect("the node runs");
        }
        assert_eq!(reconnects(), None, "two nodes connected for the first time");
        let inbox = hub.queues().into_iter().find(|queue| queue.contains(".node.edge-1.")).expect("an inbox");
        assert!(hub.delete_queue(&inbox));
        while reconnects().is_none() {
            one.view.changed().await.expect("the node runs");
        }
        one.view.wait_for(|view| view.broker.connected).await.expect("the node runs");
    };
    tokio::time::timeout(Duration::from_secs(30), counted).await.expect("it connects again");
    assert_eq!(reconnects(), Some(1));
    one.stop().await;
    other.stop().await;
}
