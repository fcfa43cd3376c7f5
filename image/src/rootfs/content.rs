//! The content of a file in a root: its location on the host, and how it gets from there into an image.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use crate::sparse::write_unless_zero;

/// The content of a file, which stays on the host until an image is written.
#[derive(Debug, Clone)]
pub(super) struct Content {
    /// The length, in bytes.
    pub(super) len: u64,
    source: Source,
}

#[derive(Debug, Clone)]
enum Source {
    /// Parts of an archive; everything outside them reads as zeroes.
    Parts { archive: Arc<File>, parts: Box<[Part]> },
    /// A file below a directory, which is opened when it is read.
    Named { folder: Arc<File>, path: PathBuf, identity: Identity },
}

/// A part of a file's content in an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// Its offset in the file.
    pub(super) at: u64,
    /// Its offset in the archive.
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// Distinguishes a file from any other that may have taken its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    pub(super) device: u64,
    inode: u64,
    /// The creation time, if the file system has it, since inode numbers are reused.
    created: Option<SystemTime>,
}

impl Identity {
    pub(super) fn of(metadata: &Metadata) -> Identity {
        let created = metadata.created().ok();
        Identity { device: metadata.dev(), inode: metadata.ino(), created }
    }
}

impl Content {
    /// Describes a file of `len` bytes whose content is in parts of an archive, which are in order and within
    /// it.
    pub(super) fn in_archive(archive: &Arc<File>, len: u64, parts: Box<[Part]>) -> Content {
        Content { len, source: Source::Parts { archive: archive.clone(), parts } }
    }

    /// Describes the file at `path` below a directory.
    pub(super) fn named(folder: &Arc<File>, path: PathBuf, identity: Identity, len: u64) -> Content {
        Content { len, source: Source::Named { folder: folder.clone(), path, identity } }
    }

    /// Estimates the memory that the description takes, in bytes.
    pub(super) fn memory(&self) -> usize {
        match &self.source {
            Source::Parts { parts, .. } => size_of_val::<[Part]>(parts),
            Source::Named { path, .. } => path.as_os_str().len(),
        }
    }

    /// Names the content in messages.
    pub(super) fn name(&self) -> String {
        match &self.source {
            Source::Parts { parts, .. } => {
                format!("at byte {} of the tar", parts.first().map_or(0, |part| part.offset))
            }
            Source::Named { path, .. } => path.display().to_string(),
        }
    }

    /// Opens the content for reading.
    ///
    /// # Errors
    /// The file no longer exists, or is another file.
    pub(super) fn open(&self) -> io::Result<OpenContent<'_>> {
        let place = match &self.source {
            Source::Parts { archive, parts } => Place::Parts(archive, parts),
            Source::Named { folder, path, identity } => Place::File(open_below(folder, path, *identity)?),
        };
        Ok(OpenContent { len: self.len, place })
    }
}

/// Content that is open for reading.
pub(super) struct OpenContent<'a> {
    len: u64,
    place: Place<'a>,
}

enum Place<'a> {
    Parts(&'a File, &'a [Part]),
    File(File),
}

impl OpenContent<'_> {
    /// Reads `len` bytes from `at`, or fewer at the end.
    ///
    /// # Errors
    /// The host cannot read the file.
    pub(super) fn bytes(&self, at: u64, len: usize) -> io::Result<Vec<u8>> {
        let len = len.min(usize::try_from(self.len.saturating_sub(at)).unwrap_or(usize::MAX));
        let mut bytes = vec![0; len];
        self.fill(&mut bytes, at)?;
        Ok(bytes)
    }

    /// Fills `bytes`, which must be zeroes, with the content from `at`. If a file has become shorter, the
    /// rest stays zero.
    ///
    /// # Errors
    /// The host cannot read the file.
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

    /// Returns whether the file has become shorter since it was found.
    ///
    /// # Errors
    /// The host cannot read the file's metadata.
    pub(super) fn is_shorter(&self) -> io::Result<bool> {
        match &self.place {
            Place::Parts(..) => Ok(false),
            Place::File(file) => Ok(file.metadata()?.len() < self.len),
        }
    }

    /// Writes the first `len` bytes to `image` at `offset`, leaving out zeroes, which the image has already.
    /// Returns `false` if the file has become shorter; the rest is zero then.
    ///
    /// # Errors
    /// The host cannot read the file or write the image.
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

/// Opens a file below a directory if it is still the one that was found there: whatever links have been put
/// in its way, no other file is read.
fn open_below(folder: &File, path: &Path, identity: Identity) -> io::Result<File> {
    let full_path = below(folder, path);
    let file =
        OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(full_path)?;
    if Identity::of(&file.metadata()?) != identity {
        return Err(io::Error::other("another file is in its place now"));
    }
    Ok(file)
}

/// Returns the path of something below an open directory.
pub(super) fn below(folder: &File, path: &Path) -> PathBuf {
    Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(path)
}

/// The bytes to copy.
#[derive(Clone, Copy)]
pub(super) struct Range {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) len: u64,
}

/// Copies from file to file. Returns `false` if the source ends before the range does.
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

/// Reads until the buffer is full or the file ends, and returns the number of bytes.
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

/// The size of a copy, in bytes: large enough that the cost of system calls does not matter, small enough for
/// a CPU cache.
const BUFFER: u64 = 1 << 20;
