//! The saved state of a virtio device: of its registers and queues, which its transport saves, and of the
//! device itself.

use serde::{Deserialize, Serialize};

use super::VirtioIrq;
use crate::state::{Restoration, SavedState, StateError};

/// The state of a device and its transport. The two have versions of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedDevice {
    /// Registers and queues.
    pub transport: SavedState,
    /// The device behind them.
    pub device: SavedState,
}

/// The part of a [device](super::VirtioDevice) that saves and restores its state. The state has no requests:
/// a handler that gives its queues back holds none.
pub trait SaveDevice {
    /// Returns the state that the driver can observe, now or later. The device's handlers have stopped. What
    /// belongs to the host's side is left out: files, sockets, output that the host has not taken.
    fn save(&self) -> SavedState;

    /// Checks a state and returns the step that puts the device into it. When it is applied, the device is as
    /// after a [reset](super::VirtioDevice::reset). If it `is_active` according to `driver`, it is
    /// [activated](super::VirtioDevice::activate) afterwards.
    ///
    /// # Errors
    /// The device could not have been in this state.
    fn prepare(&self, state: &SavedState, driver: &DriverState) -> Result<Restoration<'_>, StateError>;
}

/// The part of the transport's saved state on which a device's state can depend.
#[derive(Debug, Clone)]
pub struct DriverState {
    /// The features that the driver has accepted, if it has got so far.
    pub features: u64,
    /// Whether the driver has started the device.
    pub is_active: bool,
    /// The interrupt, for a device that reports changes of its configuration space.
    pub irq: VirtioIrq,
}

impl DriverState {
    /// Returns whether the driver has started the device with the feature of this bit number.
    pub fn uses(&self, feature: u32) -> bool {
        self.is_active && self.features.checked_shr(feature).unwrap_or_default() & 1 == 1
    }
}
