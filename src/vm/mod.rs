//! A virtual machine: building it, running it, the handle on it, and its end.

pub(crate) mod builder;
mod lifecycle;
pub mod outcome;
mod platform;
mod watch;

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

pub use builder::{BuildError, VmBuilder};
use coracle_devices::virtio::balloon::BalloonStatus;
use coracle_devices::virtio::net::NetCounts;
use coracle_devices::virtio::vsock::PortListener;
use lifecycle::Shared;
use outcome::Outcome;

use crate::agent::{AgentAttachment, AgentClient, AgentError};
use crate::config::VmConfig;
use crate::control::VmEvent;
use crate::virtio::VsockPortError;

/// A virtual machine that has been built. Dropping it stops it and frees everything that it holds.
pub struct Vm {
    shared: Arc<Shared>,
    control: Option<JoinHandle<()>>,
}

impl Vm {
    /// Prepares to build what `config` describes.
    pub fn builder(config: VmConfig) -> VmBuilder {
        VmBuilder::new(config)
    }

    /// A remote control that other threads can hold.
    pub fn handle(&self) -> VmHandle {
        VmHandle { shared: self.shared.clone() }
    }

    /// The pseudo-terminal to open for the console, with [`SerialConfig::Pty`](crate::config::SerialConfig::Pty).
    pub fn console_path(&self) -> Option<&Path> {
        self.shared.console_path.as_deref()
    }

    /// Waits for the end. What the virtual machine held may still be on its way back to the host when this returns;
    /// dropping the `Vm` waits for that too.
    pub fn wait(&self) -> Outcome {
        self.shared.wait_outcome()
    }

    /// Stops it where it stands and tells how it ended: by itself, if it was faster.
    pub fn stop(&self) -> Outcome {
        self.handle().stop();
        self.wait()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.shared.control.post(VmEvent::Stop);
        if let Some(control) = self.control.take() {
            // A panic of the control thread has no one left to be told to.
            let _ = control.join();
        }
    }
}

/// A remote control of a virtual machine. Calls on one that has ended do nothing.
#[derive(Clone)]
pub struct VmHandle {
    shared: Arc<Shared>,
}

impl VmHandle {
    /// Lets the vCPUs run: for the first time, or again after [`VmHandle::pause`].
    pub fn resume(&self) {
        self.shared.resume();
    }

    /// Takes every vCPU out of the guest. False when one did not come out in time, or the virtual machine has ended.
    pub fn pause(&self) -> bool {
        self.shared.pause()
    }

    /// Presses the guest's power button: a guest that heeds it powers off, in its own time. False when the machine has no
    /// button, because it has no ACPI.
    pub fn press_power_button(&self) -> bool {
        self.shared.press_power_button()
    }

    /// The same on behalf of a signal that the program was sent: the power-off then has the exit code of that signal.
    pub fn power_off_by_signal(&self, signal: i32) -> bool {
        let pressed = self.shared.press_power_button();
        if pressed {
            self.shared.set_signal(signal);
        }
        pressed
    }

    /// What has gone through each network card, in their order.
    pub fn net_counts(&self) -> Vec<NetCounts> {
        self.shared.net_counts()
    }

    /// Asks the guest to give so many bytes of its memory to the host, or, with 0, to take all of it back. It does so in its
    /// own time, as far as it can do without. False when the machine has no balloon
    /// ([`VmConfig::balloon`](crate::config::VmConfig::balloon)).
    pub fn set_balloon(&self, bytes: u64) -> bool {
        self.shared.balloon().map(|balloon| balloon.set_target(bytes)).is_some()
    }

    /// What the guest was asked to give, and what it has given; none when the machine has no balloon.
    pub fn balloon(&self) -> Option<BalloonStatus> {
        self.shared.balloon().map(|balloon| balloon.status())
    }

    /// Asks for its end, [`Ending::Stopped`](outcome::Ending::Stopped), and does not wait for it.
    pub fn stop(&self) {
        self.shared.control.post(VmEvent::Stop);
    }

    /// The same on behalf of a signal that the program was sent.
    pub fn stop_by_signal(&self, signal: i32) {
        self.shared.set_signal(signal);
        self.shared.control.post(VmEvent::Signal(signal));
    }

    /// The outcome, if it has ended within `limit`.
    pub fn wait_for(&self, limit: Duration) -> Option<Outcome> {
        self.shared.wait_outcome_for(limit)
    }

    /// Connects to a port of the guest by its socket device, and waits for the guest to accept: for 10 s at most. A guest
    /// that has no listener there yet refuses.
    ///
    /// # Errors
    /// There is no such device, or the guest does not accept.
    pub fn connect(&self, port: u32) -> Result<UnixStream, VsockPortError> {
        self.shared.virtio.connect_port(port)
    }

    /// Takes the guest's connections to `port` of the host (address 2) from here on.
    ///
    /// # Errors
    /// There is no such device, the port has a listener, or the machine has ended.
    pub fn listen(&self, port: u32) -> Result<PortListener, VsockPortError> {
        self.shared.virtio.listen_port(port)
    }

    /// The agent in the guest.
    ///
    /// # Errors
    /// The machine was built without one.
    pub fn agent(&self) -> Result<AgentClient, AgentError> {
        self.shared.agent.as_ref().map(AgentAttachment::client).ok_or(AgentError::NoAgent)
    }

    /// Becomes readable when the outcome is there: for programs that wait for several things at once.
    pub fn outcome_event(&self) -> &vmm_sys_util::eventfd::EventFd {
        &self.shared.outcome_event
    }
}
