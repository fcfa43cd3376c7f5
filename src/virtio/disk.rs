//! From the configuration of a disk to the block device, and the policy for failed requests.

use std::io;
use std::path::Path;
use std::sync::Arc;

use coracle_arch::field::ROOT;
use coracle_arch::nameless_file;
use coracle_devices::backend::disk::{
    DiskBackend, FileLock, Overlay, OverlayError, OverlayLayer, OverlaySize, RawDisk,
};
use coracle_devices::virtio::blk::{Block, BlockSettings, Engine, FaultAction, FaultSink, Operation};
use coracle_devices::virtio::poll::Poll;
use coracle_image::rootfs::{ImageAccess, RootBacking, RootDisk};
use coracle_image::temporary;

use super::VirtioError;
use super::spec::{DeviceSpec, Named, Opened, SpecContext};
use crate::config::{DiskAccess, DiskConfig, DiskEngine, DiskErrorPolicy};
use crate::gate::Gate;

impl DeviceSpec for Named<'_, DiskConfig> {
    fn open(&self, context: &SpecContext) -> Result<Opened, VirtioError> {
        let backend = backend(self)?;
        let config = self.config;
        let name = format!("disk {}", config.path.display());
        let faults = Faults { name: name.clone(), policy: config.on_error, gate: context.gate.clone() };
        Ok(Opened::without_handle(Block::new(BlockSettings {
            name,
            id: config.id.as_ref().map(|id| id.as_str().to_owned()).unwrap_or_default(),
            queues: config.queues,
            engine: match config.engine {
                DiskEngine::Sync => Engine::Sync,
                DiskEngine::IoUring => Engine::IoUring,
            },
            poll: config.poll,
            backend,
            faults: Arc::new(faults),
        })))
    }

    fn module(&self) -> &'static str {
        "virtio_blk"
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
        let gate = context.gate.clone();
        let faults = Faults { name: name.clone(), policy: DiskErrorPolicy::Report, gate };
        Ok(Opened::without_handle(Block::new(BlockSettings {
            name,
            id: String::new(),
            queues: 1,
            engine: Engine::IoUring,
            poll: Poll::DEFAULT,
            backend: Box::new(disk),
            faults: Arc::new(faults),
        })))
    }

    fn module(&self) -> &'static str {
        "virtio_blk"
    }

    fn setting(&self) -> String {
        ROOT.to_string()
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
    let Named { field, config } = *disk;
    let size = match config.access {
        DiskAccess::ReadWrite | DiskAccess::ReadOnly => return Ok(Box::new(check(disk)?)),
        DiskAccess::Overlay { max_bytes } => max_bytes.map_or(OverlaySize::Unlimited, OverlaySize::Bytes),
    };
    let path = config.path.clone();
    let folder = temporary::directory();
    let overlay = nameless_file::create_in(&folder)
        .map_err(|source| OverlayError::Layer { folder: folder.clone(), source })
        .and_then(|file| Overlay::open(&path, OverlayLayer { file, folder: &folder }, size));
    let overlay = overlay.map_err(|error| match error {
        OverlayError::Base(source) => VirtioError::Disk { field, path, source },
        source => VirtioError::Overlay { field, path, source },
    })?;
    Ok(Box::new(overlay))
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
