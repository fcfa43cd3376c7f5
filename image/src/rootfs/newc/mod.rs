//! Writes a root as an initramfs: a cpio archive in the "newc" format (Linux,
//! Documentation/driver-api/early-userspace/buffer-format.rst), with owners, times and hard links.

use std::collections::{HashMap, HashSet, btree_map};

use super::content::Content;
use super::erofs::ImageError;
use super::tree::{Inode, InodeId, Kind, Reached, Tree};

/// Estimates the length of the archive, in bytes, which decides whether it is small. Returns `None` if the
/// format cannot hold the tree: because of extended attributes, a path that the kernel would skip, or an id
/// that is too large.
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

/// Writes the archive into memory; `len` is its estimated length.
///
/// # Errors
/// A file of the source cannot be read.
pub(super) fn write(tree: &Tree, len: u64, shortened: &mut u64) -> Result<Vec<u8>, ImageError> {
    let mut out = Vec::with_capacity(usize::try_from(len).map_err(|_| ImageError::TooLarge)?);
    let mut written = HashSet::new();
    each_name(tree, |name, number, inode, links| {
        // The kernel links later names of a file to the first one, and only that one has the content.
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
        // The format has no times before 1970 or after 2106.
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

/// Calls `each` for every name, with its path from the root, which is empty for the root itself, its inode's
/// number, and the number of links.
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
    // All names share one path buffer: in deep directories with many names, a path for each would exhaust the
    // memory.
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

/// Returns the entries of a directory; `None` for other files.
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

/// Reads a file straight into the archive; `true` if the file has become shorter.
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
/// The length of the header before a name, in bytes.
const HEADER: u64 = 110;
/// The length of the entry that ends an archive, in bytes.
const END: u64 = 124;
/// The maximum padding after a name and a content, in bytes.
const PADDING: u64 = 7;
/// The maximum length of a name: the kernel skips names that are not shorter than PATH_MAX.
const MAX_PATH: usize = 4090;

#[cfg(test)]
mod tests;
