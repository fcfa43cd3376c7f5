//! Files of the host for a guest, collected in an initramfs at the paths that they have here.

use std::collections::HashSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use coracle_image::initramfs::Archive;

/// The files collected so far.
#[derive(Debug, Default)]
pub(super) struct GuestFiles {
    archive: Archive,
    seen: HashSet<PathBuf>,
    bytes: u64,
    left_out: u64,
}

/// Why a file cannot be given to the guest.
#[derive(Debug, thiserror::Error)]
pub(super) enum FilesError {
    /// The guest mounts a file system of its own at that path.
    #[error(
        "{} cannot be put into the guest: {folder} belongs to its kernel; move it (CARGO_TARGET_DIR says where cargo \
         builds)",
        path.display()
    )]
    OfTheKernel { path: PathBuf, folder: &'static str },
    /// The file cannot be read.
    #[error("{} cannot be read", path.display())]
    Read { path: PathBuf, source: io::Error },
}

impl GuestFiles {
    /// Adds a file, or a directory with everything in it. A symbolic link that is named is followed; one
    /// within a directory stays a link.
    pub(super) fn add(&mut self, path: &Path) -> Result<(), FilesError> {
        let found = self.add_above(path)?;
        let mut folders = Vec::new();
        self.add_found(path, &found, &mut folders)?;
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).map_err(unread(&folder))? {
                let path = entry.map_err(unread(&folder))?.path();
                let found = fs::symlink_metadata(&path).map_err(unread(&path))?;
                self.add_found(&path, &found, &mut folders)?;
            }
        }
        Ok(())
    }

    /// Adds an empty directory.
    pub(super) fn add_folder(&mut self, path: &Path) -> Result<(), FilesError> {
        let found = self.add_above(path)?;
        self.add_found(path, &found, &mut Vec::new())
    }

    /// Returns the total size of all files, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns how many files were left out because an initramfs cannot usefully contain their type.
    pub(super) fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Returns the initramfs. The files are read when it is written.
    pub(super) fn into_archive(self) -> Archive {
        self.archive
    }

    /// Adds the directories above a path, with the permissions that they have here, and returns the metadata
    /// of the path itself.
    fn add_above(&mut self, path: &Path) -> Result<Metadata, FilesError> {
        if let Some(folder) = OF_THE_KERNEL.into_iter().find(|folder| path.starts_with(folder)) {
            return Err(FilesError::OfTheKernel { path: path.to_owned(), folder });
        }
        let there = fs::metadata(path).map_err(unread(path))?;
        for folder in path.ancestors().skip(1).filter(|folder| folder.parent().is_some()) {
            if !self.seen.contains(folder) {
                let found = fs::metadata(folder).map_err(unread(folder))?;
                self.add_found(folder, &found, &mut Vec::new())?;
            }
        }
        Ok(there)
    }

    fn add_found(
        &mut self,
        path: &Path,
        found: &Metadata,
        folders: &mut Vec<PathBuf>,
    ) -> Result<(), FilesError> {
        let permissions = found.permissions().mode() & 0o7777;
        if found.is_dir() {
            folders.push(path.to_owned());
        }
        if !self.seen.insert(path.to_owned()) {
            return Ok(());
        }
        if found.is_dir() {
            self.archive.folder_with(path, permissions);
        } else if found.is_file() {
            self.bytes = self.bytes.saturating_add(found.len());
            self.archive.host_file(path, permissions, path);
        } else if found.is_symlink() {
            let target = fs::read_link(path).map_err(unread(path))?;
            self.archive.symlink(path, target);
        } else {
            self.left_out += 1;
        }
        Ok(())
    }
}

fn unread(path: &Path) -> impl FnOnce(io::Error) -> FilesError {
    move |source| FilesError::Read { path: path.to_owned(), source }
}

/// The directories over which the guest's kernel, or its init, mounts a file system of its own, hiding what
/// an initramfs has put there.
const OF_THE_KERNEL: [&str; 3] = ["/dev", "/proc", "/sys"];

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    /// Returns the names in the archive below `folder`.
    fn names(files: GuestFiles, folder: &Path) -> Vec<String> {
        let bytes = files.into_archive().finish().unwrap();
        let folder = format!("{}/", folder.to_str().unwrap().trim_start_matches('/'));
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let names = text.split('\0').filter_map(|piece| piece.split_once(&folder));
        names.map(|(_, name)| name.to_owned()).collect()
    }

    #[test]
    fn folder_comes_with_all_that_is_in_it_and_links_stay_links() {
        let folder = TempDir::new().unwrap();
        let root = folder.as_path();
        fs::create_dir_all(root.join("data/deep")).unwrap();
        fs::write(root.join("data/deep/x"), "123").unwrap();
        symlink("..", root.join("data/deep/up")).unwrap();
        symlink("data", root.join("link")).unwrap();
        let mut files = GuestFiles::default();
        files.add(&root.join("data")).unwrap();
        files.add(&root.join("data/deep/x")).unwrap();
        files.add_folder(&root.join("link")).unwrap();
        assert_eq!((files.bytes(), files.left_out()), (3, 0), "added once, though named twice");
        assert_eq!(names(files, root), ["data", "data/deep", "data/deep/up", "data/deep/x", "link"]);
    }

    #[test]
    fn any_name_comes_as_it_is() {
        use std::os::unix::ffi::OsStrExt;
        let folder = TempDir::new().unwrap();
        let odd = std::ffi::OsStr::from_bytes(b"a,b \n\xff");
        fs::write(folder.as_path().join(odd), "1").unwrap();
        let mut files = GuestFiles::default();
        files.add(folder.as_path()).unwrap();
        let archive = files.into_archive().finish().unwrap();
        assert!(archive.windows(odd.len()).any(|bytes| bytes == odd.as_bytes()));
    }

    #[test]
    fn what_the_guest_cannot_have_is_refused() {
        let mut files = GuestFiles::default();
        let refused = files.add(Path::new("/dev/shm/target/x")).unwrap_err().to_string();
        assert!(refused.contains("/dev belongs to its kernel"), "{refused}");
        let refused = files.add(Path::new("/no/such")).unwrap_err();
        assert!(matches!(refused, FilesError::Read { path, .. } if path == Path::new("/no/such")));
    }
}
