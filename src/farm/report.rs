//! Reports: when one is sent, and which ones of other nodes are taken.

use super::audit::{MOST_AUDITED, is_entry};
use super::context::Context;
use super::lease::PROBE_MS;
use super::timers::Timer;
use crate::clock::{Now, millis};
use crate::proto;
use crate::routes::Names;

/// Farm secrets and proxies in a report: messages with more are refused, for the leader keeps the last report of every
/// node.
pub(super) const MOST_IDS: usize = 16;
pub(super) const MOST_PROXIES: usize = 16;

/// Bytes in a pod's name, a release, and a kind of proxy.
const LONGEST_WORD: usize = 256;

/// When this node reports.
#[derive(Debug, Default)]
pub(super) struct Reports {
    /// The next report is one before its time, as those of many nodes are then.
    early: bool,
}

impl Reports {
    /// Reports between `least` and `most` milliseconds from now, if none is due sooner.
    pub(super) fn hasten(&mut self, least: u64, most: u64, cx: &mut Context, now: Now) {
        let at = now.mono + least + cx.random_below(most - least + 1);
        self.early |= cx.timers.hasten(Timer::Report, at);
    }

    /// A report is sent now: says when the next one is.
    pub(super) fn on_due(&mut self, cx: &mut Context, now: Now) {
        let interval = cx.report_interval;
        let all_at_once = std::mem::take(&mut self.early) && interval > millis(cx.settings.report_every);
        // Reports of a large farm that came close together spread over the beat again: the next one of any node finds out that
        // the leader is gone.
        let jitter = cx.random_below(if all_at_once { interval } else { interval / 10 + 1 });
        let probes = cx.timers.is_running(Timer::Probe, now);
        let after = if probes { PROBE_MS.min(interval) } else { interval - jitter };
        cx.timers.set(Timer::Report, now.mono + after);
    }
}

/// Whether a report is one that a node sends: whole, and of bounded size, for the last one of each node is kept.
pub(super) fn is_sound(report: &proto::Report, names: &Names) -> bool {
    names.is_inbox(&report.inbox)
        && report.fingerprint.len() == 8
        && is_word(&report.pod)
        && is_word(&report.version)
        && report.secret_ids.len() <= MOST_IDS
        && report.secret_ids.iter().all(|id| id.len() == 8)
        && report.proxies.len() <= MOST_PROXIES
        && report.proxies.iter().all(is_proxy)
        && are_told(report.proxies.iter().flat_map(|proxy| &proxy.warnings))
        && report.operators.as_deref().is_none_or(is_trail)
}

fn is_word(word: &str) -> bool {
    word.len() <= LONGEST_WORD
}

fn is_proxy(proxy: &proto::Proxy) -> bool {
    is_word(&proxy.kind) && is_word(&proxy.version) && matches!(proxy.certificate_digest.len(), 0 | 8)
}

/// Whether a node tells of so many warnings of its proxies.
fn are_told<'a>(warnings: impl Iterator<Item = &'a String>) -> bool {
    let (count, bytes) = warnings.fold((0, 0), |(count, bytes), warning| (count + 1, bytes + warning.len()));
    count <= proto::MOST_WARNINGS_TOLD && bytes <= proto::MOST_WARNING_BYTES
}

fn is_trail(trail: &proto::OperatorTrail) -> bool {
    trail.reload.as_ref().is_none_or(|reload| is_word(&reload.refused))
        && trail.audit.len() <= MOST_AUDITED
        && trail.audit.iter().all(is_entry)
}

#[cfg(test)]
mod tests;
