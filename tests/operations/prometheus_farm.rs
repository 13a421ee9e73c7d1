//! A real Prometheus that watches real nodes, with the rules and the dashboard that are shipped.

use resumed::internals::probe::{Client, Mode, Options};
use testkit::broker::Broker;
use testkit::dashboard::Dashboard;
use testkit::farm::{Farm, FarmSetup, Proxies, wait_for};
use testkit::prometheus::{Prometheus, ScrapeTarget, Watch};
use testkit::sessions::new_ones_resume;

/// Every node of `farm`, as Prometheus is told of it.
fn targets(farm: &Farm) -> Vec<ScrapeTarget> {
    let target = |host: &testkit::farm::Host| ScrapeTarget {
        address: host.daemon.metrics_address(),
        farm: farm.name().to_owned(),
        pod: "pod".to_owned(),
    };
    farm.hosts.iter().map(target).collect()
}

#[test]
fn the_dashboard_shows_a_farm_and_a_leader_that_is_killed_is_called_out_until_it_is_back() {
    let broker = Broker::shared();
    let mut farm = Farm::start_in_step(&FarmSetup::new(3, &broker.uri()));
    let prometheus = Prometheus::start(&Watch::impatiently(targets(&farm)));
    prometheus.wait_for_scrapes(2);
    // What is counted shows by how it rises between two scrapes.
    new_ones_resume(&Client::new(Options::default()).expect("a client"), &farm.targets(), Mode::Id);

    let dashboard = Dashboard::shipped();
    assert!(dashboard.panels.len() > 30, "{} panels", dashboard.panels.len());
    for panel in &dashboard.panels {
        for query in &panel.queries {
            let query = Dashboard::filled_in(query, farm.name());
            wait_for(&format!("data for \"{}\": {query}", panel.title), || {
                let samples = prometheus.query(&query)?;
                if samples.iter().any(|sample| sample.value.is_finite()) { Ok(()) } else { Err(format!("{samples:?}")) }
            });
        }
    }
    let recorded = prometheus.query("farm:resumed_members_in_step:ratio").expect("an answer");
    assert_eq!(recorded.iter().map(|sample| sample.value).collect::<Vec<_>>(), [1.0], "{recorded:?}");

    // Longer than any alert that clients would notice waits, and nobody is called.
    prometheus.wait_for_scrapes(40);
    assert_eq!(prometheus.firing().expect("alerts"), [], "a healthy farm");

    let leader = farm.leader();
    let instance = farm.hosts[leader].daemon.metrics_address();
    farm.hosts[leader].daemon.kill();
    let alert = prometheus.wait_until_fires("ResumedNodeDown", &instance);
    assert!(alert.annotations["summary"].contains(&instance), "{alert:?}");
    assert!(alert.annotations["summary"].contains(farm.name()), "{alert:?}");
    assert_eq!(alert.annotations["runbook"], "docs/runbook.md#resumednodedown");
    // Another leads before anybody misses a leader.
    assert_eq!(prometheus.firing().expect("alerts"), [("ResumedNodeDown".to_owned(), instance)]);
    farm.hosts[leader].daemon.launch();
    prometheus.wait_until_nothing_fires_but(&[]);

    // A follower is missed by its leader as well.
    farm.wait_in_step();
    let follower = farm.others(farm.leader())[0];
    let instance = farm.hosts[follower].daemon.metrics_address();
    farm.hosts[follower].daemon.kill();
    prometheus.wait_until_fires("ResumedMembersOutOfStep", farm.name());
    let expected =
        [("ResumedMembersOutOfStep".to_owned(), farm.name().to_owned()), ("ResumedNodeDown".to_owned(), instance)];
    assert_eq!(prometheus.firing().expect("alerts"), expected);
    farm.hosts[follower].daemon.launch();
    prometheus.wait_until_nothing_fires_but(&[]);
}

#[test]
fn a_farm_in_which_nobody_may_lead_and_then_has_no_broker_is_called_out_by_its_cause() {
    let broker = Broker::start();
    let setup =
        FarmSetup { proxies: Proxies::None, keys: "can_lead = false\n".to_owned(), ..FarmSetup::new(2, &broker.uri()) };
    let farm = Farm::start(&setup);
    let prometheus = Prometheus::start(&Watch::impatiently(targets(&farm)));
    let alert = prometheus.wait_until_fires("ResumedNoLeader", farm.name());
    assert_eq!(alert.label("severity"), "critical");

    broker.kill();
    let alert = prometheus.wait_until_fires("ResumedFarmWithoutBroker", farm.name());
    assert_eq!(alert.label("severity"), "critical");
    for host in &farm.hosts {
        prometheus.wait_until_fires("ResumedBrokerAway", &host.daemon.metrics_address());
    }
    let firing = prometheus.firing().expect("alerts");
    assert!(!firing.iter().any(|(name, _)| name == "ResumedNoLeader"), "the cause alone: {firing:?}");

    broker.revive();
    prometheus.wait_until_nothing_fires_but(&["ResumedNoLeader", "ResumedProxyAbsent"]);
    prometheus.wait_until_fires("ResumedNoLeader", farm.name());
}

#[test]
fn a_node_that_runs_alone_without_a_broker_calls_nobody() {
    let setup = FarmSetup::new(1, "");
    let farm = Farm::start_in_step(&setup);
    let prometheus = Prometheus::start(&Watch::impatiently(targets(&farm)));
    prometheus.wait_for_scrapes(40);
    assert_eq!(prometheus.firing().expect("alerts"), []);
    let leads = prometheus.query("farm:resumed_leader:sum").expect("an answer");
    assert_eq!(leads.iter().map(|sample| sample.value).collect::<Vec<_>>(), [1.0], "{leads:?}");
}
