//! A device of the configuration, and what opening it gives.

use std::sync::Arc;

use coracle_arch::field::Field;
use coracle_devices::virtio::VirtioDevice;

use super::{Handle, VirtioError};
use crate::gate::Gate;

/// The configured value, and the setting that errors name.
pub(crate) struct Named<'a, T> {
    pub field: Field,
    pub config: &'a T,
}

/// The items of a list of settings; errors about one name its `key`.
pub(super) fn numbered<'a, T>(
    items: &'a [T],
    list: Field,
    key: &'static str,
) -> impl Iterator<Item = Named<'a, T>> {
    items.iter().enumerate().map(move |(index, config)| Named { field: list.item(index, key), config })
}

/// A configured device that has not been opened yet.
pub(crate) trait DeviceSpec {
    /// Opens the device's back end and creates the device.
    ///
    /// # Errors
    /// The back end is not available.
    fn open(&self, context: &SpecContext) -> Result<Opened, VirtioError>;

    /// Returns the name of the module that drives the device in a stock Linux, besides `virtio_mmio`.
    fn module(&self) -> &'static str;

    /// Returns the setting that asks for the device, with the value that tells it from others, for errors.
    fn setting(&self) -> String;
}

impl<T: DeviceSpec + ?Sized> DeviceSpec for &T {
    fn open(&self, context: &SpecContext) -> Result<Opened, VirtioError> {
        (**self).open(context)
    }

    fn module(&self) -> &'static str {
        (**self).module()
    }

    fn setting(&self) -> String {
        (**self).setting()
    }
}

/// Shared objects that devices keep.
pub(crate) struct SpecContext {
    /// Receives events of the host, such as failed disk requests.
    pub gate: Arc<Gate>,
}

/// A device that has been opened.
pub(crate) struct Opened {
    /// The guest's side, for the transport.
    pub device: Arc<dyn VirtioDevice>,
    /// The host's side, for a device that the host or its programs use.
    pub handle: Option<Handle>,
}

impl Opened {
    /// Creates the result for a device that only its guest uses.
    pub(crate) fn without_handle(device: impl VirtioDevice + 'static) -> Opened {
        Opened { device: Arc::new(device), handle: None }
    }
}
