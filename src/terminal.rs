//! The caller's terminal, switched to raw mode while a guest has it. For the CLI and the emulated host only: the
//! library proper never touches a terminal.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

/// A terminal in raw mode. It gets its old mode back when this is dropped, and when the program panics.
#[derive(Debug)]
pub struct RawTerminal {
    _private: (),
}

/// The terminal that is raw now, and its mode before.
struct Saved {
    fd: OwnedFd,
    mode: libc::termios,
}

static SAVED: Mutex<Option<Saved>> = Mutex::new(None);

impl RawTerminal {
    /// Makes the terminal behind `fd` raw. None when `fd` is not a terminal, or one is raw already.
    ///
    /// # Errors
    /// The terminal refuses.
    pub fn enter(fd: BorrowedFd<'_>) -> io::Result<Option<RawTerminal>> {
        let mut saved = SAVED.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mode) = terminal_mode(fd) else { return Ok(None) };
        if saved.is_some() {
            return Ok(None);
        }
        let mut raw = mode;
        // SAFETY: `raw` is a valid mode.
        unsafe { libc::cfmakeraw(&mut raw) };
        let fd = fd.try_clone_to_owned()?;
        set_mode(fd.as_fd(), &raw)?;
        *saved = Some(Saved { fd, mode });
        Ok(Some(RawTerminal { _private: () }))
    }

    /// Restores a raw terminal, if there is one. For panic hooks and other ways out that run no destructors.
    pub fn restore() {
        if let Some(saved) = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // A terminal that has gone away needs no mode.
            let _ = set_mode(saved.fd.as_fd(), &saved.mode);
        }
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        RawTerminal::restore();
    }
}

/// The mode of the terminal behind `fd`: none when it is not a terminal.
pub fn terminal_mode(fd: BorrowedFd<'_>) -> Option<libc::termios> {
    let mut mode = MaybeUninit::<libc::termios>::uninit();
    // SAFETY: the descriptor is open, and `mode` has room for the answer.
    let result = unsafe { libc::tcgetattr(fd.as_raw_fd(), mode.as_mut_ptr()) };
    // SAFETY: the call succeeded and has filled it.
    (result == 0).then(|| unsafe { mode.assume_init() })
}

fn set_mode(fd: BorrowedFd<'_>, mode: &libc::termios) -> io::Result<()> {
    // SAFETY: the descriptor is open and the mode is valid. TCSADRAIN lets what was printed leave first.
    let result = unsafe { libc::tcsetattr(fd.as_raw_fd(), libc::TCSADRAIN, mode) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
