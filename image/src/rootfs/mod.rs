//! The root file system of a guest, made from a directory, a tar or an image of the host.
//!
//! A directory or tar is read into a tree of names and attributes that refers to the contents; an initramfs,
//! or an EROFS image in an unnamed file, is written from it. Nothing is ever unpacked onto the host. The
//! builder calls this; a program that starts many machines from one root creates the image once, with
//! [`write_image`].

mod caller;
mod content;
mod directory;
mod erofs;
mod error;
mod foreign;
mod left_out;
mod newc;
mod request;
mod source;
mod tar;
mod tree;
mod unpack;
mod xattrs;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_agent::protocol::emulated_host::environment;
use coracle_arch::nameless_file;
use coracle_arch::x86_64::initrd::InitrdFile;

use self::caller::Caller;
pub use self::directory::DirectoryError;
pub use self::erofs::ImageError;
use self::erofs::Written;
pub use self::error::RootError;
use self::foreign::Foreign;
pub use self::left_out::LeftOut;
pub use self::request::{RootAccess, RootForm, RootKind, RootRequest, RootSource};
use self::source::{FileSystem, Source};
pub use self::tar::TarError;
pub use self::tree::EntryError;
use self::tree::Tree;
pub use self::unpack::UnpackError;
use crate::temporary;

/// The result of writing an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageReport {
    /// The length of the image, in bytes.
    pub bytes: u64,
    /// The number of files of all kinds.
    pub files: u64,
    /// The files and attributes of the source that the image lacks.
    pub left_out: LeftOut,
}

/// A root that is ready for a guest.
#[derive(Debug)]
pub enum Root {
    /// In memory; `None` once it has been moved to the initrds.
    Initramfs(Option<InitrdFile>),
    /// On a disk of its own.
    Disk(RootDisk),
}

/// The place in which the loader finds a root that was prepared for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootStart {
    /// In the initramfs that contains the loader.
    Here,
    /// On the device that the command line names.
    OnDevice,
}

/// The disk with a root.
#[derive(Debug)]
pub struct RootDisk {
    /// The file behind the disk.
    pub backing: RootBacking,
    file_system: FileSystem,
}

/// The file behind the disk with a root.
#[derive(Debug)]
pub enum RootBacking {
    /// An image that was created here, and is read-only.
    Made(File),
    /// An image of the user.
    Image {
        /// The path of the image.
        path: PathBuf,
        /// The destination of the guest's writes.
        access: ImageAccess,
    },
}

/// A guest's access to the image of its root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageAccess {
    /// Read-only, shared with others.
    ReadOnly,
    /// Read and write, exclusively.
    ReadWrite,
    /// Read and write, with writes in an overlay that is discarded with the machine.
    Overlay {
        /// The maximum size of the overlay, in bytes; `None` for as much as its file system has.
        max_bytes: Option<u64>,
    },
}

/// Writes an EROFS image of a directory or tar into an empty file: a root for many machines, to be used with
/// `VmBuilder::root_image` of the crate `coracle`.
///
/// # Errors
/// The source is neither a directory nor a tar, or cannot be read, or the image cannot be written.
pub fn write_image<'a>(root: impl Into<RootSource<'a>>, image: &File) -> Result<ImageReport, RootError> {
    let root = &root.into();
    let mut left_out = LeftOut::default();
    let source = Source::open(root.path)?;
    let wanted = if source.kind() == RootKind::Image { Some(RootKind::Directory) } else { root.kind };
    check_kind(root, &source, wanted)?;
    let tree = tree_of(root, source, &mut left_out)?;
    let written = write_erofs(root, &tree, image, &mut left_out)?;
    Ok(ImageReport { bytes: written.bytes, files: written.inodes, left_out })
}

/// Returns the kind of a root's source.
///
/// # Errors
/// The source cannot be read, or is of none of the kinds.
pub fn kind_of(path: &Path) -> Result<RootKind, RootError> {
    Source::open(path).map(|source| source.kind())
}

/// Checks that a root is available, without creating anything.
///
/// # Errors
/// The root cannot be used, as far as that can be told without reading all of it.
pub fn check(request: &RootRequest<'_>) -> Result<(), RootError> {
    let root = &request.source;
    match opened(request)? {
        Source::Directory => {
            let failed = |source| RootError::Open { path: root.path.to_owned(), source };
            if fs::read_dir(root.path).map_err(failed)?.next().is_none() {
                return Err(RootError::Empty { path: root.path.to_owned() });
            }
        }
        source @ Source::Tar(..) => drop(tree_of(root, source, &mut LeftOut::default())?),
        // Decompressing it twice would cost more than a late error.
        Source::PackedTar(..) | Source::Image(_) => {}
    }
    Ok(())
}

/// Prepares a root, and returns what it lacks of its source.
///
/// # Errors
/// The source cannot be read, or there is no room for the image.
pub fn prepare(request: &RootRequest<'_>) -> Result<(Root, LeftOut), RootError> {
    let root = &request.source;
    let source = opened(request)?;
    let mut left_out = LeftOut::default();
    if let Source::Image(file_system) = source {
        let access = image_access(root.access, file_system);
        let backing = RootBacking::Image { path: root.path.to_owned(), access };
        return Ok((Root::Disk(RootDisk { backing, file_system }), left_out));
    }
    let source_len = source.archive_len();
    let tree = tree_of(root, source, &mut left_out)?;
    let made = match initramfs_len(root, &tree, source_len, request.memory)? {
        Some(len) => Root::Initramfs(Some(initramfs(root, &tree, len, &mut left_out)?)),
        None => {
            let (_, image) = spool_file()?;
            write_erofs(root, &tree, &image, &mut left_out)?;
            Root::Disk(RootDisk { backing: RootBacking::Made(image), file_system: FileSystem::Erofs })
        }
    };
    Ok((made, left_out))
}

impl Root {
    /// Returns the parameters by which the kernel, and its first program (`agent/src/roles/loader`), find the
    /// root. A root on a disk comes after `disks` others.
    pub fn cmdline_words(&self, disks: usize) -> String {
        let first = format!("rdinit={LOADER}");
        let Root::Disk(disk) = self else { return first };
        let access = match &disk.backing {
            _ if disk.has_overlay() => "ro coracle.overlay",
            RootBacking::Image { access: ImageAccess::ReadWrite, .. } => "rw",
            RootBacking::Image { .. } | RootBacking::Made(_) => "rw coracle.private",
        };
        let device = u8::try_from(disks).map_or('z', |disk| char::from(b'a'.saturating_add(disk)));
        format!("root=/dev/vd{device} rootfstype={} {access} {first}", disk.file_system.name())
    }

    /// Moves the root to the machine's initrds, if it is an initramfs.
    pub fn placed(self, initrds: &mut Vec<InitrdFile>) -> Root {
        match self {
            Root::Initramfs(archive) => {
                initrds.extend(archive);
                Root::Initramfs(None)
            }
            Root::Disk(disk) => Root::Disk(disk),
        }
    }

    /// Returns where the loader finds it.
    pub fn start(&self) -> RootStart {
        match self {
            Root::Initramfs(_) => RootStart::Here,
            Root::Disk(_) => RootStart::OnDevice,
        }
    }

    /// Returns the modules of the file systems that it needs.
    pub fn modules(&self) -> Vec<&'static str> {
        let Root::Disk(disk) = self else { return Vec::new() };
        let overlay = disk.has_overlay().then_some("overlay");
        std::iter::once(disk.file_system.name()).chain(overlay).collect()
    }

    /// Returns the disk that holds it, if it is on a disk.
    pub fn disk(&self) -> Option<&RootDisk> {
        match self {
            Root::Initramfs(_) => None,
            Root::Disk(disk) => Some(disk),
        }
    }
}

impl RootDisk {
    /// Returns whether the guest's writes go to its memory, because the file system is read-only.
    fn has_overlay(&self) -> bool {
        self.file_system.is_read_only()
    }
}

/// Opens the source, if the options are compatible with it and with the rest of the machine.
fn opened(request: &RootRequest<'_>) -> Result<Source, RootError> {
    let root = &request.source;
    if request.has_initrd {
        return Err(RootError::WithInitrd);
    }
    let mut words = request.cmdline.split_ascii_whitespace().take_while(|word| *word != "--");
    if let Some(word) = words.find(|word| OUR_WORDS.iter().any(|ours| word.starts_with(ours))) {
        return Err(RootError::WithParameter { parameter: word.to_owned() });
    }
    let source = Source::open(root.path)?;
    check_kind(root, &source, root.kind)?;
    check_access(root, &source)?;
    Ok(source)
}

fn check_kind(root: &RootSource<'_>, source: &Source, wanted: Option<RootKind>) -> Result<(), RootError> {
    match wanted {
        Some(wanted) if wanted != source.kind() => {
            let (found, wanted) = (kind_name(source.kind()), kind_name(wanted));
            Err(RootError::OtherKind { path: root.path.to_owned(), found, wanted })
        }
        Some(_) | None => Ok(()),
    }
}

fn check_access(root: &RootSource<'_>, source: &Source) -> Result<(), RootError> {
    let option = match root.access {
        RootAccess::Private => return Ok(()),
        RootAccess::PrivateUpTo(_) => "cow-size",
        RootAccess::Image => "rw",
    };
    let found = match source {
        Source::Image(FileSystem::Ext4) => return Ok(()),
        Source::Image(file_system) => file_system.name(),
        other => kind_name(other.kind()),
    };
    Err(RootError::Option { path: root.path.to_owned(), option, found })
}

fn kind_name(kind: RootKind) -> &'static str {
    match kind {
        RootKind::Directory => "a directory",
        RootKind::Tar => "a tar",
        RootKind::Image => "an image",
    }
}

/// Reads a directory or tar; an image has no tree.
fn tree_of(root: &RootSource<'_>, source: Source, left_out: &mut LeftOut) -> Result<Tree, RootError> {
    let path = || root.path.to_owned();
    let limit = source.archive_len().map_or(0, Tree::limit_for);
    let (file, len) = match source {
        Source::Directory => {
            return directory::read(root.path, &Caller::here(), root.keep_ids, left_out)
                .map_err(|source| RootError::Directory { path: path(), source })
                .and_then(|tree| usable(root, tree));
        }
        Source::Tar(file, len) => (file, len),
        Source::PackedTar(packing, packed) => source::unpacked(root.path, packing, &packed)?,
        Source::Image(_) => return Err(RootError::Empty { path: path() }),
    };
    tar::read(&Arc::new(file), len, limit, left_out)
        .map_err(|source| RootError::Tar { path: path(), source })
        .and_then(|tree| usable(root, tree))
}

/// Refuses a tree without a root, or with a root in another format.
fn usable(root: &RootSource<'_>, tree: Tree) -> Result<Tree, RootError> {
    let path = || root.path.to_owned();
    if tree.is_empty() {
        return Err(RootError::Empty { path: path() });
    }
    match foreign::identify(&tree) {
        Some(Foreign { found, fix }) => Err(RootError::Form { path: path(), found, fix }),
        None => Ok(tree),
    }
}

/// Returns the approximate length of the initramfs for a tree; `None` if the tree goes to a disk.
/// `source_len` is the length of the archive that it comes from.
fn initramfs_len(
    root: &RootSource<'_>,
    tree: &Tree,
    source_len: Option<u64>,
    memory: u64,
) -> Result<Option<u64>, RootError> {
    let len = newc::likely_len(tree);
    let most =
        source_len.map_or(SMALL, |len| SMALL.min(SMALL_OF_ARCHIVE.saturating_add(len.saturating_mul(2))));
    match root.form {
        RootForm::Disk => Ok(None),
        RootForm::Auto => Ok(len.filter(|len| *len <= most.min(memory / SHARE_OF_MEMORY))),
        RootForm::Initramfs => match len {
            None => Err(RootError::NoInitramfs { path: root.path.to_owned() }),
            // The initramfs is built in this process's memory too, and holes of a tar can make it arbitrarily
            // large.
            Some(len) if len > memory => Err(RootError::TooLarge { path: root.path.to_owned(), len, memory }),
            Some(len) => Ok(Some(len)),
        },
    }
}

fn initramfs(
    root: &RootSource<'_>,
    tree: &Tree,
    len: u64,
    left_out: &mut LeftOut,
) -> Result<InitrdFile, RootError> {
    let bytes = newc::write(tree, len, &mut left_out.shortened)
        .map_err(|source| RootError::Image { path: root.path.to_owned(), source })?;
    let file = InitrdFile::from_bytes(root.path, bytes);
    file.map_err(|_| RootError::Empty { path: root.path.to_owned() })
}

fn write_erofs(
    root: &RootSource<'_>,
    tree: &Tree,
    image: &File,
    left_out: &mut LeftOut,
) -> Result<Written, RootError> {
    let written = erofs::write(tree, image);
    let written = written.map_err(|source| RootError::Image { path: root.path.to_owned(), source })?;
    left_out.shortened = left_out.shortened.saturating_add(written.shortened);
    left_out.xattrs = left_out.xattrs.saturating_add(written.lost_xattrs);
    Ok(written)
}

/// Returns the guest's access to a user's image. Several machines can use an image that is only read.
fn image_access(access: RootAccess, file_system: FileSystem) -> ImageAccess {
    match access {
        _ if file_system.is_read_only() => ImageAccess::ReadOnly,
        RootAccess::Private => {
            ImageAccess::Overlay { max_bytes: environment::caller().map(|_| MAX_ON_EMULATED_HOST) }
        }
        RootAccess::PrivateUpTo(most) => ImageAccess::Overlay { max_bytes: Some(most) },
        RootAccess::Image => ImageAccess::ReadWrite,
    }
}

/// Creates an unnamed file, and returns it with its directory.
fn spool_file() -> Result<(PathBuf, File), RootError> {
    let folder = temporary::directory();
    match nameless_file::create_in(&folder) {
        Ok(file) => Ok((folder, file)),
        Err(source) => Err(RootError::Spool { folder, source }),
    }
}

/// The path of the program that starts a root, in the loader's archive.
const LOADER: &str = "/coracle/init";

/// Kernel parameters that would contradict those of a prepared root.
const OUR_WORDS: [&str; 3] = ["root=", "rootfstype=", "rdinit="];

/// How much a guest may write to an image's overlay on an emulated host, in bytes: the overlay is in that
/// host's memory, which is at most 3 GiB.
const MAX_ON_EMULATED_HOST: u64 = 1 << 30;

/// The largest initramfs that is created by default, in bytes. The guest holds it in memory twice while
/// unpacking, and once afterwards; a disk costs a device, two file systems and reads on demand.
const SMALL: u64 = 32 << 20;
/// The limit for an archive, in bytes, on twice its own length: its compression and holes can expand to much
/// more, and it is built in memory here.
const SMALL_OF_ARCHIVE: u64 = 12 << 20;
/// The divisor for the guest's memory: the initramfs may have an eighth of it, so that unpacking takes a
/// quarter.
const SHARE_OF_MEMORY: u64 = 8;

#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;
