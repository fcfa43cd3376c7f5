//! Virtio devices (virtio 1.2), and the parts that all of them share.
//!
//! ```text
//! vCPU thread: MmioTransport (registers) -> TransportCore (status, features, queue set-up)
//!                 | DRIVER_OK: VirtioDevice::activate makes handlers from checked queues
//!                 v
//! I/O thread:  QueueHandler: doorbell -> VirtQueue::pop -> Chain -> ... -> complete -> VirtioIrq
//! ```
//!
//! A device is a directory with its configuration space, its requests and its handler. The VMM gives it a
//! transport, a doorbell for each queue, an interrupt line and an I/O thread.

use std::collections::BTreeMap;

pub mod balloon;
pub mod blk;
pub mod console;
pub mod handler;
pub mod irq;
pub mod listener;
pub mod net;
pub mod poll;
pub mod queue;
pub mod rng;
mod socket;
pub mod state;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod transport;
pub mod vsock;

pub use handler::{QueueHandler, StopFlag, watch_doorbell};
pub use irq::VirtioIrq;
pub use queue::{Chain, RingError, VirtQueue};

use crate::memory::GuestMemory;
use state::SaveDevice;

/// A kind of device: its settings, and all of its state that outlives an activation. It knows nothing of its
/// transport.
///
/// vCPU threads call it, one at a time except for [`config`](Self::config) and
/// [`write_config`](Self::write_config). State that changes has a lock of its own. The driver is hostile, so
/// every number that it writes is checked.
pub trait VirtioDevice: Send + Sync {
    /// Returns the kind, by which the guest chooses a driver.
    fn kind(&self) -> DeviceKind;

    /// Returns the name for messages, such as `rng` or `disk root`.
    fn name(&self) -> String;

    /// Returns the features of this kind of device, bits 0 to 23 and from 50 (virtio 1.2, section 2.2). The
    /// transport adds its own.
    fn features(&self) -> u64 {
        0
    }

    /// Returns the largest number of descriptors of each queue: powers of two, at most [`MAX_QUEUE_SIZE`].
    fn queue_sizes(&self) -> Vec<u16>;

    /// Returns the present configuration space. The transport does all bounds checks, and the driver reads
    /// zeroes past the end.
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Takes `data`, which the driver has written at `offset` of the configuration space. All of it lies
    /// inside.
    fn write_config(&self, _offset: usize, _data: &[u8]) {}

    /// Returns whether the device's handlers may wait for the host. They then run on a thread of their own.
    fn blocks(&self) -> bool {
        false
    }

    /// Makes the handlers for the queues once the driver has set up the device. The transport calls this
    /// again after a reset and, with the same queues, after a pause.
    ///
    /// # Errors
    /// The driver has not set up a queue that the device needs. The device then needs a reset.
    fn activate(&self, context: ActivateContext) -> Result<Vec<Box<dyn QueueHandler>>, ActivateError>;

    /// Resets the device's own state when the driver resets the device. Its handlers have stopped. The
    /// transport does not call this for a pause.
    fn reset(&self) {}

    /// Returns the part that saves and restores the device; `None` for one whose state cannot be saved.
    fn saving(&self) -> Option<&dyn SaveDevice> {
        None
    }
}

/// The parts that a device makes its handlers from.
#[derive(Debug)]
pub struct ActivateContext {
    /// Guest RAM.
    pub memory: GuestMemory,
    /// The queues that the driver has set up.
    pub queues: Queues,
    /// The device's interrupt, for changes of the configuration space. Each queue has a clone of it.
    pub irq: VirtioIrq,
    /// The features that the driver has accepted.
    pub features: u64,
    /// Raised when the transport wants the queues back.
    pub stop: StopFlag,
}

impl ActivateContext {
    /// Returns whether the driver has accepted the feature with this bit number.
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
    /// The driver has not set up this queue.
    pub fn take(&mut self, index: u16) -> Result<VirtQueue, ActivateError> {
        self.0.remove(&index).ok_or(ActivateError { queue: index })
    }

    /// Returns the queues that nobody has taken, in the order of their numbers.
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

/// The error of a device that was started without one of its queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the driver has not set up queue {queue}")]
pub struct ActivateError {
    /// The number of the missing queue.
    pub queue: u16,
}

/// A kind of device, by its number (virtio 1.2, section 5).
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
    /// A descriptor may point to a table of descriptors.
    pub const INDIRECT_DESC: u32 = 28;
    /// Driver and device ask for interrupts and doorbells by ring index.
    pub const EVENT_IDX: u32 = 29;
    /// The device follows virtio 1.0 or later, and is not a legacy device.
    pub const VERSION_1: u32 = 32;
}

/// The largest size of a queue in descriptors: 256 descriptors fill one page of 4 KiB, and longer queues were
/// no faster.
pub const MAX_QUEUE_SIZE: u16 = 256;
