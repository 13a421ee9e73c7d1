//! Every host's session offered at every host, the issuer included.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde::{Deserialize, Serialize};

use super::{Client, Handshake, Mode, ProbeError, Session, Target};
use crate::words::listed;

/// So many hosts are named in a sentence at most.
const MOST_NAMED: usize = 5;

/// What became of every pair of hosts in one mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Matrix {
    /// How sessions were resumed.
    pub mode: Mode,
    /// The hosts as `HOST:PORT`, in the order in which they were given.
    pub hosts: Vec<String>,
    /// One for each host, in the same order: the session that was made there.
    pub rows: Vec<MatrixRow>,
}

/// The session made at one host, and what the others did with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MatrixRow {
    /// The host that made the session.
    pub made_at: String,
    /// What the host's full handshake brought.
    pub offer: Offer,
    /// One for each host, in the order of [`Matrix::hosts`].
    pub cells: Vec<Cell>,
}

/// What a host's full handshake brought.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Offer {
    /// A session to resume.
    Session {
        /// `TLSv1.2` or `TLSv1.3`.
        protocol: String,
        /// The cipher suite, by its IANA name.
        cipher: String,
    },
    /// A handshake, but nothing to resume by.
    NotOffered,
    /// No handshake.
    Failed {
        /// Why, in words.
        error: String,
    },
}

/// What one host did with another's session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// The host at which the session was offered.
    pub resumed_at: String,
    /// What it did.
    pub outcome: Outcome,
    /// How often the session was offered; 0 if there was none.
    pub tries: u32,
    /// Why the outcome is `failed`, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What became of an offered session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The host took the session.
    Resumed,
    /// The host made a full handshake instead.
    Refused,
    /// There was no handshake, at this host or at the one that should have made the session.
    Failed,
    /// The host that should have made the session offers none in this mode.
    NotOffered,
}

impl Matrix {
    /// Whether every cell is [`Outcome::Resumed`].
    #[must_use]
    pub fn passed(&self) -> bool {
        self.rows.iter().flat_map(|row| &row.cells).all(|cell| cell.outcome == Outcome::Resumed)
    }

    /// How many cells are [`Outcome::Resumed`], and how many there are.
    #[must_use]
    pub(crate) fn count(&self) -> (usize, usize) {
        let cells = self.rows.iter().flat_map(|row| &row.cells);
        (cells.clone().filter(|cell| cell.outcome == Outcome::Resumed).count(), cells.count())
    }

    /// The cells that are not [`Outcome::Resumed`], in sentences: one for each host that made no session, and one for
    /// each host and reason for which it did not resume others' sessions.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        let what = self.mode.title();
        if !self.rows.is_empty() && self.rows.iter().all(|row| row.offer == Offer::NotOffered) {
            return vec![format!("No host offers a session {}; --mode leaves a mode out.", without_version(what))];
        }
        let mut sentences = Vec::new();
        let mut at: BTreeMap<(usize, Outcome, &str), Vec<&str>> = BTreeMap::new();
        for row in &self.rows {
            match &row.offer {
                Offer::NotOffered => sentences.push(format!(
                    "{} made a handshake but offers no session {}.",
                    row.made_at,
                    without_version(what)
                )),
                Offer::Failed { error } => sentences.push(format!("{} made no session: {error}.", row.made_at)),
                Offer::Session { .. } => {
                    for (column, cell) in row.cells.iter().enumerate() {
                        if cell.outcome != Outcome::Resumed {
                            let why = cell.error.as_deref().unwrap_or_default();
                            at.entry((column, cell.outcome, why)).or_default().push(&row.made_at);
                        }
                    }
                }
            }
        }
        sentences.extend(at.into_iter().map(|((column, outcome, why), made_at)| {
            let host = &self.hosts[column];
            match outcome {
                Outcome::Refused if made_at == [host] => {
                    format!("{host} did not resume its own session: it made a full handshake instead.")
                }
                Outcome::Refused => {
                    let sessions = if made_at.len() == 1 { "the session" } else { "sessions" };
                    let made_at = listed(&made_at, MOST_NAMED, "others");
                    format!("{host} did not resume {sessions} made at {made_at}: it made a full handshake instead.")
                }
                _ => format!(
                    "{host} failed when offered what was made at {}: {why}.",
                    listed(&made_at, MOST_NAMED, "others")
                ),
            }
        }));
        sentences
    }
}

/// `TLS 1.2 by ticket` → `by TLS 1.2 ticket`: reads better behind "session".
fn without_version(title: &str) -> String {
    match title.split_once(" by ") {
        Some((version, how)) => format!("by {version} {how}"),
        None => title.to_owned(),
    }
}

/// Makes a session at each of `targets`, then offers each at each, its issuer included: N + N² connections, up to 32 at a
/// time. A cell that is refused is tried up to `tries` times (at least once), half a second apart; sessions by ID reach
/// the other hosts of a farm a moment after they are made.
#[must_use]
pub fn matrix(client: &Client, targets: &[Target], mode: Mode, tries: u32) -> Matrix {
    let made = in_parallel(targets, |target| client.handshake(target, mode));
    let pairs: Vec<_> =
        made.iter().flat_map(|made| targets.iter().map(move |target| (made, target))).collect::<Vec<_>>();
    let mut cells = in_parallel(&pairs, |(made, target)| cell(client, made, target, tries)).into_iter();
    let rows = targets.iter().zip(&made).map(|(target, made)| MatrixRow {
        made_at: target.label().to_owned(),
        offer: offer(made),
        cells: cells.by_ref().take(targets.len()).collect(),
    });
    let rows = rows.collect();
    Matrix { mode, hosts: targets.iter().map(|target| target.label().to_owned()).collect(), rows }
}

const AGAIN_AFTER: std::time::Duration = std::time::Duration::from_millis(500);

fn offer(made: &Result<Handshake, ProbeError>) -> Offer {
    match made {
        Ok(made) => Offer::Session { protocol: made.protocol.to_owned(), cipher: made.cipher.clone() },
        Err(ProbeError::NotOffered(_)) => Offer::NotOffered,
        Err(error) => Offer::Failed { error: error.to_string() },
    }
}

fn cell(client: &Client, made: &Result<Handshake, ProbeError>, target: &Target, tries: u32) -> Cell {
    let (outcome, tries, error) = match made {
        Ok(made) => offered(client, &made.session, target, tries),
        Err(ProbeError::NotOffered(_)) => (Outcome::NotOffered, 0, None),
        Err(error) => (Outcome::Failed, 0, Some(error.to_string())),
    };
    Cell { resumed_at: target.label().to_owned(), outcome, tries, error }
}

fn offered(client: &Client, session: &Session, target: &Target, tries: u32) -> (Outcome, u32, Option<String>) {
    let mut tried = 1;
    loop {
        match client.resume(target, session) {
            Ok(resumption) if resumption.resumed => return (Outcome::Resumed, tried, None),
            Ok(_) if tried >= tries => return (Outcome::Refused, tried, None),
            Ok(_) => thread::sleep(AGAIN_AFTER),
            Err(error) => return (Outcome::Failed, tried, Some(error.to_string())),
        }
        tried += 1;
    }
}

/// `work` done on each of `items` by up to 32 threads; the results in the order of `items`.
fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    const THREADS: usize = 32;
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(items.len()));
    thread::scope(|scope| {
        for _ in 0..items.len().min(THREADS) {
            scope.spawn(|| {
                while let Some((index, item)) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    items.get(index).map(|item| (index, item))
                } {
                    let result = work(item);
                    done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((index, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(made_at: &str, offer: Offer, cells: &[(&str, Outcome, Option<&str>)]) -> MatrixRow {
        let cells = cells.iter().map(|&(resumed_at, outcome, error)| Cell {
            resumed_at: resumed_at.into(),
            outcome,
            tries: 1,
            error: error.map(str::to_owned),
        });
        MatrixRow { made_at: made_at.into(), offer, cells: cells.collect() }
    }

    fn session() -> Offer {
        Offer::Session { protocol: "TLSv1.2".into(), cipher: "TLS_AES_256_GCM_SHA384".into() }
    }

    #[test]
    fn failures_are_gathered_by_host_and_reason() {
        use Outcome::{Failed, NotOffered, Refused, Resumed};
        let matrix = Matrix {
            mode: Mode::Ticket12,
            hosts: vec!["a:1".into(), "b:2".into(), "c:3".into()],
            rows: vec![
                row("a:1", session(), &[("a:1", Resumed, None), ("b:2", Refused, None), ("c:3", Failed, Some("gone"))]),
                row("b:2", session(), &[("a:1", Refused, None), ("b:2", Refused, None), ("c:3", Failed, Some("gone"))]),
                row(
                    "c:3",
                    Offer::NotOffered,
                    &[("a:1", NotOffered, None), ("b:2", NotOffered, None), ("c:3", NotOffered, None)],
                ),
            ],
        };
        assert!(!matrix.passed());
        assert_eq!(matrix.count(), (1, 9));
        assert_eq!(
            matrix.failures(),
            [
                "c:3 made a handshake but offers no session by TLS 1.2 ticket.",
                "a:1 did not resume the session made at b:2: it made a full handshake instead.",
                "b:2 did not resume sessions made at a:1 and b:2: it made a full handshake instead.",
                "c:3 failed when offered what was made at a:1 and b:2: gone.",
            ]
        );
    }

    #[test]
    fn a_mode_that_no_host_offers_is_one_failure() {
        let cells = [("a:1", Outcome::NotOffered, None)];
        let matrix =
            Matrix { mode: Mode::Id, hosts: vec!["a:1".into()], rows: vec![row("a:1", Offer::NotOffered, &cells)] };
        assert!(!matrix.passed());
        assert_eq!(matrix.failures(), ["No host offers a session by TLS 1.2 session ID; --mode leaves a mode out."]);
    }

    #[test]
    fn long_lists_of_hosts_are_cut() {
        assert_eq!(listed(&["a", "b", "c", "d", "e"], MOST_NAMED, "others"), "a, b, c, d and e");
        assert_eq!(listed(&["a", "b", "c", "d", "e", "f", "g"], MOST_NAMED, "others"), "a, b, c, d, e and 2 others");
    }

    #[test]
    fn parallel_work_keeps_its_order() {
        let items: Vec<usize> = (0..500).collect();
        assert_eq!(in_parallel(&items, |n| n * 2), items.iter().map(|n| n * 2).collect::<Vec<_>>());
        assert!(in_parallel(&[0_usize; 0], |n| *n).is_empty());
    }
}
