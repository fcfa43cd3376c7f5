//! The event register of the ACPI Generic Event Device (ACPI 6.5, section 5.6.9), by which the host reports
//! to the guest that something happened to the machine.
//!
//! The VMM raises an [`Event`]. The guest's kernel takes the interrupt, reads the register in the DSDT's
//! `_EVT` method, and notifies the drivers of the devices whose bits were set.
//!
//! ```text
//! pending:  bit clear --raise, one pulse--> bit set --read by the guest--> all bits clear
//! ```

mod state;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use self::state::EventState;
use super::LegacyDevice;
use crate::bus::ByteRegisters;
use crate::irq::IrqLine;
use crate::state::{Restoration, SavedState, StateError};

/// An event of the machine. Its value is the bit of the register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Event {
    /// The power button was pressed.
    PowerButton = 1 << 0,
    /// The machine goes on from a snapshot, and has another generation id.
    NewGeneration = 1 << 1,
}

/// A byte with a bit for each kind of event that the guest has not read.
pub struct EventRegister {
    pending: AtomicU8,
    irq: Arc<dyn IrqLine>,
}

impl EventRegister {
    /// Length of the window in ports.
    pub const WINDOW_LEN: u64 = 1;

    /// Creates the register without events. `irq` is the interrupt of the Generic Event Device.
    pub fn new(irq: Arc<dyn IrqLine>) -> Self {
        Self { pending: AtomicU8::new(0), irq }
    }

    /// Reports an event to the guest. An unread event is not counted twice, but interrupts again: the first
    /// pulse is lost if no driver had unmasked the interrupt.
    pub fn raise(&self, event: Event) {
        self.pending.fetch_or(event as u8, Ordering::AcqRel);
        self.irq.pulse();
    }
}

impl LegacyDevice for EventRegister {
    /// Clears the events that the guest has not read.
    fn reset(&self) {
        self.pending.store(0, Ordering::Release);
    }

    fn save(&self) -> SavedState {
        let Self { pending, irq: _ } = self;
        EventState { pending: pending.load(Ordering::Acquire) }.encode()
    }

    /// Events that the guest has not read interrupt again.
    fn prepare(&self, state: &SavedState) -> Result<Restoration<'_>, StateError> {
        let EventState { pending } = EventState::decode(state)?;
        Ok(Restoration::new(move || {
            self.pending.store(pending, Ordering::Release);
            if pending != 0 {
                self.irq.pulse();
            }
        }))
    }
}

impl ByteRegisters for EventRegister {
    /// Returns the events and clears them.
    fn read_byte(&self, offset: u64) -> u8 {
        match offset {
            0 => self.pending.swap(0, Ordering::AcqRel),
            _ => 0xff,
        }
    }

    /// The register is read-only.
    fn write_byte(&self, _offset: u64, _value: u8) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::BusDevice;
    use crate::testing::{PulseCount, sweep};

    fn register() -> (EventRegister, Arc<PulseCount>) {
        let irq = Arc::new(PulseCount::default());
        (EventRegister::new(irq.clone()), irq)
    }

    fn read(register: &EventRegister) -> u8 {
        let mut data = [0xaa];
        register.read(0, &mut data);
        data[0]
    }

    #[test]
    fn raised_event_is_read_once() {
        let (register, irq) = register();
        assert_eq!(read(&register), 0);
        register.raise(Event::PowerButton);
        assert_eq!(irq.take(), 1);
        assert_eq!(read(&register), 1);
        assert_eq!(read(&register), 0);
    }

    #[test]
    fn event_that_was_not_read_interrupts_again_and_stays_one() {
        let (register, irq) = register();
        register.raise(Event::PowerButton);
        register.raise(Event::PowerButton);
        assert_eq!(irq.take(), 2);
        assert_eq!(read(&register), 1);
        assert_eq!(read(&register), 0);
    }

    #[test]
    fn guest_cannot_write_an_event() {
        let (register, irq) = register();
        for value in 0..=u8::MAX {
            register.write(0, &[value]);
        }
        assert_eq!((read(&register), irq.take()), (0, 0));
    }

    #[test]
    fn reset_forgets_what_was_pending() {
        let (register, _) = register();
        register.raise(Event::PowerButton);
        register.reset();
        assert_eq!(read(&register), 0);
    }

    #[test]
    fn any_access_is_survived() {
        sweep(&register().0, EventRegister::WINDOW_LEN);
    }
}
