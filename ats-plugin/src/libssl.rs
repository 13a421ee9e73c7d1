//! Whose OpenSSL this is. The plugin hands ATS sessions, and reads sessions of ATS: structures that no two libraries lay out alike.
//!
//! An ATS that somebody built may have an OpenSSL of its own inside, or load another than the plugin was linked to. Then the
//! process has two, and a session that one has made is memory of unknown content to the other. Ticket keys are plain bytes and
//! pass. What is unsafe here asks the dynamic linker, or has the plugin's own library read a file.

use std::ffi::{CStr, c_int, c_ulong, c_void};
use std::fmt;
use std::ptr;

use crate::api::sha256;

/// The series of OpenSSL in whose headers the plugin was compiled: `build.rs` has it from openssl-sys.
const COMPILED_FOR: u32 = parse(env!("RESUMED_OPENSSL_SERIES"));

/// Why ATS's sessions are not the plugin's to touch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Foreign {
    /// ATS and its libraries export no such function: OpenSSL is inside ATS, or under other names.
    Hidden(&'static str),
    /// ATS's own calls of this function go elsewhere than the plugin's.
    Apart(&'static str),
    /// The library is of another series than the plugin was compiled for.
    Series {
        /// `OpenSSL_version_num` of the library.
        runs: c_ulong,
    },
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hidden(name) => {
                write!(f, "Traffic Server shows the plugin no OpenSSL of its own (no {name} in it or its libraries)")?;
            }
            Self::Apart(name) => {
                write!(f, "Traffic Server loads another OpenSSL than the plugin (each has a {name} of its own)")?;
            }
            Self::Series { runs } => {
                let (major, minor, patch) =
                    (runs >> 28, runs >> 20 & 0xff, if runs >> 28 >= 3 { runs >> 4 & 0xff } else { runs >> 12 & 0xff });
                write!(
                    f,
                    "Traffic Server runs on OpenSSL {major}.{minor}.{patch}, and the plugin was built for {COMPILED_FOR}"
                )?;
            }
        }
        write!(f, ": it shares ticket keys only; for session IDs, build the plugin with the OpenSSL of Traffic Server")
    }
}

/// Why this process's sessions must be left alone; none if ATS and the plugin call one library, of the right series.
pub(crate) fn foreign() -> Option<Foreign> {
    // SAFETY: takes no argument and reads a constant.
    let runs = unsafe { openssl_sys::OpenSSL_version_num() };
    decide(runs, called().into_iter().map(|(name, ours)| (name_of(name), ours, at_ats(name))))
}

/// `calls`: each function's name, where the plugin's calls go, and where ATS's go.
fn decide(runs: c_ulong, calls: impl Iterator<Item = (&'static str, usize, Option<usize>)>) -> Option<Foreign> {
    if runs >> 28 != c_ulong::from(COMPILED_FOR) {
        return Some(Foreign::Series { runs });
    }
    calls.into_iter().find_map(|(name, ours, theirs)| match theirs {
        None => Some(Foreign::Hidden(name)),
        Some(theirs) if theirs != ours => Some(Foreign::Apart(name)),
        Some(_) => None,
    })
}

fn name_of(name: &'static CStr) -> &'static str {
    name.to_str().unwrap_or_default()
}

/// Every function that touches a session or a connection, and where the plugin's calls of it go.
fn called() -> [(&'static CStr, usize); 10] {
    use openssl_sys as ssl;
    [
        (c"d2i_SSL_SESSION", ssl::d2i_SSL_SESSION as *const () as usize),
        (c"i2d_SSL_SESSION", ssl::i2d_SSL_SESSION as *const () as usize),
        (c"SSL_SESSION_free", ssl::SSL_SESSION_free as *const () as usize),
        (c"SSL_SESSION_get_id", ssl::SSL_SESSION_get_id as *const () as usize),
        (c"SSL_SESSION_get_master_key", ssl::SSL_SESSION_get_master_key as *const () as usize),
        (c"SSL_SESSION_get_protocol_version", ssl::SSL_SESSION_get_protocol_version as *const () as usize),
        (c"SSL_SESSION_is_resumable", SSL_SESSION_is_resumable as *const () as usize),
        (c"SSL_get_session", ssl::SSL_get_session as *const () as usize),
        (c"SSL_get_state", SSL_get_state as *const () as usize),
        (c"SSL_session_reused", ssl::SSL_session_reused as *const () as usize),
    ]
}

// What openssl-sys leaves out.
unsafe extern "C" {
    /// Whether OpenSSL would still resume it.
    pub(crate) fn SSL_SESSION_is_resumable(session: *const openssl_sys::SSL_SESSION) -> c_int;
    /// The state of the handshake.
    pub(crate) fn SSL_get_state(ssl: *const openssl_sys::SSL) -> c_int;
}

/// Where calls of `name` go that ATS and the libraries that it was linked to make. The plugin's own libraries are not asked.
fn at_ats(name: &CStr) -> Option<usize> {
    // SAFETY: a null name asks for the program itself, which stays; closing the handle leaves it so.
    let address = unsafe {
        let program = libc::dlopen(ptr::null(), libc::RTLD_LAZY);
        if program.is_null() {
            return None;
        }
        let address: *mut c_void = libc::dlsym(program, name.as_ptr());
        libc::dlclose(program);
        address
    };
    (!address.is_null()).then_some(address as usize)
}

/// A digest of the name of each authority in the PEM file `path`: each once, in the file's order, as ATS hashes them into its session
/// ID context. None if there is none.
pub(crate) fn authorities(path: &CStr) -> Option<Vec<[u8; 32]>> {
    // SAFETY: a path that ends in zero.
    let names = unsafe { openssl_sys::SSL_load_client_CA_file(path.as_ptr()) };
    let digests = (!names.is_null()).then(|| X509Names(names).digests());
    // What it did not find would otherwise be blamed on the next TLS call of this thread.
    // SAFETY: empties this thread's queue.
    unsafe { openssl_sys::ERR_clear_error() };
    digests
}

struct X509Names(*mut openssl_sys::stack_st_X509_NAME);

impl X509Names {
    fn digests(&self) -> Vec<[u8; 32]> {
        // SAFETY: a live stack.
        let count = unsafe { openssl_sys::OPENSSL_sk_num(self.0.cast()) };
        // SAFETY: one of its elements, which live as long as it.
        let name = |at| unsafe { openssl_sys::OPENSSL_sk_value(self.0.cast(), at) }.cast::<openssl_sys::X509_NAME>();
        (0..count).map(|at| sha256(&der(name(at)))).collect()
    }
}

/// The name's encoding.
fn der(name: *mut openssl_sys::X509_NAME) -> Vec<u8> {
    // SAFETY: a live name; null asks for the length only.
    let len = unsafe { openssl_sys::i2d_X509_NAME(name, ptr::null_mut()) };
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    let mut end = bytes.as_mut_ptr();
    // SAFETY: writes as many bytes as it has just said.
    unsafe { openssl_sys::i2d_X509_NAME(name, &raw mut end) };
    bytes
}

impl Drop for X509Names {
    fn drop(&mut self) {
        unsafe extern "C" fn free(name: *mut c_void) {
            // SAFETY: called for each element, once.
            unsafe { openssl_sys::X509_NAME_free(name.cast()) };
        }
        // SAFETY: the caller's stack, freed once.
        unsafe { openssl_sys::OPENSSL_sk_pop_free(self.0.cast(), Some(free)) };
    }
}

/// A decimal number.
const fn parse(text: &str) -> u32 {
    let (bytes, mut at, mut sum) = (text.as_bytes(), 0, 0);
    while at < bytes.len() {
        sum = sum * 10 + (bytes[at] - b'0') as u32;
        at += 1;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_library_of_the_right_series_is_no_stranger() {
        let runs = c_ulong::from(COMPILED_FOR) << 28 | 0x0f;
        assert_eq!(decide(runs, [("f", 1, Some(1))].into_iter()), None);
        assert_eq!(decide(runs, [("f", 1, Some(1)), ("g", 2, Some(3))].into_iter()), Some(Foreign::Apart("g")));
        assert_eq!(decide(runs, [("f", 1, None)].into_iter()), Some(Foreign::Hidden("f")));
    }

    #[test]
    fn the_version_is_named_as_openssl_numbers_it() {
        let one = decide(0x1010_117f, std::iter::empty()).expect("another series").to_string();
        assert!(one.contains("OpenSSL 1.1.1,"), "{one}");
        assert!(Foreign::Series { runs: 0x3050_0040 }.to_string().contains("OpenSSL 3.5.4,"));
    }

    #[test]
    fn a_program_that_loads_the_same_library_has_nothing_foreign() {
        assert_eq!(foreign(), None);
    }
}
