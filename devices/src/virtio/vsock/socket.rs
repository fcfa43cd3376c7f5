//! Calls on stream sockets that never wait and never raise a signal.

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Sends the first of `bytes`, as many as the socket takes now; returns how many.
pub(in crate::virtio) fn send(stream: &UnixStream, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: pointer and length are those of a live slice, which the call only reads.
    let sent = unsafe { libc::send(stream.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Takes what has arrived, as far as `buffer` has room; 0 at the end of the stream.
pub(in crate::virtio) fn receive(stream: &UnixStream, buffer: &mut [u8]) -> io::Result<usize> {
    receive_with(stream, buffer, libc::MSG_DONTWAIT)
}

/// The same without taking it.
pub(super) fn peek(stream: &UnixStream, buffer: &mut [u8]) -> io::Result<usize> {
    receive_with(stream, buffer, libc::MSG_DONTWAIT | libc::MSG_PEEK)
}

fn receive_with(stream: &UnixStream, buffer: &mut [u8], flags: i32) -> io::Result<usize> {
    let pointer = buffer.as_mut_ptr().cast();
    // SAFETY: pointer and length are those of a live, exclusively borrowed slice.
    let received = unsafe { libc::recv(stream.as_raw_fd(), pointer, buffer.len(), flags) };
    usize::try_from(received).map_err(|_| io::Error::last_os_error())
}

/// Connects to the socket at `path` if it can be done at once: a listener whose queue is full is `WouldBlock`.
pub(super) fn connect(path: &Path) -> io::Result<UnixStream> {
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the call takes numbers only.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let stream = UnixStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let name = path.as_os_str().as_bytes();
    let mut address =
        libc::sockaddr_un { sun_family: libc::AF_UNIX as libc::sa_family_t, sun_path: [0; PATH_ROOM] };
    if name.len() >= address.sun_path.len() {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    address.sun_path.iter_mut().zip(name).for_each(|(place, byte)| *place = byte.cast_signed());
    let len = offset_of!(libc::sockaddr_un, sun_path).saturating_add(name.len()).saturating_add(1);
    // SAFETY: the address lives through the call, and `len` is within it.
    let result = unsafe { libc::connect(fd, (&raw const address).cast(), len as libc::socklen_t) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(stream) }
}

/// Bytes of a socket's path with the zero at its end (`unix(7)`).
pub(super) const PATH_ROOM: usize = 108;

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::os::unix::net::UnixListener;

    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    #[test]
    fn connecting_never_waits() {
        let folder = TempDir::new().unwrap();
        let path = folder.as_path().join("s");
        assert_eq!(connect(&path).unwrap_err().kind(), ErrorKind::NotFound);
        let listener = UnixListener::bind(&path).unwrap();
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
    }

    #[test]
    fn closed_socket_is_an_error_and_no_signal() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert_eq!(receive(&ours, &mut [0; 4]).unwrap_err().kind(), ErrorKind::WouldBlock);
        drop(theirs);
        assert_eq!(send(&ours, b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
        assert_eq!(receive(&ours, &mut [0; 4]).unwrap(), 0);
    }
}
