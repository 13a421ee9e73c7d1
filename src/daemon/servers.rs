//! The servers around a node: control socket, the plugin's socket, HTTP.

#[cfg(test)]
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::commands::{Answerer, answer_calls};
use super::control::ControlSocket;
use super::http::page::Page;
use super::http::{HttpServer, Served};
use super::reload::ReloadCall;
use super::run::RunError;
use super::settings::Settings;
use crate::clock::SystemClock;
use crate::metrics;
use crate::node::Node;
use crate::operator::Operator;
use crate::proxies::ats::Socket;
use crate::unix_socket::SocketError;

/// Commands that wait for an answer to begin.
const CALLS: usize = 16;

/// The daemon's sockets, open and not served yet: what cannot be opened keeps the daemon from starting.
pub(super) struct Sockets {
    control: ControlSocket,
    ats: Socket,
    http: Option<HttpServer>,
    page: bool,
}

impl Sockets {
    /// Opens what `settings` name.
    pub(super) async fn open(settings: &Settings) -> Result<Self, RunError> {
        let control = ControlSocket::open(&settings.control).map_err(|error| named(error, RunError::Control))?;
        let http = match settings.metrics.listen {
            Some(address) => Some(HttpServer::bind(address).await?),
            None => None,
        };
        let ats = Socket::bind(settings.ats.clone()).map_err(|error| named(error, RunError::Ats))?;
        Ok(Self { control, ats, http, page: settings.metrics.page })
    }

    /// Where HTTP is served, if anywhere.
    #[cfg(test)]
    pub(super) fn http_address(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(HttpServer::address)
    }

    /// Has the ids of `ats.users` looked up again when it is told.
    pub(super) fn users_changed(&self) -> Arc<Notify> {
        self.ats.users_changed()
    }
}

/// What keeps a socket from being opened, with the setting's name before it. Faults of settings have their names already.
fn named(error: SocketError, by_setting: fn(SocketError) -> RunError) -> RunError {
    match error {
        SocketError::Settings(error) => RunError::Settings(error),
        error => by_setting(error),
    }
}

/// The servers as they run.
pub(super) struct Servers {
    tasks: JoinSet<Result<(), RunError>>,
    stop: CancellationToken,
}

impl Servers {
    /// Serves `sockets` for `node`. Requests to read the farm secrets again come out of what is returned.
    pub(super) fn start(
        sockets: Sockets,
        node: &Node,
        recorder: PrometheusHandle,
        clock: SystemClock,
    ) -> (Self, mpsc::Receiver<ReloadCall>) {
        let Sockets { control, ats, http, page } = sockets;
        let mut servers = Self { tasks: JoinSet::new(), stop: CancellationToken::new() };
        let stop = || servers.stop.clone();
        let (calls, answers) = mpsc::channel(CALLS);
        let (reload_calls, reloads) = mpsc::channel(1);
        let asked = Answerer { operator: Operator::of(node), reload_calls };
        let control = control.serve(calls, clock, stop());
        let commands = answer_calls(answers, asked, stop());
        let ats = ats.serve(Arc::clone(&node.proxies), stop());
        let upkeep = metrics::upkeep(recorder.clone(), stop());
        servers.spawn(control);
        servers.spawn(commands);
        servers.spawn(ats);
        servers.spawn(upkeep);
        if let Some(http) = http {
            servers.serve_http(http, page, node, recorder, clock);
        }
        (servers, reloads)
    }

    fn serve_http(
        &mut self,
        http: HttpServer,
        page: bool,
        node: &Node,
        recorder: PrometheusHandle,
        clock: SystemClock,
    ) {
        info!(address = %http.address(), page, "metrics");
        let page = page.then(|| {
            let operator = Operator::of(node);
            let ask = move || {
                let operator = operator.clone();
                async move { operator.status().await }
            };
            let (page, task) = Page::new(ask, clock, self.stop.clone());
            self.spawn(task);
            page
        });
        let observed = Served { metrics: recorder, health: node.health.clone(), page, clock };
        let stop = self.stop.clone();
        self.tasks.spawn(async move { Ok(http.serve(observed, stop).await?) });
    }

    /// Runs one more server.
    pub(super) fn spawn(&mut self, server: impl Future<Output = ()> + Send + 'static) {
        let server: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(server);
        self.tasks.spawn(async move {
            server.await;
            Ok(())
        });
    }

    /// Why one of them failed, once one has.
    pub(super) async fn failed(&mut self) -> RunError {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(error))) => return error,
                Some(Err(error)) => {
                    error!(%error, "a server ended in a panic");
                    return RunError::Panicked("a server");
                }
                None => return std::future::pending().await,
            }
        }
    }

    /// Tells all to end.
    pub(super) fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits until they have.
    pub(super) async fn ended(mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            if let Ok(Err(error)) = ended {
                warn!(%error, "while stopping");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::{fs, io};

    use futures_util::FutureExt;
    use tokio::time::timeout;

    use super::super::http::HttpError;
    use super::super::tests::{PATIENCE, settings};
    use super::*;
    use crate::unix_socket::SocketError;

    async fn refused(settings: &Settings) -> RunError {
        Sockets::open(settings).await.err().expect("something is in the way")
    }

    #[tokio::test]
    async fn what_is_in_the_way_of_a_socket_is_told_with_its_setting_and_no_other_socket_stays() {
        let folder = crate::temporary::Folder::new();
        let mut settings = settings(folder.path());
        let first = Sockets::open(&settings).await.expect("nothing is in the way");
        let error = refused(&settings).await;
        assert!(matches!(error, RunError::Control(SocketError::InUse { .. })), "{error:?}");
        assert!(error.to_string().starts_with("control.socket = "), "{error}");
        drop(first);

        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        settings.metrics.listen = Some(taken.local_addr().expect("an address"));
        let error = refused(&settings).await;
        assert!(matches!(error, RunError::Http(_)), "{error:?}");
        assert!(error.to_string().starts_with("metrics.listen = \"127.0.0.1:"), "{error}");
        assert!(!settings.control.socket.exists(), "the control socket stays");

        settings.metrics.listen = None;
        fs::write(&settings.ats.socket, "precious").expect("a file");
        let error = refused(&settings).await;
        assert!(matches!(error, RunError::Ats(SocketError::NotASocket { .. })), "{error:?}");
        assert!(error.to_string().starts_with("ats.socket = "), "{error}");
        assert!(!settings.control.socket.exists(), "the control socket stays");
        assert_eq!(fs::read_to_string(&settings.ats.socket).expect("the file"), "precious");

        fs::remove_file(&settings.ats.socket).expect("the file");
        let opened = Sockets::open(&settings).await.expect("nothing is in the way");
        assert_eq!(opened.http_address(), None, "metrics.listen is off");
    }

    #[tokio::test]
    async fn the_next_server_that_fails_or_panics_is_told_and_those_that_end_are_passed_over() {
        let mut servers = Servers { tasks: JoinSet::new(), stop: CancellationToken::new() };
        servers.spawn(async {});
        servers.tasks.spawn(async { Err(RunError::Http(HttpError::Serve(io::Error::other("on purpose")))) });
        let error = timeout(PATIENCE, servers.failed()).await.expect("one fails");
        assert_eq!(error.to_string(), "serving metrics: on purpose");
        servers.spawn(async { panic!("on purpose") });
        let error = timeout(PATIENCE, servers.failed()).await.expect("one panics");
        assert!(matches!(error, RunError::Panicked("a server")), "{error:?}");
        assert!(servers.failed().now_or_never().is_none(), "none is left that could fail");
    }
}
