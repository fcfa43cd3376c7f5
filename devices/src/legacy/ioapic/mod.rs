//! An I/O APIC with up to 24 inputs, for a machine whose local APICs are in the kernel and whose I/O APIC is
//! not (KVM's split irqchip).
//!
//! vCPU threads reach its registers through the bus, and devices pulse its inputs through [`IoApic::line`].
//! Each pulse becomes the message that the input's redirection entry describes, and leaves through
//! [`MsiSink`]. Registers follow the Intel 82093AA data sheet (290566), and the EOI register the ICH data
//! sheets.
//!
//! **Number of inputs.** A machine has inputs up to the last one that it uses. Linux reads, masks and routes
//! each input several times, with 20 exits in a boot, and learns their number from the version register.
//!
//! **Masked inputs.** An edge that arrives while its entry is masked is dropped, not latched, as in the
//! 82093AA. Linux's 8250 driver copes with that: it unmasks before it enables the UART's interrupts, reads
//! pending conditions from the UART when it starts, and its lazy disabling leaves the entry unmasked until an
//! edge was taken and recorded.
//!
//! **Level-triggered entries.** All inputs are edges from devices that pulse once per new cause, so no input
//! stays asserted and nothing has to be repeated after an EOI. A level entry sends a message with the level
//! trigger bits, its remote IRR bit always reads 0, and the next pulse is sent with or without an EOI. So an
//! EOI that the kernel does not report cannot block an input.

mod state;

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use self::state::IoApicState;
use super::LegacyDevice;
use crate::bus::BusDevice;
use crate::irq::{IrqLine, MsiMessage, MsiSink};
use crate::lock;
use crate::state::{Restoration, SavedState, StateError};

/// The I/O APIC's register window.
pub struct IoApic {
    pins: Arc<Pins>,
    /// IOREGSEL: index of the register behind IOWIN.
    selected: AtomicU8,
    /// Bits 27:24 of the ID register.
    id: AtomicU8,
}

impl IoApic {
    /// Length of the register window in bytes.
    pub const WINDOW_LEN: u64 = 0x1000;
    /// The largest number of inputs, as the 82093AA has.
    pub const PINS: u8 = PIN_COUNT as u8;

    /// Creates an I/O APIC with every input masked; messages go to `sink`. The inputs are numbered from 0 to
    /// `last`, at most [`Self::PINS`] of them.
    pub fn new(sink: Arc<dyn MsiSink>, last: u8) -> Self {
        let entries = std::array::from_fn(|_| AtomicU64::new(MASKED));
        let pins = Pins { entries, last: last.min(LAST_PIN), writer: Mutex::new(()), sink };
        Self { pins: Arc::new(pins), selected: AtomicU8::new(0), id: AtomicU8::new(0) }
    }

    /// Returns the input `pin`, or `None` after the last one.
    pub fn line(&self, pin: u8) -> Option<Arc<dyn IrqLine>> {
        (pin <= self.pins.last).then(|| Arc::new(Pin { pins: self.pins.clone(), pin }) as Arc<dyn IrqLine>)
    }

    fn register(&self) -> Option<Register> {
        Register::decode(self.selected.load(Ordering::Relaxed), self.pins.last)
    }

    fn read_selected(&self) -> u32 {
        let id = u32::from(self.id.load(Ordering::Relaxed)) << ID_SHIFT;
        match self.register() {
            // The arbitration ID follows every write of the ID register.
            Some(Register::Id | Register::Arbitration) => id,
            Some(Register::Version) => VERSION | (u32::from(self.pins.last) << LAST_ENTRY_SHIFT),
            Some(Register::Entry { pin, half }) => half.of(self.pins.entry(pin)),
            None => u32::MAX,
        }
    }

    fn write_selected(&self, value: u32) {
        match self.register() {
            Some(Register::Id) => {
                let [.., top] = value.to_le_bytes();
                self.id.store(top & ID_MASK, Ordering::Relaxed);
            }
            Some(Register::Entry { pin, half }) => self.pins.write_half(pin, half, value),
            Some(Register::Version | Register::Arbitration) | None => {}
        }
    }
}

impl LegacyDevice for IoApic {
    /// Masks every input and clears the registers.
    fn reset(&self) {
        let Self { pins, selected, id } = self;
        pins.reset();
        selected.store(0, Ordering::Relaxed);
        id.store(0, Ordering::Relaxed);
    }

    fn save(&self) -> SavedState {
        let Self { pins, selected, id } = self;
        let entries = pins.table();
        let (selected, id) = (selected.load(Ordering::Relaxed), id.load(Ordering::Relaxed));
        IoApicState { last: pins.last, entries, selected, id }.encode()
    }

    /// Reports the route of every input that has one, or had one before, so that the sink knows them all
    /// whatever it knew. There is no interrupt to repeat: a pulse has become a message at once, and waits in
    /// a local APIC.
    fn prepare(&self, state: &SavedState) -> Result<Restoration<'_>, StateError> {
        let IoApicState { last: _, entries, selected, id } = IoApicState::decode(state, self.pins.last)?;
        Ok(Restoration::new(move || {
            self.pins.restore(&entries);
            self.selected.store(selected, Ordering::Relaxed);
            self.id.store(id, Ordering::Relaxed);
        }))
    }
}

impl BusDevice for IoApic {
    /// Registers are 32 bits wide at their own offset. Any other access reads all ones. The EOI register is
    /// write-only.
    fn read(&self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            SELECT => u32::from(self.selected.load(Ordering::Relaxed)),
            WINDOW => self.read_selected(),
            _ => u32::MAX,
        };
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(register) => *register = value.to_le_bytes(),
            Err(_) => data.fill(0xff),
        }
    }

    /// Other widths and offsets are ignored. So is the EOI register, because no entry ever waits for an EOI.
    fn write(&self, offset: u64, data: &[u8]) {
        let Ok(bytes) = <[u8; 4]>::try_from(data) else { return };
        match offset {
            SELECT => {
                let [index, ..] = bytes;
                self.selected.store(index, Ordering::Relaxed);
            }
            WINDOW => self.write_selected(u32::from_le_bytes(bytes)),
            _ => {}
        }
    }
}

/// The redirection table. A pulse only loads one entry, so no lock is held while a message is sent.
struct Pins {
    entries: [AtomicU64; PIN_COUNT],
    /// The last input that the machine has.
    last: u8,
    /// Orders the writes of vCPUs, so that `route_changed` reports them in the order of their effect.
    writer: Mutex<()>,
    sink: Arc<dyn MsiSink>,
}

impl Pins {
    fn entry(&self, pin: u8) -> u64 {
        self.entries.get(usize::from(pin)).map_or(MASKED, |entry| entry.load(Ordering::Acquire))
    }

    fn write_half(&self, pin: u8, half: Half, value: u32) {
        self.change(pin, |old| half.replace(old, value) & WRITABLE);
    }

    fn reset(&self) {
        (0..IoApic::PINS).for_each(|pin| self.change(pin, |_| MASKED));
    }

    fn table(&self) -> [u64; PIN_COUNT] {
        let Self { entries, last: _, writer, sink: _ } = self;
        let _in_order = lock(writer);
        entries.each_ref().map(|entry| entry.load(Ordering::Acquire))
    }

    fn restore(&self, table: &[u64; PIN_COUNT]) {
        let _in_order = lock(&self.writer);
        for (pin, (entry, new)) in (0..).zip(self.entries.iter().zip(table)) {
            let old = message_of(entry.swap(*new, Ordering::AcqRel));
            let message = message_of(*new);
            if message.is_some() || old.is_some() {
                self.sink.route_changed(pin, message);
            }
        }
    }

    fn change(&self, pin: u8, change: impl FnOnce(u64) -> u64) {
        let Some(entry) = self.entries.get(usize::from(pin)) else { return };
        let _in_order = lock(&self.writer);
        let old = entry.load(Ordering::Acquire);
        let new = change(old);
        entry.store(new, Ordering::Release);
        let message = message_of(new);
        if message != message_of(old) {
            self.sink.route_changed(pin, message);
        }
    }
}

/// An input, as a device holds it.
struct Pin {
    pins: Arc<Pins>,
    pin: u8,
}

impl IrqLine for Pin {
    fn pulse(&self) {
        if let Some(message) = message_of(self.pins.entry(self.pin)) {
            self.pins.sink.send(message);
        }
    }
}

/// A register behind IOWIN (82093AA, section 3.2).
enum Register {
    Id,
    Version,
    Arbitration,
    Entry { pin: u8, half: Half },
}

impl Register {
    fn decode(index: u8, last: u8) -> Option<Self> {
        match index {
            0 => Some(Self::Id),
            1 => Some(Self::Version),
            2 => Some(Self::Arbitration),
            _ => {
                let place = index.checked_sub(FIRST_ENTRY)?;
                let half = if place & 1 == 0 { Half::Low } else { Half::High };
                let pin = place >> 1;
                (pin <= last).then_some(Self::Entry { pin, half })
            }
        }
    }
}

/// Half of a 64-bit redirection entry.
#[derive(Clone, Copy)]
enum Half {
    Low,
    High,
}

impl Half {
    fn of(self, entry: u64) -> u32 {
        let [a, b, c, d, e, f, g, h] = entry.to_le_bytes();
        match self {
            Self::Low => u32::from_le_bytes([a, b, c, d]),
            Self::High => u32::from_le_bytes([e, f, g, h]),
        }
    }

    fn replace(self, entry: u64, value: u32) -> u64 {
        let value = u64::from(value);
        match self {
            Self::Low => (entry & HIGH_HALF) | value,
            Self::High => (entry & !HIGH_HALF) | (value << 32),
        }
    }
}

/// Returns the message that a redirection entry sends; `None` if it is masked or would not be accepted.
///
/// Formats: Intel SDM volume 3, "Message Address Register Format" and "Message Data Register Format". Nothing
/// is sent for a delivery mode that a message cannot carry (reserved ones, and ExtINT, which asks for an
/// absent 8259), and for a vector below 16, which no local APIC accepts.
fn message_of(entry: u64) -> Option<MsiMessage> {
    if entry & MASKED != 0 {
        return None;
    }
    let delivery_mode = entry & DELIVERY_MODE;
    let acceptable = match delivery_mode {
        FIXED | LOWEST_PRIORITY => entry & VECTOR >= FIRST_VECTOR,
        SMI | NMI | INIT => true,
        _ => false,
    };
    if !acceptable {
        return None;
    }
    let logical = entry & LOGICAL_DESTINATION != 0;
    let mut address = MSI_ADDRESS | ((entry >> DESTINATION_SHIFT) << MSI_DESTINATION_SHIFT);
    if logical {
        address |= MSI_LOGICAL;
    }
    // The hint lets the message choose among several CPUs, which only logical addressing can name.
    if logical && delivery_mode == LOWEST_PRIORITY {
        address |= MSI_REDIRECTION_HINT;
    }
    // Vector, delivery mode and trigger mode sit at the same bits of an entry and of the message data.
    let level = entry & LEVEL_TRIGGERED != 0;
    let assert = if level { MSI_ASSERT } else { 0 };
    let data = Half::Low.of((entry & (VECTOR | DELIVERY_MODE | LEVEL_TRIGGERED)) | assert);
    Some(MsiMessage { address, data })
}

/// Offsets in the window.
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;

const PIN_COUNT: usize = 24;
const LAST_PIN: u8 = PIN_COUNT as u8 - 1;
/// Index of the low half of entry 0.
const FIRST_ENTRY: u8 = 0x10;
/// The version. From 0x20 on there is an EOI register, so that Linux ends a level interrupt with one write.
/// For a 0x11 (the 82093AA itself) it would rewrite the entry as edge and back.
const VERSION: u32 = 0x20;
const LAST_ENTRY_SHIFT: u32 = 16;
const ID_SHIFT: u32 = 24;
const ID_MASK: u8 = 0x0f;

/// Fields of a redirection entry (82093AA, section 3.2.4).
const VECTOR: u64 = 0xff;
const DELIVERY_MODE: u64 = 0b111 << 8;
const FIXED: u64 = 0b000 << 8;
const LOWEST_PRIORITY: u64 = 0b001 << 8;
const SMI: u64 = 0b010 << 8;
const NMI: u64 = 0b100 << 8;
const INIT: u64 = 0b101 << 8;
const LOGICAL_DESTINATION: u64 = 1 << 11;
const POLARITY: u64 = 1 << 13;
const LEVEL_TRIGGERED: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const DESTINATION_SHIFT: u32 = 56;
const DESTINATION: u64 = 0xff << DESTINATION_SHIFT;
/// Delivery status (bit 12) and remote IRR (bit 14) are read-only and always 0, like the reserved bits.
const WRITABLE: u64 =
    VECTOR | DELIVERY_MODE | LOGICAL_DESTINATION | POLARITY | LEVEL_TRIGGERED | MASKED | DESTINATION;
const HIGH_HALF: u64 = 0xffff_ffff << 32;
/// Vectors 0 to 15 are exceptions (Intel SDM volume 3, "Valid Interrupt Vectors").
const FIRST_VECTOR: u64 = 16;

/// Fields of a message.
const MSI_ADDRESS: u64 = 0xfee0_0000;
const MSI_DESTINATION_SHIFT: u32 = 12;
const MSI_REDIRECTION_HINT: u64 = 1 << 3;
const MSI_LOGICAL: u64 = 1 << 2;
const MSI_ASSERT: u64 = 1 << 14;

#[cfg(test)]
mod tests;
