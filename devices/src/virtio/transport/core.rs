//! The part of a transport that does not depend on its registers: status, features, queue set-up, activation.
//!
//! ```text
//! Reset -> ACKNOWLEDGE -> DRIVER -> FEATURES_OK -> DRIVER_OK     (a write may take several steps)
//!   ^                       features    queues       active <-> paused
//!   +--------- status = 0 (the handlers drain first) -----------+
//! ```
//!
//! The driver can write features between DRIVER and FEATURES_OK, and set up queues between FEATURES_OK and
//! DRIVER_OK. After that it can only reset the device. A write at the wrong time is ignored.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::OnStart;
use super::state::{CoreState, Own};
use crate::event_loop::Asked;
use crate::journal;
use crate::memory::GuestMemory;
use crate::state::StateError;
use crate::virtio::handler::{GroupId, HandlerGroup, HandlerHost, IfLate, StopFlag, Stuck};
use crate::virtio::irq::{IrqState, VirtioIrq};
use crate::virtio::queue::{ChainBudget, QueueConfig, QueueConfigError, QueueParts, QueueState, VirtQueue};
use crate::virtio::{ActivateContext, Queues, VirtioDevice, feature};

/// The parts that a transport is built from.
pub struct TransportParts {
    /// The device.
    pub device: Arc<dyn VirtioDevice>,
    /// The thread that its handlers run on.
    pub host: Arc<dyn HandlerHost>,
    /// Its interrupt.
    pub irq: VirtioIrq,
    /// A doorbell for each queue.
    pub doorbells: Vec<Arc<EventFd>>,
    /// The limit for the memory of the chains of all devices of the machine.
    pub chains: ChainBudget,
}

/// The state of one device as its driver has set it up.
pub struct TransportCore {
    device: Arc<dyn VirtioDevice>,
    host: Arc<dyn HandlerHost>,
    irq: VirtioIrq,
    doorbells: Vec<Arc<EventFd>>,
    chains: ChainBudget,
    /// `None` while the device has no machine, between two lives of a guest.
    memory: Option<GuestMemory>,
    /// `None` after the first start in the life of a guest.
    on_start: Option<OnStart>,
    offered: u64,
    accepted: u64,
    status: u8,
    queues: Vec<QueueConfig>,
    activity: Activity,
    /// Raised from the request for the queues until the device starts again.
    stop: StopFlag,
    /// The request for the queues that the handlers have not answered yet.
    asked: Option<Asked>,
}

/// The state of the device's queues.
enum Activity {
    /// The driver has not started the device.
    Off,
    /// Handlers serve the queues.
    Running(GroupId),
    /// The machine is paused, and the transport keeps the queues.
    Paused(Vec<VirtQueue>),
    /// Handlers that did not drain before a reset still use the guest's memory. The device stays dead, and
    /// its status never becomes 0.
    Lost,
}

impl TransportCore {
    /// Makes the state of a device that waits for its driver.
    pub fn new(parts: TransportParts) -> Self {
        let TransportParts { device, host, irq, doorbells, chains } = parts;
        let common = [feature::INDIRECT_DESC, feature::EVENT_IDX, feature::VERSION_1];
        let offered = common.iter().fold(device.features(), |features, bit| features | 1 << bit);
        let queues = device.queue_sizes().into_iter().map(QueueConfig::new).collect();
        Self {
            device,
            host,
            irq,
            doorbells,
            chains,
            memory: None,
            on_start: None,
            offered,
            accepted: 0,
            status: 0,
            queues,
            activity: Activity::Off,
            stop: StopFlag::default(),
            asked: None,
        }
    }

    /// Gives the device the guest's memory, and the VMM's part in its first start. The transport calls this
    /// before the guest runs.
    pub fn connect(&mut self, memory: GuestMemory, on_start: OnStart) {
        self.memory = Some(memory);
        self.on_start = Some(on_start);
    }

    /// Returns the features that the driver can accept.
    pub fn offered(&self) -> u64 {
        self.offered
    }

    /// Returns the status register (virtio 1.2, section 2.1).
    pub fn status(&self) -> u8 {
        let needs_reset = if self.irq.is_reset_needed() { NEEDS_RESET } else { 0 };
        self.status | needs_reset
    }

    /// Takes a write of the driver to the status register. The steps that are due are taken in their order. A
    /// value that takes a step back, or has a bit that no driver sets, is ignored.
    pub fn write_status(&mut self, value: u8) {
        if value == 0 {
            return self.reset();
        }
        let value = value & !NEEDS_RESET;
        if value & self.status != self.status || value & !DRIVER_BITS != 0 || self.status & FAILED != 0 {
            return;
        }
        if value & FAILED != 0 {
            self.status |= FAILED;
            return;
        }
        for (step, before) in STEPS {
            let is_new = value & step != 0 && self.status & step == 0;
            if is_new && self.status == before && !self.irq.is_reset_needed() && self.allows(step) {
                self.status |= step;
            }
        }
        if self.status & DRIVER_OK != 0 && matches!(self.activity, Activity::Off) {
            self.activate();
        }
    }

    /// Takes 32 bits of the features that the driver accepts: `half` 0 is bits 0 to 31, 1 is bits 32 to 63.
    pub fn write_features(&mut self, half: u32, bits: u32) {
        if self.status != ACKNOWLEDGE | DRIVER {
            return;
        }
        let bits = u64::from(bits);
        self.accepted = match half {
            0 => self.accepted & !0xffff_ffff | bits,
            1 => self.accepted & 0xffff_ffff | bits << 32,
            _ => self.accepted,
        };
    }

    /// Returns the set-up of a queue; `None` if there is no queue `index`.
    pub fn queue(&self, index: u32) -> Option<&QueueConfig> {
        self.queues.get(usize::try_from(index).ok()?)
    }

    /// Changes the set-up of a queue, if the driver may do so now: between FEATURES_OK and DRIVER_OK, and
    /// before the queue is ready.
    pub fn set_up_queue(&mut self, index: u32, change: impl FnOnce(&mut QueueConfig)) {
        if self.status != ACKNOWLEDGE | DRIVER | FEATURES_OK {
            return;
        }
        let queue = usize::try_from(index).ok().and_then(|index| self.queues.get_mut(index));
        if let Some(queue) = queue.filter(|queue| !queue.ready) {
            change(queue);
        }
    }

    /// Makes a queue ready, or not ready. A queue that cannot run does not become ready.
    pub fn set_queue_ready(&mut self, index: u32, ready: bool) {
        if self.status != ACKNOWLEDGE | DRIVER | FEATURES_OK {
            return;
        }
        let Some(index) = usize::try_from(index).ok().filter(|index| *index < self.queues.len()) else {
            return;
        };
        let is_possible = !ready || self.start_queue(index).is_some();
        if let Some(queue) = self.queues.get_mut(index) {
            queue.ready = ready && is_possible;
        }
    }

    /// Resets the device as a status of 0 does. Waits until the handlers have drained, but not longer than
    /// [`HAND_BACK_LIMIT`](crate::event_loop::HAND_BACK_LIMIT).
    pub fn reset(&mut self) {
        self.stop_handlers();
        let Self { device, irq, accepted, status, queues, activity, .. } = self;
        if matches!(activity, Activity::Lost) {
            return;
        }
        *activity = Activity::Off;
        (*accepted, *status) = (0, 0);
        for queue in queues {
            *queue = QueueConfig::new(queue.max_size);
        }
        // The device first, so that it reports no change of its configuration space after the reset.
        device.reset();
        irq.reset();
    }

    /// Resets the device and releases the memory, for a machine that is reset or ends.
    ///
    /// # Errors
    /// The handlers did not drain in time. They keep the memory.
    pub fn disconnect(&mut self) -> Result<(), Stuck> {
        self.reset();
        self.memory = None;
        self.on_start = None;
        match self.activity {
            Activity::Lost => Err(Stuck),
            Activity::Off | Activity::Running(_) | Activity::Paused(_) => Ok(()),
        }
    }

    /// Asks the handlers for the queues, without waiting for them. A [pause](Self::pause) or a
    /// [reset](Self::disconnect) has to follow; its limit counts from here.
    pub fn ask_for_queues(&mut self, if_late: IfLate) {
        if let (Activity::Running(group), None) = (&self.activity, &self.asked) {
            self.stop.raise();
            self.asked = Some(self.host.ask(*group, if_late));
        }
    }

    /// Takes the queues from their handlers until [`TransportCore::resume`]. Waits at most for
    /// [`HAND_BACK_LIMIT`](crate::event_loop::HAND_BACK_LIMIT).
    ///
    /// # Errors
    /// The handlers did not drain in time. They go on serving the queues.
    pub fn pause(&mut self) -> Result<(), Stuck> {
        if let Some(queues) = self.take_queues(IfLate::Continue) {
            let mut queues = queues?;
            // A handler may have left this to its next turn. What is left is in memory and in two indices.
            queues.iter_mut().for_each(VirtQueue::announce);
            self.activity = Activity::Paused(queues);
        }
        Ok(())
    }

    /// Makes new handlers for the queues that [`TransportCore::pause`] took, or that were restored.
    pub fn resume(&mut self) {
        match std::mem::replace(&mut self.activity, Activity::Off) {
            Activity::Paused(queues) => self.start(queues.into_iter().collect()),
            other => self.activity = other,
        }
    }

    /// Returns the state; `None` unless the device is paused or was never started.
    pub(super) fn save(&self) -> Option<CoreState> {
        let Self {
            device,
            host: _,
            irq,
            doorbells: _,
            chains: _,
            memory: _,
            on_start: _,
            offered: _,
            accepted,
            status,
            queues,
            activity,
            stop: _,
            asked: _,
        } = self;
        let running = match activity {
            Activity::Off => &[],
            Activity::Paused(queues) => queues.as_slice(),
            Activity::Running(_) | Activity::Lost => return None,
        };
        let queue = |(index, config): (usize, &QueueConfig)| {
            let running = running.iter().find(|queue| usize::from(queue.index()) == index);
            QueueState::new(*config, running.map(VirtQueue::positions))
        };
        Some(CoreState {
            kind: device.kind() as u32,
            status: *status,
            accepted: *accepted,
            is_active: matches!(activity, Activity::Paused(_)),
            irq: irq.save(),
            queues: queues.iter().enumerate().map(queue).collect(),
        })
    }

    /// Checks a state, with the rings in the guest's memory, and makes its queues. Nothing changes.
    pub(super) fn prepare(&self, state: &CoreState) -> Result<PreparedCore, StateError> {
        let own = Own { kind: self.device.kind() as u32, offered: self.offered, queues: &self.queues };
        let (mut queues, mut running) = (Vec::new(), Vec::new());
        for (index, (config, positions)) in state.check(&own)?.into_iter().enumerate() {
            if config.ready {
                let no_memory = || StateError::field("queue_ready", true, "0 without memory");
                let parts = self.queue_parts(index, state.accepted);
                let queue = parts
                    .ok_or_else(no_memory)
                    .and_then(|parts| config.start(parts).map_err(QueueConfigError::of_state));
                let queue = queue.map_err(|error| error.of_entry(index))?;
                running.extend(positions.map(|positions| queue.at(positions)));
            }
            queues.push(config);
        }
        let activity = if state.is_active { Activity::Paused(running) } else { Activity::Off };
        let CoreState { kind: _, status, accepted, is_active: _, irq, queues: _ } = state;
        Ok(PreparedCore { status: *status, accepted: *accepted, irq: irq.clone(), queues, activity })
    }

    /// Puts a device that was just [reset](Self::reset) into a state.
    pub(super) fn restore(&mut self, state: PreparedCore) {
        let PreparedCore { status, accepted, irq, queues, activity } = state;
        (self.status, self.accepted, self.queues, self.activity) = (status, accepted, queues, activity);
        self.irq.restore(&irq);
    }

    /// Returns whether handlers that have not drained keep the device from ever working again.
    pub(super) fn is_lost(&self) -> bool {
        matches!(self.activity, Activity::Lost)
    }

    /// Waits for the queues of a device that runs. Returns `None` for a device that does not run.
    fn take_queues(&mut self, if_late: IfLate) -> Option<Result<Vec<VirtQueue>, Stuck>> {
        self.ask_for_queues(if_late);
        self.asked.take().map(|asked| self.host.wait(asked))
    }

    fn stop_handlers(&mut self) {
        let Some(queues) = self.take_queues(IfLate::Drop) else { return };
        self.activity = match queues {
            Ok(_) => Activity::Off,
            Err(Stuck) => {
                journal!(Host Warn, "virtio {}: requests are still in flight; the device is lost", self.device.name());
                self.irq.needs_reset();
                Activity::Lost
            }
        };
    }

    fn allows(&self, step: u8) -> bool {
        let is_modern = self.accepted & (1 << feature::VERSION_1) != 0;
        step != FEATURES_OK || (is_modern && self.accepted & !self.offered == 0)
    }

    fn activate(&mut self) {
        let queues = 0..self.queues.len();
        let queues: Queues = queues
            .filter(|index| self.queues.get(*index).is_some_and(|queue| queue.ready))
            .filter_map(|index| self.start_queue(index))
            .collect();
        self.start(queues);
    }

    fn start(&mut self, queues: Queues) {
        let Some(memory) = self.memory.clone() else { return };
        let (irq, stop) = (self.irq.clone(), self.stop.clone());
        stop.lower();
        let context = ActivateContext { memory, queues, irq, features: self.accepted, stop };
        // Chains that the driver has offered before now are served although no doorbell rings for them.
        context.queues.iter().for_each(VirtQueue::ring);
        match self.device.activate(context) {
            Ok(handlers) => {
                let group = HandlerGroup { name: self.device.name(), irq: self.irq.clone(), handlers };
                self.activity = Activity::Running(self.host.start(group));
                if let Some(on_start) = self.on_start.take() {
                    on_start();
                }
            }
            Err(error) => {
                journal!(Guest Warn, "virtio {}: {error}", self.device.name());
                self.irq.needs_reset();
            }
        }
    }

    /// Returns the running queue as the driver has set it up; `None` when it cannot run.
    fn start_queue(&self, index: usize) -> Option<VirtQueue> {
        match self.queues.get(index)?.start(self.queue_parts(index, self.accepted)?) {
            Ok(queue) => Some(queue),
            Err(error) => {
                journal!(Guest Warn, "virtio {}, queue {index}: {error}", self.device.name());
                None
            }
        }
    }

    /// Returns the parts of a queue of a driver that has accepted `features`; `None` without memory.
    fn queue_parts(&self, index: usize, features: u64) -> Option<QueueParts> {
        let has = |bit: u32| features & (1 << bit) != 0;
        Some(QueueParts {
            index: u16::try_from(index).ok()?,
            memory: self.memory.clone()?,
            irq: self.irq.clone(),
            doorbell: self.doorbells.get(index)?.clone(),
            event_idx: has(feature::EVENT_IDX),
            indirect: has(feature::INDIRECT_DESC),
            chains: self.chains.clone(),
        })
    }
}

/// A state that has been checked.
pub(super) struct PreparedCore {
    status: u8,
    accepted: u64,
    irq: IrqState,
    queues: Vec<QueueConfig>,
    activity: Activity,
}

/// Bits of the status register (virtio 1.2, section 2.1).
pub(super) const ACKNOWLEDGE: u8 = 1;
pub(super) const DRIVER: u8 = 2;
pub(super) const DRIVER_OK: u8 = 4;
pub(super) const FEATURES_OK: u8 = 8;
const NEEDS_RESET: u8 = 64;
pub(super) const FAILED: u8 = 128;
const DRIVER_BITS: u8 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;

/// Each step of a driver's initialization, and the status in which it is taken (virtio 1.2, section 3.1.1).
const STEPS: [(u8, u8); 4] = [
    (ACKNOWLEDGE, 0),
    (DRIVER, ACKNOWLEDGE),
    (FEATURES_OK, ACKNOWLEDGE | DRIVER),
    (DRIVER_OK, ACKNOWLEDGE | DRIVER | FEATURES_OK),
];
