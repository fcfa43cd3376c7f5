//! From the configuration of a disk to the block device, and the policy for failed requests.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coracle_arch::field::{Field, ROOT};
use coracle_arch::nameless_file;
use coracle_devices::backend::disk::{
    DiskBackend, FileLock, FrozenDisk, Overlay, OverlayError, OverlayLayer, OverlaySize, RawDisk,
};
use coracle_devices::virtio::blk::{Block, BlockSettings, Engine, FaultAction, FaultSink, Operation};
use coracle_devices::virtio::poll::Poll;
use coracle_image::rootfs::{ImageAccess, RootBacking, RootDisk};
use coracle_image::temporary;

use super::spec::{DeviceSpec, Named, Opened, SpecContext};
use super::{Handle, VirtioDevices, VirtioError};
use crate::config::{DeviceId, DiskAccess, DiskConfig, DiskEngine, DiskErrorPolicy};
use crate::gate::Gate;

/// The host's side of a disk.
pub(crate) struct DiskHandle {
    block: Arc<Block>,
    settings: DiskSettings,
}

/// A disk of a machine that has become a template: how it was made, and its content, which stays as it is.
#[derive(Debug, Clone)]
pub(crate) struct TemplateDisk {
    settings: DiskSettings,
    content: FrozenDisk,
}

/// The settings of a disk, apart from where its blocks are.
#[derive(Debug, Clone)]
struct DiskSettings {
    id: DeviceId,
    field: Field,
    /// The configured path; empty for a disk that was made here.
    path: PathBuf,
    name: String,
    /// The serial number that the guest sees; empty for none.
    serial: String,
    queues: u16,
    engine: Engine,
    poll: Duration,
    policy: DiskErrorPolicy,
    /// The largest size of the overlay, for a disk that has one.
    size: OverlaySize,
}

impl DeviceSpec for Named<'_, DiskConfig> {
    fn open(&self, context: &SpecContext) -> Result<Opened, VirtioError> {
        let backend = backend(self)?;
        let Named { field, config, id: _ } = *self;
        let settings = DiskSettings {
            id: self.id.clone(),
            field,
            path: config.path.clone(),
            name: format!("disk {}", config.path.display()),
            serial: config.shown_serial().to_owned(),
            queues: config.queues,
            engine: match config.engine {
                DiskEngine::Sync => Engine::Sync,
                DiskEngine::IoUring => Engine::IoUring,
            },
            poll: config.poll,
            policy: config.on_error,
            size: overlay_size(config.access),
        };
        Ok(settings.open(backend, context))
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
        let name = "disk of the root".to_owned();
        let failed = |source| VirtioError::Host { device: name.clone(), source };
        let disk = file.try_clone().and_then(RawDisk::of_file).map_err(failed)?;
        let settings = DiskSettings {
            id: id.clone(),
            field: ROOT,
            path: PathBuf::new(),
            name,
            serial: String::new(),
            queues: 1,
            engine: Engine::IoUring,
            poll: Poll::DEFAULT,
            policy: DiskErrorPolicy::Report,
            size: OverlaySize::Unlimited,
        };
        Ok(settings.open(Box::new(disk), context))
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

impl DeviceSpec for TemplateDisk {
    fn open(&self, context: &SpecContext) -> Result<Opened, VirtioError> {
        let TemplateDisk { settings, content } = self;
        let DiskSettings { field, path, size, .. } = settings;
        let folder = temporary::directory();
        let backend = content.open(|| layer(&folder), *size);
        let backend = backend.map_err(|error| overlay_error(*field, path, error))?;
        Ok(settings.clone().open(backend, context))
    }

    fn id(&self) -> DeviceId {
        self.settings.id.clone()
    }

    fn module(&self) -> &'static str {
        MODULE
    }

    fn setting(&self) -> String {
        self.settings.name.clone()
    }
}

impl DiskSettings {
    fn open(self, backend: Box<dyn DiskBackend>, context: &SpecContext) -> Opened {
        let faults = Faults { name: self.name.clone(), policy: self.policy, gate: context.gate.clone() };
        let block = Arc::new(Block::new(BlockSettings {
            name: self.name.clone(),
            id: self.serial.clone(),
            queues: self.queues,
            engine: self.engine,
            poll: self.poll,
            backend,
            faults: Arc::new(faults),
        }));
        let handle = Handle::Disk(DiskHandle { block: block.clone(), settings: self });
        Opened { device: block, handle: Some(handle) }
    }
}

impl VirtioDevices {
    /// Returns the disks for machines that go on from here, in their order. The devices are paused, and do
    /// not go on in this machine.
    ///
    /// # Errors
    /// The name of the first disk whose content only one machine can have.
    pub(crate) fn freeze_disks(&self) -> Result<Vec<TemplateDisk>, String> {
        let disks = self.handles().filter_map(|handle| match handle {
            Handle::Disk(disk) => Some(disk),
            _ => None,
        });
        disks.map(DiskHandle::freeze).collect()
    }
}

impl DiskHandle {
    fn freeze(&self) -> Result<TemplateDisk, String> {
        let DiskHandle { block, settings } = self;
        let content = block.freeze().ok_or_else(|| settings.name.clone())?;
        Ok(TemplateDisk { settings: settings.clone(), content })
    }
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

fn overlay_size(access: DiskAccess) -> OverlaySize {
    match access {
        DiskAccess::ReadWrite | DiskAccess::ReadOnly => OverlaySize::Unlimited,
        DiskAccess::Overlay { max_bytes } => max_bytes.map_or(OverlaySize::Unlimited, OverlaySize::Bytes),
    }
}

/// Makes the file of an overlay.
fn layer(folder: &Path) -> Result<OverlayLayer<'_>, OverlayError> {
    let file = nameless_file::create_in(folder);
    let failed = |source| OverlayError::Layer { folder: folder.to_owned(), source };
    file.map(|file| OverlayLayer { file, folder }).map_err(failed)
}

fn overlay_error(field: Field, path: &Path, error: OverlayError) -> VirtioError {
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
