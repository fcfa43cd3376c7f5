//! The root file system of a guest, made of a folder, a tar or an image of the host.
//!
//! A folder or tar is read into a tree of names and attributes, with contents by reference; out of it comes
//! an initramfs or an EROFS image in a file without a name. Nothing is ever unpacked onto the host. The
//! builder calls it; a program that starts many machines from one root makes the image once, by
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

/// What an image was made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageReport {
    /// Bytes of the image.
    pub bytes: u64,
    /// Files of all kinds.
    pub files: u64,
    /// What of the source is not in it.
    pub left_out: LeftOut,
}

/// A root that is ready to be given to a guest.
#[derive(Debug)]
pub enum Root {
    /// All of it is in memory; none when it has been given to the initrds.
    Initramfs(Option<InitrdFile>),
    /// It is on a disk of its own.
    Disk(RootDisk),
}

/// Where the loader finds a root that was made for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootStart {
    /// Around itself: the initramfs is the root.
    Here,
    /// On the device that the command line names.
    OnDevice,
}

/// The disk with a root.
#[derive(Debug)]
pub struct RootDisk {
    /// What holds it.
    pub backing: RootBacking,
    file_system: FileSystem,
}

/// What holds the disk with a root.
#[derive(Debug)]
pub enum RootBacking {
    /// An image that was made here, to be read.
    Made(File),
    /// An image of the user's.
    Image {
        /// Its path.
        path: PathBuf,
        /// Where the guest's writes go.
        access: ImageAccess,
    },
}

/// What a guest may do with the image that its root is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageAccess {
    /// Read it, as others do.
    ReadOnly,
    /// Write to it, alone.
    ReadWrite,
    /// Write to an overlay, which is gone with the machine.
    Overlay {
        /// The most bytes that the overlay takes; none: what its file system has.
        most: Option<u64>,
    },
}

/// Writes an EROFS image of a folder or tar into an empty file: a root for many machines, as
/// `VmBuilder::root_image` of the crate `coracle` takes it.
///
/// # Errors
/// The source is no folder and no tar, or cannot be read, or the image cannot be written.
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

/// What the source of a root is.
///
/// # Errors
/// It cannot be read, or is none of them.
pub fn kind_of(path: &Path) -> Result<RootKind, RootError> {
    Source::open(path).map(|source| source.kind())
}

/// Looks whether a root is available, without making anything.
///
/// # Errors
/// It is not, as far as that can be told at a glance.
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
        // Unpacking it twice would cost more than a late refusal.
        Source::PackedTar(..) | Source::Image(_) => {}
    }
    Ok(())
}

/// Makes a root, and says what of its source is not in it.
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
    /// The words by which the kernel, and the program that it starts first (`agent/src/loader`), find the
    /// root; on a disk it is behind `disks` others.
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

    /// Gives what of it is an initramfs to the machine's.
    pub fn placed(self, initrds: &mut Vec<InitrdFile>) -> Root {
        match self {
            Root::Initramfs(archive) => {
                initrds.extend(archive);
                Root::Initramfs(None)
            }
            Root::Disk(disk) => Root::Disk(disk),
        }
    }

    /// How the loader finds it.
    pub fn start(&self) -> RootStart {
        match self {
            Root::Initramfs(_) => RootStart::Here,
            Root::Disk(_) => RootStart::OnDevice,
        }
    }

    /// The modules of file systems that it takes.
    pub fn modules(&self) -> Vec<&'static str> {
        let Root::Disk(disk) = self else { return Vec::new() };
        let overlay = disk.has_overlay().then_some("overlay");
        std::iter::once(disk.file_system.name()).chain(overlay).collect()
    }

    /// The disk that it is on.
    pub fn disk(&self) -> Option<&RootDisk> {
        match self {
            Root::Initramfs(_) => None,
            Root::Disk(disk) => Some(disk),
        }
    }
}

impl RootDisk {
    /// Whether what the guest writes goes to its memory, because the file system takes none of it.
    fn has_overlay(&self) -> bool {
        self.file_system.is_read_only()
    }
}

/// The source, when the options go with it and with the rest of the machine.
fn opened(request: &RootRequest<'_>) -> Result<Source, RootError> {
    let root = &request.source;
    if request.has_initrd {
        return Err(RootError::WithInitrd);
    }
    let mut words = request.cmdline.split_ascii_whitespace().take_while(|word| *word != "--");
    if let Some(word) = words.find(|word| OUR_WORDS.iter().any(|ours| word.starts_with(ours))) {
        return Err(RootError::WithWord { word: word.to_owned() });
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
    let word = match root.access {
        RootAccess::Private => return Ok(()),
        RootAccess::PrivateUpTo(_) => "cow-size",
        RootAccess::Image => "rw",
    };
    let found = match source {
        Source::Image(FileSystem::Ext4) => return Ok(()),
        Source::Image(file_system) => file_system.name(),
        other => kind_name(other.kind()),
    };
    Err(RootError::Word { path: root.path.to_owned(), word, found })
}

fn kind_name(kind: RootKind) -> &'static str {
    match kind {
        RootKind::Directory => "a folder",
        RootKind::Tar => "a tar",
        RootKind::Image => "an image",
    }
}

/// Reads a folder or tar; an image has no tree.
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

/// Refuses what holds no root, or holds it in another form.
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

/// The length of the initramfs as which a tree goes to the guest, about; `None` for a disk. `source_len` is
/// that of the archive which it is from.
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
            // It is made in memory here, too: holes of a tar may make it as large as they like.
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

/// What the guest does with a user's image. One that it only reads can be used by many machines at once.
fn image_access(access: RootAccess, file_system: FileSystem) -> ImageAccess {
    match access {
        _ if file_system.is_read_only() => ImageAccess::ReadOnly,
        RootAccess::Private => {
            ImageAccess::Overlay { most: environment::caller().map(|_| MOST_ON_EMULATED_HOST) }
        }
        RootAccess::PrivateUpTo(most) => ImageAccess::Overlay { most: Some(most) },
        RootAccess::Image => ImageAccess::ReadWrite,
    }
}

/// A file that is gone when it is closed, and the folder that it is in.
fn spool_file() -> Result<(PathBuf, File), RootError> {
    let folder = temporary::directory();
    match nameless_file::create_in(&folder) {
        Ok(file) => Ok((folder, file)),
        Err(source) => Err(RootError::Spool { folder, source }),
    }
}

/// The program that starts a root, where the loader's archive has it.
const LOADER: &str = "/coracle/init";

/// Words of the kernel command line that would contradict a root's own.
const OUR_WORDS: [&str; 3] = ["root=", "rootfstype=", "rdinit="];

/// The most that a guest may write to an image's overlay on an emulated host, whose memory it is in, and
/// which has 3 GiB at the most.
const MOST_ON_EMULATED_HOST: u64 = 1 << 30;

/// The largest initramfs that is made unasked. The guest has it in memory twice while it is unpacked and once
/// from then on; a disk costs a device, two file systems and reads as they come.
const SMALL: u64 = 32 << 20;
/// The same for an archive, to which twice its own length is added: holes and packing make much of little,
/// and it is made in memory here.
const SMALL_OF_ARCHIVE: u64 = 12 << 20;
/// The same as a share of the guest's memory: an eighth of it, so that unpacking takes a quarter.
const SHARE_OF_MEMORY: u64 = 8;

#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;
