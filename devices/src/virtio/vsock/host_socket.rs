//! The unix socket by which programs of the host reach the guest, and the sockets beside it by which the
//! guest reaches programs of the host.

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::backend::unix_socket::{self, PATH_ROOM, SocketFile};

/// A socket at a path that was free. Its file goes with it.
#[derive(Debug)]
pub(super) struct HostSocket {
    listener: UnixListener,
    path: PathBuf,
    _file: SocketFile,
}

/// Why the socket cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostSocketError {
    /// With the port of a listener behind it, the path is too long for a socket.
    #[error(
        "the path has {len} bytes, {} are the most for a socket whose name gets `_PORT` behind it; take a shorter one",
        LONGEST_PATH
    )]
    TooLong {
        /// Its bytes.
        len: usize,
    },
    /// Something is there.
    #[error("the path is taken; remove what is there if no other machine uses it, or take another path")]
    Taken,
    /// It cannot be made.
    #[error("the socket cannot be made: {0}")]
    Bind(io::Error),
}

impl HostSocket {
    pub(super) fn bind(path: &Path) -> Result<Self, HostSocketError> {
        let len = path.as_os_str().as_bytes().len();
        if len > LONGEST_PATH {
            return Err(HostSocketError::TooLong { len });
        }
        // The ports of a guest are for its owner.
        let (listener, _file) = unix_socket::listen(path).map_err(|error| match error.kind() {
            ErrorKind::AddrInUse => HostSocketError::Taken,
            _ => HostSocketError::Bind(error),
        })?;
        Ok(Self { listener, path: path.to_owned(), _file })
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// The next client; `None` when there is none.
    pub(super) fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self.listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                Ok(Some(stream))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Connects to whoever listens for the guest on `port`, without waiting.
    pub(super) fn dial(&self, port: u32) -> io::Result<UnixStream> {
        let mut path = OsString::from(&self.path);
        path.push(format!("_{port}"));
        unix_socket::connect(Path::new(&path))
    }
}

/// Leaves room for `_4294967295` and the zero at the end.
pub(super) const LONGEST_PATH: usize = PATH_ROOM - 12;
