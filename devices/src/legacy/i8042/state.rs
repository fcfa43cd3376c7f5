//! The saved state of the keyboard controller: how much of its output buffer has been read.

use serde::{Deserialize, Serialize};

use super::BYTES;
use crate::state::{SavedState, StateError, at_most};

/// Version 1 of the state.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct ControllerState {
    /// The number of bytes left in the output buffer.
    pub(super) left: u32,
}

impl ControllerState {
    pub(super) fn encode(&self) -> SavedState {
        SavedState::encode(VERSION, self)
    }

    /// Returns the state after a check of its values.
    pub(super) fn decode(saved: &SavedState) -> Result<Self, StateError> {
        let state: Self = saved.decode(VERSION)?;
        let Self { left } = state;
        at_most("left", left, BYTES)?;
        Ok(state)
    }
}

const VERSION: u16 = 1;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::*;
    use super::*;
    use crate::testing::{RequestLog, refuses_damaged_states, saved, survives_any_state};

    fn controller() -> (I8042, Arc<RequestLog>) {
        let log = Arc::new(RequestLog::default());
        (I8042::new(log.clone()), log)
    }

    /// Returns how often the data port is read until the output buffer is empty.
    fn drain(controller: &I8042) -> u32 {
        (0..)
            .take_while(|_| controller.read_byte(COMMAND) == OUTPUT_FULL && controller.read_byte(DATA) == 0)
            .count() as u32
    }

    #[test]
    fn restored_buffer_has_as_many_bytes_left() {
        for reads in [0, 17, BYTES - 1, BYTES] {
            let (source, _) = controller();
            (0..reads).for_each(|_| assert_eq!(source.read_byte(DATA), 0));
            let (target, log) = controller();
            assert_eq!(target.restore(&source.save()), Ok(()));
            assert_eq!(target.save(), source.save());
            let status =
                |controller: &I8042| (0..5).map(|port| controller.read_byte(port)).collect::<Vec<_>>();
            assert_eq!(status(&target), status(&source));
            assert_eq!(drain(&target), drain(&source), "after {reads} reads");
            assert_eq!(log.take(), []);
        }
    }

    #[test]
    fn version_1_keeps_its_layout() {
        assert_eq!(ControllerState { left: 300 }.encode(), saved(1, &[0xac, 0x02]));
    }

    #[test]
    fn more_bytes_than_there_ever_were_are_refused() {
        let (target, _) = controller();
        for left in [BYTES + 1, u32::MAX] {
            let error = target.restore(&ControllerState { left }.encode()).unwrap_err();
            assert_eq!(error.to_string(), format!("field `left` is {left:#x}: at most 0x1000"));
        }
        assert_eq!(drain(&target), BYTES);
    }

    #[test]
    fn hostile_states_are_refused_or_harmless() {
        refuses_damaged_states(&controller().0);
        survives_any_state(&controller().0, I8042::WINDOW_LEN);
    }
}
