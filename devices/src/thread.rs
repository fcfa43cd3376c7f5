//! Starts threads that leave the signals of the process to its owner.

use std::io;
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::thread::{Builder, JoinHandle};

use crate::signals::FAULTS;

/// Calls `begin` first in each thread that [`spawn_with_signals_blocked`] starts from now on: for a program
/// with signal handlers that need a stack in each thread. Only the first call has an effect.
pub fn at_start(begin: fn()) {
    let _ = AT_START.set(begin);
}

static AT_START: OnceLock<fn()> = OnceLock::new();

/// Starts a thread that blocks all signals but those of its own faults from its first instruction on. Signals
/// of the process are for the threads of its owner. A signal that a write raises (SIGPIPE, SIGXFSZ) becomes
/// the error of that write. The calling thread's mask is restored when this returns.
///
/// # Errors
/// The host starts no more threads.
pub fn spawn_with_signals_blocked<T: Send + 'static>(
    builder: Builder,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let mut all = MaybeUninit::uninit();
    let mut before = MaybeUninit::uninit();
    // SAFETY: sigfillset initializes the set that it is given.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    for fault in FAULTS {
        // SAFETY: the set is initialized and the number is a signal's.
        unsafe { libc::sigdelset(all.as_mut_ptr(), fault) };
    }
    // SAFETY: the first set is initialized, and the second is filled; an unknown first argument is the only
    // error.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
    let thread = builder.spawn(|| {
        if let Some(begin) = AT_START.get() {
            begin();
        }
        run()
    });
    // SAFETY: `before` was filled by the call above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    thread
}
