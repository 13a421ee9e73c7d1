//! What the broker does on its own, driven by lapin as its documentation shows: the measure of everything else.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer, ExchangeKind};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use crate::report::Percentiles;

/// Of each round of latencies: buffers grow, connections warm up.
pub const LEAD: Duration = Duration::from_millis(500);

fn runtime() -> Runtime {
    Builder::new_multi_thread().enable_all().build().expect("a runtime")
}

async fn channel(uri: &str) -> (Connection, Channel) {
    let connection = Connection::connect(uri, ConnectionProperties::default()).await.expect("the broker");
    let channel = connection.create_channel().await.expect("a channel");
    (connection, channel)
}

async fn consumer(channel: &Channel, exchange: &str) -> Consumer {
    let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare("".into(), exclusive, FieldTable::default()).await.expect("a queue");
    let name = queue.name().clone();
    let bind = channel.queue_bind(
        name.clone(),
        exchange.into(),
        "".into(),
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    bind.await.expect("a binding");
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    channel.basic_consume(name, "".into(), options, FieldTable::default()).await.expect("a consumer")
}

async fn publish(channel: &Channel, exchange: &str, message: &[u8]) {
    let sent = channel.basic_publish(
        exchange.into(),
        "".into(),
        BasicPublishOptions::default(),
        message,
        BasicProperties::default(),
    );
    sent.await.expect("a message sent");
}

async fn fanout(channel: &Channel, name: &str) {
    let options = ExchangeDeclareOptions { auto_delete: true, ..ExchangeDeclareOptions::default() };
    channel
        .exchange_declare(name.into(), ExchangeKind::Fanout, options, FieldTable::default())
        .await
        .expect("an exchange");
}

/// Messages a second of `bytes` bytes, published as fast as it goes, until each of `consumers` has all `messages`.
pub fn rate(uri: &str, messages: usize, bytes: usize, consumers: usize) -> f64 {
    runtime().block_on(async {
        let (_connection, sender) = channel(uri).await;
        fanout(&sender, "raw.rate").await;
        let mut receiving = JoinSet::new();
        let mut connections = Vec::new();
        for _ in 0..consumers {
            let (connection, receiver) = channel(uri).await;
            let mut feed = consumer(&receiver, "raw.rate").await;
            connections.push((connection, receiver));
            receiving.spawn(async move {
                for _ in 0..messages {
                    feed.next().await.expect("the feed goes on").expect("a delivery");
                }
            });
        }
        let message = vec![0x5a; bytes];
        let start = Instant::now();
        for _ in 0..messages {
            publish(&sender, "raw.rate", &message).await;
        }
        while let Some(received) = receiving.join_next().await {
            received.expect("a consumer");
        }
        messages as f64 / start.elapsed().as_secs_f64()
    })
}

/// From publish to consume, `per_second` messages of `bytes` bytes for `lasting`, to one consumer on a connection of its own, by
/// a fanout exchange that brings each back to its sender as well: the way of a session in a pod of two.
/// With `hops`, each message travels over a Unix socket before and after as well. The first [`LEAD`] does not count.
pub fn latency(uri: &str, per_second: u32, bytes: usize, lasting: Duration, hops: bool) -> Percentiles {
    runtime().block_on(async {
        let (_sending, sender) = channel(uri).await;
        fanout(&sender, "raw.latency").await;
        let (_receiving, receiver) = channel(uri).await;
        let mut feed = consumer(&receiver, "raw.latency").await;
        // What a node publishes comes back to it, too.
        let mut echo = consumer(&sender, "raw.latency").await;
        tokio::spawn(async move { while echo.next().await.is_some() {} });
        let origin = Instant::now();
        let (mut first_hop, mut entry) = tokio::net::UnixStream::pair().expect("a socket pair");
        let (mut exit, mut last_hop) = tokio::net::UnixStream::pair().expect("a socket pair");
        let lead = (LEAD.as_secs_f64() * f64::from(per_second)) as usize;
        let count = lead + (lasting.as_secs_f64() * f64::from(per_second)) as usize;
        let arrived = move |stamp: &[u8], delays: &mut Vec<Duration>| {
            let sent = Duration::from_nanos(u64::from_be_bytes(stamp[..8].try_into().expect("a stamp")));
            delays.push(origin.elapsed().saturating_sub(sent));
        };
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        // As a plugin's socket to its daemon, and a daemon's to its plugin, would be.
        let relay = tokio::spawn({
            let sender = sender.clone();
            async move {
                let mut message = vec![0; bytes];
                while entry.read_exact(&mut message).await.is_ok() {
                    publish(&sender, "raw.latency", &message).await;
                }
            }
        });
        let receive = tokio::spawn(async move {
            let mut delays = Vec::with_capacity(count);
            for _ in 0..count {
                let delivery = feed.next().await.expect("the feed goes on").expect("a delivery");
                if hops {
                    exit.write_all(&delivery.data).await.expect("the last hop reads");
                } else {
                    arrived(&delivery.data, &mut delays);
                }
            }
            delays
        });
        let replica = tokio::spawn(async move {
            let mut delays = Vec::with_capacity(count);
            let mut message = vec![0; bytes];
            while hops && delays.len() < count {
                last_hop.read_exact(&mut message).await.expect("the last hop goes on");
                arrived(&message, &mut delays);
            }
            delays
        });
        let mut message = vec![0; bytes];
        let mut pace = tokio::time::interval(Duration::from_secs(1) / per_second);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
        for _ in 0..count {
            pace.tick().await;
            let stamp = u64::try_from(origin.elapsed().as_nanos()).expect("a short run");
            message[..8].copy_from_slice(&stamp.to_be_bytes());
            if hops {
                first_hop.write_all(&message).await.expect("the first hop reads");
            } else {
                publish(&sender, "raw.latency", &message).await;
            }
        }
        drop(first_hop);
        let (received, replicated) = (receive.await.expect("a consumer"), replica.await.expect("a replica"));
        relay.await.expect("the relay");
        Percentiles::of(if hops { replicated } else { received }.split_off(lead))
    })
}
