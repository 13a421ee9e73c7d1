//! A layer-4 load balancer in front of hosts: haproxy in TCP mode, round robin, which takes a host out that does not answer.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use testkit::watcher::Process;

/// A running haproxy. Stopped when dropped.
#[derive(Debug)]
pub struct Balancer {
    _process: Process,
    address: SocketAddr,
    admin: SocketAddr,
}

/// How long haproxy takes at most to notice that a host is gone: two checks in a row that fail, each 300 ms apart and given
/// up on after a second.
pub const NOTICES_WITHIN: Duration = Duration::from_millis(2_600);

impl Balancer {
    /// Starts one that listens on port 443 of `address` and spreads connections over port 443 of `hosts`; its files are in
    /// `dir`. Port 9999 of the address takes haproxy's runtime commands.
    pub fn start(dir: &Path, address: Ipv4Addr, hosts: &[(&str, Ipv4Addr)]) -> Self {
        let servers: Vec<_> = hosts
            .iter()
            .map(|(name, host)| format!("  server {name} {host}:443 check inter 300ms fall 2 rise 2\n"))
            .collect();
        let file = dir.join("haproxy.cfg");
        let text = format!(
            "global\n  stats socket ipv4@{address}:9999 level admin\n\
             defaults\n  mode tcp\n  timeout connect 1s\n  timeout check 1s\n  timeout client 30s\n  timeout server 30s\n  \
             retries 3\n  option redispatch 1\n\
             frontend clients\n  bind {address}:443\n  default_backend farm\n\
             backend farm\n  balance roundrobin\n{}",
            servers.concat()
        );
        fs::write(&file, text).expect("haproxy.cfg");
        let log = fs::File::create(dir.join("haproxy.log")).expect("a log");
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(&file).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("the same log")).stderr(log);
        let process = Process::spawn(&mut command).expect("haproxy (package haproxy)");
        let balancer = Self { _process: process, address: (address, 443).into(), admin: (address, 9999).into() };
        let start = Instant::now();
        while TcpStream::connect(balancer.admin).is_err() {
            let log = fs::read_to_string(dir.join("haproxy.log")).unwrap_or_default();
            assert!(start.elapsed() < Duration::from_secs(30), "haproxy does not listen:\n{log}");
            thread::sleep(Duration::from_millis(20));
        }
        balancer
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Gives a runtime command, and what haproxy says to it.
    pub fn say(&self, command: &str) -> String {
        let mut stream = TcpStream::connect(self.admin).expect("haproxy's port for commands");
        stream.write_all(format!("{command}\n").as_bytes()).expect("haproxy reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("haproxy answers");
        answer
    }

    /// The hosts that it sends connections to.
    pub fn hosts_up(&self) -> Vec<String> {
        let stat = self.say("show stat");
        let rows = stat.lines().map(|line| line.split(',').collect::<Vec<_>>());
        let servers = rows.filter(|row| row.first() == Some(&"farm") && row.get(1) != Some(&"BACKEND"));
        servers
            .filter(|row| row.get(17).is_some_and(|state| state.starts_with("UP")))
            .map(|row| row[1].to_owned())
            .collect()
    }

    /// Waits until it sends connections to `count` hosts.
    pub fn wait_for_hosts(&self, count: usize, within: Duration) -> Duration {
        let start = Instant::now();
        loop {
            let up = self.hosts_up();
            if up.len() == count {
                return start.elapsed();
            }
            assert!(start.elapsed() < within, "haproxy sees {up:?}, and not {count} hosts:\n{}", self.say("show stat"));
            thread::sleep(Duration::from_millis(50));
        }
    }
}
