//! Every metric of a node, a row each. What is shown from the start, the help texts, and what the rules, the dashboard and the
//! documents are checked against come from here.
//!
//! A new metric is a row here and a line where it is counted; a test then asks for a panel of the dashboard and a row of
//! the README, which says what the help text says.

use super::handles::{Counter, CounterBy, Gauge, GaugeBy, Histogram};
use super::labels::{Plane, Release};
use super::row::Row;
use super::row::Unit::{Bytes, Count, Flag, Seconds};
use crate::keys::KeyState;
use crate::reason::{ControlReason, DropReason, KeyReason, ProxyReason, Reason};

/// The upper bounds of [`REPLICATION_DELAY`] in seconds: from well below to far above what a healthy farm shows.
const DELAY_BUCKETS: [f64; 14] =
    [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// A handle for each row, and the rows. The text above a row is its help text.
macro_rules! table {
    ($($(#[doc = $help:literal])+ $handle:ident: $kind:ident $(<$label:ty>)? = ($($about:expr),+);)+) => {
        $($(#[doc = $help])+ pub(crate) const $handle: $kind$(<$label>)? = $kind::new($($about),+);)+

        /// Every metric.
        pub const TABLE: &[Row] = &[$($handle.row(concat!($($help),+).trim_ascii())),+];
    };
}

table! {
    /// Always 1; the label says which release runs.
    BUILD_INFO: GaugeBy<Release> = ("resumed_build_info", Flag);
    /// Whether the node is connected to a broker.
    BROKER_CONNECTED: Gauge = ("resumed_broker_connected", Flag);
    /// Connections to a broker after the first.
    BROKER_RECONNECTS: Counter = ("resumed_broker_reconnects_total", Count);
    /// Whether this node leads the farm.
    LEADER: Gauge = ("resumed_leader", Flag);
    /// Nodes that the leader hears.
    MEMBERS: Gauge = ("resumed_members", Count);
    /// Nodes that report the leader's ring, in time.
    MEMBERS_IN_STEP: Gauge = ("resumed_members_in_step", Count);
    /// Ticket keys in this node's ring, by state.
    RING_KEYS: GaugeBy<KeyState> = ("resumed_ring_keys", Count);
    /// Whether this node leads, or hears the leader and holds its ring.
    IN_STEP: Gauge = ("resumed_in_step", Flag);
    /// How long ago the key that seals tickets now began to.
    ACTIVE_KEY_AGE: Gauge = ("resumed_active_key_age_seconds", Seconds);
    /// For how long the key that seals tickets now may go on if no other comes; 0 without such a key.
    ACTIVE_KEY_SEALS_FOR: Gauge = ("resumed_active_key_seals_for_seconds", Seconds);
    /// How long a key seals before the next takes over: keys.interval.
    KEY_INTERVAL: Gauge = ("resumed_key_interval_seconds", Seconds);
    /// How long a key is held before it seals: keys.settle.
    KEY_SETTLE: Gauge = ("resumed_key_settle_seconds", Seconds);
    /// Times that another key became the one that seals.
    ROTATIONS: Counter = ("resumed_rotations_total", Count);
    /// The leader's clock minus this node's.
    CLOCK_OFFSET: Gauge = ("resumed_clock_offset_seconds", Seconds);
    /// Nodes whose clock is too far from this node's for their messages to be acted on.
    SKEWED_NODES: Gauge = ("resumed_skewed_nodes", Count);
    /// Other sites of the farm that this leader heard within a day; 0 at followers.
    SITES: Gauge = ("resumed_sites", Count);
    /// Of these, sites that were not heard for three of their beats.
    SITES_SILENT: Gauge = ("resumed_sites_silent", Count);
    /// How long ago the site was heard that has been silent for longest.
    SITE_SILENT_FOR: Gauge = ("resumed_site_silent_seconds", Seconds);
    /// Messages published to the broker, by plane.
    MESSAGES_SENT: CounterBy<Plane> = ("resumed_messages_sent_total", Count);
    /// Messages taken from the broker, by plane, refused ones too.
    MESSAGES_RECEIVED: CounterBy<Plane> = ("resumed_messages_received_total", Count);
    /// Messages from the broker that were not acted on, by reason.
    MESSAGES_REFUSED: CounterBy<Reason> = ("resumed_messages_refused_total", Count);
    /// Messages that never came, by the gaps in senders' sequences.
    MESSAGES_MISSED: Counter = ("resumed_messages_missed_total", Count);
    /// Keys and floors of received rings that were skipped, by reason.
    KEYS_SKIPPED: CounterBy<KeyReason> = ("resumed_keys_skipped_total", Count);
    /// Keys of one name that were received with different bytes.
    KEY_CONFLICTS: Counter = ("resumed_key_conflicts_total", Count);
    /// Messages on the key plane that the broker did not answer for: a queue is on a broker that is gone.
    MESSAGES_NACKED: Counter = ("resumed_messages_nacked_total", Count);
    /// Messages on the key plane that were dropped because too many waited for the broker.
    MESSAGES_CROWDED_OUT: Counter = ("resumed_messages_crowded_out_total", Count);
    /// Sessions of this node's proxies sent to the pod.
    SESSIONS_PUBLISHED: Counter = ("resumed_sessions_published_total", Count);
    /// Sessions that came from other nodes of the pod.
    SESSIONS_RECEIVED: Counter = ("resumed_sessions_received_total", Count);
    /// Sessions from the pod taken into this node's cache.
    SESSIONS_INSERTED: Counter = ("resumed_sessions_inserted_total", Count);
    /// Sessions removed from this node's cache because the pod said so.
    SESSIONS_REMOVED: Counter = ("resumed_sessions_removed_total", Count);
    /// Sessions that were neither sent nor kept, by reason.
    SESSIONS_DROPPED: CounterBy<DropReason> = ("resumed_sessions_dropped_total", Count);
    /// From a session's creation at its proxy to its arrival here, by both hosts' clocks.
    REPLICATION_DELAY: Histogram = ("resumed_replication_delay_seconds", Seconds, &DELAY_BUCKETS);
    /// Sessions in this node's cache.
    CACHE_ENTRIES: Gauge = ("resumed_cache_entries", Count);
    /// Bytes of sessions in this node's cache.
    CACHE_BYTES: Gauge = ("resumed_cache_bytes", Bytes);
    /// Sessions that went from the cache before their time, to make room.
    CACHE_EVICTED: Counter = ("resumed_cache_evicted_total", Count);
    /// Removed sessions that are remembered, so that nothing brings them back.
    TOMBSTONES: Gauge = ("resumed_tombstones", Count);
    /// Tombstones that went before their time, to make room.
    TOMBSTONES_DROPPED: Counter = ("resumed_tombstones_dropped_total", Count);
    /// Proxies connected to this node.
    PROXIES_CONNECTED: Gauge = ("resumed_proxies_connected", Count);
    /// Warnings that the proxies connected to this node give of their own settings.
    PROXY_WARNINGS: Gauge = ("resumed_proxy_warnings", Count);
    /// Connections on the plugins' socket refused or ended, by reason.
    PROXIES_REFUSED: CounterBy<ProxyReason> = ("resumed_proxies_refused_total", Count);
    /// Sessions and removals that this node's proxies reported.
    PROXY_SESSIONS_REPORTED: Counter = ("resumed_proxy_sessions_reported_total", Count);
    /// Sessions of the pod that clients brought back to a proxy here.
    PROXY_SESSIONS_INSERTED: Counter = ("resumed_proxy_sessions_inserted_total", Count);
    /// Times that a proxy here, for want of farm keys, sealed with one of its own.
    PROXY_OWN_KEYS: Counter = ("resumed_proxy_own_keys_total", Count);
    /// Connections on the control socket ended because of what came in, by reason.
    CONTROL_REFUSED: CounterBy<ControlReason> = ("resumed_control_refused_total", Count);
    /// Times that another node of the pod gave this one what it lacked.
    WARMUPS: Counter = ("resumed_warmups_total", Count);
    /// Times that a donor stopped before its end and was replaced.
    WARMUP_RESTARTS: Counter = ("resumed_warmup_restarts_total", Count);
    /// Sessions that donors sent to this node.
    WARMUP_SESSIONS_RECEIVED: Counter = ("resumed_warmup_sessions_received_total", Count);
    /// Sessions that this node sent to nodes that lacked them.
    WARMUP_SESSIONS_SENT: Counter = ("resumed_warmup_sessions_sent_total", Count);
    /// Tombstones that donors sent to this node.
    WARMUP_TOMBSTONES_RECEIVED: Counter = ("resumed_warmup_tombstones_received_total", Count);
    /// Tombstones that this node sent to nodes that lacked them.
    WARMUP_TOMBSTONES_SENT: Counter = ("resumed_warmup_tombstones_sent_total", Count);
    /// How long this node's last warm-up took, over all its donors.
    WARMUP_SECONDS: Gauge = ("resumed_warmup_seconds", Seconds);
    /// Whether this node lacks sessions of its pod and looks for a donor.
    WARMUP_LACKING: Gauge = ("resumed_warmup_lacking", Flag);
    /// Whether the ring is kept where a restart of this node finds it.
    RING_SAVED: Gauge = ("resumed_ring_saved", Flag);
    /// Times that the ring could not be saved for a restart of this node.
    RING_SAVE_ERRORS: Counter = ("resumed_ring_save_errors_total", Count);
    /// Ticket keys and sessions that a proxy refused to take.
    APPLY_ERRORS: Counter = ("resumed_apply_errors_total", Count);
}
