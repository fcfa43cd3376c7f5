//! The command's signals: blocked in every thread, read by the main thread while it waits for the outcome.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use coracle::VmHandle;

/// TERM, INT, HUP and QUIT, taken from here on. Made before the first thread, which then inherits the mask.
pub(crate) struct Blocked {
    fd: OwnedFd,
}

impl Blocked {
    pub(crate) fn new() -> io::Result<Blocked> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initializes the set that it is given.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGPIPE] {
            // SAFETY: the set is initialized and the number is a signal's.
            unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
        }
        // SAFETY: the set is initialized; the old one is not asked for.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) };
        // SAFETY: the set is initialized; a new descriptor is made.
        let fd = unsafe { libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        Ok(Blocked { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Waits until the virtual machine has an outcome. The first signal stops it.
    pub(crate) fn wait(&self, vm: &VmHandle) -> io::Result<()> {
        let entry = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut polled = [entry(vm.outcome_event().as_raw_fd()), entry(self.fd.as_raw_fd())];
        loop {
            // SAFETY: the array is valid for its length, and both descriptors are open.
            let ready = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, -1) };
            if ready < 0 {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(error);
            }
            let [outcome, signal] = &polled;
            if outcome.revents != 0 {
                return Ok(());
            }
            if signal.revents != 0
                && let Some(number) = self.next()
                && number != libc::SIGPIPE
            {
                vm.stop_by_signal(number);
            }
        }
    }

    fn next(&self) -> Option<i32> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the descriptor is open, and `info` has room for one record.
        let read = unsafe { libc::read(self.fd.as_raw_fd(), info.as_mut_ptr().cast(), size) };
        // SAFETY: a whole record was read into it.
        (read == size as isize).then(|| unsafe { info.assume_init() }.ssi_signo as i32)
    }
}
