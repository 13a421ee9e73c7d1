//! `resumed reload`: the farm secrets read again, with the daemon's verdict.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use clap::Args;

use super::control::Control;
use super::table::plain;
use super::{Failure, SocketArg};

/// The arguments of `resumed reload`.
#[derive(Args, Clone, Debug)]
pub(crate) struct ReloadArgs {
    /// Where the daemon is.
    #[command(flatten)]
    pub socket: SocketArg,
}

/// How long the daemon may take to read some small files.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Has the daemon at `socket` read its farm secrets again, and prints to `out` which are in use then.
///
/// # Errors
/// If it refuses them, with the reason, or does not answer.
pub(super) fn run(socket: &Path, out: &mut impl Write) -> Result<(), Failure> {
    let ids = Control::connect(socket)?.reload(ANSWER_WITHIN)?;
    Ok(writeln!(out, "{}", in_words(&ids))?)
}

fn in_words(ids: &[String]) -> String {
    let ids: Vec<String> = ids.iter().map(|id| plain(id)).collect();
    match &ids[..] {
        [] => "secret.files names no farm secret, and none is needed: nothing was read".to_owned(),
        [only] => format!("the farm secret {only} is in use"),
        [first, others @ ..] => format!("the farm secret {first} seals; {} opens too", others.join(" ")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::control::daemon::Daemon;
    use super::*;
    use crate::proto::local::{Reloaded, control_reply, control_request};

    fn reload(answer: control_reply::Kind) -> (String, Result<(), Failure>) {
        let daemon = Daemon::answering(move |request| {
            assert!(matches!(request, control_request::Kind::Reload(_)), "{request:?}");
            vec![answer.clone()]
        });
        let mut out = Vec::new();
        let result = run(&daemon.socket(), &mut out);
        (String::from_utf8(out).unwrap(), result)
    }

    #[test]
    fn the_secrets_in_use_are_named_by_their_ids() {
        for (ids, says) in [
            (vec![], "secret.files names no farm secret, and none is needed: nothing was read\n"),
            (vec!["0011"], "the farm secret 0011 is in use\n"),
            (vec!["0011", "22\u{7}"], "the farm secret 0011 seals; 22? opens too\n"),
        ] {
            let secret_ids = ids.into_iter().map(str::to_owned).collect();
            assert_eq!(reload(control_reply::Kind::Reloaded(Reloaded { secret_ids })), (says.to_owned(), Ok(())));
        }
    }

    #[test]
    fn what_the_daemon_refuses_is_a_failure_with_its_reason() {
        let (said, result) = reload(control_reply::Kind::Error("refused: has mode 0644".into()));
        assert_eq!(said, "");
        assert_eq!(result, Err(Failure::Failed("the daemon says: refused: has mode 0644".into())));
    }
}
