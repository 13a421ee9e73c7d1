//! `resumed status`: the farm as tables or as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;

use super::Failure;
use super::control::{Control, ControlError};
use super::table::{counted, plain, relative, span, table};
use crate::clock::SystemClock;
use crate::status::{BrokerStatus, FarmStatus, KeyStatus, NodeStatus, RingStatus};

/// The arguments of `resumed status`.
#[derive(Args, Clone, Debug)]
pub struct StatusArgs {
    /// Print JSON instead of tables
    #[arg(long)]
    pub json: bool,

    /// Wait until there is a leader and every node holds its ring, at most this long; fail naming those that do not
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub wait_in_step: Option<Duration>,
}

/// How long a daemon may take to answer: it asks the leader, which may be changing.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// How often a farm that is not in step yet is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Prints what the daemon at `socket` knows of the farm to `out`.
///
/// # Errors
/// If the daemon does not answer, or the farm is not in step in time. What is known is printed all the same.
pub fn run(args: &StatusArgs, socket: &Path, out: &mut impl Write) -> Result<(), Failure> {
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
                    return Err(Failure::Failed(format!("after {}: {why}", humantime::format_duration(wait))));
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
pub fn out_of_step(status: &FarmStatus) -> Option<String> {
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
pub fn render(status: &FarmStatus, now: u64) -> String {
    let FarmStatus { farm, pod, asked, leader, nodes, ring, broker, warnings } = status;
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
    line(nodes_table(nodes, leader.as_deref()));
    line(format!("\n{} in the ring of {}, {}", counted(ring.keys.len(), "key"), plain(asked), ring_line(ring)));
    if !ring.keys.is_empty() {
        line(ring_table(&ring.keys, now));
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
    let uri = plain(&broker.uri);
    match (broker.connected, uri.as_str()) {
        (_, "in-process") => "No broker: this node is on the in-process bus.".to_owned(),
        (true, _) => format!("Connected to {uri}."),
        (false, "") => "NOT CONNECTED to a broker.".to_owned(),
        (false, _) => format!("NOT CONNECTED to {uri}."),
    }
}

fn nodes_table(nodes: &[NodeStatus], leader: Option<&str>) -> String {
    let mut table = table(["node", "pod", "version", "in step", "last report", "clock", "sessions", "proxies", "secrets"]);
    for node in nodes {
        let name = plain(&node.name);
        table.add_row([
            if leader == Some(node.name.as_str()) { format!("{name} (leader)") } else { name },
            plain(&node.pod),
            plain(&node.version),
            if node.in_step { "yes" } else { "NO" }.to_owned(),
            format!("{} ago", span(node.last_report_ms)),
            offset(node.clock_offset_ms),
            node.sessions.to_string(),
            proxies(node),
            node.secret_ids.iter().map(|id| plain(id)).collect::<Vec<_>>().join(" "),
        ]);
    }
    table.to_string()
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

fn offset(ms: i64) -> String {
    let size = span(ms.unsigned_abs());
    match ms {
        0 => size,
        1.. => format!("+{size}"),
        _ => format!("-{size}"),
    }
}

fn ring_line(ring: &RingStatus) -> String {
    format!("fingerprint {}, floor {}", plain(&ring.fingerprint), ring.floor)
}

fn ring_table(keys: &[KeyStatus], now: u64) -> String {
    let mut table = table(["key", "state", "generation", "seals from", "seals until at most", "opens until"]);
    for key in keys {
        table.add_row([
            plain(&key.name_prefix),
            plain(&key.state),
            key.generation.to_string(),
            relative(key.seal_from, now),
            relative(key.seal_until, now),
            relative(key.open_until, now),
        ]);
    }
    table.to_string()
}
