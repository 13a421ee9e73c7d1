//! The bus on RabbitMQ (AMQP 0-9-1), with lapin.
//!
//! A link is two connections: one publishes, one consumes, so that a broker that blocks publishers does not hold up
//! what it delivers. While it holds the lease it has a third: see [`leases`]. lapin's own recovery stays off: a link that breaks is gone, and the caller opens another.
//!
//! lapin buffers what the broker sends without bound. So consumers acknowledge, and the broker sends at most a
//! prefetch ahead of that; what a node cannot take waits in its queue at the broker, which drops the oldest.

mod consume;
mod declare;
mod dial;
mod errors;
mod leases;
mod link;
mod publish;
mod session_channel;
mod settings;
mod target;
mod tls;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::{Bus, BusError, LinkEvents, LinkSpec};
use declare::Declared;
pub use declare::FEED_PREFETCH;
use errors::advised;
pub use link::RabbitMqLink;
pub(crate) use settings::BadFile;
#[cfg(feature = "daemon")]
pub(crate) use settings::BrokerFile;
pub use settings::RabbitMqSettings;
use target::BrokerTarget;

/// Largest AMQP frame. lapin keeps 32 of them for each direction of a connection.
const FRAME_MAX: u32 = 64 << 10;
const CLOSE_WITHIN: Duration = Duration::from_secs(1);
/// lapin reports some ways of closing by no event at all.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const REPLY_SUCCESS: u16 = 200;

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

    async fn open(&self, target: &BrokerTarget, spec: &LinkSpec, events: &LinkEvents) -> Result<RabbitMqLink, String> {
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

#[cfg(test)]
mod tests;
