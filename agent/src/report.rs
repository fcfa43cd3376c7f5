//! Messages of the agent itself. They go to the kernel's log, and so to the machine's console, in order with
//! the kernel's own.

use std::fs::OpenOptions;
use std::io::Write;

use coracle_agent::boot_mark::INIT_ERROR;

/// Prints one line: an error of the agent, or a warning that explains what will be missing later.
///
/// The level is "error" (3), because a kernel started with `quiet` shows only these on its console.
pub(crate) fn report(line: &str) {
    log(&format!("coracle-agent: {line}"));
}

/// Prints the reason why the first process ends, which makes the kernel panic. Coracle shows this line as the
/// reason.
pub(crate) fn report_end(reason: &str) {
    log(&format!("{INIT_ERROR}{reason}"));
}

fn log(line: &str) {
    let logged = OpenOptions::new()
        .write(true)
        .open("/dev/kmsg")
        .and_then(|mut log| log.write_all(format!("<3>{}\n", one_line(line)).as_bytes()));
    if logged.is_err() {
        eprintln!("{line}");
    }
}

/// Replaces line ends. The kernel takes each line of a write as a message of its own, without the prefix.
fn one_line(text: &str) -> String {
    text.replace('\n', " ")
}
