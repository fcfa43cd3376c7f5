//! The balloon: from the configuration to the device, and the handle by which the host asks for memory.

use std::sync::Arc;

use coracle_arch::field::Field;
use coracle_devices::virtio::balloon::Balloon;

use super::spec::{DeviceSpec, Opened, SpecContext};
use super::template::{Link, Plain};
use super::{Handle, VirtioDevices, VirtioError};
use crate::config::{DeviceId, VmConfig};

/// The balloon of a machine that has one.
pub(super) struct BalloonSpec {
    ram_bytes: u64,
}

impl BalloonSpec {
    /// Returns the balloon that `config` asks for; `None` if it asks for none.
    pub(super) fn of(config: &VmConfig) -> Option<BalloonSpec> {
        config.balloon.then(|| BalloonSpec { ram_bytes: config.memory.bytes() })
    }
}

impl DeviceSpec for BalloonSpec {
    fn open(&self, _: &SpecContext) -> Result<Opened, VirtioError> {
        let balloon = Arc::new(Balloon::new(self.ram_bytes));
        Ok(Opened {
            device: balloon.clone(),
            handle: Some(Handle::Balloon(balloon)),
            link: Link::Plain(&PLAIN),
        })
    }

    fn id(&self) -> DeviceId {
        DeviceId::numbered(PLAIN.kind, 0)
    }

    fn module(&self) -> &'static str {
        "virtio_balloon"
    }

    fn setting(&self) -> String {
        FIELD.to_string()
    }
}

impl VirtioDevices {
    /// Returns the balloon, if the machine has one.
    pub(crate) fn balloon(&self) -> Option<&Arc<Balloon>> {
        self.handles().find_map(|handle| match handle {
            Handle::Balloon(balloon) => Some(balloon),
            _ => None,
        })
    }
}

/// The kind, for machines that go on from others.
pub(super) static PLAIN: Plain = Plain {
    kind: "balloon",
    setting: |config| &mut config.balloon,
    spec: |ram_bytes| Box::new(BalloonSpec { ram_bytes }),
};

/// The setting that errors name.
const FIELD: Field = Field::same("balloon");
