//! Machines that go on from one that runs on.

use std::time::Instant;

use super::fork::Restored;
use super::freeze::{self, Hold, StoppedDevices};
use super::{Fork, SnapshotError, Template, TemplateParts, identity};
use crate::gate::GateState;
use crate::kvm::Kvm;
use crate::memory::{FrozenRam, MemoryError, NextLayer};
use crate::virtio::NewLayers;
use crate::vm::machine::{Guest, Machine};
use crate::vm::shared::Shared;
use crate::vm::{BuildError, Vm, VmHandle};

impl Vm {
    /// See [`VmHandle::branch`].
    ///
    /// ```no_run
    /// # fn doc(vm: &coracle::Vm) -> Result<(), coracle::SnapshotError> {
    /// let child = vm.branch(|fork| fork.console_piped())?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`VmHandle::branch`].
    pub fn branch(&self, adapt: impl FnOnce(Fork) -> Fork) -> Result<Vm, SnapshotError> {
        self.handle().branch(adapt)
    }

    /// See [`VmHandle::to_template`].
    ///
    /// # Errors
    /// See [`VmHandle::to_template`].
    pub fn to_template(&self) -> Result<Template, SnapshotError> {
        self.handle().to_template()
    }
}

impl VmHandle {
    /// Starts a machine that goes on from the present state of this one, which runs on beside it. `adapt`
    /// gets the settings of the new machine. Neither sees what the other does from then on.
    ///
    /// The guest stands still while its state is saved and the memory that it has written since its start, or
    /// since the last such call, is copied. Both machines then share what was copied, and what they do not
    /// write to. Disks with an overlay go on with a new one each, which has the limit of the first.
    ///
    /// A disk that the guest writes to without one, a network card, and a vsock device with a socket need an
    /// end on the host for the new machine, as in [`Template::fork`]: [`Fork::disk`], [`Fork::net`],
    /// [`Fork::vsock`]. The copy of such a disk is older than the call, so the guest must not write to it
    /// meanwhile.
    ///
    /// What the guest's console had not printed yet is printed by this machine alone.
    ///
    /// # Errors
    /// The machine has ended, has not been started, or is paused; another snapshot of it is being made; it
    /// has a device whose state cannot be saved, or memory in reserved huge pages; or a device of the new
    /// machine has no end on the host, or the new machine cannot be built. This machine runs on.
    pub fn branch(&self, adapt: impl FnOnce(Fork) -> Fork) -> Result<Vm, SnapshotError> {
        let look = |shared: &Shared, machine: &Machine| {
            freeze::check(shared, machine)?;
            Ok::<_, SnapshotError>((machine.config.clone(), machine.virtio.template()))
        };
        // While the guest still runs, so that what cannot be shared is refused without a pause.
        let (config, devices) = self.shared.with_machine(look).ok_or(SnapshotError::Ended)??;
        let has_agent = config.agent.is_some();
        let fork = adapt(Fork::new(config));
        fork.check(&devices, has_agent)?;
        let limit = fork.identity_limit();
        let template = self.to_template()?;
        let restored = Restored::new(&template.parts, &fork)?;
        let vm = fork.build(&template.parts, restored, None)?;
        vm.handle().resume();
        identity::wait(&vm, &template.parts.state, (limit, Instant::now()))?;
        Ok(vm)
    }

    /// Makes a template of the present state of the machine, which runs on. Several machines go on from it
    /// with one call of [`Template::fork`], all of them or none. See [`VmHandle::branch`].
    ///
    /// ```no_run
    /// # fn doc(vm: &coracle::Vm) -> Result<(), coracle::SnapshotError> {
    /// let children = vm.to_template()?.fork(16, |_, fork| fork.console_piped())?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`VmHandle::branch`], but for the new machine.
    pub fn to_template(&self) -> Result<Template, SnapshotError> {
        loop {
            // Made here, because the file system may let this thread wait.
            let layers = self.shared.virtio().ok_or(SnapshotError::Ended)?.new_layers();
            let layers = layers.map_err(BuildError::from)?;
            let work = move |shared: &Shared, machine: &Machine| template(shared, machine, layers);
            match self.shared.with_machine(work).ok_or(SnapshotError::Ended)? {
                // An ending came first. If it is a reset that the machine survives, the next guest is taken.
                Err(SnapshotError::Ended) => {}
                result => return result,
            }
        }
    }
}

/// Shares the memory of a machine that stands still. A large memory takes a while, so an ending that is asked
/// for meanwhile comes first.
pub(super) fn share(
    shared: &Shared,
    guest: &Guest,
    layer: Option<NextLayer>,
    before: &mut Option<FrozenRam>,
) -> Result<FrozenRam, SnapshotError> {
    let is_over = || shared.gate.state() == GateState::Closed;
    guest.ram.branch(layer, before, &is_over).map_err(|error| match error {
        MemoryError::Over => SnapshotError::Ended,
        error => error.into(),
    })
}

/// Saves the state of the machine and shares its memory. The control thread does this between two of its
/// waits. In any case, the machine runs on.
#[inline(never)]
fn template(shared: &Shared, machine: &Machine, layers: NewLayers) -> Result<Template, SnapshotError> {
    freeze::check(shared, machine)?;
    FrozenRam::check(machine.config.memory)?;
    let kvm = Kvm::open()?;
    let guest = machine.guest.as_ref().ok_or(SnapshotError::Ended)?;
    // While the guest still runs.
    let layer = guest.ram.next_layer();
    // Dropped when it runs again.
    let mut before = None;
    let _hold = Hold::new(&shared.gate)?;
    // The lock keeps a pause and a resume away from the devices until they go on.
    let vcpus = shared.vcpus();
    freeze::park(&shared.gate, &vcpus)?;
    let _devices = StoppedDevices::new(&machine.virtio)?;
    let state = freeze::save(shared, machine, &vcpus, kvm.state_format()?)?;
    let ram = share(shared, guest, layer, &mut before)?;
    let devices = machine.virtio.branch(layers)?;
    let (config, subject, recipe) = (machine.config.clone(), machine.subject.clone(), machine.recipe.clone());
    Ok(Template {
        parts: TemplateParts { config, state, ram, devices, subject, recipe, kvm, origin: None }.into(),
    })
}
