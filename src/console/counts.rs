//! The fate of the bytes that a guest sent to its consoles. The outcome reports it, once the I/O thread has
//! ended or has been abandoned.

use coracle_devices::backend::console_buffer::ConsoleBuffer;

use super::Pump;

/// The byte counts of all consoles of a machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ConsoleCounts {
    /// The number of bytes that the guest sent.
    pub(crate) sent: u64,
    /// How many of these bytes nobody took in time.
    pub(crate) lost: u64,
    /// How many bytes the first console, the one that a program or terminal uses, had received before the
    /// first byte that was lost there; `None` if none was.
    pub(crate) lost_from: Option<u64>,
    /// Whether the last byte that the first console received is not the end of a line.
    pub(crate) is_in_line: bool,
}

impl ConsoleCounts {
    /// Counts the output of the serial port and of the virtio console. Where there is a virtio console, it is
    /// the machine's first console, and `pump` carries its output. Bytes that are still buffered count as
    /// lost: nobody will take them any more.
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
            is_in_line: first.tail().last().is_some_and(|last| *last != b'\n'),
        }
    }
}
