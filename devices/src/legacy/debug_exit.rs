//! A port that ends the machine with a code of the guest's choice.
//!
//! Bare payloads and test workloads use it instead of a power-off, which has no code. A PC has no such port.
//! A guest that uses it by accident ends itself and harms nobody.

use std::sync::Arc;

use super::LegacyDevice;
use crate::bus::BusDevice;
use crate::guest_request::{GuestRequest, GuestRequestSink};
use crate::state::{Restoration, SavedState, StateError, no_state, prepare_no_state};

/// A write of 1, 2 or 4 bytes at offset 0 ends the machine with that value.
pub struct DebugExit {
    requests: Arc<dyn GuestRequestSink>,
}

impl DebugExit {
    /// Length of the window in ports: room for the widest access.
    pub const WINDOW_LEN: u64 = 4;

    /// Creates the port. The code goes to `requests`.
    pub fn new(requests: Arc<dyn GuestRequestSink>) -> Self {
        Self { requests }
    }
}

impl LegacyDevice for DebugExit {
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

impl BusDevice for DebugExit {
    /// Reads all ones, like a port without a device, because the port is write-only.
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let code = match (offset, data) {
            (0, &[a]) => u32::from(a),
            (0, &[a, b]) => u32::from(u16::from_le_bytes([a, b])),
            (0, &[a, b, c, d]) => u32::from_le_bytes([a, b, c, d]),
            _ => return,
        };
        self.requests.post(GuestRequest::DebugExit(code));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{RequestLog, refuses_damaged_states, saved, survives_any_state, sweep};

    #[test]
    fn each_port_width_gives_its_value() {
        let log = Arc::new(RequestLog::default());
        let port = DebugExit::new(log.clone());
        port.write(0, &[0x2a]);
        port.write(0, &[0x34, 0x12]);
        port.write(0, &[0x78, 0x56, 0x34, 0x92]);
        let codes = [0x2a, 0x1234, 0x9234_5678].map(GuestRequest::DebugExit);
        assert_eq!(log.take(), codes);
    }

    #[test]
    fn other_offsets_and_widths_are_ignored_and_reads_are_all_ones() {
        let log = Arc::new(RequestLog::default());
        let port = DebugExit::new(log.clone());
        port.write(1, &[1]);
        port.write(2, &[1, 0]);
        port.write(0, &[1, 0, 0]);
        port.write(0, &[]);
        port.write(0, &[1; 8]);
        let mut data = [0; 4];
        port.read(0, &mut data);
        assert_eq!(data, [0xff; 4]);
        assert_eq!(log.take(), []);
    }

    #[test]
    fn state_is_empty_and_restoring_it_requests_nothing() {
        let log = Arc::new(RequestLog::default());
        let port = DebugExit::new(log.clone());
        assert_eq!(port.save(), saved(1, &[]));
        assert_eq!(port.restore(&port.save()), Ok(()));
        refuses_damaged_states(&port);
        survives_any_state(&port, 0);
        assert_eq!(log.take(), []);
    }

    #[test]
    fn any_access_is_survived() {
        sweep(&DebugExit::new(Arc::new(RequestLog::default())), DebugExit::WINDOW_LEN);
    }
}
