//! The cost of a process in a guest without any agent: fork, exec, wait.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// Runs `program` repeatedly and prints the nanoseconds of each run, one per line.
pub(super) fn measure(program: &Path, runs: u32) -> Result<()> {
    let path = CString::new(program.as_os_str().as_bytes()).context("the program's path")?;
    let mut times = Vec::new();
    for _ in 0..runs {
        times.push(once(&path)?);
    }
    times.iter().for_each(|time| println!("{}", time.as_nanos()));
    Ok(())
}

/// Parses the times that [`measure`] has printed.
pub(super) fn parse(printed: &str) -> Result<Vec<Duration>> {
    let time =
        |line: &str| line.parse().map(Duration::from_nanos).with_context(|| format!("the time {line:?}"));
    printed.lines().map(time).collect()
}

fn once(path: &CString) -> Result<Duration> {
    let argv = [path.as_ptr(), std::ptr::null()];
    let start = Instant::now();
    // SAFETY: the process has a single thread, so that no lock is held in the child.
    let process = unsafe { libc::fork() };
    ensure!(process >= 0, "cannot fork: {}", io::Error::last_os_error());
    if process == 0 {
        // SAFETY: the string is nul-terminated, the list ends with a null pointer, and both outlive the call.
        unsafe { libc::execv(path.as_ptr(), argv.as_ptr()) };
        // SAFETY: ends this process without running anything of its parent's.
        unsafe { libc::_exit(127) };
    }
    let mut status = 0;
    // SAFETY: stores one int at the given address.
    let waited = unsafe { libc::waitpid(process, &raw mut status, 0) };
    let time = start.elapsed();
    ensure!(waited == process && status == 0, "{path:?} ended with {status}");
    Ok(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_times_are_read_back_and_others_refused() {
        assert_eq!(parse("1000\n2\n").unwrap(), [Duration::from_micros(1), Duration::from_nanos(2)]);
        assert!(parse("1000\nx\n").is_err());
    }
}
