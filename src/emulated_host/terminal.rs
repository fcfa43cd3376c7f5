//! The properties of the caller's terminal that the emulated machine needs: whether there is one, its modes
//! and its size. [`crate::terminal`] sets raw mode.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use coracle_agent::protocol::emulated_host::{TerminalModes, WindowSize};

use crate::terminal::terminal_mode;

/// A terminal of the caller.
#[derive(Debug)]
pub(super) struct CallerTerminal {
    terminal: OwnedFd,
    modes: TerminalModes,
}

impl CallerTerminal {
    /// Returns the terminals among this process's stdin, stdout and stderr.
    pub(super) fn all() -> io::Result<[Option<Self>; 3]> {
        Ok([Self::of(io::stdin().as_fd())?, Self::of(io::stdout().as_fd())?, Self::of(io::stderr().as_fd())?])
    }

    /// Returns the terminal behind a descriptor, or `None` if it is not one.
    fn of(stream: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        let Some(termios) = terminal_mode(stream) else { return Ok(None) };
        let modes = TerminalModes::from_termios(&termios);
        Ok(Some(Self { terminal: stream.try_clone_to_owned()?, modes }))
    }

    /// Returns the modes at the time when the terminal was found.
    pub(super) fn modes(&self) -> TerminalModes {
        self.modes
    }

    /// Returns the present size.
    pub(super) fn size(&self) -> io::Result<WindowSize> {
        let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: TIOCGWINSZ fills one winsize at the given address.
        let result = unsafe { libc::ioctl(self.terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(WindowSize { rows: size.ws_row, columns: size.ws_col })
    }
}
