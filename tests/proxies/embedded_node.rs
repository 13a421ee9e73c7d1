//! Rust servers that are nodes of the farm themselves, `examples/embedded_node.rs` as it stands, beside a daemon's node.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use testkit::broker::Broker;
use testkit::farm::{Daemon, Farm, FarmSetup, PATIENCE, Proxies, built, wait_for};
use testkit::tls::{Client, Mode};
use testkit::watcher::Process;

const MODES: [Mode; 2] = [Mode::Ticket12, Mode::Ticket13];

/// A server of the example's.
struct Server {
    process: Process,
    address: SocketAddr,
}

impl Server {
    /// The node `name` of `farm`, as a server on a free port.
    fn start(name: &str, farm: &Farm, broker: &Broker) -> Self {
        let mut command = Command::new(built("examples/embedded_node"));
        command.args(["--name", name, "--farm", farm.name(), "--pod", "pod", "--listen", "127.0.0.1:0"]);
        command.args(["--broker", &broker.uri(), "--secret"]).arg(&farm.secret);
        let mut process =
            Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped())).expect("the example runs");
        let mut line = String::new();
        let stdout = process.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let address = line.strip_prefix("listening on ").and_then(|address| address.trim().parse().ok());
        Self { process, address: address.unwrap_or_else(|| panic!("the example says {line:?}")) }
    }

    /// SIGTERM, and whether it ended well.
    fn stop(mut self) -> bool {
        kill(self.process.pid(), Signal::SIGTERM).expect("the server is our child");
        let (status, _) = wait_for("the end of the server", || match self.process.try_wait() {
            Ok(Some(status)) => Ok(status),
            other => Err(format!("{other:?}")),
        });
        status.success()
    }
}

/// Waits until the farm consists of `names`, all in step.
fn wait_for_nodes(daemon: &Daemon, names: &[&str]) {
    wait_for(&format!("{names:?} in step"), || {
        let status = daemon.try_status()?;
        let mut in_step: Vec<_> =
            status.nodes.iter().filter(|node| node.in_step).map(|node| node.name.as_str()).collect();
        in_step.sort_unstable();
        let whole = status.leader.is_some() && in_step == names && status.nodes.len() == names.len();
        if whole { Ok(()) } else { Err(format!("{status:?}")) }
    });
}

/// Waits until a server seals with a key that the farm has.
fn wait_for_tickets(client: &Client, server: &Server) {
    wait_for("a ticket of the farm", || {
        let first = client.visit(server.address, None)?;
        let again = client.visit(server.address, Some(&first.session))?;
        if again.resumed { Ok(()) } else { Err("it does not open its own ticket".to_owned()) }
    });
}

#[test]
fn servers_that_embed_a_node_share_their_tickets_and_stand_beside_the_daemons() {
    let broker = Broker::start();
    let mut setup = FarmSetup::new(1, &broker.uri());
    setup.proxies = Proxies::None;
    let farm = Farm::start_in_step(&setup);
    let daemon = &farm.hosts[0].daemon;
    let servers = ["rust1", "rust2"].map(|name| Server::start(name, &farm, &broker));
    wait_for_nodes(daemon, &["host0", "rust1", "rust2"]);
    let (status, _) = wait_for("the servers beside their nodes", || {
        let status = daemon.try_status()?;
        let kinds = status.nodes.iter().flat_map(|node| &node.proxies).map(|proxy| proxy.kind.as_str());
        if kinds.eq(["rustls", "rustls"]) { Ok(status) } else { Err(format!("{status:?}")) }
    });
    assert_eq!(status.asked, "host0");

    let clients = MODES.map(Client::new);
    let [one, other] = &servers;
    let mut kept = Vec::new();
    for (client, mode) in clients.iter().zip(MODES) {
        for server in &servers {
            wait_for_tickets(client, server);
        }
        let first = client.visit(one.address, None).expect("a visit");
        assert!(!first.resumed);
        let second = client.visit(other.address, Some(&first.session)).expect("a visit");
        assert!(second.resumed, "{mode:?}: the other server does not open the ticket");
        let third = client.visit(one.address, Some(&second.session)).expect("a visit");
        assert!(third.resumed, "{mode:?}: and not back");
        kept.push(third.session);
    }

    // A rotation asked for at the daemon: the embedded nodes confirm it like any other.
    let wait = format!("{}s", PATIENCE.as_secs());
    let rotated = daemon.command(&["rotate", "--wait", &wait]);
    assert!(rotated.status.success(), "{rotated:?}");

    // A server that is stopped says farewell: a silent node would be listed for much longer. What it sealed stays good.
    let [one, other] = servers;
    assert!(one.stop(), "the server ends well");
    wait_for_nodes(daemon, &["host0", "rust2"]);
    for ((client, mode), session) in clients.iter().zip(MODES).zip(&kept) {
        let visit = client.visit(other.address, Some(session)).expect("a visit");
        assert!(visit.resumed, "{mode:?}: a ticket of the server that is gone, from before the rotation");
    }
    assert!(other.stop(), "the server ends well");
}
