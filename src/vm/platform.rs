//! The devices of the machine and where they sit on its buses. Called by the builder.

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

use crate::agent::AgentSerial;
use crate::diagnosis::{BootMark, Signs, Watch, Watched};
use crate::vcpu::Buses;
use crate::virtio::VirtioDevices;

/// The devices that other parts of the virtual machine hold on to, and the buses with all of them.
pub(super) struct Platform {
    pub(super) buses: Arc<Buses>,
    pub(super) serial: Arc<SerialPort>,
    pub(super) console: Arc<ConsoleBuffer>,
    pub(super) signs: Arc<Signs>,
    pub(super) events: Arc<EventRegister>,
    /// The agent's serial port, where it has one.
    pub(super) com2: Option<AgentSerial>,
    ioapic: Arc<IoApic>,
}

/// Why the devices could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlatformError {
    /// The host ran out of something small.
    #[error("a device could not be made: {0}")]
    Device(io::Error),
    /// Two devices at one address: a defect of Coracle.
    #[error("the devices do not fit each other: {0}")]
    Bus(BusError),
    /// A device with an interrupt line that the I/O APIC does not have: a defect of Coracle.
    #[error("the I/O APIC has no input {gsi}")]
    Interrupt {
        /// The line.
        gsi: u32,
    },
}

impl From<BusError> for PlatformError {
    fn from(error: BusError) -> PlatformError {
        PlatformError::Bus(error)
    }
}

impl Platform {
    /// Makes every device: `interrupts` takes theirs, `requests` the guest's wishes for its own end;
    /// `virtio` has been made before. The serial console holds at most `console_capacity` bytes that nobody has taken.
    pub(super) fn new(
        interrupts: Arc<dyn MsiSink>,
        requests: Arc<dyn GuestRequestSink>,
        virtio: &VirtioDevices,
        console_capacity: usize,
        com2: Option<&Arc<ConsoleBuffer>>,
    ) -> Result<Platform, PlatformError> {
        let ioapic = Arc::new(IoApic::new(interrupts));
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

        let i8042 = Arc::new(I8042::new(requests.clone()));
        let signs = Arc::new(Signs::default());
        let watched = |device, watch| Watched::new(device, &signs, watch);
        let mut ports = BusBuilder::new();
        let mut at = |port: u16, len: u64, device: Arc<dyn BusDevice>| {
            ports.insert(BusRange::new(u64::from(port), len), device)
        };
        at(layout::COM1_PORT, SerialPort::WINDOW_LEN, watched(serial.clone(), Watch::Serial))?;
        if let Some(com2) = &com2 {
            at(layout::COM2_PORT, SerialPort::WINDOW_LEN, com2.port.clone())?;
        }
        at(layout::I8042_DATA_PORT, I8042::WINDOW_LEN, i8042)?;
        at(layout::RTC_PORT, CmosRtc::WINDOW_LEN, watched(Arc::new(CmosRtc::new()), Watch::Clock))?;
        at(
            layout::SLEEP_CONTROL_PORT,
            AcpiRegisters::WINDOW_LEN,
            Arc::new(AcpiRegisters::new(requests.clone())),
        )?;
        at(layout::EVENT_PORT, EventRegister::WINDOW_LEN, events.clone())?;
        at(layout::PVPANIC_PORT, PvPanic::WINDOW_LEN, Arc::new(PvPanic::new(requests.clone())))?;
        at(layout::BOOT_MARK_PORT, BootMark::WINDOW_LEN, Arc::new(BootMark::new(signs.clone())))?;
        at(layout::DEBUG_EXIT_PORT, DebugExit::WINDOW_LEN, Arc::new(DebugExit::new(requests)))?;

        let mut mmio = BusBuilder::new();
        let watched_ioapic = watched(ioapic.clone(), Watch::IoApic(AtomicU8::new(0)));
        mmio.insert(BusRange::new(u64::from(layout::IOAPIC), IoApic::WINDOW_LEN), watched_ioapic)?;
        for (range, device) in virtio.windows() {
            mmio.insert(range, device)?;
        }
        let buses = Arc::new(Buses { ports: ports.build(), mmio: mmio.build() });
        Ok(Platform { buses, serial, console, signs, events, com2, ioapic })
    }

    /// Puts the devices into the state in which a guest finds a new machine. What is left out has no such state: the
    /// console is the host's side, the signs are of the whole run, and the clock runs on a battery. No vCPU may run.
    pub(super) fn reset(&self) {
        let Platform { buses: _, serial, console: _, signs: _, events, com2, ioapic } = self;
        serial.reset();
        com2.iter().for_each(|com2| com2.port.reset());
        events.reset();
        ioapic.reset();
    }
}
