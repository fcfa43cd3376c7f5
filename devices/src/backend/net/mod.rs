//! The host's end of a network card: a tap device, or a stream socket to a program that speaks for a network. Opened by
//! the VMM, used by `virtio::net`.
//!
//! A frame is an Ethernet frame behind a header of [`HEADER_LEN`] bytes, which says what is left to do about checksums
//! and segments (virtio 1.2, 5.1.6). A tap understands it; a stream has frames that need nothing, and no header.

mod offloads;
mod open;
mod stream;
mod tap;

pub use offloads::Offloads;
pub use open::{NetOpenError, adopt};
pub use stream::Stream;
pub use tap::Tap;

use std::io;
use std::os::fd::AsRawFd;

use crate::memory::{Buffers, Span};

/// Sends and receives frames; never waits. One handler has it at a time. Its descriptor tells by an edge of what is new:
/// who has not received all there was has to go on by itself.
///
/// Frames come from two sides that are not trusted: the guest, and whoever is at the host's end. A back end passes on
/// what is a frame by its length, and looks at nothing else.
pub trait NetBackend: AsRawFd + Send {
    /// What it can leave to the one who receives its frames, and take over from the one who sends them.
    fn possible_offloads(&self) -> Offloads;

    /// What the receiver of frames can do; all others come finished. In the beginning that is nothing.
    fn set_offloads(&mut self, offloads: Offloads);

    /// Puts the next frame with its header into `room`, which has place for the header at least. What is too long for it
    /// is in [`overflow`](Self::overflow) until the next call.
    ///
    /// # Errors
    /// The host's end is gone, for good.
    fn receive(&mut self, room: &[Span]) -> Result<Received, LinkLost>;

    /// The end of the last frame, which was longer than its room.
    fn overflow(&self) -> &[u8];

    /// Sends the frame with its header.
    ///
    /// # Errors
    /// The host's end is gone, for good.
    fn send(&mut self, frame: &mut Buffers) -> Result<Sent, LinkLost>;

    /// True while the host's end takes no more frames: sending drops them until [`flush`](Self::flush) has been called,
    /// when the descriptor is writable again.
    fn is_blocked(&self) -> bool {
        false
    }

    /// Sends on what could not be sent before.
    ///
    /// # Errors
    /// The host's end is gone, for good.
    fn flush(&mut self) -> Result<(), LinkLost> {
        Ok(())
    }
}

/// What there was to receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// Nothing.
    Nothing,
    /// A frame of this length with its header; the part that did not fit counts.
    Frame(u32),
    /// Something that is not a frame; there may be more.
    Dropped,
}

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// The host has it, or has it soon.
    Done,
    /// The host does not take it.
    Dropped,
}

/// The host's end of a network card is gone.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkLost {
    /// The tap was removed.
    #[error("its tap device is gone")]
    TapRemoved,
    /// The program at the other end of the socket has closed it.
    #[error("the program at the other end has closed the socket")]
    Closed,
    /// The kernel says so, and no more.
    #[error("the host's end is gone")]
    HungUp,
    /// The socket failed.
    #[error("its socket failed: {0}")]
    Failed(io::Error),
    /// The other end does not send frames.
    #[error(
        "the other end announces a frame of {len} bytes, and {MOST_FRAME_LEN} is the most: it speaks another protocol"
    )]
    Protocol {
        /// As announced.
        len: u32,
    },
}

/// Bytes of the header of a frame: `virtio_net_hdr` of virtio 1.2, 5.1.6, with `num_buffers`.
pub const HEADER_LEN: u32 = 12;

/// Bytes of the longest frame without its header: an IP packet of 64 KiB with its Ethernet header (virtio 1.2, 5.1.6.3.1
/// asks for buffers of this size and the header).
pub const MOST_FRAME_LEN: u32 = 65_550;

/// Bytes of the shortest: an Ethernet header.
pub const LEAST_FRAME_LEN: u32 = 14;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
