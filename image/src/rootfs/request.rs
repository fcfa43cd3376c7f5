//! What a caller says about a root: where it is, and what the machine around it is like.

use std::path::Path;

/// A root file system as its user names it. What `path` names is told by looking at it: a folder, a tar
/// (plain, or packed by gzip, xz, zstd or LZ4), or an image of ext4, EROFS or squashfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootSource<'a> {
    /// The folder, tar or image.
    pub path: &'a Path,
    /// What it has to be; none: whatever it is.
    pub kind: Option<RootKind>,
    /// Where the guest's writes go.
    pub access: RootAccess,
    /// How a folder or tar gets into the guest.
    pub form: RootForm,
    /// Whether it is an error when the owner of a file in a folder cannot be known. Without it, what belongs
    /// to an unprivileged caller is root's in the guest.
    pub keep_ids: bool,
}

impl<'a> RootSource<'a> {
    /// A root whose source stays as it is.
    pub fn new(path: &'a Path) -> RootSource<'a> {
        let (access, form) = (RootAccess::default(), RootForm::default());
        RootSource { path, kind: None, access, form, keep_ids: false }
    }
}

/// A root and the machine that gets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootRequest<'a> {
    /// The root.
    pub source: RootSource<'a>,
    /// The kernel command line as its user wrote it.
    pub cmdline: &'a str,
    /// Whether the user has an initrd, which no root goes with.
    pub has_initrd: bool,
    /// Bytes of the guest's memory.
    pub memory: u64,
}

/// What a root is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootKind {
    /// A folder of the host.
    Directory,
    /// A tar, packed or not.
    Tar,
    /// An image of a file system.
    Image,
}

/// What becomes of what a guest writes to its root.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RootAccess {
    /// It is gone with the machine, and the source stays as it is.
    #[default]
    Private,
    /// The same, and at most so many bytes of it. For images of ext4.
    PrivateUpTo(u64),
    /// It goes to the image, which nobody else may use meanwhile. For images of ext4.
    Image,
}

/// How a folder or tar gets into the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RootForm {
    /// As an initramfs where it is small and has no extended attributes, else on a disk.
    #[default]
    Auto,
    /// As an initramfs, which any kernel can have, and which takes memory.
    Initramfs,
    /// On a read-only disk (EROFS) with what is written in the guest's memory (overlayfs).
    Disk,
}
