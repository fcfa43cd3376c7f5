//! The loopback interface, which a fresh kernel has but leaves down.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use crate::console;

/// Brings `lo` up; the kernel gives it its addresses then.
pub(crate) fn bring_up_loopback() {
    if let Err(error) = set_up(b"lo") {
        console::report(&format!("cannot bring the interface lo up: {error}"));
    }
}

fn set_up(name: &[u8]) -> io::Result<()> {
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    // SAFETY: an all-zero ifreq is valid: it is plain data.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(name) {
        *place = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq at the given address (netdevice(7)).
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
