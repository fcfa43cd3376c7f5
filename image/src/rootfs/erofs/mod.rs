//! Writes a root as an EROFS image: read-only, uncompressed, with blocks of 4 KiB and all metadata at the
//! front.
//!
//! Inodes come first. Each is followed by its extended attributes and, if it fits into the same block, the
//! end of its content (or all of it); then come the whole blocks of contents. The same tree always gives the
//! same bytes.
//!
//! Sources: Linux, Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h.

mod directory;
mod layout;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use self::layout::{BLOCK, INODE, Layout, Placed, SUPER_OFFSET, Xattr};
use super::tree::{Inode, Kind, Tree};
use crate::sparse::write_unless_zero;
use crate::temporary;

/// The result of writing an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Written {
    /// The length of the image, in bytes.
    pub(super) bytes: u64,
    pub(super) inodes: u64,
    /// The number of files that were shorter than expected when they were read.
    pub(super) shortened: u64,
    /// The number of extended attributes for which a file has no room.
    pub(super) lost_xattrs: u64,
}

/// Why an image cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The image needs more blocks than there are block numbers.
    #[error("it has more than the 16 TiB that an image can have")]
    TooLarge,
    /// A file of the source cannot be read.
    #[error("a file in it ({name}) cannot be read: {source}")]
    Source {
        /// Its name relative to the root, or its offset in the tar.
        name: String,
        /// The error of the system call.
        r#source: io::Error,
    },
    /// The image cannot be written.
    #[error("its image cannot be written: {0}{advice}", advice = temporary::advice())]
    Write(io::Error),
}

/// Writes the image into an empty file.
pub(super) fn write(tree: &Tree, image: &File) -> Result<Written, ImageError> {
    let layout = Layout::of(tree).ok_or(ImageError::TooLarge)?;
    let bytes = layout.blocks.saturating_mul(BLOCK);
    image.set_len(bytes).map_err(ImageError::Write)?;
    let mut writer = Writer { tree, image, layout: &layout, metadata: Vec::new(), start: 0, shortened: 0 };
    writer.run()?;
    let shortened = writer.shortened;
    Ok(Written { bytes, inodes: layout.placed.len() as u64, shortened, lost_xattrs: layout.lost_xattrs })
}

struct Writer<'a> {
    tree: &'a Tree,
    image: &'a File,
    layout: &'a Layout,
    /// Metadata that has not been written yet.
    metadata: Vec<u8>,
    /// Its offset in the image.
    start: u64,
    shortened: u64,
}

impl Writer<'_> {
    fn run(&mut self) -> Result<(), ImageError> {
        self.metadata.resize(SUPER_OFFSET, 0);
        self.metadata.extend_from_slice(&self.superblock());
        for (number, placed) in (1..).zip(&self.layout.placed) {
            self.inode(number, placed)?;
        }
        self.flush()
    }

    /// Encodes `struct erofs_super_block`, 128 bytes.
    fn superblock(&self) -> [u8; 128] {
        let mut block = [0; 128];
        let root = self.layout.root_nid();
        let blocks = u32::try_from(self.layout.blocks).unwrap_or(u32::MAX);
        put(&mut block, 0, &MAGIC.to_le_bytes());
        put(&mut block, 8, &FEATURE_MTIME.to_le_bytes());
        put(&mut block, 12, &[BLOCK.ilog2() as u8]);
        put(&mut block, 14, &root.to_le_bytes());
        put(&mut block, 16, &(self.layout.placed.len() as u64).to_le_bytes());
        put(&mut block, 36, &blocks.to_le_bytes());
        put(&mut block, 64, b"coracle-root");
        block
    }

    fn inode(&mut self, number: u32, placed: &Placed) -> Result<(), ImageError> {
        self.skip_to(placed.offset)?;
        let inode = self.tree.inode(placed.id);
        self.metadata.extend_from_slice(&head(number, placed, inode));
        let whole = placed.blocks.saturating_mul(BLOCK);
        let tail_len = usize::try_from(placed.size.saturating_sub(whole)).unwrap_or_default();
        append_xattrs(&mut self.metadata, inode, placed);
        let data = match &inode.kind {
            Kind::File(content) => {
                let failed = |source| ImageError::Source { name: content.name(), source };
                let open = content.open().map_err(failed)?;
                let tail =
                    if placed.is_inline { open.bytes(whole, tail_len).map_err(failed)? } else { vec![] };
                self.metadata.extend_from_slice(&tail);
                let is_whole = open
                    .copy_to(self.image, placed.block.saturating_mul(BLOCK), placed.size.min(whole))
                    .map_err(|error| copy_error(error, content.name()))?;
                self.shortened = self.shortened.saturating_add(u64::from(!is_whole));
                return Ok(());
            }
            Kind::Directory(names) => directory::bytes(self.layout, self.tree, placed, names),
            Kind::Symlink(target) => target.clone(),
            Kind::CharacterDevice(_) | Kind::BlockDevice(_) | Kind::Fifo => return Ok(()),
        };
        let (blocks, tail) = data.split_at(data.len().min(usize::try_from(whole).unwrap_or(usize::MAX)));
        self.metadata.extend_from_slice(tail);
        write_unless_zero(self.image, blocks, placed.block.saturating_mul(BLOCK)).map_err(ImageError::Write)
    }

    /// Pads with zeroes up to an offset of the image, and writes the metadata if enough of it has
    /// accumulated.
    fn skip_to(&mut self, offset: u64) -> Result<(), ImageError> {
        if self.metadata.len() >= FLUSH {
            self.flush()?;
        }
        let len = offset.saturating_sub(self.start);
        self.metadata.resize(usize::try_from(len).unwrap_or_default(), 0);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), ImageError> {
        self.image.write_all_at(&self.metadata, self.start).map_err(ImageError::Write)?;
        self.start = self.start.saturating_add(self.metadata.len() as u64);
        self.metadata.clear();
        Ok(())
    }
}

/// Encodes `struct erofs_inode_extended`, the form with 32-bit times and ids.
fn head(number: u32, placed: &Placed, inode: &Inode) -> [u8; INODE as usize] {
    let mut head = [0; INODE as usize];
    let format = EXTENDED | (if placed.is_inline { FLAT_INLINE } else { FLAT_PLAIN }) << 1;
    let place = match &inode.kind {
        Kind::CharacterDevice(device) | Kind::BlockDevice(device) => {
            device.minor & 0xff | device.major << 8 | (device.minor & !0xff) << 12
        }
        Kind::File(_) | Kind::Directory(_) | Kind::Symlink(_) | Kind::Fifo => {
            u32::try_from(placed.block).unwrap_or(u32::MAX)
        }
    };
    let attributes = &inode.attributes;
    put(&mut head, 0, &format.to_le_bytes());
    put(&mut head, 2, &placed.xattr_count().to_le_bytes());
    put(&mut head, 4, &inode.mode().to_le_bytes());
    put(&mut head, 8, &placed.size.to_le_bytes());
    put(&mut head, 16, &place.to_le_bytes());
    put(&mut head, 20, &number.to_le_bytes());
    put(&mut head, 24, &attributes.uid.to_le_bytes());
    put(&mut head, 28, &attributes.gid.to_le_bytes());
    put(&mut head, 32, &attributes.mtime.0.to_le_bytes());
    put(&mut head, 40, &attributes.mtime.1.to_le_bytes());
    put(&mut head, 44, &placed.links.to_le_bytes());
    head
}

/// Encodes `struct erofs_xattr_ibody_header`, without shared attributes, and the entries, each padded to 4
/// bytes.
fn append_xattrs(out: &mut Vec<u8>, inode: &Inode, placed: &Placed) {
    if placed.xattrs == 0 {
        return;
    }
    out.extend_from_slice(&[0; layout::XATTR_HEADER as usize]);
    for Xattr { index, name, value } in layout::kept_xattrs(inode) {
        out.push(name.len() as u8);
        out.push(index);
        out.extend_from_slice(&(value.len() as u16).to_le_bytes());
        out.extend_from_slice(name);
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
}

/// Assigns an error to one of the two files, which the host does not tell: a full disk is that of the image.
fn copy_error(source: io::Error, name: String) -> ImageError {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::FileTooLarge | io::ErrorKind::QuotaExceeded => {
            ImageError::Write(source)
        }
        _ => ImageError::Source { name, source },
    }
}

/// Puts a field into a structure that has room for it.
fn put(into: &mut [u8], at: usize, field: &[u8]) {
    if let Some(place) = into.get_mut(at..at.saturating_add(field.len())) {
        place.copy_from_slice(field);
    }
}

const MAGIC: u32 = 0xe0f5_e1e2;
/// A feature flag: the inodes' times are modification times.
const FEATURE_MTIME: u32 = 2;
/// The lowest bit of an inode's format: the extended form.
const EXTENDED: u16 = 1;
const FLAT_PLAIN: u16 = 0;
const FLAT_INLINE: u16 = 2;

/// Metadata is written in pieces of about this size, in bytes.
const FLUSH: usize = 1 << 20;

#[cfg(test)]
pub(super) mod reader;
#[cfg(test)]
mod tests;
