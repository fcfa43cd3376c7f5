//! The legacy devices of the machine, and its buses. The builder creates them.

mod alone;
mod legacy;

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;

use coracle_arch::x86_64::layout;
use coracle_devices::backend::console_buffer::ConsoleBuffer;
use coracle_devices::bus::{BusBuilder, BusDevice, BusError, BusRange};
use coracle_devices::guest_request::GuestRequestSink;
use coracle_devices::irq::MsiSink;
use coracle_devices::legacy::acpi::AcpiRegisters;
use coracle_devices::legacy::debug_exit::DebugExit;
use coracle_devices::legacy::event::EventRegister;
use coracle_devices::legacy::i8042::I8042;
use coracle_devices::legacy::ioapic::IoApic;
use coracle_devices::legacy::pvpanic::PvPanic;
use coracle_devices::legacy::rtc::CmosRtc;
use coracle_devices::legacy::serial::SerialPort;
use coracle_devices::state::{SavedState, StateError};

pub use self::alone::LegacyPlatform;
use self::legacy::{LegacyDevices, at_address, at_port};
use crate::agent::AgentSerial;
use crate::diagnosis::{BootMark, Signs, Watch};
use crate::vcpu::Buses;

/// The legacy devices of the machine, and the buses with all devices on them. It lives as long as the
/// machine, through every reset of the guest.
pub(super) struct Platform {
    pub(super) buses: Arc<Buses>,
    /// Every legacy device, including those that other parts of the machine also hold.
    legacy: LegacyDevices,
    ioapic: Arc<IoApic>,
    pub(super) serial: Arc<SerialPort>,
    pub(super) console: Arc<ConsoleBuffer>,
    pub(super) signs: Arc<Signs>,
    pub(super) events: Arc<EventRegister>,
    /// The agent's serial port, where it has one.
    pub(super) com2: Option<AgentSerial>,
}

/// Why the devices could not be created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlatformError {
    /// The host has run out of event descriptors.
    #[error("a device could not be made: {0}")]
    Device(io::Error),
    /// Two devices overlap on a bus: a defect of Coracle.
    #[error("the devices do not fit each other: {0}")]
    Bus(BusError),
    /// A device has an interrupt line that the I/O APIC lacks: a defect of Coracle.
    #[error("the I/O APIC has no input {gsi}")]
    Interrupt {
        /// The interrupt line, as a GSI.
        gsi: u32,
    },
    /// Two legacy devices use one I/O APIC input: a defect of Coracle.
    #[error("{first} and {second} pulse the same interrupt")]
    SharedInterrupt {
        /// The device that claimed the input first.
        first: &'static str,
        /// The second device that claims it.
        second: &'static str,
    },
}

impl From<BusError> for PlatformError {
    fn from(error: BusError) -> PlatformError {
        PlatformError::Bus(error)
    }
}

/// The name of the agent's serial port.
pub(super) const SECOND_PORT: &str = "COM2";

impl Platform {
    /// Creates every legacy device and puts it on its bus, next to the windows of `virtio`. The devices get
    /// their interrupt lines from `interrupts` and report the endings that the guest requests to `requests`.
    /// `last_gsi` is the last interrupt of `virtio`. The serial console buffers at most `console_capacity`
    /// bytes that nobody has taken.
    pub(super) fn new(
        interrupts: Arc<dyn MsiSink>,
        requests: Arc<dyn GuestRequestSink>,
        virtio: impl IntoIterator<Item = (BusRange, Arc<dyn BusDevice>)>,
        last_gsi: Option<u32>,
        console_capacity: usize,
        com2: Option<&Arc<ConsoleBuffer>>,
    ) -> Result<Platform, PlatformError> {
        let last = last_gsi.into_iter().chain(FIXED_GSIS).max().unwrap_or_default();
        let ioapic = Arc::new(IoApic::new(interrupts, u8::try_from(last).unwrap_or(u8::MAX)));
        let line = |gsi| {
            let pin = u8::try_from(gsi).ok();
            pin.and_then(|pin| ioapic.line(pin)).ok_or(PlatformError::Interrupt { gsi })
        };
        let console = ConsoleBuffer::new(console_capacity).map_err(PlatformError::Device)?;
        let console = Arc::new(console.telling(requests.clone()));
        let serial = SerialPort::new(console.clone(), line(layout::COM1_IRQ)?);
        let serial = Arc::new(serial.map_err(PlatformError::Device)?);
        let second = |output: &Arc<ConsoleBuffer>| {
            let port = SerialPort::new(output.clone(), line(layout::COM2_IRQ)?);
            let port = Arc::new(port.map_err(PlatformError::Device)?);
            Ok::<_, PlatformError>(AgentSerial { port, output: output.clone() })
        };
        let com2 = com2.map(second).transpose()?;
        let events = Arc::new(EventRegister::new(line(layout::EVENT_IRQ)?));

        let signs = Arc::new(Signs::default());
        let legacy = [
            at_port(
                "i8042",
                layout::I8042_DATA_PORT,
                I8042::WINDOW_LEN,
                Arc::new(I8042::new(requests.clone())),
            ),
            at_port("CMOS clock", layout::RTC_PORT, CmosRtc::WINDOW_LEN, Arc::new(CmosRtc::new()))
                .watched(&signs, Watch::Clock),
            at_port(
                "debug exit",
                layout::DEBUG_EXIT_PORT,
                DebugExit::WINDOW_LEN,
                Arc::new(DebugExit::new(requests.clone())),
            ),
            at_port(
                "boot mark",
                layout::BOOT_MARK_PORT,
                BootMark::WINDOW_LEN,
                Arc::new(BootMark::new(signs.clone())),
            ),
            at_port(
                "pvpanic",
                layout::PVPANIC_PORT,
                PvPanic::WINDOW_LEN,
                Arc::new(PvPanic::new(requests.clone())),
            ),
            at_port(
                "ACPI",
                layout::SLEEP_CONTROL_PORT,
                AcpiRegisters::WINDOW_LEN,
                Arc::new(AcpiRegisters::new(requests)),
            ),
            at_port("event register", layout::EVENT_PORT, EventRegister::WINDOW_LEN, events.clone())
                .with_gsi(layout::EVENT_IRQ),
            at_port("COM1", layout::COM1_PORT, SerialPort::WINDOW_LEN, serial.clone())
                .with_gsi(layout::COM1_IRQ)
                .watched(&signs, Watch::Serial),
            at_address("I/O APIC", layout::IOAPIC, IoApic::WINDOW_LEN, ioapic.clone())
                .watched(&signs, Watch::IoApic(AtomicU8::new(0))),
        ];
        let second = com2.iter().map(|com2| {
            at_port(SECOND_PORT, layout::COM2_PORT, SerialPort::WINDOW_LEN, com2.port.clone())
                .with_gsi(layout::COM2_IRQ)
        });
        let legacy = LegacyDevices(legacy.into_iter().chain(second).collect());
        let (mut ports, mut memory) = (BusBuilder::new(), BusBuilder::new());
        legacy.attach(&mut ports, &mut memory)?;
        for (range, device) in virtio {
            memory.insert(range, device)?;
        }
        let buses = Arc::new(Buses { ports: ports.build(), mmio: memory.build() });
        Ok(Platform { buses, legacy, ioapic, serial, console, signs, events, com2 })
    }

    /// Puts the devices into their power-on state. The console buffer belongs to the host's side and the
    /// signs to the whole run, so both stay. No vCPU may run.
    pub(super) fn reset(&self) {
        self.legacy.reset();
    }

    /// Returns the state of every legacy device with the device's name. No vCPU may run.
    pub(super) fn save(&self) -> Vec<(&'static str, SavedState)> {
        self.legacy.save()
    }

    /// Puts every legacy device into its state, or changes nothing. No vCPU may run. The local APICs have
    /// their states already, and the devices are connected to them: some interrupt again.
    ///
    /// # Errors
    /// A device has no state, a second one or a bad one, or a state belongs to none of the devices.
    pub(super) fn restore(&self, states: &[(String, SavedState)]) -> Result<(), StateError> {
        self.legacy.restore(states)
    }
}

/// The interrupts of the legacy devices. The I/O APIC has inputs for all of them in every machine.
const FIXED_GSIS: [u32; 4] = [layout::COM1_IRQ, layout::COM2_IRQ, layout::RTC_IRQ, layout::EVENT_IRQ];
