//! A folder that is open: everything in it is reached through its descriptor, so that neither a link nor a
//! folder that takes its name meanwhile leads elsewhere.

use std::ffi::{CStr, CString};
use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// An open folder.
#[derive(Debug)]
pub(super) struct Folder {
    file: File,
    path: PathBuf,
}

impl Folder {
    /// Opens the folder at `path`, which the user has named: it may be a link.
    pub(super) fn open(path: &Path) -> io::Result<Folder> {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(path)?;
        Ok(Folder { file, path: path.to_owned() })
    }

    /// Opens a folder in this one. A link is refused.
    pub(super) fn open_folder(&self, name: &CStr) -> io::Result<Folder> {
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        Ok(Folder { file: self.open_at(name, flags, 0)?, path: self.join(name) })
    }

    /// Makes a folder that only its owner may use, whatever the umask.
    pub(super) fn make_folder(&self, name: &CStr) -> io::Result<()> {
        // SAFETY: the descriptor is open and the name is a string with an end.
        result(unsafe { libc::mkdirat(self.fd(), name.as_ptr(), 0o700) })?;
        // SAFETY: as above.
        result(unsafe { libc::fchmodat(self.fd(), name.as_ptr(), 0o700, 0) })
    }

    /// Opens a regular file for reading. The name is one of the few that a snapshot has; links of any kind
    /// are refused, and opening never waits.
    pub(super) fn open_file(&self, name: &CStr) -> io::Result<(File, Metadata)> {
        let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        let file = match self.open_beneath(name, flags) {
            // Before Linux 5.6. The name has one component, so this opens nothing else.
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => self.open_at(name, flags, 0),
            result => result,
        }?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        Ok((file, metadata))
    }

    /// Creates a file that only its owner may use, whatever the umask.
    pub(super) fn create_file(&self, name: &CStr) -> io::Result<File> {
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        let file = self.open_at(name, flags, 0o600)?;
        // SAFETY: the descriptor is open.
        result(unsafe { libc::fchmod(file.as_raw_fd(), 0o600) })?;
        Ok(file)
    }

    /// Removes a file, if there is one.
    pub(super) fn remove_file(&self, name: &CStr) -> io::Result<()> {
        self.unlink(name, 0)
    }

    /// Removes an empty folder, if there is one.
    pub(super) fn remove_folder(&self, name: &CStr) -> io::Result<()> {
        self.unlink(name, libc::AT_REMOVEDIR)
    }

    fn unlink(&self, name: &CStr, flags: i32) -> io::Result<()> {
        // SAFETY: the descriptor is open and the name is a string with an end.
        match result(unsafe { libc::unlinkat(self.fd(), name.as_ptr(), flags) }) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// Renames an entry, with the flags of renameat2(2).
    pub(super) fn rename(&self, from: &CStr, to: &CStr, flags: libc::c_uint) -> io::Result<()> {
        let (from, to) = (from.as_ptr(), to.as_ptr());
        // By its number, because not every C library has the function.
        // SAFETY: the descriptor is open and the names are strings with an end.
        let renamed = unsafe { libc::syscall(libc::SYS_renameat2, self.fd(), from, self.fd(), to, flags) };
        if renamed < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Waits until the names in the folder are on the medium.
    pub(super) fn sync(&self) -> io::Result<()> {
        match self.file.sync_all() {
            // The file system does not sync folders (fsync(2)).
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            result => result,
        }
    }

    /// Keeps others that call this from using the folder as their own, for as long as it is open. Returns
    /// `false` if another has it.
    ///
    /// # Errors
    /// The file system has no locks, or none for folders (NFS).
    pub(super) fn try_claim(&self) -> io::Result<bool> {
        match self.file.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Returns the names of its entries, but no more than `most` of them.
    pub(super) fn names(&self, most: usize) -> io::Result<Vec<CString>> {
        // The folder itself, whoever has its name meanwhile.
        let entries = std::fs::read_dir(format!("/proc/self/fd/{}", self.fd()))?;
        let names = entries.take(most).map(|entry| name(entry?.file_name().as_os_str()));
        names.collect()
    }

    /// Returns whether it still is the folder at its path.
    pub(super) fn is_at_its_path(&self) -> io::Result<bool> {
        let (own, there) = (self.file.metadata()?, std::fs::metadata(&self.path)?);
        Ok((own.dev(), own.ino()) == (there.dev(), there.ino()))
    }

    /// Returns the user who owns it.
    pub(super) fn owner(&self) -> io::Result<u32> {
        Ok(self.file.metadata()?.uid())
    }

    /// Returns the path by which it was opened.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn join(&self, name: &CStr) -> PathBuf {
        self.path.join(std::ffi::OsStr::from_bytes(name.to_bytes()))
    }

    fn open_beneath(&self, name: &CStr, flags: i32) -> io::Result<File> {
        // SAFETY: all fields are numbers, for which zero is a valid value.
        let mut how: libc::open_how = unsafe { std::mem::zeroed() };
        how.flags = flags as u64;
        how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_MAGICLINKS;
        let size = size_of::<libc::open_how>();
        // SAFETY: the descriptor is open, the name is a string with an end, and the kernel reads `size` bytes
        // of the structure.
        let fd = unsafe { libc::syscall(libc::SYS_openat2, self.fd(), name.as_ptr(), &raw const how, size) };
        owned(fd as i32)
    }

    fn open_at(&self, name: &CStr, flags: i32, mode: libc::mode_t) -> io::Result<File> {
        // SAFETY: the descriptor is open and the name is a string with an end.
        owned(unsafe { libc::openat(self.fd(), name.as_ptr(), flags, mode) })
    }

    fn fd(&self) -> i32 {
        self.file.as_raw_fd()
    }
}

/// Takes a shared lock on a whole file for as long as it is open. It is an OFD lock of fcntl(2), which
/// closing another descriptor of the same file does not end. Returns `false` if somebody else has it for
/// writing.
pub(super) fn lock_shared(file: &File) -> io::Result<bool> {
    let whole = libc::flock {
        l_type: libc::F_RDLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the structure lives through the call, which only reads it.
    match result(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const whole) }) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(error) if is_without_locks(&error) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Turns a name into the form of system calls.
pub(super) fn name(name: &std::ffi::OsStr) -> io::Result<CString> {
    CString::new(name.as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn is_without_locks(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOLCK | libc::EINVAL | libc::ENOSYS))
}

fn owned(fd: i32) -> io::Result<File> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

fn result(status: i32) -> io::Result<()> {
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    #[test]
    fn only_regular_files_beneath_the_folder_are_opened() {
        let top = TempDir::new().unwrap();
        let path = top.as_path().join("snapshot");
        std::fs::create_dir(&path).unwrap();
        let outside = top.as_path().join("outside");
        std::fs::write(&outside, "secret").unwrap();
        std::fs::write(path.join("file"), "content").unwrap();
        symlink(&outside, path.join("link")).unwrap();
        symlink("file", path.join("own-link")).unwrap();
        std::fs::create_dir(path.join("folder")).unwrap();
        symlink(top.as_path(), path.join("folder-link")).unwrap();
        assert_eq!(nix_fifo(&path.join("fifo")), 0);
        let folder = Folder::open(&path).unwrap();
        for flags in [None, Some(libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOFOLLOW)] {
            let open = |name: &CStr| match flags {
                None => folder.open_file(name).map(drop),
                Some(flags) => folder.open_at(name, flags, 0).map(drop),
            };
            assert!(open(c"file").is_ok());
            assert!(open(c"link").is_err() && open(c"own-link").is_err() && open(c"none").is_err());
        }
        for name in [c"fifo", c"folder", c"../outside", c"folder-link/outside"] {
            assert!(folder.open_file(name).is_err(), "{name:?}");
        }
        assert!(folder.open_file(c"/etc/passwd").is_err());
        assert!(folder.open_folder(c"folder-link").is_err() && folder.open_folder(c"folder").is_ok());
    }

    fn nix_fifo(path: &Path) -> i32 {
        let name = name(path.as_os_str()).unwrap();
        // SAFETY: the name is a string with an end.
        unsafe { libc::mkfifo(name.as_ptr(), 0o600) }
    }

    #[test]
    fn what_is_made_is_for_its_owner_only() {
        let top = TempDir::new().unwrap();
        let folder = Folder::open(top.as_path()).unwrap();
        folder.make_folder(c"inner").unwrap();
        let inner = folder.open_folder(c"inner").unwrap();
        let file = inner.create_file(c"file").unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(inner.file.metadata().unwrap().permissions().mode() & 0o7777, 0o700);
        assert!(inner.create_file(c"file").is_err(), "an existing file is not used");
        assert!(folder.remove_folder(c"inner").is_err());
        assert!(inner.is_at_its_path().unwrap());
        inner.remove_file(c"file").unwrap();
        inner.remove_file(c"file").unwrap();
        folder.remove_folder(c"inner").unwrap();
        assert!(inner.is_at_its_path().is_err());
        folder.make_folder(c"inner").unwrap();
        assert!(!inner.is_at_its_path().unwrap(), "it is another");
    }

    #[test]
    fn claim_and_lock_exclude_others_until_they_are_closed() {
        let top = TempDir::new().unwrap();
        let (first, second) = (Folder::open(top.as_path()).unwrap(), Folder::open(top.as_path()).unwrap());
        assert!(first.try_claim().unwrap() && !second.try_claim().unwrap());
        drop(first);
        assert!(second.try_claim().unwrap());
        let file = second.create_file(c"file").unwrap();
        let (one, _) = second.open_file(c"file").unwrap();
        let (other, _) = second.open_file(c"file").unwrap();
        assert!(lock_shared(&one).unwrap() && lock_shared(&other).unwrap());
        let lock = libc::flock { l_type: libc::F_WRLCK as i16, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
        // SAFETY: the structure lives through the call, which only reads it.
        let write = || unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
        assert_eq!(write(), -1);
        drop((one, other));
        assert_eq!(write(), 0);
        let (late, _) = second.open_file(c"file").unwrap();
        assert!(!lock_shared(&late).unwrap());
    }
}
