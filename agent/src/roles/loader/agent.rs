//! The agent that the loader leaves in the system, beside its init or in place of it.

use std::fs;
use std::io;
use std::process::ExitCode;

use super::options::Options;
use super::root;
use crate::furnish::{KERNEL_MOUNTS, RootFiles, furnish};
use crate::mounts::Mount;
use crate::power::PowerButton;
use crate::report::{report, report_end};
use crate::server::{self, InitRoot, Surroundings, Transport};
use crate::{console, mark, mounts};

/// The agent that the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    No,
    BesideInit(Transport),
    FirstProcess(Transport),
}

impl Wanted {
    pub(super) fn from_command_line(line: &str) -> Self {
        let Some(transport) = Transport::from_command_line(line) else { return Self::No };
        let words = line.split_ascii_whitespace().take_while(|word| *word != "--");
        match words.filter_map(|word| word.strip_prefix("coracle.init=")).last() {
            Some("agent") => Self::FirstProcess(transport),
            _ => Self::BesideInit(transport),
        }
    }
}

/// Returns the kernel's command line. If `/proc` is not mounted, it is mounted only for this.
pub(super) fn command_line() -> String {
    if let Ok(line) = fs::read_to_string("/proc/cmdline") {
        return line;
    }
    const PRIVATE: Mount<'static> =
        Mount { source: "proc", target: "/coracle/proc", kind: "proc", options: "" };
    PRIVATE.make_or_report();
    let line = fs::read_to_string("/coracle/proc/cmdline").unwrap_or_default();
    mounts::unmount(PRIVATE.target.as_ref());
    line
}

/// Starts the agent as a process of its own, which stays when process 1 becomes the system's init.
pub(super) fn start_beside(transport: &Transport) {
    // SAFETY: the process has one thread, so that the copy finds no lock taken.
    match unsafe { libc::fork() } {
        0 => {
            serve_beside(transport);
            std::process::exit(1);
        }
        -1 => report(&format!("cannot start the agent: {}", io::Error::last_os_error())),
        _ => {}
    }
}

fn serve_beside(transport: &Transport) {
    // A defect of the agent must not end the machine.
    std::panic::set_hook(Box::new(|panic| report(&panic.to_string())));
    // SAFETY: makes the calling process a session leader; no memory is involved.
    unsafe { libc::setsid() };
    match InitRoot::open().and_then(Surroundings::beside_init) {
        Ok(surroundings) => server::run(transport, surroundings),
        Err(error) => report(&format!("the agent cannot go on: {error}")),
    }
}

/// Becomes the first process of the user's root. Returns only if that is impossible.
pub(super) fn run_first(transport: &Transport, line: &str) -> ExitCode {
    KERNEL_MOUNTS.iter().for_each(Mount::make_or_report);
    let options = Options::from_command_line(line);
    if options.has_root()
        && let Err(error) = root::switch(&options)
    {
        report_end(&error.to_string());
        return ExitCode::FAILURE;
    }
    furnish(if options.is_private() { RootFiles::Private } else { RootFiles::Kept });
    mark::init_runs();
    if let Err(error) = console::attach() {
        report(&format!("cannot use /dev/console: {error}"));
    }
    match Surroundings::of_first_process(PowerButton::open()) {
        Ok(surroundings) => server::run(transport, surroundings),
        Err(error) => report_end(&format!("cannot wait for processes: {error}")),
    }
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agent_is_beside_the_init_unless_it_is_to_be_the_init() {
        let wanted = Wanted::from_command_line;
        assert_eq!(wanted("quiet coracle.init=agent"), Wanted::No);
        assert_eq!(wanted("coracle.agent=vsock:7 quiet"), Wanted::BesideInit(Transport::Vsock(7)));
        assert_eq!(
            wanted("coracle.agent=console coracle.init=agent -- x"),
            Wanted::FirstProcess(Transport::Console)
        );
        assert_eq!(wanted("-- coracle.agent=console"), Wanted::No);
    }
}
