//! Changes of paths: directories, links, names.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use coracle_agent::protocol::agent::{Failure, PathRequest, Step};

use super::files::PERMISSIONS;

/// Carries out a change. Links on the way to a path are followed, but not a link at its end.
pub(super) fn change(request: &PathRequest) -> Result<(), Failure> {
    let (step, path, done) = match request {
        PathRequest::MakeDirectory { path, mode, parents } => {
            (Step::Make, path, make_directory(&at(path), *mode, *parents))
        }
        PathRequest::Remove { path, all } => (Step::Remove, path, remove(&at(path), *all)),
        PathRequest::Rename { from, to } => (Step::Rename, from, fs::rename(at(from), at(to))),
        PathRequest::Link { target, path } => (Step::Make, path, symlink(target, at(path))),
    };
    done.map_err(|error| Failure::new(step, path, &error))
}

fn make_directory(path: &Path, mode: u32, parents: bool) -> io::Result<()> {
    if parents {
        if path.is_dir() {
            return Ok(());
        }
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
    }
    fs::create_dir(path)?;
    // The agent's own mask must not apply.
    fs::set_permissions(path, fs::Permissions::from_mode(mode & PERMISSIONS))
}

fn remove(path: &Path, all: bool) -> io::Result<()> {
    match fs::symlink_metadata(path)?.is_dir() {
        true if all => fs::remove_dir_all(path),
        true => fs::remove_dir(path),
        false => fs::remove_file(path),
    }
}

/// Returns an absolute path. The agent is at the system's root.
fn at(path: &Path) -> PathBuf {
    Path::new("/").join(path)
}
