//! A bounded buffer between the vCPUs that print and the one thread that writes the console.
//!
//! Serial ports and the virtio console push bytes; the I/O thread drains them. A push never waits: when the
//! buffer is full, bytes are dropped and counted (`ring`). All bytes are also searched (`reader`): for a
//! Linux kernel panic (`panic_watch`) and for Linux's banner (`matcher`). The last lines are kept for a
//! report on how the guest ended (`tail`).

mod matcher;
mod panic_watch;
mod reader;
mod ring;
mod tail;

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::reader::OutputReader;
use self::ring::Ring;
pub use self::tail::TAIL_BYTES;
use crate::guest_request::{GuestRequest, GuestRequestSink};
use crate::lock;

/// Console output in flight. Memory grows with what waits, to at most the capacity.
pub struct ConsoleBuffer {
    state: Mutex<State>,
    capacity: usize,
    wake: EventFd,
    room: EventFd,
    /// Locked for a whole drain, so that two drainers never write the same bytes.
    draining: Mutex<()>,
    requests: Option<Arc<dyn GuestRequestSink>>,
}

impl ConsoleBuffer {
    /// The capacity that serial ports use. It holds a burst such as a stack trace of every CPU, or a second
    /// of a fast serial line, while the reader of the console is away.
    pub const DEFAULT_CAPACITY: usize = 64 * 1024;

    /// Creates a buffer of at most `capacity` bytes.
    ///
    /// # Errors
    /// The host cannot make an eventfd.
    pub fn new(capacity: usize) -> io::Result<Self> {
        Ok(Self {
            state: Mutex::default(),
            capacity,
            wake: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
            room: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
            draining: Mutex::default(),
            requests: None,
        })
    }

    /// Sends [`GuestRequest::PanicText`] to `requests` for each text of a kernel panic.
    pub fn telling(self, requests: Arc<dyn GuestRequestSink>) -> Self {
        Self { requests: Some(requests), ..self }
    }

    /// Appends `bytes`. Bytes that do not fit are dropped and counted. Never waits for the drainer.
    pub fn push(&self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut state = lock(&self.state);
        let panic_text = state.reader.feed(bytes);
        // Only the step from empty to non-empty costs a system call, or from less to more than a half.
        let before = state.ring.bytes.len();
        state.ring.append(bytes, self.capacity);
        let mark = if state.is_paced { self.capacity / 2 } else { 0 };
        let wakes = before <= mark && state.ring.bytes.len() > mark;
        drop(state);
        if wakes {
            self.wake_drainer();
        }
        if let Some(requests) = self.requests.as_ref().filter(|_| panic_text) {
            requests.post(GuestRequest::PanicText);
        }
    }

    /// Passes buffered bytes to `write`, in order and in pieces, until it returns less than it was given or
    /// the buffer is empty. `write` returns how many bytes of the piece were consumed. It runs without the
    /// lock of the buffer, so it may make system calls.
    ///
    /// One call passes at most as many bytes as the buffer holds, so that a guest that prints without end
    /// cannot keep the drainer busy; see [`Drained::Pending`].
    pub fn drain(&self, mut write: impl FnMut(&[u8]) -> usize) -> Drained {
        let _alone = lock(&self.draining);
        let mut budget = self.capacity;
        let mut scratch = [0; PIECE];
        loop {
            let piece = lock(&self.state).ring.copy_front(&mut scratch);
            if piece.is_empty() {
                return Drained::Empty;
            }
            let done = write(piece).min(piece.len());
            lock(&self.state).ring.bytes.drain(..done);
            self.report_room();
            if done < piece.len() {
                return Drained::Blocked;
            }
            budget = budget.saturating_sub(done);
            if budget == 0 {
                self.wake_drainer();
                return Drained::Pending;
            }
        }
    }

    /// Makes the buffer wake its drainer only when it is half full, because the drainer comes by itself.
    /// Returns whether there are bytes, which nothing announces after the end of that.
    pub fn set_paced(&self, is_paced: bool) -> bool {
        let mut state = lock(&self.state);
        state.is_paced = is_paced;
        !state.ring.bytes.is_empty()
    }

    /// Drops the buffered bytes and counts them, for a console that nobody can read any more.
    pub fn discard(&self) {
        let _alone = lock(&self.draining);
        lock(&self.state).ring.discard();
        self.report_room();
    }

    /// Returns the number of bytes that a push would not drop. After the result 0,
    /// [`room_event`](Self::room_event) fires once half of the buffer is free, for a device that can wait.
    pub fn room(&self) -> usize {
        let ring = &mut lock(&self.state).ring;
        let room = self.capacity.saturating_sub(ring.bytes.len());
        ring.wants_room |= room == 0;
        room
    }

    /// Returns the event that fires when there is space again for a device that found none.
    pub fn room_event(&self) -> &EventFd {
        &self.room
    }

    /// Returns the event of a buffer that is no longer empty. The drainer reads it first, then drains.
    pub fn wake_event(&self) -> &EventFd {
        &self.wake
    }

    /// Returns whether a reset at this point is the end of a kernel panic: its text came, followed by no more
    /// than a stack trace, and no restart was announced. Dropped bytes count.
    pub fn panic_explains_reset(&self) -> bool {
        lock(&self.state).reader.panic.explains_reset()
    }

    /// Returns whether the output so far ends with a line that has the text of a kernel panic. Silence from
    /// here on means that the kernel is dead.
    pub fn stops_in_panic(&self) -> bool {
        lock(&self.state).reader.panic.is_last_line()
    }

    /// Returns the last line with the text of a kernel panic, cut to 1 KiB; empty if there was none.
    pub fn panic_line(&self) -> Vec<u8> {
        lock(&self.state).reader.panic.line().to_vec()
    }

    /// Returns the time at which Linux's first words, `Linux version`, were complete. Dropped bytes count.
    pub fn banner_at(&self) -> Option<Instant> {
        lock(&self.state).reader.banner_at
    }

    /// Returns the last bytes that were pushed, dropped ones included, without a partial line at the start.
    /// There are at most [`TAIL_BYTES`], whatever the guest prints.
    pub fn tail(&self) -> Vec<u8> {
        lock(&self.state).reader.tail.bytes()
    }

    /// Returns the time at which the first byte was pushed.
    pub fn first_byte_at(&self) -> Option<Instant> {
        lock(&self.state).reader.first_byte_at
    }

    /// Returns the number of bytes pushed so far, dropped ones included.
    pub fn pushed_bytes(&self) -> u64 {
        lock(&self.state).ring.pushed
    }

    /// Returns the number of bytes that were pushed and will never be drained.
    pub fn dropped_bytes(&self) -> u64 {
        lock(&self.state).ring.dropped
    }

    /// Returns the number of bytes that were dropped or still wait, and how many were pushed before the first
    /// of them.
    pub fn untaken(&self) -> (u64, Option<u64>) {
        lock(&self.state).ring.untaken()
    }

    /// Returns whether there is nothing to drain.
    pub fn is_empty(&self) -> bool {
        lock(&self.state).ring.bytes.is_empty()
    }

    fn report_room(&self) {
        let mut state = lock(&self.state);
        let ring = &mut state.ring;
        if ring.wants_room && ring.bytes.len() <= self.capacity / 2 {
            ring.wants_room = false;
            drop(state);
            // The only failure is a counter at its maximum, and then the event is already readable.
            let _ = self.room.write(1);
        }
    }

    fn wake_drainer(&self) {
        // The only failure is a counter at its maximum, and then the event is already readable.
        let _ = self.wake.write(1);
    }
}

/// Makes room for `more` bytes, which are within `limit`: for twice as many as there will be, so that a
/// stream of single bytes seldom moves them, and never for more than the limit.
fn make_room(bytes: &mut VecDeque<u8>, more: usize, limit: usize) {
    let wanted = bytes.len().saturating_add(more);
    if wanted > bytes.capacity() {
        let room = wanted.saturating_mul(2).max(LEAST_ROOM).min(limit);
        bytes.reserve_exact(room.saturating_sub(bytes.len()));
    }
}

/// The ring and its reader, under one lock so that both have seen the same bytes.
#[derive(Default)]
struct State {
    ring: Ring,
    /// Whether the drainer comes by itself.
    is_paced: bool,
    reader: OutputReader,
}

/// The way in which a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Everything was written. The next push wakes the drainer.
    Empty,
    /// The writer took less than it was given. Nothing wakes the drainer until it drains again, because it
    /// waits for its output to become writable.
    Blocked,
    /// The budget of one drain is used up and there may be more. The buffer has woken its drainer again.
    Pending,
}

/// The room for the first byte: a line.
const LEAST_ROOM: usize = 256;
/// The number of bytes copied out of the ring at a time: one page, which a pipe takes in one piece
/// (`PIPE_BUF`).
const PIECE: usize = 4096;

#[cfg(test)]
mod tests;
