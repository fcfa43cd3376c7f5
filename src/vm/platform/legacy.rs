//! The list of the machine's legacy devices: where each of them is, and operations on all of them.

use std::sync::Arc;

use coracle_devices::bus::{BusBuilder, BusDevice, BusRange};
use coracle_devices::legacy::LegacyDevice;

use super::PlatformError;
use crate::diagnosis::{Signs, Watch, Watched};

/// A legacy device and its window.
pub(super) struct LegacyEntry {
    /// The device's name in docs/machine.md.
    name: &'static str,
    space: Space,
    window: BusRange,
    /// The I/O APIC input that the device pulses.
    gsi: Option<u32>,
    device: Arc<dyn LegacyDevice>,
    /// The same device as the bus sees it: wrapped in a watch if accesses to it show the guest's progress.
    on_bus: Arc<dyn BusDevice>,
}

/// The address space of a window.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Space {
    Ports,
    Memory,
}

/// Describes a device with `len` ports from `port`.
pub(super) fn at_port<D>(name: &'static str, port: u16, len: u64, device: Arc<D>) -> LegacyEntry
where
    D: LegacyDevice + 'static,
{
    LegacyEntry::new(name, Space::Ports, BusRange::new(u64::from(port), len), device)
}

/// Describes a device with `len` bytes of guest physical addresses from `address`.
pub(super) fn at_address<D>(name: &'static str, address: u32, len: u64, device: Arc<D>) -> LegacyEntry
where
    D: LegacyDevice + 'static,
{
    LegacyEntry::new(name, Space::Memory, BusRange::new(u64::from(address), len), device)
}

impl LegacyEntry {
    fn new<D>(name: &'static str, space: Space, window: BusRange, device: Arc<D>) -> LegacyEntry
    where
        D: LegacyDevice + 'static,
    {
        LegacyEntry { name, space, window, gsi: None, device: device.clone(), on_bus: device }
    }

    /// Records that the device pulses the I/O APIC input `gsi`.
    pub(super) fn with_gsi(self, gsi: u32) -> LegacyEntry {
        LegacyEntry { gsi: Some(gsi), ..self }
    }

    /// Lets the guest's accesses to the device leave signs of its progress.
    pub(super) fn watched(self, signs: &Arc<Signs>, watch: Watch) -> LegacyEntry {
        LegacyEntry { on_bus: Watched::new(self.on_bus, signs, watch), ..self }
    }
}

/// Every legacy device of a machine. They live as long as the machine, through every reset of its guest.
pub(super) struct LegacyDevices(pub(super) Vec<LegacyEntry>);

impl LegacyDevices {
    /// Puts every device on the bus of its address space.
    ///
    /// # Errors
    /// Two windows overlap, or two devices use one I/O APIC input: both are defects of Coracle.
    pub(super) fn attach(
        &self,
        ports: &mut BusBuilder,
        memory: &mut BusBuilder,
    ) -> Result<(), PlatformError> {
        for (index, entry) in self.0.iter().enumerate() {
            let bus = match entry.space {
                Space::Ports => &mut *ports,
                Space::Memory => &mut *memory,
            };
            bus.insert(entry.window, entry.on_bus.clone())?;
            let is_shared = |other: &&LegacyEntry| entry.gsi.is_some() && other.gsi == entry.gsi;
            if let Some(other) = self.0.iter().take(index).find(is_shared) {
                return Err(PlatformError::SharedInterrupt { first: other.name, second: entry.name });
            }
        }
        Ok(())
    }

    /// The windows on the bus of ports, in the order of the list.
    pub(super) fn port_windows(&self) -> impl Iterator<Item = BusRange> {
        self.0.iter().filter(|entry| entry.space == Space::Ports).map(|entry| entry.window)
    }

    /// Puts every device into its power-on state. No vCPU may run.
    pub(super) fn reset(&self) {
        self.0.iter().for_each(|entry| entry.device.reset());
    }
}

#[cfg(test)]
mod tests;
