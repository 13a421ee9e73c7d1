//! The recorder of the process, which shows itself to Prometheus.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use tokio_util::sync::CancellationToken;

use super::page_counts::Readable;
use super::row::Kind;
use super::{TABLE, announce};

/// Why there is no recorder.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MetricsError {
    /// The exporter cannot be built.
    #[error("cannot record metrics: {0}")]
    Build(#[from] BuildError),
    /// Another recorder is installed.
    #[error("cannot record metrics: this process has another recorder already")]
    Taken,
}

/// Installs the recorder, describes every metric and shows those whose labels are known at once. Later calls in the
/// same process return the same recorder's handle.
///
/// The recorder needs [`upkeep`] to run beside it.
///
/// # Errors
/// Another recorder was installed in this process before.
pub(crate) fn install() -> Result<PrometheusHandle, MetricsError> {
    static INSTALLED: Mutex<Option<PrometheusHandle>> = Mutex::new(None);
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(handle) = &*installed {
        return Ok(handle.clone());
    }
    let recorder = recorder()?;
    let handle = recorder.handle();
    metrics::set_global_recorder(Readable::of_process(recorder)).map_err(|_| MetricsError::Taken)?;
    announce();
    Ok(installed.insert(handle).clone())
}

/// An exporter with the buckets of every histogram.
pub(super) fn recorder() -> Result<PrometheusRecorder, BuildError> {
    let mut builder = PrometheusBuilder::new();
    for row in TABLE {
        if let Kind::Histogram(buckets) = row.kind {
            builder = builder.set_buckets_for_metric(Matcher::Full(row.name.into()), buckets)?;
        }
    }
    Ok(builder.build_recorder())
}

/// Keeps the memory of histograms bounded, also without any scrape. Returns when `stop` is cancelled.
pub(crate) async fn upkeep(handle: PrometheusHandle, stop: CancellationToken) {
    let mut tick = tokio::time::interval(Duration::from_secs(5));
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        handle.run_upkeep();
    }
}
