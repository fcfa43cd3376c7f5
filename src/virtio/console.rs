//! The virtio console of a machine, as its host's end sees it.

use std::sync::Arc;

use coracle_devices::virtio::VirtioDevice;
use coracle_devices::virtio::console::{Console, ConsolePort};

use super::spec::{DeviceSpec, SpecContext};
use super::{VirtioDevices, VirtioError};

/// `--console virtio`: there is nothing to choose.
pub(super) struct VirtioConsole;

impl DeviceSpec for VirtioConsole {
    fn open(&self, context: &SpecContext) -> Result<Arc<dyn VirtioDevice>, VirtioError> {
        let port =
            ConsolePort::new().map_err(|source| VirtioError::Host { device: "console".into(), source })?;
        let port = Arc::new(port);
        // A machine has one at most.
        let _ = context.console.set(port.clone());
        Ok(Arc::new(Console::new(port)))
    }

    fn module(&self) -> &'static str {
        "virtio_console"
    }
}

impl VirtioDevices {
    /// The virtio console, in a machine that has one.
    pub(crate) fn console(&self) -> Option<&Arc<ConsolePort>> {
        self.console.as_ref()
    }
}
