//! A file system as Coracle holds it between its source and what the guest gets: names and attributes in
//! memory, file contents by reference. The readers (`directory`, `tar`) fill it, the writers (`newc`,
//! `erofs`) walk it. Nothing of it is ever made on the host, so no name in it can reach a file there.

use std::collections::{BTreeMap, VecDeque};

use super::content::Content;

/// A file system: inodes, of which the first is the root directory.
#[derive(Debug)]
pub(super) struct Tree {
    /// In pieces of [`PIECE`]: one vector would take twice its length each time that it grows.
    inodes: Vec<Vec<Inode>>,
    count: u32,
    /// Bytes of memory that are left for more.
    room: usize,
    /// Bytes of memory for everything.
    limit: usize,
}

/// The place of an inode in its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct InodeId(u32);

/// A file of any kind, under one or more names.
#[derive(Debug, Clone)]
pub(super) struct Inode {
    pub(super) kind: Kind,
    pub(super) attributes: Attributes,
}

/// What every kind of file has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    /// The lowest twelve bits of `st_mode`.
    pub(super) permissions: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds since 1970, which may be before it, and nanoseconds after them.
    pub(super) mtime: (i64, u32),
    /// Whole names (`user.x`) and values.
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What a file is.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    /// Its names, without `.` and `..`.
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

/// What [`Tree::reachable`] tells of one inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reached {
    pub(super) id: InodeId,
    /// The directory that it was found in first; the root's is itself.
    pub(super) parent: InodeId,
    /// As `st_nlink`: names, and for a directory two and its subdirectories.
    pub(super) links: u32,
}

/// Why an entry has no place in a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryError {
    /// The name goes up.
    #[error("its name has `..`")]
    Up,
    /// No Linux file system has such a name.
    #[error("a part of its name is longer than 255 bytes or has a NUL")]
    Name,
    /// More parts than any path has, with those of the symbolic links in it.
    #[error("its name has more than {MAX_DEPTH} parts, with those of the symbolic links in it")]
    Depth,
    /// Its folder is a link that ends nowhere, or in itself.
    #[error("a folder in its name is a symbolic link that leads nowhere or in a circle")]
    Circle,
    /// A hard link to nothing.
    #[error("it is a hard link to a file that does not come before it")]
    NoTarget,
    /// A hard link to a directory.
    #[error("it is a hard link to a directory")]
    DirectoryLink,
    /// The root itself cannot be anything else.
    #[error("it would replace the root directory by something else")]
    Root,
    /// No link can say this.
    #[error("it is a symbolic link to nothing, or to a name that cannot be")]
    Target,
    /// More than any root has, or than a source of its size should have.
    #[error(
        "its files, names and attributes take more than {mib} MiB of memory, the limit for a source of this size; an \
         unpacked one may have more"
    )]
    TooMany {
        /// The limit.
        mib: usize,
    },
}

impl Tree {
    /// A tree of nothing but its root directory.
    pub(super) fn new(attributes: Attributes) -> Tree {
        Tree::within(attributes, MAX_MEMORY)
    }

    /// The same with a limit in bytes for its memory and that of what is written from it.
    pub(super) fn within(attributes: Attributes, limit: usize) -> Tree {
        let root = Inode { kind: Kind::Directory(BTreeMap::new()), attributes };
        Tree { inodes: vec![vec![root]], count: 1, room: limit, limit }
    }

    /// The limit for a tree from an archive: as much as an honest one takes, and in proportion to its bytes.
    pub(super) fn limit_for(archive_len: u64) -> usize {
        let more = usize::try_from(archive_len).unwrap_or(usize::MAX).saturating_mul(MEMORY_PER_BYTE);
        MIN_MEMORY.saturating_add(more).min(MAX_MEMORY)
    }

    /// How many inodes there are.
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

    /// Whether the root directory has nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        matches!(&self.inode(Self::ROOT).kind, Kind::Directory(names) if names.is_empty())
    }

    /// The inode at a path from the root; its symbolic links are followed, but not the last part.
    pub(super) fn find(&self, path: &[u8]) -> Option<InodeId> {
        let mut parts = parts(path).ok()?;
        let Some(name) = parts.pop() else { return Some(Self::ROOT) };
        match self.walk(&parts).ok()? {
            (directory, rest) if rest.is_empty() => self.child(directory, &name),
            _ => None,
        }
    }

    /// Puts an inode at a path. Missing folders are made; what is there is replaced, but a directory that
    /// meets a directory only gets its attributes.
    ///
    /// # Errors
    /// The path is not one inside a root, or there is too much in the tree.
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

    /// Gives a file one more name.
    ///
    /// # Errors
    /// There is no such file, one of the paths is not inside a root, or there is too much in the tree.
    pub(super) fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), EntryError> {
        let target = self.find(target).ok_or(EntryError::NoTarget)?;
        if let Kind::Directory(_) = self.inode(target).kind {
            return Err(EntryError::DirectoryLink);
        }
        let (directory, name) = self.place(path)?.ok_or(EntryError::Root)?;
        self.name(directory, name, target)
    }

    /// Makes a new inode under a name of a directory.
    ///
    /// # Errors
    /// There is too much in the tree.
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

    /// Names an inode; `directory` is one.
    ///
    /// # Errors
    /// There is too much in the tree.
    pub(super) fn name(&mut self, directory: InodeId, name: Vec<u8>, id: InodeId) -> Result<(), EntryError> {
        self.take_room(NAME.saturating_add(allocated(name.len())))?;
        if let Kind::Directory(names) = &mut self.inode_mut(directory).kind {
            names.insert(name, id);
        }
        Ok(())
    }

    /// What is replaced counts on: a source may replace one name without end.
    fn take_room(&mut self, bytes: usize) -> Result<(), EntryError> {
        self.room = self.room.checked_sub(bytes).ok_or_else(|| self.too_many())?;
        Ok(())
    }

    fn too_many(&self) -> EntryError {
        EntryError::TooMany { mib: self.limit >> 20 }
    }

    /// Every inode that has a name, each once, the root first and each directory before what is in it.
    pub(super) fn reachable(&self) -> Vec<Reached> {
        let mut reached = Vec::with_capacity(self.count());
        reached.push(Reached { id: Self::ROOT, parent: Self::ROOT, links: 2 });
        // By the id of an inode; the root is the only one at 0.
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

    /// The directory and the name of a path, whose folders are made where they are missing; `None` is the
    /// root itself.
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

    /// Goes along a path as far as there are directories, through symbolic links, none of which leads out of
    /// the root. Returns where it ended and the parts that are left; a file of another kind in the way is not
    /// one.
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
                    // What a link left behind is a name to make, if it is one.
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
    /// Its index among the inodes of its tree.
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

impl Kind {
    /// The type bits of `st_mode` (inode(7)).
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
    /// Bytes of memory that it takes, at most about.
    fn memory(&self) -> usize {
        let lens = self.xattrs.iter().flat_map(|(name, value)| [name.len(), value.len()]);
        let all =
            lens.fold(XATTR.saturating_mul(self.xattrs.len()), |sum, len| sum.saturating_add(allocated(len)));
        if all == 0 { 0 } else { all.saturating_add(XATTRS) }
    }
}

impl Inode {
    /// Bytes of memory that it takes, at most about, here and when an image is written.
    fn memory(&self) -> usize {
        let kind = match &self.kind {
            Kind::File(content) => allocated(content.memory()),
            Kind::Symlink(target) => allocated(target.len()),
            Kind::Directory(_) => NAMES,
            Kind::CharacterDevice(_) | Kind::BlockDevice(_) | Kind::Fifo => 0,
        };
        [size_of::<Inode>(), WRITTEN, self.attributes.memory(), kind].into_iter().sum()
    }

    /// As `st_mode`.
    pub(super) fn mode(&self) -> u16 {
        self.kind.type_bits() | (self.attributes.permissions & 0o7777)
    }
}

/// The parts of a path, which may begin with `/` or `./`.
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

/// NAME_MAX of Linux.
const MAX_NAME: usize = 255;
/// Most parts of a path. The deepest trees that people make have some dozens.
const MAX_DEPTH: usize = 1024;
/// As the kernel has it (path_resolution(7)).
const MAX_LINKS: u32 = 40;
/// Inodes that are stored in one piece.
const PIECE: usize = 1024;
/// Most bytes of memory: enough for some two million files, several times a large distribution.
const MAX_MEMORY: usize = 1 << 30;
/// Bytes of memory that a tree from any archive may take: some forty thousand files.
const MIN_MEMORY: usize = 16 << 20;
/// The same for each byte of the archive. A member of a plain tar takes 512 bytes there and some 400 here.
const MEMORY_PER_BYTE: usize = 5;
/// Of a name beside its own bytes: the nodes of a map are half empty at worst.
const NAME: usize = 80;
/// Of a directory: the first node of its map.
const NAMES: usize = 352;
/// Of an extended attribute, and of the first of a file, in the same way.
const XATTR: usize = 112;
const XATTRS: usize = 560;
/// Of an inode, for its place in an image.
const WRITTEN: usize = 128;

/// Bytes that an allocation of `len` takes.
fn allocated(len: usize) -> usize {
    len.saturating_add(16).max(32)
}

#[cfg(test)]
mod tests;
