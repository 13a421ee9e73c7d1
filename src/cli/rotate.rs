//! `resumed rotate`: a new ticket key now, everywhere.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use clap::Args;

use super::Failure;
use super::control::Control;
use super::table::{counted, plain};
use crate::proto::local::RotateProgress;

/// The arguments of `resumed rotate`.
#[derive(Args, Clone, Debug)]
pub struct RotateArgs {
    /// How long to wait until every node holds the new key
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    pub wait: Duration,
}

/// Has the leader mint a key, through the daemon at `socket`, and prints to `out` who holds it.
///
/// # Errors
/// If the daemon cannot, or if a node does not hold the key in time: it is named.
pub fn run(args: &RotateArgs, socket: &Path, out: &mut impl Write) -> Result<(), Failure> {
    let mut printed = String::new();
    let mut written = Ok(());
    let last = Control::connect(socket)?.rotate(args.wait, |progress| {
        let line = step(progress);
        if line != printed && written.is_ok() {
            written = writeln!(out, "{line}").and_then(|()| out.flush());
            printed = line;
        }
    })?;
    written?;
    if last.missing.is_empty() {
        return Ok(());
    }
    let missing = names(&last.missing);
    let (is, holds) = if last.missing.len() == 1 { ("does", "it is") } else { ("do", "they are") };
    Err(Failure::Failed(format!(
        "after {}, {missing} {is} not hold key {}; tickets that it seals are refused there until {holds} back in step",
        humantime::format_duration(args.wait),
        last.generation
    )))
}

/// What there is to say now, in one line.
fn step(progress: &RotateProgress) -> String {
    let RotateProgress { generation, have, missing, pending, .. } = progress;
    let all = have.len() + missing.len();
    let key = if *pending { "the key of a rotation already under way" } else { "the new key" };
    if missing.is_empty() && progress.done {
        format!("{key}, generation {generation}, is held by {}: {}", everyone(all), names(have))
    } else if all == 0 {
        format!("{key} has generation {generation}")
    } else {
        let of = format!("{} of {}", have.len(), counted(all, "node"));
        format!("{key}, generation {generation}, is held by {of}; missing: {}", names(missing))
    }
}

fn everyone(nodes: usize) -> String {
    match nodes {
        1 => "the only node".to_owned(),
        _ => format!("all {nodes} nodes"),
    }
}

fn names(names: &[String]) -> String {
    names.iter().map(|name| plain(name)).collect::<Vec<_>>().join(", ")
}
