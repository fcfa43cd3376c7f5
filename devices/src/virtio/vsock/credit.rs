//! The credit of each direction of a connection (virtio 1.2, section 5.10.6.3): both ends count bytes modulo
//! 2^32, and the sender subtracts.

use std::collections::VecDeque;

/// The direction from the guest to the host.
#[derive(Debug)]
pub(super) struct ToHost {
    /// The number of bytes that the guest may have in flight.
    pub(super) window: u32,
    /// Bytes from the guest that the socket has not taken yet: never more than `window`.
    pub(super) backlog: VecDeque<u8>,
    /// The number of bytes received from the guest, modulo 2^32.
    pub(super) received: u32,
    /// The number of these bytes that the socket has taken, modulo 2^32.
    pub(super) forwarded: u32,
    /// The value of `forwarded` that the guest knows.
    pub(super) told: u32,
    /// The guest sends no more.
    pub(super) ended: bool,
    /// The host has been informed of that.
    pub(super) end_is_sent: bool,
    /// The host takes no more: later bytes are dropped.
    pub(super) refused: bool,
}

/// The direction from the host to the guest.
#[derive(Debug, Default)]
pub(super) struct ToGuest {
    /// The number of bytes sent to the guest, modulo 2^32.
    pub(super) sent: u32,
    /// The size of the guest's buffer in bytes.
    pub(super) room: u32,
    /// The number of bytes that the guest has taken out of its buffer, modulo 2^32.
    pub(super) taken: u32,
    /// The socket may have bytes, or have ended.
    pub(super) readable: bool,
    /// The host sends no more.
    pub(super) ended: bool,
    /// The guest takes no more.
    pub(super) refused: bool,
    /// The guest has been asked for its credit since it last had some.
    pub(super) room_is_asked_for: bool,
}

impl ToHost {
    pub(super) fn new(window: u32) -> Self {
        Self {
            window,
            backlog: VecDeque::new(),
            received: 0,
            forwarded: 0,
            told: 0,
            ended: false,
            end_is_sent: false,
            refused: false,
        }
    }

    /// Returns whether the guest may send `len` more bytes. It may not after it has ended this direction.
    pub(super) fn takes(&self, len: u32) -> bool {
        let in_flight = self.received.wrapping_sub(self.forwarded);
        !self.ended && len <= self.window.saturating_sub(in_flight)
    }

    /// Returns whether a good part of the window is free again. The guest does not learn of less, because
    /// each time costs a packet.
    pub(super) fn owes_credit(&self) -> bool {
        !self.ended && self.forwarded.wrapping_sub(self.told) >= self.window >> 2
    }
}

impl ToGuest {
    /// Returns the number of bytes that the guest has space for now. Numbers that contradict each other harm
    /// only this connection.
    pub(super) fn credit(&self) -> u32 {
        self.room.saturating_sub(self.sent.wrapping_sub(self.taken))
    }

    pub(super) fn can_read(&self) -> bool {
        self.wants_to_read() && self.credit() > 0
    }

    pub(super) fn asks_for_room(&self) -> bool {
        self.wants_to_read() && self.credit() == 0 && !self.room_is_asked_for
    }

    fn wants_to_read(&self) -> bool {
        self.readable && !self.ended && !self.refused
    }
}
