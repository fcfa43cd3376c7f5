//! Files that are written when all is over, tried before anything starts: a run of an hour does not end with a path
//! that was never good.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::settings::Failure;

/// Opens the file of an option for writing, if there is one, and leaves everything as it was. A FIFO is not opened: its
/// reader would take that for the report, and its end.
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

/// Writes a report. A FIFO waits for its reader: for `limit` at most, where there is one.
///
/// # Errors
/// It cannot be written, or nobody has read all of it in time.
pub(super) fn write(path: &Path, text: &str, limit: Option<Duration>) -> io::Result<()> {
    let is_fifo = fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo());
    let Some(limit) = limit.filter(|_| is_fifo) else { return fs::write(path, text) };
    let start = Instant::now();
    let patiently = |error: io::Error| match error.raw_os_error() {
        Some(libc::ENXIO | libc::EAGAIN | libc::EINTR) if start.elapsed() < limit => {
            sleep(TURN);
            Ok(())
        }
        Some(libc::ENXIO | libc::EAGAIN) => Err(io::Error::other("nobody reads the FIFO")),
        _ => Err(error),
    };
    let options = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).clone();
    let mut file = loop {
        match options.open(path) {
            Ok(file) => break file,
            Err(error) => patiently(error)?,
        }
    };
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        match file.write(rest) {
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(error) => patiently(error)?,
        }
    }
    Ok(())
}

/// Between two looks for a reader.
const TURN: Duration = Duration::from_millis(10);
