//! The console of the guest.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use crate::modules;

/// Makes `/dev/console` this process's standard streams. When the kernel started the process, the initramfs
/// may have lacked the device node.
pub(crate) fn attach() -> io::Result<()> {
    let console = open()?;
    for stream in 0..3 {
        // SAFETY: replaces a standard stream of this process by an open descriptor; no memory is involved.
        if unsafe { libc::dup2(console.as_raw_fd(), stream) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Opens `/dev/console`. If a virtio console is to be the device behind it, that one appears some time after
/// its driver, which first exchanges messages with the device. Until then, `/dev/console` is another device.
fn open() -> io::Result<File> {
    let start = Instant::now();
    loop {
        // Linux returns EINVAL while the driver registers the console.
        let console = OpenOptions::new().read(true).write(true).open("/dev/console");
        let is_there = console.as_ref().is_ok_and(is_virtio);
        if is_there || !is_virtio_expected() || start.elapsed() > CONSOLE_LIMIT {
            return console;
        }
        thread::sleep(CONSOLE_PERIOD);
    }
}

/// Returns whether the device behind `console` is a virtio console, or another hypervisor console of the
/// kernel.
fn is_virtio(console: &File) -> bool {
    let mut device: libc::c_uint = 0;
    // SAFETY: TIOCGDEV fills one number at the given address (`ioctl_tty(2)`).
    let result = unsafe { libc::ioctl(console.as_raw_fd(), libc::TIOCGDEV, &raw mut device) };
    result == 0 && libc::major(device.into()) == HVC_MAJOR
}

/// Returns whether the command line names a virtio console last. If it cannot be read yet, returns whether
/// the machine has one.
fn is_virtio_expected() -> bool {
    match fs::read_to_string("/proc/cmdline") {
        Ok(line) => names_virtio(&line),
        Err(_) => {
            fs::read_to_string(modules::OF_DEVICES).is_ok_and(|list| list.contains("/virtio_console.ko"))
        }
    }
}

fn names_virtio(line: &str) -> bool {
    let mut consoles = line.split_ascii_whitespace().filter_map(|word| word.strip_prefix("console="));
    consoles.next_back().is_some_and(|name| name.starts_with("hvc"))
}

/// The time that a virtio console may take: its driver and the device exchange four messages, slowly on a
/// busy host.
const CONSOLE_LIMIT: Duration = Duration::from_secs(20);
const CONSOLE_PERIOD: Duration = Duration::from_millis(10);

/// The major device number of `hvc0` (the kernel's `Documentation/admin-guide/devices.txt`).
const HVC_MAJOR: libc::c_uint = 229;

/// The kernel takes each line of a write as a message of its own, without the prefix.
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_console_of_the_command_line_counts() {
        assert!(names_virtio("console=ttyS0 quiet console=hvc0\n"));
        assert!(!names_virtio("console=hvc0 console=ttyS0,115200"));
        assert!(!names_virtio("quiet hvc0"));
    }
}
