//! A bounded buffer between the vCPUs that print and the one thread that writes the console.
//!
//! Serial ports push bytes, and the I/O thread drains them. A push never waits: when the buffer is full,
//! bytes are dropped and counted. The buffer watches the bytes for a Linux kernel panic and for Linux's
//! banner, and keeps the last of them for a report on how the guest ended.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::console_tail::ConsoleTail;
use super::matcher::{Matcher, Text};
use super::panic_watch::PanicWatch;
use crate::guest_request::{GuestRequest, GuestRequestSink};
use crate::lock;

/// Console output in flight. Memory is allocated with the first byte, and never more than the capacity.
pub struct ConsoleBuffer {
    ring: Mutex<Ring>,
    capacity: usize,
    wake: EventFd,
    room: EventFd,
    /// Locked for a whole drain, so that two drainers never write the same bytes.
    draining: Mutex<()>,
    requests: Option<Arc<dyn GuestRequestSink>>,
    banner_at: OnceLock<Instant>,
    first_byte_at: OnceLock<Instant>,
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
            ring: Mutex::default(),
            capacity,
            wake: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
            room: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
            draining: Mutex::default(),
            requests: None,
            banner_at: OnceLock::new(),
            first_byte_at: OnceLock::new(),
        })
    }

    /// Reports each text of a kernel panic to `requests`, as [`GuestRequest::PanicText`].
    pub fn telling(self, requests: Arc<dyn GuestRequestSink>) -> Self {
        Self { requests: Some(requests), ..self }
    }

    /// Appends `bytes`. Bytes that do not fit are dropped and counted. Never waits for the drainer.
    pub fn push(&self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.first_byte_at.get_or_init(Instant::now);
        let Appended { first, panic_text } = self.append(bytes);
        if first {
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
            let piece = lock(&self.ring).copy_front(&mut scratch);
            if piece.is_empty() {
                return Drained::Empty;
            }
            let done = write(piece).min(piece.len());
            lock(&self.ring).bytes.drain(..done);
            self.tell_room();
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

    /// Drops the buffered bytes and counts them, for a console that nobody can read any more.
    pub fn discard(&self) {
        let _alone = lock(&self.draining);
        let mut ring = lock(&self.ring);
        let (lost, from) = (ring.bytes.len(), ring.drained());
        ring.bytes.clear();
        ring.count_dropped(lost, from);
        drop(ring);
        self.tell_room();
    }

    /// Returns the number of bytes that a push would not drop. After the result 0,
    /// [`room_event`](Self::room_event) fires once half of the buffer is free, for a device that can wait.
    pub fn room(&self) -> usize {
        let mut ring = lock(&self.ring);
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
        lock(&self.ring).watch.explains_reset()
    }

    /// Returns whether the output so far ends with a line that has the text of a kernel panic. Silence from
    /// here on means that the kernel is dead.
    pub fn stops_in_panic(&self) -> bool {
        lock(&self.ring).watch.is_last_line()
    }

    /// Returns the last line with the text of a kernel panic, cut to 1 KiB; empty if there was none.
    pub fn panic_line(&self) -> Vec<u8> {
        lock(&self.ring).watch.line().to_vec()
    }

    /// Returns the time at which Linux's first words, `Linux version`, were complete. Dropped bytes count.
    pub fn banner_at(&self) -> Option<Instant> {
        self.banner_at.get().copied()
    }

    /// Returns the last bytes that were pushed, dropped ones included, without a partial line at the start.
    /// There are at most [`TAIL_BYTES`](super::console_tail::TAIL_BYTES), whatever the guest prints.
    pub fn tail(&self) -> Vec<u8> {
        lock(&self.ring).tail.bytes()
    }

    /// Returns the time at which the first byte was pushed.
    pub fn first_byte_at(&self) -> Option<Instant> {
        self.first_byte_at.get().copied()
    }

    /// Returns the number of bytes pushed so far, dropped ones included.
    pub fn pushed_bytes(&self) -> u64 {
        lock(&self.ring).pushed
    }

    /// Returns the number of bytes that were pushed and will never be drained.
    pub fn dropped_bytes(&self) -> u64 {
        lock(&self.ring).dropped
    }

    /// Returns the number of bytes that were dropped or still wait, and how many were pushed before the first
    /// of them.
    pub fn untaken(&self) -> (u64, Option<u64>) {
        let ring = lock(&self.ring);
        let waiting = (!ring.bytes.is_empty()).then(|| ring.drained());
        let from = ring.dropped_from.into_iter().chain(waiting).min();
        (ring.dropped.saturating_add(ring.bytes.len() as u64), from)
    }

    /// Returns whether there is nothing to drain.
    pub fn is_empty(&self) -> bool {
        lock(&self.ring).bytes.is_empty()
    }

    fn append(&self, bytes: &[u8]) -> Appended {
        let mut ring = lock(&self.ring);
        let panic_text = ring.watch.feed(bytes);
        if ring.banner.feed(bytes) {
            self.banner_at.get_or_init(Instant::now);
        }
        ring.tail.push(bytes);
        let before = ring.pushed;
        ring.pushed = ring.pushed.saturating_add(bytes.len() as u64);
        let was_empty = ring.bytes.is_empty();
        let room = self.capacity.saturating_sub(ring.bytes.len());
        let (kept, lost) = bytes.split_at(room.min(bytes.len()));
        ring.count_dropped(lost.len(), before.saturating_add(kept.len() as u64));
        if ring.bytes.capacity() < self.capacity {
            ring.bytes.reserve_exact(self.capacity);
        }
        ring.bytes.extend(kept);
        Appended { first: was_empty && !kept.is_empty(), panic_text }
    }

    fn tell_room(&self) {
        let mut ring = lock(&self.ring);
        if ring.wants_room && ring.bytes.len() <= self.capacity / 2 {
            ring.wants_room = false;
            drop(ring);
            // The only failure is a counter at its maximum: the event is readable all the same.
            let _ = self.room.write(1);
        }
    }

    fn wake_drainer(&self) {
        // The only failure is a counter at its maximum: the event is readable all the same.
        let _ = self.wake.write(1);
    }
}

/// The result of a push.
struct Appended {
    /// Whether the drainer must be woken. Only the step from empty to non-empty costs a system call.
    first: bool,
    /// Whether the text of a kernel panic was completed.
    panic_text: bool,
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

#[derive(Default)]
struct Ring {
    bytes: VecDeque<u8>,
    pushed: u64,
    dropped: u64,
    /// The number of bytes that were pushed before the first of these.
    dropped_from: Option<u64>,
    /// Whether a device found no space.
    wants_room: bool,
    watch: PanicWatch,
    banner: Matcher<Banner>,
    tail: ConsoleTail,
}

impl Ring {
    /// Copies the oldest bytes into `scratch`, as many as are contiguous.
    fn copy_front<'a>(&self, scratch: &'a mut [u8]) -> &'a [u8] {
        let (front, _) = self.bytes.as_slices();
        let len = front.len().min(scratch.len());
        let (piece, _) = scratch.split_at_mut(len);
        let (oldest, _) = front.split_at(len);
        piece.copy_from_slice(oldest);
        piece
    }

    /// Returns the number of drained bytes. Unless bytes were dropped before the oldest one here, it is also
    /// how many were pushed before it.
    fn drained(&self) -> u64 {
        self.pushed.saturating_sub(self.dropped).saturating_sub(self.bytes.len() as u64)
    }

    /// Counts dropped bytes. `from` bytes were pushed before the first of them.
    fn count_dropped(&mut self, bytes: usize, from: u64) {
        self.dropped = self.dropped.saturating_add(bytes as u64);
        if bytes > 0 {
            self.dropped_from = Some(self.dropped_from.map_or(from, |before| before.min(from)));
        }
    }
}

/// Linux's banner: the start of its first line.
#[derive(Default)]
struct Banner;

impl Text for Banner {
    const TEXT: &'static [u8] = b"Linux version";
}

/// Bytes copied out of the ring at a time: one page, which a pipe takes in one piece (`PIPE_BUF`).
const PIECE: usize = 4096;

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::testing::RequestLog;

    fn buffer(capacity: usize) -> ConsoleBuffer {
        ConsoleBuffer::new(capacity).unwrap()
    }

    fn drained(buffer: &ConsoleBuffer) -> Vec<u8> {
        let mut bytes = Vec::new();
        while buffer.drain(|piece| {
            bytes.extend_from_slice(piece);
            piece.len()
        }) == Drained::Pending
        {}
        bytes
    }

    fn woken(buffer: &ConsoleBuffer) -> bool {
        buffer.wake_event().read().is_ok()
    }

    #[test]
    fn bytes_come_out_in_order_across_the_end_of_the_ring() {
        let buffer = buffer(10);
        let mut all = Vec::new();
        for round in 0..50_u8 {
            buffer.push(&[round; 7]);
            let mut first = true;
            buffer.drain(|piece| {
                let done = if first { piece.len().min(3) } else { 0 };
                first = false;
                all.extend_from_slice(&piece[..done]);
                done
            });
            all.extend(drained(&buffer));
        }
        let expected: Vec<u8> = (0..50_u8).flat_map(|round| [round; 7]).collect();
        assert_eq!(all, expected);
        assert_eq!(buffer.dropped_bytes(), 0);
    }

    #[test]
    fn full_buffer_keeps_the_oldest_bytes_and_counts_the_rest() {
        let buffer = buffer(4);
        buffer.push(b"abc");
        buffer.push(b"defg");
        buffer.push(b"h");
        assert_eq!((buffer.pushed_bytes(), buffer.dropped_bytes()), (8, 4));
        assert_eq!(buffer.untaken(), (8, Some(0)));
        assert_eq!(drained(&buffer), b"abcd");
        assert_eq!(buffer.untaken(), (4, Some(4)));
        assert!(buffer.is_empty());
    }

    #[test]
    fn memory_is_taken_with_the_first_byte_and_never_grows() {
        let buffer = buffer(1000);
        assert_eq!(lock(&buffer.ring).bytes.capacity(), 0);
        buffer.push(b"x");
        let capacity = lock(&buffer.ring).bytes.capacity();
        assert!((1000..2000).contains(&capacity), "{capacity}");
        buffer.push(&[b'y'; 5000]);
        assert_eq!(lock(&buffer.ring).bytes.capacity(), capacity);
    }

    #[test]
    fn only_the_step_from_empty_wakes_the_drainer() {
        let buffer = buffer(100);
        assert!(!woken(&buffer));
        buffer.push(b"");
        assert!(!woken(&buffer));
        buffer.push(b"a");
        assert!(woken(&buffer));
        buffer.push(b"b");
        assert!(!woken(&buffer));
        assert_eq!(drained(&buffer), b"ab");
        buffer.push(b"c");
        assert!(woken(&buffer));
    }

    #[test]
    fn buffer_without_capacity_drops_everything_and_wakes_nobody() {
        let buffer = buffer(0);
        buffer.push(b"Kernel panic - not syncing");
        assert!(!woken(&buffer));
        assert_eq!(buffer.dropped_bytes(), 26);
        assert!(buffer.panic_explains_reset());
        assert_eq!(drained(&buffer), b"");
    }

    #[test]
    fn writer_that_takes_less_keeps_the_rest() {
        let buffer = buffer(100);
        buffer.push(b"abcdef");
        assert_eq!(buffer.drain(|_| 2), Drained::Blocked);
        assert_eq!(buffer.drain(|_| 0), Drained::Blocked);
        assert_eq!(drained(&buffer), b"cdef");
        assert_eq!(buffer.drain(|_| unreachable!()), Drained::Empty);
    }

    #[test]
    fn writer_that_claims_too_much_does_no_harm() {
        let buffer = buffer(100);
        buffer.push(b"abc");
        assert_eq!(buffer.drain(|_| usize::MAX), Drained::Empty);
        assert!(buffer.is_empty());
    }

    #[test]
    fn endless_printer_does_not_hold_the_drainer() {
        let buffer = buffer(64);
        buffer.push(b"start");
        assert!(woken(&buffer));
        let mut calls = 0;
        let ending = buffer.drain(|piece| {
            calls += 1;
            buffer.push(b"more and more");
            piece.len()
        });
        assert_eq!(ending, Drained::Pending);
        assert!(calls <= 64);
        assert!(woken(&buffer), "a pending drain wakes itself");
    }

    #[test]
    fn push_works_while_a_writer_is_stuck() {
        let buffer = buffer(8);
        buffer.push(b"old");
        std::thread::scope(|scope| {
            let (inside, entered) = std::sync::mpsc::channel();
            let (leave, left) = std::sync::mpsc::channel::<()>();
            let drainer = scope.spawn(|| {
                buffer.drain(move |piece| {
                    inside.send(()).unwrap();
                    let _ = left.recv();
                    piece.len()
                })
            });
            entered.recv().unwrap();
            buffer.push(b"new bytes");
            drop(leave);
            let _ = entered.recv();
            drainer.join().unwrap();
        });
        assert_eq!((buffer.pushed_bytes(), buffer.dropped_bytes()), (12, 4));
    }

    #[test]
    fn no_wake_is_lost_between_printers_and_a_slow_writer() {
        let buffer = buffer(256);
        let printers_left = std::sync::atomic::AtomicUsize::new(2);
        let mut received = 0_u64;
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..50_000 {
                        buffer.push(b"abc");
                    }
                    printers_left.fetch_sub(1, Ordering::AcqRel);
                });
            }
            loop {
                let finished = printers_left.load(Ordering::Acquire) == 0;
                // Bytes in the buffer at this point must have been announced.
                if buffer.wake_event().read().is_ok() {
                    buffer.drain(|piece| {
                        received += piece.len() as u64;
                        piece.len()
                    });
                } else if finished {
                    break;
                }
            }
        });
        assert!(buffer.is_empty());
        assert_eq!(received + buffer.dropped_bytes(), 300_000);
        assert_eq!(buffer.pushed_bytes(), 300_000);
    }

    #[test]
    fn discarded_bytes_count_as_dropped() {
        let buffer = buffer(100);
        buffer.push(b"abc");
        buffer.discard();
        assert!(buffer.is_empty());
        assert_eq!((buffer.pushed_bytes(), buffer.dropped_bytes()), (3, 3));
        assert_eq!(buffer.untaken(), (3, Some(0)));
        buffer.push(b"d");
        assert_eq!(drained(&buffer), b"d");
    }

    #[test]
    fn first_byte_keeps_its_time() {
        let buffer = buffer(1);
        assert_eq!(buffer.first_byte_at(), None);
        buffer.push(b"a");
        let first = buffer.first_byte_at();
        assert!(first.is_some());
        buffer.push(b"b");
        assert_eq!(buffer.first_byte_at(), first);
    }

    #[test]
    fn banner_keeps_the_time_of_its_first_sight() {
        let buffer = buffer(8);
        buffer.push(b"LiLinux versio");
        assert_eq!(buffer.banner_at(), None);
        buffer.push(b"n 6.1");
        let first = buffer.banner_at();
        assert!(first.is_some());
        buffer.push(b"Linux version 6.1");
        assert_eq!(buffer.banner_at(), first);
    }

    #[test]
    fn tail_holds_what_the_buffer_dropped() {
        let buffer = buffer(2);
        buffer.push(b"first\n");
        buffer.push(b"last");
        assert_eq!(buffer.tail(), b"first\nlast");
    }

    #[test]
    fn panic_text_is_told_once_each_time() {
        let log = Arc::new(RequestLog::default());
        let buffer = buffer(4).telling(log.clone());
        buffer.push(b"Kernel panic");
        assert!(log.take().is_empty() && !buffer.stops_in_panic());
        buffer.push(b" - not syncing: VFS\r\n");
        assert_eq!(log.take(), [GuestRequest::PanicText]);
        assert!(buffer.stops_in_panic() && buffer.panic_explains_reset());
        buffer.push(b"# ");
        assert!(!buffer.stops_in_panic() && buffer.panic_explains_reset());
        assert!(log.take().is_empty());
    }
}
