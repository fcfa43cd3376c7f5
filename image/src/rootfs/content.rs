//! The content of a file of a root: where on the host it is, and how it gets from there into an image.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use crate::sparse::write_unless_zero;

/// Bytes of a file, which stay where they are until an image is written.
#[derive(Debug, Clone)]
pub(super) struct Content {
    /// Bytes.
    pub(super) len: u64,
    source: Source,
}

#[derive(Debug, Clone)]
enum Source {
    /// Parts of an archive; what is in none of them reads as zeroes.
    Parts { archive: Arc<File>, parts: Box<[Part]> },
    /// A file below a folder, which is opened when it is read.
    Named { folder: Arc<File>, path: PathBuf, identity: Identity },
}

/// A piece of a file's content in an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// Where it begins in the file.
    pub(super) at: u64,
    /// Where it begins in the archive.
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// What tells a file from any other that may take its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    pub(super) device: u64,
    inode: u64,
    /// Where the file system says it: the numbers of inodes are given again.
    created: Option<SystemTime>,
}

impl Identity {
    pub(super) fn of(metadata: &Metadata) -> Identity {
        let created = metadata.created().ok();
        Identity { device: metadata.dev(), inode: metadata.ino(), created }
    }
}

impl Content {
    /// A file of `len` bytes that is in parts of an archive, which are in order and inside it.
    pub(super) fn in_archive(archive: &Arc<File>, len: u64, parts: Box<[Part]>) -> Content {
        Content { len, source: Source::Parts { archive: archive.clone(), parts } }
    }

    /// The file at `path` below a folder.
    pub(super) fn named(folder: &Arc<File>, path: PathBuf, identity: Identity, len: u64) -> Content {
        Content { len, source: Source::Named { folder: folder.clone(), path, identity } }
    }

    /// Bytes of memory that say where it is, about.
    pub(super) fn memory(&self) -> usize {
        match &self.source {
            Source::Parts { parts, .. } => size_of_val::<[Part]>(parts),
            Source::Named { path, .. } => path.as_os_str().len(),
        }
    }

    /// What to call it in messages.
    pub(super) fn name(&self) -> String {
        match &self.source {
            Source::Parts { parts, .. } => {
                format!("at byte {} of the tar", parts.first().map_or(0, |part| part.offset))
            }
            Source::Named { path, .. } => path.display().to_string(),
        }
    }

    /// Opens it for reading.
    ///
    /// # Errors
    /// It is not there any more, or is another file.
    pub(super) fn open(&self) -> io::Result<OpenContent<'_>> {
        let place = match &self.source {
            Source::Parts { archive, parts } => Place::Parts(archive, parts),
            Source::Named { folder, path, identity } => Place::File(open_below(folder, path, *identity)?),
        };
        Ok(OpenContent { len: self.len, place })
    }
}

/// A content that can be read.
pub(super) struct OpenContent<'a> {
    len: u64,
    place: Place<'a>,
}

enum Place<'a> {
    Parts(&'a File, &'a [Part]),
    File(File),
}

impl OpenContent<'_> {
    /// The bytes from `at` on, to the end at most.
    ///
    /// # Errors
    /// Those of the host.
    pub(super) fn bytes(&self, at: u64, len: usize) -> io::Result<Vec<u8>> {
        let len = len.min(usize::try_from(self.len.saturating_sub(at)).unwrap_or(usize::MAX));
        let mut bytes = vec![0; len];
        self.fill(&mut bytes, at)?;
        Ok(bytes)
    }

    /// Fills `bytes`, which are zeroes, with those from `at` on. A file that has become shorter ends in
    /// zeroes.
    ///
    /// # Errors
    /// Those of the host.
    pub(super) fn fill(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        let end = at.saturating_add(bytes.len() as u64);
        match &self.place {
            Place::Parts(archive, parts) => {
                for part in *parts {
                    let (from, to) = (part.at.max(at), part.at.saturating_add(part.len).min(end));
                    let target = (from.saturating_sub(at) as usize)..(to.saturating_sub(at) as usize);
                    if from < to
                        && let Some(target) = bytes.get_mut(target)
                    {
                        archive.read_exact_at(
                            target,
                            part.offset.saturating_add(from.saturating_sub(part.at)),
                        )?;
                    }
                }
            }
            Place::File(file) => drop(read_up_to(file, bytes, at)?),
        }
        Ok(())
    }

    /// Whether the file has become shorter since it was found.
    ///
    /// # Errors
    /// Those of the host.
    pub(super) fn is_shorter(&self) -> io::Result<bool> {
        match &self.place {
            Place::Parts(..) => Ok(false),
            Place::File(file) => Ok(file.metadata()?.len() < self.len),
        }
    }

    /// Writes the first `len` bytes to `image` from `offset` on; what is zero there already is left out.
    /// False when the file has become shorter: zeroes stand for the rest.
    ///
    /// # Errors
    /// Those of the host.
    pub(super) fn copy_to(&self, image: &File, offset: u64, len: u64) -> io::Result<bool> {
        let len = len.min(self.len);
        match &self.place {
            Place::Parts(archive, parts) => {
                for part in *parts {
                    let piece = part.len.min(len.saturating_sub(part.at));
                    let range = Range { from: part.offset, to: offset.saturating_add(part.at), len: piece };
                    if !copy(archive, image, range)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Place::File(file) => copy(file, image, Range { from: 0, to: offset, len }),
        }
    }
}

/// Opens a file below a folder, if it is still the one that was found there: whatever links have been put in
/// its way, no other file is read.
fn open_below(folder: &File, path: &Path, identity: Identity) -> io::Result<File> {
    let full_path = below(folder, path);
    let file =
        OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(full_path)?;
    if Identity::of(&file.metadata()?) != identity {
        return Err(io::Error::other("another file has taken its place"));
    }
    Ok(file)
}

/// The path of something below an open folder.
pub(super) fn below(folder: &File, path: &Path) -> PathBuf {
    Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(path)
}

/// What to copy.
#[derive(Clone, Copy)]
pub(super) struct Range {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) len: u64,
}

/// Copies from file to file. False when the source ends before the range.
fn copy(source: &File, image: &File, range: Range) -> io::Result<bool> {
    let mut buffer = vec![0; usize::try_from(range.len.min(BUFFER)).unwrap_or_default()];
    let mut done = 0;
    while done < range.len {
        let count = buffer.len().min(usize::try_from(range.len.saturating_sub(done)).unwrap_or(usize::MAX));
        let buffer = buffer.get_mut(..count).unwrap_or_default();
        let read = read_up_to(source, buffer, range.from.saturating_add(done))?;
        write_unless_zero(image, buffer.get(..read).unwrap_or_default(), range.to.saturating_add(done))?;
        if read < count {
            return Ok(false);
        }
        done = done.saturating_add(count as u64);
    }
    Ok(true)
}

/// Reads until the buffer is full or the file ends; returns how much came.
pub(super) fn read_up_to(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at.saturating_add(filled as u64)) {
            Ok(0) => break,
            Ok(count) => filled = filled.saturating_add(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Large enough that system calls do not count, small enough for a cache.
const BUFFER: u64 = 1 << 20;
