//! Frames from the host to the guest.
//!
//! Chains are popped ahead of the frames that go into them: how long a frame is shows only when it is there.
//! Those that no frame has gone into are put back when the handler stops.

use std::collections::VecDeque;

use super::link::Link;
use super::{MRG_RXBUF, accepted_offloads, count};
use crate::backend::net::{HEADER_LEN, MAX_FRAME_LEN, Received};
use crate::memory::Span;
use crate::virtio::queue::{Chain, RingError, VirtQueue};

/// Serves the queue that the guest receives by.
pub(super) struct Receiver {
    queue: VirtQueue,
    /// Chains for the next frames, in their order.
    held: VecDeque<Chain>,
    /// Their spans, as far as one frame goes.
    room: Vec<Span>,
    /// Whether a frame may fill several chains.
    is_mergeable: bool,
    /// Bytes of room that are worth having ready.
    wanted: u64,
    state: State,
}

/// What is to come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A frame of the host's.
    Open,
    /// Room of the guest's.
    NoRoom,
    /// More room, for a frame of this length whose first `filled` bytes are in what there was.
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

    /// Gives the queue back as it is without the chains that wait here.
    pub(super) fn into_queue(self) -> VirtQueue {
        let Self { mut queue, held, .. } = self;
        held.into_iter().rev().for_each(|chain| queue.put_back(chain));
        queue.announce();
        queue
    }

    /// True when frames of the host's can be taken.
    pub(super) fn wants_frames(&self) -> bool {
        self.state == State::Open
    }

    /// True while a frame waits for more room.
    pub(super) fn holds_frame(&self) -> bool {
        matches!(self.state, State::LittleRoom { .. })
    }

    /// The guest does not make enough room for too long.
    pub(super) fn give_up(&mut self, link: &Link<'_>) {
        if self.holds_frame() {
            count(&link.card.counters.receive_dropped);
            self.state = State::Open;
        }
    }

    /// Receives what there is, some frames at most; returns how many. The doorbell is quiet until
    /// [`rest`](Self::rest).
    ///
    /// # Errors
    /// The ring is damaged.
    pub(super) fn serve(&mut self, link: &mut Link<'_>) -> Result<u32, RingError> {
        self.queue.begin();
        let mut frames = 0_u32;
        while frames < FRAMES_AT_ONCE && self.take_next(link)? {
            frames = frames.saturating_add(1);
            // The driver works on these while more are coming: one that polls sooner than one that is
            // interrupted.
            if frames.is_multiple_of(FRAMES_BETWEEN_INTERRUPTS) {
                self.queue.announce();
            } else if frames.is_multiple_of(PUBLISH_EVERY) {
                self.queue.publish();
            }
        }
        self.queue.announce();
        Ok(frames)
    }

    /// Asks to be rung for more room where it is missing.
    ///
    /// # Errors
    /// The ring is damaged.
    pub(super) fn rest(&mut self) -> Result<(), RingError> {
        match self.state {
            State::Open => Ok(()),
            State::NoRoom | State::LittleRoom { .. } => self.queue.finish(),
        }
    }

    /// Receives one frame; false when there is none, or no room for it.
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

    /// Pops chains until there is room for a frame as they usually are, or for a part of one at least.
    fn has_room(&mut self) -> Result<bool, RingError> {
        self.pop_up_to(self.wanted)?;
        if self.held.is_empty() {
            self.state = State::NoRoom;
            return Ok(false);
        }
        self.state = State::Open;
        Ok(true)
    }

    /// Pops until there are `bytes` of room, or as many pieces as a frame can have; false when the guest
    /// offers no more.
    fn pop_up_to(&mut self, bytes: u64) -> Result<bool, RingError> {
        let mut room: u64 = self.held.iter().map(|chain| chain.writable.len()).sum();
        let mut pieces: usize = self.held.iter().map(|chain| chain.writable.spans().len()).sum();
        while self.held.is_empty() || (self.is_mergeable && room < bytes && pieces < MOST_SPANS) {
            let Some(chain) = self.queue.pop()? else { break };
            let is_usable =
                chain.writable.len() >= HEADER_LEN.into() && chain.writable.spans().len() <= MOST_SPANS;
            if !is_usable {
                self.queue.complete(chain, 0);
                continue;
            }
            room = room.saturating_add(chain.writable.len());
            pieces = pieces.saturating_add(chain.writable.spans().len());
            self.held.push_back(chain);
        }
        self.list_room();
        Ok(room >= bytes || pieces >= MOST_SPANS)
    }

    fn list_room(&mut self) {
        self.room.clear();
        for chain in &self.held {
            self.room.extend(chain.writable.spans().iter().take(MOST_SPANS.saturating_sub(self.room.len())));
        }
    }

    /// Gives the guest the frame of `len` bytes that was received, the first `filled` of them to their place;
    /// false when it has to wait.
    fn deliver(&mut self, len: u32, filled: u64, link: &mut Link<'_>) -> Result<bool, RingError> {
        let has_room = self.pop_up_to(len.into())?;
        if len_of(&self.room) < len.into() {
            if has_room || !self.is_mergeable {
                // Not in one chain, or in too many pieces: it never will.
                return Ok(self.drop_frame(link));
            }
            self.state = State::LittleRoom { len, filled };
            return Ok(false);
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

    /// Hands the chains that a frame of `len` bytes fills to the guest.
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

/// Writes `data` to the bytes of `room` from `at` on, as far as they go.
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

/// Room that is kept ready for a driver that takes no long frames: the usual MTU with its headers.
const USUAL_FRAME_LEN: u32 = 1518;
/// Pieces of a frame's room: what one system call takes, less one for the part that does not fit.
const MOST_SPANS: usize = 1023;
/// Frames between two looks at the clock, and at what the guest sends.
pub(super) const FRAMES_AT_ONCE: u32 = 64;
const FRAMES_BETWEEN_INTERRUPTS: u32 = 64;
const PUBLISH_EVERY: u32 = 16;
/// Where in the header the number of chains is that a frame fills.
const NUM_BUFFERS: u64 = 10;
