//! The source of a kernel or initrd: a file that the user named, which is read straight into guest memory, or
//! bytes that were made from such a file.
//!
//! A file that grows or shrinks is not followed: its length is taken once, and a later short read is an
//! error.

use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::field::{Field, INITRDS, KERNEL};
use crate::regular_file::{self, RegularFileError};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, ReadVolatile};

/// An open regular file, or bytes. It is never empty. A clone reads from the same open file.
#[derive(Debug, Clone)]
pub struct InputFile {
    path: PathBuf,
    len: u64,
    content: Arc<Content>,
}

/// The source of the bytes.
enum Content {
    /// Reading into guest memory moves the file position, so that two loads from one file must take turns.
    File(Mutex<File>),
    Memory(Vec<u8>),
}

/// The purpose of a file. Its setting starts the error messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileRole {
    /// The kernel, or another image that the first CPU starts in.
    Kernel,
    /// An initial RAM disk.
    Initrd,
}

/// The reason why a file was refused before its content was read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InputFileError {
    /// The file could not be opened, or its metadata not read.
    #[error("{} {path:?}: cannot open it: {source}", role.field())]
    Open {
        /// The purpose of the file.
        role: FileRole,
        /// The path that the user gave.
        path: PathBuf,
        /// The error that the host returned.
        r#source: io::Error,
    },
    /// The path names a directory, FIFO, device or socket.
    #[error("{} {path:?} is {kind}, but a regular file is needed", role.field())]
    NotRegular {
        /// The purpose of the file.
        role: FileRole,
        /// The path that the user gave.
        path: PathBuf,
        /// The kind of the file, with its article.
        kind: &'static str,
    },
    /// The file holds no bytes.
    #[error("{} {path:?} is empty (0 bytes); check the step that made it", role.field())]
    Empty {
        /// The purpose of the file.
        role: FileRole,
        /// The path that the user gave.
        path: PathBuf,
    },
}

impl InputFile {
    /// Opens `path` for reading.
    ///
    /// # Errors
    /// The file cannot be opened, is not a regular file, or is empty. A FIFO without a writer is refused at
    /// once.
    pub fn open(role: FileRole, path: &Path) -> Result<Self, InputFileError> {
        let (file, metadata) = regular_file::open(path).map_err(|error| match error {
            RegularFileError::Kind { kind } => {
                InputFileError::NotRegular { role, path: path.to_owned(), kind }
            }
            other => InputFileError::Open { role, path: path.to_owned(), source: other.into() },
        })?;
        if metadata.len() == 0 {
            return Err(InputFileError::Empty { role, path: path.to_owned() });
        }
        Ok(Self { path: path.to_owned(), len: metadata.len(), content: Content::of(file) })
    }

    /// Takes `bytes` that were made from the file `path`. Error messages still name `path`.
    ///
    /// # Errors
    /// `bytes` is empty.
    pub fn from_bytes(role: FileRole, path: &Path, bytes: Vec<u8>) -> Result<Self, InputFileError> {
        let path = path.to_owned();
        if bytes.is_empty() {
            return Err(InputFileError::Empty { role, path });
        }
        Ok(Self { path, len: bytes.len() as u64, content: Arc::new(Content::Memory(bytes)) })
    }

    /// Takes a file that was made from the file `path`. Error messages still name `path`.
    ///
    /// # Errors
    /// It is empty, or its length cannot be read.
    pub fn from_file(role: FileRole, path: &Path, file: File) -> Result<Self, InputFileError> {
        let path = path.to_owned();
        match file.metadata() {
            Err(source) => Err(InputFileError::Open { role, path, source }),
            Ok(metadata) if metadata.len() == 0 => Err(InputFileError::Empty { role, path }),
            Ok(metadata) => Ok(Self { path, len: metadata.len(), content: Content::of(file) }),
        }
    }

    /// Returns the path that the user gave.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the length in bytes at the time of opening. It is never 0, so there is no `is_empty`.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns what the host says of the open file. `None` for bytes, and if the host does not say it.
    pub fn metadata(&self) -> Option<Metadata> {
        match &*self.content {
            Content::File(file) => lock(file).metadata().ok(),
            Content::Memory(_) => None,
        }
    }

    /// Fills `buf` from `offset` of the file.
    ///
    /// # Errors
    /// The file ends before `buf` is full, or reading fails.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match &*self.content {
            Content::File(file) => lock(file).read_exact_at(buf, offset),
            Content::Memory(bytes) => {
                buf.copy_from_slice(range(bytes, offset, buf.len() as u64)?);
                Ok(())
            }
        }
    }

    /// Reads `count` bytes from `offset` of the file into guest memory at `address`, without a copy in
    /// between.
    ///
    /// # Errors
    /// The range is not all RAM, the file ends before it, or reading fails.
    pub(crate) fn read_into(
        &self,
        memory: &GuestMemoryMmap,
        offset: u64,
        address: u64,
        count: u64,
    ) -> Result<(), GuestMemoryError> {
        let address = GuestAddress(address);
        let mut file = match &*self.content {
            Content::File(file) => lock(file),
            Content::Memory(bytes) => {
                let bytes = range(bytes, offset, count).map_err(GuestMemoryError::IOError)?;
                return memory.write_slice(bytes, address);
            }
        };
        file.seek(SeekFrom::Start(offset)).map_err(GuestMemoryError::IOError)?;
        let count = usize::try_from(count).map_err(|_| GuestMemoryError::InvalidGuestAddress(address))?;
        // One read per slice: vm-memory's `read_exact_volatile_from` makes a single call for each, and a read
        // may return less although the file goes on (9p returns at most half a megabyte).
        for slice in memory.get_slices(address, count) {
            file.read_exact_volatile(&mut slice?)?;
        }
        Ok(())
    }
}

impl Content {
    fn of(file: File) -> Arc<Content> {
        Arc::new(Content::File(Mutex::new(file)))
    }
}

/// Shows the variant without the bytes, of which there may be many millions.
impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File(_) => "File",
            Self::Memory(_) => "Memory",
        })
    }
}

impl FileRole {
    /// The setting that names such a file.
    const fn field(self) -> Field {
        match self {
            Self::Kernel => KERNEL,
            Self::Initrd => INITRDS,
        }
    }
}

fn lock(file: &Mutex<File>) -> MutexGuard<'_, File> {
    // A panic elsewhere leaves at worst another file position, which each use sets first.
    file.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns `count` of the bytes from `offset` on.
fn range(bytes: &[u8], offset: u64, count: u64) -> io::Result<&[u8]> {
    let start = usize::try_from(offset).ok();
    let count = usize::try_from(count).ok();
    let rest = start.and_then(|start| bytes.get(start..));
    rest.zip(count)
        .and_then(|(rest, count)| rest.get(..count))
        .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;

    use vmm_sys_util::tempdir::TempDir;
    use vmm_sys_util::tempfile::TempFile;

    use super::*;

    fn message(path: &Path) -> String {
        InputFile::open(FileRole::Initrd, path).unwrap_err().to_string()
    }

    #[test]
    fn missing_file_is_named() {
        let message = message(Path::new("/nonexistent/initrd.img"));
        assert_eq!(
            message,
            r#"initrds "/nonexistent/initrd.img": cannot open it: No such file or directory (os error 2)"#
        );
    }

    #[test]
    fn directory_and_device_are_refused() {
        assert!(message(Path::new("/")).contains("is a directory"));
        assert!(message(Path::new("/dev/null")).contains("is a character device"));
    }

    #[test]
    fn fifo_without_writer_is_refused_at_once() {
        let dir = TempDir::new().unwrap();
        let path = dir.as_path().join("fifo");
        let name = CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: `name` is a NUL-terminated string that lives through the call.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        assert!(message(&path).contains("is a FIFO"));
    }

    #[test]
    fn empty_file_is_refused() {
        assert!(message(TempFile::new().unwrap().as_path()).contains("is empty"));
        let error = InputFile::from_bytes(FileRole::Initrd, Path::new("/made/of"), Vec::new()).unwrap_err();
        assert_eq!(
            error.to_string(),
            r#"initrds "/made/of" is empty (0 bytes); check the step that made it"#
        );
    }

    #[test]
    fn bytes_are_read_as_a_file_of_them_would_be() {
        let content: Vec<u8> = (0..200).collect();
        let file = TempFile::new().unwrap();
        std::io::Write::write_all(&mut file.as_file(), &content).unwrap();
        let path = file.as_path();
        let opened = InputFile::open(FileRole::Kernel, path).unwrap();
        let made = InputFile::from_bytes(FileRole::Kernel, path, content).unwrap();
        assert_eq!((opened.len(), opened.path()), (made.len(), made.path()));
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        for (offset, count) in [(0, 200), (150, 50), (150, 51), (200, 1), (u64::MAX, 1)] {
            let [of_file, of_memory] = [&opened, &made].map(|input| {
                let mut bytes = vec![0; count as usize];
                let read = input.read_at(offset, &mut bytes).ok().map(|()| bytes);
                let loaded = input.read_into(&memory, offset, 8, count).ok();
                (read, loaded.map(|()| memory.read_obj::<[u8; 32]>(GuestAddress(8)).unwrap()))
            });
            assert_eq!(of_file, of_memory, "{count} bytes at {offset}");
            assert_eq!(
                of_file.0.is_some(),
                offset < 200 && offset + count <= 200,
                "{count} bytes at {offset}"
            );
        }
    }
}
