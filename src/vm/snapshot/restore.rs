//! Machines that go on from the files of a snapshot.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::fork::Restored;
use super::sections::StateFile;
use super::{Fork, SnapshotError, Template, TemplateParts, host, identity};
use crate::config::VmConfig;
use crate::console::ConsoleStreams;
use crate::kvm::Kvm;
use crate::memory::FrozenRam;
use crate::snapshot_files::{At, Manifest, Snapshot, SnapshotFileError, StateFileError};
use crate::vm::Vm;

/// The settings of a machine that goes on from the files of a snapshot: [`Vm::restore`].
///
/// The snapshot fixes what belongs to the guest's machine. Whatever connects it to the host comes from here:
/// without a setting, its console is not connected, and its time has no limit. A reset of the guest ends it.
#[derive(Debug, Clone)]
pub struct Restore {
    path: PathBuf,
    settings: Fork,
}

impl Vm {
    /// Lets a machine go on from the snapshot in the folder at `path`, which [`VmHandle::snapshot_to`] has
    /// written, perhaps in another process.
    ///
    /// [`VmHandle::snapshot_to`]: crate::VmHandle::snapshot_to
    pub fn restore(path: impl Into<PathBuf>) -> Restore {
        Restore { path: path.into(), settings: Fork::new(VmConfig::default()) }
    }
}

impl Restore {
    /// Connects the console to pipes: see [`console_piped`](crate::VmBuilder::console_piped).
    pub fn console_piped(self) -> Restore {
        Restore { settings: self.settings.console_piped(), ..self }
    }

    /// Calls `take` with the console's output: see [`console_callback`](crate::VmBuilder::console_callback).
    pub fn console_callback(self, take: impl FnMut(&[u8]) + Send + 'static) -> Restore {
        Restore { settings: self.settings.console_callback(take), ..self }
    }

    /// Sends the console's output to `writer`: see [`console_writer`](crate::VmBuilder::console_writer).
    pub fn console_writer(self, writer: impl Write + Send + 'static) -> Restore {
        Restore { settings: self.settings.console_writer(writer), ..self }
    }

    /// Connects the console to the caller's descriptors: see
    /// [`console_streams`](crate::VmBuilder::console_streams).
    pub fn console_streams(self, streams: ConsoleStreams) -> Restore {
        Restore { settings: self.settings.console_streams(streams), ..self }
    }

    /// Names the guest: see [`Fork::hostname`].
    pub fn hostname(self, name: impl Into<OsString>) -> Restore {
        Restore { settings: self.settings.hostname(name), ..self }
    }

    /// Sets a variable of the commands that the guest's agent runs from now on: see [`Fork::env`].
    pub fn env(self, name: impl Into<OsString>, value: impl Into<OsString>) -> Restore {
        Restore { settings: self.settings.env(name, value), ..self }
    }

    /// Limits the time of the machine, which counts from its start here.
    pub fn timeout(self, limit: Duration) -> Restore {
        Restore { settings: self.settings.timeout(limit), ..self }
    }

    /// Starts the machine. Its memory is the file of the snapshot, which is read as the guest touches it, and
    /// never changed: pages that the guest writes to are its own. See [`Template::load`] for what this means
    /// while the machine runs.
    ///
    /// # Errors
    /// See [`Template::load`]; or the machine cannot be built.
    pub fn start(self) -> Result<Vm, SnapshotError> {
        let Restore { path, settings } = self;
        let template = Template::load(path)?;
        let restored = Restored::new(&template.parts)?;
        let vm = settings.over(template.config()).build(&template.parts, restored)?;
        vm.handle().resume();
        identity::wait(&vm, &template.parts.state)?;
        Ok(vm)
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
        let Loaded { path, manifest, state, ram, stored_bytes: _ } = Loaded::open(path.as_ref())?;
        let kvm = Kvm::open()?;
        let StateFile { machine, ram: _, subject } = state;
        host::check(&path, &manifest.host, &machine, &kvm)?;
        let config = manifest.machine.config().map_err(|error| At(&path).manifest(error))?;
        let parts =
            TemplateParts { config, state: machine, ram, disks: Vec::new(), subject, recipe: None, kvm };
        Ok(Template { parts: parts.into() })
    }
}

/// The parts of a snapshot that fit together, whatever the host.
pub(super) struct Loaded {
    pub(super) path: PathBuf,
    pub(super) manifest: Manifest,
    pub(super) state: StateFile,
    pub(super) ram: FrozenRam,
    /// The bytes of the files on the medium.
    pub(super) stored_bytes: u64,
}

impl Loaded {
    /// Opens and checks the files of the snapshot at `path`.
    pub(super) fn open(path: &Path) -> Result<Loaded, SnapshotFileError> {
        let Snapshot { path, manifest, sections, memory, stored_bytes } = Snapshot::open(path)?;
        let config = manifest.machine.config().map_err(|error| At(&path).manifest(error))?;
        let (vcpus, memory_mib) = (config.vcpus.value(), config.memory.size().mib());
        let mut state =
            StateFile::decode(sections, vcpus, memory_mib).map_err(|error| At(&path).state(error))?;
        let bytes = config.memory.bytes();
        let ram = FrozenRam::of_file(config.memory, memory, std::mem::take(&mut state.ram));
        let ram = ram.ok_or_else(|| At(&path).state(StateFileError::Ram { ram: bytes }))?;
        Ok(Loaded { path, manifest, state, ram, stored_bytes })
    }
}
