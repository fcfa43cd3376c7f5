//! A disk that is a file or a block device, byte for byte. Its content is never interpreted: whatever the
//! guest writes to it, it is a raw disk at the next start too.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use super::open::{DiskOpenError, FileLock, length_now, open};
use super::vectored::{read_all, write_all, write_zero_bytes};
use super::{DiskBackend, FileIdentity, FrozenDisk, end_inside, out_of_range};
use crate::memory::Span;

/// A raw disk.
#[derive(Debug)]
pub struct RawDisk {
    file: Arc<File>,
    capacity: u64,
    lock: FileLock,
    /// Whether it is a file, which a write past its end would make longer. A block device has a fixed end.
    is_file: bool,
}

impl RawDisk {
    /// Opens `path`. With a shared lock it is opened for reading only.
    ///
    /// # Errors
    /// It cannot be a disk, or another user has it open.
    pub fn open(path: &Path, lock: FileLock) -> Result<Self, DiskOpenError> {
        let (file, capacity) = open(path, lock)?;
        let is_file = file.metadata().is_ok_and(|metadata| !metadata.file_type().is_block_device());
        Ok(Self { file: Arc::new(file), capacity, lock, is_file })
    }

    /// Makes a read-only disk of an open file that nobody else knows.
    ///
    /// # Errors
    /// Its length cannot be read.
    pub fn of_file(file: File) -> io::Result<Self> {
        let capacity = length_now(file.as_fd())?;
        Ok(Self::read_only(Arc::new(file), capacity))
    }

    /// Makes a read-only disk of an open file or block device of this capacity.
    pub(super) fn read_only(file: Arc<File>, capacity: u64) -> Self {
        Self { file, capacity, lock: FileLock::Shared, is_file: true }
    }

    fn check(&self, offset: u64, len: u64) -> io::Result<u64> {
        end_inside(offset, len, self.capacity).ok_or_else(out_of_range)
    }

    /// Frees or clears a range by the file system's means.
    fn allocate(&self, mode: libc::c_int, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let end = self.check(offset, len)?;
        self.admit_write(offset, len)?;
        let at = libc::off_t::try_from(offset).map_err(|_| out_of_range())?;
        let count = libc::off_t::try_from(end.saturating_sub(offset)).map_err(|_| out_of_range())?;
        loop {
            // SAFETY: the call takes numbers and an open descriptor.
            let result = unsafe { libc::fallocate(self.file.as_raw_fd(), mode, at, count) };
            if result == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

impl DiskBackend for RawDisk {
    fn capacity(&self) -> u64 {
        self.capacity
    }

    fn is_read_only(&self) -> bool {
        self.lock == FileLock::Shared
    }

    fn read(&self, offset: u64, spans: &[Span]) -> io::Result<()> {
        self.check(offset, total(spans))?;
        read_all(self.file.as_fd(), offset, spans)
    }

    fn write(&self, offset: u64, spans: &[Span]) -> io::Result<()> {
        self.admit_write(offset, total(spans))?;
        write_all(self.file.as_fd(), offset, spans)
    }

    fn flush(&self) -> io::Result<()> {
        if self.is_read_only() { Ok(()) } else { self.file.sync_data() }
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.allocate(PUNCH_HOLE, offset, len) {
            Err(error) if is_unsupported(&error) => Ok(()),
            result => result,
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<u64> {
        let ways: &[libc::c_int] = if unmap { &[PUNCH_HOLE, ZERO_RANGE] } else { &[ZERO_RANGE] };
        for mode in ways {
            match self.allocate(*mode, offset, len) {
                Err(error) if is_unsupported(&error) => {}
                result => return result.map(|()| len),
            }
        }
        self.admit_write(offset, len)?;
        write_zero_bytes(&self.file, offset, len)
    }

    fn descriptor(&self) -> Option<RawFd> {
        Some(self.file.as_raw_fd())
    }

    /// Makes the checks of a write. Refuses to make a file longer again that someone has cut. (After a cut
    /// between this check and the write, the file grows up to its former length, which harms only the guest.)
    fn admit_write(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.is_read_only() {
            return Err(io::Error::from_raw_os_error(libc::EROFS));
        }
        let end = self.check(offset, len)?;
        // Not fstat(2): since Linux 6.13, the next write after a look at a file's times has to record new
        // ones, which makes a write to the page cache take almost twice as long.
        if self.is_file && (&*self.file).seek(SeekFrom::End(0))? < end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    fn identity(&self) -> io::Result<Option<FileIdentity>> {
        FileIdentity::of(&self.file)
    }

    fn freeze(&self) -> Option<FrozenDisk> {
        let Self { file, capacity, lock: _, is_file: _ } = self;
        self.is_read_only().then(|| FrozenDisk { base: file.clone(), capacity: *capacity, layers: None })
    }
}

pub(super) fn total(spans: &[Span]) -> u64 {
    spans.iter().map(|span| u64::from(span.len())).sum()
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV))
}

const PUNCH_HOLE: libc::c_int = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO_RANGE: libc::c_int = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
