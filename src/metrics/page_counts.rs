//! The counters that this process itself reads again, for the page that shows the last minutes.
//!
//! The exporter keeps its counters to itself, and rendering every metric as text in order to read a few back would be a
//! detour. So the recorder stands behind one that counts these few a second time.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

use metrics::{Counter, CounterFn, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

use super::{
    CounterBy, Label, MESSAGES_MISSED, MESSAGES_REFUSED, PROXY_SESSIONS_INSERTED, SESSIONS_DROPPED, SESSIONS_INSERTED,
    SESSIONS_PUBLISHED, SESSIONS_RECEIVED,
};

/// What was counted since this process started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PageCounts {
    /// Sessions of this node's proxies sent to the pod.
    pub published: u64,
    /// Sessions that came from the pod.
    pub received: u64,
    /// Of these, taken into the cache.
    pub inserted: u64,
    /// Sessions of the pod that clients brought back to a proxy here.
    pub brought_back: u64,
    /// Messages that never came.
    pub missed: u64,
    /// Sessions that were neither sent nor kept, by reason; none that is 0.
    pub dropped: BTreeMap<String, u64>,
    /// Messages that were not acted on, by reason; none that is 0.
    pub refused: BTreeMap<String, u64>,
}

/// What the installed recorder has counted; nothing if none is installed.
#[must_use]
pub(crate) fn page_counts() -> PageCounts {
    KEPT.page_counts()
}

/// A process has one recorder.
static KEPT: LazyLock<Arc<Kept>> = LazyLock::new(Arc::default);

/// Every series that is counted twice. Their labels are constants of the sources, so there is an end to them.
#[derive(Debug, Default)]
struct Kept(RwLock<HashMap<Key, (Counter, Arc<AtomicU64>)>>);

impl Kept {
    fn counter(&self, key: &Key, register: impl FnOnce() -> Counter) -> Counter {
        if let Some((counter, _)) = self.0.read().unwrap_or_else(PoisonError::into_inner).get(key) {
            return counter.clone();
        }
        let mut kept = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let (counter, _) = kept.entry(key.clone()).or_insert_with(|| {
            let total = Arc::new(AtomicU64::new(0));
            let both = Both { shown: register(), total: Arc::clone(&total) };
            (Counter::from_arc(Arc::new(both)), total)
        });
        counter.clone()
    }

    fn page_counts(&self) -> PageCounts {
        let kept = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let of = |key: &Key| kept.get(key).map_or(0, |(_, total)| total.load(Ordering::Relaxed));
        let all = |counter: super::Counter| of(&Key::from_static_name(counter.name()));
        PageCounts {
            published: all(SESSIONS_PUBLISHED),
            received: all(SESSIONS_RECEIVED),
            inserted: all(SESSIONS_INSERTED),
            brought_back: all(PROXY_SESSIONS_INSERTED),
            missed: all(MESSAGES_MISSED),
            dropped: by_label(SESSIONS_DROPPED, of),
            refused: by_label(MESSAGES_REFUSED, of),
        }
    }
}

/// What `of` gives for each series of `counter`, by the label; none that is 0.
fn by_label<L: Label>(counter: CounterBy<L>, of: impl Fn(&Key) -> u64) -> BTreeMap<String, u64> {
    let series = L::VALUES.iter().map(|value| {
        let label = metrics::Label::from_static_parts(L::KEY, value);
        ((*value).to_owned(), of(&Key::from_parts(counter.name(), vec![label])))
    });
    series.filter(|(_, total)| *total > 0).collect()
}

/// What is counted twice.
const READ_AGAIN: [&str; 7] = [
    SESSIONS_PUBLISHED.name(),
    SESSIONS_RECEIVED.name(),
    SESSIONS_INSERTED.name(),
    PROXY_SESSIONS_INSERTED.name(),
    MESSAGES_MISSED.name(),
    SESSIONS_DROPPED.name(),
    MESSAGES_REFUSED.name(),
];

/// One counter of the exporter, and one to read.
struct Both {
    shown: Counter,
    total: Arc<AtomicU64>,
}

impl CounterFn for Both {
    fn increment(&self, value: u64) {
        self.shown.increment(value);
        self.total.fetch_add(value, Ordering::Relaxed);
    }

    fn absolute(&self, value: u64) {
        self.shown.absolute(value);
        self.total.fetch_max(value, Ordering::Relaxed);
    }
}

/// A recorder whose counters in [`READ_AGAIN`] this process can read.
pub(super) struct Readable<R> {
    recorder: R,
    kept: Arc<Kept>,
}

impl<R> Readable<R> {
    /// The one whose counts [`page_counts`] gives.
    pub(super) fn of_process(recorder: R) -> Self {
        Self { recorder, kept: Arc::clone(&KEPT) }
    }
}

impl<R: Recorder> Recorder for Readable<R> {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.recorder.describe_counter(key, unit, description);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.recorder.describe_gauge(key, unit, description);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.recorder.describe_histogram(key, unit, description);
    }

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        let register = || self.recorder.register_counter(key, metadata);
        if READ_AGAIN.contains(&key.name()) { self.kept.counter(key, register) } else { register() }
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        self.recorder.register_gauge(key, metadata)
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        self.recorder.register_histogram(key, metadata)
    }
}

#[cfg(test)]
mod tests {
    use metrics::with_local_recorder;
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::super::{MESSAGES_SENT, Plane, announce, install};
    use super::*;
    use crate::reason::{DropReason, Reason};

    #[test]
    fn what_is_counted_is_read_again_and_shown_as_well() {
        let exporter = PrometheusBuilder::new().build_recorder();
        let shown = exporter.handle();
        let kept = Arc::new(Kept::default());
        let recorder = Readable { recorder: exporter, kept: Arc::clone(&kept) };
        with_local_recorder(&recorder, || {
            announce();
            assert_eq!(kept.page_counts(), PageCounts::default());
            for counter in [SESSIONS_PUBLISHED, SESSIONS_RECEIVED, SESSIONS_INSERTED, PROXY_SESSIONS_INSERTED] {
                counter.add(2);
            }
            SESSIONS_PUBLISHED.add(1);
            MESSAGES_MISSED.add(4);
            MESSAGES_REFUSED.add(Reason::Replay, 1);
            MESSAGES_REFUSED.add(Reason::Replay, 1);
            MESSAGES_REFUSED.add(Reason::BadTag, 1);
            SESSIONS_DROPPED.add(DropReason::Echo, 7);
            MESSAGES_SENT.add(Plane::Keys, 1);
        });
        let by = |counts: &[(&str, u64)]| counts.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect();
        let expected = PageCounts {
            published: 3,
            received: 2,
            inserted: 2,
            brought_back: 2,
            missed: 4,
            dropped: by(&[("echo", 7)]),
            refused: by(&[("replay", 2), ("bad_tag", 1)]),
        };
        assert_eq!(kept.page_counts(), expected);
        let text = shown.render();
        for series in [
            "resumed_sessions_published_total 3",
            "resumed_messages_missed_total 4",
            "resumed_messages_refused_total{reason=\"replay\"} 2",
            "resumed_sessions_dropped_total{reason=\"echo\"} 7",
            "resumed_messages_sent_total{plane=\"keys\"} 1",
        ] {
            assert!(text.contains(&format!("\n{series}\n")), "no {series} in\n{text}");
        }
        assert_eq!(kept.0.read().unwrap().keys().filter(|key| key.name() == "resumed_messages_sent_total").count(), 0);
    }

    #[test]
    fn the_process_reads_what_its_own_recorder_counts() {
        install().unwrap();
        let before = page_counts();
        MESSAGES_MISSED.add(5);
        SESSIONS_DROPPED.add(DropReason::BadId, 3);
        let after = page_counts();
        assert!(after.missed >= before.missed + 5, "{before:?} then {after:?}");
        let bad_ids = |page_counts: &PageCounts| page_counts.dropped.get("bad_id").copied().unwrap_or(0);
        assert!(bad_ids(&after) >= bad_ids(&before) + 3, "{before:?} then {after:?}");
    }
}
