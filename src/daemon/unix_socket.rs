//! Listening on a Unix socket: never with looser rights than asked for, never in place of a live daemon.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::unistd::Gid;
use tokio::net::UnixListener;

/// Why a socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process answers on it.
    #[error("{}: another process listens here already; is a second resumed running?", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else has that name, and is left alone.
    #[error("{}: is there already and is not a socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The socket cannot be given to the group.
    #[error("{}: cannot be given to the group with id {group}: {source}", path.display())]
    Group {
        /// The socket, which is gone again.
        path: PathBuf,
        /// The group.
        group: Gid,
        /// Why.
        source: io::Error,
    },
    /// Anything else.
    #[error("{}: cannot {doing}: {source}", path.display())]
    Io {
        /// The socket or its directory.
        path: PathBuf,
        /// What failed.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// A listening Unix socket. Dropped, it removes its file, unless another has taken the name since.
#[derive(Debug)]
pub struct FreshSocket {
    listener: UnixListener,
    path: PathBuf,
    inode: (u64, u64),
}

impl FreshSocket {
    /// The listener.
    #[must_use]
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for FreshSocket {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|inode| inode == self.inode) {
            // A socket file that stays is found stale by the next start.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Listens on a new socket at `path` with permission bits `mode` and, if given, `group`. These hold before the first
/// connection can be made. A socket that nobody listens on any more is replaced; a missing last directory is made,
/// mode 0755. Must be called within a tokio runtime.
///
/// # Errors
/// If another process listens at `path`, or something that is no socket is there, or the system refuses.
pub fn bind_fresh(path: &Path, mode: u32, group: Option<Gid>) -> Result<FreshSocket, SocketError> {
    let failed = |doing| move |source: io::Error| SocketError::Io { path: path.into(), doing, source };
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty() && !directory.exists())
    {
        let made = std::fs::DirBuilder::new().mode(0o755).create(directory);
        let unmade = |source| SocketError::Io { path: directory.into(), doing: "make the directory", source };
        made.or_else(|error| if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) })
            .map_err(unmade)?;
    }
    remove_stale(path)?;

    let addr = UnixAddr::new(path).map_err(io::Error::from).map_err(failed("use this as a socket's name"))?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .map_err(io::Error::from)
        .map_err(failed("make a socket"))?;
    bind(fd.as_raw_fd(), &addr).map_err(io::Error::from).map_err(failed("bind the socket"))?;
    // Between bind and listen the file is there and every connection is refused: time to set its rights.
    let undo = |error| {
        // The error that is reported is the one that led here.
        let _ = std::fs::remove_file(path);
        error
    };
    if let Some(group) = group {
        std::os::unix::fs::chown(path, None, Some(group.as_raw()))
            .map_err(|source| undo(SocketError::Group { path: path.into(), group, source }))?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(failed("set the permissions"))
        .map_err(undo)?;
    let inode = inode(path).map_err(failed("look at the socket")).map_err(undo)?;
    listen(&fd, Backlog::MAXCONN).map_err(io::Error::from).map_err(failed("listen")).map_err(undo)?;
    let listener = UnixListener::from_std(StdListener::from(fd)).map_err(failed("watch the socket")).map_err(undo)?;
    Ok(FreshSocket { listener, path: path.into(), inode })
}

fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let failed = |doing| move |source: io::Error| SocketError::Io { path: path.into(), doing, source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at what is there")(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NotASocket { path: path.into() }),
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(SocketError::InUse { path: path.into() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed("remove the stale socket"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("find out whether anybody listens")(error)),
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> crate::temporary::Folder {
        crate::temporary::Folder::new()
    }

    #[tokio::test]
    async fn a_socket_has_the_rights_that_were_asked_for_and_goes_when_dropped() {
        let directory = directory();
        let path = directory.path().join("run").join("a.sock");
        let socket = bind_fresh(&path, 0o660, Some(nix::unistd::getegid())).unwrap();
        let file = std::fs::metadata(&path).unwrap();
        assert_eq!(file.mode() & 0o7777, 0o660);
        assert_eq!(file.gid(), nix::unistd::getegid().as_raw());
        assert_eq!(socket.path(), path);
        let (connected, accepted) = tokio::join!(tokio::net::UnixStream::connect(&path), socket.listener().accept());
        assert!(connected.is_ok() && accepted.is_ok());
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_live_socket_is_not_stolen() {
        let directory = directory();
        let path = directory.path().join("a.sock");
        let first = bind_fresh(&path, 0o600, None).unwrap();
        let error = bind_fresh(&path, 0o600, None).unwrap_err();
        assert!(matches!(error, SocketError::InUse { .. }), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()));
        // The first one still takes connections, besides the one that asked whether it does.
        first.listener().accept().await.unwrap();
        tokio::net::UnixStream::connect(&path).await.unwrap();
    }

    #[tokio::test]
    async fn a_socket_left_behind_is_replaced_and_not_removed_by_its_former_owner() {
        let directory = directory();
        let path = directory.path().join("a.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let first = bind_fresh(&path, 0o600, None).unwrap();
        std::fs::remove_file(&path).unwrap();
        let second = bind_fresh(&path, 0o600, None).unwrap();
        drop(first);
        assert!(path.exists(), "the first removed the second's file");
        drop(second);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_is_not_a_socket_is_left_alone() {
        let directory = directory();
        let path = directory.path().join("a.sock");
        std::fs::write(&path, "precious").unwrap();
        let error = bind_fresh(&path, 0o600, None).unwrap_err();
        assert!(matches!(error, SocketError::NotASocket { .. }), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn only_the_last_directory_is_made_and_a_name_too_long_is_an_error() {
        let directory = directory();
        let error = bind_fresh(&directory.path().join("a/b/c.sock"), 0o600, None).unwrap_err();
        assert!(error.to_string().contains("cannot make the directory"), "{error}");
        let long = directory.path().join("x".repeat(108));
        let error = bind_fresh(&long, 0o600, None).unwrap_err();
        assert!(error.to_string().contains("socket's name"), "{error}");
    }
}
