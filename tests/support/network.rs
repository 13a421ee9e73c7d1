//! A network between a client and a host: what either sends arrives later.
#![allow(dead_code, reason = "each test file uses its own part of this")]

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Makes `host` reachable at the address returned as if it were `round_trip` away, until the process ends.
pub fn far_away(host: SocketAddr, round_trip: Duration) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback socket");
    let address = listener.local_addr().expect("its address");
    thread::spawn(move || {
        for client in listener.incoming() {
            // A connection that fails is one that the client sees fail.
            let _ = client.and_then(|client| connect(client, host, round_trip));
        }
    });
    address
}

fn connect(client: TcpStream, host: SocketAddr, round_trip: Duration) -> io::Result<()> {
    let server = TcpStream::connect(host)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    // The client's SYN was answered here; over the network that would have taken a round trip more.
    let opened = Instant::now() + round_trip;
    carry(client.try_clone()?, server.try_clone()?, opened, round_trip / 2);
    carry(server, client, opened, round_trip / 2);
    Ok(())
}

/// Carries bytes from one end to the other; each arrives `one_way` after it was sent, and none was sent before `opened`.
fn carry(mut from: TcpStream, mut to: TcpStream, opened: Instant, one_way: Duration) {
    let (sent, under_way) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        let mut bytes = [0; 16 << 10];
        while let Ok(count) = from.read(&mut bytes) {
            let arrives = Instant::now().max(opened) + one_way;
            if sent.send((arrives, bytes[..count].to_vec())).is_err() || count == 0 {
                return;
            }
        }
    });
    thread::spawn(move || {
        for (arrives, bytes) in under_way {
            // This is the network, not a wait for something to happen.
            thread::sleep(arrives.saturating_duration_since(Instant::now()));
            let carried = if bytes.is_empty() { to.shutdown(Shutdown::Write) } else { to.write_all(&bytes) };
            if carried.is_err() {
                return;
            }
        }
    });
}
