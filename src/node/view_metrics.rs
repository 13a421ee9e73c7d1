//! Shows a node as metrics.

use std::time::Duration;

use super::view::NodeView;
use crate::clock::Now;
use crate::keys::{KeySettings, KeyState};
use crate::metrics::{
    ACTIVE_KEY_AGE, ACTIVE_KEY_SEALS_FOR, BROKER_CONNECTED, BROKER_RECONNECTS, CLOCK_OFFSET, IN_STEP, KEY_INTERVAL,
    KEY_SETTLE, LEADER, MEMBERS, MEMBERS_IN_STEP, RING_KEYS, RING_SAVE_ERRORS, RING_SAVED, ROTATIONS, SITE_SILENT_FOR,
    SITES, SITES_SILENT, SKEWED_NODES,
};
use crate::status::SiteStatus;

/// Shows the settings that the ages of keys and the offsets of clocks are measured against.
pub(super) fn settings(keys: &KeySettings) {
    KEY_INTERVAL.set(keys.interval.as_secs_f64());
    KEY_SETTLE.set(keys.settle.as_secs_f64());
}

/// Shows whether one node is connected to a broker, and counts its reconnects.
#[derive(Debug, Default)]
pub(super) struct Connections {
    was_connected: bool,
}

impl Connections {
    /// Shows whether the broker is connected; every connection after the node's first counts as a reconnect.
    pub(crate) fn show(&mut self, connected: bool) {
        BROKER_CONNECTED.set(connected);
        if connected && std::mem::replace(&mut self.was_connected, true) {
            BROKER_RECONNECTS.add(1);
        }
    }
}

/// Shows whether a restart of the node would find its ring.
pub(crate) fn show_ring_saved(saved: bool) {
    RING_SAVED.set(saved);
}

/// Shows whether the ring was saved: whether what was written has keys, and not floors alone; none if nothing was, which is
/// counted.
pub(super) fn ring_saved(written: Option<bool>) {
    if written.is_none() {
        RING_SAVE_ERRORS.add(1);
    }
    show_ring_saved(written.unwrap_or(false));
}

/// Shows everything else. `sealed_before` is the generation that sealed when this was last called.
pub(super) fn show(view: &NodeView, sealed_before: Option<u64>, now: Now) {
    LEADER.set(view.leads);
    MEMBERS.set(view.members);
    MEMBERS_IN_STEP.set(view.members_in_step);
    IN_STEP.set(view.in_step);
    SKEWED_NODES.set(u32::try_from(view.skewed.len()).unwrap_or(u32::MAX));
    sites(if view.leads { &view.sites } else { &[] });
    let offset = i32::try_from(view.clock_offset_ms).map_or(f64::from(i32::MAX), f64::from);
    CLOCK_OFFSET.set(offset / 1e3);
    for state in KeyState::ALL {
        let keys = view.ring.keys.iter().filter(|key| key.state == state).count();
        RING_KEYS.set(state, u32::try_from(keys).unwrap_or(u32::MAX));
    }
    let active = view.ring.active();
    let (age, left) = active.map_or_else(Default::default, |active| {
        (now.wall.saturating_sub(active.seal_from), active.seal_until.saturating_sub(now.wall))
    });
    ACTIVE_KEY_AGE.set(Duration::from_millis(age).as_secs_f64());
    ACTIVE_KEY_SEALS_FOR.set(Duration::from_millis(left).as_secs_f64());
    if active.zip(sealed_before).is_some_and(|(active, before)| active.generation != before) {
        ROTATIONS.add(1);
    }
}

/// Shows the other sites, at the leader alone: one node of a farm calls for somebody.
fn sites(sites: &[SiteStatus]) {
    let count = |sites: usize| u32::try_from(sites).unwrap_or(u32::MAX);
    SITES.set(count(sites.len()));
    SITES_SILENT.set(count(sites.iter().filter(|site| site.silent).count()));
    let longest = sites.iter().map(|site| site.silent_ms).max().unwrap_or(0);
    SITE_SILENT_FOR.set(Duration::from_millis(longest).as_secs_f64());
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;
    use crate::status::{KeyStatus, RingStatus};

    /// What a scrape shows after `act`, of this thread alone.
    fn shown(act: impl FnOnce()) -> String {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, act);
        recorder.handle().render()
    }

    fn has(text: &str, line: &str) {
        assert!(text.lines().any(|shown| shown == line), "no {line} in\n{text}");
    }

    /// A node whose only key began to seal at 100 s and may go on until 700 s.
    fn view() -> NodeView {
        let key = KeyStatus {
            name_prefix: "00000000".to_owned(),
            generation: 7,
            state: KeyState::Active,
            seal_from: 100_000,
            seal_until: 700_000,
            open_until: 900_000,
        };
        NodeView { ring: RingStatus { keys: vec![key], ..RingStatus::default() }, ..NodeView::default() }
    }

    const NOW: Now = Now { wall: 130_500, mono: 0 };

    #[test]
    fn the_active_key_is_shown_with_its_age_and_how_long_it_may_go_on() {
        let text = shown(|| show(&view(), None, NOW));
        has(&text, "resumed_active_key_age_seconds 30.5");
        has(&text, "resumed_active_key_seals_for_seconds 569.5");
        has(&text, "resumed_ring_keys{state=\"active\"} 1");
        // Past its end, and on a clock by which it has not begun.
        let late = shown(|| show(&view(), None, Now { wall: 800_000, mono: 0 }));
        has(&late, "resumed_active_key_seals_for_seconds 0");
        let early = shown(|| show(&view(), None, Now { wall: 99_000, mono: 0 }));
        has(&early, "resumed_active_key_age_seconds 0");
    }

    #[test]
    fn without_a_key_that_seals_nothing_of_an_earlier_one_is_shown() {
        let text = shown(|| {
            show(&view(), None, NOW);
            show(&NodeView::default(), Some(7), NOW);
        });
        has(&text, "resumed_active_key_age_seconds 0");
        has(&text, "resumed_active_key_seals_for_seconds 0");
        has(&text, "resumed_ring_keys{state=\"active\"} 0");
        assert!(!text.contains("resumed_rotations_total"), "{text}");
    }

    #[test]
    fn another_key_than_before_is_a_rotation_and_the_first_one_is_none() {
        let text = shown(|| {
            show(&view(), None, NOW);
            show(&view(), Some(7), NOW);
        });
        assert!(!text.contains("resumed_rotations_total"), "{text}");
        has(&shown(|| show(&view(), Some(6), NOW)), "resumed_rotations_total 1");
    }

    #[test]
    fn a_node_shows_whether_it_is_in_step_and_how_many_clocks_are_too_far_off() {
        let alone = shown(|| show(&view(), None, NOW));
        has(&alone, "resumed_in_step 0");
        has(&alone, "resumed_skewed_nodes 0");
        let skewed = vec![("a".to_owned(), 400_000), ("b".to_owned(), 399_000)];
        let text = shown(|| show(&NodeView { in_step: true, skewed, ..view() }, None, NOW));
        has(&text, "resumed_in_step 1");
        has(&text, "resumed_skewed_nodes 2");
    }

    #[test]
    fn each_node_of_a_process_counts_its_own_connections_after_the_first() {
        let (mut one, mut other) = (Connections::default(), Connections::default());
        let text = shown(|| {
            for connected in [false, true] {
                one.show(connected);
                other.show(connected);
            }
        });
        has(&text, "resumed_broker_connected 1");
        assert!(!text.contains("resumed_broker_reconnects_total"), "{text}");
        let text = shown(|| {
            one.show(false);
            one.show(true);
        });
        has(&text, "resumed_broker_reconnects_total 1");
    }

    #[test]
    fn the_keys_of_a_ring_are_shown_by_state() {
        let key = |state: KeyState| KeyStatus { state, ..view().ring.keys[0].clone() };
        use KeyState::{Active, Expired, Next, Previous};
        let keys = [Next, Next, Active, Previous, Previous, Previous].map(key).to_vec();
        let text =
            shown(|| show(&NodeView { ring: RingStatus { keys, ..RingStatus::default() }, ..view() }, None, NOW));
        for (state, count) in [(Next, 2), (Active, 1), (Previous, 3), (Expired, 0)] {
            has(&text, &format!("resumed_ring_keys{{state=\"{}\"}} {count}", state.as_str()));
        }
    }

    #[test]
    fn a_leader_alone_shows_the_other_sites() {
        let site = |silent, silent_ms| SiteStatus { silent, silent_ms, ..SiteStatus::default() };
        let led = NodeView { leads: true, sites: vec![site(false, 400), site(true, 90_500)], ..view() };
        let text = shown(|| show(&led, None, NOW));
        has(&text, "resumed_sites 2");
        has(&text, "resumed_sites_silent 1");
        has(&text, "resumed_site_silent_seconds 90.5");
        let text = shown(|| {
            show(&led, None, NOW);
            show(&NodeView { leads: false, ..led.clone() }, None, NOW);
        });
        has(&text, "resumed_sites 0");
        has(&text, "resumed_sites_silent 0");
        has(&text, "resumed_site_silent_seconds 0");
    }

    #[test]
    fn a_ring_that_could_not_be_saved_shows_until_it_is() {
        has(&shown(|| show_ring_saved(true)), "resumed_ring_saved 1");
        let failed = shown(|| {
            show_ring_saved(true);
            ring_saved(None);
        });
        has(&failed, "resumed_ring_saved 0");
        has(&failed, "resumed_ring_save_errors_total 1");
    }

    #[test]
    fn the_settings_of_keys_are_shown_in_seconds() {
        let keys = KeySettings { settle: Duration::from_millis(250), ..KeySettings::default() };
        let text = shown(|| settings(&keys));
        has(&text, "resumed_key_interval_seconds 28800");
        has(&text, "resumed_key_settle_seconds 0.25");
    }
}
