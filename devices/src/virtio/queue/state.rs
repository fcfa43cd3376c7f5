//! The saved state of a queue: the registers of its driver, and the positions of a queue that runs.

use serde::{Deserialize, Serialize};

use super::config::{AVAILABLE_RING, DESCRIPTOR_TABLE};
use super::{Positions, QueueConfig, QueueConfigError};
use crate::state::{StateError, exactly};

/// The state of one queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::virtio) struct QueueState {
    pub(in crate::virtio) max_size: u16,
    pub(in crate::virtio) size: u16,
    pub(in crate::virtio) ready: bool,
    pub(in crate::virtio) descriptors: u64,
    pub(in crate::virtio) available: u64,
    pub(in crate::virtio) used: u64,
    /// `None` for a queue that the device does not serve.
    pub(in crate::virtio) positions: Option<Positions>,
}

/// The parts of a device's state on which those of its queues depend.
#[derive(Debug, Clone, Copy)]
pub(in crate::virtio) struct QueueRules {
    /// Whether the driver has been able to set up queues.
    pub(in crate::virtio) can_be_set_up: bool,
    /// Whether handlers serve the queues.
    pub(in crate::virtio) is_active: bool,
    /// Whether the device needs a reset, possibly because of a damaged ring.
    pub(in crate::virtio) needs_reset: bool,
}

impl QueueState {
    pub(in crate::virtio) fn new(config: QueueConfig, positions: Option<Positions>) -> Self {
        let QueueConfig { max_size, size, ready, descriptors, available, used } = config;
        Self { max_size, size, ready, descriptors, available, used, positions }
    }

    /// Returns the registers and the positions, after a check of everything that needs no memory: the rings
    /// are checked when the queue is made of them. `own` has the size that the device gives the queue.
    pub(in crate::virtio) fn check(
        self,
        own: QueueConfig,
        rules: QueueRules,
    ) -> Result<(QueueConfig, Option<Positions>), StateError> {
        let Self { max_size, size, ready, descriptors, available, used, positions } = self;
        let QueueRules { can_be_set_up, is_active, needs_reset } = rules;
        exactly("queue_max_size", max_size, own.max_size)?;
        if !can_be_set_up {
            exactly("queue_size", size, own.max_size)?;
            exactly("queue_ready", ready, false)?;
            let addresses = [("descriptors", descriptors), ("available", available), ("used", used)];
            addresses.into_iter().try_for_each(|(field, address)| exactly(field, address, 0))?;
        }
        if let Some(positions) = &positions {
            exactly("queue_is_active", is_active, true)?;
            exactly("queue_ready", ready, true)?;
            positions.check(size, needs_reset)?;
        }
        Ok((QueueConfig { max_size, size, ready, descriptors, available, used }, positions))
    }
}

impl QueueConfigError {
    /// Names the register of a saved queue that cannot run.
    pub(in crate::virtio) fn of_state(self) -> StateError {
        let allowed = self.to_string();
        match self {
            Self::Size { size, max_size: _ } => StateError::field("queue_size", size, allowed),
            Self::Ring { ring, address, len: _, alignment: _ } => {
                let field = match ring {
                    DESCRIPTOR_TABLE => "descriptors",
                    AVAILABLE_RING => "available",
                    _ => "used",
                };
                StateError::field(field, address, allowed)
            }
        }
    }
}
