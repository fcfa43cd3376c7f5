//! Helpers of this crate's own tests: sinks that record, a sweep over all registers and widths, and states
//! that a device must refuse or survive.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::bus::BusDevice;
use crate::guest_request::{GuestRequest, GuestRequestSink};
use crate::irq::{IrqLine, MsiMessage, MsiSink};
use crate::legacy::LegacyDevice;
use crate::state::{SavedState, StateError};

/// Keeps the requests that devices posted.
#[derive(Default)]
pub(crate) struct RequestLog(Mutex<Vec<GuestRequest>>);

impl RequestLog {
    pub(crate) fn take(&self) -> Vec<GuestRequest> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl GuestRequestSink for RequestLog {
    fn post(&self, request: GuestRequest) {
        self.0.lock().unwrap().push(request);
    }
}

/// Counts pulses.
#[derive(Default)]
pub(crate) struct PulseCount(AtomicUsize);

impl PulseCount {
    pub(crate) fn take(&self) -> usize {
        self.0.swap(0, Ordering::Relaxed)
    }
}

impl IrqLine for PulseCount {
    fn pulse(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Keeps the messages that were sent and the routes that changed.
#[derive(Default)]
pub(crate) struct MsiLog {
    pub(crate) sent: Mutex<Vec<MsiMessage>>,
    pub(crate) routes: Mutex<Vec<(u8, Option<MsiMessage>)>>,
}

impl MsiSink for MsiLog {
    fn send(&self, message: MsiMessage) {
        self.sent.lock().unwrap().push(message);
    }

    fn route_changed(&self, pin: u8, message: Option<MsiMessage>) {
        self.routes.lock().unwrap().push((pin, message));
    }
}

/// Reads and writes `device` at every offset of its window, with every width that a CPU has and a few that it
/// lacks. Offsets go past the window too: a device must not rely on the bus for memory safety.
pub(crate) fn sweep(device: &dyn BusDevice, window_len: u64) {
    let offsets = (0..window_len + 8).chain([u64::MAX - 8, u64::MAX - 1, u64::MAX]);
    for offset in offsets {
        for width in [0, 1, 2, 3, 4, 8, 16] {
            for fill in [0x00, 0x01, 0x55, 0xaa, 0xfe, 0xff] {
                let mut data = [fill; 16];
                device.write(offset, &data[..width]);
                device.read(offset, &mut data[..width]);
                assert!(data[width..].iter().all(|&byte| byte == fill));
            }
        }
    }
}

/// Makes a state as a file may have it.
pub(crate) fn saved(version: u16, bytes: &[u8]) -> SavedState {
    postcard::from_bytes(&postcard::to_allocvec(&(version, bytes)).unwrap()).unwrap()
}

/// Checks that `device` refuses its own state with another version, without its last bytes and with bytes
/// after it, and that it changes nothing then.
pub(crate) fn refuses_damaged_states(device: &dyn LegacyDevice) {
    let state = device.save();
    let (version, bytes) = (state.version(), state.bytes());
    let refuses = |version, bytes: &[u8]| {
        let error = device.restore(&saved(version, bytes)).unwrap_err();
        assert_eq!(device.save(), state, "{error}");
        error
    };
    for other in [0, version + 1, u16::MAX] {
        assert_eq!(refuses(other, bytes), StateError::Version { version: other, newest: version });
    }
    for len in 0..bytes.len() {
        assert!(matches!(refuses(version, &bytes[..len]), StateError::Encoding { .. }), "{len} bytes");
    }
    for extra in 1..4 {
        let longer = [bytes, &[0; 4][..extra]].concat();
        assert_eq!(refuses(version, &longer), StateError::TrailingBytes { extra });
    }
}

/// Gives `device` random states, and its own with random changes. One that it accepts is one that it could
/// have had: it saves the same, and works.
pub(crate) fn survives_any_state(device: &dyn LegacyDevice, window_len: u64) {
    let own = device.save();
    let changes = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    let changed = (changes, -2..3_isize).prop_map({
        let bytes = own.bytes().to_vec();
        move |(changes, more)| {
            let mut bytes = bytes.clone();
            let len = bytes.len();
            if len > 0 {
                changes.iter().for_each(|(place, value)| bytes[place.index(len)] = *value);
            }
            bytes.resize(bytes.len().saturating_add_signed(more), 0);
            bytes
        }
    });
    let random = proptest::collection::vec(any::<u8>(), 0..300);
    let strategy = (0..4_u16, prop_oneof![random, changed]);
    let test = |(version, bytes): (u16, Vec<u8>)| {
        let before = device.save();
        match device.restore(&saved(version, &bytes)) {
            Ok(()) => {
                let state = device.save();
                prop_assert_eq!(device.restore(&state), Ok(()));
                prop_assert_eq!(device.save(), state);
                for offset in 0..window_len {
                    device.read(offset, &mut [0; 4]);
                    device.write(offset, &[0; 4]);
                }
            }
            Err(_) => prop_assert_eq!(device.save(), before),
        }
        Ok(())
    };
    TestRunner::default().run(&strategy, test).unwrap();
}
