//! Nodes that join late, or were away, are given the sessions that they lack by one donor of their pod: real daemons on a
//! real broker, with proxies played by the test. `--nocapture` shows the figures.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::sys::signal::Signal;
use prost::Message;
use resumed::internals::proto::local::{FromProxy, Hello, Sessions, ToProxy, from_proxy, to_proxy};
use resumed::internals::proto::payload::Kind;
use resumed::internals::proto::{SessionEntry, SessionFormat, Warmup, WarmupCall, WarmupOffer, WarmupRequest};
use testkit::attacker::Attacker;
use testkit::broker::Broker;
use testkit::farm::{Daemon, Farm, FarmSetup, Proxies, wait_for};
use testkit::tls;

/// One real session under as many IDs as are wanted.
struct Sample {
    der: Vec<u8>,
    /// Where its ID stands in it.
    at: usize,
}

impl Sample {
    fn make() -> Self {
        let (id, der) = tls::server_session();
        assert_eq!(id.len(), 32);
        let at = der.windows(32).position(|bytes| bytes == id).expect("a session carries its ID");
        Self { der, at }
    }

    fn id(number: u64) -> Vec<u8> {
        let mut id = vec![0xa5; 32];
        id[..8].copy_from_slice(&number.to_be_bytes());
        id
    }

    fn session(&self, number: u64) -> SessionEntry {
        let (id, mut der) = (Self::id(number), self.der.clone());
        der[self.at..self.at + 32].copy_from_slice(&id);
        SessionEntry { id: id.into(), session: der.into(), at: wall() }
    }
}

fn removal(number: u64) -> SessionEntry {
    SessionEntry { id: Sample::id(number).into(), session: Bytes::new(), at: wall() }
}

fn wall() -> u64 {
    resumed::SystemClock::start().now().wall
}

/// What a proxy last heard of a session, and when.
#[derive(Clone, Copy)]
struct Heard {
    removed: bool,
    first: Instant,
}

/// A proxy played by the test: it reports what it is told to, and remembers what its node tells it.
struct Proxy {
    stream: UnixStream,
    heard: Arc<Mutex<HashMap<Bytes, Heard>>>,
    reader: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Connects as soon as the daemon listens.
    fn connect(daemon: &Daemon, takes_sessions: bool) -> Self {
        let socket = daemon.home().join("ats.sock");
        let (stream, _) = wait_for("the daemon's socket", || UnixStream::connect(&socket).map_err(|e| e.to_string()));
        let heard = Arc::new(Mutex::new(HashMap::new()));
        let reader = std::thread::spawn({
            let (mut stream, heard) = (stream.try_clone().expect("the socket twice"), Arc::clone(&heard));
            move || while listen(&mut stream, &heard).is_some() {}
        });
        let mut proxy = Self { stream, heard, reader: Some(reader) };
        let hello = Hello { kind: "ats".to_owned(), process_id: 1, sessions: takes_sessions, ..Hello::default() };
        proxy.say(from_proxy::Kind::Hello(hello));
        proxy
    }

    fn say(&mut self, kind: from_proxy::Kind) {
        let message = FromProxy { kind: Some(kind) }.encode_to_vec();
        let length = u32::try_from(message.len()).expect("a length").to_be_bytes();
        self.stream.write_all(&[&length[..], &message].concat()).expect("the daemon reads");
    }

    fn report(&mut self, entries: Vec<SessionEntry>) {
        self.say(from_proxy::Kind::Sessions(Sessions { entries }));
    }

    fn heard(&self, number: u64) -> Option<Heard> {
        self.heard.lock().expect("no panic").get(&Sample::id(number)[..]).copied()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The daemon may be gone already.
        let _gone = self.stream.shutdown(Shutdown::Both);
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader did not panic");
        }
    }
}

/// Reads one message, if one comes.
fn listen(stream: &mut UnixStream, heard: &Mutex<HashMap<Bytes, Heard>>) -> Option<()> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut message = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut message).ok()?;
    let now = Instant::now();
    if let Some(to_proxy::Kind::Sessions(sessions)) = ToProxy::decode(&message[..]).expect("a message").kind {
        let mut heard = heard.lock().expect("no panic");
        for SessionEntry { id, session, .. } in sessions.entries {
            // A copy: a slice would keep the whole message.
            let entry = heard.entry(Bytes::copy_from_slice(&id)).or_insert(Heard { removed: false, first: now });
            entry.removed = session.is_empty();
        }
    }
    Some(())
}

/// Daemons alone, of which those from `first_late` on have not been started yet. The others lack nothing.
fn farm(broker: &Broker, pods: &[&str], first_late: usize, sessions: &str) -> Farm {
    let mut setup = FarmSetup::new(pods.len(), &broker.uri());
    setup.pods = pods.iter().map(|pod| (*pod).to_owned()).collect();
    setup.proxies = Proxies::None;
    setup.broker = "heartbeat = \"1s\"".to_owned();
    setup.sessions = sessions.to_owned();
    let mut farm = Farm::lay_out(&setup);
    for host in &mut farm.hosts[..first_late] {
        host.daemon.launch();
    }
    farm.wait_in_step();
    for host in &farm.hosts[..first_late] {
        host.daemon.wait_for_metric("resumed_warmup_lacking", |lacking| lacking == 0.0);
    }
    farm
}

/// Feeds the sessions `numbers` to the first host and waits until `others` hold them too.
fn feed(farm: &Farm, sample: &Sample, numbers: std::ops::Range<u64>, others: &[usize]) -> Proxy {
    let mut proxy = Proxy::connect(&farm.hosts[0].daemon, false);
    let count = (numbers.end - numbers.start) as f64;
    let mut next = numbers.start;
    while next < numbers.end {
        let end = (next + 200).min(numbers.end);
        proxy.report((next..end).map(|number| sample.session(number)).collect());
        next = end;
    }
    for other in [0].iter().chain(others) {
        farm.hosts[*other].daemon.wait_for_metric("resumed_cache_entries", |entries| entries == count);
    }
    proxy
}

/// The warm-ups in a donor's log, each begun after the one before had ended.
fn donations(daemon: &Daemon) -> usize {
    let mut running = 0;
    let mut all = 0;
    for line in daemon.log().lines() {
        if line.contains("warming up ") {
            (running, all) = (running + 1, all + 1);
        } else if line.contains(" tombstones: ") && line.contains("sent ") {
            running -= 1;
        }
        assert!((0..=1).contains(&running), "two warm-ups at a time:\n{}", daemon.log());
    }
    all
}

fn middle(latencies: &mut [Duration]) -> (Duration, Duration) {
    latencies.sort_unstable();
    (latencies[latencies.len() / 2], latencies[latencies.len() - 1])
}

#[test]
fn a_node_that_joins_late_is_given_100000_sessions_while_live_ones_pass_them() {
    const SESSIONS: u64 = 100_000;
    const REMOVED: u64 = 500;
    let broker = Broker::shared();
    let mut farm = farm(&broker, &["pod", "pod", "other", "pod"], 3, "");
    let sample = Sample::make();
    let mut at_first = feed(&farm, &sample, 0..SESSIONS, &[1]);
    at_first.report((0..REMOVED).map(removal).collect());
    let left = (SESSIONS - REMOVED) as f64;
    farm.hosts[1].daemon.wait_for_metric("resumed_cache_entries", |entries| entries == left);

    farm.hosts[3].daemon.launch();
    let joiner = &farm.hosts[3].daemon;
    let proxy = Proxy::connect(joiner, true);
    joiner.wait_for_metric("resumed_broker_connected", |connected| connected == 1.0);
    // From here on the live feed is up: what is made now must not wait for the warm-up.
    let mut made = Vec::new();
    let live = |at_first: &mut Proxy, made: &mut Vec<(u64, Instant)>| {
        let number = SESSIONS + made.len() as u64;
        made.push((number, Instant::now()));
        at_first.report(vec![sample.session(number)]);
    };
    let deadline = Instant::now() + Duration::from_secs(120);
    while joiner.try_metric("resumed_warmups_total") != Some(1.0) {
        assert!(Instant::now() < deadline, "no end of the warm-up: {}", joiner.log());
        live(&mut at_first, &mut made);
        std::thread::sleep(Duration::from_millis(3));
    }
    let during = made.len();
    for _ in 0..200 {
        live(&mut at_first, &mut made);
        std::thread::sleep(Duration::from_millis(3));
    }
    joiner.wait_for_metric("resumed_cache_entries", |entries| entries == left + made.len() as f64);
    joiner.wait_for_metric("resumed_tombstones", |tombstones| tombstones == REMOVED as f64);
    assert_eq!(joiner.metric("resumed_warmup_tombstones_received_total"), REMOVED as f64);
    assert_eq!(joiner.metric("resumed_warmup_restarts_total"), 0.0);
    // Its proxy has them as well, and none that was removed.
    wait_for("everything at the proxy", || match proxy.heard.lock().expect("no panic").len() as u64 {
        all if all == SESSIONS - REMOVED + made.len() as u64 => Ok(()),
        all => Err(format!("{all} sessions")),
    });
    assert!((0..REMOVED).all(|number| proxy.heard(number).is_none_or(|heard| heard.removed)));
    let delays = |made: &[(u64, Instant)]| -> Vec<Duration> {
        let delay = |(number, at): &(u64, Instant)| proxy.heard(*number).expect("it came").first.duration_since(*at);
        made.iter().map(delay).collect()
    };
    let ((p50, most), (p50_after, most_after)) =
        (middle(&mut delays(&made[..during])), middle(&mut delays(&made[during..])));
    let (seconds, bytes) = (joiner.metric("resumed_warmup_seconds"), sample.der.len() as f64 + 32.0);
    println!(
        "{left} sessions of {bytes} bytes and {REMOVED} tombstones in {seconds} s: {:.0} sessions/s, {:.1} MiB/s; \
         live sessions, socket to socket: p50 {p50:?}, most {most:?} of {during} meanwhile, p50 {p50_after:?}, most \
         {most_after:?} of 200 afterwards",
        left / seconds,
        left * bytes / seconds / f64::from(1 << 20),
    );
    // Only one donated, and nothing crossed pods.
    assert_eq!((0..2).map(|index| donations(&farm.hosts[index].daemon)).sum::<usize>(), 1);
    let other = &farm.hosts[2].daemon;
    for metric in
        ["resumed_cache_entries", "resumed_warmup_sessions_sent_total", "resumed_warmup_sessions_received_total"]
    {
        assert_eq!(other.metric(metric), 0.0, "{metric} in the other pod");
    }
    // Nothing warm is published again.
    assert_eq!(joiner.metric("resumed_sessions_published_total"), 0.0);
}

#[test]
fn a_donor_killed_in_the_middle_is_replaced_by_the_other() {
    const SESSIONS: u64 = 100_000;
    let broker = Broker::shared();
    // Small chunks, and so a small window: slow enough to be interrupted.
    let mut farm = farm(&broker, &["pod"; 3], 2, "batch_bytes = 1024\nmax_session_bytes = 1024");
    let sample = Sample::make();
    let _at_first = feed(&farm, &sample, 0..SESSIONS, &[1]);
    farm.hosts[2].daemon.launch();
    farm.hosts[2].daemon.wait_for_metric("resumed_warmup_sessions_received_total", |sessions| sessions >= 100.0);
    let log = farm.hosts[2].daemon.log();
    let donor = (0..2).find(|index| log.contains(&format!("being warmed up by host{index}"))).expect("a donor");
    farm.hosts[donor].daemon.kill();
    let had = farm.hosts[2].daemon.metric("resumed_cache_entries");
    assert!(had < SESSIONS as f64, "the donor was too fast to be interrupted");
    let (killed, joiner) = (Instant::now(), &farm.hosts[2].daemon);
    joiner.wait_for_metric("resumed_warmups_total", |warmups| warmups == 1.0);
    println!("had {had} of {SESSIONS} when the donor was killed; the other one was done {:?} later", killed.elapsed());
    joiner.wait_for_metric("resumed_cache_entries", |entries| entries == SESSIONS as f64);
    assert_eq!(joiner.metric("resumed_warmup_restarts_total"), 1.0);
    assert_eq!(donations(&farm.hosts[1 - donor].daemon), 1);
}

#[test]
fn joiners_at_once_are_served_one_at_a_time_by_each_donor() {
    const SESSIONS: u64 = 50_000;
    let broker = Broker::shared();
    let mut farm = farm(&broker, &["pod"; 5], 2, "");
    let sample = Sample::make();
    let _at_first = feed(&farm, &sample, 0..SESSIONS, &[1]);
    for host in &mut farm.hosts[2..] {
        host.daemon.launch();
    }
    for host in &farm.hosts[2..] {
        host.daemon.wait_for_metric("resumed_cache_entries", |entries| entries == SESSIONS as f64);
        host.daemon.wait_for_metric("resumed_warmup_lacking", |lacking| lacking == 0.0);
    }
    let each: Vec<usize> = farm.hosts.iter().map(|host| donations(&host.daemon)).collect();
    println!("three joiners at once: {each:?} warm-ups by host");
    assert!(each.iter().sum::<usize>() >= 3, "{each:?}");
    assert!(each[0] < 3 && each[1] < 3, "one donor served everybody: {each:?}");
}

#[test]
fn a_node_that_was_frozen_hears_of_what_was_made_and_removed_meanwhile_and_so_does_its_proxy() {
    let broker = Broker::shared();
    let farm = farm(&broker, &["pod"; 2], 2, "");
    let sample = Sample::make();
    let mut at_first = feed(&farm, &sample, 0..1_000, &[1]);
    let frozen = &farm.hosts[1].daemon;
    let proxy = Proxy::connect(frozen, true);
    wait_for("1,000 sessions at the proxy", || match proxy.heard.lock().expect("no panic").len() {
        1_000 => Ok(()),
        all => Err(format!("{all}")),
    });
    frozen.signal(Signal::SIGSTOP);
    // Its queues are gone as soon as the broker notices.
    wait_for("the end of its feed", || {
        let queues = broker.ctl(&["list_queues", "name"]);
        let feed = format!("resumed.{}.sessions.pod.host1.", farm.name());
        if queues.contains(&feed) { Err(queues) } else { Ok(()) }
    });
    at_first.report((0..10).map(removal).collect());
    at_first.report((1_000..1_020).map(|number| sample.session(number)).collect());
    farm.hosts[0].daemon.wait_for_metric("resumed_cache_entries", |entries| entries == 1_010.0);
    frozen.signal(Signal::SIGCONT);
    frozen.wait_for_metric("resumed_cache_entries", |entries| entries == 1_010.0);
    frozen.wait_for_metric("resumed_tombstones", |tombstones| tombstones == 10.0);
    wait_for("removals and new sessions at the proxy", || {
        let gone = (0..10).filter(|number| proxy.heard(*number).is_some_and(|heard| heard.removed)).count();
        let new = (1_000..1_020).filter(|number| proxy.heard(*number).is_some()).count();
        if (gone, new) == (10, 20) { Ok(()) } else { Err(format!("{gone} removals and {new} sessions")) }
    });
    assert!((10..1_020).all(|number| proxy.heard(number).is_some_and(|heard| !heard.removed)));
}

#[test]
fn what_nobody_asked_for_is_counted_and_changes_nothing() {
    let broker = Broker::shared();
    let farm = farm(&broker, &["pod"; 2], 2, "");
    let sample = Sample::make();
    let _at_first = feed(&farm, &sample, 0..10, &[1]);
    let mut mallory = Attacker::join(&broker.uri(), farm.name(), &["pod"], &farm.secret);
    let sessions = mallory.names.sessions.clone();
    let mine = format!("{sessions}.mallory.0");
    let entries = vec![sample.session(77).for_proxy()];
    let format = SessionFormat::OpensslDer.into();
    let request = |feed: &str| WarmupRequest { id: 1, feed: feed.to_owned(), credit: u64::MAX, ..Default::default() };
    let elsewhere = format!("resumed.{}.node.host0.0", farm.name());
    for (kind, reason) in [
        (Kind::Warmup(Warmup { id: 1, number: 1, entries, format, ..Default::default() }), "warmup_unasked"),
        (Kind::WarmupOffer(WarmupOffer { id: 1, feed: mine.clone(), ..Default::default() }), "warmup_unasked"),
        (Kind::WarmupRequest(request(&elsewhere)), "warmup_bad_feed"),
        (Kind::WarmupCall(WarmupCall { id: 1, feed: sessions.clone(), away_ms: 0 }), "warmup_bad_feed"),
    ] {
        let series = format!("resumed_messages_refused_total{{reason=\"{reason}\"}}");
        let before: Vec<f64> = farm.hosts.iter().map(|host| host.daemon.metric(&series)).collect();
        let sealed = mallory.seal(&sessions, "mallory", kind);
        mallory.to_feeds(&sealed);
        for (host, before) in farm.hosts.iter().zip(before) {
            wait_for(&series, || match host.daemon.metric(&series) {
                now if now == before + 1.0 => Ok(()),
                now => Err(format!("{before}, then {now}")),
            });
            assert!(host.daemon.log().contains(&format!("refused a message of mallory: {reason}")), "{reason}");
        }
    }
    // A member that calls and calls is answered now and then.
    let call = |id| Kind::WarmupCall(WarmupCall { id, feed: mine.clone(), away_ms: 0 });
    let calls: Vec<_> = (0..500).map(|id| mallory.seal(&sessions, "mallory", call(id))).collect();
    mallory.flood(&sessions, "", calls.iter().map(|sealed| &sealed[..]));
    for host in &farm.hosts {
        host.daemon.wait_for_metric("resumed_messages_received_total", |received| received >= 500.0);
        let flood = "resumed_messages_refused_total{reason=\"warmup_flood\"}";
        wait_for(flood, || match host.daemon.metric(flood) {
            now if now > 400.0 => Ok(()),
            now => Err(format!("{now}")),
        });
        // A warm-up to nowhere ends by itself, and meanwhile costs no more than its window.
        assert_eq!(host.daemon.metric("resumed_cache_entries"), 10.0);
    }
    let sealed = mallory.seal(&sessions, "trudy", Kind::WarmupRequest(request(&mine)));
    mallory.to_feeds(&sealed);
    for host in &farm.hosts {
        wait_for("the end of a warm-up to nowhere", || {
            let log = host.daemon.log();
            if log.contains("sent trudy 10 sessions and 0 tombstones: it asks for no more") { Ok(()) } else { Err(log) }
        });
    }
}
