//! The list of the machine's legacy devices: where each of them is, and operations on all of them.

use std::sync::Arc;

use coracle_devices::bus::{BusBuilder, BusDevice, BusRange};
use coracle_devices::legacy::LegacyDevice;
use coracle_devices::state::{SavedState, StateError};

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

    /// Returns the state of every device with the device's name. No vCPU may run.
    pub(super) fn save(&self) -> Vec<(&'static str, SavedState)> {
        self.0.iter().map(|entry| (entry.name, entry.device.save())).collect()
    }

    /// Puts every device into its state. No vCPU may run, and the local APICs have their states already.
    ///
    /// Every state is checked before the first device changes. The I/O APIC is among the devices without an
    /// interrupt of their own, which come first: the others pulse an interrupt that is still to be served.
    ///
    /// # Errors
    /// A device has no state, a second one or a bad one, or a state belongs to none of the devices. Then
    /// nothing has changed.
    pub(super) fn restore(&self, states: &[(String, SavedState)]) -> Result<(), StateError> {
        let mut steps: Vec<_> = self.0.iter().map(|entry| (entry, None)).collect();
        for (name, state) in states {
            let found = steps.iter_mut().find(|(entry, _)| entry.name == name);
            let (entry, step) = found.ok_or_else(|| StateError::unknown_device(name))?;
            if step.is_some() {
                return Err(StateError::SecondState { device: entry.name.into() });
            }
            let checked = entry.device.prepare(state);
            *step = Some(checked.map_err(|error| error.of_device(entry.name))?);
        }
        let complete: Result<Vec<_>, _> = steps
            .into_iter()
            .map(|(entry, step)| match step {
                Some(step) => Ok((entry.gsi, step)),
                None => Err(StateError::MissingDevice { device: entry.name.into() }),
            })
            .collect();
        let (with_interrupt, first): (Vec<_>, Vec<_>) =
            complete?.into_iter().partition(|(gsi, _)| gsi.is_some());
        first.into_iter().chain(with_interrupt).for_each(|(_, step)| step.apply());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
