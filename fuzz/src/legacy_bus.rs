//! A guest that drives the machine's port bus and the window of its I/O APIC, while the host feeds and drains
//! the console, presses the power button and resets the devices.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use coracle_arch::x86_64::layout;
use coracle_devices::backend::console_buffer::{ConsoleBuffer, TAIL_BYTES};
use coracle_devices::bus::{Bus, BusBuilder, BusRange};
use coracle_devices::guest_request::{GuestRequest, GuestRequestSink};
use coracle_devices::irq::{MsiMessage, MsiSink};
use coracle_devices::legacy::LegacyDevice;
use coracle_devices::legacy::acpi::AcpiRegisters;
use coracle_devices::legacy::debug_exit::DebugExit;
use coracle_devices::legacy::event::{Event, EventRegister};
use coracle_devices::legacy::i8042::I8042;
use coracle_devices::legacy::ioapic::IoApic;
use coracle_devices::legacy::pvpanic::PvPanic;
use coracle_devices::legacy::rtc::CmosRtc;
use coracle_devices::legacy::serial::SerialPort;

/// `data` is a list of operations of 8 bytes: kind, two bytes of place, width, four bytes of value. The place
/// of the first two kinds is a port; of the next two a device and an offset; of the I/O APIC's an offset.
pub fn legacy_bus(data: &[u8]) {
    let machine = Machine::new();
    for operation in data.chunks_exact(8) {
        let &[kind, low, high, width, ref value @ ..] = operation else { return };
        let place = u64::from(u16::from_le_bytes([low, high]));
        let (base, len) = WINDOWS[usize::from(low) % WINDOWS.len()];
        // Also past the end of the window, by as much as an access is wide.
        let register = u64::from(base) + u64::from(high) % (len + 4);
        let value = &value[..[1, 2, 4, 3, 0][usize::from(width) % 5]];
        let before = machine.effects.count();
        match kind % 11 {
            0 => machine.read(&machine.ports, place, value.len()),
            1 => machine.ports.write(place, value),
            2 => machine.read(&machine.ports, register, value.len()),
            3 => machine.ports.write(register, value),
            4 => machine.read(&machine.mmio, u64::from(layout::IOAPIC) + place % 0x1004, value.len()),
            5 => machine.mmio.write(u64::from(layout::IOAPIC) + place % 0x1004, value),
            6 => machine.ioapic.line(low).into_iter().for_each(|line| line.pulse()),
            7 => machine.feed(value),
            8 => machine.drain(high),
            9 => machine.events.raise(Event::PowerButton),
            _ => machine.reset(),
        }
        let effects = machine.effects.count() - before;
        assert!(effects <= MOST_EFFECTS, "one operation had {effects} effects");
    }
}

/// Interrupts, route changes and requests that one operation may cause: a reset changes the route of every
/// pin, and an access of 4 bytes a few registers.
const MOST_EFFECTS: u64 = IoApic::PINS as u64;

/// The windows of the port bus, as `src/vm/platform/mod.rs` has them (but the boot mark, which only keeps
/// what is written).
const WINDOWS: [(u16, u64); 7] = [
    (layout::COM1_PORT, SerialPort::WINDOW_LEN),
    (layout::I8042_DATA_PORT, I8042::WINDOW_LEN),
    (layout::RTC_PORT, CmosRtc::WINDOW_LEN),
    (layout::SLEEP_CONTROL_PORT, AcpiRegisters::WINDOW_LEN),
    (layout::DEBUG_EXIT_PORT, DebugExit::WINDOW_LEN),
    (layout::EVENT_PORT, EventRegister::WINDOW_LEN),
    (layout::PVPANIC_PORT, PvPanic::WINDOW_LEN),
];

struct Machine {
    ports: Bus,
    mmio: Bus,
    devices: [Arc<dyn LegacyDevice>; 7],
    ioapic: Arc<IoApic>,
    serial: Arc<SerialPort>,
    console: Arc<ConsoleBuffer>,
    events: Arc<EventRegister>,
    effects: Arc<Effects>,
}

impl Machine {
    fn new() -> Machine {
        let effects = Arc::new(Effects::default());
        let ioapic = Arc::new(IoApic::new(effects.clone()));
        // Small, so that it is often full.
        let console = Arc::new(ConsoleBuffer::new(CONSOLE_CAPACITY).unwrap().telling(effects.clone()));
        let line = |gsi| ioapic.line(u8::try_from(gsi).unwrap()).unwrap();
        let serial = Arc::new(SerialPort::new(console.clone(), line(layout::COM1_IRQ)).unwrap());
        let events = Arc::new(EventRegister::new(line(layout::EVENT_IRQ)));
        let devices: [Arc<dyn LegacyDevice>; 7] = [
            serial.clone(),
            Arc::new(I8042::new(effects.clone())),
            Arc::new(CmosRtc::new()),
            Arc::new(AcpiRegisters::new(effects.clone())),
            Arc::new(DebugExit::new(effects.clone())),
            events.clone(),
            Arc::new(PvPanic::new(effects.clone())),
        ];
        let mut ports = BusBuilder::new();
        for ((base, len), device) in WINDOWS.into_iter().zip(devices.clone()) {
            ports.insert(BusRange::new(u64::from(base), len), device).unwrap();
        }
        let mut mmio = BusBuilder::new();
        mmio.insert(BusRange::new(u64::from(layout::IOAPIC), IoApic::WINDOW_LEN), ioapic.clone()).unwrap();
        Machine {
            ports: ports.build(),
            mmio: mmio.build(),
            devices,
            ioapic,
            serial,
            console,
            events,
            effects,
        }
    }

    /// Nothing may be left of what the buffer held: it would be the host's.
    fn read(&self, bus: &Bus, address: u64, width: usize) {
        let (mut zeros, mut ones) = ([0; 4], [0xff; 4]);
        bus.read(address, &mut zeros[..width]);
        bus.read(address, &mut ones[..width]);
        assert_eq!((&zeros[width..], &ones[width..]), (&[0; 4][width..], &[0xff; 4][width..]));
    }

    fn reset(&self) {
        self.devices.iter().for_each(|device| device.reset());
        self.ioapic.reset();
    }

    fn feed(&self, input: &[u8]) {
        let taken = self.serial.enqueue_input(input);
        assert!(taken <= input.len());
        assert!(
            taken == input.len() || !self.serial.has_input_room(),
            "input was left although there is room"
        );
    }

    /// Passes on pieces until `piece` bytes of one are not taken.
    fn drain(&self, piece: u8) {
        let mut drained = 0;
        self.console.drain(|bytes| {
            let taken = bytes.len().min(usize::from(piece));
            drained += taken;
            taken
        });
        assert!(drained <= CONSOLE_CAPACITY, "{drained} bytes were in a buffer of {CONSOLE_CAPACITY}");
        assert!(
            self.console.tail().len() <= TAIL_BYTES,
            "{} bytes are kept to explain",
            self.console.tail().len()
        );
    }
}

const CONSOLE_CAPACITY: usize = 32;

/// Counts what devices do to the machine.
#[derive(Default)]
struct Effects(AtomicU64);

impl Effects {
    fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl MsiSink for Effects {
    fn send(&self, _: MsiMessage) {
        self.add();
    }

    fn route_changed(&self, pin: u8, _: Option<MsiMessage>) {
        assert!(pin < IoApic::PINS);
        self.add();
    }
}

impl GuestRequestSink for Effects {
    fn post(&self, _: GuestRequest) {
        self.add();
    }
}
