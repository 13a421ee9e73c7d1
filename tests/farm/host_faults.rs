//! What a farm of real processes does when one host loses its network, its memory for files, or a process on it stops
//! reading or dies.
//!
//! The tests with a network or a file system of their own run as root.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, recv};
use nix::unistd::Pid;
use prost::Message;
use resumed::internals::probe::{Client, Mode, Options, Session};
use resumed::internals::proto::local::{ControlRequest, control_request};
use resumed::internals::proxies::ats::READS_WITHIN;
use testkit::broker::{Broker, BrokerOptions, Place};
use testkit::farm::{Daemon, Farm, FarmSetup, Proxies, wait_for};
use testkit::hopping::Hopping;
use testkit::load::{self, SessionLoad};
use testkit::namespaces::{Network, Tmpfs, apart};

/// The default AMQP heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// The default beat.
const BEAT: Duration = Duration::from_secs(2);

/// What a process holds in memory, in bytes.
fn resident(pid: Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    1024 * line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
}

/// Asks for the status, one question after the other, until the answers that nobody takes fill the socket.
fn ask_until_it_is_full(socket: &mut UnixStream) {
    let request = ControlRequest { kind: Some(control_request::Kind::Status(Default::default())) }.encode_to_vec();
    let frame = [&u32::try_from(request.len()).expect("a length").to_be_bytes()[..], &request].concat();
    let mut bytes = vec![0; 1 << 20];
    let mut waiting = 0;
    loop {
        socket.write_all(&frame).expect("the daemon reads");
        let asked = Instant::now();
        loop {
            let now = recv(socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT).unwrap_or(0);
            if now > waiting {
                waiting = now;
                break;
            }
            // No answer fits any more.
            if waiting > 64 << 10 && asked.elapsed() > Duration::from_secs(3) {
                println!("{waiting} bytes of answers wait for the command that never reads");
                return;
            }
            assert!(asked.elapsed() < Duration::from_secs(30), "no answer, and only {waiting} bytes wait");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn leads(daemon: &Daemon) -> bool {
    daemon.try_metric("resumed_leader") == Some(1.0)
}

#[test]
fn a_leader_whose_cable_is_pulled_is_replaced_after_two_heartbeats_and_follows_when_it_is_back() {
    apart(|| {
        let network = Network::new(2);
        let place = network.host();
        let broker = Broker::start_with(&BrokerOptions {
            place: Some(Place::on(&place)),
            conf: "loopback_users = none\n".to_owned(),
            ..BrokerOptions::default()
        });
        let hosts: Vec<_> = (0..3).map(|_| network.host()).collect();
        let farm = Farm::start_in_step(&FarmSetup {
            proxies: Proxies::None,
            networks: hosts.iter().map(|host| host.pid()).collect(),
            ..FarmSetup::new(3, &broker.uri())
        });
        let leader = farm.leader();
        let before = farm.hosts[leader].daemon.generations();
        let cut = Instant::now();
        hosts[leader].cut(0);
        let (next, took) = farm.another_leads(&farm.others(leader));
        println!("another led {took:?} after the leader's cable was pulled");
        // RabbitMQ looks at heartbeats at intervals, and the machine may be busy.
        assert!(took < 4 * HEARTBEAT, "the lease was free only after {took:?}");
        farm.hosts[leader].daemon.wait_for_metric("resumed_broker_connected", |connected| connected == 0.0);
        assert!(!leads(&farm.hosts[leader].daemon), "it leads without a broker");
        println!("the cut node knew that it was cut off after {:?}", cut.elapsed());
        let rotated = farm.hosts[next].daemon.command(&["rotate"]);
        println!("rotate: {}", String::from_utf8_lossy(&rotated.stdout).trim());
        let keys = farm.hosts[next].daemon.generations();
        assert!(keys.len() > before.len(), "no key was minted meanwhile");

        hosts[leader].heal(0);
        let healed = Instant::now();
        farm.hosts[leader].daemon.wait_for_metric("resumed_broker_connected", |connected| connected == 1.0);
        let (reconnected, took) = (Instant::now(), healed.elapsed());
        let (_, took_ring) = wait_for("one ring", || {
            let held = farm.hosts[leader].daemon.generations();
            if keys.is_subset(&held) { Ok(()) } else { Err(format!("{held:?}")) }
        });
        println!("back at the broker {took:?} after the healing, and one ring {took_ring:?} later");
        assert!(reconnected.elapsed() < 3 * BEAT, "one ring only {:?} after the reconnection", reconnected.elapsed());
        farm.wait_in_step_at(leader);
        assert_eq!(farm.leader(), next, "one leader, the new one");
    });
}

#[test]
fn a_ring_that_finds_no_room_is_counted_and_saved_when_there_is_room_again() {
    apart(|| {
        let broker = Broker::start();
        let setup = FarmSetup { proxies: Proxies::None, ..FarmSetup::new(1, &broker.uri()) };
        let mut farm = Farm::lay_out(&setup);
        let home = farm.hosts[0].daemon.home().to_owned();
        let memory = Tmpfs::mount(&home.join("keys"), 64 << 10);
        // As an operator has it: in memory, and no disk allowed.
        let config = fs::read_to_string(home.join("resumed.toml")).expect("the configuration");
        let place = format!("directory = \"{}\"\nallow_disk = true", home.display());
        assert!(config.contains(&place), "{config}");
        let config = config.replace(&place, &format!("directory = \"{}\"", memory.path().display()));
        fs::write(home.join("resumed.toml"), config).expect("the configuration");
        let ring = memory.path().join("ring");
        let errors = |daemon: &Daemon| daemon.metric("resumed_ring_save_errors_total");

        farm.hosts[0].daemon.launch();
        farm.wait_in_step();
        let saved = fs::read(&ring).expect("the ring is saved");
        assert_eq!(errors(&farm.hosts[0].daemon), 0.0);
        memory.fill("filler");
        let daemon = &farm.hosts[0].daemon;
        let rotated = daemon.command(&["rotate"]);
        assert!(rotated.status.success(), "{rotated:?}");
        println!("{} rings not saved while there was no room", errors(daemon));
        assert!(errors(daemon) > 0.0, "nothing was counted");
        let warned = daemon.log();
        let warned = warned.lines().find(|line| line.contains("the ring is not saved")).expect("a warning");
        println!("{warned}");
        assert!(warned.contains("No space left on device"), "{warned}");
        assert_eq!(fs::read(&ring).expect("the ring of before"), saved, "half a ring, or none");
        assert!(!memory.path().join("ring.new").exists(), "half a ring stays behind");
        assert!(daemon.get("/healthz").expect("an answer").starts_with("HTTP/1.1 200"), "it does not go on");

        // There is room again: nothing has to happen to the ring for it to be saved.
        fs::remove_file(memory.path().join("filler")).expect("the filler");
        let freed = Instant::now();
        wait_for("the ring saved", || {
            let now = fs::read(&ring).map_err(|error| error.to_string())?;
            if now == saved { Err("that of before".to_owned()) } else { Ok(()) }
        });
        println!("saved {:?} after there was room", freed.elapsed());
        assert_eq!(fs::metadata(&ring).expect("the ring").permissions().mode() & 0o777, 0o600);
        let held = farm.hosts[0].daemon.generations();
        farm.hosts[0].daemon.kill();
        farm.hosts[0].daemon.launch();
        farm.wait_in_step();
        assert!(held.is_subset(&farm.hosts[0].daemon.generations()), "a key was lost in the restart");
    });
}

#[test]
fn a_proxy_and_a_command_that_never_read_hold_up_nobody_and_lose_their_connections() {
    let broker = Broker::shared();
    let farm = Farm::start_in_step(&FarmSetup { proxies: Proxies::None, ..FarmSetup::new(2, &broker.uri()) });
    let (from, daemon) = (&farm.hosts[0].daemon, &farm.hosts[1].daemon);
    let socket = daemon.home().join("ats.sock");
    let refused = || daemon.metric("resumed_proxies_refused_total{reason=\"stopped_reading\"}");

    let stuck = load::connect(&socket, true);
    let reads = load::connect(&socket, true);
    let reader = reads.try_clone().expect("the socket twice");
    daemon.wait_for_metric("resumed_proxies_connected", |proxies| proxies == 2.0);
    let reading = std::thread::spawn(move || {
        let (mut reader, mut taken, mut longest, mut last) = (reader, 0_u64, Duration::ZERO, Instant::now());
        let mut bytes = vec![0; 64 << 10];
        while let Ok(count @ 1..) = reader.read(&mut bytes) {
            taken += count as u64;
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        (taken, longest)
    });
    // Asks and asks, and takes no answer.
    let mut deaf = UnixStream::connect(daemon.home().join("control.sock")).expect("the control socket");
    let asking = std::thread::spawn(move || {
        ask_until_it_is_full(&mut deaf);
        deaf
    });

    let load = SessionLoad::start(&from.home().join("ats.sock"), 5_000);
    let start = Instant::now();
    let (mut largest, mut slowest) = (0, Duration::ZERO);
    while refused() == 0.0 {
        let asked = Instant::now();
        daemon.try_status().expect("a status beside the deaf");
        slowest = slowest.max(asked.elapsed());
        largest = largest.max(resident(daemon.pid()));
        assert!(start.elapsed() < 6 * READS_WITHIN, "the proxy that never reads keeps its connection");
    }
    let took = start.elapsed();
    daemon.wait_for_metric("resumed_proxies_connected", |proxies| proxies == 1.0);
    let made = load.stop();
    // Nodes that started together may have warmed each other up meanwhile: what came twice is held once.
    daemon.wait_for_metric("resumed_cache_entries", |entries| entries == made as f64);
    println!(
        "let go {took:?} after the load began; {made} sessions came; slowest status {slowest:?}; at most {} MiB resident",
        largest >> 20
    );
    // The cache may hold 64 MiB by default, and everything else is bounded beside it.
    assert!(largest < 256 << 20, "{largest} bytes resident");
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("it left a message unread")).expect("a line in the log");
    assert!(line.contains(&format!("process {}", std::process::id())), "{line}");

    reads.shutdown(std::net::Shutdown::Both).expect("the socket");
    let (taken, longest) = reading.join().expect("the reader");
    println!("the proxy that reads took {} MiB, and waited {longest:?} at most", taken >> 20);
    assert!(taken > made * 100, "the proxy that reads got {taken} bytes of {made} sessions");
    assert!(longest < READS_WITHIN, "it was held up for {longest:?}");
    let deaf = asking.join().expect("the deaf");
    let idle = "resumed_control_refused_total{reason=\"idle\"}";
    wait_for("the end of the deaf command", || {
        if daemon.metric(idle) == 1.0 { Ok(()) } else { Err(format!("{idle} = {}", daemon.metric(idle))) }
    });
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("neither asked nor took an answer")).expect("a line in the log");
    println!("{line}");
    drop((stuck, deaf));
    farm.wait_in_step();
}

#[test]
fn a_proxy_killed_under_load_is_missed_refilled_and_nobody_elses_business() {
    let broker = Broker::shared();
    let setup = FarmSetup { proxies: Proxies::SessionIds, ..FarmSetup::new(3, &broker.uri()) };
    let mut farm = Farm::start_in_step(&setup);
    let client = Client::new(Options::default()).expect("a client");
    let targets = farm.targets();
    let make = |host: usize| client.handshake(&targets[host], Mode::Id).expect("a handshake").session;
    let sessions: Vec<Session> = (0..100).map(|turn| make(turn % 3)).collect();
    let received = farm.hosts[0].daemon.wait_for_metric("resumed_sessions_received_total", |count| count >= 66.0);
    let ring = farm.hosts[0].daemon.generations();
    let ((), tally) = Hopping::during(&targets[1..], &[Mode::Id], |_| {
        // In mid-stream: the farm sends sessions, and a client of this host makes more until it dies.
        std::thread::scope(|scope| {
            let (client, target) = (&client, &targets[0]);
            let making = scope.spawn(move || while client.handshake(target, Mode::Id).is_ok() {});
            farm.hosts[0].daemon.wait_for_metric("resumed_sessions_received_total", |count| count > received + 20.0);
            farm.hosts[0].ats_mut().kill();
            let killed = Instant::now();
            farm.hosts[0].daemon.wait_for_metric("resumed_proxies_connected", |proxies| proxies == 0.0);
            println!("the daemon knew {:?} after its proxy was killed", killed.elapsed());
            making.join().expect("the client");
        });
        assert!(farm.hosts[0].daemon.log().contains("proxy disconnected"), "nothing in the log");
        farm.hosts[0].ats_mut().launch();
        farm.hosts[0].ats_mut().wait_until_serving();
        let serving = Instant::now();
        wait_for("the refill", || {
            let resumes = |session: &&Session| client.resume(&targets[0], session).is_ok_and(|answer| answer.resumed);
            match sessions.iter().filter(|session| !resumes(session)).count() {
                0 => Ok(()),
                refused => Err(format!("{refused} of {} refused", sessions.len())),
            }
        });
        println!("{} sessions from before resumed {:?} after it served again", sessions.len(), serving.elapsed());
    });
    assert!(tally.refused.is_empty(), "{} failed elsewhere: {:#?}", tally.refused.len(), &tally.refused[..1]);
    println!("{} session IDs offered at the other hosts meanwhile, none refused for good", tally.ids);
    assert!(tally.ids > 10, "only {} offers", tally.ids);
    for host in &farm.hosts {
        assert_eq!(host.daemon.metric("resumed_broker_reconnects_total"), 0.0, "{} reconnected", host.name);
        assert_eq!(host.daemon.generations(), ring, "the ring of {} changed", host.name);
    }
}

#[test]
fn what_a_proxy_warns_of_is_seen_by_host_from_every_other_host() {
    let broker = Broker::shared();
    let setup = FarmSetup { proxies: Proxies::Tickets, ..FarmSetup::new(2, &broker.uri()) };
    let mut farm = Farm::lay_out(&setup);
    farm.hosts[1].ats().write("etc/sni.yaml", "sni:\n- fqdn: www.farm.test\n  verify_client: MODERATE\n");
    farm.launch();
    farm.wait_in_step();
    let (other, warns) = (&farm.hosts[0].daemon, &farm.hosts[1].daemon);
    assert_eq!(warns.wait_for_metric("resumed_proxy_warnings", |warnings| warnings > 0.0), 2.0);
    assert_eq!(other.metric("resumed_proxy_warnings"), 0.0);
    let text = "sni.yaml gives www.farm.test ";
    wait_for("the warning at the other host", || {
        let said = other.try_status()?.warnings;
        let named = |warning: &String| warning.starts_with("host1 (ats ") && warning.contains(text);
        if said.len() == 2 && said.iter().all(named) { Ok(()) } else { Err(format!("{said:?}")) }
    });
    let page = other.get("/farm.json").expect("the page's data");
    assert!(page.contains(text), "{page}");
    let status = other.command(&["status"]);
    let status = String::from_utf8_lossy(&status.stdout);
    assert!(status.contains("host1 (ats ") && status.contains(text), "{status}");
}
