//! Helpers of this crate's own tests: sinks that record, and a sweep over all registers and widths.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::bus::BusDevice;
use crate::guest_request::{GuestRequest, GuestRequestSink};
use crate::irq::{IrqLine, MsiMessage, MsiSink};

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
