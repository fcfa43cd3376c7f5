//! Cleans up when this process ends because of a fault of its own, for which no thread can wait: restores the
//! terminal's mode and removes the files of sockets. `main` installs this, for the command only; a library
//! must not touch the signals of its program.

use std::sync::atomic::{AtomicUsize, Ordering};

use coracle::command::RawTerminal;
use coracle_devices::backend::unix_socket;
use coracle_devices::signals::{Disposition, FAULTS};

/// Rust's own handler, which reports a stack overflow; 0 if there is none.
static OF_RUST: AtomicUsize = AtomicUsize::new(0);

/// The signals that Rust's runtime handles.
const HANDLED_BY_RUST: [libc::c_int; 2] = [libc::SIGSEGV, libc::SIGBUS];

/// Installs handlers that clean up before this process ends by a fault or by `abort(3)`. Signals that the
/// caller has set to be ignored stay ignored.
pub(crate) fn tidy_up_after_faults() {
    for signal in FAULTS.into_iter().chain([libc::SIGABRT]) {
        let is_of_rust = HANDLED_BY_RUST.contains(&signal);
        if Disposition::of(signal) == Disposition::Default || is_of_rust {
            install(signal, is_of_rust);
        }
    }
}

fn install(signal: libc::c_int, is_of_rust: bool) {
    // SAFETY: an all-zero sigaction is valid.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = tidy_up as *const () as usize;
    // The fault may be a stack overflow; Rust's threads have an alternate signal stack.
    action.sa_flags = libc::SA_ONSTACK | libc::SA_RESETHAND | libc::SA_NODEFER | libc::SA_SIGINFO;
    // SAFETY: an all-zero sigaction is valid.
    let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: the handler makes only async-signal-safe system calls, and both actions are valid.
    let is_done = unsafe { libc::sigaction(signal, &action, &mut before) } == 0;
    if is_done && is_of_rust && ![libc::SIG_DFL, libc::SIG_IGN].contains(&before.sa_sigaction) {
        OF_RUST.store(before.sa_sigaction, Ordering::Relaxed);
    }
}

/// Cleans up. Then the signal takes its default action, which SA_RESETHAND has restored.
extern "C" fn tidy_up(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    RawTerminal::restore();
    unix_socket::try_remove_files();
    // SAFETY: the kernel passes a valid record to a handler with SA_SIGINFO.
    let is_of_kernel = unsafe { info.as_ref() }.is_some_and(|info| info.si_code > 0);
    let of_rust = OF_RUST.load(Ordering::Relaxed);
    if is_of_kernel && of_rust != 0 && HANDLED_BY_RUST.contains(&signal) {
        // SAFETY: the value was the handler of this signal, installed with SA_SIGINFO, which has this
        // signature.
        let of_rust: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
            unsafe { std::mem::transmute(of_rust) };
        // Rust's handler returns if the fault is not a stack overflow; the fault then repeats.
        return of_rust(signal, info, context);
    }
    // SAFETY: raise sends a signal to this thread and is async-signal-safe.
    unsafe { libc::raise(signal) };
}
