//! The way of a guest from its load to its command.

use serde::Serialize;

/// How far a guest came at least, in the order in which Linux comes up. An image that is not Linux is known
/// to be loaded, entered, or to have written to its console; more only where it says so itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[non_exhaustive]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The kernel was loaded, and no vCPU has run.
    Loaded,
    /// The guest has run, and its console is silent.
    Entered,
    /// The guest has written to its console.
    Console,
    /// The kernel runs: its banner was printed, or it has touched its clock, interrupt controller or serial
    /// line.
    Kernel,
    /// The kernel has set its interrupt controller up.
    Interrupts,
    /// The kernel has started a second processor.
    Processors,
    /// The kernel's drivers have found a device.
    Devices,
    /// A process runs: the guest's init, which has said so by the boot mark or was seen.
    Init,
    /// The command that the machine is for was started.
    Command,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Phase::Loaded => "its load into memory",
            Phase::Entered => "its entry",
            Phase::Console => "its first output",
            Phase::Kernel => "its kernel's start",
            Phase::Interrupts => "the set-up of interrupts",
            Phase::Processors => "the start of its processors",
            Phase::Devices => "its drivers",
            Phase::Init => "its init",
            Phase::Command => "its command",
        })
    }
}
