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
        let mut transports = self.attached.iter().map(|device| &device.transport);
        let refused = transports.find(|transport| !transport.can_be_saved());
        refused.map_or(Ok(()), |transport| Err(transport.name()))
    }

    /// Returns the name of the first device; `None` if there are no devices.
    pub(crate) fn first_name(&self) -> Option<String> {
        self.attached.first().map(|device| device.transport.name())
    }

    /// Returns the states of the devices with their names, in their order, after a
    /// [pause](VirtioDevices::pause) and before the guest's memory is saved.
    ///
    /// # Errors
    /// The name of the first device that has no state: its kind has none, or the device did not stop.
    pub(crate) fn save(&self) -> Result<Vec<(String, SavedDevice)>, String> {
        let save = |transport: &dyn super::Transport| {
            let name = transport.name();
            transport.save().map(|state| (name.clone(), state)).ok_or(name)
        };
        self.attached.iter().map(|device| save(&*device.transport)).collect()
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
            let name = device.transport.name();
            let Some((saved_name, state)) = states.next() else {
                return Err(StateError::MissingDevice { device: name.into() });
            };
            if *saved_name != name {
                return Err(StateError::unknown_device(saved_name));
            }
            steps.push(device.transport.prepare(state).map_err(|error| error.of_device(name))?);
        }
        if let Some((name, _)) = states.next() {
            return Err(StateError::unknown_device(name));
        }
        steps.into_iter().for_each(Restoration::apply);
        Ok(())
    }
}
