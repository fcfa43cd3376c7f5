//! The saved state of a transport: the registers that a driver sees, and its queues.

use serde::{Deserialize, Serialize};

use super::core::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK};
use crate::state::{SavedState, StateError, exactly};
use crate::virtio::irq::IrqState;
use crate::virtio::queue::{Positions, QueueConfig, QueueRules, QueueState};
use crate::virtio::state::DriverState;
use crate::virtio::{VirtioIrq, feature};

/// Version 1 of the state of a transport over MMIO. The selecting registers keep whatever the driver writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MmioState {
    pub(super) device_features_half: u32,
    pub(super) driver_features_half: u32,
    pub(super) queue: u32,
    pub(super) core: CoreState,
}

/// The part of the state that does not depend on the kind of transport.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CoreState {
    /// The kind of the device, so that the state of one is not taken for that of another.
    pub(super) kind: u32,
    /// The status register, without the bit for a device that needs a reset.
    pub(super) status: u8,
    /// The features that the driver has accepted.
    pub(super) accepted: u64,
    /// Whether the device serves its queues.
    pub(super) is_active: bool,
    pub(super) irq: IrqState,
    pub(super) queues: Vec<QueueState>,
}

/// The properties of a device with which its state has to agree.
#[derive(Debug, Clone)]
pub(super) struct Own<'a> {
    pub(super) kind: u32,
    pub(super) offered: u64,
    pub(super) queues: &'a [QueueConfig],
}

impl MmioState {
    pub(super) fn encode(&self) -> SavedState {
        SavedState::encode(VERSION, self)
    }

    pub(super) fn decode(saved: &SavedState) -> Result<Self, StateError> {
        saved.decode(VERSION)
    }
}

impl CoreState {
    /// Returns the part that the device itself sees.
    pub(super) fn driver(&self, irq: VirtioIrq) -> DriverState {
        DriverState { features: self.accepted, is_active: self.is_active, irq }
    }

    /// Checks everything but the addresses of the rings, and returns the queues.
    pub(super) fn check(&self, own: &Own<'_>) -> Result<Vec<(QueueConfig, Option<Positions>)>, StateError> {
        let Self { kind, status, accepted: _, is_active, irq, queues } = self;
        exactly("kind", *kind, own.kind)?;
        let has = |bit: u8| status & bit != 0;
        let steps = [0, ACKNOWLEDGE, ACKNOWLEDGE | DRIVER, SET_UP, SET_UP | DRIVER_OK];
        if !steps.contains(&(status & !FAILED)) {
            let allowed = "the steps of a driver in their order, and the bit of one that gave up";
            return Err(StateError::field("status", *status, allowed));
        }
        self.check_features(own.offered)?;
        let is_started = has(DRIVER_OK);
        irq.check(is_started)?;
        let &IrqState { needs_reset, status: _, generation: _ } = irq;
        match (is_started, *is_active) {
            // A device that did not start needs a reset.
            (true, false) => exactly("needs_reset", needs_reset, true)?,
            (true, true) => {}
            (false, is_active) => exactly("is_active", is_active, false)?,
        }
        if queues.len() != own.queues.len() {
            let allowed = format!("{}, one for each queue", own.queues.len()).into();
            return Err(StateError::Length { field: "queues", len: queues.len(), allowed });
        }
        let rules = QueueRules { can_be_set_up: has(FEATURES_OK), is_active: *is_active, needs_reset };
        let check = |(index, (queue, own)): (usize, (&QueueState, &QueueConfig))| {
            queue.clone().check(*own, rules).map_err(|error| error.of_entry(index))
        };
        queues.iter().zip(own.queues).enumerate().map(check).collect()
    }

    fn check_features(&self, offered: u64) -> Result<(), StateError> {
        let Self { status, accepted, .. } = self;
        if status & DRIVER == 0 {
            return exactly("accepted", *accepted, 0);
        }
        let version = 1 << feature::VERSION_1;
        if status & FEATURES_OK != 0 && (accepted & !offered != 0 || accepted & version == 0) {
            let allowed = format!("{version:#x} and any other bits of {offered:#x}");
            return Err(StateError::field("accepted", *accepted, allowed));
        }
        Ok(())
    }
}

const VERSION: u16 = 1;
/// The status of a driver that can set up queues.
const SET_UP: u8 = ACKNOWLEDGE | DRIVER | FEATURES_OK;
