//! A row of the table of metrics, and what a recorder is told of it.
#![expect(clippy::disallowed_macros, reason = "a row shows its zeroes")]

use metrics::{SharedString, counter, gauge, histogram, with_recorder};

/// All there is to say of a metric, but for where it is counted.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Its name.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// What is counted or measured.
    pub unit: Unit,
    /// What it is counted by, if by anything: one series for each value.
    pub label: Option<LabelValues>,
    /// The help text: one sentence.
    pub help: &'static str,
}

/// What kind of metric it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// It only rises, from 0 at the start of the process.
    Counter,
    /// It is what it was set to last.
    Gauge,
    /// It counts values by their size: the upper bounds of its buckets, in its unit.
    Histogram(&'static [f64]),
}

/// What a metric counts or measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// 1 for yes, 0 for no.
    Flag,
    /// How many.
    Count,
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
}

/// A label and every value that it can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabelValues {
    /// The label's name.
    pub key: &'static str,
    /// Its values.
    pub values: &'static [&'static str],
}

impl Row {
    /// Tells the recorder of now its unit and help text.
    pub(super) fn describe(&self) {
        let (name, help) = (self.name.into(), SharedString::from(self.help));
        let unit = match self.unit {
            Unit::Flag => None,
            Unit::Count => Some(metrics::Unit::Count),
            Unit::Seconds => Some(metrics::Unit::Seconds),
            Unit::Bytes => Some(metrics::Unit::Bytes),
        };
        with_recorder(|recorder| match self.kind {
            Kind::Counter => recorder.describe_counter(name, unit, help),
            Kind::Gauge => recorder.describe_gauge(name, unit, help),
            Kind::Histogram(_) => recorder.describe_histogram(name, unit, help),
        });
    }

    /// Has the recorder of now show 0 for each series. A series that appears with its first event hides that event from `rate()`.
    pub(super) fn show(&self) {
        match self.label {
            None => self.show_series(Vec::new()),
            Some(LabelValues { key, values }) => {
                values.iter().for_each(|value| self.show_series(vec![metrics::Label::from_static_parts(key, value)]));
            }
        }
    }

    fn show_series(&self, labels: Vec<metrics::Label>) {
        match self.kind {
            Kind::Counter => counter!(self.name, labels).absolute(0),
            Kind::Gauge => gauge!(self.name, labels).set(0.0),
            // To register it is enough.
            Kind::Histogram(_) => drop(histogram!(self.name, labels)),
        }
    }
}
