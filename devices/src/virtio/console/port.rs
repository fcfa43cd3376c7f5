//! What the device and the host's end of the console share.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::backend::console_buffer::ConsoleBuffer;
use crate::backend::console_input::ConsoleInput;
use crate::lock;

/// Output on its way to the host, input on its way to the guest. Both are bounded, and outlive resets of the device.
pub struct ConsolePort {
    output: Arc<ConsoleBuffer>,
    input: Mutex<Input>,
    /// Rings for the device when there is input.
    arrived: EventFd,
    /// Rings for the host when input is wanted again.
    room: EventFd,
}

#[derive(Debug, Default)]
struct Input {
    bytes: VecDeque<u8>,
    /// Some was refused.
    wants_room: bool,
}

impl ConsolePort {
    /// A port without input and output.
    ///
    /// # Errors
    /// The host has no more event descriptors.
    pub fn new() -> io::Result<Self> {
        let event = || EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK);
        let output = Arc::new(ConsoleBuffer::new(ConsoleBuffer::DEFAULT_CAPACITY)?);
        Ok(Self { output, input: Mutex::default(), arrived: event()?, room: event()? })
    }

    /// What the guest has printed.
    pub fn output(&self) -> &Arc<ConsoleBuffer> {
        &self.output
    }

    /// The event that tells of input.
    pub(super) fn arrived(&self) -> &EventFd {
        &self.arrived
    }

    /// True when there is something for the guest.
    pub(super) fn has_input(&self) -> bool {
        !lock(&self.input).bytes.is_empty()
    }

    /// Takes input for the guest, as much as `buffer` holds; returns how many bytes.
    pub(super) fn take_input(&self, buffer: &mut [u8]) -> usize {
        let mut input = lock(&self.input);
        let count = buffer.len().min(input.bytes.len());
        buffer.iter_mut().zip(input.bytes.drain(..count)).for_each(|(place, byte)| *place = byte);
        let has_room = input.bytes.len() <= MOST_INPUT / 2;
        if has_room && std::mem::take(&mut input.wants_room) {
            // The only failure is a counter at its maximum: the event is readable all the same.
            let _ = self.room.write(1);
        }
        count
    }
}

impl ConsoleInput for ConsolePort {
    fn enqueue_input(&self, bytes: &[u8]) -> usize {
        let mut input = lock(&self.input);
        let room = MOST_INPUT.saturating_sub(input.bytes.len());
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
        let has_room = input.bytes.len() < MOST_INPUT;
        input.wants_room |= !has_room;
        has_room
    }

    fn room_event(&self) -> &EventFd {
        &self.room
    }
}

/// Bytes that wait for a guest which does not read: what a terminal's line discipline holds (`N_TTY_BUF_SIZE`).
const MOST_INPUT: usize = 4096;
