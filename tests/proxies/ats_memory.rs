//! What the plugin does to ATS's memory: nothing invalid, nothing lost, nothing that grows.

use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use testkit::ats;
use testkit::node;
use testkit::plugin;
use testkit::watcher::Folder;

use bytes::Bytes;
use prost::Message;
use resumed::internals::keys::Timetable;
use resumed::internals::proto::SessionEntry;
use resumed::internals::proto::local::{ToProxy, Welcome, to_proxy};
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
            let entry = |id: &Bytes, session: Bytes| SessionEntry { id: id.clone(), session, at: 0 };
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

/// A daemon that is no use.
struct BadDaemon(UnixListener);

/// How it ends connections.
#[derive(Clone, Copy, Debug)]
enum Ending {
    /// One at once, as it does to a user who may not connect, and the next after the greeting. Only a greeted plugin comes back as
    /// soon as it can; one that is refused waits for longer each time.
    RefusesAndCrashes,
    /// With a message that is none.
    Babbles,
}

impl BadDaemon {
    /// Takes the plugin's next connection, and greets it once it has introduced itself.
    fn greets(&self) -> UnixStream {
        let (mut stream, _) = self.0.accept().expect("a connection");
        stream.set_read_timeout(Some(ats::PATIENCE)).expect("a limit");
        read_message(&mut stream);
        let welcome = Welcome { node: "n1".to_owned(), farm: "test".to_owned(), ..Welcome::default() };
        let welcome = ToProxy { kind: Some(to_proxy::Kind::Welcome(welcome)) }.encode_to_vec();
        let length = u32::try_from(welcome.len()).expect("a short message").to_be_bytes();
        stream.write_all(&[&length[..], &welcome].concat()).expect("a plugin that reads");
        stream
    }

    /// A connection that stands, with all that the plugin makes for one: what it tells of itself comes after that.
    fn stands(&self) -> UnixStream {
        let mut stream = self.greets();
        read_message(&mut stream);
        stream
    }

    fn ends(&self, ending: Ending) {
        match ending {
            Ending::RefusesAndCrashes => {
                drop(self.0.accept().expect("a connection"));
                drop(self.greets());
            }
            Ending::Babbles => {
                let mut stream = self.greets();
                stream.write_all(b"\x00\x00\x00\x04\xff\xff\xff\xff").expect("a plugin that reads");
                while stream.read(&mut [0; 100]).is_ok_and(|len| len > 0) {}
            }
        }
    }
}

fn read_message(stream: &mut UnixStream) {
    let mut length = [0; 4];
    stream.read_exact(&mut length).expect("a message");
    let mut message = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut message).expect("a message");
}

/// The threads of a process.
fn threads(pid: nix::unistd::Pid) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).expect("its folder").count()
}

/// What a process has open: a path or a kind of thing for each descriptor.
fn open_files(pid: nix::unistd::Pid) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("its folder").flatten();
    // One that is closed meanwhile has no target any more.
    let mut files: Vec<String> =
        entries.filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.display().to_string())).collect();
    files.sort();
    files
}

#[test]
fn a_connection_of_the_plugin_leaves_nothing_behind() {
    let folder = Folder::temporary("resumed-");
    let socket = folder.path().join("ats.sock");
    let daemon = BadDaemon(UnixListener::bind(&socket).expect("the socket"));
    let line = format!("{} --socket={} --wait-ms=0", plugin::library().display(), socket.display());
    let mut setup = AtsSetup::new(&Certificate::self_signed("farm.test"), line);
    setup.manager = false;
    let ats = Ats::start(&folder.path().join("a"), &setup);
    let pid = ats.server_pid();
    let endings = [Ending::RefusesAndCrashes, Ending::Babbles];
    // Whatever the first few make is made once.
    (0..5).for_each(|_| endings.into_iter().for_each(|ending| daemon.ends(ending)));
    for ending in endings {
        let standing = daemon.stands();
        let (before, files, most_threads) = (resident(pid), open_files(pid), threads(pid));
        drop(standing);
        (0..100).for_each(|_| daemon.ends(ending));
        let standing = daemon.stands();
        let after = resident(pid);
        eprintln!(
            "a daemon that {ending:?}, 100 times: from {before} to {after} KiB, {} files, {most_threads} threads",
            files.len()
        );
        assert!(after < before + 5 * 1024, "{ending:?}: from {before} to {after} KiB");
        let start = Instant::now();
        // The last connection but one may still be closing, and may have been when these were counted: fewer is well.
        loop {
            let now = (open_files(pid), threads(pid));
            if now.0.len() <= files.len() && now.1 <= most_threads {
                break;
            }
            assert!(
                start.elapsed() < ats::PATIENCE,
                "{ending:?}: {} threads, not {most_threads}; open {:#?}, not {files:#?}",
                now.1,
                now.0
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(standing);
    }
}
