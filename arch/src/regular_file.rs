//! Opens and reads regular files whose path came from a user or another file: without waiting for anybody,
//! and up to a limit. The loader of guest memory, the library and the command open all such files here.

use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// The reason why a file is refused.
#[derive(Debug, thiserror::Error)]
pub enum RegularFileError {
    /// The host cannot open or read it.
    #[error(transparent)]
    Host(#[from] io::Error),
    /// The path is that of a directory, FIFO, device or socket.
    #[error("it is {kind}, but a regular file is needed")]
    Kind {
        /// The kind of the file, with its article.
        kind: &'static str,
    },
    /// The file is longer than any of its kind.
    #[error("it has more than {limit} bytes, the most that such a file has")]
    TooLong {
        /// The largest number of bytes.
        limit: u64,
    },
}

impl From<RegularFileError> for io::Error {
    fn from(error: RegularFileError) -> io::Error {
        match error {
            RegularFileError::Host(error) => error,
            RegularFileError::Kind { .. } => io::Error::new(io::ErrorKind::InvalidInput, error),
            RegularFileError::TooLong { .. } => io::Error::new(io::ErrorKind::FileTooLarge, error),
        }
    }
}

/// Opens a regular file for reading.
///
/// # Errors
/// The host cannot open the file, or it is of another kind. A FIFO without a writer is refused at once.
pub fn open(path: &Path) -> Result<(File, Metadata), RegularFileError> {
    // Non-blocking, because opening a FIFO would wait for its writer. A regular file is not affected.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(RegularFileError::Kind { kind: kind_of(metadata.file_type()) });
    }
    Ok((file, metadata))
}

/// Reads a regular file of `limit` bytes at most.
///
/// # Errors
/// The errors of [`open`]; the file cannot be read, or is longer.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>, RegularFileError> {
    let (file, metadata) = open(path)?;
    if metadata.len() > limit {
        return Err(RegularFileError::TooLong { limit });
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or_default());
    // A file of /proc has a length of 0, and any file may grow.
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { Err(RegularFileError::TooLong { limit }) } else { Ok(bytes) }
}

/// Reads a regular file of UTF-8, of `limit` bytes at most.
///
/// # Errors
/// The errors of [`read`], or the file is not UTF-8.
pub fn read_text(path: &Path, limit: u64) -> Result<String, RegularFileError> {
    let not_text = |error| RegularFileError::Host(io::Error::new(io::ErrorKind::InvalidData, error));
    String::from_utf8(read(path, limit)?).map_err(not_text)
}

fn kind_of(file_type: FileType) -> &'static str {
    if file_type.is_dir() {
        "a directory"
    } else if file_type.is_fifo() {
        "a FIFO"
    } else if file_type.is_char_device() {
        "a character device"
    } else if file_type.is_block_device() {
        "a block device"
    } else {
        "a special file"
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;

    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    #[test]
    fn only_regular_files_are_read_and_nobody_is_waited_for() {
        let folder = TempDir::new().unwrap();
        let fifo = folder.as_path().join("fifo");
        let name = CString::new(fifo.as_os_str().as_bytes()).unwrap();
        // SAFETY: `name` is a NUL-terminated string that lives through the call.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        for (path, kind) in [
            (Path::new("/"), "a directory"),
            (&fifo, "a FIFO"),
            (Path::new("/dev/zero"), "a character device"),
        ] {
            let error = read(path, 10).unwrap_err().to_string();
            assert_eq!(error, format!("it is {kind}, but a regular file is needed"));
        }
    }

    #[test]
    fn file_is_read_up_to_its_limit() {
        let folder = TempDir::new().unwrap();
        let path = folder.as_path().join("file");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read_text(&path, 5).unwrap(), "12345");
        assert!(matches!(read(&path, 4), Err(RegularFileError::TooLong { limit: 4 })));
        // A file that does not report its length.
        assert!(matches!(read(Path::new("/proc/self/maps"), 4), Err(RegularFileError::TooLong { .. })));
        std::fs::write(&path, b"\xff").unwrap();
        assert_eq!(io::Error::from(read_text(&path, 5).unwrap_err()).kind(), io::ErrorKind::InvalidData);
    }
}
