//! The caller's terminal: which streams are one, its modes and size, and raw mode that is always undone.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use coracle_agent::protocol::{TerminalModes, WindowSize};

/// A terminal of the caller.
#[derive(Debug)]
pub(super) struct CallerTerminal {
    terminal: File,
}

impl CallerTerminal {
    /// The terminal behind a descriptor, or `None` when it is not one.
    pub(super) fn of(stream: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        // SAFETY: asks about an open descriptor; no memory is involved.
        if unsafe { libc::isatty(stream.as_raw_fd()) } != 1 {
            return Ok(None);
        }
        Ok(Some(Self { terminal: File::from(stream.try_clone_to_owned()?) }))
    }

    /// Its modes now.
    pub(super) fn modes(&self) -> io::Result<TerminalModes> {
        self.termios().map(|termios| TerminalModes::from_termios(&termios))
    }

    /// Its size now.
    pub(super) fn size(&self) -> io::Result<WindowSize> {
        let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: TIOCGWINSZ fills one winsize at the given address.
        checked(unsafe { libc::ioctl(self.terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) })?;
        Ok(WindowSize { rows: size.ws_row, columns: size.ws_col })
    }

    /// Hands every byte through both ways until the guard is dropped: the command's own terminal, on the
    /// emulated machine, does the line editing.
    pub(super) fn into_raw(self) -> io::Result<RawTerminal> {
        let former = self.termios()?;
        let raw = RawTerminal { terminal: self, former };
        raw.enter()?;
        Ok(raw)
    }

    fn termios(&self) -> io::Result<libc::termios> {
        // SAFETY: an all-zero termios is valid: it is plain data.
        let mut termios: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: fills the structure it is given.
        checked(unsafe { libc::tcgetattr(self.terminal.as_raw_fd(), &raw mut termios) })?;
        Ok(termios)
    }

    fn set(&self, termios: &libc::termios) -> io::Result<()> {
        // SAFETY: reads the structure it is given.
        checked(unsafe { libc::tcsetattr(self.terminal.as_raw_fd(), libc::TCSADRAIN, termios) })
    }
}

/// A terminal in raw mode. Dropping it restores its modes.
#[derive(Debug)]
pub(super) struct RawTerminal {
    terminal: CallerTerminal,
    former: libc::termios,
}

impl RawTerminal {
    /// Sets raw mode again, after a shell took the terminal back while this process was stopped.
    pub(super) fn enter(&self) -> io::Result<()> {
        let mut raw = self.former;
        // SAFETY: changes the structure it is given.
        unsafe { libc::cfmakeraw(&raw mut raw) };
        *to_restore() = Some((self.terminal.terminal.as_raw_fd(), self.former));
        self.terminal.set(&raw)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore_terminal();
    }
}

/// Undoes raw mode, if a terminal is in it. For the panic hook of a program that aborts on panic; harmless
/// otherwise, and as often as one likes.
pub fn restore_terminal() {
    if let Some((fd, former)) = to_restore().take() {
        // SAFETY: reads the structure it is given. A terminal that is gone needs nothing.
        unsafe { libc::tcsetattr(fd, libc::TCSANOW, &raw const former) };
    }
}

/// The terminal in raw mode and its former modes. A process has one set of standard streams, so one place is
/// enough.
fn to_restore() -> std::sync::MutexGuard<'static, Option<(RawFd, libc::termios)>> {
    static RAW: Mutex<Option<(RawFd, libc::termios)>> = Mutex::new(None);
    RAW.lock().unwrap_or_else(PoisonError::into_inner)
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
