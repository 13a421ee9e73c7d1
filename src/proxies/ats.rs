//! The Unix socket on which Traffic Server's plugin meets its node.
//!
//! One task a connection reads, one writes. The writer of one proxy never waits for another, and a proxy that stops
//! reading loses its connection. Messages travel in frames: `proto::frame`.
//!
//! The socket's mode is 0666, so every process of the host can connect. Who it is says the kernel (`SO_PEERCRED`), and a
//! stranger is turned away before it is counted or a task begins: it costs one accept, one getsockopt and one close. After a
//! number of them the daemon takes no connection for a moment, and they wait in a short queue. Mode 0660 with the
//! proxy's group would keep them from connecting, but a daemon that is not root may give its socket only to a group that it is
//! in, and a member of the proxy's group can read the proxy's private keys on many hosts. Also, refusals would no
//! longer be counted and logged, which is how a user that is missing in `ats.users` is found.

mod accept;
mod codec;
mod connection;
mod refusal;
mod settings;

use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;

use super::ProxyPlane;
use crate::reason::ProxyReason;
pub use accept::Socket;
use connection::PluginConnections;
pub use settings::AtsSettings;

/// How many proxies may be connected at once.
pub const MAX_PROXIES: usize = 64;
/// How long a new connection may take to introduce itself.
pub(crate) const HELLO_WITHIN: Duration = Duration::from_secs(5);
/// How long a proxy may leave a message unread before it loses its connection.
pub const READS_WITHIN: Duration = Duration::from_secs(10);

/// Talks to one proxy over `stream` until either side ends it. Which user that is has been checked, or does not matter.
///
/// # Errors
/// The counted reason for which this side ended it.
pub async fn converse(stream: UnixStream, plane: Arc<ProxyPlane>) -> Result<(), ProxyReason> {
    let acceptor = PluginConnections::new(plane);
    acceptor.talk(stream, "a proxy").await.map_err(|refusal| refusal.reason())
}
