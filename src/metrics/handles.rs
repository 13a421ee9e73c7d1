//! What callers count and show with: a handle for each row of the table. There are no others, so that no metric is counted that
//! the table does not have, and none by a label that is not its own.
#![expect(clippy::disallowed_macros, reason = "the handles are what all others use")]

use std::marker::PhantomData;

use metrics::{counter, gauge, histogram};

use super::labels::Label;
use super::row::{Kind, LabelValues, Row, Unit};

/// A number that only rises.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counter {
    name: &'static str,
    unit: Unit,
}

impl Counter {
    pub(super) const fn new(name: &'static str, unit: Unit) -> Self {
        Self { name, unit }
    }

    pub(super) const fn row(self, help: &'static str) -> Row {
        Row { name: self.name, kind: Kind::Counter, unit: self.unit, label: None, help }
    }

    /// The metric's name.
    #[must_use]
    #[cfg(any(test, feature = "daemon"))]
    pub(crate) const fn name(self) -> &'static str {
        self.name
    }

    /// Counts `more`.
    pub(crate) fn add(self, more: u64) {
        counter!(self.name).increment(more);
    }
}

/// A number for each value of a label, that only rises.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CounterBy<L> {
    name: &'static str,
    unit: Unit,
    label: PhantomData<L>,
}

impl<L: Label> CounterBy<L> {
    pub(super) const fn new(name: &'static str, unit: Unit) -> Self {
        Self { name, unit, label: PhantomData }
    }

    pub(super) const fn row(self, help: &'static str) -> Row {
        Row { name: self.name, kind: Kind::Counter, unit: self.unit, label: Some(values::<L>()), help }
    }

    /// The metric's name.
    #[must_use]
    #[cfg(any(test, feature = "daemon"))]
    pub(crate) const fn name(self) -> &'static str {
        self.name
    }

    /// Counts `more` of those with `label`.
    pub(crate) fn add(self, label: L, more: u64) {
        counter!(self.name, L::KEY => label.value()).increment(more);
    }
}

/// A number that is shown as it is now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gauge {
    name: &'static str,
    unit: Unit,
}

impl Gauge {
    pub(super) const fn new(name: &'static str, unit: Unit) -> Self {
        Self { name, unit }
    }

    pub(super) const fn row(self, help: &'static str) -> Row {
        Row { name: self.name, kind: Kind::Gauge, unit: self.unit, label: None, help }
    }

    /// Shows `value`; of a flag, 1 for true.
    pub(crate) fn set(self, value: impl Into<f64>) {
        gauge!(self.name).set(value.into());
    }
}

/// A number for each value of a label, shown as it is now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GaugeBy<L> {
    name: &'static str,
    unit: Unit,
    label: PhantomData<L>,
}

impl<L: Label> GaugeBy<L> {
    pub(super) const fn new(name: &'static str, unit: Unit) -> Self {
        Self { name, unit, label: PhantomData }
    }

    pub(super) const fn row(self, help: &'static str) -> Row {
        Row { name: self.name, kind: Kind::Gauge, unit: self.unit, label: Some(values::<L>()), help }
    }

    /// The metric's name.
    #[must_use]
    #[cfg(test)]
    pub(crate) const fn name(self) -> &'static str {
        self.name
    }

    /// Shows `value` of those with `label`.
    pub(crate) fn set(self, label: L, value: impl Into<f64>) {
        gauge!(self.name, L::KEY => label.value()).set(value.into());
    }
}

/// Values, counted by their size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Histogram {
    name: &'static str,
    unit: Unit,
    buckets: &'static [f64],
}

impl Histogram {
    pub(super) const fn new(name: &'static str, unit: Unit, buckets: &'static [f64]) -> Self {
        Self { name, unit, buckets }
    }

    pub(super) const fn row(self, help: &'static str) -> Row {
        Row { name: self.name, kind: Kind::Histogram(self.buckets), unit: self.unit, label: None, help }
    }

    /// Counts `value`, in the metric's unit, so many times.
    pub(crate) fn record_many(self, value: f64, times: usize) {
        histogram!(self.name).record_many(value, times);
    }
}

const fn values<L: Label>() -> LabelValues {
    LabelValues { key: L::KEY, values: L::VALUES }
}
