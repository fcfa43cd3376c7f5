//! What a driver writes about a queue before it runs: plain numbers, without effect until they are checked.

use super::chain::DESCRIPTOR_LEN;
use super::running::QueueParts;
use super::{RingLayout, VirtQueue};

/// The registers of one queue (virtio 1.2, 4.2.2). A running queue is another type, made by
/// `QueueConfig::start`: writing these registers cannot reach it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueConfig {
    /// The most descriptors that the device takes: a power of two.
    pub max_size: u16,
    /// Descriptors that the driver wants.
    pub size: u16,
    /// The driver has finished with this queue.
    pub ready: bool,
    /// Guest-physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest-physical address of the available ring, the driver area.
    pub available: u64,
    /// Guest-physical address of the used ring, the device area.
    pub used: u64,
}

/// Why a queue cannot run as the driver has set it up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QueueConfigError {
    /// Not a power of two up to the most.
    #[error("a queue of {size} descriptors is not possible: a power of two up to {max_size} is")]
    Size {
        /// As written.
        size: u16,
        /// The most.
        max_size: u16,
    },
    /// A ring at an address that it may not have, or not wholly in RAM.
    #[error("the {ring} at {address:#x} is not {len} bytes of RAM at a multiple of {alignment}")]
    Ring {
        /// Its name.
        ring: &'static str,
        /// As written.
        address: u64,
        /// Bytes that it takes.
        len: u32,
        /// What its address has to be a multiple of (virtio 1.2, 2.7).
        alignment: u64,
    },
}

impl QueueConfig {
    /// A queue that the driver has not touched.
    pub fn new(max_size: u16) -> Self {
        Self { max_size, size: max_size, ready: false, descriptors: 0, available: 0, used: 0 }
    }

    /// Checks the numbers against `parts.memory`, and makes the running queue from them.
    ///
    /// # Errors
    /// The size or the place of a ring is impossible.
    pub(crate) fn start(&self, parts: QueueParts) -> Result<VirtQueue, QueueConfigError> {
        let layout = self.layout(&parts)?;
        Ok(VirtQueue::new(layout, parts))
    }

    fn layout(&self, parts: &QueueParts) -> Result<RingLayout, QueueConfigError> {
        let &Self { max_size, size, ready: _, descriptors, available, used } = self;
        if !size.is_power_of_two() || size > max_size {
            return Err(QueueConfigError::Size { size, max_size });
        }
        let ring = |ring, address: u64, each: u32, fixed: u32, alignment: u64| {
            let len = u32::from(size).saturating_mul(each).saturating_add(fixed);
            let span = parts.memory.span(address, len).filter(|_| address.is_multiple_of(alignment));
            span.ok_or(QueueConfigError::Ring { ring, address, len, alignment })
        };
        Ok(RingLayout {
            size,
            descriptors: ring("descriptor table", descriptors, DESCRIPTOR_LEN, 0, 16)?,
            // Flags, index, entries, and the event index.
            available: ring("available ring", available, 2, 6, 2)?,
            used: ring("used ring", used, 8, 6, 4)?,
        })
    }
}
