//! Opens the file or block device of a disk, and keeps others from writing to it.

use crate::journal;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use super::SECTOR;

/// The reason why a file cannot be a disk. The caller puts the disk's name or path before it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskOpenError {
    /// The file cannot be opened.
    #[error("it cannot be opened: {source}")]
    Open {
        /// The error that the host returned.
        r#source: io::Error,
    },
    /// The path is neither a file nor a block device.
    #[error("a disk has to be a regular file or a block device")]
    Kind,
    /// The host makes the block device read-only.
    #[error(
        "the device is read-only; use `ro` for a read-only disk, or `cow` to keep the guest's writes elsewhere"
    )]
    ReadOnlyDevice,
    /// The length is not one of a disk.
    #[error(
        "a disk has at least one sector of {SECTOR} bytes and only whole ones, and this has {len} bytes; \
         `truncate -s %{SECTOR} FILE` rounds a file up"
    )]
    Length {
        /// The length in bytes.
        len: u64,
    },
    /// Another user has it open in a way that excludes this one.
    #[error(
        "another program, or another disk of this one, has it open{}",
        if *writes { "; use `ro` or `cow` to share it with others that only read" } else { " for writing" }
    )]
    Busy {
        /// Whether this disk wants to write.
        writes: bool,
    },
}

/// The lock on a disk's file, which other programs with such locks respect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileLock {
    /// Nobody else may have the file open. For writing.
    Exclusive,
    /// Others may read the file too.
    Shared,
}

/// Opens a file or block device that may be a disk, and returns it with its length in bytes.
pub(super) fn open(path: &Path, lock: FileLock) -> Result<(File, u64), DiskOpenError> {
    let failed = |source| DiskOpenError::Open { source };
    let writes = lock == FileLock::Exclusive;
    // Non-blocking, because opening a FIFO would wait for its other end. Files and block devices are not
    // affected.
    let options = OpenOptions::new().read(true).write(writes).custom_flags(libc::O_NONBLOCK).clone();
    let file = match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
            return Err(DiskOpenError::Kind);
        }
        result => result.map_err(failed)?,
    };
    let metadata = file.metadata().map_err(failed)?;
    let kind = metadata.file_type();
    let len = if kind.is_file() {
        metadata.len()
    } else if kind.is_block_device() {
        (&file).seek(SeekFrom::End(0)).map_err(failed)?
    } else {
        return Err(DiskOpenError::Kind);
    };
    if writes && kind.is_block_device() && is_read_only(&file).map_err(failed)? {
        return Err(DiskOpenError::ReadOnlyDevice);
    }
    if len == 0 || !len.is_multiple_of(SECTOR) {
        return Err(DiskOpenError::Length { len });
    }
    match lock_file(&file, lock) {
        Ok(()) => Ok((file, len)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            Err(DiskOpenError::Busy { writes })
        }
        // On a file system without locks, other users cannot be noticed.
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOLCK | libc::EINVAL)) =>
        {
            journal!(Host Warn,
                "{}: its file system has no locks, so a second writer cannot be noticed",
                path.display()
            );
            Ok((file, len))
        }
        Err(error) => Err(failed(error)),
    }
}

/// Returns whether a block device refuses writes. Most can be opened for writing all the same.
fn is_read_only(device: &File) -> io::Result<bool> {
    let mut answer: libc::c_int = 0;
    // SAFETY: the call writes one int to the address that it is given.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), BLKROGET, &raw mut answer) };
    if result == 0 { Ok(answer != 0) } else { Err(io::Error::last_os_error()) }
}

/// The request number `_IO(0x12, 94)` of `linux/fs.h`.
const BLKROGET: libc::c_ulong = 0x125e;

/// Locks the whole file for as long as it is open. It is an OFD lock of fcntl(2), which closing another
/// descriptor of the same file does not end.
fn lock_file(file: &File, lock: FileLock) -> io::Result<()> {
    let kind = match lock {
        FileLock::Exclusive => libc::F_WRLCK,
        FileLock::Shared => libc::F_RDLCK,
    };
    let whole = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the structure lives through the call, which only reads it.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const whole) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Returns the present length of an open file.
pub(super) fn length_now(file: BorrowedFd<'_>) -> io::Result<u64> {
    // SAFETY: all fields are numbers, for which zero is a valid value.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the structure has space for the answer.
    let result = unsafe { libc::fstat(file.as_raw_fd(), &raw mut stat) };
    if result == 0 {
        Ok(u64::try_from(stat.st_size).unwrap_or_default())
    } else {
        Err(io::Error::last_os_error())
    }
}
