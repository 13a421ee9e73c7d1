//! Clients of a farm's one address, as browsers are: each shakes hands, comes back a few times, and begins anew.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use resumed::internals::probe::{Client, Mode, Options, Target};

/// How often a client comes back with one session, or with what renewed it.
const RETURNS: usize = 4;

/// Between two connections of a client. A session ID needs milliseconds to be known on every host, if they get a core.
const THINKS: Duration = Duration::from_secs(1);

/// What became of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// A full handshake of a client that had nothing to offer.
    Full,
    /// The session was taken.
    Resumed,
    /// It was offered and not taken; the server made a full handshake.
    Refused,
    /// There was no connection, or no handshake.
    Failed,
}

/// One connection.
#[derive(Clone, Debug)]
pub struct Visit {
    /// When it began.
    pub at: Instant,
    /// When it was over.
    pub until: Instant,
    /// When the session that it offered was made.
    pub made: Option<Instant>,
    /// How the client resumes.
    pub mode: Mode,
    /// What became of it.
    pub outcome: Outcome,
    /// What the client says to it, if it failed.
    pub why: String,
}

/// Clients on their way, until dropped or stopped.
#[derive(Debug)]
pub struct Returning {
    over: Arc<AtomicBool>,
    visits: Arc<Mutex<Vec<Visit>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Returning {
    /// Lets `each` clients come to `target` for each mode. Call it in the network that they live in.
    pub fn start(target: &Target, server_name: &str, each: usize) -> Self {
        let (over, visits) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let options = Options { server_name: Some(server_name.to_owned()), ..Options::default() };
        let client = Client::new(options).expect("a client");
        let threads = Mode::ALL.iter().cycle().take(each * Mode::ALL.len()).map(|mode| {
            let (client, target, mode) = (client.clone(), target.clone(), *mode);
            let (over, visits) = (Arc::clone(&over), Arc::clone(&visits));
            thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    come_and_return(&client, &target, mode, &over, &visits);
                }
            })
        });
        let threads = threads.collect();
        Self { over, visits, threads }
    }

    /// Every connection since the last call that is over.
    pub fn take(&self) -> Vec<Visit> {
        std::mem::take(&mut *self.visits.lock().expect("no panic"))
    }
}

impl Drop for Returning {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

fn come_and_return(client: &Client, target: &Target, mode: Mode, over: &AtomicBool, visits: &Mutex<Vec<Visit>>) {
    let note = |at, made, outcome, why: String| {
        let visit = Visit { at, until: Instant::now(), made, mode, outcome, why };
        visits.lock().expect("no panic").push(visit);
    };
    let at = Instant::now();
    let mut session = match client.handshake(target, mode) {
        Ok(made) => {
            note(at, None, Outcome::Full, String::new());
            made.session
        }
        Err(error) => {
            note(at, None, Outcome::Failed, error.to_string());
            // The pace of a client, as below.
            return thread::sleep(THINKS);
        }
    };
    let mut made = Instant::now();
    for _ in 0..RETURNS {
        thread::sleep(THINKS);
        if over.load(Ordering::Relaxed) {
            return;
        }
        let at = Instant::now();
        match client.resume_and_renew(target, &session) {
            Ok(resumption) => {
                let outcome = if resumption.resumed { Outcome::Resumed } else { Outcome::Refused };
                note(at, Some(made), outcome, String::new());
                if let Some(renewed) = resumption.renewed {
                    (session, made) = (renewed, Instant::now());
                }
            }
            Err(error) => note(at, Some(made), Outcome::Failed, error.to_string()),
        }
    }
}

/// What a number of visits came to, by mode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts(BTreeMap<(Mode, Outcome), usize>);

impl Counts {
    /// Counts `visits`.
    pub fn of<'a>(visits: impl IntoIterator<Item = &'a Visit>) -> Self {
        let mut counts = BTreeMap::new();
        for visit in visits {
            *counts.entry((visit.mode, visit.outcome)).or_default() += 1;
        }
        Self(counts)
    }

    /// Connections of this mode and outcome.
    pub fn get(&self, mode: Mode, outcome: Outcome) -> usize {
        self.0.get(&(mode, outcome)).copied().unwrap_or_default()
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        for mode in Mode::ALL {
            let [full, resumed, refused, failed] =
                [Outcome::Full, Outcome::Resumed, Outcome::Refused, Outcome::Failed].map(|what| self.get(mode, what));
            write!(text, "; {mode}: {full} full, {resumed} resumed, {refused} refused, {failed} failed")?;
        }
        f.write_str(text.trim_start_matches("; "))
    }
}
