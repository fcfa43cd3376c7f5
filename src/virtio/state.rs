//! Saving and restoring the devices of a machine, while no vCPU runs.

use coracle_devices::state::{Restoration, StateError};
use coracle_devices::virtio::state::SavedDevice;

use super::VirtioDevices;

impl VirtioDevices {
    /// Checks that the states of all devices can be saved.
    ///
    /// # Errors
    /// The name of the first device of which it cannot.
    pub(crate) fn check_can_be_saved(&self) -> Result<(), String> {
        let refused = self.attached.iter().find(|device| !device.transport.can_be_saved());
        refused.map_or(Ok(()), |device| Err(device.title()))
    }

    /// Returns the states of the devices with their ids, in their order, after a
    /// [pause](VirtioDevices::pause) and before the guest's memory is saved.
    ///
    /// # Errors
    /// The name of the first device that has no state: its kind has none, or the device did not stop.
    pub(crate) fn save(&self) -> Result<Vec<(String, SavedDevice)>, String> {
        let save = |device: &super::Attached| {
            let state = device.transport.save();
            state.map(|state| (device.id.to_string(), state)).ok_or_else(|| device.title())
        };
        self.attached.iter().map(save).collect()
    }

    /// Puts the devices into their states, so that a [resume](VirtioDevices::resume) starts those that their
    /// drivers have started. They are connected to the guest, whose memory, local APICs and I/O APIC have
    /// their states already: some devices interrupt again.
    ///
    /// # Errors
    /// A device has no state or a bad one, or a state belongs to none of the devices. Then nothing has
    /// changed.
    pub(crate) fn restore(&self, states: &[(String, SavedDevice)]) -> Result<(), StateError> {
        let mut states = states.iter();
        let mut steps = Vec::new();
        for device in &self.attached {
            let Some((id, state)) = states.next() else {
                return Err(StateError::MissingDevice { device: device.title().into() });
            };
            if *id != device.id.as_str() {
                return Err(StateError::unknown_device(id));
            }
            steps.push(device.transport.prepare(state).map_err(|error| error.of_device(device.title()))?);
        }
        if let Some((id, _)) = states.next() {
            return Err(StateError::unknown_device(id));
        }
        steps.into_iter().for_each(Restoration::apply);
        Ok(())
    }
}
