//! The daemon as it runs: its sockets in a temporary folder, its node on a bus within this process, real clocks.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixDatagram, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::run::{Daemon, Order, RunError};
use super::servers::Sockets;
use super::service::Notifier;
use super::{ControlSettings, MetricsSettings, Settings};
use crate::bus::in_process::{Hub, InProcess};
use crate::bus::rabbitmq::RabbitMqSettings;
use crate::cli::control::{Control, ControlError};
use crate::cli::{Failure, SocketArg, revoke, rotate, status};
use crate::envelope::{FarmSecret, Secrets};
use crate::hex::hex;
use crate::metrics;
use crate::node::NodeSettings;
use crate::proto::local::{FromProxy, Hello, Settings as ProxySettings, from_proxy};
use crate::proxies::ats::AtsSettings;
use crate::secret_files::farm_secret;
use crate::status::{FarmStatus, PageStatus, ReloadState};
use crate::temporary::Folder;

/// Whatever a test waits for comes long before.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// How often a test looks again.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Settings without a fault: every socket in `folder`, any free port, a node that has a short beat and starts alone soon.
pub(super) fn settings(folder: &Path) -> Settings {
    let mut node = NodeSettings::new("a", "prod", "default");
    node.report_every = Duration::from_millis(200);
    node.start_alone_after = Duration::from_millis(300);
    node.keys.settle = Duration::from_millis(100);
    Settings {
        node,
        broker: RabbitMqSettings::default(),
        passwords_in: None,
        secret_files: Vec::new(),
        ats: AtsSettings { socket: folder.join("ats.sock"), users: Vec::new() },
        control: ControlSettings { socket: folder.join("control.sock"), group: None },
        metrics: MetricsSettings { listen: Some(([127, 0, 0, 1], 0).into()), page: true },
    }
}

/// The farm secret of nodes that read none from a file.
pub(super) fn secrets() -> Secrets {
    Secrets::new(vec![FarmSecret::from_bytes(&[7; 32]).expect("a secret")]).expect("one secret")
}

type Files = Box<dyn Fn() -> Result<Vec<PathBuf>, String>>;

/// What is around a daemon: the folder with its sockets, and where it serves HTTP.
struct Host {
    folder: Folder,
    settings: Settings,
    http: SocketAddr,
}

impl Host {
    /// Starts a daemon whose node is called `name`.
    async fn start(name: &str, hub: &Arc<Hub>) -> (Self, Daemon<Files>) {
        let folder = Folder::new();
        let mut settings = settings(folder.path());
        name.clone_into(&mut settings.node.name);
        Self::start_with(folder, settings, secrets(), hub).await
    }

    async fn start_with(folder: Folder, settings: Settings, secrets: Secrets, hub: &Arc<Hub>) -> (Self, Daemon<Files>) {
        let sockets = Sockets::open(&settings).await.expect("nothing is in the way");
        let http = sockets.http_address().expect("metrics.listen is set");
        let bus = Arc::new(InProcess::new(Arc::clone(hub)));
        let files = settings.secret_files.clone();
        let files_to_read: Files = Box::new(move || Ok(files.clone()));
        let recorder = metrics::install().expect("a recorder");
        let daemon =
            Daemon::start(bus, &settings, sockets, secrets, files_to_read, recorder).expect("settings without a fault");
        (Self { folder, settings, http }, daemon)
    }

    /// Asks on the control socket as the commands do.
    async fn command<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&mut Control) -> Result<T, ControlError> + Send + 'static,
    ) -> Result<T, ControlError> {
        let socket = self.settings.control.socket.clone();
        tokio::task::spawn_blocking(move || ask(&mut Control::connect(&socket)?)).await.expect("a command ends")
    }

    /// Asks for the status until it is as `wanted` says.
    async fn status_once(&self, what: &str, wanted: impl Fn(&FarmStatus) -> bool) -> FarmStatus {
        let late = Instant::now() + PATIENCE;
        loop {
            let status = self.command(|control| control.status(PATIENCE)).await.expect("a status");
            if wanted(&status) {
                return status;
            }
            assert!(Instant::now() < late, "{what}: {status:?}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The answer to a GET, head and body.
    async fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.http).await.expect("it listens");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("it reads");
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("an answer").expect("text");
        answer
    }

    /// What the page is given.
    async fn farm_json(&self) -> PageStatus {
        let answer = self.get("/farm.json").await;
        let (_, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"))
    }

    /// That no client finds the daemon any more, and no file of it.
    async fn is_left_clean(&self) {
        for socket in [&self.settings.control.socket, &self.settings.ats.socket] {
            assert!(!socket.exists(), "{} stays behind", socket.display());
        }
        assert!(TcpStream::connect(self.http).await.is_err(), "it still listens on {}", self.http);
    }
}

/// Orders that never come.
async fn never() -> Order {
    std::future::pending().await
}

/// For a daemon that no service manager started.
fn no_manager() -> Notifier {
    Notifier::to(None, None).expect("no name that could be wrong")
}

/// Runs `daemon` for as long as `looks` gives orders, tells it to stop then, and waits for its end, which is in order.
async fn run_while(daemon: Daemon<Files>, notifier: Notifier, looks: impl AsyncFnOnce(&mpsc::Sender<Order>)) {
    let (orders, mut ordered) = mpsc::channel(1);
    let looking = async {
        looks(&orders).await;
        orders.send(Order::Stop).await.expect("it still takes orders");
    };
    let running = daemon.run(async || ordered.recv().await.expect("the test gives orders"), notifier);
    let (ended, ()) = tokio::join!(timeout(2 * PATIENCE, running), looking);
    ended.expect("it ends when it is told to").expect("in order");
}

/// A service manager's socket in `folder`, and what tells it.
fn manager(folder: &Path) -> (UnixDatagram, Notifier) {
    let path = folder.join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    (socket, Notifier::to(Some(path.as_os_str()), None).expect("a name of a socket"))
}

/// What the service manager hears up to a message that begins with `wanted`.
async fn heard(socket: &UnixDatagram, wanted: &str) -> Vec<String> {
    let mut heard = Vec::new();
    let mut buffer = [0; 4096];
    while !heard.last().is_some_and(|message: &String| message.starts_with(wanted)) {
        let received = timeout(PATIENCE, socket.recv(&mut buffer)).await;
        let length = received.unwrap_or_else(|_| panic!("no {wanted} after {heard:?}")).expect("a message");
        heard.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
    }
    heard
}

#[tokio::test]
async fn it_serves_until_it_is_told_to_end_and_leaves_no_socket_behind() {
    let (host, daemon) = Host::start("a", &Arc::default()).await;
    let (manager, notifier) = manager(host.folder.path());
    run_while(daemon, notifier, async |_| {
        heard(&manager, "READY=1").await;
        let health = host.get("/healthz").await;
        assert!(health.starts_with("HTTP/1.1 200 ") && health.ends_with("\r\n\r\nok\n"), "{health}");
        assert!(host.get("/metrics").await.contains("\nresumed_build_info{"), "metrics");
        UnixStream::connect(&host.settings.ats.socket).await.expect("a proxy can connect");
        host.status_once("that it leads", |status| status.leader.as_deref() == Some("a")).await;
    })
    .await;
    heard(&manager, "STOPPING=1").await;
    host.is_left_clean().await;
}

#[tokio::test]
async fn the_farm_secrets_are_read_again_by_order_and_by_command_and_what_is_refused_changes_nothing() {
    let folder = Folder::new();
    let file = folder.path().join("farm.secret");
    let write = |byte| {
        // There is none at first.
        drop(fs::remove_file(&file));
        let secret = FarmSecret::from_bytes(&[byte; 32]).expect("a secret");
        farm_secret::write_new(&secret, &file).expect("a new file");
        vec![hex(&secret.id())]
    };
    let first = write(1);
    let mut settings = settings(folder.path());
    settings.secret_files = vec![file.clone()];
    let secrets = farm_secret::read_all(&settings.secret_files).expect("a good file");
    let (host, daemon) = Host::start_with(folder, settings, secrets, &Arc::default()).await;
    let (manager, notifier) = manager(host.folder.path());
    run_while(daemon, notifier, async |orders| {
        let shows = |ids: Vec<String>, state| {
            move |status: &FarmStatus| {
                status.nodes.first().is_some_and(|node| node.secret_ids == ids && node.reload.state == state)
            }
        };
        host.status_once("the first secret", shows(first, ReloadState::None)).await;
        heard(&manager, "READY=1").await;

        let second = write(2);
        orders.send(Order::ReadSecrets).await.expect("it takes orders");
        heard(&manager, "RELOADING=1\n").await;
        heard(&manager, "READY=1").await;
        host.status_once("the second secret", shows(second, ReloadState::Taken)).await;

        let third = write(3);
        let reload = || host.command(|control| control.reload(PATIENCE));
        assert_eq!(reload().await.expect("a good file"), third);

        fs::write(&file, "no secret").expect("the file");
        let refused = reload().await.expect_err("a bad file").to_string();
        assert!(refused.contains("going on with the farm secrets of before") && refused.contains("farm.secret"));
        let status = host.status_once("the refusal", shows(third, ReloadState::Refused)).await;
        assert!(status.warnings.iter().any(|text| text.starts_with("a refused its farm secrets")), "{status:?}");
        heard(&manager, "STATUS=RELOAD REFUSED, ").await;
    })
    .await;
}

#[tokio::test]
async fn a_part_that_panics_ends_the_daemon_and_is_named() {
    let hub = Arc::default();
    let (host, mut daemon) = Host::start("a", &hub).await;
    daemon.servers.spawn(async { panic!("on purpose") });
    let ended = timeout(PATIENCE, daemon.run(never, no_manager())).await.expect("an end");
    assert!(matches!(ended, Err(RunError::Panicked("a server"))), "{ended:?}");
    host.is_left_clean().await;

    let (host, mut daemon) = Host::start("a", &hub).await;
    daemon.node.broken = watch::channel(Some("the driver")).1;
    let ended = timeout(PATIENCE, daemon.run(never, no_manager())).await.expect("an end");
    assert!(matches!(ended, Err(RunError::Panicked("the driver"))), "{ended:?}");
    host.is_left_clean().await;
}

#[tokio::test]
async fn a_server_that_does_not_end_holds_up_no_stop() {
    let (_host, mut daemon) = Host::start("a", &Arc::default()).await;
    daemon.servers.spawn(std::future::pending());
    run_while(daemon, no_manager(), async |_| {}).await;
}

#[tokio::test]
async fn settings_that_cannot_work_keep_it_from_starting_and_leave_no_socket_behind() {
    let folder = Folder::new();
    let mut settings = settings(folder.path());
    settings.node.keys.keep = 0;
    let sockets = Sockets::open(&settings).await.expect("nothing is in the way");
    let bus = Arc::new(InProcess::new(Arc::default()));
    let recorder = metrics::install().expect("a recorder");
    let refused = Daemon::start(bus, &settings, sockets, secrets(), || Ok(Vec::new()), recorder).err();
    let refused = refused.expect("a fault");
    assert!(matches!(refused, RunError::Settings(_)), "{refused:?}");
    assert!(refused.to_string().starts_with("keys.keep = 0: "), "{refused}");
    for socket in [&settings.control.socket, &settings.ats.socket] {
        assert!(!socket.exists(), "{} stays behind", socket.display());
    }
}

/// A plugin's end of the socket.
struct Plugin(UnixStream);

impl Plugin {
    async fn connect(host: &Host) -> Self {
        Self(UnixStream::connect(&host.settings.ats.socket).await.expect("the plugin's socket"))
    }

    async fn say(&mut self, kind: from_proxy::Kind) {
        let message = FromProxy { kind: Some(kind) }.encode_to_vec();
        let length = u32::try_from(message.len()).expect("a short message").to_be_bytes();
        self.0.write_all(&[&length[..], &message].concat()).await.expect("the daemon reads");
    }
}

/// What `status` has of the proxies beside the node `b`: in its table of nodes, and as warnings for operators.
fn warnings_of_proxies(status: &FarmStatus) -> (Vec<String>, Vec<String>) {
    let beside = status.nodes.iter().filter(|node| node.name == "b").flat_map(|node| &node.proxies);
    let of_proxies = status.warnings.iter().filter(|warning| warning.contains("(ats 9.2.9)"));
    (beside.flat_map(|proxy| proxy.warnings.clone()).collect(), of_proxies.cloned().collect())
}

#[tokio::test]
async fn what_a_proxy_warns_of_is_told_at_every_node_until_it_is_mended() {
    let hub = Arc::default();
    let farm = [Host::start("a", &hub).await, Host::start("b", &hub).await];
    let [(a, _), (b, _)] = &farm;
    let told = async |warnings: &[&str]| {
        let sentences: Vec<String> = warnings.iter().map(|warning| format!("b (ats 9.2.9): {warning}")).collect();
        for host in [a, b] {
            let all = |status: &FarmStatus| warnings_of_proxies(status) == (owned(warnings), sentences.clone());
            host.status_once(&format!("{warnings:?}"), all).await;
        }
    };
    let mut plugin = Plugin::connect(b).await;
    let hello = Hello {
        kind: "ats".to_owned(),
        proxy_version: "9.2.9".to_owned(),
        warnings: owned(&["no session cache", "tickets are off"]),
        ..Hello::default()
    };
    plugin.say(from_proxy::Kind::Hello(hello)).await;
    told(&["no session cache", "tickets are off"]).await;

    let mended = ProxySettings { warnings: owned(&["no session cache"]), ..ProxySettings::default() };
    plugin.say(from_proxy::Kind::Settings(mended)).await;
    told(&["no session cache"]).await;
    // The page has what the command prints, of a node that is asked for the first time.
    assert_eq!(warnings_of_proxies(&a.farm_json().await.status), warnings_of_proxies(&b.farm_json().await.status));
    assert_eq!(warnings_of_proxies(&a.farm_json().await.status).0, ["no session cache"]);

    drop(plugin);
    told(&[]).await;
    for (_, daemon) in farm {
        daemon.stop(&mut no_manager()).await;
    }
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

/// What a command prints, and how it ends.
async fn printed(
    host: &Host,
    command: impl FnOnce(&Path, &mut Vec<u8>) -> Result<(), Failure> + Send + 'static,
) -> (String, Result<(), Failure>) {
    let socket = host.settings.control.socket.clone();
    let run = move || {
        let mut out = Vec::new();
        let ended = command(&socket, &mut out);
        (String::from_utf8(out).expect("text"), ended)
    };
    tokio::task::spawn_blocking(run).await.expect("a command ends")
}

#[tokio::test]
async fn the_commands_of_an_operator_reach_the_whole_farm_from_any_node() {
    let hub = Arc::default();
    let farm = [Host::start("a", &hub).await, Host::start("b", &hub).await];
    for (host, _) in &farm {
        let socket = SocketArg::default();
        let args = status::StatusArgs { json: false, wait_in_step: Some(PATIENCE), socket };
        let (text, ended) = printed(host, move |socket, out| status::run(&args, socket, out)).await;
        assert_eq!(ended, Ok(()), "{text}");
        host.status_once("both nodes", |status| status.nodes.len() == 2).await;
    }
    for (host, _) in &farm {
        let args = rotate::RotateArgs { wait: PATIENCE, socket: SocketArg::default() };
        let (text, ended) = printed(host, move |socket, out| rotate::run(&args, socket, out)).await;
        assert_eq!(ended, Ok(()), "{text}");
        assert!(text.ends_with(" is held by all 2 nodes: a, b\n"), "{text}");
    }
    for ((host, _), local) in farm.iter().zip([false, true]) {
        let socket = SocketArg::default();
        let args = revoke::RevokeArgs { flush_sessions: true, local, wait: PATIENCE, socket };
        let (text, ended) = printed(host, move |socket, out| revoke::run(&args, socket, out)).await;
        assert_eq!(ended, Ok(()), "{text}");
        let at = if local { "b, and elsewhere when its ring gets there" } else { "all 2 nodes: a, b" };
        assert!(text.ends_with(&format!(" is out of use at {at}\n")), "{text}");
    }
    for (_, daemon) in farm {
        daemon.stop(&mut no_manager()).await;
    }
}
