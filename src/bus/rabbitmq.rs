//! The bus on RabbitMQ (AMQP 0-9-1), with lapin.
//!
//! A link is two connections: one publishes, one consumes, so that a broker that blocks publishers does not hold up
//! what it delivers. While it holds the lease it has a third: see [`leases`]. lapin's own recovery stays off: a link that breaks is gone, and the caller opens another.
//!
//! lapin buffers what the broker sends without bound. So consumers acknowledge, and the broker sends at most a
//! prefetch ahead of that; what a node cannot take waits in its queue at the broker, which drops the oldest.

mod dial;
mod leases;
mod session_channel;
mod settings;
mod target;
mod tls;

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, Consumer, ErrorKind, Event, ExchangeKind, Queue};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::refusals::{NO_CHANNEL, remedy, with_remedy};
use super::{Bus, BusError, LeaseAnswer, Link, LinkEvent, LinkEvents, LinkSpec, Published, Route, Seat, Source};
use crate::hex::hex;
use dial::{Wire, Wired};
use leases::Leases;
use session_channel::SessionChannel;
pub use settings::{BadFile, BrokerFile, FileFault, RabbitMqSettings};
use target::Target;

/// Deliveries of the inbox, and of the leader's queue, that are under way to this node at any time.
pub(crate) const KEY_PREFETCH: u16 = 64;
/// Deliveries of the session feed under way at any time: with batches of 96 KiB at most 12 MiB, and enough for 2,500
/// batches a second over a round trip of 50 ms.
pub const FEED_PREFETCH: u16 = 128;

/// After so long without another delivery, what is owed is acknowledged; until then only every quarter of a prefetch.
const ACKNOWLEDGE_WITHIN: Duration = Duration::from_millis(50);
/// What an inbox or the leader's queue holds: messages, bytes, and for how long. Announcements and reports older than
/// that have been overtaken by later ones.
pub(crate) const KEY_QUEUE: (u32, u32, Duration) = (4_096, 16 << 20, Duration::from_secs(30));
/// What a session feed holds beside [`RabbitMqSettings::feed_max_bytes`]: messages (each costs the broker about a
/// kilobyte beside its body), and for how long.
pub(crate) const FEED_QUEUE: (u32, Duration) = (50_000, Duration::from_secs(60));
/// Largest AMQP frame. lapin keeps 32 of them for each direction of a connection.
const FRAME_MAX: u32 = 64 << 10;
/// Messages on the key plane that may wait for the broker's answer at the same time.
const KEY_CHANNELS: usize = 8;
const CLOSE_WITHIN: Duration = Duration::from_secs(1);
/// lapin reports some ways of closing by no event at all.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const CLOSED_HERE: &str = "closed by this node";
const REPLY_SUCCESS: u16 = 200;
/// The header that RabbitMQ's federation gives to what it takes from another broker.
const FEDERATED: &str = "x-received-from";
/// How the broker's words begin when another connection holds an exclusive queue.
const RESOURCE_LOCKED: &str = "405 ";

type EventStream = Pin<Box<dyn Stream<Item = Event> + Send>>;

/// A [`Bus`] on RabbitMQ.
#[derive(Clone, Debug)]
pub struct RabbitMq {
    settings: Arc<RabbitMqSettings>,
}

impl RabbitMq {
    /// A bus as `settings` say. Files are read at each connection, so that renewed certificates and passwords count.
    ///
    /// # Errors
    /// As [`RabbitMqSettings::check`].
    pub fn new(settings: RabbitMqSettings) -> Result<Self, BusError> {
        settings.check()?;
        Ok(Self { settings: Arc::new(settings) })
    }

    async fn open(&self, target: &Target, spec: &LinkSpec, events: &LinkEvents) -> Result<RabbitMqLink, String> {
        let (publishing, consuming) =
            tokio::try_join!(self.dial(target, &spec.node, "publish"), self.dial(target, &spec.node, "consume"))?;
        let declare = Declared::declare(&publishing.connection, &consuming.connection, spec, &self.settings);
        let declared = timeout(self.settings.connect_timeout, declare)
            .await
            .map_err(|_| {
                let within = self.settings.connect_timeout;
                format!("declarations: no answer within {within:?} (is this broker cut off from most of its cluster?)")
            })?
            .map_err(|error| advised(&error.to_string(), spec))?;
        Ok(RabbitMqLink::start(self, target, spec, publishing, consuming, declared, events.clone()))
    }
}

/// lapin's error in the broker's words where it has any.
fn words(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(said) => format!("{} {}", said.get_id(), said.get_message()),
        ErrorKind::IOError(error) => error.to_string(),
        ErrorKind::ChannelsLimitReached => NO_CHANNEL.to_owned(),
        ErrorKind::MissingHeartbeatError => "no heartbeat from the broker".to_owned(),
        _ => error.to_string(),
    }
}

/// What was refused while a link opened or was open, and what to do about it.
fn advised(said: &str, spec: &LinkSpec) -> String {
    with_remedy(said, remedy(said, &spec.names))
}

/// A refused operation is the broker's answer, or that of its limits; everything else means that the connection does not
/// work.
fn failed(operation: impl Into<String>, error: &lapin::Error) -> BusError {
    match error.is_amqp_soft_error() || matches!(error.kind(), ErrorKind::ChannelsLimitReached) {
        true => BusError::Refused { operation: operation.into(), reason: words(error) },
        false => BusError::Closed(words(error)),
    }
}

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

fn key_queue_arguments() -> FieldTable {
    let (messages, bytes, time_to_live) = KEY_QUEUE;
    queue_arguments(messages, bytes, time_to_live)
}

/// What a link has declared when it opens.
struct Declared {
    inbox: (String, Consumer),
    feed: Option<(String, Consumer)>,
    sessions: Channel,
}

impl Declared {
    async fn declare(
        publishing: &Connection,
        consuming: &Connection,
        spec: &LinkSpec,
        settings: &RabbitMqSettings,
    ) -> Result<Self, BusError> {
        let mut nonce = [0; 8];
        crate::random::try_fill(&mut nonce).map_err(|error| BusError::Unprepared(error.to_string()))?;
        let nonce = hex(&nonce);
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

async fn open_channel(connection: &Connection) -> Result<Channel, BusError> {
    connection.create_channel().await.map_err(|error| failed("open channel", &error))
}

/// Declares an exclusive queue.
async fn declare(channel: &Channel, queue: &str, arguments: FieldTable, auto_delete: bool) -> Result<Queue, BusError> {
    let name = ShortString::try_new(queue).map_err(|error| BusError::Unprepared(format!("queue {queue}: {error}")))?;
    let options = QueueDeclareOptions { exclusive: true, auto_delete, ..Default::default() };
    let declared = channel.queue_declare(name, options, arguments).await;
    declared.map_err(|error| failed(format!("declare queue {queue}"), &error))
}

/// Declares an exclusive queue and consumes from it.
async fn subscribe(
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

/// Where a message came from that another broker handed on: the name of its cluster, or else its URI, which federation
/// writes without the user. RabbitMQ puts each broker on the way in front of the one before. `None`: it was published here.
fn site_of(headers: &FieldTable) -> Option<String> {
    let way = headers.inner().get(FEDERATED)?;
    let first = match way {
        AMQPValue::FieldArray(way) => way.as_slice().last(),
        _ => None,
    };
    let text = |key: &str| match first {
        Some(AMQPValue::FieldTable(first)) => match first.inner().get(key)? {
            AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok().map(str::to_owned),
            _ => None,
        },
        _ => None,
    };
    Some(text("cluster-name").or_else(|| text("uri")).unwrap_or_default())
}

/// Hands deliveries on and acknowledges what found room, until the consumer ends; then says why, if there was a why.
async fn hand_on(mut consumer: Consumer, from: Source, prefetch: u16, sink: mpsc::Sender<LinkEvent>) -> Option<String> {
    // The last delivery that found room, and how many are not acknowledged up to it.
    let mut owed = None;
    loop {
        let next = match &owed {
            Some(_) => timeout(ACKNOWLEDGE_WITHIN, consumer.next()).await.ok(),
            None => Some(consumer.next().await),
        };
        let late = next.is_none();
        match next {
            Some(Some(Ok(delivery))) => {
                let route =
                    if delivery.exchange.as_str().is_empty() { &delivery.routing_key } else { &delivery.exchange };
                let headers = delivery.properties.headers().as_ref().filter(|_| from == Source::Inbox);
                let site = headers.and_then(site_of);
                let from = if site.is_some() { Source::Federated } else { from };
                let body = Bytes::from(delivery.data);
                let event = LinkEvent::Delivered { from, route: route.to_string(), body, site };
                if sink.send(event).await.is_err() {
                    // The node listens no more and is about to drop the link. Nothing is taken from the broker until then.
                    return std::future::pending().await;
                }
                owed = Some((delivery.acker, owed.map_or(1, |(_, count)| count + 1)));
            }
            Some(Some(Err(error))) => return Some(words(&error)),
            Some(None) => return None,
            None => {}
        }
        // One acknowledgement for many, and never between a delivery and its use: it costs this node and the broker
        // about as much as the delivery.
        if let Some((acker, _)) = owed.take_if(|(_, count)| late || *count >= prefetch / 4)
            && let Err(error) = acker.ack(BasicAckOptions { multiple: true }).await
        {
            return Some(words(&error));
        }
    }
}

/// How a link ends: the first reason stays.
#[derive(Debug, Default)]
struct Ending {
    stop: CancellationToken,
    reason: Mutex<Option<String>>,
}

impl Ending {
    fn because(&self, reason: impl Into<String>) {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| reason.into());
        self.stop.cancel();
    }

    fn reason(&self) -> String {
        let reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        reason.clone().unwrap_or_else(|| CLOSED_HERE.to_owned())
    }
}

struct Shared {
    spec: LinkSpec,
    publishing: Connection,
    consuming: Connection,
    wires: Mutex<Vec<Wire>>,
    sessions: SessionChannel,
    sessions_turn: tokio::sync::Mutex<()>,
    /// Idle channels with confirms. Each carries one message at a time: lapin tells which message was returned only by
    /// the order of answers, and the broker may answer for several at once.
    key_channels: Mutex<Vec<Channel>>,
    key_permits: Semaphore,
    leases: Leases,
    blocked: watch::Sender<bool>,
    ending: Ending,
    /// Close says goodbye to the broker, a drop or a fault does not wait for that.
    goodbye: CancellationToken,
    finished: CancellationToken,
    events: LinkEvents,
    tasks: TaskTracker,
}

/// A link of [`RabbitMq`].
pub struct RabbitMqLink {
    shared: Arc<Shared>,
    inbox: String,
    feed: Option<String>,
    peer: String,
}

impl fmt::Debug for RabbitMqLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitMqLink").field("peer", &self.peer).field("inbox", &self.inbox).finish_non_exhaustive()
    }
}

impl Bus for RabbitMq {
    type Link = RabbitMqLink;

    async fn connect(&self, spec: &LinkSpec, events: LinkEvents) -> Result<RabbitMqLink, BusError> {
        let mut faults = Vec::new();
        let mut targets = self.settings.targets()?;
        if let Some(here) = &spec.elsewhere_than {
            targets.retain(|target| target.shown != *here);
            if targets.is_empty() {
                return Err(BusError::Unreachable(format!("{here} is the only broker in the settings")));
            }
        }
        for target in targets {
            match self.open(&target, spec, &events).await {
                Ok(link) => return Ok(link),
                Err(fault) => faults.push(format!("{}: {}", target.shown, target.scrub(&fault))),
            }
        }
        Err(BusError::Unreachable(faults.join("; ")))
    }
}

impl RabbitMqLink {
    fn start(
        bus: &RabbitMq,
        target: &Target,
        spec: &LinkSpec,
        publishing: Wired,
        consuming: Wired,
        declared: Declared,
        events: LinkEvents,
    ) -> Self {
        let (ending, goodbye, tasks) = (Ending::default(), CancellationToken::new(), TaskTracker::new());
        let ends = leases::Ends { stop: ending.stop.clone(), goodbye: goodbye.clone(), tasks: tasks.clone() };
        let leases = Leases::new(bus.clone(), target.shown.clone(), spec.clone(), events.keys.clone(), ends);
        let said = [publishing.connection.events_listener().boxed(), consuming.connection.events_listener().boxed()];
        let shared = Arc::new(Shared {
            spec: spec.clone(),
            publishing: publishing.connection,
            consuming: consuming.connection,
            wires: Mutex::new(vec![publishing.wire, consuming.wire]),
            sessions: SessionChannel::new(declared.sessions),
            sessions_turn: tokio::sync::Mutex::default(),
            key_channels: Mutex::default(),
            key_permits: Semaphore::new(KEY_CHANNELS),
            leases,
            blocked: watch::Sender::new(false),
            ending,
            goodbye,
            finished: CancellationToken::new(),
            events,
            tasks,
        });
        let (inbox, consumer) = declared.inbox;
        let keys = shared.events.keys.clone();
        shared.consume(inbox.clone(), hand_on(consumer, Source::Inbox, KEY_PREFETCH, keys));
        let feed = declared.feed.map(|(feed, consumer)| {
            let sink = shared.events.feed.clone();
            shared.consume(feed.clone(), hand_on(consumer, Source::Feed, FEED_PREFETCH, sink));
            feed
        });
        tokio::spawn(Arc::clone(&shared).supervise(said));
        Self { shared, inbox, feed, peer: target.shown.clone() }
    }
}

impl Shared {
    /// Runs the consumer of a queue without which the link is worth nothing.
    fn consume(self: &Arc<Self>, queue: String, consumer: impl Future<Output = Option<String>> + Send + 'static) {
        let shared = Arc::clone(self);
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = shared.ending.stop.cancelled() => {}
                why = consumer => shared.ending.because(match why {
                    Some(why) if !shared.consuming.status().connected() => format!("consuming connection: {why}"),
                    Some(why) => format!("consuming from {queue}: {why}"),
                    None => format!("queue {queue} was deleted"),
                }),
            }
        });
    }

    /// Watches both connections until the link ends, ends it, and says so.
    async fn supervise(self: Arc<Self>, [mut publishing, mut consuming]: [EventStream; 2]) {
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let said = tokio::select! {
                biased;
                () = self.ending.stop.cancelled() => break,
                Some(said) = publishing.next() => Some(said),
                Some(said) = consuming.next() => Some(said),
                _ = look.tick() => None,
            };
            // The consuming connection publishes nothing, so it is never blocked.
            let why = match said {
                Some(Event::ConnectionBlocked(_)) => {
                    self.blocked.send_replace(true);
                    continue;
                }
                Some(Event::ConnectionUnblocked) => {
                    self.blocked.send_replace(false);
                    continue;
                }
                Some(Event::Error(error)) => words(&error),
                _ => "closed by the broker".to_owned(),
            };
            // A refused operation closes its channel, is reported as an error too, and is its caller's business.
            if !self.publishing.status().connected() {
                let why = advised(&why, &self.spec);
                self.ending.because(format!("publishing connection: {why}"));
            } else if !self.consuming.status().connected() {
                self.ending.because(format!("consuming connection: {why}"));
            } else if self.sessions.is_closed() {
                self.sessions_refused(why);
            }
        }
        // Whoever waits to write shall find the link closed.
        self.blocked.send_replace(false);
        if self.goodbye.is_cancelled() {
            let goodbye = async {
                // One may be gone already, and the other shall be closed all the same.
                let _ = tokio::join!(
                    self.publishing.close(REPLY_SUCCESS, "OK".into()),
                    self.consuming.close(REPLY_SUCCESS, "OK".into())
                );
            };
            // What is not closed in time is cut.
            let _ = timeout(CLOSE_WITHIN, goodbye).await;
        }
        self.cut();
        self.finished.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        let (keys, reason) = (self.events.keys.clone(), self.ending.reason());
        drop(self);
        // Nobody listens any more: then nobody misses it.
        drop(keys.send(LinkEvent::Closed { reason }).await);
    }

    /// An exchange that is gone is declared by the next link. All else that is refused on the session plane, a permission
    /// that is missing, say, would be refused there too, and the key plane does not suffer for it.
    fn sessions_refused(&self, why: String) {
        if why.contains("NOT_FOUND") {
            let why = advised(&why, &self.spec);
            self.ending.because(format!("publishing to {}: {why}", self.spec.names.sessions));
        } else {
            self.sessions.refused(why);
        }
    }

    fn cut(&self) {
        self.wires.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// `operation`, unless the link ends before.
    async fn while_open<T>(&self, operation: impl Future<Output = Result<T, BusError>>) -> Result<T, BusError> {
        tokio::select! {
            biased;
            () = self.ending.stop.cancelled() => Err(BusError::Closed(self.ending.reason())),
            result = operation => result,
        }
    }

    async fn key_channel(&self) -> Result<Channel, BusError> {
        loop {
            let idle = self.key_channels.lock().unwrap_or_else(PoisonError::into_inner).pop();
            match idle {
                Some(channel) if channel.status().connected() => return Ok(channel),
                Some(_) => {}
                None => break,
            }
        }
        let channel = open_channel(&self.publishing).await?;
        let confirming = channel.confirm_select(ConfirmSelectOptions::default()).await;
        confirming.map_err(|error| failed("select confirms", &error))?;
        Ok(channel)
    }

    async fn publish(&self, to: &Route, body: &Bytes) -> Result<Published, BusError> {
        let name = self.spec.names.of(to);
        let long = ShortString::try_new(name).map_err(|error| refused("publish", &error))?;
        let (exchange, routing_key) = match to {
            Route::Keys => (long, ShortString::default()),
            Route::Leader(_) | Route::Inbox(_) => (ShortString::default(), long),
        };
        // Closed only with the link, and then while_open answers.
        let _permit = self.key_permits.acquire().await.map_err(|_| BusError::Closed(self.ending.reason()))?;
        let channel = self.key_channel().await?;
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let sent = channel.basic_publish(exchange, routing_key, options, body, BasicProperties::default()).await;
        let answered = match sent {
            Ok(confirm) => confirm.await,
            Err(error) => Err(error),
        };
        let answer = answered.map_err(|error| {
            let error = failed(format!("publish to {name}"), &error);
            if matches!((to, &error), (Route::Keys, BusError::Refused { .. })) {
                // The exchange is gone, or the permission: a new link declares, or says what it may not.
                self.ending.because(error.to_string());
            }
            error
        })?;
        // Only now is the channel free for the next. Had this future been dropped, the channel would be as well.
        self.key_channels.lock().unwrap_or_else(PoisonError::into_inner).push(channel);
        match answer {
            Confirmation::Ack(None) => Ok(Published::Routed),
            Confirmation::Ack(Some(_)) => Ok(Published::Unroutable),
            Confirmation::Nack(_) => Ok(Published::Nacked),
            Confirmation::NotRequested => Err(refused(&format!("publish to {name}"), &"the channel has no confirms")),
        }
    }

    async fn publish_sessions(&self, body: &Bytes) -> Result<(), BusError> {
        self.publish_transient(self.spec.names.sessions.as_str().into(), ShortString::default(), body).await
    }

    async fn publish_to_feed(&self, feed: &str, body: &Bytes) -> Result<(), BusError> {
        let queue = ShortString::try_new(feed).map_err(|error| refused("publish", &error))?;
        self.publish_transient(ShortString::default(), queue, body).await
    }

    /// On the session plane's one channel, so that everything on it keeps its order.
    async fn publish_transient(
        &self,
        exchange: ShortString,
        routing_key: ShortString,
        body: &Bytes,
    ) -> Result<(), BusError> {
        let _turn = self.sessions_turn.lock().await;
        let channel = self.sessions.get(&self.publishing).await?;
        let mut blocked = self.blocked.subscribe();
        let sending = channel.basic_publish(
            exchange,
            routing_key,
            BasicPublishOptions::default(),
            body,
            BasicProperties::default(),
        );
        tokio::select! {
            biased;
            _ = blocked.wait_for(|blocked| *blocked) => Err(BusError::Blocked),
            sent = sending => {
                sent.map_err(|error| failed("publish on the session plane", &error))?;
                Ok(())
            }
        }
    }
}

fn refused(operation: &str, reason: &dyn fmt::Display) -> BusError {
    BusError::Refused { operation: operation.to_owned(), reason: reason.to_string() }
}

impl Link for RabbitMqLink {
    fn inbox(&self) -> &str {
        &self.inbox
    }

    fn feed(&self) -> Option<&str> {
        self.feed.as_deref()
    }

    fn peer(&self) -> &str {
        &self.peer
    }

    async fn writable(&self) {
        // Fails only if the sender is gone, which this link holds.
        drop(self.shared.blocked.subscribe().wait_for(|blocked| !*blocked).await);
    }

    fn is_blocked(&self) -> bool {
        *self.shared.blocked.borrow()
    }

    async fn publish(&self, to: &Route, body: Bytes) -> Result<Published, BusError> {
        self.shared.while_open(self.shared.publish(to, &body)).await
    }

    async fn publish_sessions(&self, body: Bytes) -> Result<(), BusError> {
        self.shared.while_open(self.shared.publish_sessions(&body)).await
    }

    async fn publish_to_feed(&self, feed: &str, body: Bytes) -> Result<(), BusError> {
        self.shared.while_open(self.shared.publish_to_feed(feed, &body)).await
    }

    async fn try_lease(&self, seat: Seat) -> Result<LeaseAnswer, BusError> {
        self.shared.while_open(self.shared.leases.try_take(seat)).await
    }

    async fn release_lease(&self, seat: Seat) -> Result<(), BusError> {
        let release = async {
            self.shared.leases.release(seat).await;
            Ok(())
        };
        self.shared.while_open(release).await
    }

    async fn check(&self) -> Result<(), BusError> {
        self.shared.while_open(self.shared.leases.check()).await
    }

    async fn close(&self) {
        self.shared.goodbye.cancel();
        self.shared.ending.because(CLOSED_HERE);
        self.shared.finished.cancelled().await;
    }
}

impl Drop for RabbitMqLink {
    fn drop(&mut self) {
        self.shared.ending.because(CLOSED_HERE);
        if !self.shared.goodbye.is_cancelled() {
            self.shared.cut();
        }
    }
}

#[cfg(test)]
mod tests;
