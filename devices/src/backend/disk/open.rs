//! Opening the file or block device of a disk, and keeping others from writing to it.

use crate::journal;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use super::SECTOR;

/// Why a file cannot be a disk. Who names the disk to its user puts the path before it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskOpenError {
    /// It cannot be opened.
    #[error("it cannot be opened: {source}")]
    Open {
        /// What the system said.
        r#source: io::Error,
    },
    /// Neither a file nor a block device.
    #[error("a disk has to be a regular file or a block device")]
    Kind,
    /// A block device that its host lets nobody write to.
    #[error(
        "the device is read-only: `ro` gives it to the guest as it is, `cow` keeps elsewhere what the guest writes"
    )]
    ReadOnlyDevice,
    /// A length that no disk has.
    #[error(
        "a disk has at least one sector of {SECTOR} bytes and whole ones only, and this is {len} bytes \
         (`truncate -s %{SECTOR}` rounds a file up)"
    )]
    Length {
        /// Bytes.
        len: u64,
    },
    /// Somebody else has it open in a way that excludes this one.
    #[error(
        "another program, or another disk of this one, has it open{}; `ro` lets several read it, `cow` too",
        if *writes { "" } else { " for writing" }
    )]
    Busy {
        /// Whether this one wants to write.
        writes: bool,
    },
}

/// How a disk's file is held against other users of this kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileLock {
    /// Nobody else may have it: for writing.
    Exclusive,
    /// Others may read it, too.
    Shared,
}

/// An open file or block device that is a possible disk, and its bytes.
pub(super) fn open(path: &Path, lock: FileLock) -> Result<(File, u64), DiskOpenError> {
    let failed = |source| DiskOpenError::Open { source };
    let writes = lock == FileLock::Exclusive;
    // Non-blocking: opening a FIFO would wait for its other end. Files and block devices do not care.
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
        // A file system without locks has nobody to tell of.
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOLCK | libc::EINVAL)) =>
        {
            journal!(Host Warn,
                "{}: its file system has no locks: nothing keeps a second writer away",
                path.display()
            );
            Ok((file, len))
        }
        Err(error) => Err(failed(error)),
    }
}

/// Whether a block device refuses writes: most can be opened for them all the same.
fn is_read_only(device: &File) -> io::Result<bool> {
    let mut answer: libc::c_int = 0;
    // SAFETY: the call writes one int to the place that it is given.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), BLKROGET, &raw mut answer) };
    if result == 0 { Ok(answer != 0) } else { Err(io::Error::last_os_error()) }
}

/// `_IO(0x12, 94)` of `linux/fs.h`.
const BLKROGET: libc::c_ulong = 0x125e;

/// Locks the whole file for as long as it is open (an OFD lock of fcntl(2): closing another descriptor of the same file
/// does not end it).
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

/// The length of an open file now.
pub(super) fn length_now(file: BorrowedFd<'_>) -> io::Result<u64> {
    // SAFETY: plain numbers, for which zero is a value.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the structure has room for the answer.
    let result = unsafe { libc::fstat(file.as_raw_fd(), &raw mut stat) };
    if result == 0 {
        Ok(u64::try_from(stat.st_size).unwrap_or_default())
    } else {
        Err(io::Error::last_os_error())
    }
}
