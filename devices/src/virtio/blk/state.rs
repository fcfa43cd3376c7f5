//! The saved state of a block device. It does not contain the blocks: they are in files, which the VMM gives
//! to the next machine.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::{Block, Disk};
use crate::state::{Restoration, SavedState, StateError, exactly};
use crate::virtio::state::{DriverState, SaveDevice};

/// Version 1 of the state.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct BlockState {
    /// The size in bytes, which the driver takes to be fixed.
    capacity: u64,
    /// Whether a flush has failed since the driver started the device.
    flush_failed: bool,
}

impl SaveDevice for Block {
    fn save(&self) -> SavedState {
        let Self { disk, queues: _, engine: _ } = self;
        let Disk { name: _, backend, id: _, faults: _, flush_failed, poll: _ } = &**disk;
        let flush_failed = flush_failed.load(Ordering::Acquire);
        SavedState::encode(VERSION, &BlockState { capacity: backend.capacity(), flush_failed })
    }

    fn prepare(&self, state: &SavedState, driver: &DriverState) -> Result<Restoration<'_>, StateError> {
        let BlockState { capacity, flush_failed } = state.decode(VERSION)?;
        exactly("capacity", capacity, self.disk.backend.capacity())?;
        if !driver.is_active {
            exactly("flush_failed", flush_failed, false)?;
        }
        Ok(Restoration::new(move || self.disk.flush_failed.store(flush_failed, Ordering::Release)))
    }
}

const VERSION: u16 = 1;
