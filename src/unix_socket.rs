//! Listening on a Unix socket: never with other rights than asked for, never in place of a live daemon. One rule for the
//! control socket and for the plugin's.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};
use nix::unistd::Gid;
use tokio::net::UnixListener;
use tracing::warn;

use crate::settings::{SettingsError, absolute_path};

/// The longest path of a socket, in bytes: `sun_path` has 108, the last of which is zero.
pub(crate) const LONGEST_PATH: usize = 107;

/// What the path of a socket may be, in words.
pub(crate) const SOCKET_PATH: &str = "an absolute path of at most 107 bytes";

/// Checks the path of a socket, which must fit `sockaddr_un`.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn socket_path(path: &Path) -> Result<(), String> {
    match path.as_os_str().len() {
        length if length > LONGEST_PATH => Err(format!("is {length} bytes long")),
        _ => absolute_path(path),
    }
}

/// How a socket is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SocketOptions {
    /// Its permission bits.
    pub mode: u32,
    /// The group that it is given to, if any.
    pub group: Option<Gid>,
    /// How many connections may wait to be taken.
    pub backlog: Backlog,
    /// Whether a missing last directory is made, mode 0755.
    pub makes_directory: bool,
}

/// Why a socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The settings that name it cannot work.
    #[error(transparent)]
    Settings(#[from] SettingsError),
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
pub(crate) struct FreshSocket {
    listener: UnixListener,
    path: PathBuf,
    inode: (u64, u64),
}

impl FreshSocket {
    /// The listener.
    #[must_use]
    pub(crate) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Where it listens.
    #[must_use]
    #[cfg(test)]
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for FreshSocket {
    fn drop(&mut self) {
        // One that stays is found stale by the next start.
        if inode(&self.path).is_ok_and(|inode| inode == self.inode)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            warn!(%error, path = %self.path.display(), "the socket stays behind");
        }
    }
}

/// Listens on a new socket at `path` with these `options`. Its rights hold before the first connection can be made. A
/// socket on which no process listens any more is replaced. Must be called within a tokio runtime.
///
/// # Errors
/// If another process listens at `path`, or something that is no socket is there, or the system refuses.
pub(crate) fn bind_fresh(path: &Path, options: SocketOptions) -> Result<FreshSocket, SocketError> {
    if options.makes_directory {
        make_directory(path)?;
    }
    remove_stale(path)?;
    let failed = |doing| move |source: io::Error| SocketError::Io { path: path.into(), doing, source };
    let addr = UnixAddr::new(path).map_err(io::Error::from).map_err(failed("use this as a socket's name"))?;
    let fd = stream_socket().map_err(io::Error::from).map_err(failed("make a socket"))?;
    bind(fd.as_raw_fd(), &addr).map_err(io::Error::from).map_err(failed("bind the socket"))?;
    open(fd, path, options).inspect_err(|_| {
        // The error that is reported is the one that led here.
        let _ = std::fs::remove_file(path);
    })
}

fn make_directory(path: &Path) -> Result<(), SocketError> {
    let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty() && !directory.exists())
    else {
        return Ok(());
    };
    match std::fs::DirBuilder::new().mode(0o755).create(directory) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            Err(SocketError::Io { path: directory.into(), doing: "make the directory", source })
        }
        _ => Ok(()),
    }
}

/// Gives a bound socket its rights and listens. Between bind and listen its file is there and every connection is
/// refused: time to set them.
fn open(fd: OwnedFd, path: &Path, options: SocketOptions) -> Result<FreshSocket, SocketError> {
    let failed = |doing| move |source: io::Error| SocketError::Io { path: path.into(), doing, source };
    if let Some(group) = options.group {
        std::os::unix::fs::chown(path, None, Some(group.as_raw())).map_err(|source| SocketError::Group {
            path: path.into(),
            group,
            source,
        })?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(options.mode))
        .map_err(failed("set the permissions"))?;
    let inode = inode(path).map_err(failed("look at the socket"))?;
    listen(&fd, options.backlog).map_err(io::Error::from).map_err(failed("listen"))?;
    let listener = UnixListener::from_std(StdListener::from(fd)).map_err(failed("watch the socket"))?;
    Ok(FreshSocket { listener, path: path.into(), inode })
}

/// Removes a socket on which no process listens any more.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let failed = |doing| move |source: io::Error| SocketError::Io { path: path.into(), doing, source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at what is there")(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NotASocket { path: path.into() }),
        Ok(_) => {}
    }
    match try_connect(path) {
        // Also when its queue of connections is full: a process is there.
        Ok(()) | Err(Errno::EAGAIN) => Err(SocketError::InUse { path: path.into() }),
        Err(Errno::ECONNREFUSED) => std::fs::remove_file(path).map_err(failed("remove the stale socket")),
        Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(failed("find out whether anybody listens")(error.into())),
    }
}

/// Connects without waiting, and hangs up.
fn try_connect(path: &Path) -> Result<(), Errno> {
    connect(stream_socket()?.as_raw_fd(), &UnixAddr::new(path)?)
}

fn stream_socket() -> Result<OwnedFd, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, SockType::Stream, flags, None)
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIVATE: SocketOptions =
        SocketOptions { mode: 0o600, group: None, backlog: Backlog::MAXCONN, makes_directory: true };

    fn directory() -> crate::temporary::Folder {
        crate::temporary::Folder::new()
    }

    #[test]
    fn a_path_that_fits_is_absolute_and_leaves_room_for_the_zero_at_its_end() {
        assert!(SOCKET_PATH.contains(&format!(" {LONGEST_PATH} ")));
        let longest = format!("/{}", "s".repeat(LONGEST_PATH - 1));
        assert_eq!(socket_path(Path::new(&longest)), Ok(()));
        assert!(UnixAddr::new(Path::new(&longest)).is_ok() && UnixAddr::new(longest.as_bytes()).is_ok());
        for (path, fault) in [
            (format!("{longest}s"), "is 108 bytes long"),
            ("run/a.sock".to_owned(), "is not an absolute path"),
            (String::new(), "is not an absolute path"),
            ("/run/\0a.sock".to_owned(), "has a zero byte"),
        ] {
            assert_eq!(socket_path(Path::new(&path)), Err(fault.to_owned()), "{path:?}");
        }
        assert!(UnixAddr::new(Path::new(&format!("{longest}s"))).is_err());
    }

    #[tokio::test]
    async fn a_socket_has_the_rights_that_were_asked_for_and_goes_when_dropped() {
        let directory = directory();
        let path = directory.path().join("run").join("a.sock");
        let socket =
            bind_fresh(&path, SocketOptions { mode: 0o660, group: Some(nix::unistd::getegid()), ..PRIVATE }).unwrap();
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
        let first = bind_fresh(&path, PRIVATE).unwrap();
        let error = bind_fresh(&path, PRIVATE).unwrap_err();
        assert!(matches!(error, SocketError::InUse { .. }), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()));
        // The first one still takes connections, besides the one that asked whether it does.
        first.listener().accept().await.unwrap();
        tokio::net::UnixStream::connect(&path).await.unwrap();
    }

    #[tokio::test]
    async fn a_socket_whose_owner_takes_no_connection_is_live_too_and_is_not_waited_for() {
        let directory = directory();
        let path = directory.path().join("a.sock");
        let _first = bind_fresh(&path, SocketOptions { backlog: Backlog::new(1).unwrap(), ..PRIVATE }).unwrap();
        let waiting: Vec<_> = std::iter::from_fn(|| {
            let fd = stream_socket().unwrap();
            connect(fd.as_raw_fd(), &UnixAddr::new(&path).unwrap()).ok().map(|()| fd)
        })
        .take(100)
        .collect();
        assert!(waiting.len() < 100, "its queue is full");
        let error = bind_fresh(&path, PRIVATE).unwrap_err();
        assert!(matches!(error, SocketError::InUse { .. }), "{error}");
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_socket_left_behind_is_replaced_and_not_removed_by_its_former_owner() {
        let directory = directory();
        let path = directory.path().join("a.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let first = bind_fresh(&path, PRIVATE).unwrap();
        std::fs::remove_file(&path).unwrap();
        let second = bind_fresh(&path, PRIVATE).unwrap();
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
        let error = bind_fresh(&path, PRIVATE).unwrap_err();
        assert!(matches!(error, SocketError::NotASocket { .. }), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn only_the_last_directory_is_made_and_a_name_too_long_is_an_error() {
        let directory = directory();
        let error = bind_fresh(&directory.path().join("a/b/c.sock"), PRIVATE).unwrap_err();
        assert!(error.to_string().contains("cannot make the directory"), "{error}");
        let unasked = SocketOptions { makes_directory: false, ..PRIVATE };
        let error = bind_fresh(&directory.path().join("run/c.sock"), unasked).unwrap_err();
        assert!(error.to_string().contains("cannot bind the socket"), "{error}");
        let long = directory.path().join("x".repeat(108));
        let error = bind_fresh(&long, PRIVATE).unwrap_err();
        assert!(error.to_string().contains("socket's name"), "{error}");
    }
}
