//! A broker that lets a node in no further: the log says which limit it is, and how to raise it.

use std::collections::BTreeSet;
use std::time::Duration;

use resumed::internals::bus::{Bus, Link, LinkEvents, LinkSpec, RabbitMqLink};
use resumed::internals::routes::{Names, Published, Route};
use resumed::{BusError, RabbitMq, RabbitMqSettings};
use testkit::broker::{Broker, BrokerOptions};
use testkit::farm::{Farm, FarmSetup, Proxies, wait_for};
use testkit::held_seat::HeldSeat;
use tokio::sync::mpsc;

/// What a leader logs that has the lease.
const LEASED: &str = "this node holds the lease and leads";

async fn connect(uri: &str) -> Result<RabbitMqLink, BusError> {
    let connect_timeout = Duration::from_secs(5);
    let uris = vec![uri.parse().expect("a URI")];
    let settings = RabbitMqSettings { uris, connect_timeout, ..RabbitMqSettings::default() };
    let spec =
        LinkSpec { names: Names::new("limits", "p"), node: "a".to_owned(), sessions: true, elsewhere_than: None };
    let (keys, _keys) = mpsc::channel(64);
    let (feed, _feed) = mpsc::channel(64);
    RabbitMq::new(settings)?.connect(&spec, LinkEvents { keys, feed }).await
}

async fn refusal(uri: &str) -> String {
    let error = match connect(uri).await {
        Ok(link) => panic!("connected to {}", link.peer()),
        Err(error) => error.to_string(),
    };
    println!("{error}");
    assert!(!error.contains("hunter2"), "{error}");
    error
}

#[track_caller]
fn assert_says(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{said:?} does not say {part:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_login_says_which_limit_it_is_and_how_to_raise_it() {
    let broker = Broker::shared();
    broker.ctl(&["add_vhost", "small"]);
    for user in ["few", "narrow", "stranger"] {
        broker.ctl(&["add_user", user, "hunter2"]);
    }
    for (user, vhost) in [("few", "/"), ("few", "small"), ("narrow", "/")] {
        broker.ctl(&["set_permissions", "-p", vhost, user, ".*", ".*", ".*"]);
    }
    // None at all: the broker counts a moment later, and a node's two connections begin at once.
    broker.ctl(&["set_vhost_limits", "-p", "small", r#"{"max-connections": 0}"#]);
    let said = refusal(&broker.uri_as("few", "hunter2", "small")).await;
    assert_says(
        &said,
        &["connection limit (0) is reached", "set_vhost_limits -p 'small'", "two connections for each node"],
    );

    broker.ctl(&["set_vhost_limits", "-p", "small", r#"{"max-connections": 9, "max-queues": 0}"#]);
    let said = refusal(&broker.uri_as("few", "hunter2", "small")).await;
    assert_says(
        &said,
        &["queue limit in vhost 'small' (0) is reached", "set_vhost_limits -p 'small' '{\"max-queues\": N}'"],
    );

    broker.ctl(&["set_user_limits", "few", r#"{"max-connections": 0}"#]);
    let said = refusal(&broker.uri_as("few", "hunter2", "/")).await;
    assert_says(
        &said,
        &["user connection limit (0) is reached", "set_user_limits 'few'", "two connections for each node"],
    );

    broker.ctl(&["set_user_limits", "narrow", r#"{"max-channels": 0}"#]);
    let said = refusal(&broker.uri_as("narrow", "hunter2", "/")).await;
    // RabbitMQ 4.0 says its own name in place of the user's.
    let user = if said.contains("user 'narrow'") { "'narrow'" } else { "USER" };
    assert_says(&said, &["number of channels", &format!("clear_user_limits {user} max-channels")]);

    let said = refusal(&broker.uri_as("stranger", "hunter2", "/")).await;
    assert_says(&said, &["access to vhost", "permissions.sh FARM 'stranger' '/'"]);
    let said = refusal(&broker.uri_as("guest", "guest", "")).await;
    assert_says(&said, &["the virtual host with the empty name", "%2f"]);

    // With the limits gone as the sentences say, the same URIs connect.
    broker.ctl(&["clear_vhost_limits", "-p", "small"]);
    broker.ctl(&["clear_user_limits", "few", "max-connections"]);
    broker.ctl(&["clear_user_limits", "narrow", "max-channels"]);
    for uri in [
        broker.uri_as("few", "hunter2", "small"),
        broker.uri_as("few", "hunter2", "/"),
        broker.uri_as("narrow", "hunter2", "/"),
    ] {
        let link = connect(&uri).await.unwrap_or_else(|error| panic!("{error}"));
        link.close().await;
    }
}

/// A limit of two connections for each node was right for 0.1.0, whose lease had none of its own.
#[test]
fn a_limit_of_two_connections_for_each_node_leaves_a_leader_without_a_lease_and_is_named() {
    let broker = Broker::shared();
    broker.ctl(&["add_vhost", "two"]);
    broker.ctl(&["set_permissions", "-p", "two", "guest", ".*", ".*", ".*"]);
    let limit = |most: usize| {
        broker.ctl(&["set_vhost_limits", "-p", "two", &format!("{{\"max-connections\": {most}}}")]);
    };
    let uri = broker.uri_as("guest", "guest", "two");
    let mut farm = Farm::lay_out(&FarmSetup {
        proxies: Proxies::None,
        broker: "report_every = \"1s\"\n".to_owned(),
        ..FarmSetup::new(3, &uri)
    });
    let logged = |farm: &Farm, text: &str| farm.hosts.iter().any(|host| host.daemon.log().contains(text));

    // Each has its two before any has the lease.
    let lease = HeldSeat::take(&uri, &Names::new(farm.name(), "pod").leader);
    limit(3 * 2 + 1);
    farm.launch();
    for host in &farm.hosts {
        host.daemon.wait_for_metric("resumed_broker_connected", |connected| connected == 1.0);
    }
    limit(3 * 2);
    drop(lease);
    let status = farm.wait_in_step();
    assert_eq!(status.nodes.len(), 3, "{status:?}");
    let rotated = farm.hosts[1].daemon.command(&["rotate"]);
    assert!(rotated.status.success(), "{rotated:?}");
    assert!(logged(&farm, "announcing without the lease") && !logged(&farm, LEASED), "a leader that has the lease");
    wait_for("a node that names the limit", || {
        let named = |line: &str| {
            ["could not try the lease", "connection limit (", ") is reached", "max-connections"]
                .iter()
                .all(|part| line.contains(part))
        };
        let log = farm.hosts.iter().map(|host| host.daemon.log()).collect::<String>();
        if log.lines().any(named) { Ok(()) } else { Err(log) }
    });

    // With a third for each there is a leader with a lease again.
    limit(3 * 3);
    let ((), took) =
        wait_for("a leader with a lease", || if logged(&farm, LEASED) { Ok(()) } else { Err(String::new()) });
    println!("a leader with a lease {took:?} after the limit was raised");
    farm.wait_in_step();
}

/// What a node logged of `channel_max`, each line from its level on.
fn limits_said(log: &str) -> Vec<String> {
    let lines = log.lines().filter(|line| line.contains("this limit is channel_max"));
    lines.filter_map(|line| line.split_once("WARN")).map(|(_, said)| said.to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_with_too_few_channels_is_told_apart_from_one_that_is_gone() {
    let broker = tokio::task::block_in_place(|| {
        Broker::start_with(&BrokerOptions { conf: "channel_max = 2\n".to_owned(), ..BrokerOptions::default() })
    });
    let link = connect(&broker.uri()).await.expect("two channels are enough to connect");
    let message = || bytes::Bytes::from_static(b"x");
    assert_eq!(link.publish(&Route::Keys, message()).await.expect("the first channel for keys"), Published::Routed);
    let both = tokio::join!(link.publish(&Route::Keys, vec![0; 500_000].into()), link.publish(&Route::Keys, message()));
    let refused = [both.0, both.1].into_iter().find_map(Result::err).expect("no channel for the second one");
    assert!(matches!(&refused, BusError::Refused { reason, .. } if reason == "no channel is left"), "{refused}");
    link.close().await;

    // A node there says so, and not again and again.
    let broker_keys = "report_every = \"500ms\"\n".to_owned();
    let setup = FarmSetup { proxies: Proxies::None, broker: broker_keys, ..FarmSetup::new(3, &broker.uri()) };
    tokio::task::block_in_place(|| {
        let farm = Farm::start(&setup);
        wait_for("a node that says which limit it is", || {
            let logs: Vec<String> = farm.hosts.iter().map(|host| host.daemon.log()).collect();
            if logs.iter().any(|log| !limits_said(log).is_empty()) { Ok(()) } else { Err(logs.concat()) }
        });
        const SENT: &str = "resumed_messages_sent_total{plane=\"keys\"}";
        let sent: Vec<f64> = farm.hosts.iter().map(|host| host.daemon.metric(SENT)).collect();
        for (host, sent) in farm.hosts.iter().zip(sent) {
            // Those that find no channel are refused again.
            host.daemon.wait_for_metric(SENT, |now| now >= sent + 6.0);
            let said = limits_said(&host.daemon.log());
            assert_eq!(said.len(), said.iter().collect::<BTreeSet<_>>().len(), "said again: {said:#?}");
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_answers_no_further_connection_is_said_to_have_a_limit() {
    let broker = tokio::task::block_in_place(|| {
        Broker::start_with(&BrokerOptions { conf: "connection_max = 1\n".to_owned(), ..BrokerOptions::default() })
    });
    // It takes some more than it is told to.
    let mut links = Vec::new();
    let said = loop {
        match connect(&broker.uri()).await {
            Ok(link) => links.push(link),
            Err(error) => break error.to_string(),
        }
        assert!(links.len() < 50, "connection_max limits nothing");
    };
    println!("{} links, then: {said}", links.len());
    // 3.10 answers no further connection at all, 4.0 says why.
    if broker.version().at_least(4, 0) {
        assert_says(
            &said,
            &["node connection limit", "connection_max in rabbitmq.conf", "two connections for each node"],
        );
    } else {
        assert_says(
            &said,
            &["login: the broker says nothing", "connection_max in its rabbitmq.conf", "two connections for each node"],
        );
    }
}
