//! The queue of a lease in other hands than a node's.

use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ConnectionProperties};
use tokio::runtime::Runtime;

/// A connection that holds the queue of a lease. Dropping it frees the queue.
pub struct HeldSeat {
    runtime: Runtime,
    connection: Connection,
}

impl HeldSeat {
    /// Takes `queue`, which is free, and lets messages in.
    pub fn take(uri: &str, queue: &str) -> Self {
        Self::take_with(uri, queue, FieldTable::default())
    }

    /// The same, and the broker refuses every message for it (`basic.nack`): to a farm that is a queue of a broker that is
    /// dead, on every version of RabbitMQ.
    pub fn take_as_if_dead(uri: &str, queue: &str) -> Self {
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-length".into(), AMQPValue::LongInt(0));
        arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        Self::take_with(uri, queue, arguments)
    }

    fn take_with(uri: &str, queue: &str, arguments: FieldTable) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let connection = runtime.block_on(async {
            let connection = Connection::connect(uri, ConnectionProperties::default()).await.expect("the broker");
            let channel = connection.create_channel().await.expect("a channel");
            let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
            channel.queue_declare(queue.into(), options, arguments).await.expect("the queue is free");
            connection
        });
        Self { runtime, connection }
    }
}

impl Drop for HeldSeat {
    fn drop(&mut self) {
        // It may be gone with the broker.
        let _gone = self.runtime.block_on(self.connection.close(200, "enough".into()));
    }
}
