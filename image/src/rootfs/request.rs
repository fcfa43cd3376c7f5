//! A caller's description of a root, and of the machine that gets it.

use std::path::Path;

/// A root file system, as the user names it. The kind of `path` is recognized from its content: a directory,
/// a tar (plain, or compressed with gzip, xz, zstd or LZ4), or an image of ext4, EROFS or squashfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootSource<'a> {
    /// The directory, tar or image.
    pub path: &'a Path,
    /// The required kind; `None` accepts any.
    pub kind: Option<RootKind>,
    /// The destination of the guest's writes.
    pub access: RootAccess,
    /// How a directory or tar gets into the guest.
    pub form: RootForm,
    /// Whether it is an error if the owner of a file in a directory cannot be determined. If it is not, files
    /// of an unprivileged caller belong to root in the guest.
    pub keep_ids: bool,
}

impl<'a> RootSource<'a> {
    /// Describes a root whose source is not modified.
    pub fn new(path: &'a Path) -> RootSource<'a> {
        let (access, form) = (RootAccess::default(), RootForm::default());
        RootSource { path, kind: None, access, form, keep_ids: false }
    }
}

/// A root, and the machine that gets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootRequest<'a> {
    /// The root.
    pub source: RootSource<'a>,
    /// The kernel command line, as the user has written it.
    pub cmdline: &'a str,
    /// Whether the user has an initrd, with which no root can be combined.
    pub has_initrd: bool,
    /// The guest's memory, in bytes.
    pub memory: u64,
}

/// The kind of a root's source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootKind {
    /// A directory of the host.
    Directory,
    /// A tar, compressed or not.
    Tar,
    /// An image of a file system.
    Image,
}

/// The destination of a guest's writes to its root.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RootAccess {
    /// The writes are discarded with the machine, and the source is not modified.
    #[default]
    Private,
    /// The same, with a limit on their size in bytes. For images of ext4.
    PrivateUpTo(u64),
    /// The writes go to the image, which nobody else may use meanwhile. For images of ext4.
    Image,
}

/// How a directory or tar gets into the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RootForm {
    /// An initramfs if it is small and has no extended attributes, otherwise a disk.
    #[default]
    Auto,
    /// An initramfs, which every kernel supports, and which takes memory.
    Initramfs,
    /// A read-only disk (EROFS), with writes in the guest's memory (overlayfs).
    Disk,
}
