//! The phases of a guest, from loading it to running its command.

use serde::Serialize;

/// The furthest point that a guest is known to have reached, in the order of a Linux boot. Of an image that
/// is not Linux, it is known that it was loaded, entered, or wrote to its console; later phases only if the
/// image reports them itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[non_exhaustive]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The kernel was loaded, and no vCPU has run yet.
    Loaded,
    /// The guest has run, but its console is silent.
    Entered,
    /// The guest has written to its console.
    Console,
    /// The kernel is running: it has printed its banner, or touched its clock, interrupt controller or serial
    /// port.
    Kernel,
    /// The kernel has set up its interrupt controller.
    Interrupts,
    /// The kernel has started a second processor.
    Processors,
    /// The kernel's drivers have found a device.
    Devices,
    /// A process is running: the guest's init has written the boot mark or was otherwise observed.
    Init,
    /// The guest goes on from a snapshot or a template; how far it had come there is not counted.
    Restored,
    /// The command for which the machine runs was started.
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
            Phase::Restored => "its snapshot",
            Phase::Command => "its command",
        })
    }
}
