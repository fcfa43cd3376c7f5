//! What PID 1 does while something else runs: it reaps the processes that end and heeds the power button.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::button::PowerButton;
use crate::{console, power};

/// Waits until `process`, a child, has ended; without one, for ever. The power button powers off.
pub(super) fn wait_until_ended(process: Option<libc::pid_t>, button: &mut PowerButton) {
    let children = match child_events() {
        Ok(children) => children,
        Err(error) => {
            console::report(&format!("cannot wait for processes: {error}"));
            return;
        }
    };
    // A child that ended before its signal was blocked is found here.
    while !reap(process) {
        poll(&children, button);
        if button.is_pressed() {
            power::shut_down();
        }
    }
}

/// Blocks SIGCHLD and makes it readable. Processes started before keep it unblocked.
fn child_events() -> io::Result<OwnedFd> {
    // SAFETY: an all-zero set is valid: it is plain data.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: initialises the set it is given.
    unsafe { libc::sigemptyset(&raw mut set) };
    // SAFETY: changes the set it is given; the number is a signal's.
    unsafe { libc::sigaddset(&raw mut set, libc::SIGCHLD) };
    // SAFETY: reads the set; the former one is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    // SAFETY: reads the set and opens a descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Collects every process that has ended: true when `process` is one of them.
fn reap(process: Option<libc::pid_t>) -> bool {
    let mut ended = false;
    loop {
        // SAFETY: asks about any child; a null status pointer is allowed.
        let reaped = unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) };
        if reaped <= 0 {
            return ended;
        }
        ended |= Some(reaped) == process;
    }
}

/// Waits until a child has ended or an input device has something to say.
fn poll(children: &OwnedFd, button: &PowerButton) {
    let mut entries = vec![libc::pollfd { fd: children.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
    entries.extend(button.poll_entries());
    // SAFETY: the array is valid for its length, and the descriptors are open.
    unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, -1) };
    let mut record = [0u8; size_of::<libc::signalfd_siginfo>()];
    // SAFETY: pointer and length are those of `record`. One record stands for any number of children.
    unsafe { libc::read(children.as_raw_fd(), record.as_mut_ptr().cast(), record.len()) };
}
