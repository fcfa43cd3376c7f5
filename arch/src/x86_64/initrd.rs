//! Initial RAM disks: the files that a kernel unpacks or mounts as its first root.
//!
//! The builder opens them, and [`crate::x86_64::load`] places them. Their content is never parsed: it is for
//! the guest.

use std::path::Path;

use super::input_file::{FileRole, InputFile, InputFileError};

/// The alignment of an initrd that follows another (the cpio members of an initramfs are aligned to 4 bytes;
/// Linux, Documentation/driver-api/early-userspace/buffer-format.rst).
const PADDING: u64 = 4;

/// An open initrd, or the bytes of one. A clone reads from the same open file.
#[derive(Debug, Clone)]
pub struct InitrdFile {
    file: InputFile,
}

impl InitrdFile {
    /// Opens an initrd.
    ///
    /// # Errors
    /// The file cannot be opened, is not a regular file, or is empty.
    pub fn open(path: &Path) -> Result<Self, InputFileError> {
        Ok(Self { file: InputFile::open(FileRole::Initrd, path)? })
    }

    /// Takes the bytes of an initrd that is not in a file; error messages call it `name`.
    ///
    /// # Errors
    /// `bytes` is empty.
    pub fn from_bytes(name: &Path, bytes: Vec<u8>) -> Result<Self, InputFileError> {
        Ok(Self { file: InputFile::from_bytes(FileRole::Initrd, name, bytes)? })
    }

    /// Returns the file itself.
    pub fn file(&self) -> &InputFile {
        &self.file
    }
}

/// Returns the bytes that `initrds` take in guest memory one after the other, each padded to 4; `None` past
/// 2^64.
pub fn combined_len(initrds: &[InitrdFile]) -> Option<u64> {
    initrds.iter().try_fold(0u64, |sum, initrd| sum.checked_add(padded_len(initrd)?))
}

/// Returns the bytes that `initrd` takes in guest memory before the next one starts.
pub(crate) fn padded_len(initrd: &InitrdFile) -> Option<u64> {
    initrd.file.len().checked_next_multiple_of(PADDING)
}
