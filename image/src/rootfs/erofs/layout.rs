//! Computes the layout of an image before any of it is written.

use super::directory;
use crate::rootfs::tree::{Inode, InodeId, Kind, Reached, Tree};
use crate::rootfs::xattrs;

/// The positions of all inodes.
pub(super) struct Layout {
    /// The inodes by ascending offset, the root first.
    pub(super) placed: Vec<Placed>,
    /// The length of the image, in blocks.
    pub(super) blocks: u64,
    /// The number of extended attributes that do not fit.
    pub(super) lost_xattrs: u64,
    /// Maps the index of an inode to its index in `placed`.
    places: Vec<u32>,
}

/// The position of an inode and its content.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placed {
    pub(super) id: InodeId,
    pub(super) parent: InodeId,
    pub(super) links: u32,
    /// The offset in the image, a multiple of [`SLOT`].
    pub(super) offset: u64,
    /// The length of the extended attributes after the inode, including their header, in bytes.
    pub(super) xattrs: u64,
    /// The length of its content, in bytes.
    pub(super) size: u64,
    /// Whether the last, incomplete block of the content follows the inode.
    pub(super) is_inline: bool,
    /// The number of blocks elsewhere, and the first of them.
    pub(super) blocks: u64,
    pub(super) block: u64,
}

pub(super) const BLOCK: u64 = 4096;
/// The unit in which inodes are numbered, in bytes.
pub(super) const SLOT: u64 = 32;
/// The length of an inode in its extended form, in bytes.
pub(super) const INODE: u64 = 64;
/// The offset of the superblock.
pub(super) const SUPER_OFFSET: usize = 1024;
/// The length of the header before an inode's extended attributes, in bytes.
pub(super) const XATTR_HEADER: u64 = 12;

impl Layout {
    /// Computes the layout of a tree; `None` if it needs more blocks than there are block numbers.
    pub(super) fn of(tree: &Tree) -> Option<Layout> {
        let mut cursor = SUPERBLOCK.saturating_add(SUPER_OFFSET as u64);
        let reached = tree.reachable();
        let placed = Vec::with_capacity(reached.len());
        let mut layout = Layout { placed, blocks: 0, lost_xattrs: 0, places: vec![0; tree.count()] };
        for reached in reached {
            let placed = layout.place(tree, reached, &mut cursor);
            if let Some(place) = layout.places.get_mut(placed.id.index()) {
                *place = layout.placed.len() as u32;
            }
            layout.placed.push(placed);
        }
        let mut next = cursor.div_ceil(BLOCK);
        for placed in &mut layout.placed {
            if placed.blocks > 0 {
                placed.block = next;
                next = next.checked_add(placed.blocks).filter(|next| *next < u64::from(u32::MAX))?;
            }
        }
        layout.blocks = next;
        Some(layout)
    }

    /// Returns the number of the root's inode. The superblock has 16 bits for it, so the root comes first.
    pub(super) fn root_nid(&self) -> u16 {
        self.placed.first().and_then(|root| u16::try_from(root.offset / SLOT).ok()).unwrap_or_default()
    }

    /// Returns the number by which directories refer to an inode.
    pub(super) fn nid(&self, id: InodeId) -> u64 {
        let placed = self.places.get(id.index()).and_then(|place| self.placed.get(*place as usize));
        placed.map_or(0, |placed| placed.offset / SLOT)
    }

    fn place(&mut self, tree: &Tree, reached: Reached, cursor: &mut u64) -> Placed {
        let Reached { id, parent, links } = reached;
        let inode = tree.inode(id);
        let xattrs = self.xattrs_len(inode);
        let size = match &inode.kind {
            Kind::Directory(names) => directory::len(names),
            Kind::File(content) => content.len,
            Kind::Symlink(target) => target.len() as u64,
            Kind::CharacterDevice(_) | Kind::BlockDevice(_) | Kind::Fifo => 0,
        };
        let tail = size % BLOCK;
        // The end of a content must not cross a block boundary.
        let with_xattrs = INODE.saturating_add(xattrs);
        let with_tail = with_xattrs.saturating_add(tail);
        let is_inline = tail > 0 && with_tail <= BLOCK;
        let together = if is_inline { with_tail } else { INODE };
        let mut offset = cursor.next_multiple_of(SLOT);
        if (offset % BLOCK).saturating_add(together) > BLOCK {
            offset = offset.next_multiple_of(BLOCK);
        }
        *cursor = offset.saturating_add(if is_inline { with_tail } else { with_xattrs });
        let blocks = if is_inline { size / BLOCK } else { size.div_ceil(BLOCK) };
        Placed { id, parent, links, offset, xattrs, size, is_inline, blocks, block: 0 }
    }

    fn xattrs_len(&mut self, inode: &Inode) -> u64 {
        let (mut count, mut len) = (0_u64, 0_u64);
        for xattr in kept_xattrs(inode) {
            count = count.saturating_add(1);
            len = len.saturating_add(xattr.len());
        }
        let lost = (inode.attributes.xattrs.len() as u64).saturating_sub(count);
        self.lost_xattrs = self.lost_xattrs.saturating_add(lost);
        if len == 0 { 0 } else { len.saturating_add(XATTR_HEADER) }
    }
}

impl Placed {
    /// Returns the count by which an inode encodes the length of its extended attributes.
    pub(super) fn xattr_count(&self) -> u16 {
        match self.xattrs {
            0 => 0,
            len => {
                u16::try_from((len.saturating_sub(XATTR_HEADER) / 4).saturating_add(1)).unwrap_or(u16::MAX)
            }
        }
    }
}

/// An extended attribute that is stored after its inode.
pub(super) struct Xattr<'a> {
    pub(super) index: u8,
    /// The name without the prefix that the index stands for.
    pub(super) name: &'a [u8],
    pub(super) value: &'a [u8],
}

impl Xattr<'_> {
    /// Returns the length of its entry, in bytes.
    fn len(&self) -> u64 {
        let len = self.name.len().saturating_add(self.value.len());
        XATTR_ENTRY.saturating_add(len as u64).next_multiple_of(4)
    }
}

/// Returns the extended attributes of a file that fit.
pub(super) fn kept_xattrs(inode: &Inode) -> impl Iterator<Item = Xattr<'_>> {
    let mut room = MAX_XATTRS;
    inode.attributes.xattrs.iter().filter_map(move |(name, value)| {
        let (index, name) = xattrs::split(name)?;
        let xattr = Xattr { index, name, value };
        if value.len() > MAX_VALUE || xattr.len() > room {
            return None;
        }
        room = room.saturating_sub(xattr.len());
        Some(xattr)
    })
}

/// The length of the superblock, in bytes.
const SUPERBLOCK: u64 = 128;
/// The length of an extended attribute's header, in bytes.
const XATTR_ENTRY: u64 = 4;
/// The maximum length of a value: its field has 16 bits.
const MAX_VALUE: usize = 65535;
/// The maximum length of all attributes: its field has 16 bits and counts units of four bytes; this is half
/// of that.
const MAX_XATTRS: u64 = 128 << 10;
