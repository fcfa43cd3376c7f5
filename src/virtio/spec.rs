//! From the configuration of a device to the device.

use std::sync::{Arc, Mutex, OnceLock};

use coracle_devices::virtio::VirtioDevice;
use coracle_devices::virtio::balloon::Balloon;
use coracle_devices::virtio::console::{ConsolePort, StreamPort};
use coracle_devices::virtio::net::Net;
use coracle_devices::virtio::rng::Rng;
use coracle_devices::virtio::vsock::Vsock;
use coracle_image::rootfs::Root;

use super::VirtioError;
use super::console::VirtioConsole;
use crate::config::{AgentConfig, ConsoleDevice, MemoryConfig, VmConfig};
use crate::gate::Gate;

/// A configured device, before anything of it is open.
pub(crate) trait DeviceSpec {
    /// Opens its back end and makes the device.
    ///
    /// # Errors
    /// The back end cannot be had.
    fn open(&self, context: &SpecContext) -> Result<Arc<dyn VirtioDevice>, VirtioError>;

    /// The module that drives it in a stock Linux, besides `virtio_mmio`.
    fn module(&self) -> &'static str;
}

/// What devices may hold on to, and where those go that somebody else holds on to.
pub(crate) struct SpecContext {
    /// Told of what happens on the host.
    pub gate: Arc<Gate>,
    /// Where network cards are left for those who ask for their counts.
    pub nets: Mutex<Vec<Arc<Net>>>,
    /// Where the balloon is left for those who ask for memory.
    pub balloon: OnceLock<Arc<Balloon>>,
    /// Takes the socket device.
    pub vsock: OnceLock<Arc<Vsock>>,
    /// Takes the console.
    pub console: OnceLock<Arc<ConsolePort>>,
    /// Takes the agent's port of the same device.
    pub agent_port: OnceLock<Arc<StreamPort>>,
}

/// Every device of a machine, in the order in which its guest finds them.
pub(crate) fn specs<'a>(config: &'a VmConfig, root: Option<&'a Root>) -> Vec<&'a dyn DeviceSpec> {
    // Disks come first, so that their letters in a Linux guest follow the command line.
    let mut specs: Vec<&dyn DeviceSpec> = Vec::new();
    specs.extend(config.disks.iter().map(|disk| disk as &dyn DeviceSpec));
    specs.extend(root.and_then(Root::disk).map(|disk| disk as &dyn DeviceSpec));
    specs.extend(config.nets.iter().map(|net| net as &dyn DeviceSpec));
    if config.rng {
        specs.push(&Entropy);
    }
    if config.balloon {
        specs.push(&config.memory);
    }
    let has_agent_port = config.agent.as_ref().is_some_and(AgentConfig::needs_console);
    match (config.console == ConsoleDevice::Virtio, has_agent_port) {
        (false, false) => {}
        (true, false) => specs.push(&VirtioConsole::Console),
        (false, true) => specs.push(&VirtioConsole::AgentPort),
        (true, true) => specs.push(&VirtioConsole::Both),
    }
    specs.extend(config.vsock.iter().map(|vsock| vsock as &dyn DeviceSpec));
    specs
}

/// `rng`: there is nothing to choose.
struct Entropy;

impl DeviceSpec for Entropy {
    fn open(&self, _: &SpecContext) -> Result<Arc<dyn VirtioDevice>, VirtioError> {
        Ok(Arc::new(Rng))
    }

    fn module(&self) -> &'static str {
        "virtio_rng"
    }
}

/// `balloon`: memory is all that it is about.
impl DeviceSpec for MemoryConfig {
    fn open(&self, context: &SpecContext) -> Result<Arc<dyn VirtioDevice>, VirtioError> {
        let balloon = Arc::new(Balloon::new(self.bytes()));
        Ok(context.balloon.get_or_init(|| balloon).clone())
    }

    fn module(&self) -> &'static str {
        "virtio_balloon"
    }
}
