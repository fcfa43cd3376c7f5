//! The default guest as the other end of vsock connections: it sends back every byte. It accepts connections
//! to its port 7, and makes one to port 7 of the host if somebody listens there.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::thread;

use crate::report::report;

/// The port of the echo service (RFC 862), on either side.
const PORT: u32 = 7;

/// Serves until the machine ends, on threads of its own.
pub(super) fn start() {
    match listen() {
        Ok(listener) => {
            println!("coracle-agent: vsock port {PORT} sends back what it gets");
            thread::spawn(move || accept_all(&listener));
        }
        Err(error) => {
            report(&format!("cannot listen on vsock port {PORT}: {error}"));
            return;
        }
    }
    thread::spawn(|| {
        // Nobody has to listen on the host.
        if let Ok(stream) = connect() {
            serve(stream);
        }
    });
}

fn accept_all(listener: &OwnedFd) {
    loop {
        // SAFETY: the peer's address is not asked for.
        let fd = unsafe { libc::accept(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut()) };
        match owned(fd) {
            Ok(stream) => drop(thread::spawn(move || serve(stream))),
            Err(error) => return report(&format!("cannot take a vsock connection: {error}")),
        }
    }
}

/// Sends everything back, until the end of the stream.
fn serve(stream: OwnedFd) {
    let mut stream = File::from(stream);
    let mut buffer = vec![0; PIECE];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(buffer.get(..count).unwrap_or_default()).is_err() {
            return;
        }
    }
}

fn listen() -> io::Result<OwnedFd> {
    let socket = socket()?;
    let address = address(libc::VMADDR_CID_ANY);
    // SAFETY: the address lives through the call and has this size.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_LEN) })?;
    // SAFETY: the call takes numbers only.
    check(unsafe { libc::listen(socket.as_raw_fd(), 16) })?;
    Ok(socket)
}

fn connect() -> io::Result<OwnedFd> {
    let socket = socket()?;
    let address = address(libc::VMADDR_CID_HOST);
    // SAFETY: the address lives through the call and has this size.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_LEN) })?;
    Ok(socket)
}

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: the call takes numbers only.
    owned(unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })
}

fn address(cid: u32) -> libc::sockaddr_vm {
    // SAFETY: an all-zero address is valid: it is plain data.
    let zeroes: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    libc::sockaddr_vm {
        svm_family: libc::AF_VSOCK as libc::sa_family_t,
        svm_port: PORT,
        svm_cid: cid,
        ..zeroes
    }
}

fn owned(fd: libc::c_int) -> io::Result<OwnedFd> {
    check(fd)?;
    // SAFETY: the descriptor was just opened, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

const ADDRESS_LEN: libc::socklen_t = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
/// The largest packet of virtio-vsock in Linux, in bytes.
const PIECE: usize = 64 << 10;
