//! Sessions that are to resume, or to be refused, as a client sees it.

use resumed::internals::probe::{Client, Mode, Session, Target};

use crate::farm::wait_for;

/// Whether `target` resumes `session`.
pub fn resumes(client: &Client, target: &Target, session: &Session) -> bool {
    client.resume(target, session).unwrap_or_else(|error| panic!("resuming at {target}: {error}")).resumed
}

/// Waits until `sessions` are refused at `target`: the proxy takes its node's word within a moment, not a minute.
pub fn refused_at(client: &Client, target: &Target, sessions: &[Session]) {
    let (_, took) = wait_for("old sessions refused", || {
        let resumed = sessions.iter().filter(|session| resumes(client, target, session)).count();
        if resumed == 0 { Ok(()) } else { Err(format!("{resumed} of {} resumed at {target}", sessions.len())) }
    });
    println!("{} older sessions refused at {target} after {took:?}", sessions.len());
    assert!(took.as_secs() < 30, "as late as the plugin's own minute: {took:?}");
}

/// Waits until a session made at each target resumes at every other.
pub fn new_ones_resume(client: &Client, targets: &[Target], mode: Mode) {
    wait_for("new sessions resumed everywhere", || {
        for at in targets {
            let made = client.handshake(at, mode).map_err(|error| error.to_string())?.session;
            wait_a_moment_for_replicas(client, targets, &made, mode)?;
        }
        Ok(())
    });
}

/// Session IDs travel; tickets need not.
fn wait_a_moment_for_replicas(client: &Client, targets: &[Target], made: &Session, mode: Mode) -> Result<(), String> {
    for target in targets {
        let tries = if mode == Mode::Id { 20 } else { 1 };
        if !(0..tries).any(|_| resumes(client, target, made)) {
            return Err(format!("a new {mode} session was refused at {target}"));
        }
    }
    Ok(())
}
