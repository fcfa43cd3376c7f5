//! The CPU time of processes.

use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result};

/// Waits for the end of `child` and returns its CPU time, user and system.
pub(super) fn wait_cpu_time(child: &Child) -> Result<Duration> {
    let pid = i32::try_from(child.id())?;
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the child is ours and has not been waited for; both results have room.
    let waited = unsafe { libc::wait4(pid, &mut status, 0, usage.as_mut_ptr()) };
    if waited != pid {
        return Err(std::io::Error::last_os_error()).context("cannot wait for the child");
    }
    // SAFETY: zero is a valid value, and the call has filled it.
    let usage = unsafe { usage.assume_init() };
    let time = |time: libc::timeval| Duration::from_micros((time.tv_sec * 1_000_000 + time.tv_usec) as u64);
    Ok(time(usage.ru_utime) + time(usage.ru_stime))
}

/// Returns the CPU time of this process so far, user and system, of all its threads.
pub(super) fn own_cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` has room for the answer.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
