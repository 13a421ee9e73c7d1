//! A farm of real servers on this machine: what `make demo` runs.
//!
//! ```text
//! cargo build --release                       # the daemon and the plugin that it starts
//! cargo run --release --bin farm              # less than a minute, leaves nothing
//! cargo run --release --bin farm -- --keep    # leaves the farm up
//! ```
//!
//! Exits 0 if every session was resumed wherever it was offered and nothing else was off, 1 if not, 2 on a wrong argument.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::panic;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use resumed::internals::keys::KeyState;
use resumed::internals::probe::{Mode, Target};
use testkit::broker::{Broker, BrokerOptions};
use testkit::farm::{Farm, FarmSetup, built, wait_for};
use testkit::hopping::{Hopping, Tally};
use testkit::watcher::{self, Folder, Process};
use tokio::signal::unix::{SignalKind, signal};

const HOSTS: usize = 3;
const ROTATIONS: usize = 3;
const TICKETS: [Mode; 2] = [Mode::Ticket12, Mode::Ticket13];
/// The name in the hosts' certificate.
const CERTIFICATE_NAME: &str = "farm.test";

fn main() -> ExitCode {
    let keep = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => false,
        [word] if word == "--keep" => true,
        words => {
            eprintln!("farm: unknown arguments: {}; usage: farm [--keep]", words.join(" "));
            return ExitCode::from(2);
        }
    };
    stop_on_signals();
    panic::set_hook(Box::new(|fault| {
        // What is killed on an interruption fails, which is no news.
        while INTERRUPTED.load(Ordering::Relaxed) {
            thread::park();
        }
        let text = fault.payload().downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| fault.payload().downcast_ref::<&str>().copied()).unwrap_or("it panicked");
        let place = fault.location().map(ToString::to_string).unwrap_or_default();
        // The terminal may be gone.
        drop(writeln!(io::stderr(), "\n\nThe demo cannot go on, and stops everything: {text}\n(at {place})\n"));
    }));
    // All that was started ends as the panic unwinds.
    let passed = panic::catch_unwind(|| {
        let mut demo = Demo::start();
        demo.run();
        if keep { demo.stay_up() } else { demo.stop() }
    });
    if passed.unwrap_or(false) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// On SIGINT, SIGTERM and SIGHUP: ends everything that was started, then this process.
fn stop_on_signals() {
    let (installed, ready) = mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
        let code = runtime.block_on(async {
            let mut interrupt = signal(SignalKind::interrupt()).expect("a handler for SIGINT");
            let mut terminate = signal(SignalKind::terminate()).expect("a handler for SIGTERM");
            let mut hangup = signal(SignalKind::hangup()).expect("a handler for SIGHUP");
            installed.send(()).expect("somebody waits");
            tokio::select! {
                _ = interrupt.recv() => 130,
                _ = terminate.recv() => 143,
                _ = hangup.recv() => 129,
            }
        });
        INTERRUPTED.store(true, Ordering::Relaxed);
        // The terminal may be gone.
        drop(writeln!(io::stderr(), "\nInterrupted. Stopping every server and removing the folder."));
        watcher::end_everything();
        drop(writeln!(io::stderr(), "Stopped; nothing is left."));
        std::process::exit(code);
    });
    ready.recv().expect("the handlers");
}

struct Demo {
    // In the order in which they go.
    farm: Farm,
    broker: Broker,
    dir: Folder,
    report: Report,
}

/// What is said in the end.
struct Report {
    started: Instant,
    cells: usize,
    seen: Vec<(&'static str, String)>,
    /// What went wrong, in sentences.
    faults: Vec<String>,
}

impl Demo {
    fn start() -> Self {
        let report = Report { started: Instant::now(), cells: 0, seen: Vec::new(), faults: Vec::new() };
        let dir = Folder::temporary("resumed-demo-");
        println!(
            "A farm on this machine: three hosts, each a Traffic Server with a node (`resumed run`) beside it, and one\n\
             RabbitMQ between the nodes. All of it is private to this demo, listens on 127.0.0.1 only, and lies in\n\
             {}. It takes less than a minute; Ctrl-C stops and removes it all.",
            dir.path().display()
        );
        title("Start");
        let within = Some(dir.path().to_owned());
        let broker = wait("RabbitMQ starts (usually 5 to 10 s)", || {
            Broker::start_with(&BrokerOptions { within: within.clone(), ..BrokerOptions::default() })
        });
        let setup = FarmSetup {
            name: "demo".to_owned(),
            pods: vec!["demo".to_owned(); HOSTS],
            manager: true,
            within,
            ..FarmSetup::new(HOSTS, &broker.uri())
        };
        let farm = wait("Three nodes and three Traffic Servers start at the same moment, and get in step", || {
            Farm::start_in_step(&setup)
        });
        for host in &farm.hosts {
            println!("  {}: Traffic Server at {}", host.name, host.target());
        }
        Self { farm, broker, dir, report }
    }

    fn run(&mut self) {
        let targets = self.farm.targets();
        self.status(0);

        title("Probe: a session of each host, offered at every host, in three ways");
        println!("`resumed (2)` is one that had not arrived at the first try, and had half a second later.");
        self.probe(&targets, &Mode::ALL);

        title("Rotate the ticket key three times, while clients hop from host to host");
        self.rotate_under_load(&targets);

        title("Kill the node that leads, while clients hop");
        let (killed, held) = self.lose_the_leader(&targets);

        title("Start the killed node again");
        self.bring_back(killed, &held, &targets);

        title("The farm in the end");
        self.status(killed);
        self.look_for_trouble();
    }

    /// Runs a `resumed` command as a user would, asking the node of host `at`.
    fn command_at(&mut self, at: usize, words: &[&str]) -> bool {
        let config = self.farm.hosts[at].daemon.config().display().to_string();
        self.command(&[words, &["--config", &config]].concat())
    }

    /// Runs a `resumed` command as a user would. If it fails, that is a fault.
    fn command(&mut self, words: &[&str]) -> bool {
        println!("\n$ resumed {}", words.join(" "));
        let mut command = Command::new(built("resumed"));
        let mut process = Process::spawn(command.args(words).stdin(Stdio::null())).expect("resumed runs");
        let status = process.wait().expect("our child");
        if !status.success() {
            self.report.fault(format!("`resumed {}` failed ({status})", words.join(" ")));
        }
        status.success()
    }

    /// Prints what the node of host `at` knows of the farm, once the nodes' reports have told of their proxies.
    fn status(&mut self, at: usize) {
        wait_for("a proxy at each node", || {
            let status = self.farm.hosts[at].daemon.try_status()?;
            let has_all = status.nodes.iter().all(|node| node.in_step && node.proxies.len() == 1);
            if has_all { Ok(()) } else { Err(format!("{status:?}")) }
        });
        self.command_at(at, &["status"]);
    }

    fn probe(&mut self, targets: &[Target], modes: &[Mode]) {
        let hosts: Vec<String> = targets.iter().map(ToString::to_string).collect();
        let names = modes.iter().map(|mode| mode.as_str()).collect::<Vec<_>>().join(",");
        let mut words = vec!["probe"];
        words.extend(hosts.iter().map(String::as_str));
        words.extend(["--sni", CERTIFICATE_NAME, "--tries", "3"]);
        if modes != Mode::ALL {
            words.extend(["--mode", &names]);
        }
        if self.command(&words) {
            self.report.cells += modes.len() * targets.len() * targets.len();
        }
    }

    fn rotate_under_load(&mut self, targets: &[Target]) {
        println!(
            "Two clients make sessions at one host and offer each at another at once, in all three ways. Their first\n\
             tickets they offer again and again: a rotation must not spoil them."
        );
        let ((), tally) = Hopping::during(targets, &Mode::ALL, |hopping| {
            for turn in 0..ROTATIONS {
                self.rotate(turn % HOSTS, hopping);
            }
        });
        self.note_refusals("while the key was rotated", &tally);
        if tally.keys.len() != ROTATIONS + 1 {
            let fault = format!("{} keys sealed tickets during {ROTATIONS} rotations", tally.keys.len());
            self.report.fault(fault);
        }
        let Tally { tickets, ids, late, latest, ref refused, ref keys, .. } = tally;
        let (keys, refused, at_once) = (keys.len(), refused.len(), ids.saturating_sub(late));
        self.report.saw(
            "Rotations",
            format!("{ROTATIONS}; {tickets} tickets of {keys} keys were offered meanwhile, {refused} refused"),
        );
        self.report.saw(
            "Session IDs",
            format!(
                "{ids} were offered on another host at once: {at_once} resumed at the first try, {late} within {latest:.0?}"
            ),
        );
    }

    /// Rotates through the node of host `at`, and waits until every proxy seals with the new key.
    fn rotate(&mut self, at: usize, hopping: &Hopping) {
        let before = self.active_key();
        self.command_at(at, &["rotate"]);
        let key = wait("Until all Traffic Servers seal with it (keys.settle = 2 s after it was made)", || {
            let (key, _) = wait_for("a new key at every Traffic Server", || {
                let (active, sealing) = (self.active_key(), hopping.so_far().sealing);
                let is_everywhere = sealing.len() == HOSTS && sealing.values().all(|key| *key == active);
                let seen = || format!("before {before}, active {active}, sealing {sealing:?}");
                if is_everywhere && active != before { Ok(active.clone()) } else { Err(seen()) }
            });
            key
        });
        let Tally { tickets, refused, .. } = hopping.so_far();
        println!("Key {key} seals everywhere; {tickets} tickets offered so far, {} refused.", refused.len());
    }

    /// The name of the key that seals, as `status` shows it.
    fn active_key(&self) -> String {
        let (active, _) = wait_for("an active key", || {
            let status = self.farm.hosts[0].daemon.try_status()?;
            let active = status.ring.active();
            active.map(|key| key.name_prefix.clone()).ok_or_else(|| format!("{:?}", status.ring))
        });
        active
    }

    /// Returns the index of the killed node, and what keys it held.
    fn lose_the_leader(&mut self, targets: &[Target]) -> (usize, BTreeSet<u64>) {
        let killed = self.farm.leader();
        let name = self.farm.hosts[killed].name.clone();
        let rest = self.farm.others(killed);
        // As soon as a key begins to seal, the leader makes the one after it.
        let (held, _) = wait_for("the next key at every node", || {
            let keys = self.farm.hosts[killed].daemon.try_status()?.ring.keys;
            let rings: Vec<_> = self.farm.hosts.iter().map(|host| host.daemon.generations()).collect();
            let has_next = keys.iter().any(|key| key.state == KeyState::Next);
            if has_next && rings.iter().all(|ring| *ring == rings[0]) {
                Ok(rings[0].clone())
            } else {
                Err(format!("{rings:?}"))
            }
        });
        let (took, tally) = Hopping::during(targets, &TICKETS, |_| {
            println!("\n$ kill -KILL {}    # the node of {name}", self.farm.hosts[killed].daemon.pid());
            let start = Instant::now();
            self.farm.hosts[killed].daemon.kill();
            let (next, _) = self.farm.another_leads(&rest);
            let took = start.elapsed();
            println!("After {took:.2?} {} leads.", self.farm.hosts[next].name);
            if self.farm.hosts[next].daemon.generations() != held {
                self.report.fault("the ring changed with the leader".to_owned());
            }
            self.status(next);
            println!(
                "\nThe Traffic Server of {name} goes on with the keys that it holds. Sessions by ID need a node on both\n\
                 sides to cross, so these are probed between the other two."
            );
            self.probe(targets, &TICKETS);
            let others: Vec<Target> = rest.iter().map(|index| targets[*index].clone()).collect();
            self.probe(&others, &[Mode::Id]);
            took
        });
        self.note_refusals("while a node was away", &tally);
        let (tickets, refused) = (tally.tickets, tally.refused.len());
        self.report.saw(
            "Leader killed",
            format!("another led {took:.2?} later; {tickets} tickets were offered meanwhile, {refused} refused"),
        );
        (killed, held)
    }

    fn bring_back(&mut self, killed: usize, held: &BTreeSet<u64>, targets: &[Target]) {
        let start = Instant::now();
        self.farm.hosts[killed].daemon.launch();
        wait("It reads its ring, meets its proxy again, and gets in step with the new leader", || {
            self.farm.wait_in_step_at(killed);
            self.farm.hosts[killed].daemon.wait_for_metric("resumed_proxies_connected", |proxies| proxies == 1.0);
        });
        let took = start.elapsed();
        if self.farm.hosts[killed].daemon.generations() != *held {
            self.report.fault("the killed node came back with another ring".to_owned());
        }
        self.report.saw("Node started again", format!("in step {took:.2?} later, with the ring of before"));
        self.probe(targets, &Mode::ALL);
    }

    fn note_refusals(&mut self, when: &str, tally: &Tally) {
        if let Some(first) = tally.refused.first() {
            let count = tally.refused.len();
            self.report.fault(format!("{count} sessions were refused {when}; the first: {first}"));
        }
    }

    /// What a farm without a fault never counts or warns of.
    fn look_for_trouble(&mut self) {
        const NEVER: [&str; 6] = [
            "resumed_messages_refused_total",
            "resumed_messages_missed_total",
            "resumed_keys_skipped_total",
            "resumed_key_conflicts_total",
            "resumed_apply_errors_total",
            "resumed_ring_save_errors_total",
        ];
        for host in &self.farm.hosts {
            for name in NEVER {
                let value = host.daemon.try_metric(name);
                if value != Some(0.0) {
                    self.report.fault(format!("{name} at {} is {value:?}, not 0", host.name));
                }
            }
        }
        let status = self.farm.wait_in_step();
        for warning in status.warnings {
            self.report.fault(format!("status warns: {warning}"));
        }
    }

    /// Stops everything, as a service manager would.
    fn stop(self) -> bool {
        let Self { mut farm, broker, dir, mut report } = self;
        title("Stop");
        wait("Nodes, Traffic Servers and RabbitMQ stop", || {
            for host in &mut farm.hosts {
                let (status, took) = host.daemon.stop();
                if !status.success() || took > Duration::from_secs(2) {
                    report
                        .faults
                        .push(format!("on SIGTERM the node of {} ended with {status} after {took:?}", host.name));
                }
            }
            drop(farm);
            drop(broker);
        });
        let path = dir.path().to_owned();
        drop(dir);
        println!("Nothing is left of it, neither processes nor {}.", path.display());
        report.print()
    }

    /// Leaves everything running, and says how to look at it and how to stop it.
    fn stay_up(self) -> bool {
        let Self { farm, broker, dir, report } = self;
        let passed = report.print();
        let processes = watcher::release_everything();
        let stop = dir.path().join("stop");
        fs::write(&stop, stop_script(dir.path(), &processes)).expect("the stop script");
        fs::set_permissions(&stop, Permissions::from_mode(0o755)).expect("permissions");
        let program = built("resumed");
        let here = std::env::current_dir().unwrap_or_default();
        let program = program.strip_prefix(here).unwrap_or(&program).display();
        let [first, second, ..] = &farm.hosts[..] else { unreachable!("three hosts") };
        let (config, home, logs) = (first.daemon.config(), first.ats().dir().display(), dir.path().join("farm"));
        let (config, logs) = (config.display(), logs.display());
        let (at, other) = (first.target(), second.target());
        let targets: Vec<String> = farm.targets().iter().map(ToString::to_string).collect();
        title("The farm stays up");
        println!("The farm, its nodes and keys, from any node; a new key; who resumes whose sessions:");
        println!("  {program} status --config {config}");
        println!("  {program} rotate --config {config}");
        println!("  {program} probe {} --sni {CERTIFICATE_NAME} --tries 3", targets.join(" "));
        println!("The metrics of each node:");
        for host in &farm.hosts {
            println!("  curl -s {}    # {}", host.daemon.metrics_url(), host.name);
        }
        println!("The logs of the nodes, of the Traffic Servers with the plugin in them, and of RabbitMQ:");
        println!("  tail -f {logs}/*/daemon.log");
        println!("  tail -f {logs}/*/ats/log/diags.log");
        println!("  less {}", broker.log_file().display());
        println!("What one Traffic Server counts: its TLS clients, and the plugin's share:");
        println!("  TS_RUNROOT={home} traffic_ctl metric match 'ssl.user_agent_session|resumed'");
        println!("A session made at one host and resumed at another, with OpenSSL's own client:");
        let session = dir.path().join("session.pem");
        let client = format!("-servername {CERTIFICATE_NAME} -tls1_2");
        let session = session.display();
        println!(
            "  openssl s_client -connect {at} {client} -sess_out {session} </dev/null 2>&1 | grep -E '^(New|Reused),'"
        );
        println!(
            "  openssl s_client -connect {other} {client} -sess_in {session} </dev/null 2>&1 | grep -E '^(New|Reused),'"
        );
        println!("Stop it and remove {}:", dir.path().display());
        println!("  {}", stop.display());
        // What is not dropped is not stopped.
        std::mem::forget((farm, broker, dir));
        passed
    }
}

impl Report {
    /// Says it at once, and again in the summary.
    fn fault(&mut self, fault: String) {
        println!("NOT AS IT SHOULD BE: {fault}");
        self.faults.push(fault);
    }

    fn saw(&mut self, what: &'static str, how: String) {
        self.seen.push((what, how));
    }

    /// Prints the figures. True if nothing was off.
    fn print(&self) -> bool {
        title("Summary");
        println!("{:<20}{} cells of the tables above, every one `resumed`", "Probes", self.cells);
        for (what, how) in &self.seen {
            println!("{what:<20}{how}");
        }
        println!("{:<20}{:.0} s", "Time", self.started.elapsed().as_secs_f64());
        if self.faults.is_empty() {
            println!("\nEverything went as it should.");
        } else {
            println!("\nNOT everything went as it should:");
            for fault in &self.faults {
                println!("  - {fault}");
            }
        }
        self.faults.is_empty()
    }
}

/// A shell script that ends `processes`, the last one first, and removes `dir`. It knows each by its id and by when it
/// started, so that it leaves alone who has the id by then.
fn stop_script(dir: &Path, processes: &[u32]) -> String {
    let known = processes.iter().rev().filter_map(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // proc(5): the 22nd field, the 20th after the name in parentheses.
        Some(format!("{pid}:{}", stat.rsplit(')').next()?.split_whitespace().nth(19)?))
    });
    STOP.replace("@PROCESSES@", &known.collect::<Vec<_>>().join(" ")).replace("@DIR@", &dir.display().to_string())
}

const STOP: &str = r#"#!/bin/sh
# Stops the farm that `make demo KEEP=1` left up, and removes its folder. Each process is known by its id and by when it
# started: whoever else has that id by now is left alone.
set -u
dir='@DIR@'
processes='@PROCESSES@'

# Whether ID:START still runs.
runs() {
    start=${1#*:}
    # shellcheck disable=SC2046 # words are wanted
    set -- $(sed 's/.*) //' "/proc/${1%%:*}/stat" 2>/dev/null)
    [ $# -ge 20 ] && [ "$1" != Z ] && [ "${20}" = "$start" ]
}

for process in $processes; do
    id=${process%%:*}
    runs "$process" || continue
    kill -s TERM "$id"
    tries=0
    while runs "$process" && [ "$tries" -lt 100 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
    # What is left of its group, if anything.
    kill -s KILL -- "-$id" 2>/dev/null
done
rm -rf -- "$dir"
echo "Stopped; $dir is removed."
"#;

fn title(text: &str) {
    println!("\n== {text}");
}

/// Says what is waited for, waits, and says how long it took.
fn wait<T>(what: &str, work: impl FnOnce() -> T) -> T {
    print!("{what} ... ");
    drop(io::stdout().flush());
    let start = Instant::now();
    let result = work();
    println!("{:.1} s", start.elapsed().as_secs_f64());
    result
}
