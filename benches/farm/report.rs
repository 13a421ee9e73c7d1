//! What was measured: one flat map of names to numbers.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Names carry their unit at the end: `_per_second`, `_nanoseconds`, `_microseconds`, `_seconds`, `_bytes`, `_ratio`, `_percent` (of
/// one core, where it is `_core_percent`), or none for a plain count.
#[derive(Debug, Default)]
pub struct Report {
    figures: BTreeMap<String, f64>,
}

/// Percentiles of durations.
#[derive(Clone, Copy, Debug)]
pub struct Percentiles {
    /// Half of them took no longer.
    pub p50: Duration,
    /// 99 of 100 took no longer.
    pub p99: Duration,
}

impl Percentiles {
    /// Of `all`, of which there must be one at least.
    pub fn of(mut all: Vec<Duration>) -> Self {
        all.sort_unstable();
        let at = |share: usize| all[(all.len() * share / 100).min(all.len() - 1)];
        Self { p50: at(50), p99: at(99) }
    }
}

impl Report {
    /// Notes a figure, and shows it.
    pub fn add(&mut self, name: &str, value: f64) {
        assert!(value.is_finite(), "{name} was measured as {value}");
        eprintln!("  {name} = {}", readable(value));
        self.figures.insert(name.to_owned(), value);
    }

    /// A figure, if it was measured in this run.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.figures.get(name).copied()
    }

    /// Where reports go.
    pub fn folder() -> PathBuf {
        let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
        target.unwrap_or_else(|| testkit::tree().join("target")).join("bench")
    }

    /// Writes `target/bench/report.json`: what this run measured.
    pub fn write(&self) -> io::Result<()> {
        let folder = Self::folder();
        fs::create_dir_all(&folder)?;
        let file = folder.join("report.json");
        fs::write(&file, serde_json::to_string_pretty(&self.figures)? + "\n")?;
        eprintln!("written: {}", file.display());
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.figures.keys().map(String::len).max().unwrap_or(0);
        for (name, value) in &self.figures {
            writeln!(f, "{name:width$}  {:>14}", readable(*value))?;
        }
        Ok(())
    }
}

fn readable(value: f64) -> String {
    let digits = if value.abs() < 10.0 {
        3
    } else if value.abs() < 1_000.0 {
        1
    } else {
        0
    };
    format!("{value:.digits$}")
}
