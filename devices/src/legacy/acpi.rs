//! The power registers of hardware-reduced ACPI: sleep control, sleep status and reset.
//!
//! The FADT points at these three bytes, to which a kernel writes to power off or to reset. No other sleep
//! state than S5 exists.

use std::sync::Arc;

use super::LegacyDevice;
use crate::bus::ByteRegisters;
use crate::guest_request::{GuestRequest, GuestRequestSink, ResetSource};
use crate::state::{Restoration, SavedState, StateError, no_state, prepare_no_state};

/// Sleep control, sleep status and reset registers (ACPI 6.5, sections 4.8.3.6 and 4.8.3.7).
pub struct AcpiRegisters {
    requests: Arc<dyn GuestRequestSink>,
}

impl AcpiRegisters {
    /// Length of the window in bytes.
    pub const WINDOW_LEN: u64 = 3;
    /// Offset of the sleep control register (`SLEEP_CONTROL_REG` of the FADT).
    pub const SLEEP_CONTROL: u64 = 0;
    /// Offset of the sleep status register (`SLEEP_STATUS_REG` of the FADT).
    pub const SLEEP_STATUS: u64 = 1;
    /// Offset of the reset register (`RESET_REG` of the FADT).
    pub const RESET: u64 = 2;
    /// `SLP_TYP` for soft-off: the first element of the `\_S5` package. Any value of three bits would do;
    /// readers of a trace recognise 5.
    pub const SLEEP_TYPE_S5: u8 = 5;
    /// The value that resets when written to the reset register (`RESET_VALUE` of the FADT).
    pub const RESET_VALUE: u8 = 1;

    /// Creates the registers. Power-off and reset go to `requests`.
    pub fn new(requests: Arc<dyn GuestRequestSink>) -> Self {
        Self { requests }
    }
}

impl LegacyDevice for AcpiRegisters {
    /// The registers have no state.
    fn reset(&self) {}

    fn save(&self) -> SavedState {
        let Self { requests: _ } = self;
        no_state()
    }

    fn prepare(&self, state: &SavedState) -> Result<Restoration<'_>, StateError> {
        prepare_no_state(state)
    }
}

impl ByteRegisters for AcpiRegisters {
    /// All registers read zero: `SLP_EN` is write-only, there is never a pending wake-up, and the reset
    /// register has no state.
    fn read_byte(&self, offset: u64) -> u8 {
        match offset {
            Self::SLEEP_CONTROL | Self::SLEEP_STATUS | Self::RESET => 0,
            _ => 0xff,
        }
    }

    /// Writing `WAK_STS` to the sleep status register clears it. It is never set, so nothing changes.
    fn write_byte(&self, offset: u64, value: u8) {
        let request = match offset {
            Self::SLEEP_CONTROL if is_power_off(value) => GuestRequest::PowerOff,
            Self::RESET if value == Self::RESET_VALUE => GuestRequest::Reset(ResetSource::AcpiRegister),
            _ => return,
        };
        self.requests.post(request);
    }
}

/// `SLP_EN`, bit 5 of the sleep control register.
const SLEEP_ENABLE: u8 = 1 << 5;
/// `SLP_TYP`, bits 4:2 of the sleep control register.
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0b111;

fn is_power_off(value: u8) -> bool {
    let sleep_type = (value >> SLEEP_TYPE_SHIFT) & SLEEP_TYPE_MASK;
    value & SLEEP_ENABLE != 0 && sleep_type == AcpiRegisters::SLEEP_TYPE_S5
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::BusDevice;
    use crate::testing::{RequestLog, refuses_damaged_states, saved, survives_any_state, sweep};

    fn registers() -> (AcpiRegisters, Arc<RequestLog>) {
        let log = Arc::new(RequestLog::default());
        (AcpiRegisters::new(log.clone()), log)
    }

    #[test]
    fn sleep_enable_with_type_s5_powers_off() {
        let (registers, log) = registers();
        registers.write(0, &[(1 << 5) | (5 << 2)]);
        assert_eq!(log.take(), [GuestRequest::PowerOff]);
    }

    #[test]
    fn every_other_sleep_control_value_is_ignored() {
        let (registers, log) = registers();
        for value in (0..=u8::MAX).filter(|value| value & 0x3c != 0x34) {
            registers.write(0, &[value]);
        }
        assert_eq!(log.take(), []);
    }

    #[test]
    fn only_the_reset_value_resets() {
        let (registers, log) = registers();
        for value in 0..=u8::MAX {
            registers.write(2, &[value]);
        }
        assert_eq!(log.take(), [GuestRequest::Reset(ResetSource::AcpiRegister)]);
    }

    #[test]
    fn status_reads_zero_and_takes_wake_status_writes() {
        let (registers, log) = registers();
        registers.write(1, &[0x80]);
        let mut data = [0xaa; 3];
        registers.read(0, &mut data);
        assert_eq!(data, [0, 0, 0]);
        assert_eq!(log.take(), []);
    }

    #[test]
    fn state_is_empty_and_restoring_it_requests_nothing() {
        let (registers, log) = registers();
        assert_eq!(registers.save(), saved(1, &[]));
        assert_eq!(registers.restore(&registers.save()), Ok(()));
        refuses_damaged_states(&registers);
        survives_any_state(&registers, 0);
        assert_eq!(log.take(), []);
    }

    #[test]
    fn any_access_is_survived() {
        let (registers, _) = registers();
        sweep(&registers, AcpiRegisters::WINDOW_LEN);
    }
}
