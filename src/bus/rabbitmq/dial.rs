//! One connection to one broker: TCP, TLS, login.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_compat::Compat;
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{AsyncTcpStream, Connection, ConnectionProperties};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::RabbitMq;
use super::errors::words;
use super::target::BrokerTarget;
use super::tls::{self, CertificateRefusal};
use crate::bus::address::certified;
use crate::bus::refusals::{SILENT_AT_LOGIN, remedy_at_login, with_remedy};

/// Our own handle on a connection's socket. Dropping it cuts the connection: lapin's thread ends, and the broker sees
/// the connection closed, whatever either was waiting for.
pub(super) struct Wire(std::net::TcpStream);

impl Drop for Wire {
    fn drop(&mut self) {
        // Fails only if the peer was faster.
        drop(self.0.shutdown(Shutdown::Both));
    }
}

/// An open AMQP connection. The wire comes first: a dropped connection asks the broker to close, a cut one is closed.
pub(super) struct Wired {
    pub(super) wire: Wire,
    pub(super) connection: Connection,
}

impl RabbitMq {
    /// Connects and logs in, as connection `role` of `node`. The error is for people.
    pub(super) async fn dial(&self, target: &BrokerTarget, node: &str, role: &str) -> Result<Wired, String> {
        let within = self.settings.connect_timeout;
        let (wire, stream) = match timeout(within, self.transport(&target.uri)).await {
            Ok(stream) => stream?,
            Err(_) => return Err(format!("connect: no answer within {within:?}")),
        };
        let properties = ConnectionProperties::default()
            .with_connection_name(format!("resumed {node} {role}").into())
            .with_client_property("product".into(), "resumed".into())
            .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
        let runtime = lapin::runtime::default_runtime().map_err(|error| error.to_string())?;
        // lapin asks for a stream once: it retries only with a backoff that was configured.
        let stream = Mutex::new(Some(stream));
        let handed = async move |_, _| {
            let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
            stream.ok_or_else(|| lapin::Error::from(io::Error::from(io::ErrorKind::NotConnected)))
        };
        let login = Connection::connector(AMQPUri::clone(&target.uri), runtime, handed, properties);
        match timeout(within, login).await {
            Ok(Ok(connection)) => Ok(Wired { wire, connection }),
            // With TLS 1.3 a server judges the client certificate after the handshake, and its alert may be lost.
            Ok(Err(error)) if target.uri.scheme == AMQPScheme::AMQPS && error.is_io_error() => {
                Err(format!("login: {} (does the broker accept this node's client certificate?)", words(&error)))
            }
            Ok(Err(error)) => {
                let (words, user) = (words(&error), &target.uri.authority.userinfo.username);
                let remedy = remedy_at_login(&words, user, &target.uri.vhost);
                Err(format!("login: {}", with_remedy(&words, remedy)))
            }
            Err(_) => Err(format!("login: the broker says nothing within {within:?} ({SILENT_AT_LOGIN})")),
        }
    }

    /// TCP, and TLS if the URI says so.
    async fn transport(&self, uri: &AMQPUri) -> Result<(Wire, AsyncTcpStream<Compat<TcpStream>>), String> {
        let host = uri.authority.host.as_str();
        let resolved = tokio::net::lookup_host((host, uri.authority.port)).await;
        let addresses: Vec<_> = resolved.map_err(|error| format!("resolve {host}: {error}"))?.collect();
        let stream = first_to_connect(&addresses, self.settings.connect_timeout).await?;
        let plain = |error: io::Error| format!("connect: {error}");
        stream.set_nodelay(true).map_err(plain)?;
        let socket = stream.into_std().map_err(plain)?;
        let wire = Wire(socket.try_clone().map_err(plain)?);
        let stream = AsyncTcpStream::Plain(Compat::new(TcpStream::from_std(socket).map_err(plain)?));
        if uri.scheme == AMQPScheme::AMQP {
            return Ok((wire, stream));
        }
        let refusal = CertificateRefusal::default();
        let connector = tls::connector(&self.settings, &refusal).map_err(|error| error.to_string())?;
        match stream.into_openssl(&connector, certified(host)).await {
            Ok(stream) => Ok((wire, stream)),
            Err(error) => Err(format!("TLS: {}", refusal.take().unwrap_or_else(|| error.to_string()))),
        }
    }
}

/// Tries the addresses of one name in turn; each gets its share of `within`.
async fn first_to_connect(addresses: &[SocketAddr], within: Duration) -> Result<TcpStream, String> {
    let share = within / u32::try_from(addresses.len()).unwrap_or(1).max(1);
    let mut faults = Vec::new();
    for address in addresses {
        match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => faults.push(format!("{address}: {error}")),
            Err(_) => faults.push(format!("{address}: no answer within {share:?}")),
        }
    }
    Err(format!(
        "connect: {}",
        if faults.is_empty() { "the name has no address".to_owned() } else { faults.join(", ") }
    ))
}
