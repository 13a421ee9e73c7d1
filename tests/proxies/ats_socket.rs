//! The daemon's socket for plugins, from the plugin's side: order, bounds, and bad company.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use testkit::tls;
use testkit::watcher::Folder;

use bytes::Bytes;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use prost::Message;
use resumed::internals::keys::Timetable;
use resumed::internals::proto::frame::MOST_PLUGIN_BYTES;
use resumed::internals::proto::local::{Counters, FromProxy, Hello, Sessions, Settings, ToProxy, from_proxy, to_proxy};
use resumed::internals::proto::{SessionBatch, SessionEntry, SessionFormat};
use resumed::internals::proxies::ats::{AtsSettings, MAX_PROXIES, Socket};
use resumed::internals::unix_socket::SocketError;
use testkit::foreign_peer;
use testkit::node::{Node, NodeSetup, key, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);

/// A node on a socket of its own, with metrics of its own: everything runs on this test's thread.
struct Bench {
    node: Node,
    metrics: &'static PrometheusRecorder,
    _recording: metrics::LocalRecorderGuard<'static>,
    _folder: Folder,
}

impl Bench {
    async fn start(setup: &NodeSetup) -> Self {
        let metrics: &'static PrometheusRecorder = Box::leak(Box::new(PrometheusBuilder::new().build_recorder()));
        let recording = metrics::set_default_local_recorder(metrics);
        let folder = Folder::temporary("resumed-");
        let node = Node::start(&folder.path().join("ats.sock"), setup).await;
        node.keys.send_replace(Arc::new(Timetable::new(vec![key(3, -1..3600, 7200)])));
        Self { node, metrics, _recording: recording, _folder: folder }
    }

    /// The value of a metric; 0 if nothing has counted yet.
    fn metric(&self, name: &str) -> u64 {
        let text = self.metrics.handle().render();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
        line.map_or(0, |value| value.parse().expect("a number"))
    }

    fn refused(&self, reason: &str) -> u64 {
        self.metric(&format!("resumed_proxies_refused_total{{reason=\"{reason}\"}}"))
    }

    async fn proxy(&self) -> Proxy {
        let mut proxy = Proxy::connect(&self.node.socket).await;
        proxy.say(hello(1)).await;
        proxy
    }

    fn farm_session(&self) -> (Vec<u8>, Vec<u8>) {
        let (id, der) = tls::server_session();
        let entry = SessionEntry { id: Bytes::copy_from_slice(&id), session: Bytes::copy_from_slice(&der), at: 0 };
        let batch = SessionBatch { entries: vec![entry], format: SessionFormat::OpensslDer.into() };
        let applied = self.node.plane.store.remote(batch, self.node.plane.clock.now());
        assert_eq!(applied.for_proxies.len(), 1, "{applied:?}");
        // No receiver while no proxy is connected.
        let _ = self.node.plane.from_farm.send(Arc::new(applied.for_proxies));
        (id, der)
    }

    /// Another host of the farm removes a session.
    fn farm_removal(&self, id: &[u8]) {
        let entry = SessionEntry { id: Bytes::copy_from_slice(id), session: Bytes::new(), at: 0 };
        let batch = SessionBatch { entries: vec![entry], format: SessionFormat::OpensslDer.into() };
        let applied = self.node.plane.store.remote(batch, self.node.plane.clock.now());
        assert_eq!(applied.removals, 1, "{applied:?}");
        let _ = self.node.plane.from_farm.send(Arc::new(applied.for_proxies));
    }
}

fn hello(process_id: u32) -> from_proxy::Kind {
    from_proxy::Kind::Hello(Hello {
        kind: "ats".to_owned(),
        proxy_version: "9.2.9".to_owned(),
        process_id,
        certificate_digest: vec![7; 8],
        warnings: vec!["a setting".to_owned()],
        sessions: true,
        ..Hello::default()
    })
}

fn sessions(entries: Vec<SessionEntry>) -> from_proxy::Kind {
    from_proxy::Kind::Sessions(Sessions { entries })
}

fn session((id, der): &(Vec<u8>, Vec<u8>)) -> SessionEntry {
    SessionEntry { id: Bytes::copy_from_slice(id), session: Bytes::copy_from_slice(der), at: 1 }
}

/// A plugin played by the test.
struct Proxy(UnixStream);

impl Proxy {
    async fn connect(socket: &Path) -> Self {
        Self(UnixStream::connect(socket).await.expect("the daemon's socket"))
    }

    async fn say(&mut self, kind: from_proxy::Kind) {
        let message = FromProxy { kind: Some(kind) }.encode_to_vec();
        self.raw(&u32::try_from(message.len()).expect("a length").to_be_bytes()).await;
        self.raw(&message).await;
    }

    async fn raw(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.expect("the daemon reads");
    }

    async fn hear(&mut self) -> to_proxy::Kind {
        timeout(PATIENCE, self.message()).await.expect("a message in time").expect("a message")
    }

    async fn message(&mut self) -> Option<to_proxy::Kind> {
        let len = self.0.read_u32().await.ok()?;
        assert!(len as usize <= MOST_PLUGIN_BYTES);
        let mut bytes = vec![0; len as usize];
        self.0.read_exact(&mut bytes).await.ok()?;
        ToProxy::decode(&bytes[..]).expect("a message").kind
    }

    /// Reads on to the end, which must come.
    async fn end(&mut self) {
        timeout(PATIENCE, async { while self.message().await.is_some() {} }).await.expect("the end of the connection");
    }

    /// The next messages of sessions, until `count` sessions came.
    async fn sessions(&mut self, count: usize) -> Vec<SessionEntry> {
        let mut all = Vec::new();
        while all.len() < count {
            match self.hear().await {
                to_proxy::Kind::Sessions(sessions) => all.extend(sessions.entries),
                other => panic!("{other:?} instead of sessions"),
            }
        }
        all
    }

    /// The IDs of the next sessions that it is told to forget, in one message. Messages of sessions on the way are skipped.
    async fn removals(&mut self) -> Vec<Vec<u8>> {
        loop {
            let mut entries = self.sessions(1).await;
            entries.retain(|entry| entry.session.is_empty());
            if !entries.is_empty() {
                return entries.into_iter().map(|entry| entry.id.to_vec()).collect();
            }
        }
    }
}

#[tokio::test]
async fn a_proxys_new_settings_take_the_place_of_those_that_it_came_with() {
    let bench = Bench::start(&NodeSetup::default()).await;
    let mut proxy = bench.proxy().await;
    bench.node.proxies(1).await;
    let registry = &bench.node.plane.registry;
    assert_eq!((registry.list()[0].certificate_digest[0], bench.node.warnings().len()), (7, 1));
    for (digest, shown) in [(vec![8; 8], vec![8; 8]), (vec![1; 9], Vec::new())] {
        let warnings = (0..2_000).take(digest[0].into()).map(|n| format!("warning\n {n}")).collect();
        proxy.say(from_proxy::Kind::Settings(Settings { certificate_digest: digest.clone(), warnings })).await;
        until("the new settings", || registry.list()[0].certificate_digest == shown).await;
        assert_eq!(bench.node.warnings().len(), usize::from(digest[0]));
        assert_eq!(bench.metric("resumed_proxy_warnings"), u64::from(digest[0]));
        assert_eq!(registry.list()[0].warnings[0], "warning 0", "as reports carry it");
    }
    drop(proxy);
    bench.node.stop().await;
}

#[tokio::test]
async fn a_proxy_hears_welcome_then_keys_then_old_sessions_then_new_ones() {
    let bench = Bench::start(&NodeSetup::default()).await;
    let old = bench.farm_session();
    bench.node.keys.send_replace(Arc::new(Timetable::new(vec![key(4, -1..10, 20)])));
    let mut proxy = bench.proxy().await;
    let to_proxy::Kind::Welcome(welcome) = proxy.hear().await else { panic!("no welcome first") };
    assert_eq!((welcome.node.as_str(), welcome.replicate, welcome.removals), ("n1", true, true));
    let to_proxy::Kind::Timetable(keys) = proxy.hear().await else { panic!("no keys second") };
    assert_eq!(keys.keys.len(), 1);
    assert_eq!((keys.keys[0].name.len(), keys.keys[0].hmac.len(), keys.keys[0].aes.len()), (16, 32, 32));
    let now = bench.node.plane.clock.now().wall;
    assert!(keys.keys[0].seal_from < now && now < keys.keys[0].seal_until);
    assert_eq!(proxy.sessions(1).await[0].id, old.0);
    let new = bench.farm_session();
    assert_eq!(proxy.sessions(1).await[0].session, new.1);
    bench.node.keys.send_replace(Arc::new(Timetable::new(vec![key(5, -1..10, 20), key(4, -1..10, 20)])));
    let to_proxy::Kind::Timetable(keys) = proxy.hear().await else { panic!("no new keys") };
    assert_eq!(keys.keys[0].name, [5; 16]);

    assert_eq!(bench.node.warnings(), ["ats 9.2.9 (process 1): a setting"]);
    assert_eq!(bench.metric("resumed_proxies_connected"), 1);
    drop(proxy);
    bench.node.proxies(0).await;
    assert_eq!(bench.metric("resumed_proxies_connected"), 0);
    bench.node.stop().await;
}

#[tokio::test]
async fn a_node_says_nothing_of_keys_that_would_cost_a_proxy_those_of_the_farm() {
    let bench = Bench::start(&NodeSetup::default()).await;
    bench.node.keys.send_replace(Arc::default());
    let mut newest = Proxy::connect(&bench.node.socket).await;
    newest.say(from_proxy::Kind::Hello(Hello { keeps_keys: true, ..Hello::default() })).await;
    let mut first_release = bench.proxy().await;
    for proxy in [&mut newest, &mut first_release] {
        assert!(matches!(proxy.hear().await, to_proxy::Kind::Welcome(_)), "no welcome first");
    }
    bench.node.proxies(2).await;
    let alone = Timetable::new(vec![key(4, -1..10, 20)]).with_alone(true);
    bench.node.keys.send_replace(Arc::new(alone.clone()));
    let to_proxy::Kind::Timetable(keys) = newest.hear().await else { panic!("no keys") };
    assert_eq!((keys.keys.len(), keys.alone), (1, true), "an empty timetable was sent before");
    // A revocation is said to all.
    bench.node.keys.send_replace(Arc::new(alone.with_floors(7, 0)));
    for proxy in [&mut newest, &mut first_release] {
        let to_proxy::Kind::Timetable(keys) = proxy.hear().await else { panic!("no keys") };
        assert_eq!((keys.keys.len(), keys.floor), (1, 7), "keys that only this host has were sent before");
    }
    bench.node.stop().await;
}

#[tokio::test]
async fn what_a_proxy_makes_goes_to_the_farm_and_to_the_proxies_beside_it() {
    let bench = Bench::start(&NodeSetup::default()).await;
    let (mut one, mut two) = (bench.proxy().await, bench.proxy().await);
    for proxy in [&mut one, &mut two] {
        proxy.hear().await;
        proxy.hear().await;
    }
    let made = tls::server_session();
    let mut broken = made.clone();
    broken.1.truncate(20);
    let mut removed = session(&made);
    removed.session.clear();
    one.say(sessions(vec![session(&broken), session(&made), removed])).await;
    let batch = timeout(PATIENCE, bench.node.plane.outbox.next_batch(1 << 20)).await.expect("a batch");
    assert_eq!(batch.entries.len(), 2);
    assert_eq!((&batch.entries[0].id[..], &batch.entries[0].session[..]), (&made.0[..], &made.1[..]));
    assert!(batch.entries[1].session.is_empty());
    assert_eq!(bench.metric("resumed_sessions_dropped_total{reason=\"broken_der\"}"), 1);
    let beside = two.sessions(2).await;
    assert_eq!((&beside[0].id[..], beside[1].session.len()), (&made.0[..], 0));
}

#[tokio::test]
async fn a_plugin_of_a_later_release_may_say_more_than_the_node_understands() {
    // Field 99, length-delimited, 3 bytes.
    const NEWER: [u8; 6] = [0x9a, 0x06, 3, b'n', b'e', b'w'];
    let bench = Bench::start(&NodeSetup::default()).await;
    let mut proxy = Proxy::connect(&bench.node.socket).await;
    let made = tls::server_session();
    let entry = [&session(&made).encode_to_vec()[..], &NEWER].concat();
    // Tag and length before each: an entry, then the batch of it, both with what is new.
    let within = |tag: u8, inner: &[u8]| {
        let mut field = vec![tag];
        prost::encode_length_delimiter(inner.len(), &mut field).expect("a length");
        [&field[..], inner].concat()
    };
    let from_proxy::Kind::Hello(hello) = hello(1) else { panic!("no hello") };
    let hello = within(0x0a, &[&hello.encode_to_vec()[..], &NEWER].concat());
    let sessions = within(0x12, &[&within(0x0a, &entry)[..], &NEWER].concat());
    // A kind that the node has no name for at all stands between them.
    for message in [[&hello[..], &NEWER].concat(), NEWER.to_vec(), [&sessions[..], &NEWER].concat()] {
        proxy.raw(&u32::try_from(message.len()).expect("a length").to_be_bytes()).await;
        proxy.raw(&message).await;
    }
    assert!(matches!(proxy.hear().await, to_proxy::Kind::Welcome(_)));
    let batch = timeout(PATIENCE, bench.node.plane.outbox.next_batch(1 << 20)).await.expect("a batch");
    assert_eq!((&batch.entries[0].id[..], &batch.entries[0].session[..]), (&made.0[..], &made.1[..]));
    assert_eq!(bench.node.warnings(), ["ats 9.2.9 (process 1): a setting"]);
}

#[tokio::test]
async fn where_nothing_is_replicated_a_proxy_gets_keys_only() {
    let bench = Bench::start(&NodeSetup { replicate: false, ..NodeSetup::default() }).await;
    bench.farm_session();
    let mut proxy = bench.proxy().await;
    let to_proxy::Kind::Welcome(welcome) = proxy.hear().await else { panic!("no welcome first") };
    assert!(!welcome.replicate);
    proxy.hear().await;
    proxy.say(sessions(vec![session(&tls::server_session())])).await;
    bench.farm_session();
    bench.node.keys.send_replace(Arc::new(Timetable::new(vec![key(5, -1..10, 20)])));
    assert!(matches!(proxy.hear().await, to_proxy::Kind::Timetable(_)));
    assert_eq!(bench.node.plane.outbox.len(), 0);
}

#[tokio::test]
async fn each_bad_message_has_its_counted_reason_and_costs_one_connection() {
    let bench = Bench::start(&NodeSetup::default()).await;
    let mut good = bench.proxy().await;
    good.hear().await;
    good.hear().await;
    let too_large = u32::try_from(MOST_PLUGIN_BYTES + 1).expect("a length").to_be_bytes();
    let first_words: [(&[u8], &str); 5] = [
        (&too_large, "too_large"),
        (b"\xff\xff\xff\xff", "too_large"),
        (b"\x00\x00\x00\x04\xff\xff\xff\xff", "garbage"),
        (b"\x00\x00\x00\x00", "no_hello"),
        (b"\x00\x00\x00\x09cut", "truncated"),
    ];
    for introduced in [false, true] {
        for (bytes, reason) in first_words {
            if introduced && reason == "no_hello" {
                continue;
            }
            let before = bench.refused(reason);
            let mut bad = Proxy::connect(&bench.node.socket).await;
            if introduced {
                bad.say(hello(2)).await;
                bad.hear().await;
            }
            bad.raw(bytes).await;
            bad.0.shutdown().await.expect("shut");
            bad.end().await;
            until(&format!("{reason} counted"), || bench.refused(reason) == before + 1).await;
            bench.node.proxies(1).await;
        }
    }
    let mut twice = bench.proxy().await;
    twice.say(hello(3)).await;
    twice.end().await;
    until("the second introduction counted", || bench.refused("no_hello") == 2).await;
    // A look and no word, as a starting daemon does, is nobody's fault.
    drop(Proxy::connect(&bench.node.socket).await);
    let new = bench.farm_session();
    assert_eq!(good.sessions(1).await[0].id, new.0);
    let total: u64 = ["too_large", "garbage", "no_hello", "truncated", "io", "silent", "peer"]
        .iter()
        .map(|reason| bench.refused(reason))
        .sum();
    assert_eq!(total, 10);
}

#[tokio::test]
async fn whoever_says_nothing_is_let_go() {
    let bench = Bench::start(&NodeSetup::default()).await;
    let mut silent = Proxy::connect(&bench.node.socket).await;
    silent.end().await;
    assert_eq!(bench.refused("silent"), 1);
}

#[tokio::test]
async fn more_than_the_most_proxies_are_turned_away() {
    let bench = Bench::start(&NodeSetup::default()).await;
    let mut all = Vec::new();
    for _ in 0..MAX_PROXIES {
        all.push(bench.proxy().await);
    }
    bench.node.proxies(MAX_PROXIES).await;
    Proxy::connect(&bench.node.socket).await.end().await;
    assert_eq!(bench.refused("too_many"), 1);
    all.pop();
    bench.node.proxies(MAX_PROXIES - 1).await;
    bench.proxy().await.hear().await;
}

#[tokio::test]
async fn a_proxy_that_stops_reading_holds_up_nobody_and_loses_its_connection() {
    let bench = Bench::start(&NodeSetup { backlog: 4, ..NodeSetup::default() }).await;
    let (mut reads, stuck) = (bench.proxy().await, bench.proxy().await);
    reads.hear().await;
    reads.hear().await;
    bench.node.proxies(2).await;
    // Enough for any socket buffer; the farm goes on at the pace of the one that reads.
    let bulk = SessionEntry { id: Bytes::from_static(&[1; 32]), session: Bytes::from(vec![0; 16_000]), at: 0 };
    let batch = Arc::new(vec![bulk; 4]);
    for round in 0..100 {
        bench.node.plane.from_farm.send(Arc::clone(&batch)).expect("two proxies");
        assert_eq!(reads.sessions(4).await.len(), 4, "round {round}");
    }
    bench.node.proxies(1).await;
    assert_eq!(bench.refused("stopped_reading"), 1);
    drop(stuck);
}

#[tokio::test]
async fn a_proxy_that_falls_behind_is_filled_again_from_the_store() {
    let bench = Bench::start(&NodeSetup { backlog: 2, ..NodeSetup::default() }).await;
    let mut proxy = bench.proxy().await;
    proxy.hear().await;
    proxy.hear().await;
    // Everything between two looks of the writer: all but the last two are lost to it, and the store has them all.
    let made: Vec<_> = (0..6).map(|_| bench.farm_session()).collect();
    let mut missing: Vec<&[u8]> = made.iter().map(|(id, _)| &id[..]).collect();
    while !missing.is_empty() {
        for session in proxy.sessions(1).await {
            missing.retain(|id| *id != session.id);
        }
    }
    assert_eq!(bench.metric("resumed_sessions_dropped_total{reason=\"proxy_slow\"}"), 4);
}

#[tokio::test]
async fn a_proxy_that_fell_behind_or_was_away_hears_what_the_farm_removed_meanwhile() {
    let bench = Bench::start(&NodeSetup { backlog: 2, ..NodeSetup::default() }).await;
    let [lagged, away] = [(), ()].map(|()| bench.farm_session().0);
    let mut proxy = bench.proxy().await;
    proxy.hear().await;
    proxy.hear().await;
    assert_eq!(proxy.sessions(2).await.len(), 2);
    // The removal and what follows lie between two looks of the writer: all but the last two are lost to it.
    bench.farm_removal(&lagged);
    for _ in 0..4 {
        bench.farm_session();
    }
    assert_eq!(proxy.removals().await, std::slice::from_ref(&lagged));

    drop(proxy);
    bench.node.proxies(0).await;
    bench.farm_removal(&away);
    let mut proxy = bench.proxy().await;
    proxy.hear().await;
    proxy.hear().await;
    assert_eq!(proxy.removals().await, [lagged, away]);
    assert_eq!(proxy.sessions(4).await.len(), 4, "and behind them what the farm has");
    bench.node.stop().await;
}

#[tokio::test]
async fn a_plugins_counters_become_metrics_and_a_reconnection_counts_nothing_twice() {
    let bench = Bench::start(&NodeSetup::default()).await;
    let counted = |n| {
        from_proxy::Kind::Counters(Counters {
            queued: n,
            dropped_full: 2 * n,
            too_large_for_proxy: 3 * n,
            inserted: 4 * n,
            apply_errors: 7 * n,
            own_keys: 8 * n,
        })
    };
    let values = || {
        [
            "resumed_proxy_sessions_reported_total",
            "resumed_sessions_dropped_total{reason=\"plugin_queue_full\"}",
            "resumed_sessions_dropped_total{reason=\"too_large_for_proxy\"}",
            "resumed_proxy_sessions_inserted_total",
            "resumed_apply_errors_total",
            "resumed_proxy_own_keys_total",
        ]
        .map(|name| bench.metric(name))
    };
    for (steps, total) in [([1, 10], 10), ([10, 15], 15), ([2, 3], 18)] {
        // The last: the same process id, counting from nothing, is another process.
        let mut proxy = bench.proxy().await;
        for step in steps {
            proxy.say(counted(step)).await;
        }
        until(&format!("{total} counted"), || values() == [1, 2, 3, 4, 7, 8].map(|factor| factor * total)).await;
        drop(proxy);
        bench.node.proxies(0).await;
    }
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_nothing_else() {
    let folder = Folder::temporary("resumed-");
    let path = folder.path().join("ats.sock");
    let settings = AtsSettings { socket: path.clone(), users: Vec::new() };
    drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
    assert!(path.exists(), "a killed daemon leaves its socket");
    let node = Node::start(&path, &NodeSetup::default()).await;
    let error = Socket::bind(settings.clone()).expect_err("somebody listens there");
    assert!(matches!(error, SocketError::InUse { .. }), "{error}");
    assert!(error.to_string().contains(path.to_str().expect("UTF-8")));
    assert_eq!(Proxy::connect(&path).await.0.peer_addr().expect("the node").as_pathname(), Some(path.as_path()));
    node.stop().await;
    assert!(!path.exists(), "a stopped daemon leaves no socket");
    std::fs::write(&path, "precious").expect("a file");
    let error = Socket::bind(settings).expect_err("a file is there");
    assert!(matches!(error, SocketError::NotASocket { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(&path).expect("the file"), "precious");
    let nowhere = AtsSettings { socket: folder.path().join("no/ats.sock"), users: Vec::new() };
    assert!(matches!(Socket::bind(nowhere).expect_err("no folder"), SocketError::Io { .. }));
}

#[tokio::test]
async fn a_peer_that_is_not_allowed_is_told_nothing() {
    if !nix::unistd::geteuid().is_root() {
        // Only root can play another user; `make test` runs as root or says so here.
        eprintln!("not root: cannot connect as another user, nothing shown");
        return;
    }
    let folder = Folder::temporary("resumed-");
    for (users, allowed) in [(vec![], false), (vec!["root", "no-such-user"], false), (vec!["nobody"], true)] {
        let users: Vec<String> = users.into_iter().map(str::to_owned).collect();
        let bench = Bench::start(&NodeSetup { users: users.clone(), ..NodeSetup::default() }).await;
        let open: std::fs::Permissions = PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(bench.node.socket.parent().expect("a folder"), open).expect("permissions");
        let (folder, socket) = (folder.path().to_owned(), bench.node.socket.clone());
        let output =
            tokio::task::spawn_blocking(move || foreign_peer::connect(&folder, &socket)).await.expect("no panic");
        assert!(output.status.success(), "{output:?}");
        let peer = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert_eq!(peer != "0", allowed, "{users:?}: told {peer} bytes");
        assert_eq!(bench.refused("peer"), u64::from(!allowed), "{users:?}");
    }
}
