//! Reads a root from a tar in the formats of POSIX (ustar and pax), GNU and the old one, without unpacking
//! it.
//!
//! The archive is a file that stays open, and contents are parts of it. It is not trusted: sizes are checked
//! against that of the file, names that lead upwards are refused, and memory is bounded.
//!
//! Sources: POSIX.1-2017, pax, sections "ustar Interchange Format" and "pax Header Block"; GNU tar 1.35,
//! "Basic Tar Format" and "Storing Sparse Files"; star(5) for `SCHILY.xattr`.

mod header;
mod pax;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::Arc;

use self::header::{BLOCK, Fault, Header, Wrong};
use self::pax::Extensions;
use super::content::{Content, Part, read_up_to};
use super::left_out::LeftOut;
use super::tree::{Attributes, Device, EntryError, Inode, Kind, Tree};
use super::xattrs;

pub(super) use self::header::is_header;

/// Why an archive cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TarError {
    /// The host cannot read it.
    #[error("it cannot be read: {0}")]
    Read(io::Error),
    /// The archive ends too early.
    #[error("it is cut short: it ends at byte {at}, before its end mark; create or download it again")]
    CutShort {
        /// The offset of its end.
        at: u64,
    },
    /// A header is not valid.
    #[error("at byte {at} there is no header of a tar ({what})")]
    Header {
        /// The offset of the header.
        at: u64,
        /// The defect that was found.
        what: &'static str,
    },
    /// A number of a member is not valid.
    #[error("its member {name:?} (at byte {at}): {field} is {value}, and has to be {}", range_of(field))]
    Field {
        /// The name of the member.
        name: String,
        /// The offset of its header.
        at: u64,
        /// The name of the field, as in the header or in pax.
        field: String,
        /// The value, or the beginning of it.
        value: String,
    },
    /// A global header has a value that can only apply to a single file.
    #[error(
        "the global header at byte {at} has {key}, which can apply to a single member only; create the tar again \
         without it"
    )]
    Global {
        /// The offset of the header.
        at: u64,
        /// The key of the value.
        key: &'static str,
    },
    /// A member cannot be part of a root.
    #[error("its member {name:?} (at byte {at}) cannot be kept: {problem}")]
    Entry {
        /// The name of the member.
        name: String,
        /// The offset of its header.
        at: u64,
        /// The reason.
        problem: EntryError,
    },
}

/// Reads an archive of `len` bytes into a tree that takes at most `limit` bytes of memory.
pub(super) fn read(
    archive: &Arc<File>,
    len: u64,
    limit: usize,
    left_out: &mut LeftOut,
) -> Result<Tree, TarError> {
    let attributes = Attributes { permissions: 0o755, ..Attributes::default() };
    let mut tree = Tree::within(attributes, limit);
    let mut reader = Reader { archive, len, at: 0, global: Extensions::default(), global_len: 0 };
    while let Some(member) = reader.next()? {
        let (at, name) = (member.at, member.name.clone());
        member.put(&mut tree, left_out).map_err(|problem| TarError::Entry {
            name: String::from_utf8_lossy(&name).into_owned(),
            at,
            problem,
        })?;
    }
    Ok(tree)
}

/// A file in the archive, with the values of all headers before it.
struct Member {
    /// The offset of its header.
    at: u64,
    name: Vec<u8>,
    link: Vec<u8>,
    kind: u8,
    attributes: Attributes,
    device: Device,
    content: Content,
    /// The number of attributes in an unsupported form.
    lost_xattrs: u64,
}

struct Reader<'a> {
    archive: &'a Arc<File>,
    len: u64,
    /// The offset of the next header.
    at: u64,
    /// The values of pax headers that apply to all files that follow.
    global: Extensions,
    /// The length of these headers, in bytes.
    global_len: usize,
}

impl Reader<'_> {
    /// Returns the next file; `None` at the end mark.
    fn next(&mut self) -> Result<Option<Member>, TarError> {
        let mut extensions = self.global.clone();
        let (mut long_name, mut long_link) = (None, None);
        // Several headers may apply to one file.
        let mut len = 0;
        loop {
            let at = self.at;
            let block = self.block(at)?;
            let Some(header) = Header::parse(&block).map_err(|fault| fault.at(at))? else {
                return Ok(None);
            };
            self.at = self.after(at, BLOCK)?;
            match header.kind {
                b'x' => extensions.read(&self.record(header.size, &mut len)?, at)?,
                b'g' => {
                    let mut global_len = self.global_len;
                    let record = self.record(header.size, &mut global_len)?;
                    self.global_len = global_len;
                    self.global.read(&record, at)?;
                    if let Some(key) = self.global.of_one_file() {
                        return Err(TarError::Global { at, key });
                    }
                    extensions.read(&record, at)?;
                }
                b'L' => long_name = Some(until_zero(&self.record(header.size, &mut len)?).to_vec()),
                b'K' => long_link = Some(until_zero(&self.record(header.size, &mut len)?).to_vec()),
                _ => return self.member(at, header, extensions, long_name, long_link).map(Some),
            }
        }
    }

    fn member(
        &mut self,
        at: u64,
        header: Header,
        extensions: Extensions,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Member, TarError> {
        let sparse = self.sparse_map(at, &header)?;
        let size = extensions.size.unwrap_or(header.size);
        // Some archives give a size even for members without content.
        let stored = if has_content(header.kind) { size } else { 0 };
        let start = self.at;
        self.at = self.after(start, padded(stored).ok_or(TarError::CutShort { at: self.len })?)?;
        let content = match (sparse, &extensions.sparse) {
            (Some((map, real_size)), _) => self.sparse(at, start, stored, real_size, &map)?,
            (None, Some(sparse)) => {
                let (map, used) = self.pax_map(at, start, stored, sparse)?;
                let (start, stored) = (start.saturating_add(used), stored.saturating_sub(used));
                self.sparse(at, start, stored, sparse.real_size.unwrap_or(size), &map)?
            }
            (None, None) => {
                let part = Part { at: 0, offset: start, len: stored };
                Content::in_archive(self.archive, stored, Box::new([part]))
            }
        };
        let sparse_name = extensions.sparse.and_then(|sparse| sparse.name);
        let name = sparse_name.or(extensions.path).or(long_name).unwrap_or(header.name);
        if let Some(wrong) = extensions.wrong {
            return Err(Fault::Field(Wrong { name, ..wrong }).at(at));
        }
        // The old format has no type for directories; their names end with a slash.
        let is_folder = is_file(header.kind) && name.ends_with(b"/");
        Ok(Member {
            at,
            kind: if is_folder { b'5' } else { header.kind },
            link: extensions.link.or(long_link).unwrap_or(header.link),
            attributes: Attributes {
                permissions: header.permissions,
                uid: extensions.uid.unwrap_or(header.uid),
                gid: extensions.gid.unwrap_or(header.gid),
                mtime: extensions.mtime.unwrap_or((header.mtime, 0)),
                xattrs: extensions.xattrs,
            },
            device: header.device,
            content,
            lost_xattrs: extensions.lost_xattrs,
            name,
        })
    }

    /// Returns the map of a sparse file in GNU's own format, which continues after the header, and the file's
    /// real size.
    fn sparse_map(&mut self, at: u64, header: &Header) -> Result<Option<(SparseMap, u64)>, TarError> {
        let Some(sparse) = &header.sparse else { return Ok(None) };
        let mut map = sparse.map.clone();
        let mut goes_on = sparse.goes_on;
        while goes_on {
            let block = self.block(self.at)?;
            let wrong = |what| TarError::Header { at, what };
            goes_on = header::more_of_map(&block, &mut map).map_err(wrong)?;
            self.at = self.after(self.at, BLOCK)?;
        }
        Ok(Some((map, sparse.real_size)))
    }

    /// Returns the map of a sparse file in one of the pax formats, and the number of bytes that it takes
    /// before the content.
    fn pax_map(
        &self,
        at: u64,
        start: u64,
        stored: u64,
        sparse: &pax::Sparse,
    ) -> Result<(SparseMap, u64), TarError> {
        if !sparse.map_is_in_front {
            return Ok((sparse.map.clone(), 0));
        }
        let wrong = || TarError::Header { at, what: "the map of a sparse file is damaged" };
        // The number of pieces, then the offset and length of each, one per line, padded to whole blocks.
        let mut text = self.block(start)?.to_vec();
        let lines = pax::lines_in_front(&text).ok_or_else(wrong)?;
        let count = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
        let mut seen = count(&text);
        while seen < lines {
            if text.len() > MAX_RECORD {
                return Err(wrong());
            }
            let block = self.block(start.saturating_add(text.len() as u64))?;
            seen = seen.saturating_add(count(&block));
            text.extend_from_slice(&block);
        }
        let used = Some(text.len() as u64).filter(|used| *used <= stored);
        Ok((pax::map_in_front(&text).ok_or_else(wrong)?, used.ok_or_else(wrong)?))
    }

    /// Creates a sparse file, whose pieces in `map` follow each other in the archive.
    fn sparse(
        &self,
        at: u64,
        start: u64,
        stored: u64,
        real_size: u64,
        map: &SparseMap,
    ) -> Result<Content, TarError> {
        let wrong = || TarError::Header { at, what: "the map of a sparse file does not fit it" };
        // Drop empty pieces before allocating memory: a map may consist of them.
        let pieces = || map.iter().filter(|(_, len)| *len > 0);
        let mut parts = Vec::with_capacity(pieces().count());
        let (mut used, mut end) = (0_u64, 0_u64);
        for &(place, len) in pieces() {
            if place < end {
                return Err(wrong());
            }
            parts.push(Part { at: place, offset: start.saturating_add(used), len });
            used = used.checked_add(len).ok_or_else(wrong)?;
            end = place.checked_add(len).ok_or_else(wrong)?;
        }
        if used > stored || end > real_size {
            return Err(wrong());
        }
        Ok(Content::in_archive(self.archive, real_size, parts.into_boxed_slice()))
    }

    /// Reads the content of a header that applies to the next one; `before` counts the bytes of such headers.
    fn record(&mut self, size: u64, before: &mut usize) -> Result<Vec<u8>, TarError> {
        let at = self.at;
        let len = usize::try_from(size).ok().filter(|len| *len <= MAX_RECORD.saturating_sub(*before));
        let len = len.ok_or(TarError::Header { at, what: "extensions are longer than 1 MiB" })?;
        *before = before.saturating_add(len);
        self.at = self.after(at, padded(size).unwrap_or(u64::MAX))?;
        let mut bytes = vec![0; len];
        self.fill(&mut bytes, at)?;
        Ok(bytes)
    }

    fn block(&self, at: u64) -> Result<[u8; BLOCK as usize], TarError> {
        let mut block = [0; BLOCK as usize];
        self.fill(&mut block, at)?;
        Ok(block)
    }

    fn fill(&self, bytes: &mut [u8], at: u64) -> Result<(), TarError> {
        match read_up_to(self.archive, bytes, at).map_err(TarError::Read)? {
            read if read == bytes.len() => Ok(()),
            read => Err(TarError::CutShort { at: at.saturating_add(read as u64) }),
        }
    }

    /// Returns the offset `count` bytes further, if the archive has that many.
    fn after(&self, at: u64, count: u64) -> Result<u64, TarError> {
        let end = at.checked_add(count).filter(|end| *end <= self.len);
        end.ok_or(TarError::CutShort { at: self.len })
    }
}

impl Fault {
    /// Creates the error for the header at byte `at`.
    fn at(self, at: u64) -> TarError {
        match self {
            Fault::Damaged(what) => TarError::Header { at, what },
            Fault::Field(Wrong { name, field, value }) => {
                TarError::Field { name: String::from_utf8_lossy(&name).into_owned(), at, field, value }
            }
        }
    }
}

/// Describes the valid values of a field, for messages.
fn range_of(field: &str) -> &'static str {
    match field {
        "uid" | "gid" => "a number from 0 to 4294967295",
        "mtime" => "a time in seconds",
        "GNU.sparse.map" => "pairs of offset and length",
        _ => "a number, 0 or more",
    }
}

impl Member {
    fn put(self, tree: &mut Tree, left_out: &mut LeftOut) -> Result<(), EntryError> {
        let Member { name, link, kind, mut attributes, device, content, lost_xattrs, at: _ } = self;
        left_out.xattrs = left_out.xattrs.saturating_add(lost_xattrs);
        attributes.xattrs.retain(|name, _| {
            let is_kept = xattrs::is_kept(name);
            left_out.xattrs = left_out.xattrs.saturating_add((!is_kept).into());
            is_kept
        });
        let kind = match kind {
            _ if is_file(kind) => Kind::File(content),
            b'1' => return tree.link(&name, &link),
            b'2' => Kind::Symlink(link),
            b'3' => Kind::CharacterDevice(device),
            b'4' => Kind::BlockDevice(device),
            b'5' => Kind::Directory(BTreeMap::new()),
            b'6' => Kind::Fifo,
            _ => {
                left_out.members = left_out.members.saturating_add(1);
                return Ok(());
            }
        };
        if matches!(&kind, Kind::Symlink(target) if !is_target(target)) {
            return Err(EntryError::Target);
        }
        tree.put(&name, Inode { kind, attributes }).map(drop)
    }
}

/// The pieces of a sparse file: their offset and their length, in bytes.
type SparseMap = Vec<(u64, u64)>;

/// Returns whether a symbolic link can have this target (path_resolution(7)).
fn is_target(target: &[u8]) -> bool {
    (1..MAX_TARGET).contains(&target.len()) && !target.contains(&0)
}

/// Returns whether this is the type of a file: regular, in the new or old format, contiguous, or sparse.
fn is_file(kind: u8) -> bool {
    matches!(kind, b'0' | 0 | b'7' | b'S')
}

/// Returns whether a member of this type has content. Links, devices, directories and FIFOs have none; that
/// of an unknown type is skipped.
fn has_content(kind: u8) -> bool {
    !(b'1'..=b'6').contains(&kind)
}

fn padded(len: u64) -> Option<u64> {
    len.checked_next_multiple_of(BLOCK)
}

fn until_zero(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// The maximum length of the extensions for a file, in bytes: longer than all extended attributes that Linux
/// allows for a file.
const MAX_RECORD: usize = 1 << 20;
/// The maximum length of a link's target: PATH_MAX of Linux.
const MAX_TARGET: usize = 4096;

#[cfg(test)]
mod tests;
