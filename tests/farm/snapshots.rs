//! What two runs of one snapshot of a machine have in common, with OpenSSL's own generator in both. A process takes the
//! machine's place: it is copied as a whole, twice, and each copy has the process id that it had before, for OpenSSL begins anew
//! on another one.

use std::collections::HashSet;
use std::io::{self, Write};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, panic, process};

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, geteuid};
use prost::Message;
use resumed::internals::envelope::Epochs;
use resumed::internals::node::{Identity, Sealing};
use resumed::internals::proto::payload::Kind;
use resumed::internals::proto::{Envelope, Farewell};
use resumed::internals::random::{self, random};
use resumed::{FarmSecret, Now, Secrets, SystemClock};
use serde_json::{Value, json};
use testkit::watcher::Folder;
use tokio::sync::watch;

/// The runs of the one snapshot, after each other, and by how much the clock of each is later: two in the same millisecond, and
/// one a second after them.
const RUNS: [(&str, Duration); 3] =
    [("one", Duration::ZERO), ("other", Duration::ZERO), ("later", Duration::from_secs(1))];
/// Random values that each run draws, and messages that it seals under a link of before the snapshot, five seconds apart: two
/// runs have 100,000 of each.
const DRAWS: usize = 50_000;
const MESSAGES: u64 = 50_000;
/// The first of them: when a salt of before the snapshot has served for its minute.
const AFTERWARDS: Duration = Duration::from_secs(60);

#[test]
fn runs_of_one_snapshot_share_openssls_randomness_and_neither_a_nonce_nor_a_draw() {
    assert!(geteuid().is_root(), "this test makes process id namespaces: run it as root");
    let folder = Folder::temporary("rs-");
    forked(|| copied(|| machine(folder.path())));
    let runs = RUNS.map(|(run, _)| {
        let text = fs::read(folder.path().join(run)).expect("what a run wrote");
        serde_json::from_slice::<Value>(&text).expect("JSON")
    });
    for (one, other) in [(0, 1), (0, 2), (1, 2)] {
        have_nothing_in_common(&runs[one], &runs[other]);
    }
}

fn have_nothing_in_common(one: &Value, other: &Value) {
    // Or it would show nothing.
    assert_eq!(one["pid"], other["pid"]);
    assert_eq!(one["openssl"], other["openssl"], "OpenSSL's generator went on from one state");
    assert_eq!(in_common(&one["drawn"], &other["drawn"], DRAWS), 0, "values drawn twice");
    let messages = usize::try_from(MESSAGES).expect("few");
    assert_eq!(in_common(&one["nonces"], &other["nonces"], messages), 0, "a salt and a sequence used twice");
}

/// How many of `count` different values stand in both.
fn in_common(one: &Value, other: &Value, count: usize) -> usize {
    let [one, other] = [one, other].map(|run| run.as_array().expect("a list").iter().collect::<HashSet<_>>());
    assert_eq!((one.len(), other.len()), (count, count), "nor is one of them there twice in one run");
    one.intersection(&other).count()
}

/// A machine that has drawn and sealed before its snapshot is made.
fn machine(folder: &Path) {
    let _drawn: [u8; 32] = random();
    let now = SystemClock::start().now();
    let mut sealing = sealing(now);
    nonce(&mut sealing, now);
    for (run, later) in RUNS {
        copied(|| go_on(&mut sealing, now.after(later), &folder.join(run)));
    }
}

/// Runs `child` in a process of one thread, and waits for its end.
fn forked(child: impl FnOnce()) {
    // SAFETY: glibc's allocator works in the child, and the other thread of this process waits for the test's end.
    ended(unsafe { libc::fork() }.into(), child);
}

/// Runs `copy` in a copy of this process, which is the first of new process ids, and waits for its end.
fn copied(copy: impl FnOnce()) {
    const NONE: libc::c_ulong = 0;
    let threads = fs::read_dir("/proc/self/task").expect("procfs").count();
    assert_eq!(threads, 1, "another thread may hold a lock, which the copy would wait for");
    let flags = libc::c_long::from(libc::CLONE_NEWPID | libc::SIGCHLD);
    // SAFETY: as fork(2) without its handlers: the memory is copied, the stack stays, and this is the only thread.
    ended(unsafe { libc::syscall(libc::SYS_clone, flags, NONE, NONE, NONE, NONE) }, copy);
}

/// Runs `child` if this is the process that a call which returned `pid` has made; else waits for that one.
fn ended(pid: libc::c_long, child: impl FnOnce()) {
    match pid {
        -1 => panic!("no process: {}", io::Error::last_os_error()),
        0 => {
            let done = panic::catch_unwind(AssertUnwindSafe(child));
            if let Err(fault) = &done {
                // What the panic said went to the test's own record, which ends here.
                let text = fault.downcast_ref::<String>().map_or("it panicked", String::as_str);
                let _told = writeln!(io::stderr(), "{text}");
            }
            // SAFETY: ends this process at once, as nothing in its memory is its own to end.
            unsafe { libc::_exit(i32::from(done.is_err())) }
        }
        pid => {
            let pid = Pid::from_raw(i32::try_from(pid).expect("a process id"));
            assert_eq!(waitpid(pid, None).expect("a child"), WaitStatus::Exited(pid, 0));
        }
    }
}

/// One run of the snapshot: what OpenSSL by itself gives, what this project draws, and salt and sequence of its messages.
fn go_on(sealing: &mut Sealing, before: Now, file: &Path) {
    let mut openssl = [0; 32];
    openssl::rand::rand_bytes(&mut openssl).expect("random bytes");
    let drawn: Vec<[u8; 16]> = (0..DRAWS).map(|_| random()).collect();
    let times = (0..MESSAGES).map(|message| before.after(AFTERWARDS + Duration::from_secs(5 * message)));
    let nonces: Vec<(Vec<u8>, u64)> = times.map(|now| nonce(sealing, now)).collect();
    let run = json!({ "pid": process::id(), "openssl": openssl, "drawn": drawn, "nonces": nonces });
    fs::write(file, run.to_string()).expect("a file");
}

/// A link of a node that has just started.
fn sealing(now: Now) -> Sealing {
    let secret = FarmSecret::from_bytes(&[1; 32]).expect("a secret");
    let secrets = watch::channel(Arc::new(Secrets::new(vec![secret]).expect("one secret"))).1;
    let epochs = watch::channel(Arc::new(Epochs::new(Duration::ZERO))).1;
    let identity = Identity { farm: "f".into(), node: "n".into(), boot_id: random() };
    Sealing::new(identity, secrets, epochs, random::system(), now)
}

/// Seals a message, and says under which salt and sequence.
fn nonce(sealing: &mut Sealing, now: Now) -> (Vec<u8>, u64) {
    let sealed = sealing.seal("r", Kind::Farewell(Farewell {}), now).expect("sealed");
    let envelope = Envelope::decode(sealed).expect("an envelope");
    (envelope.salt.to_vec(), envelope.sequence)
}
