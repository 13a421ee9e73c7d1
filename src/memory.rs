//! Keeps what a process knows where it is: keys, farm secrets and sessions reach neither a swap area nor a core dump.
//!
//! All memory is locked, not single pages: key material passes through OpenSSL, the AMQP library and buffers of the
//! runtime, and nobody could name all the pages. A page is locked when it is first used, so what is only reserved costs
//! nothing.

use nix::errno::Errno;
use nix::libc::MCL_ONFAULT;
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

/// CAP_IPC_LOCK: the limit does not hold. See capabilities(7).
const IPC_LOCK: u32 = 14;

/// What could not be done. The daemon runs nevertheless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Weakness {
    /// A lock would make the process run out of memory later.
    #[error(
        "memory is not locked, because only {limit} bytes may be (RLIMIT_MEMLOCK): where swap is active, keys can reach \
         it; set LimitMEMLOCK=infinity, as in resumed.service"
    )]
    Limited {
        /// The limit in bytes.
        limit: u64,
    },
    /// The system refused to lock memory.
    #[error("memory is not locked: {0}; where swap is active, keys can reach it")]
    Unlocked(Errno),
    /// The system refused to forgo core dumps.
    #[error("a crash may leave a core dump that holds keys: {0}")]
    Dumpable(Errno),
}

/// Locks all memory of this process, also what it takes later, and forbids core dumps of it and debuggers of other users.
/// To be called before any key is read. Returns what could not be done.
#[must_use]
pub fn keep() -> Vec<Weakness> {
    [set_dumpable(false).map_err(Weakness::Dumpable), lock()].into_iter().filter_map(Result::err).collect()
}

fn lock() -> Result<(), Weakness> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK).map_err(Weakness::Unlocked)?;
    // A process may raise its own limit as far as the hard one.
    let limit = match soft < hard {
        true if setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard).is_ok() => hard,
        _ => soft,
    };
    // Unreadable, as without /proc: then only the limit counts.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if !may_lock_all(limit, &status) {
        return Err(Weakness::Limited { limit });
    }
    let flags = MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | MlockAllFlags::from_bits_retain(MCL_ONFAULT);
    mlockall(flags).map_err(Weakness::Unlocked)
}

/// Under a finite limit later allocations would fail. `status` is the text of /proc/self/status, see proc(5).
fn may_lock_all(limit: u64, status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    limit == RLIM_INFINITY || effective >> IPC_LOCK & 1 == 1
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// In the environment of a run of this test program: [`the_soft_limit_is_raised`] is the only test, in a process of its own.
    const APART: &str = "RESUMED_TEST_OF_LIMITS";

    #[test]
    fn the_soft_limit_is_raised() {
        if std::env::var_os(APART).is_some() {
            let (_, hard) = getrlimit(Resource::RLIMIT_MEMLOCK).unwrap();
            setrlimit(Resource::RLIMIT_MEMLOCK, 4096.min(hard), hard).unwrap();
            let _outcome = lock();
            assert_eq!(getrlimit(Resource::RLIMIT_MEMLOCK).unwrap(), (hard, hard));
            return;
        }
        // Limits are the process's: other tests run beside this one.
        let name = "memory::tests::the_soft_limit_is_raised";
        let apart = Command::new(std::env::current_exe().unwrap()).args(["--exact", name]).env(APART, "1").output();
        let apart = apart.unwrap();
        let text = String::from_utf8_lossy(&apart.stdout).into_owned();
        assert!(apart.status.success() && text.contains("1 passed"), "{text}");
    }

    #[test]
    fn all_memory_is_locked_only_where_no_limit_holds() {
        let status =
            |capabilities: &str| format!("Name:\tresumed\nCapPrm:\t000001ffffffffff\nCapEff:\t{capabilities}\n");
        assert!(may_lock_all(RLIM_INFINITY, ""));
        assert!(may_lock_all(RLIM_INFINITY, &status("0000000000000000")));
        assert!(may_lock_all(65_536, &status("0000000000004000")));
        assert!(may_lock_all(0, &status("000001ffffffffff")));
        assert!(!may_lock_all(65_536, &status("0000000000000000")));
        assert!(!may_lock_all(u64::MAX - 1, &status("000001ffffffbfff")));
        assert!(!may_lock_all(65_536, ""));
    }
}
