//! Cleans up when this process ends because of a fault of its own, for which no thread can wait: restores the
//! terminal's mode, removes the files of sockets, and prints a line. For the command only; a library must not
//! touch the signals of its program.
//!
//! The handlers are installed before Rust's runtime starts, which therefore leaves these signals alone.
//! Otherwise, each thread would map and unmap a signal stack, by five system calls.

use std::fmt::Write;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use coracle::command::RawTerminal;
use coracle_devices::backend::unix_socket;
use coracle_devices::signals::{Disposition, FAULTS};
use coracle_devices::thread;

use crate::stderr;

/// The C library calls this before `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = tidy_up_after_faults;

/// Installs handlers that clean up before this process ends by a fault or by `abort(3)`. Signals that the
/// caller has set to be ignored stay ignored.
extern "C" fn tidy_up_after_faults() {
    let mut signals = FAULTS.into_iter().chain([libc::SIGABRT]);
    if signals.clone().all(|signal| Disposition::of(signal) == Disposition::Ignored) {
        return;
    }
    make_stacks();
    use_stack();
    thread::at_start(use_stack);
    signals.by_ref().filter(|signal| Disposition::of(*signal) == Disposition::Default).for_each(install);
}

fn install(signal: libc::c_int) {
    // SAFETY: an all-zero sigaction is valid.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = tidy_up as *const () as usize;
    action.sa_flags = libc::SA_ONSTACK | libc::SA_RESETHAND | libc::SA_NODEFER | libc::SA_SIGINFO;
    // SAFETY: the handler makes only async-signal-safe system calls, and the action is valid.
    unsafe { libc::sigaction(signal, &action, ptr::null_mut()) };
}

/// Cleans up. Then the signal takes its default action, which SA_RESETHAND has restored.
extern "C" fn tidy_up(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    if IS_AT_WORK.swap(true, Ordering::AcqRel) {
        // Another thread has a fault too. Its handler ends the process.
        wait_for_the_end();
    }
    RawTerminal::restore();
    unix_socket::try_remove_files();
    // SAFETY: the kernel passes a valid record to a handler with SA_SIGINFO.
    if let Some(info) = unsafe { info.as_ref() }.filter(|info| info.si_code > 0) {
        // SAFETY: a fault's record has the address.
        say(signal, unsafe { info.si_addr() } as usize);
    }
    // SAFETY: raise sends a signal to this thread and is async-signal-safe.
    unsafe { libc::raise(signal) };
}

/// Says which fault it was, as far as stderr takes it without a wait.
fn say(signal: libc::c_int, address: usize) {
    let mut line = Line::default();
    let cause = match signal {
        libc::SIGBUS => "the host has no memory for it, or a file was truncated while in use",
        _ => "this is a defect of Coracle, perhaps a stack overflow; please report it with this line",
    };
    if writeln!(line, "coracle: fault at {address:#x} (signal {signal}): {cause}").is_ok() {
        stderr::write_or_drop(line.text());
    }
}

/// Text without memory from the allocator, which may be what failed.
struct Line {
    bytes: [u8; 256],
    len: usize,
}

impl Default for Line {
    fn default() -> Line {
        Line { bytes: [0; 256], len: 0 }
    }
}

impl Line {
    fn text(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = self.len.checked_add(text.len()).ok_or(std::fmt::Error)?;
        self.bytes.get_mut(self.len..end).ok_or(std::fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

/// Whether a handler cleans up.
static IS_AT_WORK: AtomicBool = AtomicBool::new(false);

/// Waits for what another handler does at once, and no longer than that may take.
fn wait_for_the_end() {
    let limit = libc::timespec { tv_sec: 1, tv_nsec: 0 };
    // SAFETY: the time is valid; the null pointer means that what is left of it is not wanted.
    unsafe { libc::nanosleep(&limit, ptr::null_mut()) };
}

/// Stacks for the handlers, because the fault may be that a thread has no more stack. Threads take them in
/// turn; pages that are never used cost nothing. Not a static array: that would spread the variables beside
/// it over more pages.
static ALL_STACKS: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// Maps the stacks. Without them, handlers run on their threads' own.
fn make_stacks() {
    let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let kind = kind | libc::MAP_NORESERVE | libc::MAP_STACK;
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
    let stacks = unsafe { libc::mmap(ptr::null_mut(), STACKS * STACK_BYTES, access, kind, -1, 0) };
    if stacks != libc::MAP_FAILED {
        ALL_STACKS.store(stacks.cast(), Ordering::Release);
    }
}

/// Makes the handlers run on one of the stacks in the calling thread.
fn use_stack() {
    let stacks = ALL_STACKS.load(Ordering::Acquire);
    if stacks.is_null() {
        return;
    }
    let index = TAKEN.fetch_add(1, Ordering::Relaxed) % STACKS;
    let stack = stacks.wrapping_add(index * STACK_BYTES);
    let stack = libc::stack_t { ss_sp: stack.cast(), ss_flags: 0, ss_size: STACK_BYTES };
    // SAFETY: the stack stays mapped. A refusal leaves the handlers on the thread's own stack.
    unsafe { libc::sigaltstack(&stack, ptr::null_mut()) };
}

/// The kernel saves all of a CPU's registers on it: 11 KiB with AMX (`AT_MINSIGSTKSZ`, getauxval(3)).
const STACK_BYTES: usize = 32 << 10;
/// More than the threads of a usual machine: threads that share a stack would have to fault at once.
const STACKS: usize = 64;

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn overflow_of_a_stack_is_reported_and_ends_the_process_by_its_signal() {
        const OVERFLOWS: &str = "CORACLE_TEST_OVERFLOWS";
        if std::env::var_os(OVERFLOWS).is_some() {
            let thread =
                thread::spawn_with_signals_blocked(std::thread::Builder::new(), || overflow(&[0; 64]));
            panic!("{:?}", thread.unwrap().join());
        }
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args([
            "--nocapture",
            "--exact",
            "fault::tests::overflow_of_a_stack_is_reported_and_ends_the_process_by_its_signal",
        ]);
        let output = again.env(OVERFLOWS, "1").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("coracle: fault at 0x") && said.contains("(signal 11)"), "{said}");
        assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{said}");
    }

    #[expect(unconditional_recursion, reason = "the test is about its end")]
    fn overflow(before: &[u8; 64]) -> u8 {
        let frame = std::hint::black_box(*before);
        overflow(&frame).wrapping_add(std::hint::black_box(frame)[0])
    }
}
