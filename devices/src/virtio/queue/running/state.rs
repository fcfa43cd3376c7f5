//! The positions of a running queue in its rings, as they are saved.

use serde::{Deserialize, Serialize};

use super::VirtQueue;
use crate::state::{StateError, at_most, exactly};

/// The positions of a queue without chains in flight, whose completions the driver has all been shown. With
/// the driver's set-up and the guest's memory they are the whole state of the queue: the events and flags by
/// which the two sides suppress doorbells and interrupts are in the rings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::virtio) struct Positions {
    /// The index of the next entry of the available ring, modulo 65,536.
    pub(in crate::virtio) next_available: u16,
    /// The index of the next entry of the used ring, modulo 65,536.
    pub(in crate::virtio) next_used: u16,
    /// The heads of chains that were put back; the last is the next that is popped.
    pub(in crate::virtio) returned: Vec<u16>,
}

impl Positions {
    /// Checks the positions for a queue of `size` descriptors. A ring that `is_damaged` may have had an entry
    /// that was no chain.
    pub(in crate::virtio) fn check(&self, size: u16, is_damaged: bool) -> Result<(), StateError> {
        let Self { next_available, next_used, returned } = self;
        let len = returned.len();
        if len > usize::from(size) {
            let allowed = format!("at most {size}, the size of the queue").into();
            return Err(StateError::Length { field: "returned", len, allowed });
        }
        for (index, head) in returned.iter().enumerate() {
            let is_repeated = returned.iter().take(index).any(|other| other == head);
            if is_repeated {
                return Err(StateError::field("returned", *head, "each head once"));
            }
            at_most("returned", *head, size.saturating_sub(1))?;
        }
        if is_damaged {
            return Ok(());
        }
        // Each chain that was taken from the available ring is in the used ring or was put back.
        let taken = next_used.wrapping_add(len as u16);
        exactly("next_available", *next_available, taken)
    }
}

impl VirtQueue {
    /// Returns the positions of a queue that its handler has handed back and that has
    /// [announced](Self::announce) everything.
    pub(in crate::virtio) fn positions(&self) -> Positions {
        let Self {
            rings: _,
            parts: _,
            next_available,
            // Read from the ring again when it is needed.
            seen_available: _,
            next_used,
            // Both are `next_used` once everything is announced.
            published: _,
            announced: _,
            share: _,
            // There is none.
            in_flight: _,
            in_flight_count: _,
            returned,
            pool: _,
            // The device sets it when it takes the queue.
            max_bytes: _,
        } = self;
        Positions { next_available: *next_available, next_used: *next_used, returned: returned.clone() }
    }

    /// Moves a new queue to `positions`, which have been checked for its size.
    pub(in crate::virtio) fn at(mut self, positions: Positions) -> Self {
        let Positions { next_available, next_used, returned } = positions;
        (self.next_available, self.seen_available) = (next_available, next_available);
        (self.next_used, self.published, self.announced) = (next_used, next_used, next_used);
        self.returned = returned;
        self
    }
}
