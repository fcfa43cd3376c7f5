//! From the configuration of a disk to the block device, and the policy for failed requests.

use std::fs::File;
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
use crate::config::{DiskAccess, DiskConfig, DiskEngine, DiskErrorPolicy};
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
    field: Field,
    /// The configured path; empty for a disk that was made here.
    path: PathBuf,
    name: String,
    id: String,
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
        let Named { field, config } = *self;
        let settings = DiskSettings {
            field,
            path: config.path.clone(),
            name: format!("disk {}", config.path.display()),
            id: config.id.as_ref().map(|id| id.as_str().to_owned()).unwrap_or_default(),
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

    fn module(&self) -> &'static str {
        MODULE
    }

    fn setting(&self) -> String {
        format!("{} {}", self.field, self.config.path.display())
    }
}

/// The disk that holds the guest's root.
impl DeviceSpec for RootDisk {
    fn open(&self, context: &SpecContext) -> Result<Opened, VirtioError> {
        let file = match &self.backing {
            RootBacking::Image { path, access } => {
                return Named { field: ROOT, config: &image_config(path, *access) }.open(context);
            }
            RootBacking::Made(file) => file,
        };
        let name = "disk of the root".to_owned();
        let failed = |source| VirtioError::Host { device: name.clone(), source };
        let disk = file.try_clone().and_then(RawDisk::of_file).map_err(failed)?;
        let settings = DiskSettings {
            field: ROOT,
            path: PathBuf::new(),
            name,
            id: String::new(),
            queues: 1,
            engine: Engine::IoUring,
            poll: Poll::DEFAULT,
            policy: DiskErrorPolicy::Report,
            size: OverlaySize::Unlimited,
        };
        Ok(settings.open(Box::new(disk), context))
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
            id: self.id.clone(),
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
        self.disks().map(DiskHandle::freeze).collect()
    }
}

/// The files for the next writes to the disks of a machine, in the order of the disks.
pub(crate) struct NewLayers {
    folder: PathBuf,
    files: Vec<Option<File>>,
}

impl VirtioDevices {
    fn disks(&self) -> impl Iterator<Item = &DiskHandle> {
        self.handles().filter_map(|handle| match handle {
            Handle::Disk(disk) => Some(disk),
            _ => None,
        })
    }

    /// Makes the files for [`VirtioDevices::branch_disks`], which may take as long as the file system likes.
    ///
    /// # Errors
    /// A file cannot be made.
    pub(crate) fn new_layers(&self) -> Result<NewLayers, VirtioError> {
        let folder = temporary::directory();
        let make = |disk: &DiskHandle| {
            let DiskHandle { block, settings } = disk;
            let layer = block.has_layer().then(|| layer(&folder)).transpose();
            let layer = layer.map_err(|error| overlay_error(settings.field, &settings.path, error))?;
            Ok(layer.map(|OverlayLayer { file, folder: _ }| file))
        };
        let files = self.disks().map(make).collect::<Result<_, VirtioError>>()?;
        Ok(NewLayers { folder, files })
    }

    /// Returns the disks for machines that go on from here, in their order. The devices are paused, and go on
    /// in this machine too, with the new layers.
    ///
    /// # Errors
    /// The first disk that cannot go on so. Those before it have their new layers.
    pub(crate) fn branch_disks(&self, layers: NewLayers) -> Result<Vec<TemplateDisk>, BranchDiskError> {
        let NewLayers { folder, files } = layers;
        let branch = |(disk, file)| DiskHandle::branch(disk, file, &folder);
        self.disks().zip(files).map(branch).collect()
    }
}

/// Why a disk of a machine that runs on has no content for another machine.
pub(crate) enum BranchDiskError {
    /// Only one machine can have the content of the disk with this name.
    Refused(String),
    /// The new layer cannot be an overlay.
    Layer(VirtioError),
}

impl DiskHandle {
    fn branch(&self, file: Option<File>, folder: &Path) -> Result<TemplateDisk, BranchDiskError> {
        let DiskHandle { block, settings } = self;
        let content = match file {
            None => Ok(block.freeze()),
            Some(file) => block.branch(OverlayLayer { file, folder }, settings.size),
        };
        let layer_error =
            |error| BranchDiskError::Layer(overlay_error(settings.field, &settings.path, error));
        let content = content.map_err(layer_error)?;
        let content = content.ok_or_else(|| BranchDiskError::Refused(settings.name.clone()))?;
        Ok(TemplateDisk { settings: settings.clone(), content })
    }

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
    let Named { field, config: DiskConfig { path, access, .. } } = *disk;
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
    let Named { field, config } = *disk;
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
