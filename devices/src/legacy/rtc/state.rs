//! The saved state of the CMOS clock: its index and its memory. The time is not part of it: a restored clock
//! shows the host's time, as every clock of this kind does.

use serde::{Deserialize, Serialize};

use super::{Cmos, INDEX_MASK, MODE_24_HOURS, RAM_LEN, STATUS_A, STATUS_B, UPDATE_IN_PROGRESS, is_computed};
use crate::state::{SavedState, StateError, at_most, exactly, only_bits};

/// Version 1 of the state.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct ClockState {
    /// The selected register.
    index: u8,
    /// Every register. Those that are computed when they are read, such as the time, are 0.
    ram: Vec<u8>,
}

impl ClockState {
    pub(super) fn of(cmos: &Cmos) -> Self {
        let Cmos { index, ram } = cmos;
        Self { index: *index, ram: ram.to_vec() }
    }

    pub(super) fn encode(&self) -> SavedState {
        SavedState::encode(VERSION, self)
    }

    /// Returns the registers after a check of their values.
    pub(super) fn decode(saved: &SavedState) -> Result<Cmos, StateError> {
        let Self { index, ram } = saved.decode(VERSION)?;
        at_most("index", index, INDEX_MASK)?;
        let ram = <[u8; RAM_LEN]>::try_from(ram).map_err(|ram| StateError::Length {
            field: "ram",
            len: ram.len(),
            allowed: format!("always {RAM_LEN}").into(),
        })?;
        for (register, value) in (0..=INDEX_MASK).zip(ram) {
            let checked = match register {
                STATUS_A => only_bits("ram", value, !UPDATE_IN_PROGRESS),
                STATUS_B if value & MODE_24_HOURS == 0 => {
                    Err(StateError::field("ram", value, "the bit of the 24-hour mode is always set"))
                }
                _ if is_computed(register) => exactly("ram", value, 0),
                _ => Ok(()),
            };
            checked.map_err(|error| error.of_entry(register))?;
        }
        Ok(Cmos { index, ram })
    }
}

const VERSION: u16 = 1;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::*;
    use super::*;
    use crate::bus::BusDevice;
    use crate::testing::{refuses_damaged_states, survives_any_state};

    /// Returns every register at a fixed time, without a change of the index.
    fn registers(rtc: &CmosRtc) -> Vec<u8> {
        let Cmos { index: _, ram } = *lock(&rtc.cmos);
        let at = |index| Cmos { index, ram }.read(Duration::from_secs(1_735_689_599));
        (0..=INDEX_MASK).map(at).collect()
    }

    fn good() -> ClockState {
        ClockState::of(&lock(&CmosRtc::new().cmos))
    }

    #[test]
    fn restored_clock_has_the_same_registers_and_index() {
        let source = CmosRtc::new();
        for index in 0..=INDEX_MASK {
            source.write(INDEX_PORT, &[index, index ^ 0x35]);
        }
        source.write(INDEX_PORT, &[0x45]);
        let target = CmosRtc::new();
        assert_ne!(registers(&target), registers(&source));
        assert_eq!(target.restore(&source.save()), Ok(()));
        assert_eq!(registers(&target), registers(&source));
        for rtc in [&source, &target] {
            assert_eq!(rtc.read_byte(DATA_PORT), 0x45 ^ 0x35, "the index is still selected");
            rtc.write(DATA_PORT, &[7]);
        }
        assert_eq!(target.save(), source.save());
    }

    #[test]
    fn restored_clock_shows_the_time_of_its_host() {
        let target = CmosRtc::new();
        assert_eq!(target.restore(&good().encode()), Ok(()));
        target.write(INDEX_PORT, &[CENTURY]);
        assert_ne!(target.read_byte(DATA_PORT), 0);
    }

    #[test]
    fn version_1_keeps_its_layout() {
        let mut bytes = vec![0, 0x80, 0x01];
        bytes.extend([0; 0x80]);
        bytes[3 + 0x0a] = 0x26;
        bytes[3 + 0x0b] = 0x02;
        assert_eq!(CmosRtc::new().save(), crate::testing::saved(1, &bytes));
    }

    #[test]
    fn each_field_out_of_range_is_refused_by_name() {
        let refused = |change: fn(&mut ClockState)| {
            let mut state = good();
            change(&mut state);
            let target = CmosRtc::new();
            let error = target.restore(&state.encode()).unwrap_err();
            assert_eq!(target.save(), CmosRtc::new().save());
            error.to_string()
        };
        assert_eq!(refused(|state| state.index = 0x80), "field `index` is 0x80: at most 0x7f");
        assert_eq!(refused(|state| state.ram.truncate(127)), "field `ram` has 127 entries: always 128");
        assert_eq!(refused(|state| state.ram.push(0)), "field `ram` has 129 entries: always 128");
        let update = "field `ram[10]` is 0xa6: only the bits of 0x7f can be set";
        assert_eq!(refused(|state| state.ram[0x0a] |= 0x80), update);
        let hours = "field `ram[11]` is 0x4: the bit of the 24-hour mode is always set";
        assert_eq!(refused(|state| state.ram[0x0b] = 4), hours);
        assert_eq!(refused(|state| state.ram[0x0c] = 0x40), "field `ram[12]` is 0x40: always 0x0 here");
    }

    #[test]
    fn exactly_the_registers_without_memory_are_always_zero() {
        for register in 0..=INDEX_MASK {
            let mut state = good();
            state.ram[usize::from(register)] |= 1;
            let is_computed = [0, 2, 4, 6, 7, 8, 9, 0x0c, 0x0d, 0x32].contains(&register);
            let result = CmosRtc::new().restore(&state.encode());
            assert_eq!(result.is_err(), is_computed, "{register:#x}: {result:?}");
        }
    }

    #[test]
    fn hostile_states_are_refused_or_harmless() {
        refuses_damaged_states(&CmosRtc::new());
        survives_any_state(&CmosRtc::new(), CmosRtc::WINDOW_LEN);
    }
}
