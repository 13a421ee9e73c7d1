use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusRecorder;
use tokio_util::sync::CancellationToken;

use super::row::{Kind, LabelValues, Row, Unit};
use super::*;
use crate::reason::DropReason;

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

/// What a scrape shows of a recorder of this thread, announced to and then used by `act`.
fn shown(act: impl FnOnce()) -> String {
    let recorder: PrometheusRecorder = exporter::recorder().unwrap();
    metrics::with_local_recorder(&recorder, || {
        announce();
        act();
    });
    recorder.handle().render()
}

/// Every series of `text` with its value.
fn series(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' ')).collect()
}

#[test]
fn every_promised_metric_is_in_the_table() {
    for (name, kind) in PROMISED {
        let row = TABLE.iter().find(|row| row.name == name).unwrap_or_else(|| panic!("{name} is gone"));
        assert_eq!(type_of(row), kind, "{name}");
    }
}

/// The type as Prometheus calls it.
fn type_of(row: &Row) -> &'static str {
    match row.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram(_) => "histogram",
    }
}

#[test]
fn names_are_distinct_and_tell_kind_and_unit() {
    for row in TABLE {
        let name = row.name;
        assert!(name.starts_with("resumed_"), "{name}");
        assert_eq!(name.ends_with("_total"), row.kind == Kind::Counter, "{name}");
        assert_eq!(name.ends_with("_seconds"), row.unit == Unit::Seconds, "{name}");
        assert_eq!(name.ends_with("_bytes"), row.unit == Unit::Bytes, "{name}");
        assert!(row.help.ends_with('.') && row.help.trim() == row.help && !row.help.contains("  "), "{}", row.help);
    }
    assert_eq!(TABLE.iter().map(|row| row.name).collect::<BTreeSet<_>>().len(), TABLE.len());
}

#[test]
fn every_series_is_described_and_shown_before_anything_happens() {
    let text = shown(|| ());
    let shown = series(&text);
    let mut count = 0;
    for row in TABLE {
        let (name, kind) = (row.name, type_of(row));
        assert!(text.contains(&format!("# HELP {name} {}\n# TYPE {name} {kind}\n", row.help)), "{name} in\n{text}");
        let first = if let Kind::Histogram(_) = row.kind { format!("{name}_count") } else { name.to_owned() };
        let labels = row.label.map_or(vec![first.clone()], |LabelValues { key, values }| {
            values.iter().map(|value| format!("{first}{{{key}=\"{value}\"}}")).collect()
        });
        for series in labels {
            let value = if row.name == BUILD_INFO.name() { "1" } else { "0" };
            assert_eq!(shown.get(&series[..]), Some(&value), "{series} in\n{text}");
            count += 1;
        }
    }
    let buckets = shown.keys().filter(|series| series.starts_with("resumed_replication_delay_seconds")).count();
    assert_eq!(shown.len(), count - 1 + buckets, "a series is of no row:\n{text}");
}

#[test]
fn labels_have_their_values_in_order() {
    let label = |name: &str| TABLE.iter().find(|row| row.name == name).and_then(|row| row.label).unwrap();
    let states = LabelValues { key: "state", values: &["next", "active", "previous", "expired"] };
    assert_eq!(label(RING_KEYS.name()), states);
    assert_eq!(label(MESSAGES_SENT.name()), LabelValues { key: "plane", values: &["keys", "sessions", "warmups"] });
    assert_eq!(label(CONTROL_REFUSED.name()).values, ["malformed", "too_large", "truncated", "idle"]);
    let proxies = label(PROXIES_REFUSED.name()).values;
    let expected =
        ["too_many", "peer", "silent", "no_hello", "too_large", "truncated", "garbage", "stopped_reading", "io"];
    assert_eq!(proxies, expected);
}

#[test]
fn installing_again_gives_the_same_recorder() {
    // The recorder belongs to the whole process, so tests that run beside this one count too.
    let echoes =
        |text: &str| -> u64 { series(text)["resumed_sessions_dropped_total{reason=\"echo\"}"].parse().unwrap() };
    let first = install().unwrap();
    let before = echoes(&first.render());
    SESSIONS_DROPPED.add(DropReason::Echo, 7);
    install().unwrap();
    let after = echoes(&first.render());
    assert!(after >= before + 7, "{before} then {after}");
}

#[test]
fn a_gauge_shows_a_flag_and_a_counter_by_a_label_counts_that_alone() {
    let text = shown(|| {
        LEADER.set(true);
        MEMBERS.set(3);
        MESSAGES_SENT.add(Plane::Keys, 2);
        MESSAGES_SENT.add(Plane::Keys, 1);
    });
    let shown = series(&text);
    assert_eq!((shown["resumed_leader"], shown["resumed_members"]), ("1", "3"));
    assert_eq!(shown["resumed_messages_sent_total{plane=\"keys\"}"], "3");
    assert_eq!(shown["resumed_messages_sent_total{plane=\"sessions\"}"], "0");
}

#[tokio::test]
async fn upkeep_ends_when_it_is_told() {
    let stop = CancellationToken::new();
    let task = tokio::spawn(upkeep(install().unwrap(), stop.clone()));
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(10), task).await.expect("an end").unwrap();
}
