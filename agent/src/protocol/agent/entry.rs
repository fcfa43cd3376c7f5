//! The entries of a directory, as they come on the stream of a list: one frame each, without kind and
//! channel.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use super::ProtocolError;
use crate::protocol::wire::FrameReader;
use crate::protocol::wire::{Decoder, Encoder};

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The name, without the directory's. It is never empty, `.` or `..`, and has no `/` or zero bytes: this
    /// is checked here, whatever the agent sends.
    pub name: OsString,
    /// The kind of the file. A symbolic link is not followed.
    pub kind: FileKind,
    /// Permission bits, 0 to 0o7777.
    pub mode: u32,
    /// The owner's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// The size in bytes.
    pub size: u64,
    /// The time at which its content was last changed, in seconds since 1970.
    pub modified: i64,
}

/// The kind of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Folder,
    /// A symbolic link.
    Link,
    /// A character device.
    CharacterDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Pipe,
    /// A socket.
    Socket,
}

impl FileKind {
    const ALL: [Self; 7] = [
        Self::File,
        Self::Folder,
        Self::Link,
        Self::CharacterDevice,
        Self::BlockDevice,
        Self::Pipe,
        Self::Socket,
    ];

    /// Returns the kind in `st_mode` (`inode(7)`).
    pub fn from_mode(mode: u32) -> Self {
        match mode & libc::S_IFMT {
            libc::S_IFDIR => Self::Folder,
            libc::S_IFLNK => Self::Link,
            libc::S_IFCHR => Self::CharacterDevice,
            libc::S_IFBLK => Self::BlockDevice,
            libc::S_IFIFO => Self::Pipe,
            libc::S_IFSOCK => Self::Socket,
            _ => Self::File,
        }
    }

    fn from_wire(value: u8) -> Result<Self, ProtocolError> {
        let kind = Self::ALL.get(usize::from(value)).copied();
        kind.ok_or(ProtocolError::UnknownValue { what: "kind of file", value })
    }
}

impl DirEntry {
    /// Returns the entry as a frame.
    pub fn to_frame(&self) -> Vec<u8> {
        let Self { name, kind, mode, uid, gid, size, modified } = self;
        let frame = Encoder::new(*kind as u8).u32(*mode).u32(*uid).u32(*gid);
        frame.u64(*size).i64(*modified).text(name).finish()
    }

    fn parse(content: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Decoder::new(content);
        let kind = FileKind::from_wire(fields.u8("kind")?)?;
        let entry = Self {
            kind,
            mode: fields.u32("mode")?,
            uid: fields.u32("uid")?,
            gid: fields.u32("gid")?,
            size: fields.u64("size")?,
            modified: fields.i64("time")?,
            name: fields.text("name")?,
        };
        fields.end()?;
        match name_is_one(entry.name.as_bytes()) {
            true => Ok(entry),
            false => Err(ProtocolError::EntryName),
        }
    }
}

/// Splits the stream of a list into entries.
#[derive(Debug)]
pub struct EntryReader(FrameReader);

impl Default for EntryReader {
    fn default() -> Self {
        Self(FrameReader::new(MAX_ENTRY))
    }
}

impl EntryReader {
    /// Takes the next bytes of the stream and returns the entries that are complete now.
    ///
    /// # Errors
    /// The bytes are not an entry.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<DirEntry>, ProtocolError> {
        self.0.push(bytes);
        let mut entries = Vec::new();
        while let Some(frame) = self.0.next_frame()? {
            entries.push(DirEntry::parse(&frame)?);
        }
        Ok(entries)
    }
}

/// Returns whether `name` can be the name of a directory's entry (`path_resolution(7)`). A caller that joins
/// it to a path of its own stays in the directory.
fn name_is_one(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}

/// The largest frame of an entry. Names have at most 255 bytes in Linux; those of some network file systems
/// are longer.
const MAX_ENTRY: usize = 4096;
