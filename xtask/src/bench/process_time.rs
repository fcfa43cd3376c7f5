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
    cpu_time(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// Returns the CPU time of a running process so far, user and system, of all its threads.
pub(super) fn cpu_time_of(process: u32) -> Result<Duration> {
    let mut clock = 0;
    // SAFETY: `clock` has room for the answer.
    match unsafe { libc::clock_getcpuclockid(i32::try_from(process)?, &raw mut clock) } {
        0 => Ok(cpu_time(clock)),
        error => Err(std::io::Error::from_raw_os_error(error)).context("the CPU time of a process"),
    }
}

fn cpu_time(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` has room for the answer.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
