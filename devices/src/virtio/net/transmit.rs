//! Frames from the guest to the host.

use super::count;
use super::link::Link;
use crate::backend::net::{HEADER_LEN, MAX_FRAME_LEN, Sent};
use crate::virtio::queue::{Chain, RingError, VirtQueue};

/// Serves the transmit queue.
pub(super) struct Transmitter {
    queue: VirtQueue,
    state: State,
}

/// The present treatment of the guest's frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The frames are sent.
    Open,
    /// The frames stay in the guest's queue, because the host takes none.
    Waiting,
    /// The frames are dropped, because the host has taken none for a long time.
    Dropping,
}

impl Transmitter {
    pub(super) fn new(mut queue: VirtQueue) -> Self {
        queue.limit_bytes(u64::from(HEADER_LEN).saturating_add(MAX_FRAME_LEN.into()));
        Self { queue, state: State::Open }
    }

    pub(super) fn queue(&self) -> &VirtQueue {
        &self.queue
    }

    pub(super) fn into_queue(self) -> VirtQueue {
        self.queue
    }

    /// Returns whether the host has to take something before frames can be sent.
    pub(super) fn waits_for_host(&self) -> bool {
        self.state != State::Open
    }

    /// Returns whether frames of the guest wait for the host.
    pub(super) fn holds_frames(&self) -> bool {
        self.state == State::Waiting
    }

    /// Begins to drop frames, because the host has not taken any for too long.
    pub(super) fn give_up(&mut self) {
        if self.state == State::Waiting {
            self.state = State::Dropping;
        }
    }

    /// Returns whether the driver has offered frames that can be sent or dropped.
    pub(super) fn has_work(&mut self) -> bool {
        self.state != State::Waiting && self.queue.is_offered()
    }

    /// Sends the frames of the queue, at most as many as it has descriptors. The doorbell stays quiet until
    /// [`rest`](Self::rest).
    ///
    /// # Errors
    /// The ring is damaged.
    pub(super) fn serve(&mut self, link: &mut Link<'_>) -> Result<(), RingError> {
        self.queue.begin();
        let mut unpublished = 0_u8;
        loop {
            self.state = match (link.is_blocked(), self.state) {
                (false, _) => State::Open,
                (true, State::Dropping) => State::Dropping,
                (true, State::Open | State::Waiting) => State::Waiting,
            };
            if self.state == State::Waiting {
                break;
            }
            let Some(chain) = self.queue.pop()? else { break };
            self.send(chain, link);
            // A driver that polls goes on while the rest is being sent.
            unpublished = unpublished.wrapping_add(1);
            if unpublished.is_multiple_of(PUBLISH_EVERY) {
                self.queue.publish();
            }
        }
        self.queue.announce();
        Ok(())
    }

    /// Asks the driver to ring when it offers more. While frames wait for the host this is not needed: the
    /// back end's event or the timer continues.
    ///
    /// # Errors
    /// The ring is damaged.
    pub(super) fn rest(&mut self) -> Result<(), RingError> {
        if self.state == State::Waiting { Ok(()) } else { self.queue.finish() }
    }

    fn send(&mut self, mut chain: Chain, link: &mut Link<'_>) {
        let counters = &link.card.counters;
        match link.send(&mut chain.readable) {
            Sent::Done => count(&counters.sent),
            Sent::Dropped => count(&counters.send_dropped),
        }
        self.queue.complete(chain, 0);
    }
}

/// Frames after which the driver sees what is done. Each publication costs it a cache miss, so not after
/// every frame.
const PUBLISH_EVERY: u8 = 16;
