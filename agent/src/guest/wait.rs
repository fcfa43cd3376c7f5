//! What PID 1 does while something else runs: it reaps the processes that end, and heeds the power button and the signals
//! by which `poweroff`, `reboot` and `halt` of busybox speak to it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::button::PowerButton;
use crate::{console, power};

/// Waits until `process`, a child, has ended; without one, for ever. The power button powers off, a request does what it
/// says.
pub(super) fn wait_until_ended(process: Option<libc::pid_t>, button: &mut PowerButton) {
    let signals = match signal_events() {
        Ok(signals) => signals,
        Err(error) => {
            console::report(&format!("cannot wait for processes: {error}"));
            return;
        }
    };
    // A child that ended before its signal was blocked is found here.
    while !reap(process) {
        wait(&signals, button);
        if let Some(ending) = requested(&signals) {
            power::shut_down(ending);
        }
        if button.is_pressed() {
            power::shut_down(power::power_off);
        }
    }
}

/// What the signals of busybox's commands ask its init for.
const REQUESTS: [(libc::c_int, fn() -> !); 3] =
    [(libc::SIGUSR2, power::power_off), (libc::SIGTERM, power::restart), (libc::SIGUSR1, power::halt)];

/// Blocks SIGCHLD and the requests, and makes them readable. Processes started before keep them unblocked.
fn signal_events() -> io::Result<OwnedFd> {
    // SAFETY: an all-zero set is valid: it is plain data.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: initialises the set it is given.
    unsafe { libc::sigemptyset(&raw mut set) };
    for signal in REQUESTS.iter().map(|(signal, _)| *signal).chain([libc::SIGCHLD]) {
        // SAFETY: changes the set it is given; the number is a signal's.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
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

/// Waits until there is a signal or an input device has something to say.
fn wait(signals: &OwnedFd, button: &PowerButton) {
    let mut entries = vec![libc::pollfd { fd: signals.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
    entries.extend(button.poll_entries());
    // SAFETY: the array is valid for its length, and the descriptors are open.
    unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, -1) };
}

/// Takes the signals that have come, and gives the first request among them.
fn requested(signals: &OwnedFd) -> Option<fn() -> !> {
    let mut request = None;
    loop {
        let mut record = [0u8; size_of::<libc::signalfd_siginfo>()];
        // SAFETY: pointer and length are those of `record`.
        let count = unsafe { libc::read(signals.as_raw_fd(), record.as_mut_ptr().cast(), record.len()) };
        if count <= 0 {
            return request;
        }
        // The first field is the signal's number.
        let number = record.first_chunk::<4>().map_or(0, |number| u32::from_ne_bytes(*number));
        let found = REQUESTS.iter().find(|(signal, _)| u32::try_from(*signal) == Ok(number));
        request = request.or(found.map(|(_, ending)| *ending));
    }
}
