//! The crates of a Cargo.lock held against what a registry, and an advisory database, say of them: `make yanked` and `make audit`.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use testkit::watcher::Folder;

/// The index of a registry with one crate, `abc` 1.0.0, in the protocol that cargo speaks.
struct Registry {
    address: String,
    ends: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

const DIGEST: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

impl Registry {
    fn with_abc(yanked: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address").to_string();
        let config = format!("{{\"dl\": \"http://{address}/crates\"}}");
        let entry = format!(
            r#"{{"name":"abc","vers":"1.0.0","deps":[],"cksum":"{DIGEST}","features":{{}},"yanked":{yanked}}}"#
        );
        let ends = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ends);
        let server = thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                if told.load(Ordering::Relaxed) {
                    return;
                }
                // One that cargo gave up is no matter.
                let _gone = answer(connection, &config, &entry);
            }
        });
        Self { address, ends, server: Some(server) }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        let woken = TcpStream::connect(&self.address);
        if let (Ok(_), Some(server)) = (woken, self.server.take()) {
            let _panicked = server.join();
        }
    }
}

/// Answers one request and closes the connection.
fn answer(mut connection: TcpStream, config: &str, entry: &str) -> std::io::Result<()> {
    let mut lines = BufReader::new(connection.try_clone()?).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let (status, body) = match request.split(' ').nth(1) {
        Some("/config.json") => ("200 OK", config),
        Some("/3/a/abc") => ("200 OK", entry),
        _ => ("404 Not Found", ""),
    };
    write!(connection, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())?;
    connection.shutdown(Shutdown::Write)
}

/// A package whose lock has `abc` 1.0.0, and a home of cargo that asks `registry` in place of crates.io.
fn package(registry: &str) -> Folder {
    let folder = Folder::temporary("resumed-");
    let write = |file: &str, text: &str| {
        let file = folder.path().join(file);
        fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
        fs::write(file, text).expect("a file");
    };
    write("src/lib.rs", "");
    write("Cargo.toml", "[package]\nname = \"p\"\nversion = \"0.1.0\"\n[dependencies]\nabc = \"1\"\n");
    write(
        "Cargo.lock",
        &format!(
            "version = 3\n\n[[package]]\nname = \"abc\"\nversion = \"1.0.0\"\nsource = \
             \"registry+https://github.com/rust-lang/crates.io-index\"\nchecksum = \"{DIGEST}\"\n\n[[package]]\nname = \"p\"\n\
             version = \"0.1.0\"\ndependencies = [\n \"abc\",\n]\n"
        ),
    );
    write(
        "home/config.toml",
        &format!(
            "[source.crates-io]\nreplace-with = \"near\"\n[source.near]\nregistry = \"sparse+http://{registry}/\"\n"
        ),
    );
    folder
}

/// The exit code of `script` with these words, and what it said.
fn run(script: &str, words: &[&str], home: &Path) -> (Option<i32>, String) {
    let output = Command::new(testkit::tree().join("scripts").join(script))
        .args(words)
        .env("CARGO_HOME", home)
        .env("CARGO_DENY", "/bin/false")
        .output()
        .unwrap_or_else(|error| panic!("{script}: {error}"));
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    (output.status.code(), said)
}

fn check(registry: &str) -> (Option<i32>, String) {
    let package = package(registry);
    let lock = package.path().join("Cargo.lock");
    let before = fs::read(&lock).expect("the lock");
    let result = run("check-yanked.py", &[&lock.display().to_string()], &package.path().join("home"));
    assert_eq!(fs::read(&lock).expect("the lock"), before, "it wrote there: {}", result.1);
    result
}

#[test]
fn a_yanked_crate_is_refused_by_name() {
    let registry = Registry::with_abc(true);
    let (code, said) = check(&registry.address);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("abc 1.0.0 was yanked from its registry: cargo update --package abc"), "{said}");
}

#[test]
fn crates_that_are_not_yanked_pass() {
    let registry = Registry::with_abc(false);
    let (code, said) = check(&registry.address);
    assert_eq!((code, said.as_str()), (Some(0), "==> yanked crates: 0 of 1\n"));
}

#[test]
fn without_a_registry_it_says_that_it_has_not_checked() {
    let address = Registry::with_abc(true).address.clone();
    let (code, said) = check(&address);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.starts_with("==> yanked crates: NOT CHECKED: ") && said.contains(&address), "{said}");
}

#[test]
fn advisories_without_a_database_are_not_checked_and_a_folder_that_is_none_is_refused() {
    let folder = Folder::temporary("resumed-");
    let (code, said) = run("check-advisories.sh", &[""], folder.path());
    assert_eq!(code, Some(0), "{said}");
    assert!(said.starts_with("==> advisories: NOT CHECKED: "), "{said}");
    let (code, said) = run("check-advisories.sh", &[&folder.path().display().to_string()], folder.path());
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("is no clone of the advisory database"), "{said}");
}
