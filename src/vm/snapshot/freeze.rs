//! Saving the state of a machine, and making a template of it. The control thread does both, between two of
//! its waits, so that neither a reset nor an ending comes in between.

use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use super::state::MachineState;
use super::{SnapshotError, Template, TemplateParts, time};
use crate::agent::AgentAttachment;
use crate::config::VmConfig;
use crate::diagnosis::Subject;
use crate::gate::Gate;
use crate::kvm::{Kvm, StateFormat};
use crate::vcpu::VcpuHandle;
use crate::virtio::{TemplateDevice, VirtioDevices};
use crate::vm::machine::{Guest, Machine};
use crate::vm::outcome::Ending;
use crate::vm::recipe::Recipe;
use crate::vm::shared::Shared;
use crate::vm::vcpus::STOP_LIMIT;
use crate::vm::{Vm, VmHandle};

impl Vm {
    /// See [`VmHandle::freeze`].
    ///
    /// # Errors
    /// See [`VmHandle::freeze`].
    pub fn freeze(&self) -> Result<Template, SnapshotError> {
        self.handle().freeze()
    }
}

impl VmHandle {
    /// Makes a template of the machine, which ends ([`Ending::Stopped`]) without its guest noticing: every
    /// [`fork`](Template::fork) goes on from here.
    ///
    /// # Errors
    /// The machine has ended, has not been started, or is paused; it has a device whose state cannot be
    /// saved; or the host has no memory for the template.
    pub fn freeze(&self) -> Result<Template, SnapshotError> {
        loop {
            let (done, template) = mpsc::sync_channel(1);
            let begin = move |shared: &Shared, machine: &Machine| Freezing::begin(shared, machine, done);
            match self.shared.with_machine(begin).ok_or(SnapshotError::Ended)? {
                // An ending came first. If it is a reset that the machine survives, the next guest is frozen.
                Err(SnapshotError::Ended) => {}
                Err(error) => return Err(error),
                Ok(()) => return template.recv().map_err(|_| SnapshotError::Ended)?,
            }
        }
    }
}

/// A machine that ends in order to become a template.
pub(in crate::vm) struct Freezing {
    parts: Ingredients,
    done: SyncSender<Result<Template, SnapshotError>>,
}

/// The parts of a template, apart from the RAM, in which the machine still is.
struct Ingredients {
    state: MachineState,
    devices: Vec<TemplateDevice>,
    kvm: Kvm,
    config: VmConfig,
    subject: Subject,
    recipe: Option<Arc<Recipe>>,
}

impl Freezing {
    /// Saves the state and ends the machine. On an error, the machine runs on.
    #[inline(never)]
    fn begin(
        shared: &Shared,
        machine: &Machine,
        done: SyncSender<Result<Template, SnapshotError>>,
    ) -> Result<(), SnapshotError> {
        check(shared, machine)?;
        let kvm = Kvm::open()?;
        let _hold = Hold::new(&shared.gate)?;
        // The lock keeps a pause and a resume away from the devices until it is certain how this ends.
        let vcpus = shared.vcpus();
        park(&shared.gate, &vcpus)?;
        let devices = StoppedDevices::new(&machine.virtio)?;
        let parts = Ingredients {
            state: save(shared, machine, &vcpus, kvm.state_format()?)?,
            devices: machine.virtio.template(),
            kvm,
            config: machine.config.clone(),
            subject: machine.subject.clone(),
            recipe: machine.recipe.clone(),
        };
        if !shared.gate.post_first(Ending::Stopped) {
            return Err(SnapshotError::Ended);
        }
        devices.keep();
        *shared.freezing.lock().unwrap_or_else(PoisonError::into_inner) = Some(Freezing { parts, done });
        Ok(())
    }

    /// Makes the template of the guest that was left. Whoever has waited for it gets it.
    #[inline(never)]
    pub(in crate::vm) fn finish(self, guest: Guest) {
        let Freezing { parts: Ingredients { state, devices, kvm, config, subject, recipe }, done } = self;
        let Guest { kvm: virtual_machine, ram } = guest;
        drop(virtual_machine);
        let template = ram.freeze().map_err(SnapshotError::from).map(|ram| {
            let parts = TemplateParts { config, state, ram, devices, origin: None, subject, recipe, kvm };
            Template { parts: parts.into() }
        });
        // Sending fails if the caller has gone; then nobody wants the template.
        let _ = done.try_send(template);
    }
}

/// Checks that the state of the machine can be saved.
pub(super) fn check(shared: &Shared, machine: &Machine) -> Result<(), SnapshotError> {
    if shared.gate.started().is_none() {
        return Err(SnapshotError::NotStarted);
    }
    if !shared.gate.is_resumed() {
        return Err(SnapshotError::Paused);
    }
    machine.virtio.check_can_be_saved().map_err(|device| SnapshotError::Device { device })
}

/// Waits until the vCPUs have left the guest.
pub(super) fn park(gate: &Gate, vcpus: &[VcpuHandle]) -> Result<(), SnapshotError> {
    vcpus.iter().for_each(VcpuHandle::kick);
    if gate.wait_parked(vcpus.len() as u32, STOP_LIMIT) { Ok(()) } else { Err(SnapshotError::Busy) }
}

/// Saves the state of a machine whose vCPUs are held and whose devices have stopped.
pub(super) fn save(
    shared: &Shared,
    machine: &Machine,
    vcpus: &[VcpuHandle],
    format: &'static StateFormat,
) -> Result<MachineState, SnapshotError> {
    let mut answers = Vec::new();
    let post = || answers.extend(vcpus.iter().map(|vcpu| vcpu.ask_state(format)));
    // The gate may be closed by now.
    if !shared.gate.ask_held(vcpus.len() as u32, post) {
        return Err(SnapshotError::Ended);
    }
    let deadline = Instant::now() + STOP_LIMIT;
    let saved = answers.into_iter().map(|answer| {
        let left = deadline.saturating_duration_since(Instant::now());
        Ok(answer.recv_timeout(left).map_err(|_| SnapshotError::Busy)??)
    });
    let saved = saved.collect::<Result<_, SnapshotError>>()?;
    let guest = machine.guest.as_ref().ok_or(SnapshotError::Ended)?;
    let legacy = machine.platform.save().into_iter().map(|(name, state)| (name.to_owned(), state)).collect();
    let virtio = machine.virtio.save().map_err(|device| SnapshotError::Device { device })?;
    let agent = shared.agent.as_ref().and_then(AgentAttachment::save).map(|session| session.token);
    Ok(MachineState { vcpus: saved, clock: time::dated(guest.kvm.clock()?), legacy, virtio, agent })
}

/// Keeps the virtio devices off their queues, until it is dropped.
pub(super) struct StoppedDevices<'a> {
    devices: Option<&'a VirtioDevices>,
}

impl StoppedDevices<'_> {
    pub(super) fn new(devices: &VirtioDevices) -> Result<StoppedDevices<'_>, SnapshotError> {
        let stopped = StoppedDevices { devices: Some(devices) };
        // Dropping it lets the others go on if one does not stop.
        devices.pause().map_err(|device| SnapshotError::DeviceBusy { device })?;
        Ok(stopped)
    }

    /// Keeps them off for good.
    fn keep(mut self) {
        self.devices = None;
    }
}

impl Drop for StoppedDevices<'_> {
    fn drop(&mut self) {
        if let Some(devices) = self.devices {
            devices.resume();
        }
    }
}

/// Keeps the vCPUs out of the guest, until it is dropped.
pub(super) struct Hold(Arc<Gate>);

impl Hold {
    /// Takes them out.
    ///
    /// # Errors
    /// Another snapshot keeps them out.
    pub(super) fn new(gate: &Arc<Gate>) -> Result<Hold, SnapshotError> {
        gate.hold_for_snapshot().then(|| Hold(gate.clone())).ok_or(SnapshotError::InProgress)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.release_from_snapshot();
    }
}
