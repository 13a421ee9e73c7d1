//! Farms too large for one machine: the real state machines in simulated time, beside what the formula of
//! `docs/scaling.md` says.

use std::time::Duration;

use crate::report::Report;
use simulation::large_farm::{beat, measure};
use testkit::broker::Broker;

/// How many nodes.
pub const SIZES: [usize; 3] = [300, 3_000, 10_000];
/// The default of `node.report_every`.
pub const REPORT_EVERY: Duration = Duration::from_secs(2);

/// Each size in turn. No broker is needed.
pub fn run(_broker: &Broker, report: &mut Report) {
    for nodes in SIZES {
        let seen = measure(nodes, REPORT_EVERY);
        let (n, beat) = (nodes as f64, beat(nodes, REPORT_EVERY));
        // A node reports up to a tenth of a beat early.
        let (reports, announcements) = (n / (0.95 * beat), 1.0 / beat);
        let mut add = |what: &str, value: f64| report.add(&format!("simulated_{nodes}_{what}"), value);
        add("beat_seconds", seen.beat_seconds);
        add("report_bytes", seen.report_bytes);
        add("announcement_bytes", seen.announcement_bytes);
        add("leader_messages_per_second", seen.leader_received_per_second.0 + seen.leader_sent_per_second.0);
        add("leader_messages_formula_per_second", reports + announcements + announcements + reports / n);
        add("leader_bytes_per_second", seen.leader_received_per_second.1 + seen.leader_sent_per_second.1);
        let leader_bytes = (reports + reports / n) * seen.report_bytes + 2.0 * announcements * seen.announcement_bytes;
        add("leader_bytes_formula_per_second", leader_bytes);
        add("broker_deliveries_per_second", seen.delivered_per_second.0);
        add("broker_deliveries_formula_per_second", reports + n * announcements);
        add("broker_delivered_bytes_per_second", seen.delivered_per_second.1);
        let bytes = reports * seen.report_bytes + n * announcements * seen.announcement_bytes;
        add("broker_delivered_bytes_formula_per_second", bytes);
        add("leader_machine_core_percent", seen.leader_busy_share * 100.0);
        add("join_seconds", seen.join_seconds);
        add("join_leader_machine_seconds", seen.join_busy.as_secs_f64());
        add("rotate_to_last_seconds", seen.rotate_seconds);
        add("rotate_confirmed_seconds", seen.confirmed_seconds);
        add("failover_seconds", seen.failover_seconds);
        add("followed_seconds", seen.followed_seconds);
        add("status_members", seen.status_members as f64);
    }
}
