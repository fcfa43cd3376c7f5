//! Directories: blocks of entries sorted by name, each followed by the names of its entries (`struct
//! erofs_dirent`).

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};

use super::layout::{BLOCK, Layout, Placed};
use crate::rootfs::tree::{InodeId, Kind, Tree};

type Names = BTreeMap<Vec<u8>, InodeId>;

/// Returns the size of a directory with these names, in bytes.
pub(super) fn len(names: &Names) -> u64 {
    let blocks = blocks(sorted(names).map(<[u8]>::len));
    let last = blocks.last().map_or(0, |block| block.len);
    (blocks.len() as u64).saturating_sub(1).saturating_mul(BLOCK).saturating_add(last)
}

/// Returns the content of a directory.
pub(super) fn bytes(layout: &Layout, tree: &Tree, placed: &Placed, names: &Names) -> Vec<u8> {
    let mut out = Vec::new();
    let mut names_left = sorted(names);
    for block in blocks(sorted(names).map(<[u8]>::len)) {
        // All blocks but the last are padded to whole blocks.
        out.resize(out.len().next_multiple_of(BLOCK as usize), 0);
        let here: Vec<&[u8]> = names_left.by_ref().take(block.entries).collect();
        let mut name_at = block.entries.saturating_mul(ENTRY as usize);
        for name in &here {
            let id = match *name {
                b"." => placed.id,
                b".." => placed.parent,
                name => names.get(name).copied().unwrap_or(placed.id),
            };
            out.extend_from_slice(&layout.nid(id).to_le_bytes());
            out.extend_from_slice(&(name_at as u16).to_le_bytes());
            out.push(type_of(&tree.inode(id).kind));
            out.push(0);
            name_at = name_at.saturating_add(name.len());
        }
        here.iter().for_each(|name| out.extend_from_slice(name));
    }
    out
}

/// A block of a directory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Block {
    entries: usize,
    /// The length of the entries and their names, in bytes.
    len: u64,
}

/// Distributes names of these lengths over blocks, of which there is at least one.
fn blocks(lengths: impl Iterator<Item = usize>) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut block = Block::default();
    for length in lengths {
        let more = ENTRY.saturating_add(length as u64);
        if block.len.saturating_add(more) > BLOCK {
            blocks.push(std::mem::take(&mut block));
        }
        block.entries = block.entries.saturating_add(1);
        block.len = block.len.saturating_add(more);
    }
    blocks.push(block);
    blocks
}

/// Returns the names with `.` and `..`, sorted by their bytes, since Linux does a binary search.
fn sorted(names: &Names) -> impl Iterator<Item = &[u8]> {
    let range = |from, to| names.range::<[u8], _>((from, to)).map(|(name, _)| name.as_slice());
    let before = range(Unbounded, Excluded(DOT));
    let between = range(Excluded(DOT), Excluded(DOTS));
    let after = range(Excluded(DOTS), Unbounded);
    before.chain([DOT]).chain(between).chain([DOTS]).chain(after)
}

const DOT: &[u8] = b".";
const DOTS: &[u8] = b"..";

/// Returns the file type for a directory entry.
fn type_of(kind: &Kind) -> u8 {
    match kind {
        Kind::File(_) => 1,
        Kind::Directory(_) => 2,
        Kind::CharacterDevice(_) => 3,
        Kind::BlockDevice(_) => 4,
        Kind::Fifo => 5,
        Kind::Symlink(_) => 7,
    }
}

/// The length of an entry without its name, in bytes.
const ENTRY: u64 = 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fill_blocks_up_to_their_end() {
        // 12 + 244 bytes: 16 entries fill a block.
        let names = |count| blocks(std::iter::repeat_n(244, count));
        assert_eq!(names(16), [Block { entries: 16, len: 4096 }]);
        assert_eq!(names(17), [Block { entries: 16, len: 4096 }, Block { entries: 1, len: 256 }]);
        assert_eq!(names(0), [Block::default()]);
    }

    #[test]
    fn dots_stand_among_the_names_by_their_bytes() {
        let names: Names = [&b"!"[..], b".-", b".a", b"...", b"a"]
            .into_iter()
            .map(|name| (name.to_vec(), Tree::ROOT))
            .collect();
        let sorted: Vec<&[u8]> = sorted(&names).collect();
        assert_eq!(sorted, [&b"!"[..], b".", b".-", b"..", b"...", b".a", b"a"]);
    }
}
