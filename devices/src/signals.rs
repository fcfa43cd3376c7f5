//! The signals that end a process (`signal(7)`), for code that handles them instead: in the command and on
//! both sides of an emulated host.

use std::mem::MaybeUninit;

/// Returns the signals that end a process by default and that it can wait for instead. Faults of its own are
/// left out: a thread cannot go on after one, and a mask does not block it.
pub fn ending() -> impl Iterator<Item = libc::c_int> {
    // The C library keeps the signals between the last standard one and its own SIGRTMIN for itself.
    let standard = 1..=libc::SIGSYS;
    let all = standard.chain(libc::SIGRTMIN()..=libc::SIGRTMAX());
    all.filter(|signal| !NOT_ENDING.contains(signal) && !FAULTS.contains(signal))
}

/// Returns whether the sender of this signal wants a program to end: it is one of [`ending`] without a use of
/// its own.
pub fn asks_for_end(signal: libc::c_int) -> bool {
    let is_for_own_use = matches!(signal, libc::SIGUSR1 | libc::SIGUSR2) || signal >= libc::SIGRTMIN();
    !is_for_own_use && !NOT_ENDING.contains(&signal)
}

/// The disposition of a signal in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// The default of `signal(7)`.
    Default,
    /// The signal is ignored: by this program, or by the caller who started it (`nohup`).
    Ignored,
    /// A function is called.
    Handled,
}

impl Disposition {
    /// Reads the disposition from the kernel.
    pub fn of(signal: libc::c_int) -> Disposition {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: asks for the action only, and the answer has room. A number that is not a signal's leaves
        // the zeroes.
        unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) };
        // SAFETY: an all-zero action is a valid one.
        match unsafe { action.assume_init() }.sa_sigaction {
            libc::SIG_DFL => Disposition::Default,
            libc::SIG_IGN => Disposition::Ignored,
            _ => Disposition::Handled,
        }
    }
}

/// Signals that the kernel sends to a thread that made a fault.
pub const FAULTS: [libc::c_int; 4] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE];

/// Signals that do not end a process by default, or that cannot be caught.
const NOT_ENDING: [libc::c_int; 9] = [
    libc::SIGKILL,
    libc::SIGSTOP,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGCHLD,
    libc::SIGCONT,
    libc::SIGURG,
    libc::SIGWINCH,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_that_end_a_process_are_those_of_the_manual() {
        let ending: Vec<i32> = ending().collect();
        for signal in [libc::SIGALRM, libc::SIGVTALRM, libc::SIGPROF, libc::SIGIO, libc::SIGSYS, libc::SIGPWR]
        {
            assert!(ending.contains(&signal) && asks_for_end(signal), "{signal}");
        }
        for signal in [libc::SIGUSR1, libc::SIGUSR2, libc::SIGRTMIN(), 64] {
            assert!(ending.contains(&signal) && !asks_for_end(signal), "{signal}");
        }
        for signal in NOT_ENDING.iter().chain(&FAULTS).chain(&[0, 32, 33, 65]) {
            assert!(!ending.contains(signal), "{signal}");
        }
        // Linux has 31 standard signals, of which 9 do not end a process and 4 are faults.
        assert_eq!(ending.len(), 31 - 9 - 4 + 64 - 34 + 1);
    }
}
