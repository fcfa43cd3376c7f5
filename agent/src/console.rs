//! The console of the guest, and messages of the agent itself. These go into the kernel's log, and so to the machine's console, where they
//! stand in order with the kernel's own.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::AsRawFd;

/// Says one line: an error of the agent, or a warning that explains what is missing later.
///
/// The level is "error" (3), because a kernel started with `quiet` shows only these on its console.
pub(crate) fn report(line: &str) {
    let logged = OpenOptions::new()
        .write(true)
        .open("/dev/kmsg")
        .and_then(|mut log| log.write_all(format!("<3>coracle-agent: {}\n", one_line(line)).as_bytes()));
    if logged.is_err() {
        eprintln!("coracle-agent: {line}");
    }
}

/// Makes `/dev/console` this process's standard streams, which it need not have been when the kernel started
/// it: the initramfs may lack the device node.
pub(crate) fn attach() -> io::Result<()> {
    let console = OpenOptions::new().read(true).write(true).open("/dev/console")?;
    for stream in 0..3 {
        // SAFETY: replaces a standard stream of this process by an open descriptor; no memory is involved.
        if unsafe { libc::dup2(console.as_raw_fd(), stream) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The kernel takes each line of a write as a message of its own, without the prefix.
fn one_line(text: &str) -> String {
    text.replace('\n', " ")
}
