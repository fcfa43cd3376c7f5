//! The saved state of the event register: the events that the guest has not read.

use serde::{Deserialize, Serialize};

use super::Event;
use crate::state::{SavedState, StateError, only_bits};

/// Version 1 of the state.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct EventState {
    /// A bit for each event, as the guest reads them.
    pub(super) pending: u8,
}

impl EventState {
    pub(super) fn encode(&self) -> SavedState {
        SavedState::encode(VERSION, self)
    }

    /// Returns the state after a check of its values.
    pub(super) fn decode(saved: &SavedState) -> Result<Self, StateError> {
        let state: Self = saved.decode(VERSION)?;
        let Self { pending } = state;
        only_bits("pending", pending, EVENTS)?;
        Ok(state)
    }
}

const VERSION: u16 = 1;
/// Every event that a machine can have.
const EVENTS: u8 = Event::PowerButton as u8 | Event::NewGeneration as u8;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::*;
    use super::*;
    use crate::testing::{PulseCount, refuses_damaged_states, saved, survives_any_state};

    fn register() -> (EventRegister, Arc<PulseCount>) {
        let irq = Arc::new(PulseCount::default());
        (EventRegister::new(irq.clone()), irq)
    }

    #[test]
    fn event_that_was_not_read_is_restored_and_interrupts_again() {
        let (source, _) = register();
        source.raise(Event::PowerButton);
        let (target, irq) = register();
        assert_eq!(target.restore(&source.save()), Ok(()));
        assert_eq!(irq.take(), 1);
        assert_eq!([target.read_byte(0), target.read_byte(0)], [1, 0]);
        assert_eq!([source.read_byte(0), source.read_byte(0)], [1, 0], "saving reads nothing");
    }

    #[test]
    fn event_that_was_read_is_not_restored() {
        let (source, _) = register();
        source.raise(Event::PowerButton);
        source.read_byte(0);
        let (target, irq) = register();
        target.raise(Event::PowerButton);
        irq.take();
        assert_eq!(target.restore(&source.save()), Ok(()));
        assert_eq!((target.read_byte(0), irq.take()), (0, 0));
    }

    #[test]
    fn version_1_keeps_its_layout() {
        assert_eq!(EventState { pending: 1 }.encode(), saved(1, &[1]));
    }

    #[test]
    fn event_that_does_not_exist_is_refused() {
        let (target, irq) = register();
        for bit in 2..8 {
            let error = target.restore(&EventState { pending: 1 << bit }.encode()).unwrap_err();
            let value = 1_u8 << bit;
            let expected = format!("field `pending` is {value:#x}: only the bits of 0x3 can be set");
            assert_eq!(error.to_string(), expected);
        }
        assert_eq!((target.read_byte(0), irq.take()), (0, 0));
    }

    #[test]
    fn hostile_states_are_refused_or_harmless() {
        refuses_damaged_states(&register().0);
        survives_any_state(&register().0, EventRegister::WINDOW_LEN);
    }
}
