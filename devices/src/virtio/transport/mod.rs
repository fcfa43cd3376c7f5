//! The way in which a driver finds a device and sets it up: a state machine that all transports share, and
//! the registers of virtio over MMIO.
//!
//! The VMM holds each device by its [`Transport`], and knows nothing of registers.

mod core;
mod mmio;
mod state;

pub use self::core::{TransportCore, TransportParts};
pub use mmio::MmioTransport;

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::handler::{IfLate, Stuck};
use super::state::SavedDevice;
use crate::bus::BusDevice;
use crate::memory::GuestMemory;
use crate::state::{Restoration, StateError};

/// A device with the registers by which its driver finds it. The VMM maps the window, connects the doorbells
/// and the memory, and takes the queues away for a pause, a reset and the end.
///
/// The VMM's control thread calls it, while vCPU threads access the registers.
pub trait Transport: BusDevice {
    /// Returns the name of the device, for messages.
    fn name(&self) -> String;

    /// Returns the length of the register window in bytes; a power of two.
    fn window_len(&self) -> u64;

    /// Returns the doorbells of the queues, by queue number, each with the write that rings it. Once the
    /// driver has started the device, the VMM lets KVM ring them without an exit (ioeventfd). A write that
    /// reaches the window nevertheless rings them too.
    fn doorbells(&self) -> Vec<Doorbell>;

    /// Gives the device the guest's memory. The VMM calls this before the guest runs. `on_start` is called
    /// once when the device first starts: on a vCPU thread when the driver starts it, or by
    /// [`resume`](Self::resume) if it was restored.
    fn connect(&self, memory: GuestMemory, on_start: OnStart);

    /// Resets the device and releases the memory, for a machine that is reset or ends.
    ///
    /// # Errors
    /// The handlers did not drain in time. They keep the memory.
    fn disconnect(&self) -> Result<(), Stuck>;

    /// Asks the handlers for the queues, without waiting for them. [`pause`](Self::pause) or
    /// [`disconnect`](Self::disconnect) has to follow. The VMM asks all devices before it waits for any, so
    /// that they share one limit.
    fn ask_for_queues(&self, if_late: IfLate);

    /// Takes the queues from their handlers, until [`resume`](Self::resume).
    ///
    /// # Errors
    /// The handlers did not drain in time. They go on serving the queues.
    fn pause(&self) -> Result<(), Stuck>;

    /// Makes new handlers for the queues after [`pause`](Self::pause), or for those of a device that was
    /// [restored](Self::prepare).
    fn resume(&self);

    /// Returns whether the state of a device of this kind can be saved.
    fn can_be_saved(&self) -> bool;

    /// Returns the state; `None` if it cannot be saved, or if the device runs: it has to be
    /// [paused](Self::pause). The guest's memory is saved after that pause, and no vCPU runs from before the
    /// pause until both are saved.
    fn save(&self) -> Option<SavedDevice>;

    /// Checks a state against the guest's memory, which the device has been given, and returns the step that
    /// puts the device into the state. No vCPU runs then, and its interrupt is connected: the step raises one
    /// that the driver has not acknowledged. Afterwards the device is as after a pause, so that
    /// [`resume`](Self::resume) starts it if its driver has. Then every queue is served once, whether or not
    /// a doorbell rings: one that was rung when the state was saved counts for nothing.
    ///
    /// # Errors
    /// The device could not have been in this state.
    fn prepare(&self, state: &SavedDevice) -> Result<Restoration<'_>, StateError>;
}

/// The VMM's part in the first start of a device, such as connecting its doorbells to KVM. It may make system
/// calls, and waits for nobody.
pub type OnStart = Box<dyn FnOnce() + Send>;

/// A doorbell, and the 32-bit write that rings it.
#[derive(Debug, Clone)]
pub struct Doorbell {
    /// The offset of the register in the window.
    pub offset: u64,
    /// The value that the driver writes.
    pub value: u32,
    /// The event descriptor of the queue's doorbell.
    pub event: Arc<EventFd>,
}

#[cfg(test)]
mod shell_tests;
#[cfg(test)]
pub(super) mod state_tests;
#[cfg(test)]
mod tests;
