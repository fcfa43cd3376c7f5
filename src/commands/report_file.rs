//! Files that are written when all is over, tried before anything starts: a run of an hour does not end with a path
//! that was never good.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

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
