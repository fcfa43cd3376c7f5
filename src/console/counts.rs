//! What became of the bytes that a guest sent to its consoles: for the outcome, once the I/O thread has ended
//! or is given up.

use coracle_devices::backend::console_buffer::ConsoleBuffer;

use super::Pump;

/// The counts of all consoles of a machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ConsoleCounts {
    /// Bytes that the guest sent.
    pub(crate) sent: u64,
    /// Of these, bytes that nobody took in time.
    pub(crate) lost: u64,
    /// How many had come on the console of the program, or of the terminal, before the first that was lost
    /// there.
    pub(crate) lost_from: Option<u64>,
}

impl ConsoleCounts {
    /// Of the serial port's output and of that of the virtio console, which is the machine's first console
    /// where there is one, and the one behind which `pump` stands. What still waits is taken by nobody.
    pub(crate) fn of(
        serial: &ConsoleBuffer,
        virtio: Option<&ConsoleBuffer>,
        pump: Option<&Pump>,
    ) -> ConsoleCounts {
        let (first, second) = virtio.map_or((serial, None), |virtio| (virtio, Some(serial)));
        let sent = first.pushed_bytes();
        let (untaken, from) = first.untaken();
        let from = from.unwrap_or(sent);
        let (lost, from) = match pump.map(Pump::delivered) {
            Some(delivered) => (sent.saturating_sub(delivered), from.min(delivered)),
            None => (untaken, from),
        };
        ConsoleCounts {
            sent: sent.saturating_add(second.map_or(0, ConsoleBuffer::pushed_bytes)),
            lost: lost.saturating_add(second.map_or(0, |second| second.untaken().0)),
            lost_from: (lost > 0).then_some(from),
        }
    }
}
