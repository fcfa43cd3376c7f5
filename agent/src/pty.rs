//! A pseudo-terminal that stands for a terminal of the host (`pty(7)`).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use coracle_agent::protocol::emulated_host::{TerminalModes, WindowSize};

/// Both ends of a pseudo-terminal.
#[derive(Debug)]
pub(crate) struct Pty {
    /// The agent's end.
    pub(crate) master: File,
    /// The command's end.
    pub(crate) slave: File,
}

impl Pty {
    /// Opens a pseudo-terminal of this size.
    pub(crate) fn open(size: WindowSize) -> io::Result<Self> {
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        // SAFETY: opens a descriptor; no memory is involved.
        let master = owned(unsafe { libc::posix_openpt(flags) })?;
        // SAFETY: unlocks the other end of an open pseudo-terminal; no memory is involved.
        checked(unsafe { libc::unlockpt(master.as_raw_fd()) })?;
        // SAFETY: opens the other end; the argument is a number (`ioctl_tty(2)`).
        let slave = owned(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) })?;
        let pty = Self { master: master.into(), slave: slave.into() };
        resize(&pty.master, size)?;
        Ok(pty)
    }

    /// Sets the modes of another terminal on this one.
    pub(crate) fn set_modes(&self, modes: &TerminalModes) -> io::Result<()> {
        // SAFETY: an all-zero termios is valid: it is plain data.
        let mut termios: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: fills the structure it is given.
        checked(unsafe { libc::tcgetattr(self.slave.as_raw_fd(), &raw mut termios) })?;
        modes.apply_to(&mut termios);
        // SAFETY: reads the structure it is given.
        checked(unsafe { libc::tcsetattr(self.slave.as_raw_fd(), libc::TCSANOW, &raw const termios) })
    }
}

/// Sets the size of the terminal. If it differs, the foreground process group gets SIGWINCH.
pub(crate) fn resize(master: &File, size: WindowSize) -> io::Result<()> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize at the given address.
    checked(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })
}

/// Returns the process group in the terminal's foreground.
pub(crate) fn foreground(master: &File) -> io::Result<libc::pid_t> {
    let mut group: libc::pid_t = 0;
    // SAFETY: TIOCGPGRP stores one pid_t at the given address.
    checked(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPGRP, &raw mut group) })?;
    Ok(group)
}

fn owned(fd: libc::c_int) -> io::Result<OwnedFd> {
    checked(fd)?;
    // SAFETY: the descriptor was just opened, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
