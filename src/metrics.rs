//! The metrics of a node: names, help texts and the recorder.
//!
//! A process has one recorder. Several nodes in one process (as in `demo`) add to the same counters.

pub mod sessions;
mod totals;

use std::sync::Mutex;
use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tokio_util::sync::CancellationToken;

use crate::reason::{ControlReason, DropReason, KeyReason, ProxyReason, Reason};
use totals::Readable;
pub use totals::{Totals, totals};

/// Gauge, always 1, `version` = the release.
pub const BUILD_INFO: &str = "resumed_build_info";
/// Gauge, 1 or 0.
pub const BROKER_CONNECTED: &str = "resumed_broker_connected";
/// Counter.
pub const BROKER_RECONNECTS: &str = "resumed_broker_reconnects_total";
/// Gauge, 1 on the leader, else 0.
pub const LEADER: &str = "resumed_leader";
/// Gauge.
pub const MEMBERS: &str = "resumed_members";
/// Gauge.
pub const MEMBERS_IN_STEP: &str = "resumed_members_in_step";
/// Gauge by `state`, see [`KEY_STATES`].
pub const RING_KEYS: &str = "resumed_ring_keys";
/// Gauge, 1 or 0.
pub const IN_STEP: &str = "resumed_in_step";
/// Gauge in seconds.
pub const ACTIVE_KEY_AGE: &str = "resumed_active_key_age_seconds";
/// Gauge in seconds.
pub const ACTIVE_KEY_SEALS_FOR: &str = "resumed_active_key_seals_for_seconds";
/// Gauge in seconds, the setting `keys.interval`.
pub const KEY_INTERVAL: &str = "resumed_key_interval_seconds";
/// Gauge in seconds, the setting `keys.settle`.
pub const KEY_SETTLE: &str = "resumed_key_settle_seconds";
/// Counter.
pub const ROTATIONS: &str = "resumed_rotations_total";
/// Gauge in seconds.
pub const CLOCK_OFFSET: &str = "resumed_clock_offset_seconds";
/// Gauge.
pub const SKEWED_NODES: &str = "resumed_skewed_nodes";
/// Gauge.
pub const SITES: &str = "resumed_sites";
/// Gauge.
pub const SITES_SILENT: &str = "resumed_sites_silent";
/// Gauge in seconds.
pub const SITE_SILENT_FOR: &str = "resumed_site_silent_seconds";
/// Counter by `plane`.
pub const MESSAGES_SENT: &str = "resumed_messages_sent_total";
/// Counter by `plane`.
pub const MESSAGES_RECEIVED: &str = "resumed_messages_received_total";
/// Counter by `reason`, see [`REFUSALS`].
pub const MESSAGES_REFUSED: &str = "resumed_messages_refused_total";
/// Counter.
pub const MESSAGES_MISSED: &str = "resumed_messages_missed_total";
/// Counter by `reason`, see [`KEY_FAULTS`].
pub const KEYS_SKIPPED: &str = "resumed_keys_skipped_total";
/// Counter.
pub const KEY_CONFLICTS: &str = "resumed_key_conflicts_total";
/// Counter.
pub const MESSAGES_NACKED: &str = "resumed_messages_nacked_total";
/// Counter.
pub const SESSIONS_PUBLISHED: &str = "resumed_sessions_published_total";
/// Counter.
pub const SESSIONS_RECEIVED: &str = "resumed_sessions_received_total";
/// Counter.
pub const SESSIONS_INSERTED: &str = "resumed_sessions_inserted_total";
/// Counter.
pub const SESSIONS_REMOVED: &str = "resumed_sessions_removed_total";
/// Counter by `reason`, see [`DROPS`].
pub const SESSIONS_DROPPED: &str = "resumed_sessions_dropped_total";
/// Histogram in seconds.
pub const REPLICATION_DELAY: &str = "resumed_replication_delay_seconds";
/// Gauge.
pub const CACHE_ENTRIES: &str = "resumed_cache_entries";
/// Gauge in bytes.
pub const CACHE_BYTES: &str = "resumed_cache_bytes";
/// Counter.
pub const CACHE_EVICTED: &str = "resumed_cache_evicted_total";
/// Gauge.
pub const TOMBSTONES: &str = "resumed_tombstones";
/// Counter.
pub const TOMBSTONES_DROPPED: &str = "resumed_tombstones_dropped_total";
/// Gauge.
pub const PROXIES_CONNECTED: &str = "resumed_proxies_connected";
/// Counter by `reason`, see [`PROXY_REFUSALS`].
pub const PROXIES_REFUSED: &str = "resumed_proxies_refused_total";
/// Counter.
pub const PROXY_SESSIONS_REPORTED: &str = "resumed_proxy_sessions_reported_total";
/// Counter.
pub const PROXY_SESSIONS_INSERTED: &str = "resumed_proxy_sessions_inserted_total";
/// Counter.
pub const PROXY_OWN_KEYS: &str = "resumed_proxy_own_keys_total";
/// Counter by `reason`, see [`CONTROL_REFUSALS`].
pub const CONTROL_REFUSED: &str = "resumed_control_refused_total";
/// Counter.
pub const WARMUPS: &str = "resumed_warmups_total";
/// Counter.
pub const WARMUP_RESTARTS: &str = "resumed_warmup_restarts_total";
/// Counter.
pub const WARMUP_SESSIONS_RECEIVED: &str = "resumed_warmup_sessions_received_total";
/// Counter.
pub const WARMUP_SESSIONS_SENT: &str = "resumed_warmup_sessions_sent_total";
/// Counter.
pub const WARMUP_TOMBSTONES_RECEIVED: &str = "resumed_warmup_tombstones_received_total";
/// Counter.
pub const WARMUP_TOMBSTONES_SENT: &str = "resumed_warmup_tombstones_sent_total";
/// Gauge in seconds.
pub const WARMUP_SECONDS: &str = "resumed_warmup_seconds";
/// Gauge, 1 or 0.
pub const WARMUP_LACKING: &str = "resumed_warmup_lacking";
/// Gauge, 1 or 0.
pub const RING_SAVED: &str = "resumed_ring_saved";
/// Counter.
pub const RING_SAVE_ERRORS: &str = "resumed_ring_save_errors_total";
/// Counter.
pub const APPLY_ERRORS: &str = "resumed_apply_errors_total";

/// What travels on the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plane {
    /// Announcements, reports, requests, answers and farewells.
    Keys,
    /// Session batches.
    Sessions,
    /// Calls, offers, requests and chunks by which one node warms up another.
    Warmups,
}

impl Plane {
    /// The label `plane`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Keys => "keys",
            Self::Sessions => "sessions",
            Self::Warmups => "warmups",
        }
    }
}

/// The states of a key in a ring.
pub const KEY_STATES: [&str; 4] = ["next", "active", "previous", "expired"];

/// Why an envelope, or what was in it, is refused.
pub const REFUSALS: [&str; Reason::ALL.len()] = Reason::LABELS;

/// Why a key, or a floor, of a received ring is skipped.
pub const KEY_FAULTS: [&str; KeyReason::ALL.len()] = KeyReason::LABELS;

/// Why a session, or a removal, is dropped.
pub const DROPS: [&str; DropReason::ALL.len()] = DropReason::LABELS;

/// Why a connection on the plugins' socket is refused or ended.
pub const PROXY_REFUSALS: [&str; ProxyReason::ALL.len()] = ProxyReason::LABELS;

/// Why a connection on the control socket is ended.
pub const CONTROL_REFUSALS: [&str; ControlReason::ALL.len()] = ControlReason::LABELS;

/// The upper bounds of [`REPLICATION_DELAY`] in seconds: from well below to far above what a healthy farm shows.
const DELAY_BUCKETS: [f64; 14] =
    [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Why there is no recorder.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The exporter cannot be built.
    #[error("cannot record metrics: {0}")]
    Build(#[from] BuildError),
    /// Somebody else's recorder is installed.
    #[error("cannot record metrics: this process has another recorder already")]
    Taken,
}

/// Installs the recorder, describes every metric and shows those whose labels are known at once. Later calls in the
/// same process return the same recorder's handle.
///
/// The recorder needs [`upkeep`] to run beside it.
///
/// # Errors
/// Another recorder was installed in this process by somebody else.
pub fn install() -> Result<PrometheusHandle, MetricsError> {
    static INSTALLED: Mutex<Option<PrometheusHandle>> = Mutex::new(None);
    let mut installed = INSTALLED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(handle) = &*installed {
        return Ok(handle.clone());
    }
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full(REPLICATION_DELAY.into()), &DELAY_BUCKETS)?
        .build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(Readable::of_process(recorder)).map_err(|_| MetricsError::Taken)?;
    describe();
    show();
    Ok(installed.insert(handle).clone())
}

/// Keeps the memory of histograms bounded, also when nobody scrapes. Returns when `stop` is cancelled.
pub async fn upkeep(handle: PrometheusHandle, stop: CancellationToken) {
    let mut tick = tokio::time::interval(Duration::from_secs(5));
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        handle.run_upkeep();
    }
}

fn describe() {
    let count = Unit::Count;
    describe_gauge!(BUILD_INFO, "Always 1; the label says which release runs.");
    describe_gauge!(BROKER_CONNECTED, "Whether the node is connected to a broker.");
    describe_counter!(BROKER_RECONNECTS, count, "Connections to a broker after the first.");
    describe_gauge!(LEADER, "Whether this node leads the farm.");
    describe_gauge!(MEMBERS, count, "Nodes that the leader hears.");
    describe_gauge!(MEMBERS_IN_STEP, count, "Nodes that report the leader's ring, in time.");
    describe_gauge!(RING_KEYS, count, "Ticket keys in this node's ring, by state.");
    describe_gauge!(IN_STEP, "Whether this node leads, or hears the leader and holds its ring.");
    describe_gauge!(ACTIVE_KEY_AGE, Unit::Seconds, "How long ago the key that seals tickets now began to.");
    describe_gauge!(
        ACTIVE_KEY_SEALS_FOR,
        Unit::Seconds,
        "For how long the key that seals tickets now may go on if no other comes; 0 without such a key."
    );
    describe_gauge!(KEY_INTERVAL, Unit::Seconds, "How long a key seals before the next takes over: keys.interval.");
    describe_gauge!(KEY_SETTLE, Unit::Seconds, "How long a key is held before it seals: keys.settle.");
    describe_counter!(ROTATIONS, count, "Times that another key became the one that seals.");
    describe_gauge!(CLOCK_OFFSET, Unit::Seconds, "The leader's clock minus this node's.");
    describe_gauge!(
        SKEWED_NODES,
        count,
        "Nodes whose clock is too far from this node's for their messages to be acted on."
    );
    describe_gauge!(SITES, count, "Other sites of the farm that this leader heard within a day; 0 at followers.");
    describe_gauge!(SITES_SILENT, count, "Of these, sites that were not heard for three of their beats.");
    describe_gauge!(
        SITE_SILENT_FOR,
        Unit::Seconds,
        "How long ago the site was heard that has been silent for longest."
    );
    describe_counter!(MESSAGES_SENT, count, "Messages published to the broker, by plane.");
    describe_counter!(MESSAGES_RECEIVED, count, "Messages taken from the broker, by plane, refused ones too.");
    describe_counter!(MESSAGES_REFUSED, count, "Messages from the broker that were not acted on, by reason.");
    describe_counter!(MESSAGES_MISSED, count, "Messages that never came, by the gaps in senders' sequences.");
    describe_counter!(KEYS_SKIPPED, count, "Keys and floors of received rings that were skipped, by reason.");
    describe_counter!(KEY_CONFLICTS, count, "Keys of one name that were received with different bytes.");
    describe_counter!(
        MESSAGES_NACKED,
        count,
        "Messages on the key plane that the broker did not answer for: a queue is on a broker that is gone."
    );
    describe_counter!(SESSIONS_PUBLISHED, count, "Sessions of this node's proxies sent to the pod.");
    describe_counter!(SESSIONS_RECEIVED, count, "Sessions that came from other nodes of the pod.");
    describe_counter!(SESSIONS_INSERTED, count, "Sessions from the pod taken into this node's cache.");
    describe_counter!(SESSIONS_REMOVED, count, "Sessions removed from this node's cache because the pod said so.");
    describe_counter!(SESSIONS_DROPPED, count, "Sessions that were neither sent nor kept, by reason.");
    describe_histogram!(
        REPLICATION_DELAY,
        Unit::Seconds,
        "From a session's creation at its proxy to its arrival here, by both hosts' clocks."
    );
    describe_gauge!(CACHE_ENTRIES, count, "Sessions in this node's cache.");
    describe_gauge!(CACHE_BYTES, Unit::Bytes, "Bytes of sessions in this node's cache.");
    describe_counter!(CACHE_EVICTED, count, "Sessions that went from the cache before their time, to make room.");
    describe_gauge!(TOMBSTONES, count, "Removed sessions that are remembered, so that nothing brings them back.");
    describe_counter!(TOMBSTONES_DROPPED, count, "Tombstones that went before their time, to make room.");
    describe_counter!(PROXIES_REFUSED, count, "Connections on the plugins' socket refused or ended, by reason.");
    describe_counter!(PROXY_SESSIONS_REPORTED, count, "Sessions and removals that this node's proxies reported.");
    describe_counter!(PROXY_SESSIONS_INSERTED, count, "Sessions of the pod that clients brought back to a proxy here.");
    describe_counter!(
        PROXY_OWN_KEYS,
        count,
        "Times that a proxy here, for want of farm keys, sealed with one of its own."
    );
    describe_counter!(
        CONTROL_REFUSED,
        count,
        "Connections on the control socket ended because of what came in, by reason."
    );
    describe_gauge!(PROXIES_CONNECTED, count, "Proxies connected to this node.");
    describe_counter!(WARMUPS, count, "Times that another node of the pod gave this one what it lacked.");
    describe_counter!(WARMUP_RESTARTS, count, "Times that a donor stopped before its end and was replaced.");
    describe_counter!(WARMUP_SESSIONS_RECEIVED, count, "Sessions that donors sent to this node.");
    describe_counter!(WARMUP_SESSIONS_SENT, count, "Sessions that this node sent to nodes that lacked them.");
    describe_counter!(WARMUP_TOMBSTONES_RECEIVED, count, "Tombstones that donors sent to this node.");
    describe_counter!(WARMUP_TOMBSTONES_SENT, count, "Tombstones that this node sent to nodes that lacked them.");
    describe_gauge!(WARMUP_SECONDS, Unit::Seconds, "How long this node's last warm-up took, over all its donors.");
    describe_gauge!(WARMUP_LACKING, "Whether this node lacks sessions of its pod and looks for a donor.");
    describe_gauge!(RING_SAVED, "Whether the ring is kept where a restart of this node finds it.");
    describe_counter!(RING_SAVE_ERRORS, count, "Times that the ring could not be saved for a restart of this node.");
    describe_counter!(APPLY_ERRORS, count, "Ticket keys and sessions that a proxy refused to take.");
}

/// A series that appears with its first event hides that event from `rate()`: every one known beforehand is there
/// from the start.
fn show() {
    gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    for name in [
        BROKER_RECONNECTS,
        ROTATIONS,
        MESSAGES_MISSED,
        KEY_CONFLICTS,
        MESSAGES_NACKED,
        SESSIONS_PUBLISHED,
        SESSIONS_RECEIVED,
        SESSIONS_INSERTED,
        SESSIONS_REMOVED,
        CACHE_EVICTED,
        TOMBSTONES_DROPPED,
        PROXY_SESSIONS_REPORTED,
        PROXY_SESSIONS_INSERTED,
        PROXY_OWN_KEYS,
        WARMUPS,
        WARMUP_RESTARTS,
        WARMUP_SESSIONS_RECEIVED,
        WARMUP_SESSIONS_SENT,
        WARMUP_TOMBSTONES_RECEIVED,
        WARMUP_TOMBSTONES_SENT,
        RING_SAVE_ERRORS,
        APPLY_ERRORS,
    ] {
        counter!(name).absolute(0);
    }
    for name in [
        BROKER_CONNECTED,
        LEADER,
        MEMBERS,
        MEMBERS_IN_STEP,
        IN_STEP,
        ACTIVE_KEY_AGE,
        ACTIVE_KEY_SEALS_FOR,
        KEY_INTERVAL,
        KEY_SETTLE,
        CLOCK_OFFSET,
        SKEWED_NODES,
        SITES,
        SITES_SILENT,
        SITE_SILENT_FOR,
        RING_SAVED,
        CACHE_ENTRIES,
        CACHE_BYTES,
        TOMBSTONES,
        WARMUP_SECONDS,
        WARMUP_LACKING,
        PROXIES_CONNECTED,
    ] {
        gauge!(name).set(0.0);
    }
    for state in KEY_STATES {
        gauge!(RING_KEYS, "state" => state).set(0.0);
    }
    for plane in [Plane::Keys, Plane::Sessions, Plane::Warmups] {
        counter!(MESSAGES_SENT, "plane" => plane.as_str()).absolute(0);
        counter!(MESSAGES_RECEIVED, "plane" => plane.as_str()).absolute(0);
    }
    for (name, reasons) in [
        (MESSAGES_REFUSED, REFUSALS.as_slice()),
        (KEYS_SKIPPED, KEY_FAULTS.as_slice()),
        (SESSIONS_DROPPED, DROPS.as_slice()),
        (PROXIES_REFUSED, PROXY_REFUSALS.as_slice()),
        (CONTROL_REFUSED, CONTROL_REFUSALS.as_slice()),
    ] {
        for reason in reasons {
            counter!(name, "reason" => *reason).absolute(0);
        }
    }
    // Registering is enough to show a histogram.
    let _ = histogram!(REPLICATION_DELAY);
}

/// Counts a message sent on `plane`.
pub fn sent(plane: Plane) {
    counter!(MESSAGES_SENT, "plane" => plane.as_str()).increment(1);
}

/// Counts a message received on `plane`, whatever becomes of it.
pub fn received(plane: Plane) {
    counter!(MESSAGES_RECEIVED, "plane" => plane.as_str()).increment(1);
}

/// Counts a message that was not acted on.
pub fn refused(reason: Reason) {
    counter!(MESSAGES_REFUSED, "reason" => reason.as_str()).increment(1);
}

/// Counts `messages` that a gap in a sender's sequence shows to be lost.
pub fn missed(messages: u64) {
    counter!(MESSAGES_MISSED).increment(messages);
}

/// Counts a key, or a floor, that was skipped.
pub fn keys_skipped(reason: KeyReason, keys: u64) {
    counter!(KEYS_SKIPPED, "reason" => reason.as_str()).increment(keys);
}

/// Counts `keys` that had the name of another, and other bytes.
pub fn key_conflicts(keys: u64) {
    counter!(KEY_CONFLICTS).increment(keys);
}

/// Counts a message on the key plane that the broker did not answer for.
pub fn nacked() {
    counter!(MESSAGES_NACKED).increment(1);
}

/// Counts `entries` sent to the pod.
pub fn published(entries: u64) {
    counter!(SESSIONS_PUBLISHED).increment(entries);
}

/// Counts `entries` that came from the pod, whatever becomes of them.
pub fn taken_in(entries: u64) {
    counter!(SESSIONS_RECEIVED).increment(entries);
}

/// Counts `sessions` that were neither sent nor kept.
pub fn dropped(reason: DropReason, sessions: u64) {
    counter!(SESSIONS_DROPPED, "reason" => reason.as_str()).increment(sessions);
}

/// Records how long `sessions` that left their proxy at `at` took to here at `now`, both UTC milliseconds. A sender's clock
/// ahead of this one counts as no delay.
pub fn replicated(at: u64, now: u64, sessions: usize) {
    let delay = Duration::from_millis(now.saturating_sub(at)).as_secs_f64();
    histogram!(REPLICATION_DELAY).record_many(delay, sessions);
}

/// Shows how many keys of the ring are in each state, in the order of [`KEY_STATES`].
pub fn ring_keys(counts: [usize; 4]) {
    for (state, count) in KEY_STATES.into_iter().zip(counts) {
        gauge!(RING_KEYS, "state" => state).set(u32::try_from(count).unwrap_or(u32::MAX));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The metrics that the project promises by name.
    const PROMISED: [(&str, &str); 30] = [
        ("resumed_build_info", "gauge"),
        ("resumed_broker_connected", "gauge"),
        ("resumed_broker_reconnects_total", "counter"),
        ("resumed_leader", "gauge"),
        ("resumed_members", "gauge"),
        ("resumed_members_in_step", "gauge"),
        ("resumed_ring_keys", "gauge"),
        ("resumed_in_step", "gauge"),
        ("resumed_active_key_seals_for_seconds", "gauge"),
        ("resumed_key_interval_seconds", "gauge"),
        ("resumed_key_settle_seconds", "gauge"),
        ("resumed_skewed_nodes", "gauge"),
        ("resumed_ring_saved", "gauge"),
        ("resumed_active_key_age_seconds", "gauge"),
        ("resumed_rotations_total", "counter"),
        ("resumed_clock_offset_seconds", "gauge"),
        ("resumed_messages_sent_total", "counter"),
        ("resumed_messages_received_total", "counter"),
        ("resumed_messages_refused_total", "counter"),
        ("resumed_messages_missed_total", "counter"),
        ("resumed_sessions_published_total", "counter"),
        ("resumed_sessions_received_total", "counter"),
        ("resumed_sessions_inserted_total", "counter"),
        ("resumed_sessions_removed_total", "counter"),
        ("resumed_sessions_dropped_total", "counter"),
        ("resumed_replication_delay_seconds", "histogram"),
        ("resumed_cache_entries", "gauge"),
        ("resumed_cache_bytes", "gauge"),
        ("resumed_proxies_connected", "gauge"),
        ("resumed_apply_errors_total", "counter"),
    ];

    /// The value of one series, as a scrape shows it. The recorder belongs to the whole process, so tests that run
    /// beside this one count too.
    fn value(series: &str) -> f64 {
        let text = install().unwrap().render();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {series} in\n{text}")).parse().unwrap()
    }

    #[test]
    fn every_promised_metric_is_there_from_the_start_with_its_type_and_a_help_text() {
        let text = install().unwrap().render();
        for (name, kind) in PROMISED {
            assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name}: no {kind} in\n{text}");
            let help = text.lines().find_map(|line| line.strip_prefix(&format!("# HELP {name} ")));
            assert!(help.is_some_and(|help| help.ends_with('.')), "{name}: help is {help:?}");
            let series = text.lines().filter(|line| !line.starts_with('#') && line.starts_with(name));
            assert!(series.count() > 0, "{name}: no series");
        }
    }

    #[test]
    fn all_metrics_are_described() {
        let text = install().unwrap().render();
        let names = |kind: &str| -> BTreeSet<String> {
            let lines = text.lines().filter_map(|line| line.strip_prefix(kind)?.split(' ').next());
            lines.map(str::to_owned).collect()
        };
        assert_eq!(names("# TYPE "), names("# HELP "));
    }

    /// Every file of the main crate, with what tests are in it cut off.
    fn sources(folder: &std::path::Path) -> Vec<(String, String)> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.extend(sources(&path));
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let text = text.split("\n#[cfg(test)]\nmod ").next().unwrap().to_owned();
                found.push((path.display().to_string(), text));
            }
        }
        found
    }

    /// The texts in quotes that follow `before` in `text`.
    fn quoted<'a>(text: &'a str, before: &'a str) -> impl Iterator<Item = &'a str> {
        text.split(before).skip(1).filter_map(|rest| rest.split('"').next())
    }

    #[test]
    fn every_metric_of_the_sources_is_described_from_the_start() {
        let text = install().unwrap().render();
        let mut names = 0;
        for (file, source) in sources(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
            for name in quoted(&source, "\"resumed_") {
                names += 1;
                assert!(text.contains(&format!("# HELP resumed_{name} ")), "{file}: resumed_{name} is not described");
            }
        }
        assert!(names > 30, "{names} names found");
    }

    #[test]
    fn installing_again_gives_the_same_recorder() {
        let first = install().unwrap();
        let before = value("resumed_sessions_dropped_total{reason=\"echo\"}");
        dropped(DropReason::Echo, 7);
        install().unwrap();
        let seen = first.render();
        let after = value("resumed_sessions_dropped_total{reason=\"echo\"}");
        assert!(after >= before + 7.0, "{before} then {after}");
        assert!(seen.contains("resumed_sessions_dropped_total{reason=\"echo\"}"), "{seen}");
    }

    #[test]
    fn known_labels_are_shown_before_anything_happens() {
        let text = install().unwrap().render();
        for (metric, reasons) in [
            (MESSAGES_REFUSED, REFUSALS.as_slice()),
            (KEYS_SKIPPED, KEY_FAULTS.as_slice()),
            (SESSIONS_DROPPED, DROPS.as_slice()),
            (PROXIES_REFUSED, PROXY_REFUSALS.as_slice()),
            (CONTROL_REFUSED, CONTROL_REFUSALS.as_slice()),
        ] {
            for reason in reasons {
                assert!(text.contains(&format!("{metric}{{reason=\"{reason}\"}} ")), "{metric} {reason}");
            }
        }
        for plane in ["keys", "sessions"] {
            assert!(text.contains(&format!("resumed_messages_sent_total{{plane=\"{plane}\"}} ")), "{plane}");
            assert!(text.contains(&format!("resumed_messages_received_total{{plane=\"{plane}\"}} ")), "{plane}");
        }
        let version = env!("CARGO_PKG_VERSION");
        assert!(text.contains(&format!("resumed_build_info{{version=\"{version}\"}} 1\n")), "{text}");
    }

    #[test]
    fn the_replication_delay_is_a_histogram_from_half_a_millisecond_to_ten_seconds() {
        install().unwrap();
        let bucket = |le: &str| value(&format!("resumed_replication_delay_seconds_bucket{{le=\"{le}\"}}"));
        let (fast, slow, all) = (bucket("0.0005"), bucket("10"), bucket("+Inf"));
        replicated(1_000, 1_000, 1);
        // The sender's clock is ahead.
        replicated(2_000, 1_000, 1);
        replicated(1_000, 21_000, 5);
        assert!(bucket("0.0005") >= fast + 2.0);
        assert!(bucket("10") >= slow + 2.0);
        assert!(bucket("+Inf") >= all + 7.0);
        assert!(bucket("+Inf") > bucket("10"));
    }

    #[test]
    fn the_keys_of_a_ring_are_shown_by_state() {
        install().unwrap();
        ring_keys([1, 2, 3, 4]);
        for (state, count) in [("next", 1.0), ("active", 2.0), ("previous", 3.0), ("expired", 4.0)] {
            assert!((value(&format!("resumed_ring_keys{{state=\"{state}\"}}")) - count).abs() < 0.1, "{state}");
        }
    }

    #[tokio::test]
    async fn upkeep_ends_when_it_is_told() {
        let stop = CancellationToken::new();
        let task = tokio::spawn(upkeep(install().unwrap(), stop.clone()));
        stop.cancel();
        tokio::time::timeout(Duration::from_secs(10), task).await.expect("an end").unwrap();
    }
}
