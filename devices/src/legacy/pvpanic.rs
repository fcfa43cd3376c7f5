//! pvpanic: a port by which a kernel reports that it panics, before it does anything else.
//!
//! The interface is that of QEMU's `docs/specs/pvpanic.rst`, whose Linux driver is `pvpanic-mmio`. A read
//! returns the supported events, and a write of one reports that it happened.

use std::sync::Arc;

use super::LegacyDevice;
use crate::bus::ByteRegisters;
use crate::guest_request::{GuestRequest, GuestRequestSink};
use crate::state::{Restoration, SavedState, StateError, no_state, prepare_no_state};

/// The device: one byte.
pub struct PvPanic {
    requests: Arc<dyn GuestRequestSink>,
}

impl PvPanic {
    /// Length of the window in ports.
    pub const WINDOW_LEN: u64 = 1;
    /// The guest has panicked.
    pub const PANICKED: u8 = 1 << 0;
    /// The guest has panicked and continues in a crash kernel, which writes a dump and resets the machine.
    pub const CRASH_LOADED: u8 = 1 << 1;

    /// Creates the device. A panic goes to `requests`.
    pub fn new(requests: Arc<dyn GuestRequestSink>) -> Self {
        Self { requests }
    }
}

impl LegacyDevice for PvPanic {
    /// The port has no state.
    fn reset(&self) {}

    fn save(&self) -> SavedState {
        let Self { requests: _ } = self;
        no_state()
    }

    fn prepare(&self, state: &SavedState) -> Result<Restoration<'_>, StateError> {
        prepare_no_state(state)
    }
}

impl ByteRegisters for PvPanic {
    /// Returns the events that the device supports.
    fn read_byte(&self, offset: u64) -> u8 {
        match offset {
            0 => Self::PANICKED | Self::CRASH_LOADED,
            _ => 0xff,
        }
    }

    /// Bits that were not offered have no meaning. If both events are reported at once, the one that ends the
    /// machine counts.
    fn write_byte(&self, offset: u64, value: u8) {
        let request = match offset {
            0 if value & Self::PANICKED != 0 => GuestRequest::Panicked,
            0 if value & Self::CRASH_LOADED != 0 => GuestRequest::CrashKernelTakesOver,
            _ => return,
        };
        self.requests.post(request);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::BusDevice;
    use crate::testing::{RequestLog, refuses_damaged_states, saved, survives_any_state, sweep};

    fn device() -> (PvPanic, Arc<RequestLog>) {
        let log = Arc::new(RequestLog::default());
        (PvPanic::new(log.clone()), log)
    }

    #[test]
    fn reading_returns_both_events() {
        let mut data = [0];
        device().0.read(0, &mut data);
        assert_eq!(data, [0b11]);
    }

    #[test]
    fn each_event_becomes_its_request() {
        let (device, log) = device();
        for value in [0b01, 0b10, 0b11, 0b101] {
            device.write(0, &[value]);
        }
        let panicked = GuestRequest::Panicked;
        assert_eq!(log.take(), [panicked, GuestRequest::CrashKernelTakesOver, panicked, panicked]);
    }

    #[test]
    fn bits_that_were_not_offered_mean_nothing() {
        let (device, log) = device();
        for value in (0..=u8::MAX).filter(|value| value & 0b11 == 0) {
            device.write(0, &[value]);
        }
        assert_eq!(log.take(), []);
    }

    #[test]
    fn state_is_empty_and_restoring_it_requests_nothing() {
        let (device, log) = device();
        assert_eq!(device.save(), saved(1, &[]));
        assert_eq!(device.restore(&device.save()), Ok(()));
        refuses_damaged_states(&device);
        survives_any_state(&device, 0);
        assert_eq!(log.take(), []);
    }

    #[test]
    fn any_access_is_survived() {
        sweep(&device().0, PvPanic::WINDOW_LEN);
    }
}
