//! Calls on stream sockets that never wait and never raise a signal.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// Makes the two ends of a stream: one for the program, which may wait, and one for the device, which never
/// does.
pub(super) fn pair() -> io::Result<(UnixStream, UnixStream)> {
    let (theirs, ours) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((theirs, ours))
}

/// Sends the first of `bytes`, as many as the socket takes now. Returns their number.
pub(super) fn send(stream: &UnixStream, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: pointer and length are those of a live slice, which the call only reads.
    let sent = unsafe { libc::send(stream.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Receives bytes that have arrived, as far as they fit into `buffer`. Returns 0 at the end of the stream.
pub(super) fn receive(stream: &UnixStream, buffer: &mut [u8]) -> io::Result<usize> {
    receive_with(stream, buffer, libc::MSG_DONTWAIT)
}

/// Copies bytes that have arrived, and leaves them in the socket.
pub(super) fn peek(stream: &UnixStream, buffer: &mut [u8]) -> io::Result<usize> {
    receive_with(stream, buffer, libc::MSG_DONTWAIT | libc::MSG_PEEK)
}

fn receive_with(stream: &UnixStream, buffer: &mut [u8], flags: i32) -> io::Result<usize> {
    let pointer = buffer.as_mut_ptr().cast();
    // SAFETY: pointer and length are those of a live slice that is borrowed exclusively.
    let received = unsafe { libc::recv(stream.as_raw_fd(), pointer, buffer.len(), flags) };
    usize::try_from(received).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    #[test]
    fn closed_socket_is_an_error_and_not_a_signal() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert_eq!(receive(&ours, &mut [0; 4]).unwrap_err().kind(), ErrorKind::WouldBlock);
        drop(theirs);
        assert_eq!(send(&ours, b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
        assert_eq!(receive(&ours, &mut [0; 4]).unwrap(), 0);
    }
}
