//! The bus contract, kept by RabbitMQ and by the in-process bus alike.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use resumed::internals::bus::{Bus, FEED_PREFETCH, LeaseAnswer, Link, LinkEvent, LinkEvents, LinkSpec, QueueLimits};
use resumed::internals::routes::{Names, Published, Route, Seat, Via};
use resumed::{BusError, Hub, InProcess, RabbitMq, RabbitMqSettings};
use testkit::broker::Broker;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Nothing here takes that long unless it is broken.
const SOON: Duration = Duration::from_secs(20);

/// Where a contract is tested.
trait Ground {
    type Bus: Bus;
    /// A bus whose session feeds hold at most `feed_max_bytes`.
    fn bus(&self, feed_max_bytes: u32) -> Self::Bus;
    fn delete_queue(&self, queue: &str);
    /// How many messages may be under way to a node that does not read.
    fn under_way(&self) -> usize;
}

struct OnRabbitMq(Arc<Broker>);

impl Ground for OnRabbitMq {
    type Bus = RabbitMq;

    fn bus(&self, feed_max_bytes: u32) -> RabbitMq {
        let uris = vec![self.0.uri().parse().unwrap()];
        RabbitMq::new(RabbitMqSettings { uris, feed_max_bytes, ..RabbitMqSettings::default() }).unwrap()
    }

    fn delete_queue(&self, queue: &str) {
        self.0.ctl(&["delete_queue", queue]);
    }

    fn under_way(&self) -> usize {
        usize::from(FEED_PREFETCH)
    }
}

/// Every bus of it is on the same hub, so the limits are those of the first.
#[derive(Default)]
struct OnHub(std::sync::OnceLock<Arc<Hub>>);

impl Ground for OnHub {
    type Bus = InProcess;

    fn bus(&self, feed_max_bytes: u32) -> InProcess {
        let limits = |bytes| QueueLimits { messages: 50_000, bytes };
        let hub = self.0.get_or_init(|| Arc::new(Hub::new(limits(16 << 20), limits(feed_max_bytes as usize))));
        InProcess::new(Arc::clone(hub))
    }

    fn delete_queue(&self, queue: &str) {
        assert!(self.0.get().expect("a bus was made").delete_queue(queue), "there is no queue {queue}");
    }

    fn under_way(&self) -> usize {
        1
    }
}

struct Node<L> {
    link: L,
    keys: mpsc::Receiver<LinkEvent>,
    feed: mpsc::Receiver<LinkEvent>,
}

/// A farm nobody else uses: the tests of this binary share a broker.
fn new_farm() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("f{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

async fn node_of<B: Bus>(bus: &B, farm: &str, pod: &str, name: &str, room: usize) -> Node<B::Link> {
    let spec = LinkSpec { names: Names::new(farm, pod), node: name.to_owned(), sessions: true, elsewhere_than: None };
    let (keys, keys_in) = mpsc::channel(room);
    let (feed, feed_in) = mpsc::channel(room);
    let link = bus.connect(&spec, LinkEvents { keys, feed }).await;
    let link = link.unwrap_or_else(|error| panic!("{name} of {farm} does not connect: {error}"));
    Node { link, keys: keys_in, feed: feed_in }
}

async fn node<G: Ground>(ground: &G, farm: &str, pod: &str, name: &str) -> Node<<G::Bus as Bus>::Link> {
    node_of(&ground.bus(64 << 20), farm, pod, name, 64).await
}

async fn soon<T>(what: &str, happens: impl Future<Output = T>) -> T {
    timeout(SOON, happens).await.unwrap_or_else(|_| panic!("{what}: not within {SOON:?}"))
}

async fn next(events: &mut mpsc::Receiver<LinkEvent>, what: &str) -> LinkEvent {
    soon(what, events.recv()).await.unwrap_or_else(|| panic!("{what}: the channel is closed"))
}

#[track_caller]
fn delivered(from: Via, route: &str, body: &str) -> LinkEvent {
    LinkEvent::Delivered { from, route: route.to_owned(), body: Bytes::copy_from_slice(body.as_bytes()), site: None }
}

/// Asks until the answer is `expected`; for what the broker notices by itself.
async fn until<T: PartialEq + std::fmt::Debug, F: Future<Output = T>>(what: &str, expected: T, ask: impl Fn() -> F) {
    let deadline = Instant::now() + SOON;
    loop {
        let answer = ask().await;
        if answer == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: still {answer:?} after {SOON:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Closes a link. Then whether what it held is gone, as it is when the broker had answered within the second that a close may
/// take; otherwise the link was cut, and the broker is still at it.
async fn close_in_order(link: &impl Link) -> bool {
    let began = Instant::now();
    link.close().await;
    began.elapsed() < Duration::from_millis(900)
}

async fn an_announcement_reaches_every_node_and_its_sender(ground: &impl Ground) {
    let farm = new_farm();
    let mut nodes = Vec::new();
    for name in ["a", "b", "c"] {
        nodes.push(node(ground, &farm, "p", name).await);
    }
    assert_eq!(nodes[1].link.publish(&Route::Keys, "ring".into()).await.unwrap(), Published::Routed);
    let expected = delivered(Via::Inbox, &format!("resumed.{farm}.keys"), "ring");
    for node in &mut nodes {
        assert_eq!(next(&mut node.keys, "the announcement").await, expected);
    }
}

async fn an_inbox_is_reached_directly_and_alone(ground: &impl Ground) {
    let farm = new_farm();
    let mut a = node(ground, &farm, "p", "a").await;
    let mut b = node(ground, &farm, "p", "b").await;
    let inbox = b.link.inbox().to_owned();
    assert!(inbox.starts_with(&format!("resumed.{farm}.node.b.")), "{inbox}");
    let sent = a.link.publish(&Route::Inbox(inbox.clone()), "for b".into()).await.unwrap();
    assert_eq!(sent, Published::Routed);
    assert_eq!(next(&mut b.keys, "the answer").await, delivered(Via::Inbox, &inbox, "for b"));
    // What comes next at the other node shows that the answer did not come there.
    a.link.publish(&Route::Keys, "after".into()).await.unwrap();
    let after = delivered(Via::Inbox, &format!("resumed.{farm}.keys"), "after");
    assert_eq!(next(&mut a.keys, "the announcement").await, after);
}

async fn what_nobody_takes_is_unroutable(ground: &impl Ground) {
    let farm = new_farm();
    let mut a = node(ground, &farm, "p", "a").await;
    let mut b = node(ground, &farm, "p", "b").await;
    assert_eq!(a.link.publish(&Route::Leader(Seat::FIRST), "report".into()).await.unwrap(), Published::Unroutable);
    let nowhere = Route::Inbox(format!("resumed.{farm}.node.gone.00"));
    assert_eq!(a.link.publish(&nowhere, "answer".into()).await.unwrap(), Published::Unroutable);

    assert_eq!(b.link.try_lease(Seat::FIRST).await.unwrap(), LeaseAnswer::Granted);
    assert_eq!(a.link.publish(&Route::Leader(Seat::FIRST), "report".into()).await.unwrap(), Published::Routed);
    let report = delivered(Via::Lease, &format!("resumed.{farm}.leader"), "report");
    assert_eq!(next(&mut b.keys, "the report").await, report);

    // Many at once: each gets its own answer.
    let (leader, inbox) = (Route::Leader(Seat::FIRST), Route::Inbox(a.link.inbox().to_owned()));
    let answers = futures_util::future::join_all((0..200).map(|turn| {
        let route = [&leader, &nowhere, &inbox][turn % 3];
        a.link.publish(route, Bytes::from(turn.to_string()))
    }));
    let drain = async { while b.keys.recv().await.is_some() {} };
    let drain_a = async { while a.keys.recv().await.is_some() {} };
    let answers = tokio::select! {
        answers = soon("the answers", answers) => answers,
        () = drain => panic!("b's channel closed"),
        () = drain_a => panic!("a's channel closed"),
    };
    for (turn, answer) in answers.into_iter().enumerate() {
        let expected = if turn % 3 == 1 { Published::Unroutable } else { Published::Routed };
        assert_eq!(answer.unwrap(), expected, "message {turn}");
    }
}

async fn one_node_at_a_time_holds_the_lease(ground: &impl Ground) {
    let farm = new_farm();
    let a = node(ground, &farm, "p", "a").await;
    let b = node(ground, &farm, "q", "b").await;
    let c = node(ground, &farm, "p", "c").await;
    assert_eq!(a.link.try_lease(Seat::FIRST).await.unwrap(), LeaseAnswer::Granted);
    assert_eq!(a.link.try_lease(Seat::FIRST).await.unwrap(), LeaseAnswer::Granted, "asked again by its holder");
    for _ in 0..3 {
        assert_eq!(b.link.try_lease(Seat::FIRST).await.unwrap(), LeaseAnswer::Taken);
    }
    b.link.release_lease(Seat::FIRST).await.expect("giving up what one has not is fine");
    assert_eq!(c.link.try_lease(Seat::FIRST).await.unwrap(), LeaseAnswer::Taken);

    a.link.release_lease(Seat::FIRST).await.unwrap();
    assert_eq!(b.link.try_lease(Seat::FIRST).await.unwrap(), LeaseAnswer::Granted, "at once after it was given up");
    assert_eq!(a.link.try_lease(Seat::FIRST).await.unwrap(), LeaseAnswer::Taken);

    if close_in_order(&b.link).await {
        assert_eq!(
            c.link.try_lease(Seat::FIRST).await.unwrap(),
            LeaseAnswer::Granted,
            "at once after its holder closed"
        );
    } else {
        let asked = || async { c.link.try_lease(Seat::FIRST).await.unwrap() };
        until("the lease after its holder was cut", LeaseAnswer::Granted, asked).await;
    }

    drop(c);
    until("the lease after its holder was dropped", LeaseAnswer::Granted, || async {
        a.link.try_lease(Seat::FIRST).await.unwrap()
    })
    .await;
}

async fn two_who_ask_at_once_do_not_both_get_the_lease(ground: &impl Ground) {
    let farm = new_farm();
    let a = node(ground, &farm, "p", "a").await;
    let b = node(ground, &farm, "p", "b").await;
    for _ in 0..10 {
        let (one, other) = tokio::join!(a.link.try_lease(Seat::FIRST), b.link.try_lease(Seat::FIRST));
        let granted = [one.unwrap(), other.unwrap()].iter().filter(|got| **got == LeaseAnswer::Granted).count();
        assert_eq!(granted, 1);
        a.link.release_lease(Seat::FIRST).await.unwrap();
        b.link.release_lease(Seat::FIRST).await.unwrap();
    }
}

async fn a_lease_whose_queue_was_deleted_is_lost_and_can_be_taken_again(ground: &impl Ground) {
    let farm = new_farm();
    let mut a = node(ground, &farm, "p", "a").await;
    let mut b = node(ground, &farm, "p", "b").await;
    assert_eq!(a.link.try_lease(Seat::FIRST).await.unwrap(), LeaseAnswer::Granted);
    ground.delete_queue(&format!("resumed.{farm}.leader"));
    assert_eq!(next(&mut a.keys, "the loss").await, LinkEvent::LeaseLost { seat: Seat::FIRST });
    a.link.release_lease(Seat::FIRST).await.expect("nothing to give up");
    assert_eq!(b.link.try_lease(Seat::FIRST).await.unwrap(), LeaseAnswer::Granted);
    assert_eq!(a.link.try_lease(Seat::FIRST).await.unwrap(), LeaseAnswer::Taken);
    assert_eq!(a.link.publish(&Route::Leader(Seat::FIRST), "report".into()).await.unwrap(), Published::Routed);
    let report = delivered(Via::Lease, &format!("resumed.{farm}.leader"), "report");
    assert_eq!(next(&mut b.keys, "the report").await, report);

    // Given up on purpose, it is not reported as lost: the next event is another.
    b.link.release_lease(Seat::FIRST).await.unwrap();
    assert_eq!(a.link.try_lease(Seat::FIRST).await.unwrap(), LeaseAnswer::Granted);
    a.link.publish(&Route::Keys, "ring".into()).await.unwrap();
    let ring = delivered(Via::Inbox, &format!("resumed.{farm}.keys"), "ring");
    assert_eq!(next(&mut b.keys, "the announcement").await, ring);
}

async fn a_link_whose_inbox_was_deleted_is_closed(ground: &impl Ground) {
    let farm = new_farm();
    let mut a = node(ground, &farm, "p", "a").await;
    let inbox = a.link.inbox().to_owned();
    ground.delete_queue(&inbox);
    match next(&mut a.keys, "the end").await {
        LinkEvent::Closed { reason } => assert!(reason.contains(&inbox), "{reason}"),
        other => panic!("{other:?}"),
    }
    let refused = a.link.publish(&Route::Keys, "ring".into()).await.expect_err("the link is closed");
    assert!(matches!(refused, BusError::Closed(_)), "{refused}");
}

async fn sessions_stay_in_their_pod(ground: &impl Ground) {
    let farm = new_farm();
    let mut a = node(ground, &farm, "p", "a").await;
    let mut b = node(ground, &farm, "p", "b").await;
    let mut other = node(ground, &farm, "q", "c").await;
    other.link.publish_sessions("of q".into()).await.unwrap();
    a.link.publish_sessions("of p".into()).await.unwrap();
    let of_p = delivered(Via::Feed, &format!("resumed.{farm}.sessions.p"), "of p");
    let of_q = delivered(Via::Feed, &format!("resumed.{farm}.sessions.q"), "of q");
    assert_eq!(next(&mut b.feed, "the sessions").await, of_p);
    assert_eq!(next(&mut a.feed, "the sessions").await, of_p);
    assert_eq!(next(&mut other.feed, "the sessions").await, of_q);
    // Announcements cross pods, and what was not for the other pod would have come before them.
    a.link.publish_sessions("more of p".into()).await.unwrap();
    other.link.publish_sessions("more of q".into()).await.unwrap();
    let more = delivered(Via::Feed, &format!("resumed.{farm}.sessions.q"), "more of q");
    assert_eq!(next(&mut other.feed, "the sessions").await, more);
    a.link.publish(&Route::Keys, "ring".into()).await.unwrap();
    let ring = delivered(Via::Inbox, &format!("resumed.{farm}.keys"), "ring");
    assert_eq!(next(&mut other.keys, "the announcement").await, ring);
}

async fn a_feed_is_reached_directly_alone_and_in_order_with_what_goes_to_the_pod(ground: &impl Ground) {
    let farm = new_farm();
    let mut a = node(ground, &farm, "p", "a").await;
    let mut b = node(ground, &farm, "p", "b").await;
    let feed = b.link.feed().expect("a feed").to_owned();
    assert!(Names::new(&farm, "p").is_feed(&feed), "{feed}");
    // A feed that is gone takes nothing and breaks nothing.
    a.link.publish_to_feed(&format!("resumed.{farm}.sessions.p.gone.0"), "lost".into()).await.unwrap();
    let exchange = format!("resumed.{farm}.sessions.p");
    for turn in 0..10 {
        a.link.publish_to_feed(&feed, Bytes::from(format!("warm {turn}"))).await.unwrap();
        a.link.publish_sessions(Bytes::from(format!("live {turn}"))).await.unwrap();
    }
    for turn in 0..10 {
        let warm = delivered(Via::Feed, &feed, &format!("warm {turn}"));
        let live = delivered(Via::Feed, &exchange, &format!("live {turn}"));
        assert_eq!(next(&mut b.feed, "what is for b alone").await, warm);
        assert_eq!(next(&mut b.feed, "what is for the pod").await, live);
        assert_eq!(next(&mut a.feed, "what is for the pod").await, live);
    }
}

async fn a_node_without_sessions_gets_none(ground: &impl Ground) {
    let farm = new_farm();
    let spec = LinkSpec { names: Names::new(&farm, "p"), node: "a".to_owned(), sessions: false, elsewhere_than: None };
    let (keys, mut keys_in) = mpsc::channel(4);
    let (feed, mut feed_in) = mpsc::channel(4);
    let link = ground.bus(1 << 20).connect(&spec, LinkEvents { keys, feed }).await.unwrap();
    assert_eq!(link.feed(), None);
    let other = node(ground, &farm, "p", "b").await;
    other.link.publish_sessions("sessions".into()).await.unwrap();
    other.link.publish(&Route::Keys, "ring".into()).await.unwrap();
    let ring = delivered(Via::Inbox, &format!("resumed.{farm}.keys"), "ring");
    assert_eq!(next(&mut keys_in, "the announcement").await, ring);
    link.close().await;
    drop(link);
    assert_eq!(soon("the end of the feed", feed_in.recv()).await, None);
}

async fn two_farms_do_not_mix(ground: &impl Ground) {
    let (one, two) = (new_farm(), new_farm());
    let mut a = node(ground, &one, "p", "a").await;
    let mut b = node(ground, &two, "p", "a").await;
    assert_eq!(a.link.try_lease(Seat::FIRST).await.unwrap(), LeaseAnswer::Granted);
    assert_eq!(b.link.try_lease(Seat::FIRST).await.unwrap(), LeaseAnswer::Granted, "each farm has a lease of its own");
    for (link, body) in [(&a.link, "one"), (&b.link, "two")] {
        link.publish(&Route::Keys, body.into()).await.unwrap();
        link.publish(&Route::Leader(Seat::FIRST), body.into()).await.unwrap();
        link.publish_sessions(body.into()).await.unwrap();
    }
    for (node, farm, body) in [(&mut a, &one, "one"), (&mut b, &two, "two")] {
        let mut seen = Vec::new();
        for _ in 0..2 {
            seen.push(next(&mut node.keys, "an announcement and a report").await);
        }
        let ring = delivered(Via::Inbox, &format!("resumed.{farm}.keys"), body);
        let report = delivered(Via::Lease, &format!("resumed.{farm}.leader"), body);
        assert!(seen.contains(&ring) && seen.contains(&report), "{seen:?}");
        let sessions = delivered(Via::Feed, &format!("resumed.{farm}.sessions.p"), body);
        assert_eq!(next(&mut node.feed, "the sessions").await, sessions);
    }
    for node in [&mut a, &mut b] {
        node.link.close().await;
        assert!(
            matches!(next(&mut node.keys, "the end").await, LinkEvent::Closed { .. }),
            "nothing came from the other"
        );
    }
}

/// The number that a body of these tests begins with.
fn number(event: &LinkEvent) -> (char, usize) {
    let LinkEvent::Delivered { body, .. } = event else { panic!("{event:?}") };
    let text = std::str::from_utf8(body).unwrap().trim_end();
    (text.chars().next().unwrap(), text[1..].parse().unwrap())
}

async fn send_numbered(link: &impl Link, sender: char, messages: usize) {
    for turn in 0..messages {
        let body = Bytes::from(format!("{sender}{turn}"));
        link.publish_sessions(body.clone()).await.unwrap();
        assert_eq!(link.publish(&Route::Keys, body).await.unwrap(), Published::Routed);
    }
}

async fn each_senders_messages_keep_their_order(ground: &impl Ground) {
    const MESSAGES: usize = 300;
    let farm = new_farm();
    let a = node(ground, &farm, "p", "a").await;
    let b = node(ground, &farm, "p", "b").await;
    let mut receiver = node(ground, &farm, "p", "c").await;
    let receive = async {
        for (events, plane) in [(&mut receiver.keys, "keys"), (&mut receiver.feed, "sessions")] {
            let mut expected = std::collections::HashMap::from([('a', 0), ('b', 0)]);
            for _ in 0..2 * MESSAGES {
                let (sender, turn) = number(&next(events, plane).await);
                let expected = expected.get_mut(&sender).unwrap();
                assert_eq!(turn, *expected, "{plane} of {sender}");
                *expected += 1;
            }
        }
    };
    // The senders' own inboxes fill up meanwhile, which must not matter to anybody else.
    tokio::join!(send_numbered(&a.link, 'a', MESSAGES), send_numbered(&b.link, 'b', MESSAGES), receive);
}

async fn a_slow_feed_loses_its_oldest_and_delays_no_key_message(ground: &impl Ground) {
    const MESSAGES: usize = 3_000;
    const BODY: usize = 4 << 10;
    const FEED: u32 = 64 * BODY as u32;
    const ROOM: usize = 4;
    let farm = new_farm();
    let mut slow = node_of(&ground.bus(FEED), &farm, "p", "slow", ROOM).await;
    let sender = node(ground, &farm, "q", "sender").await;
    let Node { link: pod, keys: _keys, feed: mut heard } = node(ground, &farm, "p", "fast").await;
    let publish = async {
        for turn in 0..MESSAGES {
            pod.publish_sessions(Bytes::from(format!("{:BODY$}", format!("s{turn}")))).await.unwrap();
        }
    };
    // The sender hears its own messages too: once it has the last, the bus has seen all, and the slow one's queue is as
    // full as it will get.
    let hear = async { while number(&next(&mut heard, "the sender's own messages").await).1 != MESSAGES - 1 {} };
    tokio::join!(publish, hear);
    let asked = Instant::now();
    sender.link.publish(&Route::Inbox(slow.link.inbox().to_owned()), "answer".into()).await.unwrap();
    let answer = delivered(Via::Inbox, slow.link.inbox(), "answer");
    assert_eq!(next(&mut slow.keys, "a key message past a full feed").await, answer);
    println!("a key message past a full feed took {:?}", asked.elapsed());

    let mut seen = Vec::new();
    while seen.last() != Some(&(MESSAGES - 1)) {
        let (_, turn) = number(&next(&mut slow.feed, &format!("the newest; so far {}", seen.len())).await);
        seen.push(turn);
    }
    assert!(seen.is_sorted(), "{seen:?}");
    // Whatever was in the node's hands, and one queue full of the newest. Draining and sending may overlap by a little.
    let most = ground.under_way() + ROOM + 64 + 1;
    println!("{} of {MESSAGES} messages survived a reader that did not read", seen.len());
    assert!((64..=most + 64).contains(&seen.len()), "{} messages, at most {most} expected", seen.len());
}

async fn closed_comes_once_and_last(ground: &impl Ground) {
    let farm = new_farm();
    for orderly in [true, false] {
        let mut a = node(ground, &farm, "p", "a").await;
        assert_eq!(a.link.try_lease(Seat::FIRST).await.unwrap(), LeaseAnswer::Granted);
        let Node { link, keys, feed } = &mut a;
        if orderly {
            link.close().await;
            link.close().await;
            let refused = link.publish(&Route::Keys, "ring".into()).await.expect_err("the link is closed");
            assert!(matches!(refused, BusError::Closed(_)), "{refused}");
            let refused = link.publish_sessions("s".into()).await.expect_err("the link is closed");
            assert!(matches!(refused, BusError::Closed(_)), "{refused}");
            let refused = link.try_lease(Seat::FIRST).await.expect_err("the link is closed");
            assert!(matches!(refused, BusError::Closed(_)), "{refused}");
            soon("a closed link is no longer waited for", link.writable()).await;
        }
        let (mut keys, mut feed) =
            (std::mem::replace(keys, mpsc::channel(1).1), std::mem::replace(feed, mpsc::channel(1).1));
        drop(a);
        let closed = LinkEvent::Closed { reason: "closed by this node".to_owned() };
        assert_eq!(next(&mut keys, "the end").await, closed);
        assert_eq!(soon("nothing after the end", keys.recv()).await, None);
        assert_eq!(soon("nothing after the end", feed.recv()).await, None);
    }
}

async fn a_link_closes_though_nobody_reads_its_events(ground: &impl Ground) {
    let farm = new_farm();
    let full = node_of(&ground.bus(1 << 20), &farm, "p", "full", 1).await;
    let other = node(ground, &farm, "p", "other").await;
    for turn in 0..50 {
        other.link.publish_sessions(Bytes::from(format!("s{turn}"))).await.unwrap();
        other.link.publish(&Route::Inbox(full.link.inbox().to_owned()), "x".into()).await.unwrap();
    }
    assert_eq!(full.link.try_lease(Seat::FIRST).await.unwrap(), LeaseAnswer::Granted);
    soon("closing", full.link.close()).await;
    let asked = || async { other.link.try_lease(Seat::FIRST).await.unwrap() };
    until("the lease of a link that is closed", LeaseAnswer::Granted, asked).await;
}

async fn queues_vanish_with_their_link(ground: &impl Ground) {
    let farm = new_farm();
    let a = node(ground, &farm, "p", "a").await;
    for orderly in [true, false] {
        let b = node(ground, &farm, "p", "b").await;
        let inbox = Route::Inbox(b.link.inbox().to_owned());
        assert_eq!(a.link.publish(&inbox, "x".into()).await.unwrap(), Published::Routed);
        if orderly && close_in_order(&b.link).await {
            assert_eq!(a.link.publish(&inbox, "x".into()).await.unwrap(), Published::Unroutable);
        } else {
            drop(b);
            until("an inbox whose link was dropped", Published::Unroutable, || async {
                a.link.publish(&inbox, "x".into()).await.unwrap()
            })
            .await;
        }
    }
}

async fn a_node_that_connects_again_gets_queues_of_its_own(ground: &impl Ground) {
    let farm = new_farm();
    let mut first = node(ground, &farm, "p", "a").await;
    let mut second = node(ground, &farm, "p", "a").await;
    assert_ne!(first.link.inbox(), second.link.inbox());
    first.link.publish(&Route::Keys, "ring".into()).await.unwrap();
    let ring = delivered(Via::Inbox, &format!("resumed.{farm}.keys"), "ring");
    assert_eq!(next(&mut first.keys, "the announcement").await, ring);
    assert_eq!(next(&mut second.keys, "the announcement").await, ring);
}

async fn bodies_of_any_size_arrive_whole(ground: &impl Ground) {
    let farm = new_farm();
    let mut a = node(ground, &farm, "p", "a").await;
    for size in [0, 1, 65_000, 65_528, 65_536, 200_000, 1 << 20] {
        let body: Bytes = (0..size).map(|at| (at % 251) as u8).collect();
        assert_eq!(a.link.publish(&Route::Keys, body.clone()).await.unwrap(), Published::Routed);
        a.link.publish_sessions(body.clone()).await.unwrap();
        for events in [&mut a.keys, &mut a.feed] {
            match next(events, "the body").await {
                LinkEvent::Delivered { body: got, .. } => assert!(got == body, "{size} bytes came as {}", got.len()),
                other => panic!("{other:?}"),
            }
        }
    }
}

macro_rules! contract {
    ($($name:ident)*) => {
        mod in_process {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(&super::OnHub::default()).await;
            })*
        }

        mod rabbitmq {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(&super::OnRabbitMq(super::Broker::shared())).await;
            })*
        }
    };
}

contract! {
    an_announcement_reaches_every_node_and_its_sender
    an_inbox_is_reached_directly_and_alone
    what_nobody_takes_is_unroutable
    one_node_at_a_time_holds_the_lease
    two_who_ask_at_once_do_not_both_get_the_lease
    a_lease_whose_queue_was_deleted_is_lost_and_can_be_taken_again
    a_link_whose_inbox_was_deleted_is_closed
    sessions_stay_in_their_pod
    a_feed_is_reached_directly_alone_and_in_order_with_what_goes_to_the_pod
    a_node_without_sessions_gets_none
    two_farms_do_not_mix
    each_senders_messages_keep_their_order
    a_slow_feed_loses_its_oldest_and_delays_no_key_message
    closed_comes_once_and_last
    a_link_closes_though_nobody_reads_its_events
    queues_vanish_with_their_link
    a_node_that_connects_again_gets_queues_of_its_own
    bodies_of_any_size_arrive_whole
}
