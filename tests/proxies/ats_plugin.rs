//! The plugin in real Apache Traffic Servers.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use testkit::plugin;
use testkit::traffic_server::TrafficServer;
use testkit::watcher::Folder;

use resumed::internals::keys::{ProxyKey, Timetable};
use testkit::ats::{Ats, AtsSetup, Certificate, PATIENCE};
use testkit::node::{Node, NodeSetup, key, until};
use testkit::tls::{Client, Mode, under_the_id};
use tokio::runtime::Runtime;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

fn plugin_line(socket: &Path, more: &str) -> String {
    format!("{} --socket={} {more}", plugin::library().display(), socket.display())
}

/// Two ATS with a node each, wired together.
struct Pair {
    nodes: [Node; 2],
    ats: [Ats; 2],
    runtime: Runtime,
    folder: Folder,
}

impl Pair {
    fn start(tickets: bool, keys: Vec<ProxyKey>) -> Self {
        Self::start_with(tickets, keys, |_| ())
    }

    /// `prepare` is handed the folder of each ATS, which is laid out and not started.
    fn start_with(tickets: bool, keys: Vec<ProxyKey>, prepare: impl Fn(&Ats)) -> Self {
        let folder = Folder::temporary("resumed-");
        let certificate = Certificate::self_signed("farm.test");
        let runtime = runtime();
        let nodes = runtime.block_on(async {
            let a = Node::start(&folder.path().join("a.sock"), &NodeSetup { name: "a", ..NodeSetup::default() }).await;
            let b = Node::start(&folder.path().join("b.sock"), &NodeSetup { name: "b", ..NodeSetup::default() }).await;
            a.feeds(&b);
            b.feeds(&a);
            [a, b]
        });
        let timetable = Arc::new(Timetable::new(keys));
        let ats = [0, 1].map(|n| {
            nodes[n].keys.send_replace(Arc::clone(&timetable));
            // A busy machine must not decide whether the first ticket is the farm's.
            let mut setup = AtsSetup::new(&certificate, plugin_line(&nodes[n].socket, "--wait-ms=20000"));
            setup.tickets = tickets;
            let mut ats = Ats::lay_out(&folder.path().join(["a", "b"][n]), &setup);
            prepare(&ats);
            ats.launch();
            ats
        });
        let mut pair = Self { nodes, ats, runtime, folder };
        pair.ats.iter_mut().for_each(Ats::wait_until_serving);
        pair.runtime.block_on(async {
            pair.nodes[0].proxies(1).await;
            pair.nodes[1].proxies(1).await;
        });
        pair
    }

    fn servers(&self) -> [SocketAddr; 2] {
        [self.ats[0].address(), self.ats[1].address()]
    }
}

fn always() -> Vec<ProxyKey> {
    vec![key(1, -10..3600, 7200)]
}

#[test]
fn a_private_ats_starts_reloads_restarts_and_stops() {
    let folder = Folder::temporary("resumed-");
    let mut ats = Ats::start(&folder.path().join("a"), &AtsSetup::new(&Certificate::self_signed("farm.test"), ""));
    ats.reload();
    ats.restart();
    assert!(ats.stop() < PATIENCE);
}

#[test]
fn a_session_made_on_one_ats_resumes_by_id_on_the_other() {
    let pair = Pair::start(false, always());
    let [a, b] = pair.servers();
    let client = Client::new(Mode::Id);
    let (mut first_tries, rounds) = (0, 100);
    for round in 0..rounds {
        let (here, there) = if round % 2 == 0 { (a, b) } else { (b, a) };
        let made = client.visit(here, None).expect("a full handshake");
        assert!(!made.resumed);
        let tried = Instant::now();
        let mut visit = client.visit(there, Some(&made.session)).expect("a handshake on the other host");
        first_tries += u32::from(visit.resumed);
        while !visit.resumed {
            assert!(tried.elapsed() < PATIENCE, "round {round}: never resumed on the other host");
            visit = client.visit(there, Some(&made.session)).expect("another handshake");
        }
        // And again: the replica is there for every return, and ATS has it by now.
        assert!(client.visit(there, Some(&made.session)).expect("a third handshake").resumed);
    }
    eprintln!("resumed on the other host at the first try: {first_tries} of {rounds}");
    // 98 to 100 in a release build on a machine with something else to do; a debug build on a busy one is slower.
    assert!(first_tries * 100 >= rounds * 70, "{first_tries} of {rounds}");
    pair.runtime.block_on(until("the node counts what its plugin inserted", || {
        pair.nodes.iter().all(|node| node.plane.store.len() >= 100)
    }));
}

#[test]
fn a_session_removed_on_one_ats_is_removed_from_the_other() {
    let pair = Pair::start(false, always());
    let [a, b] = pair.servers();
    let client = Client::new(Mode::Id);
    let made = client.visit(a, None).expect("a full handshake");
    // From the node it has a socket to cross to its proxy. A visit before that would make another session.
    pair.replicas_at_b(1);
    assert!(client.visit(b, Some(&made.session)).expect("a handshake").resumed);
    // Closing without an orderly end makes OpenSSL drop the session.
    client.abandon(a, Some(&made.session)).expect("a handshake");
    let (node_a, node_b) = (&pair.nodes[0].plane.store, &pair.nodes[1].plane.store);
    pair.runtime.block_on(until("removal at both", || node_a.is_empty() && node_b.is_empty()));
    let start = Instant::now();
    while client.visit(b, Some(&made.session)).expect("a handshake").resumed {
        assert!(start.elapsed() < PATIENCE, "b goes on resuming a removed session");
    }
    assert!(!client.visit(a, Some(&made.session)).expect("a handshake").resumed);
}

impl Pair {
    /// Waits until the proxy of `b` has a replica of each of so many sessions.
    fn replicas_at_b(&self, count: i64) {
        let start = Instant::now();
        while self.ats[1].metric("plugin.resumed.replicas").is_none_or(|replicas| replicas < count) {
            assert!(start.elapsed() < PATIENCE, "the proxy never got its replicas");
        }
    }

    /// Makes a session at `a` that its own client removes, and waits until both nodes know. What was reported before that has
    /// arrived by then as well.
    fn remove_one(&self) {
        let client = Client::new(Mode::Id);
        let stores = self.nodes.each_ref().map(|node| &node.plane.store);
        let before = stores.map(|store| store.len());
        let made = client.visit(self.servers()[0], None).expect("a full handshake");
        let arrived = || stores.iter().zip(before).all(|(store, before)| store.len() > before);
        self.runtime.block_on(until("the session at both", arrived));
        assert!(client.abandon(self.servers()[0], Some(&made.session)).expect("a handshake"));
        let gone = || stores.iter().zip(before).all(|(store, before)| store.len() == before);
        self.runtime.block_on(until("its removal at both", gone));
    }

    fn tombstones(&self) -> [usize; 2] {
        self.nodes.each_ref().map(|node| node.plane.store.tombstones())
    }
}

#[test]
fn no_client_ends_a_session_that_is_not_its_own() {
    let pair = Pair::start(true, always());
    let servers = pair.servers();
    let victim = Client::new(Mode::Id);
    let made = victim.visit(servers[0], None).expect("a full handshake");
    pair.replicas_at_b(1);
    assert!(victim.visit(servers[1], Some(&made.session)).expect("a handshake").resumed);
    // An ID travels in the clear. A stranger has seen it, and offers it with a ticket of its own, and with a key of its own.
    let holder = Client::new(Mode::Ticket12);
    let ticket = holder.visit(servers[0], None).expect("a full handshake").session;
    let ticket = under_the_id(&ticket, made.session.id());
    let keyless = Client::new(Mode::Id);
    let key = keyless.visit(servers[0], None).expect("a full handshake").session;
    let key = under_the_id(&key, made.session.id());
    let attacks: [(&str, &dyn Fn(SocketAddr) -> bool); 2] = [
        ("without the key", &|server| keyless.fail(server, &key).expect("a failed handshake")),
        ("with a ticket", &|server| holder.abandon(server, Some(&ticket)).expect("a handshake")),
    ];
    // Both of ATS's threads take connections, and each has seen the victim's or not.
    for server in servers {
        for round in 0..6 {
            for (what, attack) in attacks {
                assert!(attack(server), "{server}, round {round}: resumed nothing {what}");
                let visit = victim.visit(server, Some(&made.session)).expect("a handshake");
                assert!(visit.resumed, "{server}, round {round}: a stranger {what} ended the session");
            }
        }
    }
    pair.remove_one();
    assert_eq!(pair.tombstones(), [1, 1], "a stranger had the farm forget a session");
    for server in servers {
        assert!(victim.visit(server, Some(&made.session)).expect("a handshake").resumed);
    }
    // Its own client still may.
    assert!(victim.abandon(servers[0], Some(&made.session)).expect("a handshake"));
    pair.runtime.block_on(until("the removal at both", || pair.tombstones() == [2, 2]));
}

#[test]
fn what_is_no_session_is_never_removed() {
    let pair = Pair::start(true, always());
    let server = pair.servers()[0];
    // A client that closes its socket as most do, with an ID made up for its ticket.
    for mode in [Mode::Ticket12, Mode::Ticket13] {
        let honest = Client::new(mode);
        let made = honest.visit(server, None).expect("a full handshake");
        for _ in 0..20 {
            assert!(honest.abandon(server, Some(&made.session)).expect("a handshake"));
            assert!(!honest.abandon(server, None).expect("a handshake"), "a first visit is a full handshake");
        }
    }
    // One that makes up a thousand.
    let flood = Client::new(Mode::Ticket12);
    let ticket = flood.visit(server, None).expect("a full handshake").session;
    std::thread::scope(|scope| {
        for part in 0..8 {
            let ticket = &ticket;
            scope.spawn(move || {
                let flood = Client::new(Mode::Ticket12);
                for n in 0..125 {
                    let made_up = under_the_id(ticket, &[[0xa5; 30].as_slice(), &[part, n]].concat());
                    assert!(flood.abandon(server, Some(&made_up)).expect("a handshake"));
                }
            });
        }
    });
    pair.remove_one();
    assert_eq!(pair.tombstones(), [1, 1]);
    // That one's session and its removal.
    let queued = || pair.ats[0].metric("plugin.resumed.queued");
    let start = Instant::now();
    while queued().is_none_or(|queued| queued < 2) {
        assert!(start.elapsed() < PATIENCE, "{:?}", queued());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(queued(), Some(2), "the proxy reported what is no news");
}

#[test]
fn tickets_of_either_ats_open_on_the_other_from_the_first_connection() {
    let pair = Pair::start(true, always());
    let servers = pair.servers();
    for mode in [Mode::Ticket12, Mode::Ticket13] {
        let client = Client::new(mode);
        for (here, there) in [(0, 1), (1, 0), (0, 0)] {
            let made = client.visit(servers[here], None).expect("a full handshake");
            assert!(!made.resumed);
            let again = client.visit(servers[there], Some(&made.session)).expect("a second handshake");
            assert!(again.resumed, "{mode:?}: a ticket of {here} was refused by {there}");
        }
    }
}

#[test]
fn keys_change_at_their_times_without_a_word_from_the_node() {
    let pair = Pair::start(true, always());
    let servers = pair.servers();
    let client = Client::new(Mode::Ticket12);
    let old = client.visit(servers[0], None).expect("a full handshake");
    // Key 1 gives way to key 2 in two seconds and opens for three more.
    let turn = vec![key(2, 2..3600, 7200), key(1, -10..3600, 5)];
    let timetable = Arc::new(Timetable::new(turn));
    pair.nodes.iter().for_each(|node| drop(node.keys.send_replace(Arc::clone(&timetable))));
    assert!(client.visit(servers[1], Some(&old.session)).expect("a handshake").resumed);
    let sealed_by = |server| {
        let visit = client.visit(server, None).expect("a full handshake");
        ticket_name(&visit.session)
    };
    assert_eq!(sealed_by(servers[0]), [1; 16]);
    let start = Instant::now();
    while servers.iter().any(|server| sealed_by(*server) != [2; 16]) {
        assert!(start.elapsed() < PATIENCE, "key 2 never sealed");
        let visit = client.visit(servers[1], Some(&old.session)).expect("a handshake");
        assert!(visit.resumed || start.elapsed() > Duration::from_secs(4), "key 1 closed before its time");
    }
    let start = Instant::now();
    while client.visit(servers[0], Some(&old.session)).expect("a handshake").resumed {
        assert!(start.elapsed() < PATIENCE, "key 1 never closed");
    }
}

/// The key name that a TLS 1.2 ticket begins with.
fn ticket_name(session: &openssl::ssl::SslSession) -> [u8; 16] {
    let der = session.to_der().expect("DER");
    // SSL_SESSION_ASN1: fields in a SEQUENCE, the ticket under [10] in an OCTET STRING.
    let mut fields = element(&der).1;
    loop {
        let (tag, content, rest) = element(fields);
        if tag == 0xaa {
            return element(content).1[..16].try_into().expect("16 bytes");
        }
        fields = rest;
    }
}

/// Tag and content of the first DER element, and what follows it.
fn element(bytes: &[u8]) -> (u8, &[u8], &[u8]) {
    let (len, header) = match bytes[1] {
        0x81 => (usize::from(bytes[2]), 3),
        0x82 => (usize::from(bytes[2]) << 8 | usize::from(bytes[3]), 4),
        len => (usize::from(len), 2),
    };
    let (content, rest) = bytes[header..].split_at(len);
    (bytes[0], content, rest)
}

#[test]
fn a_configuration_reload_of_ats_costs_no_ticket() {
    let pair = Pair::start(true, always());
    let servers = pair.servers();
    let client = Client::new(Mode::Ticket12);
    let made = client.visit(servers[0], None).expect("a full handshake");
    for round in 0..3 {
        pair.ats[1].reload();
        pair.ats[1].write(
            "etc/ssl_multicert.config",
            &format!("# {round}\nssl_cert_name=farm.pem ssl_key_name=farm.key dest_ip=*\n"),
        );
        pair.ats[1].reload();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            assert!(client.visit(servers[1], Some(&made.session)).expect("a handshake").resumed);
            assert_eq!(ticket_name(&client.visit(servers[1], None).expect("a handshake").session), [1; 16]);
        }
    }
}

#[test]
fn a_ticket_key_file_of_ats_gives_way_to_the_farm_at_start_and_at_every_reload() {
    let folder = Folder::temporary("resumed-");
    let socket = folder.path().join("a.sock");
    let runtime = runtime();
    let node = runtime.block_on(Node::start(&socket, &NodeSetup::default()));
    node.keys.send_replace(Arc::new(Timetable::new(always())));
    let mut setup = AtsSetup::new(&Certificate::self_signed("farm.test"), plugin_line(&socket, "--wait-ms=20000"));
    setup.records.push("CONFIG proxy.config.ssl.server.ticket_key.filename STRING keys.bin".to_owned());
    let mut ats = Ats::lay_out(&folder.path().join("a"), &setup);
    std::fs::write(ats.dir().join("ssl/keys.bin"), [0x77; 48]).expect("a key file");
    ats.launch();
    ats.wait_until_serving();
    ats.wait_for_note("ticket_key.filename is \"keys.bin\"");
    let client = Client::new(Mode::Ticket12);
    let sealed_by = || ticket_name(&client.visit(ats.address(), None).expect("a full handshake").session);
    for round in 0..3_u8 {
        // The plugin is alert for 16 seconds after a start; a reload later than that must alert it again, or the file's
        // key would seal for up to a minute.
        let least = Duration::from_secs(if round == 0 { 18 } else { 2 });
        let start = Instant::now();
        let mut seen_file = false;
        while start.elapsed() < least || sealed_by() != [1; 16] {
            seen_file |= sealed_by() == [0x77 + round; 16];
            assert!(start.elapsed() < PATIENCE, "round {round}: the file's key seals");
        }
        eprintln!("round {round}: the file's key was seen sealing: {seen_file}");
        std::fs::write(ats.dir().join("ssl/keys.bin"), [0x78 + round; 48]).expect("a key file");
        ats.write("etc/ssl_multicert.config", &format!("# {round}\n{}", setup.multicert));
        ats.reload();
    }
}

#[test]
fn a_restarted_ats_is_filled_from_its_nodes_store() {
    let mut pair = Pair::start(false, always());
    let [a, b] = pair.servers();
    let client = Client::new(Mode::Id);
    let made = client.visit(a, None).expect("a full handshake");
    pair.runtime.block_on(until("the session at b", || pair.nodes[1].plane.store.len() == 1));
    for (ats, server) in [(0, a), (1, b)] {
        pair.ats[ats].restart();
        pair.runtime.block_on(pair.nodes[ats].proxies(1));
        let start = Instant::now();
        while !client.visit(server, Some(&made.session)).expect("a handshake").resumed {
            assert!(start.elapsed() < PATIENCE, "a session made before the restart of {ats} does not resume");
        }
    }
}

#[test]
fn ats_serves_and_resumes_without_a_daemon_and_takes_farm_keys_when_one_comes() {
    let folder = Folder::temporary("resumed-");
    let socket = folder.path().join("a.sock");
    let setup = AtsSetup::new(&Certificate::self_signed("farm.test"), plugin_line(&socket, "--wait-ms=100"));
    let mut ats = Ats::start(&folder.path().join("a"), &setup);
    ats.wait_for_note("no daemon at");
    ats.wait_for_note("a random key that only this host has");
    let client = Client::new(Mode::Ticket13);
    let alone = client.visit(ats.address(), None).expect("a full handshake");
    assert!(client.visit(ats.address(), Some(&alone.session)).expect("a handshake").resumed);

    let runtime = runtime();
    let node = runtime.block_on(Node::start(&socket, &NodeSetup::default()));
    node.keys.send_replace(Arc::new(Timetable::new(always())));
    ats.wait_for_note("connected to node n1 of farm test");
    ats.wait_for_note("sealing tickets with the farm's key again");
    let tickets = Client::new(Mode::Ticket12);
    assert_eq!(ticket_name(&tickets.visit(ats.address(), None).expect("a full handshake").session), [1; 16]);
    let again = client.visit(ats.address(), Some(&alone.session)).expect("a handshake");
    assert!(again.resumed, "a ticket from before the daemon came was refused");

    // The daemon goes: the keys stay.
    let farm = client.visit(ats.address(), None).expect("a full handshake");
    runtime.block_on(node.stop());
    ats.wait_for_note("lost the daemon at");
    assert!(client.visit(ats.address(), Some(&farm.session)).expect("a handshake").resumed);
    let took = ats.stop();
    ats.wait_for_note("ATS stops: letting go of it");
    eprintln!("with the plugin ATS stopped within {took:?}");
    assert!(took < Duration::from_secs(5), "with the plugin ATS took {took:?} to stop");
}

#[test]
fn past_the_last_key_ats_seals_with_its_own_and_opens_the_old_to_their_end() {
    let pair = Pair::start(true, vec![key(1, -10..2, 6)]);
    let server = pair.servers()[0];
    let client = Client::new(Mode::Ticket12);
    let made = client.visit(server, None).expect("a full handshake");
    pair.ats[0].wait_for_note("no key of the farm may seal now");
    let start = Instant::now();
    while ticket_name(&client.visit(server, None).expect("a full handshake").session) == [1; 16] {
        assert!(start.elapsed() < PATIENCE, "a key seals past its time");
    }
    assert!(client.visit(server, Some(&made.session)).expect("a handshake").resumed, "closed before its time");
    let start = Instant::now();
    while client.visit(server, Some(&made.session)).expect("a handshake").resumed {
        assert!(start.elapsed() < PATIENCE, "a key opens past its time");
    }
}

#[test]
fn settings_that_break_the_farm_are_named_once_and_reach_the_node() {
    let folder = Folder::temporary("resumed-");
    let socket = folder.path().join("a.sock");
    let runtime = runtime();
    let node = runtime.block_on(Node::start(&socket, &NodeSetup::default()));
    node.keys.send_replace(Arc::new(Timetable::new(always())));
    let mut setup = AtsSetup::new(&Certificate::self_signed("farm.test"), plugin_line(&socket, ""));
    setup.tickets = false;
    setup.records.push("CONFIG proxy.config.ssl.session_cache INT 0".to_owned());
    let ats = Ats::start(&folder.path().join("a"), &setup);
    runtime.block_on(node.proxies(1));
    // The first has another name from 10 on.
    let cache = if is_10() { "session_cache.mode is 0, not 2" } else { "session_cache is 0, not 2" };
    let expected = [&format!("proxy.config.ssl.{cache}"), "proxy.config.ssl.server.session_ticket.enable is 0"];
    let warnings = node.warnings();
    let diags = ats.diags();
    for text in expected {
        assert_eq!(diags.matches(text).count(), 1, "{text:?} in:\n{diags}");
        assert!(warnings.iter().any(|warning| warning.contains(text)), "{warnings:?}");
    }
    let proxies = node.plane.registry.proxies();
    assert_eq!(proxies[0].version.split('.').count(), 3, "{proxies:?}");
    assert_eq!(proxies[0].certificate_digest.len(), 8);
    assert_eq!(i64::from(proxies[0].process_id), i64::from(ats.server_pid().as_raw()));
}

#[test]
fn bad_arguments_are_named_and_ats_serves_on() {
    let folder = Folder::temporary("resumed-");
    let line = format!("{} --wait-ms=soon", plugin::library().display());
    let ats = Ats::start(&folder.path().join("a"), &AtsSetup::new(&Certificate::self_signed("farm.test"), line));
    ats.wait_for_note("not started, and ATS serves without it: argument \"--wait-ms=soon\" is not understood");
    Client::new(Mode::Ticket13).visit(ats.address(), None).expect("a handshake");
}

#[test]
fn the_plugins_counters_are_ats_statistics() {
    let pair = Pair::start(false, always());
    let client = Client::new(Mode::Id);
    let [a, b] = pair.servers();
    let made = client.visit(a, None).expect("a full handshake");
    pair.runtime.block_on(until("the session at b", || pair.nodes[1].plane.store.len() == 1));
    let start = Instant::now();
    while !client.visit(b, Some(&made.session)).expect("a handshake").resumed {
        assert!(start.elapsed() < PATIENCE);
    }
    for (ats, name) in
        [(0, "queued"), (0, "hook_ns.inf"), (1, "inserted"), (1, "replicas"), (1, "replica_bytes"), (1, "connected")]
    {
        let name = format!("plugin.resumed.{name}");
        let start = Instant::now();
        while pair.ats[ats].metric(&name).is_none_or(|value| value < 1) {
            assert!(start.elapsed() < PATIENCE, "{name} is {:?}", pair.ats[ats].metric(&name));
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    for name in ["dropped_full", "too_large_for_proxy", "apply_errors", "own_keys"] {
        assert_eq!(pair.ats[1].metric(&format!("plugin.resumed.{name}")), Some(0), "{name}");
    }
    drop(pair.folder);
}

/// A node and an ATS beside it.
struct Single {
    node: Node,
    ats: Ats,
    runtime: Runtime,
    _folder: Folder,
}

impl Single {
    /// `prepare` is handed the folder of the ATS, which is laid out and not started.
    fn start(setup: impl FnOnce(&mut AtsSetup), prepare: impl FnOnce(&Ats)) -> Self {
        let folder = Folder::temporary("resumed-");
        let socket = folder.path().join("a.sock");
        let runtime = runtime();
        let node = runtime.block_on(Node::start(&socket, &NodeSetup::default()));
        node.keys.send_replace(Arc::new(Timetable::new(always())));
        let line = plugin_line(&socket, "--wait-ms=20000");
        let mut wanted = AtsSetup::new(&Certificate::self_signed("farm.test"), line);
        setup(&mut wanted);
        let mut ats = Ats::lay_out(&folder.path().join("a"), &wanted);
        prepare(&ats);
        ats.launch();
        ats.wait_until_serving();
        runtime.block_on(node.proxies(1));
        Self { node, ats, runtime, _folder: folder }
    }

    fn digest(&self) -> Vec<u8> {
        self.node.plane.registry.list()[0].certificate_digest.clone()
    }

    fn warnings(&self) -> Vec<String> {
        self.node.warnings()
    }
}

#[test]
fn the_digest_tells_whether_hosts_with_authorities_resume_each_others_sessions_also_after_a_reload() {
    let certificate = Certificate::self_signed("farm.test");
    let [one, other] = ["one", "other"].map(|name| Certificate::self_signed(name).pem);
    let bundles = [[one.clone(), other.clone()].concat(), [other, one].concat()];
    let setup = |setup: &mut AtsSetup| {
        setup.certificate = certificate.clone();
        setup.records.push("CONFIG proxy.config.ssl.CA.cert.filename STRING bundle.pem".to_owned());
        setup.records.push("CONFIG proxy.config.ssl.CA.cert.path STRING authorities".to_owned());
    };
    let put = |ats: &Ats, bundle: &[u8]| {
        std::fs::create_dir_all(ats.dir().join("authorities")).expect("a folder");
        std::fs::write(ats.dir().join("authorities/bundle.pem"), bundle).expect("the bundle");
    };
    let [a, b] = bundles.each_ref().map(|bundle| Single::start(setup, |ats| put(ats, bundle)));
    let client = Client::new(Mode::Ticket12);
    let resumes = || {
        let made = client.visit(a.ats.address(), None).expect("a full handshake");
        client.visit(b.ats.address(), Some(&made.session)).expect("a handshake").resumed
    };
    assert_eq!(a.warnings(), [""; 0]);
    assert!(!resumes(), "ATS hashes the names of authorities in their order");
    assert_ne!(a.digest(), b.digest());
    // A package's update puts the same authorities in another order.
    put(&a.ats, &bundles[1]);
    a.ats.write("etc/ssl_multicert.config", "# again\nssl_cert_name=farm.pem ssl_key_name=farm.key dest_ip=*\n");
    a.ats.reload();
    a.runtime.block_on(until("the digest after the reload", || a.digest() == b.digest()));
    a.runtime.block_on(until("sessions cross", resumes));
}

#[test]
fn what_of_a_single_name_breaks_resumption_and_what_cannot_be_read_reach_the_node() {
    let setup = |setup: &mut AtsSetup| {
        setup.records.push("CONFIG proxy.config.ssl.server.session_ticket.number INT 0".to_owned());
    };
    let sni = "sni:\n- fqdn: admin.farm.test\n  verify_client: MODERATE\n";
    let single = Single::start(setup, |ats| ats.write("etc/sni.yaml", sni));
    let expected = [
        "sni.yaml gives admin.farm.test verify_client",
        "proxy.config.ssl.server.session_ticket.number is 0: TLS 1.3 clients never resume",
        "sni.yaml gives admin.farm.test a stricter verify_client than other names",
    ];
    let warnings = single.warnings();
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    for (warning, text) in warnings.iter().zip(expected) {
        assert!(warning.contains(text), "{warnings:?}");
    }
    assert_eq!(single.digest().len(), 8);
    // YAML, as ATS 11 has it, under a name that ATS 9 reads as lines.
    single.ats.write("etc/ssl_multicert.config", "ssl_multicert:\n  - ssl_cert_name: farm.pem\n");
    single.ats.reload();
    let said = || single.warnings().iter().any(|warning| warning.contains("ssl_multicert.config (line 1 has no"));
    single.runtime.block_on(until("a warning of what cannot be read", said));
    assert!(single.digest().is_empty(), "it would look the same on all hosts");
    single.ats.wait_for_note("ssl_multicert.config (line 1 has no");
}

/// admin.farm.test requires a client certificate, www.farm.test asks for none.
const RULES: &str =
    "sni:\n- fqdn: www.farm.test\n  verify_client: NONE\n- fqdn: admin.farm.test\n  verify_client: STRICT\n";

/// What a client without a certificate got under www.farm.test at the first server, offered to the second under admin.farm.test:
/// whether it is resumed, and the request taken.
fn passes_the_rule(mode: Mode, [made_at, offered_at]: [SocketAddr; 2], runtime: &Runtime) -> bool {
    let (open, strict) = (Client::asking_for(mode, "www.farm.test"), Client::asking_for(mode, "admin.farm.test"));
    let made = open.visit(made_at, None).expect("a full handshake").session;
    // Where every name asks for a certificate, the handshake fails until the session is there.
    let resumes = || open.visit(offered_at, Some(&made)).is_ok_and(|visit| visit.resumed);
    runtime.block_on(until("the session", resumes));
    assert!(strict.visit(offered_at, None).is_err(), "a full handshake without a certificate");
    strict.visit(offered_at, Some(&made)).is_ok_and(|visit| visit.resumed)
}

/// The threat model says what follows; if this fails on a later Traffic Server, that is good news, to be told there.
#[test]
fn ats_looks_at_a_names_rule_about_client_certificates_in_full_handshakes_alone() {
    let modes = |tickets| if tickets { &[Mode::Ticket12, Mode::Ticket13][..] } else { &[Mode::Id] };
    for tickets in [true, false] {
        let pair = Pair::start_with(tickets, always(), |ats| {
            // All names of the second ask for one.
            let all = "sni:\n- fqdn: '*.farm.test'\n  verify_client: STRICT\n";
            ats.write("etc/sni.yaml", if ats.dir().ends_with("b") { all } else { RULES });
            // Certificates of their own do not part the names.
            for name in ["admin", "www"] {
                ats.write_certificate_as(name, &Certificate::self_signed(&format!("{name}.farm.test")));
            }
            let lines =
                ["www", "admin", "farm"].map(|name| format!("ssl_cert_name={name}.pem ssl_key_name={name}.key\n"));
            ats.write("etc/ssl_multicert.config", &lines.concat());
        });
        let [a, b] = pair.servers();
        for (mode, way) in modes(tickets).iter().flat_map(|mode| [(*mode, [a, a]), (*mode, [a, b])]) {
            assert!(passes_the_rule(mode, way, &pair.runtime), "{mode:?} {way:?}");
        }
        assert!(pair.nodes[0].warnings()[0].contains("admin.farm.test"), "{:?}", pair.nodes[0].warnings());

        // A Traffic Server of no farm does the same, and takes nothing of the farm's: a farm of its own for each rule parts them.
        let folder = Folder::temporary("resumed-");
        let mut setup = AtsSetup::new(&Certificate::self_signed("farm.test"), "");
        setup.tickets = tickets;
        let mut alone = Ats::lay_out(&folder.path().join("alone"), &setup);
        alone.write("etc/sni.yaml", RULES);
        alone.launch();
        alone.wait_until_serving();
        for mode in modes(tickets) {
            assert!(passes_the_rule(*mode, [alone.address(); 2], &pair.runtime), "{mode:?} alone");
            let made = Client::asking_for(*mode, "www.farm.test").visit(a, None).expect("a full handshake").session;
            let strict = Client::asking_for(*mode, "admin.farm.test");
            assert!(strict.visit(alone.address(), Some(&made)).is_err(), "{mode:?} of another farm");
        }
    }
}

/// Whether the Traffic Server of the tests is 10.x or later.
fn is_10() -> bool {
    TrafficServer::chosen().version().at_least(10, 0)
}

/// From 10 on such a line has a random key of its own on each host, that no plugin reaches.
#[test]
fn tickets_cross_where_a_certificate_has_an_address_of_its_own_or_the_node_hears_that_they_do_not() {
    let certificate = Certificate::self_signed("farm.test");
    let setup = |setup: &mut AtsSetup| {
        setup.certificate = certificate.clone();
        setup.multicert = "ssl_cert_name=farm.pem ssl_key_name=farm.key dest_ip=127.0.0.1\n".to_owned();
    };
    let [a, b] = [(); 2].map(|()| Single::start(setup, |_| {}));
    let warnings = a.warnings();
    match is_10() {
        true => assert!(matches!(&warnings[..], [one] if one.contains("dest_ip")), "{warnings:?}"),
        false => assert_eq!(warnings, [""; 0]),
    }
    for mode in [Mode::Ticket12, Mode::Ticket13] {
        let client = Client::new(mode);
        let made = client.visit(a.ats.address(), None).expect("a full handshake");
        assert!(client.visit(a.ats.address(), Some(&made.session)).expect("a handshake").resumed, "{mode:?}");
        let crosses = client.visit(b.ats.address(), Some(&made.session)).expect("a handshake").resumed;
        assert_eq!(crosses, !is_10(), "{mode:?}");
    }
}
