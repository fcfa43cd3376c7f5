//! A file system between its source and the guest: names and attributes in memory, file contents by
//! reference. The readers (`directory`, `tar`) fill it, and the writers (`newc`, `erofs`) walk it. Nothing of
//! it is ever created on the host, so no name in it can reach a file there.

use std::collections::{BTreeMap, VecDeque};

use super::content::Content;

/// A file system: a list of inodes, of which the first is the root directory.
#[derive(Debug)]
pub(super) struct Tree {
    /// In pieces of [`PIECE`]: a single vector would need up to three times its size while it grows.
    inodes: Vec<Vec<Inode>>,
    count: u32,
    /// The number of bytes of memory that are left.
    room: usize,
    /// The memory limit for everything, in bytes.
    limit: usize,
}

/// The index of an inode in its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct InodeId(u32);

/// A file of any kind, with one or more names.
#[derive(Debug, Clone)]
pub(super) struct Inode {
    pub(super) kind: Kind,
    pub(super) attributes: Attributes,
}

/// The attributes of every kind of file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    /// The lowest twelve bits of `st_mode`.
    pub(super) permissions: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds since 1970, which may be negative, and the nanoseconds added to them.
    pub(super) mtime: (i64, u32),
    /// Maps complete names (`user.x`) to values.
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// The kind of a file.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    /// Its entries, without `.` and `..`.
    Directory(BTreeMap<Vec<u8>, InodeId>),
    File(Content),
    Symlink(Vec<u8>),
    CharacterDevice(Device),
    BlockDevice(Device),
    Fifo,
}

/// The number of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) major: u32,
    pub(super) minor: u32,
}

/// The result of [`Tree::reachable`] for an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reached {
    pub(super) id: InodeId,
    /// The directory in which it was found first; the root's is the root itself.
    pub(super) parent: InodeId,
    /// The value of `st_nlink`: the number of names or, for a directory, two plus its subdirectories.
    pub(super) links: u32,
}

/// Why an entry cannot be part of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryError {
    /// The name leads upwards.
    #[error("its name has `..`")]
    Up,
    /// No Linux file system allows such a name.
    #[error("a part of its name is longer than 255 bytes or has a NUL")]
    Name,
    /// The path has more parts than any real path, counting those of symbolic links in it.
    #[error("its name has more than {MAX_DEPTH} parts, with those of the symbolic links in it")]
    Depth,
    /// Its directory is a link that leads to nothing or to itself.
    #[error("a directory in its path is a symbolic link that leads nowhere or in a circle")]
    Circle,
    /// A hard link to a file that does not exist.
    #[error("it is a hard link to a file that does not come before it")]
    NoTarget,
    /// A hard link to a directory.
    #[error("it is a hard link to a directory")]
    DirectoryLink,
    /// The root itself can only be a directory.
    #[error("it would replace the root directory by something else")]
    Root,
    /// A symbolic link cannot have this target.
    #[error("it is a symbolic link to nothing, or to a name that cannot be")]
    Target,
    /// The tree is larger than any root, or than expected from a source of this size.
    #[error(
        "its files, names and attributes take more than {mib} MiB of memory, the limit for a source of this size; an \
         unpacked one may have more"
    )]
    TooMany {
        /// The limit, in MiB.
        mib: usize,
    },
}

impl Tree {
    /// Creates a tree with only its root directory.
    pub(super) fn new(attributes: Attributes) -> Tree {
        Tree::within(attributes, MAX_MEMORY)
    }

    /// Creates a tree with only its root directory, and with a limit, in bytes, for its memory and for that
    /// of the archives and images that are written from it.
    pub(super) fn within(attributes: Attributes, limit: usize) -> Tree {
        let root = Inode { kind: Kind::Directory(BTreeMap::new()), attributes };
        Tree { inodes: vec![vec![root]], count: 1, room: limit, limit }
    }

    /// Returns the limit for a tree from an archive: enough for a valid one, and in proportion to its size.
    pub(super) fn limit_for(archive_len: u64) -> usize {
        let more = usize::try_from(archive_len).unwrap_or(usize::MAX).saturating_mul(MEMORY_PER_BYTE);
        MIN_MEMORY.saturating_add(more).min(MAX_MEMORY)
    }

    /// Returns the number of inodes.
    pub(super) fn count(&self) -> usize {
        self.count as usize
    }

    /// The root directory.
    pub(super) const ROOT: InodeId = InodeId(0);

    #[expect(clippy::indexing_slicing, reason = "ids are made by this tree, which never loses an inode")]
    pub(super) fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.index() / PIECE][id.index() % PIECE]
    }

    #[expect(clippy::indexing_slicing, reason = "ids are made by this tree, which never loses an inode")]
    fn inode_mut(&mut self, id: InodeId) -> &mut Inode {
        &mut self.inodes[id.index() / PIECE][id.index() % PIECE]
    }

    /// Returns whether the root directory is empty.
    pub(super) fn is_empty(&self) -> bool {
        matches!(&self.inode(Self::ROOT).kind, Kind::Directory(names) if names.is_empty())
    }

    /// Finds the inode at a path from the root. Symbolic links are followed, except in the last part.
    pub(super) fn find(&self, path: &[u8]) -> Option<InodeId> {
        let mut parts = parts(path).ok()?;
        let Some(name) = parts.pop() else { return Some(Self::ROOT) };
        match self.walk(&parts).ok()? {
            (directory, rest) if rest.is_empty() => self.child(directory, &name),
            _ => None,
        }
    }

    /// Puts an inode at a path. Missing directories are created; an existing file is replaced, but if both
    /// are directories, only the attributes are.
    ///
    /// # Errors
    /// The path does not lead to a place in the root, or the tree is too large.
    pub(super) fn put(&mut self, path: &[u8], inode: Inode) -> Result<InodeId, EntryError> {
        let place = self.place(path)?;
        let there = match &place {
            None => Some(Self::ROOT),
            Some((directory, name)) => self.child(*directory, name),
        };
        let is_directory = |kind: &Kind| matches!(kind, Kind::Directory(_));
        if let Some(there) = there.filter(|there| is_directory(&self.inode(*there).kind))
            && is_directory(&inode.kind)
        {
            self.take_room(inode.attributes.memory())?;
            self.inode_mut(there).attributes = inode.attributes;
            return Ok(there);
        }
        let (directory, name) = place.ok_or(EntryError::Root)?;
        self.add(directory, name, inode)
    }

    /// Gives a file another name.
    ///
    /// # Errors
    /// There is no such file, a path does not lead to a place in the root, or the tree is too large.
    pub(super) fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), EntryError> {
        let target = self.find(target).ok_or(EntryError::NoTarget)?;
        if let Kind::Directory(_) = self.inode(target).kind {
            return Err(EntryError::DirectoryLink);
        }
        let (directory, name) = self.place(path)?.ok_or(EntryError::Root)?;
        self.name(directory, name, target)
    }

    /// Creates an inode with a name in a directory.
    ///
    /// # Errors
    /// The tree is too large.
    pub(super) fn add(
        &mut self,
        directory: InodeId,
        name: Vec<u8>,
        inode: Inode,
    ) -> Result<InodeId, EntryError> {
        self.take_room(inode.memory())?;
        let id = InodeId(self.count);
        self.count = self.count.checked_add(1).ok_or_else(|| self.too_many())?;
        match self.inodes.last_mut().filter(|piece| piece.len() < PIECE) {
            Some(piece) => piece.push(inode),
            None => self.inodes.push(vec![inode]),
        }
        self.name(directory, name, id)?;
        Ok(id)
    }

    /// Gives an inode a name in `directory`, which must be one.
    ///
    /// # Errors
    /// The tree is too large.
    pub(super) fn name(&mut self, directory: InodeId, name: Vec<u8>, id: InodeId) -> Result<(), EntryError> {
        self.take_room(NAME.saturating_add(allocated(name.len())))?;
        if let Kind::Directory(names) = &mut self.inode_mut(directory).kind {
            names.insert(name, id);
        }
        Ok(())
    }

    /// Reserves memory. What is replaced is not given back: a source could replace the same name without end.
    fn take_room(&mut self, bytes: usize) -> Result<(), EntryError> {
        self.room = self.room.checked_sub(bytes).ok_or_else(|| self.too_many())?;
        Ok(())
    }

    fn too_many(&self) -> EntryError {
        EntryError::TooMany { mib: self.limit >> 20 }
    }

    /// Returns every inode that has a name, once: the root first, each directory before its content.
    pub(super) fn reachable(&self) -> Vec<Reached> {
        let mut reached = Vec::with_capacity(self.count());
        reached.push(Reached { id: Self::ROOT, parent: Self::ROOT, links: 2 });
        // Indexed by the id of an inode; only the root has index 0.
        let mut places = vec![0; self.count()];
        let mut directories = VecDeque::from([Self::ROOT]);
        while let Some(parent) = directories.pop_front() {
            let Kind::Directory(names) = &self.inode(parent).kind else { continue };
            let mut subdirectories = 0_u32;
            for &id in names.values() {
                let is_directory = matches!(self.inode(id).kind, Kind::Directory(_));
                let Some(place) = places.get_mut(id.index()) else { continue };
                if *place > 0 {
                    if let Some(known) = reached.get_mut(*place as usize) {
                        known.links = known.links.saturating_add(1);
                    }
                    continue;
                }
                *place = reached.len() as u32;
                reached.push(Reached { id, parent, links: if is_directory { 2 } else { 1 } });
                if is_directory {
                    subdirectories = subdirectories.saturating_add(1);
                    directories.push_back(id);
                }
            }
            let place = places.get(parent.index()).map(|place| *place as usize);
            if let Some(directory) = place.and_then(|place| reached.get_mut(place)) {
                directory.links = directory.links.saturating_add(subdirectories);
            }
        }
        reached
    }

    /// Returns the directory and the name of a path, creating missing directories; `None` for the root.
    fn place(&mut self, path: &[u8]) -> Result<Option<(InodeId, Vec<u8>)>, EntryError> {
        let mut parts = parts(path)?;
        let Some(name) = parts.pop() else { return Ok(None) };
        let (mut directory, missing) = self.walk(&parts)?;
        for part in missing {
            let attributes = Attributes { permissions: 0o755, ..Attributes::default() };
            let inode = Inode { kind: Kind::Directory(BTreeMap::new()), attributes };
            directory = self.add(directory, part, inode)?;
        }
        Ok(Some((directory, name)))
    }

    /// Follows a path as far as there are directories, through symbolic links, none of which leads out of the
    /// root. Returns where it ended, and the parts that are left; a file of another kind is not entered.
    fn walk(&self, path: &[Vec<u8>]) -> Result<(InodeId, Vec<Vec<u8>>), EntryError> {
        let mut above = Vec::new();
        let mut here = Self::ROOT;
        let mut ahead: VecDeque<Vec<u8>> = path.iter().cloned().collect();
        let (mut links, mut steps) = (0_u32, 0_usize);
        while let Some(part) = ahead.pop_front() {
            steps = steps.saturating_add(1);
            if steps > MAX_DEPTH {
                return Err(EntryError::Depth);
            }
            if part == b".." {
                here = above.pop().unwrap_or(Self::ROOT);
                continue;
            }
            match self.child(here, &part).map(|id| (id, &self.inode(id).kind)) {
                Some((id, Kind::Directory(_))) => {
                    above.push(here);
                    here = id;
                }
                Some((_, Kind::Symlink(target))) => {
                    links = links.saturating_add(1);
                    if links > MAX_LINKS {
                        return Err(EntryError::Circle);
                    }
                    if target.starts_with(b"/") {
                        above.clear();
                        here = Self::ROOT;
                    }
                    let parts = target.split(|byte| *byte == b'/');
                    for part in parts.filter(|part| !part.is_empty() && *part != b".").rev() {
                        ahead.push_front(part.to_vec());
                    }
                    if ahead.len() > MAX_DEPTH {
                        return Err(EntryError::Depth);
                    }
                }
                _ => {
                    ahead.push_front(part);
                    // What remains after a link is a name to be created, if it is a valid one.
                    let is_name = |part: &Vec<u8>| part != b".." && part.len() <= MAX_NAME;
                    return match ahead.iter().all(is_name) {
                        true => Ok((here, ahead.into())),
                        false => Err(EntryError::Circle),
                    };
                }
            }
        }
        Ok((here, Vec::new()))
    }

    fn child(&self, directory: InodeId, name: &[u8]) -> Option<InodeId> {
        match &self.inode(directory).kind {
            Kind::Directory(names) => names.get(name).copied(),
            _ => None,
        }
    }
}

impl InodeId {
    /// Returns its index among the inodes of its tree.
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

impl Kind {
    /// Returns the type bits of `st_mode` (inode(7)).
    pub(super) fn type_bits(&self) -> u16 {
        match self {
            Kind::Directory(_) => 0o040_000,
            Kind::File(_) => 0o100_000,
            Kind::Symlink(_) => 0o120_000,
            Kind::CharacterDevice(_) => 0o020_000,
            Kind::BlockDevice(_) => 0o060_000,
            Kind::Fifo => 0o010_000,
        }
    }
}

impl Attributes {
    /// Estimates the memory that it takes, in bytes, from above.
    fn memory(&self) -> usize {
        let lens = self.xattrs.iter().flat_map(|(name, value)| [name.len(), value.len()]);
        let all =
            lens.fold(XATTR.saturating_mul(self.xattrs.len()), |sum, len| sum.saturating_add(allocated(len)));
        if all == 0 { 0 } else { all.saturating_add(XATTRS) }
    }
}

impl Inode {
    /// Estimates the memory that it takes, in bytes, from above, here and when an image is written.
    fn memory(&self) -> usize {
        let kind = match &self.kind {
            Kind::File(content) => allocated(content.memory()),
            Kind::Symlink(target) => allocated(target.len()),
            Kind::Directory(_) => NAMES,
            Kind::CharacterDevice(_) | Kind::BlockDevice(_) | Kind::Fifo => 0,
        };
        [size_of::<Inode>(), WRITTEN, self.attributes.memory(), kind].into_iter().sum()
    }

    /// Returns the mode, as in `st_mode`.
    pub(super) fn mode(&self) -> u16 {
        self.kind.type_bits() | (self.attributes.permissions & 0o7777)
    }
}

/// Splits a path into its parts; it may begin with `/` or `./`.
fn parts(path: &[u8]) -> Result<Vec<Vec<u8>>, EntryError> {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    let parts: Vec<Vec<u8>> = parts.map(<[u8]>::to_vec).collect();
    if parts.len() > MAX_DEPTH {
        return Err(EntryError::Depth);
    }
    for part in &parts {
        if part == b".." {
            return Err(EntryError::Up);
        }
        if part.len() > MAX_NAME || part.contains(&0) {
            return Err(EntryError::Name);
        }
    }
    Ok(parts)
}

/// The maximum length of a name: NAME_MAX of Linux.
const MAX_NAME: usize = 255;
/// The maximum number of parts of a path. The deepest real trees have some dozens.
const MAX_DEPTH: usize = 1024;
/// The maximum number of symbolic links on a path, as in the kernel (path_resolution(7)).
const MAX_LINKS: u32 = 40;
/// The number of inodes in a piece.
const PIECE: usize = 1024;
/// The maximum memory of a tree, in bytes: some two million files, several times a large distribution.
const MAX_MEMORY: usize = 1 << 30;
/// The memory that a tree from any archive may take, in bytes: enough for some forty thousand files.
const MIN_MEMORY: usize = 16 << 20;
/// The additional memory for each byte of the archive. A member of a plain tar takes 512 bytes there and some
/// 400 here.
const MEMORY_PER_BYTE: usize = 5;
/// The memory of a name in addition to its bytes: nodes of a map are half empty at worst.
const NAME: usize = 80;
/// The memory of a directory: the first node of its map.
const NAMES: usize = 352;
/// The memory of an extended attribute, and of the first one of a file, likewise.
const XATTR: usize = 112;
const XATTRS: usize = 560;
/// The memory of an inode for its position in an image.
const WRITTEN: usize = 128;

/// Returns the number of bytes that an allocation of `len` takes.
fn allocated(len: usize) -> usize {
    len.saturating_add(16).max(32)
}

#[cfg(test)]
mod tests;
