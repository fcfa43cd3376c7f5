//! Writes a root as an initramfs: a cpio archive in the "newc" form (Linux,
//! Documentation/driver-api/early-userspace/buffer-format.rst), with owners, times and hard links.

use std::collections::{HashMap, HashSet, btree_map};

use super::content::Content;
use super::erofs::ImageError;
use super::tree::{Inode, InodeId, Kind, Reached, Tree};

/// Bytes of the archive, about: what decides whether it is small. `None` when the form cannot hold the tree:
/// it has extended attributes, a path that the kernel would skip, or an id that has no room.
pub(super) fn likely_len(tree: &Tree) -> Option<u64> {
    let mut len = END;
    let mut can_hold = true;
    let mut counted = HashSet::new();
    each_name(tree, |name, number, inode, links| {
        let is_first = links < 2 || counted.insert(number);
        let content = match &inode.kind {
            Kind::File(content) if is_first => content.len,
            Kind::Symlink(target) => target.len() as u64,
            _ => 0,
        };
        len = [HEADER, name.len() as u64, PADDING, content].into_iter().fold(len, u64::saturating_add);
        can_hold &= inode.attributes.xattrs.is_empty() && name.len() < MAX_PATH;
        can_hold &= content <= u64::from(u32::MAX);
        Ok(())
    })
    .ok()?;
    can_hold.then_some(len)
}

/// The archive, for which there is room for the `len` bytes that are likely.
///
/// # Errors
/// A file of the source cannot be read.
pub(super) fn write(tree: &Tree, len: u64, shortened: &mut u64) -> Result<Vec<u8>, ImageError> {
    let mut out = Vec::with_capacity(usize::try_from(len).map_err(|_| ImageError::TooLarge)?);
    let mut written = HashSet::new();
    each_name(tree, |name, number, inode, links| {
        // The kernel links later names of a file to the first one; only that has the content.
        let is_first = written.insert(number);
        let size = match &inode.kind {
            Kind::File(content) if is_first => content.len,
            Kind::Symlink(target) => target.len() as u64,
            _ => 0,
        };
        let (major, minor) = match &inode.kind {
            Kind::CharacterDevice(device) | Kind::BlockDevice(device) => (device.major, device.minor),
            _ => (0, 0),
        };
        let attributes = &inode.attributes;
        // Before 1970 and after 2106 there is no time in this form.
        let time = u32::try_from(attributes.mtime.0.max(0)).unwrap_or(u32::MAX);
        let name = if name.is_empty() { b"." } else { name };
        let (size, name_size) =
            (u32::try_from(size).map_err(|_| ImageError::TooLarge)?, (name.len() as u32).saturating_add(1));
        let mode = u32::from(inode.mode());
        let fields = [
            number,
            mode,
            attributes.uid,
            attributes.gid,
            links,
            time,
            size,
            0,
            0,
            major,
            minor,
            name_size,
            0,
        ];
        append_header(&mut out, fields, name);
        match &inode.kind {
            Kind::File(content) if is_first => {
                *shortened = shortened.saturating_add(append_content(&mut out, content)?.into());
            }
            Kind::Symlink(target) => out.extend_from_slice(target),
            _ => {}
        }
        pad(&mut out);
        Ok(())
    })?;
    append_header(
        &mut out,
        [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, (TRAILER.len() as u32).saturating_add(1), 0],
        TRAILER,
    );
    Ok(out)
}

/// Calls `each` for every name: a path from the root, empty for the root itself, the inode's number and
/// links.
fn each_name(
    tree: &Tree,
    mut each: impl FnMut(&[u8], u32, &Inode, u32) -> Result<(), ImageError>,
) -> Result<(), ImageError> {
    let reached = tree.reachable();
    let numbers: HashMap<InodeId, (u32, u32)> =
        (1..).zip(&reached).map(|(number, &Reached { id, links, .. })| (id, (number, links))).collect();
    let known = |id: &InodeId| numbers.get(id).copied().unwrap_or_default();
    let (number, links) = known(&Tree::ROOT);
    each(b"", number, tree.inode(Tree::ROOT), links)?;
    // One path for all: deep folders with many names would fill the memory with theirs.
    let mut path = Vec::new();
    let mut open = Vec::from_iter(names(tree, Tree::ROOT).map(|names| (names, 0)));
    while let Some((names, len)) = open.last_mut() {
        path.truncate(*len);
        let Some((name, id)) = names.next() else {
            open.pop();
            continue;
        };
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        let (number, links) = known(id);
        each(&path, number, tree.inode(*id), links)?;
        open.extend(self::names(tree, *id).map(|names| (names, path.len())));
    }
    Ok(())
}

/// What is in a directory; none for other files.
fn names(tree: &Tree, id: InodeId) -> Option<btree_map::Iter<'_, Vec<u8>, InodeId>> {
    match &tree.inode(id).kind {
        Kind::Directory(names) => Some(names.iter()),
        _ => None,
    }
}

fn append_header(out: &mut Vec<u8>, fields: [u32; 13], name: &[u8]) {
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(name);
    out.push(0);
    pad(out);
}

/// Reads a file straight into the archive; true when it has become shorter than it was.
fn append_content(out: &mut Vec<u8>, content: &Content) -> Result<bool, ImageError> {
    let failed = |source| ImageError::Source { name: content.name(), source };
    let open = content.open().map_err(failed)?;
    let is_shorter = open.is_shorter().map_err(failed)?;
    let start = out.len();
    let len = usize::try_from(content.len).map_err(|_| ImageError::TooLarge)?;
    out.resize(start.saturating_add(len), 0);
    open.fill(out.get_mut(start..).unwrap_or_default(), 0).map_err(failed)?;
    Ok(is_shorter)
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

const TRAILER: &[u8] = b"TRAILER!!!";
/// Bytes in front of a name.
const HEADER: u64 = 110;
/// The entry that ends an archive.
const END: u64 = 124;
/// Behind a name and a content, at the most.
const PADDING: u64 = 7;
/// The kernel skips names that are not shorter than PATH_MAX.
const MAX_PATH: usize = 4090;

#[cfg(test)]
mod tests;
