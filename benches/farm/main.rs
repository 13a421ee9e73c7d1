//! The whole product measured, each figure beside what the broker and the machine do on their own in the same run.
//!
//! ```text
//! make bench                     # everything: a table, target/bench/report.json, and plots in docs/bench/
//! make bench ONLY=throughput     # one part
//! ```
//!
//! Needs RabbitMQ as Debian packages it. Servers run on free loopback ports, and end with this process.

mod ats;
mod key_plane;
mod latency;
mod memory;
mod micro;
mod plots;
mod pod;
mod proxy;
mod raw_amqp;
mod report;
mod samples;
mod simulated;
mod throughput;

use std::process::ExitCode;
use std::time::Instant;

use report::Report;
use testkit::broker::Broker;

/// A part of the benchmark: its name, what it says of itself, and how it is run.
type Part = (&'static str, &'static str, fn(&Broker, &mut Report));

const PARTS: [Part; 9] = [
    ("micro", "what one step costs: seal, open, decode, validate, insert, merge, the hook", micro::run),
    ("throughput", "sessions from one node into the caches of three, beside raw AMQP", throughput::run),
    ("pod", "what one session costs pods of 2, 4 and 8 hosts", pod::run),
    ("latency", "one session's way to another host, beside raw AMQP", latency::run),
    ("memory", "a million sessions: their memory, and how fast a node that joins has them", memory::run),
    ("ats", "a real ATS with the plugin and without: handshakes, the hook, CPU, memory", ats::run),
    ("idle", "a node that has nothing to do", memory::run_idle),
    ("nodes", "key planes of 10 to 300 nodes on one broker", key_plane::run),
    ("simulated", "10,000 simulated nodes, beside the formula", simulated::run),
];

fn main() -> ExitCode {
    // Cargo adds --bench of its own accord.
    let only: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if let Some(unknown) = only.iter().find(|word| PARTS.iter().all(|(name, ..)| name != word)) {
        let names: Vec<_> = PARTS.iter().map(|(name, ..)| *name).collect();
        eprintln!("bench: no part is called {unknown:?}; there are {}", names.join(", "));
        return ExitCode::from(2);
    }
    let mut report = Report::default();
    let start = Instant::now();
    let broker = Broker::start();
    for (name, what, run) in PARTS {
        if only.is_empty() || only.iter().any(|word| word == name) {
            eprintln!("{name}: {what}");
            run(&broker, &mut report);
        }
    }
    report.add("bench_seconds", start.elapsed().as_secs_f64());
    println!("{report}");
    let written = report.write().and_then(|()| plots::write(&report));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}
