//! The HTTP server for `/metrics` (Prometheus text format 0.0.4), `/livez`, `/readyz`, `/healthz`, and the page for people unless
//! it is turned off.
//!
//! It runs on the daemon's one thread, which has keys and sessions to see to, and every process that reaches it may ask. So what it
//! does in a second is bounded, however many ask and however fast: connections, pieces of requests ([`BoundedListener`]),
//! and answers. Those that ask for more wait, first come, first served.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::IncomingStream;
use metrics_exporter_prometheus::PrometheusHandle;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::bounded_listener::BoundedListener;
use self::page::Page;
use self::turns::Turns;
use crate::clock::SystemClock;
use crate::node::Health;

mod bounded_listener;
mod health;
pub(super) mod page;
mod turns;

/// Why metrics are not served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    /// The address cannot be listened on.
    #[error("metrics.listen = \"{address}\": {source}")]
    Bind {
        /// The address as configured.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The server stopped by itself.
    #[error("serving metrics: {0}")]
    Serve(#[source] io::Error),
}

/// A server that listens and does not answer yet.
#[derive(Debug)]
pub(crate) struct HttpServer {
    listener: TcpListener,
    address: SocketAddr,
}

/// Connections that may wait to be taken.
const BACKLOG: u32 = 128;

/// The most connections at a time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 64;

/// How many connections are taken at once, and how often one more.
const ARRIVALS: (u32, Duration) = (8, Duration::from_millis(10));

/// How many answers are given at once, and how often one more: with those of `/metrics`, some hundredths of a core at most. Only
/// one at once: the runtime looks at the sockets of the farm and of the proxies between two of them, also where the daemon gets so
/// little of a processor that it is late with all of them.
const ANSWERS: (u32, Duration) = (1, Duration::from_millis(10));

/// How many answers a connection gets; then it makes room. Where clients that ask without end hold all places, one is free within
/// about five seconds, which is well below what Prometheus waits.
const ANSWERS_EACH: u32 = 8;

/// How long a connection may go on without an answer, between requests too.
const IDLE: Duration = Duration::from_secs(30);

/// How long requests under way may take once the server is told to stop: less than the daemon's own 2 s.
const DRAIN: Duration = Duration::from_millis(500);

impl HttpServer {
    /// Listens on `address`, the setting `metrics.listen`. Also on one that this host does not have: it may come later
    /// than the daemon, and then it serves.
    ///
    /// # Errors
    /// [`HttpError::Bind`].
    pub(crate) async fn bind(address: SocketAddr) -> Result<Self, HttpError> {
        let bind = |source| HttpError::Bind { address, source };
        let listener = match TcpListener::bind(address).await {
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                warn!(%address, "metrics.listen is no address of this host, yet: listening there for when it is");
                listen_ahead(address)
            }
            bound => bound,
        };
        let listener = listener.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        Ok(Self { listener, address })
    }

    /// Where it listens; the port is a real one also if 0 was asked for.
    #[must_use]
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `stop`, on at most 64 connections at a time, and returns at most half a second after it, whatever clients do.
    ///
    /// # Errors
    /// [`HttpError::Serve`].
    pub(crate) async fn serve(self, observed: Served, stop: CancellationToken) -> Result<(), HttpError> {
        let clock = observed.clock;
        let (page, hint) = match observed.page.clone() {
            Some(page) => (page.routes(), "not found: try /, /farm.json, /metrics, /livez, /readyz or /healthz\n"),
            None => (Router::new(), "not found: try /metrics, /livez, /readyz or /healthz\n"),
        };
        let router = Router::new()
            .route("/metrics", get(render))
            .with_state(observed.clone())
            .merge(health::routes(observed))
            .merge(page)
            .fallback(move || async move { (StatusCode::NOT_FOUND, hint) })
            .layer(from_fn_with_state(Arc::new(Turns::new(ANSWERS.0, ANSWERS.1, clock)), in_turn));
        let arrivals = Turns::new(ARRIVALS.0, ARRIVALS.1, clock);
        let listener = BoundedListener::new(self.listener, MAX_CONNECTIONS, arrivals, IDLE);
        let service = router.into_make_service_with_connect_info::<AnswersGiven>();
        let served = axum::serve(listener, service).with_graceful_shutdown(stop.clone().cancelled_owned());
        let too_late = async {
            stop.cancelled().await;
            tokio::time::sleep(DRAIN).await;
        };
        tokio::select! {
            result = served => result.map_err(HttpError::Serve),
            () = too_late => Ok(()),
        }
    }
}

/// A listener on an address that is not there yet.
fn listen_ahead(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    setsockopt(&socket, sockopt::IpFreebind, &true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// What the server shows.
#[derive(Clone)]
pub(crate) struct Served {
    /// Every metric.
    pub metrics: PrometheusHandle,
    /// How the node is.
    pub health: watch::Receiver<Health>,
    /// The page for people, if there is to be one.
    pub page: Option<Page>,
    /// This host's clock.
    pub clock: SystemClock,
}

/// How many answers a connection got.
#[derive(Clone, Debug, Default)]
struct AnswersGiven(Arc<AtomicU32>);

impl Connected<IncomingStream<'_, BoundedListener>> for AnswersGiven {
    fn connect_info(_: IncomingStream<'_, BoundedListener>) -> Self {
        Self::default()
    }
}

/// Answers in turn, and ends a connection that got its share.
async fn in_turn(
    State(turns): State<Arc<Turns>>,
    ConnectInfo(given): ConnectInfo<AnswersGiven>,
    request: Request,
    next: Next,
) -> Response {
    turns.next().await;
    let mut answer = next.run(request).await;
    if given.0.fetch_add(1, Ordering::Relaxed) + 1 >= ANSWERS_EACH {
        answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

async fn render(State(observed): State<Served>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], observed.metrics.render())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::task::JoinHandle;
    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::status::{FarmStatus, PageStatus};

    struct Running {
        address: SocketAddr,
        clock: SystemClock,
        health: watch::Sender<Health>,
        stop: CancellationToken,
        task: JoinHandle<Result<(), HttpError>>,
    }

    async fn start() -> Running {
        start_with(None).await
    }

    async fn start_with(page: Option<Page>) -> Running {
        let server = HttpServer::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = server.address();
        let clock = SystemClock::start();
        let (health, receiver) = watch::channel(Health { ring: false, alive_until: clock.now().mono + 60_000 });
        let stop = CancellationToken::new();
        let metrics = crate::metrics::install().unwrap();
        let observed = Served { metrics, health: receiver, page, clock };
        let task = tokio::spawn(server.serve(observed, stop.clone()));
        Running { address, clock, health, stop, task }
    }

    async fn request(address: SocketAddr, line: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(Duration::from_secs(10), stream.read_to_string(&mut answer)).await.expect("an answer").unwrap();
        answer
    }

    #[tokio::test]
    async fn metrics_are_served_in_the_prometheus_text_format() {
        let running = start().await;
        let answer = request(running.address, "GET /metrics").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{answer}");
        assert!(answer.contains("\n# TYPE resumed_build_info gauge\n"), "{answer}");
        running.stop.cancel();
        running.task.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn health_follows_what_the_node_says() {
        let running = start().await;
        let answer = request(running.address, "GET /healthz").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.ends_with("\r\n\r\nno ring yet: neither a leader's nor one of its own\n"), "{answer}");

        running.health.send_modify(|health| health.ring = true);
        let answer = request(running.address, "GET /healthz").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nok\n"), "{answer}");

        let an_hour_ago = running.clock.now().mono - 3_600_000;
        running.health.send_modify(|health| health.alive_until = an_hour_ago);
        let answer = request(running.address, "GET /healthz").await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("not live"), "{answer}");
    }

    #[tokio::test]
    async fn liveness_and_readiness_are_told_apart_and_in_every_way_that_a_load_balancer_asks() {
        let running = start().await;
        for method in ["GET", "HEAD", "OPTIONS"] {
            let live = request(running.address, &format!("{method} /livez")).await;
            assert!(live.starts_with("HTTP/1.1 200 OK\r\n"), "{live}");
            for path in ["/readyz", "/healthz"] {
                let lacking = request(running.address, &format!("{method} {path}")).await;
                assert!(lacking.starts_with("HTTP/1.1 503 "), "{lacking}");
            }
        }
        let lacking = request(running.address, "GET /readyz").await;
        let why = "no ring yet: neither a leader's nor one of its own";
        assert!(lacking.ends_with(&format!("\r\n\r\n{{\"ready\":false,\"lacks\":[\"{why}\"]}}")), "{lacking}");

        running.health.send_modify(|health| health.ring = true);
        for method in ["GET", "HEAD", "OPTIONS"] {
            for path in ["/livez", "/readyz", "/healthz"] {
                let well = request(running.address, &format!("{method} {path}")).await;
                assert!(well.starts_with("HTTP/1.1 200 OK\r\n"), "{method} {path}: {well}");
            }
        }
        let ready = request(running.address, "GET /readyz").await;
        assert!(ready.ends_with("\r\n\r\n{\"ready\":true,\"lacks\":[]}"), "{ready}");
        assert!(ready.contains("\r\ncontent-type: application/json\r\n"), "{ready}");

        let an_hour_ago = running.clock.now().mono - 3_600_000;
        running.health.send_modify(|health| health.alive_until = an_hour_ago);
        for path in ["/livez", "/readyz", "/healthz"] {
            let dead = request(running.address, &format!("GET {path}")).await;
            assert!(dead.starts_with("HTTP/1.1 503 ") && dead.contains("not live"), "{dead}");
        }
    }

    #[tokio::test]
    async fn other_paths_get_a_hint_and_other_methods_a_405() {
        let running = start().await;
        for path in ["/", "/farm.json", "/favicon.ico"] {
            let answer = request(running.address, &format!("GET {path}")).await;
            assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
            assert!(answer.ends_with("\r\n\r\nnot found: try /metrics, /livez, /readyz or /healthz\n"), "{answer}");
        }
        let answer = request(running.address, "DELETE /metrics").await;
        assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    }

    #[tokio::test]
    async fn the_page_and_its_data_are_served_with_what_keeps_a_browser_from_harm() {
        let stop = CancellationToken::new();
        let ask = || async { FarmStatus { farm: "edge <b>".into(), ..FarmStatus::default() } };
        let (page, task) = Page::new(ask, SystemClock::start(), stop.clone());
        let task = tokio::spawn(task);
        let running = start_with(Some(page)).await;
        let page = request(running.address, "GET /").await;
        assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
        assert!(page.contains("\r\ncontent-type: text/html; charset=utf-8\r\n"), "{page}");
        assert!(page.contains("\r\ncontent-security-policy: default-src 'none'; script-src 'sha256-"), "{page}");
        let data = request(running.address, "GET /farm.json").await;
        assert!(data.starts_with("HTTP/1.1 200 OK\r\n"), "{data}");
        assert!(data.contains("\r\ncontent-type: application/json\r\n"), "{data}");
        assert!(data.contains("\r\ncontent-security-policy: default-src 'none'; frame-ancestors 'none'\r\n"), "{data}");
        let (_, json) = data.split_once("\r\n\r\n").unwrap();
        assert_eq!(serde_json::from_str::<PageStatus>(json).unwrap().status.farm, "edge <b>");
        for header in [
            "x-content-type-options: nosniff",
            "referrer-policy: no-referrer",
            "cache-control: no-store",
            "cross-origin-resource-policy: same-origin",
        ] {
            assert!(page.contains(&format!("\r\n{header}\r\n")), "no {header} in {page}");
            assert!(data.contains(&format!("\r\n{header}\r\n")), "no {header} in {data}");
        }
        let answer = request(running.address, "GET /favicon.ico").await;
        assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("try /, /farm.json, /metrics"), "{answer}");
        for line in ["POST /", "PUT /farm.json", "DELETE /farm.json"] {
            let answer = request(running.address, line).await;
            assert!(answer.starts_with("HTTP/1.1 405 "), "{line}: {answer}");
        }
        stop.cancel();
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_never_ends_its_request_does_not_hold_up_the_stop() {
        let running = start().await;
        let mut stuck = TcpStream::connect(running.address).await.unwrap();
        stuck.write_all(b"GET /metrics HTTP/1.1\r\nHo").await.unwrap();
        // The server has taken the stuck connection when it answers on a later one.
        request(running.address, "GET /healthz").await;
        let told = Instant::now();
        running.stop.cancel();
        timeout(Duration::from_secs(10), running.task).await.expect("an end").unwrap().unwrap();
        assert!(told.elapsed() < Duration::from_millis(1_900), "took {:?}", told.elapsed());
        assert!(TcpStream::connect(running.address).await.is_err(), "it still listens");
    }

    #[tokio::test]
    async fn a_connection_gets_its_share_of_answers_at_the_pace_of_all_and_then_ends() {
        let running = start().await;
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        let begun = Instant::now();
        let asks = "GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2 * ANSWERS_EACH as usize);
        stream.write_all(asks.as_bytes()).await.unwrap();
        let mut answers = Vec::new();
        // What it did not read of the questions may end the connection in a reset.
        let _reset = timeout(Duration::from_secs(30), stream.read_to_end(&mut answers)).await.expect("an end");
        let answers = String::from_utf8(answers).unwrap();
        assert_eq!(answers.matches("HTTP/1.1 404 ").count(), ANSWERS_EACH as usize, "{answers}");
        assert_eq!(answers.matches("connection: close\r\n").count(), 1, "{answers}");
        let (burst, every) = ANSWERS;
        assert!(begun.elapsed() >= every * (ANSWERS_EACH - burst - 1), "took {:?}", begun.elapsed());
        assert!(request(running.address, "GET /healthz").await.contains("no ring yet"));
    }

    #[tokio::test]
    async fn an_address_that_this_host_does_not_have_yet_is_listened_on() {
        for address in ["192.0.2.1:0", "[2001:db8::1]:0"] {
            let server = HttpServer::bind(address.parse().unwrap()).await.unwrap();
            assert_ne!(server.address().port(), 0);
        }
    }

    #[tokio::test]
    async fn an_address_in_use_is_named_with_its_key() {
        let first = HttpServer::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = first.address();
        let error = HttpServer::bind(address).await.expect_err("the address is taken");
        assert_eq!(error.to_string(), format!("metrics.listen = \"{address}\": Address already in use (os error 98)"));
    }
}
