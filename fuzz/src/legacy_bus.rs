//! A guest that drives the machine's port bus and the window of its I/O APIC, while the host feeds and drains
//! the console, presses the power button and resets the devices.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use coracle::fuzzing::LegacyPlatform;
use coracle_arch::x86_64::layout;
use coracle_devices::backend::console_buffer::TAIL_BYTES;
use coracle_devices::bus::{Bus, BusRange};
use coracle_devices::guest_request::{GuestRequest, GuestRequestSink};
use coracle_devices::irq::{MsiMessage, MsiSink};
use coracle_devices::legacy::event::Event;
use coracle_devices::legacy::ioapic::IoApic;

/// `data` is a list of operations of 8 bytes: kind, two bytes of place, width, four bytes of value. The place
/// of the first two kinds is a port; of the next two a device and an offset; of the I/O APIC's an offset.
pub fn legacy_bus(data: &[u8]) {
    let machine = Machine::new();
    let (ports, memory) = (machine.platform.ports(), machine.platform.memory());
    let windows = machine.platform.port_windows();
    for operation in data.chunks_exact(8) {
        let &[kind, low, high, width, ref value @ ..] = operation else { return };
        let place = u64::from(u16::from_le_bytes([low, high]));
        let BusRange { base, len } = windows[usize::from(low) % windows.len()];
        // Also past the end of the window, by as much as an access is wide.
        let register = base + u64::from(high) % (len + 4);
        let value = &value[..[1, 2, 4, 3, 0][usize::from(width) % 5]];
        let before = machine.effects.count();
        match kind % 11 {
            0 => machine.read(ports, place, value.len()),
            1 => ports.write(place, value),
            2 => machine.read(ports, register, value.len()),
            3 => ports.write(register, value),
            4 => machine.read(memory, u64::from(layout::IOAPIC) + place % 0x1004, value.len()),
            5 => memory.write(u64::from(layout::IOAPIC) + place % 0x1004, value),
            6 => machine.platform.ioapic().line(low).into_iter().for_each(|line| line.pulse()),
            7 => machine.feed(value),
            8 => machine.drain(high),
            9 => machine.platform.events().raise(Event::PowerButton),
            _ => machine.platform.reset(),
        }
        let effects = machine.effects.count() - before;
        assert!(effects <= MAX_EFFECTS, "one operation had {effects} effects");
    }
}

/// Interrupts, route changes and requests that one operation may cause: a reset changes the route of every
/// pin, and an access of 4 bytes a few registers.
const MAX_EFFECTS: u64 = IoApic::PINS as u64;

struct Machine {
    platform: LegacyPlatform,
    effects: Arc<Effects>,
}

impl Machine {
    fn new() -> Machine {
        let effects = Arc::new(Effects::default());
        // A small console, so that it is often full.
        let platform = LegacyPlatform::new(effects.clone(), effects.clone(), CONSOLE_CAPACITY).unwrap();
        Machine { platform, effects }
    }

    /// Nothing may be left of what the buffer held: it would be the host's.
    fn read(&self, bus: &Bus, address: u64, width: usize) {
        let (mut zeros, mut ones) = ([0; 4], [0xff; 4]);
        bus.read(address, &mut zeros[..width]);
        bus.read(address, &mut ones[..width]);
        assert_eq!((&zeros[width..], &ones[width..]), (&[0; 4][width..], &[0xff; 4][width..]));
    }

    fn feed(&self, input: &[u8]) {
        let taken = self.platform.serial().enqueue_input(input);
        assert!(taken <= input.len());
        assert!(
            taken == input.len() || !self.platform.serial().has_input_room(),
            "input was left although there is room"
        );
    }

    /// Passes on pieces until `piece` bytes of one are not taken.
    fn drain(&self, piece: u8) {
        let mut drained = 0;
        self.platform.console().drain(|bytes| {
            let taken = bytes.len().min(usize::from(piece));
            drained += taken;
            taken
        });
        assert!(drained <= CONSOLE_CAPACITY, "{drained} bytes were in a buffer of {CONSOLE_CAPACITY}");
        assert!(
            self.platform.console().tail().len() <= TAIL_BYTES,
            "{} bytes are kept to explain",
            self.platform.console().tail().len()
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
