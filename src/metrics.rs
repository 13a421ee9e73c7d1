//! What a node counts and shows. Every metric is a row of [`TABLE`], from which come its handle, its help text and the zeroes
//! that are shown from the start.
//!
//! A process has one recorder. Several nodes in one process (as in `demo`) add to the same counters.

#[cfg(feature = "daemon")]
mod exporter;
mod handles;
mod labels;
#[cfg(feature = "daemon")]
mod page_counts;
pub(crate) mod row;
pub(crate) mod sessions;
pub(crate) mod table;

#[cfg(feature = "daemon")]
pub(crate) use exporter::upkeep;
#[cfg(feature = "daemon")]
pub(crate) use exporter::{MetricsError, install};
#[cfg(feature = "daemon")]
pub(crate) use handles::{Counter, CounterBy};
#[cfg(feature = "daemon")]
pub(crate) use labels::Label;
pub(crate) use labels::{Plane, Release};
#[cfg(feature = "daemon")]
pub(crate) use page_counts::{PageCounts, page_counts};
pub(crate) use table::*;

/// Tells the recorder of now of every metric, and has it show every series that is known beforehand. The daemon does so; a
/// server with a recorder of its own calls it once that is there.
pub fn announce() {
    for row in TABLE {
        row.describe();
        row.show();
    }
    BUILD_INFO.set(Release::This, 1);
}

#[cfg(test)]
mod tests;
