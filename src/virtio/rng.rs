//! `rng`: a virtio entropy device, which has no options.

use std::sync::Arc;

use coracle_arch::field::Field;
use coracle_devices::virtio::rng::Rng;

use super::VirtioError;
use super::spec::{DeviceSpec, Opened, SpecContext};
use super::template::{Link, Plain};
use crate::config::DeviceId;

/// The entropy device of a machine that has one.
pub(super) struct RngSpec;

impl DeviceSpec for RngSpec {
    fn open(&self, _: &SpecContext) -> Result<Opened, VirtioError> {
        Ok(Opened { device: Arc::new(Rng), handle: None, link: Link::Plain(&PLAIN) })
    }

    fn id(&self) -> DeviceId {
        DeviceId::numbered(PLAIN.kind, 0)
    }

    fn module(&self) -> &'static str {
        "virtio_rng"
    }

    fn setting(&self) -> String {
        FIELD.to_string()
    }
}

/// The kind, for machines that go on from others.
pub(super) static PLAIN: Plain =
    Plain { kind: "rng", setting: |config| &mut config.rng, spec: |_| Box::new(RngSpec) };

/// The setting that errors name.
const FIELD: Field = Field::same("rng");
