//! A device of the configuration, and what opening it gives.

use std::sync::Arc;

use coracle_arch::field::Field;
use coracle_devices::virtio::VirtioDevice;

use super::template::Link;
use super::{Handle, VirtioError};
use crate::config::{DeviceId, DiskConfig, NetConfig};
use crate::gate::Gate;

/// The configured value, the setting that errors name, and the id of the device.
pub(crate) struct Named<'a, T> {
    pub field: Field,
    pub config: &'a T,
    pub id: DeviceId,
}

/// The configuration of a device of a kind of which a machine can have several.
pub(crate) trait Listed {
    /// The start of the default ids.
    const KIND: &'static str;

    /// Returns the configured id.
    fn id(&self) -> Option<&DeviceId>;
}

impl Listed for DiskConfig {
    const KIND: &'static str = "disk";

    fn id(&self) -> Option<&DeviceId> {
        self.id.as_ref()
    }
}

impl Listed for NetConfig {
    const KIND: &'static str = "net";

    fn id(&self) -> Option<&DeviceId> {
        self.id.as_ref()
    }
}

/// The items of a list of settings; errors about one name its `key`.
pub(super) fn numbered<'a, T: Listed>(
    items: &'a [T],
    list: Field,
    key: &'static str,
) -> impl Iterator<Item = Named<'a, T>> {
    items.iter().enumerate().map(move |(index, config)| {
        let id = config.id().cloned().unwrap_or_else(|| DeviceId::numbered(T::KIND, index));
        Named { field: list.item(index, key), config, id }
    })
}

/// A configured device that has not been opened yet.
pub(crate) trait DeviceSpec {
    /// Opens the device's back end and creates the device.
    ///
    /// # Errors
    /// The back end is not available.
    fn open(&self, context: &SpecContext) -> Result<Opened, VirtioError>;

    /// Returns the id of the device.
    fn id(&self) -> DeviceId;

    /// Returns the name of the module that drives the device in a stock Linux, besides `virtio_mmio`.
    fn module(&self) -> &'static str;

    /// Returns the setting that asks for the device, with the value that tells it from others, for errors.
    fn setting(&self) -> String;
}

impl<T: DeviceSpec + ?Sized> DeviceSpec for &T {
    fn open(&self, context: &SpecContext) -> Result<Opened, VirtioError> {
        (**self).open(context)
    }

    fn id(&self) -> DeviceId {
        (**self).id()
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
    /// The properties of the device for machines that go on from this one.
    pub link: Link,
}
