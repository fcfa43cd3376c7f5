//! Network descriptors that another program has opened, and the errors of opening a network card's host end.

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, RawFd};
use std::os::unix::net::UnixStream;

use super::{NetBackend, Stream, Tap};

/// The reason why the host's end of a network card cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetOpenError {
    /// No interface has this name.
    #[error("there is no such interface; make one with `ip tuntap add NAME mode tap user USER`")]
    NoInterface,
    /// The kernel has no taps, or refuses access to them.
    #[error("/dev/net/tun cannot be opened: {source}")]
    Tun {
        /// The error that the host returned.
        r#source: io::Error,
    },
    /// The tap belongs to another user.
    #[error("it belongs to another user; make one with `ip tuntap add NAME mode tap user USER`")]
    Permission,
    /// The tap is in use.
    #[error("another program uses it")]
    Busy,
    /// The interface is not a tap, or is a tap of another mode.
    #[error("it is not a tap with one queue; make one with `ip tuntap add NAME mode tap`")]
    NotATap,
    /// The descriptor is not open.
    #[error("no descriptor of this number is open here; the program that starts this one has to pass it on")]
    NotOpen,
    /// The descriptor is neither a tap nor a unix stream socket.
    #[error("it is neither a tap nor a unix stream socket")]
    NotANetwork,
    /// The descriptor is a tun device.
    #[error("it is a tun device, which has no Ethernet frames; a tap is needed (IFF_TAP)")]
    NotEthernet,
    /// The tap was opened without virtio headers.
    #[error("the tap has to be opened with IFF_VNET_HDR and IFF_NO_PI")]
    TapFlags,
    /// Nobody listens at the socket.
    #[error("it cannot be connected to: {source}")]
    Connect {
        /// The error that the host returned.
        r#source: io::Error,
    },
    /// A call failed that succeeds on a usable device.
    #[error("{step} cannot be prepared: {source}")]
    Prepare {
        /// The kind of descriptor.
        step: OpenStep,
        /// The error that the host returned.
        r#source: io::Error,
    },
}

/// The kind of a descriptor that is prepared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenStep {
    /// A tap.
    Tap,
    /// A socket.
    Socket,
}

impl std::fmt::Display for OpenStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            OpenStep::Tap => "the tap",
            OpenStep::Socket => "the socket",
        })
    }
}

/// Takes a copy of a descriptor that this process has inherited: a tap, or a connected unix stream socket. It
/// becomes non-blocking for all processes that share it.
///
/// # Errors
/// The descriptor is not open, or is of another kind.
pub fn adopt(descriptor: RawFd) -> Result<Box<dyn NetBackend>, NetOpenError> {
    // SAFETY: the call takes numbers and makes a new descriptor.
    let copy = unsafe { libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(NetOpenError::NotOpen);
    }
    // SAFETY: the descriptor is new, and nothing else owns it.
    let file = unsafe { File::from_raw_fd(copy) };
    if let Some(flags) = Tap::flags(&file) {
        set_nonblocking(copy, OpenStep::Tap)?;
        return Ok(Box::new(Tap::adopt(file, flags)?));
    }
    let option = |option| socket_option(copy, option);
    if option(libc::SO_DOMAIN) != Some(libc::AF_UNIX) || option(libc::SO_TYPE) != Some(libc::SOCK_STREAM) {
        return Err(NetOpenError::NotANetwork);
    }
    set_nonblocking(copy, OpenStep::Socket)?;
    Ok(Box::new(Stream::new(UnixStream::from(std::os::fd::OwnedFd::from(file)))))
}

fn set_nonblocking(descriptor: RawFd, step: OpenStep) -> Result<(), NetOpenError> {
    // SAFETY: the call takes numbers.
    let flags = unsafe { libc::fcntl(descriptor, libc::F_GETFL) };
    // SAFETY: the call takes numbers.
    match unsafe { libc::fcntl(descriptor, libc::F_SETFL, flags | libc::O_NONBLOCK) } {
        0 if flags >= 0 => Ok(()),
        _ => Err(NetOpenError::Prepare { step, source: io::Error::last_os_error() }),
    }
}

fn socket_option(descriptor: RawFd, option: libc::c_int) -> Option<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    let answer = (&raw mut value).cast();
    // SAFETY: the call writes at most `len` bytes to `value`.
    let result = unsafe { libc::getsockopt(descriptor, libc::SOL_SOCKET, option, answer, &raw mut len) };
    (result == 0).then_some(value)
}
