//! The legacy devices on their buses, without a machine. The fuzz target `legacy_bus` drives them by it, and
//! nothing else does: so it has the devices and the windows that machines have.

use std::sync::Arc;

use coracle_devices::backend::console_buffer::ConsoleBuffer;
use coracle_devices::bus::{Bus, BusRange};
use coracle_devices::guest_request::GuestRequestSink;
use coracle_devices::irq::MsiSink;
use coracle_devices::legacy::event::EventRegister;
use coracle_devices::legacy::ioapic::IoApic;
use coracle_devices::legacy::serial::SerialPort;
use coracle_devices::state::{SavedState, StateError};

use super::{Platform, PlatformError};

/// A platform without virtio devices.
pub struct LegacyPlatform(Platform);

impl LegacyPlatform {
    /// Makes every device. Both consoles hold at most `console_capacity` bytes.
    ///
    /// # Errors
    /// The host ran out of something small.
    pub fn new(
        interrupts: Arc<dyn MsiSink>,
        requests: Arc<dyn GuestRequestSink>,
        console_capacity: usize,
    ) -> Result<LegacyPlatform, PlatformError> {
        let second = ConsoleBuffer::new(console_capacity).map_err(PlatformError::Device)?;
        let second = Arc::new(second);
        // As many inputs as a machine can have.
        let last_gsi = Some(u32::from(IoApic::PINS));
        Platform::new(interrupts, requests, [], last_gsi, console_capacity, Some(&second)).map(LegacyPlatform)
    }

    /// The bus of ports.
    pub fn ports(&self) -> &Bus {
        &self.0.buses.ports
    }

    /// The bus of guest physical addresses.
    pub fn memory(&self) -> &Bus {
        &self.0.buses.mmio
    }

    /// The windows on the bus of ports, in the order of the list.
    pub fn port_windows(&self) -> Vec<BusRange> {
        self.0.legacy.port_windows().collect()
    }

    /// The I/O APIC.
    pub fn ioapic(&self) -> &IoApic {
        &self.0.ioapic
    }

    /// COM1.
    pub fn serial(&self) -> &SerialPort {
        &self.0.serial
    }

    /// The output of COM1.
    pub fn console(&self) -> &ConsoleBuffer {
        &self.0.console
    }

    /// The register of the power button.
    pub fn events(&self) -> &EventRegister {
        &self.0.events
    }

    /// Resets every device.
    pub fn reset(&self) {
        self.0.reset();
    }

    /// Returns the state of every device with the device's name.
    pub fn save(&self) -> Vec<(&'static str, SavedState)> {
        self.0.save()
    }

    /// Puts every device into its state, or changes nothing.
    ///
    /// # Errors
    /// A device has no state, a second one or a bad one, or a state belongs to none of the devices.
    pub fn restore(&self, states: &[(String, SavedState)]) -> Result<(), StateError> {
        self.0.restore(states)
    }
}
