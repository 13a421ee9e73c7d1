//! Hands on what a queue delivers, and acknowledges it.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use lapin::Consumer;
use lapin::options::BasicAckOptions;
use lapin::types::{AMQPValue, FieldTable};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::errors::words;
use crate::bus::{LinkEvent, MOST_BODY_BYTES};
use crate::routes::Via;

/// After so long without another delivery, what is owed is acknowledged; until then only every quarter of a prefetch.
const ACKNOWLEDGE_WITHIN: Duration = Duration::from_millis(50);
/// The header that RabbitMQ's federation gives to what it takes from another broker.
const FEDERATED: &str = "x-received-from";

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

/// What a node may be handed of a message. A client that may write to one of its queues may write messages as large as the broker
/// takes, by default 16 MiB, and 128 MiB before 4.0: of those the node gets one byte more than it opens, and refuses that, counted. What it keeps
/// is of that size.
fn within_bounds(data: Vec<u8>) -> Bytes {
    if data.len() > MOST_BODY_BYTES { Bytes::copy_from_slice(&data[..=MOST_BODY_BYTES]) } else { Bytes::from(data) }
}

/// Hands deliveries on and acknowledges what found room, until the consumer ends; then says why, if there was a why.
pub(super) async fn hand_on(
    mut consumer: Consumer,
    from: Via,
    prefetch: u16,
    sink: mpsc::Sender<LinkEvent>,
) -> Option<String> {
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
                let headers = delivery.properties.headers().as_ref().filter(|_| from == Via::Inbox);
                let site = headers.and_then(site_of);
                let from = if site.is_some() { Via::Federated } else { from };
                let body = within_bounds(delivery.data);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_message_that_no_node_opens_one_byte_more_is_handed_on_than_one_opens() {
        for (length, handed) in [
            (0, 0),
            (MOST_BODY_BYTES - 1, MOST_BODY_BYTES - 1),
            (MOST_BODY_BYTES, MOST_BODY_BYTES),
            (MOST_BODY_BYTES + 1, MOST_BODY_BYTES + 1),
            (8 * MOST_BODY_BYTES, MOST_BODY_BYTES + 1),
        ] {
            assert_eq!(within_bounds(vec![7; length]).len(), handed, "of {length} bytes");
        }
    }
}
