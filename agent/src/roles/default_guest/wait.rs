//! The work of PID 1 while something else runs: it reaps ended processes, and obeys the power button and the
//! signals of busybox's `poweroff`, `reboot` and `halt`.

use std::os::fd::AsRawFd;

use crate::power::{self, PowerButton, requested, signal_events};
use crate::report::report;
use crate::signals::Signals;

/// Waits until `process`, a child, has ended, or forever if there is none. The power button powers off, and a
/// request ends the machine.
pub(super) fn wait_until_ended(process: Option<libc::pid_t>, button: &mut PowerButton) {
    let signals = match signal_events() {
        Ok(signals) => signals,
        Err(error) => {
            report(&format!("cannot wait for processes: {error}"));
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

/// Reaps all ended processes. Returns true if `process` is one of them.
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

/// Waits for a signal or an event of an input device.
fn wait(signals: &Signals, button: &PowerButton) {
    let mut entries = vec![libc::pollfd { fd: signals.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
    entries.extend(button.poll_entries());
    // SAFETY: the array is valid for its length, and the descriptors are open.
    unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, -1) };
}
