//! From the configuration of a disk to the block device, and the policy for failed requests.

use std::io;
use std::path::Path;
use std::sync::Arc;

use coracle_arch::field::{Field, ROOT};
use coracle_arch::nameless_file;
use coracle_devices::backend::disk::{
    DiskBackend, DiskOpenError, FileIdentity, FileLock, FrozenDisk, FrozenLayer, Overlay, OverlayError,
    OverlayLayer, OverlaySize, RawDisk,
};
use coracle_devices::virtio::blk::{Block, BlockSettings, Engine, FaultAction, FaultSink, Operation};
use coracle_image::rootfs::{ImageAccess, RootBacking, RootDisk};
use coracle_image::temporary;

use super::spec::{DeviceSpec, Named, Opened, SpecContext};
use super::template::{KnownDisk, Link};
use super::{Handle, RepointError, VirtioError};
use crate::config::{DeviceId, DiskAccess, DiskConfig, DiskEngine, DiskErrorPolicy};
use crate::gate::Gate;

/// The host's side of a disk.
pub(crate) struct DiskHandle {
    /// The setting that errors name.
    pub(super) field: Field,
    pub(super) block: Arc<Block>,
}

impl DeviceSpec for Named<'_, DiskConfig> {
    fn open(&self, context: &SpecContext) -> Result<Opened, VirtioError> {
        let config = self.config;
        Ok(opened(
            config.clone(),
            (config.queues, config.shown_serial()),
            backend(self)?,
            (self.field, context),
        ))
    }

    fn id(&self) -> DeviceId {
        self.id.clone()
    }

    fn module(&self) -> &'static str {
        MODULE
    }

    fn setting(&self) -> String {
        format!("{} {}", self.field, self.config.path.display())
    }
}

/// The disk that holds the guest's root, and its id.
pub(super) struct RootSpec<'a> {
    pub(super) disk: &'a RootDisk,
    pub(super) id: DeviceId,
}

impl DeviceSpec for RootSpec<'_> {
    fn open(&self, context: &SpecContext) -> Result<Opened, VirtioError> {
        let Self { disk: RootDisk { backing, .. }, id } = self;
        let file = match backing {
            RootBacking::Image { path, access } => {
                let config = image_config(path, *access);
                return Named { field: ROOT, config: &config, id: id.clone() }.open(context);
            }
            RootBacking::Made(file) => file,
        };
        let failed = |source| VirtioError::Host { device: name_of(Path::new("")), source };
        let disk = file.try_clone().and_then(RawDisk::of_file).map_err(failed)?;
        Ok(opened(made_config(), (1, ""), Box::new(disk), (ROOT, context)))
    }

    fn id(&self) -> DeviceId {
        self.id.clone()
    }

    fn module(&self) -> &'static str {
        MODULE
    }

    fn setting(&self) -> String {
        ROOT.to_string()
    }
}

/// A disk of a machine that goes on from another one.
pub(super) struct ForkDisk<'a> {
    pub(super) id: &'a DeviceId,
    pub(super) field: Field,
    /// The properties that stay.
    pub(super) known: &'a KnownDisk,
    pub(super) config: &'a DiskConfig,
    pub(super) source: ForkSource<'a>,
}

/// The blocks of such a disk.
pub(super) enum ForkSource<'a> {
    /// The blocks of the former disk.
    Shared(&'a FrozenDisk),
    /// The blocks of the file at the configured path, below the layers of an overlay, the newest first.
    Path {
        layers: &'a [Arc<FrozenLayer>],
        /// The identity of the first machine's file, if it has to be the same.
        identity: Option<FileIdentity>,
        /// Whether it is the path of the first machine.
        is_recorded: bool,
    },
}

impl DeviceSpec for ForkDisk<'_> {
    fn open(&self, context: &SpecContext) -> Result<Opened, VirtioError> {
        let Self { id: _, field, known, config, source: _ } = self;
        let backend = self.backend()?;
        let (bytes, expected) = (backend.capacity(), known.capacity);
        if bytes != expected {
            let path = config.path.display().to_string();
            return Err(RepointError::Capacity { id: self.id.to_string(), path, bytes, expected }.into());
        }
        // The id is that of the device, whatever the configuration has.
        let config = DiskConfig { id: Some(self.id.clone()), ..(*config).clone() };
        Ok(opened(config, (known.queues, &known.serial), backend, (*field, context)))
    }

    fn id(&self) -> DeviceId {
        self.id.clone()
    }

    fn module(&self) -> &'static str {
        MODULE
    }

    fn setting(&self) -> String {
        self.id.to_string()
    }
}

impl ForkDisk<'_> {
    fn backend(&self) -> Result<Box<dyn DiskBackend>, VirtioError> {
        let Self { id, field, known: _, config, source } = self;
        let folder = temporary::directory();
        let (field, path) = (*field, &config.path);
        let over = |content: &FrozenDisk| content.open(|| layer(&folder), overlay_size(config.access));
        let failed = |error| overlay_error(field, path, error);
        let (layers, identity, is_recorded) = match *source {
            ForkSource::Shared(content) => return over(content).map_err(failed),
            ForkSource::Path { layers, identity, is_recorded } => (layers, identity, is_recorded),
        };
        let backend = match config.access {
            DiskAccess::ReadWrite | DiskAccess::ReadOnly => {
                let disk = Named { field, config: *config, id: (*id).clone() };
                Box::new(check(&disk)?) as Box<dyn DiskBackend>
            }
            DiskAccess::Overlay { .. } => {
                let content = FrozenDisk::over(path, layers).map_err(|error| failed(error.into()))?;
                over(&content).map_err(failed)?
            }
        };
        if let Some(former) = identity {
            self.check_unchanged(&*backend, &former, is_recorded)?;
        }
        Ok(backend)
    }

    /// Refuses a file that has changed. A file that was named again may be another one, such as a copy.
    fn check_unchanged(
        &self,
        backend: &dyn DiskBackend,
        former: &FileIdentity,
        is_recorded: bool,
    ) -> Result<(), VirtioError> {
        let path = || self.config.path.clone();
        let unknown = |source| VirtioError::Disk {
            field: self.field,
            path: path(),
            source: DiskOpenError::Open { source },
        };
        let what = match backend.identity().map_err(unknown)? {
            Some(present) if present == *former => return Ok(()),
            Some(present) if present.is_same_file(former) => "it was written to",
            _ if !is_recorded => return Ok(()),
            _ => "another file has its path",
        };
        let path = path().display().to_string();
        Err(RepointError::Changed { id: self.id.to_string(), path, what }.into())
    }
}

/// Makes the device of a disk with these blocks, this number of queues and this serial number.
fn opened(
    config: DiskConfig,
    (queues, serial): (u16, &str),
    backend: Box<dyn DiskBackend>,
    (field, context): (Field, &SpecContext),
) -> Opened {
    let known = KnownDisk {
        capacity: backend.capacity(),
        is_read_only: backend.is_read_only(),
        queues,
        serial: serial.to_owned(),
    };
    let name = name_of(&config.path);
    let faults = Faults { name: name.clone(), policy: config.on_error, gate: context.gate.clone() };
    let block = Arc::new(Block::new(BlockSettings {
        name,
        id: serial.to_owned(),
        queues,
        engine: match config.engine {
            DiskEngine::Sync => Engine::Sync,
            DiskEngine::IoUring => Engine::IoUring,
        },
        poll: config.poll,
        backend,
        faults: Arc::new(faults),
    }));
    let handle = Some(Handle::Disk(DiskHandle { field, block: block.clone() }));
    Opened { device: block, handle, link: Link::Disk(known, config) }
}

/// Returns the name of the disk with this path, which is empty for one that was made here.
fn name_of(path: &Path) -> String {
    if path.as_os_str().is_empty() {
        "disk of the root".to_owned()
    } else {
        format!("disk {}", path.display())
    }
}

/// Returns the configuration of a root that was made here.
pub(crate) fn made_config() -> DiskConfig {
    DiskConfig { access: DiskAccess::ReadOnly, engine: DiskEngine::IoUring, ..DiskConfig::new("") }
}

/// Configures a root image of the user's as an ordinary disk.
fn image_config(path: &Path, access: ImageAccess) -> DiskConfig {
    let access = match access {
        ImageAccess::ReadOnly => DiskAccess::ReadOnly,
        ImageAccess::ReadWrite => DiskAccess::ReadWrite,
        ImageAccess::Overlay { max_bytes } => DiskAccess::Overlay { max_bytes },
    };
    DiskConfig { access, ..DiskConfig::new(path) }
}

fn backend(disk: &Named<'_, DiskConfig>) -> Result<Box<dyn DiskBackend>, VirtioError> {
    let Named { field, config: DiskConfig { path, access, .. }, id: _ } = *disk;
    if matches!(access, DiskAccess::ReadWrite | DiskAccess::ReadOnly) {
        return Ok(Box::new(check(disk)?));
    }
    let folder = temporary::directory();
    let overlay = layer(&folder).and_then(|layer| Overlay::open(path, layer, overlay_size(*access)));
    Ok(Box::new(overlay.map_err(|error| overlay_error(field, path, error))?))
}

pub(super) fn overlay_size(access: DiskAccess) -> OverlaySize {
    match access {
        DiskAccess::ReadWrite | DiskAccess::ReadOnly => OverlaySize::Unlimited,
        DiskAccess::Overlay { max_bytes } => max_bytes.map_or(OverlaySize::Unlimited, OverlaySize::Bytes),
    }
}

/// Makes the file of an overlay.
pub(super) fn layer(folder: &Path) -> Result<OverlayLayer<'_>, OverlayError> {
    let file = nameless_file::create_in(folder);
    let failed = |source| OverlayError::Layer { folder: folder.to_owned(), source };
    file.map(|file| OverlayLayer { file, folder }).map_err(failed)
}

pub(super) fn overlay_error(field: Field, path: &Path, error: OverlayError) -> VirtioError {
    let path = path.to_owned();
    match error {
        OverlayError::Base(source) => VirtioError::Disk { field, path, source },
        source => VirtioError::Overlay { field, path, source },
    }
}

/// Opens a disk's file as the device would; under an overlay it is only read.
pub(super) fn check(disk: &Named<'_, DiskConfig>) -> Result<RawDisk, VirtioError> {
    let Named { field, config, id: _ } = *disk;
    let lock = match config.access {
        DiskAccess::ReadWrite => FileLock::Exclusive,
        DiskAccess::ReadOnly | DiskAccess::Overlay { .. } => FileLock::Shared,
    };
    let path = || config.path.clone();
    RawDisk::open(&config.path, lock).map_err(|source| VirtioError::Disk { field, path: path(), source })
}

/// Counts the failed requests of one disk, and has the machine paused if the policy says so.
struct Faults {
    name: String,
    policy: DiskErrorPolicy,
    gate: Arc<Gate>,
}

impl FaultSink for Faults {
    fn failed(&self, operation: Operation, error: &io::Error) -> FaultAction {
        let does = match operation {
            Operation::Read => "read",
            Operation::Write => "write",
            // A failed flush means that earlier writes may be lost already, so there is no point in pausing
            // to retry.
            Operation::Flush => {
                self.gate.count_disk_error(None);
                return FaultAction::Report;
            }
        };
        match self.policy {
            DiskErrorPolicy::Report => {
                self.gate.count_disk_error(None);
                FaultAction::Report
            }
            DiskErrorPolicy::Pause => {
                self.gate.count_disk_error(Some(format!("{}: the host cannot {does}: {error}", self.name)));
                FaultAction::Hold
            }
        }
    }
}

/// The module that drives a disk in a stock Linux.
const MODULE: &str = "virtio_blk";
