//! The Apache Traffic Server plugin of resumed.
//!
//! ATS's session hook runs on its network threads inside a handshake: it copies and enqueues, or looks one session up,
//! and never waits. One thread talks to the daemon, one keeps the ticket keys by their times; both live as long as ATS,
//! which they may call. A third, which writes to the daemon, ends with its connection, and may not. `plugin.rs` is the
//! room they share; everything unsafe is in `api.rs`, `libssl.rs`, at the few calls that concern sockets, and at the entries below. What is public touches nothing of ATS:
//! `fuzz/` feeds it and the benchmarks time it.

mod api;
mod args;
pub mod batch;
mod coalescer;
mod daemon_socket;
mod farm_keys;
mod fields;
#[path = "../../src/proto/frame.rs"]
pub mod frame;
pub mod from_daemon;
mod hook_times;
pub mod incoming;
mod libssl;
#[path = "../../src/proto/limits.rs"]
pub mod limits;
mod link;
mod log_limiter;
#[path = "../../src/log_limiter/line.rs"]
mod log_line;
pub mod outgoing;
mod plugin;
pub mod proto;
pub mod queue;
mod random;
pub mod replica;
pub mod report;
pub mod sender;
pub mod session;
mod settings;
mod shutdown_guard;
pub mod tickets;
#[path = "../../src/keys/timetable.rs"]
pub mod timetable;

use std::ffi::{c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::time::Duration;

use api::{Api, Level, say};
use args::Args;
use plugin::{Plugin, TicketKeeper};

static PLUGIN: OnceLock<Plugin> = OnceLock::new();

/// How long ATS's stop may wait for the plugin's threads to let go of it.
const LET_GO: Duration = Duration::from_millis(200);

/// The entry that ATS calls once at start.
///
/// # Safety
/// `argv` points to `argc` strings that end in zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn TSPluginInit(argc: c_int, argv: *const *const c_char) {
    // SAFETY: by this function's contract.
    let arguments = catch_unwind(|| unsafe { api::arguments(argc, argv) });
    let started = arguments.and_then(|arguments| catch_unwind(|| start(&arguments)));
    match started {
        Ok(Ok(())) => {}
        Ok(Err(error)) => say(Level::Error, &format!("not started, and ATS serves without it: {error}")),
        Err(_) => say(Level::Error, "not started: a panic, see standard error"),
    }
}

fn start(arguments: &[String]) -> Result<(), String> {
    let api = Api::resolve();
    // Before anything can fail: ATS does not start with a plugin that has not registered.
    if !api.register() {
        return Err("ATS refused to register it".to_owned());
    }
    let args = Args::parse(arguments).map_err(|bad| bad.to_string())?;
    if let Some(missing) = api.missing() {
        return Err(missing);
    }
    let shown = Plugin::look(&api);
    if PLUGIN.get().is_some() {
        return Err("plugin.config names it twice".to_owned());
    }
    for warning in &shown.warnings {
        say(Level::Warning, warning);
    }
    if !api.has_sessions() && api.foreign().is_none() {
        let version = api.version();
        say(Level::Note, &format!("Traffic Server {version} shares no sessions with plugins: ticket keys only"));
    }
    let plugin = PLUGIN.get_or_init(|| Plugin::new(api, args.socket, shown));
    plugin.api.on_shutdown(on_shutdown);
    plugin.api.on_reload(on_reload);
    plugin.api.on_session(on_session);
    plugin.api.on_close(on_close);
    spawn("[RESUMED_LINK]", plugin, move || link::run(plugin))?;
    // ATS takes its first connection after this returns: the first ticket should be one that the farm can open.
    let mut keeper = TicketKeeper::new(plugin);
    keeper.begin(args.wait);
    let mut begun = Some(keeper);
    spawn("[RESUMED_KEYS]", plugin, move || begun.take().unwrap_or_else(|| TicketKeeper::new(plugin)).run())
}

/// Starts a thread that nobody joins and that no panic ends.
fn spawn(name: &str, plugin: &'static Plugin, mut work: impl FnMut() + Send + 'static) -> Result<(), String> {
    let work = move || {
        api::leave_signals_to_ats();
        while catch_unwind(AssertUnwindSafe(&mut work)).is_err() {
            plugin.counters.apply_errors.fetch_add(1, Ordering::Relaxed);
            plugin.say(Level::Error, "a thread panicked, see standard error; starting it again");
            std::thread::sleep(Duration::from_secs(1));
        }
    };
    let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    spawned.map(drop).map_err(|error| format!("no thread: {error}"))
}

/// The session hook.
unsafe extern "C" fn on_session(_cont: *mut c_void, event: c_int, data: *mut c_void) -> c_int {
    guarded(|plugin| {
        // SAFETY: the session hook's data.
        if let Some(id) = unsafe { api::session_id(data) } {
            plugin.on_session(event, &id);
        }
    })
}

/// A client's connection ends.
unsafe extern "C" fn on_close(_cont: *mut c_void, _event: c_int, data: *mut c_void) -> c_int {
    guarded(|plugin| {
        if plugin.shares_removals()
            // SAFETY: this hook's data.
            && let Some(dropped) = unsafe { plugin.api.dropped_session(data) }
        {
            plugin.on_dropped(&dropped);
        }
    });
    // Also after a panic: ATS and other plugins wait for it.
    guarded(|plugin| {
        // SAFETY: this hook's data.
        unsafe { plugin.api.go_on(data) };
    })
}

/// An operator had ATS read its configuration again.
unsafe extern "C" fn on_reload(_cont: *mut c_void, _event: c_int, _data: *mut c_void) -> c_int {
    guarded(|plugin| plugin.mailbox.reloaded())
}

/// ATS begins to stop.
unsafe extern "C" fn on_shutdown(_cont: *mut c_void, _event: c_int, _data: *mut c_void) -> c_int {
    guarded(|plugin| {
        say(Level::Note, "ATS stops: letting go of it");
        plugin.shutdown.shut(LET_GO);
    })
}

/// No panic may cross into C.
fn guarded(work: impl FnOnce(&'static Plugin)) -> c_int {
    if let Some(plugin) = PLUGIN.get()
        && catch_unwind(AssertUnwindSafe(|| work(plugin))).is_err()
    {
        plugin.counters.apply_errors.fetch_add(1, Ordering::Relaxed);
    }
    0
}
