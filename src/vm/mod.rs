//! A virtual machine: building it, running it, the handle on it, and its end.
//!
//! The builder opens the files, makes the parts (`Parts`) and turns them into a `Machine`, which the control
//! thread owns, and its `Shared`, which the handles own. "Who owns what" in docs/design.md draws both.
//!
//! What belongs to the host's view of the machine (devices, sockets, files, console) is in `Machine` and
//! outlives a reset. What only one life of a guest has (memory, KVM's virtual machine) is in `Guest`; its
//! vCPUs belong to their threads. A handle never owns a part of the machine, so that the host's files are
//! free with the outcome, whoever holds a handle.

#[cfg(feature = "tokio")]
mod agent_async_calls;
mod agent_calls;
#[cfg(feature = "tokio")]
mod async_calls;
mod balloon;
mod build_error;
pub(crate) mod builder;
mod events;
mod files;
mod inputs;
mod lifecycle;
mod machine;
mod options;
pub mod outcome;
mod platform;
mod recipe;
mod registers;
mod release;
mod requests;
mod setters;
mod shared;
mod snapshot;
mod stop;
mod vcpus;
mod vsock;
mod watch;

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

pub use build_error::BuildError;
pub use builder::VmBuilder;
use coracle_devices::virtio::console::TerminalSize;
use coracle_devices::virtio::net::NetCounts;
pub use events::{Event, Subscription};
use outcome::{Ending, Outcome};
pub use platform::{LegacyPlatform, PlatformError};
pub use registers::RegistersError;
use shared::Shared;
pub use snapshot::{
    Fork, GuestTime, RecordedDevice, Restore, SnapshotError, SnapshotInfo, Template, check, check_free, info,
    merge, read_manifest, read_state, show_state,
};

use crate::agent::{AgentAttachment, AgentClient, AgentError};
use crate::console::ConsolePipe;
use crate::kvm::VcpuRegisters;

/// A virtual machine that has been built. Dropping it stops it and frees everything that it holds.
pub struct Vm {
    shared: Arc<Shared>,
    control: Option<JoinHandle<()>>,
    console: Option<ConsolePipe>,
}

impl Vm {
    /// Returns a builder. Without further settings it builds the default guest.
    pub fn builder() -> VmBuilder {
        VmBuilder::default()
    }

    /// Returns a handle, which other threads can hold.
    pub fn handle(&self) -> VmHandle {
        VmHandle { shared: self.shared.clone() }
    }

    /// Returns the path of the console's pseudo-terminal, if the console is a
    /// [`SerialConfig::Pty`](crate::config::SerialConfig::Pty).
    pub fn console_path(&self) -> Option<&Path> {
        self.shared.console_path.as_deref()
    }

    /// Takes the program's end of the console, with [`VmBuilder::console_piped`]; `None` the second time.
    pub fn take_console(&mut self) -> Option<ConsolePipe> {
        self.console.take()
    }

    /// Waits for the machine to end. When this returns, its files, sockets and taps have been closed; the
    /// guest's memory may still be on its way back to the host. Dropping the `Vm` waits for that too.
    pub fn wait(&self) -> Outcome {
        self.shared.wait_outcome()
    }

    /// Asks the guest to power off, and stops it if it still runs after `grace`. The outcome shows which of
    /// the two ended it.
    pub fn stop(&self, grace: Grace) -> Outcome {
        let handle = self.handle();
        if !grace.0.is_zero() {
            handle.shut_down(grace.0);
        }
        handle.stop();
        self.wait()
    }
}

/// The time that a guest gets to power off before it is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grace(pub Duration);

impl Grace {
    /// The guest is stopped at once.
    pub const NONE: Grace = Grace(Duration::ZERO);
}

impl Default for Grace {
    /// Five seconds: enough for a guest to sync its disks, and within the ten seconds that supervisors
    /// commonly wait before they kill.
    fn default() -> Grace {
        Grace(Duration::from_secs(5))
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.shared.gate.stop();
        if let Some(control) = self.control.take() {
            // If the control thread panicked, there is nobody left to report it to.
            let _ = control.join();
        }
    }
}

/// A remote control of a virtual machine. Calls on a machine that has ended do nothing.
#[derive(Clone)]
pub struct VmHandle {
    shared: Arc<Shared>,
}

impl VmHandle {
    /// Starts the vCPUs, or continues them after [`VmHandle::pause`].
    pub fn resume(&self) {
        self.shared.resume();
    }

    /// Takes every vCPU out of the guest and stops the devices. Returns `false` if one did not stop in time,
    /// another thread has resumed the machine meanwhile, or the machine has ended.
    pub fn pause(&self) -> bool {
        self.shared.pause(Event::Paused)
    }

    /// Reads the registers of every vCPU, in the order of their indices, while the machine is paused: they
    /// show where a guest that makes no progress is stuck. An entry is `None` if the guest has not started
    /// that vCPU. Waits for a reset of the guest that is under way.
    ///
    /// ```no_run
    /// # fn doc(vm: &coracle::Vm) -> Result<(), coracle::RegistersError> {
    /// let handle = vm.handle();
    /// if handle.pause() {
    ///     for (index, registers) in handle.registers()?.into_iter().enumerate() {
    ///         if let Some(registers) = registers {
    ///             println!("vCPU {index}: {registers}");
    ///         }
    ///     }
    ///     handle.resume();
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`RegistersError::NotPaused`] while the machine is running: it must be paused by [`VmHandle::pause`],
    /// or not yet started by [`VmHandle::resume`]. [`RegistersError::Ended`] once it has ended.
    pub fn registers(&self) -> Result<Vec<Option<VcpuRegisters>>, RegistersError> {
        self.shared.registers()
    }

    /// Presses the guest's power button. A guest that handles the button powers off in its own time. Returns
    /// `false` if the machine has no button because it has no ACPI.
    pub fn press_power_button(&self) -> bool {
        self.shared.press_power_button()
    }

    /// Presses the power button on behalf of a signal that the program received. The exit code of the
    /// power-off is then that of the signal. Returns `false` if the machine has no button, or has ended.
    pub fn power_off_by_signal(&self, signal: i32) -> bool {
        self.shared.has_power_button()
            && self.shared.gate.note_signal(signal)
            && self.shared.press_power_button()
    }

    /// Returns the traffic counters of each network card, in configuration order; empty once the machine has
    /// ended.
    pub fn net_counts(&self) -> Vec<NetCounts> {
        self.shared.virtio().map(|virtio| virtio.net_counts()).unwrap_or_default()
    }

    /// Reports the terminal's size to the guest's virtio console. Returns `false` if the machine has none
    /// ([`ConsoleDevice::Virtio`](crate::config::ConsoleDevice::Virtio)): a serial line cannot carry the
    /// size.
    pub fn resize_console(&self, size: TerminalSize) -> bool {
        self.shared.resize_console(size)
    }

    /// Requests the end of the machine, [`Ending::Stopped`](outcome::Ending::Stopped), and does not wait for
    /// it. The guest is not asked: [`VmHandle::shut_down`] has it power off. [`Vm::stop`] does both, and
    /// waits.
    pub fn stop(&self) {
        self.shared.gate.stop();
    }

    /// Requests the end of the machine on behalf of a signal that the program received. Returns `false` if
    /// the machine had an ending already, which the signal does not change.
    pub fn stop_by_signal(&self, signal: i32) -> bool {
        let is_in_time = self.shared.gate.note_signal(signal);
        if is_in_time {
            self.shared.gate.post(Ending::Signalled { signal });
        }
        is_in_time
    }

    /// Waits up to `limit` for the machine to end, and returns its outcome if it has.
    pub fn wait_for(&self, limit: Duration) -> Option<Outcome> {
        self.shared.wait_outcome_for(limit)
    }

    /// Returns a client of the agent in the guest.
    ///
    /// # Errors
    /// The machine was built without an agent.
    pub fn agent(&self) -> Result<AgentClient, AgentError> {
        self.shared.agent.as_ref().map(AgentAttachment::client).ok_or(AgentError::NoAgent)
    }

    /// Subscribes to the machine's events from here on. If the machine has ended, the only event is
    /// [`Event::Ended`].
    ///
    /// ```no_run
    /// # fn doc(vm: &coracle::Vm) -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    ///
    /// use coracle::Event;
    ///
    /// let events = vm.handle().subscribe()?;
    /// while let Some(event) = events.recv_timeout(Duration::MAX) {
    ///     match event {
    ///         Event::PausedByFault { reason } => println!("paused: {reason}"),
    ///         Event::Ended(outcome) => println!("{}", outcome.ending),
    ///         other => println!("{other:?}"),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The process has run out of file descriptors.
    pub fn subscribe(&self) -> io::Result<Subscription> {
        self.shared.events.subscribe()
    }

    /// A descriptor that becomes readable when the outcome is available, and stays readable: for programs
    /// that wait for several things at once.
    pub fn outcome_fd(&self) -> BorrowedFd<'_> {
        events::borrowed(&self.shared.outcome_event)
    }
}
