//! The daemon's side of the plugin without a farm around it: nodes of one process, wired together by hand.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use resumed::internals::keys::{ProxyKey, Timetable};
use resumed::internals::proto::local::Welcome;
use resumed::internals::proxies::ats::{AtsSettings, Socket};
use resumed::internals::proxies::{ProxyPlane, Registry, SharedOutbox};
use resumed::internals::sessions::Store;
use resumed::{ProxyInfo, Removals, SessionSettings, SystemClock};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What a node is to be like.
#[derive(Clone)]
pub struct NodeSetup {
    pub name: &'static str,
    pub users: Vec<String>,
    pub removals: Removals,
    pub replicate: bool,
    /// How many batches of the farm a proxy may fall behind.
    pub backlog: usize,
}

impl Default for NodeSetup {
    fn default() -> Self {
        Self { name: "n1", users: Vec::new(), removals: Removals::Replicate, replicate: true, backlog: 1024 }
    }
}

/// A node that serves one socket.
pub struct Node {
    pub plane: Arc<ProxyPlane>,
    pub keys: watch::Sender<Arc<Timetable>>,
    pub socket: PathBuf,
    stop: CancellationToken,
    served: JoinHandle<()>,
}

impl Node {
    /// Serves `socket`. Must run inside a tokio runtime.
    pub async fn start(socket: &Path, setup: &NodeSetup) -> Self {
        let settings = SessionSettings { max_bytes: 64 << 20, removals: setup.removals, ..SessionSettings::default() };
        let store = Store::new(settings, Duration::from_secs(600));
        Self::with_store(socket, setup, Arc::new(store), Timetable::default()).await
    }

    /// The same with what an earlier node knew.
    pub async fn with_store(socket: &Path, setup: &NodeSetup, store: Arc<Store>, timetable: Timetable) -> Self {
        let (keys, timetable) = watch::channel(Arc::new(timetable));
        let plane = Arc::new(ProxyPlane {
            timetable,
            from_farm: broadcast::Sender::new(setup.backlog),
            outbox: Arc::new(SharedOutbox::new(16 << 20)),
            store,
            registry: Arc::new(Registry::default()),
            clock: SystemClock::start(),
            welcome: Welcome {
                node: setup.name.to_owned(),
                farm: "test".to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                replicate: setup.replicate,
                removals: setup.removals == Removals::Replicate,
            },
        });
        let settings = AtsSettings { socket: socket.to_owned(), users: setup.users.clone() };
        let stop = CancellationToken::new();
        let bound = Socket::bind(settings).expect("the socket");
        let served = tokio::spawn(bound.serve(Arc::clone(&plane), stop.clone()));
        Self { plane, keys, socket: socket.to_owned(), stop, served }
    }

    /// Stops serving and removes the socket.
    pub async fn stop(self) {
        self.stop.cancel();
        self.served.await.expect("serving ended without a panic");
    }

    /// What this node's proxies make reaches `other`, at once.
    pub fn feeds(&self, other: &Self) {
        let (from, to) = (Arc::clone(&self.plane), Arc::clone(&other.plane));
        tokio::spawn(async move {
            loop {
                let batch = from.outbox.next_batch(32 << 10).await;
                let applied = to.store.remote(batch, to.clock.now());
                // No receiver: no proxy is connected there.
                let _ = to.from_farm.send(Arc::new(applied.for_proxies));
            }
        });
    }

    /// What the connected proxies warn of, each with the proxy that says it.
    pub fn warnings(&self) -> Vec<String> {
        let sentences = |proxy: ProxyInfo| {
            let who = format!("{} {} (process {})", proxy.kind, proxy.version, proxy.process_id);
            proxy.warnings.into_iter().map(move |warning| format!("{who}: {warning}"))
        };
        self.plane.registry.proxies().into_iter().flat_map(sentences).collect()
    }

    /// Waits until `count` proxies are connected.
    pub async fn proxies(&self, count: usize) {
        until(&format!("{count} proxies at {}", self.socket.display()), || self.plane.registry.len() == count).await;
    }
}

/// A key whose bytes are all `n`, seconds relative to now: sealing in `seal`, open until `open`.
pub fn key(n: u8, seal: std::ops::Range<i64>, open: i64) -> ProxyKey {
    let now = i64::try_from(SystemClock::start().now().wall).expect("a time");
    let at = |seconds: i64| u64::try_from(now + seconds * 1000).expect("a time");
    ProxyKey {
        name: [n; 16],
        hmac: [n ^ 0x55; 32],
        aes: [n ^ 0xaa; 32],
        seal_from: at(seal.start),
        settled_at: 0,
        seal_until: at(seal.end),
        open_until: at(open),
    }
}

/// Waits until `holds`, with a deadline.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(30), "never came to pass: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
