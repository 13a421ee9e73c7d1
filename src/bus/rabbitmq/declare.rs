//! What a link and a lease declare: exchanges, queues and their limits, consumers.

use std::collections::BTreeMap;
use std::time::Duration;

use lapin::options::{
    BasicConsumeOptions, BasicQosOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection, Consumer, ExchangeKind, Queue};

use super::errors::failed;
use super::settings::RabbitMqSettings;
use crate::bus::{BusError, LinkSpec};
use crate::hex::hex;
use crate::random;

/// Deliveries of the inbox, and of the leader's queue, that are under way to this node at any time.
pub(super) const KEY_PREFETCH: u16 = 16;
/// Deliveries of the session feed under way at any time: with batches of 96 KiB at most 12 MiB, and enough for 2,500
/// batches a second over a round trip of 50 ms.
pub const FEED_PREFETCH: u16 = 128;
/// What an inbox or the leader's queue holds: messages, bytes, and for how long. Announcements and reports older than
/// that have been overtaken by later ones.
pub(super) const KEY_QUEUE: (u32, u32, Duration) = (4_096, 16 << 20, Duration::from_secs(30));
/// What a session feed holds beside [`RabbitMqSettings::feed_max_bytes`]: messages (each costs the broker about a
/// kilobyte beside its body), and for how long.
pub(super) const FEED_QUEUE: (u32, Duration) = (50_000, Duration::from_secs(60));

fn queue_arguments(messages: u32, bytes: u32, time_to_live: Duration) -> FieldTable {
    let millis = u32::try_from(time_to_live.as_millis()).unwrap_or(u32::MAX);
    FieldTable::from(BTreeMap::from([
        (ShortString::from("x-queue-type"), AMQPValue::LongString("classic".into())),
        ("x-max-length".into(), AMQPValue::LongLongInt(messages.into())),
        ("x-max-length-bytes".into(), AMQPValue::LongLongInt(bytes.into())),
        ("x-overflow".into(), AMQPValue::LongString("drop-head".into())),
        ("x-message-ttl".into(), AMQPValue::LongLongInt(millis.into())),
    ]))
}

pub(super) fn key_queue_arguments() -> FieldTable {
    let (messages, bytes, time_to_live) = KEY_QUEUE;
    queue_arguments(messages, bytes, time_to_live)
}

/// What a link has declared when it opens.
pub(super) struct Declared {
    pub(super) inbox: (String, Consumer),
    pub(super) feed: Option<(String, Consumer)>,
    pub(super) sessions: Channel,
}

impl Declared {
    pub(super) async fn declare(
        publishing: &Connection,
        consuming: &Connection,
        spec: &LinkSpec,
        settings: &RabbitMqSettings,
    ) -> Result<Self, BusError> {
        let nonce = nonce()?;
        let sessions = open_channel(publishing).await?;
        let channel = open_channel(consuming).await?;
        for exchange in [&spec.names.keys].into_iter().chain(spec.sessions.then_some(&spec.names.sessions)) {
            let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
            let declared = channel.exchange_declare(
                exchange.as_str().into(),
                ExchangeKind::Fanout,
                options,
                FieldTable::default(),
            );
            declared.await.map_err(|error| failed(format!("declare exchange {exchange}"), &error))?;
        }
        let inbox = spec.names.inbox(&spec.node, &nonce);
        let bound = Some(spec.names.keys.as_str());
        let consumer = subscribe(&channel, &inbox, key_queue_arguments(), true, bound, KEY_PREFETCH).await?;
        let inbox = (inbox, consumer);
        let feed = if spec.sessions {
            let feed = spec.names.feed(&spec.node, &nonce);
            let (messages, time_to_live) = FEED_QUEUE;
            let arguments = queue_arguments(messages, settings.feed_max_bytes, time_to_live);
            let bound = Some(spec.names.sessions.as_str());
            // A channel of its own: the prefetch of one must not count for the other.
            let channel = open_channel(consuming).await?;
            let consumer = subscribe(&channel, &feed, arguments, true, bound, FEED_PREFETCH).await?;
            Some((feed, consumer))
        } else {
            None
        };
        Ok(Self { inbox, feed, sessions })
    }
}

/// What tells the queues of one link from those of all others of the same node.
///
/// # Errors
/// If this host has no randomness to give.
pub(super) fn nonce() -> Result<String, BusError> {
    let mut nonce = [0; 8];
    random::try_fill(&mut nonce).map_err(|error| BusError::Unprepared(error.to_string()))?;
    Ok(hex(&nonce))
}

pub(super) async fn open_channel(connection: &Connection) -> Result<Channel, BusError> {
    connection.create_channel().await.map_err(|error| failed("open channel", &error))
}

/// Declares an exclusive queue.
pub(super) async fn declare(
    channel: &Channel,
    queue: &str,
    arguments: FieldTable,
    auto_delete: bool,
) -> Result<Queue, BusError> {
    let name = ShortString::try_new(queue).map_err(|error| BusError::Unprepared(format!("queue {queue}: {error}")))?;
    let options = QueueDeclareOptions { exclusive: true, auto_delete, ..Default::default() };
    let declared = channel.queue_declare(name, options, arguments).await;
    declared.map_err(|error| failed(format!("declare queue {queue}"), &error))
}

/// Declares an exclusive queue and consumes from it.
pub(super) async fn subscribe(
    channel: &Channel,
    queue: &str,
    arguments: FieldTable,
    auto_delete: bool,
    exchange: Option<&str>,
    prefetch: u16,
) -> Result<Consumer, BusError> {
    let name = declare(channel, queue, arguments, auto_delete).await?.name().clone();
    if let Some(exchange) = exchange {
        let bound = channel.queue_bind(
            name.clone(),
            exchange.into(),
            ShortString::default(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        bound.await.map_err(|error| failed(format!("bind queue {queue} to exchange {exchange}"), &error))?;
    }
    let limited = channel.basic_qos(prefetch, BasicQosOptions { global: false }).await;
    limited.map_err(|error| failed("set prefetch", &error))?;
    let options = BasicConsumeOptions { exclusive: true, ..Default::default() };
    let consuming = channel.basic_consume(name, ShortString::default(), options, FieldTable::default()).await;
    consuming.map_err(|error| failed(format!("consume from queue {queue}"), &error))
}
