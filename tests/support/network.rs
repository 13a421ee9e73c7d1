//! A network between a client and a host: what either sends arrives later, or not while a wire is cut.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
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

/// A wire to a host that can be cut. While it is, nothing crosses it: connections stay open and fall silent, and new ones
/// are taken and not answered, as where packets get lost. What was under way arrives when it is mended, also the end of a
/// connection that was closed meanwhile.
pub struct Wire {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    cut: Mutex<bool>,
    mended: Condvar,
}

impl State {
    fn cut(&self) -> MutexGuard<'_, bool> {
        self.cut.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_until_whole(&self) {
        drop(self.mended.wait_while(self.cut(), |cut| *cut).unwrap_or_else(PoisonError::into_inner));
    }
}

impl Wire {
    /// A wire to `host`, until the process ends.
    pub fn to(host: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback socket");
        let address = listener.local_addr().expect("its address");
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming() {
                let state = Arc::clone(&shared);
                thread::spawn(move || {
                    state.wait_until_whole();
                    // A connection that fails is one that the client sees fail.
                    let _ = client.and_then(|client| connect_by_wire(client, host, &state));
                });
            }
        });
        Self { address, state }
    }

    /// Where the host is reached by this wire.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts it.
    pub fn cut(&self) {
        *self.state.cut() = true;
    }

    /// Mends it.
    pub fn mend(&self) {
        *self.state.cut() = false;
        self.state.mended.notify_all();
    }
}

fn connect_by_wire(client: TcpStream, host: SocketAddr, state: &Arc<State>) -> io::Result<()> {
    let server = TcpStream::connect(host)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    carry_by_wire(client.try_clone()?, server.try_clone()?, Arc::clone(state));
    carry_by_wire(server, client, Arc::clone(state));
    Ok(())
}

fn carry_by_wire(mut from: TcpStream, mut to: TcpStream, state: Arc<State>) {
    thread::spawn(move || {
        let mut bytes = [0; 16 << 10];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            state.wait_until_whole();
            if to.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        state.wait_until_whole();
        let _gone = to.shutdown(Shutdown::Write);
        let _gone = from.shutdown(Shutdown::Read);
    });
}

/// A broker's address at which each connection is carried to the broker, and closed a moment after the broker has let the
/// client consume from two queues: it accepts, and drops what it accepted.
pub struct Dropping {
    address: SocketAddr,
    drops: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
}

/// How long a connection is left alone once it consumes.
const DROPPED_AFTER: Duration = Duration::from_millis(50);
/// AMQP 0-9-1's method `basic.consume-ok`: class 60, method 21.
const CONSUME_OK: [u8; 4] = [0, 60, 0, 21];

impl Dropping {
    /// In front of the broker at `host`, until the process ends.
    pub fn before(host: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback socket");
        let address = listener.local_addr().expect("its address");
        let (drops, accepted) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
        let front = Self { address, drops: Arc::clone(&drops), accepted: Arc::clone(&accepted) };
        thread::spawn(move || {
            for client in listener.incoming() {
                accepted.fetch_add(1, Ordering::Relaxed);
                let drops = Arc::clone(&drops);
                // A connection that fails is one that the client sees fail.
                thread::spawn(move || client.and_then(|client| carry_until_it_consumes(client, host, &drops)));
            }
        });
        front
    }

    /// Where the broker is reached.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on connections stay.
    pub fn keep(&self) {
        self.drops.store(false, Ordering::Relaxed);
    }

    /// How many connections it has accepted.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

fn carry_until_it_consumes(client: TcpStream, host: SocketAddr, drops: &AtomicBool) -> io::Result<()> {
    let server = TcpStream::connect(host)?;
    let (mut up, mut to_server) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || io::copy(&mut up, &mut to_server));
    let (mut from, mut to) = (server, client);
    let (mut bytes, mut consumes) = ([0; 16 << 10], 0);
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        to.write_all(&bytes[..count])?;
        consumes += bytes[..count].windows(CONSUME_OK.len()).filter(|window| *window == CONSUME_OK).count();
        if consumes >= 2 && drops.load(Ordering::Relaxed) {
            // This is the network, not a wait for something to happen.
            thread::sleep(DROPPED_AFTER);
            break;
        }
    }
    let _gone = from.shutdown(Shutdown::Both);
    to.shutdown(Shutdown::Both)
}
