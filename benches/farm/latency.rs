//! How long one session takes when nothing else is on its way.

use std::io::Write;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use resumed::bus::rabbitmq::{RabbitMq, RabbitMqSettings};
use resumed::clock::SystemClock;
use resumed::daemon::{Node, NodeSettings};
use resumed::envelope::{FarmSecret, Secrets};
use resumed::keys::KeySettings;
use resumed::proto::SessionEntry;
use resumed::sessions::Removals;
use tokio::runtime::Builder;
use tokio::sync::watch;

use crate::report::{Percentiles, Report};
use crate::samples::Sample;
use crate::support::broker::Broker;
use crate::support::farm::{Farm, FarmSetup, Proxies};
use crate::{proxy, raw_amqp};

const PER_SECOND: u32 = 1_000;
const LASTING: Duration = Duration::from_secs(10);
/// What one session comes to in an envelope of its own, nearly.
const RAW_BYTES: usize = 400;

/// From outbox to cache, and from one plugin's socket to the other's, each right after raw AMQP.
pub fn run(broker: &Broker, report: &mut Report) {
    let raw = raw_amqp::latency(&broker.uri(), PER_SECOND, RAW_BYTES, LASTING, false);
    report.add_percentiles("raw_amqp_latency", raw);
    let ours = outbox_to_cache(broker);
    report.add_percentiles("outbox_to_cache", ours);
    report.add("latency_p50_ratio", ours.p50.as_secs_f64() / raw.p50.as_secs_f64());
    report.add("latency_p99_ratio", ours.p99.as_secs_f64() / raw.p99.as_secs_f64());
    let raw = raw_amqp::latency(&broker.uri(), PER_SECOND, RAW_BYTES, LASTING, true);
    report.add_percentiles("raw_amqp_and_two_sockets", raw);
    let ours = socket_to_socket(broker);
    report.add_percentiles("hook_to_replica", ours);
    report.add("hook_to_replica_p50_ratio", ours.p50.as_secs_f64() / raw.p50.as_secs_f64());
    report.add("hook_to_replica_p99_ratio", ours.p99.as_secs_f64() / raw.p99.as_secs_f64());
}

/// How nodes of this benchmark that live in its process are set up.
pub fn node_settings(name: &str, farm: &str) -> NodeSettings {
    NodeSettings {
        name: name.to_owned(),
        farm: farm.to_owned(),
        pod: "pod".to_owned(),
        keys: KeySettings {
            interval: Duration::from_secs(3600),
            keep: 3,
            settle: Duration::from_secs(2),
            max_seal_age: Duration::from_secs(3 * 3600),
            max_clock_offset: Duration::from_secs(300),
        },
        report_every: Duration::from_secs(2),
        start_alone_after: Duration::from_secs(10),
        can_lead: true,
        ring_directory: None,
        allow_disk: false,
        replicate: true,
        removals: Removals::Replicate,
        max_bytes: 256 << 20,
        max_session_bytes: 16 << 10,
        batch_bytes: 96 << 10,
    }
}

/// A farm secret for nodes in this process.
pub fn secrets() -> watch::Receiver<Arc<Secrets>> {
    let secrets = Secrets::new(vec![FarmSecret::generate().expect("randomness")]).expect("one secret");
    // The receivers keep what was sent.
    watch::channel(Arc::new(secrets)).1
}

/// A bus to `broker`.
pub fn bus(broker: &Broker) -> Arc<RabbitMq> {
    let settings = RabbitMqSettings { uris: vec![broker.uri()], ..RabbitMqSettings::default() };
    Arc::new(RabbitMq::new(settings).expect("settings of a bus"))
}

/// Two nodes with a thread each, as a daemon has.
fn outbox_to_cache(broker: &Broker) -> Percentiles {
    let (secrets, origin, sample) = (secrets(), Instant::now(), Sample::make());
    let clock = SystemClock::start();
    let count = (LASTING.as_secs_f64() * f64::from(PER_SECOND)) as usize;
    let (delays_sender, delays) = mpsc::channel();
    let (ready, is_ready) = mpsc::channel();
    let receiver = {
        let (secrets, bus) = (secrets.clone(), bus(broker));
        move || {
            Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(async {
                let node = Node::start(node_settings("receiver", "latency"), secrets, bus, clock);
                let mut from_farm = node.proxies.from_farm.subscribe();
                ready.send(()).expect("the benchmark waits");
                let mut delays = Vec::with_capacity(count);
                while delays.len() < count {
                    let sessions = from_farm.recv().await.expect("what comes from the farm");
                    let now = origin.elapsed();
                    for session in sessions.iter() {
                        delays.push(now.saturating_sub(Duration::from_nanos(Sample::number(&session.id))));
                    }
                }
                delays_sender.send(delays).expect("the benchmark waits");
                node.stop().await;
            });
        }
    };
    let sender = {
        let bus = bus(broker);
        move || {
            Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(async {
                let node = Node::start(node_settings("sender", "latency"), secrets, bus, clock);
                let mut view = node.view.clone();
                let together = view.wait_for(|view| view.in_step && view.broker.connected);
                tokio::time::timeout(Duration::from_secs(60), together).await.expect("in step").expect("the node runs");
                // The other is in step as well once a beat has passed; its feed has been there since it connected.
                tokio::time::sleep(Duration::from_secs(3)).await;
                let mut pace = tokio::time::interval(Duration::from_secs(1) / PER_SECOND);
                for _ in 0..count {
                    pace.tick().await;
                    let number = u64::try_from(origin.elapsed().as_nanos()).expect("a short run");
                    let entry = SessionEntry {
                        id: Bytes::copy_from_slice(&Sample::id(number)),
                        session: Bytes::from(sample.der(number)),
                        at: clock.now().wall,
                    };
                    assert_eq!(node.proxies.outbox.push_all(&[entry]), 0, "an outbox with room");
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
                node.stop().await;
            });
        }
    };
    let receiving = thread::spawn(receiver);
    is_ready.recv().expect("the receiver starts");
    let sending = thread::spawn(sender);
    let delays = delays.recv_timeout(LASTING + Duration::from_secs(120)).expect("every session arrives");
    for thread in [receiving, sending] {
        thread.join().expect("a node");
    }
    Percentiles::of(delays)
}

/// Two daemons, and a proxy's socket at each.
fn socket_to_socket(broker: &Broker) -> Percentiles {
    let mut setup = FarmSetup::new(2, &broker.uri());
    setup.proxies = Proxies::None;
    setup.log = "info".to_owned();
    let farm = Farm::start_in_step(&setup);
    let socket = |index: usize| farm.hosts[index].daemon.home().join("ats.sock");
    let mut replica = proxy::connect(&socket(1), true);
    farm.hosts[1].daemon.wait_for_metric("resumed_proxies_connected", |proxies| proxies == 1.0);
    let mut hook = proxy::connect(&socket(0), false);
    let (origin, sample, clock) = (Instant::now(), Sample::make(), SystemClock::start());
    let count = (LASTING.as_secs_f64() * f64::from(PER_SECOND)) as usize;
    let receiving = thread::spawn(move || {
        let mut delays = Vec::with_capacity(count);
        while delays.len() < count {
            let sessions = proxy::next_sessions(&mut replica).expect("the daemon tells of them");
            let now = origin.elapsed();
            for session in sessions {
                delays.push(now.saturating_sub(Duration::from_nanos(Sample::number(&session.id))));
            }
        }
        delays
    });
    for due in 1..=u32::try_from(count).expect("a small number") {
        thread::sleep((Duration::from_secs(1) / PER_SECOND * due).saturating_sub(origin.elapsed()));
        let number = u64::try_from(origin.elapsed().as_nanos()).expect("a short run");
        hook.write_all(&proxy::report(vec![sample.session(number, clock.now().wall)])).expect("the daemon reads");
    }
    Percentiles::of(receiving.join().expect("the replica"))
}
