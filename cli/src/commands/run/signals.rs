//! The command's signals: blocked in every thread, and read by one thread while another waits for the
//! outcome.

use std::cell::{Cell, OnceCell};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle::VmHandle;
use coracle::command::{RawTerminal, terminal_size};
use coracle_devices::signals::{self, Disposition};

use super::snapshots::SnapshotOnSignal;
use crate::logger;
use crate::memory::{self, SHORT_LIFE};

/// Blocks and reads the signals that end a process by default, and SIGCONT and SIGWINCH. Created before the
/// first thread, which inherits the mask. A signal that the caller ignores (`nohup`) is dropped when it
/// comes: asking for the disposition of each of some sixty signals at the start cost a fifth of a machine's
/// system calls.
pub(crate) struct Blocked {
    fd: OwnedFd,
    last: Cell<Option<(i32, Instant)>>,
    /// Gets SIGUSR1 in place of whoever reads the signals.
    snapshots: OnceCell<Arc<SnapshotOnSignal>>,
}

impl Blocked {
    pub(crate) fn new() -> io::Result<Blocked> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initializes the set that it is given.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        for signal in signals::ending().chain([libc::SIGCONT, libc::SIGWINCH]) {
            // SAFETY: the set is initialized and the number is that of a signal.
            unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
        }
        // SAFETY: the set is initialized; the null pointer means that the old mask is not wanted.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) };
        // SAFETY: the set is initialized; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: signalfd has just created the descriptor, so nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Blocked { fd, last: Cell::new(None), snapshots: OnceCell::new() })
    }

    /// Lets SIGUSR1 ask for a snapshot from now on.
    pub(super) fn on_usr1(&self, snapshots: Arc<SnapshotOnSignal>) {
        let _ = self.snapshots.set(snapshots);
    }

    /// Returns an end for another thread, which reads the signals in place of this one.
    pub(super) fn read_end(&self) -> io::Result<ReadEnd> {
        Ok(ReadEnd { fd: self.fd.try_clone()? })
    }

    /// Waits until the virtual machine has an outcome. The first signal presses the guest's power button;
    /// after [`GRACE`], at a second signal, or if there is no button, the guest is stopped. SIGCONT resumes a
    /// machine that a disk's fault has paused. SIGWINCH reports the terminal's size to the guest.
    pub(crate) fn wait(&self, vm: &VmHandle) -> io::Result<()> {
        match self.poll(vm, Some(SHORT_LIFE))? {
            [true, _] => return Ok(()),
            [false, true] => {}
            [false, false] => memory::give_back_heap(),
        }
        let mut grace: Option<Grace> = None;
        while let [false, _] = self.poll(vm, grace.as_ref().map(Grace::left))? {
            if let Some(grace) = grace.take_if(|grace| grace.left().is_zero()) {
                vm.stop_by_signal(grace.signal);
            }
            let Some(signal) = self.next() else { continue };
            match signal {
                libc::SIGCONT => {
                    // A shell has changed the terminal's mode while this process was stopped.
                    RawTerminal::renew();
                    vm.resume();
                    continue;
                }
                libc::SIGWINCH => {
                    forward_size(vm);
                    continue;
                }
                _ => {}
            }
            let asks = signal != libc::SIGQUIT && grace.is_none();
            if asks && vm.power_off_by_signal(signal) {
                logger::info(&format!("the guest has {GRACE:?} to power off; a second signal stops it"));
                grace = Some(Grace { signal, end: Instant::now() + GRACE });
            } else if !vm.stop_by_signal(signal) {
                // The guest had ended by itself. Whatever still has to be done gets the signal.
                self.poll_outcome(vm)?;
                give_back(signal);
                return Ok(());
            }
        }
        Ok(())
    }

    /// Waits until all of these machines have an outcome, as [`Blocked::wait`] does for one: a signal is for
    /// all of them.
    pub(crate) fn wait_all(&self, vms: &[VmHandle]) -> io::Result<()> {
        let mut left: Vec<&VmHandle> = vms.iter().collect();
        let mut grace: Option<Grace> = None;
        loop {
            left.retain(|vm| vm.wait_for(Duration::ZERO).is_none());
            let Some(next) = left.first() else { return Ok(()) };
            let [_, has_signal] = self.poll(next, grace.as_ref().map(Grace::left))?;
            let late = grace.take_if(|grace| grace.left().is_zero()).map(|grace| grace.signal);
            let came = if has_signal { self.next() } else { None };
            let came = came.filter(|signal| ends(*signal));
            let Some(signal) = late.or(came) else { continue };
            let asks = late.is_none() && signal != libc::SIGQUIT && grace.is_none();
            for vm in &left {
                // A machine without a power button ends at once.
                if !asks || !vm.power_off_by_signal(signal) {
                    vm.stop_by_signal(signal);
                }
            }
            if asks {
                grace = Some(Grace { signal, end: Instant::now() + GRACE });
            }
        }
    }

    /// Waits for the outcome, whatever signals come.
    fn poll_outcome(&self, vm: &VmHandle) -> io::Result<()> {
        // A negative descriptor is left out.
        while let [false, _] = polled([vm.outcome_fd().as_raw_fd(), -1], -1)? {}
        Ok(())
    }

    /// Waits for the outcome and for a signal, and returns which of them has come; neither after `limit`.
    fn poll(&self, vm: &VmHandle, limit: Option<Duration>) -> io::Result<[bool; 2]> {
        let millis =
            limit.map_or(-1, |limit| i32::try_from(limit.as_millis()).unwrap_or(i32::MAX).saturating_add(1));
        polled([vm.outcome_fd().as_raw_fd(), self.fd.as_raw_fd()], millis)
    }

    /// Returns the next signal, if one has come. Two of the same kind in quick succession count as one:
    /// timeout(1) sends a signal to the program and then to its process group, which contains the program.
    pub(crate) fn next(&self) -> Option<i32> {
        loop {
            let came = (self.read()?, Instant::now());
            if let (libc::SIGUSR1, Some(snapshots)) = (came.0, self.snapshots.get()) {
                snapshots.take();
                continue;
            }
            if !is_echo(self.last.get(), came) {
                self.last.set(Some(came));
                return Some(came.0);
            }
        }
    }

    fn read(&self) -> Option<i32> {
        read(&self.fd)
    }
}

/// The signals, for a thread other than the main thread.
#[derive(Debug)]
pub(super) struct ReadEnd {
    fd: OwnedFd,
}

impl ReadEnd {
    /// Waits for a signal, for at most `millis` milliseconds (-1: without a limit), or until the other end of
    /// the pipe `end` is closed (`true`).
    pub(super) fn wait(&self, end: RawFd, millis: i32) -> io::Result<bool> {
        let [end, _] = polled([end, self.fd.as_raw_fd()], millis)?;
        Ok(end)
    }

    pub(super) fn read(&self) -> Option<i32> {
        read(&self.fd)
    }
}

/// Sends a signal again that was read by a thread for which it was not meant.
pub(super) fn give_back(signal: i32) {
    // SAFETY: kill takes two numbers; all threads of this process block the signal, so that it stays pending.
    unsafe { libc::kill(std::process::id().cast_signed(), signal) };
}

/// Reads a signal. There is none if nothing has come, or one that this process ignores: Linux keeps such a
/// signal while it is blocked.
fn read(signals: &OwnedFd) -> Option<i32> {
    let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
    let size = size_of::<libc::signalfd_siginfo>();
    // SAFETY: the descriptor is open, and `info` has room for one record.
    let read = unsafe { libc::read(signals.as_raw_fd(), info.as_mut_ptr().cast(), size) };
    // SAFETY: read has filled the whole record.
    let signal = (read == size as isize).then(|| unsafe { info.assume_init() }.ssi_signo as i32);
    signal.filter(|signal| Disposition::of(*signal) != Disposition::Ignored)
}

/// Waits for two descriptors, and returns which of them are readable or closed.
fn polled(descriptors: [RawFd; 2], millis: i32) -> io::Result<[bool; 2]> {
    let mut polled = descriptors.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    // SAFETY: the array is valid for its length, and both descriptors are open.
    let ready = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, millis) };
    if ready < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok([false; 2]) } else { Err(error) };
    }
    Ok(polled.map(|entry| entry.revents != 0))
}

/// Reports the terminal's size to the guest.
pub(crate) fn forward_size(vm: &VmHandle) {
    if let Some(size) = terminal_size(io::stdout().as_fd()) {
        vm.resize_console(size);
    }
}

/// Returns whether a signal ends a program that does not handle it: all in [`Blocked`] but SIGCONT and
/// SIGWINCH.
pub(crate) fn ends(signal: i32) -> bool {
    !matches!(signal, libc::SIGCONT | libc::SIGWINCH)
}

/// Returns whether a signal that asks for the end is a repetition of the one before it.
fn is_echo(last: Option<(i32, Instant)>, (signal, now): (i32, Instant)) -> bool {
    signals::asks_for_end(signal)
        && last.is_some_and(|(last, at)| last == signal && now.saturating_duration_since(at) < ECHO)
}

/// The time that a guest gets to power off.
struct Grace {
    signal: i32,
    end: Instant,
}

impl Grace {
    fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }
}

/// Enough for a guest to sync its disks, and within the ten seconds that supervisors commonly wait before
/// they kill.
const GRACE: Duration = Duration::from_secs(5);
/// The distance at which two signals count as one: far longer than a program takes between two calls, and
/// shorter than a person takes between two key presses.
const ECHO: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signal_that_comes_twice_at_once_is_one() {
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        let last = Some((libc::SIGTERM, start));
        assert!(is_echo(last, (libc::SIGTERM, after(1))));
        assert!(!is_echo(last, (libc::SIGTERM, after(100))));
        assert!(!is_echo(last, (libc::SIGINT, after(1))));
        assert!(
            !is_echo(Some((libc::SIGUSR1, start)), (libc::SIGUSR1, after(1))),
            "a command may count them"
        );
        assert!(!is_echo(None, (libc::SIGTERM, start)));
    }
}
