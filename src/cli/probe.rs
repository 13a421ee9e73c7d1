//! `resumed probe`: which TLS servers resume each other's sessions.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::Failure;
use super::table::{plain, table};
use crate::probe::{
    Cell, Client, ClientCertificate, Matrix, Mode, Options, Outcome, ProbeError, Target, TargetFault, matrix,
};

/// The end of `resumed probe --help`.
pub(crate) const LONG_HELP: &str = "\
Makes a session at each host with a full handshake, then offers it at every host, its own included. Prints one table a \
mode, with the host that made the session at the left and the host that it was offered to at the top:

  resumed     the host took the session
  REFUSED     the host made a full handshake instead
  FAILED      no handshake, at this host or at the one that should have made the session
  no session  the host that should have made the session offers none in this mode

Below a table stands each failure in words, with the alert that a server sent. Exits 1 if any cell is not `resumed`. A mode that no host offers fails too: \
name the modes that count with --mode.

Modes: `id` is TLS 1.2 by session ID, `ticket12` TLS 1.2 by ticket, `ticket13` TLS 1.3 by ticket.

Works against any TLS server. Certificates are not verified unless --ca is given. In mode ticket13 a server that sends \
no ticket by itself is asked for a page (GET /). A name with several addresses stands for the first that takes a \
connection; to probe the hosts behind it, name them by address and give the name with --sni.

JSON: {passed, modes[] {mode, passed, hosts[], rows[] {made_at, offer {outcome, protocol, cipher, error}, cells[] \
{resumed_at, outcome, tries, error}}, failures[]}}. An offer's outcome is session, not_offered or failed; a cell's is \
resumed, refused, failed or not_offered. `protocol` and `cipher` stand beside `session` only, `error` beside `failed` \
only. Rows and cells have the order of hosts.

Examples:
  resumed probe 192.0.2.11:443 192.0.2.12:443 --sni www.example.com
  resumed probe '[2001:db8::11]:8443' '[2001:db8::12]:8443' --mode ticket12,ticket13
  resumed probe edge-1.example.com edge-2.example.com --cert client.pem --key client.key
  resumed probe edge-1.example.com edge-2.example.com --json | jq -r '.modes[].failures[]'";

/// The arguments of `resumed probe`.
#[derive(Args, Clone, Debug)]
pub(crate) struct ProbeArgs {
    /// The hosts: name or address, with the port unless it is 443; IPv6 addresses with a port in brackets
    #[arg(required = true, value_name = "HOST:PORT")]
    pub hosts: Vec<String>,

    /// The server name (SNI) to send to every host
    ///
    /// Without it: the name of the host that made the session, also where that is offered to another; none if that host
    /// was given by address.
    #[arg(long, value_name = "NAME")]
    pub sni: Option<String>,

    /// What to probe; several are separated by commas
    #[arg(long, value_enum, value_delimiter = ',', default_value = "all")]
    pub mode: Vec<ModeArg>,

    /// Print JSON instead of tables
    #[arg(long)]
    pub json: bool,

    /// The time limit of each step: connecting, shaking hands, waiting for a ticket
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    pub timeout: Duration,

    /// How often to offer a session that is refused, half a second apart
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub tries: u32,

    /// Verify certificates against the authorities in this PEM file
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,

    /// Show this client certificate to servers that ask for one: a PEM file, with those that lead to its authority behind it
    #[arg(long, value_name = "FILE")]
    pub cert: Option<PathBuf>,

    /// The private key of --cert, a PEM file without a passphrase; without it the key is in the file of --cert
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
}

/// A value of `--mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModeArg {
    /// TLS 1.2 by session ID
    Id,
    /// TLS 1.2 by ticket
    Ticket12,
    /// TLS 1.3 by ticket
    Ticket13,
    /// Each of them
    All,
}

impl ModeArg {
    fn modes(self) -> &'static [Mode] {
        match self {
            Self::Id => &[Mode::Id],
            Self::Ticket12 => &[Mode::Ticket12],
            Self::Ticket13 => &[Mode::Ticket13],
            Self::All => &Mode::ALL,
        }
    }
}

/// Probes and prints to `out`.
///
/// # Errors
/// If an argument cannot be used, or any cell is not `resumed`.
pub(super) fn run(args: &ProbeArgs, out: &mut impl Write) -> Result<(), Failure> {
    let usage = |error: &dyn std::fmt::Display| Failure::Usage(error.to_string());
    // Mistakes in any argument come before the first packet.
    args.hosts.iter().try_for_each(|host| Target::check(host)).map_err(|error| usage(&error))?;
    let certificate = args.cert.clone().map(|chain| {
        let key = args.key.clone().unwrap_or_else(|| chain.clone());
        ClientCertificate { chain, key }
    });
    let options =
        Options { server_name: args.sni.clone(), timeout: args.timeout, ca_file: args.ca.clone(), certificate };
    let client = Client::new(options).map_err(|error| match error {
        ProbeError::Options(_) => usage(&error),
        _ => Failure::of(error),
    })?;
    let targets = args.hosts.iter().map(|host| Target::resolve(host, args.timeout));
    let targets: Vec<_> = targets.collect::<Result<_, TargetFault>>().map_err(Failure::of)?;
    let modes = Mode::ALL.into_iter().filter(|mode| args.mode.iter().any(|arg| arg.modes().contains(mode)));
    let mut matrices = Vec::new();
    for mode in modes {
        let matrix = matrix(&client, &targets, mode, args.tries);
        if !args.json {
            // Each as soon as it is there: a dead host makes the next one take its time.
            write!(out, "{}{}", if matrices.is_empty() { "" } else { "\n" }, render(&matrix))?;
            out.flush()?;
        }
        matrices.push(matrix);
    }
    if args.json {
        writeln!(out, "{}", json(&matrices)?)?;
    }
    verdict(&matrices)
}

/// Ok if every cell of every mode is `resumed`, else a failure that counts those that are not.
///
/// # Errors
/// See above.
pub(super) fn verdict(matrices: &[Matrix]) -> Result<(), Failure> {
    let failed: Vec<_> = matrices.iter().filter(|matrix| !matrix.passed()).collect();
    if failed.is_empty() {
        return Ok(());
    }
    let counts = failed.iter().map(|matrix| {
        let (resumed, all) = matrix.count();
        format!("{} of {all} in mode {}", all - resumed, matrix.mode)
    });
    Err(Failure::Failed(format!("not resumed: {}", counts.collect::<Vec<_>>().join(", "))))
}

#[derive(Serialize)]
struct Report<'a> {
    passed: bool,
    modes: Vec<ModeReport<'a>>,
}

#[derive(Serialize)]
struct ModeReport<'a> {
    passed: bool,
    #[serde(flatten)]
    matrix: &'a Matrix,
    failures: Vec<String>,
}

fn json(matrices: &[Matrix]) -> Result<String, Failure> {
    let modes =
        matrices.iter().map(|matrix| ModeReport { passed: matrix.passed(), matrix, failures: matrix.failures() });
    let report = Report { passed: matrices.iter().all(Matrix::passed), modes: modes.collect() };
    serde_json::to_string_pretty(&report).map_err(Failure::of)
}

/// One mode as a table, and its failures in words. Ends with a newline.
#[must_use]
pub(super) fn render(matrix: &Matrix) -> String {
    /// The widest table whose columns have the hosts' names; in wider ones they have numbers.
    const WIDEST: usize = 100;
    const CORNER: &str = "made at";
    let hosts: Vec<_> = matrix.hosts.iter().map(|host| plain(host)).collect();
    let widths = || hosts.iter().map(|host| host.chars().count().max(CORNER.len()) + 3);
    let is_narrow = widths().sum::<usize>() + widths().max().unwrap_or(0) <= WIDEST;
    let heads = hosts.iter().enumerate().map(|(n, host)| if is_narrow { host.clone() } else { (n + 1).to_string() });
    let mut table = table(std::iter::once(CORNER.to_owned()).chain(heads));
    for (n, (row, host)) in matrix.rows.iter().zip(&hosts).enumerate() {
        let head = if is_narrow { host.clone() } else { format!("{} {host}", n + 1) };
        table.add_row(std::iter::once(head).chain(row.cells.iter().map(word)));
    }
    let (resumed, all) = matrix.count();
    let mut text = format!("{}: {resumed} of {all} resumed\n{table}\n", matrix.mode.title());
    for failure in matrix.failures() {
        text.push_str(&format!("  - {}\n", plain(&failure)));
    }
    text
}

fn word(cell: &Cell) -> String {
    match (cell.outcome, cell.tries) {
        (Outcome::Resumed, 0..=1) => "resumed".to_owned(),
        (Outcome::Resumed, tries) => format!("resumed ({tries})"),
        (Outcome::Refused, _) => "REFUSED".to_owned(),
        (Outcome::Failed, _) => "FAILED".to_owned(),
        (Outcome::NotOffered, _) => "no session".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::{MatrixRow, Offer};

    fn matrix_of(mode: Mode, hosts: &[&str], outcome: impl Fn(usize, usize) -> (Outcome, u32)) -> Matrix {
        let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
        let rows = hosts.iter().enumerate().map(|(row, made_at)| {
            let cells = hosts.iter().enumerate().map(|(column, host)| {
                let (outcome, tries) = outcome(row, column);
                let error = (outcome == Outcome::Failed).then(|| "cannot connect: gone".to_owned());
                Cell { resumed_at: host.clone(), outcome, tries, error }
            });
            let offer = Offer::Session { protocol: "TLSv1.2".into(), cipher: "TLS_X".into() };
            MatrixRow { made_at: made_at.clone(), offer, cells: cells.collect() }
        });
        Matrix { mode, rows: rows.collect(), hosts }
    }

    #[test]
    fn a_matrix_is_a_table_with_its_failures_in_words() {
        let matrix = matrix_of(Mode::Id, &["a:443", "b:443"], |row, column| match (row, column) {
            (0, 1) => (Outcome::Refused, 3),
            (1, 0) => (Outcome::Resumed, 2),
            _ => (Outcome::Resumed, 1),
        });
        assert_eq!(
            render(&matrix),
            "\
TLS 1.2 by session ID: 3 of 4 resumed
┌─────────┬─────────────┬─────────┐
│ made at ┆ a:443       ┆ b:443   │
╞═════════╪═════════════╪═════════╡
│ a:443   ┆ resumed     ┆ REFUSED │
│ b:443   ┆ resumed (2) ┆ resumed │
└─────────┴─────────────┴─────────┘
  - b:443 did not resume the session made at a:443: it made a full handshake instead.
"
        );
    }

    #[test]
    fn many_hosts_are_numbered_to_keep_the_table_narrow() {
        let hosts: Vec<_> = (1..=12).map(|n| format!("edge-{n}.example.com:443")).collect();
        let hosts: Vec<_> = hosts.iter().map(String::as_str).collect();
        let text = render(&matrix_of(Mode::Ticket13, &hosts, |_, _| (Outcome::Resumed, 1)));
        let widest = text.lines().map(|line| line.chars().count()).max().unwrap();
        assert!(widest <= 160, "{widest}:\n{text}");
        assert!(text.contains("│ 12 edge-12.example.com:443 ┆ resumed"), "{text}");
        assert!(text.contains("┆ 11      ┆ 12      │"), "{text}");
    }

    #[test]
    fn json_has_the_documented_keys() {
        let matrices = [
            matrix_of(Mode::Id, &["a:1"], |_, _| (Outcome::Resumed, 1)),
            matrix_of(Mode::Ticket12, &["a:1"], |_, _| (Outcome::Failed, 1)),
        ];
        let json: serde_json::Value = serde_json::from_str(&json(&matrices).unwrap()).unwrap();
        let session = serde_json::json!({"outcome": "session", "protocol": "TLSv1.2", "cipher": "TLS_X"});
        let resumed = serde_json::json!({"resumed_at": "a:1", "outcome": "resumed", "tries": 1});
        let gone = "cannot connect: gone";
        let failed = serde_json::json!({"resumed_at": "a:1", "outcome": "failed", "tries": 1, "error": gone});
        let failure = format!("a:1 failed when offered what was made at a:1: {gone}.");
        assert_eq!(
            json,
            serde_json::json!({"passed": false, "modes": [
                {"mode": "id", "passed": true, "hosts": ["a:1"], "failures": [],
                 "rows": [{"made_at": "a:1", "offer": session, "cells": [resumed]}]},
                {"mode": "ticket12", "passed": false, "hosts": ["a:1"], "failures": [failure],
                 "rows": [{"made_at": "a:1", "offer": session, "cells": [failed]}]},
            ]})
        );
    }

    #[test]
    fn the_verdict_counts_what_was_not_resumed_mode_by_mode() {
        let good = matrix_of(Mode::Id, &["a:1"], |_, _| (Outcome::Resumed, 1));
        let bad = matrix_of(Mode::Ticket13, &["a:1", "b:1"], |row, _| match row {
            0 => (Outcome::Resumed, 1),
            _ => (Outcome::Refused, 1),
        });
        assert_eq!(verdict(std::slice::from_ref(&good)), Ok(()));
        let failure = verdict(&[good, bad]).unwrap_err();
        assert_eq!(failure, Failure::Failed("not resumed: 2 of 4 in mode ticket13".into()));
    }

    #[test]
    fn mistakes_in_the_arguments_are_usage_and_unknown_hosts_are_failures() {
        let args = |host: &str, sni: Option<&str>| ProbeArgs {
            hosts: vec!["192.0.2.1".into(), host.into()],
            sni: sni.map(str::to_owned),
            mode: vec![ModeArg::All],
            json: false,
            timeout: Duration::from_secs(1),
            tries: 1,
            ca: None,
            cert: None,
            key: None,
        };
        let run = |args| run(&args, &mut Vec::new()).unwrap_err();
        for (args, code, text) in [
            (args("https://edge.example", None), 2, "URL"),
            (args("127.0.0.1:1", Some("127.0.0.1")), 2, "host names only"),
            (args("no-such-host.invalid", None), 1, "no-such-host.invalid"),
        ] {
            let failure = run(args);
            assert!(failure.code() == code && failure.to_string().contains(text), "{failure:?}");
        }
    }
}
