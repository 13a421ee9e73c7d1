//! Many seeds, on all processors.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::script::{self, Outcome};

/// What many seeds showed together.
#[derive(Debug, Default)]
pub struct Sweep {
    pub seeds: u64,
    pub nodes: u64,
    pub faults: u64,
    /// How often one node's key was looked for at another.
    pub pairs_checked: u64,
    /// Of these, at another site.
    pub pairs_across: u64,
    /// Replays and forgeries that were refused.
    pub attacks_refused: u64,
    /// How often a node read its farm secrets again, and met a message under one that it had not.
    pub reloads: u64,
    pub unknown_secrets: u64,
    /// How often a ring could not be saved, and how often a node died while it was not.
    pub saves_failed: u64,
    pub died_unsaved: u64,
    /// Farms in which a node led at a seat behind the first.
    pub led_further_back: u64,
    /// Farms that were led without a lease at their end.
    pub led_without_lease: u64,
    /// In order of their seeds.
    pub failures: Vec<(u64, String)>,
}

/// A seed's outcome; a panic of the machine is a failure like others.
pub fn try_seed(seed: u64, trace: bool) -> Result<Outcome, (String, Vec<String>)> {
    match std::panic::catch_unwind(|| script::run(seed, trace)) {
        Ok(Ok(outcome)) => Ok(outcome),
        Ok(Err(violation)) => Err((violation.what, violation.trace)),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            Err((format!("panic: {}", text.unwrap_or("without a text")), Vec::new()))
        }
    }
}

/// Runs `count` seeds from `first` on. After `most_failures` no more are begun.
pub fn sweep(first: u64, count: u64, most_failures: u64) -> Sweep {
    let next = AtomicU64::new(first);
    let sweep = Mutex::new(Sweep::default());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let enough = sweep.lock().unwrap_or_else(PoisonError::into_inner).failures.len() as u64 >= most_failures;
            if seed >= first + count || enough {
                return;
            }
            let tried = try_seed(seed, false);
            let mut sweep = sweep.lock().unwrap_or_else(PoisonError::into_inner);
            sweep.seeds += 1;
            match tried {
                Ok(outcome) => {
                    sweep.nodes += outcome.nodes;
                    sweep.faults += outcome.faults;
                    sweep.pairs_checked += outcome.pairs_checked;
                    sweep.pairs_across += outcome.pairs_across;
                    sweep.attacks_refused += outcome.attacks_refused;
                    sweep.reloads += outcome.reloads;
                    sweep.unknown_secrets += outcome.unknown_secrets;
                    sweep.saves_failed += outcome.saves_failed;
                    sweep.died_unsaved += outcome.died_unsaved;
                    sweep.led_further_back += u64::from(outcome.led_further_back);
                    sweep.led_without_lease += u64::from(outcome.led_without_lease);
                }
                Err((what, _)) => sweep.failures.push((seed, what)),
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(work);
        }
    });
    let mut sweep = sweep.into_inner().unwrap_or_else(PoisonError::into_inner);
    sweep.failures.sort();
    sweep
}

/// Runs a seed again and tells its story.
pub fn explain(seed: u64) -> String {
    match try_seed(seed, true) {
        Ok(_) => format!("seed {seed} passes when it is run again: the simulation is not deterministic"),
        Err((what, trace)) => {
            format!(
                "seed {seed}: {what}\n{}\nseed {seed}: {what}\nrun it again with: make soak SEED={seed}",
                trace.join("\n")
            )
        }
    }
}
