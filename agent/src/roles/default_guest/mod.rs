//! The default guest sets its machine up, does one thing that the kernel command line names, and ends.
//!
//! The parameter is `coracle.init=ACTION`, and the last one counts. All output goes to `/dev/console`.

mod echo;
mod report;
mod shell;
mod wait;

use std::fs;
use std::process::ExitCode;

use crate::furnish::{self, RootFiles};
use crate::power::{self, PowerButton};
use crate::report::report;
use crate::server::{self, Surroundings, Transport};
use crate::{console, mark, modules};

/// The action for which the guest was booted.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    /// Print a description of the machine, then power off. The default.
    Report,
    /// An interactive shell on the console, or on the terminal of `coracle.terminal=NAME`, then power off.
    Shell,
    /// Power off at once.
    PowerOff,
    /// Restart.
    Reboot,
    /// Stop every processor, with the power on.
    Halt,
    /// Crash the kernel.
    Panic,
    /// End PID 1, which makes the kernel panic.
    Exit,
    /// Do nothing until the power button is pressed.
    Wait,
    /// Send back all bytes on vsock port 7, until the power button is pressed.
    Echo,
    /// Serve the host, until the power button is pressed. Another parameter that names a transport to the
    /// host selects it too.
    Agent,
    /// Do nothing forever, whatever is pressed.
    Hang,
    /// An action that this agent does not know.
    Unknown(String),
}

impl Action {
    /// Returns the action that a kernel command line names.
    fn from_command_line(line: &str) -> Self {
        let word =
            line.split_ascii_whitespace().filter_map(|word| word.strip_prefix("coracle.init=")).next_back();
        match word {
            None if Transport::from_command_line(line).is_some() => Self::Agent,
            Some("agent") => Self::Agent,
            None | Some("report") => Self::Report,
            Some("shell") => Self::Shell,
            Some("poweroff") => Self::PowerOff,
            Some("reboot") => Self::Reboot,
            Some("halt") => Self::Halt,
            Some("panic") => Self::Panic,
            Some("exit") => Self::Exit,
            Some("wait") => Self::Wait,
            Some("echo") => Self::Echo,
            Some("hang") => Self::Hang,
            Some(other) => Self::Unknown(other.to_owned()),
        }
    }
}

/// Runs the guest. Returns only if the action is to end PID 1.
pub(crate) fn run() -> ExitCode {
    furnish::DEVICES.make_or_report();
    mark::init_runs();
    furnish::furnish(RootFiles::Private);
    modules::load_all(modules::LIST);
    // Modules that the devices of this machine need as well.
    modules::load_all(modules::OF_DEVICES);
    // The console may be one of these devices.
    if let Err(error) = console::attach() {
        report(&format!("cannot use /dev/console: {error}"));
    }
    let mut button = PowerButton::open();
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    match Action::from_command_line(&line) {
        Action::Report => report::print(),
        Action::Shell => shell::run(&line, &mut button),
        Action::PowerOff => {}
        Action::Reboot => power::restart(),
        Action::Halt => power::halt(),
        Action::Panic => crash(),
        Action::Exit => return ExitCode::SUCCESS,
        Action::Wait => {
            println!("coracle-agent: waiting for the power button");
            wait::wait_until_ended(None, &mut button);
        }
        Action::Echo => {
            echo::start();
            wait::wait_until_ended(None, &mut button);
        }
        Action::Agent => serve(&line, button),
        Action::Hang => power::wait_for_ever(),
        Action::Unknown(name) => println!(
            "coracle-agent: coracle.init={name} is not known; there are report, shell, poweroff, reboot, halt, \
             panic, exit, wait, echo, agent and hang"
        ),
    }
    power::power_off()
}

/// Serves the host by the transport that the command line names.
fn serve(line: &str, button: PowerButton) {
    shell::install();
    let transport = Transport::from_command_line(line).unwrap_or(Transport::DEFAULT);
    match Surroundings::of_first_process(button) {
        Ok(surroundings) => server::run(&transport, surroundings),
        Err(error) => report(&format!("cannot wait for processes: {error}")),
    }
}

/// Makes the kernel panic on purpose (`sysrq`, key c).
fn crash() {
    let result =
        fs::write("/proc/sys/kernel/sysrq", "1").and_then(|()| fs::write("/proc/sysrq-trigger", "c"));
    if let Err(error) = result {
        report(&format!("cannot crash the kernel: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_action_is_the_report() {
        assert_eq!(Action::from_command_line("console=ttyS0 quiet\n"), Action::Report);
    }

    #[test]
    fn the_last_word_counts() {
        let line = "coracle.init=shell x=coracle.init=hang coracle.init=poweroff panic=-1\n";
        assert_eq!(Action::from_command_line(line), Action::PowerOff);
    }

    #[test]
    fn way_to_the_host_is_enough_for_the_agent() {
        assert_eq!(Action::from_command_line("quiet coracle.agent=vsock:1024"), Action::Agent);
        assert_eq!(Action::from_command_line("coracle.agent=ttyS1 coracle.init=report"), Action::Report);
    }

    #[test]
    fn an_unknown_action_keeps_its_name() {
        assert_eq!(Action::from_command_line("coracle.init=dance"), Action::Unknown("dance".into()));
    }
}
