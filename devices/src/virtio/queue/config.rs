//! The driver's set-up of a queue before it runs: plain numbers, without effect until they are checked.

use super::chain::DESCRIPTOR_LEN;
use super::running::QueueParts;
use super::{RingLayout, VirtQueue};

/// The registers of one queue (virtio 1.2, section 4.2.2). `QueueConfig::start` makes a running queue, which
/// is a different type: writes to these registers cannot reach it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueConfig {
    /// The largest number of descriptors that the device takes: a power of two.
    pub max_size: u16,
    /// The number of descriptors that the driver wants.
    pub size: u16,
    /// Whether the driver has finished setting up this queue.
    pub ready: bool,
    /// Guest-physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest-physical address of the available ring, the driver area.
    pub available: u64,
    /// Guest-physical address of the used ring, the device area.
    pub used: u64,
}

/// The reason why a queue cannot run as the driver has set it up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QueueConfigError {
    /// The size is not a power of two up to the device's largest.
    #[error("a queue of {size} descriptors is not possible: use a power of two up to {max_size}")]
    Size {
        /// The size that the driver wrote, in descriptors.
        size: u16,
        /// The largest size, in descriptors.
        max_size: u16,
    },
    /// A ring has a wrong alignment, or does not lie in RAM as a whole.
    #[error(
        "the {ring} at {address:#x} is not {len} bytes of RAM at an address that is a multiple of {alignment}"
    )]
    Ring {
        /// The name of the ring: "descriptor table", "available ring" or "used ring".
        ring: &'static str,
        /// The guest-physical address that the driver wrote.
        address: u64,
        /// The length of the ring in bytes.
        len: u32,
        /// The alignment that the address needs, in bytes (virtio 1.2, section 2.7).
        alignment: u64,
    },
}

impl QueueConfig {
    /// Makes the registers of a queue that the driver has not touched.
    pub fn new(max_size: u16) -> Self {
        Self { max_size, size: max_size, ready: false, descriptors: 0, available: 0, used: 0 }
    }

    /// Checks the registers against `parts.memory`, and makes the running queue from them.
    ///
    /// # Errors
    /// The size is not possible, or a ring does not lie in RAM at its alignment.
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
            descriptors: ring(DESCRIPTOR_TABLE, descriptors, DESCRIPTOR_LEN, 0, 16)?,
            // The 6 bytes besides the entries: flags, index and event index.
            available: ring(AVAILABLE_RING, available, 2, 6, 2)?,
            used: ring(USED_RING, used, 8, 6, 4)?,
        })
    }
}

/// The names of the parts of a queue.
pub(super) const DESCRIPTOR_TABLE: &str = "descriptor table";
pub(super) const AVAILABLE_RING: &str = "available ring";
const USED_RING: &str = "used ring";
