//! What the hook, the connection and the ticket thread share; and what the hook does.

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use zeroize::Zeroizing;

use crate::api::{self, Api, Dropped, Level, OpensslSession, Statistic, say};
use crate::hook_times::{BOUNDS, HookTimes};
use crate::log_limiter::LogLimiter;
use crate::outgoing::Outgoing;
use crate::proto;
use crate::random;
use crate::replica::Replica;
use crate::report::Report;
use crate::session::{LARGEST_FOR_ATS, SessionId, expiry, is_older, master_key};
use crate::settings::{self, Shown};
use crate::shutdown_guard::ShutdownGuard;
use crate::tickets::{Mailbox, OwnKeys, RECORD_BYTES};
use crate::timetable::Timetable;

const REPLICA_BYTES: usize = 256 << 20;

/// The counters of `local.proto` that events move.
#[derive(Default)]
pub(crate) struct Counters {
    pub too_large_for_proxy: AtomicU64,
    pub inserted: AtomicU64,
    pub apply_errors: AtomicU64,
    pub own_keys: AtomicU64,
}

/// What statistics show.
struct Counts {
    /// The counters that the daemon hears of too.
    told: proto::Counters,
    /// Entries of the replica, and their bytes.
    replica: (u64, u64),
}

/// Which of them a statistic shows.
type Counted = fn(&Counts) -> u64;

/// The plugin in one ATS process. Lives for ever.
pub(crate) struct Plugin {
    pub api: Api,
    pub socket: PathBuf,
    shown: Mutex<(Shown, u64)>,
    pub outgoing: Outgoing,
    pub replica: Replica,
    pub mailbox: Mailbox,
    pub counters: Counters,
    hook_times: HookTimes,
    /// How many threads are in [`Plugin::silently`].
    silent: AtomicUsize,
    pub shutdown: ShutdownGuard,
    /// The daemon has said welcome on a connection that still stands.
    pub connected: AtomicBool,
    replicate: AtomicBool,
    removals: AtomicBool,
    /// Sessions created before it are flushed, UTC milliseconds; 0: none are.
    sessions_from: AtomicU64,
    statistics: Vec<(Statistic, Counted)>,
    connected_statistic: Option<Statistic>,
    hook_statistics: [Option<Statistic>; BOUNDS.len()],
}

thread_local! {
    /// This thread is changing ATS's cache for the farm: what the hook hears of it is no news.
    static SILENT: Cell<bool> = const { Cell::new(false) };
}

/// UTC milliseconds.
pub(crate) fn wall_ms() -> u64 {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)
}

impl Plugin {
    pub(crate) fn new(api: Api, socket: PathBuf, shown: Shown) -> Self {
        let names: [(_, Counted); 8] = [
            (c"plugin.resumed.queued", |counts| counts.told.queued),
            (c"plugin.resumed.dropped_full", |counts| counts.told.dropped_full),
            (c"plugin.resumed.too_large_for_proxy", |counts| counts.told.too_large_for_proxy),
            (c"plugin.resumed.inserted", |counts| counts.told.inserted),
            (c"plugin.resumed.replicas", |counts| counts.replica.0),
            (c"plugin.resumed.replica_bytes", |counts| counts.replica.1),
            (c"plugin.resumed.apply_errors", |counts| counts.told.apply_errors),
            (c"plugin.resumed.own_keys", |counts| counts.told.own_keys),
        ];
        let statistics =
            names.into_iter().filter_map(|(name, value)| Some((api.new_statistic(name)?, value))).collect();
        let connected_statistic = api.new_statistic(c"plugin.resumed.connected");
        let hook_statistics = BOUNDS.map(|(_, name)| api.new_statistic(name));
        Self {
            api,
            socket,
            shown: Mutex::new((shown, 0)),
            outgoing: Outgoing::default(),
            replica: Replica::new(REPLICA_BYTES),
            mailbox: Mailbox::default(),
            counters: Counters::default(),
            hook_times: HookTimes::default(),
            silent: AtomicUsize::new(0),
            shutdown: ShutdownGuard::default(),
            connected: AtomicBool::new(false),
            replicate: AtomicBool::new(true),
            removals: AtomicBool::new(true),
            sessions_from: AtomicU64::new(0),
            statistics,
            connected_statistic,
            hook_statistics,
        }
    }

    /// What this ATS shows of its settings now, with what the plugin itself has to say of it.
    pub(crate) fn look(api: &Api) -> Shown {
        let mut shown = settings::look(api, api.has_sessions());
        let foreign = api.foreign().map(ToString::to_string);
        shown.warnings.splice(0..0, foreign);
        shown
    }

    /// What was seen last of ATS's settings, and a number that is another whenever that is.
    pub(crate) fn shown(&self) -> (Shown, u64) {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks at ATS's settings again. What is new is logged, and the daemon hears of it. For threads that may call ATS.
    fn look_again(&self) {
        let now = Self::look(&self.api);
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, changes) = &mut *shown;
        if *before == now {
            return;
        }
        for warning in now.warnings.iter().filter(|warning| !before.warnings.contains(warning)) {
            self.say(Level::Warning, warning);
        }
        (*before, *changes) = (now, changes.wrapping_add(1));
    }

    /// Whether ATS is stopping.
    pub(crate) fn stops(&self) -> bool {
        self.shutdown.is_shut()
    }

    /// Writes a line to ATS's log, unless ATS is stopping: then it may be taking its log apart.
    pub(crate) fn say(&self, level: Level, message: &str) {
        if let Some(_running) = self.shutdown.enter() {
            say(level, message);
        }
    }

    /// Takes over what the daemon says about itself.
    pub(crate) fn welcome(&self, welcome: &proto::Welcome) {
        self.replicate.store(welcome.replicate, Ordering::Relaxed);
        self.removals.store(welcome.removals, Ordering::Relaxed);
        if !welcome.replicate {
            self.outgoing.clear();
        }
        self.connected.store(true, Ordering::Relaxed);
    }

    /// From now on no session created before `from` (UTC milliseconds; 0: no such limit) is resumed here.
    pub(crate) fn flush_sessions(&self, from: u64) {
        self.sessions_from.store(from, Ordering::Relaxed);
    }

    /// The counters now.
    pub(crate) fn count(&self) -> proto::Counters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        proto::Counters {
            queued: self.outgoing.sent(),
            dropped_full: self.outgoing.lost(),
            too_large_for_proxy: read(&self.counters.too_large_for_proxy),
            inserted: read(&self.counters.inserted),
            apply_errors: read(&self.counters.apply_errors),
            own_keys: read(&self.counters.own_keys),
        }
    }

    /// Shows the counters as ATS statistics.
    pub(crate) fn show_statistics(&self) {
        let counts = Counts { told: self.count(), replica: self.replica.size() };
        for (statistic, value) in &self.statistics {
            self.api.set_statistic(statistic, value(&counts));
        }
        if let Some(statistic) = &self.connected_statistic {
            self.api.set_statistic(statistic, u64::from(self.connected.load(Ordering::Relaxed)));
        }
        for (statistic, calls) in self.hook_statistics.iter().zip(self.hook_times.up_to()) {
            if let Some(statistic) = statistic {
                self.api.set_statistic(statistic, calls);
            }
        }
    }

    /// Runs `change` such that the hook takes no notice of what it does to ATS's cache.
    pub(crate) fn silently(&self, change: impl FnOnce()) {
        struct Heard<'a>(&'a AtomicUsize);
        // Also if `change` panics: this thread is ATS's, and must not stay deaf.
        impl Drop for Heard<'_> {
            fn drop(&mut self) {
                SILENT.set(false);
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        SILENT.set(true);
        self.silent.fetch_add(1, Ordering::Relaxed);
        let _heard = Heard(&self.silent);
        change();
    }

    /// Whether this thread is in [`Self::silently`]. As a rule no thread is, and then the hook does without its thread's own memory,
    /// which is cold.
    fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed) > 0 && SILENT.get()
    }

    /// The session hook, on one of ATS's network threads, inside a handshake.
    pub(crate) fn on_session(&self, event: std::ffi::c_int, id: &SessionId) {
        if self.is_silent() {
            return;
        }
        let call = self.hook_times.call();
        if event == api::SESSION_GET && self.flushed(id) || !self.replicate.load(Ordering::Relaxed) {
            return;
        }
        match event {
            api::SESSION_GET => self.on_get(id),
            api::SESSION_NEW => self.on_new(id, call.since()),
            api::SESSION_REMOVE => self.on_remove(id),
            _ => {}
        }
    }

    /// Whether a session that a client comes back with is from before the last flush; ATS then has it no longer. Also one that
    /// ATS made itself and its node never knew.
    #[inline(never)]
    fn flushed(&self, id: &SessionId) -> bool {
        let from = self.sessions_from.load(Ordering::Relaxed);
        if from == 0 {
            return false;
        }
        let mut der = Zeroizing::new([0; LARGEST_FOR_ATS]);
        let is_old = |der: &[u8]| is_older(der, id, from);
        let ours = self.api.session_der(id, der.as_mut_slice());
        let flushed = ours > 0 && der.get(..ours).is_none_or(is_old);
        if flushed {
            self.silently(|| self.api.remove_session(id));
        }
        let replica = self.replica.copy(id, 0, der.as_mut_slice()).is_some_and(|len| is_old(&der[..len]));
        if replica {
            self.replica.remove(id);
        }
        flushed || replica
    }

    /// A client has come back with a session ID, and ATS is about to look for it.
    #[inline(never)]
    fn on_get(&self, id: &SessionId) {
        let mut der = Zeroizing::new([0; LARGEST_FOR_ATS]);
        let Some(len) = self.replica.copy(id, wall_ms() / 1000, der.as_mut_slice()) else { return };
        // ATS may have it from an earlier visit; asking is a tenth of the price of inserting.
        if self.api.session_der(id, &mut []) > 0 {
            return;
        }
        let inserted = OpensslSession::decode(&der[..len]).is_some_and(|session| {
            let mut inserted = false;
            self.silently(|| inserted = self.api.insert_session(id, &session));
            inserted
        });
        if inserted {
            self.counters.inserted.fetch_add(1, Ordering::Relaxed);
        } else {
            self.replica.remove(id);
            self.counters.apply_errors.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// ATS has made a session.
    fn on_new(&self, id: &SessionId, now: Instant) {
        let der = |room: &mut [u8]| match self.api.session_der(id, room) {
            // ATS does not keep it.
            0 => usize::MAX,
            len => len,
        };
        match Report::new(id, wall_ms(), der) {
            Some(report) => self.outgoing.report(&report, now),
            None => {
                self.counters.too_large_for_proxy.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// OpenSSL drops whatever session stands under an ID, and ATS is about to. Whose doing it is shows when the connection ends, if
    /// ever: a client can name any ID that it has seen, with a ticket of its own or without the key. Until then the session stays.
    #[inline(never)]
    fn on_remove(&self, id: &SessionId) {
        // A farm that keeps removed sessions keeps them on this host too.
        if !self.removals.load(Ordering::Relaxed) {
            return;
        }
        let now = wall_ms() / 1000;
        let mut der = Zeroizing::new([0; LARGEST_FOR_ATS]);
        if self.replica.copy(id, now, der.as_mut_slice()).is_some() {
            return;
        }
        let len = self.api.session_der(id, der.as_mut_slice());
        if let Some(der) = der.get(..len)
            && let Some(expires) = expiry(der, id).filter(|expires| *expires > now)
        {
            self.replica.insert(id, der, expires);
        }
    }

    /// Whether the end of a connection may be the end of its session.
    pub(crate) fn shares_removals(&self) -> bool {
        self.removals.load(Ordering::Relaxed) && self.replicate.load(Ordering::Relaxed)
    }

    /// A connection ends whose session OpenSSL has dropped. The farm hears of it if the connection was this session's: both ends have
    /// shown that they have its key.
    #[inline(never)]
    pub(crate) fn on_dropped(&self, dropped: &Dropped) {
        let call = self.hook_times.call();
        let shared = if dropped.resumed { self.is_keyed(dropped) } else { dropped.der_len <= LARGEST_FOR_ATS };
        if !shared {
            return;
        }
        let id = &dropped.id;
        self.replica.remove(id);
        // Another connection may have come back to it in between.
        if self.api.session_der(id, &mut []) > 0 {
            self.silently(|| self.api.remove_session(id));
        }
        if let Some(removal) = Report::new(id, wall_ms(), |_| 0) {
            self.outgoing.report(&removal, call.since());
        }
    }

    /// Whether the session that stands under the ID here has the connection's key.
    fn is_keyed(&self, dropped: &Dropped) -> bool {
        let mut der = Zeroizing::new([0; LARGEST_FOR_ATS]);
        let len = self.replica.copy(&dropped.id, 0, der.as_mut_slice());
        let len = len.unwrap_or_else(|| self.api.session_der(&dropped.id, der.as_mut_slice()));
        let key = der.get(..len).and_then(|der| master_key(der, &dropped.id));
        key.is_some_and(|key| api::same_secret(key, dropped.master_key.as_slice()))
    }
}

/// Keeps ATS's ticket keys what they should be.
pub(crate) struct TicketKeeper {
    plugin: &'static Plugin,
    timetable: Timetable,
    own: OwnKeys,
    set: Zeroizing<Vec<u8>>,
    set_at: Option<Instant>,
    reloaded_at: Option<Instant>,
    /// The last look at ATS's settings.
    looked_at: Option<Instant>,
    heard: bool,
    own_key_seals: bool,
    errors: LogLimiter,
}

/// A configuration reload of ATS can overwrite the keys.
const SET_AGAIN_EVERY: Duration = Duration::from_secs(60);
/// ATS tells of a reload when it begins; reading all certificates again takes a while.
const RELOAD_TAKES: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_secs(1);
const SWEEP_EVERY: Duration = Duration::from_secs(10);

impl TicketKeeper {
    pub(crate) fn new(plugin: &'static Plugin) -> Self {
        Self {
            plugin,
            timetable: Timetable::default(),
            own: OwnKeys::default(),
            set: Zeroizing::default(),
            set_at: None,
            reloaded_at: None,
            looked_at: None,
            heard: false,
            own_key_seals: false,
            errors: LogLimiter::default(),
        }
    }

    /// Waits for the farm's keys for at most `patience`, then gives ATS its first keys.
    pub(crate) fn begin(&mut self, patience: Duration) {
        // ATS reads an operator's key file only after its plugins have begun.
        self.reloaded_at = settings::ticket_key_file(&self.plugin.api).map(|_| Instant::now() + patience);
        // A node that starts with ATS has no keys at first, and says so.
        let deadline = Instant::now() + patience;
        while !self.heard {
            let left = deadline.saturating_duration_since(Instant::now());
            self.hear(left);
            if left.is_zero() {
                break;
            }
        }
        self.apply();
    }

    /// Keeps on until ATS stops.
    pub(crate) fn run(mut self) {
        self.plugin.api.thread_init();
        let mut swept = Instant::now();
        loop {
            // The wall clock may jump: nothing is believed for longer than a second.
            let now = wall_ms();
            let change = self.timetable.next_change(now).map(|at| Duration::from_millis(at.saturating_sub(now)));
            self.hear(change.map_or(LOOK_EVERY, |change| change.min(LOOK_EVERY)));
            let Some(_running) = self.plugin.shutdown.enter() else { return };
            self.apply();
            self.look_after_a_reload();
            self.plugin.show_statistics();
            if swept.elapsed() >= SWEEP_EVERY {
                self.plugin.replica.sweep(wall_ms() / 1000);
                swept = Instant::now();
            }
        }
    }

    /// ATS reads its files anew for a while: what it shows is looked at when that begins, and when it is over.
    fn look_after_a_reload(&mut self) {
        let Some(at) = self.reloaded_at else { return };
        let over = at.elapsed() >= RELOAD_TAKES;
        if over || self.looked_at.is_none_or(|looked| looked < at) {
            self.plugin.look_again();
            self.looked_at = Some(Instant::now());
        }
        if over {
            self.reloaded_at = None;
        }
    }

    fn hear(&mut self, patience: Duration) {
        let news = self.plugin.mailbox.wait(patience);
        if let Some(timetable) = news.timetable {
            let keys = timetable.entries().len();
            if !self.heard && keys > 0 {
                self.plugin.say(Level::Note, &format!("the farm's first ticket keys are here: {keys}"));
                self.heard = true;
            }
            self.timetable = timetable;
        }
        if news.reloaded {
            self.reloaded_at = Some(Instant::now());
            self.set_at = None;
        }
    }

    fn apply(&mut self) {
        // Until the farm speaks, an operator's own key file is better than a random key.
        if !self.heard && settings::ticket_key_file(&self.plugin.api).is_some() {
            return;
        }
        let draw = || {
            let mut record = Zeroizing::new([0; RECORD_BYTES]);
            random::fill(record.as_mut_slice()).map(|()| record)
        };
        let choice = match self.own.choose(&self.timetable, wall_ms(), draw) {
            Ok(choice) => choice,
            Err(error) => return self.fail(error),
        };
        if choice.new_own_key {
            self.plugin.counters.own_keys.fetch_add(1, Ordering::Relaxed);
            let why = if self.heard { "no key of the farm may seal now" } else { "no ticket keys from a daemon yet" };
            self.plugin
                .say(Level::Warning, &format!("{why}: sealing tickets with a random key that only this host has"));
        } else if self.own_key_seals && !choice.own_key_seals {
            self.plugin.say(Level::Note, "sealing tickets with the farm's key again");
        }
        self.own_key_seals = choice.own_key_seals;
        let reloading = self.reloaded_at.is_some_and(|at| at.elapsed() < RELOAD_TAKES);
        let due = self.set_at.is_none_or(|at| at.elapsed() >= SET_AGAIN_EVERY) || reloading;
        if *choice.records != *self.set || due {
            if self.plugin.api.set_ticket_keys(&choice.records) {
                self.set = choice.records;
                self.set_at = Some(Instant::now());
            } else {
                self.set_at = None;
                self.fail("ATS refused the ticket keys");
            }
        }
    }

    fn fail(&mut self, error: &str) {
        self.plugin.counters.apply_errors.fetch_add(1, Ordering::Relaxed);
        if let Some(times) = self.errors.pass(Instant::now()) {
            self.plugin.say(Level::Error, &format!("{error}; trying again every second{times}"));
        }
    }
}
