//! Writing a snapshot to files: of a machine, which runs on, or of a template.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use coracle_devices::journal;

use super::freeze::{self, Hold};
use super::sections::RamContent;
use super::state::MachineState;
use super::virtio::Devices;
use super::{SnapshotError, Template, TemplateParts, host, sections, virtio};
use crate::config::DiskAccess;
use crate::diagnosis::Subject;
use crate::kvm::Kvm;
use crate::memory::{FrozenRam, GuestRam, SaveError};
use crate::snapshot_files::{At, Draft, DraftDevice, MEMORY, MachineFacts};
use crate::thread::ThreadKind;
use crate::virtio::{Link, TemplateDevice};
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
            let TemplateParts { config, state, ram, devices, origin: _, subject, recipe: _, kvm: _ } =
                &*parts;
            let draft = Draft::begin(&path)?;
            let content = save_ram(&draft, config.memory.bytes(), |file| FrozenRam::save(ram, file))?;
            let stored = virtio::store(&draft, devices, &state.virtio)?;
            finish(draft, MachineFacts::of(config), state, &RamContent::Whole(content), subject, stored)
        })
    }
}

/// Checks that a snapshot can be written to `path`, without writing one.
///
/// # Errors
/// There is something else at the path, or the host makes no files there.
pub fn check_free(path: impl AsRef<Path>) -> Result<(), SnapshotError> {
    drop(Draft::begin(path.as_ref())?);
    Ok(())
}

/// Runs `work` on a thread that blocks all signals: a write beyond the process's limit of file sizes is an
/// error there, and does not end the process.
pub(super) fn on_own_thread(
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
    devices: Vec<TemplateDevice>,
    // Fields drop in declaration order: the memory is free before another snapshot may begin.
    ram: GuestRam,
    held: Held,
}

impl Still {
    /// Saves the state. On an error, the machine runs on.
    pub(super) fn begin(shared: &Arc<Shared>, machine: &Machine) -> Result<Still, SnapshotError> {
        freeze::check(shared, machine)?;
        FrozenRam::check(machine.config.memory)?;
        let format = Kvm::open()?.state_format()?;
        let held = Held::new(shared)?;
        let vcpus = shared.vcpus();
        shared.devices_are_kept.store(true, Ordering::Release);
        freeze::park(&shared.gate, &vcpus)?;
        machine.virtio.pause().map_err(|device| SnapshotError::DeviceBusy { device })?;
        let state = freeze::save(shared, machine, &vcpus, format)?;
        let ram = machine.guest.as_ref().ok_or(SnapshotError::Ended)?.ram.clone();
        let (facts, subject) = (MachineFacts::of(&machine.config), machine.subject.clone());
        Ok(Still { state, facts, subject, devices: machine.virtio.template(), ram, held })
    }
}

/// Keeps the vCPUs out of the guest and the devices off their queues, until it is dropped.
struct Held {
    shared: Arc<Shared>,
    hold: Option<Hold>,
}

impl Held {
    fn new(shared: &Arc<Shared>) -> Result<Held, SnapshotError> {
        let hold = Hold::new(&shared.gate)?;
        Ok(Held { shared: shared.clone(), hold: Some(hold) })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Keeps the owner's pause and resume away, which leave the devices alone while a snapshot has them.
        let _no_resume = self.shared.vcpus();
        self.shared.devices_are_kept.store(false, Ordering::Release);
        if let Some(virtio) = self.shared.virtio().filter(|_| self.shared.gate.is_resumed()) {
            virtio.resume();
        }
        drop(self.hold.take());
    }
}

/// Writes a snapshot of a machine. The control thread saves the state, and only that: the file may hang, and
/// nobody who stops the machine waits for it.
fn save_machine(shared: &Arc<Shared>, path: &Path) -> Result<(), SnapshotError> {
    let draft = Draft::begin(path)?;
    let own = shared.clone();
    let begin = move |_: &Shared, machine: &Machine| Still::begin(&own, machine);
    let still = shared.with_machine(begin).ok_or(SnapshotError::Ended)??;
    let content = save_ram(&draft, still.facts.memory_mib << 20, |file| still.ram.save(file))?;
    let stored = virtio::store(&draft, &still.devices, &still.state.virtio)?;
    let Still { state, facts, subject, devices, ram, held } = still;
    drop(ram);
    drop(held);
    warn_of_written_disks(shared, path, &devices);
    finish(draft, facts, &state, &RamContent::Whole(content), &subject, stored)
}

/// Copies RAM of `bytes` bytes to the draft, and returns what `save` does: the parts with content.
pub(super) fn save_ram<T>(
    draft: &Draft,
    bytes: u64,
    save: impl FnOnce(&std::fs::File) -> Result<T, SaveError>,
) -> Result<T, SnapshotError> {
    save(draft.memory(bytes)?).map_err(|error| match error {
        SaveError::Ram(error) => error.into(),
        SaveError::File(error) => At(draft.path()).write(MEMORY)(error).into(),
    })
}

pub(super) fn finish(
    draft: Draft,
    facts: MachineFacts,
    state: &MachineState,
    content: &RamContent,
    subject: &Subject,
    (stored, devices): (Devices, Vec<DraftDevice>),
) -> Result<(), SnapshotError> {
    let sections = sections::encode(state, content, subject, &stored);
    Ok(draft.finish(host::facts(), facts, devices, &sections)?)
}

/// Warns of disks that the guest of a machine that runs on may write to.
pub(super) fn warn_of_written_disks(shared: &Shared, path: &Path, devices: &[TemplateDevice]) {
    let _journal = shared.journal.enter();
    for TemplateDevice { id, link, .. } in devices {
        if let Link::Disk(known, config) = link
            && !known.is_read_only
            && config.access == DiskAccess::ReadWrite
        {
            journal!(Host Warn,
                "snapshot {}: the machine runs on with the disk {id} ({}); once its guest has written to it, a restore \
                 needs a copy of the file from now",
                path.display(),
                config.path.display()
            );
        }
    }
}
