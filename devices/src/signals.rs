//! Which signals end a process (`signal(7)`): for those who take them in place of that end, in the command and on both
//! sides of an emulated host.

use std::mem::MaybeUninit;

/// The signals that end a process by default and that it can wait for instead. Faults of its own are left out: a thread
/// cannot go on after one, and a mask does not hold it.
pub fn ending() -> impl Iterator<Item = libc::c_int> {
    // The C library keeps those between the last standard signal and its own SIGRTMIN for itself.
    let standard = 1..=libc::SIGSYS;
    let all = standard.chain(libc::SIGRTMIN()..=libc::SIGRTMAX());
    all.filter(|signal| !NOT_ENDING.contains(signal) && !FAULTS.contains(signal))
}

/// Whether whoever sends this signal wants a program to end: one of [`ending`] that is not for a use of its own.
pub fn asks_for_end(signal: libc::c_int) -> bool {
    let is_for_own_use = matches!(signal, libc::SIGUSR1 | libc::SIGUSR2) || signal >= libc::SIGRTMIN();
    !is_for_own_use && !NOT_ENDING.contains(&signal)
}

/// What becomes of a signal that is sent to this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// What `signal(7)` says.
    Default,
    /// Nothing: the caller of this program has said so (`nohup`), or the program.
    Ignored,
    /// A function is called.
    Handled,
}

impl Disposition {
    /// Asks the kernel.
    pub fn of(signal: libc::c_int) -> Disposition {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: asks for the action only, and the answer has room. A number that is not a signal's leaves the zeroes.
        unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) };
        // SAFETY: an all-zero action is a valid one.
        match unsafe { action.assume_init() }.sa_sigaction {
            libc::SIG_DFL => Disposition::Default,
            libc::SIG_IGN => Disposition::Ignored,
            _ => Disposition::Handled,
        }
    }
}

/// What the kernel sends to a thread that has done something that it cannot do.
pub const FAULTS: [libc::c_int; 4] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE];

/// What does not end a process by default, or cannot be taken.
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
