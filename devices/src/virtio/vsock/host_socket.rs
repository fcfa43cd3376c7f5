//! The unix socket by which programs of the host reach the guest, and the sockets beside it by which the
//! guest reaches programs of the host.

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::backend::unix_socket::{self, PATH_ROOM, SocketFile};

/// A socket at a path that was free. Its file is removed with it.
#[derive(Debug)]
pub(super) struct HostSocket {
    listener: UnixListener,
    path: PathBuf,
    _file: SocketFile,
}

/// The reason why the socket cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostSocketError {
    /// The path is too long for a socket once `_PORT` is appended.
    #[error(
        "the path has {len} bytes, and at most {} are possible, because `_PORT` is appended; use a shorter path",
        LONGEST_PATH
    )]
    TooLong {
        /// The length of the path in bytes.
        len: usize,
    },
    /// There is a file at the path.
    #[error("the path is taken; remove the file if no other machine uses it, or use another path")]
    Taken,
    /// The system refuses the socket.
    #[error("the socket cannot be made: {0}")]
    Bind(io::Error),
}

impl HostSocket {
    pub(super) fn bind(path: &Path) -> Result<Self, HostSocketError> {
        let len = path.as_os_str().as_bytes().len();
        if len > LONGEST_PATH {
            return Err(HostSocketError::TooLong { len });
        }
        // The socket's mode lets in only its owner, because the guest's ports are for nobody else.
        let (listener, _file) = unix_socket::listen(path).map_err(|error| match error.kind() {
            ErrorKind::AddrInUse => HostSocketError::Taken,
            _ => HostSocketError::Bind(error),
        })?;
        Ok(Self { listener, path: path.to_owned(), _file })
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Returns the next client, or `None` if none waits.
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

    /// Connects to the program that listens for the guest on `port`, without waiting.
    pub(super) fn dial(&self, port: u32) -> io::Result<UnixStream> {
        let mut path = OsString::from(&self.path);
        path.push(format!("_{port}"));
        unix_socket::connect(Path::new(&path))
    }
}

/// The longest path in bytes, which leaves space for `_4294967295` and the zero at the end.
pub(super) const LONGEST_PATH: usize = PATH_ROOM - 12;
