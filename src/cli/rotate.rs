//! `resumed rotate`: a new ticket key now, everywhere.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use clap::Args;

use super::control::Control;
use super::table::plain;
use super::{Failure, SocketArg};
use crate::clock::millis;
use crate::proto::local::{RotateCommand, RotateProgress, control_request};
use crate::settings;
use crate::words::counted;

/// The arguments of `resumed rotate`.
#[derive(Args, Clone, Debug)]
pub(crate) struct RotateArgs {
    /// How long to wait until every node holds the new key
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    pub wait: Duration,

    /// Where the daemon is.
    #[command(flatten)]
    pub socket: SocketArg,
}

/// Has the leader mint a key, through the daemon at `socket`, and prints to `out` who holds it.
///
/// # Errors
/// If the daemon cannot, or if a node does not hold the key in time: it is named.
pub(crate) fn run(args: &RotateArgs, socket: &Path, out: &mut impl Write) -> Result<(), Failure> {
    let request = control_request::Kind::Rotate(RotateCommand { wait_ms: millis(args.wait) });
    let last = follow(&mut Control::connect(socket)?, request, args.wait, out, step)?;
    if last.missing.is_empty() {
        return Ok(());
    }
    let missing = names(&last.missing);
    let (is, holds) = if last.missing.len() == 1 { ("does", "it is") } else { ("do", "they are") };
    Err(Failure::Failed(format!(
        "after {}, {missing} {is} not hold key {}; tickets that it seals are refused there until {holds} back in step",
        settings::span(args.wait),
        last.generation
    )))
}

/// Has the daemon do `request` and prints to `out` what `step` says of its progress, every line once. Returns the last.
pub(super) fn follow(
    control: &mut Control,
    request: control_request::Kind,
    wait: Duration,
    out: &mut impl Write,
    step: impl Fn(&RotateProgress) -> String,
) -> Result<RotateProgress, Failure> {
    let mut printed = String::new();
    let mut written = Ok(());
    let last = control.follow(request, wait, |progress| {
        let line = step(progress);
        if line != printed && written.is_ok() {
            written = writeln!(out, "{line}").and_then(|()| out.flush());
            printed = line;
        }
    })?;
    written?;
    Ok(last)
}

/// What there is to say now, in one line.
fn step(progress: &RotateProgress) -> String {
    let RotateProgress { generation, have, missing, pending, .. } = progress;
    let all = have.len() + missing.len();
    let key = if *pending { "the key of a rotation already under way" } else { "the new key" };
    if all == 0 {
        format!("{key} has generation {generation}")
    } else if missing.is_empty() {
        format!("{key}, generation {generation}, is held by {}: {}", everyone(all), names(have))
    } else {
        let of = format!("{} of {}", have.len(), counted(all, "node"));
        format!("{key}, generation {generation}, is held by {of}; missing: {}", names(missing))
    }
}

/// `2 of 3 nodes: a, b; missing: c`, or `all 2 nodes: a, b`.
pub(super) fn of_nodes(have: &[String], missing: &[String]) -> String {
    let all = have.len() + missing.len();
    if missing.is_empty() {
        return format!("{}: {}", everyone(all), names(have));
    }
    let whose = if have.is_empty() { String::new() } else { format!(": {}", names(have)) };
    format!("{} of {}{whose}; missing: {}", have.len(), counted(all, "node"), names(missing))
}

fn everyone(nodes: usize) -> String {
    match nodes {
        1 => "the only node".to_owned(),
        _ => format!("all {nodes} nodes"),
    }
}

pub(super) fn names(names: &[String]) -> String {
    names.iter().map(|name| plain(name)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::super::control::daemon::Daemon;
    use super::*;
    use crate::proto::local::{control_reply, control_request};

    fn progress(have: &[&str], missing: &[&str], done: bool) -> RotateProgress {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        RotateProgress { generation: 1700, have: owned(have), missing: owned(missing), done, pending: false }
    }

    fn rotate(replies: Vec<RotateProgress>) -> (String, Result<(), Failure>) {
        let daemon = Daemon::answering(move |request| {
            let control_request::Kind::Rotate(rotate) = request else { panic!("{request:?}") };
            assert_eq!(rotate.wait_ms, 2000);
            replies.iter().cloned().map(control_reply::Kind::Rotate).collect()
        });
        let mut out = Vec::new();
        let args = RotateArgs { wait: Duration::from_secs(2), socket: SocketArg::default() };
        let result = run(&args, &daemon.socket(), &mut out);
        (String::from_utf8(out).unwrap(), result)
    }

    #[test]
    fn progress_is_printed_once_and_the_result_names_the_nodes() {
        let (printed, result) = rotate(vec![
            progress(&[], &[], false),
            progress(&["a"], &["b"], false),
            progress(&["a"], &["b"], false),
            progress(&["a", "b"], &[], false),
            progress(&["a", "b"], &[], true),
        ]);
        assert_eq!(result, Ok(()));
        assert_eq!(
            printed,
            "\
the new key has generation 1700
the new key, generation 1700, is held by 1 of 2 nodes; missing: b
the new key, generation 1700, is held by all 2 nodes: a, b
"
        );
    }

    #[test]
    fn nodes_without_the_key_in_time_are_a_failure_that_names_them() {
        let (printed, result) = rotate(vec![progress(&["a"], &["b", "c"], true)]);
        assert_eq!(printed, "the new key, generation 1700, is held by 1 of 3 nodes; missing: b, c\n");
        let failure = result.unwrap_err();
        assert_eq!(failure.code(), 1);
        assert!(failure.to_string().starts_with("after 2s, b, c do not hold key 1700"), "{failure}");
    }

    #[test]
    fn a_rotation_under_way_is_named_as_such() {
        let pending = RotateProgress { pending: true, ..progress(&["a"], &[], true) };
        assert_eq!(
            step(&pending),
            "the key of a rotation already under way, generation 1700, is held by the only node: a"
        );
    }

    #[test]
    fn a_daemon_that_cannot_says_why() {
        let daemon = Daemon::answering(|_| vec![control_reply::Kind::Error("no leader was heard".into())]);
        let args = RotateArgs { wait: Duration::from_secs(2), socket: SocketArg::default() };
        let failure = run(&args, &daemon.socket(), &mut Vec::new()).unwrap_err();
        assert_eq!(failure, Failure::Failed("the daemon says: no leader was heard".into()));
    }
}
