//! Publishes on a link: messages of the key plane with confirms, a channel for each that is under way; sessions without, on
//! one channel in order.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use tokio::sync::{Mutex as AsyncMutex, Semaphore, watch};

use super::declare::open_channel;
use super::errors::{failed, refused};
use super::session_channel::SessionChannel;
use crate::bus::BusError;
use crate::bus::ending::Ending;
use crate::routes::{Names, Published, Route};

/// Messages on the key plane that may wait for the broker's answer at the same time.
const KEY_CHANNELS: usize = 8;

/// What publishes on a link, over a connection of its own.
pub(super) struct Publisher {
    pub(super) connection: Connection,
    pub(super) sessions: SessionChannel,
    sessions_turn: AsyncMutex<()>,
    /// Idle channels with confirms. Each carries one message at a time: lapin tells which message was returned only by
    /// the order of answers, and the broker may answer for several at once.
    key_channels: Mutex<Vec<Channel>>,
    key_permits: Semaphore,
    /// Whether the broker blocks publishers.
    pub(super) blocked: watch::Sender<bool>,
    names: Names,
    ending: Arc<Ending>,
}

impl Publisher {
    /// Publishes over `connection`, sessions on a channel of it, and ends a link whose keys exchange takes nothing.
    pub(super) fn new(connection: Connection, sessions: Channel, names: Names, ending: Arc<Ending>) -> Self {
        Self {
            connection,
            sessions: SessionChannel::new(sessions),
            sessions_turn: AsyncMutex::default(),
            key_channels: Mutex::default(),
            key_permits: Semaphore::new(KEY_CHANNELS),
            blocked: watch::Sender::new(false),
            names,
            ending,
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
        let channel = open_channel(&self.connection).await?;
        let confirming = channel.confirm_select(ConfirmSelectOptions::default()).await;
        confirming.map_err(|error| failed("select confirms", &error))?;
        Ok(channel)
    }

    /// As [`crate::bus::Link::publish`].
    pub(super) async fn publish(&self, to: &Route, body: &Bytes) -> Result<Published, BusError> {
        let name = self.names.of(to);
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

    /// As [`crate::bus::Link::publish_sessions`].
    pub(super) async fn publish_sessions(&self, body: &Bytes) -> Result<(), BusError> {
        self.publish_transient(self.names.sessions.as_str().into(), ShortString::default(), body).await
    }

    /// As [`crate::bus::Link::publish_to_feed`].
    pub(super) async fn publish_to_feed(&self, feed: &str, body: &Bytes) -> Result<(), BusError> {
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
        let channel = self.sessions.get(&self.connection).await?;
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
