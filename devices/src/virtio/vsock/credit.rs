//! What each direction of a connection has room for, counted as the specification does (virtio 1.2, section
//! 5.10.6.3): both ends count bytes without end, and the sender subtracts.

use std::collections::VecDeque;

/// Guest to host.
#[derive(Debug)]
pub(super) struct ToHost {
    /// Bytes that the guest may have in flight.
    pub(super) window: u32,
    /// Taken from the guest, and not yet by the socket: never more than `window`.
    pub(super) backlog: VecDeque<u8>,
    /// Bytes from the guest, counted without end.
    pub(super) received: u32,
    /// How many of them the socket has taken.
    pub(super) forwarded: u32,
    /// `forwarded` as the guest knows it.
    pub(super) told: u32,
    /// The guest sends no more.
    pub(super) ended: bool,
    /// The host has been told so.
    pub(super) end_is_told: bool,
    /// The host takes no more: what still comes is dropped.
    pub(super) refused: bool,
}

/// Host to guest.
#[derive(Debug, Default)]
pub(super) struct ToGuest {
    /// Bytes that the guest has had, counted without end.
    pub(super) sent: u32,
    /// Bytes that the guest has room for in all.
    pub(super) room: u32,
    /// How many bytes the guest has taken out of its room, counted without end.
    pub(super) taken: u32,
    /// The socket may have bytes, or its end.
    pub(super) readable: bool,
    /// The host sends no more.
    pub(super) ended: bool,
    /// The guest takes no more.
    pub(super) refused: bool,
    /// The guest has been asked for room since it last had some.
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
            end_is_told: false,
            refused: false,
        }
    }

    /// Whether the guest, which has not ended, may send `len` bytes more.
    pub(super) fn takes(&self, len: u32) -> bool {
        let in_flight = self.received.wrapping_sub(self.forwarded);
        !self.ended && len <= self.window.saturating_sub(in_flight)
    }

    /// The guest is told of room once a good part of it is free again: each time costs a packet.
    pub(super) fn owes_credit(&self) -> bool {
        !self.ended && self.forwarded.wrapping_sub(self.told) >= self.window >> 2
    }
}

impl ToGuest {
    /// Bytes that the guest has room for now. Numbers that do not fit together hurt only its own connection.
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
