//! What only a real broker can do to a link: die, freeze, refuse, block, and speak TLS.

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use testkit::watcher::Folder;

use bytes::Bytes;
use resumed::internals::bus::{Bus, LeaseAnswer, Link, LinkEvent, LinkEvents, LinkSpec, RabbitMqLink};
use resumed::internals::routes::{Names, Published, Route, Seat, Via};
use resumed::{BusError, RabbitMq, RabbitMqSettings};
use testkit::authority::{Authority, Issued, VALID};
use testkit::broker::{Broker, BrokerOptions, BrokerTls};
use tokio::sync::{Mutex, MutexGuard, mpsc};
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(20);

/// A broker that tests may mistreat, one after the other. It comes out well whatever the test before did.
async fn broker_to_mistreat() -> MutexGuard<'static, Broker> {
    static BROKER: OnceLock<Mutex<Broker>> = OnceLock::new();
    let broker = BROKER.get_or_init(|| Mutex::new(Broker::start())).lock().await;
    if broker.pid().is_some() {
        broker.thaw();
    } else {
        broker.revive();
    }
    broker
}

fn settings(uris: &[&str]) -> RabbitMqSettings {
    let uris = uris.iter().map(|uri| uri.parse().expect("a URI")).collect();
    RabbitMqSettings { uris, heartbeat: Duration::from_secs(1), ..RabbitMqSettings::default() }
}

struct Node {
    link: RabbitMqLink,
    keys: mpsc::Receiver<LinkEvent>,
    feed: mpsc::Receiver<LinkEvent>,
}

async fn try_node(settings: RabbitMqSettings, farm: &str, name: &str) -> Result<Node, BusError> {
    let spec = LinkSpec { names: Names::new(farm, "p"), node: name.to_owned(), sessions: true, elsewhere_than: None };
    let (keys, keys_in) = mpsc::channel(64);
    let (feed, feed_in) = mpsc::channel(64);
    let connecting = RabbitMq::new(settings)?;
    let connecting = connecting.connect(&spec, LinkEvents { keys, feed });
    let link = timeout(SOON, connecting).await.expect("connecting ends by itself")?;
    Ok(Node { link, keys: keys_in, feed: feed_in })
}

async fn node(uri: &str, farm: &str, name: &str) -> Node {
    let node = try_node(settings(&[uri]), farm, name).await;
    node.unwrap_or_else(|error| panic!("{name} of {farm} does not connect: {error}"))
}

async fn refusal(settings: RabbitMqSettings) -> String {
    match try_node(settings, "farm", "a").await {
        Ok(node) => panic!("connected to {}", node.link.peer()),
        Err(error) => error.to_string(),
    }
}

#[track_caller]
fn assert_says(said: &str, parts: &[&str]) {
    println!("{said}");
    for part in parts {
        assert!(said.contains(part), "{said:?} does not say {part:?}");
    }
    for secret in ["hunter2", "from-file"] {
        assert!(!said.contains(secret), "{said:?} shows a password");
    }
}

/// The reason that a link gives, which must come within `limit` and be the last of its events.
async fn end_of(mut node: Node, limit: Duration) -> String {
    let began = Instant::now();
    let reason = loop {
        match timeout(limit, node.keys.recv()).await {
            Ok(Some(LinkEvent::Closed { reason })) => break reason,
            Ok(Some(_)) => {}
            Ok(None) => panic!("the events ended without the end of the link"),
            Err(_) => panic!("the link is not closed within {limit:?}"),
        }
    };
    println!("closed after {:?}: {reason}", began.elapsed());
    let refused = node.link.publish(&Route::Keys, "ring".into()).await.expect_err("the link is closed");
    assert!(matches!(refused, BusError::Closed(_)), "{refused}");
    drop(node.link);
    assert_eq!(timeout(SOON, node.keys.recv()).await.expect("the end"), None);
    reason
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_closes_the_link_and_a_revived_one_takes_it_again() {
    let broker = broker_to_mistreat().await;
    let a = node(&broker.uri(), "killed", "a").await;
    assert_eq!(a.link.try_lease(Seat::FIRST).await.unwrap(), LeaseAnswer::Granted);
    broker.kill();
    let reason = end_of(a, Duration::from_secs(2)).await;
    assert!(reason.contains(" connection: "), "{reason}");
    let refused = refusal(settings(&[&broker.uri()])).await;
    assert_says(&refused, &["no broker reached", "guest:***@127.0.0.1", "Connection refused"]);

    broker.revive();
    let mut a = node(&broker.uri(), "killed", "a").await;
    assert_eq!(a.link.try_lease(Seat::FIRST).await.unwrap(), LeaseAnswer::Granted);
    assert_eq!(a.link.publish(&Route::Leader(Seat::FIRST), "report".into()).await.unwrap(), Published::Routed);
    assert!(matches!(timeout(SOON, a.keys.recv()).await, Ok(Some(LinkEvent::Delivered { .. }))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_broker_is_given_up_after_two_heartbeats() {
    let broker = broker_to_mistreat().await;
    let a = node(&broker.uri(), "frozen", "a").await;
    broker.freeze();
    // Whoever waits for an answer is told as well.
    let (asked, reason) = tokio::join!(a.link.try_lease(Seat::FIRST), async {
        let began = Instant::now();
        while a.link.publish(&Route::Keys, "ring".into()).await.is_ok() {}
        began.elapsed()
    });
    assert!(matches!(asked, Err(BusError::Closed(_))), "{asked:?}");
    // Heartbeats are looked at every half second, and the machine may be busy.
    assert!(reason < Duration::from_secs(6), "{reason:?}");
    let reason = end_of(a, Duration::from_secs(1)).await;
    assert!(reason.contains("heartbeat"), "{reason}");

    let mut impatient = settings(&[&broker.uri()]);
    impatient.connect_timeout = Duration::from_secs(1);
    let began = Instant::now();
    assert_says(&refusal(impatient).await, &["login: the broker says nothing within 1s"]);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    broker.thaw();
    node(&broker.uri(), "frozen", "a").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_does_not_wait_for_a_frozen_broker() {
    let broker = broker_to_mistreat().await;
    let a = node(&broker.uri(), "frozen", "a").await;
    let dropped = node(&broker.uri(), "frozen", "b").await;
    broker.freeze();
    let began = Instant::now();
    a.link.close().await;
    assert!(began.elapsed() < Duration::from_millis(1_800), "{:?}", began.elapsed());
    assert_eq!(end_of(a, Duration::from_secs(1)).await, "closed by this node");
    let Node { link, mut keys, .. } = dropped;
    drop(link);
    let closed = timeout(Duration::from_secs(1), keys.recv()).await.expect("a dropped link ends at once");
    assert!(matches!(closed, Some(LinkEvent::Closed { .. })), "{closed:?}");
    broker.thaw();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_blocks_publishers_drops_sessions_and_keeps_the_key_plane_waiting() {
    let broker = broker_to_mistreat().await;
    let mut a = node(&broker.uri(), "blocked", "a").await;
    assert!(!a.link.is_blocked());
    a.link.writable().await;
    let before = broker
        .ctl(&["eval", "{ok, {absolute, _}} = {ok, {absolute, 0}}, vm_memory_monitor:get_vm_memory_high_watermark()."]);
    broker.ctl(&["set_vm_memory_high_watermark", "0"]);

    // The broker says so at the first message that it does not take.
    let waiting = a.link.publish(&Route::Keys, "ring".into());
    tokio::pin!(waiting);
    let deadline = Instant::now() + SOON;
    while !a.link.is_blocked() {
        assert!(Instant::now() < deadline, "the broker does not say that it blocks");
        let early = timeout(Duration::from_millis(20), &mut waiting).await;
        assert!(early.is_err(), "a blocked broker answered {early:?}");
    }
    let dropped = a.link.publish_sessions("s".into()).await.expect_err("sessions do not wait");
    assert!(matches!(dropped, BusError::Blocked), "{dropped}");
    let writable = timeout(Duration::from_millis(300), a.link.writable()).await;
    assert!(writable.is_err(), "not writable while blocked");
    // Two heartbeats pass in silence on the publishing side, and neither side minds.
    let early = timeout(Duration::from_secs(4), &mut waiting).await;
    assert!(early.is_err(), "a blocked broker answered {early:?}");

    broker.ctl(&["set_vm_memory_high_watermark", before.trim()]);
    timeout(SOON, a.link.writable()).await.expect("writable again");
    assert!(!a.link.is_blocked());
    assert_eq!(timeout(SOON, waiting).await.expect("the answer").unwrap(), Published::Routed);
    assert!(matches!(timeout(SOON, a.keys.recv()).await, Ok(Some(LinkEvent::Delivered { .. }))));
    a.link.publish_sessions("s".into()).await.unwrap();
    assert!(matches!(timeout(SOON, a.feed.recv()).await, Ok(Some(LinkEvent::Delivered { .. }))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreachable_broker_is_named_with_each_uri_and_without_passwords() {
    let (one, two) = (free_port(), free_port());
    let uris = [format!("amqp://user:hunter2@127.0.0.1:{one}"), format!("amqp://[::1]:{two}/v")];
    let said = refusal(settings(&[&uris[0], &uris[1]])).await;
    let first = format!("amqp://user:***@127.0.0.1:{one}: connect: 127.0.0.1:{one}: Connection refused");
    assert_says(&said, &["no broker reached: ", &first, &format!("amqp://[::1]:{two}/v: connect: [::1]:{two}: ")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uris_are_tried_in_order_until_one_answers() {
    let broker = Broker::shared();
    let dead = format!("amqp://user:hunter2@127.0.0.1:{}", free_port());
    let a = try_node(settings(&[&dead, &broker.uri()]), "order", "a").await.unwrap();
    let expected = broker.uri().replace("guest@", "***@");
    assert_eq!(a.link.peer(), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_accepts_and_says_nothing_does_not_hold_a_connection_attempt() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    for (uri, phase) in [
        (format!("amqp://127.0.0.1:{port}"), "login: the broker says nothing within 500ms"),
        (format!("amqps://127.0.0.1:{port}"), "connect: no answer within 500ms"),
    ] {
        let mut settings = settings(&[&uri]);
        settings.connect_timeout = Duration::from_millis(500);
        let began = Instant::now();
        assert_says(&refusal(settings).await, &[phase]);
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_login_says_what_was_refused() {
    let broker = Broker::shared();
    broker.ctl(&["add_user", "stranger", "hunter2"]);
    let bad = broker.uri_as("guest", "hunter2", "/");
    assert_says(&refusal(settings(&[&bad])).await, &["guest:***@", "login: 403 ACCESS_REFUSED"]);
    let nowhere = broker.uri_as("stranger", "hunter2", "nowhere");
    assert_says(&refusal(settings(&[&nowhere])).await, &["login: 530 NOT_ALLOWED", "vhost nowhere not found"]);
    let uri = broker.uri_as("stranger", "hunter2", "/");
    assert_says(&refusal(settings(&[&uri])).await, &["530 NOT_ALLOWED", "vhost '/' refused for user 'stranger'"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_permissions_of_the_design_are_enough_and_missing_ones_are_named() {
    let broker = Broker::shared();
    broker.ctl(&["add_user", "resumed", "hunter2"]);
    let ours = r"^resumed\.narrow\.";
    let write = r"^(resumed\.narrow\.|amq\.default$)";
    broker.ctl(&["set_permissions", "resumed", ours, write, ours]);
    let folder = Folder::temporary("resumed-");
    let password = folder.path().join("password");
    std::fs::write(&password, "hunter2\n").unwrap();
    let mut settings = settings(&[&format!("amqp://resumed@127.0.0.1:{}", broker.port())]);
    settings.password_file = Some(password.clone());
    let mut a = try_node(settings.clone(), "narrow", "a").await.unwrap();
    assert_eq!(a.link.try_lease(Seat::FIRST).await.unwrap(), LeaseAnswer::Granted);
    for route in [Route::Keys, Route::Leader(Seat::FIRST), Route::Inbox(a.link.inbox().to_owned())] {
        assert_eq!(a.link.publish(&route, "x".into()).await.unwrap(), Published::Routed, "{route:?}");
    }
    a.link.publish_sessions("s".into()).await.unwrap();
    assert!(matches!(timeout(SOON, a.feed.recv()).await, Ok(Some(LinkEvent::Delivered { .. }))));

    let said = refusal(settings.clone()).await;
    assert_says(&said, &["declare exchange resumed.farm.keys", "403 ACCESS_REFUSED", "user 'resumed'"]);

    broker.ctl(&["set_permissions", "resumed", ours, ours, ours]);
    let b = try_node(settings, "narrow", "b").await.unwrap();
    let refused = b.link.publish(&Route::Leader(Seat::FIRST), "report".into()).await.expect_err("no right to write");
    assert!(matches!(refused, BusError::Refused { .. }), "{refused}");
    assert_says(&refused.to_string(), &["publish to resumed.narrow.leader", "403 ACCESS_REFUSED"]);
    assert_eq!(b.link.publish(&Route::Keys, "ring".into()).await.unwrap(), Published::Routed, "the link lives on");
    a.link.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_declared_is_what_the_design_says() {
    let broker = Broker::shared();
    let a = try_node(RabbitMqSettings { feed_max_bytes: 123_456, ..settings(&[&broker.uri()]) }, "table", "a")
        .await
        .unwrap();
    assert_eq!(a.link.try_lease(Seat::FIRST).await.unwrap(), LeaseAnswer::Granted);
    let exchanges = broker.ctl(&["list_exchanges", "name", "type", "durable", "auto_delete"]);
    for exchange in ["resumed.table.keys", "resumed.table.sessions.p"] {
        let line = format!("{exchange}\tfanout\ttrue\tfalse");
        assert!(exchanges.lines().any(|found| found == line), "no {line:?} in:\n{exchanges}");
    }
    let queues = broker.ctl(&["list_queues", "name", "exclusive", "durable", "auto_delete", "arguments"]);
    let mut seen = 0;
    for line in queues.lines().filter(|line| line.starts_with("resumed.table.")) {
        let (name, rest) = line.split_once('\t').unwrap();
        let leader = name == "resumed.table.leader";
        let feed = name.starts_with("resumed.table.sessions.p.a.");
        assert!(leader || feed || name == a.link.inbox(), "{name}");
        assert!(rest.starts_with(if leader { "true\tfalse\tfalse" } else { "true\tfalse\ttrue" }), "{line}");
        let (bytes, time_to_live) = if feed { (123_456, 60_000) } else { (16 << 20, 30_000) };
        for argument in [
            r#"{"x-queue-type","classic"}"#.to_owned(),
            r#"{"x-overflow","drop-head"}"#.to_owned(),
            format!(r#"{{"x-max-length",{}}}"#, if feed { 50_000 } else { 4_096 }),
            format!(r#"{{"x-max-length-bytes",{bytes}}}"#),
            format!(r#"{{"x-message-ttl",{time_to_live}}}"#),
        ] {
            assert!(rest.contains(&argument), "{name} lacks {argument}: {rest}");
        }
        seen += 1;
    }
    assert_eq!(seen, 3, "{queues}");
    let connections = broker.ctl(&["list_connections", "client_properties", "timeout"]);
    for role in ["publish", "consume"] {
        let name = format!(r#"{{"connection_name","resumed a {role}"}}"#);
        let line = connections.lines().find(|line| line.contains(&name));
        let line = line.unwrap_or_else(|| panic!("no {name} in:\n{connections}"));
        assert!(line.contains(r#"{"product","resumed"}"#), "{line}");
        assert!(line.contains(concat!(r#"{"version",""#, env!("CARGO_PKG_VERSION"), r#""}"#)), "{line}");
        assert!(line.ends_with("\t1"), "the heartbeat is another: {line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_that_an_operator_deletes_is_declared_again_by_the_next_link() {
    let broker = Broker::shared();
    for (exchange, plane) in [("resumed.lost.keys", "keys"), ("resumed.lost.sessions.p", "sessions")] {
        let a = node(&broker.uri(), "lost", "a").await;
        let code = format!(
            r#"ok = rabbit_exchange:delete(rabbit_misc:r(<<"/">>, exchange, <<"{exchange}">>), false, <<"test">>)."#
        );
        broker.ctl(&["eval", &code]);
        if plane == "keys" {
            let refused = a.link.publish(&Route::Keys, "ring".into()).await.expect_err("there is no such exchange");
            assert_says(&refused.to_string(), &["404 NOT_FOUND", exchange]);
        } else {
            // Sent without confirms: the broker's answer may be here before the call returns.
            if let Err(error) = a.link.publish_sessions("s".into()).await {
                assert_says(&error.to_string(), &["404 NOT_FOUND", exchange]);
            }
        }
        let reason = end_of(a, Duration::from_secs(5)).await;
        assert!(reason.contains("404 NOT_FOUND") && reason.contains(exchange), "{reason}");
        let b = node(&broker.uri(), "lost", "b").await;
        assert_eq!(b.link.publish(&Route::Keys, "ring".into()).await.unwrap(), Published::Routed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_an_operator_closes_ends_the_link_with_his_words() {
    let broker = Broker::shared();
    for role in ["publish", "consume"] {
        let a = node(&broker.uri(), "closed", &format!("victim-{role}")).await;
        let listed = broker.ctl(&["list_connections", "pid", "client_properties"]);
        let name = format!(r#""resumed victim-{role} {role}""#);
        let line =
            listed.lines().find(|line| line.contains(&name)).unwrap_or_else(|| panic!("no {name} in:\n{listed}"));
        broker.ctl(&["close_connection", line.split('\t').next().unwrap(), "go away"]);
        let reason = end_of(a, Duration::from_secs(5)).await;
        assert!(reason.contains("320 CONNECTION_FORCED - go away"), "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_attempt_that_nobody_waits_for_leaves_no_lease() {
    let broker = Broker::shared();
    let a = node(&broker.uri(), "abandoned", "a").await;
    let b = node(&broker.uri(), "abandoned", "b").await;
    for micros in [0, 200, 500, 1_000, 2_000] {
        // Dropped at various points on its way.
        let answer = timeout(Duration::from_micros(micros), a.link.try_lease(Seat::FIRST)).await;
        if let Ok(answer) = answer {
            assert_eq!(answer.unwrap(), LeaseAnswer::Granted);
            a.link.release_lease(Seat::FIRST).await.unwrap();
        }
        let deadline = Instant::now() + SOON;
        while b.link.try_lease(Seat::FIRST).await.unwrap() == LeaseAnswer::Taken {
            assert!(Instant::now() < deadline, "dropped after {micros} µs, the lease stayed with nobody");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        b.link.release_lease(Seat::FIRST).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_that_nobody_waits_for_does_not_confuse_the_answers_to_others() {
    let broker = Broker::shared();
    let mut a = node(&broker.uri(), "dropped", "a").await;
    let inbox = Route::Inbox(a.link.inbox().to_owned());
    for micros in 0..60 {
        drop(
            timeout(Duration::from_micros(micros * 20), a.link.publish(&Route::Leader(Seat::FIRST), "report".into()))
                .await,
        );
        assert_eq!(a.link.publish(&inbox, "x".into()).await.unwrap(), Published::Routed);
        assert!(matches!(timeout(SOON, a.keys.recv()).await, Ok(Some(LinkEvent::Delivered { .. }))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_the_broker_lost_is_taken_again_on_the_same_link() {
    let broker = Broker::shared();
    let mut a = node(&broker.uri(), "forgotten", "a").await;
    let b = node(&broker.uri(), "forgotten", "b").await;
    assert_eq!(a.link.try_lease(Seat::FIRST).await.unwrap(), LeaseAnswer::Granted);
    assert_eq!(a.link.try_lease(Seat::FIRST).await.unwrap(), LeaseAnswer::Granted, "asked again, it is still ours");
    // As a cluster does when one of its brokers dies: the entry goes, by name, and its owner is told nothing.
    let name = r#"rabbit_misc:r(<<"/">>, queue, <<"resumed.forgotten.leader">>)"#;
    let forget = if broker.version().at_least(4, 0) {
        format!("rabbit_db_queue:delete({name}, normal).")
    } else {
        format!("ok = mnesia:dirty_delete(rabbit_queue, {name}).")
    };
    broker.ctl(&["eval", &forget]);
    assert_eq!(a.link.publish(&Route::Leader(Seat::FIRST), "report".into()).await.unwrap(), Published::Unroutable);
    if broker.version().at_least(4, 0) {
        return taken_on_another_connection(a).await;
    }
    assert_eq!(a.link.try_lease(Seat::FIRST).await.unwrap(), LeaseAnswer::Granted);
    assert_eq!(b.link.try_lease(Seat::FIRST).await.unwrap(), LeaseAnswer::Taken);
    assert_eq!(b.link.publish(&Route::Leader(Seat::FIRST), "report".into()).await.unwrap(), Published::Routed);
    let Ok(Some(LinkEvent::Delivered { from, body, .. })) = timeout(SOON, a.keys.recv()).await else {
        panic!("the report did not arrive");
    };
    assert_eq!((from, &body[..]), (Via::Lease, &b"report"[..]));

    // Whoever finds that another has it gives its own up.
    broker.ctl(&["eval", &forget]);
    assert_eq!(b.link.try_lease(Seat::FIRST).await.unwrap(), LeaseAnswer::Granted);
    assert_eq!(a.link.try_lease(Seat::FIRST).await.unwrap(), LeaseAnswer::Taken);
    // The end of the former holder's connection deletes the queue by name, also from under the one that has it now.
    a.link.close().await;
    assert_eq!(b.link.try_lease(Seat::FIRST).await.unwrap(), LeaseAnswer::Granted);
    assert_eq!(b.link.publish(&Route::Leader(Seat::FIRST), "report".into()).await.unwrap(), Published::Routed);
}

/// From 4.0 on the queue that was forgotten lives on with its files, and the broker cannot make it anew: it ends the
/// connection that asks. That is the lease's own; with it the queue goes, and the link can take the lease again.
async fn taken_on_another_connection(mut holder: Node) {
    let refused = holder.link.try_lease(Seat::FIRST).await.expect_err("the broker cannot make the queue");
    assert_says(&refused.to_string(), &["541 INTERNAL_ERROR"]);
    let lost = timeout(SOON, holder.keys.recv()).await.expect("the loss");
    assert_eq!(lost, Some(LinkEvent::LeaseLost { seat: Seat::FIRST }));
    let deadline = Instant::now() + SOON;
    loop {
        // The queue may still be going.
        match holder.link.try_lease(Seat::FIRST).await {
            Ok(LeaseAnswer::Granted) => break,
            answer => assert!(Instant::now() < deadline, "the queue stays behind its connection: {answer:?}"),
        }
    }
    let report = holder.link.publish(&Route::Leader(Seat::FIRST), "report".into()).await.unwrap();
    assert_eq!(report, Published::Routed);
}

/// The authorities and the brokers' certificates; the directory goes with it.
struct Certificates {
    _directory: Folder,
    ours: PathBuf,
    other: PathBuf,
    client: Issued,
    strangers: Issued,
    valid: BrokerTls,
    expired: BrokerTls,
}

impl Certificates {
    fn new() -> Self {
        let directory = Folder::temporary("resumed-");
        let ours = Authority::new(directory.path(), "ours");
        let other = Authority::new(directory.path(), "other");
        let listener =
            |issued: Issued| BrokerTls { ca_file: ours.file(), cert_file: issued.cert_file, key_file: issued.key_file };
        Self {
            ours: ours.file(),
            other: other.file(),
            client: ours.issue("client", &[], VALID),
            strangers: other.issue("stranger", &[], VALID),
            valid: listener(ours.issue("broker", &["localhost"], VALID)),
            expired: listener(ours.issue("late", &["localhost"], (-9, -1))),
            _directory: directory,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_connects_with_the_right_certificates_and_says_which_are_wrong() {
    let files = Certificates::new();
    let start = |tls: &BrokerTls| {
        let options = BrokerOptions { tls: Some(tls.clone()), ..BrokerOptions::default() };
        std::thread::spawn(move || Broker::start_with(&options))
    };
    let (broker, late) = (start(&files.valid), start(&files.expired));
    let (broker, late) = (broker.join().unwrap(), late.join().unwrap());
    let tls = |uri: &str, ca: &PathBuf, client: Option<&Issued>| RabbitMqSettings {
        ca_file: Some(ca.clone()),
        cert_file: client.map(|client| client.cert_file.clone()),
        key_file: client.map(|client| client.key_file.clone()),
        ..settings(&[uri])
    };
    let port = broker.tls_port();
    let (by_name, by_address) = (format!("amqps://localhost:{port}"), format!("amqps://127.0.0.1:{port}"));
    let with_user = format!("amqps://guest:guest@localhost:{port}");
    let client = Some(&files.client);

    let a = try_node(tls(&with_user, &files.ours, client), "tls", "a").await.unwrap();
    assert_eq!(a.link.peer(), format!("amqps://guest:***@localhost:{port}"));
    assert_eq!(a.link.publish(&Route::Keys, Bytes::from(vec![7; 300_000])).await.unwrap(), Published::Routed);

    // Without a user name the certificate's common name is the user.
    let said = refusal(tls(&by_name, &files.ours, client)).await;
    assert_says(&said, &["login: 403 ACCESS_REFUSED", "EXTERNAL"]);
    broker.ctl(&["add_user", "client", "hunter2"]);
    broker.ctl(&["set_permissions", "client", ".*", ".*", ".*"]);
    let mut b = try_node(tls(&by_name, &files.ours, client), "tls", "b").await.unwrap();
    a.link.publish(&Route::Keys, "ring".into()).await.unwrap();
    assert!(matches!(timeout(SOON, b.keys.recv()).await, Ok(Some(LinkEvent::Delivered { .. }))));

    let said = refusal(tls(&with_user, &files.other, client)).await;
    assert_says(&said, &["TLS: the broker's certificate was refused: self-signed certificate in certificate chain"]);
    let said = refusal(tls(&by_address, &files.ours, client)).await;
    assert_says(&said, &["TLS: the broker's certificate was refused: IP address mismatch", "broker"]);
    let expired = format!("amqps://guest:guest@localhost:{}", late.tls_port());
    let said = refusal(tls(&expired, &files.ours, client)).await;
    assert_says(&said, &["TLS: the broker's certificate was refused: certificate has expired", "late"]);
    let said = refusal(tls(&with_user, &files.ours, None)).await;
    assert_says(&said, &["login: ", "client certificate?"]);
    let said = refusal(tls(&with_user, &files.ours, Some(&files.strangers))).await;
    assert_says(&said, &["login: ", "client certificate?"]);
    let mixed = Issued { cert_file: files.client.cert_file.clone(), key_file: files.strangers.key_file.clone() };
    let said = refusal(tls(&with_user, &files.ours, Some(&mixed))).await;
    assert_says(&said, &["key_file", "stranger.key.pem", "key values mismatch"]);
    // The wrong scheme for a port, both ways round.
    let said = refusal(settings(&[&with_user.replace("amqps", "amqp")])).await;
    assert_says(&said, &["login: "]);
    let needless = tls(&with_user.replace("amqps", "amqp"), &files.ours, client);
    assert_says(&refusal(needless).await, &["broker.ca_file", "no URI in broker.uris uses TLS"]);
    let plain = format!("amqps://guest:guest@localhost:{}", broker.port());
    assert_says(&refusal(tls(&plain, &files.ours, client)).await, &["TLS: "]);
}
