//! The state that the control thread of a machine shares with its handles: the gate, the vCPUs' threads, the
//! outcome.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use coracle_devices::journal::Journal;
use coracle_devices::legacy::event::{Event, EventRegister};
use coracle_devices::virtio::console::TerminalSize;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::events::{Event as LifeEvent, Subscribers};
use super::outcome::Outcome;
use super::requests::Requests;
use super::snapshot::Freezing;
use super::vcpus::STOP_LIMIT;
use crate::agent::AgentAttachment;
use crate::gate::Gate;
use crate::vcpu::VcpuHandle;
use crate::virtio::VirtioDevices;

/// The state that the control thread shares with the handles.
pub(super) struct Shared {
    pub(super) gate: Arc<Gate>,
    pub(super) outcome_event: EventFd,
    pub(super) events: Subscribers,
    pub(super) requests: Requests,
    /// Set once the machine ends in order to become a template.
    pub(super) freezing: Mutex<Option<Freezing>>,
    /// Whether the devices stay off their queues for a snapshot that is being copied. It changes under the
    /// lock of the vCPUs.
    pub(super) devices_are_kept: AtomicBool,
    pub(super) console_path: Option<PathBuf>,
    /// The destination of this machine's log lines.
    pub(super) journal: Arc<Journal>,
    outcome: Mutex<Option<Outcome>>,
    published: Condvar,
    /// Empty until the threads start, and again while they are joined.
    vcpus: Mutex<Vec<VcpuHandle>>,
    /// Weak, so that the devices go with the machine, whoever holds a handle: what they have open on the host
    /// is closed by the time the outcome is available.
    virtio: Weak<VirtioDevices>,
    /// The agent, if the machine has one.
    pub(super) agent: Option<AgentAttachment>,
    /// The device that reports the power button, if the machine has one.
    button: Option<Arc<EventRegister>>,
}

impl Shared {
    pub(super) fn new(
        gate: Arc<Gate>,
        console_path: Option<PathBuf>,
        button: Option<Arc<EventRegister>>,
        virtio: &Arc<VirtioDevices>,
        agent: Option<AgentAttachment>,
    ) -> io::Result<Shared> {
        Ok(Shared {
            gate,
            agent,
            button,
            virtio: Arc::downgrade(virtio),
            outcome_event: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
            events: Subscribers::default(),
            requests: Requests::default(),
            freezing: Mutex::new(None),
            devices_are_kept: AtomicBool::new(false),
            console_path,
            journal: Journal::current(),
            outcome: Mutex::new(None),
            published: Condvar::new(),
            vcpus: Mutex::new(Vec::new()),
        })
    }

    /// Takes over the vCPU threads, which wait at the gate.
    pub(super) fn adopt(&self, vcpus: Vec<VcpuHandle>) {
        *self.vcpus() = vcpus;
    }

    /// Locks the list of vCPUs. A reset holds this lock until the new guest exists.
    pub(super) fn vcpus(&self) -> MutexGuard<'_, Vec<VcpuHandle>> {
        self.vcpus.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the vCPUs out of the guest and the devices off their queues, and sends `event`. Returns `false`,
    /// without the event, if the guest was resumed meanwhile, has ended, or did not stop in time.
    pub(super) fn pause(&self, event: LifeEvent) -> bool {
        let _journal = self.journal.enter();
        self.gate.pause();
        // A reset may come in between. The new guest then waits at the gate and cannot reset again, so two
        // rounds are enough.
        for _ in 0..2 {
            let vcpus = self.vcpus();
            vcpus.iter().for_each(VcpuHandle::kick);
            let count = vcpus.len() as u32;
            drop(vcpus);
            if self.gate.wait_paused(count, STOP_LIMIT) {
                return self.pause_devices(event);
            }
            if self.gate.is_resumed() || !self.gate.wait_restarted(STOP_LIMIT) {
                return false;
            }
        }
        false
    }

    /// Takes the devices off their queues, unless another thread has resumed the guest meanwhile. The event
    /// is sent under the lock that [`Shared::resume`] takes too, so that the last event is the last change.
    fn pause_devices(&self, event: LifeEvent) -> bool {
        // Wait for a reset to end: its new guest's devices are not connected yet.
        let _no_reset = self.vcpus();
        // A closed or held gate is not a pause: devices without queues would stall a guest that runs.
        let paused = self.gate.is_paused() && self.virtio().is_some_and(|virtio| virtio.pause().is_ok());
        if paused {
            self.events.send(event);
        }
        paused
    }

    pub(super) fn resume(&self) {
        let _journal = self.journal.enter();
        let _no_reset = self.vcpus();
        // The devices of a machine that becomes a template stay off its memory.
        let is_freezing = self.freezing.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        // Those of a machine that is being saved go on when it does.
        let stay = is_freezing || self.devices_are_kept.load(Ordering::Acquire);
        if let Some(virtio) = self.virtio().filter(|_| !stay) {
            virtio.resume();
        }
        self.gate.open();
        self.events.send(LifeEvent::Resumed);
    }

    /// Returns the devices, unless the machine has ended.
    pub(super) fn virtio(&self) -> Option<Arc<VirtioDevices>> {
        self.virtio.upgrade()
    }

    pub(super) fn resize_console(&self, size: TerminalSize) -> bool {
        let _journal = self.journal.enter();
        let virtio = self.virtio();
        let console = virtio.as_ref().and_then(|virtio| virtio.console());
        console.map(|console| console.resize(size)).is_some()
    }

    /// Returns whether the machine has a power button.
    pub(super) fn has_power_button(&self) -> bool {
        self.button.is_some()
    }

    pub(super) fn press_power_button(&self) -> bool {
        let Some(button) = &self.button else { return false };
        button.raise(Event::PowerButton);
        true
    }

    pub(super) fn wait_outcome(&self) -> Outcome {
        let mut slot = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(outcome) = &*slot {
                return outcome.clone();
            }
            slot = self.published.wait(slot).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn wait_outcome_for(&self, limit: Duration) -> Option<Outcome> {
        let slot = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = self.published.wait_timeout_while(slot, limit, |slot| slot.is_none());
        wait.unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Publishes the outcome to everyone who waits for it.
    pub(super) fn report(&self, outcome: Outcome) {
        let end = LifeEvent::Ended(Box::new(outcome.clone()));
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        self.published.notify_all();
        // A write fails only if the counter is at its maximum, and then the descriptor is readable anyway.
        let _ = self.outcome_event.write(1);
        self.events.send(end);
    }
}
