//! Signals that can be read (`signalfd(2)`).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Signals that are blocked and wait to be read.
#[derive(Debug)]
pub(crate) struct Signals(OwnedFd);

impl Signals {
    /// Blocks these signals in this process from here on. Processes that were started before keep them
    /// unblocked.
    pub(crate) fn open(signals: &[libc::c_int]) -> io::Result<Self> {
        // SAFETY: an all-zero set is valid: it is plain data.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: initialises the set it is given.
        unsafe { libc::sigemptyset(&raw mut set) };
        for signal in signals {
            // SAFETY: changes the set it is given; the number is a signal's.
            unsafe { libc::sigaddset(&raw mut set, *signal) };
        }
        // SAFETY: reads the set; the former one is not asked for.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        // SAFETY: reads the set and opens a descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just opened, and nothing else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Returns the next pending signal.
    pub(crate) fn take(&self) -> Option<libc::c_int> {
        let mut record = [0u8; size_of::<libc::signalfd_siginfo>()];
        // SAFETY: pointer and length are those of `record`.
        let count = unsafe { libc::read(self.0.as_raw_fd(), record.as_mut_ptr().cast(), record.len()) };
        // The first field is the signal's number.
        let number = record.first_chunk::<4>().filter(|_| count > 0)?;
        Some(i32::from_ne_bytes(*number))
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
