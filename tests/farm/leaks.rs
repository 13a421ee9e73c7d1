//! Nothing that the processes write holds a secret, and no memory that holds one leaves the machine's RAM.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::geteuid;
use openssl::base64::encode_block;
use openssl::ssl::SslSession;
use prost::Message;
use resumed::internals::hex::hex;
use resumed::internals::probe::{Client, Mode, Options, Session};
use resumed::internals::proto::payload::Kind;
use resumed::internals::proto::{self, Payload, Ring, SessionBatch, SessionEntry, SessionFormat, TicketKey};
use resumed::status::SecretStep;
use testkit::attacker::{Attacker, announcement, flipped, random};
use testkit::broker::Broker;
use testkit::farm::{Daemon, Farm, FarmSetup, Proxies, built, new_secret, wait_for};
use testkit::scanner::{Scanner, WINDOW};
use testkit::sessions::{new_ones_resume, refused_at};
use testkit::watcher::{Folder, Process};

/// The saved ring, as `src/node/ring_file.rs` lays it out behind 48 bytes of header.
#[derive(Clone, PartialEq, Message)]
struct Saved {
    #[prost(message, optional, tag = "3")]
    ring: Option<proto::Ring>,
}

#[test]
fn the_scanner_finds_a_planted_secret_in_every_form_and_no_shorter_piece() {
    let secret: Vec<u8> = (0..48_u8).map(|n| n.wrapping_mul(167) ^ 0x5a).collect();
    let mut scanner = Scanner::default();
    scanner.add("secret", &secret);
    let written = |bytes: &[u8]| {
        let url_safe = encode_block(bytes).replace('+', "-").replace('/', "_");
        [
            ("raw", bytes.to_vec()),
            ("hex", hex(bytes).into_bytes()),
            ("HEX", hex(bytes).to_uppercase().into_bytes()),
            ("base64", encode_block(bytes).into_bytes()),
            ("base64 behind one byte", encode_block(&[&b"x"[..], bytes, b"yz"].concat()).into_bytes()),
            ("base64 behind two bytes", encode_block(&[&b"xy"[..], bytes, b"z"].concat()).into_bytes()),
            ("base64 for URLs", url_safe.into_bytes()),
            ("numbers", format!("{bytes:?}").into_bytes()),
            ("escaped", bytes.escape_ascii().to_string().into_bytes()),
        ]
    };
    let folder = Folder::temporary("resumed-");
    let file = folder.path().join("log");
    let found_in = |text: &[u8]| {
        let log = [b"2026-01-01T00:00:00Z  INFO resumed: key=", text, b" and so on\n"].concat();
        fs::write(&file, &log).expect("a scratch log");
        scanner.find(&fs::read(&file).expect("the scratch log"))
    };
    for from in [0, 1, 13, secret.len() - WINDOW] {
        for (form, text) in written(&secret[from..from + WINDOW]) {
            assert!(!found_in(&text).is_empty(), "{WINDOW} bytes from {from} on were not found as {form}");
        }
        let short = &secret[from..from + WINDOW - 1];
        for (form, text) in written(short) {
            assert_eq!(found_in(&text), [""; 0], "{} bytes from {from} on, as {form}", short.len());
        }
    }
}

#[test]
fn nothing_that_a_farm_writes_holds_a_secret() {
    let broker = Broker::start();
    let rings = Folder::temporary_in(Path::new("/dev/shm"), "resumed-");
    let mut scanner = Scanner::default();
    let mut written: Vec<(String, Vec<u8>)> = Vec::new();
    let password_file = broker_password(&mut scanner, &broker, rings.path());
    let uri = broker.uri().replace("guest:guest@", "leaky@");
    for proxies in [Proxies::Tickets, Proxies::SessionIds] {
        let setup = FarmSetup::new(3, &uri);
        let rings = rings.path().join(&setup.name);
        let mut farm = Farm::start_in_step(&FarmSetup {
            proxies,
            broker: format!("report_every = \"500ms\"\npassword_file = {password_file:?}"),
            rings: Some(rings.clone()),
            // The worst that an operator can ask for, the AMQP library by name.
            log: "trace,lapin=trace,lapin::io_loop=trace,amq_protocol=trace".to_owned(),
            ..setup
        });
        let saved = |host: &str| rings.join(host).join("ring");
        scanner.add("the farm secret", &testkit::secret_bytes(&farm.secret));
        learn_keys(&mut scanner, &saved("host0"));
        use_farm(&mut scanner, &farm, proxies);

        // Rotated, and revived.
        let say = |daemon: &Daemon, words: &[&str], written: &mut Vec<(String, Vec<u8>)>| {
            let output = daemon.command(words);
            assert!(output.status.success(), "{output:?}");
            let said = [output.stdout, output.stderr].concat();
            written.push((format!("{} of {}", words.join(" "), daemon.name()), said));
        };
        say(&farm.hosts[1].daemon, &["rotate"], &mut written);
        let revoked = learn_keys(&mut scanner, &saved("host0"));
        let sessions = use_farm(&mut scanner, &farm, proxies);

        // Revoked: from here on the scanner knows keys that no host has any more.
        say(&farm.hosts[1].daemon, &["revoke", "--flush-sessions"], &mut written);
        let client = Client::new(Options::default()).expect("a client");
        for target in farm.targets() {
            refused_at(&client, &target, &sessions);
        }
        for mode in modes(proxies) {
            new_ones_resume(&client, &farm.targets(), *mode);
        }
        let left: BTreeSet<_> = revoked.intersection(&learn_keys(&mut scanner, &saved("host0"))).cloned().collect();
        assert!(left.is_empty(), "{} of {} keys outlived the revocation", left.len(), revoked.len());
        use_farm(&mut scanner, &farm, proxies);

        // Another farm secret.
        let secret = farm.dir().join("new.secret");
        new_secret(&secret);
        scanner.add("the new farm secret", &testkit::secret_bytes(&secret));
        let steps: [(&[&str], _); 3] = [
            (&["farm.secret", "new.secret"], SecretStep::SealFirst),
            (&["new.secret", "farm.secret"], SecretStep::Remove),
            (&["new.secret"], SecretStep::Add),
        ];
        for (files, next) in steps {
            for host in 0..farm.hosts.len() {
                farm.set_secrets(host, files);
            }
            farm.wait_for_secrets(next, true, &[]);
            say(&farm.hosts[0].daemon, &["status"], &mut written);
        }

        // Restarted, and warmed up.
        let ended = farm.hosts[2].daemon.stop();
        assert!(ended.0.success(), "{ended:?}");
        farm.hosts[2].daemon.launch();
        let daemon = &farm.hosts[2].daemon;
        let warm = daemon.wait_for_metric("resumed_warmup_sessions_received_total", |sessions| sessions > 0.0);
        daemon.wait_for_metric("resumed_proxies_connected", |value| value == 1.0);
        farm.wait_in_step();
        use_farm(&mut scanner, &farm, proxies);

        // Attacked, and a word with every way to ask.
        let refused = attack(&mut scanner, &farm, &broker.uri(), &secret);
        println!("a warm-up with {warm} sessions; {refused} messages refused");
        farm.wait_in_step();
        for host in &farm.hosts {
            for words in [&["status"][..], &["status", "--json"], &["check"]] {
                say(&host.daemon, words, &mut written);
            }
            for path in ["/metrics", "/", "/farm.json", "/livez", "/readyz", "/healthz"] {
                let answer = host.daemon.get(path).expect("an answer");
                assert!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
                written.push((format!("{path} of {}", host.name), answer.into_bytes()));
            }
        }
        learn_keys(&mut scanner, &saved("host2"));

        // In the places where they belong they are found: the scanner works on what this farm has.
        for place in [&farm.secret, &secret, &saved("host1")] {
            let text = fs::read(place).unwrap_or_else(|error| panic!("{}: {error}", place.display()));
            assert!(!scanner.find(&text).is_empty(), "nothing found in {}", place.display());
        }
        let before = written.len();
        read_all(farm.dir(), &[&farm.secret, &secret], &mut written);
        let files = written.len() - before;
        assert!(files >= 3 * 10, "a farm writes more than {files} files");
        let log = farm.hosts[0].daemon.log();
        let words = [
            "connected to the broker",
            "flushed the sessions",
            "refused a message (unknown_secret)",
            "refused a message (bad_tag)",
            "refused a message (replay)",
            "refused a message (malformed)",
            "refused a message (clock)",
            "refused a message (not_in_epoch)",
            "refused a session batch (not_in_epoch)",
            "refused a message of mallory: bad_fingerprint",
            "ignored a message of unknown kind from mallory",
            "skipped a ticket key of mallory: wrong_length",
            "skipped a ticket key of mallory: generation_far_ahead",
            "sessions of mallory: broken_der",
        ];
        for words in words {
            assert!(log.contains(words), "what is searched is no log of this run: no {words:?}");
        }
    }
    read_all(broker.log_file().parent().expect("the broker's folder"), &[], &mut written);

    let bytes: usize = written.iter().map(|(_, text)| text.len()).sum();
    println!("{} texts of {bytes} bytes in all", written.len());
    for (what, text) in &written {
        let found = scanner.find(text);
        assert!(found.is_empty(), "{what}: {}", found.join("; "));
    }
}

/// Makes a user of the broker with a password of its own, which the AMQP library sends in the clear when it logs in, and
/// returns the file that has it.
fn broker_password(scanner: &mut Scanner, broker: &Broker, folder: &Path) -> PathBuf {
    let bytes: [u8; 24] = random();
    let password = hex(&bytes);
    scanner.add("the broker's password", password.as_bytes());
    broker.ctl(&["add_user", "leaky", &password]);
    broker.ctl(&["set_permissions", "leaky", ".*", ".*", ".*"]);
    let file = folder.join("broker.password");
    fs::write(&file, &password).expect("a file");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("its mode");
    file
}

/// How clients resume at such proxies. Session IDs everywhere, because only these are handed on by warm-ups.
fn modes(proxies: Proxies) -> &'static [Mode] {
    match proxies {
        Proxies::SessionIds => &[Mode::Id],
        _ => &[Mode::Ticket12, Mode::Ticket13, Mode::Id],
    }
}

/// Makes sessions at every host and has all of them resumed everywhere, so that they pass through every process. Returns
/// them.
fn use_farm(scanner: &mut Scanner, farm: &Farm, proxies: Proxies) -> Vec<Session> {
    let client = Client::new(Options::default()).expect("a client");
    let mut sessions = Vec::new();
    for mode in modes(proxies) {
        for target in farm.targets() {
            let made = client.handshake(&target, *mode).expect("a full handshake").session;
            let mut secret = [0; 64];
            let length = SslSession::from_der(made.der()).expect("a session").master_key(&mut secret);
            assert!(length >= 32, "a master key of {length} bytes");
            scanner.add(&format!("a {mode} session's master key"), &secret[..length]);
            for other in farm.targets() {
                wait_for("a session resumed", || match client.resume(&other, &made) {
                    Ok(visit) if visit.resumed => Ok(()),
                    Ok(_) => Err(format!("refused at {other}")),
                    Err(error) => Err(error.to_string()),
                });
            }
            sessions.push(made);
        }
    }
    sessions
}

/// Has `scanner` look for the keys of a saved ring. Returns their names.
fn learn_keys(scanner: &mut Scanner, saved: &Path) -> BTreeSet<Vec<u8>> {
    let contents = fs::read(saved).unwrap_or_else(|error| panic!("{}: {error}", saved.display()));
    let ring = Saved::decode(&contents[48..]).expect("a saved ring").ring.expect("a ring");
    assert!(!ring.keys.is_empty());
    for key in &ring.keys {
        scanner.add(&format!("the HMAC secret of key {}", key.generation), &key.hmac);
        scanner.add(&format!("the AES key of key {}", key.generation), &key.aes);
    }
    ring.keys.iter().map(|key| key.name.clone()).collect()
}

/// Publishes what every host refuses, or takes only in part: altered, foreign, late, misplaced or senseless. Where
/// somebody else's mistake would have them hold a secret, they hold one that is searched for. Returns how many messages
/// each host refused.
fn attack(scanner: &mut Scanner, farm: &Farm, uri: &str, secret: &Path) -> usize {
    let planted: [u8; 48] = random();
    scanner.add("what was in a message to be refused", &planted);
    let mut attacker = Attacker::join(uri, farm.name(), &["pod"], secret);
    let (keys, sessions) = (attacker.names.keys.clone(), attacker.names.sessions.clone());
    let counts = |name: &str| -> Vec<f64> {
        farm.hosts.iter().map(|host| host.daemon.try_metric(name).expect("it is there from the start")).collect()
    };
    let families = [
        ("resumed_messages_refused_total", 10),
        ("resumed_keys_skipped_total", 2),
        ("resumed_sessions_dropped_total", 2),
    ];
    let before = families.map(|(name, _)| counts(name));

    let now = attacker.wall();
    let key = |name, generation, hmac: &[u8]| TicketKey {
        name,
        hmac: hmac.to_vec(),
        aes: planted[16..].to_vec(),
        generation,
        seal_from: now - 20_000,
        seal_until: now + 3_600_000,
        open_for: 3_600_000,
    };
    // One of a wrong length, one from too far ahead.
    let bad_keys = vec![
        key(random::<16>().to_vec(), now, &planted[..31]),
        key(random::<16>().to_vec(), now + 360_000, &planted[..32]),
    ];
    let rings = || Kind::Announcement(announcement(Ring { keys: bad_keys.clone(), ..Ring::default() }, now));
    let no_fingerprint = match rings() {
        Kind::Announcement(good) => proto::Announcement { fingerprint: vec![0; 7], ..good },
        other => panic!("{other:?}"),
    };
    let entry = |id: Vec<u8>, der: &[u8]| SessionEntry { id: id.into(), session: der.to_vec().into(), at: now };
    // No DER; and in the place of an ID of at most 32 bytes, one of 48.
    let entries = vec![entry(vec![1; 32], &planted), entry(planted.to_vec(), &planted)];
    let batch = || Kind::Sessions(SessionBatch { entries: entries.clone(), format: SessionFormat::OpensslDer.into() });

    let is_announcement = |payload: Payload| matches!(payload.kind, Some(Kind::Announcement(_))).then_some(());
    let ((), recorded) = attacker.record_until(&keys, is_announcement);
    let to_all = [
        attacker.seal_without_the_secret(&keys, "mallory", rings()),
        flipped(&recorded, recorded.len() - 1).into(),
        recorded.clone(),
        recorded.slice(..recorded.len() / 2),
        attacker.seal_at(&keys, "mallory", rings(), -3_600_000),
        attacker.seal_outside_the_epoch(&keys, "mallory", rings()),
        attacker.seal(&keys, "mallory", batch()),
        attacker.seal_raw(&keys, &planted, [0; 8]),
        attacker.seal(&keys, "mallory", Kind::Announcement(no_fingerprint)),
        // Taken, but for its keys.
        attacker.seal(&keys, "mallory", rings()),
    ];
    for body in &to_all {
        attacker.to_all(body);
    }
    let downgraded = attacker.seal_outside_the_epoch(&sessions, "mallory", batch());
    attacker.to_feeds(&downgraded);
    // Taken, but for its sessions.
    let spoilt = attacker.seal(&sessions, "mallory", batch());
    attacker.to_feeds(&spoilt);

    for ((name, by), before) in families.iter().zip(before) {
        wait_for(name, || {
            let now = counts(name);
            let risen = now.iter().zip(&before).all(|(now, before)| *now >= before + f64::from(*by));
            if risen { Ok(()) } else { Err(format!("{before:?}, then {now:?}")) }
        });
    }
    families[0].1 as usize
}

/// Every regular file below `folder` but `secrets`.
fn read_all(folder: &Path, secrets: &[&PathBuf], written: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let entry = entry.expect("an entry");
        let kind = entry.file_type().expect("its kind");
        if kind.is_dir() {
            read_all(&entry.path(), secrets, written);
        } else if kind.is_file() && !secrets.contains(&&entry.path()) {
            match fs::read(entry.path()) {
                Ok(text) => written.push((entry.path().display().to_string(), text)),
                // A server replaced it in between.
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{}", entry.path().display()),
            }
        }
    }
}

/// A daemon without a broker, started through `wrapper`, once it answers.
fn lone_daemon(wrapper: &[&str]) -> (Farm, Process, Folder) {
    let farm = Farm::lay_out(&FarmSetup { proxies: Proxies::None, ..FarmSetup::new(1, "") });
    let folder = Folder::temporary("rd-");
    let daemon = &farm.hosts[0].daemon;
    let log = fs::File::create(daemon.log_file()).expect("daemon.log");
    let mut command = Command::new(wrapper[0]);
    command.args(&wrapper[1..]).arg(built("resumed")).arg("run").arg("--config").arg(daemon.config());
    command.current_dir(folder.path()).stdin(Stdio::null());
    command.stdout(log.try_clone().expect("the log twice")).stderr(log);
    let process = Process::spawn(&mut command).expect("resumed runs");
    wait_for("the daemon's answer", || daemon.try_status());
    (farm, process, folder)
}

fn end(mut process: Process, signal: Signal) -> std::process::ExitStatus {
    kill(process.pid(), signal).expect("our child");
    let (status, _) = wait_for("its end", || match process.try_wait() {
        Ok(Some(status)) => Ok(status),
        other => Err(format!("{other:?}")),
    });
    status
}

#[test]
fn a_daemons_memory_is_locked_and_dumped_by_no_crash() {
    // A shell that starts something in the background lets it ignore SIGQUIT.
    let unlimited = ["env", "--default-signal=QUIT", "prlimit", "--core=unlimited"];
    let (farm, process, folder) = lone_daemon(&unlimited);
    let proc = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", process.pid())).expect("a file of /proc");
    let status = proc("status");
    let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).expect("VmLck");
    let kilobytes: u64 = locked.trim().trim_end_matches(" kB").parse().expect("a number");
    if farm.hosts[0].daemon.log().contains("memory is not locked") {
        // Not root, and the limit is not lifted: nothing is half locked. Root sees the other branch.
        assert!(!geteuid().is_root() && kilobytes == 0, "VmLck:{locked}");
    } else {
        assert!(kilobytes > 1000, "VmLck:{locked}");
        let maps = proc("smaps");
        let flags = |line: &str| line.strip_prefix("VmFlags:").map(|flags| format!("{flags} "));
        let heap = maps.lines().skip_while(|line| !line.ends_with("[heap]")).find_map(flags).expect("a heap");
        assert!(heap.contains(" lo "), "the heap is not locked:{heap}");
    }

    let ended = end(process, Signal::SIGQUIT);
    assert_eq!(ended.signal(), Some(Signal::SIGQUIT as i32));
    assert!(!ended.core_dumped(), "a crash left a core dump");
    assert_eq!(fs::read_dir(folder.path()).expect("its folder").count(), 0, "a crash left something behind");

    // Others would have left one.
    let mut other = Command::new(unlimited[0]);
    let other = other.args(&unlimited[1..]).args(["sh", "-c", "kill -QUIT $$"]).current_dir(folder.path()).status();
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").expect("a pattern");
    let dumps = other.expect("sh runs").core_dumped();
    assert!(dumps || pattern.starts_with('|') || pattern.trim().is_empty(), "no core dump at all with {pattern:?}");
}

#[test]
fn a_daemon_that_may_not_lock_its_memory_says_what_to_set_and_runs() {
    let mut wrapper = vec!["prlimit", "--memlock=65536"];
    if geteuid().is_root() {
        wrapper.extend(["setpriv", "--inh-caps=-ipc_lock", "--bounding-set=-ipc_lock"]);
    }
    let (farm, process, _folder) = lone_daemon(&wrapper);
    let log = farm.hosts[0].daemon.log();
    let said = "memory is not locked, because only 65536 bytes may be (RLIMIT_MEMLOCK)";
    assert_eq!(log.matches(said).count(), 1, "{log}");
    assert!(log.contains("LimitMEMLOCK=infinity"), "{log}");
    assert!(end(process, Signal::SIGTERM).success());
}
