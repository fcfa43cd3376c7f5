//! The host's end of a network card: a tap device, or a stream socket to a program that implements a network.
//! The VMM opens it, and `virtio::net` uses it.
//!
//! A frame is a header of [`HEADER_LEN`] bytes and an Ethernet frame. The header states which checksums and
//! segments are left to finish (virtio 1.2, 5.1.6). A tap understands it. A stream carries frames that need
//! no such work, and no header.

mod offloads;
mod open;
mod stream;
mod tap;

pub use offloads::Offloads;
pub use open::{NetOpenError, adopt};
pub use stream::Stream;
pub use tap::Tap;

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::epoll::EventSet;

use crate::memory::{Buffers, Span};

/// Sends and receives frames, and never waits. One handler owns it at a time. The handler's thread waits for
/// the events of [`interest`](Self::interest) and reports them by [`ready`](Self::ready); then it receives
/// until there is nothing.
///
/// Frames come from two sides that are not trusted: the guest, and whoever is at the host's end. A back end
/// checks the length of a frame and nothing else.
pub trait NetBackend: Send {
    /// Returns the descriptor and the events that the I/O thread waits for on behalf of this back end.
    /// `is_full` is set when the handler has frames that the host does not take. The descriptor is the same
    /// each time. A back end with several descriptors returns an epoll descriptor of its own, which is
    /// readable when one of them is ready in either direction, and never writable.
    fn interest(&self, is_full: bool) -> Interest;

    /// Handles `events` of the descriptor. A back end with an epoll descriptor takes its own events from it.
    /// Continues frames that could not be sent before.
    ///
    /// # Errors
    /// The host's end has gone for good.
    fn ready(&mut self, _events: EventSet) -> Result<(), LinkLost> {
        Ok(())
    }

    /// Returns the work that it can leave to the receiver of its frames, and take over from the sender.
    fn possible_offloads(&self) -> Offloads;

    /// Sets the work that the receiver of frames can do. All other work is finished before. At first, the
    /// receiver can do nothing.
    fn set_offloads(&mut self, offloads: Offloads);

    /// Puts the next frame with its header into `room`, which has at least space for the header. The part
    /// that does not fit is in [`overflow`](Self::overflow) until the next call.
    ///
    /// # Errors
    /// The host's end has gone for good.
    fn receive(&mut self, room: &[Span]) -> Result<Received, LinkLost>;

    /// Returns the end of the last frame, which was longer than `room`.
    fn overflow(&self) -> &[u8];

    /// Sends the frame with its header.
    ///
    /// # Errors
    /// The host's end has gone for good.
    fn send(&mut self, frame: &mut Buffers) -> Result<Sent, LinkLost>;

    /// Returns whether the host's end takes no more frames. Frames are then dropped until
    /// [`ready`](Self::ready) has made room.
    fn is_blocked(&self) -> bool {
        false
    }
}

/// A descriptor, and the events that the I/O thread waits for there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interest {
    /// A descriptor of the back end, which stays open while the back end lives.
    pub descriptor: RawFd,
    /// The events. An error and a hang-up are reported in any case, and mean that the host's end is gone.
    pub events: EventSet,
}

impl Interest {
    /// Makes the interest of a back end whose only descriptor is the host's end itself. The watch is
    /// edge-triggered. Input is always included, because a tap reports its removal like a frame.
    pub fn of_end(end: &impl AsRawFd, is_full: bool) -> Interest {
        let sending = if is_full { EventSet::OUT } else { EventSet::empty() };
        Interest { descriptor: end.as_raw_fd(), events: EventSet::IN | EventSet::EDGE_TRIGGERED | sending }
    }
}

/// The result of receiving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// There was no frame.
    Nothing,
    /// A frame of this length, with its header and the part that did not fit.
    Frame(u32),
    /// Something that is not a frame. There may be more.
    Dropped,
}

/// The result of sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// The host has the frame, or gets it soon.
    Done,
    /// The host does not take the frame.
    Dropped,
}

/// The error of a network card whose host's end has gone.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkLost {
    /// The tap was removed.
    #[error("its tap device is gone")]
    TapRemoved,
    /// The program at the other end of the socket has closed it.
    #[error("the program at the other end has closed the socket")]
    Closed,
    /// The kernel reports a hang-up without a cause.
    #[error("the host's end is gone")]
    HungUp,
    /// The socket failed.
    #[error("its socket failed: {0}")]
    Failed(io::Error),
    /// The other end sends a length that no frame can have.
    #[error(
        "the other end announces a frame of {len} bytes, and {MAX_FRAME_LEN} is the limit: it speaks another protocol"
    )]
    Protocol {
        /// The announced length in bytes.
        len: u32,
    },
}

/// The length of a frame's header in bytes: `virtio_net_hdr` (virtio 1.2, section 5.1.6) with `num_buffers`.
pub const HEADER_LEN: u32 = 12;

/// The length of the longest frame in bytes, without its virtio header: an IP packet of 64 KiB with its
/// Ethernet header. Virtio 1.2, section 5.1.6.3.1, requires buffers of this length plus the virtio header.
pub const MAX_FRAME_LEN: u32 = 65_550;

/// The length of the shortest frame in bytes: an Ethernet header.
pub const MIN_FRAME_LEN: u32 = 14;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
