//! Reads a root from a directory of the host.
//!
//! It stays within the directory: symbolic links are not followed, and file systems mounted on subdirectories
//! are left out. Files are opened when the image is written, and only if they are still those that were
//! found.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::caller::{Caller, Ids};
use super::content::{Content, Identity, below};
use super::left_out::LeftOut;
use super::tree::{Attributes, Device, EntryError, Inode, InodeId, Kind, Tree};
use super::xattrs;

/// Why a directory cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirectoryError {
    /// A file or directory in it cannot be read.
    #[error("{} in it cannot be read: {source}", path.display())]
    Read {
        /// The path relative to the directory.
        path: PathBuf,
        /// The error of the system call.
        r#source: io::Error,
    },
    /// A file in it cannot be part of a root.
    #[error("{} in it cannot be kept: {source}", path.display())]
    Entry {
        /// The path relative to the directory.
        path: PathBuf,
        /// The reason.
        r#source: EntryError,
    },
    /// The owner of a file cannot be determined.
    #[error("keep-ids: the owner of {} in it cannot be known: {why}; a tar made by root keeps it", path.display())]
    Ids {
        /// The path relative to the directory.
        path: PathBuf,
        /// The reason.
        why: &'static str,
    },
}

/// Reads a directory; with `keep_ids`, it is an error if the owner of a file cannot be determined.
pub(super) fn read(
    folder: &Path,
    caller: &Caller,
    keep_ids: bool,
    left_out: &mut LeftOut,
) -> Result<Tree, DirectoryError> {
    let failed = |source| DirectoryError::Read { path: ".".into(), source };
    let options = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).clone();
    let root = Arc::new(options.open(folder).map_err(failed)?);
    let metadata = root.metadata().map_err(failed)?;
    let mut walk = Walk { caller, keep_ids, left_out, linked: HashMap::new(), device: metadata.dev(), root };
    let mut attributes = walk.attributes(Path::new("."), &metadata)?;
    attributes.xattrs = xattrs::read(&below(&walk.root, Path::new("")), &mut walk.left_out.xattrs);
    let mut tree = Tree::new(attributes);
    let mut folders = vec![(Tree::ROOT, Folder { path: PathBuf::new(), identity: Identity::of(&metadata) })];
    while let Some((id, folder)) = folders.pop() {
        walk.read_folder(&folder, &mut |name, found| match found {
            Found::Known(known) => {
                tree.name(id, name, known)?;
                Ok(known)
            }
            Found::New { inode, identity } => {
                let path = folder.path.join(OsStr::from_bytes(&name));
                let is_folder = matches!(inode.kind, Kind::Directory(_));
                let child = tree.add(id, name, *inode)?;
                if is_folder {
                    folders.push((child, Folder { path, identity }));
                }
                Ok(child)
            }
        })?;
    }
    Ok(tree)
}

struct Walk<'a> {
    caller: &'a Caller,
    keep_ids: bool,
    left_out: &'a mut LeftOut,
    /// Files with more than one name.
    linked: HashMap<Identity, InodeId>,
    root: Arc<File>,
    /// The device that holds the root.
    device: u64,
}

/// The file that a name refers to.
enum Found {
    /// An inode to which another name refers, too.
    Known(InodeId),
    New {
        inode: Box<Inode>,
        identity: Identity,
    },
}

/// A directory that is to be read.
struct Folder {
    /// The path relative to the root.
    path: PathBuf,
    identity: Identity,
}

/// Adds what was found to the tree.
type Take<'a> = dyn FnMut(Vec<u8>, Found) -> Result<InodeId, EntryError> + 'a;

impl Walk<'_> {
    /// Reads a single directory.
    fn read_folder(&mut self, folder: &Folder, take: &mut Take<'_>) -> Result<(), DirectoryError> {
        let path = &folder.path;
        let failed = |source| DirectoryError::Read { path: path.to_owned(), source };
        let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let options = OpenOptions::new().read(true).custom_flags(flags).clone();
        let here = options.open(below(&self.root, path));
        let here = match here {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                self.left_out.unreadable(path);
                return Ok(());
            }
            here => here.map_err(failed)?,
        };
        // The directory is opened by its whole path, and another one may have taken its place meanwhile.
        if Identity::of(&here.metadata().map_err(failed)?) != folder.identity {
            return Err(failed(io::Error::other("another directory is in its place now")));
        }
        if folder.identity.device != self.device {
            self.left_out.mounts = self.left_out.mounts.saturating_add(1);
            return Ok(());
        }
        for entry in fs::read_dir(below(&here, Path::new(""))).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            self.read_entry(&here, path, &name, take)?;
        }
        Ok(())
    }

    fn read_entry(
        &mut self,
        here: &File,
        folder: &Path,
        name: &OsStr,
        take: &mut Take<'_>,
    ) -> Result<(), DirectoryError> {
        let path = folder.join(name);
        let failed = |source| DirectoryError::Read { path: path.clone(), source };
        let full_path = below(here, Path::new(name));
        let metadata = fs::symlink_metadata(&full_path).map_err(failed)?;
        let identity = Identity::of(&metadata);
        let is_linked = metadata.nlink() > 1 && !metadata.is_dir();
        let found = match self.linked.get(&identity).filter(|_| is_linked) {
            Some(known) => Found::Known(*known),
            None => {
                let Some(kind) = self.kind(&full_path, &path, &metadata).map_err(failed)? else {
                    return Ok(());
                };
                let mut attributes = self.attributes(&path, &metadata)?;
                attributes.xattrs = xattrs::read(&full_path, &mut self.left_out.xattrs);
                Found::New { inode: Box::new(Inode { kind, attributes }), identity }
            }
        };
        let id = take(name.as_bytes().to_vec(), found)
            .map_err(|source| DirectoryError::Entry { path: path.clone(), source })?;
        if is_linked {
            self.linked.insert(identity, id);
        }
        Ok(())
    }

    /// Returns the kind of a file; `None` if the file is left out.
    fn kind(&mut self, full_path: &Path, path: &Path, metadata: &Metadata) -> io::Result<Option<Kind>> {
        let kind = metadata.file_type();
        let device = Device { major: libc::major(metadata.rdev()), minor: libc::minor(metadata.rdev()) };
        Ok(Some(if kind.is_dir() {
            Kind::Directory(BTreeMap::new())
        } else if kind.is_file() {
            if !self.caller.may_read(full_path) {
                self.left_out.unreadable(path);
                return Ok(None);
            }
            Kind::File(Content::named(&self.root, path.to_owned(), Identity::of(metadata), metadata.len()))
        } else if kind.is_symlink() {
            Kind::Symlink(fs::read_link(full_path)?.into_os_string().into_vec())
        } else if kind.is_char_device() {
            Kind::CharacterDevice(device)
        } else if kind.is_block_device() {
            Kind::BlockDevice(device)
        } else if kind.is_fifo() {
            Kind::Fifo
        } else {
            self.left_out.sockets = self.left_out.sockets.saturating_add(1);
            return Ok(None);
        }))
    }

    fn attributes(&mut self, path: &Path, metadata: &Metadata) -> Result<Attributes, DirectoryError> {
        let ids = self.caller.ids(metadata.uid(), metadata.gid());
        let (uid, gid) = match ids {
            Ids::Guessed { why, .. } if self.keep_ids => {
                return Err(DirectoryError::Ids { path: path.to_owned(), why });
            }
            Ids::Known(uid, gid) | Ids::Guessed { uid, gid, .. } => (uid, gid),
        };
        Ok(Attributes {
            permissions: (metadata.mode() & 0o7777) as u16,
            uid,
            gid,
            mtime: (metadata.mtime(), u32::try_from(metadata.mtime_nsec()).unwrap_or_default()),
            xattrs: BTreeMap::new(),
        })
    }
}
