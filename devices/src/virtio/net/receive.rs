//! Frames from the host to the guest.
//!
//! Chains are popped before the frames that fill them, because the length of a frame is known only after it
//! has been received. When the handler stops, chains without a frame are put back.

use std::collections::VecDeque;

use super::link::Link;
use super::{MRG_RXBUF, accepted_offloads, count};
use crate::backend::net::{HEADER_LEN, MAX_FRAME_LEN, Received};
use crate::memory::Span;
use crate::virtio::queue::{Chain, RingError, VirtQueue};

/// Serves the receive queue.
pub(super) struct Receiver {
    queue: VirtQueue,
    /// The chains for the next frames, in their order.
    held: VecDeque<Chain>,
    /// The spans of these chains, as many as one frame can fill.
    room: Vec<Span>,
    /// Whether a frame may fill several chains (VIRTIO_NET_F_MRG_RXBUF).
    is_mergeable: bool,
    /// The number of bytes that should be ready before a frame is received.
    wanted: u64,
    state: State,
}

/// The state of the receiver: frames or buffers that it waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A frame from the host.
    Open,
    /// Buffers from the guest.
    NoRoom,
    /// More buffers for a frame of `len` bytes, of which the first `filled` are already in the held chains.
    LittleRoom { len: u32, filled: u64 },
}

impl Receiver {
    pub(super) fn new(queue: VirtQueue, features: u64) -> Self {
        let long = accepted_offloads(features).has_long_frames();
        let wanted = HEADER_LEN.saturating_add(if long { MAX_FRAME_LEN } else { USUAL_FRAME_LEN });
        Self {
            queue,
            held: VecDeque::new(),
            room: Vec::new(),
            is_mergeable: features >> MRG_RXBUF & 1 == 1,
            wanted: wanted.into(),
            state: State::Open,
        }
    }

    pub(super) fn queue(&self) -> &VirtQueue {
        &self.queue
    }

    /// Returns the queue, after the held chains have been put back.
    pub(super) fn into_queue(self) -> VirtQueue {
        let Self { mut queue, held, .. } = self;
        held.into_iter().rev().for_each(|chain| queue.put_back(chain));
        queue.announce();
        queue
    }

    /// Returns whether frames from the host can be received.
    pub(super) fn wants_frames(&self) -> bool {
        self.state == State::Open
    }

    /// Returns whether a frame waits for more buffers.
    pub(super) fn holds_frame(&self) -> bool {
        matches!(self.state, State::LittleRoom { .. })
    }

    /// Drops the waiting frame, because the guest has not offered enough buffers for too long.
    pub(super) fn give_up(&mut self, link: &Link<'_>) {
        if self.holds_frame() {
            count(&link.card.counters.receive_dropped);
            self.state = State::Open;
        }
    }

    /// Receives at most [`FRAMES_AT_ONCE`] frames, and returns their number. The doorbell stays quiet until
    /// [`rest`](Self::rest).
    ///
    /// # Errors
    /// The ring is damaged.
    pub(super) fn serve(&mut self, link: &mut Link<'_>) -> Result<u32, RingError> {
        self.queue.begin();
        let mut frames = 0_u32;
        while frames < FRAMES_AT_ONCE && self.take_next(link)? {
            frames = frames.saturating_add(1);
            // The driver can work on these while more arrive. A publication is enough for a driver that
            // polls; one that sleeps needs an interrupt.
            if frames.is_multiple_of(FRAMES_BETWEEN_INTERRUPTS) {
                self.queue.announce();
            } else if frames.is_multiple_of(PUBLISH_EVERY) {
                self.queue.publish();
            }
        }
        self.queue.announce();
        Ok(frames)
    }

    /// Asks the driver to ring when it offers more buffers, if the receiver waits for them.
    ///
    /// # Errors
    /// The ring is damaged.
    pub(super) fn rest(&mut self) -> Result<(), RingError> {
        match self.state {
            State::Open => Ok(()),
            State::NoRoom | State::LittleRoom { .. } => self.queue.finish(),
        }
    }

    /// Receives one frame. Returns false if there is none, or if there are no buffers for it.
    fn take_next(&mut self, link: &mut Link<'_>) -> Result<bool, RingError> {
        if let State::LittleRoom { len, filled } = self.state {
            return self.deliver(len, filled, link);
        }
        if !link.is_up() || !self.has_room()? {
            return Ok(false);
        }
        let filled = len_of(&self.room);
        match link.receive(&self.room) {
            Received::Frame(len) => self.deliver(len, filled, link),
            Received::Dropped => {
                count(&link.card.counters.receive_dropped);
                Ok(true)
            }
            Received::Nothing => Ok(false),
        }
    }

    /// Pops chains until they hold a usual frame. Returns false if the guest offers no chain at all.
    fn has_room(&mut self) -> Result<bool, RingError> {
        self.pop_up_to(self.wanted)?;
        if self.held.is_empty() {
            self.state = State::NoRoom;
            return Ok(false);
        }
        self.state = State::Open;
        Ok(true)
    }

    /// Pops chains until they hold `bytes`, or as many spans as a frame can have. Returns false if the guest
    /// offers no more before that.
    fn pop_up_to(&mut self, bytes: u64) -> Result<bool, RingError> {
        let mut room: u64 = self.held.iter().map(|chain| chain.writable.len()).sum();
        let mut pieces: usize = self.held.iter().map(|chain| chain.writable.spans().len()).sum();
        while self.held.is_empty() || (self.is_mergeable && room < bytes && pieces < MAX_SPANS) {
            let Some(chain) = self.queue.pop()? else { break };
            let is_usable =
                chain.writable.len() >= HEADER_LEN.into() && chain.writable.spans().len() <= MAX_SPANS;
            if !is_usable {
                self.queue.complete(chain, 0);
                continue;
            }
            room = room.saturating_add(chain.writable.len());
            pieces = pieces.saturating_add(chain.writable.spans().len());
            self.held.push_back(chain);
        }
        self.list_room();
        Ok(room >= bytes || pieces >= MAX_SPANS)
    }

    fn list_room(&mut self) {
        self.room.clear();
        for chain in &self.held {
            self.room.extend(chain.writable.spans().iter().take(MAX_SPANS.saturating_sub(self.room.len())));
        }
    }

    /// Delivers the received frame of `len` bytes to the guest; the first `filled` bytes are already in its
    /// buffers. Returns false if the frame has to wait for more buffers.
    fn deliver(&mut self, len: u32, filled: u64, link: &mut Link<'_>) -> Result<bool, RingError> {
        if len_of(&self.room) < len.into() {
            let has_room = self.pop_up_to(len.into())?;
            if len_of(&self.room) < len.into() {
                if has_room || !self.is_mergeable {
                    // It does not fit into one chain, or has too many spans, so it will never fit.
                    return Ok(self.drop_frame(link));
                }
                self.state = State::LittleRoom { len, filled };
                return Ok(false);
            }
        }
        put(&self.room, filled, link.backend.overflow());
        self.complete(len);
        count(&link.card.counters.received);
        link.has_delivered = true;
        self.state = State::Open;
        Ok(true)
    }

    fn drop_frame(&mut self, link: &Link<'_>) -> bool {
        count(&link.card.counters.receive_dropped);
        self.state = State::Open;
        true
    }

    /// Completes the chains that a frame of `len` bytes fills.
    fn complete(&mut self, len: u32) {
        let mut left = u64::from(len);
        let mut chains = 0_u16;
        for chain in &self.held {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(chain.writable.len());
            chains = chains.saturating_add(1);
        }
        put(&self.room, NUM_BUFFERS, &chains.to_le_bytes());
        let mut left = len;
        for chain in self.held.drain(..usize::from(chains).min(self.held.len())) {
            let part = u32::try_from(chain.writable.len()).unwrap_or(u32::MAX).min(left);
            left = left.saturating_sub(part);
            self.queue.complete(chain, part);
        }
    }
}

fn len_of(room: &[Span]) -> u64 {
    room.iter().map(|span| u64::from(span.len())).sum()
}

/// Writes `data` to `room` from offset `at`, as far as there is space.
fn put(room: &[Span], at: u64, data: &[u8]) {
    let mut before = at;
    let mut data = data;
    for span in room {
        if data.is_empty() {
            return;
        }
        let len = u64::from(span.len());
        if before >= len {
            before = before.saturating_sub(len);
            continue;
        }
        let done = span.write(before as u32, data);
        data = data.get(done..).unwrap_or_default();
        before = 0;
    }
}

/// The length of a usual frame in bytes: an MTU of 1,500, and the Ethernet header with a VLAN tag. So much is
/// kept ready for a driver that accepts no longer frames.
const USUAL_FRAME_LEN: u32 = 1518;
/// The largest number of spans for one frame: the 1,024 (UIO_MAXIOV) that one system call takes, without the
/// one for a part that does not fit.
const MAX_SPANS: usize = 1023;
/// Frames between two looks at the clock, and at the transmit queue.
pub(super) const FRAMES_AT_ONCE: u32 = 64;

/// Frames after which a driver that sleeps is interrupted: once for each full round.
const FRAMES_BETWEEN_INTERRUPTS: u32 = 64;
/// Frames after which a driver that polls sees what is done. Each publication costs it a cache miss.
const PUBLISH_EVERY: u32 = 16;
/// The offset of `num_buffers`, the number of chains that a frame fills, in the frame's header (virtio 1.2,
/// section 5.1.6).
const NUM_BUFFERS: u64 = 10;
