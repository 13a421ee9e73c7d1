//! Two brokers whose keys exchange is federated, set up with the commands of `docs/scaling.md` and `docs/upgrade.md`.

use std::net::SocketAddr;

use crate::broker::Broker;
use crate::farm::wait_for;

/// The plugin that both brokers start with.
pub const PLUGIN: &str = "rabbitmq_federation";

/// What the documents tell the operator of the broker that is read from.
pub fn let_in(broker: &Broker, farm: &str) {
    broker.ctl(&["add_user", "federation", "hunter2"]);
    let own = format!(r"^federation: resumed\.{farm}\.keys ");
    let read = format!(r"^(federation: )?resumed\.{farm}\.keys( |$)");
    broker.ctl(&["set_permissions", "federation", &own, &own, &read]);
}

/// What they tell the operator of the broker that reads, here from the one at `other`. An announcement waits for `ttl`
/// milliseconds for the link.
pub fn federate(broker: &Broker, other: SocketAddr, farm: &str, ttl: u64) {
    let uri = format!("amqp://federation:hunter2@{other}/%2f?heartbeat=2");
    let upstream =
        format!(r#"{{"uri":"{uri}","max-hops":1,"message-ttl":{ttl},"expires":3600000,"reconnect-delay":1}}"#);
    broker.ctl(&["set_parameter", "federation-upstream", "resumed-other", &upstream]);
    let keys = format!(r"^resumed\.{farm}\.keys$");
    broker.ctl(&[
        "set_policy",
        "--apply-to",
        "exchanges",
        "resumed-keys",
        &keys,
        r#"{"federation-upstream-set":"all"}"#,
    ]);
}

/// Ends what [`federate`] began.
pub fn part(broker: &Broker) {
    broker.ctl(&["clear_policy", "resumed-keys"]);
    broker.ctl(&["clear_parameter", "federation-upstream", "resumed-other"]);
}

/// What a broker calls its cluster, and so the site that it serves.
pub fn cluster_name(broker: &Broker) -> String {
    let said = broker.ctl(&["eval", "io:format(\"~s\", [rabbit_nodes:cluster_name()])."]);
    said.lines().next().unwrap_or_default().trim_end_matches("ok").to_owned()
}

/// Waits until `broker` says that it takes messages from the other one.
pub fn wait_for_link(broker: &Broker) {
    wait_for("a federation link", || {
        let said = broker.ctl(&["federation_status", "--formatter", "json"]);
        let links: serde_json::Value = serde_json::from_str(&said).map_err(|error| format!("{said}: {error}"))?;
        let links = links.as_array().ok_or_else(|| said.clone())?;
        let runs = |link: &serde_json::Value| link["status"] == "running";
        if !links.is_empty() && links.iter().all(runs) { Ok(()) } else { Err(said) }
    });
}
