//! One plugin for ATS 9, 10 and 11: against small hosts that export only the C names, only the C++ names, and no session
//! functions.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use testkit::plugin;
use testkit::tls;
use testkit::watcher::Folder;

use bytes::Bytes;
use resumed::Removals;
use resumed::internals::hex::hex;
use resumed::internals::keys::Timetable;
use resumed::internals::proto::{SessionBatch, SessionEntry, SessionFormat};
use testkit::node::{Node, NodeSetup, key, until};

/// Compiles the host that plays ATS of this major version.
fn host(folder: &Path, major: u32) -> PathBuf {
    host_with(folder, major, &["-ldl", "-lssl", "-lcrypto"])
}

/// The same, linked as these last words to the compiler say.
fn host_with(folder: &Path, major: u32, words: &[&str]) -> PathBuf {
    let program = folder.join(format!("host-{major}"));
    let output = Command::new("cc")
        .args(["-Wall", "-Werror", "-rdynamic", &format!("-DHOST={major}"), "-o"])
        .arg(&program)
        .arg(testkit::tree().join("tests/proxies/plugin_host.c"))
        .args(words)
        .output()
        .expect("a C compiler, which Rust needs as well");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (name, certificates) = match major {
        11 => ("ssl_multicert.yaml", "ssl_multicert:\n- ssl_cert_name: farm.pem\n"),
        _ => ("ssl_multicert.config", "ssl_cert_name=farm.pem dest_ip=*\n"),
    };
    std::fs::write(folder.join(name), certificates).expect("its configuration");
    program
}

/// A running host.
struct Host {
    child: Child,
    commands: Option<ChildStdin>,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Host {
    fn start(program: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new(program)
            .arg(plugin::library())
            .args(arguments)
            .env("CONFIG_DIR", program.parent().expect("its folder"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the host");
        let (sender, lines) = channel();
        let output = BufReader::new(child.stdout.take().expect("its output"));
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let commands = child.stdin.take();
        Self { child, commands, lines, seen: Vec::new() }
    }

    fn tell(&mut self, command: &str) {
        let word = command.split(' ').next().expect("a word").to_owned();
        writeln!(self.commands.as_mut().expect("its input"), "{command}").expect("its input");
        self.wait_for(&format!("done {word}"));
    }

    /// Waits for a line that starts like this, among those that nobody has waited for yet.
    fn wait_for(&mut self, start: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.seen.push(line);
                    let line = self.seen.last().expect("a line");
                    if line.starts_with(start) {
                        return line.clone();
                    }
                }
                Err(error) => panic!("no line {start:?} ({error}); the host said:\n{}", self.seen.join("\n")),
            }
        }
    }

    fn said(&self, start: &str) -> Vec<&str> {
        self.seen.iter().map(String::as_str).filter(|line| line.starts_with(start)).collect()
    }

    /// Lets it end as ATS does, and returns its exit code.
    fn end(mut self) -> Option<i32> {
        drop(self.commands.take());
        self.child.wait().expect("its end").code()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The record that ATS takes of `node::key(n, …)`.
fn record(n: u8) -> String {
    hex(&[n; 16]) + &hex(&[n ^ 0x55; 16]) + &hex(&[n ^ 0xaa; 16])
}

struct Bench {
    folder: Folder,
    node: Node,
    host: Host,
}

impl Bench {
    async fn start(major: u32, setup: &NodeSetup) -> Self {
        let folder = Folder::temporary("resumed-");
        let socket = folder.path().join("ats.sock");
        let node = Node::start(&socket, setup).await;
        let timetable = Timetable::new(vec![key(2, 1000..2000, 3000), key(1, -10..1000, 3000)]);
        node.keys.send_replace(Arc::new(timetable));
        let program = host(folder.path(), major);
        let host = Host::start(&program, &[&format!("--socket={}", socket.display()), "--wait-ms=20000"]);
        Self { folder, node, host }
    }

    /// What the farm would send.
    fn farm_sends(&self, entries: Vec<(&[u8], &[u8])>) {
        let entries = entries.into_iter().map(|(id, der)| SessionEntry {
            id: Bytes::copy_from_slice(id),
            session: Bytes::copy_from_slice(der),
            at: 0,
        });
        let batch = SessionBatch { entries: entries.collect(), format: SessionFormat::OpensslDer.into() };
        let applied = self.node.plane.store.remote(batch, self.node.plane.clock.now());
        assert!(applied.dropped.is_empty(), "{applied:?}");
        self.node.plane.from_farm.send(Arc::new(applied.for_proxies)).expect("a connected proxy");
    }
}

async fn keys_and_sessions_pass(major: u32, hook: &str, close_hook: &str) {
    let mut bench = Bench::start(major, &NodeSetup::default()).await;
    let host = &mut bench.host;
    host.wait_for("ready");
    assert_eq!(host.said("register"), ["register resumed"]);
    assert_eq!(host.said("hook"), [format!("hook {hook}"), format!("hook {close_hook}")]);
    assert_eq!(host.said("lifecycle"), ["lifecycle 7"]);
    assert_eq!(host.said("update"), ["update resumed"]);
    // Before ATS takes its first connection, and nothing but the farm's keys.
    assert_eq!(host.said("keys"), [format!("keys {}{}", record(1), record(2))]);
    assert_eq!(host.said("warning").len(), 1, "{:?}", host.seen);
    assert!(host.said("warning")[0].contains("is 0, not 2"));

    let (id, der) = tls::server_session();
    host.tell(&format!("new {} {}", hex(&id), hex(&der)));
    let batch = bench.node.plane.outbox.next_batch(1 << 20).await;
    assert_eq!((&batch.entries[0].id[..], &batch.entries[0].session[..]), (&id[..], &der[..]));

    // One that its client makes, and ends without a word.
    host.tell("visit");
    assert_eq!(host.said("visit").last(), Some(&"visit made whole"));
    assert_eq!(host.said("reenabled").len(), 1, "other plugins wait for it");
    let entries = published(&bench.node, 2).await;
    assert_eq!(entries[0].id, entries[1].id);
    assert!(!entries[0].session.is_empty() && entries[1].session.is_empty());

    // Another one comes from the farm: into ATS when its client comes, and not before.
    let (id, der) = tls::server_session();
    bench.farm_sends(vec![(&id, &der)]);
    let insert = format!("insert {} {}", hex(&id), hex(&der));
    let start = Instant::now();
    while bench.host.said("insert").is_empty() {
        bench.host.tell(&format!("get {}", hex(&id)));
        assert!(start.elapsed() < Duration::from_secs(30), "never inserted");
    }
    bench.host.tell(&format!("get {}", hex(&id)));
    assert_eq!(bench.host.said("insert"), [insert.as_str()], "ATS has it: not inserted again");
    bench.host.tell("evict");
    bench.host.tell(&format!("get {}", hex(&id)));
    assert_eq!(bench.host.said("insert"), [insert.as_str(); 2], "ATS lost it: inserted again");

    // Removed by the farm: from ATS and from the replica, and not reported back.
    bench.farm_sends(vec![(&id, b"")]);
    bench.host.wait_for(&format!("remove {}", hex(&id)));
    bench.host.tell("evict");
    bench.host.tell(&format!("get {}", hex(&id)));
    assert_eq!(bench.host.said("insert").len(), 2);
    bench.host.tell("impossible");
    let (last, der) = tls::server_session();
    bench.host.tell(&format!("new {} {}", hex(&last), hex(&der)));
    let batch = bench.node.plane.outbox.next_batch(1 << 20).await;
    assert_eq!(batch.entries.len(), 1, "the farm's own removal came back to it");
    assert_eq!(batch.entries[0].id, last);
    assert_eq!(bench.host.said("error"), [""; 0]);
    assert_eq!(bench.host.end_after_stop(), Some(0));
    drop(bench.folder);
}

impl Host {
    fn end_after_stop(&mut self) -> Option<i32> {
        self.tell("stop");
        drop(self.commands.take());
        self.child.wait().expect("its end").code()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_c_names_only_it_takes_hooks_24_and_18() {
    keys_and_sessions_pass(9, "24", "18").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_mangled_names_only_it_takes_hooks_27_and_21() {
    keys_and_sessions_pass(10, "27", "21").await;
}

/// The sessions and removals that the node has to publish once `count` of them are there.
async fn published(node: &Node, count: usize) -> Vec<SessionEntry> {
    let mut entries = Vec::new();
    while entries.len() < count {
        entries.extend(node.plane.outbox.next_batch(1 << 20).await.entries);
    }
    entries
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_connection_with_the_sessions_key_removes_it() {
    let mut bench = Bench::start(9, &NodeSetup::default()).await;
    let host = &mut bench.host;
    host.wait_for("ready");
    let (id, der) = tls::server_session();
    host.tell(&format!("new {} {}", hex(&id), hex(&der)));
    // What a ticket's owner brings about who names that ID, and what OpenSSL says of an ID that never was.
    host.tell(&format!("removed {}", hex(&id)));
    host.tell(&format!("removed {}", hex(&[5; 32])));
    // ATS has dropped it by now: its client's next visit brings it back.
    host.tell(&format!("get {}", hex(&id)));
    assert_eq!(host.said("insert"), [format!("insert {} {}", hex(&id), hex(&der))]);

    host.tell("visit");
    let entries = published(&bench.node, 3).await;
    let made = entries[1].id.clone();
    assert_eq!([&entries[0].id[..], &entries[2].id[..]], [&id[..], &made[..]]);
    assert!(entries[2].session.is_empty(), "the one visit that ended its own session");
    assert_eq!(bench.host.end_after_stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_breaks_off_removes_nothing_and_one_that_resumed_removes_its_session() {
    let mut bench = Bench::start(10, &NodeSetup::default()).await;
    let host = &mut bench.host;
    host.wait_for("ready");
    host.tell("visit keep");
    let made = published(&bench.node, 1).await;
    assert!(!made[0].session.is_empty());
    let host = &mut bench.host;
    host.tell("visit again early");
    assert_eq!(host.said("visit").last(), Some(&"visit resumed broken"));
    host.tell("visit again");
    assert_eq!(host.said("visit").last(), Some(&"visit resumed whole"));
    let removed = published(&bench.node, 1).await;
    assert_eq!((&removed[0].id, removed[0].session.len(), removed.len()), (&made[0].id, 0, 1));
    assert_eq!(bench.host.end_after_stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_session_functions_it_shares_tickets_only() {
    let mut bench = Bench::start(11, &NodeSetup::default()).await;
    bench.host.wait_for("ready");
    assert!(bench.host.said("hook").is_empty());
    assert_eq!(bench.host.said("keys"), [format!("keys {}{}", record(1), record(2))]);
    bench.node.proxies(1).await;
    let proxies = bench.node.plane.registry.proxies();
    assert!(!proxies[0].sessions);
    assert_eq!(proxies[0].version, "11.0.0");
    assert_eq!((proxies[0].certificate_digest.len(), &proxies[0].warnings[..]), (8, &[][..]), "it reads YAML");
    let (id, der) = tls::server_session();
    bench.farm_sends(vec![(&id, &der)]);
    // The next keys arrive after what was sent before them.
    bench.node.keys.send_replace(Arc::new(Timetable::new(vec![key(3, -10..1000, 3000)])));
    bench.host.wait_for(&format!("keys {}", record(3)));
    assert_eq!(bench.host.end_after_stop(), Some(0));
}

/// An ATS whose sessions are another OpenSSL's: tickets go on, the session hook is left alone, and one line says why.
async fn shares_tickets_only_beside_a_foreign_openssl(words: &[&str], why: &str) {
    let folder = Folder::temporary("resumed-");
    let socket = folder.path().join("ats.sock");
    let node = Node::start(&socket, &NodeSetup::default()).await;
    node.keys.send_replace(Arc::new(Timetable::new(vec![key(1, -10..1000, 3000)])));
    let program = host_with(folder.path(), 9, words);
    let mut host = Host::start(&program, &[&format!("--socket={}", socket.display()), "--wait-ms=20000"]);
    host.wait_for("ready");
    assert_eq!(host.said("hook"), [""; 0], "it touches sessions that another library made");
    assert_eq!(host.said("keys"), [format!("keys {}", record(1))]);
    let warnings = host.said("warning");
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains(why) && warnings[0].contains("ticket keys only"), "{warnings:?}");
    node.proxies(1).await;
    let proxy = &node.plane.registry.proxies()[0];
    assert!(!proxy.sessions);
    assert!(proxy.warnings[0].contains(why), "{:?}", proxy.warnings);
    assert_eq!(host.end_after_stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ats_with_an_openssl_of_its_own_inside_shares_tickets_only() {
    let words = ["-Wl,-Bstatic", "-lssl", "-lcrypto", "-Wl,-Bdynamic", "-ldl", "-lpthread", "-Wl,--exclude-libs,ALL"];
    shares_tickets_only_beside_a_foreign_openssl(&words, "shows the plugin no OpenSSL of its own").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ats_with_an_openssl_of_another_version_shares_tickets_only() {
    let words = ["-DOPENSSL_SAYS=0x1010117fUL", "-ldl", "-lssl", "-lcrypto"];
    shares_tickets_only_beside_a_foreign_openssl(&words, "runs on OpenSSL 1.1.1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_keys_does_not_end_the_wait_for_the_first() {
    let folder = Folder::temporary("resumed-");
    let socket = folder.path().join("ats.sock");
    let node = Node::start(&socket, &NodeSetup::default()).await;
    let program = host(folder.path(), 9);
    let mut host = Host::start(&program, &[&format!("--socket={}", socket.display()), "--wait-ms=20000"]);
    host.wait_for("note [resumed] connected to node n1");
    node.keys.send_replace(Arc::new(Timetable::new(vec![key(6, -10..1000, 3000)])));
    host.wait_for("ready");
    assert_eq!(host.said("keys"), [format!("keys {}", record(6))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_of_ats_gets_the_keys_again_at_once() {
    let mut bench = Bench::start(9, &NodeSetup::default()).await;
    bench.host.wait_for("ready");
    bench.host.tell("reload");
    bench.host.wait_for(&format!("keys {}{}", record(1), record(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_farm_that_keeps_removed_sessions_hears_of_no_removal() {
    let setup = NodeSetup { removals: Removals::Keep, ..NodeSetup::default() };
    let mut bench = Bench::start(9, &setup).await;
    bench.host.wait_for("ready");
    let (id, der) = tls::server_session();
    bench.farm_sends(vec![(&id, &der)]);
    let start = Instant::now();
    while bench.host.said("insert").is_empty() {
        bench.host.tell(&format!("get {}", hex(&id)));
        assert!(start.elapsed() < Duration::from_secs(30), "never inserted");
    }
    bench.host.tell(&format!("removed {}", hex(&id)));
    bench.host.tell(&format!("get {}", hex(&id)));
    assert_eq!(bench.host.said("insert").len(), 2, "the replica kept it");
    let (id, der) = tls::server_session();
    bench.host.tell(&format!("new {} {}", hex(&id), hex(&der)));
    let batch = bench.node.plane.outbox.next_batch(1 << 20).await;
    assert_eq!(batch.entries.len(), 1);
    assert_eq!(batch.entries[0].id, id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_openssl_does_not_take_never_reaches_ats() {
    let mut bench = Bench::start(9, &NodeSetup::default()).await;
    bench.host.wait_for("ready");
    let (id, good) = tls::server_session();
    // The cipher is one that nobody knows: the plugin's own look at time and timeout passes, OpenSSL's does not.
    let mut bad = good.clone();
    let cipher = bad.windows(2).position(|bytes| bytes == [0x04, 0x02]).expect("a cipher") + 2;
    bad[cipher..cipher + 2].copy_from_slice(&[0xee, 0xee]);
    let session =
        |der: &[u8]| SessionEntry { id: Bytes::copy_from_slice(&id), session: Bytes::copy_from_slice(der), at: 0 };
    let farm = &bench.node.plane.from_farm;
    // And three that the plugin refuses by itself: cut off, under a foreign ID, larger than ATS keeps.
    let mut foreign = session(&good);
    foreign.id = Bytes::from_static(b"foreign");
    let entries = vec![session(&good[..50]), foreign, session(&[0x30; 300]), session(&bad)];
    farm.send(Arc::new(entries)).expect("a connected proxy");
    let applied = |bench: &Bench| bench.node.plane.registry.len();
    until("the proxy is still there", || applied(&bench) == 1).await;
    let (other, der) = tls::server_session();
    let last = SessionEntry { id: Bytes::copy_from_slice(&other), session: Bytes::from(der), at: 0 };
    farm.send(Arc::new(vec![last])).expect("a connected proxy");
    let start = Instant::now();
    while bench.host.said("insert").is_empty() {
        bench.host.tell(&format!("get {}", hex(&id)));
        bench.host.tell(&format!("get {}", hex(b"foreign")));
        bench.host.tell(&format!("get {}", hex(&other)));
        assert!(start.elapsed() < Duration::from_secs(30), "the good one never inserted");
    }
    assert!(bench.host.said("insert")[0].starts_with(&format!("insert {}", hex(&other))));
    assert_eq!(bench.host.said("insert").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_sends_nonsense_costs_a_connection_and_no_more() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let folder = Folder::temporary("resumed-");
    let socket = folder.path().join("ats.sock");
    let program = host(folder.path(), 9);
    let nonsense: [(&[u8], &str); 4] = [
        (b"\xff\xff\xff\xff", "4294967295 bytes"),
        (b"\x00\x00\x00\x04\xff\xff\xff\xff", "a message that is none"),
        (b"\x00\x00\x00\x0a\x12\x08\x0a\x06\x0a\x04abcd", "a ticket key's name has 4 bytes, not 16"),
        (b"\x00\x00\x00\x09cut", "it closed the connection"),
    ];
    for (bytes, complaint) in nonsense {
        let listener = tokio::net::UnixListener::bind(&socket).expect("the socket");
        let mut host = Host::start(&program, &[&format!("--socket={}", socket.display()), "--wait-ms=0"]);
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut hello = [0; 100];
        stream.read_exact(&mut hello[..4]).await.expect("an introduction");
        stream.write_all(bytes).await.expect("written");
        stream.shutdown().await.expect("shut");
        // It closes the connection.
        while stream.read(&mut hello).await.unwrap_or(0) > 0 {}
        let line = host.wait_for("warning [resumed] lost the daemon");
        assert!(line.contains(complaint), "{line}");
        drop(listener);
        std::fs::remove_file(&socket).expect("the socket");
        let node = Node::start(&socket, &NodeSetup::default()).await;
        node.keys.send_replace(Arc::new(Timetable::new(vec![key(5, -10..1000, 3000)])));
        host.wait_for(&format!("keys {}", record(5)));
        assert_eq!(host.end(), Some(0));
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ats_hears_of_two_threads_however_often_the_daemon_goes() {
    let folder = Folder::temporary("resumed-");
    let socket = folder.path().join("ats.sock");
    let program = host(folder.path(), 9);
    let mut host = Host::start(&program, &[&format!("--socket={}", socket.display()), "--wait-ms=20000"]);
    for n in 1..=3 {
        let node = Node::start(&socket, &NodeSetup::default()).await;
        node.keys.send_replace(Arc::new(Timetable::new(vec![key(n, -10..1000, 3000)])));
        // The keys' thread takes them after the link's has brought them: both have begun.
        host.wait_for(&format!("keys {}", record(n)));
        node.stop().await;
    }
    assert_eq!(host.said("thread").len(), 2, "{:?}", host.seen);
}

#[test]
fn an_argument_that_cannot_be_meant_is_named_and_the_plugin_stays_out() {
    let folder = Folder::temporary("resumed-");
    let program = host(folder.path(), 10);
    let mut host = Host::start(&program, &["--sokcet=/x"]);
    host.wait_for("ready");
    assert_eq!(host.said("register").len(), 1, "ATS does not start with a plugin that has not registered");
    let errors = host.said("error");
    assert!(errors.len() == 1 && errors[0].contains("\"--sokcet=/x\""), "{errors:?}");
    assert!(host.said("keys").is_empty() && host.said("hook").is_empty());
}
