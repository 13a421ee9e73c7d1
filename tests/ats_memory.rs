//! What the plugin does to ATS's memory: nothing invalid, nothing lost, nothing that grows.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use testkit::ats;
use testkit::node;
use testkit::plugin;
use testkit::watcher::Folder;

use bytes::Bytes;
use resumed::keys::Timetable;
use resumed::proto::local::Session;
use testkit::ats::{Ats, AtsSetup, Certificate};
use testkit::node::{Node, NodeSetup, key};
use testkit::tls::{Client, Mode};

/// One ATS and its node.
struct Bench {
    ats: Ats,
    node: Node,
    runtime: tokio::runtime::Runtime,
    folder: Folder,
}

impl Bench {
    fn start(wrapper: &[String], patience: Duration) -> Self {
        let folder = Folder::temporary("resumed-");
        let socket = folder.path().join("ats.sock");
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        let node = runtime.block_on(Node::start(&socket, &NodeSetup::default()));
        let line = format!("{} --socket={} --wait-ms=30000", plugin::library().display(), socket.display());
        let mut setup = AtsSetup::new(&Certificate::self_signed("farm.test"), line);
        setup.manager = false;
        setup.wrapper =
            wrapper.iter().map(|word| word.replace("FOLDER", &folder.path().display().to_string())).collect();
        setup.patience = patience;
        // Small, so that it is full before anything is measured.
        setup.records.push("CONFIG proxy.config.ssl.session_cache.size INT 256".to_owned());
        setup.records.push("CONFIG proxy.config.ssl.session_cache.num_buckets INT 16".to_owned());
        node.keys.send_replace(Arc::new(Timetable::new(vec![key(1, -10..3600, 7200)])));
        let ats = Ats::start(&folder.path().join("a"), &setup);
        Self { ats, node, runtime, folder }
    }

    /// Everything that the plugin does: sessions made, removed, brought from the farm and back, broken ones, tickets,
    /// keys that change. Returns the number of handshakes.
    fn load(&self, rounds: usize) -> u32 {
        let server = self.ats.address();
        let over = AtomicBool::new(false);
        let handshakes = AtomicU32::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| self.turn_keys(&over));
            let visitors: Vec<_> = (0..3)
                .map(|_| scope.spawn(|| handshakes.fetch_add(self.visit(server, rounds), Ordering::Relaxed)))
                .collect();
            for visitor in visitors {
                visitor.join().expect("a visitor without a fault");
            }
            over.store(true, Ordering::Relaxed);
        });
        handshakes.into_inner()
    }

    fn visit(&self, server: SocketAddr, rounds: usize) -> u32 {
        let by_id = Client::new(Mode::Id);
        let by_ticket = Client::new(Mode::Ticket13);
        let farm = &self.node.plane.from_farm;
        let mut count = 0;
        for round in 0..rounds {
            let made = by_id.visit(server, None).expect("a full handshake");
            let back = by_id.visit(server, Some(&made.session)).expect("a second handshake");
            // The node hands sessions to the plugin as if they came from elsewhere: whole ones, broken ones, removals.
            let id = Bytes::copy_from_slice(made.session.id());
            let der = Bytes::from(made.session.to_der().expect("DER"));
            let entry = |id: &Bytes, session: Bytes| Session { id: id.clone(), session, at: 0 };
            let news = vec![
                entry(&id, der.clone()),
                entry(&id, der.slice(..der.len() / 2)),
                entry(&Bytes::copy_from_slice(&[round as u8; 32]), der),
                entry(&Bytes::from_static(&[9; 32]), Bytes::new()),
            ];
            let _ = farm.send(Arc::new(news));
            by_id.visit(server, Some(&back.session)).expect("a third handshake");
            if round % 3 == 0 {
                by_id.abandon(server, Some(&made.session)).expect("a fourth handshake");
            }
            let ticket = by_ticket.visit(server, None).expect("a full handshake");
            by_ticket.visit(server, Some(&ticket.session)).expect("a second handshake");
            count += 5;
        }
        count
    }

    fn turn_keys(&self, over: &AtomicBool) {
        let mut round = 2;
        while !over.load(Ordering::Relaxed) {
            let keys = vec![key(round + 1, 1..3600, 7200), key(round, -10..3600, 7200), key(round - 1, -20..1, 2)];
            self.node.keys.send_replace(Arc::new(Timetable::new(keys)));
            round = if round > 200 { 2 } else { round + 1 };
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Resident memory of a process, in KiB.
fn resident(pid: nix::unistd::Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn under_load_valgrind_sees_no_invalid_access_and_no_loss() {
    let wrapper =
        ["valgrind", "--leak-check=full", "--show-leak-kinds=definite", "--num-callers=30", "--error-limit=no"];
    let mut wrapper: Vec<String> = wrapper.map(str::to_owned).into();
    wrapper.push("--log-file=FOLDER/valgrind.log".to_owned());
    let mut bench = Bench::start(&wrapper, Duration::from_secs(180));
    let start = Instant::now();
    let handshakes = bench.load(20);
    eprintln!("{handshakes} handshakes under valgrind in {:?}", start.elapsed());
    bench.runtime.block_on(node::until("the node hears of sessions", || bench.node.plane.store.len() > 10));
    bench.ats.stop();
    bench.ats.wait_for_note("letting go of it");
    let log = fs::read_to_string(bench.folder.path().join("valgrind.log")).expect("valgrind's log");
    assert!(log.contains("ERROR SUMMARY"), "valgrind did not end in good order:\n{log}");
    // ATS and its libraries have findings of their own: each paragraph is one, with the stack that led to it.
    let paragraphs = log.split("== \n");
    let ours: Vec<&str> = paragraphs.filter(|finding| finding.contains("resumed_ats")).collect();
    assert!(ours.is_empty(), "valgrind blames the plugin:\n{}", ours.join("\n"));
}

#[test]
fn under_load_ats_does_not_grow() {
    let bench = Bench::start(&[], ats::PATIENCE);
    bench.load(400);
    let pid = bench.ats.server_pid();
    let (before, sessions) = (resident(pid), bench.node.plane.store.len());
    let handshakes = bench.load(1200);
    let (after, made) = (resident(pid), bench.node.plane.store.len() - sessions);
    eprintln!("{handshakes} handshakes, {made} sessions more: from {before} to {after} KiB");
    // The replica keeps what it was given, about 250 bytes a session; the rest is noise of the allocator.
    let allowed = 6 * 1024 + made as u64 / 2;
    assert!(after < before + allowed, "from {before} to {after} KiB in {handshakes} handshakes");
}
