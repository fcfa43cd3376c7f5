//! The state that the device and the host's end of the console share.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::state::{PortState, SizeState};
use crate::backend::console_buffer::ConsoleBuffer;
use crate::backend::console_input::ConsoleInput;
use crate::lock;

/// Output on its way to the host, and input on its way to the guest. Both are bounded, and outlive resets of
/// the device.
pub struct ConsolePort {
    output: Arc<ConsoleBuffer>,
    input: Mutex<Input>,
    size: Mutex<Size>,
    /// Signals the device that there is input, or a new size.
    arrived: EventFd,
    /// Signals the host that there is space for input again.
    room: EventFd,
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// The number of characters in a line.
    pub columns: u16,
    /// The number of lines.
    pub rows: u16,
}

#[derive(Debug, Default)]
struct Size {
    now: Option<TerminalSize>,
    is_new: bool,
}

#[derive(Debug, Default)]
struct Input {
    bytes: VecDeque<u8>,
    /// Whether input was refused since there was last space.
    wants_room: bool,
}

impl ConsolePort {
    /// Makes a port without input and output.
    ///
    /// # Errors
    /// The host has no more event descriptors.
    pub fn new() -> io::Result<Self> {
        let event = || EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK);
        let output = Arc::new(ConsoleBuffer::new(ConsoleBuffer::DEFAULT_CAPACITY)?);
        Ok(Self {
            output,
            input: Mutex::default(),
            size: Mutex::default(),
            arrived: event()?,
            room: event()?,
        })
    }

    /// Returns the guest's output.
    pub fn output(&self) -> &Arc<ConsoleBuffer> {
        &self.output
    }

    /// Sets the size of the terminal that shows the output, and reports it to the guest. Before the first
    /// call the guest sees no size.
    pub fn resize(&self, size: TerminalSize) {
        let mut known = lock(&self.size);
        if known.now != Some(size) {
            *known = Size { now: Some(size), is_new: true };
            // The only failure is a counter at its maximum, and then the event is already readable.
            let _ = self.arrived.write(1);
        }
    }

    /// Returns the terminal's size, once it is known.
    pub(super) fn size(&self) -> Option<TerminalSize> {
        lock(&self.size).now
    }

    /// Returns the input and the size. Output belongs to the host, and so does the wish for space.
    pub(super) fn save(&self) -> PortState {
        let Self { output: _, input, size, arrived: _, room: _ } = self;
        let Input { bytes, wants_room: _ } = &*lock(input);
        let Size { now, is_new } = *lock(size);
        let size = now.map(|TerminalSize { columns, rows }| SizeState { columns, rows, is_new });
        PortState { input: bytes.iter().copied().collect(), size }
    }

    /// Sets the input and the size, which have been checked. The device looks at them when it starts.
    pub(super) fn restore(&self, state: PortState) {
        let PortState { input, size } = state;
        lock(&self.input).bytes = input.into();
        *lock(&self.size) = size.map_or_else(Size::default, |SizeState { columns, rows, is_new }| Size {
            now: Some(TerminalSize { columns, rows }),
            is_new,
        });
        // The only failure is a counter at its maximum, and then the event is already readable.
        let _ = self.arrived.write(1);
    }

    /// Returns true once after the size has changed.
    pub(super) fn take_resized(&self) -> bool {
        std::mem::take(&mut lock(&self.size).is_new)
    }

    /// Returns the event that signals input and a new size.
    pub(super) fn arrived(&self) -> &EventFd {
        &self.arrived
    }

    /// Returns whether there is input for the guest.
    pub(super) fn has_input(&self) -> bool {
        !lock(&self.input).bytes.is_empty()
    }

    /// Moves input into `buffer`, as much as it holds. Returns the number of bytes.
    pub(super) fn take_input(&self, buffer: &mut [u8]) -> usize {
        let mut input = lock(&self.input);
        let count = buffer.len().min(input.bytes.len());
        buffer.iter_mut().zip(input.bytes.drain(..count)).for_each(|(target, byte)| *target = byte);
        let has_room = input.bytes.len() <= MAX_INPUT / 2;
        if has_room && std::mem::take(&mut input.wants_room) {
            // The only failure is a counter at its maximum, and then the event is already readable.
            let _ = self.room.write(1);
        }
        count
    }
}

impl TerminalSize {
    /// Returns the size as the driver reads it (virtio 1.2, sections 5.3.4 and 5.3.6.2).
    pub(super) fn bytes(self) -> [u8; 4] {
        let ([columns, columns1], [rows, rows1]) = (self.columns.to_le_bytes(), self.rows.to_le_bytes());
        [columns, columns1, rows, rows1]
    }
}

impl ConsoleInput for ConsolePort {
    fn enqueue_input(&self, bytes: &[u8]) -> usize {
        let mut input = lock(&self.input);
        let room = MAX_INPUT.saturating_sub(input.bytes.len());
        let count = bytes.len().min(room);
        let was_empty = input.bytes.is_empty();
        input.bytes.extend(bytes.iter().take(count));
        input.wants_room |= count < bytes.len();
        if was_empty && count > 0 {
            let _ = self.arrived.write(1);
        }
        count
    }

    fn has_input_room(&self) -> bool {
        let mut input = lock(&self.input);
        let has_room = input.bytes.len() < MAX_INPUT;
        input.wants_room |= !has_room;
        has_room
    }

    fn room_event(&self) -> &EventFd {
        &self.room
    }
}

/// The bytes of input that wait for a guest which does not read: as many as a terminal's line discipline
/// holds (`N_TTY_BUF_SIZE`).
pub(super) const MAX_INPUT: usize = 4096;
