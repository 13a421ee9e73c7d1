//! A link leaves neither threads nor sockets behind, however it ends. Alone in its binary, so that it can count both.

use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use resumed::internals::bus::{Bus, Link, LinkEvents, LinkSpec, RabbitMqLink};
use resumed::internals::routes::{Names, Route};
use resumed::{BusError, RabbitMq, RabbitMqSettings};
use testkit::broker::Broker;
use tokio::sync::mpsc;
use tokio::time::timeout;

async fn link(uri: &str) -> Result<RabbitMqLink, BusError> {
    let spec = LinkSpec { names: Names::new("f", "p"), node: "a".to_owned(), sessions: true, elsewhere_than: None };
    let (keys, _) = mpsc::channel(1);
    let (feed, _) = mpsc::channel(1);
    let uris = vec![uri.parse().expect("a URI")];
    let settings =
        RabbitMqSettings { uris, connect_timeout: Duration::from_millis(300), ..RabbitMqSettings::default() };
    RabbitMq::new(settings)?.connect(&spec, LinkEvents { keys, feed }).await
}

fn lapin_threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with("lapin")).count()
}

fn sockets() -> usize {
    let files = fs::read_dir("/proc/self/fd").unwrap();
    let targets = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count()
}

async fn settle(what: &str, threads: usize, at_most: usize) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while lapin_threads() > threads || sockets() > at_most {
        let seen = (lapin_threads(), sockets());
        assert!(
            Instant::now() < deadline,
            "{what}: {seen:?} threads and sockets stay, before it {threads} and {at_most}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_leaves_no_threads_and_sockets() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_uri = format!("amqp://127.0.0.1:{}", silent.local_addr().unwrap().port());
    let broker = Broker::start();
    // The first link makes what all links share, such as the runtime that carries lapin's own threads.
    link(&broker.uri()).await.unwrap().close().await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while lapin_threads() > 0 {
        assert!(Instant::now() < deadline, "the first link's threads stay");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let sockets = sockets();

    for _ in 0..5 {
        link(&broker.uri()).await.unwrap().close().await;
    }
    settle("closed", 0, sockets).await;
    for _ in 0..5 {
        drop(link(&broker.uri()).await.unwrap());
    }
    settle("dropped", 0, sockets).await;
    for _ in 0..3 {
        link(&silent_uri).await.expect_err("nobody answers");
    }
    settle("not answered", 0, sockets).await;
    for millis in [0, 1, 2, 5, 10, 20] {
        drop(timeout(Duration::from_millis(millis), link(&broker.uri())).await);
    }
    settle("abandoned on the way", 0, sockets).await;
    link(&broker.uri_as("guest", "wrong", "/")).await.expect_err("the password is wrong");
    settle("refused", 0, sockets).await;
    let open = link(&broker.uri()).await.unwrap();
    assert_eq!(lapin_threads(), 2, "one for each connection");
    broker.kill();
    while open.publish(&Route::Keys, "x".into()).await.is_ok() {}
    settle("the broker was killed", 0, sockets).await;
    drop(open);
}
