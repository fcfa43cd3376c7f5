//! What PID 1 does while something else runs: it reaps the processes that end, and heeds the power button and the signals
//! by which `poweroff`, `reboot` and `halt` of busybox speak to it.

use std::io;
use std::os::fd::AsRawFd;

use super::button::PowerButton;
use crate::signals::Signals;
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

/// Makes SIGCHLD and the requests readable.
pub(crate) fn signal_events() -> io::Result<Signals> {
    let requests = REQUESTS.map(|(signal, _)| signal);
    Signals::open(&[requests.as_slice(), &[libc::SIGCHLD]].concat())
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
fn wait(signals: &Signals, button: &PowerButton) {
    let mut entries = vec![libc::pollfd { fd: signals.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
    entries.extend(button.poll_entries());
    // SAFETY: the array is valid for its length, and the descriptors are open.
    unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, -1) };
}

/// Takes the signals that have come, and gives the first request among them.
pub(crate) fn requested(signals: &Signals) -> Option<fn() -> !> {
    let requests = std::iter::from_fn(|| signals.take()).map(request);
    requests.fold(None, Option::or)
}

fn request(number: libc::c_int) -> Option<fn() -> !> {
    REQUESTS.iter().find(|(signal, _)| *signal == number).map(|(_, ending)| *ending)
}
