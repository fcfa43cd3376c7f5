//! What is tidied up when this process ends by a fault of its own, which no thread can wait for: the
//! terminal's mode and the files of sockets. Installed by `main`, for the command only; a library has no
//! business with the signals of its program.

use std::sync::atomic::{AtomicUsize, Ordering};

use coracle::command::RawTerminal;
use coracle_devices::backend::unix_socket;
use coracle_devices::signals::{Disposition, FAULTS};

/// Rust's own handler, which tells an overflow of the stack; 0 for none.
static OF_RUST: AtomicUsize = AtomicUsize::new(0);

/// Rust's runtime handles them.
const HANDLED_BY_RUST: [libc::c_int; 2] = [libc::SIGSEGV, libc::SIGBUS];

/// Tidies up before this process ends by a fault, or by `abort(3)`. What the caller has this program ignore
/// stays so.
pub(crate) fn tidy_up_after_faults() {
    for signal in FAULTS.into_iter().chain([libc::SIGABRT]) {
        let is_of_rust = HANDLED_BY_RUST.contains(&signal);
        if Disposition::of(signal) == Disposition::Default || is_of_rust {
            install(signal, is_of_rust);
        }
    }
}

fn install(signal: libc::c_int, is_of_rust: bool) {
    // SAFETY: an all-zero action is a valid one.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = tidy_up as *const () as usize;
    // The fault may be an overflow of the stack; Rust's threads have an alternate one.
    action.sa_flags = libc::SA_ONSTACK | libc::SA_RESETHAND | libc::SA_NODEFER | libc::SA_SIGINFO;
    // SAFETY: an all-zero action is a valid one.
    let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: the handler makes only system calls that are allowed in one, and both actions are valid.
    let is_done = unsafe { libc::sigaction(signal, &action, &mut before) } == 0;
    if is_done && is_of_rust && ![libc::SIG_DFL, libc::SIG_IGN].contains(&before.sa_sigaction) {
        OF_RUST.store(before.sa_sigaction, Ordering::Relaxed);
    }
}

/// Tidies up, and lets the signal do what it does by default: its action was reset with this call.
extern "C" fn tidy_up(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    RawTerminal::restore();
    unix_socket::try_remove_files();
    // SAFETY: the kernel gives a handler with SA_SIGINFO a valid record.
    let is_of_kernel = unsafe { info.as_ref() }.is_some_and(|info| info.si_code > 0);
    let of_rust = OF_RUST.load(Ordering::Relaxed);
    if is_of_kernel && of_rust != 0 && HANDLED_BY_RUST.contains(&signal) {
        // SAFETY: it was the handler of this signal, with SA_SIGINFO, which takes these three.
        let of_rust: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
            unsafe { std::mem::transmute(of_rust) };
        // It comes back when the stack is not to blame, and the fault is repeated.
        return of_rust(signal, info, context);
    }
    // SAFETY: sends a signal to this thread; allowed in a handler.
    unsafe { libc::raise(signal) };
}
