//! Files that have no name and are gone when they are closed: overlays, images and archives that are made for
//! a machine, and memory that is a file.

use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Creates a file on the file system of `folder`. Only its owner may read and write it.
///
/// # Errors
/// The folder takes no files, or its file system does not keep a file that has lost its name (9p):
/// [`Unsupported`](io::ErrorKind::Unsupported).
pub fn create_in(folder: &Path) -> io::Result<File> {
    match options().custom_flags(libc::O_TMPFILE).open(folder) {
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)) =>
        {
            removed_file(folder)
        }
        result => result,
    }
}

/// Creates a file of `bytes` bytes, all zero, that exists in memory only; mappings of it keep it. /proc shows
/// `name`. It can be sealed (`F_ADD_SEALS` of fcntl(2)).
///
/// # Errors
/// This process has too many open files, or the size is out of range.
pub fn create_in_memory(name: &CStr, bytes: u64) -> io::Result<File> {
    // SAFETY: the name is a string with an end.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len(bytes)?;
    Ok(file)
}

/// The same as [`create_in`] on a file system without such files (`O_TMPFILE` of `open(2)`): it loses its
/// name at once.
fn removed_file(folder: &Path) -> io::Result<File> {
    let name = folder.join(format!(".coracle-{}-{:x}", std::process::id(), random()));
    let file = options().create_new(true).open(&name)?;
    fs::remove_file(&name)?;
    // 9p asks for the name again, and finds none.
    let is_kept = file.set_len(1).and_then(|()| file.metadata()).is_ok_and(|found| found.size() == 1);
    if !is_kept {
        let why = "its file system does not keep a file that has lost its name, as 9p does not";
        return Err(io::Error::new(io::ErrorKind::Unsupported, why));
    }
    file.set_len(0)?;
    Ok(file)
}

fn options() -> OpenOptions {
    OpenOptions::new().read(true).write(true).mode(0o600).clone()
}

fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn file_has_no_name_whichever_way_it_was_made() {
        let folder = std::env::temp_dir().join(format!("coracle-nameless-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        for make in [create_in, removed_file] {
            let file = make(&folder).unwrap();
            let found = file.metadata().unwrap();
            assert_eq!((found.nlink(), found.size(), found.mode() & 0o7777), (0, 0, 0o600));
            assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
            file.write_all_at(b"kept", 10_000).unwrap();
            let mut bytes = [0; 4];
            file.read_exact_at(&mut bytes, 10_000).unwrap();
            assert_eq!(&bytes, b"kept");
        }
        fs::remove_dir(&folder).unwrap();
        for make in [create_in, removed_file] {
            assert_eq!(make(&folder).unwrap_err().kind(), io::ErrorKind::NotFound);
        }
    }
}
