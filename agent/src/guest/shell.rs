//! An interactive busybox shell on the guest's console, with job control.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::button::PowerButton;
use super::wait::wait_until_ended;
use crate::console;

const BUSYBOX: &str = "/bin/busybox";

/// Where busybox's commands are linked.
const PATH: &str = "/bin:/sbin:/usr/bin:/usr/sbin";

const HOME: &str = "/root";

/// Runs the shell and waits until it ends; reaps every other process and heeds the power button meanwhile.
pub(super) fn run(button: &mut PowerButton) {
    install();
    match start() {
        Ok(shell) => wait_until_ended(Some(shell), button),
        Err(error) => console::report(&format!("cannot start a shell: {error}")),
    }
}

/// Makes busybox's commands programs of the guest.
pub(super) fn install() {
    if let Err(error) = install_commands() {
        console::report(&format!("cannot link busybox's commands: {error}"));
    }
}

fn install_commands() -> io::Result<()> {
    let status = Command::new(BUSYBOX).args(["--install", "-s", "/bin"]).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(status.to_string())) }
}

fn start() -> io::Result<libc::pid_t> {
    let terminal = open_terminal()?;
    fs::create_dir_all(HOME)?;
    let mut command = Command::new(BUSYBOX);
    command.arg("sh").env("PATH", PATH).env("HOME", HOME).env("PS1", "guest:\\w# ").current_dir("/");
    command.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).stderr(terminal);
    // SAFETY: the closure makes only system calls, which are safe between fork and exec.
    unsafe { command.pre_exec(own_terminal) };
    let shell = command.spawn()?;
    Ok(shell.id().cast_signed())
}

/// The console's own device: `/dev/console` itself cannot control a session. The active consoles are listed
/// with the one behind `/dev/console` last.
fn open_terminal() -> io::Result<File> {
    let active = fs::read_to_string("/sys/class/tty/console/active")?;
    let name = active.split_ascii_whitespace().next_back().unwrap_or("console");
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(format!("/dev/{name}"))
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
