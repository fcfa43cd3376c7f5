//! Requests about the whole machine: its clock and its end.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::process::Command;
use std::thread;
use std::time::Duration;

use coracle_agent::protocol::agent::{Failure, Place, Power, Step};

use crate::power;

/// Returns the kernel's release (`uname(2)`).
pub(super) fn kernel_release() -> OsString {
    // SAFETY: an all-zero structure is valid: it is plain data.
    let mut names: libc::utsname = unsafe { std::mem::zeroed() };
    // SAFETY: fills the structure it is given.
    unsafe { libc::uname(&raw mut names) };
    let bytes = names.release.iter().map(|byte| byte.cast_unsigned());
    OsString::from_vec(bytes.take_while(|byte| *byte != 0).collect())
}

/// Sets the wall clock to a time since 1970.
pub(super) fn set_clock(time: Duration) -> Result<(), Failure> {
    let failed = |error: &io::Error| Failure::new(Step::Clock, OsString::new(), error);
    let seconds = i64::try_from(time.as_secs()).map_err(|error| failed(&io::Error::other(error)))?;
    let time = libc::timespec { tv_sec: seconds, tv_nsec: i64::from(time.subsec_nanos()) };
    // SAFETY: reads the structure it is given.
    if unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &raw const time) } < 0 {
        return Err(failed(&io::Error::last_os_error()));
    }
    Ok(())
}

/// Ends the machine. If another init runs, it is asked first, in the way of its own programs.
pub(super) fn end(place: Place, power: Power) -> ! {
    let (word, ending): (_, fn() -> !) = match power {
        Power::Off => ("poweroff", power::power_off),
        Power::Restart => ("reboot", power::restart),
    };
    if place == Place::BesideInit && DIRECTORIES.iter().any(|folder| runs(&format!("{folder}/{word}"))) {
        thread::sleep(INIT_PATIENCE);
    }
    power::shut_down(ending)
}

fn runs(program: &str) -> bool {
    Command::new(program).status().is_ok_and(|status| status.success())
}

/// Directories of the programs of inits.
const DIRECTORIES: [&str; 4] = ["/sbin", "/usr/sbin", "/bin", "/usr/bin"];
/// The time for an init, which stops its services first. One that does not react is not waited for longer.
const INIT_PATIENCE: Duration = Duration::from_secs(5);
