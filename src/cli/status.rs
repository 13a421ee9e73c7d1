//! `resumed status`: the farm as tables or as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;

use super::control::{Control, ControlError};
use super::table::{plain, table};
use super::{Failure, SocketArg};
use crate::clock::SystemClock;
use crate::settings;
use crate::status::{
    AuditAction, AuditOutcome, AuditStatus, BrokerStatus, FarmStatus, KeyStatus, NodeStatus, ReloadState, ReloadStatus,
    RingStatus, SiteStatus,
};
use crate::words::{brief, counted, offset, relative};

/// The arguments of `resumed status`.
#[derive(Args, Clone, Debug)]
pub(crate) struct StatusArgs {
    /// Print JSON instead of tables
    #[arg(long)]
    pub json: bool,

    /// Wait until there is a leader and every node holds its ring, at most this long; fail naming those that do not
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub wait_in_step: Option<Duration>,

    /// Where the daemon is.
    #[command(flatten)]
    pub socket: SocketArg,
}

/// How long a daemon may take to answer: it asks the leader, which may be changing.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// How often a farm that is not in step yet is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Prints what the daemon at `socket` knows of the farm to `out`.
///
/// # Errors
/// If the daemon does not answer, or the farm is not in step in time. What is known is printed all the same.
pub(crate) fn run(args: &StatusArgs, socket: &Path, out: &mut impl Write) -> Result<(), Failure> {
    let Some(wait) = args.wait_in_step else {
        return print(&ask(socket, ANSWER_WITHIN)?, args.json, out);
    };
    let until = Instant::now() + wait;
    loop {
        let left = until.saturating_duration_since(Instant::now()).max(LOOK_EVERY);
        let answer = ask(socket, left.min(ANSWER_WITHIN));
        let is_over = Instant::now() >= until;
        match answer {
            Ok(status) => match out_of_step(&status) {
                None => return print(&status, args.json, out),
                Some(why) if is_over => {
                    print(&status, args.json, out)?;
                    return Err(Failure::Failed(format!("after {}: {why}", settings::span(wait))));
                }
                Some(_) => {}
            },
            // Neither mends itself by waiting.
            Err(error @ (ControlError::Permission { .. } | ControlError::Nonsense { .. })) => return Err(error.into()),
            Err(error) if is_over => return Err(error.into()),
            Err(_) => {}
        }
        thread::sleep(LOOK_EVERY.min(until.saturating_duration_since(Instant::now())));
    }
}

fn ask(socket: &Path, limit: Duration) -> Result<FarmStatus, ControlError> {
    Control::connect(socket)?.status(limit)
}

fn print(status: &FarmStatus, json: bool, out: &mut impl Write) -> Result<(), Failure> {
    let text = if json {
        serde_json::to_string_pretty(status).map_err(|error| Failure::Failed(error.to_string()))? + "\n"
    } else {
        render(status, SystemClock::start().now().wall)
    };
    Ok(out.write_all(text.as_bytes())?)
}

/// Who keeps the farm from being in step, in one sentence; `None` if there is a leader and every node is in step.
#[must_use]
pub(crate) fn out_of_step(status: &FarmStatus) -> Option<String> {
    if status.leader.is_none() {
        return Some(format!("{} hears no leader", plain(&status.asked)));
    }
    let late: Vec<_> = status.nodes.iter().filter(|node| !node.in_step).map(|node| plain(&node.name)).collect();
    match late.len() {
        0 if status.nodes.is_empty() => Some("the leader knows no node yet".to_owned()),
        0 => None,
        1 => Some(format!("{} is not in step", late[0])),
        _ => Some(format!("{} nodes are not in step: {}", late.len(), late.join(", "))),
    }
}

/// The farm as tables, with times as seen at `now` (UTC milliseconds). Ends with a newline.
#[must_use]
pub(crate) fn render(status: &FarmStatus, now: u64) -> String {
    let FarmStatus { farm, pod, asked, leader, nodes, secrets, ring, broker, audit, sites, warnings } = status;
    let leads = match leader {
        Some(leader) => format!("led by {}", plain(leader)),
        None => "without a leader".to_owned(),
    };
    let mut text = String::new();
    let mut line = |line: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{line}");
    };
    line(format!("Farm {}, {leads}. Asked: {}, in pod {}.", plain(farm), plain(asked), plain(pod)));
    line(connection(broker));
    let in_step = nodes.iter().filter(|node| node.in_step).count();
    line(format!("\n{}, {in_step} in step", counted(nodes.len(), "node")));
    line(nodes_table(nodes, leader.as_deref(), now));
    if let Some(secrets) = common_secrets(nodes) {
        line(format!("Every node opens what is sealed with {secrets}."));
    }
    if let Some(step) = secrets.in_words() {
        line(plain(&step));
    }
    line(format!("\n{} in the ring of {}, {}", counted(ring.keys.len(), "key"), plain(asked), ring_line(ring)));
    if !ring.keys.is_empty() {
        line(ring_table(&ring.keys, now));
    }
    if !audit.is_empty() {
        line(format!("\nOperators asked last: {}", counted(audit.len(), "request")));
        line(audit_table(audit, now));
    }
    if !sites.is_empty() {
        line(format!("\n{} of the farm", counted(sites.len(), "other site")));
        line(sites_table(sites));
    }
    if !warnings.is_empty() {
        line(format!("\n{}", counted(warnings.len(), "warning")));
        for warning in warnings {
            line(format!("  - {}", plain(warning)));
        }
    }
    text
}

fn connection(broker: &BrokerStatus) -> String {
    if broker.is_in_process() {
        return "No broker: this node is on the in-process bus.".to_owned();
    }
    let uri = plain(&broker.uri);
    match (broker.connected, uri.as_str()) {
        (true, _) => format!("Connected to {uri}."),
        (false, "") => "NOT CONNECTED to a broker.".to_owned(),
        (false, _) => format!("NOT CONNECTED to {uri}."),
    }
}

fn nodes_table(nodes: &[NodeStatus], leader: Option<&str>, now: u64) -> String {
    let shows_secrets = common_secrets(nodes).is_none() && nodes.iter().any(|node| !node.secret_ids.is_empty());
    let header = ["node", "pod", "version", "in step", "last report", "clock", "sessions", "proxies"];
    // An operator who gives the farm a new secret wants to see who has taken it.
    let shows_reloads = nodes.iter().any(|node| matches!(node.reload.state, ReloadState::Taken | ReloadState::Refused));
    let more =
        shows_secrets.then_some("opens secrets").into_iter().chain(shows_reloads.then_some("secrets read again"));
    let mut table = table(header.into_iter().chain(more));
    for node in nodes {
        let name = plain(&node.name);
        let row = [
            if leader == Some(node.name.as_str()) { format!("{name} (leader)") } else { name },
            plain(&node.pod),
            plain(&node.version),
            if node.in_step { "yes" } else { "NO" }.to_owned(),
            if node.last_report_ms == 0 { "now".to_owned() } else { format!("{} ago", brief(node.last_report_ms)) },
            offset(node.clock_offset_ms),
            node.sessions.to_string(),
            proxies(node),
        ];
        let secrets = shows_secrets.then(|| secrets(node));
        table.add_row(row.into_iter().chain(secrets).chain(shows_reloads.then(|| reload(&node.reload, now))));
    }
    table.to_string()
}

/// The farm secrets that all nodes open, if they are the same for all and there are any.
fn common_secrets(nodes: &[NodeStatus]) -> Option<String> {
    let first = nodes.first().filter(|first| !first.secret_ids.is_empty())?;
    let are_same = nodes.iter().all(|node| node.secret_ids == first.secret_ids);
    let plural = if first.secret_ids.len() == 1 { "" } else { "s" };
    are_same.then(|| format!("the farm secret{plural} {}", secrets(first)))
}

fn secrets(node: &NodeStatus) -> String {
    node.secret_ids.iter().map(|id| plain(id)).collect::<Vec<_>>().join(" ")
}

fn reload(reload: &ReloadStatus, now: u64) -> String {
    match reload.state {
        ReloadState::NotSaid => "not said".to_owned(),
        ReloadState::None => "no".to_owned(),
        ReloadState::Taken => relative(reload.at, now),
        ReloadState::Refused => format!("REFUSED {}", relative(reload.at, now)),
    }
}

fn audit_table(audit: &[AuditStatus], now: u64) -> String {
    let mut table = table(["when", "what", "at", "by", "outcome"]);
    for request in audit {
        let user = request.user.as_deref().map_or_else(|| "user not said".to_owned(), plain);
        table.add_row([relative(request.at, now), action(request), plain(&request.node), user, outcome(request)]);
    }
    table.to_string()
}

fn sites_table(sites: &[SiteStatus]) -> String {
    let mut table = table(["site", "leader", "last heard", "heard"]);
    for site in sites {
        let heard = if site.silent { "NO" } else { "yes" };
        table.add_row([
            plain(&site.name),
            plain(&site.leader),
            format!("{} ago", brief(site.silent_ms)),
            heard.to_owned(),
        ]);
    }
    table.to_string()
}

/// As on the command line.
fn action(request: &AuditStatus) -> String {
    let action = match request.action {
        AuditAction::RevokeLocal => "revoke --local",
        other => other.as_str(),
    };
    format!("{action}{}", if request.flush_sessions { " --flush-sessions" } else { "" })
}

fn outcome(request: &AuditStatus) -> String {
    let generation = request.generation;
    match request.outcome {
        AuditOutcome::Done => format!("done, generation {generation}"),
        AuditOutcome::Pending => format!("was under way, generation {generation}"),
        AuditOutcome::NoLeader => "no leader answered".to_owned(),
        AuditOutcome::Refused => "refused by the leader".to_owned(),
        AuditOutcome::Unknown => "unknown".to_owned(),
    }
}

/// `2 × ats 9.2.9, rustls 0.23`.
fn proxies(node: &NodeStatus) -> String {
    let mut kinds = BTreeMap::<_, usize>::new();
    for proxy in &node.proxies {
        *kinds.entry((plain(&proxy.kind), plain(&proxy.version))).or_default() += 1;
    }
    let kinds = kinds.into_iter().map(|((kind, version), count)| match count {
        1 => format!("{kind} {version}"),
        _ => format!("{count} × {kind} {version}"),
    });
    let kinds = kinds.collect::<Vec<_>>().join(", ");
    if kinds.is_empty() { "none".to_owned() } else { kinds }
}

fn ring_line(ring: &RingStatus) -> String {
    let flushed =
        if ring.sessions_from == 0 { String::new() } else { format!(", sessions from {}", ring.sessions_from) };
    format!("fingerprint {}, floor {}{flushed}", plain(&ring.fingerprint), ring.floor)
}

fn ring_table(keys: &[KeyStatus], now: u64) -> String {
    let mut table = table(["key", "state", "generation", "seals from", "seals until at most", "opens until"]);
    for key in keys {
        table.add_row([
            plain(&key.name_prefix),
            key.state.as_str().to_owned(),
            key.generation.to_string(),
            relative(key.seal_from, now),
            relative(key.seal_until, now),
            relative(key.open_until, now),
        ]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::super::control::daemon::Daemon;
    use super::*;
    use crate::keys::KeyState;
    use crate::proto::local::control_reply;
    use crate::status::{ProxyStatus, SecretStep, SecretsStatus};

    const NOW: u64 = 1_700_000_000_000;
    const HOUR: u64 = 3_600_000;

    fn node(name: &str, in_step: bool) -> NodeStatus {
        NodeStatus {
            name: name.into(),
            boot_id: "0f".repeat(16),
            pod: "eu-1".into(),
            version: "0.1.0".into(),
            last_report_ms: 700,
            in_step,
            clock_offset_ms: -12,
            sessions: 1234,
            proxies: vec![
                ProxyStatus {
                    kind: "ats".into(),
                    version: "9.2.9".into(),
                    certificate_digest: String::new(),
                    ..ProxyStatus::default()
                };
                2
            ],
            secret_ids: vec!["00112233445566ff".into()],
            reload: ReloadStatus::default(),
        }
    }

    fn farm(nodes: Vec<NodeStatus>) -> FarmStatus {
        let key = |name_prefix: &str, state, seal_from| KeyStatus {
            name_prefix: name_prefix.into(),
            generation: seal_from,
            state,
            seal_from,
            seal_until: seal_from + 24 * HOUR,
            open_until: seal_from + 48 * HOUR,
        };
        FarmStatus {
            farm: "edge".into(),
            pod: "eu-1".into(),
            asked: "a".into(),
            leader: Some("b".into()),
            nodes,
            secrets: SecretsStatus { sealing: vec!["00112233445566ff".into()], safe: true, ..SecretsStatus::default() },
            ring: RingStatus {
                fingerprint: "8899aabbccddeeff".into(),
                floor: 3,
                sessions_from: 0,
                keys: vec![
                    key("01020304", KeyState::Next, NOW + 5 * HOUR),
                    key("a1b2c3d4", KeyState::Active, NOW - 3 * HOUR),
                ],
            },
            broker: BrokerStatus { connected: true, uri: "amqp://resumed:***@192.0.2.9/".into() },
            audit: Vec::new(),
            sites: Vec::new(),
            warnings: vec!["a and b name their certificates differently".into()],
        }
    }

    #[test]
    fn the_farm_is_printed_as_tables() {
        let mut late = node("c", false);
        (late.last_report_ms, late.clock_offset_ms, late.proxies) = (125_000, 1500, Vec::new());
        let mut leader = node("b", true);
        (leader.last_report_ms, leader.clock_offset_ms) = (0, 0);
        assert_eq!(
            render(&farm(vec![node("a", true), leader, late]), NOW),
            "\
Farm edge, led by b. Asked: a, in pod eu-1.
Connected to amqp://resumed:***@192.0.2.9/.

3 nodes, 2 in step
┌────────────┬──────┬─────────┬─────────┬─────────────┬─────────┬──────────┬───────────────┐
│ node       ┆ pod  ┆ version ┆ in step ┆ last report ┆ clock   ┆ sessions ┆ proxies       │
╞════════════╪══════╪═════════╪═════════╪═════════════╪═════════╪══════════╪═══════════════╡
│ a          ┆ eu-1 ┆ 0.1.0   ┆ yes     ┆ 700ms ago   ┆ -12ms   ┆ 1234     ┆ 2 × ats 9.2.9 │
│ b (leader) ┆ eu-1 ┆ 0.1.0   ┆ yes     ┆ now         ┆ 0ms     ┆ 1234     ┆ 2 × ats 9.2.9 │
│ c          ┆ eu-1 ┆ 0.1.0   ┆ NO      ┆ 2m 5s ago   ┆ +1500ms ┆ 1234     ┆ none          │
└────────────┴──────┴─────────┴─────────┴─────────────┴─────────┴──────────┴───────────────┘
Every node opens what is sealed with the farm secret 00112233445566ff.

2 keys in the ring of a, fingerprint 8899aabbccddeeff, floor 3
┌──────────┬────────┬───────────────┬────────────┬─────────────────────┬─────────────┐
│ key      ┆ state  ┆ generation    ┆ seals from ┆ seals until at most ┆ opens until │
╞══════════╪════════╪═══════════════╪════════════╪═════════════════════╪═════════════╡
│ 01020304 ┆ next   ┆ 1700018000000 ┆ in 5h      ┆ in 1d 5h            ┆ in 2d 5h    │
│ a1b2c3d4 ┆ active ┆ 1699989200000 ┆ 3h ago     ┆ in 21h              ┆ in 1d 21h   │
└──────────┴────────┴───────────────┴────────────┴─────────────────────┴─────────────┘

1 warning
  - a and b name their certificates differently
"
        );
    }

    #[test]
    fn a_farm_without_leader_broker_or_keys_says_so() {
        let status = FarmStatus {
            leader: None,
            ring: RingStatus::default(),
            broker: BrokerStatus { connected: false, uri: "amqps://192.0.2.9".into() },
            warnings: Vec::new(),
            ..farm(vec![node("a", false)])
        };
        let text = render(&status, NOW);
        for part in
            ["without a leader", "NOT CONNECTED to amqps://192.0.2.9.", "1 node, 0 in step", "0 keys in the ring"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        let alone = BrokerStatus { connected: true, uri: BrokerStatus::IN_PROCESS.into() };
        assert!(render(&FarmStatus { broker: alone, ..status }, NOW).contains("in-process bus"));
    }

    #[test]
    fn secrets_that_differ_between_nodes_are_shown_node_by_node() {
        let mut other = node("b", true);
        other.secret_ids.push("ffeeddccbbaa9988".into());
        let text = render(&farm(vec![node("a", true), other]), NOW);
        assert!(text.contains("┆ 00112233445566ff ffeeddccbbaa9988 │"), "{text}");
        assert!(!text.contains("Every node opens"), "{text}");
    }

    #[test]
    fn a_rotation_of_the_farm_secret_says_what_comes_next_and_whether_it_is_safe() {
        let secrets = SecretsStatus {
            sealing: vec!["00112233445566ff".into()],
            next_step: SecretStep::SealFirst,
            other: Some("ffeeddccbbaa9988".into()),
            safe: false,
            waiting_for: vec!["b".into(), "c".into()],
        };
        let shown = |secrets: SecretsStatus| {
            let text = render(&FarmStatus { secrets, ..farm(vec![node("a", true)]) }, NOW);
            text.lines().find(|line| line.starts_with("Rotating")).map(str::to_owned)
        };
        let begins = "Rotating the farm secret: nodes seal with 00112233445566ff. Next: ";
        assert_eq!(
            shown(secrets.clone()),
            Some(format!("{begins}put ffeeddccbbaa9988 first in secret.files; NOT SAFE yet, waiting for b, c."))
        );
        let safe =
            SecretsStatus { next_step: SecretStep::Remove, safe: true, waiting_for: Vec::new(), ..secrets.clone() };
        let next = "remove ffeeddccbbaa9988 from secret.files; safe now, on every node, each with a reload.";
        assert_eq!(shown(safe), Some(format!("{begins}{next}")));
        assert_eq!(shown(SecretsStatus { next_step: SecretStep::Add, other: None, ..secrets }), None);
    }

    #[test]
    fn json_is_the_document_and_a_newline() {
        let mut out = Vec::new();
        print(&farm(vec![node("a", true)]), true, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, serde_json::to_string_pretty(&farm(vec![node("a", true)])).unwrap() + "\n");
    }

    #[test]
    fn who_has_read_the_secrets_again_is_shown_once_somebody_has() {
        let reloaded = |name: &str, state, at| {
            let reload = ReloadStatus { state, at, reason: Some("mode 0644".into()) };
            NodeStatus { reload, ..node(name, true) }
        };
        let none = reloaded("b", ReloadState::None, 0);
        let quiet = render(&farm(vec![node("a", true), none.clone()]), NOW);
        assert!(!quiet.contains("secrets read again"), "{quiet}");
        let nodes = vec![
            node("a", true),
            none,
            reloaded("c", ReloadState::Taken, NOW - 3_000),
            reloaded("d", ReloadState::Refused, NOW - 60_000),
        ];
        let text = render(&farm(nodes), NOW);
        let ends = [
            "secrets read again │",
            "not said           │",
            "no                 │",
            "3s ago             │",
            "REFUSED 1m ago     │",
        ];
        for end in ends {
            assert!(text.lines().any(|line| line.ends_with(end)), "{end}: {text}");
        }
    }

    #[test]
    fn the_last_requests_of_operators_are_a_table_as_on_the_command_line() {
        let request = |ago, action, user: Option<&str>, outcome, flush_sessions| AuditStatus {
            at: NOW - ago,
            action,
            flush_sessions,
            node: "a".into(),
            user: user.map(str::to_owned),
            outcome,
            generation: 17,
        };
        let audit = vec![
            request(9_000, AuditAction::Rotate, None, AuditOutcome::Pending, false),
            request(5_000, AuditAction::Revoke, Some("ali\u{7}ce"), AuditOutcome::Done, true),
            request(0, AuditAction::RevokeLocal, Some("1000"), AuditOutcome::NoLeader, false),
        ];
        let text = render(&FarmStatus { audit, ..farm(vec![node("a", true)]) }, NOW);
        let expected = "\
Operators asked last: 3 requests
┌────────┬─────────────────────────┬────┬───────────────┬──────────────────────────────┐
│ when   ┆ what                    ┆ at ┆ by            ┆ outcome                      │
╞════════╪═════════════════════════╪════╪═══════════════╪══════════════════════════════╡
│ 9s ago ┆ rotate                  ┆ a  ┆ user not said ┆ was under way, generation 17 │
│ 5s ago ┆ revoke --flush-sessions ┆ a  ┆ ali?ce        ┆ done, generation 17          │
│ now    ┆ revoke --local          ┆ a  ┆ 1000          ┆ no leader answered           │
└────────┴─────────────────────────┴────┴───────────────┴──────────────────────────────┘
";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn out_of_step_names_who_keeps_the_farm_back() {
        let of = |nodes: Vec<NodeStatus>| out_of_step(&farm(nodes));
        assert_eq!(of(vec![node("a", true), node("b", true)]), None);
        assert_eq!(of(vec![node("a", true), node("b", false)]), Some("b is not in step".into()));
        let two = of(vec![node("a", false), node("b", true), node("c", false)]);
        assert_eq!(two, Some("2 nodes are not in step: a, c".into()));
        assert_eq!(of(Vec::new()), Some("the leader knows no node yet".into()));
        let leaderless = FarmStatus { leader: None, ..farm(vec![node("a", true)]) };
        assert_eq!(out_of_step(&leaderless), Some("a hears no leader".into()));
    }

    fn args(wait_in_step: Option<Duration>) -> StatusArgs {
        StatusArgs { json: false, wait_in_step, socket: SocketArg::default() }
    }

    /// A daemon that tells `statuses` one after another, the last for ever.
    fn telling(statuses: Vec<FarmStatus>) -> Daemon {
        let mut told = 0;
        Daemon::answering(move |_| {
            let status = &statuses[told.min(statuses.len() - 1)];
            told += 1;
            vec![control_reply::Kind::StatusJson(serde_json::to_vec(status).unwrap())]
        })
    }

    #[test]
    fn waiting_ends_as_soon_as_all_are_in_step() {
        let late = farm(vec![node("a", true), node("late", false)]);
        let leaderless = FarmStatus { leader: None, ..late.clone() };
        let daemon = telling(vec![leaderless, late, farm(vec![node("a", true), node("late", true)])]);
        let mut out = Vec::new();
        run(&args(Some(Duration::from_secs(30))), &daemon.socket(), &mut out).unwrap();
        assert!(String::from_utf8(out).unwrap().contains("2 nodes, 2 in step"));
    }

    #[test]
    fn waiting_in_vain_prints_the_farm_and_names_the_late() {
        let daemon = telling(vec![farm(vec![node("a", true), node("late", false)])]);
        let mut out = Vec::new();
        let failure = run(&args(Some(Duration::from_millis(300))), &daemon.socket(), &mut out).unwrap_err();
        assert_eq!(failure, Failure::Failed("after 300ms: late is not in step".into()));
        assert!(String::from_utf8(out).unwrap().contains("2 nodes, 1 in step"));
    }

    #[test]
    fn waiting_includes_a_daemon_that_is_not_there_yet() {
        let socket = crate::temporary::Folder::new().path().join("control.sock");
        let started = Instant::now();
        let failure = run(&args(Some(Duration::from_millis(600))), &socket, &mut Vec::new()).unwrap_err();
        assert!(failure.to_string().contains("no daemon answers"), "{failure}");
        assert!(started.elapsed() >= Duration::from_millis(600), "{:?}", started.elapsed());
        let started = Instant::now();
        run(&args(None), &socket, &mut Vec::new()).unwrap_err();
        assert!(started.elapsed() < Duration::from_millis(600), "asked once, without waiting");
    }
}
