//! Files that are written at the end of a run. They are checked before anything starts, so that a run of an
//! hour does not end with a path that was never usable.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::settings::Failure;

/// Checks that the file of an option, if there is one, can be opened for writing, and leaves everything as it
/// was. A FIFO is not opened: its reader would take that for an empty report.
///
/// # Errors
/// The file cannot be written.
pub(super) fn check(option: &str, path: Option<&Path>) -> Result<(), Failure> {
    let Some(path) = path else { return Ok(()) };
    if fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo()) {
        return Ok(());
    }
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY);
    let tried = match options.open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            // A dangling link stays; the file that it names is created now.
            let is_link = path.is_symlink();
            let made = options.create(true).open(path);
            made.and_then(|_| if is_link { Ok(()) } else { fs::remove_file(path) })
        }
        tried => tried.map(drop),
    };
    tried.map_err(|error| {
        Failure::usage(format!("{option} {}: it cannot be written: {error}", path.display()))
    })
}

/// Truncates the regular file of an option, if it exists.
///
/// # Errors
/// The file cannot be written.
pub(super) fn empty(option: &str, path: Option<&Path>) -> Result<(), Failure> {
    let Some(path) = path.filter(|path| path.is_file()) else { return Ok(()) };
    fs::write(path, "").map_err(|error| {
        Failure::usage(format!("{option} {}: it cannot be written: {error}", path.display()))
    })
}

/// Writes a report. A FIFO or a terminal may have to wait for its reader: `limit` bounds the time from
/// looking for a reader to the last byte that it takes.
///
/// # Errors
/// The file cannot be written, or its reader has not taken all of it in time.
pub(super) fn write(path: &Path, content: &[u8], limit: Duration) -> io::Result<()> {
    let start = Instant::now();
    let patiently = |error: io::Error| match error.raw_os_error() {
        Some(libc::ENXIO | libc::EAGAIN | libc::EINTR) if start.elapsed() < limit => {
            sleep(TURN);
            Ok(())
        }
        Some(libc::ENXIO | libc::EAGAIN) => Err(io::Error::other(format!(
            "its reader has not taken all of it within {} s; start its reader first, or name a regular file",
            limit.as_secs()
        ))),
        _ => Err(error),
    };
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    options.custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY);
    let mut file = loop {
        match options.open(path) {
            Ok(file) => break file,
            Err(error) => patiently(error)?,
        }
    };
    let mut rest = content;
    while !rest.is_empty() {
        match file.write(rest) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(error) => patiently(error)?,
        }
    }
    Ok(())
}

/// Creates or truncates a file that is written piece by piece. It has to be a regular file, because writing
/// must not wait for a reader.
///
/// # Errors
/// The file cannot be created, or something that is not a regular file has its name.
pub(super) fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    let file = options.custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY).open(path)?;
    let is_regular = file.metadata()?.is_file();
    if is_regular {
        Ok(file)
    } else {
        Err(io::Error::other("something other than a regular file has its name"))
    }
}

/// How long a report waits for its reader, which may have other things to do first. A signal ends the wait.
pub(super) const READER_LIMIT: Duration = Duration::from_secs(30);
/// How long it waits after an end that the user has asked for: the same time that stdout and stderr get then.
pub(super) const READER_LIMIT_AT_END: Duration = Duration::from_secs(1);
/// How often to look for a reader.
const TURN: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;
    use std::path::PathBuf;
    use std::thread;

    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    const LIMIT: Duration = Duration::from_millis(200);

    fn fifo(folder: &TempDir) -> PathBuf {
        let path = folder.as_path().join("fifo");
        let name = CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: the pointer is to a nul-terminated string that outlives the call.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        path
    }

    #[test]
    fn fifo_without_a_reader_and_one_whose_reader_sleeps_are_waited_for_up_to_the_limit() {
        let folder = TempDir::new().unwrap();
        let path = fifo(&folder);
        let refused = |content: &[u8]| {
            let error = write(&path, content, LIMIT).unwrap_err().to_string();
            assert!(error.contains("start its reader first, or name a regular file"), "{error}");
        };
        refused(b"report");
        let _sleeps = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        refused(&vec![b'x'; 4 << 20]);
        assert!(create(&path).unwrap_err().to_string().contains("regular file"));
    }

    #[test]
    fn reader_that_comes_late_has_all_of_it() {
        let folder = TempDir::new().unwrap();
        let path = fifo(&folder);
        let report = vec![b'x'; 300_000];
        let reader = thread::spawn({
            let path = path.clone();
            move || {
                sleep(LIMIT);
                fs::read(path).unwrap()
            }
        });
        write(&path, &report, READER_LIMIT).unwrap();
        assert!(reader.join().unwrap() == report);
    }

    #[test]
    fn regular_file_has_the_report_alone() {
        let folder = TempDir::new().unwrap();
        let path = folder.as_path().join("report");
        fs::write(&path, "an older and longer one").unwrap();
        write(&path, b"report", Duration::ZERO).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"report");
        assert!(fs::metadata(create(&path).map(|_| &path).unwrap()).unwrap().len() == 0);
    }
}
