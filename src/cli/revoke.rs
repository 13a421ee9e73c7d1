//! `resumed revoke`: every ticket key out of use but a new one, everywhere, now.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use clap::Args;

use super::control::Control;
use super::rotate::{follow, names, of_nodes};
use super::{Failure, SocketArg};
use crate::clock::millis;
use crate::proto::local::{RevokeCommand, RotateProgress, control_request};
use crate::settings;

/// The arguments of `resumed revoke`.
#[derive(Args, Clone, Debug)]
pub(crate) struct RevokeArgs {
    /// Also flush every session-ID session created until now
    #[arg(long)]
    pub flush_sessions: bool,

    /// Revoke on this host alone, without a leader: for a host that is cut off from the broker
    #[arg(long)]
    pub local: bool,

    /// How long to wait until every node has confirmed
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    pub wait: Duration,

    /// Where the daemon is.
    #[command(flatten)]
    pub socket: SocketArg,
}

/// Revokes through the daemon at `socket`, and prints to `out` who has confirmed.
///
/// # Errors
/// If the daemon cannot, or if a node has not confirmed in time: it is named.
pub(crate) fn run(args: &RevokeArgs, socket: &Path, out: &mut impl Write) -> Result<(), Failure> {
    let RevokeArgs { flush_sessions, local, wait, .. } = *args;
    let command = RevokeCommand { wait_ms: millis(wait), flush_sessions, local };
    let request = control_request::Kind::Revoke(command);
    let last = follow(&mut Control::connect(socket)?, request, wait, out, |progress| step(progress, args))?;
    if last.missing.is_empty() {
        return Ok(());
    }
    let (has, its) = if last.missing.len() == 1 { ("has", "it is") } else { ("have", "they are") };
    Err(Failure::Failed(format!(
        "after {}, {} {has} not confirmed: older tickets may still open there; they go as soon as {its} reached by the farm",
        settings::span(wait),
        names(&last.missing),
    )))
}

/// What there is to say now, in one line.
fn step(progress: &RotateProgress, args: &RevokeArgs) -> String {
    let RotateProgress { generation, have, missing, .. } = progress;
    let sessions = if args.flush_sessions { ", and every older session," } else { "" };
    let what = format!("every ticket key below generation {generation}{sessions}");
    if args.local {
        return format!("{what} is out of use at {}, and elsewhere when its ring gets there", names(have));
    }
    if have.is_empty() && missing.is_empty() {
        return format!("{what} is revoked");
    }
    format!("{what} is out of use at {}", of_nodes(have, missing))
}

#[cfg(test)]
mod tests {
    use super::super::control::daemon::Daemon;
    use super::*;
    use crate::proto::local::control_reply;

    fn progress(have: &[&str], missing: &[&str], done: bool) -> RotateProgress {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        RotateProgress { generation: 1700, have: owned(have), missing: owned(missing), done, pending: false }
    }

    fn revoke(flush_sessions: bool, local: bool, replies: Vec<RotateProgress>) -> (String, Result<(), Failure>) {
        let daemon = Daemon::answering(move |request| {
            let expected = RevokeCommand { wait_ms: 2000, flush_sessions, local };
            assert_eq!(request, control_request::Kind::Revoke(expected));
            replies.iter().cloned().map(control_reply::Kind::Rotate).collect()
        });
        let mut out = Vec::new();
        let args = RevokeArgs { flush_sessions, local, wait: Duration::from_secs(2), socket: SocketArg::default() };
        let result = run(&args, &daemon.socket(), &mut out);
        (String::from_utf8(out).unwrap(), result)
    }

    #[test]
    fn who_has_confirmed_is_shown_host_by_host() {
        let (printed, result) =
            revoke(true, false, vec![progress(&["a"], &["b"], false), progress(&["a", "b"], &[], true)]);
        assert_eq!(result, Ok(()));
        assert_eq!(
            printed,
            "\
every ticket key below generation 1700, and every older session, is out of use at 1 of 2 nodes: a; missing: b
every ticket key below generation 1700, and every older session, is out of use at all 2 nodes: a, b
"
        );
    }

    #[test]
    fn nodes_that_have_not_confirmed_in_time_are_a_failure_that_names_them() {
        let (printed, result) = revoke(false, false, vec![progress(&["a"], &["b"], true)]);
        assert_eq!(printed, "every ticket key below generation 1700 is out of use at 1 of 2 nodes: a; missing: b\n");
        let failure = result.unwrap_err();
        assert_eq!(failure.code(), 1);
        assert!(failure.to_string().starts_with("after 2s, b has not confirmed: "), "{failure}");
    }

    #[test]
    fn a_local_revocation_says_that_the_others_follow() {
        let (printed, result) = revoke(false, true, vec![progress(&["a"], &[], true)]);
        assert_eq!(result, Ok(()));
        assert!(printed.ends_with("1700 is out of use at a, and elsewhere when its ring gets there\n"), "{printed}");
    }
}
