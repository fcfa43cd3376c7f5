//! Snapshots that have only the memory that has changed since another one, and merging them again.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::chain::ChainRam;
use super::freeze::{self, Hold, StoppedDevices};
use super::restore::Loaded;
use super::save::{finish, on_own_thread, save_ram, warn_of_written_disks};
use super::sections::{self, RamContent};
use super::state::MachineState;
use super::{SnapshotError, branch, virtio};
use crate::diagnosis::Subject;
use crate::kvm::Kvm;
use crate::memory::{FrozenRam, WeakRam};
use crate::snapshot_files::{
    At, Draft, MAX_CHAIN, MachineFacts, Manifest, ParentFacts, SnapshotFileError, check_not_needed,
};
use crate::virtio::{NewLayers, TemplateDevice};
use crate::vm::machine::Machine;
use crate::vm::shared::Shared;
use crate::vm::{BuildError, Vm, VmHandle};

impl Vm {
    /// See [`VmHandle::snapshot_base`].
    ///
    /// # Errors
    /// See [`VmHandle::snapshot_base`].
    pub fn snapshot_base(&self, path: impl AsRef<Path>) -> Result<(), SnapshotError> {
        self.handle().snapshot_base(path)
    }

    /// See [`VmHandle::snapshot_over`].
    ///
    /// # Errors
    /// See [`VmHandle::snapshot_over`].
    pub fn snapshot_over(
        &self,
        parent: impl AsRef<Path>,
        path: impl AsRef<Path>,
    ) -> Result<(), SnapshotError> {
        self.handle().snapshot_over(parent, path)
    }
}

impl VmHandle {
    /// Writes a snapshot of the machine, as [`VmHandle::snapshot_to`] does, over which others can lie:
    /// [`VmHandle::snapshot_over`].
    ///
    /// The machine stands still only while its memory is copied to a memory file, as for a
    /// [`branch`](VmHandle::branch), and runs on over that. It is slower at first, since it touches each page
    /// as if for the first time.
    ///
    /// # Errors
    /// As [`VmHandle::snapshot_to`]; or the memory is in reserved huge pages.
    pub fn snapshot_base(&self, path: impl AsRef<Path>) -> Result<(), SnapshotError> {
        self.write_layer(path.as_ref(), None)
    }

    /// Writes a snapshot of the machine that has only the memory that has changed since the snapshot in the
    /// folder at `parent`: the one that the machine was restored from, or the last that
    /// [`snapshot_base`](VmHandle::snapshot_base) or this call has written of it. Up to 64 can lie over each
    /// other.
    ///
    /// A restore needs the parent's folder, unchanged and under the same name, and those of its parents, in
    /// one directory that [`Restore::parents_in`](crate::Restore::parents_in) names. [`snapshot::merge`]
    /// makes a snapshot with all memory of them.
    ///
    /// ```no_run
    /// # fn doc(vm: &coracle::Vm) -> Result<(), coracle::SnapshotError> {
    /// vm.snapshot_base("snapshots/0")?;
    /// vm.snapshot_over("snapshots/0", "snapshots/1")?;
    /// vm.snapshot_over("snapshots/1", "snapshots/2")?;
    /// let again = coracle::Vm::restore("snapshots/2").parents_in("snapshots").start()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// [`snapshot::merge`]: crate::snapshot::merge
    ///
    /// # Errors
    /// As [`VmHandle::snapshot_base`]; or the machine does not go on from the snapshot at `parent`, or 64 lie
    /// over each other already.
    pub fn snapshot_over(
        &self,
        parent: impl AsRef<Path>,
        path: impl AsRef<Path>,
    ) -> Result<(), SnapshotError> {
        self.write_layer(path.as_ref(), Some(parent.as_ref()))
    }

    fn write_layer(&self, path: &Path, parent: Option<&Path>) -> Result<(), SnapshotError> {
        let (path, parent) = (path.to_owned(), parent.map(Path::to_owned));
        let shared = self.shared.clone();
        on_own_thread(move || write(&shared, &path, parent.as_deref()))
    }
}

/// The state of a machine that runs on, with its memory as it was.
struct Layer {
    state: MachineState,
    facts: MachineFacts,
    subject: Subject,
    /// With the blocks of the disks as they were.
    devices: Vec<TemplateDevice>,
    ram: FrozenRam,
    machine_ram: WeakRam,
    over: Option<Changes>,
}

/// The changes since a parent.
struct Changes {
    /// The ranges of each region.
    ranges: Vec<Vec<Range<u64>>>,
    /// The ids of the snapshots below, the newest first.
    below: Vec<[u8; 16]>,
}

impl Layer {
    /// Saves the state. In any case, the machine runs on.
    fn take(
        shared: &Shared,
        machine: &Machine,
        parent: Option<&(ParentFacts, PathBuf)>,
        layers: NewLayers,
    ) -> Result<Layer, SnapshotError> {
        freeze::check(shared, machine)?;
        FrozenRam::check(machine.config.memory)?;
        let format = Kvm::open()?.state_format()?;
        let guest = machine.guest.as_ref().ok_or(SnapshotError::Ended)?;
        // While the guest still runs.
        let layer = guest.ram.next_layer();
        // Dropped when it runs again.
        let mut before = None;
        let _hold = Hold::new(&shared.gate)?;
        let vcpus = shared.vcpus();
        freeze::park(&shared.gate, &vcpus)?;
        let _devices = StoppedDevices::new(&machine.virtio)?;
        let state = freeze::save(shared, machine, &vcpus, format)?;
        let ram = branch::share(shared, guest, layer, &mut before)?;
        let devices = machine.virtio.branch(layers)?;
        let over = parent.map(|(parent, path)| {
            let baseline = ram.baseline().filter(|base| base.ids.first() == Some(parent.id.bytes()));
            let other = || SnapshotError::OtherParent { parent: path.clone(), id: parent.id };
            let baseline = baseline.ok_or_else(other)?;
            let (ranges, below) = (ram.changes_since(baseline), baseline.ids.clone());
            Ok::<_, SnapshotError>(Changes { ranges, below })
        });
        let over = over.transpose()?;
        let (facts, subject) = (MachineFacts::of(&machine.config), machine.subject.clone());
        Ok(Layer { state, facts, subject, devices, ram, machine_ram: guest.ram.downgrade(), over })
    }
}

fn write(shared: &Arc<Shared>, path: &Path, parent: Option<&Path>) -> Result<(), SnapshotError> {
    let facts = |parent: &Path| Ok::<_, SnapshotFileError>((ParentFacts::of(parent)?, parent.to_owned()));
    let parent = parent.map(facts).transpose()?;
    let mut draft = Draft::begin(path)?;
    let of_parent = parent.clone();
    // Made here, because the file system may let this thread wait.
    let layers = shared.virtio().ok_or(SnapshotError::Ended)?.new_layers().map_err(BuildError::from)?;
    let take =
        move |shared: &Shared, machine: &Machine| Layer::take(shared, machine, of_parent.as_ref(), layers);
    let layer = shared.with_machine(take).ok_or(SnapshotError::Ended)??;
    let Layer { state, facts, subject, devices, ram, machine_ram, over } = layer;
    let bytes = facts.memory_mib << 20;
    let mut ids = vec![*draft.id().bytes()];
    let content = match (over, parent) {
        (Some(Changes { ranges, below }), Some((parent, _))) => {
            if below.len() >= MAX_CHAIN {
                return Err(SnapshotFileError::ChainTooLong { folder: path.to_owned() }.into());
            }
            check_not_needed(path, &below)?;
            ids.extend(below);
            draft.lie_over(parent);
            save_ram(&draft, bytes, |file| ram.save_ranges(&ranges, file))?;
            RamContent::Changes(ranges)
        }
        _ => RamContent::Whole(save_ram(&draft, bytes, |file| FrozenRam::save(&ram, file))?),
    };
    let stored = virtio::store(&draft, &devices, &state.virtio)?;
    warn_of_written_disks(shared, path, &devices);
    finish(draft, facts, &state, &content, &subject, stored)?;
    machine_ram.went_to_snapshot(&ram, ids);
    Ok(())
}

/// Writes a snapshot with all memory to the folder at `to`, of the one at `path`, whose parents are in the
/// directory `parents`. None of them is changed.
///
/// ```no_run
/// # fn doc() -> Result<(), coracle::SnapshotError> {
/// coracle::snapshot::merge("snapshots/2", "snapshots", "snapshots/whole")?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// A parent is missing, damaged or another one; there is something else at `to`, or one of them; or the files
/// cannot be written.
pub fn merge(
    path: impl AsRef<Path>,
    parents: impl AsRef<Path>,
    to: impl AsRef<Path>,
) -> Result<(), SnapshotError> {
    let [path, parents, to] = [path.as_ref(), parents.as_ref(), to.as_ref()].map(Path::to_owned);
    on_own_thread(move || {
        let loaded = Loaded::open(&path, Some(&parents))?;
        let Loaded { path, manifest, state, ram: ChainRam { ram, ids }, disks } = loaded;
        check_not_needed(&to, &ids)?;
        let Manifest { host, machine, devices, .. } = manifest;
        let mut config = machine.config().map_err(|error| At(&path).manifest(error))?;
        let devices = virtio::load(&path, &state.devices, &devices, disks, &mut config)?;
        let draft = Draft::begin(&to)?;
        let content = save_ram(&draft, machine.memory_mib << 20, |file| FrozenRam::save(&ram, file))?;
        let content = RamContent::Whole(content);
        let (entries, devices) = virtio::store(&draft, &devices, &state.machine.virtio)?;
        let sections = sections::encode(&state.machine, &content, &state.subject, &entries);
        Ok(draft.finish(host, machine, devices, &sections)?)
    })
}
