//! The saved state of the boot mark: the signs that the devices have seen. Their times are not part of it,
//! because they belong to the run that has seen them.

use coracle_devices::state::{SavedState, StateError, only_bits};
use serde::{Deserialize, Serialize};

use super::LIVE;

/// Version 1 of the state.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct SignsState {
    /// A bit for each sign that was seen.
    pub(super) seen: u8,
}

impl SignsState {
    pub(super) fn encode(&self) -> SavedState {
        SavedState::encode(VERSION, self)
    }

    /// Returns the state after a check of its values.
    pub(super) fn decode(saved: &SavedState) -> Result<Self, StateError> {
        let state: Self = saved.decode(VERSION)?;
        let Self { seen } = state;
        only_bits("seen", seen, ALL)?;
        Ok(state)
    }
}

const VERSION: u16 = 1;
/// A bit for each sign.
const ALL: u8 = (1 << LIVE.len()) - 1;

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use coracle_devices::legacy::LegacyDevice;

    use super::super::{BootMark, Sign, Signs};
    use super::*;

    fn mark() -> (BootMark, Arc<Signs>) {
        let signs = Arc::new(Signs::default());
        (BootMark::new(signs.clone()), signs)
    }

    fn seen(signs: &Signs) -> Vec<Sign> {
        signs.milestones(None).map(|milestone| milestone.sign).collect()
    }

    /// Makes a state as a file may have it.
    fn saved(version: u16, bytes: &[u8]) -> SavedState {
        serde_json::from_value(serde_json::json!({"version": version, "bytes": bytes})).unwrap()
    }

    #[test]
    fn restored_guest_has_come_as_far() {
        for sign in LIVE {
            let (source, signs) = mark();
            signs.saw(sign);
            let (target, restored) = mark();
            assert_eq!(target.restore(&source.save()), Ok(()));
            assert_eq!(seen(&restored), [sign]);
            assert_eq!(restored.init_was_seen(), signs.init_was_seen());
        }
    }

    #[test]
    fn signs_of_the_own_run_stay_with_their_times() {
        let start = Instant::now();
        let (target, signs) = mark();
        signs.saw(Sign::ClockRead);
        let own: Vec<_> = signs.milestones(Some(start)).collect();
        assert_eq!(target.restore(&SignsState { seen: 0b11 }.encode()), Ok(()));
        let all: Vec<_> = signs.milestones(Some(start)).collect();
        assert_eq!(all[..1], own);
        assert_eq!(seen(&signs), [Sign::ClockRead, Sign::InterruptsRead]);
    }

    #[test]
    fn version_1_keeps_its_layout() {
        let order = [
            Sign::ClockRead,
            Sign::InterruptsRead,
            Sign::SerialSetUp,
            Sign::InterruptsSetUp,
            Sign::SerialProbed,
            Sign::ConsoleOpened,
            Sign::InitMark,
        ];
        for (bit, sign) in order.into_iter().enumerate() {
            let (source, signs) = mark();
            signs.saw(sign);
            assert_eq!(source.save(), saved(1, &[1 << bit]), "{sign:?}");
        }
    }

    #[test]
    fn bad_states_are_refused_by_name_and_change_nothing() {
        let (target, signs) = mark();
        for (state, expected) in [
            (saved(1, &[0x80]), "field `seen` is 0x80: only the bits of 0x7f can be set"),
            (saved(1, &[1, 1]), "1 bytes follow the end of its state"),
            (saved(1, &[]), "the 0 bytes of its state cannot be decoded"),
            (saved(0, &[1]), "its state has version 0;"),
            (saved(2, &[1]), "its state has version 2;"),
        ] {
            let error = target.restore(&state).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        assert_eq!(seen(&signs), []);
    }
}
