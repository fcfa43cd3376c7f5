//! The destination of a console's output: a descriptor, or a file of limited size.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use coracle_devices::backend::chardev::{CharError, CharSink, Written};
use coracle_devices::journal;

/// Takes the bytes of a console.
pub(super) enum Output {
    /// A descriptor without a limit.
    Descriptor(CharSink),
    /// A file with a limit.
    File(LimitedFile),
}

impl Output {
    /// Writes as much of `bytes` as is possible without blocking; a file takes all of it.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Written {
        match self {
            Output::Descriptor(sink) => sink.write(bytes),
            Output::File(file) => file.write(bytes),
        }
    }

    /// See [`CharSink::poll_fd`].
    pub(super) fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Output::Descriptor(sink) => sink.poll_fd(),
            Output::File(file) => file.sink.poll_fd(),
        }
    }
}

/// A file that, when it reaches its limit, is renamed to the same name with `.1` appended. The guest's last
/// bytes are in one of the two files, which together have at most twice the limit.
pub(super) struct LimitedFile {
    path: PathBuf,
    file: File,
    sink: CharSink,
    limit: u64,
    /// The number of bytes in the file.
    written: u64,
}

impl LimitedFile {
    /// Creates the file at `path`, or truncates it. A path that is not a regular file, such as a FIFO, has no
    /// limit.
    ///
    /// # Errors
    /// The outer error means that the path cannot be opened for writing; the inner one that it cannot serve
    /// as a console.
    pub(super) fn create(path: &Path, limit: Option<u64>) -> io::Result<Result<Output, CharError>> {
        // With O_NONBLOCK, a FIFO without a reader is an error instead of a wait.
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let options = OpenOptions::new().write(true).create(true).truncate(true).custom_flags(flags).clone();
        let file = options.open(path)?;
        let sink = match CharSink::new(file.as_fd()) {
            Ok(sink) => sink,
            Err(error) => return Ok(Err(error)),
        };
        let Some(limit) = limit.filter(|_| file.metadata().is_ok_and(|metadata| metadata.is_file())) else {
            return Ok(Ok(Output::Descriptor(sink)));
        };
        // Resolve links, so that the file itself is renamed and not a link to it.
        let path = fs::canonicalize(path)?;
        Ok(Ok(Output::File(LimitedFile { path, file, sink, limit, written: 0 })))
    }

    fn write(&mut self, bytes: &[u8]) -> Written {
        let mut done = 0;
        while let Some(rest @ [_, ..]) = bytes.get(done..) {
            if self.written >= self.limit
                && let Err(error) = self.start_new_file()
            {
                return Written::Closed { errno: error.raw_os_error().unwrap_or(libc::EIO) };
            }
            let room = usize::try_from(self.limit.saturating_sub(self.written)).unwrap_or(usize::MAX);
            match self.sink.write(rest.get(..room).unwrap_or(rest)) {
                Written::Wrote(count) => {
                    done = done.saturating_add(count);
                    self.written = self.written.saturating_add(count as u64);
                }
                // Report what was written first; the next call meets the same obstacle.
                Written::WouldBlock | Written::Closed { .. } if done > 0 => break,
                other => return other,
            }
        }
        Written::Wrote(done)
    }

    /// Starts with an empty file. The old content is kept in the renamed file if renaming is possible.
    fn start_new_file(&mut self) -> io::Result<()> {
        let rotated = self.rotate();
        let path = self.path.display();
        match rotated {
            Ok(()) => {
                journal!(Guest Info, "{path} is full: it has been renamed to {path}.1, and the console continues in \
                    a new file");
            }
            Err(error) => {
                journal!(Host Warn, "{path} is full and has been truncated, because it cannot be renamed: {error}");
                self.file.set_len(0)?;
                self.file.rewind()?;
            }
        }
        self.written = 0;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let (ours, there) = (self.file.metadata()?, fs::symlink_metadata(&self.path));
        match there {
            Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => {
                let mut old = self.path.clone().into_os_string();
                old.push(".1");
                fs::rename(&self.path, old)?;
            }
            Ok(_) => return Err(io::Error::other("another file has its name now")),
            // Another process has already renamed the file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let options = OpenOptions::new().write(true).create_new(true).mode(ours.mode() & 0o777).clone();
        let file = options.open(&self.path)?;
        self.sink = CharSink::new(file.as_fd()).map_err(io::Error::other)?;
        self.file = file;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    fn create(path: &Path) -> Output {
        LimitedFile::create(path, Some(10)).unwrap().unwrap()
    }

    fn read(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn file_goes_on_in_a_new_one_and_the_old_one_stays() {
        let folder = TempDir::new().unwrap();
        let (path, old) = (folder.as_path().join("log"), folder.as_path().join("log.1"));
        let mut output = create(&path);
        assert_eq!(output.write(b"0123456789"), Written::Wrote(10));
        assert!(!old.exists(), "a full file stays until there is more");
        assert_eq!(output.write(b"abcdefghijklmno"), Written::Wrote(15));
        assert_eq!((read(&old), read(&path)), ("abcdefghij".into(), "klmno".into()));
        assert_eq!(output.write(&[b'x'; 100]), Written::Wrote(100));
        assert_eq!((read(&old).len(), read(&path).len()), (10, 5));
    }

    #[test]
    fn file_that_was_moved_is_left_alone_and_one_in_its_place_is_not_touched() {
        let folder = TempDir::new().unwrap();
        let (path, moved) = (folder.as_path().join("log"), folder.as_path().join("moved"));
        let mut output = create(&path);
        output.write(b"0123456789");
        fs::rename(&path, &moved).unwrap();
        output.write(b"abcdefghij");
        assert_eq!((read(&moved), read(&path)), ("0123456789".into(), "abcdefghij".into()));
        fs::remove_file(&path).unwrap();
        fs::write(&path, "other").unwrap();
        assert_eq!(output.write(b"klm"), Written::Wrote(3));
        assert_eq!(read(&path), "other");
    }

    #[test]
    fn file_that_cannot_be_moved_begins_again() {
        let folder = TempDir::new().unwrap();
        let path = folder.as_path().join("log");
        let mut output = create(&path);
        output.write(b"0123456789");
        // A non-empty directory cannot be replaced by a rename.
        fs::create_dir_all(folder.as_path().join("log.1/x")).unwrap();
        assert_eq!(output.write(b"abc"), Written::Wrote(3));
        assert_eq!(read(&path), "abc");
    }

    #[test]
    fn link_is_followed_and_a_device_has_no_limit() {
        let folder = TempDir::new().unwrap();
        let (path, link) = (folder.as_path().join("log"), folder.as_path().join("link"));
        fs::write(&path, "before").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let mut output = create(&link);
        output.write(b"0123456789ab");
        assert_eq!((read(&link), read(&folder.as_path().join("log.1"))), ("ab".into(), "0123456789".into()));
        let mut output = create(Path::new("/dev/null"));
        assert_eq!(output.write(&[0; 64]), Written::Wrote(64));
        assert!(matches!(output, Output::Descriptor(_)));
    }
}
