//! Virtio devices (virtio 1.2), and what all of them share.
//!
//! ```text
//! vCPU thread: MmioTransport (registers) -> TransportCore (status, features, queue set-up)
//!                 | DRIVER_OK: VirtioDevice::activate makes handlers from checked queues
//!                 v
//! I/O thread:  QueueHandler: doorbell -> VirtQueue::pop -> Chain -> ... -> complete -> VirtioIrq
//! ```
//!
//! A device is a folder with its configuration space, its requests and its handler. The VMM gives it a
//! transport, a doorbell for each queue, an interrupt line and an I/O thread.

use std::collections::BTreeMap;

pub mod balloon;
pub mod blk;
pub mod console;
pub mod handler;
pub mod irq;
pub mod net;
pub mod poll;
pub mod queue;
pub mod rng;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod transport;
pub mod vsock;

pub use handler::{QueueHandler, StopFlag, watch_doorbell};
pub use irq::VirtioIrq;
pub use queue::{Chain, RingError, VirtQueue};

use crate::memory::GuestMemory;

/// A kind of device with its settings and all that outlives an activation. It knows no transport.
///
/// vCPU threads call it, one at a time but for [`config`](Self::config) and
/// [`write_config`](Self::write_config); what changes has a lock of its own. The driver is hostile: every
/// number that it writes is checked.
pub trait VirtioDevice: Send + Sync {
    /// What the driver takes it for.
    fn kind(&self) -> DeviceKind;

    /// Its name in messages, as in `rng` or `disk root`.
    fn name(&self) -> String;

    /// The features of its own kind, bits 0 to 23 and 50 on. The transport adds its own.
    fn features(&self) -> u64 {
        0
    }

    /// The most descriptors of each queue: powers of two, at most [`MAX_QUEUE_SIZE`].
    fn queue_sizes(&self) -> Vec<u16>;

    /// The configuration space as it is now. The transport does all bounds checks; past the end there are
    /// zeroes.
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    /// The driver has written `data` at `offset` of the configuration space; all of it lies inside.
    fn write_config(&self, _offset: usize, _data: &[u8]) {}

    /// Whether its handlers may wait for the host: they get a thread of their own then.
    fn blocks(&self) -> bool {
        false
    }

    /// The driver has set the device up: makes the handlers for its queues. It is called again after a reset,
    /// and, with the same queues, after a pause.
    ///
    /// # Errors
    /// The driver has left out a queue that the device cannot do without; it needs a reset.
    fn activate(&self, context: ActivateContext) -> Result<Vec<Box<dyn QueueHandler>>, ActivateError>;

    /// The driver has reset the device; its handlers have stopped. Not called for a pause.
    fn reset(&self) {}
}

/// What the handlers of a device are made from.
#[derive(Debug)]
pub struct ActivateContext {
    /// Guest RAM.
    pub memory: GuestMemory,
    /// The queues that the driver has set up.
    pub queues: Queues,
    /// The device's interrupt, for changes of the configuration space; queues have it, too.
    pub irq: VirtioIrq,
    /// The features that the driver has accepted.
    pub features: u64,
    /// Raised when the queues are wanted back.
    pub stop: StopFlag,
}

impl ActivateContext {
    /// True when the driver has accepted the feature with this bit number.
    pub fn has(&self, feature: u32) -> bool {
        self.features.checked_shr(feature).unwrap_or_default() & 1 == 1
    }
}

/// The running queues of a device, by number.
#[derive(Debug, Default)]
pub struct Queues(BTreeMap<u16, VirtQueue>);

impl Queues {
    /// Takes the queue with this number.
    ///
    /// # Errors
    /// The driver has not set it up.
    pub fn take(&mut self, index: u16) -> Result<VirtQueue, ActivateError> {
        self.0.remove(&index).ok_or(ActivateError { queue: index })
    }

    /// Those that nobody has taken, by number.
    pub fn into_rest(self) -> impl Iterator<Item = VirtQueue> {
        self.0.into_values()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &VirtQueue> {
        self.0.values()
    }
}

impl FromIterator<VirtQueue> for Queues {
    fn from_iter<T: IntoIterator<Item = VirtQueue>>(queues: T) -> Self {
        Self(queues.into_iter().map(|queue| (queue.index(), queue)).collect())
    }
}

/// A device was started without one of its queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the driver has not set up queue {queue}")]
pub struct ActivateError {
    /// Its number.
    pub queue: u16,
}

/// Kinds of devices by their number (virtio 1.2, section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum DeviceKind {
    /// Network card.
    Net = 1,
    /// Block device.
    Block = 2,
    /// Console.
    Console = 3,
    /// Entropy source.
    Rng = 4,
    /// Memory balloon.
    Balloon = 5,
    /// Socket.
    Vsock = 19,
}

/// Feature bits of every device (virtio 1.2, section 6).
pub mod feature {
    /// A descriptor may name a table of descriptors.
    pub const INDIRECT_DESC: u32 = 28;
    /// Doorbells and interrupts are asked for by index.
    pub const EVENT_IDX: u32 = 29;
    /// The device is not a legacy one.
    pub const VERSION_1: u32 = 32;
}

/// The most descriptors of a queue: a ring of this size is 4 KiB of descriptors, and deeper queues gain
/// nothing here.
pub const MAX_QUEUE_SIZE: u16 = 256;
