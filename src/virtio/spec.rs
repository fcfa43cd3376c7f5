//! From the configuration of a machine to its devices: the one list of them, and how each is opened.

use std::sync::Arc;

use coracle_arch::field::{DISKS, Field, NETS};
use coracle_devices::virtio::VirtioDevice;
use coracle_devices::virtio::balloon::Balloon;
use coracle_devices::virtio::net::Net;
use coracle_devices::virtio::rng::Rng;
use coracle_devices::virtio::vsock::Vsock;
use coracle_image::rootfs::Root;

use super::VirtioError;
use super::balloon::BalloonSpec;
use super::console::{ConsolePorts, ConsoleSpec};
use crate::config::VmConfig;
use crate::gate::Gate;

/// Returns every device of a machine, in the order in which its guest finds them: one line for each kind.
pub(crate) fn specs<'a>(config: &'a VmConfig, root: Option<&'a Root>) -> Vec<Box<dyn DeviceSpec + 'a>> {
    let kinds = [
        // Disks come first, so that their letters in a Linux guest follow their order on the command line.
        each(numbered(&config.disks, DISKS, "path")),
        each(root.and_then(Root::disk)),
        each(numbered(&config.nets, NETS, "end")),
        each(config.rng.then_some(RngSpec)),
        each(BalloonSpec::of(config)),
        each(ConsoleSpec::of(config)),
        each(&config.vsock),
    ];
    kinds.into_iter().flatten().collect()
}

fn each<'a>(specs: impl IntoIterator<Item = impl DeviceSpec + 'a>) -> Vec<Box<dyn DeviceSpec + 'a>> {
    specs.into_iter().map(|spec| Box::new(spec) as Box<dyn DeviceSpec + 'a>).collect()
}

/// What is configured, and the setting that errors name.
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
}

impl<T: DeviceSpec + ?Sized> DeviceSpec for &T {
    fn open(&self, context: &SpecContext) -> Result<Opened, VirtioError> {
        (**self).open(context)
    }

    fn module(&self) -> &'static str {
        (**self).module()
    }
}

/// The entropy device, which has no options.
struct RngSpec;

impl DeviceSpec for RngSpec {
    fn open(&self, _: &SpecContext) -> Result<Opened, VirtioError> {
        Ok(Opened::without_handle(Rng))
    }

    fn module(&self) -> &'static str {
        "virtio_rng"
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

/// The host's side of a device. The device's file in this directory has the calls on it.
pub(crate) enum Handle {
    /// Asks the guest for memory.
    Balloon(Arc<Balloon>),
    /// The host's ends of the console's ports.
    Console(ConsolePorts),
    /// Counts frames.
    Net(Arc<Net>),
    /// Connects programs to the guest's ports.
    Vsock(Arc<Vsock>),
}
