//! Traffic Server's plugin API, looked up by name at load: one binary serves ATS 9, 10 and 11.
//!
//! ATS 9 exports C names; ATS 10 exports the same functions as C++, under mangled names; ATS 11 has no session
//! functions any more. Everything unsafe about calling ATS is in this file.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io::{self, Write};
use std::ptr;
use std::sync::OnceLock;

use zeroize::Zeroizing;

use crate::libssl::{self, Foreign, SSL_SESSION_is_resumable, SSL_get_state};
use crate::session::{MASTER_KEY_BYTES, SessionId};

/// A `TSEventFunc`.
pub(crate) type EventFunction = unsafe extern "C" fn(cont: *mut c_void, event: c_int, data: *mut c_void) -> c_int;

/// `TSSslSessionID`: the same in every version that has it.
#[repr(C)]
pub(crate) struct RawSessionId {
    len: usize,
    bytes: [u8; 32],
}

impl RawSessionId {
    fn new(id: &SessionId) -> Self {
        let mut bytes = [0; 32];
        bytes[..id.as_bytes().len()].copy_from_slice(id.as_bytes());
        Self { len: id.as_bytes().len(), bytes }
    }

    /// The ID; none if ATS hands over a length that cannot be.
    pub(crate) fn get(&self) -> Option<SessionId> {
        SessionId::new(self.bytes.get(..self.len)?)
    }
}

/// Events of the session hook.
pub(crate) const SESSION_GET: c_int = 2000;
/// A full handshake has made a session.
pub(crate) const SESSION_NEW: c_int = 2001;
/// OpenSSL has dropped a session.
pub(crate) const SESSION_REMOVE: c_int = 2002;

const SUCCESS: c_int = 0;
const LIFECYCLE_SHUTDOWN_HOOK: c_int = 7;
const RECORD_INT: c_int = 1;
const STAT_NON_PERSISTENT: c_int = 2;
const STAT_SYNC_SUM: c_int = 0;

type Print = unsafe extern "C" fn(*const c_char, ...);

#[repr(C)]
struct Registration {
    plugin_name: *const c_char,
    vendor_name: *const c_char,
    support_email: *const c_char,
}

/// What of the API this ATS offers.
pub(crate) struct Api {
    major: c_int,
    version: String,
    register: Option<unsafe extern "C" fn(*const Registration) -> c_int>,
    thread_init: Option<unsafe extern "C" fn() -> *mut c_void>,
    cont_create: Option<unsafe extern "C" fn(EventFunction, *mut c_void) -> *mut c_void>,
    lifecycle_hook_add: Option<unsafe extern "C" fn(c_int, *mut c_void)>,
    update_register: Option<UpdateRegister>,
    ticket_key_update: Option<unsafe extern "C" fn(*mut c_char, c_int) -> c_int>,
    sessions: Option<Sessions>,
    foreign: Option<Foreign>,
    mgmt_int_get: Option<unsafe extern "C" fn(*const c_char, *mut i64) -> c_int>,
    mgmt_string_get: Option<unsafe extern "C" fn(*const c_char, *mut *mut c_char) -> c_int>,
    free: Option<unsafe extern "C" fn(*mut c_void)>,
    config_dir_get: Option<unsafe extern "C" fn() -> *const c_char>,
    stat_create: Option<unsafe extern "C" fn(*const c_char, c_int, c_int, c_int) -> c_int>,
    stat_int_set: Option<unsafe extern "C" fn(c_int, i64)>,
}

enum UpdateRegister {
    /// ATS 9.
    Two(unsafe extern "C" fn(*mut c_void, *const c_char)),
    /// ATS 10: a third argument, which may be null.
    Three(unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char)),
}

/// The part of the API that ATS 11 lacks.
struct Sessions {
    hook: c_int,
    close_hook: c_int,
    hook_add: unsafe extern "C" fn(c_int, *mut c_void),
    get_buffer: unsafe extern "C" fn(*const RawSessionId, *mut c_char, *mut c_int) -> c_int,
    insert: unsafe extern "C" fn(*const RawSessionId, *mut c_void, *mut c_void) -> c_int,
    remove: unsafe extern "C" fn(*const RawSessionId) -> c_int,
    tls_of: unsafe extern "C" fn(*mut c_void) -> *mut c_void,
    reenable: unsafe extern "C" fn(*mut c_void),
}

/// `TLS_ST_OK` of OpenSSL's `OSSL_HANDSHAKE_STATE`: the handshake is over. It stays so when the connection fails later.
const HANDSHAKE_OVER: c_int = 1;

/// The first of `names` that the process exports, as a function.
///
/// # Safety
/// `F` must be the C function pointer type that every one of `names` has in every ATS that exports it.
unsafe fn function<F: Copy>(names: &[&CStr]) -> Option<F> {
    const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
    names.iter().find_map(|name| {
        // SAFETY: RTLD_DEFAULT and a string that ends in zero, as dlsym wants.
        let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
        // SAFETY: not null, of a pointer's size (asserted above), and of type F by this function's contract.
        (!address.is_null()).then(|| unsafe { std::mem::transmute_copy::<*mut c_void, F>(&address) })
    })
}

impl Api {
    /// Looks everything up.
    pub(crate) fn resolve() -> Self {
        // SAFETY: the types are those of ts/ts.h in 9.2 and 10.1, with opaque pointers as void pointers, enums as int
        // and TSMgmtInt as int64_t; the mangled names spell the same types out.
        unsafe {
            let version: Option<unsafe extern "C" fn() -> *const c_char> =
                function(&[c"TSTrafficServerVersionGet", c"_Z25TSTrafficServerVersionGetv"]);
            let major: Option<unsafe extern "C" fn() -> c_int> =
                function(&[c"TSTrafficServerVersionGetMajor", c"_Z30TSTrafficServerVersionGetMajorv"]);
            let major = major.map_or(0, |major| major());
            let sessions = Sessions::resolve(major);
            let foreign = sessions.as_ref().and_then(|_| libssl::foreign());
            Self {
                major,
                version: version.map_or_else(String::new, |version| text(version())),
                register: function(&[c"TSPluginRegister", c"_Z16TSPluginRegisterPK24TSPluginRegistrationInfo"]),
                thread_init: function(&[c"TSThreadInit", c"_Z12TSThreadInitv"]),
                cont_create: function(&[c"TSContCreate", c"_Z12TSContCreatePFiP10tsapi_cont7TSEventPvEP11tsapi_mutex"]),
                lifecycle_hook_add: function(&[
                    c"TSLifecycleHookAdd",
                    c"_Z18TSLifecycleHookAdd17TSLifecycleHookIDP10tsapi_cont",
                ]),
                update_register: function(&[c"TSMgmtUpdateRegister"])
                    .map(UpdateRegister::Two)
                    .or_else(|| function(&[c"_Z20TSMgmtUpdateRegisterP10tsapi_contPKcS2_"]).map(UpdateRegister::Three)),
                ticket_key_update: function(&[c"TSSslTicketKeyUpdate", c"_Z20TSSslTicketKeyUpdatePci"]),
                sessions: sessions.filter(|_| foreign.is_none()),
                foreign,
                mgmt_int_get: function(&[c"TSMgmtIntGet", c"_Z12TSMgmtIntGetPKcPl"]),
                mgmt_string_get: function(&[c"TSMgmtStringGet", c"_Z15TSMgmtStringGetPKcPPc"]),
                free: function(&[c"_TSfree", c"_Z6TSfreePv"]),
                config_dir_get: function(&[c"TSConfigDirGet", c"_Z14TSConfigDirGetv"]),
                stat_create: function(&[
                    c"TSStatCreate",
                    c"_Z12TSStatCreatePKc16TSRecordDataType17TSStatPersistence10TSStatSync",
                ]),
                stat_int_set: function(&[c"TSStatIntSet", c"_Z12TSStatIntSetil"]),
            }
        }
    }

    /// The whole version, as `9.2.9`.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// The first number of the version; 0 if it does not say.
    pub(crate) fn major(&self) -> i32 {
        self.major
    }

    /// What this ATS lacks without which the plugin can do nothing.
    pub(crate) fn missing(&self) -> Option<String> {
        if self.major < 9 {
            return Some(format!("Traffic Server {:?} is older than 9", self.version));
        }
        let missing = [
            ("TSContCreate", self.cont_create.is_none()),
            ("TSThreadInit", self.thread_init.is_none()),
            ("TSSslTicketKeyUpdate", self.ticket_key_update.is_none()),
        ];
        let missing: Vec<&str> = missing.iter().filter(|(_, missing)| *missing).map(|(name, _)| *name).collect();
        (!missing.is_empty()).then(|| format!("Traffic Server {} has no {}", self.version, missing.join(", ")))
    }

    /// Whether this ATS lets plugins share its session-ID cache.
    pub(crate) fn has_sessions(&self) -> bool {
        self.sessions.is_some()
    }

    /// Why the sessions that this ATS would share are left alone.
    pub(crate) fn foreign(&self) -> Option<&Foreign> {
        self.foreign.as_ref()
    }

    /// Tells ATS who this plugin is.
    pub(crate) fn register(&self) -> bool {
        let Some(register) = self.register else { return true };
        let registration = Registration {
            plugin_name: c"resumed".as_ptr(),
            vendor_name: c"resumed".as_ptr(),
            support_email: c"".as_ptr(),
        };
        // SAFETY: three strings that end in zero and live for ever; ATS copies them.
        unsafe { register(&raw const registration) == SUCCESS }
    }

    /// Makes the calling thread one that may call ATS. For threads that live as long as ATS: it keeps a megabyte and a file
    /// descriptor for each thread that was made one, also when the thread has ended. Another call by the same thread does nothing.
    pub(crate) fn thread_init(&self) {
        thread_local! {
            static IS_ONE: Cell<bool> = const { Cell::new(false) };
        }
        if let Some(init) = self.thread_init
            && !IS_ONE.replace(true)
        {
            // SAFETY: called once by a thread that ATS did not start.
            unsafe { init() };
        }
    }

    /// Has ATS call `function` for every event of the session hook. No effect without session functions.
    pub(crate) fn on_session(&self, function: EventFunction) {
        if let (Some(sessions), Some(cont)) = (&self.sessions, self.continuation(function)) {
            // SAFETY: a continuation that is never destroyed, and this version's number of the hook.
            unsafe { (sessions.hook_add)(sessions.hook, cont) };
        }
    }

    /// Has ATS call `function` when a client's TLS connection ends, before its TLS state is freed. It must end with
    /// [`Self::go_on`]. No effect without session functions.
    pub(crate) fn on_close(&self, function: EventFunction) {
        if let (Some(sessions), Some(cont)) = (&self.sessions, self.continuation(function)) {
            // SAFETY: a continuation that is never destroyed, and this version's number of the hook.
            unsafe { (sessions.hook_add)(sessions.close_hook, cont) };
        }
    }

    /// Lets ATS go on with a connection that it handed to a hook: other plugins hear of it then.
    ///
    /// # Safety
    /// `connection` is what ATS has handed to this call of the hook.
    pub(crate) unsafe fn go_on(&self, connection: *mut c_void) {
        if let Some(sessions) = &self.sessions {
            // SAFETY: by this function's contract.
            unsafe { (sessions.reenable)(connection) };
        }
    }

    /// The TLS 1.2 session of a connection, if OpenSSL has dropped it while the connection was established.
    ///
    /// # Safety
    /// `connection` is what ATS has handed to this call of the hook of a connection's end.
    pub(crate) unsafe fn dropped_session(&self, connection: *mut c_void) -> Option<Dropped> {
        let tls_of = self.sessions.as_ref()?.tls_of;
        // SAFETY: a live connection by this function's contract; ATS gives null or the SSL that it frees later.
        let ssl = unsafe { tls_of(connection) }.cast::<openssl_sys::SSL>();
        if ssl.is_null() {
            return None;
        }
        // SAFETY: a live SSL, whose session lives as long unless it is null, and is asked in one step; all of it only reads.
        unsafe {
            let session = openssl_sys::SSL_get_session(ssl);
            if session.is_null()
                || SSL_SESSION_is_resumable(session) == 1
                || openssl_sys::SSL_SESSION_get_protocol_version(session) > openssl_sys::TLS1_2_VERSION
                || SSL_get_state(ssl) != HANDSHAKE_OVER
            {
                return None;
            }
            Dropped::of(session, openssl_sys::SSL_session_reused(ssl) == 1)
        }
    }

    /// Has ATS call `function` after an operator had it read its configuration again.
    pub(crate) fn on_reload(&self, function: EventFunction) {
        let (Some(register), Some(cont)) = (&self.update_register, self.continuation(function)) else { return };
        // SAFETY: a continuation that is never destroyed and a string that lives for ever; the third may be null.
        unsafe {
            match register {
                UpdateRegister::Two(register) => register(cont, c"resumed".as_ptr()),
                UpdateRegister::Three(register) => register(cont, c"resumed".as_ptr(), ptr::null()),
            }
        }
    }

    /// Has ATS call `function` when it begins to stop.
    pub(crate) fn on_shutdown(&self, function: EventFunction) {
        if let (Some(add), Some(cont)) = (self.lifecycle_hook_add, self.continuation(function)) {
            // SAFETY: a continuation that is never destroyed; the hook has this number in 9.0 to 11.
            unsafe { add(LIFECYCLE_SHUTDOWN_HOOK, cont) };
        }
    }

    fn continuation(&self, function: EventFunction) -> Option<*mut c_void> {
        // SAFETY: a function for the life of the process, and no mutex: it locks for itself.
        self.cont_create.map(|create| unsafe { create(function, ptr::null_mut()) }).filter(|cont| !cont.is_null())
    }

    /// Replaces ATS's ticket keys by `records`: 48 bytes each, the first seals. False if ATS refused.
    pub(crate) fn set_ticket_keys(&self, records: &[u8]) -> bool {
        let (Some(update), Ok(len)) = (self.ticket_key_update, c_int::try_from(records.len())) else { return false };
        // SAFETY: ATS reads `len` bytes and copies them; that its argument is not const is an oversight.
        unsafe { update(records.as_ptr().cast_mut().cast(), len) == SUCCESS }
    }

    /// Copies the DER of a session from ATS's cache into `into` and returns its whole length, which may be larger; 0 if
    /// ATS does not have it.
    pub(crate) fn session_der(&self, id: &SessionId, into: &mut [u8]) -> usize {
        let Some(sessions) = &self.sessions else { return 0 };
        let raw = RawSessionId::new(id);
        let mut len = c_int::try_from(into.len()).unwrap_or(c_int::MAX);
        // SAFETY: ATS reads the ID and writes at most `len` bytes.
        let whole = unsafe { (sessions.get_buffer)(&raw const raw, into.as_mut_ptr().cast(), &raw mut len) };
        usize::try_from(whole).unwrap_or(0)
    }

    /// Puts a session into ATS's cache.
    pub(crate) fn insert_session(&self, id: &SessionId, session: &OpensslSession) -> bool {
        let Some(sessions) = &self.sessions else { return false };
        let raw = RawSessionId::new(id);
        // SAFETY: a live SSL_SESSION, of which ATS keeps a copy; no connection belongs to it.
        unsafe { (sessions.insert)(&raw const raw, session.0.cast(), ptr::null_mut()) == SUCCESS }
    }

    /// Takes a session out of ATS's cache, if it is there.
    pub(crate) fn remove_session(&self, id: &SessionId) {
        if let Some(sessions) = &self.sessions {
            let raw = RawSessionId::new(id);
            // SAFETY: ATS reads the ID.
            unsafe { (sessions.remove)(&raw const raw) };
        }
    }

    /// An integer of `records.config`; none if this ATS does not know the name.
    pub(crate) fn setting(&self, name: &CStr) -> Option<i64> {
        let get = self.mgmt_int_get?;
        let mut value = 0;
        // SAFETY: a name that ends in zero, and room for the value.
        (unsafe { get(name.as_ptr(), &raw mut value) } == SUCCESS).then_some(value)
    }

    /// A text of `records.config`; none if it is unset or this ATS does not know the name.
    pub(crate) fn text_setting(&self, name: &CStr) -> Option<String> {
        let get = self.mgmt_string_get?;
        let mut value = ptr::null_mut();
        // SAFETY: a name that ends in zero, and room for the pointer.
        if unsafe { get(name.as_ptr(), &raw mut value) } != SUCCESS || value.is_null() {
            return None;
        }
        // SAFETY: ATS gave a string that ends in zero.
        let found = unsafe { text(value) };
        if let Some(free) = self.free {
            // SAFETY: the string is the caller's, to be freed by TSfree.
            unsafe { free(value.cast()) };
        }
        (!found.is_empty()).then_some(found)
    }

    /// The folder of ATS's configuration.
    pub(crate) fn config_dir(&self) -> Option<String> {
        // SAFETY: no arguments; the string that it returns ends in zero and lives for ever.
        self.config_dir_get.map(|get| unsafe { text(get()) })
    }

    /// Makes a statistic; none if ATS has no room for it.
    pub(crate) fn new_statistic(&self, name: &CStr) -> Option<Statistic> {
        // SAFETY: a name that ends in zero, and values of ATS's enumerations.
        let number = unsafe { self.stat_create?(name.as_ptr(), RECORD_INT, STAT_NON_PERSISTENT, STAT_SYNC_SUM) };
        (number >= 0).then_some(Statistic(number))
    }

    /// Sets a statistic.
    pub(crate) fn set_statistic(&self, statistic: &Statistic, value: u64) {
        if let Some(set) = self.stat_int_set {
            // SAFETY: the number of a statistic that ATS has made.
            unsafe { set(statistic.0, i64::try_from(value).unwrap_or(i64::MAX)) };
        }
    }
}

impl Sessions {
    fn resolve(major: c_int) -> Option<Self> {
        // SAFETY: as in `Api::resolve`; the ID's struct is called TSSslSessionID in C++.
        unsafe {
            Some(Self {
                hook: if major == 9 { 24 } else { 27 },
                close_hook: if major == 9 { 18 } else { 21 },
                hook_add: function(&[c"TSHttpHookAdd", c"_Z13TSHttpHookAdd12TSHttpHookIDP10tsapi_cont"])?,
                get_buffer: function(&[c"TSSslSessionGetBuffer", c"_Z21TSSslSessionGetBufferPK14TSSslSessionIDPcPi"])?,
                insert: function(&[
                    c"TSSslSessionInsert",
                    c"_Z18TSSslSessionInsertPK14TSSslSessionIDP17tsapi_ssl_sessionP13tsapi_ssl_obj",
                ])?,
                remove: function(&[c"TSSslSessionRemove", c"_Z18TSSslSessionRemovePK14TSSslSessionID"])?,
                tls_of: function(&[c"TSVConnSslConnectionGet", c"_Z23TSVConnSslConnectionGetP10tsapi_cont"])?,
                reenable: function(&[c"TSVConnReenable", c"_Z15TSVConnReenableP10tsapi_cont"])?,
            })
        }
    }
}

/// A statistic that ATS has made.
pub(crate) struct Statistic(c_int);

/// # Safety
/// `pointer` is null or a string that ends in zero.
unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: by this function's contract.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

/// A session that OpenSSL has dropped in the course of a connection.
pub(crate) struct Dropped {
    pub id: SessionId,
    /// The connection came back to it; else it was made for the connection.
    pub resumed: bool,
    /// What the connection's keys come from.
    pub master_key: Zeroizing<[u8; MASTER_KEY_BYTES]>,
    /// How long its DER is.
    pub der_len: usize,
}

impl Dropped {
    /// None without an ID: nothing but a ticket comes back to such a session.
    ///
    /// # Safety
    /// `session` is alive.
    unsafe fn of(session: *mut openssl_sys::SSL_SESSION, resumed: bool) -> Option<Self> {
        let mut len = 0;
        let mut master_key = Zeroizing::new([0; MASTER_KEY_BYTES]);
        // SAFETY: by this function's contract; the ID has `len` bytes, at most `MASTER_KEY_BYTES` of the key are written, and a
        // null pointer asks for nothing but the DER's length.
        let (id, der_len) = unsafe {
            let id = openssl_sys::SSL_SESSION_get_id(session, &raw mut len);
            if id.is_null() || len == 0 {
                return None;
            }
            let id = SessionId::new(std::slice::from_raw_parts(id, usize::try_from(len).ok()?))?;
            openssl_sys::SSL_SESSION_get_master_key(session, master_key.as_mut_ptr(), MASTER_KEY_BYTES);
            (id, openssl_sys::i2d_SSL_SESSION(session, ptr::null_mut()))
        };
        Some(Self { id, resumed, master_key, der_len: usize::try_from(der_len).unwrap_or(0) })
    }
}

/// A session that OpenSSL has decoded in full.
pub(crate) struct OpensslSession(*mut openssl_sys::SSL_SESSION);

impl OpensslSession {
    /// None if OpenSSL does not take `der`.
    pub(crate) fn decode(der: &[u8]) -> Option<Self> {
        let mut at = der.as_ptr();
        let len = std::ffi::c_long::try_from(der.len()).ok()?;
        // SAFETY: reads at most `len` bytes and allocates the result.
        let session = unsafe { openssl_sys::d2i_SSL_SESSION(ptr::null_mut(), &raw mut at, len) };
        if session.is_null() {
            // What went wrong would otherwise be blamed on the next TLS call of this thread of ATS.
            // SAFETY: empties this thread's queue.
            unsafe { openssl_sys::ERR_clear_error() };
            return None;
        }
        Some(Self(session))
    }
}

impl Drop for OpensslSession {
    fn drop(&mut self) {
        // SAFETY: made by d2i_SSL_SESSION and freed once.
        unsafe { openssl_sys::SSL_SESSION_free(self.0) };
    }
}

/// Fills `bytes` with random ones from the kernel; false if it has none. Waits, early at boot, until it has enough entropy.
pub(crate) fn kernel_random(bytes: &mut [u8; 32]) -> bool {
    loop {
        // SAFETY: writes at most as many bytes. So few come all at once.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        if usize::try_from(got) == Ok(bytes.len()) {
            return true;
        }
        if std::io::Error::last_os_error().kind() != std::io::ErrorKind::Interrupted {
            return false;
        }
    }
}

/// Fills `bytes` with random ones from OpenSSL; false if it has none.
pub(crate) fn openssl_random(bytes: &mut [u8; 32]) -> bool {
    // SAFETY: writes 32 bytes.
    let filled = unsafe { openssl_sys::RAND_bytes(bytes.as_mut_ptr(), 32) == 1 };
    if !filled {
        // SAFETY: empties this thread's queue of errors.
        unsafe { openssl_sys::ERR_clear_error() };
    }
    filled
}

/// Fills `out`, at most 8,160 bytes, by HKDF-SHA256 (RFC 5869) of `secret`, without a salt. False if OpenSSL cannot.
pub(crate) fn hkdf_sha256(secret: &[u8], info: &[u8], out: &mut [u8]) -> bool {
    let (Ok(secret_len), Ok(info_len)) = (c_int::try_from(secret.len()), c_int::try_from(info.len())) else {
        return false;
    };
    let mut len = out.len();
    // SAFETY: the context is made here and freed once, none of the functions takes a null one, the lengths are those of
    // the slices, which are copied; `derive` writes at most `len` bytes.
    unsafe {
        let context = openssl_sys::EVP_PKEY_CTX_new_id(openssl_sys::EVP_PKEY_HKDF, ptr::null_mut());
        let derived = !context.is_null()
            && openssl_sys::EVP_PKEY_derive_init(context) == 1
            && openssl_sys::EVP_PKEY_CTX_set_hkdf_md(context, openssl_sys::EVP_sha256()) == 1
            && openssl_sys::EVP_PKEY_CTX_set1_hkdf_key(context, secret.as_ptr(), secret_len) == 1
            && openssl_sys::EVP_PKEY_CTX_add1_hkdf_info(context, info.as_ptr(), info_len) == 1
            && openssl_sys::EVP_PKEY_derive(context, out.as_mut_ptr(), &raw mut len) == 1;
        openssl_sys::EVP_PKEY_CTX_free(context);
        if !derived {
            openssl_sys::ERR_clear_error();
        }
        derived && len == out.len()
    }
}

/// Whether two secrets are the same, in a time that does not say where they differ.
pub(crate) fn same_secret(one: &[u8], other: &[u8]) -> bool {
    // SAFETY: both are `one.len()` bytes long.
    one.len() == other.len()
        && unsafe { openssl_sys::CRYPTO_memcmp(one.as_ptr().cast(), other.as_ptr().cast(), one.len()) } == 0
}

/// SHA-256.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut digest = [0; 32];
    // SAFETY: reads the bytes and writes 32.
    unsafe { openssl_sys::SHA256(bytes.as_ptr(), bytes.len(), digest.as_mut_ptr()) };
    digest
}

/// Keeps signals that are meant for ATS away from the calling thread and from those that it starts, and SIGPIPE with
/// them. What a fault of the thread itself raises still reaches ATS's crash log.
pub(crate) fn leave_signals_to_ats() {
    // SAFETY: sigfillset makes the set, sigdelset changes it, and only this thread's mask is set from it.
    unsafe {
        let mut signals = std::mem::zeroed();
        libc::sigfillset(&raw mut signals);
        for own in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGTRAP] {
            libc::sigdelset(&raw mut signals, own);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const signals, ptr::null_mut());
    }
}

/// Reads ATS's argument vector without the plugin's own name.
///
/// # Safety
/// `argv` points to `argc` strings that end in zero.
pub(crate) unsafe fn arguments(argc: c_int, argv: *const *const c_char) -> Vec<String> {
    let count = usize::try_from(argc).unwrap_or(0);
    // SAFETY: by this function's contract.
    (1..count).map(|at| unsafe { text(*argv.add(at)) }).collect()
}

/// Reads the ID that the session hook hands over.
///
/// # Safety
/// `data` is null or what ATS passes to the session hook.
pub(crate) unsafe fn session_id(data: *mut c_void) -> Option<SessionId> {
    // SAFETY: by this function's contract; ATS leaves it alone during the call.
    unsafe { data.cast::<RawSessionId>().as_ref() }.and_then(RawSessionId::get)
}

/// How loud a message is.
#[derive(Clone, Copy)]
pub(crate) enum Level {
    /// Worth knowing.
    Note,
    /// Worth a look.
    Warning,
    /// Something does not work.
    Error,
}

/// Writes one line to ATS's `diags.log`, or to standard error if this ATS offers no way there.
pub(crate) fn say(level: Level, message: &str) {
    static PRINTERS: OnceLock<[Option<Print>; 3]> = OnceLock::new();
    // SAFETY: all take a printf format and its arguments, in every version.
    let printers = PRINTERS.get_or_init(|| unsafe {
        [
            function(&[c"TSNote", c"_Z6TSNotePKcz", c"TSError", c"_Z7TSErrorPKcz"]),
            function(&[c"TSWarning", c"_Z9TSWarningPKcz", c"TSError", c"_Z7TSErrorPKcz"]),
            function(&[c"TSError", c"_Z7TSErrorPKcz"]),
        ]
    });
    let line = format!("[resumed] {message}").replace('\0', "?");
    match (printers[level as usize], CString::new(line)) {
        // SAFETY: the format asks for one string, which ends in zero.
        (Some(print), Ok(line)) => unsafe { print(c"%s".as_ptr(), line.as_ptr()) },
        // Not eprintln!, which panics where that is closed. There is nowhere left to say that it failed.
        _ => drop(writeln!(io::stderr(), "[resumed] {message}")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_line_that_can_be_written_nowhere_ends_nothing() {
        const WITHIN: &str = "RESUMED_TEST_SAYS_IT";
        if std::env::var_os(WITHIN).is_some() {
            return say(Level::Error, "to a standard error that no process reads");
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(ours);
        let mut says_it = Command::new(std::env::current_exe().unwrap());
        says_it.args(["--exact", "--nocapture", "api::tests::a_line_that_can_be_written_nowhere_ends_nothing"]);
        let said = says_it.env(WITHIN, "1").stderr(OwnedFd::from(theirs)).output().unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stdout));
    }
}
