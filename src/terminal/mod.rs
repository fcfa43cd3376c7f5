//! Switches the caller's terminal to raw mode while a guest uses it. This is for the command and the emulated
//! host only: the library proper never touches a terminal.

mod escape;

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

pub use self::escape::{Asked, Escape};
use coracle_devices::virtio::console::TerminalSize;

/// A terminal in raw mode. It gets its old mode back when this is dropped, and by [`RawTerminal::restore`].
#[derive(Debug)]
pub struct RawTerminal {
    _private: (),
}

/// The terminal that is raw now, and its former mode.
struct Saved {
    fd: OwnedFd,
    mode: libc::termios,
}

/// The only raw terminal of the process, or null. It is a pointer because a signal handler cannot take a
/// lock.
static SAVED: AtomicPtr<Saved> = AtomicPtr::new(ptr::null_mut());

impl RawTerminal {
    /// Makes the terminal behind `fd` raw. Returns `None` if `fd` is not a terminal, or a terminal is already
    /// raw.
    ///
    /// # Errors
    /// The terminal refuses the mode.
    pub fn enter(fd: BorrowedFd<'_>) -> io::Result<Option<RawTerminal>> {
        let Some(mode) = terminal_mode(fd) else { return Ok(None) };
        let saved = Box::into_raw(Box::new(Saved { fd: fd.try_clone_to_owned()?, mode }));
        let nothing = ptr::null_mut();
        if SAVED.compare_exchange(nothing, saved, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: made above, and nobody else has seen it.
            drop(unsafe { Box::from_raw(saved) });
            return Ok(None);
        }
        let guard = RawTerminal { _private: () };
        set_mode(fd.as_raw_fd(), &raw_mode(mode))?;
        Ok(Some(guard))
    }

    /// Makes a terminal that was raw, raw again: for a process that was stopped and goes on (SIGCONT),
    /// because a shell sets the mode that it likes meanwhile. In the background the terminal is left alone.
    pub fn renew() {
        let saved = SAVED.load(Ordering::Acquire);
        // SAFETY: what `SAVED` has pointed to is never freed.
        let Some(Saved { fd, mode }) = (unsafe { saved.as_ref() }) else { return };
        // SAFETY: the descriptor is open.
        let group = unsafe { libc::tcgetpgrp(fd.as_raw_fd()) };
        // SAFETY: the call has no arguments and cannot fail.
        if group != unsafe { libc::getpgrp() } {
            return;
        }
        let _ = set_mode(fd.as_raw_fd(), &raw_mode(*mode));
        if SAVED.load(Ordering::Acquire) != saved {
            // Another thread has restored it in between.
            let _ = set_mode(fd.as_raw_fd(), mode);
        }
    }

    /// Restores a raw terminal, if there is one. It is for panic hooks and signal handlers, which run no
    /// destructors, and so takes no lock and allocates nothing.
    pub fn restore() {
        let saved = SAVED.swap(ptr::null_mut(), Ordering::AcqRel);
        // SAFETY: a pointer in `SAVED` is valid, and the swap has made it this call's alone. It is not freed:
        // this may be a signal handler, and the process is about to end.
        if let Some(saved) = unsafe { saved.as_ref() } {
            // A terminal that has gone away needs no mode.
            let _ = set_mode(saved.fd.as_raw_fd(), &saved.mode);
        }
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        RawTerminal::restore();
    }
}

/// Returns the mode of the terminal behind `fd`; `None` if it is not a terminal.
pub fn terminal_mode(fd: BorrowedFd<'_>) -> Option<libc::termios> {
    let mut mode = MaybeUninit::<libc::termios>::uninit();
    // SAFETY: the descriptor is open, and `mode` has room for the answer.
    let result = unsafe { libc::tcgetattr(fd.as_raw_fd(), mode.as_mut_ptr()) };
    // SAFETY: the call succeeded and has filled it.
    (result == 0).then(|| unsafe { mode.assume_init() })
}

/// Returns standard input as a descriptor. [`std::io::stdin`] would allocate 8 KiB to read it with, which a
/// machine does not.
pub fn standard_input() -> BorrowedFd<'static> {
    // SAFETY: the number is not -1, and no owner of a descriptor has this number: it belongs to the process.
    unsafe { BorrowedFd::borrow_raw(libc::STDIN_FILENO) }
}

/// Returns the size of the terminal behind `fd`; `None` if it is not a terminal or does not know.
pub fn terminal_size(fd: BorrowedFd<'_>) -> Option<TerminalSize> {
    let mut size = MaybeUninit::<libc::winsize>::uninit();
    // SAFETY: the descriptor is open, and `size` has room for the answer.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, size.as_mut_ptr()) };
    // SAFETY: the call succeeded and has filled it.
    let size = (result == 0).then(|| unsafe { size.assume_init() })?;
    (size.ws_col > 0 && size.ws_row > 0).then_some(TerminalSize { columns: size.ws_col, rows: size.ws_row })
}

/// Returns the raw form of a mode.
fn raw_mode(mut mode: libc::termios) -> libc::termios {
    // SAFETY: `mode` is a valid mode.
    unsafe { libc::cfmakeraw(&mut mode) };
    mode
}

fn set_mode(fd: RawFd, mode: &libc::termios) -> io::Result<()> {
    // SAFETY: the descriptor is open and the mode is valid. Not TCSADRAIN, which could wait for a reader
    // forever.
    let result = unsafe { libc::tcsetattr(fd, libc::TCSANOW, mode) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
