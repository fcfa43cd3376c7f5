//! The host's end of a card while the handler serves one event.

use std::sync::atomic::Ordering;

use super::Card;
use vmm_sys_util::epoll::EventSet;

use crate::backend::net::{LinkLost, NetBackend, Received, Sent};
use crate::memory::{Buffers, Span};

/// The host's end, and what has happened to it during one event.
pub(super) struct Link<'a> {
    /// The card that the end belongs to.
    pub(super) card: &'a Card,
    /// The back end.
    pub(super) backend: &'a mut dyn NetBackend,
    /// Set when the end turns out to be gone.
    pub(super) lost: Option<LinkLost>,
    /// Set when all of the host's frames have been received.
    pub(super) is_drained: bool,
    /// Set when the host has taken a frame.
    pub(super) has_sent: bool,
    /// Set when the guest has received a frame.
    pub(super) has_delivered: bool,
}

impl<'a> Link<'a> {
    pub(super) fn new(card: &'a Card, backend: &'a mut dyn NetBackend) -> Self {
        Self { card, backend, lost: None, is_drained: false, has_sent: false, has_delivered: false }
    }

    /// Returns whether the host's end is still there.
    pub(super) fn is_up(&self) -> bool {
        self.lost.is_none() && self.card.is_up.load(Ordering::Acquire)
    }

    /// Returns whether frames cannot be sent now, but may be later.
    pub(super) fn is_blocked(&self) -> bool {
        self.is_up() && self.backend.is_blocked()
    }

    /// Receives a frame as [`NetBackend::receive`] does. Returns `Nothing` when the end is gone.
    pub(super) fn receive(&mut self, room: &[Span]) -> Received {
        let received = if self.is_up() { self.backend.receive(room) } else { Ok(Received::Nothing) };
        let received = received.unwrap_or_else(|lost| {
            self.lost = Some(lost);
            Received::Nothing
        });
        self.is_drained |= received == Received::Nothing;
        received
    }

    /// Sends a frame as [`NetBackend::send`] does, or drops it when the end is gone.
    pub(super) fn send(&mut self, frame: &mut Buffers) -> Sent {
        let sent = if self.is_up() { self.backend.send(frame) } else { Ok(Sent::Dropped) };
        let sent = sent.unwrap_or_else(|lost| {
            self.lost = Some(lost);
            Sent::Dropped
        });
        self.has_sent |= sent == Sent::Done;
        sent
    }

    /// Passes on the events of the back end's descriptor, as [`NetBackend::ready`] describes.
    pub(super) fn ready(&mut self, events: EventSet) {
        if self.is_up()
            && let Err(lost) = self.backend.ready(events)
        {
            self.lost = Some(lost);
        }
    }
}
