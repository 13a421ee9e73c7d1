//! The way to the daemon: its socket, if it is the daemon's.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Connects to the socket at `path`, if a user serves it from whom ATS may take keys: root, the owner of the socket's folder, or ATS's
/// own. In a folder where all may write any local user can serve a socket.
pub(crate) fn connect(path: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(path)?;
    let served_by = served_by(&stream)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let owner = std::fs::metadata(folder)?.uid();
    // SAFETY: it takes nothing and cannot fail.
    let own = unsafe { libc::geteuid() };
    if is_trusted(served_by, owner, own) {
        return Ok(stream);
    }
    let folder = folder.display();
    let text =
        format!("user {served_by} serves it, who is neither root, nor the owner of {folder}, nor ATS's own user");
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}

fn is_trusted(served_by: u32, owner: u32, own: u32) -> bool {
    served_by == 0 || served_by == owner || served_by == own
}

/// The user who serves the socket, as the kernel says it.
fn served_by(stream: &UnixStream) -> io::Result<u32> {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: room for the option's value and its length, of a descriptor that is open as long as `stream` is borrowed.
    let got = unsafe {
        libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut peer).cast(), &raw mut len)
    };
    if got == 0 { Ok(peer.uid) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    #[test]
    fn root_the_folders_owner_and_ats_itself_are_trusted_and_no_other_user() {
        for (served_by, trusted) in [(0, true), (7, true), (8, true), (9, false), (u32::MAX, false)] {
            assert_eq!(is_trusted(served_by, 7, 8), trusted, "{served_by}");
        }
    }

    /// Serves a socket at `path` as `user`, whom this thread alone becomes.
    fn serve_as(user: u32, path: &Path) -> UnixListener {
        let become_user = || {
            // SAFETY: three numbers; the system call, unlike the C library's function, changes this thread alone.
            let became = unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) };
            assert_eq!(became, 0, "{}", io::Error::last_os_error());
            UnixListener::bind(path).unwrap()
        };
        thread::scope(|scope| scope.spawn(become_user).join().unwrap())
    }

    #[test]
    fn no_connection_is_made_to_a_socket_that_another_user_serves() {
        // SAFETY: it takes nothing and cannot fail.
        let own = unsafe { libc::geteuid() };
        let folder = std::env::temp_dir().join(format!("resumed-served-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, Permissions::from_mode(0o1777)).unwrap();
        let _listener = serve_as(own, &folder.join("own"));
        let trusted = connect(&folder.join("own"));
        // Only root can be another user.
        let other = (own == 0).then(|| {
            let _listener = serve_as(65_534, &folder.join("other"));
            let refused = connect(&folder.join("other"));
            std::os::unix::fs::chown(&folder, Some(65_534), None).unwrap();
            (refused, connect(&folder.join("other")))
        });
        fs::remove_dir_all(&folder).unwrap();
        trusted.unwrap();
        if let Some((refused, of_the_folders_owner)) = other {
            let refused = refused.unwrap_err().to_string();
            assert!(refused.starts_with("user 65534 serves it, who is neither root, nor the owner of /"), "{refused}");
            of_the_folders_owner.unwrap();
        }
    }
}
