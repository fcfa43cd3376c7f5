//! An interactive busybox shell on the guest's console, or on another terminal, with job control.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use super::wait::wait_until_ended;
use crate::power::PowerButton;
use crate::report::report;

const BUSYBOX: &str = "/bin/busybox";

/// The directories of busybox's commands.
const PATH: &str = "/bin:/sbin:/usr/bin:/usr/sbin";

const HOME: &str = "/root";

const TERMINAL_WORD: &str = "coracle.terminal=";

/// The time that a terminal may take to appear: a virtio console's driver first exchanges messages with the
/// device, slowly on a busy host.
const DRIVER_LIMIT: Duration = Duration::from_secs(20);
const DRIVER_PERIOD: Duration = Duration::from_millis(10);

/// Runs the shell and waits until it ends. Meanwhile it reaps all other processes and obeys the power button.
pub(super) fn run(line: &str, button: &mut PowerButton) {
    install();
    match start(line) {
        Ok(shell) => wait_until_ended(Some(shell), button),
        Err(error) => report(&format!("cannot start a shell: {error}")),
    }
}

/// Makes programs of busybox's commands.
pub(super) fn install() {
    if let Err(error) = install_commands() {
        report(&format!("cannot link busybox's commands: {error}"));
    }
}

fn install_commands() -> io::Result<()> {
    let status = Command::new(BUSYBOX).args(["--install", "-s", "/bin"]).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(status.to_string())) }
}

fn start(line: &str) -> io::Result<libc::pid_t> {
    let terminal = open_terminal(line)?;
    let mut command = Command::new(BUSYBOX);
    command.arg("sh").env("PATH", PATH).env("HOME", HOME).env("PS1", "guest:\\w# ").current_dir("/");
    command.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).stderr(terminal);
    // SAFETY: the closure makes only system calls, which are safe between fork and exec.
    unsafe { command.pre_exec(own_terminal) };
    let shell = command.spawn()?;
    Ok(shell.id().cast_signed())
}

/// Opens the terminal that the command line names, once its driver has created it.
fn open_terminal(line: &str) -> io::Result<File> {
    let path = Path::new("/dev").join(terminal_name(line)?);
    let start = Instant::now();
    loop {
        let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&path);
        match opened {
            Err(_) if start.elapsed() < DRIVER_LIMIT => thread::sleep(DRIVER_PERIOD),
            Err(error) => return Err(io::Error::other(format!("{}: {error}", path.display()))),
            Ok(terminal) => return Ok(terminal),
        }
    }
}

/// Returns the terminal that the parameter `coracle.terminal=` names, or the device behind the console:
/// `/dev/console` itself cannot control a session. The list of active consoles ends with the one behind
/// `/dev/console`.
fn terminal_name(line: &str) -> io::Result<String> {
    let named = line.split_ascii_whitespace().filter_map(|word| word.strip_prefix(TERMINAL_WORD)).next_back();
    let active = match named {
        Some(name) => name.to_owned(),
        None => fs::read_to_string("/sys/class/tty/console/active")?,
    };
    Ok(active.split_ascii_whitespace().next_back().unwrap_or("console").to_owned())
}

fn own_terminal() -> io::Result<()> {
    // SAFETY: makes the calling process a session leader; no memory is involved.
    if unsafe { libc::setsid() } < 0 {
        return Err(io::Error::last_os_error());
    }
    let stdin = io::stdin();
    // SAFETY: makes the terminal on stdin the session's; the argument is a number.
    if unsafe { libc::ioctl(stdin.as_raw_fd(), libc::TIOCSCTTY, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_is_the_last_one_that_the_command_line_names() {
        let name = |line| terminal_name(line).unwrap();
        assert_eq!(name("coracle.terminal=ttyS0 quiet coracle.terminal=hvc0 coracle.init=shell\n"), "hvc0");
        assert_eq!(name("coracle.terminal="), "console");
    }
}
