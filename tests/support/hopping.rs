//! Clients that hop between hosts while something happens to the farm.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use resumed::internals::hex::hex;
use resumed::internals::probe::{Client, Mode, Options, Session, Target};

/// How long a session ID may take to be known everywhere.
const SHARED_WITHIN: Duration = Duration::from_secs(5);

/// What the clients saw.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Tickets that were offered at a host, most of them at another than their own, some of them from the beginning.
    pub tickets: usize,
    /// Session IDs that were offered at another host right after they were made.
    pub ids: usize,
    /// Those of them that were refused at first, and resumed soon after.
    pub late: usize,
    /// How long the last of those took, from its first offer.
    pub latest: Duration,
    /// Every ticket that was refused, every session ID that was refused for good, and every failure.
    pub refused: Vec<String>,
    /// The names of the keys that sealed tickets, the first four bytes in hexadecimal as `status` shows them.
    pub keys: BTreeSet<String>,
    /// The key that sealed the latest ticket of each host, by the host's index.
    pub sealing: BTreeMap<usize, String>,
}

/// Clients on their way.
pub struct Hopping<'a> {
    targets: &'a [Target],
    modes: &'a [Mode],
    start: Instant,
    over: AtomicBool,
    tally: Mutex<Tally>,
}

/// Ends the hopping, also if what happens meanwhile panics.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl<'a> Hopping<'a> {
    /// Lets two clients hop between `targets` in `modes` while `happens` runs.
    pub fn during<T>(targets: &'a [Target], modes: &'a [Mode], happens: impl FnOnce(&Self) -> T) -> (T, Tally) {
        let hopping =
            Self { targets, modes, start: Instant::now(), over: AtomicBool::new(false), tally: Mutex::default() };
        let result = thread::scope(|scope| {
            for hopper in 0..2 {
                let hopping = &hopping;
                scope.spawn(move || hopping.hop(hopper));
            }
            let _over = Over(&hopping.over);
            happens(&hopping)
        });
        (result, hopping.tally.into_inner().expect("not poisoned"))
    }

    /// What the clients have seen so far.
    pub fn so_far(&self) -> Tally {
        self.tally().clone()
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().expect("not poisoned")
    }

    fn hop(&self, hopper: usize) {
        let client = Client::new(Options::default()).expect("a client");
        let hosts = self.targets.len();
        let mut first: Vec<(usize, Session)> = Vec::new();
        for turn in hopper.. {
            if self.over.load(Ordering::Relaxed) {
                return;
            }
            let mode = self.modes[turn / hosts % self.modes.len()];
            let from = turn % hosts;
            match client.handshake(&self.targets[from], mode) {
                Ok(made) => {
                    self.note_key(&made.session, from);
                    self.offer(&client, &made.session, from, (from + 1 + turn / hosts % 2) % hosts);
                    if mode != Mode::Id && first.len() < 2 * hosts {
                        first.push((from, made.session));
                    }
                }
                Err(error) => self.failed(&format!("a full handshake in mode {mode}"), from, &error.to_string()),
            }
            // Tickets from the beginning come back all the time.
            if turn % 3 == 0 && !first.is_empty() {
                let (from, session) = &first[turn / 3 % first.len()];
                self.offer(&client, session, *from, turn % hosts);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn note_key(&self, session: &Session, from: usize) {
        let key = hex(session.ticket().get(..4).unwrap_or_default());
        if !key.is_empty() {
            let mut tally = self.tally();
            tally.keys.insert(key.clone());
            tally.sealing.insert(from, key);
        }
    }

    fn offer(&self, client: &Client, session: &Session, from: usize, to: usize) {
        let mode = session.mode();
        if mode == Mode::Id {
            self.tally().ids += 1;
        } else {
            self.tally().tickets += 1;
        }
        let what = format!("a session made at {} in mode {mode}", self.targets[from]);
        let offered = Instant::now();
        for tries in 1.. {
            match client.resume(&self.targets[to], session) {
                Ok(resumption) if resumption.resumed => {
                    if tries > 1 {
                        let mut tally = self.tally();
                        tally.late += 1;
                        tally.latest = tally.latest.max(offered.elapsed());
                    }
                    return;
                }
                Ok(_) if mode == Mode::Id && offered.elapsed() < SHARED_WITHIN => {
                    thread::sleep(Duration::from_millis(2));
                }
                Ok(_) => return self.failed(&what, to, "refused"),
                Err(error) => return self.failed(&what, to, &error.to_string()),
            }
        }
    }

    fn failed(&self, what: &str, at: usize, why: &str) {
        let after = self.start.elapsed();
        self.tally().refused.push(format!("{what}, {after:.1?} after the start, at {}: {why}", self.targets[at]));
    }
}
