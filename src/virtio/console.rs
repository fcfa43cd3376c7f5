//! The virtio console of a machine, as its host's end sees it.

use std::io;
use std::sync::Arc;

use coracle_agent::protocol::agent::PORT_NAME;
use coracle_devices::virtio::VirtioDevice;
use coracle_devices::virtio::console::{Console, ConsolePort, StreamPort};

use super::spec::{DeviceSpec, SpecContext};
use super::{VirtioDevices, VirtioError};

/// What the console device of a machine is for.
pub(super) enum VirtioConsole {
    /// `--console virtio`.
    Console,
    /// The agent, which is reached by a port of it.
    AgentPort,
    /// Both.
    Both,
}

impl DeviceSpec for VirtioConsole {
    fn open(&self, context: &SpecContext) -> Result<Arc<dyn VirtioDevice>, VirtioError> {
        let device = self.make(context);
        device
            .map(|device| Arc::new(device) as Arc<dyn VirtioDevice>)
            .map_err(|source| VirtioError::Host { device: "console".into(), source })
    }

    fn module(&self) -> &'static str {
        "virtio_console"
    }
}

impl VirtioConsole {
    /// A machine has one at most, so that each place is free.
    fn make(&self, context: &SpecContext) -> io::Result<Console> {
        let console = || {
            let port = Arc::new(ConsolePort::new()?);
            Ok::<_, io::Error>(context.console.get_or_init(|| port).clone())
        };
        let stream = || {
            let port = Arc::new(StreamPort::new(PORT_NAME)?);
            Ok::<_, io::Error>(context.agent_port.get_or_init(|| port).clone())
        };
        match self {
            Self::Console => Ok(Console::new(console()?)),
            Self::AgentPort => Console::stream_only(stream()?),
            Self::Both => Ok(Console::with_stream(console()?, stream()?)),
        }
    }
}

impl VirtioDevices {
    /// The virtio console, in a machine that has one.
    pub(crate) fn console(&self) -> Option<&Arc<ConsolePort>> {
        self.console.as_ref()
    }

    /// The agent's port, in a machine that has one.
    pub(crate) fn agent_port(&self) -> Option<&Arc<StreamPort>> {
        self.agent_port.as_ref()
    }
}
