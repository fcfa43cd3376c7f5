//! The caller's signals in a form that can be polled (`signalfd(2)`).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use coracle_devices::signals::{self, Disposition};

/// Signals that Rust's runtime and this command ignore themselves, so that their state does not come from the
/// caller.
const IGNORED_HERE: [libc::c_int; 2] = [libc::SIGPIPE, libc::SIGXFSZ];

/// Signals about the terminal: a new size, and the continuation after a stop.
const ABOUT_TERMINAL: [libc::c_int; 2] = [libc::SIGWINCH, libc::SIGCONT];

/// Signals of this process, blocked and readable. Dropping it unblocks them.
#[derive(Debug)]
pub(super) struct Signals {
    descriptor: OwnedFd,
    former_mask: libc::sigset_t,
    ignored: Vec<u8>,
}

impl Signals {
    /// Blocks the signals for the calling thread. Signals that this process ignores on the caller's behalf
    /// (`nohup`) stay ignored.
    pub(super) fn block() -> io::Result<Self> {
        let mut set = empty_set();
        let mut ignored = Vec::new();
        // The command gets all signals, including those that would end this process.
        for signal in signals::ending().filter(|signal| !IGNORED_HERE.contains(signal)) {
            if Disposition::of(signal) == Disposition::Ignored {
                ignored.extend(u8::try_from(signal));
            } else {
                add(&mut set, signal);
            }
        }
        ABOUT_TERMINAL.iter().for_each(|signal| add(&mut set, *signal));
        // SAFETY: reads the set it is given and opens a descriptor.
        let descriptor =
            unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        checked(descriptor)?;
        // SAFETY: the descriptor was just opened, and nothing else owns it.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        let mut former_mask = empty_set();
        // SAFETY: reads one set and fills the other.
        checked(unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, &raw mut former_mask) })?;
        Ok(Self { descriptor, former_mask, ignored })
    }

    /// Returns the passed-on signals that the caller ignores.
    pub(super) fn ignored(&self) -> &[u8] {
        &self.ignored
    }

    /// Returns the descriptor to poll for reading.
    pub(super) fn poll_fd(&self) -> libc::c_int {
        self.descriptor.as_raw_fd()
    }

    /// Returns the next pending signal.
    pub(super) fn next(&self) -> Option<libc::c_int> {
        // SAFETY: an all-zero record is valid: it is plain data.
        let mut record: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the pointer and the length describe `record`.
        let read = unsafe { libc::read(self.descriptor.as_raw_fd(), (&raw mut record).cast(), size) };
        if usize::try_from(read) == Ok(size) { libc::c_int::try_from(record.ssi_signo).ok() } else { None }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // SAFETY: reads the set it is given; the mask is one that this thread had.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.former_mask, std::ptr::null_mut())
        };
    }
}

/// Returns an empty signal set.
pub(super) fn empty_set() -> libc::sigset_t {
    // SAFETY: an all-zero set is valid: it is plain data.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: initialises the set it is given.
    unsafe { libc::sigemptyset(&raw mut set) };
    set
}

fn add(set: &mut libc::sigset_t, signal: libc::c_int) {
    // SAFETY: changes the set it is given; the number is a signal's.
    unsafe { libc::sigaddset(set, signal) };
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
