//! The devices of a machine from which others go on while it runs on.

use std::fs::File;
use std::path::{Path, PathBuf};

use coracle_devices::backend::disk::OverlayLayer;
use coracle_image::temporary;

use super::disk::{layer, overlay_error, overlay_size};
use super::template::{Link, TemplateDevice};
use super::{Attached, VirtioDevices, VirtioError};
use crate::config::DiskConfig;

/// The files for the next writes to the disks of a machine: one for each device that is a disk with an
/// overlay.
pub(crate) struct NewLayers {
    folder: PathBuf,
    files: Vec<Option<File>>,
}

/// The reason why a device of a machine that runs on has no content for another machine.
pub(crate) enum BranchError {
    /// The disk with this name has too many overlays already.
    Refused(String),
    /// The new layer cannot be an overlay.
    Layer(VirtioError),
}

impl VirtioDevices {
    /// Makes the files for [`VirtioDevices::branch`], which may take as long as the file system likes.
    ///
    /// # Errors
    /// A file cannot be made.
    pub(crate) fn new_layers(&self) -> Result<NewLayers, VirtioError> {
        let folder = temporary::directory();
        let files = self.attached.iter().map(|device| device.new_layer(&folder)).collect::<Result<_, _>>()?;
        Ok(NewLayers { folder, files })
    }

    /// Returns the devices for machines that go on from here, in their order. They are paused, and go on in
    /// this machine too, with the new layers.
    ///
    /// # Errors
    /// The first disk that cannot go on so. Those before it have their new layers.
    pub(crate) fn branch(&self, layers: NewLayers) -> Result<Vec<TemplateDevice>, BranchError> {
        let NewLayers { folder, files } = layers;
        self.attached.iter().zip(files).map(|(device, file)| device.branch(file, &folder)).collect()
    }
}

impl Attached {
    fn new_layer(&self, folder: &Path) -> Result<Option<File>, VirtioError> {
        let Some((disk, config)) = self.disk_with_layer() else { return Ok(None) };
        let made = layer(folder).map_err(|error| overlay_error(disk.field, &config.path, error))?;
        Ok(Some(made.file))
    }

    fn branch(&self, file: Option<File>, folder: &Path) -> Result<TemplateDevice, BranchError> {
        let Some((disk, config)) = self.disk_with_layer() else { return Ok(self.template()) };
        let refused = || BranchError::Refused(self.title());
        let layer = OverlayLayer { file: file.ok_or_else(refused)?, folder };
        let content = disk.block.branch(layer, overlay_size(config.access));
        let failed = |error| BranchError::Layer(overlay_error(disk.field, &config.path, error));
        Ok(self.template_with(Some(content.map_err(failed)?.ok_or_else(refused)?)))
    }

    fn disk_with_layer(&self) -> Option<(&super::disk::DiskHandle, &DiskConfig)> {
        match (self.disk(), &self.link) {
            (Some(disk), Link::Disk(_, config)) if disk.block.has_layer() => Some((disk, config)),
            _ => None,
        }
    }
}
