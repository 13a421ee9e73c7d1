//! Nothing that the processes write holds a secret, and no memory that holds one leaves the machine's RAM.

mod support;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::geteuid;
use openssl::base64::encode_block;
use openssl::ssl::SslSession;
use prost::Message;
use resumed::probe::{Client, Mode, Options};
use resumed::proto;
use support::broker::Broker;
use support::farm::{Farm, FarmSetup, Proxies, built, wait_for};
use support::scanner::{Scanner, WINDOW};
use support::watcher::{Folder, Process};

/// The saved ring, as `src/daemon/ring_file.rs` lays it out behind 48 bytes of header.
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
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
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
    let file = tempfile::NamedTempFile::new().expect("a scratch file");
    let found_in = |text: &[u8]| {
        let log = [b"2026-01-01T00:00:00Z  INFO resumed: key=", text, b" and so on\n"].concat();
        fs::write(file.path(), &log).expect("a scratch log");
        scanner.find(&fs::read(file.path()).expect("the scratch log"))
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
    let rings = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let mut scanner = Scanner::default();
    let mut written: Vec<(String, Vec<u8>)> = Vec::new();
    for proxies in [Proxies::Tickets, Proxies::SessionIds] {
        let setup = FarmSetup::new(3, &broker.uri());
        let rings = rings.path().join(&setup.name);
        let farm =
            Farm::start_in_step(&FarmSetup { proxies, rings: Some(rings.clone()), log: "trace".to_owned(), ..setup });
        let saved = |host: &str| rings.join(host).join("ring");
        let secret = fs::read_to_string(&farm.secret).expect("the farm secret");
        scanner.add("the farm secret", &unhex(secret.trim()));
        learn_keys(&mut scanner, &saved("host0"));
        use_farm(&mut scanner, &farm, proxies);

        // Rotated, revived, and a word with every way to ask.
        let host = &farm.hosts[1].daemon;
        let rotated = host.command(&["rotate"]);
        assert!(rotated.status.success(), "{rotated:?}");
        learn_keys(&mut scanner, &saved("host0"));
        use_farm(&mut scanner, &farm, proxies);
        for host in &farm.hosts {
            for words in [&["status"][..], &["status", "--json"], &["check"]] {
                let output = host.daemon.command(words);
                let said = [output.stdout, output.stderr].concat();
                written.push((format!("{} of {}", words.join(" "), host.name), said));
            }
            written.push((format!("metrics of {}", host.name), host.daemon.metrics().expect("metrics").into_bytes()));
        }
        learn_keys(&mut scanner, &saved("host2"));

        // In the places where they belong they are found: the scanner works on what this farm has.
        assert!(!scanner.find(&fs::read(&farm.secret).expect("the farm secret")).is_empty());
        assert!(!scanner.find(&fs::read(saved("host1")).expect("the saved ring")).is_empty());
        let before = written.len();
        read_all(farm.dir(), &farm.secret, &mut written);
        let files = written.len() - before;
        assert!(files >= 3 * 10, "a farm writes more than {files} files");
        assert!(farm.hosts[0].daemon.log().contains("connected to the broker"), "what is searched is no log");
    }
    read_all(broker.log_file().parent().expect("the broker's folder"), &PathBuf::new(), &mut written);

    let bytes: usize = written.iter().map(|(_, text)| text.len()).sum();
    println!("{} texts of {bytes} bytes in all", written.len());
    for (what, text) in &written {
        let found = scanner.find(text);
        assert!(found.is_empty(), "{what}: {}", found.join("; "));
    }
}

/// Makes sessions at every host and has all of them resumed everywhere, so that they pass through every process.
fn use_farm(scanner: &mut Scanner, farm: &Farm, proxies: Proxies) {
    let modes = match proxies {
        Proxies::SessionIds => &[Mode::Id][..],
        _ => &[Mode::Ticket12, Mode::Ticket13],
    };
    let client = Client::new(Options::default()).expect("a client");
    for mode in modes {
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
        }
    }
}

fn learn_keys(scanner: &mut Scanner, saved: &Path) {
    let contents = fs::read(saved).unwrap_or_else(|error| panic!("{}: {error}", saved.display()));
    let ring = Saved::decode(&contents[48..]).expect("a saved ring").ring.expect("a ring");
    assert!(!ring.keys.is_empty());
    for key in &ring.keys {
        scanner.add(&format!("the HMAC secret of key {}", key.generation), &key.hmac);
        scanner.add(&format!("the AES key of key {}", key.generation), &key.aes);
    }
}

/// Every regular file below `folder` but `secret`.
fn read_all(folder: &Path, secret: &Path, written: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let entry = entry.expect("an entry");
        let kind = entry.file_type().expect("its kind");
        if kind.is_dir() {
            read_all(&entry.path(), secret, written);
        } else if kind.is_file() && entry.path() != secret {
            match fs::read(entry.path()) {
                Ok(text) => written.push((entry.path().display().to_string(), text)),
                // A server replaced it in between.
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{}", entry.path().display()),
            }
        }
    }
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex digits")).collect()
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
    let unlimited = ["prlimit", "--core=unlimited"];
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
