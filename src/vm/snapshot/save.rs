//! Writing a snapshot to files: of a machine, which runs on, or of a template.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::freeze::{self, Hold};
use super::state::MachineState;
use super::{SnapshotError, Template, TemplateParts, host, sections};
use crate::diagnosis::Subject;
use crate::kvm::Kvm;
use crate::memory::{FrozenRam, GuestRam, SaveError};
use crate::snapshot_files::{At, Draft, MEMORY, MachineFacts};
use crate::thread::ThreadKind;
use crate::vm::machine::Machine;
use crate::vm::shared::Shared;
use crate::vm::{Vm, VmHandle};

impl Vm {
    /// See [`VmHandle::snapshot_to`].
    ///
    /// # Errors
    /// See [`VmHandle::snapshot_to`].
    pub fn snapshot_to(&self, path: impl AsRef<Path>) -> Result<(), SnapshotError> {
        self.handle().snapshot_to(path)
    }
}

impl VmHandle {
    /// Writes a snapshot of the machine, from which [`Vm::restore`] goes on, to a folder at `path`. The
    /// machine stands still while its state is saved and its memory is copied to the file, and then runs on;
    /// hashes and the medium take longer. If it ends meanwhile, the snapshot is completed all the same.
    ///
    /// The path is free, an empty folder, or a snapshot, which the new one replaces in one step: at any
    /// instant, and after a crash of the process or the host, there is the old snapshot or the new one, and
    /// never a part. Machines that go on from the old snapshot keep its memory until they end.
    ///
    /// The folder has the whole memory of the guest, with all of its secrets. So only its owner may use it.
    ///
    /// ```no_run
    /// # fn doc(vm: &coracle::Vm) -> Result<(), coracle::SnapshotError> {
    /// vm.snapshot_to("snapshots/ready")?;
    /// let again = coracle::Vm::restore("snapshots/ready").start()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The machine has ended, has not been started, or is paused; it has a device whose state cannot be
    /// saved; there is something else at the path; or the files cannot be written. Nothing is left of the
    /// files, and the machine runs on.
    pub fn snapshot_to(&self, path: impl AsRef<Path>) -> Result<(), SnapshotError> {
        let path = path.as_ref().to_owned();
        let shared = self.shared.clone();
        on_own_thread(move || save_machine(&shared, &path))
    }
}

impl Template {
    /// Writes the template to a folder at `path`, as [`VmHandle::snapshot_to`] writes a machine.
    ///
    /// # Errors
    /// There is something else at the path, or the files cannot be written. Nothing is left of them.
    pub fn save_to(&self, path: impl AsRef<Path>) -> Result<(), SnapshotError> {
        let path = path.as_ref().to_owned();
        let parts = self.parts.clone();
        on_own_thread(move || {
            let TemplateParts { config, state, ram, disks: _, subject, recipe: _, kvm: _ } = &*parts;
            if let Some((device, _)) = state.virtio.first() {
                return Err(SnapshotError::DeviceToFile { device: device.clone() });
            }
            let draft = Draft::begin(&path)?;
            let content = save_ram(&draft, config.memory.bytes(), |file| FrozenRam::save(ram, file))?;
            finish(draft, MachineFacts::of(config), state, &content, subject)
        })
    }
}

/// Runs `work` on a thread that blocks all signals: a write beyond the process's limit of file sizes is an
/// error there, and does not end the process.
fn on_own_thread(
    work: impl FnOnce() -> Result<(), SnapshotError> + Send + 'static,
) -> Result<(), SnapshotError> {
    let thread = ThreadKind::Snapshot.spawn(work).map_err(SnapshotError::Thread)?;
    thread.join().unwrap_or_else(|_| Err(SnapshotError::Thread(std::io::ErrorKind::Other.into())))
}

/// A machine that stands still until this is dropped, and its state.
pub(super) struct Still {
    state: MachineState,
    facts: MachineFacts,
    subject: Subject,
    // Fields drop in declaration order: the memory is free before another snapshot may begin.
    ram: GuestRam,
    _hold: Hold,
}

impl Still {
    /// Saves the state. On an error, the machine runs on.
    pub(super) fn begin(shared: &Shared, machine: &Machine) -> Result<Still, SnapshotError> {
        freeze::check(shared, machine)?;
        if let Some(device) = machine.virtio.first_name() {
            return Err(SnapshotError::DeviceToFile { device });
        }
        FrozenRam::check(machine.config.memory)?;
        let format = Kvm::open()?.state_format()?;
        let hold = Hold::new(&shared.gate)?;
        let vcpus = shared.vcpus();
        freeze::park(&shared.gate, &vcpus)?;
        let state = freeze::save(shared, machine, &vcpus, format)?;
        let ram = machine.guest.as_ref().ok_or(SnapshotError::Ended)?.ram.clone();
        let (facts, subject) = (MachineFacts::of(&machine.config), machine.subject.clone());
        Ok(Still { state, facts, subject, ram, _hold: hold })
    }
}

/// Writes a snapshot of a machine. The control thread saves the state, and only that: the file may hang, and
/// nobody who stops the machine waits for it.
fn save_machine(shared: &Arc<Shared>, path: &Path) -> Result<(), SnapshotError> {
    let draft = Draft::begin(path)?;
    let still = shared.with_machine(Still::begin).ok_or(SnapshotError::Ended)??;
    let content = save_ram(&draft, still.facts.memory_mib << 20, |file| still.ram.save(file))?;
    let Still { state, facts, subject, ram, _hold: hold } = still;
    drop(ram);
    drop(hold);
    finish(draft, facts, &state, &content, &subject)
}

/// Copies RAM of `bytes` bytes to the draft, and returns the parts with content.
fn save_ram(
    draft: &Draft,
    bytes: u64,
    save: impl FnOnce(&std::fs::File) -> Result<Vec<Vec<Range<u64>>>, SaveError>,
) -> Result<Vec<Vec<Range<u64>>>, SnapshotError> {
    save(draft.memory(bytes)?).map_err(|error| match error {
        SaveError::Ram(error) => error.into(),
        SaveError::File(error) => At(draft.path()).write(MEMORY)(error).into(),
    })
}

fn finish(
    draft: Draft,
    facts: MachineFacts,
    state: &MachineState,
    content: &[Vec<Range<u64>>],
    subject: &Subject,
) -> Result<(), SnapshotError> {
    Ok(draft.finish(host::facts(), facts, &sections::encode(state, content, subject))?)
}
