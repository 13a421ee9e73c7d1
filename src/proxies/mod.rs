//! The proxies beside this node: what every adapter needs, and who is connected.
//!
//! An adapter hands a proxy the timetable of ticket keys and the farm's sessions, and takes the sessions that the proxy
//! makes. It decides nothing about either.
//!
//! # What an adapter does
//!
//! 1. It **renders** [`ProxyPlane::timetable`] into what its proxy takes. A proxy with code of ours in it gets the timetable itself and
//!    looks up each key and its time (`ats`: the plugin; `rustls`: the ticketer in the same process). One that takes a list of keys gets
//!    [`Timetable::at`] of now: which key seals, and which ones open besides, the next one too.
//! 2. It **applies** it: at the start, whenever the timetable is another one, and at [`Timetable::next_change`]. What a proxy
//!    refuses is counted (`resumed_apply_errors_total`); a handshake waits for none of it.
//! 3. It **proves** it: what the proxy says that it holds, or a ticket of its own making, is compared with what it was given. Until
//!    then, and where the proxy's settings break resumption, it says so in [`ProxyInfo::warnings`], which every operator sees.
//!
//! An adapter is a file or a folder here, with settings of its own (as `ats::AtsSettings`), started by
//! `daemon::servers` or by the server that embeds the node.

pub(crate) mod allowed_users;
pub(crate) mod ats;
mod outbox;
#[cfg(feature = "rustls")]
pub(crate) mod rustls;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{broadcast, watch};

use crate::clock::SystemClock;
use crate::keys::Timetable;
use crate::proto::{self, MOST_WARNING_BYTES, MOST_WARNINGS_TOLD};
use crate::sessions::Store;

pub use outbox::SharedOutbox;

/// What an adapter shares with the rest of the node.
pub struct ProxyPlane {
    /// The ticket keys that proxies use now, with their times.
    pub timetable: watch::Receiver<Arc<Timetable>>,
    /// Sessions and removals from the farm, in order, each already applied to `store`. An adapter that falls behind
    /// fills its proxy again from `store`, removals of late included, so the capacity bounds memory and not what a proxy may learn.
    pub from_farm: broadcast::Sender<Arc<Vec<proto::SessionEntry>>>,
    /// What the node's own proxies made, for the farm.
    pub outbox: Arc<SharedOutbox>,
    /// All sessions that the node knows.
    pub store: Arc<Store>,
    /// The proxies connected now.
    pub registry: Arc<Registry>,
    /// Reads the host's clocks.
    pub clock: SystemClock,
    /// How the node greets a proxy.
    pub welcome: proto::local::Welcome,
}

impl fmt::Debug for ProxyPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyPlane").field("registry", &self.registry).finish_non_exhaustive()
    }
}

/// One connected proxy, as it introduced itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyInfo {
    /// What kind of server it is: `ats`, or what a server that embeds the node calls itself, such as `rustls`.
    pub kind: String,
    /// The proxy's release.
    pub version: String,
    /// The plugin's release.
    pub plugin_version: String,
    /// The proxy's process id; 0 if it runs in the node's own process.
    pub process_id: u32,
    /// 8 bytes over its certificate names as configured; empty: unknown.
    pub certificate_digest: Vec<u8>,
    /// Settings of the proxy that break resumption across the farm, in sentences.
    pub warnings: Vec<String>,
    /// Whether it takes session-ID sessions.
    pub sessions: bool,
}

/// The proxies connected to this node now.
#[derive(Debug, Default)]
pub struct Registry {
    connected: Mutex<ConnectedProxy>,
}

#[derive(Debug, Default)]
struct ConnectedProxy {
    next: u64,
    proxies: BTreeMap<u64, ProxyInfo>,
}

impl Registry {
    /// Adds a proxy, until the guard is dropped.
    #[must_use]
    pub fn register(self: &Arc<Self>, proxy: ProxyInfo) -> Registered {
        let mut connected = self.lock();
        let number = connected.next;
        connected.next += 1;
        connected.proxies.insert(number, proxy);
        show(&connected);
        Registered { registry: Arc::clone(self), number }
    }

    /// How many proxies are connected.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().proxies.len()
    }

    /// Whether no proxy is connected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The connected proxies in the order in which they came, as reports carry them.
    #[must_use]
    pub fn list(&self) -> Vec<proto::Proxy> {
        let mut budget = WarningBudget { warnings: MOST_WARNINGS_TOLD, bytes: MOST_WARNING_BYTES };
        let proxy = |proxy: &ProxyInfo| proto::Proxy {
            kind: proxy.kind.clone(),
            version: proxy.version.clone(),
            certificate_digest: proxy.certificate_digest.clone(),
            warnings: proxy.warnings.iter().filter(|warning| budget.takes(warning)).cloned().collect(),
        };
        self.lock().proxies.values().map(proxy).collect()
    }

    /// The connected proxies with everything that they said of themselves.
    #[must_use]
    pub fn proxies(&self) -> Vec<ProxyInfo> {
        self.lock().proxies.values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, ConnectedProxy> {
        self.connected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Shows how many proxies are connected, and how much they warn of.
fn show(connected: &ConnectedProxy) {
    crate::metrics::PROXIES_CONNECTED.set(connected.proxies.len() as f64);
    let warnings: usize = connected.proxies.values().map(|proxy| proxy.warnings.len()).sum();
    crate::metrics::PROXY_WARNINGS.set(warnings as f64);
}

/// A proxy is connected while this exists.
#[derive(Debug)]
pub struct Registered {
    registry: Arc<Registry>,
    number: u64,
}

/// What is left of a report's budget for warnings.
struct WarningBudget {
    warnings: usize,
    bytes: usize,
}

impl WarningBudget {
    /// Whether `warning` still fits; if so, its part is used.
    fn takes(&mut self, warning: &str) -> bool {
        let fits = self.warnings > 0 && warning.len() <= self.bytes;
        if fits {
            self.warnings -= 1;
            self.bytes -= warning.len();
        }
        fits
    }
}

impl Registered {
    /// The proxy's settings have changed.
    pub(crate) fn update(&self, certificate_digest: Vec<u8>, warnings: Vec<String>) {
        let mut connected = self.registry.lock();
        if let Some(proxy) = connected.proxies.get_mut(&self.number) {
            (proxy.certificate_digest, proxy.warnings) = (certificate_digest, warnings);
        }
        show(&connected);
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut connected = self.registry.lock();
        connected.proxies.remove(&self.number);
        show(&connected);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_as_many_warnings_as_a_leader_takes() {
        let registry = Arc::new(Registry::default());
        let info = |warnings: Vec<String>| ProxyInfo { warnings, ..ProxyInfo::default() };
        let long = "w".repeat(MOST_WARNING_BYTES - 20);
        let _one = registry.register(info(vec![long.clone(), long.clone(), "short".to_owned()]));
        let _other = registry.register(info(vec!["s".to_owned(); MOST_WARNINGS_TOLD]));
        let told = registry.list();
        assert_eq!(told[0].warnings, [long, "short".to_owned()]);
        assert_eq!(told[1].warnings.len(), MOST_WARNINGS_TOLD - 2);
    }

    #[test]
    fn a_proxy_is_listed_while_it_is_registered() {
        let registry = Arc::new(Registry::default());
        let info = ProxyInfo {
            kind: "ats".to_owned(),
            version: "9.2.9".to_owned(),
            process_id: 7,
            certificate_digest: vec![1; 8],
            warnings: vec!["no session cache".to_owned()],
            ..ProxyInfo::default()
        };
        let registered = registry.register(info.clone());
        assert_eq!(registry.proxies(), [info]);
        assert_eq!(registry.list()[0].certificate_digest, [1; 8]);
        drop(registered);
        assert!(registry.is_empty() && registry.list().is_empty());
    }
}
