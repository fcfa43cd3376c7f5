//! The CPU time of a thread.

use std::os::unix::thread::RawPthread;
use std::time::Duration;

/// Returns the CPU time of a thread that has not been joined; zero if it has ended.
pub(super) fn read(thread: RawPthread) -> Duration {
    let mut clock = 0;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the thread is not joined, so its id is valid; `clock` has room for the answer.
    if unsafe { libc::pthread_getcpuclockid(thread, &mut clock) } != 0 {
        return Duration::ZERO;
    }
    // SAFETY: `time` has room for the answer; the clock of an ended thread gives an error.
    if unsafe { libc::clock_gettime(clock, &mut time) } != 0 {
        return Duration::ZERO;
    }
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}
