//! Why a root cannot be prepared, in messages that name it.

use std::io;
use std::path::PathBuf;

use coracle_arch::field::{INITRDS, ROOT};

use super::directory::DirectoryError;
use super::erofs::ImageError;
use super::tar::TarError;
use super::unpack::UnpackError;
use crate::temporary;

/// Why a root cannot be prepared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RootError {
    /// The source cannot be opened.
    #[error("{ROOT} {}: it cannot be opened: {source}", path.display())]
    Open {
        /// The path of the root.
        path: PathBuf,
        /// The error of the system call.
        r#source: io::Error,
    },
    /// The source is not of a kind that a root can be.
    #[error(
        "{ROOT} {}: it is {found}, but a directory, a tar (plain, gzip, xz, zstd, LZ4) or an image of ext4, EROFS or \
         squashfs is needed",
        path.display()
    )]
    Kind {
        /// The path of the root.
        path: PathBuf,
        /// The kind of file that was found.
        found: String,
    },
    /// The source is not of the kind that the program requires.
    #[error("the root {} is {found}, but {wanted} is needed", path.display())]
    OtherKind {
        /// The path of the root.
        path: PathBuf,
        /// The kind that was found.
        found: &'static str,
        /// The required kind.
        wanted: &'static str,
    },
    /// The source is empty.
    #[error("{ROOT} {}: there is nothing in it", path.display())]
    Empty {
        /// The path of the root.
        path: PathBuf,
    },
    /// The source contains a root in another format.
    #[error("{ROOT} {}: it is {found}; {fix}", path.display())]
    Form {
        /// The path of the root.
        path: PathBuf,
        /// The format that was found.
        found: String,
        /// How to fix it.
        fix: String,
    },
    /// A directory cannot be read.
    #[error("{ROOT} {}: {source}", path.display())]
    Directory {
        /// The path of the root.
        path: PathBuf,
        /// The cause.
        r#source: DirectoryError,
    },
    /// A tar cannot be used.
    #[error("{ROOT} {}: {source}", path.display())]
    Tar {
        /// The path of the root.
        path: PathBuf,
        /// The cause.
        r#source: TarError,
    },
    /// A tar cannot be decompressed.
    #[error("{ROOT} {}: {source}", path.display())]
    Unpack {
        /// The path of the root.
        path: PathBuf,
        /// The cause.
        r#source: UnpackError,
    },
    /// An option that only applies to images of ext4.
    #[error("{ROOT} {}: {option} goes with an image of ext4 only, and this is {found}", path.display())]
    Option {
        /// The path of the root.
        path: PathBuf,
        /// The option.
        option: &'static str,
        /// The kind of the source.
        found: &'static str,
    },
    /// An initramfs is requested but impossible.
    #[error(
        "{ROOT} {}: it cannot be an initramfs, which has no extended attributes, no names beyond 4 KiB and no files \
         beyond 4 GiB; leave out as=initramfs",
        path.display()
    )]
    NoInitramfs {
        /// The path of the root.
        path: PathBuf,
    },
    /// An initramfs is requested for which the guest has too little memory.
    #[error(
        "{ROOT} {}: as an initramfs it takes {} MiB, and the guest has {} MiB of memory; leave out as=initramfs, \
         or give it more",
        path.display(),
        len.div_ceil(1 << 20),
        memory >> 20
    )]
    TooLarge {
        /// The path of the root.
        path: PathBuf,
        /// The approximate length of the initramfs, in bytes.
        len: u64,
        /// The guest's memory, in bytes.
        memory: u64,
    },
    /// The image cannot be written.
    #[error("{ROOT} {}: {source}", path.display())]
    Image {
        /// The path of the root.
        path: PathBuf,
        /// The cause.
        r#source: ImageError,
    },
    /// The host cannot create an unnamed file.
    #[error("{}: a file for the root cannot be made there: {source}{}", folder.display(), temporary::advice())]
    Spool {
        /// The directory of the file.
        folder: PathBuf,
        /// The error of the system call.
        r#source: io::Error,
    },
    /// There is an initrd as well.
    #[error("{ROOT} goes without {INITRDS}: the root takes the place of an initrd")]
    WithInitrd,
    /// The kernel command line names another root or another init.
    #[error("{ROOT} goes without {parameter} on the kernel command line; init= chooses the first program")]
    WithParameter {
        /// The parameter of the kernel command line.
        parameter: String,
    },
    /// The kernel is not Linux, which alone can use a root.
    #[error("{ROOT} needs a Linux kernel, and {} is not one", kernel.display())]
    NotLinux {
        /// The path of the kernel.
        kernel: PathBuf,
    },
}
