//! Stream sockets at paths of the host (`unix(7)`): connects without waiting, and listens for the owner
//! alone. The console, vsock and network back ends make their sockets here.

use std::fs;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::lock;

/// The file of a listening socket. It is removed when this is dropped, unless something else has taken its
/// name.
#[derive(Debug)]
pub struct SocketFile(Named);

/// The identity of a file when it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Named {
    path: PathBuf,
    device: u64,
    inode: u64,
}

/// The files of all sockets of this process.
static FILES: Mutex<Vec<Named>> = Mutex::new(Vec::new());

/// Connects to the socket at `path` if that is possible at once. A listener whose queue is full gives
/// `WouldBlock`.
pub(crate) fn connect(path: &Path) -> io::Result<UnixStream> {
    let (address, len) = address(path)?;
    let socket = socket()?;
    // SAFETY: the address lives through the call, and `len` is within it.
    let result = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(socket.into()) }
}

/// Listens at `path`, which must be free, without blocking. Only the owner can ever connect: the mode is set
/// before the file exists, and a file that takes its place later keeps its own mode.
///
/// # Errors
/// The path is too long or taken, or its directory takes no file.
pub fn listen(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    let (address, len) = address(path)?;
    let socket = socket()?;
    // SAFETY: the call takes an open descriptor and a number. The file gets the mode of the socket
    // (`unix_bind` of Linux), reduced by the umask.
    if unsafe { libc::fchmod(socket.as_raw_fd(), 0o600) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // The lock is held over the call, so that every file that exists is in the list.
    let mut files = lock(&FILES);
    // SAFETY: the address lives through the call, and `len` is within it.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let named = Named::at(path)?;
    files.push(named.clone());
    drop(files);
    let file = SocketFile(named);
    // SAFETY: the call takes an open descriptor and a number.
    if unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((socket.into(), file))
}

/// Removes the files of all sockets, for a process that ends immediately after this. No thread makes another,
/// or waits for one to be removed, from here on.
pub fn remove_files() {
    let files = lock(&FILES);
    files.iter().for_each(Named::remove);
    std::mem::forget(files);
}

/// Removes the files of all sockets, unless any thread holds the list. It makes system calls only, so that a
/// signal handler may call it.
pub fn try_remove_files() {
    if let Ok(files) = FILES.try_lock() {
        files.iter().for_each(Named::remove);
        std::mem::forget(files);
    }
}

impl Named {
    fn at(path: &Path) -> io::Result<Self> {
        let made = fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_owned(), device: made.dev(), inode: made.ino() })
    }

    fn remove(&self) {
        // Another program may have removed it already, and made a new one.
        let there = fs::symlink_metadata(&self.path);
        if there.is_ok_and(|there| (there.dev(), there.ino()) == (self.device, self.inode)) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let mut files = lock(&FILES);
        files.retain(|file| *file != self.0);
        self.0.remove();
    }
}

fn socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the call takes numbers only.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(path: &Path) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    let name = path.as_os_str().as_bytes();
    let mut address =
        libc::sockaddr_un { sun_family: libc::AF_UNIX as libc::sa_family_t, sun_path: [0; PATH_ROOM] };
    // An empty name, or one that begins with a zero, is an address without a file.
    if name.is_empty() || name.len() >= PATH_ROOM || name.contains(&0) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidFilename,
            "the path of a socket has 1 to 107 bytes",
        ));
    }
    address.sun_path.iter_mut().zip(name).for_each(|(target, byte)| *target = byte.cast_signed());
    let len = offset_of!(libc::sockaddr_un, sun_path).saturating_add(name.len()).saturating_add(1);
    Ok((address, len as libc::socklen_t))
}

/// The size in bytes of a socket's path with the zero at its end (`unix(7)`).
pub(crate) const PATH_ROOM: usize = 108;
/// The largest number of clients that wait to be accepted: the value that the standard library uses.
const BACKLOG: libc::c_int = 128;

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::os::unix::fs::FileTypeExt;

    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    #[test]
    fn connecting_never_waits() {
        let directory = TempDir::new().unwrap();
        let path = directory.as_path().join("s");
        assert_eq!(connect(&path).unwrap_err().kind(), ErrorKind::NotFound);
        let (listener, file) = listen(&path).unwrap();
        let mut waiting = Vec::new();
        let error = loop {
            match connect(&path) {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        drop(listener);
        assert_eq!(connect(&path).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        drop(file);
        assert_eq!(connect(&path).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn file_that_has_taken_the_name_stays() {
        let directory = TempDir::new().unwrap();
        let (path, moved) = (directory.as_path().join("s"), directory.as_path().join("moved"));
        let (_listener, file) = listen(&path).unwrap();
        fs::rename(&path, &moved).unwrap();
        let (_other, other_file) = listen(&path).unwrap();
        drop(file);
        assert!(path.exists() && moved.exists());
        drop(other_file);
        assert!(!path.exists());
    }

    /// Checks the mode of the file after `bind`. Nobody can see the file before `bind` is done, so this is
    /// the mode it was made with.
    #[test]
    fn only_the_owner_can_connect_from_the_first_moment() {
        let directory = TempDir::new().unwrap();
        let path = directory.as_path().join("s");
        let (listener, _file) = listen(&path).unwrap();
        let metadata = fs::symlink_metadata(&path).unwrap();
        assert!(metadata.file_type().is_socket());
        assert_eq!(metadata.mode() & 0o7777, 0o600);
        let client = connect(&path).unwrap();
        assert!(listener.accept().is_ok());
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "it never waits");
        drop(client);
        assert_eq!(listen(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
    }

    #[test]
    fn names_that_are_not_a_path_are_refused() {
        for name in ["", "a\0b", &"n".repeat(108)] {
            assert_eq!(listen(Path::new(name)).unwrap_err().kind(), ErrorKind::InvalidFilename);
            assert_eq!(connect(Path::new(name)).unwrap_err().kind(), ErrorKind::InvalidFilename);
        }
    }
}
