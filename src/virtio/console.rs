//! The virtio console of a machine, and the host's ends of its ports.

use std::io;
use std::sync::Arc;

use coracle_agent::protocol::agent::PORT_NAME;
use coracle_arch::field::Field;
use coracle_devices::virtio::console::{Console, ConsolePort, StreamPort};

use super::spec::{DeviceSpec, Opened, SpecContext};
use super::template::Link;
use super::{Handle, VirtioDevices, VirtioError};
use crate::config::{AgentConfig, ConsoleDevice, DeviceId, VmConfig};

/// The purpose of the console device of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConsoleSpec {
    /// The machine's console, with `--console virtio`.
    Console,
    /// A port that leads to the agent.
    AgentPort,
    /// Both.
    Both,
}

/// The host's ends of the device's ports.
pub(crate) struct ConsolePorts {
    console: Option<Arc<ConsolePort>>,
    agent: Option<Arc<StreamPort>>,
}

impl ConsoleSpec {
    /// Returns the console device that `config` asks for; `None` if it asks for none.
    pub(super) fn of(config: &VmConfig) -> Option<ConsoleSpec> {
        let has_agent_port = config.agent.as_ref().is_some_and(AgentConfig::needs_console);
        ConsoleSpec::new(config.console == ConsoleDevice::Virtio, has_agent_port)
    }

    /// Returns the console device with these ports; `None` without one.
    pub(crate) fn new(has_console: bool, has_agent_port: bool) -> Option<ConsoleSpec> {
        match (has_console, has_agent_port) {
            (false, false) => None,
            (true, false) => Some(ConsoleSpec::Console),
            (false, true) => Some(ConsoleSpec::AgentPort),
            (true, true) => Some(ConsoleSpec::Both),
        }
    }

    /// Returns whether the device has the port of the console, and that of the agent.
    pub(crate) fn ports(self) -> (bool, bool) {
        (self != Self::AgentPort, self != Self::Console)
    }

    fn make(&self) -> io::Result<(Console, ConsolePorts)> {
        let console = || ConsolePort::new().map(Arc::new);
        let agent = || StreamPort::new(PORT_NAME).map(Arc::new);
        Ok(match self {
            Self::Console => {
                let console = console()?;
                (Console::new(console.clone()), ConsolePorts { console: Some(console), agent: None })
            }
            Self::AgentPort => {
                let agent = agent()?;
                (Console::stream_only(agent.clone())?, ConsolePorts { console: None, agent: Some(agent) })
            }
            Self::Both => {
                let (console, agent) = (console()?, agent()?);
                let device = Console::with_stream(console.clone(), agent.clone());
                (device, ConsolePorts { console: Some(console), agent: Some(agent) })
            }
        })
    }
}

impl DeviceSpec for ConsoleSpec {
    fn open(&self, _: &SpecContext) -> Result<Opened, VirtioError> {
        let made = self.make();
        let (device, ports) =
            made.map_err(|source| VirtioError::Host { device: "console".into(), source })?;
        Ok(Opened {
            device: Arc::new(device),
            handle: Some(Handle::Console(ports)),
            link: Link::Console(*self),
        })
    }

    fn id(&self) -> DeviceId {
        DeviceId::numbered("console", 0)
    }

    fn module(&self) -> &'static str {
        "virtio_console"
    }

    fn setting(&self) -> String {
        match self {
            Self::Console | Self::Both => FIELD.to_string(),
            Self::AgentPort => "the port of the agent".to_owned(),
        }
    }
}

impl VirtioDevices {
    /// Returns the port of the machine's console, if that is a virtio console.
    pub(crate) fn console(&self) -> Option<&Arc<ConsolePort>> {
        self.console_ports()?.console.as_ref()
    }

    /// Returns the agent's port, if the machine has one.
    pub(crate) fn agent_port(&self) -> Option<&Arc<StreamPort>> {
        self.console_ports()?.agent.as_ref()
    }

    fn console_ports(&self) -> Option<&ConsolePorts> {
        self.handles().find_map(|handle| match handle {
            Handle::Console(ports) => Some(ports),
            _ => None,
        })
    }
}

/// The setting that errors name.
const FIELD: Field = Field::same("console");
