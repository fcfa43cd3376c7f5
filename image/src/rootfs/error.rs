//! Why there is no root, in sentences that name it.

use std::io;
use std::path::PathBuf;

use coracle_arch::field::{INITRDS, ROOT};

use super::directory::DirectoryError;
use super::erofs::ImageError;
use super::tar::TarError;
use super::unpack::UnpackError;
use crate::temporary;

/// Why there is no root.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RootError {
    /// The source cannot be opened.
    #[error("{ROOT} {}: it cannot be opened: {source}", path.display())]
    Open {
        /// As given.
        path: PathBuf,
        /// What the system said.
        r#source: io::Error,
    },
    /// The source is nothing of what a root can be.
    #[error(
        "{ROOT} {}: it is {found}, but a folder, a tar (plain, gzip, xz, zstd, LZ4) or an image of ext4, EROFS or \
         squashfs is needed",
        path.display()
    )]
    Kind {
        /// As given.
        path: PathBuf,
        /// What it is.
        found: String,
    },
    /// The source is not what the program said that it is.
    #[error("the root {} is {found}, but {wanted} is needed", path.display())]
    OtherKind {
        /// As given.
        path: PathBuf,
        /// What it is.
        found: &'static str,
        /// What was asked for.
        wanted: &'static str,
    },
    /// The source has nothing in it.
    #[error("{ROOT} {}: there is nothing in it", path.display())]
    Empty {
        /// As given.
        path: PathBuf,
    },
    /// The source holds a root in a form of its own.
    #[error("{ROOT} {}: it is {found}; {fix}", path.display())]
    Form {
        /// As given.
        path: PathBuf,
        /// What it is.
        found: String,
        /// What would work.
        fix: String,
    },
    /// A folder cannot be read.
    #[error("{ROOT} {}: {source}", path.display())]
    Directory {
        /// As given.
        path: PathBuf,
        /// Why.
        r#source: DirectoryError,
    },
    /// A tar cannot be used.
    #[error("{ROOT} {}: {source}", path.display())]
    Tar {
        /// As given.
        path: PathBuf,
        /// Why.
        r#source: TarError,
    },
    /// A tar cannot be unpacked.
    #[error("{ROOT} {}: {source}", path.display())]
    Unpack {
        /// As given.
        path: PathBuf,
        /// Why.
        r#source: UnpackError,
    },
    /// An option that goes with images of ext4 alone.
    #[error("{ROOT} {}: {word} goes with an image of ext4 only, and this is {found}", path.display())]
    Word {
        /// As given.
        path: PathBuf,
        /// The option.
        word: &'static str,
        /// What the source is.
        found: &'static str,
    },
    /// An initramfs was asked for, and cannot be.
    #[error(
        "{ROOT} {}: it cannot be an initramfs, which has no extended attributes, no names beyond 4 KiB and no files \
         beyond 4 GiB; leave out as=initramfs",
        path.display()
    )]
    NoInitramfs {
        /// As given.
        path: PathBuf,
    },
    /// An initramfs was asked for that the guest has no room for.
    #[error(
        "{ROOT} {}: as an initramfs it takes {} MiB, and the guest has {} MiB of memory; leave out as=initramfs, or give \
         it more",
        path.display(),
        len.div_ceil(1 << 20),
        memory >> 20
    )]
    TooLarge {
        /// As given.
        path: PathBuf,
        /// Bytes of the initramfs, about.
        len: u64,
        /// Bytes of the guest's memory.
        memory: u64,
    },
    /// The image cannot be made.
    #[error("{ROOT} {}: {source}", path.display())]
    Image {
        /// As given.
        path: PathBuf,
        /// Why.
        r#source: ImageError,
    },
    /// There is no place for files without a name.
    #[error("{}: a file for the root cannot be made there: {source}{}", folder.display(), temporary::advice())]
    Spool {
        /// Where it was to be.
        folder: PathBuf,
        /// What the system said.
        r#source: io::Error,
    },
    /// Two roots.
    #[error("{ROOT} goes without {INITRDS}: the root is what an initrd would bring")]
    WithInitrd,
    /// Another root, or another program to start it.
    #[error("{ROOT} goes without {word} on the kernel command line; init= chooses the first program")]
    WithWord {
        /// The word.
        word: String,
    },
    /// An image that Linux has no use for.
    #[error("{ROOT} goes with a Linux kernel, and {} is none", kernel.display())]
    NotLinux {
        /// The kernel.
        kernel: PathBuf,
    },
}
