//! Files that are written when all is over, tried before anything starts: a run of an hour does not end with
//! a path that was never good.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::settings::Failure;

/// Opens the file of an option for writing, if there is one, and leaves everything as it was. A FIFO is not
/// opened: its reader would take that for the report, and its end.
///
/// # Errors
/// It cannot be written.
pub(super) fn check(option: &str, path: Option<&Path>) -> Result<(), Failure> {
    let Some(path) = path else { return Ok(()) };
    if fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo()) {
        return Ok(());
    }
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY);
    let tried = match options.open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            // A link to nothing stays: what it leads to is made now.
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

/// Empties the regular file of an option, if there is one already.
///
/// # Errors
/// It cannot be written.
pub(super) fn empty(option: &str, path: Option<&Path>) -> Result<(), Failure> {
    let Some(path) = path.filter(|path| path.is_file()) else { return Ok(()) };
    fs::write(path, "").map_err(|error| {
        Failure::usage(format!("{option} {}: it cannot be written: {error}", path.display()))
    })
}

/// Writes a report. A FIFO, or a terminal, waits for its reader: for `limit` at most, from the first look for
/// one to the last byte that is taken.
///
/// # Errors
/// It cannot be written, or nobody has read all of it in time.
pub(super) fn write(path: &Path, content: &[u8], limit: Duration) -> io::Result<()> {
    let start = Instant::now();
    let patiently = |error: io::Error| match error.raw_os_error() {
        Some(libc::ENXIO | libc::EAGAIN | libc::EINTR) if start.elapsed() < limit => {
            sleep(TURN);
            Ok(())
        }
        Some(libc::ENXIO | libc::EAGAIN) => Err(io::Error::other(format!(
            "nobody has read all of it within {} s; start its reader first, or name a regular file",
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

/// Makes a file for what comes piece by piece, or empties it. Nobody is waited for while it is written, so it
/// has to be a regular file.
///
/// # Errors
/// It cannot be made, or something else has its name.
pub(super) fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    let file = options.custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY).open(path)?;
    let is_regular = file.metadata()?.is_file();
    if is_regular {
        Ok(file)
    } else {
        Err(io::Error::other("something else than a regular file has its name"))
    }
}

/// How long a report waits for its reader, who may have other things to do first. A signal ends that earlier.
pub(super) const READER_LIMIT: Duration = Duration::from_secs(30);
/// The same after an end that the user has asked for: as long as stdout and stderr have then.
pub(super) const READER_LIMIT_AT_END: Duration = Duration::from_secs(1);
/// Between two looks for a reader.
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
        // SAFETY: a string with an end, which lives through the call.
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
