//! The paths of a release's modules: listed in `modules.dep`, or searched for when they are needed.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::module_tree::{ModulesError, module_name};

/// The known paths of modules.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// Maps names to paths relative to the tree.
    paths: HashMap<String, PathBuf>,
    /// The directories of the tree that have been listed.
    listed: HashSet<PathBuf>,
    is_complete: bool,
}

impl Files {
    /// Parses the modules that `modules.dep` lists: `PATH: NEEDED...`.
    pub(super) fn of_list(list: &Path, text: &str) -> Result<Files, ModulesError> {
        let mut files = Files { is_complete: true, ..Files::default() };
        for (path, _) in text.lines().filter_map(|line| line.split_once(':')) {
            files.add(Path::new(path), list)?;
        }
        Ok(files)
    }

    /// Returns the path of a module below `root`. The whole tree is searched only for a module in none of the
    /// likely directories: a tree has hundreds of directories, and on the emulated host listing one takes a
    /// quarter of a second.
    pub(super) fn find(&mut self, root: &Path, name: &str) -> Result<Option<PathBuf>, ModulesError> {
        if let Some(path) = self.find_in(root, name, &LIKELY_FOLDERS.map(Path::new))? {
            return Ok(Some(path));
        }
        if !self.is_complete {
            self.list(root, Path::new("kernel"), true)?;
            self.is_complete = true;
        }
        Ok(self.paths.get(name).cloned())
    }

    /// Returns the path of a module below `root`, listing these directories one after the other.
    pub(super) fn find_in(
        &mut self,
        root: &Path,
        name: &str,
        directories: &[&Path],
    ) -> Result<Option<PathBuf>, ModulesError> {
        for directory in directories {
            if self.is_complete || self.paths.contains_key(name) {
                break;
            }
            if self.listed.insert(directory.to_path_buf()) {
                match self.list(root, directory, false) {
                    Err(ModulesError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                    listed => listed?,
                }
            }
        }
        Ok(self.paths.get(name).cloned())
    }

    fn list(&mut self, root: &Path, folder: &Path, is_deep: bool) -> Result<(), ModulesError> {
        let full_path = root.join(folder);
        let failed = |source| ModulesError::Read { path: full_path.clone(), source };
        for entry in fs::read_dir(&full_path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = folder.join(entry.file_name());
            if !entry.file_type().map_err(failed)?.is_dir() {
                self.add(&path, &full_path)?;
            } else if is_deep {
                self.list(root, &path, true)?;
            }
        }
        Ok(())
    }

    /// Adds a file, if it is a module. Errors name `list`, where the file was found.
    fn add(&mut self, path: &Path, list: &Path) -> Result<(), ModulesError> {
        let Some(name) = module_name(path) else { return Ok(()) };
        self.paths.insert(name, path.to_owned());
        if self.paths.len() > MAX_MODULES {
            return Err(ModulesError::TooMany { list: list.to_owned() });
        }
        Ok(())
    }

    /// Returns whether a module has been found so far.
    #[cfg(test)]
    pub(super) fn knows(&self, name: &str) -> bool {
        self.paths.contains_key(name)
    }
}

/// The directories in which Linux has the modules that Coracle's guests need, the most likely first.
const LIKELY_FOLDERS: [&str; 19] = [
    "kernel/drivers/virtio",
    "kernel/net/vmw_vsock",
    "kernel/fs/erofs",
    "kernel/fs/overlayfs",
    "kernel/lib",
    "kernel/drivers/block",
    "kernel/drivers/net",
    "kernel/net/core",
    "kernel/drivers/char",
    "kernel/drivers/char/hw_random",
    "kernel/crypto",
    "kernel/fs/ext4",
    "kernel/fs/jbd2",
    "kernel/fs",
    "kernel/fs/squashfs",
    "kernel/fs/xfs",
    "kernel/lib/raid6",
    "kernel/lib/zstd",
    "kernel/lib/lz4",
];

/// The maximum number of modules. A kernel with every module of Linux has some ten thousand.
pub(super) const MAX_MODULES: usize = 1 << 16;
