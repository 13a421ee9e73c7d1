//! What happened to sessions, counted by the caller of [`crate::sessions`].
//!
//! | metric | counted when |
//! | --- | --- |
//! | `resumed_sessions_published_total` | a batch was handed to the bus: its entries |
//! | `resumed_sessions_received_total` | a batch or a warm-up came: its entries, before anything is done with them |
//! | `resumed_sessions_inserted_total` | sessions from the pod were taken ([`applied`]) |
//! | `resumed_sessions_removed_total` | removals from the pod were taken ([`applied`]) |
//! | `resumed_sessions_dropped_total{reason}` | every `SessionFault`, once ([`applied`], [`reported`]); what does not fit into the outbox, as `outbox_full`; what the publisher cannot send |
//! | `resumed_cache_entries`, `resumed_cache_bytes`, `resumed_tombstones` | the store may have changed ([`occupancy`]) |
//! | `resumed_cache_evicted_total`, `resumed_tombstones_dropped_total` | something went before its time to make room |
//! | `resumed_replication_delay_seconds` | a batch came, from `SessionEntry.at` ([`replicated`]) |
//!
//! So what a node received is what it inserted, removed and dropped, save the drops that its own proxies caused.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{
    CACHE_BYTES, CACHE_ENTRIES, CACHE_EVICTED, REPLICATION_DELAY, SESSIONS_DROPPED, SESSIONS_INSERTED,
    SESSIONS_REMOVED, TOMBSTONES, TOMBSTONES_DROPPED,
};
use crate::reason::DropReason;
use crate::sessions::{Applied, Evictions, Occupancy, Reported, Store};

/// Records how long `sessions` that left their proxy at `at` took to here at `now`, both UTC milliseconds. A sender's clock
/// ahead of this one counts as no delay.
pub(crate) fn replicated(at: u64, now: u64, sessions: usize) {
    let delay = Duration::from_millis(now.saturating_sub(at)).as_secs_f64();
    REPLICATION_DELAY.record_many(delay, sessions);
}

/// Counts what a batch or a warm-up of the pod did to `store`.
pub(crate) fn applied(applied: &Applied, store: &Store) {
    SESSIONS_INSERTED.add(applied.sessions);
    SESSIONS_REMOVED.add(applied.removals);
    changed(&applied.dropped, applied.evicted, store);
}

/// Counts what a proxy's report did to `store`.
pub(crate) fn reported(reported: &Reported, store: &Store) {
    changed(&reported.dropped, reported.evicted, store);
}

fn changed(refused: &BTreeMap<DropReason, u64>, evicted: Evictions, store: &Store) {
    for (reason, count) in refused {
        SESSIONS_DROPPED.add(*reason, *count);
    }
    if evicted.sessions > 0 {
        CACHE_EVICTED.add(evicted.sessions as u64);
    }
    if evicted.tombstones > 0 {
        TOMBSTONES_DROPPED.add(evicted.tombstones as u64);
    }
    occupancy(store);
}

/// Shows what `store` holds.
pub(crate) fn occupancy(store: &Store) {
    let Occupancy { sessions, bytes, tombstones } = store.occupancy();
    CACHE_ENTRIES.set(sessions as f64);
    CACHE_BYTES.set(bytes as f64);
    TOMBSTONES.set(tombstones as f64);
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;
    use crate::clock::Now;
    use crate::proto::{SessionBatch, SessionEntry, SessionFormat};
    use crate::sessions::samples::plain;
    use crate::sessions::{ENTRY_OVERHEAD, SessionSettings};

    const START: Now = Now { wall: 1_700_000_000_000, mono: 86_400_000 };

    fn made(number: u8) -> SessionEntry {
        let id = Bytes::from(vec![number; 32]);
        SessionEntry { session: plain(&id, START.wall / 1000, 300, 1), id, at: 77 }
    }

    fn removed(number: u8) -> SessionEntry {
        SessionEntry { session: Bytes::new(), ..made(number) }
    }

    #[test]
    fn everything_is_counted_once() {
        let cost = 32 + made(1).session.len() as u64 + ENTRY_OVERHEAD;
        let settings = SessionSettings { max_bytes: 3 * cost, ..SessionSettings::default() };
        let store = Store::new(settings, Duration::from_secs(600));
        let remote = |entries: Vec<SessionEntry>, format| {
            applied(&store.remote(SessionBatch { entries, format }, START), &store)
        };
        let local = |entry| reported(&store.local(vec![entry], START), &store);
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            let der = SessionFormat::OpensslDer.into();
            remote(vec![made(1), made(2), made(2), removed(1), made(1)], der);
            remote(vec![made(1), made(2)], 9);
            local(made(2));
            local(made(1));
            local(SessionEntry { session: made(1).session, ..made(3) });
            (4..=6).map(made).for_each(local);
        });
        let text = recorder.handle().render();
        let mut shown: Vec<_> = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
        shown.sort_unstable();
        let expected = [
            &format!("resumed_cache_bytes {}", 3 * cost)[..],
            "resumed_cache_entries 3",
            "resumed_cache_evicted_total 1",
            "resumed_sessions_dropped_total{reason=\"duplicate\"} 1",
            "resumed_sessions_dropped_total{reason=\"echo\"} 1",
            "resumed_sessions_dropped_total{reason=\"tombstone\"} 2",
            "resumed_sessions_dropped_total{reason=\"unknown_format\"} 2",
            "resumed_sessions_dropped_total{reason=\"wrong_id\"} 1",
            "resumed_sessions_inserted_total 2",
            "resumed_sessions_removed_total 1",
            "resumed_tombstones 1",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn the_replication_delay_is_a_histogram_from_half_a_millisecond_to_ten_seconds() {
        let recorder = super::super::exporter::recorder().unwrap();
        metrics::with_local_recorder(&recorder, || {
            replicated(1_000, 1_000, 1);
            // The sender's clock is ahead.
            replicated(2_000, 1_000, 1);
            replicated(1_000, 21_000, 5);
        });
        let text = recorder.handle().render();
        for (le, count) in [("0.0005", 2), ("10", 2), ("+Inf", 7)] {
            let line = format!("resumed_replication_delay_seconds_bucket{{le=\"{le}\"}} {count}");
            assert!(text.lines().any(|shown| shown == line), "no {line} in\n{text}");
        }
    }
}
