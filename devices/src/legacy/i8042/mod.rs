//! The i8042 keyboard controller, reduced to what a reset needs.
//!
//! Kernels reset a PC by waiting until the controller's input buffer is empty (status bit 1 clear) and then
//! sending the command that pulses the CPU's reset line. There is no keyboard and no mouse. A kernel that
//! learns this from ACPI does not probe the controller. One that probes it anyway first empties the output
//! buffer. This one stays full, from which Linux concludes after 17 reads that there is no controller
//! (`i8042_flush` in drivers/input/serio/i8042.c). With an empty buffer it would send commands, and wait for
//! answers. A program that reads without a limit until the buffer is empty, such as memtest86+, ends after
//! `BYTES` reads.

mod state;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use self::state::ControllerState;
use super::LegacyDevice;
use crate::bus::ByteRegisters;
use crate::guest_request::{GuestRequest, GuestRequestSink, ResetSource};
use crate::state::{Restoration, SavedState, StateError};

/// The controller's ports: the window spans 0x60 to 0x64.
pub struct I8042 {
    requests: Arc<dyn GuestRequestSink>,
    /// The number of bytes left in the output buffer.
    left: AtomicU32,
}

impl I8042 {
    /// Length of the window in ports. The three ports between data and command belong to other devices of a
    /// PC, which are absent, and read all ones. A kernel that calibrates its clock by the timer of a PC polls
    /// port 0x61 until bit 5 is set, without a limit.
    pub const WINDOW_LEN: u64 = 5;

    /// Creates the controller. A reset pulse goes to `requests`.
    pub fn new(requests: Arc<dyn GuestRequestSink>) -> Self {
        Self { requests, left: AtomicU32::new(BYTES) }
    }
}

impl LegacyDevice for I8042 {
    /// Fills the output buffer again.
    fn reset(&self) {
        self.left.store(BYTES, Ordering::Relaxed);
    }

    fn save(&self) -> SavedState {
        let Self { requests: _, left } = self;
        ControllerState { left: left.load(Ordering::Relaxed) }.encode()
    }

    fn prepare(&self, state: &SavedState) -> Result<Restoration<'_>, StateError> {
        let ControllerState { left } = ControllerState::decode(state)?;
        Ok(Restoration::new(move || self.left.store(left, Ordering::Relaxed)))
    }
}

impl ByteRegisters for I8042 {
    fn read_byte(&self, offset: u64) -> u8 {
        match offset {
            DATA => {
                let less = |left: u32| left.checked_sub(1);
                let _ = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
                0
            }
            COMMAND if self.left.load(Ordering::Relaxed) > 0 => OUTPUT_FULL,
            COMMAND => 0,
            _ => 0xff,
        }
    }

    fn write_byte(&self, offset: u64, value: u8) {
        if offset == COMMAND && value == PULSE_RESET {
            self.requests.post(GuestRequest::Reset(ResetSource::I8042));
        }
    }
}

/// Port 0x60.
const DATA: u64 = 0;
/// Port 0x64: status when read, command when written.
const COMMAND: u64 = 4;
/// Output buffer full (bit 0), input buffer empty (bit 1).
const OUTPUT_FULL: u8 = 1 << 0;
/// The number of bytes in the output buffer: more than two hundred probes of Linux read, and few enough to
/// read quickly.
const BYTES: u32 = 4096;
/// Pulse output line 0, which is wired to the CPU's reset.
const PULSE_RESET: u8 = 0xfe;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::BusDevice;
    use crate::testing::{RequestLog, sweep};

    #[test]
    fn only_the_reset_pulse_on_the_command_port_resets() {
        let log = Arc::new(RequestLog::default());
        let controller = I8042::new(log.clone());
        for offset in 0..4 {
            controller.write(offset, &[0xfe]);
        }
        for value in 0..=u8::MAX {
            controller.write(4, &[value]);
        }
        assert_eq!(log.take(), [GuestRequest::Reset(ResetSource::I8042)]);
    }

    #[test]
    fn output_stays_full_and_input_empty_and_foreign_ports_read_all_ones() {
        let controller = I8042::new(Arc::new(RequestLog::default()));
        controller.write(4, &[0x20]);
        let mut ports = [0xaa; 5];
        controller.read(0, &mut ports);
        assert_eq!(ports, [0, 0xff, 0xff, 0xff, 1]);
    }

    #[test]
    fn reader_without_a_limit_comes_to_the_end() {
        let controller = I8042::new(Arc::new(RequestLog::default()));
        let mut reads = 0;
        while controller.read_byte(COMMAND) & OUTPUT_FULL != 0 {
            controller.read_byte(DATA);
            reads += 1;
            assert!(reads <= BYTES);
        }
        assert_eq!(reads, BYTES);
        assert_eq!((controller.read_byte(DATA), controller.read_byte(COMMAND)), (0, 0));
        controller.reset();
        assert_eq!(controller.read_byte(COMMAND), OUTPUT_FULL, "the next guest finds what this one found");
    }

    #[test]
    fn any_access_is_survived() {
        sweep(&I8042::new(Arc::new(RequestLog::default())), I8042::WINDOW_LEN);
    }
}
