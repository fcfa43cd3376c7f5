//! Machines that go on from the files of a snapshot.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_devices::journal::Journal;

use super::chain::ChainRam;
use super::fork::Restored;
use super::sections::{RamContent, StateFile};
use super::{Fork, GuestTime, SnapshotError, Template, TemplateParts, host, identity, virtio};
use crate::agent::NetworkSettings;
use crate::config::VmConfig;
use crate::console::ConsoleStreams;
use crate::kvm::Kvm;
use crate::snapshot_files::{At, Manifest, Snapshot, SnapshotFileError};
use crate::vm::Vm;
use crate::vm::lifecycle::live;
use crate::vm::machine::Machine;
use crate::vm::outcome::{Outcome, SnapshotOrigin};
use crate::vm::stop::LOG_LIMIT;

/// The settings of a machine that goes on from the files of a snapshot: [`Vm::restore`].
///
/// The snapshot fixes what belongs to the guest's machine. Whatever connects it to the host comes from here:
/// without a setting, its console is not connected, and its time has no limit. A reset of the guest ends it.
#[derive(Debug, Clone)]
pub struct Restore {
    path: PathBuf,
    parents: Option<PathBuf>,
    settings: Fork,
}

impl Vm {
    /// Lets a machine go on from the snapshot in the folder at `path`, which [`VmHandle::snapshot_to`] has
    /// written, perhaps in another process.
    ///
    /// [`VmHandle::snapshot_to`]: crate::VmHandle::snapshot_to
    pub fn restore(path: impl Into<PathBuf>) -> Restore {
        Restore { path: path.into(), parents: None, settings: Fork::new(VmConfig::default()) }
    }
}

impl Restore {
    /// Names the directory with the snapshots over which this one lies, each under the name that it had:
    /// [`VmHandle::snapshot_over`](crate::VmHandle::snapshot_over). They are found by their ids and hashes.
    pub fn parents_in(self, directory: impl Into<PathBuf>) -> Restore {
        Restore { parents: Some(directory.into()), ..self }
    }

    /// Connects the console to pipes: see [`console_piped`](crate::VmBuilder::console_piped).
    pub fn console_piped(self) -> Restore {
        self.with(Fork::console_piped)
    }

    /// Calls `take` with the console's output: see [`console_callback`](crate::VmBuilder::console_callback).
    pub fn console_callback(self, take: impl FnMut(&[u8]) + Send + 'static) -> Restore {
        self.with(|settings| settings.console_callback(take))
    }

    /// Sends the console's output to `writer`: see [`console_writer`](crate::VmBuilder::console_writer).
    pub fn console_writer(self, writer: impl Write + Send + 'static) -> Restore {
        self.with(|settings| settings.console_writer(writer))
    }

    /// Connects the console to the caller's descriptors: see
    /// [`console_streams`](crate::VmBuilder::console_streams).
    pub fn console_streams(self, streams: ConsoleStreams) -> Restore {
        self.with(|settings| settings.console_streams(streams))
    }

    /// Interprets Ctrl-A commands in the console's input: for a person at a terminal.
    pub fn console_escape(self, yes: bool) -> Restore {
        self.with(|settings| settings.console_escape(yes))
    }

    /// Decides whether the time since the snapshot passes for the guest. Without this, it does not.
    pub fn time(self, time: GuestTime) -> Restore {
        self.with(|settings| settings.time(time))
    }

    /// Names the guest: see [`Fork::hostname`].
    pub fn hostname(self, name: impl Into<OsString>) -> Restore {
        self.with(|settings| settings.hostname(name))
    }

    /// Sets a variable of the commands that the guest's agent runs from now on: see [`Fork::env`].
    pub fn env(self, name: impl Into<OsString>, value: impl Into<OsString>) -> Restore {
        self.with(|settings| settings.env(name, value))
    }

    /// Gives a network card an address: see [`Fork::address`].
    pub fn address(self, id: impl Into<String>, settings: NetworkSettings) -> Restore {
        self.with(|fork| fork.address(id, settings))
    }

    /// Limits the time of the machine, which counts from its start here.
    pub fn timeout(self, limit: Duration) -> Restore {
        self.with(|settings| settings.timeout(limit))
    }

    /// Sets whatever a [`Fork`] can set.
    pub fn with(self, set: impl FnOnce(Fork) -> Fork) -> Restore {
        Restore { settings: set(self.settings), ..self }
    }

    /// Starts the machine. Its memory is the file of the snapshot, which is read as the guest touches it, and
    /// never changed: pages that the guest writes to are its own. See [`Template::load`] for what this means
    /// while the machine runs.
    ///
    /// # Errors
    /// See [`Template::load`]; or the machine cannot be built.
    pub fn start(self) -> Result<Vm, SnapshotError> {
        let limit = self.settings.identity_limit();
        let (template, vm, machine) = self.build()?;
        let vm = vm.with_control(machine)?;
        vm.handle().resume();
        identity::wait(&vm, &template.parts.state, (limit, Instant::now()))?;
        Ok(vm)
    }

    /// Restores the machine, calls `begin`, and waits for the machine to end, as
    /// [`VmBuilder::run_with`](crate::VmBuilder::run_with) does: `begin` has to let the machine go on
    /// ([`VmHandle::resume`]), or stop it, and the calling thread does the work of the control thread.
    ///
    /// [`VmHandle::resume`]: crate::VmHandle::resume
    ///
    /// # Errors
    /// See [`Restore::start`]; `begin` has not been called.
    pub fn run_with(self, begin: impl FnOnce(&mut Vm)) -> Result<Outcome, SnapshotError> {
        let (_, mut vm, machine) = self.build()?;
        begin(&mut vm);
        live(&vm.shared, machine);
        Ok(vm.wait())
    }

    fn build(self) -> Result<(Template, Vm, Machine), SnapshotError> {
        let journal = Arc::new(Journal::default());
        let _journal = journal.enter();
        let parts = self.build_parts();
        journal.flush(LOG_LIMIT);
        parts
    }

    fn build_parts(self) -> Result<(Template, Vm, Machine), SnapshotError> {
        let Restore { path, parents, settings } = self;
        let template = Template::load_from(&path, parents.as_deref())?;
        settings.check(&template.parts.devices, template.config().agent.is_some())?;
        let restored = Restored::new(&template.parts, &settings)?;
        let (vm, machine) = settings.over(template.config()).build_parts(&template.parts, restored, None)?;
        Ok((template, vm, machine))
    }
}

impl Template {
    /// Makes a template of the snapshot in the folder at `path`, for any number of forks. The files are
    /// checked, except for the content of the memory, of which next to nothing is read; [`snapshot::check`]
    /// reads all of it.
    ///
    /// The files may be anybody's. The folder may be replaced or removed while machines run: they keep the
    /// memory that they began with. Nobody may write to the file `memory`, or cut it, and a shared lock shows
    /// that (OFD, see fcntl(2)). If somebody does so all the same, a guest sees the writes in some of the
    /// pages that it has not written itself. A guest that touches what was cut off crashes, or ends with the
    /// error of `KVM_RUN` ([`Ending::CannotRun`](crate::Ending::CannotRun)). A thread of this process that
    /// reads it, for a device or a diagnosis, gets SIGBUS, which ends the process by default. A medium that
    /// fails does the same. So copy the snapshots of people whom you do not trust to a place where only you
    /// can write.
    ///
    /// [`snapshot::check`]: crate::snapshot::check
    ///
    /// # Errors
    /// A file is missing, damaged or of another snapshot; its format is newer than this version; the machine
    /// ran on another kind of KVM; or this host's CPU lacks a feature that the guest was shown.
    pub fn load(path: impl AsRef<Path>) -> Result<Template, SnapshotError> {
        Template::load_from(path.as_ref(), None)
    }

    /// Makes a template of a snapshot that lies over others, as [`Template::load`] does. They are in the
    /// directory `parents`, each under the name that it had.
    ///
    /// # Errors
    /// See [`Template::load`]; or a parent is missing or is another one.
    pub fn load_over(path: impl AsRef<Path>, parents: impl AsRef<Path>) -> Result<Template, SnapshotError> {
        Template::load_from(path.as_ref(), Some(parents.as_ref()))
    }

    fn load_from(path: &Path, parents: Option<&Path>) -> Result<Template, SnapshotError> {
        let Loaded { path, manifest, state, ram, disks } = Loaded::open(path, parents)?;
        let kvm = Kvm::open()?;
        let StateFile { machine, ram: _, subject, devices } = state;
        host::check(&path, &manifest.host, &machine, &kvm)?;
        let mut config = manifest.machine.config().map_err(|error| At(&path).manifest(error))?;
        let devices = virtio::load(&path, &devices, &manifest.devices, disks, &mut config)?;
        let ram = ram.ram.with_few_pieces()?.of_snapshot(ram.ids);
        let parts = TemplateParts {
            config,
            state: machine,
            ram,
            devices,
            origin: Some(SnapshotOrigin { path, id: manifest.id }),
            subject,
            recipe: None,
            kvm,
        };
        Ok(Template { parts: parts.into() })
    }
}

/// The parts of a snapshot that fit together, whatever the host.
pub(super) struct Loaded {
    pub(super) path: PathBuf,
    pub(super) manifest: Manifest,
    pub(super) state: StateFile,
    pub(super) ram: ChainRam,
    /// The files with blocks of disks, in the order of the devices that have one.
    pub(super) disks: Vec<File>,
}

impl Loaded {
    /// Opens and checks the files of the snapshot at `path`, and of those over which it lies, in the
    /// directory `parents`.
    pub(super) fn open(path: &Path, parents: Option<&Path>) -> Result<Loaded, SnapshotFileError> {
        let Own { path, manifest, state, content, memory, disks, stored_bytes: _ } = Own::open(path)?;
        let config = manifest.machine.config().map_err(|error| At(&path).manifest(error))?;
        let ram = ChainRam::open(&path, (&manifest, config.memory), (memory, content), parents)?;
        Ok(Loaded { path, manifest, state, ram, disks })
    }
}

/// The parts of a snapshot that are in its own folder.
pub(super) struct Own {
    pub(super) path: PathBuf,
    pub(super) manifest: Manifest,
    /// Without the content of the RAM, which is below.
    pub(super) state: StateFile,
    pub(super) content: RamContent,
    pub(super) memory: File,
    /// The files with blocks of disks, in the order of the devices that have one.
    pub(super) disks: Vec<File>,
    /// The bytes of the files on the medium.
    pub(super) stored_bytes: u64,
}

impl Own {
    pub(super) fn open(path: &Path) -> Result<Own, SnapshotFileError> {
        let Snapshot { path, manifest, manifest_hash: _, sections, memory, disks, stored_bytes } =
            Snapshot::open(path)?;
        let config = manifest.machine.config().map_err(|error| At(&path).manifest(error))?;
        let (vcpus, memory_mib) = (config.vcpus.value(), config.memory.size().mib());
        let state = StateFile::decode(sections, vcpus, memory_mib, manifest.parent.is_some());
        let mut state = state.map_err(|error| At(&path).state(error))?;
        let content = std::mem::replace(&mut state.ram, RamContent::Whole(Vec::new()));
        Ok(Own { path, manifest, state, content, memory, disks, stored_bytes })
    }
}
